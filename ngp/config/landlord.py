"""Landlord: completes the offers of net.conf from the LANDLORD_ keys, and finds what contradicts each other there.

With LANDLORD: no nothing is checked, so that an operator may prepare the keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ngp.config import keys
from ngp.config import landlord_keys as own
from ngp.config.document import Finding
from ngp.config.key import Key
from ngp.config.landlord_values import WrittenOffer
from ngp.config.modules import FACE
from ngp.config.written import Check, Written
from ngp.core.host_port import join_host_port
from ngp.core.messages import Prefix
from ngp.core.pricing import show_money
from ngp.core.rental.pools import FreeNetworks
from ngp.core.rental.terms import LettingSettings, Offer, Pool, Terms, TunnelSettings

_TERM_KEYS: dict[str, Key[Any]] = {
    "rent": own.RENT,
    "price": own.PRICE,
    "rate": own.RATE,
    "activation_fee": own.ACTIVATION_FEE,
    "initial_credit_min": own.INITIAL_CREDIT_MIN,
    "payment_min": own.PAYMENT_MIN,
    "credit_max": own.CREDIT_MAX,
    "reserved_time": own.RESERVED_TIME,
}
"""An offer's terms, by their names in LANDLORD_OFFERS, with the keys that hold where an offer leaves them out."""

_USUAL_BITS = {4: 32, 6: 64}
_LINK_UDP_PORT = 10325  # of the mesh link, `ngp.daemon.desired`


def letting_settings(written: Written) -> LettingSettings | None:
    """Return what net.conf says about letting, None with LANDLORD: no. Call it only if no check found anything."""
    if not written[own.LANDLORD]:
        return None
    pools = written[own.POOLS]
    return LettingSettings(
        pools=pools,
        offers=tuple(_complete(written, offer, pools) for offer in _offers(written)),
        invoice_s=written[own.INVOICE_TIME],
        invoices_max=written[own.INVOICES_MAX],
        terms=Terms(**_terms(lambda name: written[_TERM_KEYS[name]])),
        tunnel=TunnelSettings(
            interface=written[own.INTERFACE],
            port=written[own.PORT],
            outside=written[own.OUTSIDE] or "",
            routing=written[own.ROUTING],
            kind=written[own.TUNNEL],
            mtu=written[own.MTU],
        ),
        https=written[own.HTTPS],
        https_certificate=_file(written, own.HTTPS_CERT),
        https_key=_file(written, own.HTTPS_KEY),
        grpc=written[own.GRPC],
        mesh=written[own.MESH],
        hold=written[own.HOLD],
        endpoints=written[own.ENDPOINT],
        dns=written[own.DNS],
        keepalive_s=written[own.KEEPALIVE],
    )


def _file(written: Written, key: Key[str | None]) -> str:
    name = written[key]
    return "" if name is None else os.path.normpath(os.path.join(written.folder, name))


# --- offers -----------------------------------------------------------------------------------------------------------


def _offers(written: Written) -> Sequence[WrittenOffer]:
    return written[own.OFFERS] or (WrittenOffer("default", {}, None),)


def _term(written: Written, offer: WrittenOffer, name: str) -> Any:
    return offer.given[name] if name in offer.given else written[_TERM_KEYS[name]]


def _terms(of: Callable[[str], Any]) -> dict[str, Any]:
    """Return the fields of Terms. Args: of: returns a term by its name in LANDLORD_OFFERS."""
    return {key.fields[0].removeprefix("letting.terms."): of(name) for name, key in _TERM_KEYS.items()}


def _complete(written: Written, offer: WrittenOffer, pools: Sequence[Pool]) -> Offer:
    numbers = _numbers(offer, pools)
    return Offer(
        name=offer.name,
        ipv4_bits=_bits(offer, 4, pools, numbers),
        ipv6_bits=_bits(offer, 6, pools, numbers),
        pools=numbers,
        **_terms(lambda name: _term(written, offer, name)),
    )


def _numbers(offer: WrittenOffer, pools: Sequence[Pool]) -> tuple[int, ...]:
    """Return the numbers of the pools that an offer names; unknown ones are left out."""
    named: Sequence[Prefix] = offer.given.get("pools", ())
    return tuple(number for number, pool in enumerate(pools) if pool.prefix in named)


