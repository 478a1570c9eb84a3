"""Values: parsers for each kind of setting. Every refusal says what would be right.

Names that YAML and people read differently are refused. For example, an interface `no` is a boolean in YAML, so it must
be in quotes; otherwise ngp might gate an interface that the operator didn't mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeVar

from ngp.config.document import Entries, Finding, Items, Node, Refused, Scalar, each, refuse
from ngp.config.units import whole_number
from ngp.errors import ConfigError
from ngp.module_keys import KeyText, one_word

T = TypeVar("T")

ALL_INTERFACES = "all"
MOST_NAME_BYTES = 15  # IFNAMSIZ - 1, linux/if.h
_MOST_PATTERN_CHARACTERS = 64
_MOST_INTERFACES = 256
_NOT_IN_NAMES = frozenset("/:\"'\\`")  # the kernel refuses the first two (dev_valid_name), we the others
MOST_TABLE = (1 << 32) - 1
_KERNELS_TABLES = range(253, 256)


def quantity(parse: Callable[[str], T]) -> Callable[[Node], T]:
    """Turn a parser of texts (`ngp.config.units`) into a parser of nodes."""

    def parse_node(node: Node) -> T:
        text = scalar(node, "one value").text
        try:
            return parse(text)
        except ConfigError as error:
            raise refuse(node, str(error)) from error

    return parse_node


def between(parse: Callable[[Node], int], least: int, most: int, right: str) -> Callable[[Node], int]:
    """Return a parser that refuses numbers out of their bounds. Args: right: what to write, for the error."""

    def parse_node(node: Node) -> int:
        value = parse(node)
        if not least <= value <= most:
            raise refuse(node, f"is out of range: write {right}")
        return value

    return parse_node


def whole(least: int, most: int) -> Callable[[Node], int]:
    """Return a parser of whole numbers without a unit."""
    return quantity(lambda text: whole_number(text, least, most))


def route_table(node: Node) -> int:
    """Read the number of a routing table; not one of the kernel's own: default, main, local."""
    number = whole(1, MOST_TABLE)(node)
    if number in _KERNELS_TABLES:
        raise refuse(node, "is a table of the kernel's own (default, main, local): write another number, like 10325")
    return number


def or_word(word: str, parse: Callable[[Node], T]) -> Callable[[Node], T | None]:
    """Return a parser that reads one word (`none`, `auto`, ...) as None, and all other values with `parse`."""

    def parse_node(node: Node) -> T | None:
        if isinstance(node, Scalar) and node.text == word:
            return None
        return parse(node)

    return parse_node


def or_none(parse: Callable[[Node], tuple[T, ...]]) -> Callable[[Node], tuple[T, ...]]:
    """Return a parser of lists that reads `none` as the empty list."""

    def parse_node(node: Node) -> tuple[T, ...]:
        if isinstance(node, Scalar) and node.text == "none":
            return ()
        return parse(node)

    return parse_node


def yes_or_no(node: Node) -> bool:
    """Read `yes` or `no`, or YAML's other words for them. Raises Refused."""
    text = scalar(node, "yes or no").text.lower()
    if text in ("yes", "true", "on"):
        return True
    if text in ("no", "false", "off"):
        return False
    raise refuse(node, "is not yes or no: write yes or no")


def one_of(*words: str) -> Callable[[Node], str]:
    """Return a parser that accepts only these words."""

    def parse_node(node: Node) -> str:
        text = scalar(node, " or ".join(words)).text
        if text not in words:
            raise refuse(node, f"is not possible here: write {' or '.join(words)}")
        return text

    return parse_node


def module(numbers: Mapping[str, str]) -> Callable[[Node], str]:
    """Return a parser of module names that also accepts their numbers in older files."""
    known = ", ".join(f"{name} (or {number})" for number, name in numbers.items())

    def parse_node(node: Node) -> str:
        text = scalar(node, "the name of a module").text
        if text in numbers:
            return numbers[text]
        if re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", text, re.ASCII) is None:
            raise refuse(node, f"is not the name of a module: write one of {known}")
        return text

    return parse_node


