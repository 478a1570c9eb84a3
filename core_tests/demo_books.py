"""The end of `tools/demo`: both daemons' totals beside the count at the receivers, and whether anything differs.

The count comes from packet sockets that share no code with the product. A byte is counted where it arrived: at the
internet's interface if it was sent to a destination, at the client's if it came back. Bytes that were cut on the way
don't arrive, and no bill may contain them. Money is computed again from the bytes and the agreed prices, with fractions
instead of the product's own rounding function.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import ip_address
from typing import Any

from core_tests.counter import Flow, Tally

Row = dict[str, Any]
Flows = Mapping[Flow, Tally]
Prices = Mapping[str, list[tuple[int, int]]]
GIB = 1 << 30
VERSIONS = (4, 6)
WAYS = ("to", "from")


@dataclass(frozen=True, slots=True)
class Books:
    """One daemon's listings at the end: `ngp contracts --all --json` and `ngp accounts --json`, of one role."""

    contracts: list[Row]
    account: Row

    def used_bytes(self, way: str, destinations: Collection[str]) -> int:
        """Add up what contracts for single addresses metered towards (`to`) or back from (`from`) them."""
        return sum(
            int(row[f"used_{way}_bytes"])
            for row in self.contracts
            if row["destination"].partition("/")[0] in destinations
        )


@dataclass(frozen=True, slots=True)
class Count:
    """Bytes that arrived, by destination: towards it, and back from it."""

    arrived: dict[str, dict[str, int]]

    def bytes(self, way: str, destinations: Collection[str]) -> int:
        """Add up some destinations."""
        return sum(self.arrived[address][way] for address in destinations)


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison: the independent figure, and each daemon's (None: it has no such figure)."""

    what: str
    truth: int
    gateway: int | None
    client: int | None

    @property
    def agrees(self) -> bool:
        """Say whether all figures are equal."""
        return all(said in (None, self.truth) for said in (self.gateway, self.client))


def packets(at_internet: Flows, at_client: Flows, address: str) -> dict[str, tuple[int, int]]:
    """Return, for each way, how many packets were sent at one end and how many arrived at the other."""

    def add_up(flows: Flows, direction: str, end: str) -> int:
        return sum(
            tally.packets
            for flow, tally in flows.items()
            if flow.direction == direction and getattr(flow, end) == address
        )

    return {
        "to": (add_up(at_client, "out", "destination"), add_up(at_internet, "in", "destination")),
        "from": (add_up(at_internet, "out", "source"), add_up(at_client, "in", "source")),
    }


def count_arrived(at_internet: Flows, at_client: Flows, destinations: Iterable[str]) -> Count:
    """Sort the two counters' readings by destination; other addresses are left out."""
    arrived = {address: {"to": 0, "from": 0} for address in destinations}
    for flow, tally in at_internet.items():
        if flow.direction == "in" and flow.destination in arrived:
            arrived[flow.destination]["to"] += tally.bytes
    for flow, tally in at_client.items():
        if flow.direction == "in" and flow.source in arrived:
            arrived[flow.source]["from"] += tally.bytes
    return Count(arrived)


def due_msat(used_bytes: int, prices: list[tuple[int, int]]) -> int:
    """Price cumulative bytes by a schedule of (from this byte on, msat per GiB), rounded up once."""
    total = Fraction(0)
    ends = [offset for offset, _ in prices[1:]] + [used_bytes]
    for (offset, price), end in zip(prices, ends, strict=True):
        total += Fraction(max(0, min(end, used_bytes) - offset) * price, GIB)
    return math.ceil(total)


def compare(count: Count, gateway: Books, client: Books, prices: Prices, cut: Collection[str]) -> list[Line]:
    """Compare all figures.

    The client's meter counts what the client sends, also packets that the gateway cuts and doesn't bill. These use up
    the last room before the limit in the client's meter, so it doesn't count some packets that come back. So for
    destinations that were cut under traffic, even if only until money came, the bill is compared, not the meter.

    Args:
        count: the bytes that arrived.
        gateway, client: their listings.
        prices: each contract's schedule, recorded while it ran.
        cut: destinations whose contract or account was used up while traffic went on.
    """
    lines = []
    for version in VERSIONS:
        of_family = [address for address in count.arrived if ip_address(address).version == version]
        whole = [address for address in of_family if address not in cut]
        sold = [gateway.used_bytes(way, of_family) for way in WAYS]
        lines.append(Line(f"IPv{version} bytes to destinations", count.bytes("to", of_family), sold[0], None))
        lines.append(Line("  of these not cut", count.bytes("to", whole), None, client.used_bytes("to", whole)))
        lines.append(Line(f"IPv{version} bytes back from them", count.bytes("from", of_family), sold[1], None))
        lines.append(Line("  of these not cut", count.bytes("from", whole), None, client.used_bytes("from", whole)))
    everything = sum(count.bytes(way, count.arrived) for way in WAYS)
    used = _sum(gateway.contracts, "used_to_bytes") + _sum(gateway.contracts, "used_from_bytes")
    lines.append(Line("all bytes, sold and billed", everything, used, _sum(client.contracts, "billed_bytes")))
    return lines + _money(gateway, client, prices) + _single(count, gateway, client, cut)


def _money(gateway: Books, client: Books, prices: Prices) -> list[Line]:
    """Return the lines about msat: computed from each side's bytes, then one account compared with the other."""
    ours, theirs = gateway.account, client.account
    due, metered = _due(gateway.contracts, prices), _due(client.contracts, prices)
    paid, refunded = int(ours["paid_msat"]), int(ours["refunded_msat"])
    left = paid - due - refunded
    return [
        Line("msat due = price x bytes", due, _sum(gateway.contracts, "charged_msat"), None),
        Line("msat charged to the account", due, ours["charged_msat"], theirs["charged_msat"]),
        Line("msat by the client's own meter", metered, None, theirs["metered_msat"]),
        Line("msat paid", paid, paid, theirs["paid_msat"]),
        Line("msat refunded", refunded, refunded, theirs["refunded_msat"]),
        Line("msat left = paid-charged-refunded", left, ours["balance_msat"], theirs["balance_msat"]),
    ]


def _single(count: Count, gateway: Books, client: Books, cut: Collection[str]) -> list[Line]:
    """Return the lines of single destinations; only those that differ are printed."""
    lines = [
        Line(
            f"{address} {way}",
            ways[way],
            gateway.used_bytes(way, [address]),
            None if address in cut else client.used_bytes(way, [address]),
        )
        for address, ways in count.arrived.items()
        for way in WAYS
    ]
    return [line for line in lines if not line.agrees]


def _due(contracts: Iterable[Row], prices: Prices) -> int:
    return sum(
        due_msat(row["used_to_bytes"] + row["used_from_bytes"], prices.get(row["id"], [(0, row["price_msat_per_gib"])]))
        for row in contracts
    )


def _sum(rows: Iterable[Row], key: str) -> int:
    return sum(int(row[key]) for row in rows)
