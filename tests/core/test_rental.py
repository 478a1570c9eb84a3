"""The life of a rental, from the first invoice to the release, under clocks that jump, crashes and late payments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from let import FEE, MONTH_S, RENT, SAT, Landlord, PaymentNodeOfLandlord, key, letting, offer

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.contract import IllegalMove
from ngp.core.messages import Paid
from ngp.core.records import ForgetNeighbours
from ngp.core.rental.effects import HoldNetworks
from ngp.core.rental.events import NetworksHeld, ReleaseRental, RentProven, SwitchRental
from ngp.core.rental.rental import MOVES, RentalState
from ngp.core.rental.terms import lasts_s, rent_msat

V4, V6 = ip_network("203.0.113.0/32"), ip_network("2001:db8::/64")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Landlord]:
    """A landlord with one address of each family."""
    with closing(Landlord(tmp_path, letting(pools=("203.0.113.0/32", "2001:db8::/64")))) as made:
        yield made


# --- terms ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**12), st.integers(-1000, 10**15))
def test_a_credit_is_used_up_at_the_second_that_is_foretold(month: int, credit: int) -> None:
    ends_s = lasts_s(credit, month)
    assert credit - rent_msat(month, ends_s) <= 0
    assert ends_s == 0 or credit - rent_msat(month, ends_s - 1) > 0


@pytest.mark.parametrize(
    ("sat", "says"),
    [(999, "at least 1000 sat"), (72_001, "at most 72000 sat"), (0, "at least"), (-5, "at least")],
)
def test_a_first_credit_beyond_the_terms_is_refused_with_the_limit(landlord: Landlord, sat: int, says: str) -> None:
    answer = landlord.ask(1, sat)
    assert answer is not None and says in answer.why_not and f"{sat} sat" in answer.why_not
    assert not landlord.world.letting.rentals and not landlord.node.amounts


def test_a_part_of_a_sat_is_refused_with_the_next_whole_one() -> None:
    assert "1501 sat" in offer().refuse_first(1_500_001)


def test_credit_above_the_most_is_refused_with_what_is_left(landlord: Landlord) -> None:
    landlord.rent(1, 70_000)
    answer = landlord.ask(1, 3000)
    assert answer is not None and "at most 2000 sat now" in answer.why_not


# --- terms of an invoice ----------------------------------------------------------------------------------------------


DEARER = letting(offer(activation_fee_msat=100_000 * SAT, rent_msat=2 * RENT))


@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("how", ["refuses", "slow"])
def test_an_invoice_that_is_paid_brings_its_own_terms_if_no_other_could_be_made(
    tmp_path: Path, how: str, holds: bool
) -> None:
    with closing(Landlord(tmp_path, node=PaymentNodeOfLandlord(holds=holds))) as landlord:
        first = landlord.ask(1, 1000)
        assert first is not None
        landlord.reload(DEARER)
        setattr(landlord.node, how, "it is down")
        landlord.ask(1, 1000)
        assert landlord.pay(first.bolt11)
        rental = landlord.rental(1)
        assert (rental.activation_fee_msat, rental.rent_msat) == (FEE, RENT) and landlord.credit(1) == 1000 * SAT
        landlord.check()


@pytest.mark.parametrize("is_first", [False, True])
def test_a_replaced_invoice_that_is_paid_all_the_same_brings_its_own_terms(landlord: Landlord, is_first: bool) -> None:
    if not is_first:
        landlord.rent(1, 10_000)
    former = landlord.ask(1, 1000)
    landlord.reload(DEARER)
    landlord.node.away = True  # it doesn't cancel the former invoice
    assert former is not None and landlord.ask(1, 1000) is not None
    assert landlord.pay(former.bolt11)
    assert (landlord.rental(1).activation_fee_msat, landlord.rental(1).rent_msat) == (FEE, RENT)
    landlord.check()


def test_no_activation_fee_makes_a_debt(landlord: Landlord) -> None:
    """After a start the terms of a replaced invoice aren't known any more; those of the new one hold."""
    former = landlord.ask(1, 1000)
    landlord.reload(DEARER)
    landlord.node.away = True
    assert former is not None and landlord.ask(1, 1000) is not None
    landlord.crash()
    assert landlord.pay(former.bolt11)
    assert landlord.rental(1).activation_fee_msat == FEE + 1000 * SAT
    landlord.check()


# --- life -------------------------------------------------------------------------------------------------------------


