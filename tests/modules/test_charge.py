"""Charges one packet at a time: who pays, what is given back, and the arithmetic where its 64-bit words wrap."""

from __future__ import annotations

import time

import pytest
from charge_lab import ALICE, BOB, ChargeLab

from ngp.core.kernel import MOST_UNITS_AHEAD, Hint, HintKind
from ngp.core.messages import Role
from ngp.errors import KernelError
from ngp.modules.network.layout import LINE_WORDS, RETURNED, SPENT, Counter

LARGEST_BYTES = 1 << 19  # a superpacket of BIG TCP
DEAREST = 1 << 40
WRAP = 1 << 64


def test_contracts_share_what_their_account_has(lab: ChargeLab) -> None:
    lab.limit(1000)
    dear, cheap = lab.grant(price_msat_per_gib=3), lab.grant(price_msat_per_gib=1)
    assert lab.ask(dear, 200) and lab.ask(cheap, 399)
    assert not lab.ask(cheap, 2) and lab.ask(cheap, 1) and not lab.ask(dear, 1)
    assert lab.spent() == 1000 == 3 * lab.used(dear) + lab.used(cheap)
    assert lab.account().exhausted and not lab.read(dear).exhausted
    assert lab.counter(Counter.REFUSED_UNPAID) == 2 and lab.counter(Counter.REFUSED_EXHAUSTED) == 0


def test_an_account_pays_only_for_its_own_contracts(lab: ChargeLab) -> None:
    lab.limit(100)
    lab.limit(100, BOB)
    alices, bobs = lab.grant(), lab.grant(account=BOB)
    assert lab.ask(alices, 100) and not lab.ask(alices, 1) and lab.ask(bobs, 60)
    assert (lab.spent(), lab.spent(BOB)) == (100, 60)


def test_without_an_account_only_what_costs_nothing_passes(lab: ChargeLab) -> None:
    assert not lab.ask(lab.grant(account=b""), 1)
    assert lab.ask(lab.grant(account=b"", price_msat_per_gib=0), 1)
    with pytest.raises(KernelError, match=ALICE.hex()):
        lab.grant(account=ALICE)


def test_what_costs_nothing_passes_an_account_without_money(lab: ChargeLab) -> None:
    lab.limit(0)
    free, priced = lab.grant(price_msat_per_gib=0), lab.grant()
    assert not lab.ask(priced, 1) and lab.ask(free, LARGEST_BYTES)
    lab.limit(-(1 << 61))
    assert lab.ask(free, 1) and lab.spent() == 0


@pytest.mark.parametrize("changes", [{"limit_bytes": 99}, {"expires_in_s": -1}, {"blocked": True}])
def test_a_flood_at_a_contract_that_refuses_touches_no_account(lab: ChargeLab, changes: dict[str, int]) -> None:
    lab.limit(1000)
    contract = lab.grant(**changes)
    words = lab.accounts._words[:]  # the words in memory
    assert not any(lab.ask(contract, 100) for _ in range(5))
    assert lab.accounts._words[:] == words
    kinds = [hint.kind for hint in lab.hints()]
    assert kinds == ([HintKind.EXHAUSTED] if "limit_bytes" in changes else [])


def test_the_cost_is_given_back_where_others_were_quicker(lab: ChargeLab) -> None:
    lab.limit(1000, low_water_units=500)
    contract = lab.grant(limit_bytes=1000, low_water_bytes=900)
    assert not lab.ask(contract, 600, others_bytes=500)
    assert (lab.spent(), lab.used(contract), lab.read(contract).exhausted) == (0, 500, True)
    assert lab.accounts._words[LINE_WORDS + RETURNED] == 600, "nothing was given back, so the test shows nothing"
    assert lab.ask(contract, 500, others_bytes=0) and lab.spent() == 500
    low, met, account_low = (HintKind.LOW, HintKind.EXHAUSTED, HintKind.ACCOUNT_LOW)
    assert sorted(hint.kind for hint in lab.hints()) == sorted([low, met, account_low])
    lab.grant(contract, limit_bytes=9000)
    assert lab.ask(contract, 500) and not lab.ask(contract, 1) and lab.spent() == 1000, "no unit was lost or gained"


def test_what_was_given_back_is_missing_for_nobody(lab: ChargeLab) -> None:
    """Ten thousand times the account's money is charged and given back."""
    lab.limit(1000)
    contract = lab.grant(limit_bytes=0)
    for number in range(200):
        lab.grant(contract, limit_bytes=(number + 1) * 1000)
        assert not lab.ask(contract, 1000, others_bytes=1000)
    lab.grant(contract, limit_bytes=1 << 40)
    assert lab.spent() == 0 and lab.ask(contract, 1000) and not lab.ask(contract, 1)


def test_a_quicker_packet_leaves_less_for_the_others(lab: ChargeLab) -> None:
    """Another packet is charged after this packet's charge has read a word and before it swaps the word.

    First this is done with the account's word, then with the contract's.
    """
    lab.limit(100)
    contract = lab.grant()
    lab.meddle(70)
    assert not lab.ask(contract, 50) and lab.spent() == 70 and lab.used(contract) == 0
    lab.meddle(20)
    assert lab.ask(contract, 10) and lab.spent() == 100
    free = lab.grant(price_msat_per_gib=0, limit_bytes=100)
    lab.meddle(70)
    assert not lab.ask(free, 50) and lab.used(free) == 70
    lab.meddle(20)
    assert lab.ask(free, 10) and lab.used(free) == 100


