"""Configuration: WireGuard's settings as a landlord gives them, and the file that wg-quick reads.

wg-quick runs the commands in its file as root. So a landlord's words are never copied: addresses, name servers, MTU and
peers are read as what they must be and written anew, and everything else that a landlord sends is left out.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from typing import Any

from ngp.core.host_port import join_host_port
from ngp.core.messages import Address, Prefix
from ngp.core.tenant.answers import Answer, AnswerError

KEY_BYTES = 32
LEAST_MTU, MOST_MTU = 576, 9000
NAME_PORTS = 53, 853
"""Ports of name servers: DNS, and DNS over TLS."""
_MOST_ITEMS = 16
_DNS_LINE = re.compile(r"^(?:# )?DNS = ([0-9A-Fa-f:., ]*[0-9A-Fa-f:])(?: \(.*\))?$", re.MULTILINE)
_HOST = re.compile(r"(?=.{1,253}$)[0-9A-Za-z]([0-9A-Za-z-]*[0-9A-Za-z])?(\.[0-9A-Za-z]([0-9A-Za-z-]*[0-9A-Za-z])?)*\.?")


@dataclass(frozen=True, slots=True)
class TunnelEnd:
    """The landlord's end of the tunnel. Packets to its endpoint leave outside the tunnel, so only one end is allowed.

    Attributes:
        endpoint: `host:port`, an IPv6 address in brackets.
        keepalive_s: seconds between keepalive packets; 0: none are sent.
    """

    public_key: str
    preshared_key: str | None
    endpoint: str
    keepalive_s: int
    allowed: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class TunnelConfiguration:
    """All that is taken from a landlord's configuration. Attributes: mtu: in bytes; None: WireGuard chooses it."""

    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    dns: tuple[Address, ...]
    mtu: int | None
    ends: tuple[TunnelEnd, ...]


def read_configuration(answer: Answer) -> TunnelConfiguration:
    """Read a landlord's configuration; commands and unknown keys in it are left out. Raises: AnswerError."""
    addresses = tuple(_read(ip_interface, "addresses", one) for one in _list(answer, "addresses", least=1))
    for one in addresses:
        if one.ip.is_loopback or one.ip.is_multicast or one.ip.is_unspecified or not one.network.prefixlen:
            raise _wrong("addresses", str(one), "an address that can be let")
    mtu = answer.get("mtu")
    return TunnelConfiguration(
        addresses=tuple(ip_interface(one.ip) for one in addresses),  # a wider network would be routed into the tunnel
        dns=tuple(_read(ip_address, "dns", one) for one in _list(answer, "dns")),
        mtu=None if mtu is None else _number("mtu", mtu, LEAST_MTU, MOST_MTU),
        ends=tuple(_end(one) for one in _list(answer, "peers", least=1, most=1)),
    )


def _end(peer: object) -> TunnelEnd:
    if not isinstance(peer, dict):
        raise _wrong("peers", peer, "a list of objects")
    preshared, keepalive = peer.get("preshared_key"), peer.get("persistent_keepalive")
    return TunnelEnd(
        public_key=_key("public_key", peer.get("public_key")),
        preshared_key=None if preshared is None else _key("preshared_key", preshared, is_secret=True),
        endpoint=_endpoint(peer),
        keepalive_s=0 if keepalive is None else _number("persistent_keepalive", keepalive, 0, 65535),
        allowed=tuple(_read(ip_network, "allowed_ips", one) for one in _list(peer, "allowed_ips", least=1)),
    )


