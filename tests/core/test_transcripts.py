"""Transcripts of a gateway and a client, with the core alone: how a contract is agreed, renewed, and ends."""

from __future__ import annotations

import logging
from ipaddress import ip_address, ip_network

import pytest
from playbook import MSAT_PER_KB, Sim, account, settings, states, tell

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.contract import MOVES, IllegalMove, State
from ngp.core.kernel import Hint, HintKind, Verdict
from ngp.core.messages import Accept, Ask, Cancel, Hello, Propose, Reject, RejectReason
from ngp.core.settings import PriceRule
from ngp.daemon import checkup

HOST = "198.51.100.1"
buyer = settings(sells=False)


def test_first_packet_is_held_agreed_released_and_charged() -> None:
    sim = Sim()
    sim.up(HOST, 100)
    assert sim.passed == 0 and len(sim.gateway.held) == 1
    sim.run(0.1)
    assert (sim.passed, sim.gateway.held) == (100, {})
    assert [type(m) for m in (*sim.sent(sim.gateway, Propose), *sim.accepts)] == [Propose, Accept]
    sim.run(1)
    assert account(sim).charged_msat == 1
    assert states(sim) == [("active", "")]


def test_price_is_found_between_seller_and_buyer() -> None:
    seller = settings(sell_msat_per_gib=8 * MSAT_PER_KB, sell_min_msat_per_gib=4 * MSAT_PER_KB)
    sim = Sim(seller, settings(sells=False, buy_msat_per_gib=3 * MSAT_PER_KB, buy_max_msat_per_gib=5 * MSAT_PER_KB))
    sim.up(HOST)
    sim.run(1)
    price = sim.contracts(sim.gateway)[0].prices[0][1]
    assert 4 * MSAT_PER_KB <= price <= 5 * MSAT_PER_KB
    assert 1 < len(sim.sent(sim.gateway, Propose)) <= 4


def test_a_price_that_is_too_high_ends_after_a_few_rounds_and_the_refusal_is_remembered() -> None:
    seller = settings(sell_msat_per_gib=8 * MSAT_PER_KB, sell_min_msat_per_gib=6 * MSAT_PER_KB)
    sim = Sim(seller, settings(sells=False, buy_msat_per_gib=1 * MSAT_PER_KB))
    sim.up(HOST)
    sim.run(1)
    assert sim.refusals == [Verdict.PROHIBIT]
    proposed = len(sim.sent(sim.gateway, Propose))
    assert proposed <= 4
    for _ in range(20):
        sim.up(HOST)
        sim.run(0.1)
    assert len(sim.sent(sim.gateway, Propose)) == proposed  # dropped in the kernel
    sim.run(40)
    assert not sim.gateway.world.contracts and not sim.gateway.kernel.slots


@pytest.mark.parametrize(("most", "agreed"), [(8, True), (7, False)])
def test_a_price_that_cannot_fall_is_taken_or_left_at_once(most: int, agreed: bool) -> None:
    seller = settings(sell_msat_per_gib=8 * MSAT_PER_KB, sell_min_msat_per_gib=8 * MSAT_PER_KB)
    buyer = settings(sells=False, buy_msat_per_gib=1 * MSAT_PER_KB, buy_max_msat_per_gib=most * MSAT_PER_KB)
    sim = Sim(seller, buyer)
    sim.up(HOST)
    sim.run(1)
    assert len(sim.sent(sim.gateway, Propose)) == 1
    assert [said.price_msat_per_gib for said in sim.sent(sim.client, Accept)] == [8 * MSAT_PER_KB] * agreed


def test_a_buyer_knows_why_it_got_no_contract_until_it_gets_one() -> None:
    cheap = settings(sells=False, buy_msat_per_gib=1 * MSAT_PER_KB, buy_max_msat_per_gib=1 * MSAT_PER_KB)
    sim = Sim(client=cheap)
    (gateway,) = sim.client.world.peers.by_link.values()
    sim.up(HOST)
    sim.run(1)
    assert gateway.why_not_bought == f"{HOST}/32: 5 msat/kB is above BUY_PRICE_MAX 1 msat/kB"
    (line,) = checkup.neighbours(sim.client.world, [gateway.link[0]])
    assert line.ok and gateway.why_not_bought in line.found and line.remedy
    sim.happen(sim.client, ev.SettingsChanged(settings(sells=False)))
    sim.run(1)
    assert states(sim) == [("active", "")] and not gateway.why_not_bought
    sim.happen(sim.gateway, ev.BlockNeighbour(sim.client.identity, True))
    told = [effect for _ in range(2) for effect in tell(sim, sim.client, Reject(b"", RejectReason.BLOCKED))]
    assert gateway.why_not_bought == "its operator blocks us (its answer: blocked)"
    assert len([one for one in told if isinstance(one, fx.Log) and "sells us nothing now" in one.text]) == 1
    there = ip_network("203.0.113.0/24")
    effects = tell(sim, sim.gateway, Ask(there, 0, 0))
    refusal = Reject(b"", RejectReason.BLOCKED, destination=there)
    assert [one.message for one in effects if isinstance(one, fx.Send)] == [refusal]


