"""Attacks on trust: honest pairs must never be stuck, whatever their grace and trust."""

from __future__ import annotations

import pytest
from playbook import Sim, account, bought, settings

HOST = "198.51.100.1"
NO_GRACE = {"grace_data_bytes": 0}


@pytest.mark.parametrize("gateway_msat", [None, 0, 1500, 200_000])
@pytest.mark.parametrize("client_msat", [None, 0, 1500, 200_000])
@pytest.mark.parametrize("lost_of_hundred", [0, 8])
def test_an_honest_pair_without_grace_trades_on(
    gateway_msat: int | None, client_msat: int | None, lost_of_hundred: int
) -> None:
    """What is left of a sat, and is too little for the next packet, once kept both waiting for ever."""
    sim = Sim(
        settings(**NO_GRACE, trust_amount_msat=gateway_msat),
        settings(sells=False, **NO_GRACE, trust_amount_msat=client_msat),
    )
    for number in range(3000):
        lost = number % 100 < lost_of_hundred
        sim.up(HOST, 1437, lost) if number % 20 == 0 else sim.down(HOST, 1437, lost)
        sim.run(0.01)
    assert not bought(sim).disputed
    assert account(sim).paid_msat > 10_000, (account(sim).paid_msat, account(sim).balance_msat)
