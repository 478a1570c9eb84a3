"""Executor: carries out effects. Records come first, in one transaction; then the kernel; then the rest.

A batch of events is stepped and its records are committed. Only then does anything leave this process: a message, a
grant, a payment. So all that a neighbour or the kernel has ever learned is in the ledger, whenever the process dies.

While the ledger can't be written (a full disk), the batch waits with its effects and no event is taken. Running
contracts go on to their limits in the kernel, no new ones are made, and nothing is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

from ngp.core.effects import (
    Acknowledge,
    AskEcho,
    CancelInvoice,
    CountAccount,
    Decide,
    Effect,
    ForgetAccount,
    ForgetNeighbour,
    GrantContract,
    Greet,
    HaltContract,
    LimitAccount,
    Log,
    MakeInvoice,
    PayInvoice,
    Persist,
    ProveSettlement,
    RecallBills,
    RevokeContract,
    Send,
    SetElsewhere,
    SetNeighbour,
    SetRoutes,
    TrackPayment,
)
from ngp.core.events import AccountCounted, BillsRecalled, Event, Halted, InvoiceCancelled, InvoiceFailed, InvoiceMade
from ngp.core.kernel import AccountLimit, Grant
from ngp.core.messages import Paid
from ngp.core.payment_node import PaymentOutcome, PaymentStatus
from ngp.core.rental.effects import HoldNetworks, SettleInvoice, WatchInvoice
from ngp.core.rental.events import InvoiceHeld, NetworksHeld, RentProven
from ngp.daemon.logs import WhileItLasts
from ngp.daemon.post import Post
from ngp.errors import KernelError, LedgerError, PaymentError
from ngp.ports import Ledger, Network, Payment
from ngp.ports.payment import InvoiceState

LEDGER_RETRY_S = 2.0
WATCH_AGAIN_S = 5.0
BILLS_A_PAGE = 1024

_log = logging.getLogger("ngp")


@dataclass(slots=True)
class _Wanted:
    """Changes that still have to be made in the kernel."""

    limits: dict[bytes, AccountLimit] = field(default_factory=dict)
    grants: list[Grant] = field(default_factory=list)
    revoked: list[bytes] = field(default_factory=list)
    forgotten: list[bytes] = field(default_factory=list)

    def clear(self) -> None:
        for some in (self.limits, self.grants, self.revoked, self.forgotten):
            some.clear()


class Executor:
    """Carries effects out.

    Args:
        tell: receives the events that result from effects.
        fail: receives unexpected exceptions, and must end the daemon: after one of them an invoice might never be made,
            or a payment never tracked.
    """

    def __init__(
        self,
        ledger: Ledger,
        network: Network,
        payment: Payment,
        post: Post,
        tell: Callable[[Event], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._ledger = ledger
        self._network = network
        self._payment = payment
        self._post = post
        self._tell = tell
        self._fail = fail
        self._blocks_all = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._conditions = WhileItLasts()

    def store(self, effects: Sequence[Effect]) -> None:
        """Write a batch's records in one transaction. Raises LedgerError if nothing was written."""
        records = [effect.record for effect in effects if isinstance(effect, Persist)]
        if records:
            durable = any(effect.durable for effect in effects if isinstance(effect, Persist))
            self._ledger.commit(records, durable)

    def block_all(self) -> None:
        """Block every contract that is granted from now on: the daemon stops, so nobody would charge their traffic."""
        self._blocks_all = True

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Carry out the effects of a stored batch; log lines come last, so that packets and neighbours needn't wait."""
        self._kernel(effects)
        for effect in effects:
            match effect:
                case RecallBills():
                    self._recall_bills(effect)
                case Decide():
                    self._network.verdict(effect.handle, effect.verdict)
                case Send():
                    self._post.send(effect.identity, effect.link, effect.message, effect.reply_to)
                case Acknowledge():
                    self._post.acknowledge(effect.identity, effect.message_id)
                case Greet():
                    self._post.greet(effect)
                case HoldNetworks():
                    self._spawn(self._hold_networks(effect))
                case MakeInvoice():
                    self._spawn(self._make_invoice(effect))
                case WatchInvoice():
                    self._spawn(self._watch(effect.payment_hash))
                case SettleInvoice():
                    self._spawn(self._settle(effect.preimage))
                case PayInvoice():
                    self._spawn(self._pay(effect))
                case AskEcho():
                    self._network.ask_echo(effect.destination)
                case TrackPayment():
                    self._spawn(self._track(effect.payment_hash))
                case ProveSettlement():
                    self._spawn(self._quietly(self._payment.settle_invoice(effect.preimage), "settle an invoice"))
                case CancelInvoice():
                    self._spawn(self._cancel(effect.payment_hash))
        for effect in effects:
            if isinstance(effect, Log):
                _log.log(effect.level, "%s", effect.text)

    def _recall_bills(self, effect: RecallBills) -> None:
        try:
            lines, after = self._ledger.unacknowledged(effect.identity, effect.after, BILLS_A_PAGE)
        except LedgerError as error:
            _log.error("%s", error)
            lines, after = (), effect.after
        self._tell(BillsRecalled(effect.identity, lines, after))

    async def _hold_networks(self, effect: HoldNetworks) -> None:
        """Keep networks for a rental in the ledger, so that no other landlord lets them; retry until it is written."""
        while True:
            try:
                taken = self._ledger.hold_networks(effect.rental, effect.networks)
            except LedgerError as error:
                if self._conditions.is_news(str(error)):
                    _log.error("%s", error)
                await asyncio.sleep(LEDGER_RETRY_S)
            else:
                self._tell(NetworksHeld(effect.rental, taken))
                return

    async def close(self) -> None:
        """Cancel the running tasks; the next start asks again for the outcome of payments."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- kernel -------------------------------------------------------------------------------------------------------

    def _kernel(self, effects: Sequence[Effect]) -> None:
        """Apply kernel effects in order; successive effects of one kind go in one call."""
        wanted = _Wanted()
        halted: list[bytes] = []
        counts: list[CountAccount] = []
        for effect in effects:
            match effect:
                case LimitAccount():
                    if effect.limit.account in wanted.forgotten:
                        self._flush(wanted)
                    wanted.limits[effect.limit.account] = effect.limit
                case GrantContract():
                    wanted.grants.append(effect.grant._replace(blocked=True) if self._blocks_all else effect.grant)
                case HaltContract():
                    wanted.grants.append(effect.grant)
                    halted.append(effect.grant.contract)
                case RevokeContract():
                    wanted.revoked.append(effect.contract)
                case ForgetAccount():
                    wanted.forgotten.append(effect.account)
                case SetNeighbour():
                    self._in_kernel(partial(self._network.set_neighbours, [effect.neighbour]))
                case ForgetNeighbour():
                    self._flush(wanted)
                    self._in_kernel(partial(self._network.forget_neighbours, [effect.neighbour]))
                case SetElsewhere():  # before the contracts that it limits
                    self._in_kernel(partial(self._network.set_elsewhere, effect.prefixes))
                case SetRoutes():
                    deed = partial(self._network.set_routes, dict(effect.routes), effect.table, effect.priority)
                    self._in_kernel(deed)
                case CountAccount():
                    counts.append(effect)
        self._flush(wanted)
        if halted or counts:
            self._spawn(self._read_settled(halted, [(one, self._spent_units(one.account)) for one in counts]))

    def _flush(self, wanted: _Wanted) -> None:
        """Make the changes. Accounts are added before the contracts that draw on them, and removed after them.

        Grants come before revocations, so that a destination passes from one contract to another without a gap. The
        grants go in one call. If that call fails (the table was full), each grant is made by itself after the
        revocations, so that one that fails doesn't prevent the others.
        """
        left: list[Grant] = []
        if wanted.limits:
            self._in_kernel(partial(self._network.limit_accounts, list(wanted.limits.values())))
        if wanted.grants:
            try:
                self._network.grant(list(wanted.grants))
            except KernelError:
                left = list(wanted.grants)
        if wanted.revoked:
            self._in_kernel(partial(self._network.revoke, list(wanted.revoked)))
        for grant in left:
            if grant.contract not in wanted.revoked:
                self._in_kernel(partial(self._network.grant, [grant]))
        if wanted.forgotten:
            self._in_kernel(partial(self._network.forget_accounts, list(wanted.forgotten)))
        wanted.clear()

    def _in_kernel(self, deed: Callable[[], None]) -> None:
        try:
            deed()
        except KernelError as error:
            _log.error("%s", error)

    def _spent_units(self, account: bytes) -> int:
        return next((one.spent_units for one in self._network.read_accounts([account])), 0)

    async def _read_settled(self, halted: Sequence[bytes], counts: Sequence[tuple[CountAccount, int]]) -> None:
        """Read halted contracts and counted accounts when all packets on their way have left the kernel's programs."""
        await self._network.settled()
        readings = {one.contract: one for one in self._network.read(halted)}
        for contract in halted:
            self._tell(Halted(contract, readings.get(contract)))
        for count, spent_units in counts:
            counted = tuple(self._network.read(count.contracts))
            self._tell(AccountCounted(count.account, spent_units, counted))

    # --- payment ------------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._fail(error)

    async def _make_invoice(self, effect: MakeInvoice) -> None:
        try:
            await self._payment.confirm_node()
            made = await self._payment.create_invoice(
                effect.amount_msat, effect.memo, effect.expiry_s, effect.preimage or None, hold=bool(effect.preimage)
            )
        except PaymentError as error:
            self._tell(InvoiceFailed(effect.identity, effect.kind, str(error)))
            return
        self._tell(
            InvoiceMade(
                effect.identity, effect.kind, made.bolt11, made.payment_hash, made.amount_msat, made.expires_in_s,
                effect.preimage,
            )
        )  # fmt: skip

    async def _watch(self, payment_hash: bytes) -> None:
        """Wait for the payment of a hold invoice; while the node is away, ask again."""
        while True:
            try:
                blocks_left = await self._payment.wait_held(payment_hash)
                await self._payment.confirm_node()  # another node doesn't know this invoice
            except PaymentError as error:
                self._tell_trouble(f"invoice {payment_hash.hex()[:16]}: unknown whether its payment is held", error)
                await asyncio.sleep(WATCH_AGAIN_S)
                continue
            if blocks_left is not None:
                self._tell(InvoiceHeld(payment_hash, blocks_left))
            return

    async def _settle(self, preimage: bytes) -> None:
        """Take a held payment. If the node doesn't confirm that the money is ours now, follow the invoice again."""
        payment_hash = sha256(preimage).digest()
        try:
            await self._payment.settle_invoice(preimage)
        except PaymentError as error:
            self._tell_trouble(f"the payment held by invoice {payment_hash.hex()[:16]} is not taken yet", error)
            await asyncio.sleep(WATCH_AGAIN_S)
            await self._watch(payment_hash)
            return
        self._tell(RentProven(Paid(payment_hash, preimage)))

    async def _pay(self, effect: PayInvoice) -> None:
        try:
            await self._payment.confirm_node()
            outcome = await self._believed(
                self._payment.pay(effect.bolt11, effect.fee_limit_msat, effect.timeout_s, effect.via_peer)
            )
        except PaymentError as error:
            # It isn't known whether the payment was sent: it stays pending until the node reports its outcome.
            self._tell_trouble(f"payment {effect.payment_hash.hex()[:16]}", error)
            outcome = PaymentOutcome(effect.payment_hash, PaymentStatus.PENDING)
        self._tell(outcome)

    async def _track(self, payment_hash: bytes) -> None:
        try:
            outcome = await self._believed(self._payment.track(payment_hash))
        except PaymentError as error:  # the reason is the same for all payments: the node is away, or lacks a right
            self._tell_trouble(f"payment {payment_hash.hex()[:16]}: no outcome yet, the node is asked again", error)
            outcome = PaymentOutcome(payment_hash, PaymentStatus.PENDING)
        self._tell(outcome)

    async def _believed(self, asking: Coroutine[Any, Any, PaymentOutcome]) -> PaymentOutcome:
        """Return a payment's outcome; believe a failure only after the node has confirmed its identity.

        Another node knows none of our payments. If its "failed" were believed, we would pay again a payment that is
        still on its way.
        """
        outcome = await asking
        if outcome.status is PaymentStatus.FAILED:
            await self._payment.confirm_node()
        return outcome

    async def _cancel(self, payment_hash: bytes) -> None:
        try:
            await self._payment.cancel_invoice(payment_hash)
            # Another node doesn't have this invoice, and ours would still accept its payment.
            await self._payment.confirm_node()
        except PaymentError as error:
            if not await self._is_cancelled(payment_hash):
                self._tell_trouble(f"invoice {payment_hash.hex()[:16]} is not cancelled yet", error)
                return
        self._tell(InvoiceCancelled(payment_hash))

    async def _is_cancelled(self, payment_hash: bytes) -> bool:
        with contextlib.suppress(PaymentError):
            state = await self._payment.lookup_invoice(payment_hash)
            await self._payment.confirm_node()
            return state is InvoiceState.CANCELLED
        return False

    async def _quietly(self, work: Coroutine[Any, Any, None], what: str) -> None:
        try:
            await work
        except PaymentError as error:
            self._tell_trouble(f"could not {what}", error)

    def _tell_trouble(self, what: str, error: PaymentError) -> None:
        """Log a payment node's error once while it lasts, not once for each payment and invoice."""
        if self._conditions.is_news(str(error)):
            _log.warning("%s: %s", what, error)


def frozen_text(error: LedgerError) -> str:
    """Return a ledger's error with what follows from it: no new contracts."""
    return f"{error}; running contracts go on to their limits, no new ones are made until the ledger can be written"
