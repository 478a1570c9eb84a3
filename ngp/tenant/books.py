"""Books: what a tenant paid for a rental, in TunnelState.yaml.

A payment is written here before it is sent, with its payment hash. So after a kill at any moment the next start knows
which payment may be on its way, asks the node for its outcome, and never pays for the same thing again. A payment's
outcome and the rental's sums are one file, replaced at once.

The keys are those of the published client, which keeps keys that it doesn't know (`Pending`, `Payments`, `Traffic`,
`Bought`, `BoughtSince`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from ngp.core.pricing import SAT_MSAT
from ngp.core.tenant.account import Account, Order, paid
from ngp.core.tenant.traffic import Traffic
from ngp.errors import ConfigError
from ngp.tenant import files

KEPT_PAYMENTS = 1000
_NO_LONGER = "restore it from a backup, or move it away: then nothing is known of earlier payments"


@dataclass(frozen=True, slots=True)
class Sent:
    """A payment whose outcome is known.

    Attributes:
        fee_msat: what its routing cost.
        state: `paid` or `failed`.
        preimage: the proof that it was paid; b"" if it wasn't.
    """

    payment_hash: bytes
    amount_msat: int
    fee_msat: int
    sent_at_s: int
    state: str
    preimage: bytes = b""


@dataclass(frozen=True, slots=True)
class Books:
    """What is known of a rental's payments.

    Attributes:
        pending: a payment whose outcome isn't known yet.
        bought_msat: the credit that our node's payments bought since the user last paid by hand. No landlord's word
            changes it.
        bought_since_s: when that was, or else when the first of them was sent, UTC by our clock; 0: there is none.
        traffic: what was charged and counted, if it has a price; None: AutoPay hasn't looked since the user last paid.
    """

    account: Account = field(default_factory=Account)
    pending: Order | None = None
    sent: tuple[Sent, ...] = ()
    should_run: bool = False
    bought_msat: int = 0
    bought_since_s: int = 0
    traffic: Traffic | None = None

    @property
    def proof(self) -> bytes:
        """The preimage of the latest payment; b"" if there is none."""
        return self.sent[-1].preimage if self.sent else b""

    def succeeded(self, fee_msat: int, preimage: bytes) -> Books:
        """Count the pending payment."""
        order = self._order()
        return replace(
            self._closed("paid", fee_msat, preimage),
            account=paid(self.account, order),
            bought_msat=self.bought_msat + order.added_msat,
            bought_since_s=self.bought_since_s or order.sent_at_s,
        )

    def accepted(self, at_s: int) -> Books:
        """Count anew what bounds the payments of AutoPay: a user who pays by hand accepts what was charged so far."""
        return replace(self, traffic=None, bought_msat=0, bought_since_s=at_s)

    def failed(self) -> Books:
        """Close the pending payment as failed: nothing was paid."""
        return self._closed("failed", 0)

    def spent_msat(self, since_s: float) -> int:
        """Return what was spent from a time on, fees included; a pending payment counts with its highest fee."""
        paid_since = [one for one in self.sent if one.state == "paid" and one.sent_at_s >= since_s]
        known_msat = sum(one.amount_msat + one.fee_msat for one in paid_since)
        order = self.pending
        return known_msat + (order.amount_msat + order.fee_limit_msat if order is not None else 0)

    def _closed(self, state: str, fee_msat: int, preimage: bytes = b"") -> Books:
        order = self._order()
        one = Sent(order.payment_hash, order.amount_msat, fee_msat, order.sent_at_s, state, preimage)
        sent = [*self.sent, one]
        if len(sent) > KEPT_PAYMENTS:  # a landlord whose invoices always fail mustn't push out what budgets count
            sent.remove(next((each for each in sent if each.state == "failed"), sent[0]))
        return replace(self, pending=None, sent=tuple(sent))

    def _order(self) -> Order:
        if self.pending is None:
            raise ValueError("no payment is pending")
        return self.pending


class BooksFile:
    """The books' file. Only one process may change it (`files.only_one`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Books:
        """Return the books; empty ones if there is no file. Raises ConfigError: the file is damaged."""
        values = files.read_yaml(self.path)
        try:
            return _read(values)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{self.path} is damaged ({type(error).__name__}): {_NO_LONGER}") from error

    def write(self, books: Books) -> None:
        """Replace the file; durable when it returns. Raises NgpError."""
        before = files.read_yaml(self.path)
        if before and "Pending" not in before:  # the published client wrote this file: keep a copy
            files.replace(self.path.with_name(f"{self.path.name}.before"), self.path.read_bytes())
        files.write_yaml(self.path, {**before, **_values(books)})