@pytest.mark.parametrize("who", ["gateway", "client"])
def test_a_refusal_is_forgotten_when_either_side_reloads_its_prices(who: str) -> None:
    sim = Sim(settings(sell_msat_per_gib=7 * MSAT_PER_KB, sell_min_msat_per_gib=7 * MSAT_PER_KB), buyer)
    sim.up(HOST)
    sim.run(0.1)
    assert sim.refusals == [Verdict.PROHIBIT]
    told = [effect.text for node in (sim.client, sim.gateway) for effect in node.log if isinstance(effect, fx.Log)]
    assert any(text.endswith("7 msat/kB is above BUY_PRICE_MAX 5 msat/kB") for text in told)
    assert any("at 7 msat/kB: too expensive" in text and "SELL_PRICE_MIN" in text for text in told)
    if who == "gateway":
        sim.happen(sim.gateway, ev.SettingsChanged(settings()))
    else:
        dearer = settings(sells=False, buy_max_msat_per_gib=8 * MSAT_PER_KB, buy_msat_per_gib=8 * MSAT_PER_KB)
        sim.happen(sim.client, ev.SettingsChanged(dearer))
    sim.run(0.1)
    sim.up(HOST)
    sim.run(0.1)
    assert sim.passed == 1000


def test_a_reload_asks_again_only_for_what_was_declined_lately() -> None:
    sim = Sim(settings(sell_msat_per_gib=7 * MSAT_PER_KB, sell_min_msat_per_gib=7 * MSAT_PER_KB), buyer)
    sim.up(HOST)
    sim.run(40)
    sim.happen(sim.client, ev.SettingsChanged(settings(sells=False, buy_max_msat_per_gib=8 * MSAT_PER_KB)))
    assert not sim.sent(sim.client, Ask) and not sim.client.world.buying.declined


def test_a_negotiation_with_a_client_that_never_agrees_ends() -> None:
    sim = Sim(settings(sell_min_msat_per_gib=0))
    sim.silenced = {Accept, Reject}
    sim.up(HOST)
    contract = next(iter(sim.gateway.world.contracts))
    for counter in range(300):
        tell(sim, sim.gateway, Reject(contract, RejectReason.PRICE, counter))
    assert len(sim.sent(sim.gateway, Propose)) <= 4


def test_unanswered_quote_lapses_and_its_packets_are_dropped() -> None:
    sim = Sim()
    sim.silenced = {Accept}
    sim.up(HOST)
    sim.up(HOST)
    sim.run(11)
    assert sim.refusals == [Verdict.DROP, Verdict.DROP] and not sim.gateway.held
    sim.run(10)
    assert not sim.gateway.world.contracts


def test_quoted_price_holds_over_a_reload() -> None:
    sim = Sim()
    sim.silenced = {Accept}
    sim.up(HOST)
    proposed = sim.sent(sim.gateway, Propose)[0]
    assert isinstance(proposed, Propose)
    sim.happen(sim.gateway, ev.SettingsChanged(settings(sell_msat_per_gib=9 * MSAT_PER_KB)))
    tell(sim, sim.gateway, Accept(proposed.contract, proposed.price_msat_per_gib, proposed.data_limit_bytes))
    assert sim.contracts(sim.gateway)[0].prices == ((0, 5 * MSAT_PER_KB),)


def test_ask_before_sending() -> None:
    sim = Sim()
    tell(sim, sim.gateway, Ask(ip_network("203.0.113.0/24"), 0, 0))
    sim.run(0.1)
    sim.up("203.0.113.9")
    assert sim.passed == 1000


def _unbought(sim: Sim, address: str) -> list[fx.Effect]:
    """Have the client's kernel say that it sends something unbought to the gateway."""
    hint = Hint(HintKind.UNBOUGHT, b"", sim.number(sim.client), ip_address(address))
    return sim.client.gatekeeper.step(ev.Hinted((hint,)), sim.clock())


def test_what_the_server_takes_for_a_return_is_asked_for_and_bought() -> None:
    sim = Sim()
    sim.happen(sim.client, ev.Hinted((Hint(HintKind.UNBOUGHT, b"", sim.number(sim.client), ip_address(HOST)),)))
    sim.run(0.1)
    (bought,) = sim.client.world.contracts.values()
    assert str(bought.destination) == str(ip_network(HOST))
    assert not _unbought(sim, HOST), "it is bought now"


