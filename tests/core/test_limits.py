"""The kernel lets a client spend exactly its money, whatever payments, refunds, price changes or restarts happen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playbook import Sim, account, settings
from test_money import spare_units

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.kernel import UNITS_PER_MSAT
from ngp.core.messages import Invoice, Refund, Role

HOST = "198.51.100.1"
OTHERS = tuple(f"198.51.100.{number}" for number in range(2, 12))
PRICE = 5 << 20  # msat/GiB


def prepaid(**changes: object) -> Sim:
    """Return a simulation whose client has 100 sat on its account and eleven contracts that carried a little."""
    sim = Sim(settings(**changes), settings(sells=False, **changes))
    sim.flow(HOST, 10_000, 2)
    for host in OTHERS:
        sim.up(host, 777)
        sim.run(0.1)
    sim.run(2)
    return sim


def lost_msat(sim: Sim) -> int:
    """Return how much of the client's money the kernel wouldn't let it spend, except for what rounding may cost."""
    return -spare_units(sim) // UNITS_PER_MSAT - account(sim).priced


def test_open_contracts_share_all_money_except_one_msat_each() -> None:
    sim = prepaid()
    assert account(sim).priced == 11
    assert -11 * UNITS_PER_MSAT <= spare_units(sim) <= 0
    sim.run(3700)
    assert not sim.gateway.kernel.slots and not sim.gateway.kernel.accounts
    sim.up(HOST)
    sim.run(1)
    assert -1 * UNITS_PER_MSAT <= spare_units(sim) <= 0


@pytest.mark.parametrize("reboot", [False, True])
def test_a_restart_gives_and_takes_nothing(reboot: bool) -> None:
    sim = prepaid()
    sim.flow(HOST, 100_000, 0.4)  # neither the ledger nor the daemon knows all of it
    sim.crash(sim.gateway, reboot)
    sim.run(0.1)
    assert -11 * UNITS_PER_MSAT <= spare_units(sim) <= 0


@pytest.mark.parametrize("price", [PRICE // 3, PRICE * 3])
def test_a_renewal_at_another_price_keeps_the_sum_exact(price: int) -> None:
    sim = Sim(
        settings(contract_data_bytes=200_000, sell_min_msat_per_gib=1, payment_amount_msat=1_000_000),
        settings(sells=False, contract_data_bytes=200_000, buy_max_msat_per_gib=1 << 40),
    )
    sim.flow(HOST, 20_000, 5)
    changed = replace(sim.gateway.settings, sell_msat_per_gib=price, sell_min_msat_per_gib=price)
    sim.happen(sim.gateway, ev.SettingsChanged(changed))
    for _ in range(60):
        sim.flow(HOST, 20_000, 0.5)
        assert spare_units(sim) <= 0
    contract = next(one for one in sim.gateway.world.contracts.values() if one.role is Role.SERVER)
    assert len(contract.prices) > 1 and contract.used_bytes > contract.prices[-1][0]
    assert sim.gateway.kernel.slots[contract.id].grant.price_msat_per_gib == contract.price_msat_per_gib
    assert lost_msat(sim) <= 20  # what was carried during the count: 10 ms of this flow


def test_a_renewal_for_nothing_leaves_aside_what_rounding_may_have_cost() -> None:
    sim = Sim(
        settings(contract_data_bytes=20_000, payment_amount_msat=1_000_000),
        settings(sells=False, contract_data_bytes=20_000),
    )
    for price in (PRICE, 0, PRICE, 0):
        changed = replace(sim.gateway.settings, sell_msat_per_gib=price, sell_min_msat_per_gib=price)
        sim.happen(sim.gateway, ev.SettingsChanged(changed))
        for _ in range(12):
            for host in OTHERS:
                sim.flow(host, 20_000, 0.05)
            assert spare_units(sim) <= 0
    assert max(len(one.prices) for one in sim.gateway.world.contracts.values() if one.role is Role.SERVER) > 2


def test_a_refund_takes_what_is_left_when_the_kernel_has_stopped_spending_it() -> None:
    sim = prepaid()
    sim.flow(HOST, 200_000, 0.4)
    sim.happen(sim.gateway, ev.RefundNeighbour(sim.client.identity))
    books, seen = account(sim), []
    while not books.refund.promised_msat:
        sim.flow(HOST, 200_000, 0.002)
        seen.append(spare_units(sim))
    sim.flow(HOST, 200_000, 0.1)
    assert max(seen) <= 0 and spare_units(sim) <= 0
    sim.run(5)
    assert books.refund.promised_msat == 0
    paid = sum(sim.payments.sent.get("gateway", {}).values())
    assert books.refunded_msat == paid and books.balance_msat >= -256 * 5 - len(sim.gateway.world.contracts)


def test_a_refund_of_money_that_was_carried_meanwhile_names_what_is_left() -> None:
    sim = prepaid()
    sim.silenced = {Invoice, Refund}
    sim.happen(sim.gateway, ev.RefundNeighbour(sim.client.identity))
    books = account(sim)
    offered = books.refund.offered_msat
    slot = next(slot for slot in sim.gateway.kernel.slots.values() if str(slot.grant.destination) == f"{HOST}/32")
    bolt11 = sim.payments.invoice("client", offered).hex()
    heard = ev.MessageReceived(
        *(sim.client.identity, sim.client.link, sim.client.boot, Refund(offered, bolt11), 7 << 32),
        decoded=sim.payments.decode(bolt11),
    )
    slot.used_from += 1 << 20  # carried, and not read yet
    sim.gateway.kernel.accounts[sim.client.identity].spent += PRICE << 20
    sim.happen(sim.gateway, heard)
    sim.run(1)
    assert not books.refund.promised_msat and not any(isinstance(one, fx.PayInvoice) for one in sim.gateway.log)
    assert books.refund.offered_msat == (books.funds_msat // 1000) * 1000 == offered - 5_000


def test_an_account_that_is_exhausted_and_owes_is_not_counted_for_what_rounding_may_cost() -> None:
    sim = Sim()
    sim.silenced = {Invoice}
    for host in (HOST, *OTHERS):
        sim.up(host, 777)
        sim.run(0.1)
    sim.flow(HOST, 100_000, 8)
    assert account(sim).priced == 11 and account(sim).debt_msat
    assert sim.gateway.kernel.read_accounts([sim.client.identity], sim.now)[0].exhausted
    assert not any(isinstance(one, fx.CountAccount) for one in sim.gateway.log)


def test_an_account_that_is_exhausted_though_it_has_money_is_counted_again() -> None:
    sim = prepaid()
    sim.silenced = {Invoice}
    entry = sim.gateway.kernel.accounts[sim.client.identity]
    entry.spent += 90_000 * UNITS_PER_MSAT  # as if the kernel's limit were too cautious
    before = sim.passed
    sim.flow(HOST, 100_000, 25)
    assert sim.passed - before >= 0.99 * 100_000 * 25
