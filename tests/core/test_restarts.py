"""Restarts: the daemon or the machine of either side dies, trade goes on, and nothing is counted twice."""

from __future__ import annotations

import pytest
from mesh import MB, Mesh
from playbook import Node, Sim, account, bought, settings, states
from scripted_neighbour import ScriptedNeighbour
from test_money import spare_units

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.contract import State
from ngp.core.kernel import UNITS_PER_MSAT
from ngp.core.messages import Accept, Invoice, Propose, Reject, RejectReason, Role, Statement, StatementLine
from ngp.core.restore import FORGET_NEIGHBOUR_S

HOST = "198.51.100.1"


@pytest.mark.parametrize("reboot", [False, True])
@pytest.mark.parametrize("who", ["gateway", "client"])
def test_restart_goes_on_and_counts_nothing_twice(who: str, reboot: bool) -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 5)
    for host in ("198.51.100.2", "198.51.100.3"):
        sim.flow(host, 30_000, 2)
    sim.crash(getattr(sim, who), reboot)
    sim.run(1)
    sim.flow(HOST, 100_000, 5)
    sim.run(4000)
    assert {state for state, _ in states(sim)} == {"closed"}
    if not reboot:
        assert account(sim).charged_msat == sum(c.charged_msat for c in sim.contracts(sim.gateway))
        carried = sum(c.used_to_bytes + c.used_from_bytes for c in sim.contracts(sim.gateway))
        assert carried == sim.passed
    assert not bought(sim).disputed


def test_a_contract_that_dies_with_its_renewal_still_ends_unpaid() -> None:
    """A contract on grace, never paid for, was being renewed when the gateway's daemon was killed."""
    small = {"contract_data_bytes": 64 << 10, "data_renewal_bytes": 48 << 10}
    sim = Sim(settings(**small), settings(**small, sells=False))
    sim.silenced.add(Invoice)
    sim.up(HOST)
    sim.run(0.5)
    sim.silenced.add(Accept)
    sim.flow(HOST, 20_000, 1.5)
    for node in (sim.gateway, sim.client):
        (contract,) = node.world.contracts.values()
        assert node is sim.client or contract.state is State.RENEWING
        node.world.effects = []
        node.world.save(contract)
        sim.carry_out(node, node.world.effects)
        sim.crash(node)
        assert [one.state for one in node.world.contracts.values()] == [State.ACCEPTED]
    sim.run(sim.gateway.settings.grace_time_s + 3)
    assert states(sim) == [("closed", "unpaid")]


@pytest.mark.parametrize("who", ["gateway", "client"])
def test_what_was_paid_for_before_a_crash_doesnt_wait_for_money_after_it(who: str) -> None:
    sim = Sim()
    sim.up(HOST)
    node = getattr(sim, who)
    while [one.state for one in node.world.contracts.values()] != [State.ACTIVE]:
        sim.run(0.005)
    sim.crash(node)
    assert [one.state for one in node.world.contracts.values()] == [State.ACTIVE]


def test_a_restarted_client_reserves_nothing() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    sim.crash(sim.client)
    assert sim.client.world.contracts and bought(sim).balance_msat > 0


@pytest.mark.parametrize("reading_takes_s", [0.0, 5.0])  # there may be a million contracts
@pytest.mark.parametrize("who", ["gateway", "client"])
def test_a_restart_writes_only_what_the_kernel_does_not_have(who: str, reading_takes_s: float) -> None:
    sim = Sim()
    node = getattr(sim, who)
    for number in range(1, 6):
        sim.up(f"198.51.100.{number}")
        sim.run(1)
    sim.run(70)  # all totals are in the ledger
    slots = list(node.kernel.slots.values())
    slots[0].grant = slots[0].grant._replace(blocked=True)  # as a halt leaves it before its books are closed
    slots[1].used_to += 500
    slots[2].expires_at += 5  # one of very many that were granted in a row
    slots[3].expires_at += 60
    del node.log[:]
    before = dict(node.ledger.contracts)
    sim.crash(node, reading_takes_s=reading_takes_s)
    granted = [effect.grant.contract for effect in node.log if isinstance(effect, fx.GrantContract)]
    assert granted == [slots[number].grant.contract for number in (0, 3)]
    written = [key for key, record in node.ledger.contracts.items() if record is not before[key]]
    assert written == [slots[1].grant.contract]
    passed = sim.passed
    for number in range(1, 6):
        sim.up(f"198.51.100.{number}")
    assert sim.passed == passed + 5 * 1000


