"""Keys: the table of ngp's own keys of net.conf. The parser and the operator's guide use it.

Modules add their own keys (`ngp.module_keys`); any other key is refused. A test fails if the shipped net.conf or the
guide lacks a key of this table, or of a module that ngp ships. Defaults are written as in net.conf and go through the
same parsers, so an operator can write every default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ngp.config import destinations, landlord_keys, prices, tenant_keys, values
from ngp.config.document import Node, refuse, refuse_unseen
from ngp.config.key import Key
from ngp.config.units import (
    ALL_MONEY_MSAT,
    data_bytes,
    data_rate_bytes_s,
    money_msat,
    price_msat_per_gib,
    share_ppm,
    time_s,
)
from ngp.core.pricing import SAT_MSAT
from ngp.core.settings import FeeLimit
from ngp.errors import ConfigError, UnseenError
from ngp.module_keys import KeyText, ModuleKey

MOST_CONTRACTS = 1 << 24  # 2 GiB of kernel memory
LEAST_RATE_BYTES_S, MOST_RATE_BYTES_S = 1 << 10, 1 << 30
LEAST_PRIORITY, MOST_PRIORITY = 258, 32765  # two rules for each length of a prefix; the main table's rule has 32766
MOST_CSV_DELAY_BLOCKS = 10_000  # peers take 2,016, unless their bitcoin.maxlocaldelay says more


_price = values.quantity(price_msat_per_gib)
DOUBLE_DEFAULT = "2 x DEFAULT_PRICE"
_price_or_default = values.or_word("DEFAULT_PRICE", _price)
_money = values.quantity(money_msat)
_data = values.quantity(data_bytes)
_time = values.quantity(time_s)
_rate = values.between(
    values.quantity(data_rate_bytes_s),
    LEAST_RATE_BYTES_S,
    MOST_RATE_BYTES_S,
    "1 kB/s to 1 GB/s; PAYMENT_SERVICES: none switches it off",
)


def _unpaid_rate(node: Node) -> int:
    """Read UNPAID_RATE: 0, or a rate at which a packet still passes. Raises Refused."""
    rate = values.quantity(data_rate_bytes_s)(node)
    if rate and not LEAST_RATE_BYTES_S <= rate <= MOST_RATE_BYTES_S:
        raise refuse(node, "is out of range: write 1 kB/s to 1 GB/s, or 0 for none")
    return rate


def _positive(parse: Callable[[Node], int]) -> Callable[[Node], int]:
    def parse_node(node: Node) -> int:
        value = parse(node)
        if value == 0:
            raise refuse(node, "leaves nothing to buy or sell: write more than 0")
        return value

    return parse_node


def _fee_limit(text: str) -> FeeLimit:
    """Read an amount or a share. A share allows at least 1 sat, the usual fee of a node for the smallest payment."""
    if not text.endswith("%"):
        limit_msat = money_msat(text)
        if limit_msat and text[-1].isdigit():  # many people who write 1 mean 1 %
            raise ConfigError(f"has no unit: write {text} %, {text} sat or {text} msat")
        return FeeLimit(0, limit_msat)
    share = share_ppm(text)
    return FeeLimit(share, SAT_MSAT if share else 0)


def _tolerance(text: str) -> int:
    """Read the share of a bill that may be lost; of more than half, link or bill are no good."""
    return share_ppm(text, most_percent=50)


def _bounded_money(node: Node) -> int:
    """Read a budget; `none` becomes all bitcoin there will ever be, which no sum exceeds, so it stays a number."""
    unlimited = values.or_word("none", _money)(node)
    return ALL_MONEY_MSAT if unlimited is None else unlimited


LINK_INTERFACE = Key(
    "LINK_INTERFACE",
    "module, or a list",
    values.module_list(values.module({"1": "udp", "2": "ethernet", "3": "grpc"})),
    "udp",
    "how messages reach neighbours: udp (or 1), ethernet (or 2; raw frames without IP), grpc (or 3; calls by TCP)",
    ("link_modules",),
    needs_restart=True,
)
NETWORK_INTERFACE = Key(
    "NETWORK_INTERFACE",
    "module",
    values.module({"1": "ip"}),
    "ip",
    "what gates and meters traffic: ip (or 1) for IPv4 and IPv6, ip4 or ip6 for one of them alone",
    ("network_module",),
    needs_restart=True,
)
PAYMENT_INTERFACE = Key(
    "PAYMENT_INTERFACE",
    "module",
    values.module({"1": "sandbox", "2": "electrum", "3": "lnd"}),
    "sandbox",
    "how payments are made: sandbox (or 1; play money), electrum (or 2), lnd (or 3)",
    ("payment_module",),
    needs_restart=True,
)
MESH_INTERFACES = Key(
    "MESH_INTERFACES",
    "interface or pattern, or a list",
    values.mesh_interfaces,
    "",
    "interfaces where neighbours are gated and paid; all = every one but loopback and IGNORE_INTERFACE",
    ("mesh_interfaces",),
)
IGNORE_INTERFACE = Key(
    "IGNORE_INTERFACE",
    "interface or pattern, or a list",
    values.or_none(values.ignored_interfaces),
    "none",
    "upstream or LAN interfaces: no ngp there, never gated",
    ("ignore_interfaces",),
)
LAN_INTERFACE = Key(
    "LAN_INTERFACE",
    "interface or pattern, a list, auto or none",
    values.or_word("auto", values.or_none(values.lan_interfaces)),
    "auto",
    "our own interfaces behind this router; auto = those with routes to the networks of their own addresses only",
    ("lan_interfaces",),
)
NGP_INTERFACE = Key(
    "NGP_INTERFACE",
    "address, or a list",
    values.or_none(values.neighbour_addresses),
    "none",
    "address of the neighbour's daemon; none = find neighbours",
    ("ngp_addresses",),
)
ACCOUNT_ID = Key(
    "ACCOUNT_ID",
    "text",
    values.or_word("none", values.node_account),
    "none",
    "where payment is received; with Lightning the public key that our node must have",
    ("account_id",),
)
CSV_DELAY = Key(
    "CSV_DELAY",
    f"1 to {MOST_CSV_DELAY_BLOCKS}",
    values.whole(1, MOST_CSV_DELAY_BLOCKS),
    "1008",
    "blocks that a peer waits for its coins after it closes a channel alone; our node may be away for that long",
    ("csv_delay_blocks",),
)
DEFAULT_PRICE = Key(
    "DEFAULT_PRICE",
    "price",
    _price,
    "5 msat",
    "per kilobyte: asked when selling, and paid when buying, unless SELL_ and BUY_ keys say otherwise",
    ("default_msat_per_gib",),
)
SELL = Key(
    "SELL",
    "yes or no",
    values.yes_or_no,
    "yes",
    "sell forwarding to neighbours; no = buys only, without a gate",
    ("sells",),
)
SELL_PRICE = Key(
    "SELL_PRICE",
    "price",
    _price_or_default,
    "DEFAULT_PRICE",
    "per kilobyte: asked first",
    ("sell_msat_per_gib",),
)
SELL_PRICE_MIN = Key(
    "SELL_PRICE_MIN",
    "price",
    _price_or_default,
    "DEFAULT_PRICE",
    "per kilobyte: the least accepted in a counter-offer",
    ("sell_min_msat_per_gib",),
)
BUY = Key("BUY", "yes or no", values.yes_or_no, "yes", "pay neighbours for forwarding; no = sells only", ("buys",))
BUY_PRICE = Key(
    "BUY_PRICE",
    "price",
    _price_or_default,
    "DEFAULT_PRICE",
    "per kilobyte: offered first when a proposal is above it",
    ("buy_msat_per_gib",),
)
BUY_PRICE_MAX = Key(
    "BUY_PRICE_MAX",
    "price",
    values.or_word(DOUBLE_DEFAULT, _price),
    DOUBLE_DEFAULT,
    "per kilobyte: the most accepted",
    ("buy_max_msat_per_gib",),
)
BUY_DEFAULT_ROUTE = Key(
    "BUY_DEFAULT_ROUTE",
    "yes or no",
    values.yes_or_no,
    "no",
    "buy all that the default route leads to by one contract, as far as the neighbour there sells it; needs SELL: no",
    ("buys_default_route",),
)
RESALE_MARGIN = Key(
    "RESALE_MARGIN",
    "share, price, or both",
    values.quantity(prices.margin),
    "10 %",
    "added to the cost of what we buy ourselves to sell it; we never sell it for less; a share is at most 100 %",
    ("resale_margin",),
)
SELL_PRICE_LOAD = Key(
    "SELL_PRICE_LOAD",
    "{from, factor, rate} or none",
    values.or_word("none", prices.load_price),
    "none",
    "selling prices rise with the load of the upstream interface: above `from`, up to `factor` times at full load",
    ("load_price",),
)
CHOOSE_ROUTES = Key(
    "CHOOSE_ROUTES",
    "yes or no",
    values.yes_or_no,
    "no",
    "where the routes lead through several neighbours, pay the cheapest that is good, by routes of our own",
    ("choose_routes",),
)
ROUTE_TABLE = Key(
    "ROUTE_TABLE",
    f"1 to {values.MOST_TABLE}, not 253 to 255",
    values.route_table,
    "10325",
    "number of the routing table of CHOOSE_ROUTES; nothing else may be in it",
    ("route_table",),
)
ROUTE_PRIORITY = Key(
    "ROUTE_PRIORITY",
    f"{LEAST_PRIORITY} to {MOST_PRIORITY}",
    values.whole(LEAST_PRIORITY, MOST_PRIORITY),
    "10325",
    "priority of the routing rule of CHOOSE_ROUTES; up to 257 numbers below it are used too",
    ("route_priority",),
)
PRICES = Key(
    "PRICES",
    "list of {prefix, sell, sell_min, buy, buy_max, margin, neighbour, interface, from, to}",
    values.or_none(prices.price_rules),
    "none",
    "prices of single destinations, neighbours and times of day: the longest prefix wins, then the more exact entry",
    ("prices",),
)
CONTRACT_DATA = Key(
    "CONTRACT_DATA",
    "data",
    _positive(_data),
    "100 MB",
    "data limit of a contract, both directions together",
    ("contract_data_bytes",),
)
CONTRACT_TIME = Key("CONTRACT_TIME", "time", _positive(_time), "1 h", "how long a contract lasts", ("contract_time_s",))
DATA_RENEWAL = Key(
    "DATA_RENEWAL",
    "data (a bare number is bytes) or auto",
    values.or_word("auto", values.quantity(lambda text: data_bytes(text, bare=1))),
    "auto",
    "data left when the client renews; auto = from the rate of use; 0 for DATA_ and TIME_RENEWAL = never",
    ("data_renewal_bytes",),
)
TIME_RENEWAL = Key(
    "TIME_RENEWAL",
    "time or auto",
    values.or_word("auto", _time),
    "auto",
    "time left when the client renews; auto = from the rate of use; 0 for DATA_ and TIME_RENEWAL = never",
    ("time_renewal_s",),
)
PAYMENT_AMOUNT = Key(
    "PAYMENT_AMOUNT",
    "money",
    _positive(_money),
    "100 sat",
    "how much a client prepays at a time",
    ("payment_amount_msat",),
)
TRUST_AMOUNT = Key(
    "TRUST_AMOUNT",
    "money or auto",
    values.or_word("auto", _money),
    "auto",
    "most prepaid to a neighbour that has carried nothing yet; auto = the worth of GRACE_DATA",
    ("trust_amount_msat",),
)
GRACE_DATA = Key(
    "GRACE_DATA",
    "data",
    _data,
    "256 kB",
    "how much data a neighbour with no free balance gets on credit, whether it paid before or not",
    ("grace_data_bytes",),
)
GRACE_TIME = Key(
    "GRACE_TIME",
    "time",
    _time,
    "10 s",
    "how long credit lasts, from its first byte; a neighbour that paid all of it gets data and time again",
    ("grace_time_s",),
)
REFUND_WHEN_ASKED = Key(
    "REFUND_WHEN_ASKED",
    "yes or no",
    values.yes_or_no,
    "no",
    "pay a client its free balance back when it asks, within the budgets; no = by ngp refund only",
    ("refund_when_asked",),
)
BUDGET_PAYMENT = Key(
    "BUDGET_PAYMENT",
    "money or none",
    _bounded_money,
    "20000 sat",
    "most spent in one payment, fees included",
    ("budgets.payment_msat",),
)
BUDGET_NEIGHBOUR = Key(
    "BUDGET_NEIGHBOUR",
    "money or none",
    values.or_word("none", _money),
    "none",
    "most ever spent on one neighbour",
    ("budgets.neighbour_msat",),
)
BUDGET_HOUR = Key(
    "BUDGET_HOUR",
    "money or none",
    _bounded_money,
    "50000 sat",
    "most spent in any hour",
    ("budgets.hour_msat",),
)
BUDGET_DAY = Key(
    "BUDGET_DAY",
    "money or none",
    _bounded_money,
    "200000 sat",
    "most spent in any day",
    ("budgets.day_msat",),
)
BUDGET_TOTAL = Key(
    "BUDGET_TOTAL",
    "money or none",
    values.or_word("none", _money),
    "none",
    "most ever spent",
    ("budgets.total_msat",),
)
FEE_LIMIT = Key(
    "FEE_LIMIT",
    "share or money",
    values.quantity(_fee_limit),
    "1 %",
    "most that routing may add to a payment: a share of it, at least 1 sat, or an amount; 0 = direct channels only",
    ("fee_limit",),
)
VERIFY_TOLERANCE = Key(
    "VERIFY_TOLERANCE",
    "share",
    values.quantity(_tolerance),
    "1 %",
    "share of a bill that loss on the link may explain beyond what is measured",
    ("verify_tolerance_ppm",),
)
FREE_DESTINATIONS = Key(
    "FREE_DESTINATIONS",
    "list of prefix, prefix protocol, or prefix protocol port",
    values.or_none(destinations.free_destinations),
    "none",
    "destinations that cost neighbours nothing: packets to them, and their answers; what we buy costs what it did",
    ("free_destinations",),
)
PAYMENT_SERVICES = Key(
    "PAYMENT_SERVICES",
    "list of address port, or address protocol port",
    values.or_none(destinations.payment_services),
    "none",
    "ports that neighbours need to pay this router, on it or on hosts behind it: uncharged, at PAYMENT_SERVICES_RATE",
    ("payment_services",),
)
PAYMENT_SERVICES_RATE = Key(
    "PAYMENT_SERVICES_RATE",
    "data a second",
    _rate,
    "32 kB/s",
    "rate of each neighbour to PAYMENT_SERVICES, both directions together; bursts of up to a minute's worth",
    ("payment_services_bytes_s",),
)
UNPAID_RATE = Key(
    "UNPAID_RATE",
    "data a second, or 0",
    _unpaid_rate,
    "0",
    "what passes uncharged for a neighbour without contract or money, both directions together; all that never paid "
    "share one such rate; 0 = nothing",
    ("unpaid_bytes_s",),
)
WHEN_STOPPED = Key(
    "WHEN_STOPPED",
    "open or closed",
    values.one_of("open", "closed"),
    "open",
    "after ngp stop and before start: open = packets pass as if ngp were not there, closed = they don't",
    ("closed_when_stopped",),
)
QUEUE_NUMBER = Key(
    "QUEUE_NUMBER",
    "0 to 65535",
    values.whole(0, 65535),
    "10325",
    "NFQUEUE number; no other program on the machine may use it",
    ("queue_number",),
    needs_restart=True,
)
STATE_DIR = Key(
    "STATE_DIR",
    "directory",
    values.directory,
    "/var/lib/ngp",
    "ledger, keys and control socket; a relative path starts at net.conf's folder",
    ("state_dir",),
    needs_restart=True,
)
CONTRACTS_MAX = Key(
    "CONTRACTS_MAX",
    f"1 to {MOST_CONTRACTS}",
    values.whole(1, MOST_CONTRACTS),
    "131072",
    "slots of the kernel's contract table, 128 bytes each",
    ("contracts_max",),
    needs_restart=True,
)

KEYS: tuple[Key[Any], ...] = (
    LINK_INTERFACE, NETWORK_INTERFACE, PAYMENT_INTERFACE, MESH_INTERFACES, IGNORE_INTERFACE, LAN_INTERFACE,
    NGP_INTERFACE, ACCOUNT_ID, CSV_DELAY,
    DEFAULT_PRICE, SELL, SELL_PRICE, SELL_PRICE_MIN, BUY, BUY_PRICE, BUY_PRICE_MAX, BUY_DEFAULT_ROUTE,
    RESALE_MARGIN, SELL_PRICE_LOAD, CHOOSE_ROUTES, ROUTE_TABLE, ROUTE_PRIORITY, PRICES,
    CONTRACT_DATA, CONTRACT_TIME, DATA_RENEWAL, TIME_RENEWAL, PAYMENT_AMOUNT, TRUST_AMOUNT, GRACE_DATA, GRACE_TIME,
    REFUND_WHEN_ASKED,
    BUDGET_PAYMENT, BUDGET_NEIGHBOUR, BUDGET_HOUR, BUDGET_DAY, BUDGET_TOTAL, FEE_LIMIT, VERIFY_TOLERANCE,
    FREE_DESTINATIONS, PAYMENT_SERVICES, PAYMENT_SERVICES_RATE, UNPAID_RATE, WHEN_STOPPED, QUEUE_NUMBER,
    STATE_DIR, CONTRACTS_MAX, *landlord_keys.KEYS, *tenant_keys.KEYS,
)  # fmt: skip


def of_module(brought: ModuleKey, folder: str) -> Key[Any]:
    """Return the Key for a module's own key. The value `none` becomes None. Args: folder: where net.conf is."""

    def parse_node(node: Node) -> Any:
        written = values.scalar(node, brought.kind)
        if written.text == "none":
            return None
        try:
            return brought.parse(KeyText(written.text, written.kind == "str", folder))
        except ConfigError as error:
            unseen = brought.secret or isinstance(error, UnseenError)
            raise (refuse_unseen if unseen else refuse)(node, str(error)) from error
        except Exception as error:  # a defect in a third-party module; its text may hold the value
            raise refuse_unseen(node, f"makes its module fail ({type(error).__name__}): write another value") from error

    return Key(
        brought.name, brought.kind, parse_node, brought.default, brought.help, (), needs_restart=True,
        secret=brought.secret,
    )  # fmt: skip


def guide_row(key: Key[Any]) -> str:
    """Return a key's row of the table in docs/operators-guide.md."""
    default = f"`{key.default}`" if key.default else "required"
    return f"| `{key.name}` | {key.kind} | {default} | {key.help} | {'restart' if key.needs_restart else 'reload'} |"
