"""Unused contracts: a neighbour that opens and drops contracts without paying is limited, whatever its keys or
addresses; a neighbour that trades may open thousands at once."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from itertools import count, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from playbook import Sim, account, settings
from scripted_neighbour import HELLO, ScriptedNeighbour, host, messages

from ngp import store
from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core import forgetting
from ngp.core.contract import CloseReason, State
from ngp.core.kernel import Reading
from ngp.core.messages import Accept, Ask, Cancel, Propose, Reject, RejectReason, Role
from ngp.core.openings import (
    FORGIVEN_AN_HOUR,
    MOST_OF_STRANGER,
    MOST_OF_STRANGERS,
    MOST_OF_TRADER,
    Openings,
    pools_of,
)
from ngp.core.records import Record
from ngp.core.world import UNUSED_S
from ngp.ports import Ledger

LINES_PER_CONTRACT = 2


def test_accepting_and_cancelling_in_turn_ends_after_a_while() -> None:
    sim = Sim()
    attacker = ScriptedNeighbour(sim, sim.gateway)
    ledger = sim.gateway.ledger
    opened = 0
    for number in range(3 * MOST_OF_STRANGER):
        contract = attacker.buy(host(number))
        opened += contract is not None
        if contract is not None:
            attacker.say(Cancel(contract, "cancelled"))
    assert opened == MOST_OF_STRANGER
    assert len(ledger.contracts) == opened
    assert len(ledger.journal) == LINES_PER_CONTRACT * opened
    effects = attacker.say(Ask(ip_network(host(9999)), 0, 0))
    assert [answer.reason for answer in messages(effects, Reject)] == [RejectReason.BUSY]
    assert not any(isinstance(effect, fx.Persist) for effect in effects)
    assert sim.gateway.world.counters["openings_refused"] > MOST_OF_STRANGER
    attacker.wait(3600)
    assert sum(attacker.buy(host(20_000 + number)) is not None for number in range(2000)) == FORGIVEN_AN_HOUR


def test_the_operator_is_warned_once_in_a_while() -> None:
    sim = Sim()
    attacker = ScriptedNeighbour(sim, sim.gateway)
    told = 0
    for number in range(MOST_OF_STRANGER + 500):
        effects = attacker.say(Ask(ip_network(host(number)), 0, 0))
        for quote in messages(effects, Propose):
            attacker.say(Accept(quote.contract, quote.price_msat_per_gib, quote.data_limit_bytes))
            attacker.say(Cancel(quote.contract, "cancelled"))
        told += sum(isinstance(effect, fx.Log) and "were never used" in effect.text for effect in effects)
    assert told == 1


def test_quotes_saved_up_are_not_worth_more_than_what_may_be_opened() -> None:
    sim = Sim()
    attacker = ScriptedNeighbour(sim, sim.gateway)
    quotes = [
        quote
        for number in range(4000)
        for quote in messages(attacker.say(Ask(ip_network(host(number)), 0, 0)), Propose)
    ]
    assert len(quotes) > MOST_OF_STRANGER
    answers = [attacker.say(Accept(q.contract, q.price_msat_per_gib, q.data_limit_bytes)) for q in quotes]
    refused = [answer for effects in answers for answer in messages(effects, Reject)]
    assert len(quotes) - len(refused) == MOST_OF_STRANGER == len(sim.gateway.ledger.contracts)
    assert {answer.reason for answer in refused} == {RejectReason.BUSY}


def test_proposing_and_cutting_in_turn_ends_after_a_while() -> None:
    sim = Sim()
    attacker = ScriptedNeighbour(sim, sim.client)
    opened = 0
    for number in range(3 * MOST_OF_STRANGER):
        contract = attacker.sell(host(number))
        opened += contract is not None
        if contract is not None:
            attacker.say(Cancel(contract, CloseReason.EXPIRED.value))
    assert opened == MOST_OF_STRANGER == len(sim.client.ledger.contracts)
    assert len(sim.client.ledger.journal) == LINES_PER_CONTRACT * opened


def test_cutting_each_contract_after_our_first_packet_ends_after_a_while() -> None:
    sim = Sim()
    attacker = ScriptedNeighbour(sim, sim.client)
    attacker.carries = 1000
    opened = 0
    for _ in range(3 * MOST_OF_STRANGER):
        contract = attacker.sell("198.51.100.1/32")
        if contract is not None:
            opened += 1
            attacker.use(contract, 1000)
            attacker.say(Cancel(contract, CloseReason.UNPAID.value))
    assert opened == MOST_OF_STRANGER


def test_traffic_that_a_server_sends_us_unasked_does_not_lower_its_count() -> None:
    sim = Sim()
    attacker = ScriptedNeighbour(sim, sim.client)
    for number in range(2 * MOST_OF_STRANGER):
        contract = attacker.sell(host(number))
        if contract is not None:
            attacker.use(contract, 0, 70_000)
    assert len(sim.client.ledger.contracts) <= 2 * MOST_OF_STRANGER


def test_made_up_keys_and_addresses_share_one_bound_and_customers_have_their_own() -> None:
    sim = Sim()
    sim.up("198.51.100.1")
    sim.run(2)
    assert sim.gateway.world.client(sim.client.identity).paid_msat
    opened = 0
    for number in range(3 * MOST_OF_STRANGERS // 4):
        attacker = ScriptedNeighbour(sim, sim.gateway, number.to_bytes(32, "big"), number.to_bytes(6, "big"))
        for turn in range(4):
            contract = attacker.buy(host(4 * number + turn))
            opened += contract is not None
            if contract is not None:
                attacker.say(Cancel(contract, "cancelled"))
    assert opened == MOST_OF_STRANGERS
    before = len(sim.accepts)
    sim.up("198.51.100.2")
    sim.run(0.2)
    assert len(sim.accepts) == before + 1


@pytest.mark.parametrize("role", [Role.SERVER, Role.CLIENT])
def test_a_household_that_trades_opens_thousands_at_once(role: Role) -> None:
    sim = Sim()
    victim = sim.gateway if role is Role.SERVER else sim.client
    household = ScriptedNeighbour(sim, victim)  # an honest one, here
    trade = household.buy if role is Role.SERVER else household.sell
    of_role = victim.world.client if role is Role.SERVER else victim.world.server
    of_role(household.identity).paid_msat = 10**9
    for second in range(4):
        opened = [trade(host(1200 * second + number)) for number in range(1200)]
        sim.now += 1.0
        household.tell(ev.UsageRead(tuple(Reading(contract, 60, 0, 0) for contract in opened if contract)))
        assert all(opened)
    assert "openings_refused" not in victim.world.counters


def test_a_neighbour_that_reached_the_limit_soon_gets_contracts_again_by_trading() -> None:
    sim = Sim()
    sim.up("198.51.100.1")
    sim.run(2)
    world = sim.gateway.world
    openings, pools = world.openings, pools_of(Role.SERVER, sim.client.identity, sim.client.link, True)
    openings.count(pools, sim.now, MOST_OF_TRADER - 1)
    for number in range(300):
        sim.up(host(number)[:-3], 100)
        sim.run(0.6)
    assert openings.level(pools[0], sim.now) < MOST_OF_TRADER - 290


@pytest.mark.parametrize("role", [Role.SERVER, Role.CLIENT])
def test_a_contract_that_nobody_uses_ends_after_an_hour(role: Role) -> None:
    month = settings(contract_time_s=30 * 86_400, sell_msat_per_gib=0, sell_min_msat_per_gib=0)
    sim = Sim(month, month)
    victim = sim.gateway if role is Role.SERVER else sim.client
    attacker = ScriptedNeighbour(sim, victim)
    trade = attacker.buy if role is Role.SERVER else attacker.sell
    idle, used = trade(host(1)), trade(host(2))
    assert idle and used
    attacker.use(used, 1000)
    attacker.wait(UNUSED_S - 60)
    assert victim.world.contracts[idle].running
    attacker.wait(61)
    assert victim.ledger.contracts[idle].reason == CloseReason.EXPIRED
    attacker.carries = 1000
    attacker.wait(3700)
    assert (used in victim.world.contracts) is (role is Role.SERVER)  # those that the attacker sells last an hour


def test_idle_renewals_count_as_openings() -> None:
    sim = Sim(settings(contract_time_s=86_400))
    attacker = ScriptedNeighbour(sim, sim.gateway)
    contracts = [attacker.buy(host(number)) for number in range(100)]
    for _ in range(40):
        for contract in filter(None, contracts):
            for quote in messages(attacker.say(Ask(ip_network(host(0)), 0, 0, contract)), Propose):
                attacker.say(Accept(contract, quote.price_msat_per_gib, quote.data_limit_bytes))
        attacker.sim.now += 4
    assert len(sim.gateway.ledger.journal) <= MOST_OF_STRANGER + 100


# --- any hostile buyer and seller -------------------------------------------------------------------------------------

TURNS = st.lists(
    st.tuples(
        st.sampled_from(("buy", "sell", "cancel", "cut", "carry", "renew", "wait", "key", "link", "restart")),
        st.sampled_from((1, 40, 700)),
    ),
    max_size=20,
)


@effort(max_examples=40, deadline=None, derandomize=True, database=None)
@given(TURNS)
@pytest.mark.first
def test_the_ledger_grows_by_no_more_than_the_bound(turns: Sequence[tuple[str, int]]) -> None:
    sim = Sim()
    victim = sim.gateway
    attacker, who, links, lives, began, hosts = ScriptedNeighbour(sim, victim), 1, 1, 1, sim.now, count(1)
    for act, many in turns:
        running = [c for c in victim.world.contracts.values() if c.running and c.identity == attacker.identity][:many]
        if act in ("key", "link"):
            who += 1
            sim.now += 61 if act == "key" else 0
            links += act == "link"
            address = who.to_bytes(6, "big") if act == "link" else attacker.link[1]
            attacker = ScriptedNeighbour(sim, victim, who.to_bytes(32, "big"), address)
        elif act == "wait":
            attacker.wait(many)
        elif act == "restart":
            lives += 1
            sim.crash(victim)
            attacker.say(HELLO)
        elif act in ("buy", "sell"):
            for _ in range(2 * many):
                (attacker.buy if act == "buy" else attacker.sell)(host(next(hosts)))
        for contract in running:
            server = contract.role is Role.SERVER
            if act == "cancel" and server:
                attacker.say(Cancel(contract.id, "cancelled"))
            elif act == "cut" and not server:
                attacker.say(Cancel(contract.id, "exhausted"))
            elif act == "carry" and server:
                lent = victim.world.client(contract.identity).credit is not None
                attacker.use(contract.id, 1000 if lent else 0)
            elif act == "renew" and server:
                for quote in messages(attacker.say(Ask(contract.destination.prefix, 0, 0, contract.id)), Propose):
                    attacker.say(Accept(contract.id, quote.price_msat_per_gib, quote.data_limit_bytes))
    assert not any(account.paid_msat for account in victim.world.accounts)
    hours = (sim.now - began) / 3600
    most = lives * (min(links * MOST_OF_STRANGER, MOST_OF_STRANGERS) + hours * FORGIVEN_AN_HOUR)
    for role in Role:
        assert sum(record.role is role for record in victim.ledger.contracts.values()) <= most
    assert len(victim.ledger.journal) <= LINES_PER_CONTRACT * most * len(Role)


class Shelf:
    """The ledger of a simulated node that also writes to a real one in a folder."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger = ledger
        self.folder = folder
        self.waiting: list[Record] = []

    def put(self, record: Record) -> None:
        self.waiting.append(record)

    def write(self) -> int:
        """Commit the records that wait; return the bytes of the ledger's file and of its log."""
        self.ledger.commit(self.waiting)
        self.waiting.clear()
        return sum(file.stat().st_size for file in self.folder.iterdir())


