"""Lost contracts: a client that asks for what it has bought has lost it (a wrong clock, a backup), and gets it anew."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from mesh import HOST, Mesh

from ngp.core import events as ev
from ngp.core.buying import negotiation
from ngp.core.contract import State
from ngp.core.messages import Accept, Ask, Cancel, Reject, RejectReason
from ngp.core.prefixes import host_prefix
from ngp.core.upstream import ANSWER_S

ADDRESS = ip_address(HOST)
WHOLE = host_prefix(ADDRESS)


def asks(mesh: Mesh) -> None:
    """Let b ask c for HOST."""
    ask = Ask(WHOLE, 0, 0)
    at = mesh["c"]
    at.step(ev.MessageReceived(mesh["b"].identity, at.link("b"), 1, ask, 1 << 42, onward=at.onward))


@pytest.mark.parametrize("seconds", [ANSWER_S - 1, ANSWER_S + 1])
def test_a_contract_that_its_client_asks_for_anew_ends_if_it_is_not_only_just_agreed(seconds: float) -> None:
    mesh = Mesh("abc")
    mesh.packet("b", "c")
    sale = mesh["c"].sale("b")
    mesh.wait(seconds)
    mesh.lost = {Cancel, Reject}
    asks(mesh)
    assert [said.reason for said in mesh["c"].sent(Reject)] == [RejectReason.BUSY]  # type: ignore[attr-defined]
    mesh.settle()
    assert sale.running is (seconds < ANSWER_S)
    if not sale.running:
        assert sale.reason == "cancelled"
        asks(mesh)
        assert mesh["c"].sale("b").state is State.QUOTED


def test_a_contract_is_not_lost_that_was_agreed_just_now_and_ends_soon_with_what_it_rests_on() -> None:
    mesh = Mesh("bcd")
    mesh.add_client("y", "c")
    mesh.packet("y", "c")
    mesh.wait(60)
    mesh.lost = {Accept}
    mesh.packet("b", "c")
    sale = mesh["c"].sale("b")
    mesh.wait(ANSWER_S + 1)  # its accept comes late
    accept = Accept(sale.id, sale.price_msat_per_gib, sale.data_limit_bytes)
    mesh["c"].step(ev.MessageReceived(sale.identity, mesh["c"].link("b"), 1, accept, 1 << 41))
    assert sale.expires_mono_s - mesh.now.monotonic_s < sale.lifetime_s - ANSWER_S
    asks(mesh)
    mesh.settle()
    assert sale.running


def test_what_was_declined_and_is_bought_meanwhile_is_not_asked_for_again() -> None:
    mesh = Mesh("abc")
    mesh.packet("b", "c")
    at, c = mesh["b"], mesh["b"].world.peers.any_link(mesh["c"].identity)
    assert c is not None
    at.world.buying.declined[c.identity, c.link, WHOLE] = mesh.now.monotonic_s
    at.world.effects = []
    negotiation.ask_again(at.world)
    assert not at.world.effects and not at.world.buying.declined
