"""Means: whether we can pay a server for what we sell on.

As long as our prepaid money lasts, and the server's credit, nothing has to end because a payment fails or isn't made:
the next one may succeed. After that the server drops what we send, and our clients would pay us for nothing. How much
credit a server gives us, we don't know; we take it that it is as much as we give ourselves, GRACE_DATA. It is used up
when a packet of the largest size doesn't fit any more.
"""

from __future__ import annotations

from ngp.core.buying import service
from ngp.core.buying.account import ServerAccount
from ngp.core.buying.purchase import Purchase
from ngp.core.kernel import LARGEST_PACKET_BYTES, UNITS_PER_MSAT
from ngp.core.orders import backoff_of, broken_budget, pending
from ngp.core.topups import sendable
from ngp.core.world import World


def why_unpayable(world: World, identity: bytes) -> str:
    """Return why a server carries nothing more for us until we pay, and why we can't; "" if it does, or we can."""
    account = world.servers.get(identity)
    if account is None:
        return ""
    # The bill, and what our meter has counted since. All that the meter counted includes what was lost on the way.
    used_msat = max(account.charged_msat, account.metered_msat - account.ahead_msat)
    debt_msat = used_msat + account.refunded_msat - account.paid_msat
    lent_bytes, price = world.settings.grace_data_bytes - LARGEST_PACKET_BYTES, world.settings.buy_max_msat_per_gib
    if debt_msat > 0 and lent_bytes > 0:  # else the contracts needn't be looked through, and there may be many
        contracts = (one for link in world.peers.links_of(identity) for one in link.contracts.values())
        running = (one.price_msat_per_gib for one in contracts if isinstance(one, Purchase) and one.running)
        price = max(running, default=price)
    return _why_not_now(world, account, debt_msat) if debt_msat * UNITS_PER_MSAT >= lent_bytes * price else ""


def _why_not_now(world: World, account: ServerAccount, debt_msat: int) -> str:
    """Return why no payment to a server can be made or awaited now; "" if there is no reason."""
    under_way = pending(world, account.identity)
    if under_way:
        since_s = min(one.created_at_s for one in under_way)
        is_stuck = world.now.utc_s - since_s > world.settings.grace_time_s
        return "our payment to it is under way for longer than GRACE_TIME" if is_stuck else ""
    if account.disputed:
        return f"its bill is in dispute, until `ngp unblock {account.identity.hex()[:16]}`"
    if why := service.why_unpaid(world, account):
        return why
    if backoff_of(world, account).not_before_mono_s > world.now.monotonic_s:
        return account.why_not or "the last payment failed"
    return sendable(world, account.identity).why_not or broken_budget(world, account.identity, max(1, debt_msat)) or ""
