"""Attacks on a resold default route."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from test_default_resale import bought_whole, line, sold_whole

from ngp.core import events as ev
from ngp.core.messages import Propose


def test_a_stranger_that_offers_parts_does_not_end_the_default_route_of_others() -> None:
    """Offers cost nothing; only those of the server, or of whom our packets go to, show what isn't covered."""
    mesh = line()
    mesh.add("x", "b")
    b, x = mesh["b"], mesh["x"]
    assert sold_whole(b, "a") is not None and bought_whole(b, "c") is not None
    for number in range(1100):
        part = ip_network(int(ip_address("9.0.0.0")) + number)
        offer = Propose(number.to_bytes(16, "big"), part, 1, 1 << 20, 3600, 60, 0, 1)
        b.step(ev.MessageReceived(x.identity, b.link("x"), 1, offer, mesh._next_id()))
    mesh.settle()
    assert not b.world.resold.parts and not b.elsewhere
    assert sold_whole(b, "a") is not None and bought_whole(b, "c") is not None
