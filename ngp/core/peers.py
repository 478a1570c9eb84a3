"""Peers: the neighbours that we know, by link and by identity, and the links that haven't said hello yet."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ngp.core.allowance import Allowance, SharedAllowance
from ngp.core.buying.fork import Quality
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import Contract
from ngp.core.kernel import HeldPacket, KernelNeighbour, Router
from ngp.core.messages import Address
from ngp.core.records import NeighbourRecord
from ngp.core.selling.sale import Sale

Link = tuple[str, bytes]

TELL_EVERY_S, TOLD_IN_A_ROW = 3.0, 4
# For a neighbour's own household and each client behind it; all together may have us ask four times as much.
QUESTIONS_A_SECOND, QUESTIONS_IN_A_ROW, ASKERS = 100, 256, 4
MOST_ASKERS_KNOWN = 64
MOST_ASKED_A_SECOND = 32


def _questions(in_a_row: int = QUESTIONS_IN_A_ROW) -> SharedAllowance:
    """Return an allowance of questions to others. Args: in_a_row: as many may be asked at once in one part of it."""
    a_second = QUESTIONS_A_SECOND * ASKERS
    return SharedAllowance(a_second, QUESTIONS_A_SECOND, MOST_ASKERS_KNOWN, in_a_row * ASKERS, in_a_row)


def _newcomers_questions() -> SharedAllowance:
    """Return the allowance of those that never paid: all on one interface share a part."""
    return _questions(QUESTIONS_IN_A_ROW * ASKERS)


@dataclass(slots=True, eq=False)
class Neighbour:
    """One identity on one link.

    Attributes:
        missed: the neighbour was away, and we haven't sent yet what it may have missed.
        tells: how often we may send what the neighbour may have missed.
        questions: how often we may ask others for quotes on the neighbour's behalf. Each node for which it asks has a
            part of its own, so none of them can use up what the others need.
        asked: how often we may ask the neighbour for contracts that no client of ours asked for. The hosts that send
            through us, and the server that ends contracts, choose the destinations. Each neighbour has its own, so
            none of them can use up the questions that the others need.
        quotes: number of contracts that aren't running yet or were refused; each costs us memory and earns nothing.
        kept: the neighbour is in the ledger; one that only said hello isn't.
        why_not_bought: why the last contract that we wanted from the neighbour wasn't agreed; "" if it was.
        payee: public key of the neighbour's payment node, as it says (and proves, if its node can sign).
        contracts: all contracts of this link that aren't closed.
        quality: how well the neighbour carries our traffic on this link.
    """

    identity: bytes
    link: Link
    number: int
    network: str = ""
    sells: bool = False
    buys: bool = False
    addresses: tuple[Address, ...] = ()
    why_not_bought: str = ""
    payee: bytes = b""
    boot: int = 0
    up: bool = False
    first_seen_s: int = 0
    last_seen_s: int = 0
    heard_mono_s: float = 0.0
    met_mono_s: float = 0.0
    missed: bool = False
    tells: Allowance = field(default_factory=lambda: Allowance(1 / TELL_EVERY_S, TOLD_IN_A_ROW))
    questions: SharedAllowance = field(default_factory=_questions)
    asked: Allowance = field(default_factory=lambda: Allowance(MOST_ASKED_A_SECOND))
    quotes: int = 0
    kept: bool = False
    contracts: dict[bytes, Sale | Purchase] = field(default_factory=dict)
    quality: Quality = field(default_factory=Quality)

    def record(self) -> NeighbourRecord:
        """Return the neighbour's record for the ledger."""
        return NeighbourRecord(
            identity=self.identity,
            interface=self.link[0],
            link_address=self.link[1],
            boot=self.boot,
            sells=self.sells,
            buys=self.buys,
            first_seen_s=self.first_seen_s,
            last_seen_s=self.last_seen_s,
        )

    def for_kernel(self, blocked: bool, has_paid: bool, was_paid: bool) -> KernelNeighbour:
        """Return the neighbour as the kernel should know it; a blocked one neither buys nor sells."""
        return KernelNeighbour(
            neighbour=self.number,
            interface=self.link[0],
            link_address=self.link[1],
            local_addresses=self.addresses if self.network else None,
            buys_from_us=self.buys and not blocked,
            sells_to_us=self.sells and not blocked,
            blocked=blocked,
            has_paid=has_paid,
            was_paid=was_paid,
            identity=self.identity,
        )


