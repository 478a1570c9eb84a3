"""btcd and LND as processes of a laboratory: started on a host (or right here), asked, killed, started again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core_tests.ports import free_ports
from core_tests.shell import LabError, await_until, run

UP_S = 120.0
DOWN_S = 60.0
NETWORK = "regtest"
ALL = "1000000"  # LND's default is a hundred
_REPLAYED = re.compile(r"unable to decode onion hop iterator for htlc\(id=\d+, hash=([0-9a-f]{64})\): InvalidOnion")
# Of a chain that exists in a namespace for some minutes: no secret.
RPC_USER, RPC_PASSWORD = "lab", "lab"
HERE: Sequence[str] = ()
"""Prefix of commands that run in the network where the test itself runs; a host has its own (`Host.inside`)."""


class Program:
    """A program that runs until it is stopped; its output goes to a file beside its data."""

    def __init__(self, name: str, folder: Path, prefix: Sequence[str]) -> None:
        self.name = name
        self.folder = folder
        self.prefix = list(prefix)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / f"{name}.log"
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _start(self, *command: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the program properly (SIGINT) and wait until it is gone; kill it if it takes too long."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(how)
        try:
            self.process.wait(DOWN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill9(self) -> None:
        """Kill the program without a warning."""
        self.stop(signal.SIGKILL)

    def tail(self, lines: int = 20) -> str:
        """Return the end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class Btcd(Program):
    """A full node of a private chain, with an RPC server for LND's chain back end.

    Args:
        programs: folder of btcd and btcctl.
        folder: holds its data; made anew.
        prefix: the command that runs another one on its host.
        address: where it listens for LND and for btcctl.
    """

    def __init__(self, programs: Path, folder: Path, prefix: Sequence[str] = HERE, address: str = "127.0.0.1") -> None:
        super().__init__("btcd", folder, prefix)
        self.programs = programs
        self.address = address
        self.rpc_port, self.p2p_port = free_ports(2)
        self.certificate = folder / "rpc.cert"

    def start(self, *mining_addresses: str) -> None:
        """Start btcd; with addresses it can `generate` blocks, whose coins go to any of these."""
        mining = [f"--miningaddr={address}" for address in mining_addresses]
        self._start(
            *(str(self.programs / "btcd"), f"--{NETWORK}", "--txindex", "--debuglevel=error", "--nodnsseed"),
            *(f"--datadir={self.folder}/data", f"--logdir={self.folder}/logs", f"--configfile={self.folder}/btcd.conf"),
            *(f"--rpcuser={RPC_USER}", f"--rpcpass={RPC_PASSWORD}", f"--rpclisten={self.address}:{self.rpc_port}"),
            *(f"--listen={self.address}:{self.p2p_port}", f"--rpccert={self.certificate}"),
            *(f"--rpckey={self.folder}/rpc.key", "--rpcmaxclients=64", "--rpcmaxwebsockets=64"),
            *mining,
        )
        await_until(self._answers, UP_S, "btcd's answer")

    def restart(self, mining_address: str) -> None:
        """Restart btcd with an address for mined coins; LND connects again by itself."""
        self.stop()
        self.start(mining_address)

    def _answers(self) -> bool:
        if not self.running:
            raise LabError(f"btcd has ended\n{self.tail()}")
        return self._control("getblockcount").returncode == 0

    def _control(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run(self.command(*words))

    def command(self, *words: str) -> list[str]:
        """Return the command line of btcctl for this node."""
        return [
            # Without this option btcctl would try to make its file of options from btcd's, which doesn't exist.
            *(*self.prefix, str(self.programs / "btcctl"), f"--{NETWORK}", "--configfile=/dev/null"),
            *(f"--rpcuser={RPC_USER}", f"--rpcpass={RPC_PASSWORD}", f"--rpccert={self.certificate}"),
            *(f"--rpcserver={self.address}:{self.rpc_port}", *words),
        ]

    def rpc(self, *words: str) -> str:
        """Run btcctl. Raises: LabError with its output."""
        done = self._control(*words)
        if done.returncode:
            raise LabError(f"btcctl {' '.join(words)}: {done.stderr or done.stdout}{self.tail()}")
        return done.stdout.strip()

    def mine(self, blocks: int) -> None:
        """Mine a number of blocks."""
        self.rpc("generate", str(blocks))

    def height(self) -> int:
        """Return the height of the chain, in blocks."""
        return int(self.rpc("getblockcount"))


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports at which an LND node listens, on its own host."""

    rpc: int = 10009
    peer: int = 9735


class Lnd(Program):
    """An LND node that unlocks itself; it knows only the peers that the test names.

    Args:
        name: of the node and of its folder.
        programs: folder of lnd and lncli.
        folder: its `lnddir` is made there.
        chain: the full node that it follows.
        prefix: the command that runs another one on its host.
        address: where other nodes reach it.
        options: more options of LND.
    """

    def __init__(
        self,
        name: str,
        programs: Path,
        folder: Path,
        chain: Btcd,
        prefix: Sequence[str] = HERE,
        address: str = "127.0.0.1",
        ports: Ports | None = None,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(name, folder, prefix)
        self.programs = programs
        self.chain = chain
        self.address = address
        self.ports = ports or Ports(*free_ports(2))
        self.options = tuple(options)
        self.lnddir = folder / "lnd"

    @property
    def rpc_host(self) -> str:
        """Where gRPC is served, `address:port`."""
        return f"127.0.0.1:{self.ports.rpc}"

    @property
    def certificate(self) -> Path:
        return self.lnddir / "tls.cert"

    @property
    def admin_macaroon(self) -> Path:
        return self.lnddir / "data" / "chain" / "bitcoin" / NETWORK / "admin.macaroon"

    def launch(self, locked: bool = False) -> None:
        """Start it without waiting, so that several can start in parallel. Args: locked: it waits for its password."""
        self._start(
            *(str(self.programs / "lnd"), f"--lnddir={self.lnddir}", "--nobootstrap", "--norest"),
            *(() if locked else ("--noseedbackup",)),
            *(f"--alias={self.name}", "--debuglevel=error", f"--bitcoin.{NETWORK}", "--bitcoin.node=btcd"),
            *(f"--btcd.rpchost={self.chain.address}:{self.chain.rpc_port}", f"--btcd.rpccert={self.chain.certificate}"),
            *(f"--btcd.rpcuser={RPC_USER}", f"--btcd.rpcpass={RPC_PASSWORD}", f"--rpclisten={self.rpc_host}"),
            *(f"--listen=0.0.0.0:{self.ports.peer}", "--bitcoin.defaultchanconfs=1", "--trickledelay=50"),
            *("--minbackoff=1s", "--maxbackoff=5s"),  # pause before it connects again to a peer that was killed
            "--routerrpc.apriori.penaltyhalflife=1s",  # how long it avoids a failed channel; default: 1 h
            "--bitcoin.active",  # LND 0.17 asks for it; later versions ignore it
            *self.options,
        )

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self.launch()
        self.await_up()

    def await_up(self, *states: str) -> None:
        """Wait until the node serves, or is in one of these states (`RPC_ACTIVE`: it waits for the chain)."""
        wanted = states or ("SERVER_ACTIVE",)
        await_until(lambda: self.state() in wanted, UP_S, f"{self.name} in state {' or '.join(wanted)}")

    def state(self) -> str:
        """Return the state that the node reports, "" while it doesn't answer. Raises: LabError when it has ended."""
        if not self.running:
            raise LabError(f"{self.name} has ended\n{self.tail()}")
        done = self.control("state")
        return str(json.loads(done.stdout)["state"]) if done.returncode == 0 else ""

    def await_synced(self) -> None:
        """Wait until it has seen the newest block."""
        height = self.chain.height()

        def synced() -> bool:
            info = self.cli("getinfo")
            return bool(info["synced_to_chain"]) and int(info["block_height"]) >= height

        await_until(synced, UP_S, f"{self.name} at block {height}")

    def control(self, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run lncli against this node; the caller judges the exit code."""
        where = [f"--lnddir={self.lnddir}", f"--network={NETWORK}", f"--rpcserver={self.rpc_host}"]
        return run([*self.prefix, str(self.programs / "lncli"), *where, *words], timeout_s=timeout_s)

    def cli(self, *words: str, timeout_s: float = 60.0) -> Any:
        """Run lncli and return its JSON. Raises: LabError with its output when it fails."""
        return json.loads(self.cli_text(*words, timeout_s=timeout_s))

    def cli_text(self, *words: str, timeout_s: float = 60.0) -> str:
        """Run lncli and return its output. Raises: LabError with its output when it fails."""
        done = self.control(*words, timeout_s=timeout_s)
        if done.returncode:
            raise LabError(f"{self.name}: lncli {' '.join(words)}: {done.stderr or done.stdout}")
        return done.stdout

    def key(self) -> str:
        """Return its public key, in hexadecimal."""
        return str(self.cli("getinfo")["identity_pubkey"])

    def await_settled(self) -> None:
        """Wait until no payment is on its way over any of its channels, and all of them are active."""

        def settled() -> bool:
            return not any(one["pending_htlcs"] or not one["active"] for one in self.cli("listchannels")["channels"])

        await_until(settled, UP_S, f"{self.name} with its channels active and no HTLC")

    def new_address(self) -> str:
        """Return a new address of its wallet."""
        return str(self.cli("newaddress", "p2wkh")["address"])

    def payments(self) -> list[dict[str, Any]]:
        """Return all payments that the node ever began, including failed ones and those on their way."""
        listed = self.cli("listpayments", "--include_incomplete", "--max_payments", ALL)
        found: list[dict[str, Any]] = listed["payments"]
        return found

    def invoices(self) -> list[dict[str, Any]]:
        """Return all invoices that the node ever made."""
        found: list[dict[str, Any]] = self.cli("listinvoices", "--max_invoices", ALL)["invoices"]
        return found

    def received(self) -> dict[str, int]:
        """Return the amounts received by settled invoices, msat by payment hash."""
        return {one["r_hash"]: int(one["amt_paid_msat"]) for one in self.invoices() if one["state"] == "SETTLED"}

    def sent(self) -> dict[str, int]:
        """Return the amounts paid, without fees, msat by payment hash."""
        return {one["payment_hash"]: int(one["value_msat"]) for one in self.payments() if one["status"] == "SUCCEEDED"}

    def received_msat(self) -> int:
        """Return the sum received by settled invoices."""
        return sum(self.received().values())

    def sent_msat(self) -> int:
        """Return the sum paid, without fees."""
        return sum(self.sent().values())

    def sent_back(self) -> set[str]:
        """Return the hashes of payments that the node settled and still sent back.

        If LND is killed after it settled an invoice and before it noted that it had processed the HTLC, it treats that
        HTLC as a replay at its next start: it fails the HTLC, and the invoice stays settled (since 0.19.2, lnd pull
        request 9929: the log of replays is no longer by batch).
        """
        return set(_REPLAYED.findall(self.log.read_text(errors="replace")))

    def channels(self, peer: str = "") -> list[dict[str, Any]]:
        """Return its active channels, or those with a peer's key."""
        found: list[dict[str, Any]] = self.cli("listchannels", "--active_only")["channels"]
        return [channel for channel in found if not peer or channel["remote_pubkey"] == peer]
