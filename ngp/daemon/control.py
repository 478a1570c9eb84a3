"""Control socket, the daemon's side: one question per connection, from root or from a member of the group ngp.

STATE_DIR/control.sock is a unix stream socket with mode 0600, or 0660 and the group ngp where the system has one. The
kernel is also asked for the caller's credentials. So a wrong mode, or a program that hands its socket on, doesn't give
others access to the daemon. A question is one line of JSON:

    {"verb": "contracts", "arguments": {"all": true}}

and so is the answer: `{"ok": true, "result": ...}` or `{"ok": false, "error": "...", "exit_code": 4}`. A list begins
with `{"ok": true, "rows": true}`. Then come any number of lines, each an array of some rows, and at the end
`{"ok": true, "count": 2}` or an error line. So 100,000 contracts don't stop the event loop, neither side holds them as
one text, and the command notices a list that was cut off.

Limits on a caller: 64 kB and 5 s for a question, 16 connections, 30 s for each part of an answer that it doesn't read.
An exception in a handler never ends the daemon; its traceback goes to the log only.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngp.daemon.operators import operators_group
from ngp.daemon.state import short_address
from ngp.errors import ExitCode, KernelError, NgpError, refused

MOST_REQUEST_BYTES = 1 << 16
REQUEST_S = 5.0
REPLY_S = 30.0
MOST_CONNECTIONS = 16
ROWS_A_CHUNK = 200
_CLOSE_S = 2.0
_MOST_GROUPS_BYTES = 1024  # the largest buffer that Python's getsockopt takes: room for 256 groups
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h; Python has no name for it

Handler = Callable[[dict[str, Any]], Any]
"""async callable(arguments) -> a value for JSON, or an (async) iterator of rows; or an async generator function."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, as reported by the kernel."""

    uid: int
    groups: frozenset[int]


class ControlServer:
    """Answers verbs on a unix socket, without knowing what they do.

    Args:
        path: of the socket. Its folder exists; a socket left by a killed daemon is replaced.
        handlers: by verb. They raise NgpError with a text for the caller.
        root_only: verbs that members of the group may not use, because these make the daemon write files.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler], root_only: Collection[str] = ()) -> None:
        self._path = path
        self._handlers = dict(handlers)
        self._root_only = frozenset(root_only)
        self._group = operators_group()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._inode = 0

    async def start(self) -> None:
        """Start answering. Raises KernelError if the socket can't be made."""
        try:
            listener = self._listen()
        except OSError as error:
            raise refused(f"control socket {self._path}", error, "make the state directory this user's") from error
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MOST_REQUEST_BYTES)

    def _listen(self) -> socket.socket:
        """Make the socket with its final mode from the start, so that nobody can connect before the mode is set."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        before = os.umask(0o177)
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._path.name, dir_fd=folder)
            listener.bind(short_address(self._path, folder))
            self._inode = os.stat(self._path.name, dir_fd=folder).st_ino
            if self._group is not None:
                with suppress(OSError):  # not root: only the owner may connect
                    os.chown(self._path.name, -1, self._group, dir_fd=folder)
                    os.chmod(self._path.name, 0o660, dir_fd=folder)
            listener.listen(MOST_CONNECTIONS)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(before)
            os.close(folder)
        return listener

    async def close(self) -> None:
        """Give open questions a moment to be answered and remove the socket. Safe to call twice, and from a handler."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        others = self._tasks - {asyncio.current_task()}
        if others:
            _, late = await asyncio.wait(others, timeout=_CLOSE_S)
            for task in late:
                task.cancel()

    # --- one connection -----------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        writer.transport.set_write_buffer_limits(0)  # drain() then waits until the caller has taken everything
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError):
            writer.transport.abort()  # the caller went away, or doesn't read
        finally:
            writer.close()
            if task is not None:
                self._tasks.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verb = ""
        try:
            if len(self._tasks) > MOST_CONNECTIONS:
                raise NgpError(f"{MOST_CONNECTIONS} others are asking already: try again in a moment")
            peer = _peer(writer.get_extra_info("socket"))
            self._admit(peer)
            verb, arguments = await _read_request(reader)
            if verb in self._root_only and peer.uid not in (0, os.geteuid()):
                raise KernelError(f"{verb} needs root: sudo ngp {verb}")
            if verb not in self._handlers:
                raise NgpError(f"the daemon has no verb {verb[:40]!r}: its version differs, restart it")
            outcome = self._handlers[verb](arguments)
            if inspect.isawaitable(outcome):
                outcome = await outcome
            await _reply(writer, outcome)
        except NgpError as error:
            await _send(writer, _refusal(str(error), error.exit_code))
        except (OSError, TimeoutError, asyncio.CancelledError):
            raise
        except Exception:
            _log.exception("control socket: %s failed", verb or "a question")
            await _send(writer, _refusal(f"{verb} failed inside the daemon: see its log", ExitCode.OTHER))

    def _admit(self, peer: Peer) -> None:
        """Raise KernelError for a caller that is neither root nor this user, and not in the group."""
        if peer.uid in (0, os.geteuid()) or (self._group is not None and self._group in peer.groups):
            return
        _log.warning("control socket: refused the user with number %d", peer.uid)
        raise KernelError("only root and members of the group ngp may ask: use sudo")


