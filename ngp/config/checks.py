"""Checks: find values of net.conf that contradict each other, though each is valid by itself.

A check runs only if all its keys could be read, so that one mistake isn't reported twice in different words. Therefore
each check compares as few keys as it can: then a mistake in one key doesn't hide contradictions between others. Nor
does one in an entry of PRICES, or in the general prices, hide those within other entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from ngp.config import keys, landlord, landlord_keys, tenant, tenant_keys
from ngp.config.document import NOT_SHOWN, Finding, Node, show
from ngp.config.key import Key
from ngp.config.modules import LINK, NETWORK, PAYMENT
from ngp.config.units import MOST_PRICE_MSAT_PER_GIB, show_data, show_time
from ngp.config.values import ALL_INTERFACES, is_mac, is_pattern
from ngp.config.written import FAMILIES, Check, Written
from ngp.core.pricing import SAT_MSAT, ceil_to_sat_msat, show_money, show_price
from ngp.core.settings import PriceRule
from ngp.module_keys import ACCOUNT_ID
from ngp.ports.services import SERVICES_A_HOST, crowded

LEAST_PING_BYTES = 84  # IPv4 with the usual 56 bytes of data; the meter counts from the IP header on


# --- the prices that are meant ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prices:
    """The four general prices, msat per GiB, with missing ones filled in."""

    sell: int
    sell_min: int
    buy: int
    buy_max: int


def general_prices(written: Written) -> Prices:
    """Fill in missing general prices from DEFAULT_PRICE; the most that is paid is twice that.

    A price that the operator left out adapts to a written one, unless the operator could then pay more than was
    written: a lower SELL_PRICE lowers SELL_PRICE_MIN, a lower BUY_PRICE_MAX lowers BUY_PRICE; BUY_PRICE_MAX is never
    raised.
    """
    default = written[keys.DEFAULT_PRICE]
    sell, sell_min = _sell_pair(written[keys.SELL_PRICE], written[keys.SELL_PRICE_MIN], default, default)
    most = min(2 * default, MOST_PRICE_MSAT_PER_GIB)
    buy, buy_max = _buy_pair(written[keys.BUY_PRICE], written[keys.BUY_PRICE_MAX], default, most)
    return Prices(sell, sell_min, buy, buy_max)


def complete_rule(rule: PriceRule, general: Prices) -> PriceRule:
    """Fill in missing prices of an entry of PRICES where the general ones contradict it, as `general_prices` does."""
    sell, sell_min = _sell_pair(rule.sell_msat_per_gib, rule.sell_min_msat_per_gib, general.sell, general.sell_min)
    buy, buy_max = _buy_pair(rule.buy_msat_per_gib, rule.buy_max_msat_per_gib, general.buy, general.buy_max)
    return replace(
        rule,
        sell_msat_per_gib=_unless_general(rule.sell_msat_per_gib, sell, general.sell),
        sell_min_msat_per_gib=_unless_general(rule.sell_min_msat_per_gib, sell_min, general.sell_min),
        buy_msat_per_gib=_unless_general(rule.buy_msat_per_gib, buy, general.buy),
        buy_max_msat_per_gib=_unless_general(rule.buy_max_msat_per_gib, buy_max, general.buy_max),
    )


def _unless_general(own: int | None, meant: int, general: int) -> int | None:
    return None if own is None and meant == general else meant


def _sell_pair(ask: int | None, least: int | None, general_ask: int, general_least: int) -> tuple[int, int]:
    meant_ask = ask if ask is not None else max(general_ask, least or 0)
    return meant_ask, least if least is not None else min(general_least, meant_ask)


def _buy_pair(offer: int | None, most: int | None, general_offer: int, general_most: int) -> tuple[int, int]:
    meant_most = most if most is not None else general_most
    return offer if offer is not None else min(general_offer, meant_most), meant_most


# --- checks -----------------------------------------------------------------------------------------------------------


def _required(written: Written) -> Iterator[Finding]:
    if keys.MESH_INTERFACES.name not in written.nodes and not _may_let(written):
        message = "is missing: write the interfaces that lead to neighbours, for example MESH_INTERFACES: [eth1, wlan0]"
        message += "; a machine that only rents addresses needs neither this key nor a daemon; one that only lets them "
        message += "needs LANDLORD: yes; to end letting, release the rentals (ngp rentals release), then ngp stop"
        yield Finding(0, keys.MESH_INTERFACES.name, "", message)


def _may_let(written: Written) -> bool:
    """Say whether addresses are let, which needs no neighbours; yes if LANDLORD can't be read."""
    return landlord_keys.LANDLORD.name in written.failed or written[landlord_keys.LANDLORD]


