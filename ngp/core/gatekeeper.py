"""Gatekeeper: the only way into the core. `step(event, now)` changes the world and returns the effects to carry out.

Pure: time comes in with each event, randomness as `new_id`, money and packets as events. This module only dispatches
events. The rules are in `selling` and `buying` and in the modules beside this one (meeting, invoices, settlements,
orders, blocking). What a landlord does about an event is behind `rental.dispatch`.
"""

from __future__ import annotations

import logging
from itertools import islice

from ngp.core import (
    basis_changed,
    blocking,
    default_resale,
    invoices,
    losses,
    meeting,
    orders,
    parts,
    rerouting,
    settlements,
    unsold,
    upstream,
)
from ngp.core.buying import bills, choosing, default_route, endings, payments, renewal
from ngp.core.buying import metering as buyer_meter
from ngp.core.buying import negotiation as buyer
from ngp.core.buying import refunds as buyer_refunds
from ngp.core.buying.account import ServerAccount
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import CloseReason, State
from ngp.core.effects import Acknowledge, Effect, Greet, HandOver, Log
from ngp.core.events import (
    AccountCounted,
    AskRefund,
    BillsRecalled,
    BlockNeighbour,
    ChannelsSeen,
    Delivered,
    Event,
    ForksSeen,
    Halted,
    Hinted,
    InvoiceCancelled,
    InvoiceFailed,
    InvoiceMade,
    LoadSeen,
    LossesSeen,
    MessageReceived,
    RefundNeighbour,
    RoutesLookedUp,
    RoutesSeen,
    SettingsChanged,
    Stopping,
    Tick,
    Undelivered,
    UnsoldSeen,
    UsageRead,
)
from ngp.core.kernel import HeldPacket, HintKind, Reading
from ngp.core.messages import (
    Accept,
    Ack,
    Answer,
    Ask,
    Bye,
    Call,
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
from ngp.core.payment_node import PaymentOutcome, Settlement
from ngp.core.peers import Link, Neighbour
from ngp.core.prefixes import host_prefix
from ngp.core.records import PaymentKind
from ngp.core.rental import dispatch as rental_dispatch
from ngp.core.rental import landlord
from ngp.core.selling import endings as seller_endings
from ngp.core.selling import first_packets, grace, invoicing, quoting, statements
from ngp.core.selling import metering as seller_meter
from ngp.core.selling import negotiation as seller
from ngp.core.selling import refunds as seller_refunds
from ngp.core.selling.account import ClientAccount
from ngp.core.selling.sale import Sale
from ngp.core.timers import Due
from ngp.core.values import Now
from ngp.core.world import World

FLUSH_INTERVAL_S = 60.0  # from a change of a contract's totals until they are written
# A long list of totals is written in parts, with pauses: a part takes some ms, and a first packet may wait for it.
FLUSHED_AT_ONCE = 100
FLUSH_PAUSE_S = 0.01
_ACCOUNT_DUE = {
    Due.STATEMENT: statements.statement_due,
    Due.CREDIT: grace.credit_due,
    Due.UNPAID: seller_meter.unpaid_due,
}


class Gatekeeper:
    """The state of one node, and the step that changes it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def step(self, event: Event, now: Now) -> list[Effect]:
        """Handle one event.

        Args:
            event: what happened.
            now: the present time, UTC and monotonic.

        Returns:
            The effects to carry out, in order. Their records must be stored before any other effect is carried out.
        """
        world = self.world
        world.now = now
        world.effects = []
        self._handle(event)
        while world.buying.forks.moved:
            prefix, seller_there = world.buying.forks.moved.pop()
            basis_changed.goes_through(world, seller_there, prefix)
            default_resale.moved(world, prefix, seller_there)
        while world.buying.bought:
            purchase = world.buying.bought.pop()
            basis_changed.leads_elsewhere(world, purchase.id)
            unsold.bought(world, purchase)
        default_resale.settle(world)
        if any(isinstance(effect, Log) for effect in world.effects):
            self._limit_lines(event)
        self._flush_later()
        return world.effects

    def _limit_lines(self, event: Event) -> None:
        """Leave out log lines of this step if the neighbour that caused it causes too many."""
        if not isinstance(event, MessageReceived | Undelivered | HeldPacket):
            return
        world, now = self.world, self.world.now.monotonic_s
        if isinstance(event, HeldPacket):
            neighbour = world.peers.by_link.get(event.link)
            # Lines about links without ngp are few already: `first_packets` limits them.
            identity = neighbour.identity if neighbour is not None else b""
        else:
            identity = event.identity
        if identity:
            traded = world.has_traded_at_all(identity)
            world.effects = world.lines.limited(world.effects, identity, event.link[0], traded, now)

    def next_wake_mono_s(self) -> float | None:
        """Return when a Tick is due, by the monotonic clock; None if no timer is set."""
        return self.world.timers.next_mono_s()

    def _handle(self, event: Event) -> None:  # one case for each event
        world = self.world
        match event:
            case HeldPacket():
                first_packets.packet_held(world, event)
            case MessageReceived():
                self._message(event)
            case UsageRead():
                self._usage(event)
            case Hinted():
                self._hinted(event)
            case Halted():
                self._halted(event)
            case AccountCounted():
                seller_meter.account_counted(world, event)
                seller_refunds.account_counted(world, event)
            case Tick():
                self._tick()
            case Stopping():
                self._say_good_bye()
            case InvoiceMade():
                invoices.invoice_made(world, event)
            case InvoiceFailed():
                invoices.invoice_failed(world, event)
            case InvoiceCancelled():
                account = invoices.invoice_cancelled(world, event.payment_hash)
                if isinstance(account, ClientAccount):
                    invoicing.top_up_if_low(world, account)
            case Settlement():
                settlements.settlement_seen(world, event)
            case ChannelsSeen():
                invoicing.channels_seen(world, event)
            case PaymentOutcome():
                orders.payment_result(world, event)
                if (ordered := world.money.payments.get(event.payment_hash)) is not None:
                    upstream.end_unpayable(world, ordered.identity)
                    seller_meter.use_funds(world, ordered.identity)
            case Undelivered():
                self._undelivered(event)
            case Delivered():
                if isinstance(event.message, Statement):
                    statements.delivered(world, event.identity, event.message)
                elif isinstance(event.message, Cancel):
                    seller_endings.told(world, event.identity, event.message.contract)
            case BillsRecalled():
                statements.recalled(world, event)
            case SettingsChanged():
                if world.settings != event.settings:
                    before, world.settings = world.settings, event.settings
                    seller.forget_refusals(world)
                    buyer.ask_again(world)
                    for account in world.servers.values():
                        payments.pay_now(world, account)
                    choosing.switched(world, before)
                    default_route.switched(world)
            case ForksSeen():
                choosing.forks_seen(world, event.forks)
            case RoutesSeen():
                default_resale.routes_seen(world, event.routes)
            case RoutesLookedUp():
                for contract, onward in event.onward:
                    basis_changed.route_seen(world, contract, onward)
            case UnsoldSeen():
                default_resale.unsold_seen(world, event.counted_bytes - world.streams.lost_bytes)
            case LossesSeen():
                losses.seen(world, event.by_purchase)
            case LoadSeen():
                world.load_ppm = event.load_ppm
            case BlockNeighbour():
                (blocking.block if event.blocked else blocking.unblock)(world, event.identity)
            case RefundNeighbour():
                world.log(seller_refunds.refund_offered(world, event.identity))
            case AskRefund():
                world.log(buyer_refunds.ask_back(world, event.identity))
        rental_dispatch.handle(world, event)

    # --- messages -----------------------------------------------------------------------------------------------------

    def _message(self, event: MessageReceived) -> None:
        world = self.world
        if isinstance(event.message, Hello):
            before = self._seller_at(event.link)
            meeting.hello_heard(world, event, event.message)
            if self._seller_at(event.link) != before:
                parts.look_up_soon(world)
                if world.resold.purchases:
                    default_resale.follow(world)
            return
        neighbour = world.peers.neighbours.get((event.identity, event.link))
        if neighbour is None or world.peers.by_link.get(event.link) is not neighbour:
            world.count("unintroduced")
            if neighbour is None:  # it knows us, but we don't know it (any more): its hello will introduce it
                world.do(Greet(event.link[0], event.identity, event.link))
            return
        was_away, neighbour.up = not neighbour.up, True
        neighbour.heard_mono_s = world.now.monotonic_s
        neighbour.last_seen_s = world.now.utc_s
        if not self._answered(neighbour, event):
            world.do(Acknowledge(neighbour.identity, event.message_id))
        if neighbour.up:
            neighbour.missed |= was_away
            meeting.tell_missed(world, neighbour)

    def _seller_at(self, link: Link) -> tuple[bytes, bool] | None:
        """Return who is on a link, and whether it sells to us; None: nobody is known there."""
        found = self.world.peers.by_link.get(link)
        return None if found is None else (found.identity, found.sells)

    def _answered(self, neighbour: Neighbour, event: MessageReceived) -> bool:
        """Handle a message. Returns whether a reply was sent, so that no acknowledgement is needed."""
        world, message, number = self.world, event.message, event.message_id
        match message:
            case Propose():
                return self._proposed(neighbour, message, event)
            case Accept():
                return seller.accepted(world, neighbour, message, number)
            case Ask():
                if message.destination.prefixlen == 0 and event.onward.router is not None:
                    default_resale.asked(world, event.routes)
                seller.asked(world, neighbour, message, number, event.onward)
                return True
            case Reject():
                return self._rejected(neighbour, message, number)
            case Invoice():
                replied = payments.invoice_received(world, neighbour, message, event.decoded)
                upstream.end_unpayable(world, neighbour.identity)
                return replied
            case Paid():
                settlements.proof_received(world, message)
            case Statement():
                bills.stated(world, neighbour, message)
            case Cancel():
                endings.cancelled(world, neighbour, message)
                basis_changed.taken_back(world, neighbour, message.contract)
                seller.cancelled(world, neighbour, message.contract)
            case Declined():
                self._declined(neighbour, message)
            case Refund():
                return self._refund(neighbour, message, event)
            case Bye():
                neighbour.up = False
                world.log(f"neighbour {neighbour.identity.hex()[:8]} on {neighbour.link[0]} stops")
            case Call() | Answer():
                world.do(HandOver(neighbour.identity, neighbour.link, message))
            case Ack() | Hello():
                return True
        return False

    def _proposed(self, neighbour: Neighbour, propose: Propose, event: MessageReceived) -> bool:
        """Handle a proposal, then go on with the sales that waited for it."""
        world, purchase = self.world, self.world.running_purchase(propose.contract)
        sends_to = event.sends_to
        if world.resold.purchases and default_resale.declines(world, neighbour, propose, event.message_id, sends_to):
            return True
        limit = purchase.data_limit_bytes if purchase is not None else 0
        cost = upstream.cost(world, neighbour.identity, propose)
        replied = buyer.proposed(world, neighbour, propose, event.message_id, sends_to)
        if (costs_now := upstream.cost(world, neighbour.identity, propose)) > cost:
            basis_changed.costs_more(world, propose.contract, costs_now)
        bought = world.running_purchase(propose.contract)
        if purchase is None and bought is not None and event.sends_all:
            default_route.ask(world, neighbour, propose.destination.version)
        if world.resold.purchases and bought is not None:  # it may be dearer than the default route now
            default_resale.follow(world)
        grew = purchase is not None and purchase.data_limit_bytes > limit
        seller.answered(world, neighbour.identity, propose.destination, grew)
        if purchase is not None:
            basis_changed.shed(world, purchase.id)
        choosing.offered(world, neighbour, propose)
        return replied

    def _rejected(self, neighbour: Neighbour, reject: Reject, number: int) -> bool:
        """Handle a refusal, then go on with the sales that waited for an answer."""
        world, purchase = self.world, self.world.running_purchase(reject.contract)
        buyer.rejected(world, neighbour, reject)
        replied = seller.rejected(world, neighbour, reject, number)
        if purchase is not None and purchase.identity == neighbour.identity:
            seller.answered(world, purchase.identity, purchase.destination.prefix)
            basis_changed.shed(world, purchase.id)
        elif reject.destination is not None:
            seller.answered(world, neighbour.identity, reject.destination, refused=True)
            choosing.refused(world, neighbour, reject)
        return replied

    def _refund(self, neighbour: Neighbour, refund: Refund, event: MessageReceived) -> bool:
        """Handle a refund message: a client's request or its invoice for our offer, or a server's offer to us."""
        if refund.bolt11:
            return seller_refunds.pay_back(self.world, neighbour, refund, event.decoded)
        if refund.amount_msat:
            return buyer_refunds.take_back(self.world, neighbour, refund)
        return seller_refunds.asked(self.world, neighbour, event.message_id)

    def _declined(self, neighbour: Neighbour, declined: Declined) -> None:
        record = self.world.money.invoices.get(declined.payment_hash)
        if not declined.payment_hash:
            buyer_refunds.ask_declined(self.world, neighbour, declined)
        elif record is not None and record.identity == neighbour.identity:
            of_kind = buyer_refunds if record.kind is PaymentKind.REFUND else invoicing
            of_kind.invoice_declined(self.world, record, declined)

    def _undelivered(self, event: Undelivered) -> None:
        neighbour = self.world.peers.neighbours.get((event.identity, event.link))
        if isinstance(event.message, Statement):
            statements.undelivered(self.world, event.identity, event.message)
        if neighbour is not None and neighbour.up and not isinstance(event.message, Hello):
            neighbour.up = False
            self.world.log(f"neighbour {event.identity.hex()[:8]} on {event.link[0]} doesn't answer", logging.WARNING)

    # --- readings and hints from the kernel ---------------------------------------------------------------------------

    def _client(self, account: bytes) -> ClientAccount | None:
        """Return a neighbour's account as our client; None if it is a tenant's: that is the landlord's matter."""
        return self.world.clients.get(account) if account not in self.world.letting.rentals else None

    def _usage(self, event: UsageRead) -> None:
        touched: dict[bytes, ClientAccount] = {}
        bought: list[Purchase] = []
        sold: list[tuple[Sale, Reading]] = []
        for reading in event.readings:
            contract = self.world.contracts.get(reading.contract)
            if isinstance(contract, Purchase):
                choosing.carried(self.world, contract, reading)
                unsold.brings(self.world, contract)
                buyer_meter.usage_read(self.world, contract, reading)
                bought.append(contract)
            elif contract is not None:
                sold.append((contract, reading))
        for sale, reading in sold:  # after what they rest on: so it is known by which of several ways they went
            if account := seller_meter.contract_read(self.world, sale, reading):
                touched[account.identity] = account
        for purchase in bought:  # when its sales are read, too: what they carried isn't our own traffic
            upstream.keep_up(self.world, purchase)
            default_resale.lapse(self.world, purchase)
            unsold.brought(self.world, purchase)
        for server in {purchase.identity for purchase in bought}:
            upstream.end_unpayable(self.world, server)
        for account in touched.values():
            seller_meter.account_read(self.world, account)
        for spent in event.accounts:
            if (client := self._client(spent.account)) is not None:
                seller_meter.kernel_spent(self.world, client, spent)

    def _hinted(self, event: Hinted) -> None:
        world = self.world
        for hint in event.hints:
            if hint.kind is HintKind.EXHAUSTED:
                contract = world.contracts.get(hint.key)
                if isinstance(contract, Purchase):
                    # Renew it, but don't end it: our meter also counts what the server refused, so the server may have
                    # bytes left. The contract ends with the server's notice or with its lifetime.
                    renewal.renew_if_due(world, contract)
                elif contract is not None:
                    seller_meter.look_if_exhausted(world, contract)
            elif hint.kind is HintKind.ACCOUNT_EXHAUSTED:
                if (client := self._client(hint.key)) is not None:
                    seller_meter.account_exhausted(world, client)
            elif hint.kind is HintKind.UNBOUGHT and hint.destination is not None:
                choosing.used(world, host_prefix(hint.destination))
                buyer.ask_for(world, hint.neighbour, hint.destination)

    def _halted(self, event: Halted) -> None:
        contract = self.world.contracts.get(event.contract)
        if contract is None or contract.state is not State.HALTING:
            return
        if isinstance(contract, Purchase):
            endings.halted(self.world, contract, event.reading)
        else:
            seller_meter.halted(self.world, contract, event.reading)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _flush_later(self) -> None:
        if self.world.unflushed or self.world.acknowledged:
            self.world.timers.set_if_unset(Due.FLUSH, b"", self.world.now.monotonic_s + FLUSH_INTERVAL_S)

    def flush(self, most: int = FLUSHED_AT_ONCE) -> None:
        """Write the totals of contracts that carried bytes, and clients' acknowledgements; seldom, to spare the flash.

        Args:
            most: how many of each are written now. The rest follows in a moment, so that no event waits long.
        """
        world = self.world
        accounts: dict[tuple[bytes, Role], ClientAccount | ServerAccount] = {}
        for contract_id in list(islice(world.unflushed, most)):
            world.unflushed.pop(contract_id, None)
            contract = world.contracts.get(contract_id)
            if contract_id in world.letting.metered:
                landlord.save_totals(world, world.letting.metered[contract_id])
            elif contract is not None:
                world.save_contract(contract)
                accounts[contract.identity, contract.role] = world.account_of(contract)
        for account in accounts.values():
            world.save_account(account)
        if statements.write_acknowledged(world, most) or world.unflushed:
            world.timers.set(Due.FLUSH, b"", world.now.monotonic_s + FLUSH_PAUSE_S)
        else:
            self._flush_later()

    def _say_good_bye(self) -> None:
        """Send each client its totals and each neighbour a goodbye; contracts stay in the ledger as they are."""
        world = self.world
        for account in world.clients.values():
            if account.unstated:
                statements.statement_due(world, account)
        for neighbour in world.peers.by_link.values():
            world.send(neighbour, Bye())
        self.flush(most=len(world.unflushed))

    def _tick(self) -> None:
        world = self.world
        for due, key in world.timers.ring(world.now.monotonic_s):
            match due:
                case Due.STRANGERS:
                    first_packets.strangers_due(world)
                case Due.FORKS:
                    choosing.look(world)
                case Due.UNSOLD:
                    unsold.look(world)
                case Due.MISSED:
                    endings.look_for_missed(world)
                case Due.LEFT:
                    rerouting.look(world)
                case Due.NETWORKS:
                    parts.look_up(world)
                case Due.DOUBTFUL:
                    rerouting.look_up_doubtful(world)
                case Due.FLUSH:
                    self.flush()
                case Due.STATEMENT | Due.CREDIT | Due.UNPAID:
                    account = world.clients.get(key)
                    if account is not None:
                        _ACCOUNT_DUE[due](world, account)
                case Due.INVOICE:
                    invoices.invoice_due(world, key)
                    invoicing.invoice_retry_due(world, key)
                case Due.RENTAL:
                    landlord.due(world, key)
                case Due.TRACK:
                    orders.track_due(world, key)
                case _:
                    contract = world.contracts.get(key)
                    if contract is not None:
                        self._contract_due(due, contract)

    def _contract_due(self, due: Due, contract: Sale | Purchase) -> None:
        world = self.world
        if due is Due.EXPIRY:
            if contract.used_bytes and contract.expires_mono_s > world.now.monotonic_s:
                world.watch_end(contract)  # the timer rang before the end, to close a contract that nobody used
            else:
                world.halt(contract, CloseReason.EXPIRED)
        elif isinstance(contract, Purchase):
            if due is Due.RENEWAL:
                renewal.renewal_due(world, contract)
        elif due is Due.QUOTE:
            seller.quote_due(world, contract)
        elif due is Due.REFUSAL:
            quoting.forget(world, contract)
        elif due is Due.EXHAUSTED:
            seller_meter.exhausted_due(world, contract)
