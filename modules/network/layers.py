"""Layers: interfaces that stand on others, and which of them can't be mesh interfaces.

A port of a bridge, bond or team hands all that it hears to the interface above, which routes it; what that one sends
leaves by the port as well. Taken for mesh interfaces both, they would charge a download at the upper one and drop it at
the lower one. So a port is never a mesh interface. Frames of other upper interfaces are told from the lower one's own
at its egress, and left alone there: VLANs by their tag, macvlans by their source MAC. An ipvlan's can't be told, nor a
macvlan's of mode passthru, which also takes all that the lower one hears. macvtap and ipvtap are the same for a guest.

What is switched on for a device beneath a mesh interface, at whatever depth, works on the mesh interface's traffic too:
flow offloading there goes round the meter.

A tunnel's module makes a fallback tunnel in each network namespace. It is down, takes what no other tunnel of its kind
takes, and can't be given a remote end: `all` doesn't mean it, or `ngp check` would advise to set it up. It is known by
its fixed name together with its kind. Neither alone will do, nor a look for a remote end: operators name tunnels as
they like, and one made for several remote ends has none either. One that is up is an interface like others: what
arrives there is to be gated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ngp.modules.network.rtnetlink import Interface

_TAKES_ALL = frozenset({"bridge", "bond", "team", "openvswitch", "hsr"})
_PEERS = frozenset({"veth", "netkit", "vxcan"})  # IFLA_LINK is the other end
_TUNNELS = frozenset(
    {"ipip", "gre", "gretap", "erspan", "sit", "ip6tnl", "ip6gre", "ip6gretap", "ip6erspan"}
    | {"vti", "vti6", "vxlan", "geneve", "xfrm"}
)  # IFLA_LINK is where packets of this host's own, which nobody forwards, carry the tunnel's
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
    """Return the names of those whose packets all arrive on the bridge, bond or team that they are a port of. Pure."""
    return frozenset(each.name for each in interfaces.values() if each.port_of in _TAKES_ALL)


def idle_fallbacks(interfaces: Mapping[str, Interface]) -> dict[str, str]:
    """Return the names of fallback tunnels that are down, with what to say of each. Pure."""
    why = "is the fallback tunnel that the kernel makes by itself, and is down: no neighbour can be there"
    return {name: why for name in _FALLBACKS if name in interfaces and _is_idle_fallback(interfaces[name])}


def remedy(name: str, interfaces: Mapping[str, Interface]) -> str:
    """Say what to do about an interface that net.conf names and that is left out. Pure."""
    masters = {each.index: each.name for each in interfaces.values()}
    upper = masters.get(interfaces[name].master, "") if name in interfaces else ""
    if upper:
        return f"put {upper} into MESH_INTERFACES instead, or: ip link set dev {name} nomaster"
    return f"take {name} out of MESH_INTERFACES, or have a VLAN or a macvlan with a MAC of its own stand on it"


def is_elsewhere(name: str, interfaces: Mapping[str, Interface], seen_to: Iterable[str]) -> bool:
    """Say whether all that an interface hears which is left out arrives on one of those seen to. Pure.

    A bridge in another namespace is none of ours; an ipvlan's lower interface goes on hearing for itself. An idle
    fallback tunnel hears nothing.
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
    """Return where what a left-out interface hears arrives in this network namespace, if anywhere. Pure.

    On the one that it is a port of, or that all passes through to, and so on up; on itself where an ipvlan shares it.
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
    """Return (index of the lower one, MAC of the upper one) of each macvlan that stands on a mesh interface. Pure."""
    lower, uppers = [interfaces[name] for name in mesh if name in interfaces], _uppers(interfaces)
    return frozenset(
        (below.index, one.link_address)
        for below in lower
        for one in uppers
        if _stands_on(one, below, _MACVLAN) and one.link_address != below.link_address
    )


def beneath(interfaces: Mapping[str, Interface], mesh: Iterable[str]) -> dict[str, str]:
    """Return the devices by which mesh interfaces' packets come and go, each with the mesh interface's name. Pure.

    A mesh interface itself; the ports of one with ports; what one stands on; and so on down, each device once.
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
    """Return the few that may share another's MAC or hooks: a router may have thousands of interfaces."""
    return [each for each in interfaces.values() if each.kind in _MACVLAN | _IPVLAN]


def _shares_mac(upper: Interface, lower: Interface) -> bool:
    return _passes_through(upper, lower) or _stands_on(upper, lower, _IPVLAN)


def _passes_through(upper: Interface, lower: Interface) -> bool:
    return _stands_on(upper, lower, _MACVLAN) and upper.link_address == lower.link_address


def _stands_on(upper: Interface, lower: Interface, kinds: frozenset[str]) -> bool:
    return upper.kind in kinds and upper.lower == lower.index
