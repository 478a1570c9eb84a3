"""First top-ups: a client trusts a new server with little, and is asked for more when it would pay that, not before."""

from __future__ import annotations

import pytest
from mesh import HOST
from playbook import MSAT_PER_KB, Sim, settings

from ngp.core import effects as fx
from ngp.core.selling.account import ClientAccount, Credit


def account(sim: Sim) -> ClientAccount:
    return sim.gateway.world.clients[sim.client.world.identity]


def paying(**selling: int) -> Sim:
    """Return a gateway and its client as shipped, with TRUST_AMOUNT: auto."""
    usual = {"trust_amount_msat": None, "payment_amount_msat": 100_000, "buy_max_msat_per_gib": 20 * MSAT_PER_KB}
    return Sim(settings(**usual | selling), settings(**usual, sells=False))


@pytest.mark.parametrize("asked_for", [5, 8, 20])
def test_a_client_that_has_money_left_is_not_said_to_decline_invoices(asked_for: int) -> None:
    """The server can't know what the client's trust is, as that comes from the client's own first price."""
    sim = paying(sell_msat_per_gib=asked_for * MSAT_PER_KB)
    sim.flow(HOST, 300, 3)
    assert account(sim).funds_msat > 0 and not account(sim).why_not
    assert not [one for one in sim.gateway.log if isinstance(one, fx.Log) and "is not topped up" in one.text]


def test_the_kernel_hints_when_the_client_would_pay_again() -> None:
    sim = paying(payment_amount_msat=1000)
    sim.flow(HOST, 100, 1)
    world, ours = sim.gateway.world, account(sim)
    trust = world.trust_msat(ours)
    assert ours.paid_msat == 1000 and 1000 < trust < 1500, "it trusts us with little more than a sat"
    assert world.low_msat(ours) == 500, "credit is opened then"
    ours.charged_msat = 600
    ours.credit = None
    assert world.low_msat(ours) == 500
    ours.credit = Credit(0, 1, world.now.monotonic_s + 1, ("eth1", b""))
    assert world.low_msat(ours) == trust - 1000, "no more is paid before"
