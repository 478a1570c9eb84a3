"""Checkup: what `ngp check` learns from a running daemon, about its own settings or about a file not in force yet.

The daemon does the checks, because it has the rights, runs in the right network namespace and holds the connection to
the payment node. But the command reads the file and sends its text to the daemon: members of the group ngp may also ask
for a check, and the daemon, which is root, must not open files for them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import product

from ngp import identity
from ngp.config import changes
from ngp.core.buying import default_route, service
from ngp.core.kernel import Router
from ngp.core.listing import listed
from ngp.core.messages import Address, Prefix, Role
from ngp.core.networks import is_same
from ngp.core.peers import Neighbour
from ngp.core.rental.landlord import GIVE_BACK_FIRST, who_would_lose, without_offer
from ngp.core.rental.letting import Letting
from ngp.core.selling.first_packets import SILENT_AT_FIRST_S, UNHEARD_S
from ngp.core.settings import Settings
from ngp.core.values import Check, Now
from ngp.core.world import World
from ngp.daemon import fork_watch, lightning, payment_keys
from ngp.daemon.api.plain import instant, plain
from ngp.daemon.desired import look_at_host, named_interfaces
from ngp.daemon.load_watch import unmeasured
from ngp.errors import KernelError, LedgerError, PaymentError
from ngp.ports import Link, Network, Payment, Store
from ngp.ports.network import DesiredNetwork

LOOK_S = 1.0
MOST_LACKS = 20
_listed = partial(listed, between="; ")
_RESTORE = (
    "another program wrote to the ledger, or ngp has a defect: keep a copy (ngp backup FILE), compare it with an older "
    "backup, and restore the older one if it is right; see Backup and restore in the operator's guide"
)
_HEARD_NOT = (
    "the neighbour must run ngp, with a LINK_INTERFACE module that this node uses too; the INPUT chains of both must "
    "accept UDP port 10325 (see Firewalls in the operator's guide)"
)
_ONE_NETWORK = (
    "both routers must pay on the same network: change PAYMENT_INTERFACE, or the payment node that it names, here or "
    "at the neighbour"
)
_SOLD = (
    "our route leads to {}, which may charge for it, while our own meter doesn't count it: when that is more than we "
    "trust it with, at most PAYMENT_AMOUNT, its bill is disputed, and nothing more is bought there"
)
_FREE_THERE_TOO = (
    "take it out of FREE_DESTINATIONS here, unless that neighbour's FREE_DESTINATIONS have it too: its operator "
    "decides what costs nothing there"
)
_SEE_STATUS = "the daemon keeps trying; see ngp status"


def network(
    settings: Settings, asked: Network, links: Iterable[Link], node_addresses: Iterable[str] = ()
) -> list[Check]:
    """Check the host for these settings.

    Args: asked: the network module. node_addresses: where our payment node is reached, `host:port`.
    Raises: KernelError.
    """
    desired = look_at_host(settings, asked, node_addresses)
    found = dict.fromkeys(line for link in links for line in link.check(desired.mesh_interfaces))  # without repeats
    asked_lines = _with_tunnel(asked.check(desired), settings)
    return [*_of_host(settings, asked, desired), *asked_lines, *found]


def _of_host(settings: Settings, asked: Network, desired: DesiredNetwork) -> list[Check]:
    """Check the interfaces that net.conf names, those whose load it needs, and the routes to choose from.

    Raises: KernelError.
    """
    traffic = asked.traffic(desired.upstream_interfaces) if settings.load_price is not None else {}
    named = named_interfaces(settings, asked, desired.mesh_interfaces)
    found = [*named, *unmeasured(settings.load_price, traffic)]
    if settings.choose_routes:
        forks = asked.forks(desired.mesh_interfaces, desired.families)
        found.append(fork_watch.occupied(settings, asked) or fork_watch.line(settings, forks))
        found += fork_watch.passed_by(settings, asked)
    return found


def _with_tunnel(lines: Iterable[Check], settings: Settings) -> list[Check]:
    """Say in the line of the landlord's tunnel what it is: a network module doesn't know what its routes are for."""
    ours = Check(f"interface {settings.tunnel_interface}", True, "the landlord's tunnel, never a mesh interface")
    return [ours if line.ok and line.name == ours.name else line for line in lines]


def taken(settings: Settings, asked: Network, links: Iterable[Link]) -> list[Check]:
    """Check that the link's port and the queue number are free.

    Only one program can have each. So don't call this while our own daemon runs: it would report that they are taken.

    Raises KernelError.
    """
    desired = look_at_host(settings, asked)
    return [*asked.taken(desired), *(line for link in links for line in link.taken(desired.mesh_interfaces))]


def lacks(settings: Settings, asked: Network, links: Sequence[Link], desired: DesiredNetwork) -> list[Check]:
    """Return the failures and warnings of `network` that a running daemon can find cheaply.

    A start and a reload log them and go on, as interfaces and routes may come later.

    Args:
        links: open.
        desired: what is set in the kernel.

    Returns: MOST_LACKS lines at most, and one that says how many more there are.
    """
    try:
        looked = _with_tunnel(asked.look(desired, LOOK_S), settings)
        found = [*_of_host(settings, asked, desired), *looked]
        until = time.monotonic() + LOOK_S
        for link, name in product(links, desired.mesh_interfaces):  # one by one: there may be thousands of tunnels
            if time.monotonic() > until:
                break
            found += link.check((name,))
    except (KernelError, OSError) as error:
        found = [Check("network", False, f"can't be checked: {error}", "run ngp check")]
    told = [line for line in dict.fromkeys(found) if not line.ok or line.remedy]
    if len(told) > MOST_LACKS:
        more = Check("and more", False, f"{len(told) - MOST_LACKS} like these", "run ngp check")
        told[MOST_LACKS:] = [more]
    return told


def health(name: str, why_not: str, fine: str) -> Check:
    """Return whether a part of the daemon works.

    Args: why_not: why the part doesn't work; "" if it does. fine: what to say if it works.
    """
    return Check(name, not why_not, why_not or fine, _SEE_STATUS if why_not else "")


async def payment(running: Settings, wanted: Settings, node: Payment, why_not: str) -> list[Check]:
    """Check whether the payment node suits the wanted settings, as far as the node in use can show it.

    Args: node: in use. why_not: why the node can't be used now; "" if it can.
    """
    if wanted.payment_module != running.payment_module:
        found = f"{wanted.payment_module}: not checked, as this daemon uses {running.payment_module}"
        return [Check("payment", True, f"{found}; the next start tries it, or `ngp check` without a daemon")]
    rights = [
        *await node.check(wanted.spends),
        *payment_keys.without_effect(wanted),
        *holding(wanted, node),
    ]
    if not why_not:
        rights += await lightning.look(node, wanted)
    if wanted.account_id is None or why_not:
        return [health("payment", why_not, f"{running.payment_module} is ready"), *rights]
    try:
        found = (await node.info()).account_id
    except PaymentError as error:
        return [health("payment", str(error), ""), *rights]
    return [expected_node(wanted, found, "the payment node is"), *rights]


def books(store: Store, most_s: float) -> Check:
    """Check whether the ledger's sums add up: accounts against payments, contracts and journal."""
    try:
        wrong, unknown = store.audit(most_s)
    except LedgerError as error:
        return Check("books", False, str(error), _RESTORE)
    if unknown and not wrong:
        return Check("books", True, f"not added up completely: {unknown}")
    if not wrong:
        return Check("books", True, "accounts, payments and contracts add up")
    return Check("books", False, _listed(wrong), _RESTORE)


