"""Interfaces of every kind that a mesh or an uplink may have, between two hosts over a cable of their own.

Each interface has the name that scenarios use (`mesh0`, `wan0`). The cable below it is called `under0` or `under1`, and
has addresses of its own if the kind is a tunnel.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from core_tests.host import Host
from core_tests.lab import OFFLOADS_OFF, End, Lab
from core_tests.shell import LabError, await_until, run, sh
from core_tests.topologies import MESH_V4, MESH_V6, REMOTE_NETS, WAN_V4, WAN_V6, ThreeHosts

MTU = 1400  # MTU of an interface on a cable of 1500, with room for any header that it adds
UNDER = {"mesh0": ("under0", "172.31.0.{}"), "wan0": ("under1", "172.31.1.{}")}
PPP_DEVICE = Path("/dev/ppp")
WG_PORT = {"mesh0": 51820, "wan0": 51821}

Lay = Callable[[Lab, End, End], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of interface. `versions`: the families that it carries. `probe`: makes one, as a test of the kernel."""

    lay: Lay
    versions: tuple[int, ...]
    probe: tuple[str, ...]


def _cable(lab: Lab, a: End, b: End, addresses: bool = False) -> str:
    """Make the cable below an interface; return its name, the same at both ends."""
    name, pattern = UNDER[a.interface]
    near, far = (f"{pattern.format(number)}/24" if addresses else None for number in (1, 2))
    lab.link(End(a.host, name, near), End(b.host, name, far))
    return name


def _plain(lab: Lab, a: End, b: End) -> None:
    lab.link(End(a.host, a.interface), End(b.host, b.interface))


def _on_cable(words: tuple[str, ...], lab: Lab, a: End, b: End) -> None:
    """Make an interface on top of a cable: vlan, macvlan."""
    under = _cable(lab, a, b)
    for end in (a, b):
        answer_where_asked(end.host)
        end.host.ip("link", "add", "link", under, "name", end.interface, "type", *words)


def _above(kind: str, words: tuple[str, ...], lab: Lab, a: End, b: End) -> None:
    """Make an interface that has the cable as its port: bond, bridge."""
    under = _cable(lab, a, b)
    for end in (a, b):
        end.host.ip("link", "add", end.interface, "type", kind, *words)
        keep_bridges_free(end.host)
        end.host.ip("link", "set", under, "down")
        end.host.ip("link", "set", under, "master", end.interface)
        end.host.ip("link", "set", under, "up")


def answer_where_asked(host: Host) -> None:
    """Prevent an interface from answering ARP for those on top of it: packets would come in by the wrong one."""
    host.sysctl({"net.ipv4.conf.all.arp_ignore": "1"})


def keep_bridges_free(host: Host) -> None:
    """Keep frames between a bridge's ports out of FORWARD if br_netfilter is loaded, as `ngp check` requires."""
    keys = (f"net.bridge.bridge-nf-call-{name}tables" for name in ("ip", "ip6"))
    host.sh("sysctl", "-q", "-e", "-w", *(f"{key}=0" for key in keys))


def _tunnel(kind: str, lab: Lab, a: End, b: End) -> None:
    _cable(lab, a, b, addresses=True)
    _, pattern = UNDER[a.interface]
    for end, near, far in ((a, 1, 2), (b, 2, 1)):
        ends = ("local", pattern.format(near), "remote", pattern.format(far))
        end.host.ip("link", "add", end.interface, "type", kind, *ends)


def _wireguard(lab: Lab, a: End, b: End) -> None:
    _cable(lab, a, b, addresses=True)
    _, pattern = UNDER[a.interface]
    keys = [sh("wg", "genkey").strip() for _ in (a, b)]
    public = [sh("wg", "pubkey", text_in=f"{key}\n").strip() for key in keys]
    port = str(WG_PORT[a.interface])
    for number, end in enumerate((a, b)):
        end.host.ip("link", "add", end.interface, "type", "wireguard")
        folder = end.host.folder / f"{end.interface}.key"
        folder.write_text(keys[number])
        end.host.sh(
            *("wg", "set", end.interface, "private-key", str(folder), "listen-port", port),
            *("peer", public[1 - number], "endpoint", f"{pattern.format(2 - number)}:{port}"),
            *("allowed-ips", "0.0.0.0/0,::/0"),
        )


def _ppp(_lab: Lab, a: End, b: End) -> None:
    """Make a serial line by two pppd, and wait for it; they negotiate the addresses."""
    assert a.v4 is not None and b.v4 is not None
    if not _kernel_has_ppp():
        raise LabError(f"this kernel has no PPP: {PPP_DEVICE} isn't a character device")
    place = a.host.folder / f"{a.interface}.ppp"
    ours, theirs = (each.partition("/")[0] for each in (a.v4, b.v4))
    common = ("nodetach", "noauth", "local", "nodefaultroute", "noipdefault", "nobsdcomp", "nodeflate", "novj", "+ipv6")
    listening = _pppd(a, f"UNIX-LISTEN:{place}", *common, f"{ours}:{theirs}")
    await_until(partial(listening, place.exists), what="the serial line's near end")
    connected = _pppd(b, f"UNIX-CONNECT:{place}", *common, ":")
    await_until(partial(listening, partial(_has_ipv4, a)), what=f"PPP on {a.host.name}")
    await_until(partial(connected, partial(_has_ipv4, b)), what=f"PPP on {b.host.name}")


