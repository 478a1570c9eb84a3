"""Statements: every msat that a seller charged gets into its buyer's records, once, whatever crashes or is lost.

Bills are cumulative, so sending one again is harmless, but none may be lost. The tests kill both daemons between any
two effects around a contract's end, and lose, double and delay messages.
"""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from playbook import Sim, settings, tell
from test_money import GRACE, HOSTS, OFTEN, actions, play

from ngp.core import events as ev
from ngp.core.buying import memory
from ngp.core.messages import Accept, Ask, Invoice, Statement
from ngp.core.selling import statements

SHORT = {"contract_time_s": 20, "time_renewal_s": 0, "data_renewal_bytes": 0}
INSTANTS = 26
"""More effects than either daemon carries out around the end of two contracts."""


def assert_billed(sim: Sim) -> None:
    """Assert that the buyer's ledger has every closed contract's bill, and its own metering charges, to the msat."""
    gateway, client = sim.gateway, sim.client
    sold = [record for record in sim.contracts(gateway) if record.used_to_bytes + record.used_from_bytes]
    for record in sold:
        assert record.closed_at_s
        bought = client.ledger.contracts[record.contract]
        assert bought.billed_bytes == record.used_to_bytes + record.used_from_bytes, record.destination
    if sold:
        account = client.world.servers[gateway.identity]
        assert account.billed_msat == sum(record.charged_msat for record in sold)
        assert account.metered_msat == sum(record.charged_msat for record in sim.contracts(client))


def use_to_the_end(sim: Sim) -> None:
    """Buy two contracts, and use them until a moment before they expire, so that the last line has the last bytes."""
    for host in HOSTS[:2]:
        sim.up(host)
        sim.run(0.1)
        sim.flow(host, 20_000, 1.0)
    sim.run(17.2)
    for host in HOSTS[:2]:
        sim.flow(host, 20_000, 0.1)


def run_to_rest(sim: Sim) -> None:
    sim.loss = sim.late_s = sim.doubles = 0.0
    sim.gateway.crash_after = sim.client.crash_after = -1
    sim.run(300)


@pytest.mark.parametrize("instant", range(INSTANTS))
@pytest.mark.parametrize("victims", ["gateway", "client", "both"])
def test_a_death_at_any_instant_of_a_contracts_end_loses_no_bill(victims: str, instant: int) -> None:
    sim = Sim(settings(**SHORT), settings(sells=False, **SHORT))
    use_to_the_end(sim)
    for node in (sim.gateway, sim.client):
        if victims in (node.name, "both"):
            node.crash_after = instant
    sim.run(30)
    run_to_rest(sim)
    assert_billed(sim)


@effort(OFTEN, max_examples=60)
@given(st.lists(actions, max_size=25), st.integers(0, 1 << 30), st.booleans())
def test_every_charge_is_billed_in_the_end(plan: list[tuple[object, ...]], seed: int, rough: bool) -> None:
    small = {"contract_data_bytes": 100_000, "contract_time_s": 20, "grace_data_bytes": GRACE}
    troubles = {"loss": 0.2, "doubles": 0.1, "late_s": 0.5} if rough else {}
    sim = Sim(settings(**small), settings(sells=False, **small), seed, **troubles)  # type: ignore[arg-type]
    play(sim, plan)
    run_to_rest(sim)
    assert_billed(sim)


def test_more_bills_than_either_side_remembers_are_billed_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_ENDED", 1)
    monkeypatch.setattr(statements, "MOST_UNSTATED", 2)
    monkeypatch.setattr(statements, "MOST_HELD", 1)
    sim = Sim(settings(**SHORT), settings(sells=False, **SHORT))
    for host in HOSTS:
        sim.up(host)
    sim.run(19.5)
    for host in HOSTS:
        sim.down(host)
    run_to_rest(sim)
    assert len(sim.contracts(sim.gateway)) == len(HOSTS)
    assert_billed(sim)


def test_a_client_that_seemed_away_gets_its_bills_with_its_next_message() -> None:
    """The client doesn't say hello again, since its own courier never noticed that it was away."""
    sim = Sim()
    sim.silenced = {Invoice}  # a payment would bring a statement at once
    gateway, client = sim.gateway, sim.client
    sim.up(HOSTS[0])
    sim.run(0.7)
    contract = next(iter(gateway.world.contracts.values()))
    lost = Accept(contract.id, 1, 1)
    sim.happen(gateway, ev.Undelivered(client.identity, client.link, lost))
    sim.run(6)  # the statement was due
    assert client.world.contracts[contract.id].billed_bytes == 0
    tell(sim, gateway, Ask(ip_network(HOSTS[1]), 0, 0))
    sim.run(1)
    assert client.world.contracts[contract.id].billed_bytes == contract.used_bytes > 0


def sold_and_told(sim: Sim) -> list[int]:
    """Return the bytes of each contract that are acknowledged, from the seller's ledger."""
    return [record.billed_bytes for record in sim.contracts(sim.gateway)]


def test_an_acknowledged_bill_is_not_sent_again() -> None:
    sim = Sim(settings(**SHORT), settings(sells=False, **SHORT))
    use_to_the_end(sim)
    sim.run(10)
    assert sold_and_told(sim) == [0, 0]  # held back: the client may lose what it has just received
    sim.run(statements.HELD_S + 60)
    assert sold_and_told(sim) == [23_000, 23_000]
    assert not sim.gateway.world.acknowledged
    before = len(sim.sent(sim.gateway, Statement))
    sim.crash(sim.gateway)
    sim.crash(sim.client)
    sim.run(30)
    assert not [one for one in sim.sent(sim.gateway, Statement)[before:] if one.lines]  # type: ignore[attr-defined]


def test_an_acknowledgement_just_before_a_power_cut_does_not_count() -> None:
    sim = Sim(settings(**SHORT), settings(sells=False, **SHORT))
    use_to_the_end(sim)
    on_disk = sim.client.ledger.written()
    sim.run(10)
    assert_billed(sim)
    sim.client.ledger.lose(on_disk)
    sim.crash(sim.client, reboot=True)
    run_to_rest(sim)
    gateway, client = sim.gateway.ledger.contracts, sim.client.ledger.contracts
    assert [client[key].billed_bytes for key in gateway] == [23_000, 23_000]


def test_an_unblocked_bill_is_not_disputed_again_after_a_restart() -> None:
    sim = Sim()
    gateway, client = sim.gateway, sim.client
    sim.up(HOSTS[0])
    sim.run(1)
    account = client.world.servers[gateway.identity]
    far_too_much = Statement(account.paid_msat, account.metered_msat + 10 * account.paid_msat, 0, ())
    told = ev.MessageReceived(gateway.identity, gateway.link, gateway.boot, far_too_much, 1 << 34)
    sim.happen(client, told)
    assert account.disputed
    sim.happen(client, ev.BlockNeighbour(gateway.identity, False))
    sim.crash(client)
    sim.happen(client, told)
    assert not client.world.servers[gateway.identity].disputed