def _peer(connection: Any) -> Peer:
    """Ask the kernel which user has connected (unix(7), SO_PEERCRED; supplementary groups by SO_PEERGROUPS)."""
    _pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    groups = {gid}
    with suppress(OSError):  # if the user is in more groups than that, only the main group counts
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS_BYTES)
        groups.update(struct.unpack(f"{len(packed) // 4}I", packed))
    return Peer(uid, frozenset(groups))


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    """Read one question. Raises NgpError if it is malformed, OSError if none comes."""
    try:
        async with asyncio.timeout(REQUEST_S):
            line = await reader.readline()
    except ValueError:
        raise NgpError(f"the question is longer than {MOST_REQUEST_BYTES} bytes") from None
    except TimeoutError:
        raise NgpError(f"no question within {REQUEST_S:.0f} s") from None
    if not line:
        raise ConnectionResetError
    try:
        request = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        request = None
    verb = request.get("verb") if isinstance(request, dict) else None
    arguments = request.get("arguments", {}) if isinstance(request, dict) else None
    if not isinstance(verb, str) or not isinstance(arguments, dict):
        raise NgpError('not a question: one line {"verb": "...", "arguments": {...}} is expected')
    return verb, arguments


async def _reply(writer: asyncio.StreamWriter, outcome: object) -> None:
    if not isinstance(outcome, list | tuple | AsyncIterable):
        await _send(writer, {"ok": True, "result": outcome})
        return
    count = 0
    await _send(writer, {"ok": True, "rows": True})
    async for chunk in _chunks(outcome):
        count += len(chunk)
        await _send(writer, chunk)
        await asyncio.sleep(0)  # drain() may not wait at all; packets and timers need a turn between chunks
    await _send(writer, {"ok": True, "count": count})


async def _chunks(rows: Sequence[object] | AsyncIterable[object]) -> AsyncIterator[list[object]]:
    if not isinstance(rows, AsyncIterable):
        for start in range(0, len(rows), ROWS_A_CHUNK):
            yield list(rows[start : start + ROWS_A_CHUNK])
        return
    chunk: list[object] = []
    async for row in rows:
        chunk.append(row)
        if len(chunk) == ROWS_A_CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def _send(writer: asyncio.StreamWriter, value: object) -> None:
    writer.write(json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n")
    async with asyncio.timeout(REPLY_S):
        await writer.drain()


def _refusal(text: str, exit_code: int) -> dict[str, object]:
    return {"ok": False, "error": text, "exit_code": int(exit_code) or int(ExitCode.OTHER)}
