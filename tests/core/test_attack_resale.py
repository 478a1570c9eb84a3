"""Who is in the way of a node in the middle: neighbours that only ask, a server that takes back, or renews bytewise."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from mesh import HOST, MB, PLENTY, Mesh
from playbook import MSAT_PER_KB, settings

from ngp.core import events as ev
from ngp.core.contract import State
from ngp.core.messages import Accept, Ask, Cancel, Propose, Reject, RejectReason
from ngp.core.openings import MOST_OF_STRANGER


def asks(mesh: Mesh, client: str, number: int) -> None:
    """Let a neighbour ask b for HOST."""
    at = mesh["b"]
    question = Ask(ip_network(f"{HOST}/32"), 0, 0)
    at.step(
        ev.MessageReceived(mesh[client].identity, at.link(client), 1, question, (1 << 41) + number, onward=at.onward)
    )
    mesh.settle()


def test_a_question_whose_answer_was_lost_is_asked_again_though_two_neighbours_take_turns_to_wait_for_it() -> None:
    mesh = Mesh("abc")
    for name in "xyz":
        mesh.add_client(name, "b")
    mesh.lost = {Ask}
    asks(mesh, "x", 0)
    mesh.lost = set()
    for number in range(1, 20):
        mesh.wait(0.5)
        if number % 3 == 0:
            asks(mesh, "xy"[number // 3 % 2], number)
        if number % 4 == 0:
            mesh.packet("z", "b")
    assert mesh["b"].sale("z").running


def test_a_server_that_renews_byte_by_byte_for_a_client_that_waits_is_not_asked_without_end() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    at, c, sale, purchase = mesh["b"], mesh["c"], mesh["b"].sale("a"), mesh["b"].purchase("c")
    mesh.lost = {Propose}
    mesh.carry("abc", 80 * MB)
    renewal = Ask(sale.destination.prefix, 180 * MB, 3600, sale.id)
    at.step(ev.MessageReceived(mesh["a"].identity, at.link("a"), 1, renewal, 1 << 40))
    mesh.settle()
    assert sale.wanted is not None and purchase.state is State.RENEWING
    renewed = 0
    while purchase.state is State.RENEWING and renewed <= 2 * MOST_OF_STRANGER:
        limit = purchase.data_limit_bytes
        offer = Propose(
            purchase.id, ip_network(f"{HOST}/32"), purchase.price_msat_per_gib, limit + 1, 3600, 10, limit, 1
        )
        at.step(ev.MessageReceived(c.identity, at.link("c"), 1, offer, (1 << 41) + renewed))
        renewed += 1
    assert renewed <= MOST_OF_STRANGER + 1


def test_a_quote_that_rests_on_one_that_is_taken_back_is_taken_back_too() -> None:
    mesh = Mesh("abc")
    mesh.lost = {Accept}
    mesh.packet("a", "b")
    at, (quote,) = mesh["b"], mesh["b"].world.buying.quotes.values()
    ended, sale = Cancel(quote.propose.contract, "upstream"), at.sale("a")
    at.step(ev.MessageReceived(mesh["a"].identity, at.link("a"), 1, ended, 1 << 40))  # not a's to take back
    assert at.world.buying.quotes and not at.sent(Cancel)
    at.step(ev.MessageReceived(mesh["c"].identity, at.link("c"), 1, ended, 1 << 40))
    mesh.settle()
    assert not at.world.buying.quotes and at.sent(Cancel) == [Cancel(sale.id, "upstream")]
    mesh.lost = set()
    mesh.packet("a", "b")
    assert at.sale("a").running and at.sale("a").id != sale.id


@pytest.mark.parametrize("used_lately", [True, False])
def test_who_only_receives_asks_for_a_new_contract_when_the_price_ends_its_contract(used_lately: bool) -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    sale = mesh["b"].sale("a")
    mesh.carry("abc", 10_000)
    dear = settings(**PLENTY, sell_msat_per_gib=8 * MSAT_PER_KB, sell_min_msat_per_gib=8 * MSAT_PER_KB)
    mesh["c"].step(ev.SettingsChanged(dear))
    if not used_lately:
        mesh.wait(11)
    mesh.count("b", mesh["b"].purchase("c").id, 80 * MB)
    mesh.settle()
    assert not sale.running and sale.reason == "upstream"
    assert len(mesh["a"].sent(Ask)) == used_lately
    if used_lately:
        again = mesh["b"].sale("a")
        assert again.running and again.id != sale.id and again.price_msat_per_gib > 8 * MSAT_PER_KB


def test_a_contract_that_we_closed_as_its_server_was_closing_it_is_asked_for_again_when_the_server_says_why() -> None:
    mesh = Mesh("ab")
    mesh.packet("a", "b")
    at, purchase = mesh["a"], mesh["a"].purchase("b")
    mesh.carry("ab", 10_000)
    for said in (Reject(purchase.id, RejectReason.LAPSED), Cancel(purchase.id, "upstream")):
        assert not at.sent(Ask)
        at.step(ev.MessageReceived(mesh["b"].identity, at.link("b"), 1, said, 1 << 40))
        mesh.settle()
        assert not purchase.running
    assert len(at.sent(Ask)) == 1 and at.purchase("b").running and at.purchase("b").id != purchase.id


def test_a_new_contract_that_ends_before_it_is_used_is_asked_for_again_less_and_less_often() -> None:
    """The price further up may still be changing. A server that goes on ending contracts costs seven questions."""
    mesh = Mesh("ab")
    mesh.packet("a", "b")
    at = mesh["a"]
    mesh.carry("ab", 10_000)
    for _ in range(130):
        if any(one.running for one in at.world.contracts.values()):
            mesh["b"].end("a")
        mesh.wait(1)
    assert len(at.sent(Ask)) == 7 and not at.world.buying.missed


def test_a_lost_question_for_what_is_missed_is_asked_again() -> None:
    mesh = Mesh("ab")
    mesh.packet("a", "b")
    at, old = mesh["a"], mesh["a"].purchase("b")
    mesh.carry("ab", 10_000)
    mesh.lost = {Ask}
    mesh["b"].end("a")
    mesh.lost = set()
    mesh.wait(1)
    assert at.purchase("b").running and at.purchase("b").id != old.id
    mesh.carry("ab", 10_000)
    mesh.wait(2)
    assert len(at.sent(Ask)) == 2 and not at.world.buying.missed
