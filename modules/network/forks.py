"""Forks: the main routing table's routes to routers in the mesh, and our routes where several lead to one prefix.

Our routes are in a table of our own. A table that is asked before the main one would also hide the main table's routes
to parts of a prefix. So there are two rules for each length of our prefixes: the first takes from the main table what
is longer, the second takes ours. The operator's routes stay as they are.

Routes and rules bear a number of our own as the program that made them. So a daemon that starts finds what a killed one
left, and `ngp stop` removes it without a record of what was made.
"""

from __future__ import annotations

import errno
import itertools
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from ngp.core.kernel import UNKNOWN_ROUTER, Fork, MeshRoutes, Router
from ngp.core.messages import Address, Prefix
from ngp.errors import KernelError
from ngp.modules import routing_rules, rtnetlink
from ngp.modules.netlink import Asker
from ngp.modules.network.host import Host
from ngp.modules.routing_rules import Rule
from ngp.modules.rtnetlink import MAIN_TABLE, Hop, Route

MADE_BY = 225
"""Our number as the maker of routes and rules: `ip route` shows `proto 225`. The kernel leaves numbers above 4 to
programs (rtnetlink(7)), and iproute2's list of them (rt_protos) gives this one to nobody."""

MOST_ROUTES = 16384
"""Routes that are read on each mesh interface and of each IP version, so that a large table costs a limited time."""

MOST_FORKS = 1024
"""Forks that are told of; the operator's routes lead to all further ones."""

MOST_OTHERS = 1024
"""Routes beside the default route that are read of one IP version; with more, no default route is resold."""

SORTED_S, SORTED_SHARE = 1.0, 9.0  # least time between two readings that clients cause, and how much longer than one

_VERSIONS = (4, 6)
_IS_GONE = (errno.ENOENT, errno.ESRCH)
_Place = tuple[str, Address | None]


class _Way(NamedTuple):
    """A way to a prefix. Attributes: settings: what a copy of the route should have, as the kernel wrote it."""

    interface: str
    hop: Hop
    metric: int
    settings: bytes


class _Sorted(NamedTuple):
    """Routes by first address and prefix length.

    Attributes: at: as the host knew them (`Host.forgotten`). is_cut: there are more.
    """

    mesh: tuple[str, ...]
    at: int
    again_mono_s: float
    routes: list[tuple[tuple[int, int], _Way]]
    is_cut: bool


