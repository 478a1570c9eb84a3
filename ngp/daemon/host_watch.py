"""Host watch: adapts kernel, links and hellos to the interfaces, routes and addresses of this host.

The kernel notifies us when these change. The gate is also checked at intervals, since some changes aren't announced,
above all those of legacy iptables.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Address
from typing import TypeVar

from ngp.core.kernel import Router
from ngp.core.messages import Address, Prefix
from ngp.core.settings import Settings
from ngp.core.values import Check
from ngp.daemon import checkup
from ngp.daemon.desired import look_at_host, refuse
from ngp.daemon.logs import RateLimit
from ngp.daemon.post import Post
from ngp.errors import ConfigError, KernelError
from ngp.ports import Network
from ngp.ports.network import DesiredNetwork

VERIFY_INTERVAL_S = 5.0
MOST_ADDRESSES = 32

_log = logging.getLogger("ngp")
_Found = TypeVar("_Found")


class HostWatch:
    """Follows the host.

    Args:
        settings: in force; `apply` changes them.
        post: its links are open on the mesh interfaces, its hellos name our addresses.
        node_addresses: where our payment node was reached when we started.

    Attributes:
        desired: what was last set in the kernel.

    Raises:
        KernelError: the host can't be looked at.
    """

    def __init__(self, settings: Settings, network: Network, post: Post, node_addresses: tuple[str, ...] = ()) -> None:
        self.node_addresses = node_addresses
        self.desired = look_at_host(settings, network, node_addresses)
        self._settings = settings
        self._network = network
        self._post = post
        self._changed = asyncio.Event()
        self._looking = asyncio.Lock()
        self._warnings = RateLimit()
        self._left_out: frozenset[str] = frozenset()

    def changed(self) -> None:
        """Note that interfaces, routes or addresses changed; `follow` handles it."""
        self._changed.set()

    async def follow(self) -> None:
        """Adapt everything to the host after each change, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._match()

    async def apply(self, settings: Settings) -> None:
        """Adapt everything to new settings."""
        is_asked_elsewhere = settings.ngp_addresses != self._settings.ngp_addresses
        self._settings = settings
        await self._match()
        if is_asked_elsewhere:
            self.greet()

    def refuse(self, settings: Settings, network: Network) -> None:
        """Refuse settings with which traffic on this host would go round the meter.

        Args: network: ours, or another instance of it.
        Raises: ConfigError, KernelError.
        """
        refuse(settings, network, look_at_host(settings, network, self.node_addresses))

    def refuse_open(self, settings: Settings, network: Network) -> None:
        """Refuse a change of MESH_INTERFACES that leaves none, while there are some: neighbours would go on for free.

        Args: network: ours, or another instance of it. Raises: ConfigError.
        """
        before, wanted = self.desired.mesh_interfaces, settings.mesh_interfaces
        if wanted == self._settings.mesh_interfaces or not before:
            return
        if not network.mesh_interfaces(wanted, settings.never_mesh):
            raise ConfigError(
                f"MESH_INTERFACES {', '.join(wanted)}: no interface of this host has such a name, so neighbours on "
                f"{', '.join(before)} would no longer be gated and pay nothing: correct it; to end gating: ngp stop"
            )

    async def lacks(self) -> list[Check]:
        """Return the failures and warnings of `ngp check` on this host that can be found cheaply."""
        settings, links, desired = self._settings, self._post.links, self.desired
        return await self.aside(lambda network: checkup.lacks(settings, network, links, desired))

    async def routers_to_free(self) -> list[tuple[Prefix, Router]]:
        """Return the FREE_DESTINATIONS that our routes reach through routers in the mesh; none if the kernel fails."""
        settings, desired = self._settings, self.desired
        try:
            return await self.aside(lambda network: checkup.routers_to_free(settings, network, desired))
        except KernelError:  # `lacks` reports it
            return []

    async def aside(self, look: Callable[[Network], _Found]) -> _Found:
        """Look at the host in a thread, one look at a time.

        A look may take seconds, since it runs other programs, perhaps for hundreds of interfaces. Meanwhile the event
        loop must decide about neighbours' packets.

        Args: look: gets a network instance of its own, to read only.
        """

        def in_thread() -> _Found:
            network = self._network.beside()
            try:
                return look(network)
            finally:
                network.close()

        async with self._looking:
            return await asyncio.to_thread(in_thread)

    async def _match(self) -> None:
        network, post, settings = self._network, self._post, self._settings
        try:
            desired = look_at_host(settings, network, self.node_addresses)
            network.apply(desired)
            before, self.desired = self.desired, desired
            self._tell_changes(before)
            await post.update(desired.mesh_interfaces, settings.ngp_addresses)
            ourselves = replace(
                post.ourselves, sells=settings.sells, buys=settings.buys, addresses=own_addresses(network)
            )
            if ourselves != post.ourselves:
                post.ourselves = ourselves
                self.greet()
        except (KernelError, OSError) as error:
            _log.error("following a change of the host's interfaces failed: %s", error)

    def _tell_changes(self, desired_before: DesiredNetwork) -> None:
        """Log which mesh interfaces came and went, and why, one line per change, once the kernel has the change."""
        before, now = set(desired_before.mesh_interfaces), set(self.desired.mesh_interfaces)
        why = self._network.left_out(self._settings.mesh_interfaces, self._settings.never_mesh)
        for name in sorted(before - now | before & why.keys() - self._left_out):
            if name in why:
                text = self._left_out_text(name, *why[name])
            elif self._network.mesh_interfaces((name,), ()):
                text = f"{name} is no mesh interface any more, as net.conf says"
            else:
                text = f"mesh interface {name} is gone: contracts on it wait until it is back, or end"
            self._warnings.warn(_log, f"lost {name}", text)
        self._left_out = frozenset(why)
        for name in sorted(now - before):
            if self._warnings.take(f"found {name}") is not None:
                _log.info("mesh interface %s is there, and gated", name)

    def _left_out_text(self, name: str, reason: str, remedy: str) -> str:
        by_name = name in self._settings.mesh_interfaces
        instead = self._network.mesh_interfaces((name,), self._settings.never_mesh) if by_name else ()
        if instead:
            return f"mesh interface {name} {reason}; {remedy}. Until then {', '.join(instead)} is gated in its place"
        rest = f"; {remedy}. Traffic of neighbours there is not gated" if remedy else ""
        return f"mesh interface {name} isn't gated any more: it {reason}{rest}"

    def greet(self) -> None:
        """Say hello on every mesh interface."""
        for interface in self.desired.mesh_interfaces:
            self._post.broadcast(interface)

    async def keep_gate(self) -> None:
        """Check the gate at intervals, for ever."""
        while True:
            await asyncio.sleep(VERIFY_INTERVAL_S)
            self.look_at_gate()

    def look_at_gate(self) -> None:
        """Put back our firewall rules if another program removed them: without them neighbours would send for free."""
        try:
            restored = self._network.apply(self.desired)
        except (KernelError, OSError) as error:
            self._warnings.warn(_log, "unverified", f"the gate can't be verified: {error}")
            return
        if restored:
            text = "another program changed or removed ngp's gate in the firewall; it is restored"
            self._warnings.warn(_log, "restored", text)


def own_addresses(network: Network) -> tuple[Address, ...]:
    """Return our own addresses, the most useful to neighbours first, as a hello doesn't have room for all."""
    addresses = network.local_addresses()
    return tuple(sorted(addresses, key=lambda one: (isinstance(one, IPv6Address), one.is_link_local)))[:MOST_ADDRESSES]
