"""LND: real Lightning, through the operator's node.

Nothing is paid twice: LND keeps each payment under its hash, and we ask for it by this hash. After a broken connection,
a timeout, or an answer that we don't understand, TrackPaymentV2 gives the outcome, and until then the payment is
PENDING.

Settlements come from SubscribeInvoices, which LND starts after the settle index in the ledger. There are two special
cases. To LND index 0 means "no earlier settlements". So if the ledger has none, we look up the very first settlement,
and start the stream after that one. And if the ledger's index is higher than any of the node's (a restored node), LND
would report nothing until its own index is as high. So we check for that, and read all settlements of the node.

Source: https://lightning.engineering/api-docs/api/lnd/
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from pathlib import Path

import grpc

from ngp import invoice, node_key
from ngp.core.payment_node import UNKNOWN_PAYMENT, DecodedInvoice, PaymentOutcome, PaymentStatus, Settlement
from ngp.core.reach import left_msat
from ngp.core.values import Check
from ngp.errors import ConfigError, PaymentError, PeerError
from ngp.modules.payment import lnd_client as client
from ngp.modules.payment import lnd_paste, macaroon
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment.lnd_channel import channel
from ngp.modules.payment.lnd_client import LndClient, LndError
from ngp.modules.payment.lnd_connect import Credentials, NoMacaroonError, find_local
from ngp.modules.payment.lnd_upkeep import LndUpkeep, key_bytes
from ngp.ports.payment import InvoiceState, NewInvoice, PaymentCapabilities, PaymentInfo
from ngp.remembered_node import RememberedNode

# LND's default for the smallest HTLC (bitcoin.minhtlc).
LEAST_AMOUNT_MSAT = 1_000
STARTING_POLL_S = 0.5
PAGE = 200  # invoices or payments per answer: about 1 MB
# As long as nothing was ever settled, invoices are listed at this interval, and when LND reports a settlement.
LOOK_AGAIN_S = 15.0
_FIRST_ANSWER_S = 10.0
_LEAST_ATTEMPT_S = 1
_RIGHTS = "LND's macaroon"
_UNKNOWN_INVOICE = "unable to locate invoice"
_STATES = {
    pb.Invoice.OPEN: InvoiceState.OPEN,
    pb.Invoice.ACCEPTED: InvoiceState.ACCEPTED,
    pb.Invoice.SETTLED: InvoiceState.SETTLED,
    pb.Invoice.CANCELED: InvoiceState.CANCELLED,
}
_REASONS = {
    pb.FAILURE_REASON_TIMEOUT: "no route found in time",
    pb.FAILURE_REASON_NO_ROUTE: "no route within the fee limit",
    pb.FAILURE_REASON_ERROR: "an error within LND; see its log",
    pb.FAILURE_REASON_INCORRECT_PAYMENT_DETAILS: "the payee refused: unknown hash, other amount, or expired",
    pb.FAILURE_REASON_INSUFFICIENT_BALANCE: "the channels' balance does not cover it",
    pb.FAILURE_REASON_CANCELED: "cancelled at the node",
}


class LndPayment(LndUpkeep):
    """An LND node; implements `ngp.ports.Payment`, and by its base `ChannelManager` and `TowerManager`.

    Args:
        state_dir: has a pasted lndconnect URI, and a file with the node's key and network, for when the node is down.
        options: LND_CONNECT, or LND_HOST, LND_CERT and LND_MACAROON.
    """

    keep_uri = staticmethod(lnd_paste.keep)
    try_uri = staticmethod(lnd_paste.attempt)
    find_local = staticmethod(find_local)

    def __init__(self, state_dir: Path, options: Mapping[str, str] | None = None) -> None:
        super().__init__(LndClient(Credentials(options or {}, state_dir)))
        self._remembered = RememberedNode(state_dir, "lnd")
        self._info: PaymentInfo | None = None

    # --- the node -----------------------------------------------------------------------------------------------------

    async def wait_ready(self) -> None:
        """Return when LND can be used. Waits while it starts; raises with a remedy if it is locked or away."""
        while True:
            state = (await self._client.call(client.GET_STATE, pb.GetStateRequest())).state
            if state == pb.SERVER_ACTIVE:
                break
            if state == pb.LOCKED:
                raise PaymentError("LND is locked: lncli unlock")
            if state == pb.NON_EXISTING:
                raise PaymentError("LND has no wallet yet: lncli create")
            await asyncio.sleep(STARTING_POLL_S)
        await self._ask_info()

    async def info(self) -> PaymentInfo:
        """Return the node's key and network; while the node is down, those that it reported last.

        A gateway with running contracts must be able to start while its node is down.
        """
        try:
            return self._info or await self._ask_info()
        except LndError as error:
            known = self._remembered.read() if error.unreachable or "locked" in str(error) else None
            if known is None:
                raise
            self._info = known
            return known

    async def confirm_node(self) -> None:
        """Raise PaymentError if no node answers, or if another node answers than the one that ngp uses."""
        await self._ask_info()

    async def _ask_info(self) -> PaymentInfo:
        answer = await self._client.call(client.GET_INFO, pb.GetInfoRequest())
        network = answer.chains[0].network if answer.chains else ""
        addresses = tuple(uri.partition("@")[2] for uri in answer.uris)
        said = PaymentInfo(answer.identity_pubkey, network, addresses)
        self._info = self._remembered.confirm(said, "LND", in_use=self._info)
        return self._info

    def capabilities(self) -> PaymentCapabilities:
        """Return the capabilities: the money is real on mainnet, and LND itself reports settlements."""
        real = self._info is None or self._info.network == "mainnet"
        return PaymentCapabilities(
            real_money=real,
            settles_by_proof=False,
            least_amount_msat=LEAST_AMOUNT_MSAT,
            why_no_holding=self._why_no_holding(),
        )

    def _why_no_holding(self) -> str:
        """Return which rights we lack to hold payments; "" if we have all. Reads the file, doesn't ask the node."""
        try:
            missing = macaroon.read(self._client.macaroon()).missing(client.TO_HOLD)
        except ConfigError as error:
            return str(error)
        line = macaroon.bake_line([*macaroon.needed(spends=True), *client.TO_TELL, *client.TO_HOLD])
        return f"LND's macaroon does not allow {', '.join(missing)}: {line}" if missing else ""

    async def check(self, spends: bool) -> list[Check]:
        """Check that the macaroon has the rights that we need, and no more; reads the file, doesn't ask the node."""
        methods = macaroon.needed(spends)
        line = f"{macaroon.bake_line([*methods, *client.TO_TELL])}; chmod 600 ngp.macaroon"  # lncli leaves it 0644
        try:
            given = self._client.macaroon()
        except NoMacaroonError as error:
            return [Check(_RIGHTS, False, str(error), line)]
        except ConfigError as error:  # the error has its own remedy
            return [Check(_RIGHTS, False, str(error))]
        try:
            rights = macaroon.read(given)
        except ConfigError as error:
            return [Check(_RIGHTS, False, str(error), line)]
        if missing := rights.missing(methods):
            return [Check(_RIGHTS, False, f"does not allow {', '.join(missing)}", line)]
        if beyond := rights.beyond([*methods, *client.TO_TELL, *client.TO_HOLD]):
            found = f"allows more than is needed: {', '.join(beyond)}; anyone who gets hold of it can do all that"
            return [Check(_RIGHTS, True, found, line)]
        if untold := rights.missing(client.TO_TELL):
            found = f"allows what is needed, but not {', '.join(untold)}: channels and watchtowers are shown in part"
            return [Check(_RIGHTS, True, found, line)]
        limits = f"; its further conditions: {rights.caveats}" if rights.caveats else ""
        return [Check(_RIGHTS, True, f"allows what is needed{limits}")]

    async def balance_msat(self) -> int:
        """Return our balance in the channels."""
        answer = await self._client.call(client.CHANNEL_BALANCE, pb.ChannelBalanceRequest())
        return answer.local_balance.msat

    async def sign(self, message: bytes) -> str:
        """Sign with the node's key."""
        return (await self._client.call(client.SIGN_MESSAGE, pb.SignMessageRequest(msg=message))).signature

    def verify(self, message: bytes, signature: str) -> str | None:
        """Return the public key that signed, or None; doesn't ask the node, as the signature reveals the key."""
        return node_key.signer(message, signature)

    async def close(self) -> None:
        """Close the connection; payments on their way go on at the node. Safe to call twice."""
        await self._client.close()

    # --- receiving ----------------------------------------------------------------------------------------------------

    async def create_invoice(
        self, amount_msat: int, memo: str, expiry_s: int, preimage: bytes | None = None, hold: bool = False
    ) -> NewInvoice:
        """Make an invoice, with routing hints for private channels.

        Args:
            amount_msat: at least 1.
            memo: shown to the payer.
            expiry_s: seconds until it expires.
            preimage: 32 bytes, or None for a random one.
            hold: whether its payment waits for `settle_invoice` or `cancel_invoice`.
        """
        preimage = preimage or secrets.token_bytes(32)
        if len(preimage) != 32:
            raise PaymentError(f"a preimage has 32 bytes, not {len(preimage)}")
        payment_hash = sha256(preimage).digest()
        if hold:
            held = pb.AddHoldInvoiceRequest(
                memo=memo, hash=payment_hash, value_msat=amount_msat, expiry=expiry_s, private=True
            )
            bolt11 = (await self._client.call(client.ADD_HOLD_INVOICE, held)).payment_request
        else:
            asked = pb.Invoice(memo=memo, r_preimage=preimage, value_msat=amount_msat, expiry=expiry_s, private=True)
            bolt11 = (await self._client.call(client.ADD_INVOICE, asked)).payment_request
        return NewInvoice(bolt11, payment_hash, amount_msat, expiry_s)

    async def lookup_invoice(self, payment_hash: bytes) -> InvoiceState:
        """Return the state of an invoice of ours. Raises PaymentError for any other invoice."""
        found = await self._client.call(client.LOOKUP_INVOICE, pb.PaymentHash(r_hash=payment_hash))
        return _STATES[found.state]

    async def wait_held(self, payment_hash: bytes) -> int | None:
        """Wait until the payment of a hold invoice waits for us. Returns how many blocks its first HTLC has left.

        Returns None once the invoice is settled, cancelled or unknown; LND may delete what was cancelled.
        """
        try:
            await self.lookup_invoice(payment_hash)  # of an unknown one the stream would never tell anything
        except LndError as error:
            if _UNKNOWN_INVOICE not in error.detail:
                raise
            return None
        asked = pb.SubscribeSingleInvoiceRequest(r_hash=payment_hash)
        async for told in self._client.stream(client.WATCH_INVOICE, asked):
            if told.state in (pb.Invoice.SETTLED, pb.Invoice.CANCELED):
                return None
            if told.state == pb.Invoice.ACCEPTED:
                height = (await self._client.call(client.GET_INFO, pb.GetInfoRequest())).block_height
                return min(one.expiry_height for one in told.htlcs if one.state == pb.ACCEPTED) - height
        raise PaymentError("LND stopped telling about an invoice; ngp asks again")

    async def settle_invoice(self, preimage: bytes) -> None:
        """Settle a held invoice; twice is no error."""
        try:
            await self._client.call(client.SETTLE_INVOICE, pb.SettleInvoiceMsg(preimage=preimage))
        except LndError:
            if await self.lookup_invoice(sha256(preimage).digest()) is not InvoiceState.SETTLED:
                raise

    async def cancel_invoice(self, payment_hash: bytes) -> None:
        """Cancel an invoice that isn't paid; a held payment goes back to its payer.

        LND may have deleted a cancelled or expired invoice (gc-canceled-invoices-...). An invoice that LND doesn't know
        counts as cancelled too, since LND accepts no payment of it.
        """
        try:
            await self._client.call(client.CANCEL_INVOICE, pb.CancelInvoiceMsg(payment_hash=payment_hash))
        except LndError as error:
            if _UNKNOWN_INVOICE not in error.detail:
                raise

    async def watch_settlements(self, cursor: int) -> AsyncIterator[Settlement]:
        """Yield the settlements after the cursor (LND's settle index), in order; raises when LND goes away.

        A restored node, or another node, counts from the beginning, and would report nothing until its index reaches
        the cursor. So then we read all settlements of that node, and the cursors that we yield begin low again.
        """
        if cursor and not await self._has_settled(cursor):
            cursor = 0
        while cursor == 0:
            first = await self._first_settlement()
            if first is not None:
                yield first
                cursor = first.cursor
            elif not await self._wait_for_first():
                return
        async for told in self._client.stream(client.SUBSCRIBE_INVOICES, pb.InvoiceSubscription(settle_index=cursor)):
            if told.state == pb.Invoice.SETTLED:
                yield _settlement(told)

    async def _first_settlement(self) -> Settlement | None:
        """Find the very first settlement, after which LND reports all others; None if nothing was settled yet.

        A node may have 100,000 invoices, so they are read page by page, and no page is kept.
        """
        offset, found = 0, None
        while True:
            asked = pb.ListInvoiceRequest(index_offset=offset, num_max_invoices=PAGE)
            page = await self._client.call(client.LIST_INVOICES, asked)
            for one in page.invoices:
                if one.state == pb.Invoice.SETTLED and (found is None or one.settle_index < found.cursor):
                    found = _settlement(one)
            if not page.invoices or (found is not None and found.cursor == 1):
                return found
            offset = page.last_index_offset

    async def _wait_for_first(self) -> bool:
        """Wait until LND reports a settlement or LOOK_AGAIN_S is over; False if LND ended the stream.

        The reported settlement isn't used: an earlier one may have come before LND accepted our subscription. So the
        caller looks up the first one.
        """
        asked = pb.InvoiceSubscription(settle_index=0)
        try:
            async for told in self._client.stream(client.SUBSCRIBE_INVOICES, asked, LOOK_AGAIN_S):
                if told.state == pb.Invoice.SETTLED:
                    return True
        except LndError as error:
            if error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            return True
        return False

    async def _has_settled(self, cursor: int) -> bool:
        """Say whether one of the node's invoices has a settle index at least as high as the cursor."""
        offset = 0  # from the end
        while True:
            asked = pb.ListInvoiceRequest(index_offset=offset, num_max_invoices=PAGE, reversed=True)
            page = await self._client.call(client.LIST_INVOICES, asked)
            if any(one.settle_index >= cursor for one in page.invoices):
                return True
            if page.first_index_offset <= 1:
                return False
            offset = page.first_index_offset

    # --- paying -------------------------------------------------------------------------------------------------------

    def decode(self, bolt11: str) -> DecodedInvoice:
        """Parse an invoice and check its signature; the input may be hostile. Raises PeerError(`invoice`)."""
        return invoice.read(bolt11).decoded(int(time.time()))

    async def pay(
        self, bolt11: str, fee_limit_msat: int, timeout_s: float, via_peer: str | None = None
    ) -> PaymentOutcome:
        """Pay an invoice once; a second call for the same hash waits for the outcome of the same payment.

        Args:
            bolt11: an invoice with an amount.
            fee_limit_msat: the most that routing may cost; a direct channel costs nothing.
            timeout_s: how long LND may begin attempts, and how long we wait. If the payment isn't over then, we return
                PENDING, and it goes on.
            via_peer: key of a peer; if a channel with this peer has the balance, it is used.
        """
        try:
            decoded = self.decode(bolt11)
        except PeerError as error:
            raise PaymentError(f"can't pay: not an invoice ({error})") from error
        try:
            direct = await self._direct(via_peer, decoded.amount_msat or 0)
            ask = pb.SendPaymentRequest(
                payment_request=bolt11,
                timeout_seconds=max(_LEAST_ATTEMPT_S, int(timeout_s)),
                fee_limit_msat=0 if direct else fee_limit_msat,
                no_inflight_updates=True,
                outgoing_chan_ids=direct,
            )
            told = self._client.stream(client.SEND_PAYMENT, ask)
            return await self._outcome(told, decoded.payment_hash, timeout_s)
        except LndError as error:
            if error.unreachable:
                return PaymentOutcome(decoded.payment_hash, PaymentStatus.PENDING)
            return await self._after_refusal(decoded.payment_hash, error, timeout_s)

    async def _after_refusal(self, payment_hash: bytes, error: LndError, timeout_s: float) -> PaymentOutcome:
        """Return the outcome of a payment that LND refused to start.

        An earlier call may have started it; then LND knows its outcome. If LND doesn't know the payment, it has failed.

        If the macaroon lacks the right to pay, LND refuses without looking at the payment. If the macaroon also lacks
        the right to ask about payments, the payment has failed too: the core orders each payment once, so no earlier
        call has started it.
        """
        try:
            outcome = await self._track(payment_hash, timeout_s)
        except LndError as untold:
            if not (error.forbidden and untold.forbidden):
                raise
            outcome = None
        if outcome is not None:
            return outcome
        reason = str(error) if error.forbidden else error.detail
        return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason=reason)

    async def track(self, payment_hash: bytes) -> PaymentOutcome:
        """Return a payment's outcome; FAILED with reason `unknown` if LND doesn't know it."""
        outcome = await self._track(payment_hash, 0.0)
        return outcome or PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason=UNKNOWN_PAYMENT)

    async def _track(self, payment_hash: bytes, timeout_s: float) -> PaymentOutcome | None:
        """Follow a payment for a while; None if LND doesn't know it."""
        ask = pb.TrackPaymentRequest(payment_hash=payment_hash, no_inflight_updates=timeout_s > 0)
        try:
            return await self._outcome(self._client.stream(client.TRACK_PAYMENT, ask), payment_hash, timeout_s)
        except LndError as error:
            if error.code is grpc.StatusCode.NOT_FOUND or "payment isn't initiated" in error.detail:
                return None
            raise

    @staticmethod
    async def _outcome(stream: AsyncIterator[pb.Payment], payment_hash: bytes, timeout_s: float) -> PaymentOutcome:
        """Read a payment's stream to its end; with a timeout of 0 only to its first message."""
        try:
            async with asyncio.timeout(timeout_s or _FIRST_ANSWER_S):
                async for told in stream:
                    if told.status == pb.Payment.SUCCEEDED:
                        preimage = bytes.fromhex(told.payment_preimage)
                        return PaymentOutcome(payment_hash, PaymentStatus.SUCCEEDED, preimage, told.fee_msat)
                    if told.status == pb.Payment.FAILED:
                        reason = _REASONS.get(told.failure_reason, "LND gave no reason")
                        return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason=reason)
                    if not timeout_s:
                        break
        except TimeoutError:
            pass
        return PaymentOutcome(payment_hash, PaymentStatus.PENDING)

    async def _direct(self, peer: str | None, amount_msat: int) -> list[int]:
        """Return the active channels with a peer that can carry an amount; if there is none, LND finds a route."""
        if peer is None:
            return []
        ask = pb.ListChannelsRequest(active_only=True, peer=key_bytes(peer))
        found = (await self._client.call(client.LIST_CHANNELS, ask)).channels
        return [one.chan_id for one in found if left_msat(channel(one), ours=True) >= amount_msat]


def _settlement(told: pb.Invoice) -> Settlement:
    """Return a settlement with the amount that was paid, which may be up to twice the invoice's amount (BOLT 4)."""
    return Settlement(told.settle_index, told.r_hash, told.amt_paid_msat)
