"""Blocking: after a block no contract runs on either side, whichever side blocked and whatever message was lost.

If a contract ended on the buyer's side alone, the seller would go on carrying and billing. The buyer's
meter wouldn't count that traffic, so the bill would look like fraud.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from playbook import Node, Sim, settings, states
from scripted_neighbour import HELLO, ScriptedNeighbour, host
from test_money import GRACE, HOSTS, OFTEN, actions, play

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core import forgetting
from ngp.core.kernel import Verdict
from ngp.core.messages import Ask, Cancel, Hello, Statement, StatementLine
from ngp.core.restore import FORGET_NEIGHBOUR_S

HOST = HOSTS[0]


def block(sim: Sim, node: Node, blocked: bool = True) -> None:
    """Let a node's operator block the other node, or unblock it."""
    sim.happen(node, ev.BlockNeighbour(sim.peer(node).identity, blocked))


def disputed(sim: Sim) -> bool:
    account = sim.client.world.servers.get(sim.gateway.identity)
    return account is not None and account.disputed


def assert_over(sim: Sim) -> None:
    """Assert that both sides closed all contracts, and that neither disputes the other's bill."""
    for node in (sim.gateway, sim.client):
        assert all(record.closed_at_s for record in sim.contracts(node)), node.name
        assert not any(contract.running for contract in node.world.contracts.values()), node.name
    assert not disputed(sim)


def assert_served(sim: Sim) -> None:
    """Assert that new traffic is carried under a contract that both have."""
    sim.flow(HOST, 50_000, 2.0)
    sim.run(6)
    runs = [{key for key, one in node.world.contracts.items() if one.running} for node in (sim.gateway, sim.client)]
    assert runs[0] == runs[1] != set()
    assert not disputed(sim)


@pytest.mark.parametrize("blocker", ["gateway", "client"])
def test_a_block_ends_the_contract_on_both_sides_at_once(blocker: str) -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2.0)
    node = sim.gateway if blocker == "gateway" else sim.client
    block(sim, node)
    sim.run(0.1)
    assert_over(sim)
    passed = sim.passed
    sim.flow(HOST, 100_000, 2.0)
    assert sim.passed == passed
    block(sim, node, False)
    sim.run(0.1)
    assert_served(sim)  # at once: the gateway's memory of the refusals is gone


def test_a_block_during_a_renewal_ends_the_contract() -> None:
    sim = Sim(settings(contract_data_bytes=200_000), settings(sells=False, contract_data_bytes=200_000))
    sim.flow(HOST, 50_000, 1.0)
    contract = next(iter(sim.client.world.contracts.values()))
    ask = Ask(contract.destination.prefix, 0, 0, contract.id)
    said = ev.MessageReceived(sim.client.identity, sim.client.link, sim.client.boot, ask, 1 << 34)
    sim.happen(sim.gateway, said)
    block(sim, sim.client)
    sim.run(0.1)
    assert_over(sim)


def test_a_gateway_that_was_away_is_told_of_the_end_when_it_is_back() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2.0)
    sim.loss = 1.0
    block(sim, sim.client)
    sim.flow(HOST, 100_000, 20.0)  # its kernel carries on
    sim.run(20)
    sim.loss = 0.0
    block(sim, sim.client, False)
    sim.run(60)
    assert_over(sim)
    assert_served(sim)


def test_a_bill_for_a_contract_that_we_ended_is_cancelled_until_the_server_confirms() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2.0)
    sim.silenced.add(Cancel)
    block(sim, sim.client)
    sim.flow(HOST, 400_000, 4.0)  # all of it is billed, and far above the allowance
    sim.silenced.clear()
    sim.flow(HOST, 100_000, 8.0)
    assert_over(sim)
    account = sim.client.world.servers[sim.gateway.identity]
    assert account.billed_msat > account.metered_msat
    cancels = len(sim.sent(sim.client, Cancel))
    assert sim.sent(sim.gateway, Cancel)
    sim.run(60)
    assert len(sim.sent(sim.client, Cancel)) == cancels


def test_bills_for_contracts_that_we_ended_are_believed_only_as_far_as_the_server_may_have_our_money() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2.0)
    contract = next(iter(sim.client.world.contracts.values()))
    block(sim, sim.client)
    sim.run(0.1)
    account = sim.client.world.servers[sim.gateway.identity]
    for number in range(1, 20):
        billed = number * 50_000_000
        line = StatementLine(contract.id, billed, 0, contract.due_msat(billed))
        told = Statement(0, contract.due_msat(billed), 0, (line,))
        said = ev.MessageReceived(sim.gateway.identity, sim.gateway.link, sim.gateway.boot, told, (1 << 34) + number)
        sim.happen(sim.client, said)
    assert disputed(sim)
    ahead_msat = 4 * sim.client.settings.payment_amount_msat
    assert account.charged_msat <= account.paid_msat + ahead_msat
    assert account.tolerated_msat <= account.paid_msat + ahead_msat


def test_an_unblocked_dispute_does_not_open_again_by_the_same_bill() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2.0)
    contract = next(iter(sim.client.world.contracts.values()))
    line = StatementLine(contract.id, 9_000_000, 0, 200_000)
    said = ev.MessageReceived(
        sim.gateway.identity, sim.gateway.link, sim.gateway.boot, Statement(0, 200_000, 0, (line,)), 1 << 34
    )
    sim.happen(sim.client, said)
    assert disputed(sim)
    block(sim, sim.client, False)
    sim.happen(sim.client, said)
    assert not disputed(sim)