def test_traffic_through_us_makes_us_ask_only_a_few_times_a_second() -> None:
    sim = Sim()
    said = [effect for last in range(100) for effect in _unbought(sim, f"203.0.113.{last}")]
    assert len([effect for effect in said if isinstance(effect, fx.Send)]) == 32
    sim.run(1.1)
    assert _unbought(sim, "203.0.113.200")


def test_a_wide_prefix_costs_as_much_as_its_most_expensive_part() -> None:
    dear = PriceRule(ip_network("203.0.113.0/24"), 50 * MSAT_PER_KB, None, None, None, None)
    sim = Sim(settings(prices=(dear,)))
    effects = tell(sim, sim.gateway, Ask(ip_network("0.0.0.0/0"), 0, 0))
    (proposed,) = [e.message for e in effects if isinstance(e, fx.Send)]
    assert isinstance(proposed, Propose) and proposed.price_msat_per_gib == 50 * MSAT_PER_KB


def test_nobody_buys_what_it_sells_to_the_same_neighbour_unless_the_route_has_changed() -> None:
    sim = Sim()
    sim.flow(HOST, 10_000, 2)
    proposal = Propose(b"l" * 16, ip_network(HOST), MSAT_PER_KB, 100_000, 60, 10, 0, 1)

    def answer() -> object:
        (sent,) = [e.message for e in tell(sim, sim.gateway, proposal) if isinstance(e, fx.Send)]
        return sent

    assert answer() == Reject(proposal.contract, RejectReason.NOT_BUYING)
    sim.run(15)
    assert isinstance(answer(), Accept)


@pytest.mark.parametrize(
    ("destination", "sends_to_peer", "bought"),
    [
        (HOST, True, True),
        (HOST, False, False),
        ("198.51.100.0/24", True, True),
        ("0.0.0.0/0", True, False),
        ("128.0.0.0/1", True, False),
        ("2000::/3", True, False),
    ],
)
def test_only_that_is_bought_whose_traffic_goes_through_its_seller(
    destination: str, sends_to_peer: bool, bought: bool
) -> None:
    sim = Sim()
    sim.client.sends_to_peer = sends_to_peer
    said = list[fx.Effect]()
    for name in (b"1" * 16, b"2" * 16):
        said += tell(sim, sim.client, Propose(name, ip_network(destination), MSAT_PER_KB, 100_000, 60, 10, 0, 1))
    answers = [type(each.message) for each in said if isinstance(each, fx.Send)]
    assert answers == [Accept if bought else Reject] * 2
    lines = [each.text for each in said if isinstance(each, fx.Log) and "declined" in each.text]
    assert len(lines) == (not bought), "once an hour"
    assert bool(sim.client.world.buying.declined) == (sends_to_peer and not bought), "others can't crowd these out"
    (gateway,) = sim.client.world.peers.by_link.values()
    assert ("that is a default route or a part of one" in gateway.why_not_bought) == (sends_to_peer and not bought)


def test_where_only_a_part_of_what_is_sold_is_routed_that_part_is_bought_alone() -> None:
    network = PriceRule(ip_network("198.51.100.0/24"), 2 * MSAT_PER_KB, None, None, None, None)
    sim = Sim(settings(prices=(network,)))
    for number in (1, 2):
        sim.client.sends_to_host = f"198.51.100.{number}"
        sim.up(sim.client.sends_to_host)
        sim.run(1)
        sim.flow(sim.client.sends_to_host, 10_000, 1)
    sold = {str(one.destination): one.prices for one in sim.contracts(sim.gateway) if one.state == "active"}
    assert sold == {f"198.51.100.{number}/32": ((0, 2 * MSAT_PER_KB),) for number in (1, 2)}


def test_what_a_server_sells_already_it_may_propose_again_while_our_meter_counts_what_we_send() -> None:
    sim = Sim()
    sim.flow(HOST, 10_000, 2)
    sim.client.sends_to_peer = False  # the contract covers our packets, so the kernel doesn't note them any more
    again = Propose(b"a" * 16, ip_network(HOST), MSAT_PER_KB, 100_000, 60, 10, 0, 1)
    (answer,) = [each.message for each in tell(sim, sim.client, again) if isinstance(each, fx.Send)]
    assert isinstance(answer, Accept)


def test_two_payment_networks_are_named_once_on_both_sides() -> None:
    sim = Sim(client_network="regtest")
    sim.flow(HOST, 100_000, 2)
    sim.run(100)  # several hellos
    assert not sim.contracts(sim.gateway) and sim.passed == 0
    for node, theirs, ours in ((sim.gateway, "regtest", "sandbox"), (sim.client, "sandbox", "regtest")):
        told = [one for one in node.log if isinstance(one, fx.Log) and "network" in one.text]
        assert [one.level for one in told] == [logging.WARNING], node.name
        assert f"it pays on network {theirs!r}, we on {ours!r}" in told[0].text
        assert "PAYMENT_INTERFACE" in told[0].text


