"""Evidence: signs that bought or sold traffic doesn't pass, whatever the cause is.

`ngp check` reads the firewall rules and routes of this host, but can't judge all of them, and sees none of a neighbour.
But a daemon knows to which destinations packets went although the seller offered no contract, and from which
destinations nothing came back. One host that is down proves nothing. So destinations are looked at in groups (of one
seller, or of all our clients), and a group from which any destination answers is left out. The daemon looks twice, some
seconds apart: what came back between the two looks counts as an answer too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ngp import identity
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import Contract
from ngp.core.listing import listed
from ngp.core.messages import Address, Role
from ngp.core.networks import is_same
from ngp.core.peers import Neighbour
from ngp.core.selling.sale import Sale
from ngp.core.values import Check, Now
from ngp.core.world import World

APART_S = 2.0  # longer than a neighbour's offer takes
_OFFERED_WITHIN_S, _LEAST_UNOFFERED = 60.0, 2
_ANSWERED_WITHIN_S, _USED_WITHIN_S = 3.0, 60.0
_NO_OFFER = (
    "`ngp check` on that neighbour: its firewall or routes may drop our packets before its ngp sees them, or our "
    "messages (UDP port 10325); what is free there needs no offer and passes all the same"
)
_NO_RETURN = {
    Role.SERVER: "if these hosts are up: the NAT lines of this check, the upstream's way back, firewall rules for "
    "answers (nft list ruleset), and our routes back: answers reach only the neighbour that paid for them",
    Role.CLIENT: "if these hosts are up: `ngp accounts`, as it may wait for a payment of ours; `ngp check` on that "
    "neighbour; and here the NAT lines, if a LAN sends",
}

Uncovered = Iterable[tuple[int, Address, float]]
_Group = tuple[Role, int, bytes]  # our role, the IP version, and the seller's identity if we buy (else b"")


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen at one moment.

    Attributes:
        unoffered: for each seller the destinations to which we sent without a contract, and for which the seller
            hasn't offered one since.
        unanswered: for each group from which nothing came back lately, its contracts that were used lately.
        returned_bytes: for each group, all bytes that came back by its contracts.
    """

    unoffered: dict[Neighbour, tuple[Address, ...]]
    unanswered: dict[_Group, tuple[Contract, ...]]
    returned_bytes: dict[_Group, int]

    @property
    def is_doubtful(self) -> bool:
        """Whether a second look is needed."""
        return bool(self.unoffered or self.unanswered)


def look(world: World, now: Now, uncovered: Uncovered) -> Seen:
    """Look at what the daemon knows now.

    Args:
        now: the present time; the core knows only the time of its latest event, which may be long ago.
        uncovered: number of a seller's link, destination, and how many seconds ago a packet went to that destination
            without a contract.
    """
    returned, used = dict[_Group, int](), dict[_Group, list[Contract]]()
    for contract in world.contracts.values():
        group = _group(contract)
        returned[group] = returned.get(group, 0) + contract.used_from_bytes
        if _was_used(contract, now):
            used.setdefault(group, []).append(contract)
    silent = {group: tuple(contracts) for group, contracts in used.items() if not any(map(_is_answered, contracts))}
    return Seen(_unoffered(world, now, uncovered), silent, returned)


def compare(before: Seen, now: Seen) -> list[Check]:
    """Return warnings of what both looks saw, if nothing came back between them. Args: now: APART_S later or more."""
    return [*_no_offer(before, now), *_no_return(before, now)]


def _no_offer(before: Seen, now: Seen) -> Iterator[Check]:
    for neighbour, destinations in now.unoffered.items():
        both = set(before.unoffered.get(neighbour, ())) & set(destinations)
        left = {each for each in both if not _came_back((Role.CLIENT, each.version, neighbour.identity), before, now)}
        if len(left) >= _LEAST_UNOFFERED:
            named = listed(sorted(map(str, left)))
            who = f"{identity.short_text(neighbour.identity)} on {neighbour.link[0]}"
            found = f"{who} offers no contract for what we send to {named}: unless it is free there, it doesn't pass"
            yield Check("traffic", True, found, _NO_OFFER)


def _no_return(before: Seen, now: Seen) -> Iterator[Check]:
    for group, contracts in now.unanswered.items():
        if group not in before.unanswered or _came_back(group, before, now):
            continue
        role, version, who = group
        named = listed(str(contract.destination) for contract in contracts)
        sent = f"we sent through {identity.short_text(who)}" if who else "what clients sent was carried and charged"
        found = f"IPv{version}: {sent}, and nothing came back from {named}"
        yield Check("traffic", True, found, _NO_RETURN[role])


def _came_back(group: _Group, before: Seen, now: Seen) -> bool:
    return now.returned_bytes.get(group, 0) > before.returned_bytes.get(group, 0)


def _group(contract: Sale | Purchase) -> _Group:
    seller = contract.identity if contract.role is Role.CLIENT else b""
    return contract.role, contract.destination.version, seller


def _was_used(contract: Contract, now: Now) -> bool:
    """Say whether a contract carried something lately, since this daemon's start.

    After a start `rate.at_mono_s` is the time of the start, and what came back before it isn't known.
    """
    is_late = contract.running and now.monotonic_s - contract.rate.at_mono_s < _USED_WITHIN_S
    return is_late and contract.used_to_bytes > 0 and contract.rate.a_second > 0


def _is_answered(contract: Contract) -> bool:
    """Say whether something came back in the last seconds in which the contract was used."""
    return contract.returned_mono_s > 0 and contract.rate.at_mono_s - contract.returned_mono_s < _ANSWERED_WITHIN_S


def _unoffered(world: World, now: Now, uncovered: Uncovered) -> dict[Neighbour, tuple[Address, ...]]:
    if not world.settings.buys:
        return {}
    sellers = {one.number: one for one in world.peers.by_link.values() if _may_sell(world, one)}
    latest: dict[tuple[bytes, int], int] = {}
    for bought in (*world.buying.ended.values(), *world.contracts.values()):
        if isinstance(bought, Purchase):
            of = (bought.identity, bought.destination.version)
            latest[of] = max(latest.get(of, 0), bought.opened_at_s)
    found: dict[Neighbour, list[Address]] = {}
    for number, destination, ago_s in uncovered:
        seller = sellers.get(number)
        if seller is None or ago_s > _OFFERED_WITHIN_S:
            continue
        since = latest.get((seller.identity, destination.version), 0) > now.utc_s - ago_s - 1
        if not since and world.purchases.find(seller.identity, destination) is None:
            found.setdefault(seller, []).append(destination)
    return {seller: tuple(destinations) for seller, destinations in found.items()}


def _may_sell(world: World, one: Neighbour) -> bool:
    """Say whether a neighbour should offer contracts. If it is known why it doesn't, False: another line says why."""
    known = one.why_not_bought or one.identity in world.peers.blocked or not is_same(one.network, world.node.network)
    disputed = one.identity in world.servers and world.servers[one.identity].disputed
    return one.up and one.sells and not known and not disputed
