"""A fake Electrum daemon that answers what a test wants, over HTTP on a socket like the real one."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ngp.modules.payment.electrum import ElectrumPayment

LOGIN = "user:s3cret-word"
NODE = "02" + "ab" * 32
PEER = "03" + "cd" * 32
INFO = {"network": "regtest", "version": "4.3.4"}
CHANNEL = {
    "type": "CHANNEL", "channel_point": f"{'ee' * 32}:0", "state": "OPEN", "peer_state": "GOOD", "remote_pubkey": PEER,
    "local_balance": 4_000_000, "remote_balance": 1_000_000, "local_unsettled_sent": 0, "remote_unsettled_sent": 0,
    "local_reserve": 50_000, "remote_reserve": 50_000,
}  # fmt: skip


class Refused(Exception):
    """An error in Electrum's answer."""


class Internal(Exception):
    """An error whose message in Electrum 4.5 is a fixed sentence; the exception's text is in another field."""


class Gone(Exception):
    """The connection ends without an answer."""


class FakeElectrum:
    """Answers each command with its entry in `say`: a value, or a function of the call's arguments.

    All calls are kept in `asked`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.say: dict[str, Any] = {
            "getinfo": INFO, "nodeid": f"{NODE}@127.0.0.1:9735", "list_channels": [CHANNEL],
            "lightning_history": [], "list_invoices": [], "getbalance": {"lightning": "0.04"},
            "get_invoice": self.not_found, "get_request": self.not_found, "delete_request": None,
        }  # fmt: skip

    @staticmethod
    def not_found(**_: Any) -> Any:
        """Answer as Electrum does if it doesn't have what was asked for."""
        raise Refused("Request not found")

    def count(self, method: str) -> int:
        """Return how often a command was called."""
        return sum(name == method for name, _ in self.asked)

    @asynccontextmanager
    async def running(self, by_tcp: bool = False) -> AsyncIterator[None]:
        """Serve, with a lock file and a configuration like Electrum's."""
        user, _, password = LOGIN.partition(":")
        config, lock, socket = (self.folder / name for name in ("config", "daemon", "daemon_rpc_socket"))
        config.touch(0o600)
        config.write_text(json.dumps({"rpcuser": user, "rpcpassword": password}))
        if by_tcp:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            lock.write_text(repr(("tcp", server.sockets[0].getsockname(), 1.5)))
        else:
            server = await asyncio.start_unix_server(self._serve, socket)
            lock.write_text(repr(("unix", str(socket), 1.5)))
        async with server:
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        asked = json.loads(await reader.readexactly(int(fields["Content-Length"])))
        status, body = 200, b""
        if fields["Authorization"] != "Basic " + base64.b64encode(LOGIN.encode()).decode():
            status = 403
        else:
            try:
                body = json.dumps(await self._answer(asked["method"], asked["params"])).encode()
            except Gone:
                writer.close()
                return
        writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()

    async def _answer(self, method: str, words: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((method, words))
        said = self.say[method]
        try:
            result = said(**words) if isinstance(said, Callable) else said  # type: ignore[arg-type]
            if asyncio.iscoroutine(result):
                result = await result
            return {"id": 1, "result": result}
        except Refused as error:
            return {"id": 1, "error": {"code": 1, "message": str(error)}}
        except Internal as error:
            data = {"exception": str(error), "traceback": "Traceback ..."}
            return {"id": 1, "error": {"code": 2, "message": "internal error while executing RPC", "data": data}}


Test = Callable[[FakeElectrum, ElectrumPayment], Awaitable[None]]


def with_electrum(folder: Path, test: Test, by_tcp: bool = False) -> None:
    """Run a test with a daemon, and the module that uses it."""

    async def body() -> None:
        daemon = FakeElectrum(folder)
        payment = ElectrumPayment(folder, {"ELECTRUM_HOST": str(folder)})
        async with asyncio.timeout(60), daemon.running(by_tcp):
            await test(daemon, payment)
            await payment.close()

    asyncio.run(body())
