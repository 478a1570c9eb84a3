"""The laboratory: hosts as network namespaces, cables, switches, and a thorough clean-up.

Every host is a namespace named `ngpt-<random>-<name>`, so that several laboratories can exist side by side and none
touches the machine's own network. The undoing of each thing is registered before the thing is made, and everything is
undone in reverse order, also when a test fails in the middle.

A test counts L3 bytes at a receiver. That is right only with GRO and the sender's TSO off, since a veth's counters
count superpackets (10 MB of TCP are 172 frames there). So cables have every segmentation offload off. A test may switch
it on at ends where it doesn't count; a `Counter` refuses to answer once it has seen a superpacket or lost a frame.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from core_tests.host import Host
from core_tests.shell import LabError, await_until, sh
from ngp.tenant.renting import WIREGUARD_FOLDER

# All features that join packets or leave their segmentation to the next device.
OFFLOADS_OFF = {"tso": False, "gso": False, "gro": False, "tx_udp_segmentation": False}
BRIDGE = "br0"
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def clean_up_when_interrupted() -> None:
    """Let the first signal end this program in a way that undoes its laboratories; later ones don't stop that."""
    for number in SIGNALS:
        signal.signal(number, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    print("\ninterrupted: cleaning up", file=sys.stderr, flush=True)
    sys.exit(128 + number)


@dataclass(frozen=True, slots=True)
class End:
    """One end of a cable: the interface that a host gets, with its addresses (`192.0.2.1/24`)."""

    host: Host
    interface: str
    v4: str | None = None
    v6: str | None = None


class Switch:
    """A layer-2 switch: a bridge in a namespace of its own, for several neighbours on one interface."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._ports = 0

    def next_port(self) -> End:
        """Return the end of a cable that is plugged into this switch."""
        self._ports += 1
        return End(self.host, f"port{self._ports}")

    def plug_in(self, port: End) -> None:
        """Take a port into the bridge."""
        self.host.ip("link", "set", port.interface, "master", BRIDGE)


class Lab:
    """A laboratory; use it as a context manager."""

    def __init__(self) -> None:
        self.prefix = f"ngpt-{secrets.token_hex(3)}"
        self.folder = Path()
        self.hosts: dict[str, Host] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self._undo.callback(self._remove_folder)
        return self

    def _remove_folder(self) -> None:
        """Remove the folder, and the links by which wg-quick finds tenants' files in it."""
        for link in WIREGUARD_FOLDER.glob("*.conf"):
            with suppress(OSError):  # it is no link, or another laboratory's that is just being removed
                if link.readlink().is_relative_to(self.folder):
                    link.unlink()
        shutil.rmtree(self.folder)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._undo.close()

    def on_exit(self, undo: Callable[[], object]) -> None:
        """Register something that is undone at the end, before things that were made earlier."""
        self._undo.callback(undo)

    def host(self, name: str, *, forward: bool = False) -> Host:
        """Add a host; `forward` makes it a router.

        Raises: LabError when the name is taken.
        """
        if name in self.hosts:
            raise LabError(f"the laboratory has a host named {name} already")
        host = Host(name, f"{self.prefix}-{name}", self.folder / name)
        self.hosts[name] = host
        self.on_exit(host.clean_up)
        host.set_up()
        if forward:
            host.forward()
        return host

    def switch(self, name: str = "switch") -> Switch:
        """Add a switch."""
        host = self.host(name)
        host.ip("link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
        host.ip("link", "set", BRIDGE, "up")
        return Switch(host)

    def link(self, a: End, b: End | Switch, *, mtu: int = 1500, offloads: bool = False) -> End:
        """Lay a cable between two hosts, or a host and a switch, and return the end at the second of them.

        Args:
            a, b: its ends, with the addresses they get.
            mtu: in bytes, at both ends (a switch has the least of its cables).
            offloads: leave segmentation offloads as the kernel has them, so that superpackets stay whole; then counts
                are wrong at both ends. `Host.offloads` sets single ends and features.
        """
        end = b.next_port() if isinstance(b, Switch) else b
        sh(
            *("ip", "link", "add", a.interface, "netns", a.host.namespace, "mtu", str(mtu), "type", "veth"),
            *("peer", "name", end.interface, "netns", end.host.namespace, "mtu", str(mtu)),
        )
        if isinstance(b, Switch):
            b.plug_in(end)
        for side in (a, end):
            if not offloads:
                side.host.offloads(side.interface, **OFFLOADS_OFF)
            side.host.put_up(side.interface, side.v4, side.v6)
        return end

    def await_carriers(self) -> None:
        """Wait until every cable is up: a switch drops earlier packets. Topologies end with this."""
        await_until(lambda: all(host.carriers() for host in self.hosts.values()), what="all cables up")

    def dump(self) -> str:
        """Return what all hosts know, for a failed test."""
        return "\n\n".join(host.dump() for host in self.hosts.values())
