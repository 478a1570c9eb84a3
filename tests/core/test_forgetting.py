"""Neighbours that never paid take bounded room in memory and in the ledger, and no other neighbour suffers for it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from playbook import Sim, account, settings, tell
from scripted_neighbour import HELLO, ScriptedNeighbour, host, messages

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core import forgetting
from ngp.core.messages import Ask, Declined, Invoice, Role
from ngp.core.payment_node import DecodedInvoice, PaymentOutcome, PaymentStatus
from ngp.core.records import PaymentRecord
from ngp.core.selling import metering


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "MOST_NEIGHBOURS", 64)
    monkeypatch.setattr(forgetting, "MOST_DEBTORS", 32)


def paying_customer() -> Sim:
    sim = Sim()
    sim.up("198.51.100.1")
    sim.run(2)
    assert sim.gateway.world.client(sim.client.identity).paid_msat
    return sim


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("uses", [0, 100])
def test_made_up_keys_leave_no_more_than_there_is_room_for_and_newcomers_get_in(uses: int) -> None:
    sim = paying_customer()
    gateway = sim.gateway
    for number in range(600):
        attacker = ScriptedNeighbour(sim, gateway, number.to_bytes(32, "big"), number.to_bytes(6, "big"))
        attacker.carries = uses
        contract = attacker.buy(host(number))
        assert contract, "a newcomer gets in, whoever was there before"
        if uses:
            attacker.use(contract, uses)
        attacker.wait(30)
    world, ledger = gateway.world, gateway.ledger
    an_hour = 3600 // 30
    most = 64 + 32 + an_hour + 2
    assert len(world.peers.neighbours) <= 64 and len(world.peers.by_identity) <= 64
    assert len(world.accounts) <= 2 * most
    assert len(world.credit.outstanding) <= most
    assert len(ledger.neighbours) <= most and len(ledger.accounts) <= 2 * most
    assert len(ledger.contracts) <= most
    assert ledger.accounts[sim.client.identity, Role.SERVER].paid_msat > 0
    known = world.clients.keys() | world.servers.keys()
    assert {account.identity for account in ledger.accounts.values()} <= known | {bytes(32)}


@pytest.mark.usefixtures("small")
def test_a_debt_that_counts_on_its_interface_is_kept_though_there_is_no_room() -> None:
    sim = Sim()
    for number in range(200):
        attacker = ScriptedNeighbour(sim, sim.gateway, number.to_bytes(32, "big"), number.to_bytes(6, "big"))
        attacker.carries = 100
        contract = attacker.buy(host(number))
        if contract:
            attacker.use(contract, 100)
        attacker.wait(15)
    credit = sim.gateway.world.credit
    assert len(credit.outstanding) == 200 and set(credit.outstanding.values()) == {205}  # 1 msat at 5 msat/kB
    assert credit.on_interface["eth1"] == 205 * 200
    assert sum(account.debt_msat > 0 for account in sim.gateway.world.accounts) >= 64 + 32


def test_one_identity_on_many_made_up_addresses_fills_nothing() -> None:
    sim = paying_customer()
    world = sim.gateway.world
    for number in range(200):
        attacker = ScriptedNeighbour(sim, sim.gateway, sim.client.identity, number.to_bytes(6, "big"))
        attacker.buy(host(number))
    assert len(world.peers.by_identity[sim.client.identity]) == len(world.peers.neighbours) == forgetting.MOST_LINKS
    assert len(sim.gateway.ledger.neighbours) <= forgetting.MOST_LINKS
    assert world.clients[sim.client.identity].paid_msat > 0


def test_a_link_whose_identity_left_while_its_contracts_ended_leaves_no_account() -> None:
    sim = Sim()
    old = ScriptedNeighbour(sim, sim.gateway, b"O" * 32)
    assert old.buy(host(1))
    sim.now += forgetting.LINK_SILENCE_S + 1
    new = ScriptedNeighbour(sim, sim.gateway, b"N" * 32)
    assert new.buy(host(2))
    new.wait(601)  # an invoice was open
    assert sim.gateway.world.clients.keys() | sim.gateway.world.servers.keys() <= {sim.client.identity, new.identity}
    assert {one.identity for one in sim.gateway.ledger.contracts.values()} == {new.identity}


@pytest.mark.parametrize("keys", [1, 200])
def test_invoices_that_cannot_be_paid_are_tried_seldom(keys: int) -> None:
    sim = Sim()
    crowd = [
        ScriptedNeighbour(sim, sim.client, number.to_bytes(32, "big"), number.to_bytes(6, "big"))
        for number in range(keys)
    ]
    tried, minutes = 0, 20
    for second in range(60 * minutes):
        attacker = crowd[second % keys]
        if second < keys or not second % 600:
            attacker.sell(host(second))
        sim.now += 1
        attacker.say(HELLO)
        bolt11 = DecodedInvoice(second.to_bytes(32, "big"), 1000, 600, "", "sandbox", "")
        heard = ev.MessageReceived(attacker.identity, attacker.link, 1, Invoice("lnx", 1000), 1 << 33, bolt11)
        for effect in attacker.tell(heard):
            if isinstance(effect, fx.PayInvoice):
                tried += 1
                failed = PaymentOutcome(effect.payment_hash, PaymentStatus.FAILED, reason="no route")
                assert messages(attacker.tell(failed), Declined)
    assert 5 < tried <= minutes + 8
    payments = [one for one in sim.client.ledger.payments.values() if isinstance(one, PaymentRecord)]
    assert len(payments) == tried


def test_an_account_that_is_forgotten_while_it_is_counted_leaves_the_kernel() -> None:
    sim = Sim(settings(sell_msat_per_gib=0, sell_min_msat_per_gib=0))
    tell(sim, sim.gateway, Ask(ip_network("198.51.100.1"), 0, 0))
    sim.run(0.1)
    world, kernel = sim.gateway.world, sim.gateway.kernel
    assert kernel.accounts and not account(sim).invoice.payment_hash
    world.effects = []
    forgetting.drop_neighbour(world, world.peers.by_link[sim.client.link])
    metering.count_again(world, account(sim))
    sim.carry_out(sim.gateway, world.effects)
    sim.run(0.1)
    assert not kernel.accounts and sim.client.identity not in world.clients
