"""The backend of the CORE emulator (version 9): its daemon builds the session from the same file, by its gRPC API.

The nodes are CORE's own, and so are their services: ngp runs as the service of core_tests/core_services. A node's
network is attached to a name, so that everything that the laboratory does in a host works there too. CORE's packages
for Python aren't needed: the three calls are small, and their messages are written and read here.
"""

from __future__ import annotations

import struct
from pathlib import Path
from xml.etree import ElementTree

import grpc

from core_tests.daemon import Daemon
from core_tests.host import QUIET, Host
from core_tests.lab import OFFLOADS_OFF, Lab
from core_tests.session import MissingError, Position, Session
from core_tests.session_xml import SessionFile
from core_tests.shell import ROOT, LabError, await_until, sh
from ngp.errors import RunningError

ADDRESS = "localhost:50051"  # grpcaddress and grpcport of core.conf
TIMEOUT_S = 300.0
SERVICES = ROOT / "core_tests" / "core_services"
REMEDY = (
    "Install CORE 9 (coreemu.github.io/core/install.html), name the folder of ngp's service in "
    f"/opt/core/etc/core.conf (custom_services_dir = {SERVICES}), see that `ngp` is in the PATH of core-daemon, and "
    "start that as root; or leave out --backend core"
)
UNKNOWN_SERVICE = "service does not exist"  # what CORE says when core.conf doesn't name the folder
# CORE's bridges are in the network of the machine, which answers ARP on any interface for all its addresses. One that a
# node has too would be taken for the node's, so it answers there for the bridge's own alone, before any service starts.
INSTANTIATION = "3"  # CORE's state when all networks stand, and no service yet
HOOK = """
for bridge in /proc/sys/net/ipv4/conf/[bp].*."$SESSION_SHORT"; do
  echo 1 >"$bridge/arp_ignore"
done
"""
VARINT, BYTES, FLOAT = 0, 2, 5  # wire types of protobuf


class CoreHost(Host):
    """A node of CORE: `vnoded` has made its namespaces, and `folder` is its folder."""

    def set_up(self) -> None:
        """Give the node's network a name for iproute2, and the settings that other hosts of a laboratory have."""
        self.pid = int(self.folder.with_suffix(".pid").read_text())
        sh("ip", "netns", "attach", self.namespace, str(self.pid))
        self.sysctl(QUIET)

    def may_send(self) -> bool:
        """Say whether all addresses are known to be the node's own; before, its sockets would send from ::1."""
        return not self.ip("-6", "address", "show", "tentative")

    def clean_up(self) -> None:
        """End what the laboratory started here, and forget the name; CORE ends the node."""
        self.end_own()
        sh("ip", "netns", "del", self.namespace)

    def adopt_daemon(self) -> Daemon:
        """Return the daemon that CORE has started here as a service."""

        def inside(*command: str) -> list[str]:
            """Enter all namespaces of the node: a daemon that is started anew needs its mounts and its /proc."""
            return ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--uts", *command]

        daemon = Daemon(self.name, self.namespace, self.folder, self.pids, inside, None)
        self.daemons.append(daemon)
        return daemon


def in_core(lab: Lab, file: SessionFile) -> Session:
    """Let CORE build a session and start its services. Raises: MissingError when there is no CORE, or no ngp in it."""
    channel = grpc.insecure_channel(ADDRESS)
    lab.on_exit(channel.close)
    request = _bytes(1, _hooked(file)) + _number(2, 1) + _bytes(3, str(file.path).encode())
    session = _read_numbers(_call(channel, "OpenXml", request))[2]
    lab.on_exit(lambda: _call(channel, "DeleteSession", _number(1, session)))
    place = Path(f"/tmp/pycore.{session}")
    hosts: dict[str, CoreHost] = {}
    for name in file.devices:
        host = hosts[name] = CoreHost(name, f"{lab.prefix}-{name}", place / f"{name}.conf")
        lab.hosts[name] = host
        host.set_up()
        lab.on_exit(host.clean_up)
    for link in file.links:
        for name, own in zip(link.nodes, link.interfaces, strict=True):
            if own is not None:
                hosts[name].addresses[own.name] = [text for text in (own.v4, own.v6) if text]
                hosts[name].offloads(own.name, **OFFLOADS_OFF)
                hosts[name].sysctl({f"net.ipv6.conf.{own.name}.accept_dad": "0"})  # QUIET came after the interface
    for host in hosts.values():
        await_until(host.may_send, what=f"the addresses of {host.name} can be used")
    daemons = {name: hosts[name].adopt_daemon() for name, device in file.devices.items() if "ngp" in device.services}
    keys = {name: _key(daemon) for name, daemon in daemons.items()}

    def move(device: str, position: Position) -> None:
        x, y = (_tagged(number, FLOAT) + struct.pack("<f", at) for number, at in enumerate(position, 1))
        request = _number(1, session) + _number(2, file.devices[device].number) + _bytes(4, x + y)
        _call(channel, "MoveNode", request)

    return Session(hosts, daemons, keys, move)


def _hooked(file: SessionFile) -> bytes:
    """Return a session's file with our hook."""
    root = ElementTree.parse(file.path).getroot()
    hooks = ElementTree.Element("session_hooks")
    ElementTree.SubElement(hooks, "hook", name="own_addresses.sh", state=INSTANTIATION).text = HOOK
    root.insert(0, hooks)  # CORE reads the first element of a name
    return ElementTree.tostring(root)


def _key(daemon: Daemon) -> str:
    """Return the public key of a daemon that CORE started a moment ago. Raises: LabError when none answers."""

    def answer() -> str:
        try:
            return str(daemon.ask("status")["identity"])
        except RunningError:
            return ""

    return await_until(answer, what=f"the service ngp on {daemon.name} runs; the log of core-daemon says why not")


def _call(channel: grpc.Channel, method: str, request: bytes) -> bytes:
    """Call a method of CORE's API; messages are bytes.

    Raises: MissingError when nobody answers or CORE has no ngp; LabError for what else CORE says.
    """
    ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
        f"/core.CoreApi/{method}", request_serializer=bytes, response_deserializer=bytes
    )
    try:
        return ask(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        said = f"CORE at {ADDRESS}, {method}: {error.code().name}: {error.details()}"
        if error.code() is grpc.StatusCode.UNAVAILABLE or UNKNOWN_SERVICE in str(error.details()):
            raise MissingError(f"{said}\n{REMEDY}") from None
        raise LabError(said) from None


# --- protobuf, as far as these calls need it (protobuf.dev/programming-guides/encoding)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _tagged(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _number(number: int, value: int) -> bytes:
    return _tagged(number, VARINT) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _tagged(number, BYTES) + _varint(len(value)) + value


def _read_numbers(message: bytes) -> dict[int, int]:
    """Read a message whose fields are all numbers. Raises: ValueError for others."""
    fields, at = {}, 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        if tag & 7 != VARINT:
            raise ValueError(f"not numbers alone: {message.hex()}")
        fields[tag >> 3], at = _read_varint(message, at)
    return fields


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
