"""Neighbours in the kernel's tables: which link belongs to which neighbour, and which addresses are a server's own.

The kernel knows a link by its interface's index. An interface that is made again gets another index, so `follow` looks
at the indexes after every change of interfaces, and moves the contracts along. A neighbour's own addresses are entries
in the destination table itself, which lead to no contract: so the one look-up that each packet needs finds them too. A
neighbour may announce other addresses as often as it likes. So their changes are entered at most once a second, and
touch only the contracts for these addresses.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Sequence

from ngp.core.kernel import TENANTS, KernelNeighbour
from ngp.core.messages import Role
from ngp.modules.bpf import Table
from ngp.modules.network import layout
from ngp.modules.network.contracts import ContractTable
from ngp.modules.network.first_links import FirstLinks

_OWN_EVERY_S = 1.0


class NeighbourTable:
    """Keeps the kernel's neighbours as the daemon names them.

    Args:
        tables: the meter's tables, by name.
        index_of: returns an interface's index by name, or None if it doesn't exist.
        show_several: called with True if any neighbour has several links, else with False.
    """

    def __init__(
        self, tables: dict[str, Table], index_of: Callable[[str], int | None], show_several: Callable[[bool], None]
    ) -> None:
        self._tables, self._index_of, self._show_several = tables, index_of, show_several
        self._links: dict[int, bytes] = {}
        self._numbers: dict[bytes, int] = {}
        self._known: dict[int, KernelNeighbour] = {}
        self._own: dict[int, frozenset[bytes]] = {}
        self._own_since_s: dict[int, float] = {}  # when a neighbour's own addresses changed last
        self._own_waits: set[int] = set()
        self._firsts = FirstLinks()
        found = {key[:10]: layout.NEIGHBOUR.unpack(value) for key, value in tables[layout.NEIGHBOURS].items()}
        for link, (number, *_) in found.items():
            self._links[number], self._numbers[link] = link, number
        for number, *_, first in found.values():
            self._firsts.set_first(number, self._numbers.get(first[:10], number))
        self._adopt_own()

    def first_of(self, number: int) -> int:
        """Return the number of the first link of the neighbour on a link; it stands for all links of that neighbour."""
        return self._firsts.of(number)

    def link_of(self, number: int) -> bytes | None:
        """Return a neighbour's link key; None if no link with this number is in the kernel."""
        return layout.TENANTS_LINK if number == TENANTS else self._links.get(number)

    def first_link(self, link: bytes) -> bytes:
        """Return the first link of the neighbour on a link; the link itself if no neighbour is known there."""
        number = self._numbers.get(link)
        return link if number is None else self._links[self._firsts.of(number)]

    def has_paid(self, link: bytes) -> bool:
        """Say whether the neighbour on a link has paid us."""
        known = self._known.get(self._numbers.get(link, 0))
        return known is not None and known.has_paid

    def is_own(self, number: int, address: bytes) -> bool:
        """Say whether the neighbour with this number has the address itself, and doesn't only forward to it."""
        return address in self._own.get(number, ())

    def is_known(self, number: int) -> bool:
        """Say whether a number is a neighbour's."""
        return number in self._links

    def on_grace(self, number: int) -> bool:
        """Say whether the daemon has named a neighbour as one that hasn't paid us.

        False for a neighbour that was adopted from the kernel's tables and not named since: it may have paid.
        """
        known = self._known.get(number)
        return known is not None and not known.has_paid

    def payers(self) -> tuple[int, int]:
        """Return how many payers there are among neighbours: those that have paid us, and those that haven't."""
        firsts = [number for number in self._links if self._firsts.of(number) == number]
        on_grace = sum(map(self.on_grace, firsts))
        return len(firsts) - on_grace, on_grace

    def set(self, neighbours: Sequence[KernelNeighbour], contracts: ContractTable) -> None:
        """Add or change neighbours; unchanged ones cost nothing. Raises KernelError."""
        for neighbour in neighbours:
            number = neighbour.neighbour
            index = self._index_of(neighbour.interface)
            link = layout.link_key(index, neighbour.link_address) if index is not None else None
            if self._known.get(number) == neighbour and self._links.get(number) == link:
                continue
            self._known[number] = neighbour
            if link is None:
                continue  # the interface is gone; `follow` tries again
            self._set_link(number, link, contracts)
            self._make_lane(neighbour)
            self._write(number)
            self._firsts.add(number, neighbour.identity)
            self._join(neighbour.identity, contracts)
            self._own_waits.add(number)
            self._enter_own(number, contracts)

    def follow(self, contracts: ContractTable) -> None:
        """Move neighbours whose interface got another index."""
        self.set(list(self._known.values()), contracts)

    def enter_own(self, contracts: ContractTable) -> None:
        """Enter own addresses that had to wait because the neighbour's own had changed less than a second before."""
        for number in list(self._own_waits):
            self._enter_own(number, contracts)

    def forget(self, numbers: Iterable[int], contracts: ContractTable) -> None:
        """Remove neighbours. Revoke their contracts first: without a link they cover nothing."""
        for number in numbers:
            known = self._known.pop(number, None)
            if known is not None:
                self._firsts.remove(number, known.identity)
                self._join(known.identity, contracts)
            link = self._links.pop(number, None)
            if link is not None:
                self._delete_own(link, self._own.pop(number, ()))
            self._firsts.set_first(number, number)
            self._own_since_s.pop(number, None)
            self._own_waits.discard(number)
            self._tables[layout.LANES].delete(_lane_key(number))
            if link is not None and self._numbers.get(link) == number:
                del self._numbers[link]
                self._tables[layout.NEIGHBOURS].delete(layout.neighbour_key(link))

    def _write(self, number: int) -> None:
        """Write a neighbour's entry, with its first link.

        The fields that the kernel writes stay as they are: else a neighbour could fill its token buckets by any change
        that it can cause.
        """
        neighbour, first = self._known[number], self._firsts.of(number)
        flags = layout.BUYS_FROM_US * neighbour.buys_from_us | layout.SELLS_TO_US * neighbour.sells_to_us
        flags |= layout.SHUT_OUT * neighbour.blocked
        flags |= layout.HAS_PAID * neighbour.has_paid | layout.WAS_PAID * neighbour.was_paid
        link = b"" if first == number else self._links[first]
        key = layout.neighbour_key(self._links[number])
        had = self._tables[layout.NEIGHBOURS].get(key)
        kept = layout.NEIGHBOUR.unpack(had)[2:6] if had else (0, 0, 0, 0)
        self._tables[layout.NEIGHBOURS].set(key, layout.NEIGHBOUR.pack(number, flags, *kept, link))

    def _join(self, identity: bytes, contracts: ContractTable) -> None:
        """Choose the first link of an identity, and move there what is entered under other links of the identity."""
        if not identity:
            return
        for number, first in self._firsts.wanted(identity, self._links).items():
            if self._firsts.of(number) != first:
                self._move_to(number, first, contracts)
        self._show_several(bool(self._firsts))

    def _move_to(self, number: int, first: int, contracts: ContractTable) -> None:
        link = self._links[number]
        if number != first:
            self._delete_own(link, self._own.pop(number, ()))
        contracts.move(
            contracts.of_neighbour(number), lambda: self._firsts.set_first(number, first), lambda: self._write(number)
        )
        self._set_own(first, contracts)

    def lane_bytes(self, number: int) -> int:
        """Return the bytes that a neighbour's lane has carried, both directions; 0 if it has none."""
        value = self._tables[layout.LANES].get(_lane_key(self._firsts.of(number)))
        return layout.LANE.unpack(value)[1] if value else 0

    def _make_lane(self, neighbour: KernelNeighbour) -> None:
        """Make a lane if there is none. A lane that exists keeps its bucket, whatever else changes.

        A neighbour that has paid begins with an empty bucket. Else it could get a full bucket by each new link address
        that it makes up, as only newcomers also share one bucket.
        """
        ready_ns = time.monotonic_ns() if neighbour.has_paid else 0
        self._tables[layout.LANES].add(_lane_key(neighbour.neighbour), layout.LANE.pack(ready_ns, 0, ready_ns))

    def _move_lane(self, old: int, new: int) -> None:
        """Keep a link's lane when the link gets another number, since a new lane would have a full bucket."""
        lane = self._tables[layout.LANES].get(_lane_key(old))
        if lane is not None:
            self._tables[layout.LANES].add(_lane_key(new), lane)
            self._tables[layout.LANES].delete(_lane_key(old))

    def _set_link(self, number: int, link: bytes, contracts: ContractTable) -> None:
        old = self._links.get(number)
        other = self._numbers.get(link)
        if old == link and other == number:
            return
        if old is not None and old != link:
            self._delete_own(old, self._own.pop(number, ()))
            self._own_since_s.pop(number, None)

        def change() -> None:
            self._links[number], self._numbers[link] = link, number

        contracts.move(
            [slot for one in self._firsts.numbers_of(number) for slot in contracts.of_neighbour(one)], change
        )
        if other is not None and other != number:  # the daemon has given this link a new number
            contracts.move(contracts.of_neighbour(other), lambda: self._firsts.renumber(other, number), number=number)
            self._own[number] = self._own.pop(other, frozenset())
            self._links.pop(other, None)
            known = self._known.pop(other, None)
            if known is not None:
                self._firsts.remove(other, known.identity)
            self._move_lane(other, number)
        if old is not None and old != link and self._numbers.get(old) == number:
            del self._numbers[old]
            self._tables[layout.NEIGHBOURS].delete(layout.neighbour_key(old))

    def _enter_own(self, number: int, contracts: ContractTable) -> None:
        if time.monotonic() - self._own_since_s.get(number, float("-inf")) >= _OWN_EVERY_S:
            self._own_waits.discard(number)
            self._set_own(number, contracts)

    def _set_own(self, number: int, contracts: ContractTable) -> None:
        """Enter a server's own addresses, under its first link."""
        link, neighbour = self._links.get(number), self._known.get(number)
        if link is None or neighbour is None or self._firsts.of(number) != number:
            return
        addresses = neighbour.local_addresses if neighbour.sells_to_us else ()
        if addresses is None:
            return
        wanted, had = frozenset(address.packed for address in addresses), self._own.get(number, frozenset())
        if wanted == had:
            return
        self._own[number], self._own_since_s[number] = wanted, time.monotonic()
        for address in wanted - had:
            self._tables[_hosts(address)].set(layout.host_key(link, Role.CLIENT, address), layout.OWN_ENTRY)
        self._delete_own(link, had - wanted)
        contracts.move(contracts.bought_of(number, had - wanted))  # the entry may have hidden a contract

    def _delete_own(self, link: bytes, addresses: Iterable[bytes]) -> None:
        for address in addresses:
            self._tables[_hosts(address)].delete(layout.host_key(link, Role.CLIENT, address))

    def _adopt_own(self) -> None:
        """At a start: read the neighbours' own addresses from the kernel's tables, as the previous daemon left them."""
        found: dict[int, set[bytes]] = {}
        for name in layout.HOSTS.values():
            for key in self._tables[name].keys_of(layout.OWN_ENTRY):
                number = self._numbers.get(key[:10])
                if number is not None:
                    found.setdefault(number, set()).add(key[12:])
        self._own = {number: frozenset(addresses) for number, addresses in found.items()}


def _lane_key(number: int) -> bytes:
    return struct.pack("=I", number)


def _hosts(address: bytes) -> str:
    return layout.HOSTS[4 if len(address) == 4 else 6]
