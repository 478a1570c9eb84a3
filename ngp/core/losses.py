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
- What isn't paid for counts for the clients that have the purchase or had it a moment ago, in equal parts. For each it
  counts together: it could have one stream come by each of many purchases.
- Newcomers, which never paid, are one, since keys cost nothing. If there are such, all counts for these alone, what
  others brought doesn't pay for it, only their contracts end, and the destination is withheld from them alone: they are
  to take nothing from a client that pays.
- If all for whom it counts are above GRACE_DATA, or the destination was withheld from them lately, it may lose no more
  than the largest packet. Who is above MOST_GRACES times as much at a server gets nothing new there within the hour;
  newcomers no credit, at all servers. What comes by the purchases that they still have counts for the other clients.
- What nobody but our household wants stays: its next packet would buy it again.
- Default routes have a rule of their own (`default_resale`), which goes back to single destinations.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ngp.core import unsold
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import CloseReason
from ngp.core.kernel import FULL_PACKET_BYTES, LARGEST_PACKET_BYTES
from ngp.core.messages import Role
from ngp.core.selling.sale import Sale
from ngp.core.streams import LOSS_WINDOW_S, MOST_GRACES, NEWCOMERS, Loss, Lost
from ngp.core.world import World

ON_ITS_WAY_S = 0.5
LEFT_S = 60.0  # a client has left a purchase a moment ago within this time


