"""The steps of a top-up, from the contract that makes it due to the bytes that it paid for; a test can stop at each.

    gateway's node      gateway                         client                          client's node
                        AGREED: contract in its ledger
          ASKED   <---  AddInvoice
          MADE    --->  (invoice)
                        invoice ----------------------> intent in its ledger
                                                        INTENDED: SendPaymentV2   --->
          IN_FLIGHT <------------------------------------------------------------------- HTLC
          SETTLED ------------------------------------------------------------------->   preimage
          NOTICED --->  credit in its ledger            (answer held back)       <---
          (notice held back)        <-- proof lost --   PROVEN: paid in its ledger  <---
                        CREDITED: credit in its ledger
                        SPENT: some of it spent in the kernel

A test sees from outside that a step is reached: in a ledger, at a relay between daemon and node, or in a listing.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from enum import Enum
from itertools import count

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.lightning.trade import LightningTrade
from core_tests.shell import await_until

REACHED_S = 180.0
DEAF = ("INPUT", "-i", "mesh0", "-p", "udp", "--dport", "10325", "-j", "DROP")


class Step(Enum):
    """The step of a top-up at which a process is killed."""

    AGREED = "a contract is agreed"
    ASKED = "the gateway asks its node for an invoice"
    MADE = "its node has made the invoice, the gateway doesn't know it yet"
    INTENDED = "the client has written its intent down, its node doesn't know of it yet"
    IN_FLIGHT = "the payment is on its way between the nodes"
    SETTLED = "both nodes have settled, neither daemon knows it"
    NOTICED = "the gateway knows it from its node, the client doesn't"
    PROVEN = "the client knows it and sends its proof, the gateway has received nothing"
    CREDITED = "the credit is in the gateway's ledger"
    SPENT = "some of the credit is spent in the kernel"


class Stage:
    """Brings a trade to a step of a top-up, and lets it go on from there.

    Args:
        made: the trade, with a relay in front of each node, and with running traffic that must be paid.
    """

    def __init__(self, made: LightningTrade) -> None:
        self.trade = made.trade
        self.held = b""
        self._seller, self._buyer = made.relays["gateway"], made.relays["client"]
        self._destinations = count(2)
        self._deaf = False

    def reach(self, step: Step) -> None:
        """Wait until a top-up is at a step, and keep it there if possible."""
        match step:
            case Step.AGREED:
                self._agree()
            case Step.ASKED:
                self._seller.stop_at("AddInvoice", "asked")
                self._seller.await_stop("AddInvoice", "asked")
            case Step.MADE:
                self._seller.stop_at("AddInvoice", "answered")
                self._seller.await_stop("AddInvoice", "answered")
            case Step.INTENDED:
                self._buyer.stop_at("SendPaymentV2", "asked")
                self._buyer.await_stop("SendPaymentV2", "asked")
            case Step.IN_FLIGHT:
                self._seller.hold_invoices(True)
                self.held = self._seller.await_accepted()
            case Step.SETTLED:
                self._settle()
            case Step.NOTICED:
                self._buyer.stop_at("SendPaymentV2", "answered")
                paid = self._buyer.await_stop("SendPaymentV2", "answered")
                self._await_booked(self.trade.gateway, paid, "settled")
            case Step.PROVEN:
                paid = self._settle()
                self._cut_off(True)
                self._buyer.go()
                self._await_booked(self.trade.client, paid, "succeeded")
            case Step.CREDITED:
                self._credit()
            case Step.SPENT:
                self._credit()
                before = self._charged_msat()
                await_until(lambda: self._charged_msat() > before, REACHED_S, "bytes that are charged")

    def release(self) -> None:
        """Let everything that was stopped go on; a payment between the nodes stays there."""
        self._cut_off(False)
        self._seller.hold_invoices(False)
        self._seller.go()
        self._buyer.go()

    def end_held(self, settle: bool) -> None:
        """Let a payment that is on its way between the nodes arrive, or send it back."""
        held, self.held = self.held, b""
        if held:
            (self._seller.settle if settle else self._seller.cancel)(held)

    def _agree(self) -> None:
        net = self.trade.net
        remote = net.remote(6, next(self._destinations))
        traffic.start(net.client, "udp-send", remote, 5000, 1, 100, 1, 0)
        ask = ("SELECT count(*) FROM contracts WHERE destination = ?", f"{remote}/128")
        await_until(lambda: stored(self.trade.gateway, *ask), REACHED_S, "a contract")

    def _settle(self) -> bytes:
        self._seller.stop_at("SubscribeInvoices", "answered")
        self._buyer.stop_at("SendPaymentV2", "answered")
        self._seller.await_stop("SubscribeInvoices", "answered")
        return self._buyer.await_stop("SendPaymentV2", "answered")

    def _credit(self) -> None:
        ask = ("SELECT sum(paid_msat) FROM accounts",)
        before = stored(self.trade.gateway, *ask)
        await_until(lambda: stored(self.trade.gateway, *ask) > before, REACHED_S, "credit")

    def _await_booked(self, daemon: Daemon, payment_hash: bytes, state: str) -> None:
        ask = ("SELECT count(*) FROM payments WHERE payment_hash = ? AND state = ?", payment_hash, state)
        await_until(lambda: stored(daemon, *ask), REACHED_S, f"payment {state} on {daemon.name}")

    def _charged_msat(self) -> int:
        return sum(int(row["charged_msat"]) for row in self.trade.sold())

    def _cut_off(self, wanted: bool) -> None:
        """Cut off the gateway's daemon from its neighbours, or reconnect it."""
        if wanted != self._deaf:
            self.trade.net.gateway.sh("iptables", "-I" if wanted else "-D", *DEAF)
            self._deaf = wanted


def stored(daemon: Daemon, question: str, *values: object) -> int:
    """Read a number from a daemon's ledger, without the daemon."""
    with closing(sqlite3.connect(f"file:{daemon.state_dir}/ledger.db?mode=ro", uri=True, timeout=10)) as ledger:
        return int(ledger.execute(question, values).fetchone()[0] or 0)
