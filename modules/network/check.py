"""What `ngp check` says about gating on this host. It changes nothing; trials run in a network namespace of their own.

Every line names what was found and, if that prevents gating, the command that mends it. Both `ngp check` and a start
refuse two things: flow offloading, since offloaded packets are forwarded without FORWARD and would pass the meter in
silence; and bridged frames that pass FORWARD (br_netfilter), since the gate would hold frames that this host only
bridges and doesn't route.
"""

from __future__ import annotations

import itertools
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path

from ngp.core.messages import Prefix
from ngp.core.prefixes import covers
from ngp.core.values import Check
from ngp.errors import KernelError
from ngp.modules.bpf import KERNEL_LEAST, try_to_load
from ngp.modules.commands import find_command
from ngp.modules.network import bpf, firewall, nat, offloading, onward, rights, services, sides, xtables
from ngp.modules.network.host import Host
from ngp.modules.network.meter import table_sizes
from ngp.modules.network.xtables import NFT, run
from ngp.modules.rtnetlink import Interface
from ngp.ports.network import DesiredNetwork

# The bytecode is one instruction, "return 65535": the trial needs xt_bpf, like our rules, but no pinned program.
_PROBE = {
    "xt_bpf": '-A FORWARD -m bpf --bytecode "1,6 0 0 65535" -j RETURN',
    "NFQUEUE": "-A FORWARD -j NFQUEUE --queue-num 1",
}
_NETWORKS_TOLD = 20
_FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
# RFC 1918, RFC 4193: nobody beyond our own site routes these.
_PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
_SYSCTL = Path("/proc/sys/net")


def check(desired: DesiredNetwork) -> list[Check]:
    """Look at everything that the gate needs; changes nothing."""
    host = Host()
    try:
        parts: list[Callable[[], Iterator[Check]]] = [
            _kernel,
            rights.check,
            lambda: _interception(desired),
            lambda: _interfaces(desired, host),
            lambda: _others(desired, host),
            lambda: _forwarding(desired),
            lambda: _transit(desired),
            lambda: _reverse_path(desired),
            lambda: offloading.check(desired, host.interfaces()),
            lambda: _nat(desired, host),
            lambda: _way_back(desired, host),
            lambda: _onward(desired, host),
            lambda: _uplink(desired, host),
            lambda: _way_out(desired, host),
            lambda: _default_route(desired, host),
            lambda: services.check(desired, host),
            lambda: _firewall(desired, host),
            lambda: onward.next_hops(desired, host),
        ]
        return [line for part in parts for line in part()]
    finally:
        host.close()


def look(desired: DesiredNetwork, most_s: float) -> list[Check]:
    """Look at facts that change while ngp runs and are quick to read: interfaces, forwarding, routes.

    A start waits for this, so it must be quick: it loads no BPF program, and runs other commands only for NAT and the
    firewall, at the very end (see `_way_out`). When `most_s` is over, the remaining facts are left to `check`.
    """
    host, until, seen = Host(), time.monotonic() + most_s, list[Check]()
    parts: list[Callable[[], Iterator[Check]]] = [
        lambda: _interfaces(desired, host),
        lambda: _forwarding(desired),
        lambda: _way_back(desired, host),
        lambda: _onward(desired, host),
        lambda: _uplink(desired, host),
        lambda: services.check(desired, host),
        lambda: _default_route(desired, host),
        lambda: _way_out(desired, host),
        lambda: _firewall(desired, host),
    ]
    try:
        for line in itertools.chain.from_iterable(part() for part in parts):
            seen.append(line)
            if time.monotonic() > until:
                break
    finally:
        host.close()
    return seen


def _kernel() -> Iterator[Check]:
    """Show the kernel's version. Only `meter` shows whether this kernel accepts the programs: it loads them."""
    release = platform.release()
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    least = ".".join(map(str, KERNEL_LEAST))
    remedy = "" if numbers >= KERNEL_LEAST else f"Linux {least}, the oldest that ngp was tried on: apt full-upgrade"
    yield Check("kernel", True, f"Linux {release}", remedy)


def meter(desired: DesiredNetwork) -> Check:
    """Load the meter and unload it, to see whether a start could load it; if not, the line has the kernel's reason."""
    return try_to_load("meter", bpf.object_path(), table_sizes(desired.contracts_max))


