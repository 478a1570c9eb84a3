"""Cheats that bring nothing; docs/architecture.md lists what each of the others costs the honest side at most."""

from __future__ import annotations

import random
from ipaddress import ip_address

from playbook import Sim, account, bought, settings, tell

from ngp.core import effects as fx
from ngp.core.messages import Invoice, Propose, Statement
from ngp.core.prefixes import host_prefix

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


def test_a_gateway_that_proposes_for_ever_gets_two_top_ups_and_a_bounded_number_of_contracts() -> None:
    small = {"payment_amount_msat": TOP_UP_MSAT, "contracts_max": 1000}
    sim = Sim(settings(**small), settings(sells=False, **small))
    chance = random.Random(2)
    for number in range(5000):
        address = ip_address(int(ip_address("10.0.0.0")) + number)
        offer = Propose(chance.randbytes(16), host_prefix(address), 5 << 20, 1 << 20, 3600, 60, 0, 1)
        tell(sim, sim.client, offer)
        if number % 100 == 0:
            asked = sim.payments.invoice("gateway", TOP_UP_MSAT)
            tell(sim, sim.client, Invoice(asked.hex(), TOP_UP_MSAT), decoded=sim.payments.decode(asked.hex()))
            sim.run(5)
    assert bought(sim).paid_msat <= 2 * TOP_UP_MSAT and not bought(sim).charged_msat
    assert len(sim.client.world.contracts) <= 500