@pytest.mark.first
def test_the_file_stays_below_what_the_architecture_says(tmp_path: Path) -> None:
    ledger = store.at(tmp_path).open()
    sim = Sim()
    sim.gateway.ledger = shelf = Shelf(ledger, tmp_path)  # type: ignore[assignment]
    crowd = [ScriptedNeighbour(sim, sim.gateway, bytes([who]) * 32, bytes([who]) * 6) for who in range(6)]
    hosts, largest = count(1), 0
    for _ in range(5):
        for attacker in crowd:
            for _ in range(MOST_OF_STRANGER + 100):
                bought, sold = attacker.buy(host(next(hosts))), attacker.sell(host(next(hosts)))
                if bought:
                    attacker.say(Cancel(bought, "cancelled"))
                if sold:
                    attacker.say(Cancel(sold, "exhausted"))
            largest = max(largest, shelf.write())
        for attacker in crowd:
            attacker.wait(3600 / len(crowd))
        while ledger.prune(sim.clock().utc_s):
            pass
    assert len(ledger.contracts(include_closed=True)) > FORGIVEN_AN_HOUR
    assert largest < 2 * 8 << 20, "8 MB in each role"


@pytest.mark.parametrize("in_role", [Role.SERVER, Role.CLIENT])
def test_strangers_leave_half_of_all_places_to_neighbours_that_money_passed_to(in_role: Role) -> None:
    sim = Sim(gateway=settings(contracts_max=100))
    sim.up("198.51.100.1")
    sim.run(0.1)
    assert sim.gateway.world.strangers == 1
    sim.flow("198.51.100.1", 100_000, 5)
    sim.run(10)
    assert account(sim).paid_msat and len(sim.gateway.world.contracts) == 1
    assert sim.gateway.world.strangers == 0, "its contract is a payer's from its first payment on"
    crowd = [ScriptedNeighbour(sim, sim.gateway, bytes([who]) * 32, bytes([who]) * 6) for who in range(40)]
    names = count(1)
    for attacker in crowd:
        attacker.names = names
    for number, attacker in product(range(6), crowd):
        destination = f"10.{number}.{attacker.link[1][0]}.1/32"
        if in_role is Role.SERVER:
            attacker.say(Ask(ip_network(destination), 0, 0))
        else:
            attacker.sell(destination)
    assert sim.gateway.world.strangers == len(sim.gateway.world.contracts) - 1 == 50
    sim.up("198.51.100.2")
    sim.run(0.1)
    assert sum(one.running for one in sim.gateway.world.sold_to(sim.client.identity)) == 2
    sim.gateway.world.now = sim.clock()
    for attacker in crowd:
        forgetting.drop_neighbour(sim.gateway.world, sim.gateway.world.peers.by_link[attacker.link])
    if in_role is Role.SERVER:
        assert sim.gateway.world.strangers == 0 and len(sim.gateway.world.contracts) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.floats(0, 4000)), max_size=60))