def neighbours(world: World, interfaces: Collection[str]) -> list[Check]:
    """Warn of neighbours with which nothing is traded: traffic to them or through them doesn't pass.

    Args: interfaces: the present mesh interfaces; neighbours that were heard on other interfaces don't count.
    """
    parts = (_no_seller, _foreign, _disputed, _unpaid, _not_bought, _not_whole)
    return [*_silent(world, interfaces), *(line for part in parts for line in part(world))]


def _no_seller(world: World) -> Iterator[Check]:
    """Warn a node that only buys if nobody is there to buy from."""
    if world.settings.sells or any(one.sells for one in world.peers.by_link.values()):
        return
    if not world.peers.by_link:
        yield Check("neighbours", True, "nobody to buy from: no neighbour was heard", _HEARD_NOT)
        return
    found = f"nobody to buy from: none of the {len(world.peers.by_link)} neighbours that were heard sells"
    yield Check("neighbours", True, found, "SELL: yes in the net.conf of the neighbour that should sell")


def _silent(world: World, interfaces: Collection[str]) -> Iterator[Check]:
    """Warn of servers that were heard before and don't answer any more: once for each server and interface.

    A server that is up on the interface with another link address isn't silent: it changed its link address.
    """
    latest: dict[tuple[bytes, str], Neighbour] = {}
    for one in sorted(world.peers.by_link.values(), key=lambda one: (one.up, one.last_seen_s)):
        latest[one.identity, one.link[0]] = one
    known = [one for (_, interface), one in latest.items() if interface in interfaces]
    silent = [one for one in known if world.settings.buys and one.sells and not one.up]
    if silent:
        found = _listed(f"{_named(one)}, last heard {plain(instant(one.last_seen_s)) or 'never'}" for one in silent)
        yield Check("neighbours", True, f"doesn't answer: {found}", _HEARD_NOT)


