"""Service: whether a server does something for our payments; one that doesn't isn't paid any more.

Payments are seen if the server's statements credit more than when we ordered the first of them, and something has come
back through the server since. A server that takes money and carries nothing, or doesn't credit it, shows us neither.
After MOST_UNSEEN payments in a row of which none was seen, no more is paid; but statements and readings of our meter
take a moment, and a client that has just begun a fast transfer pays often, so the first of them must be SEEN_WITHIN_S
old. We pay again as soon as they are seen, or after `ngp unblock`. Until then one payment an hour is tried, so that a
server whose troubles are over gets its customer back.

Traffic that only goes out brings nothing back by itself. So while two payments or more are unseen, a destination to
which our meter counts only outgoing traffic is asked for an echo, whose answer our meter counts like any other.
"""

from __future__ import annotations

from ngp.core.buying.account import Seen, ServerAccount
from ngp.core.buying.purchase import Purchase
from ngp.core.effects import AskEcho
from ngp.core.world import World

MOST_UNSEEN = 3
SEEN_WITHIN_S = 3.0
TRY_AGAIN_S = 3600.0
ECHO_FROM = 2
ECHO_PAUSE_S = 1.0


def ordered(world: World, account: ServerAccount) -> None:
    """Note that a payment is ordered: if all earlier ones were seen, only what comes after this shows its worth."""
    seen = account.seen
    if not seen.unseen:
        seen.base_msat, seen.came_back = seen.stated_msat, False
    elif _is_unpaid(world, seen):  # it is this hour's one, however long it takes
        seen.try_again_mono_s = world.now.monotonic_s + TRY_AGAIN_S


def paid(world: World, account: ServerAccount) -> None:
    """Count a payment that succeeded; the caller saves the account."""
    seen = account.seen
    if account.paid_msat - account.refunded_msat <= seen.served_msat:
        seen.came_back = True  # a debt: it is paid for what was carried already
    if not seen.unseen:
        seen.since_mono_s = world.now.monotonic_s
    seen.unseen += 1
    if seen.unseen >= MOST_UNSEEN:
        seen.try_again_mono_s = world.now.monotonic_s + TRY_AGAIN_S
    if _is_unpaid(world, seen):
        account.reputation = account.reputation.broken(world.now.utc_s)
    _look(world, account)


def credited(world: World, account: ServerAccount, paid_msat: int) -> bool:
    """Note what a server's statement credits. Returns whether we pay again now."""
    account.seen.stated_msat = paid_msat
    return _look(world, account)


def came_back(world: World, account: ServerAccount) -> None:
    """Note that our meter has counted something that came back through a server."""
    account.seen.came_back, account.seen.served_msat = True, account.used_msat
    _look(world, account)


def only_sent(world: World, account: ServerAccount, purchase: Purchase) -> None:
    """Ask for an echo, if it is in doubt whether what our meter counted is carried; of a network, its first host.

    A default route has no host that could be asked.
    """
    seen, now = account.seen, world.now.monotonic_s
    if seen.unseen < ECHO_FROM or seen.came_back or now < seen.echo_not_before_mono_s:
        return
    if purchase.destination.is_default:
        return
    seen.echo_not_before_mono_s = now + ECHO_PAUSE_S
    prefix = purchase.destination.prefix
    is_host = prefix.prefixlen == prefix.max_prefixlen
    world.do(AskEcho(prefix.network_address if is_host else prefix.network_address + 1))


def why_unpaid(world: World, account: ServerAccount) -> str:
    """Return why nothing more is paid to a server now, and what to do about it; "" if it is paid."""
    seen = account.seen
    if not _is_unpaid(world, seen) or world.now.monotonic_s >= seen.try_again_mono_s:
        return ""
    lacks = "nothing has come back through it" if seen.is_credited else "its statements credit none of them"
    return (
        f"we saw nothing for our last {seen.unseen} payments: {lacks}; one payment an hour is tried until we do. Ask "
        f"its operator, use another gateway, or run `ngp unblock {account.identity.hex()[:16]}` to pay on"
    )


def forgive(world: World, account: ServerAccount) -> None:
    """Pay again on the operator's command."""
    if account.seen.unseen:
        account.seen.unseen = 0
        world.save_account(account)


def restore(world: World, account: ServerAccount, unseen: int, served_msat: int) -> None:
    """Go on after a start. Payments that were unseen then still are: a daemon that is killed again and again must not
    try one more each time."""
    try_again_mono_s = world.now.monotonic_s + TRY_AGAIN_S
    account.seen = Seen(unseen=unseen, served_msat=served_msat, try_again_mono_s=try_again_mono_s)


def _is_unpaid(world: World, seen: Seen) -> bool:
    return seen.unseen >= MOST_UNSEEN and world.now.monotonic_s >= seen.since_mono_s + SEEN_WITHIN_S


def _look(world: World, account: ServerAccount) -> bool:
    seen = account.seen
    if not seen.unseen or not (seen.came_back and seen.is_credited):
        return False
    was_unpaid, seen.unseen = _is_unpaid(world, seen), 0
    account.reputation = account.reputation.kept(world.now.utc_s)
    if was_unpaid:
        account.why_not = ""
        world.log(f"{account.identity.hex()[:8]} credits our payments and carries our traffic: it is paid again")
    return was_unpaid