def _pppd(end: End, line: str, *words: str) -> Callable[[Callable[[], bool]], bool]:
    """Start pppd on a line of socat's; return a function that asks a question while pppd runs.

    The function raises LabError with pppd's output if pppd has ended.
    """
    said = end.host.folder / f"{end.interface}.pppd"
    with said.open("w") as log:
        own = ("pty", f"socat - {line}", "mtu", str(MTU), "ifname", end.interface)
        pppd = end.host.popen("pppd", *own, *words, stdout=log, stderr=subprocess.STDOUT)

    def ask(question: Callable[[], bool]) -> bool:
        if pppd.poll() is not None:
            raise LabError(f"pppd on {end.host.name} ended with {pppd.returncode}: {said.read_text().strip()}")
        return question()

    return ask


def _kernel_has_ppp() -> bool:
    """Say whether PPP's device exists: its module makes it, and pppd doesn't load the module."""
    run(["modprobe", "-q", "ppp_generic"])
    return PPP_DEVICE.is_char_device()


def _has_ipv4(end: End) -> bool:
    return "inet " in end.host.run("ip", "-4", "address", "show", "dev", end.interface).stdout


def _tunnel_probe(kind: str) -> tuple[str, ...]:
    return ("name", "probe0", "type", kind, "local", "172.31.0.1", "remote", "172.31.0.2")


_ON_LOWER = ("link", "lower", "name", "probe0", "type")
KINDS: dict[str, Kind] = {
    "wireguard": Kind(_wireguard, (4, 6), ("name", "probe0", "type", "wireguard")),
    "vlan": Kind(partial(_on_cable, ("vlan", "id", "5")), (4, 6), (*_ON_LOWER, "vlan", "id", "5")),
    "bond": Kind(
        partial(_above, "bond", ("mode", "active-backup", "miimon", "50")), (4, 6), ("name", "probe0", "type", "bond")
    ),
    "ipip": Kind(partial(_tunnel, "ipip"), (4,), _tunnel_probe("ipip")),
    "gre": Kind(partial(_tunnel, "gre"), (4, 6), _tunnel_probe("gre")),
    "ppp": Kind(_ppp, (4, 6), ()),
    "macvlan": Kind(partial(_on_cable, ("macvlan",)), (4, 6), (*_ON_LOWER, "macvlan")),
    "bridge": Kind(partial(_above, "bridge", ()), (4, 6), ("name", "probe0", "type", "bridge")),
    "veth": Kind(_plain, (4, 6), ("name", "probe0", "type", "veth")),
}
EVERYWHERE = ("veth", "bridge")
"""Kinds that the other tests need as well; the rest is tried where the kernel has it."""


@cache
def present() -> list[str]:
    """Return the names of the kinds that are tested on this kernel."""
    return [kind for kind in KINDS if kind in EVERYWHERE or has(kind)]


def has(kind: str) -> bool:
    """Say whether this kernel can make such interfaces: one is made in a network namespace that ends at once."""
    if kind == "ppp":
        return _kernel_has_ppp()
    lower = "ip link add lower type veth peer name other && "
    return run(["unshare", "--net", "sh", "-c", f"{lower}ip link add {' '.join(KINDS[kind].probe)}"]).returncode == 0


def lay(lab: Lab, kind: str, a: End, b: End) -> None:
    """Connect two hosts by interfaces of a kind, with their addresses, up."""
    KINDS[kind].lay(lab, a, b)
    for end in (a, b):
        if kind not in ("veth", "ppp"):
            end.host.ip("link", "set", end.interface, "mtu", str(MTU))
        for feature in OFFLOADS_OFF:  # no superpackets, so that counts are right; not every kind has every setting
            end.host.run("ethtool", "-K", end.interface, feature.replace("_", "-"), "off")
        end.host.ip("link", "set", end.interface, "up")
        for version, address in ((4, end.v4), (6, end.v6)):
            if address is None or version not in KINDS[kind].versions:
                continue
            if kind == "ppp" and version == 4:
                end.host.addresses.setdefault(end.interface, []).append(address)
            else:
                end.host.add_address(end.interface, address)


def three_hosts_by(lab: Lab, kind: str) -> ThreeHosts:
    """Build client, gateway and internet like `topologies.three_hosts`, with a mesh and an uplink of this kind."""
    gateway, internet, client = lab.host("gateway", forward=True), lab.host("internet"), lab.host("client")
    lay(
        lab,
        kind,
        End(gateway, "wan0", WAN_V4.format(1), WAN_V6.format(1)),
        End(internet, "wan0", WAN_V4.format(2), WAN_V6.format(2)),
    )
    lay(
        lab,
        kind,
        End(gateway, "mesh0", MESH_V4.format(1), MESH_V6.format(1)),
        End(client, "mesh0", MESH_V4.format(2), MESH_V6.format(2)),
    )
    for remote in REMOTE_NETS:
        internet.owns(remote)
    for version in KINDS[kind].versions:
        everywhere = {4: "default", 6: "::/0"}[version]
        gateway.route(everywhere, via=internet.address("wan0", version), device="wan0")
        client.route(everywhere, via=gateway.address("mesh0", version), device="mesh0")
        if version == 6:
            internet.route("2001:db8:1::/64", via=gateway.address("wan0", 6), device="wan0")
    gateway.masquerade("wan0")
    lab.await_carriers()
    return ThreeHosts(client, gateway, internet, (client,))
