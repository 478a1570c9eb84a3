"""Losses: end what we buy for clients if it sends to others through us, who haven't bought it.

Its server charges us for all that a destination sends. A client may pay for what it takes, while the destination sends
to other hosts behind us, too: that our kernel refuses, and nobody pays for it. So the kernel counts the bytes that it
refuses by the purchase by which they came. If they are more than GRACE_DATA within an hour, the purchase ends with all
its sales, and its destination is withheld for a while, as in `unsold`.

- What comes for ourselves and our LANs isn't refused, so it isn't counted, however much it is.
- When a client has left, or a contract has ended, what was on its way is refused. It is more the faster the flow was.
  So what a purchase has earned above its cost, at most a tenth of it, pays for that.
- What was refused of all purchases for one client counts together: it could have one stream come by each of many. What
  several clients have bought counts for each of them in part, but for those that never paid. By a client that is above
  GRACE_DATA, and from a destination that was withheld lately, each purchase may lose no more than the largest packet.
- If a client lost us MOST_GRACES times GRACE_DATA at a server, by purchases that it alone uses, nothing more is bought
  there for it. So others, who can have something sent by what they share with it, can't lock it out.
- What nobody but our household wants stays: its next packet would buy it again.
- Default routes have a rule of their own (`default_resale`), which goes back to single destinations.
"""

from __future__ import annotations

from collections.abc import Iterable

from ngp.core import unsold
from ngp.core.buying.purchase import Purchase
from ngp.core.kernel import LARGEST_PACKET_BYTES
from ngp.core.messages import Role
from ngp.core.prefixes import PackedPrefix
from ngp.core.streams import MOST_GRACES, Loss
from ngp.core.world import World


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
    streams, now, about = world.streams, world.now.monotonic_s, (purchase.identity, purchase.destination)
    withheld = streams.withheld.get(about)
    clients = {one.identity for one in world.resting.get(purchase.id, {}).values() if one.running}
    if not clients and purchase.opened_for:  # its client has left, perhaps to buy it again before this is too much
        clients = {purchase.opened_for}
    if not clients or (not purchase.running and withheld is not None and now < withheld.until_mono_s):
        return
    loss = _lost(world, about, purchase, clients, size_bytes)
    grace_bytes = world.settings.grace_data_bytes
    losses = [streams.lost_for(client, purchase.identity, now) for client in clients]
    is_again = withheld is not None and now < withheld.until_mono_s + unsold.MOST_PAUSE_S
    is_above = is_again or any(one.counted_bytes > grace_bytes for one in losses)
    bound = min(grace_bytes, LARGEST_PACKET_BYTES) if is_above else grace_bytes
    if all(one.alone_bytes > MOST_GRACES * grace_bytes for one in losses):
        bound = 0
    if loss.counted_bytes <= bound:
        return
    streams.losses.pop(about, None)
    what = f"{loss.lost_bytes} bytes came from {purchase.destination} by {purchase.identity.hex()[:8]} that nobody"
    why = "paid for, as they were for hosts behind this router that hadn't bought it, and were refused"
    advice = "if it happens again, have the gateway let only answers through, or block the client that buys it"
    unsold.withhold(world, purchase, b"", f"{what} {why}", advice)
    if purchase.running:
        unsold.end(world, purchase)


def _lost(
    world: World, about: tuple[bytes, PackedPrefix], purchase: Purchase, clients: set[bytes], size_bytes: int
) -> Loss:
    """Add to what was lost of a destination within an hour, and to what was lost for its clients."""
    streams, now, grace_bytes = world.streams, world.now.monotonic_s, world.settings.grace_data_bytes
    loss = streams.losses.lately(about, now)
    before = loss.counted_bytes
    loss.lost_bytes += size_bytes
    loss.counted_bytes += size_bytes - purchase.bear(size_bytes)
    streams.losses.note(about, loss)
    # A fast stream may bring many times the grace before we look, and its client can't help that.
    grown_bytes = min(loss.counted_bytes, grace_bytes) - min(before, grace_bytes)
    paying = {one for one in clients if world.has_traded(Role.SERVER, one)} or clients
    for client in paying if grown_bytes else ():
        alone_bytes = grown_bytes if len(clients) == 1 else 0
        streams.lose_for(client, purchase.identity, -(-grown_bytes // len(paying)), alone_bytes, now)
    return loss
