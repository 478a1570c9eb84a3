"""Losses: end what we buy for clients if it sends to others through us, who haven't bought it.

Its server charges us for all that a destination sends. A client may pay for what it takes, while the destination sends
to other hosts behind us, too: that our kernel refuses, and nobody pays for it. So the kernel counts the bytes that it
refuses by the purchase by which they came. If they are more than GRACE_DATA within an hour, the purchase ends with all
its sales, and its destination is withheld for a while, as in `unsold`.

- What comes for ourselves and our LANs isn't refused, so it isn't counted, however much it is.
- When a client has left, or a contract has ended, what was on its way is refused. It is more the faster the flow was.
  So what we earned at that server above cost by one of the purchase's clients, at most a tenth of it, pays for that.
  And what comes in half a second may be lost if that is more than GRACE_DATA: else a download would be withheld when
  its price rises further up.
- What isn't paid for counts for the clients that have or had the purchase, in equal parts. For each it counts together:
  it could have one stream come by each of many purchases. Those that never paid are one, since keys cost nothing; if
  there are such, it counts for these alone, until they get nothing new; what others brought doesn't pay for that. If it
  is too much, only their contracts end: they are to take nothing from a client that pays.
- If all clients of a purchase are above GRACE_DATA, or its destination was withheld lately, it may lose no more than
  the largest packet. Who is above MOST_GRACES times as much at a server gets nothing new there within the hour.
- What nobody but our household wants stays: its next packet would buy it again.
- Default routes have a rule of their own (`default_resale`), which goes back to single destinations.
"""

from __future__ import annotations

from collections.abc import Iterable

from ngp.core import unsold
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import CloseReason
from ngp.core.kernel import LARGEST_PACKET_BYTES
from ngp.core.messages import Role
from ngp.core.selling.sale import Sale
from ngp.core.streams import MOST_GRACES, Loss
from ngp.core.world import World

ON_ITS_WAY_S = 0.5


def is_withheld(world: World, sale: Sale) -> bool:
    """Say whether a destination isn't sold now: too much came from there, or for its client, that nobody paid for."""
    now, streams = world.now.monotonic_s, world.streams
    if _is_above(world, streams.by_client.lately((_key(world, sale.identity), sale.seller), now), MOST_GRACES):
        return True
    return any(
        server == sale.seller and now < one.until_mono_s
        for (server, destination), one in streams.withheld.items()
        if destination.covers(sale.destination)
        # Single destinations are the way out when a default route is withheld: none but its buyers can send there.
        and (sale.destination.is_default or not destination.is_default)
    )


def seen(world: World, by_purchase: Iterable[tuple[bytes, int]]) -> None:
    """Count what was refused as nobody's, and end the purchases by which too much of it came.

    Args: by_purchase: bytes since the last call, by the purchases' ids.
    """
    for contract, size_bytes in by_purchase:
        purchase = world.bought(contract)
        if purchase is not None and purchase.destination.is_default:
            continue
        world.streams.lost_bytes += size_bytes
        if purchase is not None and purchase.dearest_msat_per_gib:  # else it costs us nothing
            _lose(world, purchase, size_bytes)


def _lose(world: World, purchase: Purchase, size_bytes: int) -> None:
    streams, now, about = world.streams, world.now.monotonic_s, (purchase.identity, purchase.destination)
    withheld, keys = streams.withheld.get(about), _clients(world, purchase)
    if not keys or (not purchase.running and withheld is not None and now < withheld.until_mono_s):
        return
    of_client = {one: streams.of_client(one, purchase.identity, now) for one in keys}
    strangers, clients = of_client.get(b""), list(of_client.values())
    is_theirs = strangers is not None and not _is_above(world, strangers, MOST_GRACES)
    loss = _count(world, purchase, [of_client[b""]] if is_theirs else clients, size_bytes)
    grace_bytes = world.settings.grace_data_bytes
    is_again = withheld is not None and now < withheld.until_mono_s + unsold.MOST_PAUSE_S
    bound = max(grace_bytes, int(purchase.rate.at(now) * ON_ITS_WAY_S))
    if is_again or all(_is_above(world, one, 1) for one in clients):
        bound = min(grace_bytes, LARGEST_PACKET_BYTES)
    if all(_is_above(world, one, MOST_GRACES) for one in clients):
        bound = 0
    if loss.counted_bytes <= bound:
        return
    streams.losses.pop(about, None)
    if is_theirs and len(clients) > 1:
        _send_strangers_away(world, purchase)
        return
    what = f"{loss.lost_bytes} bytes came from {purchase.destination} by {purchase.identity.hex()[:8]} that nobody"
    why = "paid for, as they were for hosts behind this router that hadn't bought it, and were refused"
    advice = "if it happens again, have the gateway let only answers through, or block the client that buys it"
    unsold.withhold(world, purchase, b"", f"{what} {why}", advice)
    latest = world.purchases.exact(purchase.identity, purchase.destination.prefix)  # it may have been bought again
    for one in (purchase, latest):
        if one is not None and one.running and (one is purchase or _clients(world, one)):
            unsold.end(world, one)


def _send_strangers_away(world: World, purchase: Purchase) -> None:
    """End the contracts of clients that never paid and that rest on a purchase, since it brings too much for others."""
    purchase.left_by = tuple(one for one in purchase.left_by if _key(world, one))
    for sale in list(world.resting.get(purchase.id, {}).values()):
        if not _key(world, sale.identity):
            world.halt(sale, CloseReason.UPSTREAM)


def _clients(world: World, purchase: Purchase) -> set[bytes]:
    """Return the clients that have a purchase, or had it: those that never paid as one."""
    resting = {one.identity for one in world.resting.get(purchase.id, {}).values() if one.open}
    return {_key(world, one) for one in resting | {*purchase.left_by}}


def _key(world: World, client: bytes) -> bytes:
    return client if world.has_traded(Role.SERVER, client) else b""


def _is_above(world: World, loss: Loss, graces: int) -> bool:
    return loss.counted_bytes > graces * world.settings.grace_data_bytes


def _count(world: World, purchase: Purchase, blamed: list[Loss], size_bytes: int) -> Loss:
    """Count what was lost of a destination, and for its clients. Returns the destination's count."""
    about, price = (purchase.identity, purchase.destination), purchase.dearest_msat_per_gib
    loss = world.streams.losses.lately(about, world.now.monotonic_s)
    before, pays = loss.counted_bytes, max(blamed, key=lambda one: one.earned_units)
    borne_bytes = min(size_bytes, pays.earned_units // price)
    pays.earned_units -= borne_bytes * price
    loss.lost_bytes += size_bytes
    loss.counted_bytes += size_bytes - borne_bytes
    world.streams.losses.note(about, loss)
    # A fast stream may bring many times the grace before we look, and its client can't help that.
    most_bytes = world.settings.grace_data_bytes
    grown_bytes = min(loss.counted_bytes, most_bytes) - min(before, most_bytes)
    for one in blamed:
        one.counted_bytes += -(-grown_bytes // len(blamed))
    return loss
