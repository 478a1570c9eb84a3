"""The contract table: slots in mapped memory, the accounts that pay for them, and the destinations that lead to them.

A slot's counters are never reset. A new contract in a used slot remembers what the counters showed when it began (its
bases), and counts from there. So only the kernel ever writes the counters.

A new contract is written completely before its destination is entered. When a contract ends, its destination is removed
first. A slot rests for a second before it is used again, and each use has its own generation. So a packet that is on
its way through the meter is never charged to the slot's next contract, and a hint that is still in the ring buffer is
never taken for a hint about that contract.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import TypeVar

from ngp.core.kernel import TENANTS, AdoptedContract, Grant, Reading
from ngp.core.messages import Address, Prefix, Role
from ngp.errors import KernelError
from ngp.modules.bpf import Table
from ngp.modules.network import layout
from ngp.modules.network.accounts import AccountTable
from ngp.modules.network.early import EarlyBytes
from ngp.modules.network.layout import (
    BLOCKED,
    ENTRY,
    EXPIRES_NS,
    LABEL,
    LABEL_BASE_TO_AT,
    LABEL_NEIGHBOUR_AT,
    LIMIT,
    LINE_BYTES,
    LINE_WORDS,
    LOW_WATER,
    MARK,
    ORDERS,
    PRICE,
    RESOLD,
    TAG,
    USED,
    USED_TO,
    VALID,
    Label,
)
from ngp.modules.network.lines import Lines
from ngp.ports.network import HostBytes

_REST_S = 1.0
_BYTES_MAX = (1 << 63) - 1
_Key = TypeVar("_Key", int, bytes)
# The highest price in msat per GiB: with it, the cost of a full superpacket is far below what a difference of words
# can hold.
_PRICE_MAX = 1 << 40


class ContractTable:
    """Grants, changes, revokes and reads contracts.

    Args:
        tables: the meter's tables, by name.
        accounts: the account table; contracts name accounts in it.
        first_of: returns the number of a neighbour's first link, for the number of any of its links.
        link_of: returns the link key for a neighbour's number; None if the neighbour's interface doesn't exist.
        is_own: says, for a neighbour's number and a packed address, whether the address is that neighbour's own; no
            purchase covers such an address.
        show_prefixes: called with our role, the IP version and True when the first contract for a prefix of several
            addresses comes, and with False when the last one goes.
        show_purchases: called by `adopt` with whether there are purchases; later with True when the first purchase
            comes, and with False when the last one goes.
    """

    def __init__(
        self,
        tables: dict[str, Table],
        accounts: AccountTable,
        first_of: Callable[[int], int],
        link_of: Callable[[int], bytes | None],
        is_own: Callable[[int, bytes], bool],
        show_prefixes: Callable[[Role, int, bool], None],
        show_purchases: Callable[[bool], None],
    ) -> None:
        self._tables, self._link_of, self._is_own = tables, link_of, is_own
        self._show_prefixes, self._show_purchases = show_prefixes, show_purchases
        self._accounts, self._first_of = accounts, first_of
        self._lines = Lines(tables[layout.CONTRACTS], tables[layout.LABELS])
        self._words, self._labels, self.slots_max = self._lines.words, self._lines.labels, self._lines.slots_max
        self._slots: dict[bytes, int] = {}
        self._resting: deque[tuple[float, int]] = deque()
        self._fresh = 0  # slots from here on were never used
        self._prefixes: Counter[tuple[Role, int]] = Counter()
        self._purchases = 0
        self._of_neighbour: dict[int, set[int]] = {}  # slots by the number in their label
        self._bought: dict[bytes, set[int]] = {}  # slots of purchases of single addresses
        self._begun: dict[int, bool] = {}  # by slot of a new purchase: whether it began with early bytes
        self._over_unwatched: set[int] = set()  # slots of purchases that were used up or over while no daemon ran
        self._early = EarlyBytes(tables[layout.EARLY])

    def __len__(self) -> int:
        return len(self._slots)

    def adopt(self, at_ns: int) -> list[AdoptedContract]:
        """Take over the contracts in the tables, and enter the destinations that aren't entered.

        A daemon may have been killed when it had entered only some of them.

        Args: at_ns: the monotonic instant that `expires_in_s` counts from.
        """
        found, missing = [], []
        entered = self._entered()
        for slot in self._lines.used_before():
            self._fresh = slot + 1
            tag = self._words[slot * LINE_WORDS + TAG]
            if not tag & VALID:
                self._resting.append((0.0, slot))
                continue
            label = self._label(slot)
            self._slots[label.contract] = slot
            self._accounts.take(tag >> 32)
            self._count(slot, label, 1)
            if entered.get(slot) != label.generation:
                missing.append((slot, label))
            grant, reading = self._read_grant(slot, label, at_ns), self._reading(slot, label)
            if grant.role is Role.CLIENT and (reading.exhausted or grant.expires_in_s <= 0):
                self._over_unwatched.add(slot)
            found.append(AdoptedContract(grant, reading))
        self._show_purchases(self._purchases > 0)
        self._enter(missing)
        return found

    def grant(self, grants: Sequence[Grant]) -> None:
        """Create or change contracts. If the neighbour's interface doesn't exist, `move` enters the destination later.

        Raises: KernelError if a table is full, or an account isn't known; then no new contract was created.
        """
        self._require_room(grants)
        payers = [self._require_account(grant) for grant in grants]
        taken = []
        now_ns = time.monotonic_ns()
        for grant, payer in zip(grants, payers, strict=True):
            slot = self._slots.get(grant.contract)
            if slot is None:
                slot = self._take_slot()
                self._slots[grant.contract] = slot
                self._write_label(slot, grant)
                taken.append(slot)
            self._write_line(slot, grant, payer, now_ns)
            self._over_unwatched.discard(slot)
        labels = self._labelled(taken)
        for slot, label in labels:
            self._count(slot, label, 1)
        try:
            self._enter(labels)
        except KernelError:
            self.revoke([label.contract for _, label in labels])
            raise
        new = set(taken)
        with self._early.read_once():
            for grant in grants:
                if grant.role is Role.CLIENT and self._slots[grant.contract] in new:
                    self._begun[self._slots[grant.contract]] = self._add_early(self._slots[grant.contract])

    def revoke(self, contracts: Iterable[bytes]) -> None:
        """Take contracts out of the kernel; unknown ones are ignored."""
        now_ns = time.monotonic_ns()
        for contract in contracts:
            slot = self._slots.pop(contract, None)
            if slot is None:
                continue
            label = self._label(slot)
            if layout.ROLE_OF[label.role] is Role.CLIENT:
                self._forget_early(slot, label, now_ns)
            place = self._place(label)
            if place:
                self._delete_entry(slot, place)
            payer = self._words[slot * LINE_WORDS + TAG] >> 32
            self._words[slot * LINE_WORDS + TAG] = 0
            self._count(slot, label, -1)
            self._begun.pop(slot, None)
            self._resting.append((time.monotonic(), slot))
            self._accounts.release(payer)

    def block_all(self) -> None:
        """Let nothing more pass on any contract until it is granted again.

        This is one store of a word for each contract, as there may be a million contracts.
        """
        words = self._words
        for slot in self._slots.values():
            words[slot * LINE_WORDS + TAG] |= BLOCKED

    def read(self, contracts: Sequence[bytes] | None) -> list[Reading]:
        """Read counters. Args: contracts: which ones; None: those that changed since the last call with None."""
        slots = self._changed() if contracts is None else (self._slots[c] for c in contracts if c in self._slots)
        return [self._reading(slot, label) for slot, label in self._labelled(slots)]

    def inside(self, most: int) -> dict[bytes, list[HostBytes]]:
        """Return, by contract for several addresses, the addresses in it with the most bytes. Raises: KernelError."""
        hosts: dict[tuple[int, int], list[tuple[int, bytes, int, int]]] = {}
        for key, value in self._tables[layout.INSIDE].items():
            slot, generation, address = layout.INSIDE_KEY.unpack(key)
            to_bytes, from_bytes = layout.INSIDE_VALUE.unpack(value)
            hosts.setdefault((slot, generation), []).append((to_bytes + from_bytes, address, to_bytes, from_bytes))
        found = {}
        for (slot, generation), ours in hosts.items():
            label = self._label(slot)
            if label.generation == generation and label.contract in self._slots:
                size = 4 if label.version == 4 else 16
                top = heapq.nlargest(most, ours)
                found[label.contract] = [HostBytes(ip_address(one[1][:size]), *one[2:]) for one in top]
        return found

    def sent_lately(self, numbers: Iterable[int], destination: Prefix) -> Prefix | None:
        """Return the host, within a destination, of the latest packet that we sent to a neighbour without a contract.

        None if there was no such packet lately (see `EarlyBytes.sent_lately`).

        Args: numbers: those of the neighbour's links. Early bytes are counted under the number of its first link.
        """
        hosts = (self._early.sent_lately(number, destination) for number in {self._first_of(one) for one in numbers})
        return next((host for host in hosts if host is not None), None)

    def uncovered(self) -> list[tuple[int, Address, float]]:
        """Return what we sent to sellers without a contract: see `EarlyBytes.uncovered`."""
        return self._early.uncovered()

    def contract_of(self, slot: int, tag: int) -> bytes | None:
        """Return the contract that a hint is about, or None if another contract has the slot by now."""
        if slot >= self.slots_max:
            return None
        now = self._words[slot * LINE_WORDS + TAG]
        return self._label(slot).contract if now & VALID and not layout.generation_of(now ^ tag) else None

    def of_neighbour(self, number: int) -> list[int]:
        """List the slots of the contracts with a neighbour, by its number."""
        return list(self._of_neighbour.get(number, ()))

    def bought_of(self, first: int, addresses: Iterable[bytes]) -> list[int]:
        """List the slots of our purchases of these addresses from a neighbour. Args: first: its first link's number."""
        slots = (slot for address in addresses for slot in self._bought.get(address, ()))
        return [slot for slot in slots if self._first_of(self._label(slot).number) == first]

    def move(
        self,
        slots: Sequence[int],
        before: Callable[[], None] = lambda: None,
        then: Callable[[], None] = lambda: None,
        number: int | None = None,
    ) -> None:
        """Enter contracts under another number or link of their neighbour, and remove their old entries.

        Args:
            before: called first; after that `first_of` and `link_of` must return the new link.
            then: called when the new entries exist and the old ones aren't removed yet.
            number: the neighbour's number from now on; None: the number stays.
        """
        old = [self._place(label) for _, label in self._labelled(slots)]
        before()
        if number is not None:
            for slot in slots:
                _change(self._of_neighbour, self._label(slot).number, slot, -1)
                self._lines.label_halves[(slot * LINE_BYTES + LABEL_NEIGHBOUR_AT) // 4] = number
                _change(self._of_neighbour, number, slot, 1)
        labels = self._labelled(slots)
        self._enter(labels)
        then()
        new = {self._place(label) for _, label in labels}
        for slot, place in zip(slots, old, strict=True):
            if place and place not in new:
                self._delete_entry(slot, place)

    def close(self) -> None:
        """Release the mapped memory."""
        self._lines.close()

    def _take_slot(self) -> int:
        rested = self._resting and time.monotonic() - self._resting[0][0] > _REST_S
        if self._fresh < self.slots_max and not rested:
            self._fresh += 1
            return self._fresh - 1
        return self._resting.popleft()[1]

    def _require_room(self, grants: Sequence[Grant]) -> None:
        new = {grant.contract for grant in grants if grant.contract not in self._slots}
        if len(new) > self.slots_max - len(self._slots):
            raise KernelError(
                f"the contract table is full: {len(self._slots)} of {self.slots_max} in use and {len(new)} to add; "
                "raise CONTRACTS_MAX in net.conf, then: ngp stop and ngp start"
            )

    def _require_account(self, grant: Grant) -> int:
        payer = self._accounts.slot_of(grant.account)
        if payer is None:
            raise KernelError(
                f"contract {grant.contract.hex()} names the account {grant.account.hex()}, which isn't in the kernel; "
                "this is a defect of ngp, please report it"
            )
        return payer

    def _write_label(self, slot: int, grant: Grant) -> None:
        line = slot * LINE_WORDS
        used_to, used = self._words[line + USED_TO], self._words[line + USED]
        label = Label(
            grant.contract,
            used_to - grant.used_to_base_bytes,
            used - used_to - grant.used_from_base_bytes,
            grant.destination.address,
            grant.neighbour,
            grant.destination.bits,
            grant.destination.version,
            layout.ROLE[grant.role],
            layout.next_generation(self._label(slot).generation),
        )
        LABEL.pack_into(self._labels, slot * LINE_BYTES, *label)

    def _write_line(self, slot: int, grant: Grant, payer: int, now_ns: int) -> None:
        """Write a contract's line, in an order that is safe while packets pass.

        The low-water mark is stored before the limit: `used` can't have reached the mark yet, so its crossing is
        reported exactly once. A higher price is stored before the limit too, and a lower price after the limit. So no
        byte passes below its price.
        """
        words, line = self._words, slot * LINE_WORDS
        label = self._label(slot)
        base, price = label.base_to + label.base_from, min(max(0, grant.price_msat_per_gib), _PRICE_MAX)
        low_water = 0 if grant.low_water_bytes is None else min(max(0, base + grant.low_water_bytes), _BYTES_MAX)
        words[line + LOW_WATER] = low_water
        words[line + PRICE] = max(price, words[line + PRICE])
        words[line + EXPIRES_NS] = layout.instant_ns(now_ns, grant.expires_in_s)
        words[line + LIMIT] = min(max(0, base + grant.limit_bytes), _BYTES_MAX)
        words[line + PRICE] = price
        wide = not label.is_host and grant.neighbour != TENANTS
        is_default = grant.destination.is_default
        tag = layout.make_tag(label.generation, payer, grant.blocked, wide, is_default, grant.resold)
        before, now = words[line + TAG], tag
        self._accounts.take(payer)
        words[line + TAG] = now
        if before & VALID:
            self._accounts.release(before >> 32)

    def _add_early(self, slot: int) -> bool:
        """Count early bytes (sent to the server before the contract) as used, up to the limit; say if there are any."""
        label, line = self._label(slot), slot * LINE_WORDS
        room = max(0, self._words[line + LIMIT] - self._words[line + USED])
        early_bytes = min(room, self._early.take(self._first_of(label.number), label.destination.prefix))
        if early_bytes:
            self._lines.label_words[(slot * LINE_BYTES + LABEL_BASE_TO_AT) // 8] -= early_bytes
            for word in (LIMIT, LOW_WATER):
                self._words[line + word] = max(0, self._words[line + word] - early_bytes)
        return early_bytes > 0

    def _forget_early(self, slot: int, label: Label, now_ns: int) -> None:
        """Forget what a purchase that ends didn't cover: its server refused that, so the next one mustn't count it.

        But if no daemon of ours ran when the purchase was used up, the server has ended it meanwhile, and holds packets
        that it will charge to the next one.
        """
        is_over = now_ns >= self._words[slot * LINE_WORDS + EXPIRES_NS] or self._is_exhausted(slot)
        if is_over and slot not in self._over_unwatched:
            self._early.take(self._first_of(label.number), label.destination.prefix)
        self._over_unwatched.discard(slot)

    def _is_exhausted(self, slot: int) -> bool:
        line = slot * LINE_WORDS
        mark = self._words[line + MARK]  # 0 in nearly all lines: no packet ever met a limit there
        return mark != 0 and mark == layout.mark_of(self._words[line + LIMIT], self._words[line + TAG])

    def _label(self, slot: int) -> Label:
        return Label._make(LABEL.unpack_from(self._labels, slot * LINE_BYTES))

    def _labelled(self, slots: Iterable[int]) -> list[tuple[int, Label]]:
        return [(slot, self._label(slot)) for slot in slots]

    def _place(self, label: Label) -> tuple[str, bytes] | None:
        """Return the kernel table in which a contract's destination is entered, and its key there.

        None if the neighbour's interface is gone, or if we are the client and the destination is the seller's own
        address, which no purchase covers.
        """
        role, address = layout.ROLE_OF[label.role], label.address[: 4 if label.version == 4 else 16]
        number = self._first_of(label.number)
        if not label.is_host:
            return layout.PREFIXES[label.version], layout.prefix_key(number, role, address, label.bits)
        link = self._link_of(number)
        if link is None or (role is Role.CLIENT and self._is_own(number, address)):
            return None
        return layout.HOSTS[label.version], layout.host_key(link, role, address)

    def _enter(self, labels: Iterable[tuple[int, Label]]) -> None:
        """Enter the destinations of contracts, by slot and label."""
        found: dict[str, tuple[list[bytes], list[bytes]]] = {}
        for slot, label in labels:
            place = self._place(label)
            if place:
                keys, values = found.setdefault(place[0], ([], []))
                keys.append(place[1])
                values.append(ENTRY.pack(slot, label.generation))
        for table, (keys, values) in found.items():
            self._tables[table].set_many(keys, values)

    def _entered(self) -> dict[int, int]:
        """Return the slots to which single addresses lead in the kernel's tables, with the generation of the entry.

        To read all of these entries takes a small part of the time that it takes to write them. A daemon that was
        killed in `move` left some entries under the old link only; but then it left the neighbour under that link too,
        and the next start moves all of them.
        """
        entered: dict[int, int] = {}
        for name in layout.HOSTS.values():
            for _, values in self._tables[name].batches():
                entered.update(ENTRY.iter_unpack(values))
        return entered

    def _delete_entry(self, slot: int, place: tuple[str, bytes]) -> None:
        """Delete the entry at a place (see `_place`), but only if it leads to this slot.

        A newer contract may have the destination by now, and a look-up in an LPM trie may find a wider prefix.
        """
        table, key = place
        standing = self._tables[table].get(key)
        if standing is not None and ENTRY.unpack(standing)[0] == slot:
            self._tables[table].delete(key)

    def _count(self, slot: int, label: Label, change: int) -> None:
        """Add a contract to the indexes (change 1) or remove it (-1): by neighbour, and by address if it is a purchase.

        Purchases and contracts for prefixes are also counted: the kernel doesn't look for such contracts while there
        are none.
        """
        role = layout.ROLE_OF[label.role]
        _change(self._of_neighbour, label.number, slot, change)
        if role is Role.CLIENT:
            if label.is_host:
                _change(self._bought, label.address[: label.bits // 8], slot, change)
            self._purchases += change
            if self._purchases == (1 if change > 0 else 0):
                self._show_purchases(change > 0)
        if label.is_host:
            return
        kind = (role, label.version)
        self._prefixes[kind] += change
        if self._prefixes[kind] == (1 if change > 0 else 0):
            self._show_prefixes(*kind, change > 0)

    def _reading(self, slot: int, label: Label) -> Reading:
        line = slot * LINE_WORDS
        # The kernel adds to `used` first. So if `used_to` is read first, the difference can't be negative.
        used_to = self._words[line + USED_TO]
        used = self._words[line + USED]
        used_from = used - used_to - label.base_from
        return Reading(label.contract, used_to - label.base_to, used_from, self._is_exhausted(slot))

    def _read_grant(self, slot: int, label: Label, at_ns: int) -> Grant:
        limit, expires_ns, low_water, tag, price = ORDERS.unpack_from(self._words, slot * LINE_BYTES)
        base = label.base_to + label.base_from
        return Grant(
            contract=label.contract,
            neighbour=label.number,
            role=layout.ROLE_OF[label.role],
            destination=label.destination,
            limit_bytes=limit - base,
            expires_in_s=(expires_ns - at_ns) / 1e9,
            account=self._accounts.account_in(tag >> 32),
            price_msat_per_gib=price,
            low_water_bytes=low_water - base if low_water else None,
            blocked=bool(tag & BLOCKED),
            resold=bool(tag & RESOLD),
        )

    def _changed(self) -> Iterator[int]:
        """Yield the slots that changed since the last call.

        The slot of a new purchase that began with early bytes is yielded too, though the kernel has counted nothing
        there yet. The kernel may have counted a last packet as early after `grant` took the early bytes and before the
        contract was in force. So the early bytes of new purchases are taken once more here; but if a purchase is used
        up already, they are what it refused.
        """
        begun, self._begun = self._begun, {}
        with self._early.read_once():
            for slot in begun:
                begun[slot] |= not self._is_exhausted(slot) and self._add_early(slot)
        yield from (slot for slot, with_early in begun.items() if with_early)
        for slot in self._lines.changed(self._fresh):
            if self._words[slot * LINE_WORDS + TAG] & VALID:
                yield slot


def _change(index: dict[_Key, set[int]], key: _Key, slot: int, change: int) -> None:
    """Add a slot to an index (change 1), or remove it (-1)."""
    slots = index.get(key)
    if slots is None:
        slots = index[key] = set()
    if change > 0:
        slots.add(slot)
        return
    slots.discard(slot)
    if not slots:
        del index[key]