def _bits(offer: WrittenOffer, version: int, pools: Sequence[Pool], numbers: Sequence[int]) -> int | None:
    """Return an offer's prefix length for a family; None: it has no network of that family.

    A length that the offer leaves out is the usual one (/32, /64) if the offer's pools have the family, else None.
    """
    name = f"ipv{version}"
    if name in offer.given:
        found: int | None = offer.given[name]
        return found
    of_offer = [pools[number] for number in numbers] or pools
    return _USUAL_BITS[version] if any(pool.prefix.version == version for pool in of_offer) else None


# --- checks -----------------------------------------------------------------------------------------------------------


def _at(written: Written, offer: WrittenOffer, name: str, message: str) -> Finding:
    """Return a finding about an offer's term: in its entry, or at the key if there are no entries."""
    if offer.node is None:
        return written.finding(_TERM_KEYS[name], message)
    return written.finding(own.OFFERS, f"for {offer.name}: {name} {message}", offer.node)


def _pools(written: Written) -> Iterator[Finding]:
    if not written[own.POOLS]:
        right = "write the prefixes that are let, for example LANDLORD_POOLS: [203.0.113.0/29]"
        yield written.finding(own.LANDLORD, f"needs LANDLORD_POOLS: {right}")


def _outside(written: Written) -> Iterator[Finding]:
    if written[own.OUTSIDE] is None:
        right = "write the interface towards the internet, for example LANDLORD_OUTSIDE: eth0"
        yield written.finding(own.LANDLORD, f"needs LANDLORD_OUTSIDE: {right}")


def _least_credit(written: Written) -> Iterator[Finding]:
    for offer in _offers(written):
        most, least = _term(written, offer, "credit_max"), _term(written, offer, "initial_credit_min")
        if most < least:
            message = f"is less than the least first credit ({show_money(least)}), so nobody could rent: raise it"
            yield _at(written, offer, "credit_max", message)


def _two_payments(written: Written) -> Iterator[Finding]:
    for offer in _offers(written):
        most, least = _term(written, offer, "credit_max"), _term(written, offer, "payment_min")
        if most < 2 * least:
            message = f"is less than two payments (2 x {show_money(least)}), which tenants' programs refuse: raise it"
            yield _at(written, offer, "credit_max", message)


def _rents(written: Written) -> Iterator[Finding]:
    for number, offer in enumerate(_offers(written)):
        if _term(written, offer, "rent"):
            continue
        if not _term(written, offer, "price"):
            yield _at(written, offer, "rent", "is 0, and so is the price: write a rent, or a price per kilobyte")
        elif not number and written[own.HTTPS]:
            yield _at(written, offer, "rent", "is 0, but over LANDLORD_HTTPS the first offer needs a rent above 0")


def _sizes(written: Written) -> Iterator[Finding]:
    """Refuse offers that name unknown pools, have no network, or promise a network that no pool could ever give."""
    pools = written[own.POOLS]
    free = FreeNetworks(pools)
    for offer in _offers(written) if pools else ():  # `_pools` has said that there are none
        unknown = [prefix for prefix in offer.given.get("pools", ()) if all(pool.prefix != prefix for pool in pools)]
        if unknown:
            message = f"for {offer.name}: pools has {unknown[0]}, which isn't in LANDLORD_POOLS: write it as there"
            yield written.finding(own.OFFERS, message, offer.node)
            continue
        numbers = _numbers(offer, pools)
        sizes = {version: _bits(offer, version, pools, numbers) for version in (4, 6)}
        if not any(bits is not None for bits in sizes.values()):
            yield written.finding(own.OFFERS, f"for {offer.name} has no network: write ipv4 or ipv6", offer.node)
        for version, bits in sizes.items():
            if bits is not None and free.find(version, bits, numbers) is None:
                message = f"promises an IPv{version} /{bits}, which none of its pools has"
                remedy = f"write a longer prefix, ipv{version}: none, or a larger pool"
                yield written.finding(own.OFFERS, f"for {offer.name} {message}: {remedy}", offer.node)


