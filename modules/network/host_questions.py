"""Host questions: what the network port answers about the host, whether or not traffic is gated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from ngp.core.kernel import Fork, Router
from ngp.core.messages import Address, Prefix
from ngp.core.values import Check
from ngp.modules.network import check as host_check
from ngp.modules.network import onward, sides
from ngp.modules.network.alarm import Alarm
from ngp.modules.network.forks import Forks, others_in, rule_behind
from ngp.modules.network.host import Host
from ngp.ports.network import DesiredNetwork, InterfaceTraffic


class HostQuestions:
    """Answers questions about the host; after `close_host` the next question opens the sockets again."""

    def __init__(self) -> None:
        self._host: Host | None = None
        self._forks: Forks | None = None
        self._alarm: Alarm | None = None

    def mesh_interfaces(self, patterns: Sequence[str], ignored: Sequence[str]) -> tuple[str, ...]:
        """Return the existing interfaces that MESH_INTERFACES matches, sorted. Raises KernelError."""
        host = self._open_host()
        host.forget()
        return host.mesh_interfaces(patterns, ignored)

    def left_out(self, patterns: Sequence[str], ignored: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return interfaces that MESH_INTERFACES matches but that can't be mesh: by name, the reason and the remedy."""
        return self._open_host().left_out(patterns, ignored)

    def other_interfaces(
        self, mesh: Sequence[str], lan: Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the interfaces that aren't mesh: the LANs, and the upstream interfaces that have routes now."""
        host = self._open_host()
        host.forget()
        found = sides.look(host, mesh)
        ours = sides.lan_of(found, lan)
        return ours, sides.upstream_of(found, ours)

    def traffic(self, names: Sequence[str]) -> dict[str, InterfaceTraffic]:
        """Return what each of these interfaces carried so far, and its speed; one that doesn't exist is left out."""
        return self._open_host().traffic(names)

    def local_addresses(self) -> tuple[Address, ...]:
        """Return this host's own addresses, IPv4 and IPv6, except loopback and link-local ones. Raises KernelError."""
        return self._open_host().local_addresses()

    def watch(
        self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None], on_touched: Callable[[], None]
    ) -> None:
        """Call on_change in the loop after links, addresses or routes changed, a few times a second at most.

        Call on_touched as soon as anybody changed the gate's table or our hooks. These calls take at most a tenth of
        the loop's time. Legacy iptables announces no changes of tables.
        """
        self.stop_watching()
        self._open_host().watch(loop, on_change)
        self._alarm = Alarm(loop, on_touched)

    def stop_watching(self) -> None:
        """End `watch`; safe to call twice."""
        if self._host is not None:
            self._host.stop_watching()
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None

    def look(self, desired: DesiredNetwork, most_s: float) -> list[Check]:
        """Make the checks that are quick and whose result may change while ngp runs; change nothing."""
        return host_check.look(desired, most_s)

    def next_hops(self, desired: DesiredNetwork) -> list[tuple[str, Address, bytes]]:
        """Return the routers to which default routes into the mesh lead: interface, address, and link address.

        A router whose link address isn't known yet is left out. Raises KernelError.
        """
        host, found = self._open_host(), list[tuple[str, Address, bytes]]()
        for name, address in host.next_hops(desired.mesh_interfaces, sorted(desired.families)):
            link_address = host.link_address_of(name, address)
            if link_address or not host.has_link_addresses(name):
                found.append((name, address, link_address))
        return found

    def routers_towards(self, desired: DesiredNetwork, destinations: Iterable[Prefix]) -> list[tuple[Prefix, Router]]:
        """Return the routers in the mesh to which our routes lead for each destination, or for a part of it.

        Raises KernelError.
        """
        return list(onward.routers_towards(desired, self._open_host(), destinations))

    def forks(self, mesh: Sequence[str], families: Iterable[int]) -> tuple[Fork, ...]:
        """Return the prefixes to which the main routing table leads through several routers in the mesh.

        A prefix for which we made a route is included. Raises KernelError.
        """
        self._open_host().forget()
        return self._open_forks().find(mesh, families)

    def others_in(self, table: int) -> Prefix | None:
        """Return a destination to which another program's route leads in a routing table. Raises KernelError."""
        return others_in(table)

    def rule_behind(self, priority: int) -> tuple[int, int] | None:
        """Return priority and table of another program's rule that is asked after ours. Raises KernelError."""
        rule = rule_behind(priority)
        return None if rule is None else (rule.priority, rule.table)

    def set_routes(self, routes: Mapping[Prefix, Router], table: int, priority: int) -> None:
        """Make our routes: these and no others. Raises KernelError."""
        self._open_forks().set_routes(routes, table, priority)

    def refuse(self, desired: DesiredNetwork) -> None:
        """Raise KernelError if this host lets traffic past the meter, or gates traffic that isn't forwarded."""
        host_check.refuse(desired)

    def close_host(self) -> None:
        """Stop watching, and release the sockets; safe to call twice."""
        self.stop_watching()
        if self._host is not None:
            self._host.close()
            self._host = self._forks = None

    def _open_host(self) -> Host:
        if self._host is None:
            self._host = Host()
        return self._host

    def _open_forks(self) -> Forks:
        if self._forks is None:
            self._forks = Forks(self._open_host())
        return self._forks