def is_withheld(world: World, sale: Sale) -> bool:
    """Say whether a destination isn't sold now: too much came from there, or for its client, that nobody paid for."""
    now, client = world.now.monotonic_s, _key(world, sale.identity)
    # A newcomer without credit must pay first, as `grace` gives it none; another may still have what it got before.
    pays_first = client == NEWCOMERS and not _has_credit(world, sale.identity)
    if _is_far_above(world, client, sale.seller) and not pays_first:
        return True
    return any(
        about.server == sale.seller and now < one.until_mono_s
        for about, one in world.streams.withheld.items()
        if about.destination.covers(sale.destination)
        # Single destinations are the way out when a default route is withheld: none but its buyers can send there.
        and (sale.destination.is_default or not about.destination.is_default)
        and not (about.newcomers and client != NEWCOMERS)
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
    server = purchase.identity
    latest = world.purchases.exact(server, purchase.destination.prefix)  # it may have been bought again
    bought = {purchase} if latest is None else {purchase, latest}
    clients = {client for one in bought for client in _clients(world, one)}
    if _is_withheld_now(world, Lost(server, purchase.destination, newcomers=True)):
        clients = clients - {NEWCOMERS} or clients  # they were sent away
    blamed = {one for one in clients if not _is_far_above(world, one, server)} or clients
    is_theirs = NEWCOMERS in blamed
    if is_theirs:
        blamed = {NEWCOMERS}
    about = Lost(server, purchase.destination, is_theirs)
    if not blamed or (not purchase.running and _is_withheld_now(world, about)):
        return
    loss = _count(world, purchase, about, blamed, size_bytes)
    if loss.counted_bytes <= _bound(world, purchase, about, blamed):
        return
    world.streams.losses.pop(about, None)
    what = f"{loss.lost_bytes} bytes came from {purchase.destination} by {server.hex()[:8]} that nobody"
    why = "paid for, as they were for hosts behind this router that hadn't bought it, and were refused"
    advice = "if it happens again, have the gateway let only answers through, or block the client that buys it"
    unsold.withhold(world, about, b"", f"{what} {why}", advice)
    for one in bought:
        if is_theirs and _clients(world, one) - {NEWCOMERS}:
            _send_newcomers_away(world, one)
        elif one.running and (one is purchase or _clients(world, one)):
            unsold.end(world, one)


def _send_newcomers_away(world: World, purchase: Purchase) -> None:
    for sale in list(world.resting.get(purchase.id, {}).values()):
        if _key(world, sale.identity) == NEWCOMERS:
            world.halt(sale, CloseReason.UPSTREAM)


def _is_withheld_now(world: World, about: Lost) -> bool:
    withheld = world.streams.withheld.get(about)
    return withheld is not None and world.now.monotonic_s < withheld.until_mono_s


def _clients(world: World, purchase: Purchase) -> set[bytes]:
    """Return the clients that have a purchase, or had it a moment ago; newcomers are one.

    If there are none and we don't use it ourselves, it is for those that had it.
    """
    sales = world.resting.get(purchase.id, {}).values()
    resting = {one.identity for one in sales if one.open and not one.unbought}
    left = {client for client, at_mono_s in purchase.left_by if world.now.monotonic_s - at_mono_s < LEFT_S}
    if not resting | left and purchase.ours_bytes <= FULL_PACKET_BYTES:
        left = {client for client, _ in purchase.left_by}
    return {_key(world, one) for one in resting | left}


def _key(world: World, client: bytes) -> bytes:
    return client if world.has_traded(Role.SERVER, client) else NEWCOMERS


def _has_credit(world: World, client: bytes) -> bool:
    account = world.clients.get(client)
    return account is not None and account.open_credit(world.now.monotonic_s) is not None


def _is_far_above(world: World, client: bytes, server: bytes) -> bool:
    return world.streams.is_far_above(client, server, world.now.monotonic_s, world.settings.grace_data_bytes)


def _bound(world: World, purchase: Purchase, about: Lost, blamed: set[bytes]) -> int:
    """Return how much of a destination may be lost by now, in bytes. Args: blamed: those for whom it counts."""
    streams, now, grace_bytes = world.streams, world.now.monotonic_s, world.settings.grace_data_bytes
    withheld = streams.withheld.get(about)
    is_again = withheld is not None and now < withheld.until_mono_s + unsold.MOST_PAUSE_S
    least = min((streams.of_client(one, about.server, now) for one in blamed), key=lambda one: one.counted_bytes)
    if least.is_far_above(grace_bytes):
        return 0
    if is_again or least.counted_bytes > grace_bytes:
        return min(grace_bytes, LARGEST_PACKET_BYTES)
    return max(grace_bytes, int(purchase.rate.at(now) * ON_ITS_WAY_S))


def _count(world: World, purchase: Purchase, about: Lost, blamed: set[bytes], size_bytes: int) -> Loss:
    """Count what was lost of a destination, and for clients. Returns the destination's count."""
    now, price, grace_bytes = world.now.monotonic_s, purchase.dearest_msat_per_gib, world.settings.grace_data_bytes
    of_client = {one: world.streams.of_client(one, about.server, now) for one in blamed}
    loss = world.streams.losses.lately(about, now)
    before, pays = loss.counted_bytes, max(of_client.values(), key=lambda one: one.earned_units)
    borne_bytes = min(size_bytes, pays.earned_units // price)
    pays.earned_units -= borne_bytes * price
    loss.lost_bytes += size_bytes
    loss.counted_bytes += size_bytes - borne_bytes
    world.streams.losses.note(about, loss)
    # A fast stream may bring many times the grace before we look, and its client can't help that.
    most_bytes = max(grace_bytes, LARGEST_PACKET_BYTES)
    grown_bytes = min(loss.counted_bytes, most_bytes) - min(before, most_bytes)
    for client, one in of_client.items():
        was_far_above = one.is_far_above(grace_bytes)
        one.counted_bytes += -(-grown_bytes // len(blamed))
        if not was_far_above and one.is_far_above(grace_bytes):
            _warn(world, client, about.server)
    return loss


def _warn(world: World, client: bytes, server: bytes) -> None:
    if client == NEWCOMERS:
        whom, what = "clients that never paid", "they have to pay first, as they get no credit"
    else:
        whom, what = client.hex()[:8], f"nothing new is bought for it from {server.hex()[:8]}"
    world.log(
        f"more than {MOST_GRACES} times GRACE_DATA came for {whom} that nobody paid for, at last from "
        f"{server.hex()[:8]}: {what}, for at most {LOSS_WINDOW_S / 60:.0f} minutes",
        logging.WARNING,
    )
