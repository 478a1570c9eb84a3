"""Quotes end: terms that are sent again are kept for a while only, so who asks for ever gets the present price."""

from __future__ import annotations

from ipaddress import ip_address

from mesh import HOST, Mesh, Node, asks
from playbook import MSAT_PER_KB

from ngp.core import events as ev
from ngp.core.kernel import HeldPacket
from ngp.core.messages import Accept, Ask, Propose
from ngp.core.prefixes import host_prefix
from ngp.core.selling.quoting import KEPT_S, QUOTE_VALID_S

WHOLE = host_prefix(ip_address(HOST))
DEAR, PAUSE_S = 8, 4


def ask(mesh: Mesh, contract: bytes = b"") -> Propose:
    """Let b ask c, and return c's answer, which b doesn't get."""
    at = mesh["c"]
    at.said.clear()
    message = Ask(WHOLE, 0, 0, contract)
    at.step(ev.MessageReceived(mesh["b"].identity, at.link("b"), 1, message, 1 << 42, onward=at.onward))
    mesh.settle()
    (proposed,) = at.sent(Propose)
    assert isinstance(proposed, Propose)
    return proposed


def prices_of(mesh: Mesh, contract: bytes = b"") -> list[int]:
    """Return the prices that c offers while b asks again and again, and c's price is raised after the first answer."""
    at, found = mesh["c"], list[int]()
    mesh.lost = {Propose, Accept}
    for number in range(12):
        proposed = ask(mesh, contract)
        assert 0 < proposed.quote_valid_s <= QUOTE_VALID_S
        found.append(proposed.price_msat_per_gib)
        if not number:
            at.step(ev.SettingsChanged(asks(DEAR)))
        mesh.wait(PAUSE_S)
    return found


def is_raised_once(prices: list[int]) -> bool:
    rises = [
        number for number, (before, price) in enumerate(zip(prices, prices[1:], strict=False), 1) if price > before
    ]
    return len(rises) == 1 and prices[-1] == DEAR * MSAT_PER_KB and rises[0] * PAUSE_S <= KEPT_S + PAUSE_S


def test_a_client_that_asks_again_and_again_gets_a_new_price_when_the_old_quote_is_over() -> None:
    assert is_raised_once(prices_of(Mesh("abc")))


def test_the_price_of_a_renewal_that_is_asked_for_again_and_again_is_no_option_for_ever() -> None:
    mesh = Mesh("abc")
    mesh.packet("b", "c")
    sale = mesh["c"].sale("b")
    count(mesh["c"], sale.id)
    assert is_raised_once(prices_of(mesh, sale.id))


def count(at: Node, contract: bytes) -> None:
    """Let a contract carry something, so that its renewal isn't an idle one."""
    at.counts.setdefault(contract, [0, 0])[0] += 1000
    at.step(ev.UsageRead((at.reading(contract),)))


def test_an_accept_that_a_packet_overtakes_in_the_last_seconds_of_a_quote_is_taken() -> None:
    mesh = Mesh("abc")
    at = mesh["c"]
    mesh.lost = {Propose}
    offered = ask(mesh)
    sale = at.sale("b")
    sale.kept_until_mono_s = mesh.now.monotonic_s + 1  # it was sent again and again
    at.step(HeldPacket(7, at.link("b"), ip_address(HOST), at.onward))
    mesh.wait(0.3)
    accept = Accept(offered.contract, offered.price_msat_per_gib, offered.data_limit_bytes)
    at.step(ev.MessageReceived(sale.identity, at.link("b"), 1, accept, 1 << 43))
    mesh.settle()
    assert sale.running


def test_terms_that_last_no_longer_as_long_as_they_say_are_not_sent_again() -> None:
    mesh = Mesh("abcd")
    mesh.packet("c", "d")
    purchase = mesh["c"].purchase("d")
    purchase.expires_mono_s = mesh.now.monotonic_s + 60
    mesh.lost = {Propose}
    first = ask(mesh)
    again = first
    for _ in range(3):
        mesh.wait(PAUSE_S)
        again = ask(mesh)
    assert again.lifetime_s <= purchase.expires_mono_s - mesh.now.monotonic_s < first.lifetime_s


def test_a_quote_that_is_not_sent_again_is_honoured_as_long_as_it_said() -> None:
    mesh = Mesh("abcd")
    mesh.packet("c", "d")
    at, began = mesh["c"], mesh.now.monotonic_s
    at.purchase("d").expires_mono_s = began + 600  # so that the terms last no longer as long after a while
    mesh.lost = {Propose}
    for _ in range(3):
        offered = ask(mesh)
        mesh.wait(3.3)
    until = mesh.now.monotonic_s - 3.3 + offered.quote_valid_s
    mesh.wait(0.3)
    at.step(HeldPacket(7, at.link("b"), ip_address(HOST), at.onward))
    mesh.wait(until - mesh.now.monotonic_s - 0.5)
    accept = Accept(offered.contract, offered.price_msat_per_gib, offered.data_limit_bytes)
    at.step(ev.MessageReceived(mesh["b"].identity, at.link("b"), 1, accept, 1 << 43))
    mesh.settle()
    assert at.sale("b").running


def test_a_quote_that_is_sent_again_is_honoured_as_long_as_the_one_before_said() -> None:
    mesh = Mesh("abc")
    mesh.lost = {Propose}
    at, until, now = mesh["c"], 0.0, mesh.now.monotonic_s
    for later in (0, 6, 13, 19.95, 26.1):  # the last one is valid for whole seconds, which end a little earlier
        mesh.wait(now + later - mesh.now.monotonic_s)
        offered = ask(mesh)
        until = max(until, mesh.now.monotonic_s + offered.quote_valid_s)
    mesh.wait(until - mesh.now.monotonic_s - 0.4)
    accept = Accept(offered.contract, offered.price_msat_per_gib, offered.data_limit_bytes)
    at.step(ev.MessageReceived(mesh["b"].identity, at.link("b"), 1, accept, 1 << 43))
    mesh.settle()
    assert at.sale("b").running
