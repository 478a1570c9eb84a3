"""Rentals whose traffic is metered: what is charged, where the kernel cuts, and that no byte counts twice or never."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from let import FEE, RENT, SAT, Landlord, PaymentNodeOfLandlord, key, letting, offer

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.kernel import FULL_PACKET_BYTES, UNITS_PER_MSAT
from ngp.core.rental.effects import SettleInvoice
from ngp.core.rental.events import ReleaseRental, SwitchRental, TunnelPeerUnmetered
from ngp.core.rental.landlord import CLOSES_AFTER_S
from ngp.core.rental.metering import RENT_AHEAD_S
from ngp.core.rental.rental import RentalState
from ngp.core.rental.terms import MONTH_S, rent_msat
from ngp.core.rental.tunnel import TunnelPeer

PRICE = 5 << 20  # msat per GiB: 5 for a kilobyte
KILOBYTE = 1024
CREDIT = 1000 * SAT
POOLS = ("203.0.113.0/32", "2001:db8::/64")


@pytest.fixture
def landlord(tmp_path: Path) -> Iterator[Landlord]:
    """Rent and price, as shipped but for the price."""
    with closing(Landlord(tmp_path, letting(offer(price_msat_per_gib=PRICE)))) as made:
        made.face = "mesh"
        yield made


@pytest.fixture
def by_bytes(tmp_path: Path) -> Iterator[Landlord]:
    """No rent: traffic alone costs something. There is one address of each family."""
    terms = letting(offer(price_msat_per_gib=PRICE, rent_msat=0), pools=POOLS)
    with closing(Landlord(tmp_path, terms)) as made:
        made.face = "mesh"
        yield made


def traffic(kilobytes: int) -> int:
    """Return the price of some kilobytes, msat."""
    return kilobytes * KILOBYTE * PRICE // UNITS_PER_MSAT


def pay_more(landlord: Landlord, sat: int, tenant: int = 1) -> None:
    answer = landlord.ask(tenant, sat)
    assert answer is not None and landlord.pay(answer.bolt11), answer


def fill(landlord: Landlord, size: int, tenant: int = 1) -> int:
    """Send packets until one is refused; return how many passed."""
    passed = 0
    while landlord.carry(tenant, size, towards=bool(passed % 2)):
        passed += 1
    return passed


# --- charging ---------------------------------------------------------------------------------------------------------


def test_credit_is_what_was_paid_without_fee_rent_and_traffic(landlord: Landlord) -> None:
    landlord.rent(1, 1000)
    assert landlord.carry(1, 100 * KILOBYTE) and landlord.carry(1, 20 * KILOBYTE, towards=False, version=6)
    landlord.at(600)
    landlord.read()
    status = landlord.status(1)
    assert (status.used_to_bytes, status.used_from_bytes) == (100 * KILOBYTE, 20 * KILOBYTE)
    assert status.price_msat_per_gib == PRICE
    assert status.charged_msat == rent_msat(RENT, 600) + traffic(120)
    assert status.credit_msat == CREDIT - status.charged_msat
    landlord.check()


def test_parts_of_a_msat_add_up_and_are_rounded_once(by_bytes: Landlord) -> None:
    by_bytes.rent(1, 1000)
    for _ in range(1000):
        assert by_bytes.carry(1, 101)
        by_bytes.read()
    assert by_bytes.status(1).charged_msat == 101_000 * PRICE // UNITS_PER_MSAT
    pay_more(by_bytes, 500)
    assert by_bytes.carry(1, 101)
    by_bytes.read()
    assert by_bytes.status(1).charged_msat == 101_101 * PRICE // UNITS_PER_MSAT, "over a payment too"


@pytest.mark.parametrize("dies", [False, True])
def test_what_passed_just_before_the_operator_switched_it_off_is_charged(by_bytes: Landlord, dies: bool) -> None:
    rental = by_bytes.rent(1, 1000)
    assert by_bytes.carry(1, 10 * KILOBYTE)
    by_bytes.happen(SwitchRental(rental.id, False))
    if dies:
        by_bytes.crash()
    else:
        by_bytes.read()
    by_bytes.happen(ReleaseRental(rental.id))
    ((record, kept),) = by_bytes.ledger.rentals()
    assert record.used_to_bytes == 10 * KILOBYTE and kept.charged_msat == FEE + traffic(10)
    by_bytes.check()


def test_a_rental_doesnt_begin_late_while_the_kernel_stops_its_meter(tmp_path: Path) -> None:
    """Its first payment is taken when the operator has just released it; then the end of the meter is reported."""
    node, later = PaymentNodeOfLandlord(holds=True), list[fx.Effect]()
    with closing(Landlord(tmp_path, letting(offer(price_msat_per_gib=PRICE)), node=node)) as landlord:
        landlord.face, do = "mesh", landlord._do

        def slow(effect: fx.Effect) -> None:
            if isinstance(effect, SettleInvoice | fx.HaltContract):
                later.append(effect)
            elif not isinstance(effect, fx.CancelInvoice):  # our node takes the payment first
                do(effect)

        landlord._do = slow  # type: ignore[method-assign]
        asked = landlord.ask(1, 1000)
        assert asked is not None and landlord.pay(asked.bolt11)
        rental = landlord.rental(1)
        landlord.happen(ReleaseRental(rental.id))
        landlord._do = do  # type: ignore[method-assign]
        for effect in later:
            do(effect)
        assert rental.state is RentalState.RELEASED and not landlord.peers and not landlord.kernel.slots
        fetched = landlord.fetch(1, 1000)
        assert fetched is not None and not fetched.why_not
        landlord.check()


def test_a_payment_closes_the_period_with_its_bytes_and_charge(by_bytes: Landlord) -> None:
    rental = by_bytes.rent(1, 1000)
    assert by_bytes.carry(1, 100 * KILOBYTE) and by_bytes.carry(1, 2 * KILOBYTE, towards=False)
    by_bytes.read()
    pay_more(by_bytes, 500)
    assert by_bytes.carry(1, KILOBYTE)
    by_bytes.read()
    by_bytes.happen(ev.Stopping())
    periods = {one.state: one for one in by_bytes.ledger.contracts(include_closed=True) if one.identity == rental.id}
    assert periods.keys() == {"active", "closed"}
    first, second = periods["closed"], periods["active"]
    assert (first.used_to_bytes, first.used_from_bytes) == (100 * KILOBYTE, 2 * KILOBYTE)
    assert (first.charged_msat, first.prices) == (FEE + traffic(102), ((0, PRICE),))
    assert (second.used_to_bytes, second.used_from_bytes, second.charged_msat) == (KILOBYTE, 0, 0)
    lines = [line for line in by_bytes.ledger.journal() if line.identity == rental.id and line.kind == "charge"]
    assert [(line.contract, line.amount_msat) for line in lines] == [(first.contract, -traffic(102))]
    by_bytes.check()


def test_a_new_price_holds_from_the_payment_of_its_invoice_on(by_bytes: Landlord) -> None:
    by_bytes.rent(1, 1000)
    by_bytes.terms = letting(offer(price_msat_per_gib=3 * PRICE, rent_msat=0))
    by_bytes.happen(ev.SettingsChanged(replace(by_bytes.world.settings, letting=by_bytes.terms)))
    answer = by_bytes.ask(1, 500)
    assert by_bytes.carry(1, 10 * KILOBYTE)
    by_bytes.read()
    assert by_bytes.status(1).charged_msat == traffic(10), "asked for, not paid"
    assert by_bytes.carry(1, 5 * KILOBYTE)  # the kernel charges these at the former price: its limit must follow
    assert answer is not None and by_bytes.pay(answer.bolt11)
    assert by_bytes.status(1).price_msat_per_gib == 3 * PRICE
    assert by_bytes.carry(1, 5 * KILOBYTE)
    by_bytes.read()
    assert by_bytes.status(1).charged_msat == traffic(40)
    passed = fill(by_bytes, KILOBYTE)
    assert passed * KILOBYTE * 3 * PRICE <= by_bytes.credit(1) * UNITS_PER_MSAT < (passed + 1) * KILOBYTE * 3 * PRICE
    by_bytes.read()
    by_bytes.check()


@pytest.mark.parametrize(("before", "then"), [(0, PRICE), (PRICE, 0)])
def test_an_offer_becomes_metered_or_free_with_a_payment(tmp_path: Path, before: int, then: int) -> None:
    with closing(Landlord(tmp_path, letting(offer(price_msat_per_gib=before)))) as landlord:
        landlord.face = "mesh"
        landlord.rent(1, 1000)
        assert landlord.carry(1, 10 * KILOBYTE)
        landlord.read()
        landlord.terms = letting(offer(price_msat_per_gib=then))
        landlord.happen(ev.SettingsChanged(replace(landlord.world.settings, letting=landlord.terms)))
        pay_more(landlord, 500)
        assert landlord.carry(1, 10 * KILOBYTE)
        landlord.crash()
        landlord.read()
        assert landlord.status(1).charged_msat == traffic(10)
        landlord.check()


# --- the end of the credit --------------------------------------------------------------------------------------------


def test_the_kernel_cuts_at_the_byte_and_then_the_rental_is_reserved(by_bytes: Landlord) -> None:
    by_bytes.rent(1, 1000)
    paid_for = CREDIT * UNITS_PER_MSAT // (KILOBYTE * PRICE)
    assert fill(by_bytes, KILOBYTE) == paid_for, "no daemon has read anything meanwhile"
    assert not by_bytes.carry(1, KILOBYTE, version=6), "both families use one account"
    by_bytes.read()
    assert by_bytes.rental(1).state is RentalState.RESERVED
    assert 0 <= by_bytes.credit(1) < traffic(2)
    by_bytes.check()


def test_what_is_charged_still_leaves_the_tunnel_before_the_networks_go(by_bytes: Landlord) -> None:
    """wireguard-go drops what waits for a tenant without networks: of 100 packets charged, up to 100 were lost."""
    networks = by_bytes.rent(1, 1000).networks
    fill(by_bytes, KILOBYTE)
    by_bytes.read()
    assert by_bytes.rental(1).state is RentalState.RESERVED and by_bytes.peers == {key(1): networks}
    assert not by_bytes.carry(1, 1), "the kernel's cut"
    by_bytes.at(CLOSES_AFTER_S + 1)
    assert not by_bytes.peers and by_bytes.idle == {key(1)}
    by_bytes.check()


@pytest.mark.parametrize("then", ["paid", "off", "released", "killed"])
def test_while_the_networks_are_about_to_go_anything_may_happen(by_bytes: Landlord, then: str) -> None:
    rental = by_bytes.rent(1, 1000)
    fill(by_bytes, KILOBYTE)
    by_bytes.read()
    if then == "paid":
        pay_more(by_bytes, 500)
    elif then == "off":
        by_bytes.happen(SwitchRental(rental.id, False))
    elif then == "released":
        by_bytes.happen(ReleaseRental(rental.id))
    else:
        by_bytes.crash()
    stays = {key(1): rental.networks} if then == "paid" else {}
    assert by_bytes.peers == stays
    by_bytes.at(2 * CLOSES_AFTER_S)
    assert by_bytes.peers == stays
    by_bytes.check()


def test_without_a_price_the_networks_go_with_the_credit(by_bytes: Landlord) -> None:
    """A contract at price 0 draws on no account, so the kernel cuts nothing."""
    by_bytes.rent(1, 1000)
    by_bytes.reload(letting(offer(rent_msat=RENT), pools=POOLS))
    pay_more(by_bytes, 500)
    assert by_bytes.carry(1, KILOBYTE)
    by_bytes.at(1500 * SAT * MONTH_S // RENT + 600)
    assert by_bytes.rental(1).state is RentalState.RESERVED and not by_bytes.peers
    by_bytes.check()


# --- a kernel that refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", [0, PRICE])
def test_a_tenant_gets_networks_only_with_the_contracts_that_meter_it(tmp_path: Path, price: int) -> None:
    with closing(Landlord(tmp_path, letting(offer(price_msat_per_gib=price)))) as landlord:
        landlord.face = "mesh"
        rental = landlord.rent(1, 1000)
        needed = (rental.id[:16], rental.id[16:]) if price else ()
        assert landlord.tunnel_peer(1).contracts == needed and set(needed) == set(landlord.kernel.slots)
        landlord.crash()
        assert landlord.tunnel_peer(1).contracts == needed and set(needed) == set(landlord.kernel.slots)


def test_what_the_kernel_refused_to_meter_is_tried_again_each_minute(by_bytes: Landlord) -> None:
    rental = by_bytes.rent(1, 1000)
    for _ in range(2):
        by_bytes.kernel.revoke(rental.id[:16])
        by_bytes._set_peer(TunnelPeer(key(1), ()))
        by_bytes.happen(TunnelPeerUnmetered(key(1)))
        assert "gets no traffic: the kernel refused to meter it" in by_bytes.log[-1]
        by_bytes.at(RENT_AHEAD_S - 2)
        assert not by_bytes.peers and rental.id[:16] not in by_bytes.kernel.slots
        by_bytes.at(3)
        assert by_bytes.peers == {key(1): rental.networks} and rental.id[:16] in by_bytes.kernel.slots
    before = len(by_bytes.log)
    by_bytes.at(3 * RENT_AHEAD_S)
    by_bytes.happen(TunnelPeerUnmetered(key(2)))  # a tenant that has gone meanwhile
    assert len(by_bytes.log) == before
    by_bytes.check()


def test_what_passed_while_no_daemon_ran_is_charged_at_the_price_that_the_kernel_had(by_bytes: Landlord) -> None:
    """The daemon dies when the ledger has the new price, and the kernel hasn't: only the former price was covered."""
    by_bytes.rent(1, 1000)
    by_bytes.reload(letting(offer(price_msat_per_gib=3 * PRICE, rent_msat=0), pools=POOLS))
    answer = by_bytes.ask(1, 500)
    assert answer is not None
    by_bytes.node.pay(bytes.fromhex(answer.bolt11))
    start = by_bytes._start

    def dead_for_a_while() -> None:
        assert by_bytes.carry(1, 10 * KILOBYTE)
        start()

    with mock.patch.object(by_bytes, "_start", dead_for_a_while):
        by_bytes.crash_after = 0
        by_bytes.hear()
    assert by_bytes.status(1).price_msat_per_gib == 3 * PRICE
    assert by_bytes.status(1).charged_msat == traffic(10)
    assert by_bytes.carry(1, KILOBYTE)
    by_bytes.read()
    assert by_bytes.status(1).charged_msat == traffic(13)
    by_bytes.check()