def test_a_paid_invoice_opens_the_tunnel_with_the_promised_networks(landlord: Landlord) -> None:
    answer = landlord.ask(1, 1000)
    assert answer is not None and landlord.node.amounts[bytes.fromhex(answer.bolt11)] == FEE + 1000 * SAT
    assert landlord.rental(1).state is RentalState.PENDING and not landlord.peers
    assert landlord.pay(answer.bolt11)
    assert landlord.peers == {key(1): (V4, V6)}
    assert (landlord.rental(1).state, landlord.credit(1)) == (RentalState.ACTIVE, 1000 * SAT)
    landlord.check()


def test_the_tunnel_is_off_within_the_second_in_which_the_credit_ends(landlord: Landlord) -> None:
    landlord.rent(1, 1000)
    ends_s = lasts_s(1000 * SAT, RENT)
    landlord.at(ends_s - 1)
    assert landlord.peers and landlord.credit(1) > 0
    landlord.at(1.01)
    assert not landlord.peers and landlord.rental(1).state is RentalState.RESERVED
    assert -20 <= landlord.credit(1) <= 0
    landlord.check()


def test_without_credit_a_tenant_stays_in_the_tunnel_without_networks_until_it_is_over(landlord: Landlord) -> None:
    """So its WireGuard session goes on, and it is reached as soon as it has paid."""
    landlord.rent(1, 1000)
    landlord.at(lasts_s(1000 * SAT, RENT) + 1)
    for _ in range(2):
        assert landlord.idle == {key(1)} and not landlord.peers
        landlord.crash()
    landlord.happen(ReleaseRental(landlord.rental(1).id))
    assert not landlord.idle and not landlord.peers


def test_back_rent_comes_in_parts_and_the_same_networks_come_back(landlord: Landlord) -> None:
    landlord.rent(1, 1000)
    landlord.at(lasts_s(1000 * SAT, RENT) + MONTH_S / 24)  # 1,000 sat of back rent
    assert landlord.rental(1).state is RentalState.RESERVED
    assert landlord.credit(1) == pytest.approx(-1000 * SAT, abs=20)
    for part in (500, 500):
        answer = landlord.ask(1, part)
        assert answer is not None and landlord.pay(answer.bolt11)
        assert landlord.rental(1).state is RentalState.RESERVED
    answer = landlord.ask(1, 500)
    assert answer is not None and landlord.pay(answer.bolt11)
    assert landlord.peers == {key(1): (V4, V6)} and landlord.credit(1) == pytest.approx(500 * SAT, abs=20)
    landlord.check()


def test_back_rent_and_the_most_credit_can_be_paid_at_once(landlord: Landlord) -> None:
    landlord.rent(1, 1000)
    landlord.at(MONTH_S)
    back = -landlord.credit(1)
    assert back > 22_900 * SAT
    most = (72_000 * SAT + back) // SAT
    refused, answer = landlord.ask(1, most + 1), landlord.ask(1, most)
    assert refused is not None and f"at most {most} sat now" in refused.why_not
    assert answer is not None and landlord.pay(answer.bolt11)
    assert 71_999 * SAT < landlord.credit(1) <= 72_000 * SAT
    landlord.check()


def test_after_the_reserved_time_the_networks_go_to_the_next(small: Landlord) -> None:
    landlord = small
    landlord.rent(1, 1000)
    answer = landlord.ask(2, 1000)
    assert answer is not None and "let" in answer.why_not
    landlord.at(lasts_s(1000 * SAT, RENT) + 2 * MONTH_S - 1)
    answer = landlord.ask(2, 1000)
    assert answer is not None and answer.why_not
    landlord.at(2)
    assert landlord.rental(1).state is RentalState.RELEASED
    landlord.rent(2, 1000)
    assert landlord.peers == {key(2): (V4, V6)}
    landlord.check()


def test_an_invoice_that_nobody_pays_frees_its_networks(landlord: Landlord) -> None:
    landlord.ask(1, 1000)
    assert landlord.world.letting.free.count(4, 32) == 7
    landlord.at(700)
    assert landlord.world.letting.free.count(4, 32) == 8
    landlord.check()


def test_a_late_payment_of_a_released_rental_is_served_if_its_networks_are_free(landlord: Landlord) -> None:
    landlord.pay_late(1)
    landlord.hear()
    assert landlord.peers == {key(1): (V4, V6)} and landlord.credit(1) == 1000 * SAT
    landlord.check()


