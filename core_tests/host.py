"""A host of the laboratory: a network namespace, and the processes that run in it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from core_tests import namespaces
from core_tests.counter import Counter, Direction
from core_tests.daemon import Daemon
from core_tests.shell import LabError, await_until, run, sh
from ngp.modules.tunnel.userspace import SOCKETS

# Set before any interface exists: no router solicitations, no wait for duplicate addresses, no source address filter. A
# test that needs one of these sets it itself.
QUIET = {
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.accept_ra": "0",
    "net.ipv6.conf.default.router_solicitations": "0",
    "net.ipv6.conf.default.disable_ipv6": "0",
    "net.ipv6.conf.all.disable_ipv6": "0",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.icmp_ratelimit": "0",
    "net.ipv6.icmp.ratelimit": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}


class Host:
    """One machine of the emulated network; made by `Lab.host`."""

    def __init__(self, name: str, namespace: str, folder: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.folder = folder
        self.addresses: dict[str, list[str]] = {}
        self.daemons: list[Daemon] = []
        self._processes: list[subprocess.Popen[str]] = []
        self._counters: list[Counter] = []

    def set_up(self) -> None:
        """Make the namespace, with the loopback up and no traffic of its own."""
        self.folder.mkdir(parents=True)
        sh("ip", "netns", "add", self.namespace)
        self.sysctl(QUIET)
        self.ip("link", "set", "lo", "up")

    def clean_up(self) -> None:
        """End every process in the namespace, whoever started it, and remove the namespace."""
        started = {word for pid in self.pids() for word in _words_of(pid)}
        self.end_own()
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await_until(lambda: not self.pids(), what=f"no process left in {self.namespace}")
        # A wireguard-go that is killed leaves the socket named as its interface, in a folder of all namespaces.
        for path in SOCKETS.glob("*.sock"):
            if path.stem in started:
                path.unlink(missing_ok=True)
        sh("ip", "netns", "del", self.namespace)

    def end_own(self) -> None:
        """End the counters and processes that were started here."""
        for counter in self._counters:
            counter.stop()
        for process in self._processes:
            # By process id first: a process that has just started may not have entered the namespace yet.
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # input that the process no longer read
                        pipe.close()

    def pids(self) -> list[int]:
        """List the processes whose network is this namespace."""
        return [int(pid) for pid in sh("ip", "netns", "pids", self.namespace, check=False).split()]

    def inside(self, *command: str) -> list[str]:
        """Return the command line that runs a command in this host."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def run(self, *command: str, timeout_s: float = 60.0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in this host to its end; the caller judges the exit code."""
        return run(self.inside(*command), timeout_s=timeout_s, **options)

    def sh(self, *command: str, timeout_s: float = 60.0, text_in: str | None = None) -> str:
        """Run a command in this host that must succeed, and return what it printed."""
        return sh(*self.inside(*command), timeout_s=timeout_s, text_in=text_in)

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command in this host; it is ended with the laboratory at the latest."""
        options = {"stdin": subprocess.DEVNULL, "text": True, "start_new_session": True, **options}
        process: subprocess.Popen[str] = subprocess.Popen(self.inside(*command), **options)
        self._processes.append(process)
        return process

    def socket_inside(self, make: Callable[[], socket.socket]) -> socket.socket:
        """Make a socket in this host's namespace; it stays there, whichever thread uses it."""
        # In a thread of its own, which ends afterwards: a thread can't leave a namespace by itself.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self._made_inside, make).result()

    def _made_inside(self, make: Callable[[], socket.socket]) -> socket.socket:
        namespaces.enter(self.namespace)
        return make()

    def connect(self, place: tuple[str, int], timeout_s: float) -> socket.socket:
        """Open a TCP connection from this host to an address and port."""
        return self.socket_inside(lambda: socket.create_connection(place, timeout_s))

    def ip(self, *words: str) -> str:
        """Run iproute2's `ip` on this host's network."""
        return sh("ip", "-n", self.namespace, *words)

    def sysctl(self, values: Mapping[str, str]) -> None:
        """Set kernel parameters of this host's network."""
        self.sh("sysctl", "-q", "-w", *(f"{key}={value}" for key, value in values.items()))

    def forward(self) -> None:
        """Make this host a router, for both families."""
        self.sysctl({"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"})

    def route(self, destination: str, *, via: str | None = None, device: str | None = None) -> None:
        """Add a route, by a next hop, an interface or both."""
        family = "-6" if ":" in destination or ":" in (via or "") else "-4"
        hop = [*(("via", via) if via else ()), *(("dev", device) if device else ())]
        self.ip(family, "route", "replace", destination, *hop)

    def owns(self, prefix: str) -> None:
        """Let this host answer on every address of a prefix, so that one host stands for many destinations."""
        self.sysctl({"net.ipv6.ip_nonlocal_bind": "1"})  # otherwise IPv6 binds only to single addresses
        self.ip("-6" if ":" in prefix else "-4", "route", "replace", "local", prefix, "dev", "lo")

    def masquerade(self, interface: str) -> None:
        """Masquerade traffic that leaves by an interface (IPv4), as a home router does, in a table of its own."""
        rules = [
            "table ip lab_masquerade {",
            "chain out {",
            "type nat hook postrouting priority 100",
            f'oifname "{interface}" masquerade',
            "}",
            "}",
        ]
        self.sh("nft", "-f", "-", text_in="\n".join([*rules, ""]))

    def add_address(self, interface: str, address: str | None) -> None:
        """Give an interface an address with its prefix length, usable at once."""
        self._batch(self._addressing(interface, address))

    def put_up(self, interface: str, *addresses: str | None) -> None:
        """Give an interface its addresses and put it up."""
        lines = [line for address in addresses for line in self._addressing(interface, address)]
        self._batch([*lines, f"link set {interface} up"])

    def _addressing(self, interface: str, address: str | None) -> list[str]:
        if address is None:
            return []
        self.addresses.setdefault(interface, []).append(address)
        return [f"address add {address} dev {interface}{' nodad' if ip_interface(address).version == 6 else ''}"]

    def _batch(self, lines: Sequence[str]) -> None:
        """Run several of iproute2's commands as one process."""
        sh("ip", "-n", self.namespace, "-batch", "-", text_in="\n".join([*lines, ""]))

    def address(self, interface: str, version: int) -> str:
        """Return the first address of a family (4 or 6) that the laboratory gave an interface, without its prefix.

        Raises: LabError when it has none.
        """
        for text in self.addresses.get(interface, []):
            if ip_interface(text).version == version:
                return str(ip_interface(text).ip)
        raise LabError(f"{self.name}: no IPv{version} address on {interface}: {self.addresses}")

    def mac(self, interface: str) -> str:
        """Return the hardware address of an interface."""
        return str(json.loads(self.ip("-j", "link", "show", "dev", interface))[0]["address"])

    def carriers(self) -> bool:
        """Say whether every cable at this host is up; the kernel reports it up to a second after both ends are up."""
        links = json.loads(self.ip("-j", "link", "show", "type", "veth"))
        return all(link.get("operstate") == "UP" for link in links)

    def offloads(self, interface: str, **features: bool) -> None:
        """Switch offloads (`tso=True`, `gro=False`; ethtool's names, `_` for `-`) of one interface."""
        words = [word for name, on in features.items() for word in (name.replace("_", "-"), "on" if on else "off")]
        self.sh("ethtool", "-K", interface, *words)

    def counter(self, interface: str, only: Direction | None = None) -> Counter:
        """Start an independent count of packets that arrive and leave at an interface; see `core_tests.counter`.

        Args:
            only: count frames of this direction alone, if frames of the other may be superpackets.
        """
        counter = Counter(lambda *command, **options: self.popen(*command, **options), interface, only)
        self._counters.append(counter)
        return counter

    def daemon(self, net_conf: Mapping[str, object] | str, *, start: bool = True) -> Daemon:
        """Configure the real daemon on this host, and start it unless `start` is False."""
        folder = self.folder / f"ngp{len(self.daemons) or ''}"
        daemon = Daemon(self.name, self.namespace, folder, self.pids, self.inside, net_conf)
        self.daemons.append(daemon)
        if start:
            daemon.start()
        return daemon

    def dump(self) -> str:
        """Return everything that may explain a failure: the daemons' logs, addresses, routes, rules and filters."""
        looks: list[Callable[[], str]] = [
            lambda: self.ip("-br", "address"),
            lambda: self.ip("-s", "link"),
            lambda: self.ip("route"),
            lambda: self.ip("-6", "route"),
            lambda: self.run("nft", "list", "ruleset").stdout,
            lambda: "".join(
                self.run("tc", "filter", "show", "dev", name, "egress").stdout for name in self.addresses
            ),
        ]
        parts = [f"=== {self.name} ({self.namespace})"]
        for look in looks:
            try:
                parts.append(look().rstrip())
            except LabError as error:
                parts.append(str(error))
        parts += [f"--- log of ngp on {self.name}\n{daemon.log().rstrip()}" for daemon in self.daemons]
        return "\n".join(part for part in parts if part)


def _words_of(pid: int) -> list[str]:
    """Return the command line of a process; empty if it has ended."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []
