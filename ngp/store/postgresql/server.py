"""Server: where the database is, connections to it, and its errors in ngp's words.

Whoever can read a URL with a password can change every ledger in the database. So no text of ours shows the URL as it
was written, nor what the server says about the values of a row: an invoice's preimage may be among them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Self, TypeVar

import psycopg
from psycopg import conninfo, errors

from ngp.errors import LedgerError, LedgerMomentError
from ngp.store.postgresql import dialect

_T = TypeVar("_T")
_CONNECT_S = 2
_LOCK_S = 5
MOST_S = 10
"""How long the server may take for one statement; meanwhile the daemon's loop waits."""

_SESSION = {
    "synchronous_commit": "on",
    "lock_timeout": f"{_LOCK_S}s",
    "client_min_messages": "warning",
    # a session whose gateway vanished ends, so that the gateway can take its lock again
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
# Words in the server's errors that tell of wrong settings, which the operator must correct.
_OPERATORS = ("authentication failed", "does not exist", "pg_hba.conf", "no password supplied", "not permitted")
# Classes of SQLSTATE that may pass by themselves: connection, deadlock, resources, locks, shutdown, read-only standby.
_PASSING = ("08", "40", "53", "55", "57", "25")


class NetworksTakenError(LedgerError):
    """The database refuses networks that overlap what is let or held for another rental."""


@dataclass(frozen=True)
class Place:
    """A database, and the node whose ledger is kept there. Raises LedgerError if the URL can't be read.

    Args:
        url: postgresql://...; it may hold a password.
        identity: public key of the node; b"" if it isn't known yet.
    """

    url: str = field(repr=False)
    identity: bytes

    @cached_property
    def schema(self) -> str:
        """The schema of this identity's tables."""
        return f"ngp_{self.identity.hex()[:32]}"

    @cached_property
    def lock(self) -> int:
        """The number of the lock that the identity's daemon holds."""
        return int.from_bytes(sha256(self.schema.encode()).digest()[:8], "big", signed=True)

    @cached_property
    def _words(self) -> dict[str, Any]:
        try:
            words = conninfo.conninfo_to_dict(self.url)
        except psycopg.Error:  # its text shows parts of the URL
            words = {"port": "?"}
        shown = f"{words.get('user')}{words.get('host')}{words.get('dbname')}"
        if "@" in shown or not str(words.get("port") or "").replace(",", "").isdecimal() and words.get("port"):
            # where special characters weren't escaped, parts of the password are taken for port, host or database
            raise LedgerError(
                "LEDGER: the URL can't be read; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with %XX for "
                "special characters"
            )
        return words

    def __str__(self) -> str:
        words = self._words
        user = f"{words['user']}@" if words.get("user") else ""
        host = words.get("host") or words.get("hostaddr") or ""
        port = f":{words['port']}" if words.get("port") else ""
        return f"postgresql://{user}{host}{port}/{words.get('dbname') or ''} ({self.schema})"

    def connect(self, most_s: float = MOST_S) -> Connection:
        """Connect, with the identity's schema in force. Raises psycopg.Error.

        Args: most_s: how long a statement may take.
        """
        given = self._words.get("options") or ""
        settings = {**_SESSION, "statement_timeout": f"{most_s:.0f}s", "search_path": self.schema}
        options = " ".join((given, *(f"-c {name}={value}" for name, value in settings.items())))
        connection = Connection.connect(
            self.url,
            autocommit=True,
            options=options.strip(),
            connect_timeout=_CONNECT_S,
            tcp_user_timeout=MOST_S * 1000,
            keepalives_idle=5,
            keepalives_interval=5,
            keepalives_count=3,
            application_name=self.schema,
        )
        connection.most_s = most_s + _LOCK_S
        dialect.adapt(connection)
        return connection


class Connection(psycopg.Connection[Any]):
    """A connection that doesn't wait for ever: a server that hangs must not stop the daemon's loop."""

    most_s: float = MOST_S

    def wait(self, gen: Any, *args: Any, **named: Any) -> Any:
        return super().wait(_limited(gen, time.monotonic() + self.most_s), *args, **named)

    @classmethod
    def connect(cls, *args: Any, **named: Any) -> Self:
        return super().connect(*args, **named)


def _limited(waiting: Generator[Any, Any, _T], until_mono_s: float) -> Generator[Any, Any, _T]:
    """Run a generator of psycopg that waits for the server, at most until a time.

    psycopg resumes it several times a second, also when nothing has arrived.
    """
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > until_mono_s:
                raise psycopg.OperationalError("the server doesn't answer")
            wanted = waiting.send(ready)
    except StopIteration as ended:
        return ended.value  # type: ignore[no-any-return]


def failure(place: Place, error: psycopg.Error) -> LedgerError:
    """Translate an error of PostgreSQL into a LedgerError with its text and a remedy."""
    said = (error.diag.message_primary or str(error)).strip().splitlines()
    text, state = said[0] if said else type(error).__name__, error.sqlstate or ""
    where = f"ledger {place}: {text}."
    if isinstance(error, errors.ExclusionViolation):
        return NetworksTakenError(
            f"{where} Another landlord with this database lets a network that a rental here has: `ngp rentals` on both "
            "hosts shows the network; release one of the two rentals"
        )
    if isinstance(error, errors.LockNotAvailable):
        return LedgerMomentError(f"{where} Another ngp with the same identity.key uses this ledger; end that ngp")
    if isinstance(error, errors.InsufficientPrivilege):
        return LedgerError(f"{where} Allow it: GRANT CREATE ON DATABASE ... TO the user of LEDGER")
    if state[:2] in ("", "28", "3D") and any(words in text for words in _OPERATORS):
        return LedgerError(f"{where} Correct LEDGER in net.conf, or the server's users, databases and pg_hba.conf")
    if isinstance(error, errors.DiskFull):
        return LedgerMomentError(f"{where} The ledger is intact; free some space on the server")
    if state[:2] in _PASSING or (not state and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)):
        return LedgerMomentError(f"{where} The ledger is intact; start the server, or mend the way to it")
    return LedgerError(f"{where} The transaction was undone; if this happens again, look at the server's log")


@contextmanager
def translated(place: Place) -> Iterator[None]:
    """Turn all errors of PostgreSQL in a block into LedgerErrors; without their details, which show a row's values."""
    try:
        yield
    except psycopg.Error as error:
        raise failure(place, error) from None
    except OverflowError as error:
        raise LedgerError(f"ledger {place}: {error}. The transaction was undone") from error
