"""Bills: the client checks them with its own meter; what that missed is believed up to the server's prepaid money."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from playbook import Node, Sim, account, bought, settings, states, tell

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.messages import Cancel, Hello, Invoice, Reject, RejectReason, Statement, StatementLine
from ngp.core.settings import FreeDestination
from ngp.daemon.api.rows import account_row

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
    carried_msat, trust_msat = bought(sim).metered_msat, sim.client.settings.payment_amount_msat
    for billed_msat in (carried_msat + trust_msat, carried_msat + carried_msat // 50 + trust_msat + 1):
        assert not bought(sim).disputed
        tell(sim, sim.client, Statement(0, billed_msat, 0, (StatementLine(contract, 9_000_000, 0, billed_msat),)))
    assert bought(sim).disputed and bought(sim).charged_msat < billed_msat
    paid = sim.payments.invoice("gateway", 1000)
    effects = tell(sim, sim.client, Invoice(paid.hex(), 1000), decoded=sim.payments.decode(paid.hex()))
    assert not [e for e in effects if isinstance(e, fx.PayInvoice)]
    sim.happen(sim.client, ev.BlockNeighbour(sim.gateway.identity, False))
    assert not bought(sim).disputed


@pytest.mark.parametrize("free", [(), (FreeDestination(ip_network("192.0.2.0/24"), None, None),)], ids=len)
def test_a_dispute_names_free_destinations_as_a_possible_cause_if_there_are_some(
    free: tuple[FreeDestination, ...],
) -> None:
    sim = Sim(client=settings(free_destinations=free))
    sim.flow(HOST, 100_000, 2)
    contract = sim.contracts(sim.client)[0].contract
    tell(sim, sim.client, Statement(0, 10**9, 0, (StatementLine(contract, 9_000_000, 0, 10**9),)))
    (told,) = [e.text for e in sim.client.log if isinstance(e, fx.Log) and "nothing more is paid" in e.text]
    assert ("FREE_DESTINATIONS" in told) is bool(free) and "then run `ngp unblock" in told


def download(sim: Sim, packets: int, one_lost_of: int, sent_lost: bool = True) -> None:
    """Download superpackets, each acknowledged; one in some is charged and lost on the way, as what is sent may be."""
    for _ in range(2):
        sim.up(HOST)
        sim.run(1)
    for number in range(packets):
        lost = number % one_lost_of == 0
        sim.down(HOST, 50_000, lost=lost)
        sim.up(HOST, 500, lost=lost and sent_lost)
        sim.run(0.1)


TRUST_MSAT = 10_000  # the price of 2 MB


def lossy() -> Sim:
    return Sim(settings(payment_amount_msat=TRUST_MSAT), settings(sells=False, payment_amount_msat=TRUST_MSAT))


def test_what_a_lossy_link_loses_is_paid_and_not_disputed() -> None:
    sim = lossy()
    download(sim, packets=1200, one_lost_of=12)
    sim.run(10)
    lost_msat = bought(sim).billed_msat - bought(sim).metered_msat
    assert not bought(sim).disputed and lost_msat > 2 * TRUST_MSAT
    assert bought(sim).billed_msat == bought(sim).charged_msat == account(sim).charged_msat


def test_what_is_lost_during_a_moment_without_radio_is_written_off_by_what_is_carried_later() -> None:
    sim = lossy()
    for _ in range(6):
        download(sim, packets=20, one_lost_of=1)
        download(sim, packets=200, one_lost_of=1000)
    sim.run(10)
    assert not bought(sim).disputed and bought(sim).tolerated_msat > TRUST_MSAT


@pytest.mark.parametrize(("states_losses", "share"), [(False, 0.01), (True, 0.11)])
def test_a_server_that_bills_more_gains_no_more_than_a_payment_and_what_the_link_may_lose(
    states_losses: bool, share: float
) -> None:
    """Whatever it states as lost of what we sent, a tenth of the bill is believed at most, beside VERIFY_TOLERANCE."""
    sim = lossy()
    download(sim, packets=1500, one_lost_of=4, sent_lost=states_losses)
    ours = bought(sim)
    warned = [e.text for e in sim.client.log if isinstance(e, fx.Log) and "written off" in e.text]
    assert ours.disputed and len(warned) == 1
    assert ours.charged_msat <= TRUST_MSAT + ours.metered_msat / (1 - share)
    (told,) = [e.text for e in sim.client.log if isinstance(e, fx.Log) and "nothing more is paid" in e.text]
    lost_percent = float(told.partition("tolerated, as ")[2].partition(" %")[0])
    assert lost_percent > 20 if states_losses else lost_percent < 3


def test_what_was_sent_is_not_billed_higher_than_it_was_counted() -> None:
    """A link loses nothing of what the server counts after it: beyond PAYMENT_AMOUNT nothing more is believed."""
    sim = lossy()
    for _ in range(100):
        sim.up(HOST, 50_000)
        sim.run(0.1)
    sim.run(10)
    ours = bought(sim)
    (contract,) = (one.contract for one in sim.contracts(sim.client))
    billed_msat = ours.metered_msat + TRUST_MSAT + 1
    line = StatementLine(contract, 1 << 30, 0, billed_msat)
    tell(sim, sim.client, Statement(ours.paid_msat, billed_msat, 0, (line,)))
    assert ours.disputed and ours.charged_msat <= ours.metered_msat + TRUST_MSAT
    assert not ours.tolerated_msat


def test_more_may_be_lost_if_the_operator_says_so() -> None:
    sim = Sim(
        settings(payment_amount_msat=TRUST_MSAT),
        settings(sells=False, payment_amount_msat=TRUST_MSAT, verify_tolerance_ppm=300_000),
    )
    download(sim, packets=1000, one_lost_of=4, sent_lost=False)
    assert not bought(sim).disputed and bought(sim).billed_msat > bought(sim).metered_msat * 5 // 4


def test_what_our_meter_forgot_in_a_reboot_hides_no_loss() -> None:
    """The server's first statement after it counts what our ledger lacks; only what follows is measured."""
    sim = lossy()
    download(sim, packets=50, one_lost_of=1000)
    sim.crash(sim.client, reboot=True)
    sim.run(0.001)
    download(sim, packets=200, one_lost_of=5)
    assert 150_000 < bought(sim).loss.ppm < 250_000


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
    billed_msat = min(used_bytes * 5 // 1024, 10**15)
    lines = (StatementLine(first.contract, used_bytes, 0, billed_msat),)
    return tell(sim, sim.client, Statement(0, billed_msat, 0, lines), link=link)


def test_a_server_with_another_link_address_is_believed_once_and_its_contracts_are_agreed_again() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 5)
    effects = moved(sim, b"\2gate2", 30_000_000)
    (answer,) = [one.message for one in effects if isinstance(one, fx.Send)]
    assert isinstance(answer, Cancel)
    assert [one for one in effects if isinstance(one, fx.HaltContract)]
    sim.run(1)
    assert sim.contracts(sim.client)[0].reason == "cancelled"
    assert not bought(sim).disputed
    sim.run(120)
    moved(sim, b"\2gate3", 60_000_000)
    assert bought(sim).disputed  # it moves too often


