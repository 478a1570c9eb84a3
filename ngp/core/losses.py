"""Losses: end what we buy for clients if it sends to others through us, who haven't bought it.

Its server charges us for all that a destination sends. A client may pay for what it takes, while the destination sends
to other hosts behind us, too: that our kernel refuses, and nobody pays for it. So the kernel counts the bytes that it
refuses by the purchase by which they came. If they are more than GRACE_DATA within an hour, the purchase ends with all
its sales, and its destination is withheld for a while, as in `unsold`.

- What comes for ourselves and our LANs isn't refused, so it isn't counted, however much it is.
- What was refused of all purchases for one client counts together: it could have one stream come by each of many. What
  several clients have bought counts for each of them in part. By a client that is above GRACE_DATA, and from a
  destination that was withheld lately, each purchase may lose no more than the largest packet.
- What comes after a client has left was on its way, and is less than GRACE_DATA.
- What nobody but our household wants stays: its next packet would buy it again.
- Default routes have a rule of their own (`default_resale`), which goes back to single destinations.
"""

from __future__ import annotations

from collections.abc import Iterable

from ngp.core import unsold
from ngp.core.buying.purchase import Purchase
from ngp.core.kernel import LARGEST_PACKET_BYTES
from ngp.core.prefixes import PackedPrefix
from ngp.core.streams import Loss
from ngp.core.world import World

LOSS_WINDOW_S = 3600.0


def seen(world: World, by_purchase: Iterable[tuple[bytes, int]]) -> None:
    """Count what was refused as nobody's, and end the purchases by which too much of it came.

    Args: by_purchase: bytes since the last call, by the purchases' ids.
    """
    for contract, size_bytes in by_purchase:
        purchase = world.bought(contract)
        if purchase is not None and purchase.destination.is_default:
            continue
        world.streams.lost_bytes += size_bytes
        if purchase is not None and purchase.highest_msat_per_gib:  # else it costs us nothing
            _lose(world, purchase, size_bytes)


def _lose(world: World, purchase: Purchase, size_bytes: int) -> None:
    about, grace_bytes = (purchase.identity, purchase.destination), world.settings.grace_data_bytes
    now, withheld = world.now.monotonic_s, world.streams.withheld.get(about)
    clients = {one.identity for one in world.resting.get(purchase.id, {}).values() if one.running}
    if not clients and purchase.opened_for:  # its client has left, perhaps to buy it again before this is too much
        clients = {purchase.opened_for}
    if not clients or (not purchase.running and withheld is not None and now < withheld.until_mono_s):
        return
    lost_bytes = _add(world, about, size_bytes)
    share_bytes = -(-size_bytes // len(clients))
    is_above = max(_add(world, (client, None), share_bytes) for client in clients) > grace_bytes
    is_again = withheld is not None and now < withheld.until_mono_s + unsold.MOST_PAUSE_S
    if lost_bytes <= (min(grace_bytes, LARGEST_PACKET_BYTES) if is_above or is_again else grace_bytes):
        return
    del world.streams.losses[about]
    what = f"{lost_bytes} bytes came from {purchase.destination} by {purchase.identity.hex()[:8]} that nobody paid for"
    why = "as they were for hosts behind this router that hadn't bought it, and were refused"
    advice = "if it happens again, have the gateway let only answers through, or block the client that buys it"
    unsold.withhold(world, purchase, b"", f"{what}, {why}", advice)
    if purchase.running:
        unsold.end(world, purchase)


def _add(world: World, about: tuple[bytes, PackedPrefix | None], size_bytes: int) -> int:
    """Add to what was lost within an hour, and return it."""
    loss, now = world.streams.losses.get(about), world.now.monotonic_s
    if loss is None or now - loss.since_mono_s > LOSS_WINDOW_S:
        loss = Loss(now)
    loss = Loss(loss.since_mono_s, loss.lost_bytes + size_bytes)
    world.streams.losses.note(about, loss)
    return loss.lost_bytes
