"""Two daemons that pay over real nodes: gateway and client have an LND each, with a channel between them.

The nodes reach each other and the chain by a network of their own (`chain0`), which is no mesh interface. Nodes that
need the mesh itself are another scenario (`mesh_only_trade`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.lightning.build import programs
from core_tests.lightning.network import CHANNEL_SAT, LightningNetwork, Place
from core_tests.lightning.nodes import Lnd, Ports
from core_tests.lightning.relay import Relay
from core_tests.topologies import REMOTE_NETS, ThreeHosts, three_hosts
from core_tests.trade import CLIENT, GATEWAY, Conf, Trade, start_all
from ngp.modules.payment import macaroon
from ngp.modules.payment.lnd_client import TO_CHANGE_TOWERS, TO_OPEN_CHANNELS, TO_TELL, Method

TOWER_PORT = 9911  # LND's own
CHAIN_V4 = "10.99.0.{}/24"
NODES = ("client", "gateway")


@dataclass(frozen=True, slots=True)
class LightningTrade:
    """A trade with the nodes behind it, and with `relays` between daemons and nodes if the test wants them."""

    trade: Trade
    network: LightningNetwork
    lab: Lab
    relays: Mapping[str, Relay] = field(default_factory=dict)

    @property
    def paying(self) -> Lnd:
        """The client's node."""
        return self.network.node("client")

    @property
    def earning(self) -> Lnd:
        """The gateway's node."""
        return self.network.node("gateway")

    def received_msat(self) -> int:
        """Return the sum that the gateway's node received by settled invoices, as the node reports it."""
        return self.earning.received_msat()

    def sent_msat(self) -> int:
        """Return the sum that the client's node paid, without fees, as the node reports it."""
        return self.paying.sent_msat()


def node_settings(node: Lnd, buys: bool = True, besides: Sequence[Method[Any, Any]] = ()) -> Conf:
    """Return the keys of net.conf for a node, with a macaroon baked by the command that `ngp check` prints.

    Args:
        buys: the rights of a buyer; otherwise those of a node that only sells.
        besides: further rights of its operator: to open channels, to change towers.
    """
    baked = node.folder / "ngp.macaroon"
    line = macaroon.bake_line([*macaroon.needed(buys), *TO_TELL, *besides], str(baked))
    node.cli_text(*line.split()[1:])
    baked.chmod(0o600)
    return {
        "PAYMENT_INTERFACE": "lnd",
        "LND_HOST": node.rpc_host,
        "LND_CERT": str(node.certificate),
        "LND_MACAROON": str(baked),
    }


def backbone(lab: Lab, hosts: Mapping[str, Host]) -> tuple[list[Place], Place]:
    """Make a separate network (`chain0`) between hosts with nodes; returns the places of the nodes and the chain."""
    switch = lab.switch("chain")
    switch.host.ip("address", "add", CHAIN_V4.format(1), "dev", "br0")
    places = []
    for number, (name, host) in enumerate(hosts.items(), 2):
        lab.link(End(host, "chain0", CHAIN_V4.format(number)), switch)
        places.append(Place(name, host.inside(), CHAIN_V4.format(number).partition("/")[0], Ports()))
    lab.await_carriers()
    return places, Place("chain", switch.host.inside(), CHAIN_V4.format(1).partition("/")[0])


@contextmanager
def lightning_trade(
    lab: Lab,
    gateway: Conf | None = None,
    client: Conf | None = None,
    channel_sat: int = CHANNEL_SAT,
    relayed: bool = False,
    clients: int = 1,
) -> Iterator[LightningTrade]:
    """Build client, gateway and internet with their nodes, open a private channel, and start both daemons.

    Args:
        gateway, client: keys of net.conf.
        channel_sat: size of the channel from client to gateway; a fifth of it is on the gateway's side.
        relayed: put a relay between each daemon and its node.
        clients: number of hosts on the mesh; the first one has node and daemon.
    """
    net = three_hosts(lab, clients=clients)
    places, chain = backbone(lab, {"client": net.client, "gateway": net.gateway})
    with LightningNetwork(programs(), lab.folder / "lightning", places, chain) as network:
        network.open("client", "gateway", channel_sat, channel_sat // 5, ["--private"])
        network.await_payable("client", "gateway")
        hosts = {"client": net.client, "gateway": net.gateway}
        relays = {name: Relay(host.popen, network.node(name)) for name, host in hosts.items()} if relayed else {}
        ways = {name: {"LND_HOST": relay.address} for name, relay in relays.items()}
        ignored = {"IGNORE_INTERFACE": ["wan0", "chain0"]}
        made = configured(
            net,
            {**ignored, **node_settings(network.node("gateway"), _buys(gateway)), **ways.get("gateway", {}),
             **(gateway or {})},
            {**node_settings(network.node("client"), _buys(client), TO_OPEN_CHANNELS), **ways.get("client", {}),
             **(client or {})},
        )  # fmt: skip
        start_all(made.gateway, made.client)
        made.await_acquainted()
        yield LightningTrade(made, network, lab, relays)


@contextmanager
def mesh_only_trade(lab: Lab, gateway: Conf | None = None, client: Conf | None = None) -> Iterator[LightningTrade]:
    """Build client, gateway and internet, where the client reaches nodes and chain only through the gateway.

    The chain and the gateway's node are on another host, behind the gateway, which lets their ports through. That node
    is also a watchtower, which the client's node doesn't know yet. The client's node has coins and no channel. It
    starts when the gateway already gates, and the client's daemon starts after it.
    """
    net = three_hosts(lab)
    near, far, ports = net.client.address("mesh0", 4), net.internet.address("wan0", 4), Ports()
    rpc = f"{far}:{ports.rpc}"
    elsewhere = [f"--rpclisten={rpc}", f"--externalip={far}", "--watchtower.active"]
    places = [
        Place("gateway", net.internet.inside(), far, ports, elsewhere),
        Place("client", net.client.inside(), near, ports, ["--wtclient.active"]),
    ]
    chain = Place("chain", net.internet.inside(), far)
    with LightningNetwork(programs(), lab.folder / "lightning", places, chain) as network:
        made = configured(
            net,
            {**node_settings(network.node("gateway"), _buys(gateway)), "LND_HOST": rpc,
             "PAYMENT_SERVICES": [f"{far} {network.chain.rpc_port}", f"{far} {TOWER_PORT}"], **(gateway or {})},
            {**node_settings(network.node("client"), besides=TO_OPEN_CHANNELS + TO_CHANGE_TOWERS), **(client or {})},
        )  # fmt: skip
        paying = network.node("client")
        paying.kill9()
        made.gateway.start()
        paying.start()
        paying.await_synced()
        made.client.start()
        made.await_acquainted()
        yield LightningTrade(made, network, lab)


def _buys(conf: Conf | None) -> bool:
    return (conf or {}).get("BUY", True) is not False


def configured(net: ThreeHosts, gateway: Conf, client: Conf) -> Trade:
    """Configure both daemons without starting them; the gateway has only a default route."""
    for remote in REMOTE_NETS:
        net.gateway.ip("-6" if ":" in remote else "-4", "route", "del", remote)
    return Trade(
        net,
        net.gateway.daemon({**GATEWAY, **gateway}, start=False),
        net.client.daemon({**CLIENT, **client}, start=False),
    )