def test_rent_is_kept_back_for_a_minute_and_lowers_what_may_pass(landlord: Landlord) -> None:
    rental = landlord.rent(1, 1000)
    landlord.at(3600)
    entry = landlord.kernel.accounts[rental.id]
    covered = entry.limit.limit_units // UNITS_PER_MSAT
    assert CREDIT - rent_msat(RENT, 3600 + RENT_AHEAD_S) <= covered <= CREDIT - rent_msat(RENT, 3600)
    assert fill(landlord, 1000) == covered * UNITS_PER_MSAT // (1000 * PRICE)
    landlord.read()
    assert landlord.rental(1).state is RentalState.RESERVED
    assert 0 < landlord.credit(1) <= rent_msat(RENT, RENT_AHEAD_S) + traffic(2), "it pays rent now"
    landlord.check()


def test_without_traffic_the_rent_uses_the_credit_up(landlord: Landlord) -> None:
    landlord.rent(1, 1000)
    ends_s = CREDIT * MONTH_S // RENT
    landlord.at(ends_s - 2 * RENT_AHEAD_S)
    assert landlord.rental(1).state is RentalState.ACTIVE
    landlord.at(2 * RENT_AHEAD_S)
    assert landlord.rental(1).state is RentalState.RESERVED
    landlord.check()