def test_a_neighbour_that_changes_its_network_all_the_time_fills_no_log() -> None:
    sim = Sim()
    for number in range(100):
        tell(sim, sim.gateway, Hello(f"net{number}", True, True, (), "ngp", False, b""))
    assert sum("network" in one.text for one in sim.gateway.log if isinstance(one, fx.Log)) == 1


def test_renewal_by_data_lets_no_packet_wait_and_takes_the_new_price_from_an_offset() -> None:
    small = {"contract_data_bytes": 1 << 20, "data_renewal_bytes": 256 << 10}
    high = 6 * MSAT_PER_KB
    sim = Sim(settings(**small), settings(sells=False, buy_max_msat_per_gib=high, **small))
    sim.flow(HOST, 500_000, 1)
    sim.happen(sim.gateway, ev.SettingsChanged(settings(sell_msat_per_gib=high, sell_min_msat_per_gib=high, **small)))
    sim.flow(HOST, 500_000, 7)
    sim.run(1)
    ours, theirs = sim.contracts(sim.gateway)[0], sim.contracts(sim.client)[0]
    assert len(sim.contracts(sim.gateway)) == 1 and ours.data_limit_bytes > 4 << 20
    assert ours.prices == theirs.prices == ((0, 5 * MSAT_PER_KB), (1 << 20, high))
    assert sim.passed >= 3_990_000


def test_renewal_by_time_only_while_it_carries() -> None:
    short = {"contract_time_s": 20}
    sim = Sim(settings(**short), settings(sells=False, **short))
    sim.flow(HOST, 20_000, 50)
    assert len(sim.contracts(sim.gateway)) == 1
    sim.run(60)
    assert states(sim) == [("closed", "expired")]
    assert [c.state for c in sim.contracts(sim.client)] == ["closed"]


def test_without_renewal_a_destination_is_bought_once_until_it_was_idle() -> None:
    once = {"contract_data_bytes": 100_000, "contract_time_s": 30, "data_renewal_bytes": 0, "time_renewal_s": 0}
    sim = Sim(settings(**once), settings(sells=False, **once))
    sim.flow(HOST, 50_000, 10)
    assert sim.passed == 100_000
    assert ("closed", "exhausted") in states(sim)
    sim.flow(HOST, 10_000, 40)
    assert sim.passed == 100_000
    sim.run(70)
    sim.up(HOST)
    sim.run(1)
    assert sim.passed == 101_000


def test_expiry_cuts_and_the_next_packet_asks_again() -> None:
    short = {"contract_time_s": 5, "time_renewal_s": 0}
    sim = Sim(settings(**short), settings(sells=False, **short))
    sim.up(HOST)
    sim.run(5.2)
    assert states(sim) == [("closed", "expired")]
    sim.up(HOST)
    sim.run(0.2)
    assert sim.passed == 2000


def test_the_data_limit_is_used_to_the_last_byte() -> None:
    once = {"contract_data_bytes": 300_000, "data_renewal_bytes": 0, "time_renewal_s": 0}
    sim = Sim(settings(**once), settings(sells=False, **once))
    sim.flow(HOST, 100_000, 5, size=100)
    sim.run(5)
    assert sim.passed == 300_000 and states(sim) == [("closed", "exhausted")]
    assert account(sim).charged_msat == -(-300_000 * 5 // 1024)


def test_a_contract_that_its_client_does_not_know_ends_even_during_a_renewal() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 1)
    (contract,) = sim.gateway.world.contracts.values()
    tell(sim, sim.gateway, Ask(contract.destination.prefix, 0, 0, contract.id))
    assert contract.state is State.RENEWING
    tell(sim, sim.gateway, Cancel(contract.id, "cancelled"))
    sim.run(0.1)
    assert states(sim) == [("closed", "cancelled")]


def test_a_nested_destination_closed_falls_back_to_the_wider_one() -> None:
    sim = Sim()
    for prefix in ("203.0.113.0/24", "203.0.113.9/32"):
        tell(sim, sim.gateway, Ask(ip_network(prefix), 0, 0))
        sim.run(0.1)
    narrow = next(c for c in sim.gateway.world.contracts.values() if c.destination.bits == 32)
    tell(sim, sim.gateway, Cancel(narrow.id, "cancelled"))
    sim.run(0.1)
    sim.up("203.0.113.9")
    assert sim.passed == 1000
    (wide,) = sim.gateway.world.contracts.values()
    assert wide.destination.bits == 24


def test_illegal_moves_change_nothing() -> None:
    sim = Sim()
    sim.up(HOST)
    contract = next(iter(sim.gateway.world.contracts.values()))
    for state in State:
        for target in State:
            contract.state = state
            if target in MOVES[state]:
                continue
            with pytest.raises(IllegalMove):
                contract.move(target)
            assert contract.state is state
