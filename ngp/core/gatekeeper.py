"""Gatekeeper: the one door into the core. `step(event, now)` changes the world and returns what is to be done.

Pure: time comes in with each event, randomness as `new_id`, money and packets as events. The rules are in meeting,
seller, grants, buyer and those of money (invoices, settlements, payments, refunds); this routes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice

from ngp.core import (
    bills,
    blocking,
    buyer,
    grace,
    invoices,
    meeting,
    metering,
    payments,
    refunds,
    seller,
    settlements,
    statements,
)
from ngp.core.account import Account
from ngp.core.contract import CloseReason, Contract, State
from ngp.core.effects import Acknowledge, Effect, Greet
from ngp.core.events import (
    AccountCounted,
    AskRefund,
    BillsRecalled,
    BlockNeighbour,
    ChannelsSeen,
    Delivered,
    Event,
    Halted,
    Hinted,
    InvoiceCancelled,
    InvoiceFailed,
    InvoiceMade,
    MessageReceived,
    OtherVersionHeard,
    PacketHeld,
    PaymentResult,
    RefundNeighbour,
    SettingsChanged,
    SettlementSeen,
    Stopping,
    Tick,
    Undelivered,
    UsageRead,
)
from ngp.core.messages import (
    Accept,
    Ack,
    Ask,
    Bye,
    Cancel,
    Declined,
    Hello,
    Invoice,
    Paid,
    Propose,
    Refund,
    Reject,
    Role,
    Statement,
)
from ngp.core.records import PaymentKind
from ngp.core.timers import Due
from ngp.core.values import HintKind, Now, Reading
from ngp.core.world import Neighbour, World

FLUSH_INTERVAL_S = 60.0
FLUSH_PAUSE_S = 0.1
FLUSHED_AT_ONCE = 1000
_ACCOUNT_DUE = {
    Due.STATEMENT: statements.statement_due,
    Due.CREDIT: grace.credit_due,
    Due.UNPAID: grace.unpaid_due,
}


class Gatekeeper:
    """The state of one node and the step that moves it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def step(self, event: Event, now: Now) -> list[Effect]:
        """Take one event.

        Args:
            event: what happened.
            now: when, on both clocks.

        Returns:
            What is to be done, in order. Records among it must be stored before anything else is carried out.
        """
        world = self.world
        world.now = now
        world.effects = []
        self._handle(event)
        return world.effects

    def next_wake_mono_s(self) -> float | None:
        """Return when a Tick is due, or None."""
        return self.world.timers.next_mono_s()

    def _handle(self, event: Event) -> None:  # one arm an event
        world = self.world
        match event:
            case PacketHeld():
                seller.packet_held(world, event)
            case MessageReceived():
                self._message(event)
            case UsageRead():
                self._usage(event.readings)
                for reading in event.accounts:
                    metering.kernel_spent(world, reading)
                self._flush_later()
            case Hinted():
                self._hinted(event)
            case Halted():
                self._halted(event)
            case AccountCounted():
                metering.account_counted(world, event)
                refunds.counted(world, event)
            case Tick():
                self._tick()
            case Stopping():
                self._say_good_bye()
            case InvoiceMade():
                invoices.invoice_made(world, event)
            case InvoiceFailed():
                invoices.invoice_failed(world, event)
                if event.identity:
                    world.timers.set(Due.INVOICE, event.identity, world.now.monotonic_s + invoices.RETRY_S)
            case InvoiceCancelled():
                invoices.invoice_cancelled(world, event.payment_hash)
            case SettlementSeen():
                world.count(
                    "settlements_"
                    + settlements.settlement_seen(world, event.cursor, event.payment_hash, event.amount_msat).value
                )
            case ChannelsSeen():
                invoices.channels_seen(world, event)
            case PaymentResult():
                payments.payment_result(world, event.outcome)
            case Undelivered():
                self._undelivered(event)
            case Delivered():
                if isinstance(event.message, Statement):
                    statements.delivered(world, event.identity, event.message)
                    self._flush_later()
            case OtherVersionHeard():
                seller.other_version_heard(world, event.link)
            case BillsRecalled():
                statements.recalled(world, event)
            case SettingsChanged():
                if world.settings != event.settings:
                    world.settings = event.settings
                    seller.forget_refusals(world)
                    buyer.ask_again(world)
            case BlockNeighbour():
                (blocking.block if event.blocked else blocking.unblock)(world, event.identity)
            case RefundNeighbour():
                world.log(refunds.refund_offered(world, event.identity))
            case AskRefund():
                world.log(refunds.ask_back(world, event.identity))

    # --- messages -----------------------------------------------------------------------------------------------------

    def _message(self, event: MessageReceived) -> None:
        world = self.world
        if isinstance(event.message, Hello):
            meeting.hello_heard(world, event, event.message)
            return
        neighbour = world.neighbours.get((event.identity, event.link))
        if neighbour is None or world.by_link.get(event.link) is not neighbour:
            world.count("unintroduced")
            if neighbour is None:  # it knows us, we don't know it (any more): its hello brings it to say it again
                world.do(Greet(event.link[0], event.identity, event.link))
            return
        was_away, neighbour.up = not neighbour.up, True
        neighbour.heard_mono_s = world.now.monotonic_s
        neighbour.last_seen_s = world.now.utc_s
        if not self._answered(neighbour, event):
            world.do(Acknowledge(neighbour.identity, neighbour.link, event.message_id))
        if was_away and neighbour.up:
            meeting.came_back(world, neighbour, restarted=False)

    def _answered(self, neighbour: Neighbour, event: MessageReceived) -> bool:
        """Handle a message; returns whether a reply was sent, so that no acknowledgement is needed."""
        world, message, number = self.world, event.message, event.message_id
        match message:
            case Propose():
                return buyer.proposed(world, neighbour, message, number)
            case Accept():
                return seller.accepted(world, neighbour, message, number)
            case Ask():
                seller.asked(world, neighbour, message, number)
                return True
            case Reject():
                return self._rejected(neighbour, message, number)
            case Invoice():
                return payments.invoice_received(world, neighbour, message, event.decoded)
            case Paid():
                world.count("proofs_" + settlements.proof_received(world, message).value)
            case Statement():
                bills.stated(world, neighbour, message)
            case Cancel():
                buyer.cancelled(world, neighbour, message)
                seller.cancelled(world, neighbour, message.contract)
            case Declined():
                self._declined(neighbour, message)
            case Refund():
                return refunds.refund_received(world, neighbour, message, event.decoded, number)
            case Bye():
                neighbour.up = False
                world.log(f"neighbour {neighbour.identity.hex()[:8]} on {neighbour.link[0]} stops")
            case Ack() | Hello():
                return True
        return False

    def _rejected(self, neighbour: Neighbour, reject: Reject, message_id: int) -> bool:
        contract = self.world.contracts.get(reject.contract)
        if contract is not None and contract.role is Role.CLIENT:
            buyer.rejected(self.world, neighbour, reject)
            return False
        return seller.rejected(self.world, neighbour, reject, message_id)

    def _declined(self, neighbour: Neighbour, declined: Declined) -> None:
        record = self.world.invoices.get(declined.payment_hash)
        if not declined.payment_hash:
            refunds.ask_declined(self.world, neighbour, declined)
        elif record is not None and record.identity == neighbour.identity:
            of_kind = refunds if record.kind is PaymentKind.REFUND else invoices
            of_kind.invoice_declined(self.world, record, declined)

    def _undelivered(self, event: Undelivered) -> None:
        neighbour = self.world.neighbours.get((event.identity, event.link))
        if isinstance(event.message, Statement):
            statements.undelivered(self.world, event.identity, event.message)
        if neighbour is not None and neighbour.up and not isinstance(event.message, Hello):
            neighbour.up = False
            self.world.log(f"neighbour {event.identity.hex()[:8]} on {event.link[0]} doesn't answer", logging.WARNING)

    # --- the kernel's word --------------------------------------------------------------------------------------------

    def _usage(self, readings: Sequence[Reading]) -> None:
        touched: dict[bytes, Account] = {}
        for reading in readings:
            contract = self.world.contracts.get(reading.contract)
            if contract is None:
                continue
            if contract.role is Role.CLIENT:
                buyer.usage_read(self.world, contract, reading)
            elif (account := metering.contract_read(self.world, contract, reading)) is not None:
                touched[account.identity] = account
        for account in touched.values():
            metering.account_read(self.world, account)

    def _hinted(self, event: Hinted) -> None:
        world = self.world
        self._usage(event.readings)
        for hint in event.hints:
            if hint.kind is HintKind.EXHAUSTED and (contract := world.contracts.get(hint.key)) is not None:
                (metering.look_if_exhausted if contract.role is Role.SERVER else buyer.exhausted)(world, contract)
            elif hint.kind is HintKind.ACCOUNT_EXHAUSTED:
                account = world.accounts.get((hint.key, Role.SERVER))
                if account is not None:
                    metering.account_exhausted(world, account)
        self._flush_later()

    def _halted(self, event: Halted) -> None:
        contract = self.world.contracts.get(event.contract)
        if contract is not None and contract.halting is not None:
            of_role = metering if contract.role is Role.SERVER else buyer
            of_role.halted(self.world, contract, event.reading)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _flush_later(self) -> None:
        if self.world.unflushed or self.world.acknowledged:
            self.world.timers.set_if_unset(Due.FLUSH, b"", self.world.now.monotonic_s + FLUSH_INTERVAL_S)

    def flush(self, most: int = FLUSHED_AT_ONCE) -> None:
        """Write totals of contracts that carried bytes, and what clients acknowledged; seldom, for the flash's sake.

        Args:
            most: of each written now; the rest follows in a moment, so that nobody waits for a hundred thousand.
        """
        world = self.world
        accounts = set()
        for contract_id in list(islice(world.unflushed, most)):
            world.unflushed.discard(contract_id)
            contract = world.contracts.get(contract_id)
            if contract is not None:
                world.save_contract(contract)
                accounts.add((contract.identity, contract.role))
        for key in accounts:
            world.save_account(world.accounts[key])
        if statements.write_acknowledged(world, most) or world.unflushed:
            world.timers.set(Due.FLUSH, b"", world.now.monotonic_s + FLUSH_PAUSE_S)
        else:
            self._flush_later()

    def _say_good_bye(self) -> None:
        """Tell every client its totals and every neighbour that we stop; contracts stay in the ledger as they are."""
        world = self.world
        for account in world.accounts.values():
            if account.role is Role.SERVER and account.unstated:
                statements.statement_due(world, account)
        for neighbour in world.by_link.values():
            world.send(neighbour, Bye())
        self.flush(most=len(world.unflushed))

    def _tick(self) -> None:
        world = self.world
        world.credit.forget_old_defaults(world.now.monotonic_s)
        for due, key in world.timers.ring(world.now.monotonic_s):
            match due:
                case Due.STRANGERS:
                    seller.strangers_due(world)
                case Due.FLUSH:
                    self.flush()
                case Due.STATEMENT | Due.CREDIT | Due.UNPAID:
                    account = world.accounts.get((key, Role.SERVER))
                    if account is not None:
                        _ACCOUNT_DUE[due](world, account)
                case Due.INVOICE:
                    invoices.invoice_due(world, key)
                    invoices.invoice_retry_due(world, key)
                case Due.TRACK:
                    payments.track_due(world, key)
                case _:
                    contract = world.contracts.get(key)
                    if contract is not None:
                        self._contract_due(due, contract)

    def _contract_due(self, due: Due, contract: Contract) -> None:
        world = self.world
        if due is Due.EXPIRY and contract.running:
            if contract.used_bytes and contract.expires_mono_s > world.now.monotonic_s:
                world.watch_end(contract)  # this look was for those that nobody uses
                return
            if contract.state is State.RENEWING:
                contract.offered = None
            world.halt(contract, CloseReason.EXPIRED)
        elif due is Due.QUOTE:
            seller.quote_due(world, contract)
        elif due is Due.REFUSAL:
            seller.refusal_due(world, contract)
        elif due is Due.RENEWAL:
            buyer.renewal_due(world, contract)
        elif due is Due.EXHAUSTED:
            if contract.role is Role.SERVER:
                metering.exhausted_due(world, contract)
            elif contract.running:
                world.halt(contract, CloseReason.EXHAUSTED)
