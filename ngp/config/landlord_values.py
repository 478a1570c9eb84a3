"""Landlord's values: parses the pools and offers of a landlord, and the addresses where tenants find it.

A prefix that is let twice, or that a router doesn't own, is somebody's outage. So pools may not overlap, and a prefix
with host bits is refused, as everywhere in net.conf.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any

from ngp.config import destinations
from ngp.config.document import Entries, Items, Node, each, refuse, refuse_unseen, show_text
from ngp.config.units import data_rate_bytes_s, money_msat, price_msat_per_gib, show_data, time_s, whole_number
from ngp.config.values import between, fields_of, one_or_list, or_word, quantity, scalar
from ngp.core.host_port import split_host_port
from ngp.core.messages import Prefix
from ngp.core.pricing import SAT_MSAT, show_money
from ngp.core.rental.terms import Pool
from ngp.errors import ConfigError
from ngp.module_keys import KeyText, file_path

LEAST_RATE_BYTES_S, MOST_RATE_BYTES_S = 1 << 10, 1 << 34
WIDEST_POOL_BITS: Mapping[int, int] = {4: 8, 6: 16}
_MOST_ENTRIES = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", re.ASCII)
_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*", re.ASCII)  # RFC 1035, 2.3.4


# --- LANDLORD_POOLS ---------------------------------------------------------------------------------------------------


def pools(node: Node) -> tuple[Pool, ...]:
    """Read LANDLORD_POOLS: a list of prefixes or {prefix, except}. Raises Refused."""
    nodes = _few(node.items if isinstance(node, Items) else (node,), node)
    found = each(nodes, _pool)
    for number, pool in enumerate(found):
        for other in found[:number]:
            if overlap(pool.prefix, other.prefix):
                raise refuse(
                    nodes[number], f"has {pool.prefix}, which overlaps {other.prefix}: an address is in one pool only"
                )
    return found


def overlap(one: Prefix, other: Prefix) -> bool:
    """Say whether two prefixes have an address in common."""
    return one.version == other.version and one.overlaps(other)


def _few(nodes: tuple[Node, ...], of: Node) -> tuple[Node, ...]:
    if not nodes:
        raise refuse(of, "is empty: write at least one, or none")
    if len(nodes) > _MOST_ENTRIES:
        raise refuse(of, f"has more than {_MOST_ENTRIES} entries: join some")
    return nodes


def _pool(node: Node) -> Pool:
    if not isinstance(node, Entries):
        return Pool(_pool_prefix(node))
    fields = fields_of(node, {"prefix": _pool_prefix, "except": _excepts})
    if "prefix" not in fields:
        raise refuse(node, "has no prefix: write {prefix: 203.0.113.0/24, except: 203.0.113.0/30}")
    prefix: Prefix = fields["prefix"]
    for part in fields.get("except", ()):
        if part.version != prefix.version or not part.subnet_of(prefix):
            raise refuse(node, f"has except {part}, which isn't inside {prefix}: name parts of the pool only")
        if part == prefix:
            raise refuse(node, f"has except {part}, which leaves nothing of the pool: remove the pool")
    return Pool(prefix, fields.get("except", ()))


def _excepts(node: Node) -> tuple[Prefix, ...]:
    return one_or_list(node, destinations.prefix)


def _pool_prefix(node: Node) -> Prefix:
    found = destinations.prefix(node)
    if not destinations.is_forwarded_to(found.network_address):
        raise refuse(node, "is a prefix that routers forward nothing to: write one that is routed to this host")
    widest = WIDEST_POOL_BITS[found.version]
    if found.prefixlen < widest:
        raise refuse(node, f"is wider than /{widest}: write the prefix that is routed to this host")
    return found


# --- LANDLORD_OFFERS --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WrittenOffer:
    """An entry of LANDLORD_OFFERS as written, before the LANDLORD_ keys complete it.

    Attributes:
        given: its values, by the names in the entry.
        node: gives the line for errors; None: the offer that there is when LANDLORD_OFFERS is none.
    """

    name: str
    given: Mapping[str, Any]
    node: Node | None


def offers(node: Node) -> tuple[WrittenOffer, ...]:
    """Read LANDLORD_OFFERS: a list of {name, ipv4, ipv6, pools, rent, ...}. Raises Refused."""
    if not isinstance(node, Items):
        raise refuse(node, "is not a list of offers: write a line `- {name: small, ipv6: 64, rent: 3000 sat}` for each")
    found = each(_few(node.items, node), _offer)
    seen: set[str] = set()
    for offer in found:
        if offer.name in seen:
            assert offer.node is not None
            raise refuse(offer.node, f"is a second offer {offer.name}: give each a name of its own")
        seen.add(offer.name)
    return found


def _offer(node: Node) -> WrittenOffer:
    if not isinstance(node, Entries):
        raise refuse(node, "is not an entry of LANDLORD_OFFERS: write {name: small, ipv6: 64, rent: 3000 sat}")
    fields = fields_of(node, _OFFER_PARSERS)
    if "name" not in fields:
        raise refuse(node, "has no name: add one, for example name: small")
    return WrittenOffer(fields.pop("name"), fields, node)


def _offer_name(node: Node) -> str:
    text = scalar(node, "a name").text
    if _NAME.fullmatch(text) is None:
        raise refuse(node, "is not a name for an offer: write up to 32 letters, digits, dots and dashes")
    return text


def _bits(version: int) -> Callable[[Node], int | None]:
    least, most = WIDEST_POOL_BITS[version], 32 if version == 4 else 128
    return or_word("none", quantity(lambda text: whole_number(text.removeprefix("/"), least, most)))


# --- terms ------------------------------------------------------------------------------------------------------------


def whole_sat(least_msat: int = 0) -> Callable[[Node], int]:
    """Return a parser of amounts in whole sat, which is what tenants are told and pay."""

    def parse_node(node: Node) -> int:
        amount_msat = quantity(money_msat)(node)
        if amount_msat % SAT_MSAT:
            below = amount_msat // SAT_MSAT
            raise refuse(node, f"is not a whole number of sat: write {below} sat or {below + 1} sat")
        if amount_msat < least_msat:
            raise refuse(node, f"is too little: write {show_money(least_msat)} or more")
        return amount_msat

    return parse_node


_time = quantity(time_s)
_rate = between(
    quantity(data_rate_bytes_s),
    LEAST_RATE_BYTES_S,
    MOST_RATE_BYTES_S,
    f"{show_data(LEAST_RATE_BYTES_S)}/s to {show_data(MOST_RATE_BYTES_S)}/s; none is no limit",
)

TERM_PARSERS: Mapping[str, Callable[[Node], Any]] = {
    "rent": quantity(money_msat),
    "price": quantity(price_msat_per_gib),
    "rate": or_word("none", _rate),
    "activation_fee": whole_sat(),
    "initial_credit_min": whole_sat(SAT_MSAT),
    "payment_min": whole_sat(SAT_MSAT),
    "credit_max": whole_sat(SAT_MSAT),
    "reserved_time": between(_time, 60, 1 << 40, "1 min or more"),
}
"""The parsers of an offer's terms, by name; each is the parser of the LANDLORD_ key with that name too."""

