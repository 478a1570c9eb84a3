"""Nodes: a Lightning network for the benchmark; all nodes run on one host beside gateway and clients."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from core_tests.bench.helper import Helper
from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.lightning.build import programs
from core_tests.lightning.electrum import Electrum, ElectrumServer
from core_tests.lightning.network import LightningNetwork, Place
from core_tests.lightning.nodes import UP_S, Lnd, Ports
from core_tests.lightning.trade import CHAIN_V4, node_settings
from core_tests.shell import await_until
from core_tests.topologies import ThreeHosts
from core_tests.trade import Conf

CHANNEL_SAT = 16_000_000
NODES_ADDRESS = CHAIN_V4.format(1).partition("/")[0]


class NodesHost:
    """The chain and all nodes on one host, which gateway and clients reach by a network of their own."""

    network: LightningNetwork

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host = lab.host("nodes")

    @contextmanager
    def serving(self, net: ThreeHosts) -> Iterator[Mapping[str, Conf]]:
        """Start the nodes with a channel from each client to the gateway; yields keys of net.conf by host."""
        self._connect((net.gateway, *net.clients))
        names = [host.name for host in (net.gateway, *net.clients)]
        chain = Place("chain", self.host.inside())
        places = [self._place(name, number) for number, name in enumerate(names)]
        with LightningNetwork(programs(), self.lab.folder / "lightning", places, chain) as self.network:
            gateway, *clients = names
            for name in clients:
                self.network.open(name, gateway, CHANNEL_SAT, CHANNEL_SAT // 5, ["--private"])
                self.network.await_payable(name, gateway)
            keys = {name: self._settings(self.network.node(name)) for name in names}
            yield {**keys, gateway: {**keys[gateway], "IGNORE_INTERFACE": ["wan0", "chain0"]}}

    def _connect(self, hosts: Sequence[Host]) -> None:
        switch = self.lab.switch("chain")
        for number, host in enumerate((self.host, *hosts), 1):
            self.lab.link(End(host, "chain0", CHAIN_V4.format(number)), switch)
        self.lab.await_carriers()

    def _place(self, name: str, number: int) -> Place:
        ports = Ports(10009 + number, 9735 + number)
        listen = f"--rpclisten={NODES_ADDRESS}:{ports.rpc}"
        return Place(name, self.host.inside(), ports=ports, options=(listen,))

    @staticmethod
    def _settings(node: Lnd) -> Conf:
        return {**node_settings(node), "LND_HOST": f"{NODES_ADDRESS}:{node.ports.rpc}"}

    @contextmanager
    def electrum(self) -> Iterator[Electrum]:
        """Start an Electrum with a channel to the gateway's LND."""
        folder, network = self.lab.folder / "electrum", self.network
        earning = network.node("gateway")
        with ExitStack() as running:
            server = ElectrumServer(folder / "server", network.chain, self.host.inside())
            running.callback(server.kill9)
            server.start()
            node = Electrum("electrum", folder / "node", server, self.host.inside())
            running.callback(node.kill9)
            node.start()
            network.send_coins(node.new_address())
            network.mine(1)
            node.await_synced()
            node.open(f"{earning.key()}@{earning.address}:{earning.ports.peer}", CHANNEL_SAT, CHANNEL_SAT // 5)
            network.mine(3)
            await_until(node.channels, UP_S, "Electrum's channel")
            yield node

    def payer(self, electrum: Electrum) -> Helper:
        """Start the process that pays the gateway's node: with the clients' nodes first, with Electrum last."""
        settings = [node_settings(node) for node in self.network.nodes.values()]
        settings.append({"PAYMENT_INTERFACE": "electrum", "ELECTRUM_HOST": str(electrum.folder)})
        state_dir = self.lab.folder / "payer"
        return Helper(self.host, "core_tests.bench.payer", str(state_dir), json.dumps(settings))