def _interception(desired: DesiredNetwork) -> Iterator[Check]:
    try:
        choice = xtables.detect()
    except KernelError as error:
        yield Check("interception", False, str(error), "apt install iptables")
        return
    where = "iptables-nft" if choice.variant == NFT else "iptables-legacy"
    yield Check("interception", True, f"{where}: {choice.why}")
    if not find_command("nft"):
        unseen = "not installed: flow offloading and NAT by rules of nft's own can't be seen"
        left = ", and ngp stop leaves an empty security table" if choice.variant == NFT else ""
        yield Check("nft", True, unseen + left, "apt install nftables")
    for family in sorted(desired.families):
        for what, rule in _PROBE.items():
            yield _probe(choice.variant, family, what, rule)


def _probe(variant: str, family: int, what: str, rule: str) -> Check:
    """Try a rule in a network namespace that ends with the command, so the operator's tables aren't touched."""
    name = f"{what} IPv{family}"
    if not rights.holds(rights.SYS_ADMIN):
        return rights.not_tried(name)
    unshare = find_command("unshare")
    if not unshare:
        return Check(name, False, "unshare was not found", "apt install util-linux")
    try:
        run([unshare, "--net", *xtables.restore_command(variant, family)], f"*security\n{rule}\nCOMMIT\n")
    except KernelError as error:
        modules = "xt_bpf" if what == "xt_bpf" else "xt_NFQUEUE nfnetlink_queue"
        more = "nft_compat" if variant == NFT else "iptable_security ip6table_security"
        return Check(name, False, str(error), f"modprobe -a {modules} {more}, or a kernel that has them")
    return Check(name, True, "works")


def refuse(desired: DesiredNetwork) -> None:
    """Refuse settings that let traffic past the meter in silence, or that gate frames which aren't forwarded.

    What may change while ngp runs (an interface that is down, a route) is reported by `check`, and not refused here.
    Raises KernelError.
    """
    host = Host()
    try:
        lines = [*_bridges(desired, host.interfaces()), *offloading.check(desired, host.interfaces())]
    finally:
        host.close()
    for line in lines:
        if not line.ok:
            raise KernelError(f"{line.name}: {line.found}; {line.remedy}")


def _bridges(desired: DesiredNetwork, known: Mapping[str, Interface]) -> Iterator[Check]:
    keys = _gated_bridging(desired)
    for name in desired.mesh_interfaces:
        if keys and name in known and known[name].kind == "bridge":
            found = (
                "is a bridge, and the gate holds frames between its ports (br_netfilter): neighbours there need "
                "contracts to reach each other"
            )
            yield Check(f"interface {name}", False, found, f"sysctl -w {' '.join(f'{key}=0' for key in keys)}")


def _interfaces(desired: DesiredNetwork, host: Host) -> Iterator[Check]:
    known = host.interfaces()
    bridges, mesh = {line.name: line for line in _bridges(desired, known)}, set(desired.mesh_interfaces)
    for name in desired.mesh_interfaces:
        interface = known.get(name)
        label = f"interface {name}"
        if interface is None:
            yield Check(label, False, "doesn't exist", "correct MESH_INTERFACES: ip -brief link lists the interfaces")
        elif label in bridges:
            yield bridges[label]
        elif ungated := [each for each in known if each not in mesh and _shares_wire(known[each], interface)]:
            found = f"{', '.join(ungated)} is on the same wire and isn't gated: packets to it aren't metered"
            yield Check(label, True, found, _apart(name))
        elif not interface.is_up:
            yield Check(label, False, "is down", f"ip link set dev {name} up")
        else:
            told = "MAC" if interface.has_link_addresses else "interface (no MACs there)"
            yield Check(label, True, f"mesh: neighbours are told apart by {told}")


def _others(desired: DesiredNetwork, host: Host) -> Iterator[Check]:
    """Show for each interface that isn't mesh whether it is LAN or upstream, and why: that decides who pays."""
    for side in sides.look(host, desired.mesh_interfaces):
        is_lan = side.name in desired.lan_interfaces
        doubt = not is_lan and desired.sells and desired.buys and sides.may_be_ours(side)
        remedy = f"if your own hosts are there: LAN_INTERFACE: {side.name} (and all other LANs)" if doubt else ""
        yield Check(f"interface {side.name}", True, sides.describe(side, is_lan), remedy)


def _apart(mesh: str) -> str:
    """Say how to keep an uplink apart from the mesh interface whose wire it shares."""
    remedy = "keep it apart, by a VLAN or a port of its own"
    answers_for_all = all((_read_sysctl(f"ipv4/conf/{each}/arp_ignore") or "0") == "0" for each in ("all", mesh))
    return f"{remedy}; at least: sysctl -w net/ipv4/conf/{mesh}/arp_ignore=1" if answers_for_all else remedy