def test_a_packet_that_costs_more_than_is_left_ends_nothing_while_a_full_one_is_paid(by_bytes: Landlord) -> None:
    by_bytes.rent(1, 1000)
    most = CREDIT * UNITS_PER_MSAT // PRICE
    assert by_bytes.carry(1, most - 20_000) and not by_bytes.carry(1, 64_000)
    by_bytes.read()
    assert by_bytes.rental(1).state is RentalState.ACTIVE
    assert fill(by_bytes, FULL_PACKET_BYTES) == 13
    by_bytes.read()
    assert by_bytes.rental(1).state is RentalState.RESERVED


def test_a_payment_turns_it_on_again_with_the_same_networks(by_bytes: Landlord) -> None:
    networks = by_bytes.rent(1, 1000).networks
    before = fill(by_bytes, KILOBYTE)
    by_bytes.read()
    pay_more(by_bytes, 500)
    assert by_bytes.rental(1).state is RentalState.ACTIVE and by_bytes.peers == {key(1): networks}
    more = fill(by_bytes, KILOBYTE)
    assert before + more == (CREDIT + 500 * SAT) * UNITS_PER_MSAT // (KILOBYTE * PRICE)
    by_bytes.read()
    by_bytes.check()


def test_without_rent_a_rental_lasts_until_its_traffic_and_the_reserved_time_are_over(by_bytes: Landlord) -> None:
    by_bytes.rent(1, 1000)
    by_bytes.at(12 * MONTH_S)
    assert by_bytes.rental(1).state is RentalState.ACTIVE and by_bytes.credit(1) == CREDIT
    fill(by_bytes, KILOBYTE)
    by_bytes.read()
    by_bytes.at(2 * MONTH_S + 1)
    assert by_bytes.rental(1).state is RentalState.RELEASED
    assert not by_bytes.kernel.slots and not by_bytes.kernel.accounts
    by_bytes.check()