def strange_hops(world: World, hops: Iterable[tuple[str, Address, bytes]]) -> list[Check]:
    """Warn of default routes into the mesh that lead to a router where nobody runs ngp: nothing is bought there.

    Args: hops: interface, address and link address of each next router.
    """
    is_known = {hop: (hop[0], hop[2]) in world.peers.by_link for hop in hops}
    served = {
        address.version for (_, address, _), known in is_known.items() if known
    }  # another route may be a spare one
    strange = [hop for hop, known in is_known.items() if not known and hop[1].version not in served]
    if not strange or not world.peers.by_link:  # that nobody was heard at all is another line
        return []
    named = _listed(f"{address} on {interface}" for interface, address, _ in strange)
    found = f"a default route leads to a router from which no ngp was heard: {named}; nothing is bought there"
    return [Check("neighbours", True, found, "a default route through the neighbour that sells (ngp neighbours)")]


def routers_to_free(settings: Settings, asked: Network, desired: DesiredNetwork) -> list[tuple[Prefix, Router]]:
    """Return the FREE_DESTINATIONS that our routes reach through routers in the mesh. Raises KernelError."""
    if not settings.buys or not settings.free_destinations:
        return []
    return asked.routers_towards(desired, dict.fromkeys(one.prefix for one in settings.free_destinations))


def free_beyond(ways: Iterable[tuple[Prefix, Router]], world: World | None = None) -> list[Check]:
    """Warn a buyer of FREE_DESTINATIONS that lie behind a neighbour from which it buys.

    That neighbour decides what costs nothing there, and doesn't know our list. What it charges and our meter leaves out
    looks like a bill that is too high, so some day it is disputed, and then nothing more is bought there.

    Args:
        ways: as `routers_to_free` returns them.
        world: what the daemon knows of its neighbours; one that sells nothing charges nothing. None: no daemon runs.
    """
    found = dict[str, list[str]]()
    for prefix, router in ways:
        neighbour = world.peers.at(router) if world is not None else None
        if neighbour is None or neighbour.sells:
            unheard = f"{router.address or 'a router'} on {router.interface}"
            who = _named(neighbour) if neighbour is not None else unheard
            found.setdefault(who, []).append(str(prefix))
    return [
        Check("free destinations", True, f"{listed(prefixes)}: {_SOLD.format(who)}", _FREE_THERE_TOO)
        for who, prefixes in found.items()
    ]


def unheard(world: World, now: Now) -> Iterator[Check]:
    """Warn of links whose packets we drop or slow because nobody there says hello; the log does so once an hour.

    Args: now: the present time; the core knows only the time of its latest event, which may be long ago.
    """
    for interface, one in world.peers.unheard.items():
        neighbour = world.peers.by_link.get((interface, one.link_address))
        lasts = one.last_mono_s - one.first_mono_s >= SILENT_AT_FIRST_S
        if lasts and now.monotonic_s < one.last_mono_s + UNHEARD_S and not (neighbour and neighbour.up):
            sender = f"packets from {one.link_address.hex(':')} on {interface}" if one.link_address else interface
            fate = "slowed by UNPAID_RATE, uncharged" if one.slowed else "dropped"
            found = f"{sender}: {fate}, as nobody there says hello in words that we understand"
            yield Check("neighbours", True, found, f"ngp must run there, in the same version; {_HEARD_NOT}")


def _foreign(world: World) -> Iterator[Check]:
    """Warn of neighbours that can't trade with us, because they pay on another network than we do."""
    ours = world.node.network
    foreign = [one for one in world.peers.by_link.values() if one.up and one.network and not is_same(one.network, ours)]
    if foreign:
        named = _listed(f"{identity.short_text(one.identity)} on {one.network!r}" for one in foreign)
        found = f"no trade with {named}: we pay on {ours!r}"
        yield Check("neighbours", True, found, _ONE_NETWORK)


def _disputed(world: World) -> Iterator[Check]:
    """Warn of servers whose bills we dispute: we make no contracts with them, and pay them nothing."""
    disputed = [one for one in world.servers.values() if one.disputed]
    if disputed:
        named = _listed(identity.short_text(one.identity) for one in disputed)
        found = f"bills in dispute, so nothing is bought from these neighbours and nothing paid to them: {named}"
        yield Check("neighbours", True, found, "compare ngp accounts on both sides; to resume: ngp unblock NEIGHBOUR")