def test_the_count_of_openings_stays_within_its_limit_and_falls_to_nothing(
    turns: Sequence[tuple[int, bool, float]],
) -> None:
    openings, now = Openings(), 0.0
    for who, opens, seconds in turns:
        now += seconds
        pools = pools_of(Role.SERVER, bytes(32), ("eth1", bytes([who])), trades=who == 5)
        if not opens:
            openings.count(pools, now, -1)
        elif openings.full(pools, now) is None:
            openings.count(pools, now)
        assert all(0 <= openings.level(pool, now) <= pool.most for pool in pools)
    openings.count((), now + 5 * 3600)
    assert len(openings) == 0


def test_a_refused_opening_shows_in_the_state_and_in_the_kernel() -> None:
    sim = Sim()
    attacker = ScriptedNeighbour(sim, sim.gateway)
    (quote,) = messages(attacker.say(Ask(ip_network(host(1)), 0, 0)), Propose)
    pools = pools_of(Role.SERVER, attacker.identity, attacker.link, trades=False)
    sim.gateway.world.openings.count(pools[:1], sim.now, MOST_OF_STRANGER)
    effects = attacker.say(Accept(quote.contract, quote.price_msat_per_gib, quote.data_limit_bytes))
    assert sim.gateway.world.contracts[quote.contract].state is State.REJECTED
    assert [effect.grant.blocked for effect in effects if isinstance(effect, fx.GrantContract)] == [True]
