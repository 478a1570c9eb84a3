"""Landlord's keys: the keys of net.conf by which a router lets addresses, and LEDGER, which several landlords share.

The LANDLORD_ keys mean nothing unless LANDLORD is yes. Those for terms (rent, fee, ...) hold for every offer that
doesn't say otherwise.
"""

from __future__ import annotations

from typing import Any

from ngp.config import landlord_values, values
from ngp.config.key import Key
from ngp.config.units import time_s

_TERMS = landlord_values.TERM_PARSERS
_time = values.quantity(time_s)
_MOST_KEEPALIVE_S = 65535  # WireGuard takes no more
LEAST_MTU, MOST_MTU = 1280, 9000  # IPv6 needs the first, jumbo frames have about the second
MOST_INVOICES = 100_000

LANDLORD = Key(
    "LANDLORD",
    "yes or no",
    values.yes_or_no,
    "no",
    "let addresses to tenants through a WireGuard tunnel; then MESH_INTERFACES may be missing",
    ("lets",),
)
POOLS = Key(
    "LANDLORD_POOLS",
    "list of prefix, or {prefix, except}",
    values.or_none(landlord_values.pools),
    "none",
    "prefixes that are let, but not the parts in `except`; a pool with rentals in it can't be removed",
    ("letting.pools",),
)
OFFERS = Key(
    "LANDLORD_OFFERS",
    "list of {name, ipv4, ipv6, pools, rent, price, rate, activation_fee, initial_credit_min, payment_min, "
    "credit_max, reserved_time}",
    values.or_none(landlord_values.offers),
    "none",
    "what tenants may choose from; the first is sold over HTTPS; none = one, `default`: a /32 and a /64 where pools "
    "have them",
    ("letting.offers",),
)
RENT = Key(
    "LANDLORD_RENT",
    "money",
    _TERMS["rent"],
    "24000 sat",
    "rent of a month; 0 only with LANDLORD_PRICE, and not over HTTPS",
    ("letting.terms.rent_msat",),
)
PRICE = Key(
    "LANDLORD_PRICE",
    "price",
    _TERMS["price"],
    "0",
    "per kilobyte, besides the rent; not over HTTPS",
    ("letting.terms.price_msat_per_gib",),
)
RATE = Key(
    "LANDLORD_RATE",
    "data a second, or none",
    _TERMS["rate"],
    "none",
    "most that a rental carries in each direction; none = no limit",
    ("letting.terms.rate_bytes_s",),
)
ACTIVATION_FEE = Key(
    "LANDLORD_ACTIVATION_FEE",
    "money",
    _TERMS["activation_fee"],
    "48000 sat",
    "paid once, with the first credit, and not refunded; whole sat",
    ("letting.terms.activation_fee_msat",),
)
INITIAL_CREDIT_MIN = Key(
    "LANDLORD_INITIAL_CREDIT_MIN",
    "money",
    _TERMS["initial_credit_min"],
    "1000 sat",
    "least first credit; whole sat",
    ("letting.terms.initial_credit_min_msat",),
)
PAYMENT_MIN = Key(
    "LANDLORD_PAYMENT_MIN",
    "money",
    _TERMS["payment_min"],
    "500 sat",
    "least later payment; whole sat",
    ("letting.terms.payment_min_msat",),
)
CREDIT_MAX = Key(
    "LANDLORD_CREDIT_MAX",
    "money",
    _TERMS["credit_max"],
    "72000 sat",
    "most credit of a rental; whole sat",
    ("letting.terms.credit_max_msat",),
)
RESERVED_TIME = Key(
    "LANDLORD_RESERVED_TIME",
    "time",
    _TERMS["reserved_time"],
    "2 months",
    "how long a tenant without credit keeps its addresses; service resumes when the back rent is paid, also in parts",
    ("letting.terms.reserved_s",),
)
INVOICE_TIME = Key(
    "LANDLORD_INVOICE_TIME",
    "time",
    values.between(_time, 60, 86_400, "1 min to 1 day"),
    "10 min",
    "how long an invoice can be paid; a new rental's addresses are kept for it until then",
    ("letting.invoice_s",),
)
INVOICES_MAX = Key(
    "LANDLORD_INVOICES_MAX",
    f"1 to {MOST_INVOICES}",
    values.whole(1, MOST_INVOICES),
    "100",
    "most rentals that wait for their first payment",
    ("letting.invoices_max",),
)
HOLD = Key(
    "LANDLORD_HOLD",
    "auto, yes or no",
    values.one_of("auto", "yes", "no"),
    "auto",
    "hold invoices: a first payment is taken only when the tunnel is ready; auto = yes if the payment node can do that",
    ("letting.hold",),
)
MESH = Key(
    "LANDLORD_MESH",
    "yes or no",
    values.yes_or_no,
    "yes",
    "neighbours may rent over the mesh link, if there are MESH_INTERFACES",
    ("letting.mesh",),
)
HTTPS = Key(
    "LANDLORD_HTTPS",
    "address:port, or a list",
    values.or_none(landlord_values.listeners),
    "none",
    "the published client's API; it shows status and configuration to whoever knows a tenant's public key",
    ("letting.https",),
)
HTTPS_CERT = Key(
    "LANDLORD_HTTPS_CERT",
    "file",
    values.or_word("none", landlord_values.file),
    "none",
    "certificate of LANDLORD_HTTPS; none = made once in STATE_DIR, and `ngp check` says its fingerprint",
    ("letting.https_certificate",),
)
HTTPS_KEY = Key(
    "LANDLORD_HTTPS_KEY",
    "file",
    values.or_word("none", landlord_values.file),
    "none",
    "private key of LANDLORD_HTTPS_CERT, mode 0600",
    ("letting.https_key",),
)
GRPC = Key(
    "LANDLORD_GRPC",
    "address:port, or a list",
    values.or_none(landlord_values.listeners),
    "none",
    "where tenants ask by gRPC; only a caller that proves its WireGuard key sees its rental; `ngp check` says the pin",
    ("letting.grpc",),
    needs_restart=True,
)
ENDPOINT = Key(
    "LANDLORD_ENDPOINT",
    "host or host:port, or a list",
    values.or_none(landlord_values.endpoints),
    "none",
    "where tenants reach the tunnel; none = the addresses of LANDLORD_OUTSIDE; over HTTPS the first that is IPv4 or a "
    "name",
    ("letting.endpoints",),
)
PORT = Key(
    "LANDLORD_PORT",
    "1 to 65535",
    values.whole(1, 65535),
    "51820",
    "UDP port of the tunnel",
    ("letting.tunnel.port",),
    needs_restart=True,
)
INTERFACE = Key(
    "LANDLORD_INTERFACE",
    "interface",
    values.interface,
    "ngp-let",
    "name of the tunnel's interface, which ngp makes",
    ("letting.tunnel.interface",),
    needs_restart=True,
)
OUTSIDE = Key(
    "LANDLORD_OUTSIDE",
    "interface",
    values.or_word("none", values.interface),
    "none",
    "the interface towards the internet; required with LANDLORD",
    ("letting.tunnel.outside",),
)
ROUTING = Key(
    "LANDLORD_ROUTING",
    "routed or proxy",
    values.one_of("routed", "proxy"),
    "routed",
    "routed = the pools are routed to this host; proxy = this host answers ARP and NDP for them on LANDLORD_OUTSIDE",
    ("letting.tunnel.routing",),
)
TUNNEL = Key(
    "LANDLORD_TUNNEL",
    "auto, kernel or userspace",
    values.one_of("auto", "kernel", "userspace"),
    "auto",
    "WireGuard of the kernel, or wireguard-go; auto = the kernel's if it has WireGuard",
    ("letting.tunnel.kind",),
    needs_restart=True,
)
MTU = Key(
    "LANDLORD_MTU",
    f"{LEAST_MTU} to {MOST_MTU}",
    values.whole(LEAST_MTU, MOST_MTU),
    "1420",
    "MTU of the tunnel, told to tenants",
    ("letting.tunnel.mtu",),
)
DNS = Key(
    "LANDLORD_DNS",
    "address, or a list",
    values.or_none(landlord_values.name_servers),
    "none",
    "name servers told to tenants; with them wg-quick needs resolvconf",
    ("letting.dns",),
)
KEEPALIVE = Key(
    "LANDLORD_KEEPALIVE",
    "time",
    values.between(_time, 0, _MOST_KEEPALIVE_S, "0 to 65535 s"),
    "25 s",
    "keepalive told to tenants, so that a NAT in front of them stays open; 0 = none",
    ("letting.keepalive_s",),
)
LEDGER = Key(
    "LEDGER",
    "none, or a postgresql:// URL",
    values.or_word("none", landlord_values.ledger),
    "none",
    "where the ledger is: none = in STATE_DIR; a URL may hold a password, so this file must have mode 0600",
    ("ledger",),
    needs_restart=True,
    secret="the URL",
)

KEYS: tuple[Key[Any], ...] = (
    LANDLORD, POOLS, OFFERS, RENT, PRICE, RATE, ACTIVATION_FEE, INITIAL_CREDIT_MIN, PAYMENT_MIN, CREDIT_MAX,
    RESERVED_TIME, INVOICE_TIME, INVOICES_MAX, HOLD, MESH, HTTPS, HTTPS_CERT, HTTPS_KEY, GRPC, ENDPOINT, PORT,
    INTERFACE, OUTSIDE, ROUTING, TUNNEL, MTU, DNS, KEEPALIVE, LEDGER,
)  # fmt: skip
