"""A laboratory for the landlord's tunnel: landlord, tenants and a host outside, with both kinds of WireGuard.

    outside (also the internet's router) --- wan0 [landlord]
       |  net1, net2: the tenants' own uplinks, with addresses of their own

The test process itself is in the landlord's namespace, since the port acts in the namespace of its thread. Interfaces
have random names, because wireguard-go's sockets are in one directory for all namespaces.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.namespaces import inside
from core_tests.shell import await_until, sh
from core_tests.traffic import ping
from ngp.core.messages import Prefix
from ngp.core.rental.tunnel import TunnelPeer
from ngp.modules.tunnel.owners import key_text
from ngp.modules.tunnel.wireguard import WireGuard
from ngp.ports.letting import DesiredTunnel

PORT = 51820
POOLS = (ip_network("198.51.100.0/24"), ip_network("2001:db8:ffff::/56"))
LANDLORD = {4: "203.0.113.1", 6: "2001:db8:2::1"}
OUTSIDE = {4: "203.0.113.2", 6: "2001:db8:2::2"}
ONE = ("198.51.100.7/32", "2001:db8:ffff:7::/64")
TWO = ("198.51.100.16/29", "2001:db8:ffff:8::/64")
Built = tuple["TunnelLab", WireGuard]


def networks(*texts: str) -> tuple[Prefix, ...]:
    return tuple(map(ip_network, texts))


def first_address(network: Prefix) -> str:
    """Return the address that a tenant's own host has in a network: the only one, or the first usable one."""
    return str(network[0] if network.num_addresses == 1 else network[1])


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant's host, with its keys and its interface into the tunnel."""

    host: Host
    interface: str
    private_key: bytes
    peer: TunnelPeer

    def address(self, version: int) -> str:
        return next(first_address(each) for each in self.peer.networks if each.version == version)


def new_key() -> tuple[bytes, bytes]:
    """Return a private key and its public key."""
    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


