"""Layers: interfaces on top of others, and which interfaces can't be mesh interfaces for that reason.

A port of a bridge, bond or team hands all that it receives to the interface above it, which routes it. What the upper
interface sends leaves by the port as well. If upper interface and port were both mesh interfaces, a download would be
charged at the upper one and dropped at the port. So a port is never a mesh interface.

VLANs and macvlans may be on top of a mesh interface. Their frames also pass the mesh interface's egress, but the meter
recognises them and leaves them alone: VLANs' by their tag, macvlans' by their source MAC. The frames of an ipvlan can't
be recognised. Nor can those of a macvlan in mode passthru, which also takes all that the lower interface receives.
macvtap and ipvtap are macvlan and ipvlan for a guest.

A setting of a device beneath a mesh interface, at whatever depth, also affects the mesh interface's traffic. For
example, flow offloading there bypasses the meter.

When the kernel module of a kind of tunnel is loaded, it makes a fallback tunnel in each network namespace. This tunnel
receives the packets that no other tunnel of its kind takes, and can't be given a remote end. It is down at first. While
it is down, `all` in MESH_INTERFACES doesn't include it: else `ngp check` would advise to set it up. While it is up, it
is an interface like others, whose traffic must be gated. It is recognised by its fixed name and its kind together. The
name alone isn't enough, since operators name tunnels as they like. A missing remote end isn't enough either, since a
tunnel for several remote ends has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ngp.modules.rtnetlink import Interface

_TAKES_ALL = frozenset({"bridge", "bond", "team", "openvswitch", "hsr"})
_PEERS = frozenset({"veth", "netkit", "vxcan"})  # IFLA_LINK is the other end
_TUNNELS = frozenset(
    {"ipip", "gre", "gretap", "erspan", "sit", "ip6tnl", "ip6gre", "ip6gretap", "ip6erspan"}
    | {"vti", "vti6", "vxlan", "geneve", "xfrm"}
)  # IFLA_LINK is the interface by which the outer packets leave; the host sends these itself, they aren't forwarded
_FALLBACKS = {
    "tunl0": "ipip",
    "gre0": "gre",
    "gretap0": "gretap",
    "erspan0": "erspan",
    "sit0": "sit",
    "ip6tnl0": "ip6tnl",
    "ip6gre0": "ip6gre",
    "ip_vti0": "vti",
    "ip6_vti0": "vti6",
}
_MACVLAN, _IPVLAN = frozenset({"macvlan", "macvtap"}), frozenset({"ipvlan", "ipvtap"})


def left_out(interfaces: Mapping[str, Interface]) -> dict[str, str]:
    """Return the names of interfaces that can't be mesh interfaces, with the reason for each. Pure."""
    by_index, uppers = {each.index: each for each in interfaces.values()}, _uppers(interfaces)
    found = {}
    for each in interfaces.values():
        master = by_index.get(each.master)
        if each.port_of in _TAKES_ALL or (master is not None and master.kind in _TAKES_ALL):
            upper = master.name if master is not None else "another namespace"
            kind = each.port_of or (master.kind if master is not None else "")
            found[each.name] = f"is a port of the {kind} {upper}: its packets arrive on {upper}"
        elif shared := sorted(f"{one.kind} {one.name}" for one in uppers if _shares_mac(one, each)):
            found[each.name] = f"also sends the frames of the {', '.join(shared)}, under the same MAC"
    return found


def ports(interfaces: Mapping[str, Interface]) -> frozenset[str]:
    """Return the names of ports: all their packets arrive on the bridge, bond or team that they belong to. Pure."""
    return frozenset(each.name for each in interfaces.values() if each.port_of in _TAKES_ALL)


def idle_fallbacks(interfaces: Mapping[str, Interface]) -> dict[str, str]:
    """Return the names of fallback tunnels that are down, with a message for each. Pure."""
    why = "is the fallback tunnel that the kernel makes by itself, and is down: no neighbour can be there"
    return {name: why for name in _FALLBACKS if name in interfaces and _is_idle_fallback(interfaces[name])}