def _read(values: dict[str, Any]) -> Books:
    pending = values.get("Pending")
    sent = values.get("Payments") or []
    account = _account(values) if not values.get("InitialPayment", True) else Account()
    traffic = values.get("Traffic")
    return Books(
        account=account,
        pending=None if pending is None else _order(pending),
        sent=tuple(
            Sent(
                bytes.fromhex(one["payment_hash"]), int(one["amount_msat"]), int(one["fee_msat"]),
                int(one["time"]), str(one["state"]), bytes.fromhex(one.get("preimage", "")),
            )
            for one in sent
        ),
        should_run=bool(values.get("TunnelShouldBeRunning", False)),
        # the published client, which keeps neither, made all the payments that it counts
        bought_msat=_msat(values["Bought"]) if "Bought" in values else account.paid_msat - account.activation_fee_msat,
        bought_since_s=int(values.get("BoughtSince", account.started_at_s)),
        traffic=None if traffic is None else _traffic(traffic),
    )  # fmt: skip


def _traffic(values: dict[str, Any]) -> Traffic:
    return Traffic(
        source=str(values["source"]),
        seen_bytes=int(values["seen_bytes"]),
        counted_bytes=int(values["counted_bytes"]),
        cost_units=int(values["cost_units"]),
        price_msat_per_gib=int(values["price_msat_per_gib"]),
        charged_msat=int(values["charged_msat"]),
    )


def _account(values: dict[str, Any]) -> Account:
    return Account(
        started=True,
        networks=tuple(ip_network(one) for one in values.get("Networks") or ()),
        started_at_s=int(values["start_time"]),
        since_s=int(values["start_time_CurrentRate"]),
        paid_since_msat=_msat(values["amount_paid_CurrentRate"]),
        carried_msat=_msat(values["Credit_PreviousRate"]),
        rate_sat_s=float(values["CurrentRate"]),
        paid_msat=_msat(values["total_paid"]),
        payments=int(values["NumberOfPayments"]),
        activation_fee_msat=_msat(values["ActivationFee"]),
    )


def _order(values: dict[str, Any]) -> Order:
    return Order(
        payment_hash=bytes.fromhex(values["payment_hash"]),
        amount_msat=int(values["amount_msat"]),
        added_msat=int(values["added_msat"]),
        is_first=bool(values["is_first"]),
        rate_sat_s=float(values["rate"]),
        at_s=int(values["invoice_time"]),
        node=str(values["node"]),
        fee_limit_msat=int(values["fee_limit_msat"]),
        sent_at_s=int(values["time"]),
        carried_msat=None if values.get("carried_msat") is None else int(values["carried_msat"]),
    )


def _values(books: Books) -> dict[str, Any]:
    account, order = books.account, books.pending
    values: dict[str, Any] = {
        "InitialPayment": not account.started,
        "TunnelShouldBeRunning": books.should_run,
        "total_paid": _sat(account.paid_msat),
        "NumberOfPayments": account.payments,
        "Bought": _sat(books.bought_msat),
        "BoughtSince": books.bought_since_s,
    }
    if account.started:
        values |= {
            "ActivationFee": _sat(account.activation_fee_msat),
            "Networks": [str(one) for one in account.networks],
            "start_time": account.started_at_s,
            "start_time_CurrentRate": account.since_s,
            "amount_paid_CurrentRate": _sat(account.paid_since_msat),
            "Credit_PreviousRate": _sat(account.carried_msat),
            "CurrentRate": account.rate_sat_s,
        }
    values["Pending"] = order and {
        "payment_hash": order.payment_hash.hex(),
        "amount_msat": order.amount_msat,
        "added_msat": order.added_msat,
        "is_first": order.is_first,
        "rate": order.rate_sat_s,
        "invoice_time": order.at_s,
        "node": order.node,
        "fee_limit_msat": order.fee_limit_msat,
        "time": order.sent_at_s,
        "carried_msat": order.carried_msat,
    }
    values["Traffic"] = asdict(books.traffic) if books.traffic is not None else None
    values["Payments"] = [
        {
            "payment_hash": one.payment_hash.hex(),
            "amount_msat": one.amount_msat,
            "fee_msat": one.fee_msat,
            "time": one.sent_at_s,
            "state": one.state,
            "preimage": one.preimage.hex(),
        }
        for one in books.sent
    ]
    return values


def _msat(sat: float) -> int:
    if isinstance(sat, bool) or not isinstance(sat, int | float):
        raise ValueError(sat)
    return round(sat * SAT_MSAT)


def _sat(msat: int) -> int | float:
    return msat // SAT_MSAT if msat % SAT_MSAT == 0 else msat / SAT_MSAT
