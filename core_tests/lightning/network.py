"""A Lightning network for a laboratory: one chain, LND nodes with coins, and funded channels between them.

Wallets are made once, kept beside the nodes' programs, and copied into each network: LND takes seconds of processor
time to make one, as a defence against guessed passwords.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from core_tests.lightning.nodes import HERE, Btcd, Lnd, Ports
from core_tests.shell import LabError, await_until

# btcd's regtest activates segwit and taproot by vote, within 432 blocks; eight more make the first coins spendable.
FIRST_BLOCKS = 440
COINS_BTC = 5
CHANNEL_SAT = 5_000_000
PUSH_SAT = 1_000_000
ACTIVE_S = 120.0
WALLETS = 3  # the most nodes of a network here
ADDRESS = "address"  # of the first wallet, which gets the mined coins


@dataclass(frozen=True, slots=True)
class Place:
    """The host and the addresses of a node.

    Args:
        name: of the node.
        prefix: the command that runs another one there (`Host.inside()`), or HERE.
        address: where others reach its peer port.
        ports: fixed ports for a node on a host of its own; None: free ports.
        options: more options of LND.
    """

    name: str
    prefix: Sequence[str] = HERE
    address: str = "127.0.0.1"
    ports: Ports | None = None
    options: Sequence[str] = ()


class LightningNetwork:
    """btcd and some LND nodes; use it as a context manager, `fund` it, and `open` channels."""

    def __init__(self, programs: Path, folder: Path, places: Sequence[Place], chain: Place = Place("chain")) -> None:
        self.chain = Btcd(programs, folder / "btcd", chain.prefix, chain.address)
        self.nodes = {
            place.name: Lnd(
                place.name, programs, folder / place.name, self.chain, place.prefix, place.address, place.ports,
                place.options,
            )
            for place in places
        }  # fmt: skip
        self._programs = programs
        self._first = next(iter(self.nodes.values()))

    def __enter__(self) -> LightningNetwork:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the chain and the nodes, and give every node confirmed coins."""
        kept = _kept(self._programs)
        for number, node in zip(range(WALLETS), self.nodes.values(), strict=False):
            shutil.copytree(kept / str(number), node.lnddir)
        self.chain.start((kept / ADDRESS).read_text())
        self.chain.mine(FIRST_BLOCKS)
        for node in self.nodes.values():
            node.launch()
        self._each(Lnd.await_up)
        self._each(Lnd.await_synced)
        for node in self.nodes.values():
            if node is not self._first:
                self.send_coins(node.new_address())
        self.mine(1)

    def make_wallets(self) -> str:
        """Make the nodes' wallets, end all nodes, and return an address of the first wallet.

        No block is mined meanwhile: btcd forgets a private chain when it ends.
        """
        self.chain.start()
        for node in self.nodes.values():
            node.launch()
        # Without a recent block no node calls itself synced.
        self._each(lambda node: node.await_up("RPC_ACTIVE", "SERVER_ACTIVE"))
        address = await_until(self._mining_address, ACTIVE_S, "an address for mined coins")
        for node in self.nodes.values():
            node.stop()
        self.chain.stop()
        return address

    def send_coins(self, address: str) -> None:
        """Send coins from the first node's wallet, which may be some blocks behind its node."""
        words = ("sendcoins", "--force", address, str(COINS_BTC * 100_000_000))
        await_until(lambda: self._first.control(*words).returncode == 0, ACTIVE_S, "coins sent")

    def _mining_address(self) -> str:
        done = self._first.control("newaddress", "p2wkh")
        return str(json.loads(done.stdout)["address"]) if done.returncode == 0 else ""

    def mine(self, blocks: int) -> None:
        """Mine blocks, and wait until every running node has seen them."""
        self.chain.mine(blocks)
        self._each(Lnd.await_synced)

    def _each(self, act: Callable[[Lnd], None]) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(act, [node for node in self.nodes.values() if node.running]))

    def open(
        self, a: str, b: str, amount_sat: int = CHANNEL_SAT, push_sat: int = PUSH_SAT, options: Sequence[str] = ()
    ) -> None:
        """Open a channel from one node to another and wait until both can use it.

        Args:
            a: the node that pays for the channel.
            b: the other node.
            amount_sat: the channel's size, sat.
            push_sat: b's part of it at the beginning, sat.
            options: more options of `lncli openchannel`, such as `--private`.
        """
        self.connect(a, b)
        one, other = self.nodes[a], self.nodes[b]
        words = ["--node_key", other.key(), "--local_amt", str(amount_sat), "--push_amt", str(push_sat)]
        before = len(one.channels(other.key()))
        await_until(lambda: one.control("openchannel", *words, *options).returncode == 0, ACTIVE_S, "channel opening")
        self.mine(3)
        for node, peer in ((one, other.key()), (other, one.key())):
            await_until(lambda node=node, peer=peer: len(node.channels(peer)) > before, ACTIVE_S, "channel")  # type: ignore[misc]

    def connect(self, a: str, b: str) -> None:
        """Make two nodes peers; no error if they are peers already."""
        one, other = self.nodes[a], self.nodes[b]
        where = f"{other.key()}@{other.address}:{other.ports.peer}"

        def connected() -> bool:
            done = one.control("connect", where)
            return done.returncode == 0 or "already connected" in done.stderr

        await_until(connected, ACTIVE_S, f"{a} connected to {b}")

    def await_payable(self, a: str, b: str, amount_msat: int = 1_000) -> None:
        """Wait until a payment succeeds: in its first seconds an active channel may still refuse payments."""

        def paid() -> bool:
            asked = self.nodes[b].cli("addinvoice", "--amt_msat", str(amount_msat))["payment_request"]
            done = self.nodes[a].control("payinvoice", "--force", "--json", "--timeout", "3s", asked, timeout_s=30)
            return done.returncode == 0 and '"SUCCEEDED"' in done.stdout

        await_until(paid, ACTIVE_S, f"a payment from {a} to {b}")

    def close(self) -> None:
        """End everything: the nodes before the chain, since they would wait for it."""
        for node in self.nodes.values():
            node.kill9()
        self.chain.kill9()

    def dump(self) -> str:
        """Return the ends of all logs, for a failed test."""
        logs = [self.chain, *self.nodes.values()]
        return "\n".join(f"--- {one.name}\n{one.tail()}" for one in logs)

    def node(self, name: str) -> Lnd:
        """Return a node by name. Raises: LabError when there is none."""
        if name not in self.nodes:
            raise LabError(f"no node {name}; there are {', '.join(self.nodes)}")
        return self.nodes[name]


def _kept(programs: Path) -> Path:
    """Return the folder with the wallets that networks begin with; it is made the first time."""
    made_from = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("network.py", "nodes.py"))
    folder = programs / f"wallets-{sha256(made_from).hexdigest()[:16]}"
    with (programs / "wallets.lock").open("w") as lock:  # only one of two test processes makes it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _keep_wallets(programs, folder)
    return folder


def _keep_wallets(programs: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=programs) as name:
        network = LightningNetwork(programs, Path(name), [Place(str(number)) for number in range(WALLETS)])
        try:
            address = network.make_wallets()
        finally:
            network.close()
        made = Path(name, "made")
        for node in network.nodes.values():
            # A certificate names the host, and old logs would mislead.
            shutil.copytree(node.lnddir, made / node.name, ignore=shutil.ignore_patterns("tls.*", "logs"))
        (made / ADDRESS).write_text(address)
        made.replace(folder)
