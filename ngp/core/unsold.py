"""Unsold: end what we buy for a client that can't pay: its server charges us for all that it sends, whoever takes it.

When a client has neither money nor credit, our kernel drops what comes for it, but we have paid for that already. So
from then on we look ten times a second at what its purchases bring beside what is sold. If its payment comes in time,
nothing happens. If more than GRACE_DATA is left unsold, or nothing is paid within GRACE_TIME, its contracts end, and
the purchases on which no other client's contract rests. So a client that doesn't pay costs us the grace, and once more
as much that we bought for it.

- All purchases for a client count together, and what was unsold is remembered: a tenth of what it is charged for later
  is taken off, and half of it is forgotten each hour. Nothing more is bought for a client that is above GRACE_DATA,
  unless its money covers as much again. It is asked for that, but its trust in us may not let it prepay so much.
- If other clients use the purchase too, it can't bring their traffic alone. So it ends all the same, its clients are
  told, and the destination is withheld from all for a while, which is doubled each time.
- We can't count what goes to ourselves and our LANs. But whoever uses a destination also sends there, and what we send
  is what the purchase counts beside its sales. As long as we use it ourselves, it stays.
- A client may have thousands of contracts that stay, since it doesn't use them and others need the purchases. So after
  its contracts were gone through, only those are looked at that it uses. All are gone through again when the kernel
  still refuses its packets, but the more there are, the less often.
- With its last client a purchase ends that we don't use ourselves: what still came would be for nobody. If we used it,
  or a quote rests on it, it ends as soon as more than GRACE_DATA comes while we send nothing.
"""

from __future__ import annotations

import logging

from ngp.core import rerouting, upstream
from ngp.core.buying import bills
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import CloseReason, State
from ngp.core.effects import ReadMeters
from ngp.core.kernel import FULL_PACKET_BYTES, LARGEST_PACKET_BYTES
from ngp.core.selling import grace
from ngp.core.selling.account import ClientAccount
from ngp.core.selling.sale import Sale
from ngp.core.streams import Debtor, Lost, Stream, Withheld
from ngp.core.timers import Due
from ngp.core.world import World

LOOK_S = 0.1
SALE_LOOK_S = 0.004  # a contract of a debtor is looked at anew after this time for each one: a look takes some 0.1 ms
IDLE_LOOK_S = 1.0  # between two looks while nothing comes that nobody pays for
MOST_STREAMS = 256  # purchases that are read at each look; what others bring is seen at the next reading of all
STREAM_OVER_S = 60.0
FORGIVEN_SHARE, FORGOTTEN_HALF_S = 10, 3600.0
EARNED_SHARE = 10
FIRST_PAUSE_S, MOST_PAUSE_S = 30.0, 3600.0