class TunnelLab:
    """Landlord, tenants and the host outside; made by `tunnel_lab`."""

    def __init__(self, lab: Lab, kind: str) -> None:
        self.lab, self.kind = lab, kind
        self.landlord, self.outside = lab.host("landlord", forward=True), lab.host("outside", forward=True)
        lab.link(
            End(self.landlord, "wan0", f"{LANDLORD[4]}/24", f"{LANDLORD[6]}/64"),
            End(self.outside, "wan0", f"{OUTSIDE[4]}/24", f"{OUTSIDE[6]}/64"),
        )
        for version, everywhere in ((4, "default"), (6, "::/0")):
            self.landlord.route(everywhere, via=OUTSIDE[version])
        self.name = f"let{secrets.token_hex(4)}"
        self.private_key, public_key = new_key()
        self.public_key = public_key
        self._tenants = 0

    def route_pools(self) -> None:
        """Let the router outside route the pools to the landlord."""
        for pool in POOLS:
            self.outside.route(str(pool), via=LANDLORD[pool.version])

    def desired(self, **fields: object) -> DesiredTunnel:
        values: dict[str, object] = {
            "interface": self.name, "port": PORT, "private_key": self.private_key, "outside": "wan0", "pools": POOLS,
            "proxy": False, "kind": self.kind, "mtu": 1420,
        }  # fmt: skip
        return DesiredTunnel(**{**values, **fields})  # type: ignore[arg-type]

    def tenant(
        self,
        *texts: str,
        endpoint: int = 4,
        rate_bytes_s: int | None = None,
        mtu: int = 1420,
        more: tuple[str, ...] = (),
    ) -> Tenant:
        """Add a tenant's host with its own uplink, and its end of the tunnel.

        Args: endpoint: IP version outside the tunnel. more: addresses that aren't let to it.
        """
        self._tenants += 1
        number = self._tenants
        host = self.lab.host(f"tenant{number}")
        near, far = (f"192.168.{number}.{{}}", f"2001:db8:{number:x}1::{{}}")
        self.lab.link(
            End(host, "net0", f"{near.format(2)}/24", f"{far.format(2)}/64"),
            End(self.outside, f"net{number}", f"{near.format(1)}/24", f"{far.format(1)}/64"),
        )
        for version, via in ((4, near.format(1)), (6, far.format(1))):
            host.route(LANDLORD[version], via=via)
        private_key, public_key = new_key()
        tenant = Tenant(
            host, f"rent{secrets.token_hex(4)}", private_key, TunnelPeer(public_key, networks(*texts), rate_bytes_s)
        )
        self._connect(tenant, endpoint, mtu, more)
        return tenant

    def _connect(self, tenant: Tenant, endpoint: int, mtu: int, more: tuple[str, ...]) -> None:
        host, name = tenant.host, tenant.interface
        if self.kind == "kernel":
            host.ip("link", "add", name, "type", "wireguard")
        else:
            host.sh("wireguard-go", name)
        key = host.folder / "tunnel.key"
        key.write_text(key_text(tenant.private_key))
        where = LANDLORD[endpoint] if endpoint == 4 else f"[{LANDLORD[endpoint]}]"
        host.sh(
            *("wg", "set", name, "private-key", str(key), "peer", key_text(self.public_key)),
            *("endpoint", f"{where}:{PORT}", "allowed-ips", "0.0.0.0/0,::/0", "persistent-keepalive", "1"),
        )
        host.ip("link", "set", name, "mtu", str(mtu))
        own = [f"{first_address(each)}/{each.max_prefixlen}" for each in tenant.peer.networks]
        host.put_up(name, *own, *more)
        for everywhere in ("default", "::/0"):
            host.route(everywhere, device=name)

    def await_tunnel(self, *tenants: Tenant) -> None:
        """Wait until the tunnel carries a tenant's packets."""
        for tenant in tenants:
            version = tenant.peer.networks[0].version
            await_until(
                lambda tenant=tenant, version=version: (
                    ping(  # type: ignore[misc]
                        self.outside, tenant.address(version), wait_s=1
                    ).received
                ),
                what=f"{tenant.host.name} in the tunnel",
            )

    def state(self) -> str:
        """Return all of the landlord's kernel that the tunnel may change."""
        looks = (
            "ip -o link | sed 's/@.*//'", "ip route show table all", "ip -6 route show table all",
            "ip rule", "ip -6 rule", "ip neigh show proxy", "nft list ruleset",
            "sysctl -a 2>/dev/null | grep -E 'proxy_ndp|[.]forwarding'",
        )  # fmt: skip
        return "\n".join(f"{look}\n{sh('sh', '-c', look, check=False)}" for look in looks)

    def handshakes(self) -> dict[str, str]:
        """Return the last handshake of each peer, as the landlord's WireGuard says."""
        said = self.landlord.sh("wg", "show", self.name, "latest-handshakes")
        return dict(line.split("\t") for line in said.splitlines())

    def allowed(self) -> dict[str, set[str]]:
        """Return the networks of each peer, as the landlord's WireGuard says."""
        said = self.landlord.sh("wg", "show", self.name, "allowed-ips")
        rows = (line.split("\t") for line in said.splitlines())
        return {key: set(rest.split()) - {"(none)"} for key, rest in rows}


@contextmanager
def tunnel_lab(kind: str) -> Iterator[tuple[TunnelLab, WireGuard]]:
    """Build landlord and outside host; the caller's thread is in the landlord's namespace meanwhile."""
    with Lab() as lab:
        made = TunnelLab(lab, kind)
        with inside(made.landlord.namespace):
            tunnel = WireGuard()
            try:
                yield made, tunnel
            finally:
                tunnel.clean_up()
                tunnel.close()


def let(built: Built, *tenants: Tenant) -> None:
    """Set the tunnel up with these tenants, and wait until it carries their packets."""
    lab, tunnel = built
    tunnel.set_up(lab.desired(), [tenant.peer for tenant in tenants])
    lab.await_tunnel(*tenants)


def answers(host: Host, address: str) -> bool:
    return ping(host, address, wait_s=1).received == 1


def timed(deed: object) -> float:
    began = time.perf_counter()
    deed()  # type: ignore[operator]
    return time.perf_counter() - began


def many_peers(count: int) -> list[TunnelPeer]:
    """Return peers with a /32 and a /64 each."""
    v4, v6 = IPv4Network("10.128.0.0/9"), IPv6Network("2001:db8:8000::/33")
    return [
        TunnelPeer(new_key()[1], (ip_network((v4[number], 32)), ip_network((int(v6[0]) + (number << 64), 64))))
        for number in range(count)
    ]
