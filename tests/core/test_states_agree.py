"""Both sides give a contract the same state: accepted while it runs on credit, active as soon as it is paid for."""

from __future__ import annotations

from playbook import Sim, settings

from ngp.core import events as ev
from ngp.core.contract import State
from ngp.core.messages import Statement
from ngp.core.settings import Budgets

HOST = "198.51.100.1"


def state(sim: Sim, client: bool) -> State | None:
    node = sim.client if client else sim.gateway
    return next((contract.state for contract in node.world.contracts.values()), None)


def test_a_client_calls_its_contract_active_when_the_gateway_does() -> None:
    sim = Sim()
    sim.up(HOST)
    seen = []
    while state(sim, client=False) is not State.ACTIVE:
        sim.run(0.05)
        seen.append((state(sim, client=False), state(sim, client=True)))
        assert sim.now < 1030
    assert (State.ACCEPTED, State.ACCEPTED) in seen
    assert seen[-1] == (State.ACTIVE, State.ACTIVE)
    sim.run(61)
    assert [one.state for one in sim.contracts(sim.client)] == ["active"], "in its ledger too"


def test_a_contract_credited_by_hand_is_active_from_the_first_statement_that_says_so() -> None:
    nothing = Budgets(0, None, 0, 0, None)
    sim = Sim(client=settings(sells=False, budgets=nothing))
    sim.up(HOST)
    sim.run(1)
    assert state(sim, client=True) is State.ACCEPTED
    for paid_msat, charged_msat, expected in ((0, 5, State.ACCEPTED), (4, 5, State.ACCEPTED), (9, 5, State.ACTIVE)):
        told = Statement(paid_msat, charged_msat, 0, ())
        number = (1 << 34) + paid_msat
        sim.happen(
            sim.client, ev.MessageReceived(sim.gateway.identity, sim.gateway.link, sim.gateway.boot, told, number)
        )
        assert state(sim, client=True) is expected


def test_a_contract_that_costs_nothing_is_active_on_both_sides() -> None:
    free = {"sell_msat_per_gib": 0, "sell_min_msat_per_gib": 0}
    sim = Sim(settings(**free))
    sim.up(HOST)
    sim.run(1)
    assert (state(sim, client=False), state(sim, client=True)) == (State.ACTIVE, State.ACTIVE)


def test_a_contract_that_nobody_has_paid_for_is_not_active_because_it_was_renewed() -> None:
    small = {"contract_data_bytes": 20_000, "grace_data_bytes": 200_000, "grace_time_s": 60}
    sim = Sim(settings(**small), settings(sells=False, budgets=Budgets(0, None, 0, 0, None), **small))
    sim.flow(HOST, 18_000, 2)
    (bought,) = sim.client.world.contracts.values()
    assert bought.data_limit_bytes > 20_000, "it was renewed"
    assert (state(sim, client=False), state(sim, client=True)) == (State.ACCEPTED, State.ACCEPTED)
