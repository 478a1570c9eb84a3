"""The light backend: builds a session from its file with network namespaces, where CORE isn't installed.

A device is a host of the laboratory. Its services are started in the order of the file, and ngp last, when every cable
is up. A switch is a bridge. A wireless network is a bridge too, which passes frames between devices in range alone.
A link with delay or loss goes through a program that has both (`core_tests.relay`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface
from itertools import permutations
from math import dist
from subprocess import PIPE

from core_tests import relay as relay_program
from core_tests.host import Host
from core_tests.lab import End, Lab, Switch
from core_tests.session import Position, Session
from core_tests.session_xml import SERVICES, Device, Link, SessionError, SessionFile
from core_tests.shell import LabError
from core_tests.trade import start_all

SCRIPTS = ("StaticRoute", "NAT")  # services whose file is a script
# Routing daemons, as they are started in the host's folder; in the foreground, to be ended with the host.
ROUTING = {
    "babeld": ("babeld", "-I", "babeld.pid", "-S", "babeld.state", "-c", "babeld.conf"),
    "bird": ("bird", "-f", "-s", "bird.ctl", "-c", "bird.conf"),
}


class Cell:
    """A wireless network: a bridge that drops frames between devices that don't hear each other."""

    def __init__(self, switch: Switch, range_px: float) -> None:
        self.switch = switch
        self.range_px = range_px
        self.ports: dict[str, str] = {}

    def arrange(self, positions: Mapping[str, Position]) -> None:
        """Let exactly those devices hear each other that are in range."""
        apart = [
            f'iifname "{self.ports[one]}" oifname "{self.ports[two]}" drop'
            for one, two in permutations(self.ports, 2)
            if dist(positions[one], positions[two]) > self.range_px
        ]
        table = "table bridge lab_range"
        chain = ["chain apart {", "type filter hook forward priority 0", *apart, "}"]
        rules = [table, f"delete {table}", f"{table} {{", *chain, "}", ""]
        self.switch.host.sh("nft", "-f", "-", text_in="\n".join(rules))


@dataclass
class _Build:
    """What has been built of a session so far."""

    lab: Lab
    file: SessionFile
    switches: dict[str, Switch] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)
    relays: int = 0

    def nodes(self) -> None:
        for name, medium in self.file.media.items():
            self.switches[name] = self.lab.switch(name)
            if medium.range is not None:
                self.cells[name] = Cell(self.switches[name], medium.range)
        for name, device in self.file.devices.items():
            self.lab.host(name, forward="IPForward" in device.services)
            self.positions[name] = device.position

    def lay(self, link: Link) -> None:
        """Lay a cable: from a device, to a device or a network."""
        first = 0 if link.interfaces[0] else 1
        device, medium = link.nodes[first], link.nodes[1 - first]
        near = self.end(link, first)
        far = self.switches.get(medium) or self.end(link, 1 - first)
        port = self.relayed(link, near, far) if link.options else self.lab.link(near, far)
        if cell := self.cells.get(medium):
            cell.ports[device] = port.interface
        for name, own in zip(link.nodes, link.interfaces, strict=True):
            if own is not None and own.mac is not None:
                self.lab.hosts[name].ip("link", "set", own.name, "address", own.mac)

    def relayed(self, link: Link, near: End, far: End | Switch) -> End:
        """Lay a cable with delay and loss, through a relay. Raises: SessionError for other options."""
        if others := link.options.keys() - {"delay", "loss"}:
            raise SessionError(
                f"{self.file.path.name}: {link.element}: <options>: the namespaces backend has only delay and loss, no "
                f"{', '.join(sorted(others))}"
            )
        self.relays += 1
        relay = self.lab.host(f"relay{self.relays}")
        port = self.lab.link(End(relay, "port0"), near)
        far_port = self.lab.link(End(relay, "port1"), far)
        for end in (port, far_port):
            end.host.offloads(end.interface, tx=False)
        words = [str(link.options.get(key, 0)) for key in ("delay", "loss")]
        process = relay.popen(sys.executable, "-I", "-S", relay_program.__file__, "port0", "port1", *words, stdout=PIPE)
        assert process.stdout is not None
        if not process.stdout.readline():
            raise LabError(f"the relay of {link.element} ended by itself")
        return far_port

    def end(self, link: Link, number: int) -> End:
        name, own = link.end(number)
        return End(self.lab.hosts[name], own.name, own.v4, own.v6)

    def move(self, device: str, position: Position) -> None:
        """Take a device to another place."""
        self.positions[device] = position
        for cell in self.cells.values():
            cell.arrange(self.positions)


def in_namespaces(lab: Lab, file: SessionFile) -> Session:
    """Build a session from network namespaces, and start its daemons. Raises: SessionError."""
    build = _Build(lab, file)
    build.nodes()
    for link in file.links:
        build.lay(link)
    for cell in build.cells.values():
        cell.arrange(build.positions)
    lab.await_carriers()
    hosts = {name: lab.hosts[name] for name in file.devices}
    for name, device in file.devices.items():
        _start_services(hosts[name], device, first_network(file, name))
    daemons = {
        name: hosts[name].daemon(device.files["net.conf"], start=False)
        for name, device in file.devices.items()
        if "ngp" in device.services
    }
    start_all(*daemons.values())
    keys = {name: str(daemon.ask("status")["identity"]) for name, daemon in daemons.items()}
    return Session(hosts, daemons, keys, build.move)


def first_network(file: SessionFile, device: str) -> list[str]:
    """Return the first address of each network at a device's first interface: there CORE expects the router."""
    interfaces = [link.end(link.nodes.index(device))[1] for link in file.links if device in link.nodes]
    first = min(interfaces, key=lambda own: own.number, default=None)
    own = [ip_interface(text) for text in (first.v4, first.v6) if text] if first else []
    return [str(address.network[1]) for address in own]


def _start_services(host: Host, device: Device, routers: list[str]) -> None:
    for name, text in device.files.items():
        (host.folder / name).write_text(text)
    for service in device.services:
        if service == "DefaultRoute":
            for router in routers:
                host.ip("route", "add", "default", "via", router)
        elif service in SCRIPTS:
            host.sh("sh", "-e", str(host.folder / str(SERVICES[service])))
        elif command := ROUTING.get(service):
            with (host.folder / f"{service}.log").open("wb") as log:
                host.popen(*command, cwd=host.folder, stdout=log, stderr=log)
