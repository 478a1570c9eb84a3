"""The account table: what each client's contracts may spend together. It is mapped memory: each account has a slot,
labelled with the client's identity.

As in the contract table, a slot's counters are never reset: a new account in a used slot remembers what the counters
showed when it began. A slot is used again only when its account was forgotten, none of the account's contracts is in
the kernel any more, and a second has passed since. So a packet that is on its way through the meter can't be charged to
the slot's next client.

The kernel's words wrap at 2^64 units, which are 17 million sat. This process keeps each limit as a whole number that
doesn't wrap. What an account has spent is that number minus the distance from the kernel's `spent` to the kernel's
limit; the distance is always less than half of the words' range, so wrapped words show it without doubt.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from ngp.core.kernel import MOST_UNITS_AHEAD, AccountLimit, AccountReading, AdoptedAccount
from ngp.errors import KernelError
from ngp.modules.bpf import Table
from ngp.modules.network import layout
from ngp.modules.network.layout import (
    ACCOUNT_LOW_WATER,
    ACCOUNT_TAG,
    CREDIT,
    CREDIT_UNTIL_NS,
    IDENTITY,
    IDENTITY_LIMIT_AT,
    LIMIT,
    LINE_BYTES,
    LINE_WORDS,
    MARK,
    NO_ACCOUNT,
    RETURNED,
    SPENT,
    VALID,
    WORD_MASK,
    signed,
)
from ngp.modules.network.lines import Lines

_REST_S = 1.0


class AccountTable:
    """Limits, reads and forgets accounts. Args: tables: the meter's tables, by name."""

    def __init__(self, tables: dict[str, Table]) -> None:
        self._lines = Lines(tables[layout.ACCOUNTS], tables[layout.IDENTITIES])
        self._words, self.slots_max = self._lines.words, self._lines.slots_max
        self._slots: dict[bytes, int] = {}
        self._limits: dict[int, int] = {}  # by slot, as last written
        self._contracts: Counter[int] = Counter()
        self._resting: deque[tuple[float, int]] = deque()
        self._fresh = NO_ACCOUNT + 1

    def __len__(self) -> int:
        return len(self._slots)

    def adopt(self, wait: Callable[[], None], at_ns: int) -> list[AdoptedAccount]:
        """Take over the accounts in the tables.

        Call this before `ContractTable.adopt`, which calls `take` for the account of each contract.

        Args:
            wait: returns when every packet that is on its way now has left the programs. We read `spent` before the
                wait, and `returned` and the contracts after it. So the contracts show at least the bytes that the
                accounts paid for.
            at_ns: the monotonic instant that `credit_ends_in_s` counts from.
        """
        spent: dict[int, int] = {}
        for slot in self._lines.used_before():
            self._fresh = max(self._fresh, slot + 1)
            if slot == NO_ACCOUNT:
                continue
            if not self._tag(slot) & VALID:
                self._resting.append((time.monotonic(), slot))
                continue
            identity, base, high, _ = IDENTITY.unpack_from(self._lines.labels, slot * LINE_BYTES)
            about = high << 32  # stored before the limit, so after a kill the line may still have the previous limit
            self._limits[slot] = about + signed(self._words[slot * LINE_WORDS + LIMIT] - base - about)
            self._slots[identity] = slot
            spent[slot] = self._words[slot * LINE_WORDS + SPENT]
        if spent:
            wait()
        found = spent.items()
        return [AdoptedAccount(self._read_limit(slot, at_ns), self._reading(slot, taken)) for slot, taken in found]

    def limit(self, limits: Sequence[AccountLimit]) -> None:
        """Create or change accounts. Raises KernelError if the table is full; then nothing was changed."""
        new = {each.account for each in limits if each.account not in self._slots}
        if new and len(new) > self._free():
            raise KernelError(
                f"the account table is full: {len(self._slots)} of {self.slots_max - 1} in use and {len(new)} to add; "
                "wait until clients have left, or block some: ngp block NEIGHBOUR"
            )
        now_ns = time.monotonic_ns()
        for each in limits:
            slot = self._slots.get(each.account)
            if slot is None:
                slot = self._begin(each.account)
            self._write(slot, each, now_ns)

    def forget(self, accounts: Sequence[bytes]) -> None:
        """Take accounts out of the kernel; unknown ones are ignored.

        Contracts that name a removed account let nothing pass.
        """
        for account in accounts:
            slot = self._slots.pop(account, None)
            if slot is None:
                continue
            self._stop(slot)
            self._words[slot * LINE_WORDS + ACCOUNT_TAG] = 0
            del self._limits[slot]
            self._rest_if_free(slot)

    def read(self, accounts: Sequence[bytes] | None) -> list[AccountReading]:
        """Read accounts. Args: accounts: which ones; None: those that changed since the last call with None."""
        if accounts is None:
            return [self._reading(slot) for slot in self._lines.changed(self._fresh) if slot in self._limits]
        return [self._reading(self._slots[each]) for each in accounts if each in self._slots]

    def slot_of(self, account: bytes) -> int | None:
        """Return an account's slot; NO_ACCOUNT for b"", None for an account that isn't known."""
        return self._slots.get(account) if account else NO_ACCOUNT

    def account_in(self, slot: int) -> bytes:
        """Return the account in a slot; b"" if there is none."""
        if slot not in self._limits:
            return b""
        return self._lines.labels[slot * LINE_BYTES : slot * LINE_BYTES + 32]

    def account_of(self, slot: int, tag: int) -> bytes | None:
        """Return the account that a hint is about, or None if another account has the slot by now."""
        if slot not in self._limits or layout.generation_of(self._tag(slot) ^ tag):
            return None
        return self.account_in(slot)

    def take(self, slot: int) -> None:
        """Count a contract that names the account in a slot; until `release` no other account gets the slot."""
        self._contracts[slot] += 1
        if slot not in self._limits and slot != NO_ACCOUNT:
            self._resting = deque(each for each in self._resting if each[1] != slot)

    def release(self, slot: int) -> None:
        """Stop counting a contract that named a slot's account."""
        self._contracts[slot] -= 1
        if self._contracts[slot] <= 0:
            del self._contracts[slot]
            if slot not in self._limits and slot != NO_ACCOUNT:
                self._rest_if_free(slot)

    def close(self) -> None:
        """Release the mapped memory."""
        self._lines.close()

    def _rest_if_free(self, slot: int) -> None:
        if not self._contracts[slot]:
            self._resting.append((time.monotonic(), slot))

    def _free(self) -> int:
        rested = sum(time.monotonic() - since_s > _REST_S for since_s, _ in self._resting)
        return self.slots_max - self._fresh + rested

    def _begin(self, account: bytes) -> int:
        """Write a new account's label. `_write` stores the line's tag last; until then the slot counts as free."""
        if self._resting and time.monotonic() - self._resting[0][0] > _REST_S:
            slot = self._resting.popleft()[1]
        else:
            slot, self._fresh = self._fresh, self._fresh + 1
        *_, generation = IDENTITY.unpack_from(self._lines.labels, slot * LINE_BYTES)
        spent = self._stop(slot)
        label = (account, spent, 0, layout.next_generation(generation))
        IDENTITY.pack_into(self._lines.labels, slot * LINE_BYTES, *label)
        self._slots[account] = slot
        self._limits[slot] = 0
        return slot

    def _stop(self, slot: int) -> int:
        """Let nothing more be spent in a slot; return what its account has spent, as a word that wraps at 2^64."""
        line = slot * LINE_WORDS
        self._words[line + CREDIT] = 0
        spent: int = self._words[line + SPENT] - self._words[line + RETURNED] & WORD_MASK
        self._words[line + LIMIT] = spent
        return spent

    def _write(self, slot: int, limit: AccountLimit, now_ns: int) -> None:
        """Store what may be spent, in an order that is safe while packets pass.

        What is reduced is stored first, and then what is raised. So at no moment more may be spent than before the call
        or than after it, whichever is more. The low-water mark is stored before all: `spent` can't have reached the
        mark yet, so its crossing is reported exactly once.
        """
        words, line = self._words, slot * LINE_WORDS
        taken, returned = words[line + SPENT], words[line + RETURNED]
        spent_units = self._spent_units(slot, taken)
        limit_units = max(spent_units - MOST_UNITS_AHEAD, min(limit.limit_units, spent_units + MOST_UNITS_AHEAD))
        low_units = spent_units if limit.low_water_units is None else limit.low_water_units
        low_ahead = min(max(0, low_units - spent_units), MOST_UNITS_AHEAD)  # 0: the mark is never crossed
        words[line + ACCOUNT_LOW_WATER] = taken + low_ahead & WORD_MASK
        credit = min(max(0, limit.credit_units), MOST_UNITS_AHEAD)
        until_ns = layout.instant_ns(now_ns, limit.credit_ends_in_s)
        stores = [
            (LIMIT, taken - returned + limit_units - spent_units & WORD_MASK, limit_units > self._limits[slot]),
            (CREDIT, credit, credit > words[line + CREDIT]),
            (CREDIT_UNTIL_NS, until_ns, until_ns > words[line + CREDIT_UNTIL_NS]),
        ]
        self._lines.label_words[(slot * LINE_BYTES + IDENTITY_LIMIT_AT) // 8] = limit_units >> 32
        self._limits[slot] = limit_units
        for word, value, _ in sorted(stores, key=lambda store: store[2]):
            words[line + word] = value
        *_, generation = IDENTITY.unpack_from(self._lines.labels, slot * LINE_BYTES)
        words[line + ACCOUNT_TAG] = layout.make_tag(generation)

    def _tag(self, slot: int) -> int:
        return self._words[slot * LINE_WORDS + ACCOUNT_TAG]

    def _spent_units(self, slot: int, taken: int) -> int:
        """Return what the account has spent. Args: taken: the kernel's `spent`, read before its `returned`."""
        line = slot * LINE_WORDS
        return self._limits[slot] - signed(self._words[line + LIMIT] + self._words[line + RETURNED] - taken)

    def _reading(self, slot: int, taken: int | None = None) -> AccountReading:
        line = slot * LINE_WORDS
        spent_units = self._spent_units(slot, self._words[line + SPENT] if taken is None else taken)
        limit = self._words[line + LIMIT]
        if time.monotonic_ns() < self._words[line + CREDIT_UNTIL_NS]:
            limit = limit + self._words[line + CREDIT] & WORD_MASK
        exhausted = self._words[line + MARK] == layout.mark_of(limit, self._tag(slot))
        return AccountReading(self.account_in(slot), spent_units, exhausted)

    def _read_limit(self, slot: int, at_ns: int) -> AccountLimit:
        line = slot * LINE_WORDS
        low_ahead = signed(self._words[line + ACCOUNT_LOW_WATER] - self._words[line + SPENT])
        low_units = self._spent_units(slot, self._words[line + SPENT]) + low_ahead
        return AccountLimit(
            account=self.account_in(slot),
            limit_units=self._limits[slot],
            credit_units=self._words[line + CREDIT],
            credit_ends_in_s=(self._words[line + CREDIT_UNTIL_NS] - at_ns) / 1e9,
            low_water_units=low_units if low_ahead > 0 else None,
        )
