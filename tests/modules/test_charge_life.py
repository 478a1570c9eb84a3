"""Contracts and accounts in the tables: made, changed, forgotten, killed between any two stores, and adopted."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from charge_lab import ALICE, BOB, CONTRACTS, NEVER, ChargeLab

from ngp.core.kernel import AccountLimit, Hint, HintKind
from ngp.core.messages import Role
from ngp.errors import KernelError
from ngp.modules.network import accounts, layout
from ngp.modules.network.layout import ACCOUNT_TAG, LINE_WORDS, TAG


def test_what_was_noted_as_early_while_the_contract_was_entered_is_on_it_too(lab: ChargeLab) -> None:
    """A packet may look for a contract just before there is one, and be counted as early just after `grant`.

    By then `grant` has taken the other early bytes.
    """
    packed = bytes([10, 0, 0, 0]).ljust(16, b"\0")
    key, other = layout.EARLY_KEY.pack(7, packed), layout.EARLY_KEY.pack(8, packed)

    def note(size_bytes: int) -> None:
        now_ns = time.monotonic_ns()
        for each in (key, other):
            lab.tables[layout.EARLY].set(each, layout.EARLY_VALUE.pack(now_ns, now_ns, 1, size_bytes))

    note(100)
    bought = lab.grant(role=Role.CLIENT, account=b"", limit_bytes=350)
    assert lab.used(bought) == 100 and lab.tables[layout.EARLY].get(key) is None
    note(200)
    assert [each.used_to_bytes for each in lab.contracts.read(None)] == [300]
    note(400)
    assert lab.contracts.read(None) == [] and lab.used(bought) == 300, (
        "only once: later ones belong to no contract of ours"
    )
    assert lab.ask(bought, 50, role=Role.CLIENT) and not lab.ask(bought, 1, role=Role.CLIENT)
    assert lab.tables[layout.EARLY].get(other) is not None


def test_a_slot_is_used_again_after_its_contracts_have_rested(lab: ChargeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.limit(100)
    contract = lab.grant()
    assert lab.ask(contract, 100) and not lab.ask(contract, 1)
    lab.accounts.forget([ALICE, BOB])
    assert not lab.ask(contract, 1), "nothing passes on a contract without its account"
    assert lab.accounts.read([ALICE]) == [] and lab.accounts.read(None) == []
    monkeypatch.setattr(accounts, "_REST_S", -1)
    lab.limit(70, BOB)
    assert lab.accounts.slot_of(BOB) == 2, "one of the first account's contracts is still in the kernel"
    lab.contracts.revoke([lab.ids[contract]])
    monkeypatch.setattr(accounts, "_REST_S", 3600)
    lab.limit(70)
    assert lab.accounts.slot_of(ALICE) == 3, "it rests"
    monkeypatch.setattr(accounts, "_REST_S", -1)
    carol = b"carol" + bytes(27)
    lab.limit(70, carol)
    assert lab.accounts.slot_of(carol) == 1
    assert lab.account(carol).spent_units == 0 and not lab.account(carol).exhausted
    lab.hints()
    contract = lab.grant(account=carol)
    assert lab.ask(contract, 70) and not lab.ask(contract, 1) and lab.spent(carol) == 70
    assert lab.hints() == [Hint(HintKind.ACCOUNT_EXHAUSTED, carol)]


def test_killed_between_an_account_and_its_contracts_its_slot_waits_for_them(
    lab: ChargeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "_REST_S", -1)
    lab.limit(100)
    contract = lab.grant()
    lab.accounts.forget([ALICE])
    lab.reopen()
    assert lab.accounts.adopt(lambda: None, time.monotonic_ns()) == []
    (found,) = lab.contracts.adopt(time.monotonic_ns())
    assert found.grant.account == b"" and not lab.ask(contract, 1)
    slots = []
    for number in range(2 * CONTRACTS):
        lab.limit(100, bytes([number]) * 32)
        slots.append(lab.accounts.slot_of(bytes([number]) * 32))
    assert 1 not in slots
    lab.contracts.revoke([lab.ids[contract]])
    lab.limit(100)
    assert lab.accounts.slot_of(ALICE) == 1


def test_a_full_table_is_named_and_changes_nothing(lab: ChargeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.accounts, "slots_max", 3)
    lab.limit(1)
    with pytest.raises(KernelError, match="1 of 2 in use"):
        lab.accounts.limit([AccountLimit(name * 32, 1) for name in (b"1", b"2")])
    assert len(lab.accounts) == 1
    lab.limit(1, BOB)
    lab.accounts.forget([BOB])
    with pytest.raises(KernelError, match="account table is full"):
        lab.limit(1, BOB)
    monkeypatch.setattr(accounts, "_REST_S", -1)
    lab.limit(1, BOB)


class Killed(Exception):
    """Raised where the daemon is killed."""


class Words:
    """Mapped words that can be written only a limited number of times."""

    def __init__(self, words: memoryview, stores: int) -> None:
        self._words, self.left = words, stores

    def __getitem__(self, index: int) -> int:
        return int(self._words[index])

    def __setitem__(self, index: int, value: int) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        self._words[index] = value


@pytest.mark.parametrize("before", [None, (1000, 500), (100, 0), (100, 500), (900, 0)])
def test_killed_between_any_two_stores_an_account_is_as_before_or_less(
    lab: ChargeLab, before: tuple[int, int] | None
) -> None:
    """At no moment more may be spent than the former limit and credit, or the new ones, allow: whichever is more."""
    contract, stores = None, 0
    while True:
        account = bytes([stores + 1]) * 32
        if before is not None:
            lab.limit(before[0], account, credit_units=before[1], credit_ends_in_s=600)
        words = lab.accounts._words
        lab.accounts._words = Words(words, stores)  # type: ignore[assignment]
        try:
            lab.limit(700, account, credit_units=30, credit_ends_in_s=500)
            complete = True
        except Killed:
            complete = False
        lab.accounts._words = words
        lab.reopen()
        adopted = {each.limit.account: each for each in lab.accounts.adopt(lambda: None, time.monotonic_ns())}
        lab.contracts.adopt(time.monotonic_ns())
        if account in adopted:
            contract = lab.grant(account=account)
            allowed = [730, *([sum(before)] if before else [])]
            passed = sum(lab.ask(contract, 1) for _ in range(2000))
            assert passed == lab.spent(account) <= max(allowed), stores
            assert not complete or passed == 730
        else:
            assert before is None and not complete
        if complete:
            break
        stores += 1
    assert stores >= 5, "the daemon was killed after each of the stores"


def test_killed_between_any_two_stores_a_contract_is_whole_or_none(lab: ChargeLab) -> None:
    lab.limit(1 << 40)
    stores = 0
    while True:
        words = lab.contracts._words
        lab.contracts._words = Words(words, stores)  # type: ignore[assignment]
        number, complete = len(lab.ids), True
        try:
            lab.grant(limit_bytes=500, price_msat_per_gib=9)
        except Killed:
            complete = False
        lab.contracts._words = words
        lab.reopen()
        lab.accounts.adopt(lambda: None, time.monotonic_ns())
        found = {each.grant.contract: each.grant for each in lab.contracts.adopt(time.monotonic_ns())}
        assert (lab.ids[number] in found) == complete
        if complete:
            break
        stores += 1
    grant = found[lab.ids[number]]
    assert (grant.limit_bytes, grant.price_msat_per_gib, grant.account) == (500, 9, ALICE)
    assert stores >= 5


def test_a_start_enters_the_destinations_that_are_missing_and_no_others(
    lab: ChargeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that was killed may have entered none of its latest contracts, or have found another one's entry."""
    lab.limit(NEVER)
    for _ in range(3):
        lab.grant()
    hosts = lab.tables[layout.HOSTS[4]]
    kept, missing, former = (layout.host_key(bytes(10), Role.SERVER, bytes((10, 0, 0, number))) for number in range(3))
    before = {key: hosts.get(key) for key in (kept, missing, former)}
    hosts.delete(missing)
    hosts.set(former, layout.ENTRY.pack(2, 77))  # of the slot's former contract: it has another generation
    lab.reopen()
    written: list[bytes] = []
    set_many = hosts.set_many

    def note(keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        written.extend(keys)
        set_many(keys, values)

    monkeypatch.setattr(hosts, "set_many", note)
    assert len(lab.contracts.adopt(time.monotonic_ns())) == 3
    assert written == [missing, former]
    assert {key: hosts.get(key) for key in before} == before


def test_a_killed_daemons_contracts_and_accounts_are_adopted(lab: ChargeLab) -> None:
    lab.limit(1000, credit_units=50, credit_ends_in_s=600, low_water_units=700)
    lab.limit(77, BOB)
    lab.accounts.forget([BOB])
    contract = lab.grant(price_msat_per_gib=2, low_water_bytes=200, limit_bytes=300)
    assert lab.ask(contract, 250)
    lab.reopen()
    waited: list[bool] = []
    (adopted,) = lab.accounts.adopt(lambda: waited.append(True), time.monotonic_ns())
    assert waited and (adopted.reading.spent_units, adopted.reading.exhausted) == (500, False)
    limit = adopted.limit
    assert (limit.account, limit.limit_units, limit.credit_units, limit.low_water_units) == (ALICE, 1000, 50, 700)
    assert 500 < limit.credit_ends_in_s <= 600
    (found,) = lab.contracts.adopt(time.monotonic_ns())
    grant = found.grant
    assert (grant.account, grant.price_msat_per_gib, grant.limit_bytes, grant.neighbour) == (ALICE, 2, 300, 7)
    assert (grant.low_water_bytes, found.reading.used_to_bytes) == (200, 250)
    lab.accounts.forget([ALICE])
    lab.limit(5, BOB)
    assert lab.accounts.slot_of(BOB) == 64 + layout.NO_ACCOUNT, "ALICE still has a contract, so her slot isn't free"


def test_what_was_spent_is_read_before_what_was_given_back(lab: ChargeLab) -> None:
    """A packet may be charged between the two readings.

    Then an account may seem to have spent less than its contracts used, never more.
    """
    lab.limit(1000)
    contract = lab.grant(limit_bytes=100)
    lab.reopen()

    def meanwhile() -> None:
        assert lab.ask(contract, 60) and not lab.ask(contract, 40, others_bytes=1)

    (adopted,) = lab.accounts.adopt(meanwhile, time.monotonic_ns())
    assert adopted.reading.spent_units == -40 and lab.spent() == 60


def test_what_changed_is_read_once(lab: ChargeLab) -> None:
    lab.limit(1000)
    lab.limit(1000, BOB)
    contract = lab.grant()
    assert lab.accounts.read(None) == []
    assert lab.ask(contract, 10)
    assert [each.account for each in lab.accounts.read(None)] == [ALICE] and lab.accounts.read(None) == []
    lab.limit(2000)
    assert lab.accounts.read(None) == [], "the kernel changed nothing"


def test_a_hint_of_another_owner_of_the_slot_is_thrown_away(lab: ChargeLab) -> None:
    lab.limit(0)
    contract = lab.grant()
    assert not lab.ask(contract, 1)
    lab.accounts._words[LINE_WORDS + ACCOUNT_TAG] += 1 << 8  # the next generation
    assert lab.hints() == []
    lab.grant(contract, limit_bytes=0)
    assert not lab.ask(contract, 1)
    lab.contracts._words[TAG] += 1 << 8
    assert lab.hints() == []


def test_the_kernel_is_told_whether_there_is_a_purchase(lab: ChargeLab) -> None:
    lab.limit(NEVER)
    lab.contracts.adopt(time.monotonic_ns())
    first, second, _ = lab.grant(role=Role.CLIENT), lab.grant(role=Role.CLIENT), lab.grant()
    lab.grant(first, role=Role.CLIENT, limit_bytes=1)
    lab.contracts.revoke([lab.ids[first]])
    assert lab.any_purchases == [False, True]
    lab.reopen()
    lab.contracts.adopt(time.monotonic_ns())
    lab.contracts.revoke([lab.ids[second]])
    assert lab.any_purchases == [False, True, True, True, False]
