"""Electrum as a process of a laboratory: Debian's package, with a folder of its own and our own server for the chain.

The system's Python runs it, so nothing of it is in the project's virtual environment.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core_tests.lightning.nodes import HERE, NETWORK, UP_S, Btcd, Program
from core_tests.ports import free_ports
from core_tests.shell import ROOT, LabError, await_until

RPC_USER, RPC_PASSWORD = "lab", "lab"
COIN_SAT = 100_000_000


class ElectrumServer(Program):
    """Serves Electrum's protocol over btcd; see `electrum_server`.

    Args:
        chain: its chain.
        prefix: the command that runs another one on its host.
        address: the address to listen at.
    """

    def __init__(self, folder: Path, chain: Btcd, prefix: Sequence[str] = HERE, address: str = "127.0.0.1") -> None:
        super().__init__("electrum_server", folder, prefix)
        self.chain = chain
        (port,) = free_ports(1)
        self.where = f"{address}:{port}"

    def start(self) -> None:
        """Start the server; Electrum tries to connect until it serves."""
        btcd = f"{self.chain.address}:{self.chain.rpc_port}"
        self._start(
            *("env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "core_tests.lightning.electrum_server"),
            *(self.where, btcd, str(self.chain.certificate)),
        )


class Electrum(Program):
    """An Electrum daemon with a wallet without a password; it knows only the peers that the test names.

    Args:
        name: of the node and of its folder.
        server: its view of the chain.
        prefix: the command that runs another one on its host.
        address: where other nodes reach it.
        seed: of its wallet; "" for a new one.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        server: ElectrumServer,
        prefix: Sequence[str] = HERE,
        address: str = "127.0.0.1",
        seed: str = "",
    ) -> None:
        super().__init__(name, folder, prefix)
        self.server = server
        self.address = address
        self.seed = seed
        (self.peer_port,) = free_ports(1)
        self.data = folder / NETWORK
        self.socket = self.data / "daemon_rpc_socket"

    @property
    def host(self) -> str:
        """Where other nodes reach it."""
        return f"{self.address}:{self.peer_port}"

    def launch(self) -> None:
        """Start it without waiting, so that several start side by side."""
        program = shutil.which("electrum")
        if program is None:
            raise LabError("electrum is not installed: apt-get install electrum, or tools/setup")
        self.data.mkdir(exist_ok=True)
        settings = {
            "rpcuser": RPC_USER, "rpcpassword": RPC_PASSWORD, "lightning_listen": f"0.0.0.0:{self.peer_port}",
            "server": f"{self.server.where}:t", "oneserver": True, "auto_connect": False, "use_gossip": True,
            "check_updates": False, "config_version": 3,
        }  # fmt: skip
        config = self.data / "config"
        config.touch(0o600)
        config.write_text(json.dumps(settings))
        for left in (self.socket, self.data / "daemon"):  # left by a daemon that was killed
            left.unlink(missing_ok=True)
        self._start("env", "-u", "PYTHONPATH", program, f"--{NETWORK}", "-D", str(self.folder), "daemon")

    def start(self) -> None:
        """Start the daemon, load or make its wallet, and wait until the wallet knows the chain."""
        self.launch()
        self.await_up()

    def await_up(self) -> None:
        """Wait until the daemon serves, load or make its wallet, and wait until the wallet knows the chain."""
        await_until(self._answers, UP_S, f"{self.name} up")
        if not (self.data / "wallets" / "default_wallet").exists():
            if self.seed:
                self.rpc("restore", text=self.seed)
            else:
                self.rpc("create")
        self.rpc("load_wallet")
        self.await_synced()

    def _answers(self) -> bool:
        if not self.running:
            raise LabError(f"{self.name} has ended\n{self.tail()}")
        with suppress(OSError, LabError):
            return bool(self.rpc("getinfo"))
        return False

    def await_synced(self) -> None:
        """Wait until it has seen the newest block and all of its own transactions."""
        height = self.server.chain.height()

        def synced() -> bool:
            return bool(self.rpc("getinfo")["blockchain_height"] >= height and self.rpc("is_synchronized"))

        await_until(synced, UP_S, f"{self.name} at block {height}")

    def rpc(self, method: str, **words: Any) -> Any:
        """Run one of Electrum's commands and return the result. Raises: LabError with its error."""
        connection = _Connection(self.socket)
        try:
            login = b"Basic bGFiOmxhYg=="  # lab:lab
            body = json.dumps({"id": 1, "method": method, "params": words})
            connection.request("POST", "/", body, {"Authorization": login.decode()})
            told = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if "error" in told:
            raise LabError(f"{self.name}: {method}: {told['error']}")
        return told["result"]

    def key(self) -> str:
        """Return its node's public key, in hexadecimal."""
        return str(self.rpc("nodeid")).partition("@")[0]

    def new_address(self) -> str:
        """Return an address of its wallet."""
        return str(self.rpc("getunusedaddress"))

    def channels(self) -> list[dict[str, Any]]:
        """Return its channels that can be used now."""
        found: list[dict[str, Any]] = self.rpc("list_channels")
        return [one for one in found if (one["state"], one.get("peer_state")) == ("OPEN", "GOOD")]

    def open(self, where: str, amount_sat: int, push_sat: int) -> None:
        """Open a channel with the node at `key@host:port`, which then needs blocks. Waits until the node accepts."""

        def opened() -> bool:
            with suppress(LabError):
                words = {"amount": _btc(amount_sat), "push_amount": _btc(push_sat)}
                return bool(self.rpc("open_channel", connection_string=where, **words))
            return False

        await_until(opened, UP_S, f"channel of {self.name} opened")

    def await_settled(self) -> None:
        """Wait until no payment is on its way over any of its channels."""

        def settled() -> bool:
            sums = ("local_unsettled_sent", "remote_unsettled_sent")
            return not any(one.get(name) for one in self.rpc("list_channels") for name in sums)

        await_until(settled, UP_S, f"{self.name} has no HTLC")


class _Connection(http.client.HTTPConnection):
    """HTTP on a socket in the file system, which can be reached from every network namespace."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=UP_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _btc(amount_sat: int) -> str:
    return f"{amount_sat // COIN_SAT}.{amount_sat % COIN_SAT:08d}"