_OFFER_PARSERS: Mapping[str, Callable[[Node], object]] = {
    "name": _offer_name,
    "ipv4": _bits(4),
    "ipv6": _bits(6),
    "pools": _excepts,
    **TERM_PARSERS,
}


# --- where tenants find the landlord ----------------------------------------------------------------------------------


def listeners(node: Node) -> tuple[tuple[str, int], ...]:
    """Read `address:port`, one or a list, where this host listens. Raises Refused."""
    return one_or_list(node, _listener)


def _listener(node: Node) -> tuple[str, int]:
    text = scalar(node, "an address and a port").text
    host, port = split_host_port(text)
    try:
        address = ip_address(host)
        if (address.version == 6) != text.startswith("["):
            raise ValueError("an IPv6 address without brackets, or the opposite")
    except ValueError as error:
        raise refuse(node, "is not address:port: write for example 203.0.113.1:443 or '[::]:443'") from error
    return (str(address), _port(node, port))


def _port(node: Node, text: str) -> int:
    try:
        return whole_number(text, 1, 65535)
    except ConfigError as error:
        raise refuse(node, f"has the port {show_text(text)}, which {error}") from error


def endpoints(node: Node) -> tuple[tuple[str, int | None], ...]:
    """Read `host` or `host:port`, one or a list, where tenants reach the tunnel. Raises Refused."""
    found = one_or_list(node, _endpoint)
    if len(found) > _MOST_ENTRIES:
        raise refuse(node, f"has more than {_MOST_ENTRIES} entries: tenants need a few at most")
    return found


def _endpoint(node: Node) -> tuple[str, int | None]:
    text = scalar(node, "a host").text
    host, port_text = _split_endpoint(text)
    port = _port(node, port_text) if port_text else None
    try:
        address = ip_address(host)
    except ValueError:
        if _HOST_NAME.fullmatch(host) is None or host.replace(".", "").isdigit():
            example = "vpn.example.org, 203.0.113.1:51820 or '[2001:db8::1]'"
            raise refuse(node, f"is neither a host nor host:port: write for example {example}") from None
        return host, port
    if not destinations.is_forwarded_to(address) or (isinstance(address, IPv6Address) and address.scope_id):
        raise refuse(node, "is an address that tenants can't reach: write the one by which the internet knows you")
    return str(address), port


def _split_endpoint(text: str) -> tuple[str, str]:
    """Split `host`, `host:port`, `[IPv6]` or `[IPv6]:port` into host and port; the port may be empty."""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, port.removeprefix(":") if port != ":" else "?"
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port or "?"
    return text, ""


def name_servers(node: Node) -> tuple[str, ...]:
    """Read addresses of name servers, one or a list. Raises Refused."""
    return one_or_list(node, _name_server)


def _name_server(node: Node) -> str:
    text = scalar(node, "an address").text
    try:
        address = ip_address(text)
    except ValueError as error:
        raise refuse(node, "is not the address of a name server: write for example 192.0.2.53, or none") from error
    if isinstance(address, IPv6Address) and address.scope_id:
        raise refuse(node, "has an interface, which tenants don't have: write the address alone")
    return str(address)


def file(node: Node) -> str:
    """Read the path of a file; a relative one starts at net.conf's folder, which the loader adds. Raises Refused."""
    written = scalar(node, "a file")
    try:
        return file_path(KeyText(written.text, written.kind == "str", ""))
    except ConfigError as error:
        raise refuse(node, str(error)) from error


# --- LEDGER -----------------------------------------------------------------------------------------------------------


def ledger(node: Node) -> str:
    """Read the URL of a PostgreSQL server. It may hold a password, so it is never shown. Raises Refused."""
    text = scalar(node, "none, or a postgresql:// URL").text
    if re.fullmatch(r"postgres(ql)?://[!-~]{1,1000}", text, re.ASCII) is None:
        raise refuse_unseen(node, "is not a postgresql:// URL: write postgresql://USER@HOST/DATABASE, or none")
    return text