def test_nothing_passes_before_a_held_first_payment_is_taken(tmp_path: Path) -> None:
    """The tunnel has the tenant already: only then its payment is taken."""
    node, terms = PaymentNodeOfLandlord(holds=True), letting(offer(price_msat_per_gib=PRICE))
    with closing(Landlord(tmp_path, terms, node=node)) as landlord:
        landlord.face = "mesh"
        answer = landlord.ask(1, 1000)
        assert answer is not None
        with mock.patch.object(PaymentNodeOfLandlord, "settle", return_value=False):
            landlord.pay(answer.bolt11)
            landlord.at(1)
            assert landlord.peers and landlord.rental(1).state is RentalState.PENDING
            assert not landlord.carry(1, 100) and not landlord.carry(1, 100, towards=False, version=6)
        landlord.crash()
        landlord.at(1)
        assert landlord.rental(1).state is RentalState.ACTIVE and landlord.carry(1, 100)
        landlord.read()
        landlord.check()


# --- crashes ----------------------------------------------------------------------------------------------------------


def test_a_restart_charges_once_what_the_kernel_carried_meanwhile(by_bytes: Landlord) -> None:
    by_bytes.rent(1, 1000)
    assert by_bytes.carry(1, 10 * KILOBYTE)
    by_bytes.read()
    assert by_bytes.carry(1, 20 * KILOBYTE) and by_bytes.carry(1, 3 * KILOBYTE, version=6)
    for _ in range(3):
        by_bytes.crash()
        assert by_bytes.status(1).charged_msat == traffic(33)
        by_bytes.check()
    left = CREDIT - traffic(33)
    assert fill(by_bytes, KILOBYTE) == left * UNITS_PER_MSAT // (KILOBYTE * PRICE)
    by_bytes.crash()
    assert by_bytes.rental(1).state is RentalState.RESERVED and not by_bytes.peers
    by_bytes.check()