@pytest.mark.parametrize("before", [fx.RevokeContract, fx.ForgetAccount])
def test_a_death_at_the_end_of_the_last_contract_leaves_no_account_in_the_kernel(
    before: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = Sim(settings(contract_time_s=20), settings(sells=False, contract_time_s=20))
    sim.flow(HOST, 10_000, 2)
    with monkeypatch.context() as dies:

        def do(node: Node, effect: fx.Effect) -> None:
            if node is sim.gateway and isinstance(effect, before):
                raise InterruptedError
            Sim._do(sim, node, effect)

        dies.setattr(sim, "_do", do)
        with pytest.raises(InterruptedError):
            sim.run(60)
    assert sim.gateway.kernel.accounts
    sim.crash(sim.gateway)
    assert not sim.gateway.kernel.accounts
    sim.flow(HOST, 10_000, 2)
    assert -1 * UNITS_PER_MSAT <= spare_units(sim) <= 0


def test_links_that_are_old_leave_the_ledger_and_the_money_behind_them_stays() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    stranger = ScriptedNeighbour(sim, sim.gateway, b"N" * 32)
    assert stranger.buy("203.0.113.9/32")
    sim.run(4000)
    stranger.wait(4000)
    sim.now += FORGET_NEIGHBOUR_S + 1
    sim.crash(sim.gateway)
    ledger = sim.gateway.ledger
    assert not ledger.neighbours
    assert {identity for identity, _ in ledger.accounts} == {sim.client.identity}
    assert ledger.accounts[sim.client.identity, Role.SERVER].paid_msat > 0


def test_what_is_being_renewed_when_it_is_paid_for_is_written_as_active() -> None:
    mesh = Mesh("ab")
    mesh.packet("a", "b")
    at = mesh["a"]
    purchase = at.purchase("b")
    assert purchase.state is State.ACCEPTED
    mesh.lost = {Propose}
    mesh.carry("ab", 80 * MB)
    assert purchase.state is State.RENEWING
    paid = Statement(1_000_000_000, 0, 0, ())
    at.step(ev.MessageReceived(mesh["b"].identity, at.link("b"), 1, paid, 1 << 40))
    (record,) = [one for one in at.ledger.contracts.values() if one.contract == purchase.id]
    assert record.state != State.ACCEPTED


@pytest.mark.parametrize("refuses", [False, True])
def test_a_refusal_after_a_start_does_not_lower_what_is_believed_of_the_time_before(refuses: bool) -> None:
    mesh = Mesh("ab")
    mesh.packet("a", "b")
    at, contract, b = mesh["a"], mesh["a"].purchase("b").id, mesh["b"].identity
    mesh.carry("ab", 10 * MB)
    mesh.wait(61)
    at.world.server(b).paid_msat = at.world.server(b).metered_msat + 10_000_000
    at.save(at.world.server(b))
    at.reboot()  # meanwhile b goes on
    mesh.introduce("a", "b")
    mesh.settle()
    if refuses:
        at.step(ev.MessageReceived(b, at.link("b"), 1, Reject(contract, RejectReason.BUSY), 1 << 40))
    purchase, server = at.world.bought(contract), at.world.server(b)
    assert purchase is not None
    charged_msat = purchase.due_msat(60 * MB)
    bill = Statement(server.paid_msat, charged_msat, 0, (StatementLine(contract, 60 * MB, 0, charged_msat),))
    at.step(ev.MessageReceived(b, at.link("b"), 1, bill, (1 << 40) + 1))
    assert not server.disputed
