"""Letting: a landlord, a tenant and a third party, whose tunnel is set up by ngp, or by hand.

tenant --- 192.0.2.0/24 --- landlord --- 203.0.113.0/24 --- third
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from core_tests.bench.wireguard import Key, kind, make
from core_tests.daemon import Daemon
from core_tests.lab import End, Lab
from core_tests.namespaces import inside
from core_tests.renting import proof_of
from core_tests.shell import await_until
from core_tests.traffic import ping
from ngp.tenant.grpc import USUAL_PORT, GrpcPlace, grpc_landlord

PORT = 51820
POOLS = ["198.51.100.0/24", "2001:db8:100::/48"]
CREDIT_SAT = 50_000  # lasts while all is measured
RENTED = "198.51.100.0", "2001:db8:100::1"


class Side:
    """The three hosts; nothing is let yet."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.landlord, self.tenant, self.third = (
            lab.host("landlord", forward=True),
            lab.host("tenant"),
            lab.host("third"),
        )
        lab.link(End(self.landlord, "near0", "192.0.2.1/24"), End(self.tenant, "near0", "192.0.2.2/24"), offloads=True)
        ends = (
            End(host, "wan0", f"203.0.113.{number}/24", f"2001:db8:2::{number}/64")
            for number, host in ((1, self.landlord), (2, self.third))
        )
        lab.link(*ends, offloads=True)
        for pool, version in zip(POOLS, (4, 6), strict=True):
            self.third.route(pool, via=self.landlord.address("wan0", version))
        lab.await_carriers()

    def let_by_hand(self) -> None:
        """Give the tenant its networks with `wg` and `ip`."""
        key, theirs = Key.new(), Key.new()
        networks = f"{RENTED[0]}/32", "2001:db8:100::/64"
        name = make(self.lab, self.landlord, key, "listen-port", str(PORT), "peer", theirs.public_key,
                    "allowed-ips", ",".join(networks))  # fmt: skip
        for network in networks:
            self.landlord.ip("route", "add", network, "dev", name)
        self._join(theirs, key.public_key)

    def start_landlord(self, **keys: object) -> Daemon:
        """Start our daemon. Args: keys: more of net.conf."""
        conf = {
            "LANDLORD": True, "LANDLORD_POOLS": POOLS, "LANDLORD_OUTSIDE": "wan0", "LANDLORD_TUNNEL": kind(),
            "LANDLORD_INTERFACE": f"let{secrets.token_hex(4)}", "LANDLORD_GRPC": f"192.0.2.1:{USUAL_PORT}",
        }  # fmt: skip
        return self.landlord.daemon(conf | keys)

    def let_by_ngp(self, **keys: object) -> None:
        """Rent from our daemon, over gRPC. Args: keys: more of net.conf."""
        daemon, key = self.start_landlord(**keys), Key.new()
        landlord = grpc_landlord(GrpcPlace("192.0.2.1", USUAL_PORT, daemon.json("status")["identity"]))
        with inside(self.tenant.namespace):
            proof = proof_of(landlord.ask(key, CREDIT_SAT).bolt11, self.tenant.folder)
            landlord.status(key, preimage=proof)
            found = landlord.configuration(key)
        assert [str(one.ip) for one in found.addresses] == list(RENTED)
        self._join(key, found.ends[0].public_key)

    def _join(self, key: Key, landlord: str) -> None:
        """Set the tenant's end up, and wait until it is reached."""
        name = make(self.lab, self.tenant, key)
        self.tenant.sh("sh", "-ec", self.join_text(name, landlord, RENTED))
        for address in RENTED:
            await_until(lambda one=address: self.is_reached(one), what=f"{address} answers")  # type: ignore[misc]

    def join_text(self, name: str, landlord: str, addresses: Sequence[str]) -> str:
        """Return the shell's commands that complete a tenant's interface: peer, addresses and ways to the third.

        Args: landlord: its public key.
        """
        everything = "persistent-keepalive 25 allowed-ips 0.0.0.0/0,::/0"
        lines = [f"wg set {name} peer {landlord} endpoint 192.0.2.1:{PORT} {everything}"]
        for address in addresses:
            version, length, at_once = (6, 128, " nodad") if ":" in address else (4, 32, "")
            lines.append(f"ip address add {address}/{length} dev {name}{at_once}")
            lines.append(f"ip -{version} route replace {self.third.address('wan0', version)} dev {name} src {address}")
        return "\n".join(lines)

    def is_reached(self, address: str) -> bool:
        """Say whether the third party reaches an address of the tenant."""
        return ping(self.third, address, wait_s=1).received == 1
