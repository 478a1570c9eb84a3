"""Answers: what a landlord says over the HTTPS interface, read from JSON and checked value by value.

A landlord may be hostile, or broken. Each answer becomes a value or an AnswerError, nothing else. Amounts on this
interface are whole sat, times UTC seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from ngp.core.messages import Prefix
from ngp.core.pricing import SAT_MSAT
from ngp.core.tenant.terms import SaleTerms

MOST_SAT = 21_000_000 * 100_000_000
MOST_TIME_S = 1 << 40
LEAST_RATE_SAT_S, MOST_RATE_SAT_S = 1e-10, 1e6
"""A rent that isn't 0 is within these: with a smaller one, the end of the credit is beyond all numbers."""
WIDEST_BITS: Mapping[int, int] = {4: 16, 6: 32}
"""By IP version: the least prefix length of a rented network. A wider one could draw most traffic into the tunnel."""
_MOST_NETWORKS = 16
_MOST_TEXT = 4096

Answer = Mapping[str, Any]


class AnswerError(ValueError):
    """An answer isn't what it must be; the text is for the tenant."""


@dataclass(frozen=True, slots=True)
class Status:
    """A rental as its landlord has it. Money msat, times UTC seconds by the landlord's clock.

    Attributes:
        credit_msat: rounded down; negative while back rent is owed.
        left_s: how long the credit lasts.
        unpaid_invoice: an invoice of this rental that waits for its payment, BOLT11; "" if there is none.
        state, offer: "" where the face doesn't say them. reason: why it is in this state.
        reserved_until_s: 0 unless it is reserved, and the face says how long.
        fetchable_msat: what is left of a rental that is over, and can be paid back; None: the face pays nothing back.
        price_msat_per_gib: for traffic. used_to_bytes, used_from_bytes: metered so far, to the tenant and from it. None
            where the face doesn't say them.
    """

    networks: tuple[Prefix, ...]
    started_at_s: int
    now_s: int
    left_s: int
    credit_msat: int
    rate_sat_s: float
    paid_msat: int
    payments: int
    activation_fee_msat: int
    unpaid_invoice: str
    state: str = ""
    offer: str = ""
    reason: str = ""
    refunded_msat: int = 0
    reserved_until_s: int = 0
    fetchable_msat: int | None = None
    price_msat_per_gib: int | None = None
    used_to_bytes: int | None = None
    used_from_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A landlord's invoice, and the terms that hold from its payment on.

    Attributes: payee: public key of the node whose invoice it must be, hexadecimal; "": any node's.
    """

    bolt11: str
    is_first: bool
    added_msat: int
    terms: SaleTerms
    status: Status
    payee: str = ""


def read_terms(answer: Answer) -> SaleTerms:
    """Read the terms of sale. Raises: AnswerError."""
    return _terms(answer, with_fee=True)


def read_asked(answer: Answer) -> Asked:
    """Read the answer to a request for credit. Raises: AnswerError."""
    is_first = _field(answer, "InitialInvoice")
    if not isinstance(is_first, bool):
        raise _wrong("InitialInvoice", is_first, "true or false")
    return Asked(
        bolt11=_text(answer, "Invoice"),
        is_first=is_first,
        added_msat=_sat(answer, "AddedCredit"),
        terms=_terms(_object(answer, "SellOfferTerms"), with_fee=is_first),
        status=read_status(_object(answer, "Status")),
    )


def read_status(answer: Answer) -> Status:
    """Read a rental's status. Raises: AnswerError."""
    unpaid = "" if answer.get("unpaid_invoice") is None else _text(answer, "unpaid_invoice")
    return Status(
        networks=read_networks(_field(answer, "Networks")),
        started_at_s=int(_number(answer, "start_time", 0, MOST_TIME_S)),
        now_s=int(_number(answer, "current_time", 0, MOST_TIME_S)),
        left_s=math.floor(_number(answer, "TimeRemaining", -MOST_TIME_S, MOST_TIME_S)),
        credit_msat=math.floor(_number(answer, "Credit", -MOST_SAT, MOST_SAT) * SAT_MSAT),
        rate_sat_s=_rate(answer, "CurrentRate") if _field(answer, "CurrentRate") else 0.0,
        paid_msat=_sat(answer, "total_paid"),
        payments=_whole(answer, "NumberOfPayments", MOST_SAT),
        activation_fee_msat=_sat(answer, "ActivationFee"),
        unpaid_invoice=unpaid,
    )


def _terms(answer: Answer, with_fee: bool) -> SaleTerms:
    return SaleTerms(
        rate_sat_s=_rate(answer, "Rate"),
        activation_fee_msat=_sat(answer, "ActivationFee") if with_fee else 0,
        initial_credit_min_msat=_sat(answer, "MinimumInitialCredit"),
        payment_min_msat=_sat(answer, "MinRegularPaymentSize"),
        credit_max_msat=_sat(answer, "MaximumCredit"),
    )


def read_networks(found: object) -> tuple[Prefix, ...]:
    """Read what is rented. Raises: AnswerError."""
    if not isinstance(found, list) or len(found) > _MOST_NETWORKS:
        raise _wrong("Networks", found, f"a list of at most {_MOST_NETWORKS}")
    return tuple(_network(one) for one in found)


def _network(written: object) -> Prefix:
    """Read a prefix. Python takes any text, even a command, as an IPv6 address's zone (after %), so none is allowed.

    The networks come into lines that wg-quick runs as root (`ngp.tenant.policy`).
    """
    try:
        if isinstance(written, str) and "%" not in written:
            found = ip_network(written)
            if found.prefixlen >= WIDEST_BITS[found.version]:
                return found
    except ValueError:
        pass
    raise _wrong("Networks", written, "prefixes")


def _rate(answer: Answer, key: str) -> float:
    return float(_number(answer, key, LEAST_RATE_SAT_S, MOST_RATE_SAT_S))


def _sat(answer: Answer, key: str) -> int:
    return _whole(answer, key, MOST_SAT) * SAT_MSAT


def _whole(answer: Answer, key: str, most: int) -> int:
    value = _number(answer, key, 0, most)
    if value != int(value):
        raise _wrong(key, value, "a whole number")
    return int(value)


def _number(answer: Answer, key: str, least: float, most: float) -> float:
    value = _field(answer, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _wrong(key, value, f"a number from {least:g} to {most:g}")
    return value


def _text(answer: Answer, key: str) -> str:
    return read_text(key, _field(answer, key))


def read_text(key: str, value: object) -> str:
    """Read a text that a terminal may show. Raises: AnswerError."""
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_TEXT or not value.isascii() or not value.isprintable():
        raise _wrong(key, value, "a text")
    return value


def _object(answer: Answer, key: str) -> Answer:
    value = _field(answer, key)
    if not isinstance(value, dict):
        raise _wrong(key, value, "an object")
    return value


def _field(answer: Answer, key: str) -> Any:
    if key not in answer:
        raise AnswerError(f"the landlord's answer lacks {key}: it isn't a StaticWire landlord, or is broken")
    return answer[key]


def _wrong(key: str, value: object, right: str) -> AnswerError:
    shown = repr(value)[:60]
    return AnswerError(f"the landlord's answer has {key}: {shown}, which isn't {right}; nothing was done")