def sold(world: World, account: ClientAccount, sale: Sale, to_bytes: int, from_bytes: int) -> None:
    """Note what was sold of the purchase on which a sale rests.

    If the traffic may go by several, it is noted at the one whose last reading counted most that isn't sold. So what
    one of them carried isn't taken for our own use, behind which something could come for nobody.
    """
    if not to_bytes + from_bytes:
        return  # most contracts that are read have carried nothing, and the purchases needn't be looked for
    purchase = world.purchase(sale.rests_on)
    if purchase is None:
        rerouting.doubt(world, sale)
    else:
        ways = (purchase, *upstream.other_ways(world, sale, purchase))
        to_way = max(ways, key=lambda one: (one.fresh_to_bytes, one.rate.at_mono_s))
        to_way.sold(to_bytes, 0)
        from_way = max(ways, key=lambda one: (one.fresh_from_bytes, one.rate.at_mono_s))
        from_way.sold(0, from_bytes)
        if account.paid_msat:
            _earn(world, account, sale, from_way, from_bytes)
        for way in {to_way, from_way} - {purchase}:
            way.leave(account.identity, world.now.monotonic_s)
    _note(world, account, -((to_bytes + from_bytes) // FORGIVEN_SHARE))
    debtor = world.streams.debtors.get(account.identity)
    if debtor is not None and debtor.used is not None:
        debtor.used[sale.id] = None


def _earn(world: World, account: ClientAccount, sale: Sale, purchase: Purchase, size_bytes: int) -> None:
    """Note what we earn by a client above cost, at most a part of the cost: it pays for what is lost for it."""
    cost = purchase.highest_msat_per_gib
    above = min(sale.least_msat_per_gib - cost, cost // EARNED_SHARE)
    if above > 0:
        loss = world.streams.of_client(account.identity, purchase.identity, world.now.monotonic_s)
        loss.earned_units += size_bytes * above


def may_buy_for(world: World, account: ClientAccount, price_msat_per_gib: int) -> bool:
    """Say whether a client's money or credit is enough for us to buy what it wants."""
    if not price_msat_per_gib:
        return True
    unsold_bytes = _unsold_for(world, account)
    owed_bytes = unsold_bytes if unsold_bytes > world.settings.grace_data_bytes else 0
    return grace.left_bytes(world, account, price_msat_per_gib) > owed_bytes


# --- what begins a stream, and what ends it ---------------------------------------------------------------------------


def exhausted(world: World, account: ClientAccount) -> None:
    """Begin to look after the purchases for a client, since the kernel refused a packet for lack of its money.

    We may hear that often, as long as small packets still pass or its limit changes. Meanwhile it may have bought more,
    its traffic may come by other purchases, and other clients may have left those that it uses. So its contracts are
    gone through again.
    """
    now, debtors = world.now.monotonic_s, world.streams.debtors
    if account.identity in debtors and now < debtors[account.identity].again_mono_s:
        return
    sales = [(sale, bought) for sale in world.sold_to(account.identity) if (bought := _bought_for(world, sale))]
    price = max((sale.price_msat_per_gib for sale, _ in sales), default=0)
    if not price or not _is_out(world, account, price):
        return
    debtor = debtors.setdefault(account.identity, Debtor(now, account.paid_msat, price))
    debtor.used, debtor.resting = None, len(sales)
    debtor.again_mono_s = now + SALE_LOOK_S * sum(one.resting for one in debtors.values())
    for purchase in (one for _, bought in sales for one in bought):
        if purchase.in_use(now):
            _watch(world, purchase, account.identity)
    _look_in(world, LOOK_S)


def _bought_for(world: World, sale: Sale) -> list[Purchase]:
    """List the purchases that cost something and by which traffic of a sale that rests on one may come."""
    rests = sale.running and world.running_purchase(sale.rests_on) is not None
    return [one for one in upstream.ways(world, sale) if one.highest_msat_per_gib] if rests else []


def _is_out(world: World, account: ClientAccount, price_msat_per_gib: int) -> bool:
    return grace.left_bytes(world, account, price_msat_per_gib) < LARGEST_PACKET_BYTES


def _watch(world: World, purchase: Purchase, client: bytes) -> None:
    streams = world.streams.of
    if purchase.id not in streams and len(streams) < MOST_STREAMS:
        streams[purchase.id] = Stream(client, purchase.unsold_bytes, purchase.ours_bytes, world.now.monotonic_s)
        _look_in(world, LOOK_S)


def brings(world: World, purchase: Purchase) -> None:
    """Look after a purchase from now on, if it carries something again and a client on it can't pay.

    Called before a new reading is counted.
    """
    if world.streams.debtors and purchase.id not in world.streams.of:
        owner = next((one.identity for one in _resting(world, purchase) if one.identity in world.streams.debtors), None)
        if owner is not None:
            _watch(world, purchase, owner)


def bought(world: World, purchase: Purchase) -> None:
    """Look after a purchase from its begin, if its destination was withheld lately: what came may come again."""
    found = world.streams.withheld.get(Lost(purchase.identity, purchase.destination))
    is_lately = found is not None and world.now.monotonic_s < found.until_mono_s + MOST_PAUSE_S
    if found is not None and is_lately and found.client in world.streams.debtors:
        _watch(world, purchase, found.client)


def sale_over(world: World, sale: Sale) -> None:
    """End the purchase on which a sale rested that is over, if no client pays for it any more and we don't use it.

    If our route has changed, answers may still come by the old purchase for a while; it ends when it is idle. A quote
    that rests on a purchase keeps it, too. See `brought`.
    """
    if not sale.rests_on:
        return
    purchase, held = world.running_purchase(sale.rests_on), world.bought(sale.rests_on)
    if sale.unbought and purchase is not None and _resting(world, purchase):
        return  # it waited for money, so that nothing came by it
    if held is not None and not sale.unbought:
        held.leave(sale.identity, world.now.monotonic_s)
    for one in upstream.ways(world, sale):
        if one is purchase or one.sold_to_bytes or one.sold_from_bytes:
            one.needed_at = one.unsold_bytes, one.ours_bytes
    if purchase is None or _is_needed(world, purchase):
        return
    if sale.reason == CloseReason.UPSTREAM.value:
        rerouting.leave(world, purchase)
    elif purchase.ours_bytes <= FULL_PACKET_BYTES:
        end(world, purchase)


def brought(world: World, purchase: Purchase) -> None:
    """End a purchase that outlived its clients, if it brings more than GRACE_DATA while we send nothing by it.

    Called after readings of it and of its sales.
    """
    if purchase.needed_at is None or not purchase.running:
        return
    unsold, ours = purchase.unsold_bytes, purchase.ours_bytes
    before, ours_before = purchase.needed_at
    if ours > ours_before or any(sale.running for sale in world.resting.get(purchase.id, {}).values()):
        purchase.needed_at = unsold, ours
    elif unsold - before > world.settings.grace_data_bytes:
        end(world, purchase)


# --- looking ----------------------------------------------------------------------------------------------------------


def look(world: World) -> None:
    """Look at all streams: what they brought, and whether the clients for which they are have paid."""
    _take_paid(world)
    streams, now = world.streams, world.now.monotonic_s
    for contract, stream in list(streams.of.items()):
        purchase = world.running_purchase(contract)
        if purchase is None or now - stream.grew_mono_s > STREAM_OVER_S:
            del streams.of[contract]
        else:
            _measure(world, purchase, stream)
    for identity, debtor in streams.debtors.items():
        if _unsold_for(world, world.clients.get(identity)) > world.settings.grace_data_bytes or (
            now - debtor.since_mono_s >= world.settings.grace_time_s
        ):
            _end_sales(world, world.client(identity), debtor)
        else:
            debtor.used = None  # it has paid a little; if its time is over once more, all are looked at
    for contract, stream in list(streams.of.items()):
        _judge(world, contract, stream)
    if streams.of:
        world.do(ReadMeters(tuple(world.with_sales(streams.of))))
        _look_in(world, LOOK_S)
    elif streams.debtors:
        _look_in(world, IDLE_LOOK_S)


def _look_in(world: World, seconds: float) -> None:
    at = world.now.monotonic_s + seconds
    if world.timers.at_mono_s(Due.UNSOLD, b"") > at:
        world.timers.set(Due.UNSOLD, b"", at)


def _take_paid(world: World) -> None:
    """Forget the debtors that have money or credit again."""
    streams = world.streams
    for identity, debtor in list(streams.debtors.items()):
        account = world.clients.get(identity)
        if account is not None and _is_out(world, account, debtor.price_msat_per_gib):
            if account.paid_msat > debtor.paid_msat:  # it pays, though in small amounts
                debtor.since_mono_s, debtor.paid_msat = world.now.monotonic_s, account.paid_msat
            continue
        del streams.debtors[identity]
        for contract in [one for one, stream in streams.of.items() if stream.client == identity]:
            del streams.of[contract]


def paid(world: World, account: ClientAccount) -> None:
    """Withhold nothing any more for a client that has paid as much as was bought for it in vain.

    Less isn't enough: it could have what others buy ended again and again, by a little money each time.
    """
    withheld = world.streams.withheld
    for about, one in [found for found in withheld.items() if found[1].client == account.identity]:
        if may_buy_for(world, account, one.price_msat_per_gib):
            del withheld[about]


def _measure(world: World, purchase: Purchase, stream: Stream) -> None:
    """Count what a purchase brought since the last look that nobody paid for.

    If clients that pay use it too, what they took may have been read a moment earlier than what came. So only that
    counts which is still unsold at the next look.
    """
    ours = purchase.ours_bytes - stream.ours_base_bytes
    if ours > FULL_PACKET_BYTES:
        stream.base_bytes, stream.ours_base_bytes = purchase.unsold_bytes, purchase.ours_bytes
        stream.seen_bytes = stream.unsold_bytes = 0
        return
    came = max(0, purchase.unsold_bytes - stream.base_bytes)
    sure = min(came, stream.seen_bytes) if _is_needed(world, purchase) else came
    stream.seen_bytes = came
    if sure > stream.unsold_bytes:
        account = world.clients.get(stream.client)
        if account is not None:
            _note(world, account, sure - stream.unsold_bytes)
        stream.unsold_bytes, stream.grew_mono_s = sure, world.now.monotonic_s


def _unsold_for(world: World, account: ClientAccount | None) -> int:
    """Return what we bought for a client and couldn't sell; half of it is forgotten each hour."""
    if account is None:
        return 0
    _note(world, account, 0)
    return account.unsold_bytes


def _note(world: World, account: ClientAccount, more_bytes: int) -> None:
    now = world.now.monotonic_s
    if not account.unsold_bytes:
        account.unsold_mono_s = now
    hours = int((now - account.unsold_mono_s) / FORGOTTEN_HALF_S)
    account.unsold_mono_s += hours * FORGOTTEN_HALF_S
    account.unsold_bytes = max(0, (account.unsold_bytes >> min(hours, 64)) + more_bytes)


def _end_sales(world: World, account: ClientAccount, debtor: Debtor) -> None:
    """End what we buy for a client. What it asked for since, on purchases that others need, waits for its money.

    What waits is looked at again when the client uses it, or `exhausted` says so: there may be thousands.
    """
    used, debtor.used = debtor.used, {}
    if used is None:
        found = world.sold_to(account.identity)
    else:
        found = [sale for one in used if (sale := world.sale(one)) is not None]
    resting = [(sale, bought) for sale in found if (bought := _bought_for(world, sale))]
    purchases = {one for _, bought in resting for one in bought}  # each once: thousands of sales may rest on one
    unneeded = {one for one in purchases if not _is_needed(world, one)}
    sales = [sale for sale, bought in resting if sale.used_bytes or not unneeded.isdisjoint(bought)]
    if not sales:
        return
    world.log_seldom(
        ("unsold", account.identity),
        f"{account.identity.hex()[:8]} has neither money nor credit: its contracts for what we buy from others end, "
        f"after {account.unsold_bytes} bytes that we bought for it and could not sell; ask its operator to pay",
    )
    for sale in sales:
        world.halt(sale, CloseReason.UNPAID)


def _judge(world: World, contract: bytes, stream: Stream) -> None:
    """End a purchase that brings too much for nobody, also if other clients use it."""
    purchase, grace_bytes = world.running_purchase(contract), world.settings.grace_data_bytes
    if purchase is None:
        return
    unsold_bytes = _unsold_for(world, world.clients.get(stream.client))
    is_over = stream.client in world.streams.debtors and unsold_bytes > grace_bytes
    if stream.unsold_bytes <= (min(grace_bytes, LARGEST_PACKET_BYTES) if is_over else grace_bytes):
        return
    if _is_needed(world, purchase):
        who = stream.client.hex()[:8]
        what = f"{stream.unsold_bytes} bytes came from {purchase.destination} by {purchase.identity.hex()[:8]}"
        why = f"{what} that nobody paid for, as {who} has neither money nor credit"
        about = Lost(purchase.identity, purchase.destination)
        price = purchase.highest_msat_per_gib
        withhold(world, about, stream.client, why, f"ask the operator of {who} to pay", price)
    end(world, purchase)


def withhold(world: World, about: Lost, client: bytes, why: str, advice: str, price_msat_per_gib: int = 0) -> None:
    """Sell a destination to nobody, or not to newcomers, for a while; it is doubled each time until a time of peace.

    Args:
        about: what, and from whom.
        client: the client whose payment ends this; b"": nobody's does.
        why, advice: what the log says before and after.
        price_msat_per_gib: what it costs, if a payment ends this.
    """
    now = world.now.monotonic_s
    before = world.streams.withheld.get(about)
    times = 1
    if before is not None and now < before.until_mono_s + MOST_PAUSE_S:
        times, client = before.times + 1, client if before.client else b""
    pause_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 1, 16))
    world.streams.withheld.note(about, Withheld(client, now + pause_s, times, price_msat_per_gib))
    whom = "clients that never paid" if about.newcomers else "all clients"
    how_long = f"the contracts for it of {whom} end, and it isn't sold to them for {pause_s:.0f} s"
    world.log(f"{why}: {how_long}; {advice}", logging.WARNING)


def end(world: World, purchase: Purchase) -> None:
    """End a purchase; it isn't asked for anew, though the one before it may have been missed."""
    purchase.unneeded = True
    world.buying.missed.pop((purchase.identity, purchase.destination.prefix), None)
    world.streams.of.pop(purchase.id, None)
    bills.end(world, purchase)


def _resting(world: World, purchase: Purchase) -> list[Sale]:
    """List the sales that rest on a purchase, aren't about to end, and don't wait for money."""
    sales = world.resting.get(purchase.id, {}).values()
    return [one for one in sales if not (one.refused or one.unbought or one.state is State.HALTING)]


def _is_needed(world: World, purchase: Purchase) -> bool:
    """Say whether a client that can pay, as far as we know, wants what a purchase carries."""
    return any(one.identity not in world.streams.debtors for one in _resting(world, purchase))