def module_list(parse_one: Callable[[Node], str]) -> Callable[[Node], tuple[str, ...]]:
    """Return a parser of one module or a list of several."""

    def parse_node(node: Node) -> tuple[str, ...]:
        return one_or_list(node, parse_one)

    return parse_node


def mesh_interfaces(node: Node) -> tuple[str, ...]:
    """Read interface names or patterns, one or a list, or `all`. Raises Refused."""
    names = _interfaces(node)
    if "lo" in names:
        raise refuse(node, "has the loopback lo, which has no neighbours: write the interfaces that lead to neighbours")
    return names


def _interfaces(node: Node) -> tuple[str, ...]:
    names = one_or_list(node, _interface_or_pattern)
    if len(names) > _MOST_INTERFACES:
        raise refuse(node, f"has more than {_MOST_INTERFACES} entries: use patterns, for example 'wg*'")
    if ALL_INTERFACES in names and len(names) > 1:
        raise refuse(node, f"has `{ALL_INTERFACES}` beside other names: write {ALL_INTERFACES} alone, or only names")
    return names


def ignored_interfaces(node: Node) -> tuple[str, ...]:
    """Read interface names or patterns, one or a list, without `all`. Raises Refused."""
    names = _interfaces(node)
    if ALL_INTERFACES in names:
        raise refuse(node, "can't be `all`, nothing would be left: write the names of the upstream or LAN interfaces")
    return names


def lan_interfaces(node: Node) -> tuple[str, ...]:
    """Read interface names or patterns, one or a list, without `all`. Raises Refused."""
    names = _interfaces(node)
    if ALL_INTERFACES in names:
        raise refuse(node, "can't be `all`, the upstream isn't ours: write the names of the LAN interfaces, or auto")
    return names


def is_pattern(name: str) -> bool:
    """Say whether an interface entry is a shell pattern (fnmatch) rather than a name."""
    return any(character in name for character in "*?[")


def interface(node: Node) -> str:
    """Read the name of one interface. Raises Refused."""
    name = _interface_or_pattern(node)
    if is_pattern(name) or name == ALL_INTERFACES:
        raise refuse(node, "is a pattern: write the name of one interface")
    return name


def _interface_or_pattern(node: Node) -> str:
    written = scalar(node, "the name of an interface")
    text = written.text
    if written.kind != "str":
        raise refuse(node, f"is read by YAML as {written.kind}: to make it a name, write '{text[:15]}'")
    if "," in text or " " in text:
        raise refuse(node, "is not one interface: write a list, [eth0, eth1]")
    if re.fullmatch(r"[!-~]+", text) is None or set(text) & _NOT_IN_NAMES or text in (".", "..", "none"):
        raise refuse(node, "is not the name of an interface: write for example eth0 (`ip link` lists them)")
    if "@" in text:
        raise refuse(node, f"is a name with its peer, as shown by `ip link`: write {text.partition('@')[0]}")
    if is_pattern(text):
        if len(text) > _MOST_PATTERN_CHARACTERS:
            raise refuse(node, f"is longer than {_MOST_PATTERN_CHARACTERS} characters: write a shorter pattern")
    elif len(text) > MOST_NAME_BYTES:
        raise refuse(node, f"is longer than {MOST_NAME_BYTES} characters: no interface of Linux has such a name")
    return text


def neighbour_addresses(node: Node) -> tuple[str, ...]:
    """Read addresses of neighbours' daemons, one or a list: IPv4, IPv6 (fe80::1%eth0) or MAC. Raises Refused."""
    return one_or_list(node, _neighbour_address)


def is_mac(address: str) -> bool:
    """Say whether an address is a MAC."""
    return re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", address, re.ASCII | re.IGNORECASE) is not None


