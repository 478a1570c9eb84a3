"""Sides: which of the interfaces that aren't mesh are ours (LAN), which lead to others (upstream), and why.

What a neighbour sends to an upstream interface always needs a contract of that neighbour, and what comes from upstream
reaches a neighbour only if it has a contract. Which interfaces are upstream can't be decided by default routes: VPN
clients set routes for the two halves of all addresses instead, and providers set specific routes or 2000::/3. So unless
LAN_INTERFACE says otherwise, an interface is a LAN only if all of its routes, in any routing table, are within the
networks of its own addresses. All others are upstream, also those without addresses and those that have just come up.
If a LAN is wrongly taken for upstream, a packet or two are lost; if an uplink were taken for a LAN, neighbours would
use it for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ngp.core.messages import Prefix
from ngp.modules.network import layers
from ngp.modules.network.host import Host, expand_interfaces

_ROUTES_TOLD = 3


@dataclass(frozen=True, slots=True)
class Side:
    """An interface that isn't mesh.

    Attributes:
        own: the networks of its own addresses.
        beyond: up to _ROUTES_TOLD of its routes to other networks, for each IP version.
    """

    name: str
    own: tuple[Prefix, ...]
    beyond: tuple[Prefix, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the interface carries only the networks of its own addresses."""
        return bool(self.own) and not self.beyond


def look(host: Host, mesh: Sequence[str]) -> list[Side]:
    """Look at all existing interfaces except lo, mesh interfaces, ports of others, and idle fallback tunnels.

    Raises: KernelError.
    """
    known = host.interfaces()
    without = {"lo", *mesh, *layers.ports(known), *layers.idle_fallbacks(known)}
    found = []
    for name in sorted(known.keys() - without):
        own = host.networks(name)
        found.append(Side(name, own, host.routes_beyond(name, own, _ROUTES_TOLD)))
    return found


def lan_of(sides: Sequence[Side], patterns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the LANs. Pure. Args: patterns: LAN_INTERFACE; None: `auto`."""
    if patterns is None:
        return tuple(side.name for side in sides if side.is_plain)
    return expand_interfaces((side.name for side in sides), patterns, ())


def upstream_of(sides: Sequence[Side], lan: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the interfaces that aren't LANs and have routes to other networks now. Pure."""
    return tuple(side.name for side in sides if side.beyond and side.name not in lan)


def describe(side: Side, is_lan: bool) -> str:
    """Say which class an interface belongs to, and why. Pure."""
    beyond = f"{', '.join(map(str, side.beyond))}{', ...' if _has_more(side) else ''}"
    if is_lan and side.is_plain:
        return f"LAN: carries only its own networks ({', '.join(map(str, side.own))})"
    if is_lan:
        return "LAN: LAN_INTERFACE names it"
    if side.beyond:
        return f"upstream: carries more than its own networks ({beyond})"
    return "upstream: LAN_INTERFACE doesn't name it" if side.own else "upstream: has no address"


def may_be_ours(side: Side) -> bool:
    """Say whether all networks beyond an interface are private: perhaps it is a LAN with another router in it. Pure."""
    return bool(side.beyond) and not _has_more(side) and all(each.is_private for each in side.beyond)


def _has_more(side: Side) -> bool:
    return any(sum(each.version == version for each in side.beyond) == _ROUTES_TOLD for version in (4, 6))