class Forks:
    """The forks of this network namespace, and our routes. Remembers what a copy of an operator's route needs.

    Args: host: answers questions about interfaces.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._routes: dict[tuple[Prefix, _Place], tuple[Hop, bytes]] = {}
        self._sorted: dict[int, _Sorted] = {}

    def find(self, mesh: Sequence[str], families: Iterable[int]) -> tuple[Fork, ...]:
        """Return the forks. Raises KernelError."""
        found: dict[Prefix, list[_Way]] = {}
        for version in sorted(families):
            for name in mesh:
                for prefix, way in self._ways(version, name):
                    found.setdefault(prefix, []).append(way)
        ours = {prefix: route for version in _VERSIONS for prefix, route in rtnetlink.routes_by(version, MADE_BY)}
        chosen, forks, led = self._chosen(mesh, ours), list[Fork](), _led(ours)
        self._routes.clear()
        for prefix, ways in found.items():
            ways.sort(key=lambda way: way.metric)
            routers = tuple(dict.fromkeys(self._router(way) for way in ways))
            if (len(routers) > 1 and len(forks) < MOST_FORKS) or prefix in chosen:
                for way in reversed(ways):
                    self._routes[prefix, (way.interface, way.hop.gateway)] = way.hop, way.settings
                router = chosen.pop(prefix, None)
                is_stale = router is not None and not (prefix in led and self._is_copy(prefix, router, ours[prefix]))
                forks.append(Fork(prefix, routers, router, is_stale))
        return (*forks, *(Fork(prefix, (), router) for prefix, router in chosen.items()))

    def mesh_routes(self, version: int, mesh: Sequence[str]) -> MeshRoutes:
        """Return the routes of one IP version that lead to other routers in the mesh. Raises KernelError."""
        ways = (each for name in mesh for each in self._ways(version, name) if each[0].prefixlen)
        read = list(itertools.islice(ways, MOST_OTHERS + 1))
        routers = {(way.interface, way.hop): way for _, way in read}  # few: the kernel is asked about each of them
        known = {place: self._router(way) for place, way in routers.items()}
        others = {(prefix, known[way.interface, way.hop]): None for prefix, way in read[:MOST_OTHERS]}
        default = self._host.default_router(version, mesh)
        return MeshRoutes(version, default, tuple(others), is_whole=len(read) <= MOST_OTHERS)

    def inside(self, destination: Prefix, mesh: Sequence[str], fresh: bool) -> tuple[Router, ...]:
        """Return the routers in the mesh to which routes to narrower prefixes inside one lead.

        If there are more than MOST_ROUTES on an interface, UNKNOWN_ROUTER is among them. Raises KernelError.

        Args: fresh: the routes are read anew if they changed; else not again and again: clients cause it.
        """
        known, names = self._sorted.get(destination.version), tuple(mesh)
        changed = known is not None and known.at != self._host.forgotten
        if known is None or known.mesh != names or (changed and (fresh or time.monotonic() >= known.again_mono_s)):
            known = self._sorted[destination.version] = self._read_sorted(destination.version, names)
        first = int(destination.network_address)
        start, end = (
            bisect_left(known.routes, (at, 0), key=itemgetter(0)) for at in (first, first + destination.num_addresses)
        )
        inside = (way for (_, length), way in known.routes[start:end] if length > destination.prefixlen)
        routers = {(way.interface, way.hop.gateway): way for way in inside}
        return (*map(self._router, routers.values()), *(UNKNOWN_ROUTER,) * known.is_cut)

    def _read_sorted(self, version: int, mesh: tuple[str, ...]) -> _Sorted:
        began_s = time.monotonic()
        found = [list(self._ways(version, name, 2 * MOST_ROUTES)) for name in mesh]  # some of them lead to no router
        ways = (((int(prefix.network_address), prefix.prefixlen), way) for each in found for prefix, way in each)
        routes = sorted(ways, key=itemgetter(0))
        is_cut = any(len(each) > MOST_ROUTES for each in found)
        now_s = time.monotonic()
        again_s = now_s + max(SORTED_S, (now_s - began_s) * SORTED_SHARE)
        return _Sorted(mesh, self._host.forgotten, again_s, routes, is_cut)

    def _ways(self, version: int, name: str, most: int = MOST_ROUTES) -> Iterator[tuple[Prefix, _Way]]:
        """Yield the main table's routes through routers on an interface; a route with several of them, once for each.

        An interface without link addresses needs no router's address: the other end is the router.
        """
        known = self._host.interfaces().get(name)
        if known is None:
            return
        for prefix, route in rtnetlink.main_routes_out_of(version, known.index, most):
            if route.of_own_address or prefix.is_link_local or prefix.is_multicast:
                continue
            for hop in route.hops:
                if hop.gateway is None and known.has_link_addresses:
                    continue
                if hop.index == known.index and not hop.is_down:
                    yield prefix, _Way(name, hop, route.metric, route.settings)

    def _router(self, way: _Way) -> Router:
        return Router(way.interface, self._host.router_at(way.interface, way.hop), way.hop.gateway)

    def _chosen(self, mesh: Sequence[str], ours: Mapping[Prefix, Route]) -> dict[Prefix, Router]:
        """Return the routers of our routes. One on another interface than the mesh's counts as one that is gone."""
        names = {each.index: each.name for each in self._host.interfaces().values() if each.name in mesh}
        found = {}
        for prefix, route in ours.items():
            name = names.get(route.hops[0].index, "") if route.hops else ""
            found[prefix] = Router(name, None, route.hops[0].gateway if route.hops else None)
        return found

    def _is_copy(self, prefix: Prefix, router: Router, ours: Route) -> bool:
        """Say whether our route is as the operator's, unless that is gone."""
        hop, settings = self._routes.get((prefix, router.place), (None, b""))
        return hop is None or (ours.hops, ours.settings) == ((hop,), settings)

    def set_routes(self, routes: Mapping[Prefix, Router], table: int, priority: int) -> None:
        """Make our routes: these and no others. See the port. Raises KernelError."""
        wanted = {rule for prefix in routes for rule in rules_for(prefix, table, priority)}
        with rtnetlink.kernel_errors("our routes can't be set"), rtnetlink.open_asker() as kernel:
            before = [each for version in _VERSIONS for each in rtnetlink.routes_by(version, MADE_BY)]
            there = {prefix: (route.hops, route.settings) for prefix, route in before if route.table == table}
            if routes and (theirs := others_in(table)) is not None:
                raise KernelError(f"no route is chosen: routing table {table} has one to {theirs} that isn't ours")
            for prefix, router in routes.items():
                hop, settings = self._copied(prefix, router)
                if there.get(prefix) != ((hop,), settings):
                    rtnetlink.set_route(kernel, prefix, hop, table, MADE_BY, settings)
            # In this order the main table is asked for longer prefixes before ours is asked.
            routing_rules.bring(kernel, routing_rules.rules_by(kernel, MADE_BY), wanted, MADE_BY)
            for prefix, route in before:
                if prefix not in routes or route.table != table:
                    _delete(kernel, prefix, route.table)

    def _copied(self, prefix: Prefix, router: Router) -> tuple[Hop, bytes]:
        """Return what our route has of the operator's. Raises KernelError: the operator's route is gone."""
        found = self._routes.get((prefix, router.place))
        if found is None:
            raise KernelError(f"no route to {prefix} leads to {router.address} on {router.interface} any more")
        return found

    def clean_up(self) -> None:
        """Remove our rules and routes; safe to call twice. Raises KernelError."""
        self.set_routes({}, MAIN_TABLE, 0)


