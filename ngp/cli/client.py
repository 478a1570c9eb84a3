"""Control socket, the command's side: asks the daemon one question, and explains why no answer came.

`ngp.daemon.control` defines the protocol. The answer isn't trusted: a daemon of another version, or another program at
the socket, leads to an error, never to a traceback or to an incomplete list that looks complete.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ngp.daemon.options import CONTROL_SOCKET
from ngp.daemon.state import running_pid, short_address
from ngp.errors import ExitCode, KernelError, NgpError, RunningError

Row = dict[str, Any]

ANSWER_S = 30.0
_MOST_LINE_BYTES = 1 << 24
_PIECE_BYTES = 1 << 16
_TICK_S = 1.0


class Refused(NgpError):
    """The daemon answered with an error. `exit_code` is the one it named, with which this command must end."""

    def __init__(self, text: str, exit_code: object) -> None:
        super().__init__(text)
        known = isinstance(exit_code, int) and exit_code in set(ExitCode) and exit_code != ExitCode.DONE
        self.exit_code = ExitCode(exit_code) if known else ExitCode.OTHER  # type: ignore[arg-type]


class Absent(RunningError):
    """No daemon runs on this state directory."""


class BrokenOff(NgpError):
    """The daemon ended, or closed the connection, before its answer was complete."""


class Daemon:
    """The daemon of a state directory.

    Args:
        state_dir: where its socket is.
        answer_s: how long the daemon may be silent.
        progress: called about once a second while it is silent, with the seconds so far.
    """

    def __init__(
        self, state_dir: Path, answer_s: float = ANSWER_S, progress: Callable[[float], None] | None = None
    ) -> None:
        self._progress = progress
        self._state_dir = state_dir
        self._path = state_dir / CONTROL_SOCKET
        self._answer_s = answer_s

    def ask(self, verb: str, **arguments: object) -> Any:
        """Ask for one value.

        Raises:
            RunningError: no daemon listens. KernelError: no rights to ask. Refused: the daemon's own error. NgpError:
                the answer is malformed, or didn't come.
        """
        lines = self._lines(verb, arguments)
        head = self._head(lines)
        if head.get("rows") is True:
            return list(_rows(lines))
        if "result" not in head:
            raise self._senseless()
        return head["result"]

    def rows(self, verb: str, **arguments: object) -> Iterator[Row]:
        """Ask for a list. The question is sent at once; the rows are read as the iterator is used. Raises as `ask`."""
        lines = self._lines(verb, arguments)
        if self._head(lines).get("rows") is not True:
            raise self._senseless()
        return _rows(lines)

    def _head(self, lines: Iterator[Any]) -> dict[str, Any]:
        head = next(lines)
        if not isinstance(head, dict):
            raise self._senseless()
        return head

    def _lines(self, verb: str, arguments: dict[str, object]) -> Iterator[Any]:
        """Yield the lines of the answer, or raise its error; the caller stops reading after the last line."""
        question = json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n"
        with self._connect() as connection:
            connection.settimeout(self._answer_s)
            with suppress(BrokenPipeError, ConnectionResetError):  # the daemon may have refused already
                connection.sendall(question)
            for line in self._read(connection):
                try:
                    said = json.loads(line)
                except (ValueError, RecursionError):
                    raise self._senseless() from None
                if isinstance(said, dict) and said.get("ok") is False:
                    raise Refused(str(said.get("error", "no reason given")), said.get("exit_code"))
                if not isinstance(said, list) and not (isinstance(said, dict) and said.get("ok") is True):
                    raise self._senseless()
                yield said
        raise BrokenOff(f"the daemon on {self._state_dir} broke off its answer: ask again; its log may say why")

    def _read(self, connection: socket.socket) -> Iterator[bytes]:
        rest = bytearray()
        while piece := self._receive(connection):
            scanned = len(rest)
            rest += piece
            if (end := rest.rfind(b"\n", scanned)) >= 0:
                yield from bytes(rest[:end]).split(b"\n")
                del rest[: end + 1]
            if len(rest) > _MOST_LINE_BYTES:
                raise self._senseless()

    def _receive(self, connection: socket.socket) -> bytes:
        """Wait for a piece of the answer; empty at the end. Raises NgpError after a long silence."""
        began = time.monotonic()
        connection.settimeout(min(_TICK_S, self._answer_s))
        while True:
            try:
                return connection.recv(_PIECE_BYTES)
            except TimeoutError:
                silent_s = time.monotonic() - began
                if silent_s >= self._answer_s:
                    text = f"the daemon on {self._state_dir} gave no answer within {self._answer_s:g} s"
                    raise NgpError(f"{text}: its log may say why; kill -9 and `ngp stop` end it") from None
                if self._progress is not None:
                    self._progress(silent_s)
            except OSError:
                return b""

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self._answer_s)
        try:
            folder = os.open(self._state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                connection.connect(short_address(self._path, folder))
            finally:
                os.close(folder)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            connection.close()
            raise self._absent() from None
        except PermissionError:
            connection.close()
            raise self._forbidden() from None
        except OSError as error:
            connection.close()
            raise NgpError(f"{self._path}: {error.strerror or 'no answer'}") from error
        return connection

    def _forbidden(self) -> KernelError:
        """Return the error for missing rights. Whoever can't read the folder can't see if a daemon runs."""
        seen = os.path.lexists(self._path)
        what = "ask the daemon on" if seen else "see whether a daemon runs on"
        return KernelError(f"no rights to {what} {self._state_dir}: use sudo, or the group ngp")

    def _absent(self) -> RunningError:
        pid = running_pid(self._state_dir)
        if pid is not None:
            return RunningError(f"ngp (process {pid}) is just starting or stopping on {self._state_dir}: try again")
        return Absent(f"ngp isn't running on {self._state_dir}: start it, or name its directory with --state-dir")

    def _senseless(self) -> NgpError:
        return NgpError(f"the answer from {self._path} makes no sense: another version of ngp? ngp stop; ngp start")


def _rows(lines: Iterator[Any]) -> Iterator[Row]:
    count = 0
    for said in lines:
        if isinstance(said, dict):
            if said.get("count") != count:
                raise NgpError(f"the answer has {count} rows of {said.get('count')}: run the command again")
            return
        for row in said:
            if not isinstance(row, dict):
                raise NgpError("the daemon sent a malformed row: another version of ngp? ngp stop; ngp start")
            count += 1
            yield row
