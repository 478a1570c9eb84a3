"""The networks of the scenarios, with documentation and private addresses only.

    household - client --- mesh0 [gateway] wan0 --- internet (stands for many destinations)
                client2 -/ (a switch when there are several)

    tenant - lan0 [nat] wan0 --- internet (a switch) --- wan0 [landlord]
                         third -/                        its pools are routed to it

IPv4 is masqueraded at the gateway's wan0, as on a home router; IPv6 is routed. Plain forwarding works in both families
before any daemon runs. An operator checks that first, and so do the scenarios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core_tests.host import Host
from core_tests.lab import End, Lab, Switch

MESH_V4, MESH_V6 = "192.0.2.{}/24", "2001:db8:1::{}/64"
WAN_V4, WAN_V6 = "203.0.113.{}/24", "2001:db8:2::{}/64"
LAN_V4, LAN_V6 = "10.77.0.{}/24", "2001:db8:77::{}/64"
MESH_NETS = ("192.0.2.0/24", "2001:db8:1::/64")
LAN_NETS = ("10.77.0.0/24", "2001:db8:77::/64")
# All of these are answered by the host `internet`: as many destinations as a test wants.
REMOTE_V4, REMOTE_V6 = "198.51.100.{}", "2001:db8:ffff::{}"
REMOTE_NETS = ("198.51.100.0/24", "2001:db8:ffff::/64")


# What the landlord of `tenant_behind_nat` may let.
POOL_V4, POOL_V6 = "198.51.100.0/29", "2001:db8:100::/61"


@dataclass(frozen=True, slots=True)
class TenantBehindNat:
    """A landlord, a tenant behind a router with NAT, and a third party on the internet; interfaces are `wan0`.

    The tenant's one interface is `eth0`.
    """

    landlord: Host
    nat: Host
    tenant: Host
    third: Host


@dataclass(frozen=True, slots=True)
class ThreeHosts:
    """Client, gateway and internet; interfaces are `mesh0`, `wan0` and, in a household, `lan0`."""

    client: Host
    gateway: Host
    internet: Host
    clients: tuple[Host, ...]
    households: tuple[Host, ...] = ()

    @property
    def household(self) -> Host | None:
        """The host behind the first client."""
        return next(iter(self.households), None)

    def remote(self, version: int, number: int = 1) -> str:
        """Return one of internet's many addresses, 1 to 254."""
        return (REMOTE_V4 if version == 4 else REMOTE_V6).format(number)


def three_hosts(
    lab: Lab,
    *,
    clients: int = 1,
    households: int = 0,
    masquerade: bool = True,
    mtu: int = 1500,
    wan_mtu: int = 1500,
) -> ThreeHosts:
    """Build client, gateway and internet.

    Args:
        clients: their number; several clients share the gateway's mesh0 by a switch.
        households: how many of the clients have a LAN with one host behind them, and forward. All LANs have the same
            addresses; if there are several, the clients masquerade them.
        masquerade: hide IPv4 behind wan0; otherwise the host `internet` gets routes back.
        mtu, wan_mtu: of the mesh link and of the link to the internet, bytes.
    """
    gateway, internet = lab.host("gateway", forward=True), lab.host("internet")
    wan_end = End(gateway, "wan0", WAN_V4.format(1), WAN_V6.format(1))
    lab.link(wan_end, End(internet, "wan0", WAN_V4.format(2), WAN_V6.format(2)), mtu=wan_mtu)
    for remote, via in zip(REMOTE_NETS, (internet.address("wan0", 4), internet.address("wan0", 6)), strict=True):
        internet.owns(remote)
        gateway.route(remote, via=via)
        gateway.route("default" if ":" not in via else "::/0", via=via)
    members = _clients(lab, gateway, clients, mtu)
    behind = _households(lab, members[:households], gateway)
    internet.route("2001:db8::/32", via=gateway.address("wan0", 6))
    if masquerade:
        gateway.masquerade("wan0")
    else:
        for net in (MESH_NETS[0], LAN_NETS[0]):
            internet.route(net, via=gateway.address("wan0", 4))
    lab.await_carriers()
    return ThreeHosts(members[0], gateway, internet, members, behind)


def _clients(lab: Lab, gateway: Host, count: int, mtu: int) -> tuple[Host, ...]:
    """Connect clients to the gateway's mesh0: by one cable, or by a switch when there are several."""
    gateway_end = End(gateway, "mesh0", MESH_V4.format(1), MESH_V6.format(1))
    switch: Switch | None = None
    if count > 1:
        switch = lab.switch()
        lab.link(gateway_end, switch, mtu=mtu)
    members = []
    for number in range(1, count + 1):
        client = lab.host("client" if number == 1 else f"client{number}")
        end = End(client, "mesh0", MESH_V4.format(number + 1), MESH_V6.format(number + 1))
        lab.link(end, switch or gateway_end, mtu=mtu)
        client.route("default", via=gateway.address("mesh0", 4))
        client.route("::/0", via=gateway.address("mesh0", 6))
        members.append(client)
    return tuple(members)


def _households(lab: Lab, clients: Sequence[Host], gateway: Host) -> tuple[Host, ...]:
    """Put a LAN behind each client; if there is only one, the gateway gets a route back to it."""
    made = []
    for number, client in enumerate(clients, 1):
        client.forward()
        behind = lab.host("household" if number == 1 else f"household{number}")
        ends = [End(host, "lan0", LAN_V4.format(one), LAN_V6.format(one)) for one, host in ((1, client), (2, behind))]
        lab.link(*ends)
        behind.route("default", via=client.address("lan0", 4))
        behind.route("::/0", via=client.address("lan0", 6))
        if len(clients) > 1:
            client.masquerade("mesh0")
        made.append(behind)
    for net, version in zip(LAN_NETS if len(clients) == 1 else (), (4, 6), strict=False):
        gateway.route(net, via=clients[0].address("mesh0", version))
    return tuple(made)


def tenant_behind_nat(lab: Lab) -> TenantBehindNat:
    """Build landlord, NAT, tenant and third party; the third party sends what is for the pools to the landlord."""
    landlord, nat = lab.host("landlord", forward=True), lab.host("nat", forward=True)
    tenant, third, internet = lab.host("tenant"), lab.host("third"), lab.switch("internet")
    lab.link(End(landlord, "wan0", WAN_V4.format(1), WAN_V6.format(1)), internet)
    lab.link(End(nat, "wan0", WAN_V4.format(2)), internet)
    lab.link(End(third, "wan0", WAN_V4.format(3), WAN_V6.format(3)), internet)
    lab.link(End(nat, "lan0", "192.168.7.1/24"), End(tenant, "eth0", "192.168.7.2/24"))
    nat.masquerade("wan0")
    tenant.route("default", via="192.168.7.1")
    for pool, version in ((POOL_V4, 4), (POOL_V6, 6)):
        third.route(pool, via=landlord.address("wan0", version))
    lab.await_carriers()
    return TenantBehindNat(landlord, nat, tenant, third)
