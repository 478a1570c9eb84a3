"""Electrum: real Lightning by the daemon of the Electrum wallet, the light choice for a router without LND.

Read and tried in Electrum 4.3.4 (Debian 12). What it gives, and what ngp makes of it:

- Invoices are of whole sat, with a preimage of Electrum's own; it can't hold a payment, and can't sign with its node's
  key. The capabilities say so, and neighbours take our word for whose node it is.
- `lnpay` answers when the payment is over, and takes no fee limit: on a route it spends up to 1 %, or 5 sat if that is
  more. So a payment for which no direct channel has the balance is refused where the limit is below that.
- Calls of `lnpay` for one invoice at the same time can all pay: of 8 invoices for which three were made at once, 5 were
  paid three times. So there is never a second one while a first may be running, and none for an invoice that Electrum
  knows as on its way or paid.
- What became of a payment is told by the history of the channels, before the state of the invoice, which Electrum
  forgets when it is killed at the wrong moment: an invoice that it calls unpaid after a restart has failed only if all
  channels agree with their peers again. Until then it is PENDING.
- A request is called paid when its payment has arrived, also while it could still fail; in the history it stands once
  the preimage is out. Only that is a settlement. There is no stream of them, so the channels are looked at, and the
  history when one has changed; `electrum_journal` numbers what is found.

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

from ngp.core.pricing import SAT_MSAT
from ngp.errors import ConfigError, PaymentError, PeerError
from ngp.modules.payment import invoice, node_key
from ngp.modules.payment.electrum_journal import Journal
from ngp.modules.payment.electrum_rpc import ElectrumError
from ngp.modules.payment.electrum_upkeep import ElectrumUpkeep
from ngp.modules.payment.electrum_wallet import COIN_SAT, NOT_LOADED, ElectrumWallet, btc
from ngp.ports import (
    UNKNOWN_PAYMENT,
    Check,
    DecodedInvoice,
    InvoiceState,
    NewInvoice,
    PaymentCapabilities,
    PaymentInfo,
    PaymentOutcome,
    PaymentStatus,
    Settlement,
)
from ngp.remembered_node import RememberedNode

POLL_S = 0.5
# The history is read this often although no channel seems to have changed.
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
        state_dir: holds the journal, and what we know of the node for when it is down.
        options: ELECTRUM_HOST, ELECTRUM_USER, ELECTRUM_PASSWORD_FILE and ELECTRUM_WALLET; all may be missing.
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
        """Return when the daemon answers and has the wallet, which is loaded if that needs no password."""
        await self._ask_info()

    async def info(self) -> PaymentInfo:
        """Return the node's key and network: as it says, or said last while it can't be asked."""
        try:
            return self._info or await self._ask_info()
        except ElectrumError as error:
            known = self._remembered.read()
            if known is None or (error.answered and error.detail != NOT_LOADED):
                raise
            self._info = known
            return known

    async def confirm_node(self) -> None:
        """Raise where another node answers in place of the one in use, or none."""
        await self._ask_info()

    async def _ask_info(self) -> PaymentInfo:
        told = await self._wallet.ask_daemon("getinfo")
        _require_version(str(told["version"]))
        network = str(told["network"])
        key = str(await self._wallet.ask("nodeid")).partition("@")[0]
        self._info = self._remembered.confirm(PaymentInfo(key, network), "Electrum", in_use=self._info)
        return self._info

    def capabilities(self) -> PaymentCapabilities:
        """Say that money is real on mainnet, and what Electrum lacks."""
        real = self._info is None or self._info.network == "mainnet"
        return PaymentCapabilities(real_money=real, settles_by_proof=False, least_amount_msat=LEAST_AMOUNT_MSAT)

    async def check(self, spends: bool) -> list[Check]:  # noqa: ARG002  its rights are all or nothing
        """Say whether user and password can be had, and who else may hear them; asks the files, not the node."""
        try:
            door = self._wallet.door()
        except ConfigError as error:
            return [Check(_LOGIN, False, str(error))]  # it says itself what mends it
        if door.leaves_unencrypted:
            found = f"goes to {door.where} unencrypted, and whoever has it can spend all that the wallet has"
            return [Check(_LOGIN, False, found, "run Electrum on this machine, or reach it through a tunnel")]
        return [Check(_LOGIN, True, f"allows all that the wallet can do, at {door.where}")]

    async def balance_msat(self) -> int:
        """Return what the channels hold on our side, without what is on its way."""
        told = (await self._wallet.ask("getbalance")).get("lightning", "0")
        under_way = sum(one["local_unsettled_sent"] for one in await self._wallet.channels())
        return int(Decimal(told) * COIN_SAT * SAT_MSAT) - int(under_way) * SAT_MSAT

    async def sign(self, message: bytes) -> str:  # noqa: ARG002  the port's
        """Raise: Electrum has no command for it, and its root key shall not leave it for us to do so."""
        raise PaymentError("Electrum can't sign with the key of its Lightning node; neighbours take ngp's word for it")

    def verify(self, message: bytes, signature: str) -> str | None:
        """Return the public key that signed, or None; needs no node, since the key is in the signature."""
        return node_key.signer(message, signature)

    async def close(self) -> None:
        """Let go of connections and journal; what is on its way goes on at the node. Safe to call twice."""
        paying = list(self._paying.values())
        for task in paying:
            task.cancel()
        await asyncio.gather(*paying, return_exceptions=True)
        journal, self._opened_journal = self._opened_journal, None
        if journal is not None:
            journal.close()

    @property
    def _journal(self) -> Journal:
        if self._opened_journal is None:  # late: `ngp check` touches nothing
            self._opened_journal = Journal(self._journal_file)
        return self._opened_journal

    # --- receiving ----------------------------------------------------------------------------------------------------

    async def create_invoice(
        self, amount_msat: int, memo: str, expiry_s: int, preimage: bytes | None = None, hold: bool = False
    ) -> NewInvoice:
        """Make an invoice, with hints of the way through our channels.

        Args:
            amount_msat: at least 1,000, of whole sat.
            memo: the payer reads it.
            expiry_s: seconds until it lapses; a payer that is late is not refused by Electrum.
            preimage: None; Electrum takes a random one.
            hold: False.
        """
        if preimage is not None or hold:
            raise PaymentError("Electrum chooses preimages itself and can't hold payments; use LND for that")
        amount_sat, rest = divmod(amount_msat, SAT_MSAT)
        if rest or amount_sat < 1:
            raise PaymentError(f"Electrum makes invoices of whole sat, not of {amount_msat} msat")
        made = await self._wallet.add_request(btc(amount_sat), memo, expiry_s)
        if not made.get("lightning_invoice"):
            raise PaymentError("Electrum's wallet has no Lightning: make one by `electrum create`, and ELECTRUM_WALLET")
        return NewInvoice(made["lightning_invoice"], bytes.fromhex(made["rhash"]), amount_msat, expiry_s)

    async def lookup_invoice(self, payment_hash: bytes) -> InvoiceState:
        """Return the state of an invoice of ours. Raises PaymentError for one that isn't."""
        try:
            asked = await self._wallet.ask("get_request", request_id=payment_hash.hex())
        except ElectrumError as error:
            if error.answered and self._journal.cancelled(payment_hash):
                return InvoiceState.CANCELLED
            raise
        if asked["status"] != _PAID:
            return InvoiceState.OPEN
        return InvoiceState.SETTLED if payment_hash in await self._received() else InvoiceState.ACCEPTED

    async def settle_invoice(self, preimage: bytes) -> None:  # noqa: ARG002  the port's
        """Raise: nothing is held."""
        raise PaymentError("Electrum can't hold payments, so there is none to settle; use LND for that")

    async def cancel_invoice(self, payment_hash: bytes) -> None:
        """Delete an invoice that isn't paid; a payment of it is refused from then on.

        One that the wallet doesn't have takes no money: it was put back from a backup, or the request deleted by hand.
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
            raise PaymentError(f"invoice {payment_hash.hex()} is paid already and can't be cancelled; refund it")
        self._journal.cancel(payment_hash)  # before it is gone, else nobody knows afterwards that it was ours
        try:
            await self._wallet.ask("delete_request", request_id=payment_hash.hex())
        except ElectrumError as error:
            if error.answered:  # it was paid in between; without an answer it may be gone
                self._journal.keep(payment_hash)
            raise

    async def watch_settlements(self, cursor: int) -> AsyncIterator[Settlement]:
        """Yield what was settled behind the cursor, in the journal's order; raises when Electrum goes away."""
        seen: object = None
        looked_at = -FULL_LOOK_S
        while True:
            now, state = time.monotonic(), await self._wallet.ask("list_channels")
            if state != seen or now - looked_at >= FULL_LOOK_S:
                seen, looked_at = state, now
                await self._note_settled(cursor)
            for settlement in self._journal.behind(cursor):
                cursor = settlement.cursor
                yield settlement
            await asyncio.sleep(POLL_S)

    async def _note_settled(self, cursor: int) -> None:
        """Give numbers to what is new in the history."""
        known = self._journal.amounts_msat()
        for payment_hash, amount_msat in (await self._received()).items():
            if amount_msat > known.get(payment_hash, 0):
                self._journal.add(payment_hash, amount_msat, cursor)

    async def _received(self) -> dict[bytes, int]:
        """Return what was received by payments, msat, oldest first."""
        return {
            bytes.fromhex(one["payment_hash"]): one["amount_msat"]
            for one in await self._wallet.history()
            if one["direction"] == _RECEIVED
        }

    # --- paying -------------------------------------------------------------------------------------------------------

    def decode(self, bolt11: str) -> DecodedInvoice:
        """Parse an invoice and check its signature; hostile input. Raises PeerError(`invoice`)."""
        return invoice.read(bolt11).decoded(int(time.time()))

    async def pay(
        self,
        bolt11: str,
        fee_limit_msat: int,
        timeout_s: float,
        via_peer: str | None = None,  # noqa: ARG002  Electrum prefers a direct channel by itself, and can't be told
    ) -> PaymentOutcome:
        """Pay once; a second call for the same hash follows the first.

        Args:
            bolt11: an invoice with an amount.
            fee_limit_msat: the most that routing may cost; see the module.
            timeout_s: how long we wait; PENDING is answered after it, and the payment goes on.
            via_peer: not heeded.
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
            task.exception()  # nobody waits for it any more, perhaps; `track` finds out

    async def _pay(self, bolt11: str, decoded: DecodedInvoice, fee_limit_msat: int) -> PaymentOutcome:
        """Call `lnpay` once, unless it was called before and may still pay."""
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
        """Say why Electrum is not to be asked: it can't, or it might spend more on fees than it may. "": it is."""
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
        """Say what became of a payment; FAILED with reason `unknown` when Electrum never heard of it."""
        outcome = await self._fate(payment_hash)
        if payment_hash in self._paying and outcome.status is PaymentStatus.FAILED:  # it may not have begun yet
            return PaymentOutcome(payment_hash, PaymentStatus.PENDING)
        return outcome

    async def _fate(self, payment_hash: bytes) -> PaymentOutcome:
        """Read what Electrum knows: the invoice first, then the history, so that nothing is missed between."""
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
        """Read what Electrum knows of a payment that may have begun; PENDING while it can't be asked."""
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
        """Whether no channel can hold an HTLC that Electrum forgot: it is written down after the peer has it."""
        return all(
            (one["state"], one["peer_state"]) == ("OPEN", "GOOD") or one["state"] in _WITHOUT_HTLCS
            for one in await self._wallet.channels()
        )

    async def _has_parts_left(self) -> bool:
        """Whether money is on its way for no payment that is: Electrum gives up while parts are still out."""
        if not any(one["local_unsettled_sent"] for one in await self._wallet.channels()):
            return False
        return all(one["status"] != _IN_FLIGHT for one in await self._wallet.ask("list_invoices"))


def _require_version(version: str) -> None:
    """Raise PaymentError for an Electrum whose commands are others. Newer ones than those tried are let be."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < _LEAST_VERSION:
        raise PaymentError(f"Electrum {version} is too old: ngp needs 4.3 or later (tried with 4.3.4 and 4.5.8)")


def _free_msat(channel: Mapping[str, Any]) -> int:
    return int(channel["local_balance"] - channel["local_unsettled_sent"]) * SAT_MSAT


def _why(log: list[list[str]]) -> str:
    """Say why a payment failed, by Electrum's list of attempts: length, channel, and what came of it."""
    if not log:
        return "no route found, or the channels can't carry it; see Electrum's log"
    *_, where, what = log[-1]
    return f"{what} at {where}"