def _shares_wire(other: Interface, mesh: Interface) -> bool:
    return other.kind == "macvlan" and other.lower == mesh.index


def _gated_bridging(desired: DesiredNetwork) -> list[str]:
    """Return the sysctls that are on and send bridged frames through FORWARD, although they aren't routed."""
    names = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}
    return [
        f"net.bridge.{names[each]}" for each in sorted(desired.families) if _read_sysctl(f"bridge/{names[each]}") == "1"
    ]


def _read_sysctl(key: str) -> str:
    try:
        return (_SYSCTL / key).read_text().strip()
    except OSError:
        return ""


def _forwards(family: int) -> bool:
    """Say whether this host forwards packets of a family (unless it is off for an interface alone)."""
    return _read_sysctl(_FORWARDING[family][4:].replace(".", "/")) == "1"


def _transit(desired: DesiredNetwork) -> Iterator[Check]:
    """Warn a router that sells nothing and forwards: it has no gate, so neighbours may send through it for nothing.

    Rules of nft's own aren't looked at.
    """
    for family in sorted(desired.families):
        if desired.sells or not desired.mesh_interfaces or not _forwards(family):
            continue
        name, command = f"transit IPv{family}", xtables.COMMAND[family]
        if not rights.holds(rights.NET_ADMIN):
            yield rights.not_tried(name)
            continue
        rules = xtables.saved_rules(family)
        closed = any(rule.startswith(":FORWARD DROP") for rule in rules)
        open_to = [each for each in desired.mesh_interfaces if not closed and not _drops_from(rules, each)]
        if open_to:
            found = "SELL is no, but forwarding is on: what neighbours send through this router passes, at your expense"
            add = "; ".join(f"{command} -A FORWARD -i {each} -m conntrack --ctstate NEW -j DROP" for each in open_to)
            yield Check(name, True, f"{found}, from {', '.join(open_to)}", f"{add}; or SELL: yes")


def _drops_from(rules: Iterable[str], interface: str) -> bool:
    dropped = re.compile(rf"-A FORWARD (.* )?-i {re.escape(interface)} (.* )?-j (DROP|REJECT)\b")
    return any(dropped.match(rule) for rule in rules)


def _forwarding(desired: DesiredNetwork) -> Iterator[Check]:
    for family in sorted(desired.families):
        base, key = f"ipv{family}/conf", _FORWARDING[family]
        off = [] if _forwards(family) else [key]
        names = (*desired.mesh_interfaces, *desired.upstream_interfaces)
        if not off:  # forwarding may be off for one interface alone; interface names may hold dots
            off = [
                f"net/{base}/{name}/forwarding" for name in names if _read_sysctl(f"{base}/{name}/forwarding") == "0"
            ]
        name, found = f"forwarding IPv{family}", f"off: {', '.join(off)}" if off else "on"
        if off and not desired.sells:
            yield Check(name, True, f"{found}; not needed, as SELL is no, unless this router forwards for a LAN")
        elif off and _only_lets_others(desired, family):
            yield Check(name, True, f"{found}; not needed, as there is no mesh interface, and no IPv{family} is let")
        else:
            mend = f"sysctl -w {' '.join(f'{each}=1' for each in off)}"
            may_do_without = off == [key] and desired.mesh_interfaces and _forwards(10 - family)
            alone = onward.or_other_version(family) if may_do_without and len(desired.families) > 1 else ""
            yield Check(name, not off, found, f"{mend}{alone}" if off else "")


def _only_lets_others(desired: DesiredNetwork, family: int) -> bool:
    """Say whether this host forwards for tenants alone, and none of them has addresses of a family."""
    let = desired.let
    return let is not None and not desired.mesh_interfaces and all(pool.version != family for pool in let.pools)


def _reverse_path(desired: DesiredNetwork) -> Iterator[Check]:
    """Show where reverse path filtering is off. It helps, but isn't needed, as contracts name interface and MAC."""
    general = _read_sysctl("ipv4/conf/all/rp_filter") or "0"
    off = [
        name
        for name in desired.mesh_interfaces
        if max(general, _read_sysctl(f"ipv4/conf/{name}/rp_filter") or "0") == "0"
    ]
    advice = "neighbours can send with others' addresses there; strict filtering: sysctl -w "
    found = f"off on {', '.join(off)}: {advice}{' '.join(f'net/ipv4/conf/{name}/rp_filter=1' for name in off)}"
    if 4 in desired.families:
        yield Check("reverse path filter", True, found if off else "on")


