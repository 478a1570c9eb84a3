"""Electrum: real Lightning through the daemon of the Electrum wallet, the light choice for a router without LND.

How Electrum 4.3.4 (Debian 12) behaves, by its source and by tests, and how ngp deals with that:

- Invoices are of whole sat, with a preimage that Electrum chooses. Electrum can't hold a payment, and can't sign with
  its node's key. So neighbours have only our word that the node is ours.
- `lnpay` returns when the payment is over. It has no fee limit: on a route it spends up to 1 % on fees, or 5 sat if
  that is more. If our limit is lower, we refuse the payment unless a direct channel has the balance.
- Simultaneous calls of `lnpay` for one invoice can all pay: of 8 invoices with three simultaneous calls each, 5 were
  paid three times. So there is never a second call while the first may still run, and none for an invoice that
  Electrum lists as paid or on its way.
- Whether a payment succeeded is read from the history of the channels, as Electrum forgets the state of an invoice if
  it is killed at the wrong moment. If Electrum lists an invoice as unpaid after a restart, its payment has failed only
  if all channels have synchronised with their peers again. Until then the payment is PENDING.
- Electrum calls a request paid when the payment has arrived, even if the payment may still fail. The history lists the
  payment only after the preimage was revealed, and only a payment in the history is a settlement for us. Electrum has
  no stream of settlements, so we watch the channels, and read the history when one has changed; `electrum_journal`
  numbers the settlements found.

Source: electrum/commands.py, lnworker.py, lnpeer.py, daemon.py of Debian's python3-electrum 4.3.4.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from ngp import invoice, node_key
from ngp.core.payment_node import UNKNOWN_PAYMENT, DecodedInvoice, PaymentOutcome, PaymentStatus, Settlement
from ngp.core.pricing import SAT_MSAT
from ngp.core.values import Check
from ngp.errors import ConfigError, PaymentError, PeerError
from ngp.modules.payment.electrum_journal import Journal
from ngp.modules.payment.electrum_rpc import ElectrumError
from ngp.modules.payment.electrum_upkeep import ElectrumUpkeep
from ngp.modules.payment.electrum_wallet import COIN_SAT, NOT_LOADED, ElectrumWallet, btc
from ngp.ports.payment import InvoiceState, NewInvoice, PaymentCapabilities, PaymentInfo
from ngp.remembered_node import RememberedNode

POLL_S = 0.5
# The history is read at this interval even if no channel seems to have changed.
FULL_LOOK_S = 30.0
LEAST_AMOUNT_MSAT = 1_000
# lnrouter.is_fee_sane
FEE_MSAT, FEE_PARTS = 5_000, 100
_UNPAID, _EXPIRED, _PAID, _IN_FLIGHT, _FAILED = 0, 1, 3, 4, 5
_SENT, _RECEIVED = 0, 1
_WITHOUT_HTLCS = ("PREOPENING", "OPENING", "FUNDED", "REDEEMED")
_NOT_FOUND = "Request not found"
_LOGIN = "Electrum's login"
_LEAST_VERSION = (4, 3)


class ElectrumPayment(ElectrumUpkeep):
    """A wallet of an Electrum daemon; implements `ngp.ports.Payment`.

    Args:
        state_dir: has the journal, and a file with the node's key and network, which is read while the node is down.
        options: ELECTRUM_HOST, ELECTRUM_USER, ELECTRUM_PASSWORD_FILE and ELECTRUM_WALLET; all are optional.
    """

    def __init__(self, state_dir: Path, options: Mapping[str, str] | None = None) -> None:
        super().__init__(ElectrumWallet(options or {}))
        self._remembered = RememberedNode(state_dir, "electrum")
        self._journal_file = state_dir / "electrum.db"
        self._opened_journal: Journal | None = None
        self._info: PaymentInfo | None = None
        self._paying: dict[bytes, asyncio.Task[PaymentOutcome]] = {}

    # --- the node -----------------------------------------------------------------------------------------------------

    async def wait_ready(self) -> None:
        """Return when the daemon answers and has loaded the wallet; we load it if that needs no password."""
        await self._ask_info()

    async def info(self) -> PaymentInfo:
        """Return the node's key and network; while the node is down, those that it reported last."""
        try:
            return self._info or await self._ask_info()
        except ElectrumError as error:
            known = self._remembered.read()
            if known is None or (error.answered and error.detail != NOT_LOADED):
                raise
            self._info = known
            return known

    async def confirm_node(self) -> None:
        """Raise PaymentError if no node answers, or if another node answers than the one that ngp uses."""
        await self._ask_info()

    async def _ask_info(self) -> PaymentInfo:
        told = await self._wallet.ask_daemon("getinfo")
        _require_version(str(told["version"]))
        network = str(told["network"])
        key = str(await self._wallet.ask("nodeid")).partition("@")[0]
        self._info = self._remembered.confirm(PaymentInfo(key, network), "Electrum", in_use=self._info)
        return self._info

    def capabilities(self) -> PaymentCapabilities:
        """Return the capabilities: the money is real on mainnet, and Electrum itself reports settlements."""
        real = self._info is None or self._info.network == "mainnet"
        return PaymentCapabilities(real_money=real, settles_by_proof=False, least_amount_msat=LEAST_AMOUNT_MSAT)

    async def check(self, spends: bool) -> list[Check]:  # noqa: ARG002  Electrum has no separate right to spend
        """Check that user and password can be read, and aren't sent unencrypted; reads files, doesn't ask the node."""
        try:
            endpoint = self._wallet.endpoint()
        except ConfigError as error:
            return [Check(_LOGIN, False, str(error))]  # the error has its own remedy
        if endpoint.leaves_unencrypted:
            found = f"goes to {endpoint.where} unencrypted, and anyone who reads it can spend all that the wallet has"
            return [Check(_LOGIN, False, found, "run Electrum on this machine, or reach it through a tunnel")]
        return [Check(_LOGIN, True, f"allows all that the wallet can do, at {endpoint.where}")]

    async def balance_msat(self) -> int:
        """Return our balance in the channels, without payments on their way."""
        told = (await self._wallet.ask("getbalance")).get("lightning", "0")
        under_way = sum(one["local_unsettled_sent"] for one in await self._wallet.channels())
        return int(Decimal(told) * COIN_SAT * SAT_MSAT) - int(under_way) * SAT_MSAT

    async def sign(self, message: bytes) -> str:  # noqa: ARG002  the port's
        """Raise PaymentError: Electrum can't sign with its node's key, and we don't want that key in our own hands."""
        raise PaymentError("Electrum can't sign with its Lightning node's key; neighbours have only ngp's word for it")

    def verify(self, message: bytes, signature: str) -> str | None:
        """Return the public key that signed, or None; doesn't ask the node, as the signature reveals the key."""
        return node_key.signer(message, signature)

    async def close(self) -> None:
        """Close connections and journal; payments on their way go on at the node. Safe to call twice."""
        paying = list(self._paying.values())
        for task in paying:
            task.cancel()
        await asyncio.gather(*paying, return_exceptions=True)
        journal, self._opened_journal = self._opened_journal, None
        if journal is not None:
            journal.close()

    @property
    def _journal(self) -> Journal:
        if self._opened_journal is None:  # opened at its first use, as `ngp check` must not create the file
            self._opened_journal = Journal(self._journal_file)
        return self._opened_journal

    # --- receiving ----------------------------------------------------------------------------------------------------

    async def create_invoice(
        self, amount_msat: int, memo: str, expiry_s: int, preimage: bytes | None = None, hold: bool = False
    ) -> NewInvoice:
        """Make an invoice, with routing hints for our channels.

        Args:
            amount_msat: at least 1,000, a whole number of sat.
            memo: shown to the payer.
            expiry_s: seconds until it expires; Electrum accepts a late payment all the same.
            preimage: must be None; Electrum chooses a random one.
            hold: must be False.
        """
        if preimage is not None or hold:
            raise PaymentError("Electrum chooses preimages itself and can't hold payments; use LND for that")
        amount_sat, rest = divmod(amount_msat, SAT_MSAT)
        if rest or amount_sat < 1:
            raise PaymentError(f"Electrum makes invoices of whole sat, not of {amount_msat} msat")
        made = await self._wallet.add_request(btc(amount_sat), memo, expiry_s)
        if not made.get("lightning_invoice"):
            raise PaymentError(
                "Electrum's wallet has no Lightning: make another by `electrum create`, and name it in ELECTRUM_WALLET"
            )
        return NewInvoice(made["lightning_invoice"], bytes.fromhex(made["rhash"]), amount_msat, expiry_s)

    async def lookup_invoice(self, payment_hash: bytes) -> InvoiceState:
        """Return the state of an invoice of ours. Raises PaymentError for any other invoice."""
        try:
            asked = await self._wallet.ask("get_request", request_id=payment_hash.hex())
        except ElectrumError as error:
            if error.answered and self._journal.cancelled(payment_hash):
                return InvoiceState.CANCELLED
            raise
        if asked["status"] != _PAID:
            return InvoiceState.OPEN
        return InvoiceState.SETTLED if payment_hash in await self._received() else InvoiceState.ACCEPTED

    async def wait_held(self, payment_hash: bytes) -> int | None:  # noqa: ARG002  the port's
        """Return None: Electrum can't hold payments."""
        return None

    async def settle_invoice(self, preimage: bytes) -> None:  # noqa: ARG002  the port's
        """Raise PaymentError: Electrum can't hold payments."""
        raise PaymentError("Electrum can't hold payments, so there is none to settle; use LND for that")

    async def cancel_invoice(self, payment_hash: bytes) -> None:
        """Delete an invoice that isn't paid; from then on Electrum refuses a payment of it.

        An invoice that the wallet doesn't have (the wallet was restored from a backup, or the request deleted by hand)
        counts as cancelled too, since Electrum refuses payments of such an invoice.
        """
        try:
            state = await self.lookup_invoice(payment_hash)
        except ElectrumError as error:
            if error.detail != _NOT_FOUND:
                raise
            if payment_hash not in await self._received():
                return
            state = InvoiceState.SETTLED
        if state not in (InvoiceState.OPEN, InvoiceState.CANCELLED):
            raise PaymentError(
                f"invoice {payment_hash.hex()} is paid already and can't be cancelled: the neighbour is credited with "
                "the payment, and `ngp refund NEIGHBOUR` pays it back"
            )
        self._journal.cancel(payment_hash)  # before deleting it, or nothing would show that it was ours
        try:
            await self._wallet.ask("delete_request", request_id=payment_hash.hex())
        except ElectrumError as error:
            if error.answered:  # a refusal: it was paid meanwhile. Without an answer it may have been deleted
                self._journal.keep(payment_hash)
            raise

    async def watch_settlements(self, cursor: int) -> AsyncIterator[Settlement]:
        """Yield the settlements after the cursor, in the journal's order; raises when Electrum goes away."""
        seen: object = None
        looked_at = -FULL_LOOK_S
        while True:
            now, state = time.monotonic(), await self._wallet.ask("list_channels")
            if state != seen or now - looked_at >= FULL_LOOK_S:
                seen, looked_at = state, now
                await self._note_settled(cursor)
            for settlement in self._journal.after(cursor):
                cursor = settlement.cursor
                yield settlement
            await asyncio.sleep(POLL_S)

    async def _note_settled(self, cursor: int) -> None:
        """Number the new settlements in the history."""
        known = self._journal.amounts_msat()
        for payment_hash, amount_msat in (await self._received()).items():
            if amount_msat > known.get(payment_hash, 0):
                self._journal.add(payment_hash, amount_msat, cursor)

    async def _received(self) -> dict[bytes, int]:
        """Return the amounts received, in msat, by payment hash, oldest first."""
        return {
            bytes.fromhex(one["payment_hash"]): one["amount_msat"]
            for one in await self._wallet.history()
            if one["direction"] == _RECEIVED
        }

    # --- paying -------------------------------------------------------------------------------------------------------

    def decode(self, bolt11: str) -> DecodedInvoice:
        """Parse an invoice and check its signature; the input may be hostile. Raises PeerError(`invoice`)."""
        return invoice.read(bolt11).decoded(int(time.time()))

    async def pay(
        self,
        bolt11: str,
        fee_limit_msat: int,
        timeout_s: float,
        via_peer: str | None = None,  # noqa: ARG002  Electrum prefers a direct channel anyway, and has no such option
    ) -> PaymentOutcome:
        """Pay an invoice once; a second call for the same hash waits for the outcome of the same payment.

        Args:
            bolt11: an invoice with an amount.
            fee_limit_msat: the most that routing may cost; see the module's docstring.
            timeout_s: how long we wait; after that we return PENDING, and the payment goes on.
            via_peer: ignored.
        """
        try:
            decoded = self.decode(bolt11)
        except PeerError as error:
            raise PaymentError(f"can't pay: not an invoice ({error})") from error
        payment_hash, deadline = decoded.payment_hash, time.monotonic() + timeout_s
        task = self._paying.get(payment_hash)
        if task is None:
            task = asyncio.create_task(self._pay(bolt11, decoded, fee_limit_msat))
            self._paying[payment_hash] = task
            task.add_done_callback(lambda done: self._paid(payment_hash, done))
        await asyncio.wait([task], timeout=timeout_s)
        outcome = task.result() if task.done() else PaymentOutcome(payment_hash, PaymentStatus.PENDING)
        while task.done() and outcome.status is PaymentStatus.PENDING and time.monotonic() + POLL_S < deadline:
            await asyncio.sleep(POLL_S)
            outcome = await self._fate_if_told(payment_hash)
        return outcome

    def _paid(self, payment_hash: bytes, task: asyncio.Task[PaymentOutcome]) -> None:
        self._paying.pop(payment_hash, None)
        if not task.cancelled():
            task.exception()  # perhaps nobody awaits the task any more; `track` finds the outcome

    async def _pay(self, bolt11: str, decoded: DecodedInvoice, fee_limit_msat: int) -> PaymentOutcome:
        """Call `lnpay`, unless an earlier call may still pay."""
        before = await self._fate(decoded.payment_hash)
        if before.status is not PaymentStatus.FAILED:
            return before
        refusal = await self._refusal(decoded, fee_limit_msat)
        if refusal:
            return PaymentOutcome(decoded.payment_hash, PaymentStatus.FAILED, reason=refusal)
        reason = ""
        try:
            told = await self._wallet.ask("lnpay", None, invoice=bolt11)
            reason = _why(told["log"])
        except ElectrumError as error:
            if not error.answered:
                return PaymentOutcome(decoded.payment_hash, PaymentStatus.PENDING)
            reason = error.detail
        after = await self._fate_if_told(decoded.payment_hash)
        if after.status is PaymentStatus.FAILED:
            return PaymentOutcome(decoded.payment_hash, PaymentStatus.FAILED, reason=reason)
        return after

    async def _refusal(self, decoded: DecodedInvoice, fee_limit_msat: int) -> str:
        """Say why Electrum must not pay: it can't, or its fees might exceed the limit; "" if it may."""
        amount_msat = decoded.amount_msat or 0
        usable = [
            one for one in await self._wallet.channels() if one["state"] == "OPEN" and one["peer_state"] == "GOOD"
        ]
        if sum(_free_msat(one) for one in usable) < amount_msat:
            return "the channels' balance does not cover it"
        if any(one["remote_pubkey"] == decoded.payee and _free_msat(one) >= amount_msat for one in usable):
            return ""
        most_msat = max(FEE_MSAT, amount_msat // FEE_PARTS)
        if fee_limit_msat >= most_msat:
            return ""
        return (
            f"no direct channel with the payee has the balance, and on a route Electrum may spend {most_msat} msat on "
            f"fees, above the limit of {fee_limit_msat} msat"
        )

    async def track(self, payment_hash: bytes) -> PaymentOutcome:
        """Return a payment's outcome; FAILED with reason `unknown` if Electrum doesn't know it."""
        outcome = await self._fate(payment_hash)
        if payment_hash in self._paying and outcome.status is PaymentStatus.FAILED:  # `lnpay` may not have started yet
            return PaymentOutcome(payment_hash, PaymentStatus.PENDING)
        return outcome

    async def _fate(self, payment_hash: bytes) -> PaymentOutcome:
        """Read the outcome from Electrum: first the invoice, then the history, so that no change between is missed."""
        status = await self._status(payment_hash)
        for one in await self._wallet.history():
            if one["direction"] == _SENT and one["payment_hash"] == payment_hash.hex():
                preimage, fee = bytes.fromhex(one["preimage"]), one["fee_msat"] or 0
                return PaymentOutcome(payment_hash, PaymentStatus.SUCCEEDED, preimage, fee)
        if status is None:
            return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason=UNKNOWN_PAYMENT)
        if status in (_UNPAID, _EXPIRED) and await self._agrees_with_peers():
            return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason="Electrum ended before it was paid")
        if status == _FAILED and not await self._has_parts_left():
            return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason="Electrum gave up; see its log")
        return PaymentOutcome(payment_hash, PaymentStatus.PENDING)

    async def _fate_if_told(self, payment_hash: bytes) -> PaymentOutcome:
        """Read the outcome of a payment that may have started; PENDING while Electrum can't be asked."""
        try:
            return await self._fate(payment_hash)
        except ElectrumError:
            return PaymentOutcome(payment_hash, PaymentStatus.PENDING)

    async def _status(self, payment_hash: bytes) -> int | None:
        try:
            return int((await self._wallet.ask("get_invoice", invoice_id=payment_hash.hex()))["status"])
        except ElectrumError as error:
            if error.detail != _NOT_FOUND:
                raise
            return None

    async def _agrees_with_peers(self) -> bool:
        """Say whether all channels have synchronised with their peers, so that no HTLC is missing in Electrum's list.

        Electrum stores an HTLC only after it was sent to the peer. If it is killed between, only the peer knows it.
        """
        return all(
            (one["state"], one["peer_state"]) == ("OPEN", "GOOD") or one["state"] in _WITHOUT_HTLCS
            for one in await self._wallet.channels()
        )

    async def _has_parts_left(self) -> bool:
        """Say whether parts of a payment may still be on their way although Electrum has given the payment up."""
        if not any(one["local_unsettled_sent"] for one in await self._wallet.channels()):
            return False
        return all(one["status"] != _IN_FLIGHT for one in await self._wallet.ask("list_invoices"))


def _require_version(version: str) -> None:
    """Raise PaymentError for an Electrum that is too old. Versions newer than the tried ones are accepted."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < _LEAST_VERSION:
        raise PaymentError(f"Electrum {version} is too old: ngp needs 4.3 or later (tried with 4.3.4 and 4.5.8)")


def _free_msat(channel: Mapping[str, Any]) -> int:
    return int(channel["local_balance"] - channel["local_unsettled_sent"]) * SAT_MSAT


def _why(log: list[list[str]]) -> str:
    """Return why a payment failed, from Electrum's list of attempts: length, channel and result."""
    if not log:
        return "no route found, or the channels can't carry it; see Electrum's log"
    *_, where, what = log[-1]
    return f"{what} at {where}"