def rules_for(prefix: Prefix, table: int, priority: int) -> tuple[Rule, Rule]:
    """Return the rules that lead to our routes to prefixes of this one's length. Pure.

    The longer the prefix, the lower is the priority's number: these rules are asked first.
    """
    length, ours = prefix.prefixlen, priority - 2 * prefix.prefixlen
    shorter = length - 1 if length else None
    return Rule(prefix.version, ours - 1, MAIN_TABLE, length), Rule(prefix.version, ours, table, shorter)


def _led(ours: Mapping[Prefix, Route]) -> set[Prefix]:
    """Return the prefixes to whose routes rules of ours lead. Raises KernelError."""
    if not ours:
        return set()
    with rtnetlink.open_asker() as kernel:
        standing = routing_rules.rules_by(kernel, MADE_BY)
    return {
        prefix
        for prefix, route in ours.items()
        for priority in {rule.priority + 2 * prefix.prefixlen for rule in standing}
        if standing.issuperset(rules_for(prefix, route.table, priority))
    }


def others_in(table: int) -> Prefix | None:
    """See the port."""
    ipv4 = rtnetlink.others_in(4, table, MADE_BY)
    return ipv4 if ipv4 is not None else rtnetlink.others_in(6, table, MADE_BY)


def rule_behind(priority: int) -> Rule | None:
    """See the port."""
    with rtnetlink.open_asker() as kernel:
        others = routing_rules.rules_by_others(kernel, MADE_BY)
    behind = (rule for rule in others if rule.priority > priority and rule.table not in routing_rules.KERNELS_TABLES)
    return next(behind, None)


def _delete(kernel: Asker, prefix: Prefix, table: int) -> None:
    try:
        rtnetlink.delete_route(kernel, prefix, table, MADE_BY)
    except OSError as error:
        if error.errno not in _IS_GONE:
            raise