def _unpaid(world: World) -> Iterator[Check]:
    """Warn of servers that are paid no more, because we saw nothing for our last payments."""
    for account in world.servers.values():
        if why_unpaid := service.why_unpaid(world, account):
            found = f"nothing more is paid to {identity.short_text(account.identity)}: {why_unpaid}"
            yield Check("neighbours", True, found, "ngp ledger names the payments; then ngp unblock NEIGHBOUR")


def _not_bought(world: World) -> Iterator[Check]:
    """Warn of servers from which we got no contract that we needed."""
    refused = [one for one in world.peers.by_link.values() if one.up and one.why_not_bought]
    if refused:
        found = "nothing new is bought from " + _listed(f"{_named(one)}, {one.why_not_bought}" for one in refused)
        yield Check("neighbours", True, found, "raise the limit, if one of ours is named; or ask its operator")


def _not_whole(world: World) -> Iterator[Check]:
    """Warn of servers that were asked for their default route (BUY_DEFAULT_ROUTE) and didn't sell it."""
    refused = [(who, whole) for who, whole in default_route.refused(world) if who in world.peers.by_identity]
    if refused:
        named = [f"{identity.short_text(who)} doesn't sell {whole}" for who, whole in refused]
        found = f"{_listed(named)} as a whole: each destination is bought by itself"
        why = "its default route must lead out of the mesh, or to one neighbour that sells it, and the price of all be "
        why += "within BUY_PRICE_MAX"
        yield Check("default route", True, found, f"ask its operator: {why}; or BUY_DEFAULT_ROUTE: no")


def _named(neighbour: Neighbour) -> str:
    return f"{identity.short_text(neighbour.identity)} on {neighbour.link[0]}"


def accounts(world: World) -> list[Check]:
    """Warn of present neighbours' accounts that aren't topped up: unpaid traffic doesn't pass."""
    here = {one.identity for one in world.peers.by_link.values() if one.up}
    empty = [one for one in world.accounts if one.why_not and one.identity in here]
    if not empty:
        return []
    named = _listed(
        f"{_whose(one.role)} {identity.short_text(one.identity)} is not topped up: {one.why_not}" for one in empty
    )
    return [Check("accounts", True, named, "see ngp accounts, and Troubleshooting in the operator's guide")]


def _whose(role: Role) -> str:
    return "the account of" if role is Role.SERVER else "our account with"


def rentals(letting: Letting, settings: Settings) -> list[Check]:
    """Report tenants that these settings would harm.

    If they take a tenant's network away, that is a failure, and a reload refuses them. If they end the offer of a
    rental, that is a warning.
    """
    if lost := who_would_lose(letting, settings.letting):
        return [Check("rentals", False, lost, GIVE_BACK_FIRST, "configuration")]
    ended = without_offer(letting, settings.letting)
    return [Check("rentals", True, ended, "put the offer back; it need not be the first")] if ended else []


def refuse_other_node(settings: Settings, account_id: str) -> None:
    """Refuse settings whose ACCOUNT_ID isn't that of the payment node in use. Raises PaymentError."""
    expected = expected_node(settings, account_id, "but the payment node is")
    if not expected.ok:
        raise PaymentError(f"{expected.found}: {expected.remedy}")


def refuse_without_holding(settings: Settings, node: Payment) -> None:
    """Refuse settings that want payments to be held if the payment node can't hold them. Raises PaymentError."""
    for lacking in holding(settings, node):
        raise PaymentError(f"{lacking.found}; {lacking.remedy}")


def holding(settings: Settings, node: Payment) -> list[Check]:
    """Check whether the payment node can hold payments, if LANDLORD_HOLD is yes."""
    if settings.letting is None or settings.letting.hold != "yes":
        return []
    why_not = node.capabilities().why_no_holding
    if not why_not:
        return []
    found = f"LANDLORD_HOLD is yes, but {settings.payment_module} makes no hold invoices: {why_not}"
    return [Check("payment", False, found, "or write LANDLORD_HOLD: auto, or no", "payment")]


def expected_node(settings: Settings, account_id: str, but: str) -> Check:
    """Compare the payment node that was reached with ACCOUNT_ID, if the settings have one."""
    said = f"ACCOUNT_ID is {settings.account_id}, {but} {account_id}"
    is_it = settings.account_id in (None, account_id)
    return Check("payment", is_it, said, "" if is_it else "connect the right node, or change ACCOUNT_ID")


def effect(running: Settings, wanted: Settings) -> Check:
    """Say which settings a file would change, and which command puts them into force."""
    found = changes(running, wanted)
    parts = [f"`ngp reload` applies {', '.join(found.applied)}"] if found.applied else []
    parts += [f"a restart applies {', '.join(found.needs_restart)}"] if found.needs_restart else []
    return Check("in force", True, "; ".join(parts) or "the whole file: the daemon runs with these settings")