def _nat(desired: DesiredNetwork, host: Host) -> Iterator[Check]:
    """Report which networks NAT translates. If it doesn't translate one, routers beyond must route it back to us.

    We look at the neighbours' networks on each upstream interface, and at our LANs' networks on each mesh interface.
    """
    asked = [*_sent_upstream(desired, host), *_sent_into_mesh(desired, host)]
    if not rights.holds(rights.NET_ADMIN):
        yield from (rights.not_tried(f"NAT on {name}") for name, _, _ in asked)
        return
    rules = _translations(desired.families) if asked else []
    for name, networks, beyond in asked:
        yield _translated(rules, networks, name, beyond)


_Sent = tuple[str, list[Prefix], str]  # an interface, the networks that send out of it, and who is beyond


def _sent_upstream(desired: DesiredNetwork, host: Host) -> Iterator[_Sent]:
    if desired.sells:
        mesh = desired.mesh_interfaces
        networks = _networks_of(desired, host, mesh)
        versions = {side.name: {each.version for each in side.beyond} for side in sides.look(host, mesh)}
        for name in _uplinks(desired):
            yield name, [network for network in networks if network.version in versions.get(name, ())], "the upstream"


def _uplinks(desired: DesiredNetwork) -> list[str]:
    """Return the upstream interfaces without the tunnel to tenants, which leads no further."""
    return [name for name in desired.upstream_interfaces if name != desired.tunnel]


def _sent_into_mesh(desired: DesiredNetwork, host: Host) -> Iterator[_Sent]:
    if desired.buys and desired.lan_interfaces:
        forwarded = {version for version in desired.families if _forwards(version)}
        ours = [each for each in _networks_of(desired, host, desired.lan_interfaces) if each.version in forwarded]
        for name in desired.mesh_interfaces if ours else ():
            yield name, ours, "the neighbour"


def _translated(rules: list[nat.Translation], networks: list[Prefix], interface: str, beyond: str) -> Check:
    """Report how networks are translated on an interface. A private network that isn't translated is a warning."""
    found, remedy = [], ""
    for network in networks:
        translated = nat.of_network(rules, network, interface)
        add = f"{xtables.COMMAND[network.version]} -t nat -A POSTROUTING -s {network} -o {interface} -j MASQUERADE"
        if translated:
            found.append(f"{network} {translated}")
            continue
        found.append(f"{network} isn't translated: fine if {beyond} routes it back to us; else run: {add}")
        if not remedy and any(covers(each, network) for each in _PRIVATE):
            remedy = f"{add}; or let {beyond} route it back to us"
    if len(found) > _NETWORKS_TOLD:
        found[_NETWORKS_TOLD:] = [f"and {len(found) - _NETWORKS_TOLD} networks more"]
    nothing = "not needed: mesh interfaces have no addresses of an IP version that this interface routes"
    return Check(f"NAT on {interface}", True, "\n".join(found) or nothing, remedy)


def _translations(versions: Iterable[int]) -> list[nat.Translation]:
    nft = find_command("nft")
    rules = [rule for version in sorted(versions) for rule in nat.parse_saved(xtables.saved_rules(version), version)]
    return rules + (nat.parse_ruleset(xtables.run_or_nothing([nft, "list", "ruleset"])) if nft else [])


def _networks_of(desired: DesiredNetwork, host: Host, interfaces: Sequence[str]) -> list[Prefix]:
    """List the networks on interfaces, and those routed there."""
    found = {network for name in interfaces for network in host.networks(name) if network.version in desired.families}
    for version in desired.families:
        found.update(host.routed_networks(version, interfaces))
    return sorted(found, key=lambda network: (network.version, int(network.network_address), network.prefixlen))


def _way_back(desired: DesiredNetwork, host: Host) -> Iterator[Check]:
    """Check that answers to neighbours leave by a mesh interface: ask the kernel about an address of each network."""
    if not desired.sells:
        return
    own = set(host.local_addresses())
    for name in desired.mesh_interfaces:
        told = [network for network in host.networks(name) if network.version in desired.families]
        wrong = []
        for network in told:
            other = onward.other_address(network, own)
            out = host.interface_towards(other) if other else name
            if out not in desired.mesh_interfaces:
                wrong.append(f"{network} goes to {out or 'nowhere'}")
                remedy = f"ip route get {other} says why; give {name} a network of its own, or correct the routes"
        if wrong:
            yield Check(f"way back to {name}", False, "; ".join(wrong), remedy)
        elif told:
            yield Check(f"way back to {name}", True, ", ".join(map(str, told)))


def _forwarded(desired: DesiredNetwork) -> frozenset[int]:
    return frozenset(version for version in desired.families if _forwards(version))