def test_after_a_reboot_counting_goes_on_from_the_ledger(by_bytes: Landlord) -> None:
    by_bytes.rent(1, 1000)
    assert by_bytes.carry(1, 10 * KILOBYTE) and by_bytes.carry(1, KILOBYTE, version=6, towards=False)
    by_bytes.read()
    by_bytes.happen(ev.Stopping())
    by_bytes.crash(reboot=True)
    assert by_bytes.status(1).charged_msat == traffic(11)
    assert by_bytes.carry(1, 2 * KILOBYTE, version=6)
    by_bytes.read()
    by_bytes.crash()
    status = by_bytes.status(1)
    assert (status.used_to_bytes, status.used_from_bytes) == (12 * KILOBYTE, KILOBYTE)
    assert status.charged_msat == traffic(13)
    by_bytes.check()


def test_what_the_tables_of_another_version_counted_is_charged_once(by_bytes: Landlord) -> None:
    """Its readings come after the start (`ngp.daemon.last_books`); the new tables are empty."""
    rental = by_bytes.rent(1, 1000)
    assert by_bytes.carry(1, 10 * KILOBYTE) and by_bytes.carry(1, 3 * KILOBYTE, version=6)
    by_bytes.read()
    by_bytes.happen(ev.Stopping())
    assert by_bytes.carry(1, 20 * KILOBYTE) and by_bytes.carry(1, 2 * KILOBYTE, version=6, towards=False)
    readings = by_bytes.kernel.read(contract for contract, _ in rental.contracts)
    by_bytes.crash(reboot=True)
    by_bytes.happen(ev.UsageRead(readings))
    assert by_bytes.status(1).charged_msat == traffic(35)
    by_bytes.happen(ev.Stopping())
    by_bytes.crash(reboot=True)
    by_bytes.happen(ev.UsageRead(readings))
    assert by_bytes.status(1).charged_msat == traffic(35), "also if it is killed and told again"
    assert by_bytes.carry(1, KILOBYTE, version=6)
    by_bytes.read()
    assert by_bytes.status(1).charged_msat == traffic(36)


def test_totals_are_written_each_minute(by_bytes: Landlord) -> None:
    rental = by_bytes.rent(1, 1000)
    assert by_bytes.carry(1, 10 * KILOBYTE)
    by_bytes.read()
    by_bytes.at(61)
    ((record, _),) = by_bytes.ledger.rentals()
    assert record.used_to_bytes == 10 * KILOBYTE and record.traffic_units == 10 * KILOBYTE * PRICE
    assert rental.traffic_units == record.traffic_units