def test_a_late_payment_whose_networks_are_let_to_another_stays_the_tenants(small: Landlord) -> None:
    landlord = small
    first = landlord.pay_late(1)
    second = landlord.ask(2, 1000)
    assert second is not None and not second.why_not
    landlord.hear()
    assert first.state is RentalState.RELEASED and key(1) not in landlord.peers
    assert landlord.world.client(first.id).balance_msat == FEE + 1000 * SAT
    assert landlord.pay(second.bolt11) and landlord.peers == {key(2): (V4, V6)}
    landlord.crash()
    assert landlord.world.letting.rentals[first.id].state is RentalState.RELEASED, "its money is still known"
    landlord.check()


# --- other landlords with the same ledger -----------------------------------------------------------------------------


def test_networks_that_another_landlord_has_are_not_let(landlord: Landlord) -> None:
    landlord.let_by_others(["203.0.113.0/31", "203.0.113.4/32", "2001:db8::/64"])
    landlord.rent(1)
    assert landlord.peers == {key(1): (ip_network("203.0.113.5/32"), ip_network("2001:db8:0:1::/64"))}
    landlord.rent(2)
    landlord.check()


def test_a_restart_knows_a_tenants_newest_rental_beside_older_ones_with_money_left(landlord: Landlord) -> None:
    for tenant in range(1, 7):
        landlord.rent(tenant, 1000)
        landlord.happen(ReleaseRental(landlord.rental(tenant).id))
        landlord.rent(tenant, 1000)
    landlord.crash()
    assert {landlord.rental(tenant).state for tenant in range(1, 7)} == {RentalState.ACTIVE}
    landlord.check()


@pytest.mark.parametrize("waiting", [False, True], ids=["paid", "while the ledger is asked"])
def test_a_late_payment_of_a_tenant_that_rented_anew_stays_the_tenants(landlord: Landlord, waiting: bool) -> None:
    first = landlord.pay_late(1)
    held: list[HoldNetworks] = []
    if waiting:
        landlord.held_later = held.append
        landlord.hear()
        landlord.held_later = None
        landlord.rent(1)
        landlord._do(held[0])
    else:
        landlord.rent(1)
    assert first.state is RentalState.RELEASED and landlord.rental(1) is not first
    assert landlord.world.client(first.id).balance_msat == FEE + 1000 * SAT
    assert landlord.peers == {key(1): landlord.rental(1).networks}
    landlord.check()
    landlord.crash()
    assert landlord.peers == {key(1): landlord.rental(1).networks}


def test_a_start_knows_what_other_landlords_have(landlord: Landlord) -> None:
    landlord.let_by_others(["203.0.113.0/30"])
    landlord.crash()
    assert landlord.world.letting.free.count(4, 32) == 4
    landlord.happen(ev.SettingsChanged(landlord.world.settings))
    assert landlord.world.letting.free.count(4, 32) == 4, "a reload doesn't forget it"


def test_what_another_landlord_gives_back_is_found_when_everything_else_is_let(small: Landlord) -> None:
    small.let_by_others(["203.0.113.0/32"])
    answer = small.ask(1, 1000)
    assert answer is not None and "all addresses of this offer are let" in answer.why_not
    assert not small.world.letting.rentals and not small.node.amounts
    small.let_by_others([])
    small.rent(1)
    small.check()


def test_a_late_payment_whose_networks_another_landlord_has_stays_the_tenants(small: Landlord) -> None:
    first = small.pay_late(1)
    small.let_by_others(["203.0.113.0/32"])
    small.hear()
    assert first.state is RentalState.RELEASED and not small.peers
    small.let_by_others([])
    small.crash()
    assert not small.peers and small.world.client(first.id).balance_msat == FEE + 1000 * SAT
    assert "kept for the tenant" in small.log[-1]
    small.rent(2)
    small.check()


def test_a_late_payment_is_served_after_a_crash_before_the_ledger_held_its_networks(small: Landlord) -> None:
    small.pay_late(1)
    small.crash_after = 0
    small.hear()
    assert small.peers == {key(1): (V4, V6)} and small.credit(1) == 1000 * SAT
    small.check()


def test_nobody_gets_the_networks_of_a_late_payment_before_it_is_decided(small: Landlord) -> None:
    small.pay_late(1)
    waiting: list[HoldNetworks] = []
    small.held_later = waiting.append
    small.hear()
    small.happen(ev.SettingsChanged(small.world.settings))
    second = small.ask(2, 1000)
    assert second is not None and "are let" in second.why_not
    small.held_later = None
    small._do(waiting[0])
    assert small.peers == {key(1): (V4, V6)}
    small.check()