def _onward(desired: DesiredNetwork, host: Host) -> Iterator[Check]:
    yield from onward.check(desired, host, _forwarded(desired))


def _firewall(desired: DesiredNetwork, host: Host) -> Iterator[Check]:
    yield from firewall.check(desired, host, _forwarded(desired))


def _uplink(desired: DesiredNetwork, host: Host) -> Iterator[Check]:
    """Find mesh interfaces that are uplinks although we buy nothing.

    On such an interface, answers to neighbours pass, but other packets from the internet are held like a neighbour's
    packets.
    """
    if not desired.sells or desired.buys:
        return
    mesh, held = set(desired.mesh_interfaces), dict[str, list[str]]()
    for version in sorted(desired.families):
        out = set(host.default_route_interfaces((version,)))
        for name in sorted(out & mesh):
            held.setdefault(name, []).append(f"IPv{version}")
    for name, versions in held.items():
        found = (
            f"{' and '.join(versions)} by {name}, a mesh interface, but BUY is no: what comes from there unasked is "
            "held (a port forwarded to a neighbour, a ping from outside)"
        )
        remedy = f"put {name} into IGNORE_INTERFACE; or BUY: yes, if a neighbour there sells the way out"
        yield Check(f"way out by {name}", True, found, remedy)


def _looks_like_uplink(desired: DesiredNetwork, host: Host, interface: str) -> bool:
    """Say whether a mesh interface looks like an uplink: NAT translates other mesh interfaces' networks there."""
    others = tuple(each for each in desired.mesh_interfaces if each != interface)
    networks = _networks_of(desired, host, others)
    rules = _translations(desired.families) if networks else []
    return any(nat.of_network(rules, network, interface) for network in networks)


def _way_out(desired: DesiredNetwork, host: Host) -> Iterator[Check]:
    """Check that a router without an upstream interface has a way out: if it buys, by the mesh, else by some route."""
    if _uplinks(desired) or not desired.mesh_interfaces:
        return
    if desired.buys:
        yield _way_into_mesh(desired, host)
    elif not host.default_route_interfaces(desired.families):  # a default route into the mesh is reported by `_uplink`
        found = "no route leads upstream: neighbours reach only this router and its LANs"
        remedy = "ip route add default via ADDRESS dev UPLINK; if one of the LANs is the uplink, see LAN_INTERFACE"
        yield Check("way out", True, found, remedy)


def _way_into_mesh(desired: DesiredNetwork, host: Host) -> Check:
    mesh, inside = set(desired.mesh_interfaces), set[str]()
    found, through_mesh = [], False
    for version in sorted(desired.families):
        out = host.default_route_interfaces((version,))
        routed = host.routed_networks(version, mesh)
        through_mesh = through_mesh or bool(mesh & set(out) or routed)
        inside |= mesh & set(out)
        if mesh & set(out):
            found.append(f"IPv{version} by {', '.join(sorted(mesh & set(out)))}")
        elif routed:
            found.append(f"IPv{version} to {len(routed)} networks, no default route")
        elif not out:
            found.append(f"IPv{version} none")
        unpaid = sorted(set(out) - mesh)
        if unpaid:
            found.append(
                f"IPv{version} by {', '.join(unpaid)}, not a mesh interface: ngp neither buys nor meters there"
            )
    name = desired.mesh_interfaces[0]
    remedy = "" if through_mesh else f"ip route add default via ADDRESS dev {name} (the gateway's mesh address)"
    likely = [each for each in sorted(inside) if desired.sells and _looks_like_uplink(desired, host, each)]
    if likely:
        names = ", ".join(likely)
        found.append(f"NAT translates neighbours' traffic on {names}: answers are held there unless we buy them")
        remedy = f"put {names} into IGNORE_INTERFACE, unless a neighbour there sells the way out"
    return Check("way out", through_mesh, "; ".join(found), remedy)


def _default_route(desired: DesiredNetwork, host: Host) -> Iterator[Check]:
    """Warn a router that wants to buy its default route as a whole if it has none into the mesh."""
    if not desired.buys_default_route or not desired.mesh_interfaces:
        return
    if not set(desired.mesh_interfaces).intersection(host.default_route_interfaces(desired.families, whole=True)):
        found = "BUY_DEFAULT_ROUTE is yes, but none leads into the mesh: each destination is bought by itself"
        add = f"ip route add default via ADDRESS dev {desired.mesh_interfaces[0]} (the gateway's mesh address)"
        yield Check("default route", True, found, f"{add}; two halves of one (0.0.0.0/1) don't count")