def remedy(name: str, interfaces: Mapping[str, Interface]) -> str:
    """Say what to do about an interface that net.conf names but that can't be a mesh interface. Pure."""
    masters = {each.index: each.name for each in interfaces.values()}
    upper = masters.get(interfaces[name].master, "") if name in interfaces else ""
    if upper:
        return f"put {upper} into MESH_INTERFACES instead, or: ip link set dev {name} nomaster"
    return f"take {name} out of MESH_INTERFACES, or replace the upper interface by a VLAN or a macvlan with its own MAC"


def is_elsewhere(name: str, interfaces: Mapping[str, Interface], seen_to: Iterable[str]) -> bool:
    """Say whether nothing has to be done about a left-out interface, as its packets arrive on one of `seen_to`. Pure.

    True also for a port of a bridge in another namespace (its packets don't concern us), and for an idle fallback
    tunnel (it receives none). False for the lower interface of an ipvlan: it receives packets of its own.
    """
    one = interfaces[name]
    if _is_idle_fallback(one):
        return True
    if one.port_of in _TAKES_ALL and all(each.index != one.master for each in interfaces.values()):
        return True
    return any(
        each.index == one.master or _passes_through(each, one)
        for each in (interfaces[other] for other in seen_to if other in interfaces)
    )


def in_place_of(name: str, interfaces: Mapping[str, Interface]) -> tuple[str, ...]:
    """Return the interfaces of this network namespace on which a left-out interface's packets arrive. Pure.

    For a port, or for the lower interface of a passthru macvlan, that is the upper interface, or one further up. For
    the lower interface of an ipvlan, it is that interface itself, which receives a part of the packets.
    """
    by_index = {each.index: each for each in interfaces.values()}
    found, waiting = dict[str, None](), [interfaces[name]] if name in interfaces else []
    while waiting:
        one = waiting.pop()
        above = [each for each in _uppers(interfaces) if _passes_through(each, one)]
        if one.port_of in _TAKES_ALL or (one.master in by_index and by_index[one.master].kind in _TAKES_ALL):
            above += [by_index[one.master]] if one.master in by_index else []
        elif not above:
            found[one.name] = None
        waiting += [each for each in above if each.name not in found]
    return tuple(found)


def stand_on(interfaces: Mapping[str, Interface], mesh: Iterable[str]) -> frozenset[tuple[int, bytes]]:
    """Return (mesh interface's index, macvlan's MAC) of each macvlan on top of a mesh interface. Pure."""
    lower, uppers = [interfaces[name] for name in mesh if name in interfaces], _uppers(interfaces)
    return frozenset(
        (below.index, one.link_address)
        for below in lower
        for one in uppers
        if _stands_on(one, below, _MACVLAN) and one.link_address != below.link_address
    )


def beneath(interfaces: Mapping[str, Interface], mesh: Iterable[str]) -> dict[str, str]:
    """Return the devices that carry mesh interfaces' packets, each with the mesh interface's name. Pure.

    These are the mesh interface itself, its ports, the interface below it, and so on down, each device once.
    """
    by_index, ports = {each.index: each for each in interfaces.values()}, defaultdict(list)
    for each in interfaces.values():
        if each.master:
            ports[each.master].append(each)
    found = {name: name for name in mesh}
    waiting = [(interfaces[name], name) for name in found if name in interfaces]
    while waiting:
        one, name = waiting.pop()
        lower = by_index.get(one.lower) if one.kind not in _PEERS | _TUNNELS else None
        for each in (*ports[one.index], *([lower] if lower else ())):
            if each.name not in found:
                found[each.name] = name
                waiting.append((each, name))
    return found


def _is_idle_fallback(one: Interface) -> bool:
    return one.kind != "" and one.kind == _FALLBACKS.get(one.name) and not one.is_up


def _uppers(interfaces: Mapping[str, Interface]) -> list[Interface]:
    """Return the macvlans and ipvlans: few, even among thousands of interfaces. They may share a lower one's MAC."""
    return [each for each in interfaces.values() if each.kind in _MACVLAN | _IPVLAN]


def _shares_mac(upper: Interface, lower: Interface) -> bool:
    return _passes_through(upper, lower) or _stands_on(upper, lower, _IPVLAN)


def _passes_through(upper: Interface, lower: Interface) -> bool:
    return _stands_on(upper, lower, _MACVLAN) and upper.link_address == lower.link_address


def _stands_on(upper: Interface, lower: Interface, kinds: frozenset[str]) -> bool:
    return upper.kind in kinds and upper.lower == lower.index
