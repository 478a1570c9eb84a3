"""The service behind AutoPay: its log, its lock, its signals, and the payment node."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from ngp.cli.show import clean
from ngp.core.settings import FeeLimit
from ngp.core.tenant.terms import Limits
from ngp.errors import ExitCode, RunningError, UsageError
from ngp.ports import Payment
from ngp.tenant import autopay, files, wallet
from ngp.tenant.autopay import Kept
from ngp.tenant.books import BooksFile
from ngp.tenant.home import CONFIG, Home, Tunnel
from ngp.tenant.https import HttpsLandlord
from ngp.tenant.payer import Payer
from ngp.tenant.proof import CommandProof, EchoProof, Proof

LOG_FILE = "debug.log"
_LOG_BYTES, _LOG_FILES = 1 << 20, 3
_PUBLISHED_NAME = b"\0staticIP"
WARN_S = 86_400
FEE_LIMIT = FeeLimit(10_000, 1000)
"""1 %, at least 1 sat: FEE_LIMIT as net.conf ships it."""


@contextlib.contextmanager
def only_autopay(folder: Path) -> Iterator[None]:
    """Let one AutoPay run on a home, the published client's included. Raises RunningError."""
    with files.only_one(folder / "AutoPay.lock", "AutoPay", "end that one first"):
        theirs = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            theirs.bind(_PUBLISHED_NAME)
        except OSError as error:
            theirs.close()
            raise RunningError("another staticIP runs on this machine, perhaps the published client: end it") from error
        with theirs:
            yield


def keep_by_hand_of(home: Home, tunnel: Tunnel, landlord: HttpsLandlord) -> int:
    """Run `staticIP AutoPay`. Returns the exit code, which is never 0."""
    log_to(home.folder / LOG_FILE)
    home.limits()  # what is wrong in the file is said before a node is looked for

    async def run() -> None:
        payment = await wallet.find(home, _ask_uri if sys.stdin.isatty() else None)
        try:
            await autopay.keep(_kept(home, tunnel, landlord, payment), False, _changes(home.folder / CONFIG))
        finally:
            await payment.close()

    return until_signalled(run)


def _kept(home: Home, tunnel: Tunnel, landlord: HttpsLandlord, payment: Payment) -> Kept:
    books = BooksFile(home.state_path(tunnel))

    def limits() -> Limits:
        home.reload()
        return home.limits()

    payer = Payer(payment, books, FEE_LIMIT, None, lambda since_s: books.read().spent_msat(since_s))
    return Kept(home, tunnel, landlord, books, payer, lambda: proof_of(home, tunnel, home.probe), limits, WARN_S)


def proof_of(home: Home, tunnel: Tunnel, probe: str) -> Proof:
    """Return what proves that a tunnel works. Args: probe: a command, or `auto`: an echo through the tunnel."""
    if probe != "auto":
        return CommandProof(probe)
    path = home.conf_path(tunnel)
    lines = path.read_text().splitlines() if path.exists() else []
    endpoint = next((line.partition(" = ")[2] for line in lines if line.startswith("Endpoint = ")), "")
    return EchoProof(tunnel.interface, endpoint, f"sudo wg-quick up {path}")


def until_signalled(run: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run a coroutine function until it raises, or a signal ends it. Returns 128 + the signal; else raises."""
    ended_by: list[int] = []

    async def guarded() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(run())

        def end(number: int) -> None:
            ended_by.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end, number)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(guarded())
    return 128 + ended_by[0] if ended_by else int(ExitCode.OTHER)


def _changes(*paths: Path) -> Callable[[], bool]:
    """Return a function that says whether a file changed, or SIGHUP came, since its last call."""
    asked: list[bool] = []
    signal.signal(signal.SIGHUP, lambda _number, _frame: asked.append(True))

    def stamps() -> Sequence[int]:
        return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]

    known = [stamps()]

    def changed() -> bool:
        now = stamps()
        found = bool(asked) or now != known[0]
        asked.clear()
        known[0] = now
        return found

    return changed


def log_to(path: Path) -> None:
    """Send messages to standard error and, rotated, to a file; the umask keeps it from others."""
    if path.exists():
        path.chmod(0o600)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(sys.stderr),
        RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES - 1, encoding="utf-8", errors="replace"),
    ]
    for one in handlers:
        one.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    logging.raiseExceptions = False
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logging.getLogger("ngp").setLevel(logging.INFO)


class _Printable(logging.Formatter):
    """Formats without tracebacks and control characters: a line may quote a landlord."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record)} {record.levelname} {clean(record.getMessage())}"


def _ask_uri() -> str:
    """Ask for an lndconnect URI on the terminal, without showing it. Raises UsageError."""
    try:
        uri = getpass.getpass("lndconnect URI of your LND node (not shown): ")
    except EOFError:
        uri = ""
    if not uri.strip():
        raise UsageError("no lndconnect URI was given: without a payment node nothing can be paid")
    return uri
