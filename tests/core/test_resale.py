"""Resale: a sale rests on a purchase, and never outlives it or promises more than it carries."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from mesh import HOST, MB, PLENTY, Mesh, promised
from playbook import MSAT_PER_KB, settings

from ngp.core import events as ev
from ngp.core.contract import State
from ngp.core.kernel import HeldPacket, Onward, Reading, Router, Verdict
from ngp.core.messages import Accept, Ask, Cancel, Hello, Propose, Reject, RejectReason, mark


def test_a_first_packet_over_four_nodes_buys_at_each_hop_and_each_takes_its_margin() -> None:
    mesh = Mesh("abcde")
    mesh.packet("a", "b")
    assert mesh["b"].verdicts == [Verdict.REPEAT]
    price = 5 * MSAT_PER_KB
    for client, server in ("de", "cd", "bc", "ab"):
        sale, purchase = mesh[server].sale(client), mesh[client].purchase(server)
        assert sale.id == purchase.id and sale.running and purchase.running
        assert sale.price_msat_per_gib == purchase.price_msat_per_gib == price
        assert sale.path == purchase.path and len(sale.path) == "edcb".index(server) + 1
        price = -(-price * 11 // 10)
    assert mesh["b"].sale("a").rests_on == mesh["b"].purchase("c").id
    assert not mesh["e"].sale("d").rests_on
    assert [len(mesh[name].sent(Ask)) for name in "abcde"] == [0, 1, 1, 1, 0]
    assert [ask.path for ask in mesh["d"].sent(Ask)] == [tuple(mark(mesh[name].identity) for name in "abcd")]  # type: ignore[attr-defined]
    waits = [ask.wait_ms for name in "bcd" for ask in mesh[name].sent(Ask)]  # type: ignore[attr-defined]
    assert waits == sorted(waits, reverse=True) and len(set(waits)) == 3 and min(waits) > 0


def test_questions_alone_make_nobody_buy() -> None:
    mesh = Mesh("abc")
    mesh.lost = {Accept}
    mesh.packet("a", "b")
    mesh["b"].step(
        ev.MessageReceived(mesh["a"].identity, mesh["b"].link("a"), 1, Ask(ip_network("203.0.113.7/32"), 0, 0), 1 << 40)
    )
    mesh.settle()
    assert not mesh["b"].sent(Accept)
    mesh.wait(30)
    assert not mesh["b"].sent(Accept)
    assert not mesh["c"].world.contracts, "a quote that nobody uses is forgotten"
    assert not mesh["b"].world.awaited and not mesh["b"].world.resting


def test_a_quote_that_comes_when_nobody_waits_any_more_is_kept_and_nothing_is_bought() -> None:
    mesh = Mesh("abc")
    mesh.lost = {Propose}
    mesh.packet("a", "b")
    mesh.wait(3.1)
    at, late = mesh["b"], mesh["c"].sent(Propose)[0]
    assert isinstance(late, Propose) and not at.world.awaited
    at.step(ev.MessageReceived(mesh["c"].identity, at.link("c"), 1, late, 1 << 40, None, late.destination))
    assert not at.sent(Accept)
    mesh.lost = set()
    mesh.add_client("x", "b")
    mesh.packet("x", "b")
    assert at.sale("x").running and len(at.sent(Ask)) == 1


def test_a_household_gets_through_though_a_client_asked_while_its_packet_waited_for_a_quote() -> None:
    mesh = Mesh("abcd")
    mesh.lost = {Ask}
    mesh.packet("b", "c")
    ask = mesh["c"].sent(Ask)[0]
    mesh.lost = {Accept}
    mesh.packet("a", "b")
    at = mesh["d"]
    at.step(ev.MessageReceived(mesh["c"].identity, at.link("c"), 1, ask, 1 << 40, onward=at.onward))
    mesh.settle()
    assert mesh["b"].world.buying.quotes and not mesh["b"].sent(Accept)
    mesh.lost = set()
    mesh.wait(0.2)
    assert mesh["c"].verdicts == [Verdict.REPEAT]


def test_a_renewal_that_overtakes_the_accept_does_not_end_the_contract() -> None:
    mesh = Mesh("abc")
    mesh.lost = {Accept}
    mesh.packet("b", "c")
    purchase, at = mesh["b"].purchase("c"), mesh["c"]
    mesh.lost = set()
    mesh.count("b", purchase.id, 90 * MB)
    mesh.settle()
    assert mesh["b"].sent(Ask) and at.sent(Reject)
    at.step(ev.MessageReceived(mesh["b"].identity, at.link("b"), 1, mesh["b"].sent(Accept)[0], 1 << 40))
    mesh.settle()
    assert purchase.running and at.sale("b").running


def test_nothing_is_bought_for_a_client_without_money_or_credit() -> None:
    mesh = Mesh("abc", b=settings(**{**PLENTY, "grace_data_bytes": 0}))
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").state is State.ACCEPTED and not mesh["b"].verdicts
    assert not mesh["b"].sent(Accept) and not mesh["c"].sale("b").running


def test_a_quote_serves_the_next_client_as_long_as_it_is_valid() -> None:
    mesh = Mesh("abc")
    mesh.lost = {Accept}
    mesh.packet("a", "b")
    mesh.wait(3)
    mesh["b"].world.contracts.clear()
    mesh["b"].world.sales = type(mesh["b"].world.sales)()
    mesh.packet("a", "b")
    assert len(mesh["b"].sent(Ask)) == 1
    last = mesh["b"].sent(Propose)[-1]
    assert isinstance(last, Propose) and 5 <= last.quote_valid_s <= 7, "no longer than the quote that it rests on"
    mesh.wait(9)
    mesh["b"].world.contracts.clear()
    mesh["b"].world.sales = type(mesh["b"].world.sales)()
    mesh.packet("a", "b")
    assert len(mesh["b"].sent(Ask)) == 2


def test_what_our_own_household_buys_is_sold_on_without_another_question() -> None:
    mesh = Mesh("abc")
    mesh.packet("b", "c")
    assert mesh["b"].purchase("c").running
    mesh.packet("a", "b")
    assert not mesh["b"].sent(Ask)[1:] and mesh["b"].sale("a").rests_on == mesh["b"].purchase("c").id


def test_a_household_gets_through_though_a_client_only_asked() -> None:
    mesh = Mesh("abc")
    mesh.lost = {Accept}
    mesh.packet("a", "b")
    mesh.lost = set()
    mesh.packet("b", "c")
    mesh.wait(0.2)
    assert mesh["b"].purchase("c").running and Verdict.REPEAT in mesh["c"].verdicts


# --- loops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["ab", "abc", "abcdef"])
def test_a_ring_is_cut(names: str) -> None:
    mesh = Mesh(names, ring=len(names) > 2)
    if len(names) == 2:
        mesh["a"].route, mesh["b"].route = "b", "a"
    mesh.packet(names[-1], names[0])
    assert all(not one.sent(Accept) for one in mesh.routers.values())
    assert mesh[names[0]].verdicts == [Verdict.PROHIBIT]
    assert sum(len(one.sent(Ask)) for one in mesh.routers.values()) <= len(names)
    reasons = {said.reason for one in mesh.routers.values() for said in one.sent(Reject)}  # type: ignore[attr-defined]
    assert reasons <= {RejectReason.LOOP, RejectReason.UPSTREAM}


def test_a_ring_of_contracts_that_run_already_is_cut_by_their_paths() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    mesh.introduce("c", "b")
    mesh.introduce("c", "a")
    mesh["c"].route = "a"
    mesh["a"].route = "b"
    mesh.packet("c", "a")
    assert mesh["a"].verdicts == [Verdict.PROHIBIT]


def test_a_question_with_a_forged_path_does_not_spoil_anothers() -> None:
    mesh = Mesh("abcd")
    for name in "xy":
        mesh.add(name, "b")
    at = mesh["b"]
    for number, name in enumerate("xy"):
        forged = Ask(ip_network(f"{HOST}/32"), 0, 0, path=(mark(mesh["d"].identity),))
        link = at.link(name)
        at.step(ev.MessageReceived(mesh[name].identity, link, 1, forged, (1 << 40) + number, onward=at.onward))
    mesh.packet("a", "b")
    assert at.verdicts == [Verdict.REPEAT] and at.sale("a").running
    assert [said.reason for said in at.sent(Reject)] == [RejectReason.UPSTREAM] * 2  # type: ignore[attr-defined]


def test_a_path_of_more_hops_than_allowed_is_refused() -> None:
    mesh = Mesh("abcdefghijklmnopqrstu")
    mesh.packet("a", "b")
    assert mesh["b"].verdicts == [Verdict.PROHIBIT]
    assert all(not one.sent(Accept) for one in mesh.routers.values())


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_second_client_gets_its_share_after_the_purchase_was_renewed() -> None:
    mesh = Mesh("abc")
    mesh.add_client("x", "b")
    mesh.packet("a", "b")
    mesh.packet("x", "b")
    assert mesh["b"].sale("x").running and mesh["b"].sale("a").running
    assert mesh["b"].sale("a").rests_on == mesh["b"].sale("x").rests_on == mesh["b"].purchase("c").id
    assert mesh["b"].purchase("c").data_limit_bytes == 200 * MB
    assert promised(mesh, "b")


@pytest.mark.parametrize("at_once", [True, False])
def test_many_clients_of_one_purchase_get_their_shares_one_after_the_other(at_once: bool) -> None:
    mesh = Mesh("abc")
    for name in "uvwxyz":
        mesh.add_client(name, "b")
    at = mesh["b"]
    for number, name in enumerate("auvwxyz"):
        at.step(HeldPacket(100 + number, at.link(name), ip_address(HOST), at.onward))
        if not at_once:
            mesh.settle()
    mesh.settle()
    assert all(at.sale(name).running for name in "auvwxyz") and at.verdicts == [Verdict.REPEAT] * 7
    assert promised(mesh, "b") and at.purchase("c").data_limit_bytes == 700 * MB


def test_renewals_of_a_sale_follow_those_of_its_purchase_through_all_hops() -> None:
    mesh = Mesh("abcde")
    mesh.packet("a", "b")
    for _ in range(60):
        mesh.carry("abcde", 5 * MB)
        mesh.wait(0.2)
        assert all(promised(mesh, name) for name in "bcd")
    used = {name: mesh[name].sale(client).used_bytes for client, name in ("ab", "bc", "cd", "de")}
    assert set(used.values()) == {300 * MB}
    assert mesh["b"].sale("a").running and mesh["b"].sale("a").data_limit_bytes > 300 * MB
    earned = [mesh[name].sale(client).charged_msat for client, name in ("ab", "bc", "cd", "de")]
    assert earned == sorted(earned, reverse=True) and len(set(earned)) == 4
    for client, server in ("ab", "bc", "cd", "de"):
        assert mesh[client].purchase(server).charged_msat == mesh[server].sale(client).charged_msat


def test_where_the_purchase_ends_the_sale_ends_and_the_client_is_told() -> None:
    mesh = Mesh("abcd")
    mesh.packet("a", "b")
    mesh["d"].step(ev.BlockNeighbour(mesh["c"].identity, True))
    mesh.settle()
    assert not any(contract.running for one in mesh.routers.values() for contract in one.world.contracts.values())
    assert [said.reason for said in mesh["b"].sent(Cancel)] == ["upstream"]  # type: ignore[attr-defined]


def test_what_goes_on_to_a_neighbour_that_we_block_is_not_sold() -> None:
    mesh = Mesh("abc")
    mesh["b"].step(ev.BlockNeighbour(mesh["c"].identity, True))
    mesh.packet("a", "b")
    assert mesh["b"].verdicts == [Verdict.PROHIBIT] and not mesh["b"].sent(Propose) and not mesh["b"].sent(Ask)


def test_our_own_traffic_does_not_use_up_what_was_sold() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    purchase = mesh["b"].purchase("c")
    mesh.count("b", purchase.id, MB)
    mesh.settle()
    assert purchase.data_limit_bytes > 100 * MB and promised(mesh, "b")


def test_a_purchase_that_is_read_with_its_sale_is_not_renewed_for_what_the_sale_carried() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    at, purchase, sale = mesh["b"], mesh["b"].purchase("c"), mesh["b"].sale("a")
    both = at.world.with_sales([purchase.id])
    assert both == [purchase.id, sale.id]
    at.step(ev.UsageRead(tuple(Reading(one, 84, 0) for one in both)))
    mesh.settle()
    assert purchase.used_bytes == sale.used_bytes == 84
    assert purchase.data_limit_bytes == sale.data_limit_bytes == 100 * MB, "enough for the sale, and nobody else asks"


def test_only_the_latest_sale_ends_if_that_makes_room_for_the_others() -> None:
    mesh = Mesh("abc")
    mesh.add_client("x", "b")
    mesh.packet("a", "b")
    mesh.packet("x", "b")
    first, latest = mesh["b"].sale("a"), mesh["b"].sale("x")
    dear = settings(**PLENTY, sell_msat_per_gib=1 << 41, sell_min_msat_per_gib=1 << 41)
    mesh["c"].step(ev.SettingsChanged(dear))
    mesh.count("b", mesh["b"].purchase("c").id, MB)
    mesh.settle()
    assert first.running and not latest.running and promised(mesh, "b")


def test_sales_end_if_our_own_traffic_used_what_was_sold_and_nothing_more_is_to_be_had() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    dear = settings(**PLENTY, sell_msat_per_gib=1 << 41, sell_min_msat_per_gib=1 << 41)
    mesh["c"].step(ev.SettingsChanged(dear))
    mesh.count("b", mesh["b"].purchase("c").id, MB)
    mesh.settle()
    mesh.wait(0.1)
    assert not mesh["b"].world.resting, "the sale is over"
    assert mesh["b"].purchase("c").running


def test_a_restart_knows_what_its_sales_rest_on() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    mesh.carry("abc", MB)
    before = mesh["b"].sale("a")
    mesh["b"].reboot()
    mesh.introduce("b", "c")
    mesh.introduce("b", "a")
    after = mesh["b"].sale("a")
    assert after is not before and after.running
    assert (after.rests_on, after.path) == (mesh["b"].purchase("c").id, before.path)
    assert promised(mesh, "b") and mesh["b"].world.resting[after.rests_on] == {after.id: after}
    mesh["c"].step(ev.BlockNeighbour(mesh["b"].identity, True))
    mesh.settle()
    assert not after.running


def test_a_restart_ends_a_sale_for_which_nothing_was_bought_yet() -> None:
    mesh = Mesh("abc", b=settings(**{**PLENTY, "grace_data_bytes": 0}))
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").state is State.ACCEPTED
    mesh["b"].reboot()
    assert mesh["b"].sale("a").state is State.HALTING and mesh["b"].sale("a").reason == "upstream"


def test_an_upstream_that_sells_little_at_a_time_is_sold_on_in_its_portions() -> None:
    mesh = Mesh("abc", c=settings(**PLENTY, contract_data_bytes=20_000))
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").running and mesh["b"].sale("a").data_limit_bytes == 20_000


def test_a_sale_never_outlives_a_purchase_that_began_earlier() -> None:
    mesh = Mesh("abc")
    mesh.packet("b", "c")
    mesh.wait(50)
    mesh.lost = {Accept}
    mesh.packet("a", "b")
    mesh.wait(5)
    mesh.lost = set()
    offer = mesh["b"].sent(Propose)[-1]
    assert isinstance(offer, Propose)
    accept = Accept(offer.contract, offer.price_msat_per_gib, offer.data_limit_bytes)
    mesh["b"].step(ev.MessageReceived(mesh["a"].identity, mesh["b"].link("a"), 1, accept, 1 << 40))
    assert mesh["b"].sale("a").running and promised(mesh, "b")


def test_a_question_that_nobody_answers_is_asked_again_for_the_next_client() -> None:
    mesh = Mesh("abc")
    mesh.add_client("x", "b")
    mesh.lost = {Ask}
    mesh.packet("a", "b")
    mesh.wait(3.1)
    assert mesh["b"].verdicts == [Verdict.DROP] and not mesh["b"].world.awaited
    mesh.lost = set()
    mesh.packet("x", "b")
    assert mesh["b"].sale("x").running


def test_questions_on_behalf_of_one_neighbour_are_limited() -> None:
    mesh = Mesh("abc")
    at = mesh["b"]
    for number in range(1000):
        ask = Ask(ip_network(0x0B000000 + number), 0, 0)
        at.step(ev.MessageReceived(mesh["a"].identity, at.link("a"), 1, ask, (1 << 40) + number, onward=at.onward))
    assert len(at.sent(Ask)) == 256
    mesh.settle()
    assert len(mesh["c"].world.contracts) <= 256


def test_questions_on_behalf_of_all_newcomers_on_an_interface_are_limited() -> None:
    mesh = Mesh("abc")
    mesh.add("x", "b")
    at, link = mesh["b"], mesh["b"].link("x")
    mesh.packet("a", "b")
    at.world.clients[mesh["a"].identity].paid_msat = 1000
    before = len(at.sent(Ask))
    for key in range(20):
        link = (link[0], bytes([key]) * 6)
        hello = Hello("sandbox", True, True, (), "ngp", False)
        at.step(ev.MessageReceived(bytes([key]) * 32, link, 1, hello, (1 << 41) + key))
        for number in range(100):
            ask = Ask(ip_network(0x0B000000 + 100 * key + number), 0, 0)
            at.step(ev.MessageReceived(bytes([key]) * 32, link, 1, ask, (1 << 40) + number, onward=at.onward))
    assert len(at.sent(Ask)) - before == 1024
    ask = Ask(ip_network("198.51.100.77/32"), 0, 0)
    at.step(ev.MessageReceived(mesh["a"].identity, at.link("a"), 1, ask, 1 << 42, onward=at.onward))
    assert len(at.sent(Ask)) - before == 1025, "who paid has its own"


def test_one_client_of_a_node_in_the_middle_can_not_use_up_the_questions_of_the_others() -> None:
    """All that a node asks for is asked of the next one under its name."""
    mesh = Mesh("abcd")
    mesh.add("x", "b")
    at = mesh["b"]
    for number in range(250):
        ask = Ask(ip_network(0x0B000000 + number), 0, 0)
        at.step(ev.MessageReceived(mesh["x"].identity, at.link("x"), 1, ask, (1 << 40) + number, onward=at.onward))
    mesh.settle()
    assert len(mesh["c"].sent(Ask)) == 250
    mesh.wait(0.05)
    for number in range(250, 300):
        ask = Ask(ip_network(0x0B000000 + number), 0, 0)
        at.step(ev.MessageReceived(mesh["x"].identity, at.link("x"), 1, ask, (1 << 40) + number, onward=at.onward))
    mesh.settle()
    mesh.packet("b", "c")
    assert mesh["c"].sale("b").running
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").running


# --- the next router --------------------------------------------------------------------------------------------------


def test_a_packet_whose_next_router_has_no_known_address_yet_is_dropped_and_nothing_is_sold() -> None:
    mesh = Mesh("abc")
    at = mesh["b"]
    packet = HeldPacket(
        99,
        at.link("a"),
        ip_address(HOST),
        Onward(ip_network("0.0.0.0/0"), Router("to-c", None, ip_address("192.0.2.1"))),
    )
    at.step(packet)
    assert at.verdicts == [Verdict.DROP] and not at.world.contracts


def test_a_router_whose_link_address_is_not_known_yet_is_known_by_its_own_address_unless_two_claim_it() -> None:
    mesh, address = Mesh("abc"), ip_address("192.0.2.1")
    at = mesh["b"]
    at.world.peers.by_link[at.link("c")].addresses = (address,)
    at.step(HeldPacket(98, at.link("a"), ip_address(HOST), Onward(mesh["b"].prefix, Router("to-c", None, address))))
    mesh.settle()
    assert at.verdicts == [Verdict.REPEAT] and at.sale("a").rests_on
    liar = replace(at.world.peers.by_link[at.link("c")], identity=b"L" * 32, link=("to-c", b"liar"))
    at.world.peers.by_link[liar.link] = liar
    there = ip_address("198.51.100.2")
    at.step(HeldPacket(99, at.link("a"), there, Onward(mesh["b"].prefix, Router("to-c", None, address))))
    assert at.verdicts[1:] == [Verdict.DROP]


def test_a_neighbours_own_address_costs_nothing_more() -> None:
    mesh = Mesh("abc")
    mesh["b"].world.peers.by_link[mesh["b"].link("c")].addresses = (ip_address(HOST),)
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").price_msat_per_gib == 5 * MSAT_PER_KB and not mesh["b"].sent(Ask)


def test_after_a_kill_a_sale_knows_again_from_whom_its_traffic_is_bought() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    mesh.kill("b")
    assert mesh["b"].sale("a").seller == mesh["c"].identity


def test_a_network_that_is_not_sold_whole_further_up_is_sold_by_the_address() -> None:
    mesh = Mesh("abc")
    net = ip_network("198.51.100.0/24")
    at = mesh["b"]
    mesh.add("x", "c")
    mesh["c"].route, mesh["c"].prefix = "x", ip_network("198.51.100.0/25")
    at.step(HeldPacket(99, at.link("a"), ip_address(HOST), Onward(net, Router(*at.link("c")))))
    mesh.settle()
    assert [str(ask.destination) for ask in at.sent(Ask)] == [str(net), f"{HOST}/32"]  # type: ignore[attr-defined]
    assert str(at.sale("a").destination) == f"{HOST}/32" and at.verdicts == [Verdict.REPEAT]
