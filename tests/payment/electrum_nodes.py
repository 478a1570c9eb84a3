"""Two real Electrum daemons with a channel between them, for tests of the module: one pair for each test process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from core_tests.lightning.build import programs
from core_tests.lightning.electrum import Electrum, ElectrumServer
from core_tests.lightning.network import CHANNEL_SAT, FIRST_BLOCKS, PUSH_SAT
from core_tests.lightning.nodes import UP_S, Btcd
from core_tests.shell import await_until

# A wallet whose first address is known before Electrum runs, so that its coins can be mined first. It is worth nothing.
PAYERS_SEED = "equal exercise virus maid punch fruit flight easily swing impose napkin spice"
PAYERS_ADDRESS = "bcrt1qm0wuq4m9rc9xllssnlw725l3lnud4xslmy8mre"
# btcd gives each block to one of these addresses or to the payer, at random. The payer needs only some blocks, and few
# are better: Electrum has to read every block that pays it.
NOBODYS = ("bcrt1q9cya7vdvuun7typgzesa4vjs04s6c54ra983cm",) * 9


@dataclass(frozen=True, slots=True)
class Pair:
    """The nodes, and their chain."""

    payer: Electrum
    payee: Electrum
    chain: Btcd

    @property
    def nodes(self) -> tuple[Electrum, Electrum]:
        return self.payer, self.payee


@contextmanager
def pair() -> Iterator[Pair]:
    """Start them in the network where the test runs; the payee has a part of the channel from the beginning."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        chain = Btcd(programs(), folder / "btcd")
        server = ElectrumServer(folder / "server", chain)
        running.callback(chain.kill9)
        chain.start(PAYERS_ADDRESS, *NOBODYS)
        chain.mine(FIRST_BLOCKS)
        running.callback(server.kill9)
        server.start()
        payer = Electrum("payer", folder / "payer", server, seed=PAYERS_SEED)
        found = Pair(payer, Electrum("payee", folder / "payee", server), chain)
        for node in found.nodes:
            running.callback(node.kill9)
            node.launch()
        for node in found.nodes:
            node.await_up()
        _open(found)
        yield found


def _open(found: Pair) -> None:
    found.payer.open(f"{found.payee.key()}@{found.payee.host}", CHANNEL_SAT, PUSH_SAT)
    found.chain.mine(3)
    for node in found.nodes:
        await_until(node.channels, UP_S, f"channel of {node.name}")


def options(node: Electrum) -> dict[str, str]:
    """Return the settings by which the module reaches a node, as in net.conf."""
    return {"ELECTRUM_HOST": str(node.folder)}
