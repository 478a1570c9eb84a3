"""Logs: where the daemon's messages go, and how often one kind of message may come.

A router keeps its log on flash: the log is small, rotated by size, and never ends the daemon. On a full disk lines are
lost. A terminal that was closed, or stopped with Ctrl-S, blocks its writer. So a thread writes to the terminal from a
bounded queue, and lines that don't fit are counted and left out: the event loop never waits for a terminal. Neighbours
could cause a message as often as they like; `RateLimit` stops them from filling the log.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from ngp.core.newest import Newest
from ngp.daemon.operators import OPERATORS_MODE, show_operators
from ngp.daemon.options import LOG_FILE

TOLD = {"told": True}
"""`extra` of a record that isn't for the terminal, since the error that ends the command says the same there."""
LOG_BYTES = 1 << 20
LOG_FILES = 5
MOST_TOLD = 8000
"""The most characters of warnings for the command that starts us. As JSON they fit into a pipe that nobody reads."""
_TERMINAL_LINES = 1000
_FLUSH_S = 1.0
_PAUSE_S = 0.02


class _Utc(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"


class LogFile(RotatingFileHandler):
    """The log in the state directory: 5 files of 1 MB, readable by root and the group ngp.

    For each line one stat() shows the file's size, and whether the file still has its name. If logrotate moved the file
    away, or somebody deleted it, a new file is opened; if standard error went to the old file, it goes to the new one.
    The library's own handler calls stat() and formats each line twice: that took a tenth of the time that a gateway
    needs for a new contract.
    """

    def __init__(self, path: Path) -> None:
        self._file: os.stat_result | None = None
        self._takes_stderr = False
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8", errors="replace")
        if self._file is not None:
            self._takes_stderr = os.path.samestat(self._file, os.fstat(2))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; into a new file if this one would grow too long or was moved away."""
        try:
            line = self.format(record) + self.terminator
            size_bytes = self._follow()
            if size_bytes and size_bytes + len(line.encode("utf-8", "replace")) > self.maxBytes:
                self.doRollover()
            stream = self.stream or self._open()
            stream.write(line)
            stream.flush()
        except Exception:  # a failing log must not end the daemon
            self.handleError(record)

    def _follow(self) -> int:
        """Open the file with the log's name, or a new one, unless it is open already; return its size."""
        try:
            found = os.stat(self.baseFilename, follow_symlinks=False)
        except OSError:
            found = None
        if self.stream and self._file and found and os.path.samestat(found, self._file):
            return found.st_size
        former = self.stream
        try:
            self.stream = self._open()
        except OSError:
            if not former:
                raise
            return 0  # the old file is better than none
        if former:
            former.close()
        return self._file.st_size if self._file else 0

    def _open(self) -> TextIOWrapper:
        stream = os.fdopen(open_log(Path(self.baseFilename)), "a", encoding="utf-8", errors="replace")
        self._file = os.fstat(stream.fileno())
        if self._takes_stderr:
            os.dup2(stream.fileno(), 2)
        return stream

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging gives it
        """Lose the line: a full disk must not end the daemon, and there is no better place to report it."""


def open_log(path: Path) -> int:
    """Open a log for appending (0640, group ngp where it exists) and return the descriptor.

    A symbolic link is refused, and a pipe that nobody reads doesn't block the daemon.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, OPERATORS_MODE)
    show_operators(descriptor)
    return descriptor


class Terminal(logging.Handler):
    """Writes from a thread of its own to a terminal that may stop or vanish."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_TERMINAL_LINES)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="terminal", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, or count it as lost if the terminal accepts none."""
        try:
            line = self.format(record)
            if self._lost:
                line = f"({self._lost} lines left out: the terminal didn't accept them)\n{line}"
            self._lines.put_nowait(line)
            self._lost = 0
        except queue.Full:
            self._lost += 1
        except (TypeError, ValueError):
            self._lost += 1  # a message whose arguments don't match its format; the log file loses it too

    def _write(self) -> None:
        """Write a line at once, and those of the next 20 ms together.

        A daemon that opens hundreds of contracts a second writes as many lines. Each time this thread wakes up, the
        daemon waits for the interpreter's lock.
        """
        while True:
            lines = [self._lines.get()]
            with suppress(queue.Empty):
                while lines[-1] is not None:
                    lines.append(self._lines.get_nowait())
            try:
                self._stream.write("".join(f"{line}\n" for line in lines if line is not None))
                self._stream.flush()
            except (OSError, ValueError):  # EIO, EPIPE: the terminal is gone, and stays gone
                return
            if lines[-1] is None:
                return
            time.sleep(_PAUSE_S)

    def close(self) -> None:
        """Give the queued lines a moment to be written; a stopped terminal doesn't delay the daemon's end."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(_FLUSH_S)
        super().close()


class Teller(logging.Handler):
    """Passes ngp's first warnings on to the command that waits for the start; the others are in the log only."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell, self._left = tell, MOST_TOLD
        self.addFilter(logging.Filter("ngp"))

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a warning on while there is room."""
        if self._left <= 0:
            return
        text = f"{record.levelname} {record.getMessage()}"
        self._left -= len(text)
        self._tell(text if self._left > 0 else "WARNING there are more warnings in the log")


def set_up(state_dir: Path, verbose: bool, terminal: bool, tell: Callable[[str], None]) -> None:
    """Send the log of all modules to STATE_DIR/ngp.log, and to this terminal.

    Args:
        state_dir: exists and belongs to this daemon.
        verbose: messages from INFO on go to the terminal; otherwise only warnings.
        terminal: there is a terminal (False for a daemon that left it).
        tell: receives warnings in place of a terminal.

    Raises:
        OSError: the log can't be opened.
    """
    file = LogFile(state_dir / LOG_FILE)
    file.setFormatter(_Utc("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [file]
    if terminal or verbose:
        screen: logging.Handler = Terminal(sys.stderr)
        screen.setLevel(logging.INFO if verbose else logging.WARNING)
        screen.setFormatter(_Screen("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    else:
        screen = Teller(tell)
    screen.addFilter(lambda record: not hasattr(record, "told"))
    handlers.append(screen)
    logging.raiseExceptions = False
    # Don't collect what our formats don't show (docs.python.org/3/howto/logging.html#optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    logging.captureWarnings(True)


class _Screen(logging.Formatter):
    """Formats without tracebacks and control characters: a line may quote a neighbour, and goes to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{self.formatTime(record, self.datefmt)} {record.levelname} {record.getMessage()}"
        if text.isprintable():
            return text
        return "".join(letter if letter.isprintable() else "?" for letter in text)


class WhileItLasts:
    """Passes the message about a condition when it begins, and at intervals as long as it lasts.

    A failed action is retried every few seconds and fails again. By this rule a payment node that is locked for a night
    causes a few lines, not thousands.

    Args:
        over_s: seconds without a report after which a condition is over; the next report is news again.
        every_s: seconds until the message passes again while the condition lasts.
        kinds_most: conditions remembered; the oldest is forgotten.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        over_s: float = 150.0,
        every_s: float = 3600.0,
        kinds_most: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._over_s = over_s
        self._every_s = every_s
        self._clock = clock
        self._kinds: Newest[str, tuple[float, float]] = Newest(kinds_most)

    def is_news(self, kind: str) -> bool:
        """Say whether to log a condition now. Call it each time the condition is seen."""
        now = self._clock()
        told, shown = self._kinds.get(kind, (-math.inf, -math.inf))
        news = now - shown >= self._over_s or now - told >= self._every_s
        self._kinds.note(kind, (now if news else told, now))
        return news


class RateLimit:
    """Passes a kind of message a few times, then at intervals with the number of messages left out.

    Args:
        burst: messages of a kind that pass at once, >= 1.
        every_s: seconds until one more may pass.
        kinds_most: kinds remembered; the oldest is forgotten, so that a flood of kinds costs no memory.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        burst: int = 5,
        every_s: float = 60.0,
        kinds_most: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._every_s = every_s
        self._clock = clock
        self._kinds: Newest[str, tuple[float, float, int]] = Newest(kinds_most)

    def take(self, kind: str) -> int | None:
        """Return how many messages of this kind were left out before this one; None if this one is left out too."""
        now = self._clock()
        tokens, since, left_out = self._kinds.get(kind, (float(self._burst), now, 0))
        tokens = min(float(self._burst), tokens + (now - since) / self._every_s)
        passes = tokens >= 1.0
        self._kinds.note(kind, (tokens - 1.0, now, 0) if passes else (tokens, now, left_out + 1))
        return left_out if passes else None

    def warn(self, logger: logging.Logger, kind: str, message: str) -> None:
        """Log a warning of a kind, unless there were too many lately; `message` isn't a format string."""
        left_out = self.take(kind)
        if left_out is not None:
            more = f" ({left_out} like it left out)" if left_out else ""
            logger.warning("%s%s", message, more)