def test_a_move_ends_contracts_too_that_are_not_in_use() -> None:
    """They would be charged when they are used again, and our meter counts at the old link address."""
    sim = Sim()
    sim.flow("198.51.100.2", 1_000, 1)
    sim.flow(HOST, 100_000, 5)
    assert len(running(sim, sim.client)) == 2
    moved(sim, b"\2gate2", 600_000)
    sim.run(1)
    assert not running(sim, sim.client) and not running(sim, sim.gateway)


def test_a_server_with_another_link_address_is_not_believed_any_bill() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 5)
    moved(sim, b"\2gate2", 1 << 60)
    client = bought(sim)
    assert client.disputed
    assert client.tolerated_msat <= client.paid_msat + 3 * sim.client.settings.payment_amount_msat


def test_a_contract_that_the_client_ended_brings_its_server_no_further_payments() -> None:
    """Its bills are believed as far as the server had money in hand, and what is paid later doesn't raise that."""
    for ends in ("moved", "blocked"):
        sim = Sim()
        sim.flow(HOST, 100_000, 5)
        old = sim.contracts(sim.client)[0].contract
        if ends == "moved":
            moved(sim, b"\2gate2", 1_000_000)
        for blocked in (True, False) if ends == "blocked" else ():
            sim.happen(sim.client, ev.BlockNeighbour(sim.gateway.identity, blocked))
        sim.run(1)
        sim.flow("198.51.100.2", 100_000, 5)
        before_msat = bought(sim).paid_msat
        for number in range(1, 30):
            carried = 1_000_000 + 10_000_000 * number
            line = StatementLine(old, carried, 0, 50_000 * number)
            tell(sim, sim.client, Statement(0, 50_000 * number, 0, (line,)))
            asked = sim.payments.invoice("gateway", 100_000)
            tell(sim, sim.client, Invoice(asked.hex(), 100_000), decoded=sim.payments.decode(asked.hex()))
            sim.run(1)
        assert bought(sim).disputed
        # Three for what it had in hand, one tolerated in any bill, and two ahead.
        assert bought(sim).paid_msat - before_msat <= 6 * sim.client.settings.payment_amount_msat


