"""Prices: parses RESALE_MARGIN, SELL_PRICE_LOAD and the entries of PRICES.

Of several entries that hold, the longest prefix wins, then one that names the neighbour, then one that names the
interface, then one for a part of the day (`PriceRule.exactness`). Two entries between which this doesn't decide are
refused: which of them counts mustn't depend on their order in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from ngp.config.destinations import prefix
from ngp.config.document import Entries, Finding, Items, Node, Refused, refuse, show, try_each
from ngp.config.units import data_rate_bytes_s, price_msat_per_gib, share_ppm
from ngp.config.values import fields_of, interface, quantity, scalar
from ngp.core.messages import Prefix
from ngp.core.settings import FULL_PPM, Hours, LoadPrice, Margin, PriceRule
from ngp.core.values import DAY_S
from ngp.errors import ConfigError

_LEAST_DIGITS, _MOST_DIGITS = 16, 64  # of an identity: as many as the listings show; all of them


def margin(text: str) -> Margin:
    """Read a margin, a share, an amount per kilobyte, or both: `10 %`, `10 % + 1 msat`. Raises ConfigError."""
    parts = [part.strip() for part in text.split("+")]
    shares = [part for part in parts if part.endswith("%")]
    amounts = [part for part in parts if not part.endswith("%")]
    if len(shares) > 1 or len(amounts) > 1:
        raise ConfigError("isn't one share and one amount: write for example 10 %, 1 msat, or 10 % + 1 msat")
    if amounts and amounts[0][-1:].isdigit() and not shares and amounts[0] != "0":
        raise ConfigError(f"has no unit: write {text} % or {text} msat")
    return Margin(share_ppm(shares[0]) if shares else 0, price_msat_per_gib(amounts[0]) if amounts else 0)


_MOST_FACTOR = 100
_FACTOR = re.compile(r"[1-9][0-9]{0,2}(?:\.[0-9]{1,3})?", re.ASCII)


def load_price(node: Node) -> LoadPrice:
    """Read SELL_PRICE_LOAD: {from, factor}, optionally with rate. Raises Refused."""
    if not isinstance(node, Entries):
        raise refuse(node, "is not a price by load: write {from: 70 %, factor: 3}, or none")
    fields = fields_of(node, {"from": _load, "factor": _factor, "rate": quantity(data_rate_bytes_s)})
    for name, example in (("from", "70 %"), ("factor", "3")):
        if name not in fields:
            raise refuse(node, f"has no `{name}`: add it, for example {name}: {example}")
    if fields.get("rate") == 0:
        raise refuse(node, "has the rate 0: write what the upstream interface carries, for example rate: 6 MB/s")
    return LoadPrice(fields["from"], fields["factor"], fields.get("rate"))


def _load(node: Node) -> int:
    text = scalar(node, "a share").text
    if text[-1].isdigit():  # 0.7 may mean 70 %
        raise refuse(node, "has no unit: write a share, for example 70 %")
    ppm = quantity(share_ppm)(node)
    if ppm >= FULL_PPM:
        raise refuse(node, "leaves nothing between it and full load: write less than 100 %, for example 70 %")
    return ppm


def _factor(node: Node) -> int:
    """Read a number with up to three decimals. Returns millionths."""
    text = scalar(node, "a factor").text
    ppm = int(Fraction(text) * FULL_PPM) if _FACTOR.fullmatch(text) else 0
    if not FULL_PPM < ppm <= _MOST_FACTOR * FULL_PPM:
        raise refuse(node, f"is not a factor: write a number above 1, up to {_MOST_FACTOR}, for example 3 or 1.5")
    return ppm


def _neighbour(node: Node) -> str:
    text = scalar(node, "a neighbour's identity").text.lower()
    if re.fullmatch(rf"[0-9a-f]{{{_LEAST_DIGITS},{_MOST_DIGITS}}}", text, re.ASCII) is None:
        digits = f"{_LEAST_DIGITS} to {_MOST_DIGITS} of its hexadecimal digits, as `ngp neighbours` shows them"
        raise refuse(node, f"is not a neighbour's identity: write {digits}")
    return text


def _time_of_day(node: Node) -> int:
    """Read a local time, 00:00 to 24:00. Returns seconds since midnight."""
    text = scalar(node, "a time of day").text
    match = re.fullmatch(r"([0-9]{1,2}):([0-9]{2})", text, re.ASCII)
    hours, minutes = (int(match[1]), int(match[2])) if match is not None else (25, 0)
    if minutes > 59 or 60 * hours + minutes > 24 * 60:
        raise refuse(node, "is not a time of day: write hours and minutes, 00:00 to 24:00, for example 18:30")
    return 3600 * hours + 60 * minutes


_PRICES = ("sell", "sell_min", "buy", "buy_max")
_PARSERS: Mapping[str, Callable[[Node], object]] = {
    "prefix": prefix,
    **dict.fromkeys(_PRICES, quantity(price_msat_per_gib)),
    "margin": quantity(margin),
    "neighbour": _neighbour,
    "interface": interface,
    "from": _time_of_day,
    "to": _time_of_day,
}


@dataclass(frozen=True, slots=True)
class WrittenRule:
    """An entry of PRICES as written, before the general prices complete it; its node gives the line for errors."""

    rule: PriceRule
    node: Node


def price_rules(node: Node) -> tuple[WrittenRule, ...]:
    """Read PRICES: a list of entries, each with a prefix and at least one price or a margin.

    Raises: Refused; it has the entries that could be read.
    """
    if not isinstance(node, Items):
        raise refuse(node, "is not a list of prices: write a line `- {prefix: 198.51.100.0/24, sell: 3 msat}` for each")
    rules, findings = try_each(node.items, _price_rule)
    findings.extend(_second_prices(rules))
    if findings:
        raise Refused(*findings, readable=tuple(rules))
    return tuple(rules)


def _second_prices(rules: Iterable[WrittenRule]) -> Iterator[Finding]:
    of_prefix = dict[Prefix, list[WrittenRule]]()
    for written in rules:
        others = of_prefix.setdefault(written.rule.prefix, [])
        earlier = next((each for each in others if written.rule.rivals(each.rule)), None)
        if earlier is not None:
            second = f"gives {written.rule.prefix} a second price, as the entry in line {earlier.node.line},"
            message = f"{second} for the same {_shared(earlier.rule.hours, written.rule.hours)}"
            yield Finding(written.node.line, "", show(written.node), message)
        others.append(written)


def _shared(one: Hours | None, other: Hours | None) -> str:
    """Say what two entries of PRICES share, and how to tell them apart."""
    if one is None or other is None or one == other:
        return "neighbour, interface and time of day: remove one, or give it another of these"
    both = " and ".join(map(_show_hours, _common(one, other)))
    times = f"{_show_hours(one)} there and {_show_hours(other)} here both hold {both}"
    return f"neighbour and interface at times of day that overlap ({times}): remove one, or change its times"


def _common(one: Hours, other: Hours) -> list[Hours]:
    """Return the parts of the day that two parts share: two if each begins within the other."""
    found = []
    for from_s in dict.fromkeys((one.from_s, other.from_s)):
        if one.include(from_s) and other.include(from_s):
            lasts_s = min((to_s - from_s) % DAY_S or DAY_S for to_s in (one.to_s, other.to_s))
            found.append(Hours(from_s, (from_s + lasts_s) % DAY_S))
    return found


def _show_hours(hours: Hours) -> str:
    """Write a part of the day as net.conf does; its end at midnight is 24:00."""
    times = (hours.from_s, hours.to_s % DAY_S or DAY_S)
    return " to ".join(f"{time_s // 3600:02}:{time_s % 3600 // 60:02}" for time_s in times)


def _price_rule(node: Node) -> WrittenRule:
    if not isinstance(node, Entries):
        raise refuse(node, "is not an entry of PRICES: write {prefix: 198.51.100.0/24, sell: 3 msat}")
    fields = fields_of(node, _PARSERS)
    if "prefix" not in fields:
        raise refuse(node, "has no prefix: add one, for example prefix: 198.51.100.0/24")
    if not any(name in fields for name in (*_PRICES, "margin")):
        raise refuse(node, f"has no price: add one of {', '.join(_PRICES)}, or a margin")
    sell, sell_min, buy, buy_max = (fields.get(name) for name in _PRICES)
    rule = PriceRule(
        fields["prefix"],
        sell,
        sell_min,
        buy,
        buy_max,
        interface=fields.get("interface"),
        neighbour=fields.get("neighbour"),
        hours=_hours(node, fields.get("from"), fields.get("to")),
        margin=fields.get("margin"),
    )
    return WrittenRule(rule, node)


def _hours(node: Node, from_s: int | None, to_s: int | None) -> Hours | None:
    if from_s is None and to_s is None:
        return None
    if from_s is None or to_s is None:
        has, lacks = ("to", "from") if from_s is None else ("from", "to")
        raise refuse(node, f"has `{has}` without `{lacks}`: write both, for example from: 18:00, to: 23:00")
    if to_s - from_s == DAY_S:
        raise refuse(node, "holds for the whole day: leave out both `from` and `to`")
    if (to_s - from_s) % DAY_S == 0:
        raise refuse(node, "begins and ends at the same time of day: write another `to`, or neither for the whole day")
    return Hours(from_s % DAY_S, to_s)