def test_a_rental_that_is_released_while_its_networks_are_being_held_leaves_nothing(small: Landlord) -> None:
    waiting: list[HoldNetworks] = []
    small.held_later = waiting.append
    assert small.ask(1, 1000) is None
    again = small.ask(1, 1000)
    assert again is not None and "ask again in a moment" in again.why_not, "one invoice at a time"
    small.happen(ReleaseRental(small.rental(1).id))
    effects = small.gatekeeper.step(NetworksHeld(waiting[0].rental), small.clock())
    assert [one.record for one in effects if isinstance(one, fx.Persist)] == [ForgetNeighbours((waiting[0].rental,))]


def test_a_new_invoice_replaces_the_one_before_and_both_payments_count(landlord: Landlord) -> None:
    landlord.rent(1, 1000)
    first, second = landlord.ask(1, 600), landlord.ask(1, 700)
    assert first is not None and second is not None
    assert not landlord.pay(first.bolt11), "it was cancelled"
    assert landlord.pay(second.bolt11)
    assert landlord.credit(1) == 1700 * SAT


def test_an_invoice_that_is_cancelled_leaves_a_rental_to_an_earlier_one_that_was_paid(landlord: Landlord) -> None:
    """The node was away when the first was replaced, then it was paid; the daemon is killed before it hears of that."""
    first = landlord.ask(1, 1000)
    landlord.node.away = True
    assert first is not None and landlord.ask(1, 1000) is not None
    landlord.node.away = False
    landlord.node.paid.append((bytes.fromhex(first.bolt11), FEE + 1000 * SAT))
    landlord.at(1000)
    assert [one.rental for one, _ in landlord.ledger.rentals()] == [landlord.rental(1).id]
    landlord.crash()
    assert landlord.rental(1).state is RentalState.ACTIVE and landlord.credit(1) == 1000 * SAT
    landlord.check()


def test_a_rental_that_a_stranger_asked_for_with_the_tenants_key_is_not_shown_to_strangers(landlord: Landlord) -> None:
    """HTTPS shows the rentals that were made there, and asks for no proof of the key."""
    landlord.ask(1, 1000)
    landlord.face = "grpc"
    landlord.rent(1, 1000)
    assert landlord.status(1).face == "grpc"
    landlord.crash()
    assert landlord.status(1).face == "grpc"


def test_a_tenant_gets_the_offer_that_it_wants_although_a_stranger_asked_for_another_with_its_key(
    landlord: Landlord,
) -> None:
    landlord.reload(letting(offer(), offer(name="large", rent_msat=2 * RENT)))
    first = landlord.ask(1, 1000)
    landlord.face = "grpc"
    wanted = landlord.ask(1, 1000, "large")
    assert first is not None and wanted is not None and not wanted.why_not
    landlord.check()
    rental = landlord.rental(1)
    assert (rental.offer, rental.rent_msat) == ("large", 2 * RENT) and len(landlord.world.letting.rentals) == 1
    assert not landlord.pay(first.bolt11) and landlord.pay(wanted.bolt11)
    landlord.check()
    more = landlord.ask(1, 1000, "default")
    assert more is not None and landlord.pay(more.bolt11) and landlord.rental(1).offer == "large", "it is paid"


def test_a_payment_for_the_offer_that_a_tenant_no_longer_wants_is_kept_for_it(landlord: Landlord) -> None:
    landlord.reload(letting(offer(), offer(name="large")))
    landlord.face = "grpc"
    first = landlord.ask(1, 1000)
    landlord.node.paid.append((bytes.fromhex(first.bolt11), FEE + 1000 * SAT))  # type: ignore[union-attr]
    wanted = landlord.ask(1, 1000, "large")
    landlord.hear()
    landlord.check()
    assert landlord.rental(1).state is RentalState.PENDING and landlord.status(1).fetchable_msat == FEE + 1000 * SAT
    assert landlord.pay(wanted.bolt11) and landlord.rental(1).offer == "large"  # type: ignore[union-attr]
    landlord.crash()
    landlord.check()
    assert landlord.status(1).fetchable_msat == FEE + 1000 * SAT


