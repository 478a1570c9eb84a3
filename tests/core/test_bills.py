"""Bills: the client checks them with its own meter; what that missed is believed up to the server's prepaid money."""

from __future__ import annotations

from playbook import Sim, account, bought, tell

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.messages import Cancel, Hello, Invoice, Statement, StatementLine

HOST = "198.51.100.1"


def test_statement_bills_and_an_honest_one_is_not_disputed() -> None:
    sim = Sim()
    for number in range(200):  # one packet each, held, so that the client's meter never saw it
        sim.up(f"198.51.100.{number}", 1200)
        sim.run(0.05)
    sim.run(10)
    assert bought(sim).billed_msat == account(sim).charged_msat > 0
    assert not bought(sim).disputed


def test_a_wrong_bill_is_disputed_and_no_longer_paid_until_unblock() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    contract = sim.contracts(sim.client)[0].contract
    tell(sim, sim.client, Statement(0, 10_000, 0, (StatementLine(contract, 9_000_000, 0, 10_000),)))
    assert bought(sim).disputed
    paid = sim.payments.invoice("gateway", 1000)
    effects = tell(sim, sim.client, Invoice(paid.hex(), 1000), decoded=sim.payments.decode(paid.hex()))
    assert not [e for e in effects if isinstance(e, fx.PayInvoice)]
    sim.happen(sim.client, ev.BlockNeighbour(sim.gateway.identity, False))
    assert not bought(sim).disputed


def test_after_a_reboot_bills_are_believed_only_as_far_as_the_server_may_have_our_money() -> None:
    sim = Sim()
    for number in range(1, 9):
        sim.flow(f"198.51.100.{number}", 100_000, 1)
    sim.crash(sim.client, reboot=True)
    sim.run(0.001)
    lines = tuple(StatementLine(one.contract, 1 << 60, 1 << 60, 10**15) for one in sim.contracts(sim.client))
    tell(sim, sim.client, Statement(0, 10**15, 0, lines))
    client = bought(sim)
    ahead_msat = 4 * sim.client.settings.payment_amount_msat  # two in hand, one tolerated in any bill, and some more
    assert client.disputed
    assert client.charged_msat <= client.paid_msat + ahead_msat
    assert client.tolerated_msat <= client.paid_msat + ahead_msat


def test_a_kill_before_the_first_bill_after_a_reboot_causes_no_dispute() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    carried = 5_000_000  # while the machine was down, or only the meter
    for reboot in (True, False):
        sim.crash(sim.client, reboot)
    sim.run(0.001)
    first = sim.contracts(sim.client)[0]
    tell(sim, sim.client, Statement(0, 0, 0, (StatementLine(first.contract, carried, 0, 0),)))
    assert not bought(sim).disputed


def moved(sim: Sim, mac: bytes, used_bytes: int) -> list[fx.Effect]:
    """Let the gateway send from another MAC, and bill the client for some bytes of its first contract."""
    link = (sim.gateway.link[0], mac)
    sim.run(0.1)
    tell(sim, sim.client, Hello("sandbox", True, True, (), "ngp", False), link=link)
    first = sim.contracts(sim.client)[0]
    return tell(sim, sim.client, Statement(0, 0, 0, (StatementLine(first.contract, used_bytes, 0, 0),)), link=link)


def test_a_server_with_another_link_address_is_believed_once_and_its_contracts_are_agreed_again() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 5)
    effects = moved(sim, b"\2gate2", 3_000_000)
    (answer,) = [one.message for one in effects if isinstance(one, fx.Send)]
    assert isinstance(answer, Cancel)
    assert [one for one in effects if isinstance(one, fx.HaltContract)]
    sim.run(1)
    assert sim.contracts(sim.client)[0].reason == "cancelled"
    assert not bought(sim).disputed
    sim.run(120)
    moved(sim, b"\2gate3", 6_000_000)
    assert bought(sim).disputed  # it moves too often


def test_a_server_with_another_link_address_is_not_believed_any_bill() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 5)
    moved(sim, b"\2gate2", 1 << 60)
    client = bought(sim)
    assert client.disputed
    assert client.tolerated_msat <= client.paid_msat + 3 * sim.client.settings.payment_amount_msat


def test_a_server_that_sends_from_two_link_addresses_keeps_its_contracts() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    tell(sim, sim.client, Hello("sandbox", True, True, (), "ngp", False), link=(sim.gateway.link[0], b"\2gate2"))
    sim.flow(HOST, 100_000, 2)
    tell(sim, sim.client, Hello("sandbox", True, True, (), "ngp", False))
    effects = moved(sim, b"\2gate2", 0)
    assert not [one for one in effects if isinstance(one, fx.HaltContract)]
