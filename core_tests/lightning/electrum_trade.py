"""A trade between two kinds of nodes: the gateway has an LND, the client the lighter Electrum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from core_tests.lab import Lab
from core_tests.lightning.build import programs
from core_tests.lightning.electrum import Electrum, ElectrumServer
from core_tests.lightning.network import LightningNetwork
from core_tests.lightning.nodes import Lnd
from core_tests.lightning.trade import backbone, configured, node_settings
from core_tests.topologies import three_hosts
from core_tests.trade import Conf, Trade, start_all


@dataclass(frozen=True, slots=True)
class ElectrumTrade:
    """A trade with the nodes behind it; there is no channel yet."""

    trade: Trade
    network: LightningNetwork
    paying: Electrum

    @property
    def earning(self) -> Lnd:
        """The gateway's node."""
        return self.network.node("gateway")

    def mine(self, blocks: int) -> None:
        """Mine blocks, and wait until both nodes have seen them."""
        self.network.mine(blocks)
        self.paying.await_synced()

    def moved_msat(self) -> tuple[int, int]:
        """Return the sums that Electrum reports as sent and received by payments; the first one includes fees."""
        amounts = [one["amount_msat"] for one in self.paying.rpc("lightning_history") if one["type"] == "payment"]
        return -sum(one for one in amounts if one < 0), sum(one for one in amounts if one > 0)


@contextmanager
def electrum_trade(lab: Lab, gateway: Conf | None = None, client: Conf | None = None) -> Iterator[ElectrumTrade]:
    """Build client, gateway and internet with their nodes, and start both daemons; the client's node has coins.

    Args:
        gateway, client: keys of net.conf.
    """
    net = three_hosts(lab)
    places, chain = backbone(lab, {"gateway": net.gateway, "client": net.client})
    folder = lab.folder / "lightning"
    with LightningNetwork(programs(), folder, places[:1], chain) as network:
        server = ElectrumServer(folder / "server", network.chain, chain.prefix, chain.address)
        electrum = Electrum("client", folder / "electrum", server, places[1].prefix, places[1].address)
        try:
            server.start()
            electrum.start()
            network.send_coins(electrum.new_address())
            network.mine(1)
            electrum.await_synced()
            made = configured(
                net,
                {"IGNORE_INTERFACE": ["wan0", "chain0"], **node_settings(network.node("gateway")), **(gateway or {})},
                {"PAYMENT_INTERFACE": "2", "ELECTRUM_HOST": str(electrum.folder), **(client or {})},
            )
            start_all(made.gateway, made.client)
            made.await_acquainted()
            yield ElectrumTrade(made, network, electrum)
        finally:
            electrum.kill9()
            server.kill9()