def _link_modules(written: Written) -> Iterator[Finding]:
    for name in written[keys.LINK_INTERFACE]:
        yield from _unavailable(written, keys.LINK_INTERFACE, LINK, name, ())


def _network_module(written: Written) -> Iterator[Finding]:
    families = FAMILIES if "ip" in written.modules(NETWORK) else ()
    yield from _unavailable(written, keys.NETWORK_INTERFACE, NETWORK, written[keys.NETWORK_INTERFACE], families)


def _payment_module(written: Written) -> Iterator[Finding]:
    yield from _unavailable(written, keys.PAYMENT_INTERFACE, PAYMENT, written[keys.PAYMENT_INTERFACE], ())


def _unavailable(written: Written, key: Key[Any], group: str, name: str, also: tuple[str, ...]) -> Iterator[Finding]:
    available = sorted({*written.modules(group), *also})
    if name not in available:
        offered = ", ".join(available) or "none"
        yield written.finding(key, f"names the module {name}, which is not installed: available are {offered}")


def _interfaces(written: Written) -> Iterator[Finding]:
    mesh, lan = written[keys.MESH_INTERFACES], written[keys.LAN_INTERFACE] or ()
    both: tuple[tuple[Key[Any], tuple[str, ...]], ...] = (
        (keys.IGNORE_INTERFACE, written[keys.IGNORE_INTERFACE]),
        (keys.LAN_INTERFACE, lan),
    )
    for key, others in both:
        for name in mesh:
            if name in others:
                yield written.finding(key, f"holds {name}, as MESH_INTERFACES does: remove it from one of the two")
        names = [name for name in mesh if not is_pattern(name) and name != ALL_INTERFACES and name not in others]
        for pattern in filter(is_pattern, others):
            for name in names:
                if fnmatchcase(name, pattern):
                    message = f"covers {name}, which MESH_INTERFACES names"
                    yield written.finding(key, f"{message}: remove it there, or write a narrower pattern")


def _neighbour_addresses(written: Written) -> Iterator[Finding]:
    modules = written[keys.LINK_INTERFACE]
    links = set(modules)
    for address in written[keys.NGP_INTERFACE]:
        if is_mac(address) and links == {"udp"}:
            yield written.finding(
                keys.NGP_INTERFACE, f"has the MAC {address}, but LINK_INTERFACE udp needs an IP address"
            )
        if not is_mac(address) and links == {"ethernet"}:
            yield written.finding(keys.NGP_INTERFACE, f"has {address}, but LINK_INTERFACE ethernet needs a MAC")


def _services(written: Written) -> Iterator[Finding]:
    """Refuse too many ports of one address. This router's own addresses aren't known here."""
    free, services = written[keys.FREE_DESTINATIONS], written[keys.PAYMENT_SERVICES] if written[keys.SELL] else ()
    for prefix, count in crowded(free, services):
        key = keys.PAYMENT_SERVICES if any(one.prefix == prefix for one in services) else keys.FREE_DESTINATIONS
        message = f"opens {count} ports of {prefix} (PAYMENT_SERVICES and FREE_DESTINATIONS together)"
        message += f": name {SERVICES_A_HOST} at most"
        yield written.finding(key, message)


def _trades(written: Written) -> Iterator[Finding]:
    if not (written[keys.SELL] or written[keys.BUY] or written[landlord_keys.LANDLORD]):
        key = keys.BUY if keys.BUY.name in written.nodes else keys.SELL
        yield written.finding(key, "leaves nothing to do, as SELL and BUY are both no: write yes for one of them")


def _default_route(written: Written) -> Iterator[Finding]:
    if written[keys.BUY_DEFAULT_ROUTE] and (written[keys.SELL] or not written[keys.BUY]):
        message = "is for a router that buys and sells nothing: write SELL: no and BUY: yes, or BUY_DEFAULT_ROUTE: no"
        yield written.finding(keys.BUY_DEFAULT_ROUTE, message)


def _general_selling(written: Written) -> Iterator[Finding]:
    prices = general_prices(written)
    if prices.sell_min > prices.sell:
        yield written.finding(
            keys.SELL_PRICE_MIN, f"is above SELL_PRICE ({show_price(prices.sell)}): lower it, or raise SELL_PRICE"
        )