def _endpoint(written: Written) -> Iterator[Finding]:
    endpoints, https = written[own.ENDPOINT], written[own.HTTPS]
    if endpoints and https and all(":" in host for host, _ in endpoints):
        message = "has IPv6 addresses only, which the client of LANDLORD_HTTPS can't use: add a name or an IPv4 address"
        yield written.finding(own.ENDPOINT, message)


def _certificate(written: Written) -> Iterator[Finding]:
    for key, other in ((own.HTTPS_CERT, own.HTTPS_KEY), (own.HTTPS_KEY, own.HTTPS_CERT)):
        if written[key] is not None and written[other] is None:
            yield written.finding(key, f"needs {other.name} too: write both, or none for both")


def _interfaces(written: Written) -> Iterator[Finding]:
    tunnel = written[own.INTERFACE]
    if tunnel == written[own.OUTSIDE]:
        yield written.finding(own.OUTSIDE, "is LANDLORD_INTERFACE: write the interface towards the internet")


def _tunnel_in_mesh(written: Written) -> Iterator[Finding]:
    if written[own.INTERFACE] in written[keys.MESH_INTERFACES]:
        message = "is in MESH_INTERFACES too, but tenants aren't neighbours: remove it there"
        yield written.finding(own.INTERFACE, message)


def _ports(written: Written) -> Iterator[Finding]:
    if written[own.PORT] == _LINK_UDP_PORT:
        yield written.finding(own.PORT, "is the port of ngp's own messages: write another, for example 51820")


def _has_face(key: Key[Any], name: str) -> Check:
    """Return the check of a face's key: its module must be installed."""

    def check(written: Written) -> Iterator[Finding]:
        if written[key] and name not in written.modules(FACE):
            yield written.finding(key, f"needs the module {name}, which isn't installed: write none")

    return check


def _one_port(written: Written) -> Iterator[Finding]:
    """Refuse one place for two faces: the kernel would give each of them some of the connections."""
    for host, port in written[own.GRPC]:
        if (host, port) in written[own.HTTPS]:
            message = f"has {join_host_port(host, port)}, where LANDLORD_HTTPS listens: write another port"
            yield written.finding(own.GRPC, message)


def _metered(written: Written) -> Iterator[Finding]:
    """Refuse a price per kilobyte in the offer that is sold over HTTPS: the published client isn't told of prices."""
    offer = _offers(written)[0]
    if written[own.HTTPS] and _term(written, offer, "price") and _term(written, offer, "rent"):
        message = "is above 0, but LANDLORD_HTTPS sells the first offer, by time alone: write 0, or put another first"
        yield _at(written, offer, "price", message)


_CHECKS: tuple[tuple[tuple[Key[Any], ...], Check], ...] = (
    ((own.POOLS,), _pools),
    ((own.OUTSIDE,), _outside),
    ((own.OFFERS, own.CREDIT_MAX, own.INITIAL_CREDIT_MIN), _least_credit),
    ((own.OFFERS, own.CREDIT_MAX, own.PAYMENT_MIN), _two_payments),
    ((own.OFFERS, own.RENT, own.PRICE, own.HTTPS), _rents),
    ((own.OFFERS, own.PRICE, own.HTTPS), _metered),
    ((own.POOLS, own.OFFERS), _sizes),
    ((own.ENDPOINT, own.HTTPS), _endpoint),
    ((own.HTTPS_CERT, own.HTTPS_KEY), _certificate),
    ((own.INTERFACE, own.OUTSIDE), _interfaces),
    ((own.INTERFACE, keys.MESH_INTERFACES), _tunnel_in_mesh),
    ((own.PORT,), _ports),
    ((own.HTTPS,), _has_face(own.HTTPS, "https")),
    ((own.GRPC,), _has_face(own.GRPC, "grpc")),
    ((own.GRPC, own.HTTPS), _one_port),
)


def _if_letting(check: Check) -> Check:
    return lambda written: check(written) if written[own.LANDLORD] else iter(())


CHECKS: tuple[tuple[tuple[Key[Any], ...], Check], ...] = tuple(
    ((own.LANDLORD, *needed), _if_letting(check)) for needed, check in _CHECKS
)
"""Checks across keys, for `ngp.config.checks`: each with the keys that it needs."""
