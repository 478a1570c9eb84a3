"""Money back: fetches what a landlord still has of a rental that is over: it pays an invoice that our node makes."""

from __future__ import annotations

import asyncio
import contextlib
import time

from ngp.errors import LandlordError, PaymentError
from ngp.ports import Payment
from ngp.ports.payment import InvoiceState
from ngp.tenant.home import Tunnel
from ngp.tenant.landlord import Landlord

EXPIRY_S = 3600
ARRIVES_S = 60.0
"""How long we wait for the money: as long as a landlord's node tries to pay."""
_POLL_S = 0.5


async def fetch(landlord: Landlord, tunnel: Tunnel, payment: Payment, amount_msat: int) -> bool:
    """Have our node's invoice paid by a landlord.

    Returns: whether the money has arrived. If not, it is on its way, or the payment failed; then fetch it again.
    Raises: NgpError: the landlord doesn't pay.
    """
    made = await payment.create_invoice(amount_msat, f"what is left of {tunnel.shown_name}", EXPIRY_S)
    try:
        await asyncio.to_thread(landlord.refund, tunnel, made.bolt11)
    except LandlordError:  # if the landlord agreed and only its answer was lost, its payment fails: nothing is lost
        with contextlib.suppress(PaymentError):
            await payment.cancel_invoice(made.payment_hash)
        raise
    if payment.capabilities().settles_by_proof:  # a sandbox hears of no payment, as it has no network
        return False
    until_s = time.monotonic() + ARRIVES_S
    while time.monotonic() < until_s:
        if await payment.lookup_invoice(made.payment_hash) is InvoiceState.SETTLED:
            return True
        await asyncio.sleep(_POLL_S)
    return False
