"""A small lab of network namespaces for tests of the kernel modules: client - gateway - internet, by IPv4 and IPv6.

The test process itself is in the gateway's namespace. Names start with `ngpt-` and are random. Everything is removed
again, also when a test fails. Addresses are from the private and documentation ranges and never leave the lab.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core_tests.namespaces import inside
from ngp.core.values import Check
from ngp.modules.network import check as host_check
from ngp.modules.network.gate import GatePaths
from ngp.ports.network import DesiredNetwork

CLIENT = {4: "10.77.1.2", 6: "fd00:77:1::2"}
INTERNET = {4: "10.77.2.2", 6: "fd00:77:2::2"}
GATEWAY_TO_CLIENT = {4: "10.77.1.1", 6: "fd00:77:1::1"}
GATEWAY_TO_INTERNET = {4: "10.77.2.1", 6: "fd00:77:2::1"}
QUEUE_NUMBER = 10325

_FILTERS = """
__attribute__((section("socket"), used)) int yes(void *packet) { return 1; }
__attribute__((section("socket"), used)) int no(void *packet) { return 0; }
char _license[] __attribute__((section("license"), used)) = "GPL";
"""


def sh(command: str, namespace: str = "") -> str:
    """Run a command line, in a namespace if one is named, and return its output. Each of its commands must succeed."""
    words = ["bash", "-e", "-o", "pipefail", "-c", command]
    words = ["ip", "netns", "exec", namespace, *words] if namespace else words
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def ip(*lines: str, namespace: str = "") -> None:
    """Run several `ip` commands as one process, in a namespace if one is named."""
    words = ["ip", *(("-n", namespace) if namespace else ()), "-batch", "-"]
    done = subprocess.run(words, input="\n".join([*lines, ""]), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{lines}: {done.stdout}{done.stderr}"


def python(namespace: str, code: str, *arguments: str) -> list[str]:
    """Return the command that runs Python code in a namespace, without site-packages: so Python starts in a third of
    the time.

    Args: arguments: the code's sys.argv[1:].
    """
    return ["ip", "netns", "exec", namespace, sys.executable, "-I", "-S", "-c", code, *arguments]


@dataclass(frozen=True, slots=True)
class Lab:
    """Names of the namespaces. The gateway has m0 to the client, m1 (nobody is there), and up0 to the internet."""

    client: str
    gateway: str
    internet: str


def desired(**changes: object) -> DesiredNetwork:
    """A gateway with mesh interfaces m0 and m1, and upstream up0."""
    values: dict[str, object] = {
        "mesh_interfaces": ("m0", "m1"),
        "lan_interfaces": (),
        "upstream_interfaces": ("up0",),
        "families": frozenset({4, 6}),
        "sells": True,
        "buys": False,
        "free": (),
        "services": (),
        "own_services": (),
        "lane_bytes_s": 32 * 1024,
        "lane_burst_bytes": 2**20,
        "queue_number": QUEUE_NUMBER,
        "link_port": 10325,
        "contracts_max": 1000,
        "stranger_rate": 100,
        "stranger_burst": 100,
        "neighbour_rate": 100,
        "neighbour_burst": 100,
    }
    return DesiredNetwork(**{**values, **changes})  # type: ignore[arg-type]


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """Build the three hosts and enter the gateway."""
    stem = f"ngpt-{secrets.token_hex(3)}"
    built = Lab(f"{stem}-c", f"{stem}-g", f"{stem}-i")
    with contextlib.ExitStack() as undo:
        for name in (built.client, built.gateway, built.internet):
            undo.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
            ip(f"netns add {name}")
            ip("link set lo up", namespace=name)
        undo.enter_context(inside(built.gateway))
        _wire(built.client, "c0", "m0", CLIENT, GATEWAY_TO_CLIENT)
        _wire(built.internet, "i0", "up0", INTERNET, GATEWAY_TO_INTERNET)
        ip("link add m1 type veth peer name m1x", "link set m1 up")
        sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        yield built


@contextlib.contextmanager
def gateway() -> Iterator[Lab]:
    """Build the three hosts, with a default route at the gateway."""
    with lab() as built:
        sh(f"ip route add default via {INTERNET[4]} && ip -6 route add default via {INTERNET[6]}")
        yield built


def by_name(wanted: DesiredNetwork) -> dict[str, Check]:
    """Return the lines of a check by name."""
    return {line.name: line for line in host_check.check(wanted)}


def _wire(namespace: str, theirs: str, ours: str, address: dict[int, str], gateway: dict[int, str]) -> None:
    ip(f"link add {ours} type veth peer name {theirs} netns {namespace}")
    give_addresses(ours, gateway)
    give_addresses(theirs, address, namespace, gateway)


def give_addresses(
    interface: str, addresses: dict[int, str], namespace: str = "", router: dict[int, str] | None = None
) -> None:
    """Give an interface an IPv4 and an IPv6 address, put it up, and if a router is named, set default routes to it."""
    # Without this an interface sends nothing over IPv6 for a second.
    sh(f"sysctl -qw net.ipv6.conf.{interface}.accept_dad=0", namespace)
    ip(
        f"addr add {addresses[4]}/24 dev {interface}",
        f"addr add {addresses[6]}/64 dev {interface} nodad",
        f"link set {interface} up",
        *((f"route add default via {router[4]}", f"route add ::/0 via {router[6]}") if router else ()),
        namespace=namespace,
    )


def passes(namespace: str, address: str) -> bool:
    """Say whether a ping is answered, however late on a busy machine. For pings that shouldn't pass use `dropped`."""
    return _ping(namespace, address, "30")


def dropped(namespace: str, address: str) -> bool:
    """Say whether a ping is not answered within a short time."""
    return not _ping(namespace, address, "0.5")


def _ping(namespace: str, address: str, wait_s: str) -> bool:
    words = ["ip", "netns", "exec", namespace, "ping", "-n", "-q", "-c", "1", "-W", wait_s, address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90)
    assert "% packet loss" in done.stdout or done.returncode == 2, f"ping {address}: {done.stdout}{done.stderr}"
    return done.returncode == 0


@contextlib.contextmanager
def pinned_filters(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Pin one socket filter that always says yes and one that always says no, on a BPF file system of their own."""
    mount = folder / "bpf"
    mount.mkdir()
    (folder / "filters.c").write_text(_FILTERS)
    sh(f"clang -O2 -target bpf -c {folder}/filters.c -o {folder}/filters.o && mount -t bpf bpf {mount}")
    try:
        sh(f"bpftool prog loadall {folder}/filters.o {mount}/pins")
        yield mount / "pins/yes", mount / "pins/no"
    finally:
        sh(f"umount {mount}")


def paths(up: Path, inward: Path, unknown: Path, over_rate: Path | None = None) -> GatePaths:
    """Make GatePaths of few programs. Args: over_rate: needed only if there are services on the host."""
    return GatePaths(up, inward, inward, unknown, unknown, over_rate or unknown, unknown, up, up, unknown)
