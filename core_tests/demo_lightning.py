"""`tools/demo --lightning`: the same story, paid with three real LND nodes on a private chain.

Client and gateway have a node each and a private channel between them. A third node, beside the gateway, represents the
rest of the Lightning network. Coins of a private chain are worth nothing, but are still counted to the msat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from core_tests.demo_view import View, sat
from core_tests.lab import Lab
from core_tests.lightning.build import prepare, programs
from core_tests.lightning.network import LightningNetwork
from core_tests.lightning.nodes import Lnd
from core_tests.lightning.trade import backbone, node_settings
from core_tests.shell import LabError, await_until
from core_tests.topologies import ThreeHosts

PAYER, PAYEE, THIRD = "client", "gateway", "hub"
SETTLED_S = 90.0


@dataclass(slots=True)
class Nodes:
    """The nodes behind a demonstration, with their balances at its beginning."""

    network: LightningNetwork
    before_msat: dict[str, int]

    def settings(self, name: str) -> dict[str, object]:
        """Return the keys of net.conf that lead to a host's node."""
        return dict(node_settings(self.network.node(name)))

    def judge(self, view: View, paid_msat: int) -> None:
        """Show the balances before and after; the gateway's node must have earned the sum that both ledgers show.

        Raises: LabError when it has not.
        """
        await_until(lambda: self._gained(PAYEE) == paid_msat, SETTLED_S, f"{paid_msat} msat in the gateway's channels")
        for name in (PAYER, PAYEE):
            after = balance_msat(self.network.node(name))
            view.tell(f"LND of the {name}: {sat(self.before_msat[name])} sat before, {sat(after)} sat after", "green")
        if self._gained(PAYER) != -paid_msat:
            raise LabError(f"the client's node paid {-self._gained(PAYER)} msat, the ledgers say {paid_msat}")
        view.tell(f"{sat(paid_msat)} sat went from node to node, as both ledgers say; fees 0: the channel is direct")

    def _gained(self, name: str) -> int:
        return balance_msat(self.network.node(name)) - self.before_msat[name]


@contextmanager
def nodes(lab: Lab, net: ThreeHosts, view: View) -> Iterator[Nodes]:
    """Start chain and nodes beside the network of the demonstration, with channels that can pay."""
    prepare(view.tell)
    view.title("0/7 Three LND nodes, a chain of their own, channels")
    places, chain = backbone(lab, {PAYER: net.client, PAYEE: net.gateway, THIRD: lab.host(THIRD)})
    with LightningNetwork(programs(), lab.folder / "lightning", places, chain) as network:
        network.open(PAYER, PAYEE, options=["--private"])
        network.open(PAYEE, THIRD)
        network.await_payable(PAYER, PAYEE)
        for node in network.nodes.values():
            node.await_settled()
        before = {name: balance_msat(network.node(name)) for name in (PAYER, PAYEE)}
        view.tell(f"channel of client and gateway: {sat(before[PAYER])} and {sat(before[PAYEE])} sat on their sides")
        yield Nodes(network, before)


def balance_msat(node: Lnd) -> int:
    """Return what a node has in its channels, payments on their way included."""
    found = node.cli("channelbalance")
    return int(found["local_balance"]["msat"])