def test_a_node_that_makes_no_invoice_is_the_operators_affair_and_holds_no_networks(landlord: Landlord) -> None:
    landlord.node.refuses = "LND at 192.0.2.7:10009 doesn't answer: check LND_RPC"
    answer = landlord.ask(1, 1000)
    assert answer is not None and "ask again later" in answer.why_not and "192.0.2.7" not in answer.why_not
    assert any("192.0.2.7" in line for line in landlord.log)
    assert not landlord.world.letting.rentals and landlord.world.letting.free.count(4, 32) == 8
    landlord.node.refuses = ""
    landlord.rent(1, 1000)
    before = landlord.status(1)
    landlord.node.refuses = "down"
    answer = landlord.ask(1, 1000)
    assert answer is not None and "ask again later" in answer.why_not and landlord.status(1) == before
    landlord.check()


def test_a_preimage_proves_a_payment_once_and_any_other_is_none(landlord: Landlord) -> None:
    answer = landlord.ask(1, 1000)
    assert answer is not None
    payment_hash = bytes.fromhex(answer.bolt11)
    preimage = landlord.node.preimages[payment_hash]
    other = Paid(sha256(bytes(32)).digest(), bytes(32))
    for wrong in (Paid(payment_hash, bytes(32)), Paid(bytes(32), preimage), other):
        landlord.happen(RentProven(wrong))
    assert not landlord.peers
    for _ in range(2):
        landlord.happen(RentProven(Paid(payment_hash, preimage)))
    assert landlord.peers and landlord.credit(1) == 1000 * SAT and landlord.rental(1).payments == 1
    assert landlord.node.paid == [(payment_hash, FEE + 1000 * SAT)]
    landlord.check()


def test_an_unpaid_invoice_is_told_until_every_client_has_given_it_up(landlord: Landlord) -> None:
    """A client that is told of no invoice believes that it is paid. Its clock may be behind; we may be killed."""
    landlord.rent(1, 1000)
    expired = landlord.ask(1, 600)
    assert expired is not None
    landlord.at(630)
    assert landlord.status(1).unpaid_invoice == expired.bolt11
    landlord.at(60)
    assert landlord.status(1).unpaid_invoice == ""
    first = landlord.ask(1, 600)
    assert first is not None
    landlord.at(300)
    landlord.crash()
    landlord.at(330)
    assert landlord.status(1).unpaid_invoice == first.bolt11
    landlord.node.slow = True
    assert landlord.ask(1, 700) is None and landlord.status(1).unpaid_invoice == first.bolt11
    landlord.node.slow = False
    landlord.at(400)
    assert landlord.status(1).unpaid_invoice == "" and not landlord.pay(first.bolt11)


def test_the_rent_changes_only_with_a_payment_and_as_its_invoice_promised(landlord: Landlord) -> None:
    landlord.rent(1, 10_000)
    answer = landlord.ask(1, 1000)
    landlord.reload(letting(offer(rent_msat=2 * RENT)))
    assert answer is not None and landlord.pay(answer.bolt11)
    assert landlord.rental(1).rent_msat == RENT, "the invoice was made at the former rent"
    landlord.at(MONTH_S / 24)
    credit = landlord.credit(1)
    answer = landlord.ask(1, 1000)
    assert answer is not None and landlord.pay(answer.bolt11)
    assert landlord.rental(1).rent_msat == 2 * RENT and landlord.credit(1) == credit + 1000 * SAT
    landlord.at(MONTH_S / 24)
    assert landlord.credit(1) == pytest.approx(credit + 1000 * SAT - 2000 * SAT, abs=40)