# --- the operator -----------------------------------------------------------------------------------------------------


def test_nothing_passes_while_it_is_switched_off(by_bytes: Landlord) -> None:
    rental = by_bytes.rent(1, 1000)
    assert by_bytes.carry(1, KILOBYTE)
    by_bytes.happen(SwitchRental(rental.id, False))
    by_bytes.peers[key(1)] = rental.networks  # the tunnel couldn't be changed: the kernel refuses by itself
    assert not by_bytes.carry(1, KILOBYTE)
    by_bytes.peers.clear()
    by_bytes.read()
    by_bytes.happen(SwitchRental(rental.id, True))
    assert by_bytes.carry(1, KILOBYTE)
    by_bytes.read()
    assert by_bytes.status(1).charged_msat == traffic(2)
    by_bytes.check()


@pytest.mark.parametrize("crash_after", [-1, *range(6)])
def test_a_release_charges_to_the_last_byte_and_the_next_tenant_pays_its_own(
    by_bytes: Landlord, crash_after: int
) -> None:
    rental = by_bytes.rent(1, 1000)
    assert by_bytes.carry(1, 10 * KILOBYTE) and by_bytes.carry(1, KILOBYTE, version=6)
    by_bytes.crash_after = crash_after
    by_bytes.happen(ReleaseRental(rental.id))
    by_bytes.crash_after = -1
    (account,) = (one for one in by_bytes.ledger.load(0).accounts if one.identity == rental.id)
    assert account.charged_msat == FEE + traffic(11)
    assert not by_bytes.kernel.slots and not by_bytes.kernel.accounts and not by_bytes.peers
    assert not by_bytes.world.letting.metered
    assert {one.state for one in by_bytes.ledger.contracts(include_closed=True)} == {"closed"}
    by_bytes.rent(2, 1000)
    assert by_bytes.carry(2, KILOBYTE)
    by_bytes.read()
    assert by_bytes.status(2).charged_msat == traffic(1)
    by_bytes.check()


def test_money_is_given_back_only_when_the_last_bytes_are_counted(by_bytes: Landlord) -> None:
    rental = by_bytes.rent(1, 1000)
    assert by_bytes.carry(1, 10 * KILOBYTE)
    effects = by_bytes.gatekeeper.step(ReleaseRental(rental.id), by_bytes.clock())
    early = by_bytes.fetch(1, 900)
    assert early is not None and "no money left" in early.why_not
    by_bytes._carry_out(effects)
    assert by_bytes.status(1).fetchable_msat == (CREDIT - traffic(10)) // SAT * SAT
    by_bytes.check()


# --- room -------------------------------------------------------------------------------------------------------------


def test_a_rental_that_the_kernel_has_no_room_for_is_refused(landlord: Landlord) -> None:
    landlord.rent(1, 1000)
    landlord.world.settings = replace(landlord.world.settings, contracts_max=3)
    answer = landlord.ask(2, 1000)
    assert answer is not None and "all places for metered rentals are taken" in answer.why_not
    assert any("CONTRACTS_MAX" in line for line in landlord.log)
    landlord.world.settings = replace(landlord.world.settings, contracts_max=4)
    landlord.world.room = 3  # the running table's size stays, whatever net.conf says
    answer = landlord.ask(2, 1000)
    assert answer is not None and "all places" in answer.why_not
    landlord.world.room = 4
    landlord.rent(2, 1000)
    landlord.check()


def test_over_https_nobody_gets_a_price(tmp_path: Path) -> None:
    """The first offer has none there, but a rental's own offer may get one later."""
    with closing(Landlord(tmp_path)) as landlord:
        landlord.rent(1, 1000)
        landlord.terms = letting(offer(name="other"), offer(price_msat_per_gib=PRICE))
        landlord.happen(ev.SettingsChanged(replace(landlord.world.settings, letting=landlord.terms)))
        for tenant, name in ((1, ""), (2, "default")):
            answer = landlord.ask(tenant, 1000, name)
            assert answer is not None and "which can't be agreed over HTTPS" in answer.why_not
        landlord.face = "grpc"
        pay_more(landlord, 1000)
        assert landlord.status(1).price_msat_per_gib == PRICE


def test_an_unpaid_metered_rental_leaves_nothing(landlord: Landlord) -> None:
    landlord.ask(1, 1000)
    landlord.at(3600)
    assert not landlord.world.letting.metered and not landlord.kernel.slots
    assert not [one for one in landlord.log if isinstance(one, fx.GrantContract)]