def _endpoint(peer: Answer) -> str:
    host, port = peer.get("endpoint_host"), peer.get("endpoint_port")
    written = peer.get("endpoint")
    if written is not None and host is None:
        host, _, port = written.rpartition(":") if isinstance(written, str) else ("", "", "")
        port = int(port) if re.fullmatch(r"[0-9]{1,5}", port) else port
    port_number = _number("endpoint_port", port, 1, 65535)
    if port_number in NAME_PORTS:
        raise _wrong("endpoint_port", port, "a tunnel's: packets to it may leave beside the tunnel, names mustn't")
    bare = host[1:-1] if isinstance(host, str) and host.startswith("[") and host.endswith("]") else host
    if not isinstance(bare, str) or "%" in bare:  # Python takes any text, even lines, for an IPv6 address's zone
        raise _wrong("endpoint_host", host, "a host")
    try:
        return join_host_port(str(ip_address(bare)), port_number)
    except ValueError:
        if _HOST.fullmatch(bare) is None:
            raise _wrong("endpoint_host", host, "an address or a name") from None
    return join_host_port(bare, port_number)


def _key(name: str, value: object, is_secret: bool = False) -> str:
    try:
        if isinstance(value, str) and len(key := base64.b64decode(value, validate=True)) == KEY_BYTES:
            return base64.b64encode(key).decode()
    except (binascii.Error, ValueError):
        pass
    raise _wrong(name, "(not shown)" if is_secret else value, "a WireGuard key")


def _list(answer: Answer, key: str, least: int = 0, most: int = _MOST_ITEMS) -> Sequence[Any]:
    found = answer.get(key)
    found = [] if found is None else found
    if not isinstance(found, list) or not least <= len(found) <= most:
        raise _wrong(key, found, f"a list of {least} to {most}")
    return found


def _read(read: Any, key: str, value: object) -> Any:
    try:
        if isinstance(value, str) and "%" not in value:
            return read(value)
    except ValueError:
        pass
    raise _wrong(key, value, "an address or a prefix")


def _number(key: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(key, value, f"a whole number from {least} to {most}")
    return value


def _wrong(key: str, value: object, right: str) -> AnswerError:
    return AnswerError(f"the landlord's configuration has {key}: {repr(value)[:60]}, which isn't {right}")


def wg_quick_text(
    configuration: TunnelConfiguration, private_key: str, uses_dns: bool, more: Sequence[str] = ()
) -> str:
    """Write the file for wg-quick. It has the private key, so it must be kept secret.

    Args:
        uses_dns: all traffic of this machine goes through this tunnel, and resolvconf is installed, so that wg-quick
            can set name servers. If False, they are written as a comment: they would be asked for all of this machine's
            names.
        more: further lines of the section Interface, our own.
    """
    lines = ["[Interface]", f"PrivateKey = {private_key}", f"Address = {_joined(configuration.addresses)}"]
    if configuration.mtu is not None:
        lines.append(f"MTU = {configuration.mtu}")
    if configuration.dns:
        lines.append(_dns_line(_joined(configuration.dns), uses_dns))
    lines += more
    for end in configuration.ends:
        lines += ["", "[Peer]", f"PublicKey = {end.public_key}"]
        if end.preshared_key is not None:
            lines.append(f"PresharedKey = {end.preshared_key}")
        lines += [f"Endpoint = {end.endpoint}", f"AllowedIPs = {_joined(end.allowed)}"]
        if end.keepalive_s:
            lines.append(f"PersistentKeepalive = {end.keepalive_s}")
    return "\n".join(lines) + "\n"


def with_dns(text: str, uses_dns: bool) -> str:
    """Return the text of a file for wg-quick, with its name servers in use or as a comment (see `wg_quick_text`)."""
    return _DNS_LINE.sub(lambda found: _dns_line(found[1], uses_dns), text)


def _dns_line(servers: str, uses_dns: bool) -> str:
    return f"DNS = {servers}" if uses_dns else f"# DNS = {servers} (unused: see docs/staticwire.md)"


def _joined(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def interface_name(public_key: str) -> str:
    """Return the name of a tunnel's interface and file: as the published client has it, at most 15 characters."""
    return f"sw_{public_key.replace('+', '-').replace('/', '_')[:12]}"
