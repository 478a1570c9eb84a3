"""Cheats that bring nothing; docs/architecture.md lists what each of the others costs the honest side at most."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from playbook import Sim, account, bought, settings, tell

from ngp.core import effects as fx
from ngp.core.messages import Cancel, Invoice, Propose, Reject, RejectReason, Statement, StatementLine
from ngp.core.prefixes import host_prefix
from ngp.core.pricing import amount_due_msat

HOST = "198.51.100.1"
TOP_UP_MSAT = 5000


def believed(sim: Sim) -> tuple[int, ...]:
    """Return what the client believes of the gateway's bills, and what it has paid."""
    ours = bought(sim)
    return ours.paid_msat, ours.charged_msat, ours.billed_msat, ours.tolerated_msat, ours.metered_msat


def test_statements_that_are_told_again_in_any_order_cost_nothing() -> None:
    small = {"payment_amount_msat": TOP_UP_MSAT}
    sim = Sim(settings(**small), settings(sells=False, **small))
    for number in range(1, 4):
        sim.flow(f"198.51.100.{number}", 100_000, 20)
    sim.run(3700)
    before = believed(sim)
    told = [one for one in sim.sent(sim.gateway, Statement) if isinstance(one, Statement)]
    assert len(told) > 10 and before[1] == account(sim).charged_msat
    chance = random.Random(1)
    for _ in range(20):
        chance.shuffle(told)
        for statement in told:
            effects = tell(sim, sim.client, statement)
            assert not [one for one in effects if isinstance(one, fx.PayInvoice)]
    assert believed(sim) == before and not bought(sim).disputed


def test_a_gateway_that_proposes_for_ever_gets_the_grace_and_a_bounded_number_of_contracts() -> None:
    small = {"payment_amount_msat": TOP_UP_MSAT, "contracts_max": 1000, "trust_amount_msat": None}
    sim = Sim(settings(**small), settings(sells=False, **small))
    chance = random.Random(2)
    for number in range(5000):
        address = ip_address(int(ip_address("10.0.0.0")) + number)
        offer = Propose(chance.randbytes(16), host_prefix(address), 5 << 20, 1 << 20, 3600, 60, 0, 1)
        tell(sim, sim.client, offer)
        if number % 100 == 0:
            for amount_msat in (1000, TOP_UP_MSAT):
                asked = sim.payments.invoice("gateway", amount_msat)
                tell(sim, sim.client, Invoice(asked.hex(), amount_msat), decoded=sim.payments.decode(asked.hex()))
            sim.run(5)
    grace_msat = amount_due_msat(256 << 10, ((0, 5 << 20),))
    assert 0 < bought(sim).paid_msat <= grace_msat < TOP_UP_MSAT and not bought(sim).charged_msat
    assert len(sim.client.world.contracts) <= 500


@pytest.mark.parametrize("reason", [RejectReason.LAPSED, RejectReason.BUSY])
def test_a_gateway_that_refuses_its_running_contracts_again_and_again_gains_nothing(reason: RejectReason) -> None:
    """Our meter has counted all of them: a bill that is higher isn't believed because of the refusal."""
    keys = {"trust_amount_msat": None}
    sim = Sim(settings(**keys), settings(sells=False, **keys))
    sim.flow(HOST, 10_000, 5)
    ours, billed_msat = bought(sim), 0
    for _ in range(20):
        running = [one for one in sim.client.world.contracts.values() if one.running]
        if not running or ours.disputed:
            break
        tell(sim, sim.client, Reject(running[0].id, reason))
        sim.run(0.1)
        in_hand_msat = max(0, ours.paid_msat + sim.client.world.trust_msat(ours) - ours.charged_msat)
        billed_msat = max(billed_msat, ours.billed_msat) + in_hand_msat
        many = running[0].used_bytes + in_hand_msat * 1024 // 5
        line = StatementLine(running[0].id, many, 0, running[0].due_msat(many))
        tell(sim, sim.client, Statement(ours.paid_msat, billed_msat, 0, (line,)))
        for amount_msat in (100_000, 20_000, TOP_UP_MSAT, 1000):
            asked = sim.payments.invoice("gateway", amount_msat)
            tell(sim, sim.client, Invoice(asked.hex(), amount_msat), decoded=sim.payments.decode(asked.hex()))
            sim.run(0.5)
        sim.flow(HOST, 5000, 1)
    assert ours.disputed and ours.paid_msat <= 2 * TOP_UP_MSAT


@pytest.mark.parametrize(("bytes_a_second", "heard_after_s"), [(12_500_000, 0.2), (125_000_000, 0.2)])
def test_an_honest_gateway_that_refuses_a_running_contract_once_may_bill_what_it_carried_until_it_heard_of_the_end(
    bytes_a_second: int, heard_after_s: float
) -> None:
    large = {"grace_data_bytes": 64 << 20, "trust_amount_msat": None, "contract_data_bytes": 10 << 30}
    sim = Sim(settings(**large), settings(sells=False, **large))
    sim.flow(HOST, bytes_a_second, 2, size=250_000)
    purchase = next(one for one in sim.client.world.contracts.values() if one.running)
    sim.silenced = {Cancel}
    tell(sim, sim.client, Reject(purchase.id, RejectReason.BUSY))
    sim.flow(HOST, bytes_a_second, heard_after_s, size=250_000)
    sim.silenced = set()
    tell(sim, sim.gateway, Cancel(purchase.id))
    sim.run(3)
    books = bought(sim)
    assert books.billed_msat > books.metered_msat and not books.disputed