def _general_buying(written: Written) -> Iterator[Finding]:
    prices = general_prices(written)
    if prices.buy > prices.buy_max:
        yield written.finding(
            keys.BUY_PRICE, f"is above BUY_PRICE_MAX ({show_price(prices.buy_max)}): lower it, or raise BUY_PRICE_MAX"
        )


def _rules_selling(written: Written) -> Iterator[Finding]:
    general = general_prices(written)
    completes = general.sell_min <= general.sell and not written.has_failed(*_SELL_KEYS)
    for rule, node in _rules(written):
        own = (rule.sell_msat_per_gib, rule.sell_min_msat_per_gib)
        sell, least = _sell_pair(*own, general.sell, general.sell_min)
        if least > sell and (completes or None not in own):
            message = f"for {rule.prefix} has sell_min {show_price(least)} above sell {show_price(sell)}"
            yield written.finding(keys.PRICES, f"{message}: lower sell_min, or raise sell", node)


def _rules_buying(written: Written) -> Iterator[Finding]:
    general = general_prices(written)
    completes = general.buy <= general.buy_max and not written.has_failed(*_BUY_KEYS)
    for rule, node in _rules(written):
        own = (rule.buy_msat_per_gib, rule.buy_max_msat_per_gib)
        buy, most = _buy_pair(*own, general.buy, general.buy_max)
        if buy > most and (completes or None not in own):
            message = f"for {rule.prefix} has buy {show_price(buy)} above buy_max {show_price(most)}"
            yield written.finding(keys.PRICES, f"{message}: lower buy, or write a higher buy_max", node)


def _rules(written: Written) -> list[tuple[PriceRule, Node]]:
    """Return the entries of PRICES that could be read."""
    return [(entry.rule, entry.node) for entry in written[keys.PRICES]]


def _contract_data(written: Written) -> Iterator[Finding]:
    if written[keys.CONTRACT_DATA] < LEAST_PING_BYTES:
        yield written.finding(
            keys.CONTRACT_DATA,
            f"is less than a packet (a ping has {LEAST_PING_BYTES} bytes), so nothing would pass: write 4 kB at least; "
            "100 MB is usual",
        )


def _grace(written: Written) -> Iterator[Finding]:
    credit = 0 if written[keys.GRACE_TIME] else written[keys.GRACE_DATA]
    if credit and written[keys.SELL]:
        message = f"ends each contract on credit (GRACE_DATA: {show_data(credit)}) before a packet passes: write 1 s or"
        yield written.finding(keys.GRACE_TIME, f"{message} more, or GRACE_DATA: 0 for no credit")


def _data_renewal(written: Written) -> Iterator[Finding]:
    left, limit = written[keys.DATA_RENEWAL], written[keys.CONTRACT_DATA]
    if left is not None and left >= limit:
        yield written.finding(
            keys.DATA_RENEWAL, f"would renew at once: write less than CONTRACT_DATA ({show_data(limit)}), or auto"
        )


def _time_renewal(written: Written) -> Iterator[Finding]:
    left, lifetime = written[keys.TIME_RENEWAL], written[keys.CONTRACT_TIME]
    if left is not None and left >= lifetime:
        yield written.finding(
            keys.TIME_RENEWAL, f"would renew at once: write less than CONTRACT_TIME ({show_time(lifetime)}), or auto"
        )


def _fits_budget(budget: Key[Any]) -> Check:
    """Return the check of PAYMENT_AMOUNT against one budget: a payment above it could never be made."""

    def check(written: Written) -> Iterator[Finding]:
        most: int | None = written[budget]
        asked_msat = ceil_to_sat_msat(written[keys.PAYMENT_AMOUNT])  # invoices are of whole sat
        if written[keys.BUY] and most is not None and asked_msat > most:
            remedy = f"lower it, or raise {budget.name}"
            message = f"is above {budget.name} ({show_money(most)}), no payment could be made: {remedy}"
            yield written.finding(keys.PAYMENT_AMOUNT, message)

    return check


def _pays_fees(budget: Key[Any]) -> Check:
    """Return the check of one budget against the fee limit: if the fee leaves no sat, no payment could be made."""

    def check(written: Written) -> Iterator[Finding]:
        most: int | None = written[budget]
        fees = written[keys.FEE_LIMIT]
        if written[keys.BUY] and most is not None and fees.fits_msat(most) < SAT_MSAT:
            fee = show_money(fees.of_msat(SAT_MSAT))
            message = f"leaves no sat for a payment whose fee may be {fee}, so none could be made: raise it, or lower"
            yield written.finding(budget, f"{message} FEE_LIMIT")

    return check