@dataclass(slots=True)
class Unheard:
    """A link whose packets nobody pays for because it says no hello.

    Attributes:
        first_mono_s, last_mono_s: when such a packet was first and last decided about.
        slowed: UNPAID_RATE lets the last one pass; otherwise it was dropped.
    """

    link_address: bytes
    first_mono_s: float
    last_mono_s: float
    slowed: bool = False


@dataclass(slots=True, eq=False)
class Peers:
    """All neighbours.

    Attributes:
        neighbours: each identity on each of its links; by_link: the neighbour that a link belongs to; by_identity: the
            links of an identity.
        blocked: identities that the operator blocked, on all their links.
        strangers: packets of links that haven't said hello, each with the instant until which it waits.
        silence_due: by interface, when the log may next name a link that hasn't said hello.
        unheard: by interface, the link there whose packet was last dropped or slowed because it hasn't said hello.
        greeted: when we last broadcast a hello that wants replies, by interface.
        newcomers_questions: how often we may ask others on behalf of neighbours that never paid us. Those on one
            interface have a part together.
        looked_for_idle_mono_s: when we last looked for neighbours to forget.
        first_number: kernel numbers are greater than this; numbers: how many were given since.
    """

    first_number: int = 1
    neighbours: dict[tuple[bytes, Link], Neighbour] = field(default_factory=dict)
    by_link: dict[Link, Neighbour] = field(default_factory=dict)
    by_identity: dict[bytes, dict[Link, Neighbour]] = field(default_factory=dict)
    blocked: set[bytes] = field(default_factory=set)
    strangers: deque[tuple[float, HeldPacket]] = field(default_factory=deque)
    silence_due: dict[str, float] = field(default_factory=dict)
    unheard: dict[str, Unheard] = field(default_factory=dict)
    greeted: dict[str, float] = field(default_factory=dict)
    newcomers_questions: SharedAllowance = field(default_factory=_newcomers_questions)
    looked_for_idle_mono_s: float = float("-inf")
    numbers: int = 0

    def next_number(self) -> int:
        """Return a kernel number that no neighbour has had, in this run of ngp or an earlier one."""
        self.numbers += 1
        return self.first_number + self.numbers

    def links_of(self, identity: bytes) -> list[Neighbour]:
        """Return an identity on each of its links."""
        return list(self.by_identity.get(identity, {}).values())

    def of(self, contract: Contract) -> Neighbour | None:
        """Return the neighbour on the other side of a contract, or None if we don't know it."""
        return self.neighbours.get((contract.identity, contract.link))

    def any_link(self, identity: bytes) -> Neighbour | None:
        """Return the link on which an identity was heard last; None if it is away. All its links share one account."""
        known = [neighbour for neighbour in self.links_of(identity) if neighbour.up]
        return max(known, key=lambda neighbour: neighbour.heard_mono_s, default=None)

    def at(self, router: Router) -> Neighbour | None:
        """Return the neighbour at a router's link address.

        As long as the kernel doesn't know that address, the neighbour on the interface that announces the router's IP
        address as its own counts. If several announce it, none counts, since any of them may lie.
        """
        if router.link_address is not None:
            return self.by_link.get((router.interface, router.link_address))
        there = [one for one in self.by_link.values() if one.link[0] == router.interface]
        claim = [one for one in there if router.address in one.addresses]
        return claim[0] if len(claim) == 1 else None

    def why_away(self, identity: bytes, to_do: str) -> str:
        """Return what to tell the operator if a neighbour is away and so can't do something; "" if it isn't away."""
        if self.any_link(identity) is not None:
            return ""
        return f"{named(identity)} is away and can't {to_do}: run this again when it is back"

    def add(self, neighbour: Neighbour) -> None:
        """Enter a neighbour under its identity and link; the caller decides who owns the link in `by_link`."""
        self.neighbours[neighbour.identity, neighbour.link] = neighbour
        self.by_identity.setdefault(neighbour.identity, {})[neighbour.link] = neighbour

    def remove(self, neighbour: Neighbour) -> bool:
        """Take a neighbour out. Returns whether its identity is still on another link."""
        self.neighbours.pop((neighbour.identity, neighbour.link), None)
        if self.by_link.get(neighbour.link) is neighbour:
            del self.by_link[neighbour.link]
        links = self.by_identity.get(neighbour.identity, {})
        links.pop(neighbour.link, None)
        if not links:
            self.by_identity.pop(neighbour.identity, None)
        return bool(links)


def named(identity: bytes) -> str:
    """Name a neighbour as the listings do, so that the operator finds it there."""
    return identity.hex()[:16]
