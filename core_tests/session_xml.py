"""A session of the CORE emulator (coreemu.github.io/core, version 9) as data: its XML file, read and checked.

CORE takes what it knows of a file and passes over the rest, so a mistake there shows as a test that fails for no
visible reason. This reader refuses what it doesn't know, and names element and reason. What it knows is what the
scenarios need: devices with services, switches, wireless networks with a range, links with delay and loss.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import NoReturn, TypeVar
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from core_tests.shell import LabError
from ngp import config
from ngp.errors import ConfigError

Value = TypeVar("Value")

# The services that a device may have, with the file that each needs from the session (None: it needs none). The first
# four are CORE's own, the others are in core_tests/core_services.
SERVICES: Mapping[str, str | None] = {
    "IPForward": None,
    "DefaultRoute": None,
    "StaticRoute": "staticroute.sh",
    "NAT": "nat.sh",
    "babeld": "babeld.conf",
    "bird": "bird.conf",
    "ngp": "net.conf",
}
DEVICE_TYPES = ("router", "PC", "host", "mdr")
SWITCH, WIRELESS = "SWITCH", "WIRELESS_LAN"
OPTIONS = ("delay", "loss", "bandwidth", "jitter", "dup", "buffer", "burst", "mer", "mburst", "unidirectional", "key")
SKIPPED = {"session_origin", "session_options", "session_metadata", "default_services"}
READ = {"networks", "devices", "links", "service_configurations", "mobility_configurations"}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}")
INTERFACE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")  # IFNAMSIZ - 1
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
MAKO = re.compile(r"\$\{|<%|^\s*(%|##)", re.MULTILINE)  # CORE takes each file for a template of Mako
SHOWN = ("id", "name", "node", "node1", "node2")  # what tells one element from another


class SessionError(LabError):
    """A session that can't be built; the message has the file, the element and the reason."""


@dataclass(frozen=True, slots=True)
class Interface:
    """A device's end of a link. Attributes: number: CORE's, in the device; v4, v6: with their prefix length."""

    number: int
    name: str
    v4: str | None
    v6: str | None
    mac: str | None


@dataclass(frozen=True, slots=True)
class Device:
    """A node with a network of its own. Attributes: number: CORE's; files: text by name, of all its services."""

    number: int
    name: str
    services: tuple[str, ...]
    position: tuple[float, float]
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Medium:
    """A node that joins devices. Attributes: range: up to which distance on the canvas they hear each other, if any."""

    name: str
    range: float | None


@dataclass(frozen=True, slots=True)
class Link:
    """A link of two nodes, by name. Attributes: options: CORE's, those that aren't 0; delay in us, loss in percent."""

    element: str
    nodes: tuple[str, str]
    interfaces: tuple[Interface | None, Interface | None]
    options: Mapping[str, float]

    def end(self, number: int) -> tuple[str, Interface]:
        """Return a device's name and its interface. Args: number: 0 or 1, an end that is at a device."""
        interface = self.interfaces[number]
        assert interface is not None
        return self.nodes[number], interface


@dataclass(frozen=True, slots=True)
class SessionFile:
    """All that a session file says."""

    path: Path
    devices: Mapping[str, Device]
    media: Mapping[str, Medium]
    links: tuple[Link, ...]


def read(path: Path) -> SessionFile:
    """Read a session file. Raises: SessionError for anything that can't be built."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise SessionError(f"{path.name}: no XML that can be read: {error}") from None
    return _Reader(path, root).session()


def shown(element: Element) -> str:
    """Return an element's beginning, as far as it tells the element from others."""
    words = [f'{key}="{element.get(key)}"' for key in SHOWN if element.get(key) is not None]
    return f"<{' '.join([element.tag, *words])}>"