def _closed(written: Written) -> Iterator[Finding]:
    lets_only = written[landlord_keys.LANDLORD] and keys.MESH_INTERFACES.name not in written.nodes
    if lets_only and written[keys.WHEN_STOPPED] == "closed":
        message = "closes mesh interfaces, and there are none: write open, or set MESH_INTERFACES"
        yield written.finding(keys.WHEN_STOPPED, message)


_BUDGET_KEYS: tuple[Key[Any], ...] = (
    keys.BUDGET_PAYMENT, keys.BUDGET_NEIGHBOUR, keys.BUDGET_HOUR, keys.BUDGET_DAY, keys.BUDGET_TOTAL,
)  # fmt: skip
_SELL_KEYS = (keys.DEFAULT_PRICE, keys.SELL_PRICE, keys.SELL_PRICE_MIN)
_BUY_KEYS = (keys.DEFAULT_PRICE, keys.BUY_PRICE, keys.BUY_PRICE_MAX)

CHECKS: tuple[tuple[tuple[Key[Any], ...], Check], ...] = (
    ((keys.LINK_INTERFACE,), _link_modules),
    ((keys.NETWORK_INTERFACE,), _network_module),
    ((keys.PAYMENT_INTERFACE,), _payment_module),
    ((keys.MESH_INTERFACES, keys.IGNORE_INTERFACE, keys.LAN_INTERFACE), _interfaces),
    ((keys.LINK_INTERFACE, keys.NGP_INTERFACE), _neighbour_addresses),
    ((keys.SELL, keys.FREE_DESTINATIONS, keys.PAYMENT_SERVICES), _services),
    ((keys.SELL, keys.BUY, landlord_keys.LANDLORD), _trades),
    ((keys.SELL, keys.BUY, keys.BUY_DEFAULT_ROUTE), _default_route),
    (_SELL_KEYS, _general_selling),
    (_BUY_KEYS, _general_buying),
    ((), _rules_selling),
    ((), _rules_buying),
    ((keys.CONTRACT_DATA,), _contract_data),
    ((keys.SELL, keys.GRACE_DATA, keys.GRACE_TIME), _grace),
    ((keys.CONTRACT_DATA, keys.DATA_RENEWAL), _data_renewal),
    ((keys.CONTRACT_TIME, keys.TIME_RENEWAL), _time_renewal),
    *(((keys.BUY, keys.PAYMENT_AMOUNT, budget), _fits_budget(budget)) for budget in _BUDGET_KEYS),
    *(((keys.BUY, keys.FEE_LIMIT, budget), _pays_fees(budget)) for budget in _BUDGET_KEYS),
    ((keys.WHEN_STOPPED, landlord_keys.LANDLORD), _closed),
    *landlord.CHECKS,
    ((tenant_keys.PAYMENT_MIN, tenant_keys.PAYMENT_MAX), tenant.check_payments),
)


def _modules(written: Written) -> Iterator[Finding]:
    """Let the modules in use check the values of their keys."""
    for choice, module in written.chosen():
        brought = written.brought.get(module)
        if brought is None or written.failed & {keys.ACCOUNT_ID.name, *(key.name for key in brought.keys)}:
            continue
        values = written.of_module(module)
        if module[0] == PAYMENT and written[keys.ACCOUNT_ID] is not None:
            values[ACCOUNT_ID] = written[keys.ACCOUNT_ID]
        try:
            found = list(brought.check(values))
        except Exception as error:  # a defect in a third-party module; its text may hold a value
            yield written.finding(choice, f"names a module that fails ({type(error).__name__}): reinstall it")
            continue
        secret = {key.name for key in brought.keys if key.secret}
        for name, message in found:
            node = written.nodes.get(name)
            shown = NOT_SHOWN if name in secret else show(node) if node else ""
            yield Finding(node.line if node else 0, name, shown, message)


def run_checks(written: Written, for_daemon: bool) -> Iterator[Finding]:
    """Run every check whose keys could be read; a missing MESH_INTERFACES is reported only once, and for a daemon."""
    missing = () if keys.MESH_INTERFACES.name in written.nodes else (keys.MESH_INTERFACES.name,)
    if for_daemon:
        yield from _required(written)
    for needed, check in CHECKS:
        if not (written.has_failed(*needed) or any(key.name in missing for key in needed)):
            yield from check(written)
    yield from _modules(written)