blocks = st.tuples(st.just("block"), st.booleans(), st.booleans())


@effort(OFTEN, max_examples=60)
@given(st.lists(st.one_of(actions, actions, blocks), max_size=25), st.integers(0, 1 << 30), st.booleans())
def test_nothing_runs_after_a_block_and_service_starts_anew(
    plan: list[tuple[object, ...]], seed: int, rough: bool
) -> None:
    troubles = {"loss": 0.2, "doubles": 0.1, "late_s": 0.5} if rough else {}
    small = {"grace_data_bytes": GRACE}  # what `play` checks
    sim = Sim(settings(**small), settings(sells=False, **small), seed, **troubles)  # type: ignore[arg-type]
    for action in plan:
        if action[0] == "block":
            block(sim, sim.gateway if action[1] else sim.client, bool(action[2]))
        else:
            play(sim, [action])
    sim.loss = sim.late_s = sim.doubles = 0.0
    sim.gateway.crash_after = sim.client.crash_after = -1
    block(sim, sim.client)
    sim.run(60)
    assert_over(sim)
    for node in (sim.gateway, sim.client):
        block(sim, node, False)
    sim.run(60)
    assert_served(sim)


def test_the_kernel_knows_who_is_blocked_and_who_has_paid() -> None:
    """A blocked neighbour can't reach payment services; one that has paid doesn't share a rate with newcomers."""
    sim = Sim()
    sim.run(1)

    def known() -> list[tuple[bool, bool]]:
        return [(one.blocked, one.has_paid) for one in sim.gateway.kernel.neighbours.values()]

    assert known() == [(False, False)]
    sim.flow(HOST, 400_000, 2.0)
    assert known() == [(False, True)]
    block(sim, sim.gateway)
    assert known() == [(True, True)]
    sim.crash(sim.gateway, reboot=True)
    assert known() == [(True, True)]


def greet(sim: Sim, node: Node, number: int) -> ScriptedNeighbour:
    """Let the other node say hello from another link address."""
    other = ScriptedNeighbour(sim, node, sim.peer(node).identity, number.to_bytes(6, "big"))
    other.say(HELLO)
    return other


def test_a_block_survives_restarts_when_the_neighbours_links_are_old_or_gone() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2.0)
    for blocked in (True, False):
        block(sim, sim.gateway, blocked)
        sim.run(0.1)
    sim.silenced.add(Hello)
    sim.now += FORGET_NEIGHBOUR_S + 1
    sim.crash(sim.gateway)
    assert not sim.gateway.world.peers.by_identity, "its money is kept, its links are forgotten"
    block(sim, sim.gateway)
    for _ in range(2):
        sim.crash(sim.gateway)
        assert sim.gateway.world.peers.blocked == {sim.client.identity}
    told = greet(sim, sim.gateway, 7).say(replace(HELLO, sells=False))
    assert [effect.neighbour.blocked for effect in told if isinstance(effect, fx.SetNeighbour)] == [True]


def test_a_block_stays_when_the_neighbour_comes_on_many_other_links() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2.0)
    block(sim, sim.gateway)
    for number in range(1, 2 * forgetting.MOST_LINKS):
        greet(sim, sim.gateway, number)
    sim.crash(sim.gateway)
    assert sim.gateway.world.peers.blocked == {sim.client.identity}


def test_an_unblock_also_counts_on_links_that_others_took_meanwhile() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2.0)
    block(sim, sim.gateway)
    sim.now += forgetting.LINK_SILENCE_S + 1
    ScriptedNeighbour(sim, sim.gateway, b"N" * 32, sim.client.link[1]).say(HELLO)
    assert sim.client.identity not in sim.gateway.world.peers.by_identity
    block(sim, sim.gateway, False)
    sim.crash(sim.gateway)
    assert not sim.gateway.world.peers.blocked


def test_of_a_blocked_stranger_only_the_block_is_kept_and_after_an_unblock_nothing() -> None:
    sim = Sim()
    who = b"N" * 32
    stranger = ScriptedNeighbour(sim, sim.gateway, who, b"\2\0\0\0\0\7")
    assert stranger.buy(host(1))
    stranger.tell(ev.BlockNeighbour(who, True))
    stranger.wait(601)  # an invoice was open
    sim.now += forgetting.LINK_SILENCE_S + 1
    ScriptedNeighbour(sim, sim.gateway, b"O" * 32, stranger.link[1]).say(HELLO)
    assert sim.gateway.ledger.blocked == {who}
    sim.happen(sim.gateway, ev.BlockNeighbour(who, False))
    assert not sim.gateway.ledger.blocked
    assert who not in {one.identity for one in sim.gateway.ledger.neighbours.values()}
    assert who not in sim.gateway.world.clients.keys() | sim.gateway.world.servers.keys()


def test_block_cuts_and_unblock_lets_in_again() -> None:
    sim = Sim()
    sim.up(HOST)
    sim.run(0.1)
    sim.happen(sim.gateway, ev.BlockNeighbour(sim.client.identity, True))
    sim.run(0.1)
    assert states(sim) == [("closed", "cancelled")]
    sim.up(HOST)
    sim.run(0.1)
    assert sim.refusals == [Verdict.PROHIBIT]
    sim.crash(sim.gateway)
    sim.run(0.1)
    assert sim.gateway.world.peers.blocked == {sim.client.identity}
    sim.happen(sim.gateway, ev.BlockNeighbour(sim.client.identity, False))
    sim.up(HOST)
    sim.run(0.1)
    assert sim.passed == 2000