def test_a_lower_rent_counts_from_the_invoice_on_that_promised_it(landlord: Landlord) -> None:
    """The tenant counts it from then on, and its AutoPay stops for good at 20 s of rent less."""
    landlord.rent(1, 10_000)
    landlord.at(1000)
    landlord.reload(letting(offer(rent_msat=RENT // 10)))
    before, answer = landlord.credit(1), landlord.ask(1, 1000)
    landlord.at(500)
    assert answer is not None and landlord.pay(answer.bolt11)
    due = before + 1000 * SAT - -(-500 * (RENT // 10) // MONTH_S)
    assert abs(landlord.credit(1) - due) <= 1
    landlord.at(100)
    landlord.check()
    landlord.reload(letting(offer(rent_msat=RENT)))
    before, answer = landlord.credit(1), landlord.ask(1, 1000)
    landlord.at(500)
    assert answer is not None and landlord.pay(answer.bolt11)
    due = before + 1000 * SAT - -(-500 * (RENT // 10) // MONTH_S)
    assert abs(landlord.credit(1) - due) <= 1, "a higher one counts from the payment on"
    landlord.check()


def test_no_rent_is_owed_while_the_operator_has_it_off(landlord: Landlord) -> None:
    landlord.rent(1, 1000)
    rental = landlord.rental(1)
    landlord.at(100)
    credit = landlord.credit(1)
    landlord.happen(SwitchRental(rental.id, on=False))
    assert not landlord.peers and rental.state is RentalState.OFF
    landlord.at(MONTH_S)
    assert landlord.credit(1) == credit
    landlord.happen(SwitchRental(rental.id, on=True))
    assert landlord.peers and landlord.credit(1) == credit
    landlord.check()


@pytest.mark.parametrize("jump_s", [-10 * 365 * 86_400, -3600, 3600, 10 * 365 * 86_400])
def test_a_clock_that_jumps_costs_nobody_anything(landlord: Landlord, jump_s: int) -> None:
    landlord.rent(1, 1000)
    landlord.at(3600, jump_s)
    assert landlord.credit(1) == 1000 * SAT - rent_msat(RENT, 3600)
    landlord.crash(for_s=5)
    assert landlord.credit(1) == pytest.approx(1000 * SAT - rent_msat(RENT, 3605), abs=10)
    landlord.crash(reboot=True, for_s=86_400)
    assert landlord.credit(1) >= 1000 * SAT - rent_msat(RENT, 3606), "a machine that is off owes no service"
    assert landlord.peers
    landlord.check()


def test_a_reboot_takes_at_most_a_minute_from_the_count(landlord: Landlord) -> None:
    landlord.rent(1, 10_000)
    landlord.at(5 * 86_400)
    credit = landlord.credit(1)
    landlord.crash(reboot=True, for_s=600)
    assert credit <= landlord.credit(1) <= credit + rent_msat(RENT, 61)
    assert credit < 10_000 * SAT - rent_msat(RENT, 5 * 86_400 - 1)


@pytest.mark.parametrize("restarted", [False, True])
def test_no_rent_is_owed_while_net_conf_lets_nothing(landlord: Landlord, restarted: bool) -> None:
    landlord.rent(1, 10_000)
    landlord.at(3600)
    credit, terms = landlord.credit(1), landlord.terms
    if restarted:
        landlord.terms = None  # type: ignore[assignment]
        landlord.crash()
    else:
        landlord.reload(None)
    landlord.at(86_400)
    assert landlord.credit(1) == credit
    if restarted:
        landlord.terms = terms
        landlord.crash(for_s=3600)
    else:
        landlord.reload(terms)
    assert landlord.credit(1) == credit
    landlord.at(3600)
    assert landlord.credit(1) == pytest.approx(credit - rent_msat(RENT, 3600), abs=10)
    landlord.check()


def test_a_kill_of_hours_counts_them_to_the_second(landlord: Landlord) -> None:
    landlord.rent(1, 1000)
    ends_s = lasts_s(1000 * SAT, RENT)
    landlord.crash(for_s=ends_s + 7200)
    landlord.at(0.1)
    assert landlord.rental(1).state is RentalState.RESERVED
    assert landlord.rental(1).reserved_since_s == landlord.rental(1).started_s + ends_s
    landlord.check()


def test_a_payment_for_a_rental_that_is_forgotten_stays_in_the_books(landlord: Landlord) -> None:
    asked = landlord.ask(1, 1000)
    assert asked is not None
    payment_hash = bytes.fromhex(asked.bolt11)
    landlord.happen(ReleaseRental(landlord.rental(1).id))
    assert not landlord.world.letting.rentals
    landlord.node.paid.append((payment_hash, landlord.node.amounts[payment_hash]))  # it took the money all the same
    landlord.hear()
    landlord.audit()


def test_a_payment_for_a_rental_that_is_switched_off_leaves_one_period(landlord: Landlord) -> None:
    rental = landlord.rent(1, 1000)
    landlord.happen(SwitchRental(rental.id, False))
    more = landlord.ask(1, 1000)
    assert more is not None and landlord.pay(more.bolt11)
    landlord.happen(SwitchRental(rental.id, True))
    landlord.happen(ReleaseRental(rental.id))
    assert {one.state for one in landlord.ledger.contracts(include_closed=True)} == {"closed"}
    assert not landlord.world.client(rental.id).running
    landlord.check()


def test_only_moves_of_the_table_are_made(landlord: Landlord) -> None:
    assert set(MOVES) == set(RentalState)
    landlord.rent(1, 1000)
    with pytest.raises(IllegalMove, match="can't go from"):
        landlord.rental(1).move(RentalState.PENDING)
