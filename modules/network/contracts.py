"""The contract table: slots in mapped memory, and the destinations that lead to them.

A slot is never reset: a contract that takes one over remembers what the counters showed and counts from there, so the
kernel stays the only writer of what it counts. A new contract is written whole before its destination is entered, and
its destination is taken out before anything else when it ends; a slot rests before it is used again, and each use has
its own generation, so neither a packet on its way nor a hint left in the ring can be taken for the next contract's.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from ngp.core.messages import Role
from ngp.errors import KernelError
from ngp.modules.bpf import Table
from ngp.modules.network import layout
from ngp.modules.network.early import EarlyBytes
from ngp.modules.network.layout import (
    BLOCKED,
    ENTRY,
    EXPIRES_NS,
    GENERATION_MASK,
    GRANTED,
    LABEL,
    LINE_BYTES,
    LINE_WORDS,
    LOW_WATER,
    REFUSED,
    TAG,
    USED,
    USED_TO,
    VALID,
)
from ngp.ports import AdoptedContract, Grant, Reading

_REST_S = 1.0
_SETTLE_S = 0.0001  # a packet that found its contract just before has been counted by then
_NEVER_NS = (1 << 63) - 1
_PAGE_BYTES = 4096


class ContractTable:
    """Grants, tops up, revokes and reads contracts.

    Args:
        tables: the meter's, by name.
        link_of: a neighbour's link key by its number, or None.
        is_own: whether an address (packed) is that neighbour's own, which no contract covers.
        show_prefixes: told whenever a (role, version) gets its first or loses its last contract for a prefix.
    """

    def __init__(
        self,
        tables: dict[str, Table],
        link_of: Callable[[int], bytes | None],
        is_own: Callable[[int, bytes], bool],
        show_prefixes: Callable[[Role, int, bool], None],
    ) -> None:
        self._tables, self._link_of, self._is_own, self._show_prefixes = tables, link_of, is_own, show_prefixes
        self.slots_max = tables[layout.CONTRACTS].entries
        self._lines, self._labels = tables[layout.CONTRACTS].map_memory(), tables[layout.LABELS].map_memory()
        self._words = memoryview(self._lines).cast("Q")  # an item assignment is one aligned store of 8 bytes
        self._slots: dict[bytes, int] = {}
        self._resting: deque[tuple[float, int]] = deque()
        self._fresh = 0  # slots from here on were never used
        self._prefixes: Counter[tuple[Role, int]] = Counter()
        self._blocks: list[bytes] = []
        self._begun: set[int] = set()  # began with early bytes: new to the reader, though the kernel counted nothing
        self._early = EarlyBytes(tables[layout.EARLY])

    def __len__(self) -> int:
        return len(self._slots)

    def adopt(self) -> list[AdoptedContract]:
        """Take over what stands in the tables, and enter every destination again (a crash may have come before)."""
        labels = self._labels[: self.slots_max * LINE_BYTES]
        empty, found, slots = bytes(_PAGE_BYTES), [], []
        for start in range(0, len(labels), _PAGE_BYTES):
            if labels[start : start + _PAGE_BYTES] == empty[: len(labels) - start]:
                continue
            for slot in range(start // LINE_BYTES, min((start + _PAGE_BYTES) // LINE_BYTES, self.slots_max)):
                if self._words[slot * LINE_WORDS + TAG] & VALID:
                    self._slots[labels[slot * LINE_BYTES : slot * LINE_BYTES + 16]] = slot
                    slots.append(slot)
                    found.append(AdoptedContract(self._read_grant(slot), self._reading(slot)))
                elif any(labels[slot * LINE_BYTES : (slot + 1) * LINE_BYTES]):
                    self._resting.append((0.0, slot))
                self._fresh = slot + 1
        taken = set(slots) | {slot for _, slot in self._resting}
        self._resting.extend((0.0, slot) for slot in range(self._fresh) if slot not in taken)
        for slot in slots:
            self._count_prefix(slot, 1)
        self._enter(slots)
        return found

    def grant(self, grants: Sequence[Grant]) -> None:
        """Create or top up; one of a neighbour whose interface isn't there waits for its link (see `move`).

        Raises: KernelError when the table is full; then nothing changed.
        """
        new = {each.contract: each for each in grants if each.contract not in self._slots}
        free = self.slots_max - len(self._slots)
        if len(new) > free:
            raise KernelError(
                f"the contract table is full: {len(self._slots)} of {self.slots_max} in use and {len(new)} to add; "
                "raise CONTRACTS_MAX in net.conf, then: ngp stop and ngp start"
            )
        taken = []
        now_ns = time.monotonic_ns()
        for grant in grants:
            slot = self._slots.get(grant.contract)
            if slot is None:
                slot = self._take_slot()
                self._slots[grant.contract] = slot
                self._write_label(slot, grant)
                taken.append(slot)
            self._write_line(slot, grant, now_ns)
        for slot in taken:
            self._count_prefix(slot, 1)
        self._enter(taken)
        self._begin_with_early(taken, grants, now_ns)

    def revoke(self, contracts: Iterable[bytes]) -> list[Reading]:
        """Take contracts out; returns their last readings. Unknown ones are passed over."""
        slots = [self._slots.pop(contract) for contract in dict.fromkeys(contracts) if contract in self._slots]
        if not slots:
            return []
        for slot in slots:
            self._leave(slot)
            self._words[slot * LINE_WORDS + TAG] = 0
        time.sleep(_SETTLE_S)
        now_s = time.monotonic()
        readings = []
        for slot in slots:
            readings.append(self._reading(slot))
            self._count_prefix(slot, -1)
            self._resting.append((now_s, slot))
        return readings

    def read(self, contracts: Sequence[bytes] | None) -> list[Reading]:
        """Read counters; None: those that changed since the last call with None."""
        slots = self._changed() if contracts is None else (self._slots[c] for c in contracts if c in self._slots)
        return [self._reading(slot) for slot in slots]

    def contract_of(self, slot: int, tag: int) -> bytes | None:
        """Return the contract that a hint is about, or None when its slot has changed hands."""
        if slot >= self.slots_max:
            return None
        now = self._words[slot * LINE_WORDS + TAG]
        same = now & VALID and (now ^ tag) >> 8 & GENERATION_MASK == 0
        return self._labels[slot * LINE_BYTES : slot * LINE_BYTES + 16] if same else None

    def of_neighbour(self, number: int) -> list[int]:
        """List the slots of a neighbour."""
        return [slot for slot in self._slots.values() if self._words[slot * LINE_WORDS + TAG] >> 32 == number]

    def move(self, slots: Sequence[int], number: int, before: Callable[[], None]) -> None:
        """Give contracts another neighbour number or link: `before` makes the new link the one that `link_of` tells."""
        old = [self._place(slot) for slot in slots]
        before()
        for slot in slots:
            word = slot * LINE_WORDS + TAG
            self._words[word] = self._words[word] & 0xFFFFFFFF | number << 32
        self._enter(slots)
        new = {self._place(slot) for slot in slots}
        for slot, place in zip(slots, old, strict=True):
            if place and place not in new:
                self._delete_entry(slot, place)

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._lines.close()
        self._labels.close()

    def _take_slot(self) -> int:
        rested = self._resting and time.monotonic() - self._resting[0][0] > _REST_S
        if self._fresh < self.slots_max and not rested:
            self._fresh += 1
            return self._fresh - 1
        return self._resting.popleft()[1]

    def _write_label(self, slot: int, grant: Grant) -> None:
        line = slot * LINE_WORDS
        used, used_to = self._words[line + USED], self._words[line + USED_TO]
        generation = (LABEL.unpack_from(self._labels, slot * LINE_BYTES)[-1] + 1) & GENERATION_MASK
        LABEL.pack_into(
            self._labels,
            slot * LINE_BYTES,
            grant.contract,
            used_to - grant.used_to_base_bytes,
            used - used_to - grant.used_from_base_bytes,
            self._words[line + REFUSED],
            layout.address_bytes(grant.destination),
            grant.destination.prefixlen,
            grant.destination.version,
            layout.ROLE[grant.role],
            generation,
        )

    def _write_line(self, slot: int, grant: Grant, now_ns: int) -> None:
        """Low water goes before granted: used can't have reached it yet, so its crossing is seen exactly once."""
        words, line = self._words, slot * LINE_WORDS
        _, base_to, base_from, _, _, _, _, _, generation = LABEL.unpack_from(self._labels, slot * LINE_BYTES)
        base = base_to + base_from
        expires_ns = now_ns + int(grant.expires_in_s * 1e9) if grant.expires_in_s < 1e9 else _NEVER_NS
        words[line + LOW_WATER] = min(max(0, base + grant.low_water_bytes), _NEVER_NS)
        words[line + EXPIRES_NS] = max(0, expires_ns)
        words[line + GRANTED] = min(max(0, base + grant.granted_bytes), _NEVER_NS)
        tag = words[line + TAG]
        number = tag >> 32 if tag & VALID else grant.neighbour
        words[line + TAG] = VALID | (BLOCKED if grant.blocked else 0) | generation << 8 | number << 32

    def _begin_with_early(self, slots: Sequence[int], grants: Sequence[Grant], now_ns: int) -> None:
        """Let new purchases begin with what the server held meanwhile, as far as it was granted."""
        taken = set(slots)
        new = [grant for grant in grants if grant.role is Role.CLIENT and self._slots[grant.contract] in taken]
        if new:
            time.sleep(_SETTLE_S)
        for grant in new:
            slot = self._slots[grant.contract]
            reading = self._reading(slot)
            room = grant.granted_bytes - reading.used_to_bytes - reading.used_from_bytes
            early_bytes = min(max(0, room), self._early.take(grant.neighbour, grant.destination))
            if early_bytes:
                contract, base_to, *rest = LABEL.unpack_from(self._labels, slot * LINE_BYTES)
                LABEL.pack_into(self._labels, slot * LINE_BYTES, contract, base_to - early_bytes, *rest)
                self._write_line(slot, grant, now_ns)
                self._begun.add(slot)

    def _place(self, slot: int) -> tuple[str, bytes] | None:
        """Return table and key of a slot's destination; None where it has none (its link is gone, or it is own)."""
        _, _, _, _, address, bits, version, role_number, _ = LABEL.unpack_from(self._labels, slot * LINE_BYTES)
        number = self._words[slot * LINE_WORDS + TAG] >> 32
        role, address = layout.ROLE_OF[role_number], address[: 4 if version == 4 else 16]
        if bits != 8 * len(address):
            return layout.PREFIXES[version], layout.prefix_key(number, role, address, bits)
        link = self._link_of(number)
        if link is None or (role is Role.CLIENT and self._is_own(number, address)):
            return None
        return layout.HOSTS[version], layout.host_key(link, role, address)

    def _enter(self, slots: Iterable[int]) -> None:
        found: dict[str, tuple[list[bytes], list[bytes]]] = {}
        for slot in slots:
            place = self._place(slot)
            if place:
                keys, values = found.setdefault(place[0], ([], []))
                keys.append(place[1])
                values.append(ENTRY.pack(slot, self._words[slot * LINE_WORDS + TAG] >> 8 & GENERATION_MASK))
        for table, (keys, values) in found.items():
            self._tables[table].set_many(keys, values)

    def _leave(self, slot: int) -> None:
        place = self._place(slot)
        if place:
            self._delete_entry(slot, place)

    def _delete_entry(self, slot: int, place: tuple[str, bytes]) -> None:
        """Delete a destination unless a newer contract stands there (an LPM look-up may answer with a wider prefix)."""
        table, key = place
        standing = self._tables[table].get(key)
        if standing is not None and ENTRY.unpack(standing)[0] == slot:
            self._tables[table].delete(key)

    def _count_prefix(self, slot: int, change: int) -> None:
        _, _, _, _, _, bits, version, role_number, _ = LABEL.unpack_from(self._labels, slot * LINE_BYTES)
        if bits == (32 if version == 4 else 128):
            return
        kind = (layout.ROLE_OF[role_number], version)
        self._prefixes[kind] += change
        if self._prefixes[kind] == (1 if change > 0 else 0):
            self._show_prefixes(*kind, change > 0)

    def _reading(self, slot: int) -> Reading:
        contract, base_to, base_from, base_refused, *_ = LABEL.unpack_from(self._labels, slot * LINE_BYTES)
        line = slot * LINE_WORDS
        # The kernel adds to used first: in this order the other direction can't come out negative.
        used_to = self._words[line + USED_TO]
        used = self._words[line + USED]
        return Reading(
            contract, used_to - base_to, used - used_to - base_from, self._words[line + REFUSED] - base_refused
        )

    def _read_grant(self, slot: int) -> Grant:
        contract, base_to, base_from, _, address, bits, version, role, _ = LABEL.unpack_from(
            self._labels, slot * LINE_BYTES
        )
        granted, expires_ns, low_water, tag = self._words[slot * LINE_WORDS : slot * LINE_WORDS + 4]
        return Grant(
            contract=contract,
            neighbour=tag >> 32,
            role=layout.ROLE_OF[role],
            destination=layout.read_prefix(version, address, bits),
            granted_bytes=granted - base_to - base_from,
            low_water_bytes=low_water - base_to - base_from,
            expires_in_s=(expires_ns - time.monotonic_ns()) / 1e9,
            blocked=bool(tag & BLOCKED),
        )

    def _changed(self) -> Iterator[int]:
        """Compare whole pages with what they were: contracts that carry nothing cost next to nothing."""
        begun, self._begun = self._begun, set()
        yield from (slot for slot in begun if self._words[slot * LINE_WORDS + TAG] & VALID)
        for index, start in enumerate(range(0, self._fresh * LINE_BYTES, _PAGE_BYTES)):
            block = self._lines[start : start + _PAGE_BYTES]
            if index == len(self._blocks):
                self._blocks.append(bytes(len(block)))
            before = self._blocks[index]
            if block == before:
                continue
            self._blocks[index] = block
            new, old = memoryview(block).cast("Q"), memoryview(before).cast("Q")
            for line in range(0, len(new), LINE_WORDS):
                if (
                    new[line + TAG] & VALID
                    and new[line + USED : line + LINE_WORDS] != old[line + USED : line + LINE_WORDS]
                ):
                    yield start // LINE_BYTES + line // LINE_WORDS