def _neighbour_address(node: Node) -> str:
    text = scalar(node, "an address").text
    if is_mac(text):
        if int(text[:2], 16) & 1 or not text.strip("0:"):
            raise refuse(node, "is not the MAC of one host: write the neighbour's own MAC")
        return text.lower()
    address = _address(node, text)
    if address.is_multicast or address.is_unspecified or text == "255.255.255.255":
        raise refuse(node, "is not the address of one host: write the neighbour's, or none to find neighbours")
    scope = address.scope_id if isinstance(address, IPv6Address) else None
    if isinstance(address, IPv6Address) and address.is_link_local and not scope:
        raise refuse(node, f"needs its interface: write {address}%eth0 with the interface that leads there")
    if scope and (len(scope) > MOST_NAME_BYTES or re.fullmatch(r"[!-~]+", scope) is None):
        raise refuse(node, "names an impossible interface after %: write for example fe80::1%eth0")
    return str(address)


def _address(node: Node, text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError as error:
        raise refuse(
            node,
            "is not an address: write for example 192.0.2.1 or fe80::1%eth0 (no port), or none to find neighbours",
        ) from error


def node_account(node: Node) -> str:
    """Read ACCOUNT_ID; a Lightning node's public key is put into lower case, as nodes show it. Raises Refused."""
    written = scalar(node, "an account")
    try:
        text = one_word(KeyText(written.text, written.kind not in ("bool", "null")))
    except ConfigError as error:
        raise refuse(node, str(error)) from error
    return text.lower() if re.fullmatch(r"0[23][0-9A-Fa-f]{64}", text) else text


def directory(node: Node) -> str:
    """Read a path, relative or absolute; the loader resolves it. Raises Refused."""
    written = scalar(node, "a directory")
    if written.kind != "str" or not written.text.isprintable() or written.text.strip() != written.text:
        raise refuse(node, "is not a directory's name: write for example /var/lib/ngp, in quotes if it looks odd")
    if written.text.startswith("~"):
        raise refuse(node, "begins with ~, which only a shell knows: write the whole path")
    if not written.text.strip("/.") or len(written.text.encode()) > 1024:
        raise refuse(node, "can't be ngp's own directory: write another one, for example /var/lib/ngp")
    return written.text


# --- shapes -----------------------------------------------------------------------------------------------------------


def scalar(node: Node, noun: str) -> Scalar:
    """Return a node as a single value that isn't empty. Raises Refused."""
    if not isinstance(node, Scalar):
        raise refuse(node, f"is not a single value: write {noun}")
    if node.kind == "null" or not node.text:
        raise refuse(node, "has no value: write one after the colon, or remove the line")
    return node


def one_or_list(node: Node, parse: Callable[[Node], T]) -> tuple[T, ...]:
    """Read one value, or a list of different ones. Raises Refused."""
    if not isinstance(node, Items):
        return (parse(node),)
    if not node.items:
        raise refuse(node, "is empty: write at least one, or remove the line")
    values = each(node.items, parse)
    seen: set[T] = set()
    for value, item in zip(values, node.items, strict=True):
        if value in seen:
            raise refuse(item, "is in the list twice: remove one")
        seen.add(value)
    return values


def fields_of(node: Entries, parsers: Mapping[str, Callable[[Node], object]], has_names: bool = True) -> dict[str, Any]:
    """Read an inner mapping. Refuses unknown and repeated names, and reports all bad values together.

    Args: has_names: the names are in the file, so that errors should have them too.
    """
    fields: dict[str, Any] = {}
    findings: list[Finding] = []
    for name, value in node.pairs:
        try:
            if name.text not in parsers:
                is_decimals = "; decimals take a point (1.5), not a comma" if name.text[:1].isdigit() else ""
                raise refuse(name, f"is not possible here: known are {', '.join(parsers)}{is_decimals}")
            if name.text in fields:
                raise refuse(name, "is given twice: remove one")
            fields[name.text] = _field(name.text if has_names else "", parsers[name.text], value)
        except Refused as refused:
            findings.extend(refused.findings)
    if findings:
        raise Refused(*findings)
    return fields


def _field(name: str, parse: Callable[[Node], object], value: Node) -> object:
    """Read one value of an inner mapping; an error has the value's name, unless that is ""."""
    try:
        return parse(value)
    except Refused as refused:
        before = f"{name}: " if name else ""
        raise Refused(*(replace(one, value=f"{before}{one.value}".strip()) for one in refused.findings)) from refused
