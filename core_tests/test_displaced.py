"""A mesh interface that becomes a port of a bridge while ngp runs: neighbours' traffic is still sold there."""

from __future__ import annotations

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import GATEWAY, Trade, open_trade, used

ADDRESSES = ("192.0.2.1/24", "2001:db8:1::1/64")


def move_addresses(trade: Trade, name: str) -> None:
    gateway = trade.net.gateway
    gateway.ip("address", "flush", "dev", "mesh0" if name == "br0" else "br0")
    for address in ADDRESSES:
        gateway.ip("address", "add", address, "dev", name, *(("nodad",) if ":" in address else ()))


def told(trade: Trade, text: str, count: int = 1) -> None:
    await_until(lambda: trade.gateway.log().count(text) == count, what=f"{text!r} in the log")


def sold_at(trade: Trade, number: int) -> list[tuple[str, str]]:
    mine = f"{trade.net.remote(4, number)}/"
    return [(row["interface"], row["state"]) for row in trade.sold() if row["destination"].startswith(mine)]


def test_a_named_mesh_interface_that_becomes_a_port_is_gated_on_its_bridge(lab: Lab) -> None:
    trade = open_trade(lab, {**GATEWAY, "MESH_INTERFACES": "mesh0"})
    gateway, internet = trade.net.gateway, trade.net.internet
    trade.prepay()
    gateway.ip("link", "add", "br0", "type", "bridge")
    gateway.ip("link", "set", "br0", "up")
    gateway.ip("link", "set", "mesh0", "master", "br0")
    move_addresses(trade, "br0")
    told(trade, "put br0 into MESH_INTERFACES instead, or: ip link set dev mesh0 nomaster. Until then br0 is gated")
    at_internet, at_client = internet.counter("wan0", "in"), trade.net.client.counter("mesh0", "in")
    remote = trade.net.remote(4, 2)
    assert traffic.ping(trade.net.client, remote).received == 1
    traffic.tcp_sink(internet, remote, 5001)
    assert traffic.tcp_send(trade.net.client, remote, 5001, size_bytes=50_000).intact
    assert sold_at(trade, 2) == [("br0", "active")]

    def carried() -> int:
        return at_internet.total("in", destination=remote).bytes + at_client.total("in", source=remote).bytes

    await_until(
        lambda: carried() == sum(used(row) for row in trade.sold() if row["destination"].startswith(f"{remote}/")),
        what="a meter that shows what was carried",
    )
    assert trade.gateway.cli("block", trade.sold()[0]["neighbour"]).returncode == 0
    before = at_internet.total("in").packets
    for number in (2, 3):
        assert traffic.ping(trade.net.client, trade.net.remote(4, number), wait_s=1).received == 0
    assert at_internet.total("in").packets == before
    assert trade.gateway.cli("unblock", trade.sold()[0]["neighbour"]).returncode == 0

    gateway.ip("link", "set", "mesh0", "nomaster")
    move_addresses(trade, "mesh0")
    told(trade, "mesh interface mesh0 is there, and gated")
    await_until(lambda: traffic.ping(trade.net.client, trade.net.remote(4, 4), wait_s=1).received, what="a sale")
    assert sold_at(trade, 4)[-1][0] == "mesh0"
