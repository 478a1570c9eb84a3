"""Tunnel: the speed of a rental's tunnel, beside WireGuard that was set up by hand.

Landlord, tenant and a third party, once with WireGuard by hand on the landlord, and once with ngp. The tenant's end is
by hand in both. So the ratio is the cost of ngp's routes and rules, and no daemon has a part in it. WireGuard is the
kernel's on both sides, or wireguard-go where the kernel has none.
"""

from __future__ import annotations

import secrets
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

from core_tests.bench import report
from core_tests.bench.stage import Blast, Sink
from core_tests.bench.wireguard import Key, kind, make
from core_tests.lab import End, Lab
from core_tests.renting import pay
from core_tests.shell import await_until
from core_tests.staticwire import Session, Tenant, wg_text
from core_tests.traffic import ping

GOAL = 0.97
MBITS = 1e6 / 8
PORT = 51820
POOLS = ["198.51.100.0/28", "2001:db8:100::/56"]
RENTED = "198.51.100.0", "2001:db8:100::1"
FAMILIES = {4: "IPv4", 6: "IPv6"}


class Side:
    """tenant --- 192.0.2.0/24 --- landlord --- 203.0.113.0/24 --- third. Nothing is let yet."""

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
        name = make(self.lab, self.landlord, key, "listen-port", str(PORT), "peer", wg_text(theirs.public),
                    "allowed-ips", ",".join(networks))  # fmt: skip
        for network in networks:
            self.landlord.ip("route", "add", network, "dev", name)
        self._join(theirs, key.public)

    def let_by_ngp(self, **keys: object) -> None:
        """Rent from our daemon. Args: keys: more of net.conf."""
        conf = {
            "LANDLORD": True, "LANDLORD_POOLS": POOLS, "LANDLORD_OUTSIDE": "wan0", "LANDLORD_TUNNEL": kind(),
            "LANDLORD_HTTPS": "192.0.2.1:443", "LANDLORD_INTERFACE": f"let{secrets.token_hex(4)}",
        }  # fmt: skip
        self.landlord.daemon(conf | keys)
        key = Key.new()
        with closing(Session("192.0.2.1", 443, connect=self.tenant.connect)) as session:
            tenant = Tenant(session, key.public)
            pay(tenant, tenant.add_credit(1000)["Invoice"], self.tenant.folder)
            found = tenant.configuration()
        assert [one.partition("/")[0] for one in found["addresses"]] == list(RENTED)
        self._join(key, b64decode(found["peers"][0]["public_key"]))

    def _join(self, key: Key, landlord: bytes) -> None:
        """Set the tenant's end up, and wait until it is reached."""
        name = make(self.lab, self.tenant, key, "peer", wg_text(landlord), "endpoint", f"192.0.2.1:{PORT}",
                    "persistent-keepalive", "25", "allowed-ips", "0.0.0.0/0,::/0")  # fmt: skip
        for address, everything in zip(RENTED, ("203.0.113.0/24", "2001:db8:2::/64"), strict=True):
            self.tenant.add_address(name, f"{address}/{128 if ':' in address else 32}")
            self.tenant.ip("route", "add", everything, "dev", name, "src", address)
        for address in RENTED:
            await_until(lambda one=address: ping(self.third, one, wait_s=1).received, what=f"{address} answers")  # type: ignore[misc]


def run(quick: bool) -> None:
    """Measure and print."""
    pairs, seconds = (6, 0.4) if quick else (30, 0.6)
    with ExitStack() as labs:
        by_hand, let = (Side(labs.enter_context(Lab())) for _ in range(2))
        by_hand.let_by_hand()
        let.let_by_ngp()
        report.head("A rental's tunnel, paired with WireGuard by hand: ratio (quartiles; by hand -> rented)")
        report.line("WireGuard", {"kernel": "the kernel's", "userspace": "wireguard-go"}[kind()])
        _compare("", by_hand, let, pairs, seconds, GOAL)


def _compare(what: str, plain: Side, other: Side, pairs: int, seconds: float, goal: float) -> None:
    """Send one stream at a time through one of two tunnels, in both families and directions."""
    for version, family in FAMILIES.items():
        for way in ("down", "up"):
            with _streams((plain, other), way == "down", version, seconds) as (turn, rate):
                found = report.take_pairs(pairs, turn(plain), turn(other), rate)
            report.ratio_line(f"bulk TCP {way}{what}, {family}", found, "Mbit/s", MBITS, goal)


Turn = Callable[[Side], Callable[[], None]]


@contextmanager
def _streams(
    sides: tuple[Side, ...], down: bool, version: int, seconds: float
) -> Iterator[tuple[Turn, Callable[[], float]]]:
    """Start receivers. Yields a function that chooses a side, and one that sends through the chosen one."""
    rented = RENTED[version == 6]
    sinks: dict[Side, Sink] = {}
    now = sides[0]

    def turn(side: Side) -> Callable[[], None]:
        def change() -> None:
            nonlocal now
            now = side

        return change

    def rate() -> float:
        outside = now.third.address("wan0", version)
        sender, source = (now.third, outside) if down else (now.tenant, rented)
        return sinks[now].rate(sender, source, seconds)

    try:
        for side in sides:
            receiver = (side.tenant, rented) if down else (side.third, side.third.address("wan0", version))
            sinks[side] = Sink(Blast(side.lab.folder, first=False), *receiver)
        yield turn, rate
    finally:
        for sink in sinks.values():
            sink.stop()