def test_a_limit_below_what_is_spent_stops_and_comes_back(lab: ChargeLab) -> None:
    lab.limit(10_000)
    contract = lab.grant()
    assert lab.ask(contract, 8000)
    lab.limit(3000)
    assert not lab.ask(contract, 1) and lab.account().exhausted
    lab.limit(-5)
    assert not lab.account().exhausted and not lab.ask(contract, 1)
    lab.limit(8001)
    assert lab.ask(contract, 1) and not lab.ask(contract, 1) and lab.spent() == 8001


def test_credit_extends_the_limit_until_it_ends(lab: ChargeLab) -> None:
    lab.limit(100, credit_units=50, credit_ends_in_s=600)
    contract = lab.grant()
    assert lab.ask(contract, 150) and not lab.ask(contract, 1)
    assert lab.account().exhausted, "at limit and credit together"
    lab.limit(100, credit_units=90, credit_ends_in_s=0)
    assert not lab.ask(contract, 1) and lab.account().exhausted, "at the limit, as credit is over"
    lab.limit(100, credit_units=90, credit_ends_in_s=600)
    assert not lab.account().exhausted and lab.ask(contract, 40) and lab.spent() == 190
    assert [hint.kind for hint in lab.hints()] == [HintKind.ACCOUNT_EXHAUSTED] * 2


def test_each_hint_comes_once_for_a_limit(lab: ChargeLab) -> None:
    lab.limit(1000, low_water_units=600)
    contract = lab.grant(low_water_bytes=300)
    for _ in range(20):
        lab.ask(contract, 70)
    expected = [Hint(HintKind.LOW, lab.ids[contract]), Hint(HintKind.ACCOUNT_LOW, ALICE)]
    assert lab.hints() == [*expected, Hint(HintKind.ACCOUNT_EXHAUSTED, ALICE)]
    lab.limit(1000, low_water_units=600)
    assert not lab.ask(contract, 70) and lab.hints() == [], "the same limit again"
    lab.limit(1001)
    assert not lab.ask(contract, 70) and lab.hints() == [Hint(HintKind.ACCOUNT_EXHAUSTED, ALICE)]


def test_without_a_low_water_mark_none_is_crossed(lab: ChargeLab) -> None:
    lab.limit(MOST_UNITS_AHEAD)
    contract = lab.grant()
    assert all(lab.ask(contract, LARGEST_BYTES) for _ in range(10)) and lab.hints() == []


@pytest.mark.parametrize("begin", [0, WRAP - 1, WRAP - (1 << 59), (1 << 63) - 1, 1 << 63])
def test_the_words_wrap_and_nobody_notices(lab: ChargeLab, begin: int) -> None:
    """An account at the highest price, in a slot whose counters show anything. A few such packets fill 64 bits."""
    lab.accounts._words[LINE_WORDS + SPENT] = begin
    cost = LARGEST_BYTES * DEAREST
    lab.limit(3 * cost + 1, low_water_units=2 * cost)
    contract = lab.grant(price_msat_per_gib=DEAREST)
    assert [lab.ask(contract, LARGEST_BYTES) for _ in range(4)] == [True, True, True, False]
    assert lab.spent() == 3 * cost == DEAREST * lab.used(contract)
    assert [hint.kind for hint in lab.hints()] == [HintKind.ACCOUNT_LOW, HintKind.ACCOUNT_EXHAUSTED]
    paid = 3 * cost + 1
    for _ in range(40):  # more than twice around
        paid += 2 * cost
        lab.limit(paid)
        assert lab.ask(contract, LARGEST_BYTES) and lab.ask(contract, LARGEST_BYTES)
        assert not lab.ask(contract, LARGEST_BYTES)
    assert lab.spent() == 83 * cost > 2 * WRAP
    lab.reopen()
    (adopted,) = lab.accounts.adopt(lambda: None, time.monotonic_ns())
    assert (adopted.limit.limit_units, adopted.reading.spent_units) == (paid, 83 * cost)
    lab.limit(paid - cost)
    assert not lab.ask(contract, 1) and lab.spent() == 83 * cost


def test_a_limit_is_cut_off_at_what_the_words_can_hold(lab: ChargeLab) -> None:
    lab.limit(1 << 80, credit_units=1 << 80, credit_ends_in_s=600)
    contract = lab.grant(price_msat_per_gib=DEAREST)
    passed = 0
    while lab.ask(contract, LARGEST_BYTES):
        passed += 1
    assert passed == 2 * MOST_UNITS_AHEAD // (LARGEST_BYTES * DEAREST)
    lab.limit(-(1 << 80))
    assert not lab.ask(contract, 1)


def test_a_clients_contract_has_no_account_and_counts_to_its_limit(lab: ChargeLab) -> None:
    bought = lab.grant(role=Role.CLIENT, account=b"", limit_bytes=1000, low_water_bytes=500)
    counted = [lab.ask(bought, 300, role=Role.CLIENT) for _ in range(5)]
    assert counted == [True, True, True, False, False] and lab.used(bought) == 900 and lab.read(bought).exhausted
    assert [hint.kind for hint in lab.hints()] == [HintKind.LOW, HintKind.EXHAUSTED]
    assert not any(lab.counter(which) for which in Counter), "refused by nobody here"
