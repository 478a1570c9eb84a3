"""Dispatch: the landlord's part of a step. The gatekeeper hands it each event, after it did its own part.

Rental events concern the landlord only. Invoices, the kernel's counters and net.conf concern neighbours as well; of
these events the landlord's part is what belongs to a rental, by the id of its account or of one of its contracts.
"""

from __future__ import annotations

from ngp.core import settlements
from ngp.core.events import (
    AccountCounted,
    Event,
    Halted,
    Hinted,
    InvoiceCancelled,
    InvoiceFailed,
    InvoiceMade,
    SettingsChanged,
    UsageRead,
)
from ngp.core.kernel import HintKind
from ngp.core.records import PaymentKind
from ngp.core.rental import asking, holding, landlord, refunds, rekey
from ngp.core.rental.events import (
    CancelAsked,
    CreditAsked,
    InvoiceHeld,
    MoneyBackAsked,
    NetworksHeld,
    RekeyAsked,
    ReleaseRental,
    RentProven,
    SwitchRental,
    TunnelPeerSet,
    TunnelPeerUnmetered,
)
from ngp.core.world import World


def handle(world: World, event: Event) -> None:  # one case for each event
    """Do the landlord's part of an event."""
    match event:
        case CreditAsked():
            asking.credit_asked(world, event)
        case CancelAsked():
            asking.cancel_asked(world, event)
        case NetworksHeld():
            asking.networks_held(world, event)
        case InvoiceHeld():
            holding.held(world, event)
        case TunnelPeerSet():
            holding.peer_set(world, event)
        case TunnelPeerUnmetered():
            landlord.unmetered(world, event)
        case RentProven():
            settlements.proof_received(world, event.proof)
        case MoneyBackAsked():
            refunds.asked(world, event)
        case RekeyAsked():
            rekey.asked(world, event)
        case SwitchRental():
            landlord.switch(world, event)
        case ReleaseRental():
            landlord.release(world, event)
        case InvoiceMade(kind=PaymentKind.RENT):
            asking.invoice_made(world, event)
        case InvoiceFailed(kind=PaymentKind.RENT):
            asking.invoice_failed(world, event)
        case InvoiceCancelled():
            asking.invoice_cancelled(world, event.payment_hash)
        case UsageRead() if world.letting.metered:
            _usage_read(world, event)
        case Hinted() if world.letting.metered:
            for hint in event.hints:
                if hint.kind is HintKind.ACCOUNT_EXHAUSTED:
                    landlord.account_exhausted(world, hint.key)
        case Halted():
            if (rental := world.letting.metered.get(event.contract)) is not None:
                landlord.contract_halted(world, rental, event.contract, event.reading)
        case AccountCounted():
            landlord.account_counted(world, event)
        case SettingsChanged():
            landlord.settings_changed(world)


def _usage_read(world: World, event: UsageRead) -> None:
    """Charge tenants' traffic first: that an account is exhausted is judged by what all its contracts carried."""
    for reading in event.readings:
        if (rental := world.letting.metered.get(reading.contract)) is not None:
            landlord.usage_read(world, rental, reading)
    for account in event.accounts:
        if account.exhausted:
            landlord.account_exhausted(world, account.account)