class _Reader:
    """One reading: what the elements before have defined."""

    def __init__(self, path: Path, root: Element) -> None:
        self.path = path
        self.root = root
        self.names: dict[int, str] = {}  # of nodes, by CORE's number
        self.devices: dict[str, Device] = {}
        self.media: dict[str, Medium] = {}
        self.taken: dict[str, str] = {}  # addresses; interfaces and their numbers, behind the device's name

    def refuse(self, element: Element, reason: str) -> NoReturn:
        raise SessionError(f"{self.path.name}: {shown(element)}: {reason}")

    def session(self) -> SessionFile:
        if self.root.tag != "scenario":
            self.refuse(self.root, "a session of CORE begins with <scenario>")
        for part in self.root:
            if part.tag not in READ | SKIPPED and len(part):
                self.refuse(part, f"no backend builds this; there are {', '.join(sorted(READ))}")
        for element in self.root.iterfind("devices/*"):
            self.device(element)
        for element in self.root.iterfind("networks/*"):
            self.medium(element)
        for element in self.root.iterfind("mobility_configurations/*"):
            self.mobility(element)
        links = tuple(self.link(element) for element in self.root.iterfind("links/*"))
        for element in self.root.iterfind("service_configurations/*"):
            self.service_files(element)
        for device in self.devices.values():
            self.check_files(device)
        return SessionFile(self.path, self.devices, self.media, links)

    # --- values of attributes

    def value(
        self, element: Element, key: str, kind: Callable[[str], Value], what: str, of: Element | None = None
    ) -> Value:
        """Return an attribute as a value. Args: what: it must be; of: the element that an error names instead."""
        inside = "" if of is None else f"<{element.tag}> "
        named = element if of is None else of
        text = element.get(key)
        if text is None:
            self.refuse(named, f"{inside}{key} is missing: {what}")
        try:
            return kind(text)
        except ValueError:
            self.refuse(named, f'{inside}{key}="{text}": not {what}')

    def named(self, element: Element) -> str:
        """Take a node's number and name, both of which are its own."""
        number = self.value(element, "id", int, "a whole number")
        name = self.value(element, "name", str, "a name")
        if not NAME.fullmatch(name):
            self.refuse(element, f'name="{name}": letters, digits, _ and -, up to 31, a letter first')
        for other, used in self.names.items():
            if number == other or name == used:
                self.refuse(element, f"{used} has this id or this name already")
        self.names[number] = name
        return name

    def node(self, element: Element, key: str) -> str:
        number = self.value(element, key, int, "the id of a node")
        if number not in self.names:
            self.refuse(element, f"there is no node {number}; there are {', '.join(map(str, sorted(self.names)))}")
        return self.names[number]

    def position(self, element: Element) -> tuple[float, float]:
        place = element.find("position")
        if place is None:
            return 0.0, 0.0
        x, y = (self.value(place, key, float, "a number of pixels", element) for key in ("x", "y"))
        return x, y

    # --- nodes

    def device(self, element: Element) -> None:
        name = self.named(element)
        kind = element.get("type")
        if element.tag != "device" or element.get("class") or kind not in DEVICE_TYPES:
            said = f'class "{element.get("class")}"' if element.get("class") else f'type "{kind}"'
            self.refuse(element, f"{said} is unknown here; a device has no class, and is a {', '.join(DEVICE_TYPES)}")
        services = tuple(self.value(each, "name", str, "a service", element) for each in element.iterfind("services/*"))
        if not services:
            self.refuse(element, "no <services>: CORE would start those of its type, such as OSPF, that ngp lacks here")
        for service in services:
            if service not in SERVICES:
                self.refuse(element, f"service {service} is unknown here; there are {', '.join(SERVICES)}")
        number = int(element.attrib["id"])
        self.devices[name] = Device(number, name, services, self.position(element), {})

    def medium(self, element: Element) -> None:
        name, kind = self.named(element), element.get("type")
        if element.tag != "network" or kind not in (SWITCH, WIRELESS):
            self.refuse(element, f'type "{kind}" is unknown here; there are {SWITCH}, {WIRELESS}')
        self.media[name] = Medium(name, 0.0 if kind == WIRELESS else None)

    def mobility(self, element: Element) -> None:
        name, model = self.node(element, "node"), element.get("model")
        medium = self.media.get(name)
        if medium is None or medium.range is None or model != "basic_range":
            self.refuse(element, f'model "{model}" of {name}: only basic_range, of a network of type {WIRELESS}')
        for setting in element:
            if setting.get("name") == "range":
                self.media[name] = Medium(name, self.value(setting, "value", float, "a range in pixels", element))

    # --- links

    def link(self, element: Element) -> Link:
        one, two = self.node(element, "node1"), self.node(element, "node2")
        if one == two:
            self.refuse(element, f"both ends are at {one}")
        if one in self.media and two in self.media:
            self.refuse(element, f"{one} and {two} are both networks; one end is at a device")
        ends = [self.interface(element, tag, name) for tag, name in (("iface1", one), ("iface2", two))]
        options = element.find("options")
        return Link(
            shown(element), (one, two), (ends[0], ends[1]), {} if options is None else self.options(element, options)
        )

    def interface(self, link: Element, tag: str, node: str) -> Interface | None:
        element = link.find(tag)
        if node in self.media:
            return None
        if element is None:
            self.refuse(link, f"<{tag}> is missing, the interface of {node}")
        name = self.value(element, "name", str, "a name of an interface", link)
        if not INTERFACE_NAME.fullmatch(name) or name == "lo":
            self.refuse(link, f'<{tag} name="{name}">: no name of an interface: up to 15 letters, digits, _ . and -')
        mac = element.get("mac")
        if mac is not None and not MAC.fullmatch(mac):
            self.refuse(link, f'<{tag} mac="{mac}">: not six bytes in hexadecimal')
        number = self.value(element, "id", int, "a whole number", link)
        found = Interface(
            number,
            name,
            self.address(link, element, "ip4", IPv4Interface),
            self.address(link, element, "ip6", IPv6Interface),
            mac,
        )
        for text in (f"{node} {name}", f"{node} id {number}", found.v4, found.v6, mac):
            key = text and text.partition("/")[0].lower()
            if key and (other := self.taken.setdefault(key, f"{shown(link)} at {node}")) != f"{shown(link)} at {node}":
                self.refuse(link, f"<{tag}>: {key} is taken already, by {other}")
        return found

    def address(
        self, link: Element, element: Element, key: str, kind: type[IPv4Interface] | type[IPv6Interface]
    ) -> str | None:
        if element.get(key) is None:
            return None
        text = f"{element.get(key)}/{element.get(f'{key}_mask', '')}"
        try:
            return str(kind(text))
        except ValueError:
            self.refuse(link, f'<{element.tag} {key}="{element.get(key)}" {key}_mask=...>: {text} is no address')

    def options(self, link: Element, element: Element) -> dict[str, float]:
        found = {}
        for key in element.attrib:
            if key not in OPTIONS:
                self.refuse(link, f"<options {key}=...>: no option of CORE; there are {', '.join(OPTIONS)}")
            amount = self.value(element, key, float, "a number", link)
            if not 0 <= amount < float("inf") or (key == "loss" and amount > 100):
                self.refuse(link, f'<options {key}="{amount:g}">: out of range')
            if amount:
                found[key] = amount
        return found

    # --- files of services

    def service_files(self, element: Element) -> None:
        name, service = self.node(element, "node"), self.value(element, "name", str, "a service")
        if name not in self.devices or service not in self.devices[name].services:
            self.refuse(element, f"{name} has no service {service}")
        for configs in element.iterfind("configs/*"):
            self.refuse(element, f"<configs> of {service}: only <templates> are built, not {shown(configs)}")
        for template in element.iterfind("templates/*"):
            file = self.value(template, "name", str, "the name of a file", element)
            if file != SERVICES[service]:
                self.refuse(element, f"template {file}: the file of {service} is {SERVICES[service]}")
            text = inspect.cleandoc(template.text or "") + "\n"
            if strange := MAKO.search(text):
                self.refuse(element, f"template {file}: {strange[0].strip()!r} means something else to CORE (Mako)")
            if service == "ngp":
                self.check_net_conf(element, text)
            device = self.devices[name]
            self.devices[name] = replace(device, files={**device.files, file: text})

    def check_net_conf(self, element: Element, text: str) -> None:
        try:
            config.parse(text, Path(str(SERVICES["ngp"])))
        except ConfigError as error:
            self.refuse(element, f"template {error}")

    def check_files(self, device: Device) -> None:
        for service in device.services:
            if (file := SERVICES[service]) and file not in device.files:
                element = next(each for each in self.root.iterfind("devices/*") if each.get("name") == device.name)
                self.refuse(
                    element, f'service {service} has no {file}: a <template name="{file}"> in <service_configurations>'
                )