def test_a_client_is_told_of_payments_that_its_server_has_forgotten() -> None:
    """The server has restored an older ledger. A payment that is under way is no reason to warn."""
    sim = Sim()
    sim.flow(HOST, 100_000, 5)
    paid_msat = bought(sim).paid_msat
    assert paid_msat
    told = Statement(paid_msat - 40_000, 0, 0, ())
    tell(sim, sim.client, told)
    assert not bought(sim).missing_msat
    sim.run(100)
    logs = [log for _ in range(3) for log in tell(sim, sim.client, told) if isinstance(log, fx.Log)]
    (warning,) = [log.text for log in logs]
    assert f"{paid_msat - 40_000} msat of {paid_msat} msat" in warning and "credit 40000 msat" in warning
    assert "40000 msat" in str(account_row(bought(sim), False).why_not)
    tell(sim, sim.client, Statement(paid_msat, 0, 0, ()))
    assert account_row(bought(sim), False).why_not is None


billing = st.one_of(
    st.tuples(st.just("bill"), st.integers(0, 3), st.integers(0, 1 << 28)),
    st.tuples(st.just("invoice"), st.integers(1, 300), st.just(0)),
    st.tuples(st.just("move"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("carry"), st.integers(1, 3), st.integers(1, 60)),
    st.tuples(st.just("run"), st.integers(1, 30), st.just(0)),
)


@pytest.mark.parametrize("seed", range(3))
@effort(max_examples=15, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(deeds=st.lists(billing, max_size=40))
def test_whatever_a_server_bills_it_is_paid_little_more_than_our_meter_counted(
    seed: int, deeds: list[tuple[str, int, int]]
) -> None:
    sim = Sim(seed=seed)
    sim.flow(HOST, 100_000, 2)
    link = sim.gateway.link
    for deed, number, amount in deeds:
        contracts = sim.contracts(sim.client)
        contract = contracts[number % len(contracts)].contract
        if deed == "bill":
            bill = Statement(0, amount * 5 >> 10, 0, (StatementLine(contract, amount, 0, amount * 5 >> 10),))
            tell(sim, sim.client, bill, link=link)
        elif deed == "invoice":
            asked = sim.payments.invoice("gateway", number * 1000)
            decoded = sim.payments.decode(asked.hex())
            tell(sim, sim.client, Invoice(asked.hex(), number * 1000), decoded=decoded, link=link)
        elif deed == "move":
            link = (link[0], b"\2gate" + bytes([number]))
            tell(sim, sim.client, Hello("sandbox", True, True, (), "ngp", False), link=link)
        elif deed == "cancel":
            tell(sim, sim.client, Cancel(contract, "cancelled"), link=link)
        elif deed == "carry":
            sim.flow(f"198.51.100.{number}", 1000 * amount, 1)
        sim.run(number / 10 if deed == "run" else 0.1)
        client, amount_msat = bought(sim), sim.client.settings.payment_amount_msat
        rest_msat = client.metered_msat // 50 + 8 * amount_msat
        assert client.paid_msat <= client.metered_msat + rest_msat


def test_a_server_that_sends_from_two_link_addresses_keeps_its_contracts() -> None:
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    tell(sim, sim.client, Hello("sandbox", True, True, (), "ngp", False), link=(sim.gateway.link[0], b"\2gate2"))
    sim.flow(HOST, 100_000, 2)
    tell(sim, sim.client, Hello("sandbox", True, True, (), "ngp", False))
    effects = moved(sim, b"\2gate2", 0)
    assert not [one for one in effects if isinstance(one, fx.HaltContract)]


def new_macs(sim: Sim, *nodes: Node) -> None:
    """Give nodes new link addresses, as when a VLAN or a cable between them is made anew; they say hello."""
    for node in nodes:
        node.link = (node.link[0], node.link[1] + b"2")
    for node in (sim.gateway, sim.client):
        sim.carry_out(node, [fx.Greet("eth1")])
    sim.run(0.1)


def running(sim: Sim, node: Node) -> set[bytes]:
    return {one.contract for one in sim.contracts(node) if not one.closed_at_s}


@pytest.mark.parametrize("moved", [("gateway",), ("client",), ("gateway", "client")])
@pytest.mark.parametrize("lost", [False, True])
def test_neighbours_with_new_link_addresses_agree_on_what_runs(moved: tuple[str, ...], lost: bool) -> None:
    """Whatever each of them does about it, neither may go on with a contract that is over for the other."""
    sim = Sim()
    sim.flow(HOST, 100_000, 7)
    new_macs(sim, *(getattr(sim, name) for name in moved))
    if lost:
        sim.silenced.add(Cancel)
    for host in (HOST, "198.51.100.2"):
        sim.flow(host, 50_000, 6)
    sim.silenced.clear()
    sim.flow(HOST, 50_000, 10)
    sim.run(10)
    assert running(sim, sim.gateway) == running(sim, sim.client) != set()
    assert not bought(sim).disputed
    assert bought(sim).charged_msat == account(sim).charged_msat


def test_a_server_that_carries_nothing_any_more_is_not_believed_for_new_link_addresses() -> None:
    sim = Sim(settings(), settings(sells=False))
    sim.flow(HOST, 2_000_000, 2)
    sim.run(10)
    (contract,) = (one.contract for one in sim.contracts(sim.client))
    metered_msat, top_up_msat = bought(sim).metered_msat, sim.client.settings.payment_amount_msat
    for hour in range(12):
        sim.now += 3700
        link = (sim.gateway.link[0], bytes((2, 9, hour, 1, 1, 1)))
        tell(sim, sim.client, Hello("sandbox", True, True, (), "ngp", False), link=link)
        billed_msat = bought(sim).charged_msat + top_up_msat
        bill = Statement(bought(sim).paid_msat, billed_msat, 0, (StatementLine(contract, 1 << 40, 0, billed_msat),))
        tell(sim, sim.client, bill, link=link)
    assert bought(sim).disputed
    assert bought(sim).charged_msat <= metered_msat * 11 // 10 + 2 * top_up_msat


def test_a_refusal_that_comes_too_late_ends_the_contract_on_both_sides_and_causes_no_dispute() -> None:
    """The server refused to renew a quote whose accept it hadn't heard yet; then the accept came, and it carries on."""
    sim = Sim(settings(trust_amount_msat=None), settings(sells=False, trust_amount_msat=None))
    sim.flow(HOST, 50_000, 2)
    contract = sim.contracts(sim.client)[0].contract
    tell(sim, sim.client, Reject(contract, RejectReason.BUSY))
    sim.flow(HOST, 100_000, 20)
    assert states(sim)[0] == ("closed", "cancelled")
    sim.run(10)
    assert not bought(sim).disputed and sim.passed > 1_000_000
    assert bought(sim).billed_msat == bought(sim).charged_msat == account(sim).charged_msat
