"""Service: whether a server does something for our payments; one that doesn't isn't paid any more.

What we used is served if something has come back through the server since. What isn't served counts as prepaid, and we
prepay no more than what was served before (`topups.ahead_msat`). So a stranger that carries nothing is paid no more
than the grace.

Payments are seen if the server's statements credit more than when we ordered the first of them, and something has come
back since. After MOST_UNSEEN payments in a row of which none was seen, no more is paid, however much was served before;
but statements and readings of our meter take a moment, and a client that has just begun a fast transfer pays often, so
the first of them must be SEEN_WITHIN_S old.

We pay again as soon as something is served and seen, or after `ngp unblock`. Until then one payment an hour is tried,
so that a server whose troubles are over gets its customer back.

Traffic that only goes out brings nothing back by itself. So when much of it isn't served, or the next payment
would be the last that may be unseen, a destination to which our meter counts only outgoing traffic is asked for an
echo, whose answer our meter counts like any other.
"""

from __future__ import annotations

from ngp.core.buying.account import Seen, ServerAccount
from ngp.core.buying.purchase import Purchase
from ngp.core.effects import AskEcho
from ngp.core.topups import ahead_msat, most_ahead_msat, note_why_not, sendable
from ngp.core.world import World

MOST_UNSEEN = 3
SEEN_WITHIN_S = 3.0
TRY_AGAIN_S = 3600.0
ECHO_SHARE = 4  # an echo is asked for when 1/4 of what we trust the server with isn't served
ECHO_PAUSE_S = 1.0
ECHO_BYTES = 128  # no echo is larger


def ordered(world: World, account: ServerAccount) -> None:
    """Note that a payment is ordered: if all earlier ones were seen, only what comes after this shows its worth."""
    seen = account.seen
    if not seen.unseen:
        seen.base_msat, seen.came_back = seen.stated_msat, False
    elif _is_unpaid(world, account):  # it is this hour's one, however long it takes
        seen.try_again_mono_s = world.now.monotonic_s + TRY_AGAIN_S


def paid(world: World, account: ServerAccount) -> None:
    """Count a payment that succeeded; the caller saves the account."""
    seen = account.seen
    if account.paid_msat - account.refunded_msat <= seen.served_msat:
        seen.came_back = True  # a debt: it is paid for what was carried already
    if not seen.unseen:
        seen.since_mono_s = world.now.monotonic_s
    seen.unseen += 1
    seen.try_again_mono_s = world.now.monotonic_s + TRY_AGAIN_S
    _look(world, account)


def credited(world: World, account: ServerAccount, paid_msat: int) -> None:
    """Note what a server's statement credits."""
    account.seen.stated_msat = paid_msat
    _look(world, account)


def came_back(world: World, account: ServerAccount) -> None:
    """Note that our meter has counted something that came back through a server."""
    seen = account.seen
    seen.came_back, seen.served_mono_s = True, world.now.monotonic_s
    seen.served_msat = max(seen.served_msat, account.metered_msat + account.tolerated_msat)
    _look(world, account)


def only_sent(world: World, account: ServerAccount, purchase: Purchase, size_bytes: int) -> None:
    """Ask for an echo, if it is in doubt whether what our meter counted is carried; of a network, its first host.

    A default route has no host that could be asked. An echo that nobody answers is no reason for the next one.

    Args: size_bytes: what our meter counted now.
    """
    seen, now = account.seen, world.now.monotonic_s
    if seen.echo_by == purchase.id:
        seen.echo_by, size_bytes = b"", size_bytes - ECHO_BYTES
    if now < seen.echo_not_before_mono_s or purchase.destination.is_default or size_bytes <= 0:
        return
    # A server that asks for little at a time would be paid no more long before much isn't served.
    is_in_doubt = seen.unseen >= MOST_UNSEEN - 1 and not seen.came_back and now - seen.since_mono_s >= ECHO_PAUSE_S
    most_msat = most_ahead_msat(world, account, sendable(world, account.identity))
    if not is_in_doubt and (account.used_msat - seen.served_msat) * ECHO_SHARE < most_msat:
        return
    seen.echo_not_before_mono_s, seen.echo_by = now + ECHO_PAUSE_S, purchase.id
    prefix = purchase.destination.prefix
    is_host = prefix.prefixlen == prefix.max_prefixlen
    world.do(AskEcho(prefix.network_address if is_host else prefix.network_address + 1))


def why_unpaid(world: World, account: ServerAccount) -> str:
    """Return why nothing more is paid to a server now, and what to do about it; "" if it is paid."""
    seen = account.seen
    if not _is_unpaid(world, account) or is_tried(world, account):
        return ""
    several, lacks = seen.unseen > 1, "nothing has come back through it"
    payments = f"{seen.unseen} payments" if several else "payment"
    if seen.unseen and not seen.is_credited:
        lacks = "its statements credit none of them" if several else "its statements don't credit it"
    return (
        f"we saw nothing for our last {payments}: {lacks}; one payment an hour is tried until we do. Ask "
        f"its operator, use another gateway, or run `ngp unblock {account.identity.hex()[:16]}` to pay on"
    )


def is_tried(world: World, account: ServerAccount) -> bool:
    """Say whether a server that isn't paid any more gets this hour's payment."""
    return world.now.monotonic_s >= account.seen.try_again_mono_s and _is_unpaid(world, account)


def stops_paying(world: World, account: ServerAccount) -> bool:
    """Say whether nothing more is paid to a server now; if so, note it against the server, and why."""
    why = why_unpaid(world, account)
    if why and not account.seen.refused:
        account.seen.refused, account.reputation = True, account.reputation.broken(world.now.utc_s)
        world.save_account(account)
    if why:
        note_why_not(world, account, why)
    return bool(why)


def forgive(world: World, account: ServerAccount) -> None:
    """Pay again on the operator's command: what was paid for and used counts as served."""
    seen = account.seen
    served_msat = max(seen.served_msat, min(account.used_msat, account.paid_msat - account.refunded_msat))
    if seen.unseen or seen.served_msat < served_msat:
        seen.unseen, seen.served_msat, seen.refused = 0, served_msat, False
        world.save_account(account)


def restore(world: World, account: ServerAccount, unseen: int, served_msat: int) -> None:
    """Go on after a start. Payments that were unseen then still are: a daemon that is killed again and again must not
    try one more each time."""
    try_again_mono_s = world.now.monotonic_s + TRY_AGAIN_S
    account.seen = Seen(unseen=unseen, served_msat=served_msat, try_again_mono_s=try_again_mono_s)


def _is_unpaid(world: World, account: ServerAccount) -> bool:
    seen, long_ago = account.seen, world.now.monotonic_s - SEEN_WITHIN_S
    if seen.since_mono_s > long_ago:
        return False
    return seen.unseen >= MOST_UNSEEN or (seen.served_mono_s <= long_ago and _lacks_service(world, account))


def _lacks_service(world: World, account: ServerAccount) -> bool:
    """Say whether the next payment only waits for what we used to be served."""
    unserved_msat = account.used_msat - account.served_msat
    if unserved_msat <= 0:
        return False
    bounds = sendable(world, account.identity)
    ahead = ahead_msat(world, account, bounds)
    return ahead < bounds.least_msat <= ahead + unserved_msat


def _look(world: World, account: ServerAccount) -> None:
    seen = account.seen
    if seen.unseen and seen.came_back and seen.is_credited:
        seen.unseen = 0
        account.reputation = account.reputation.kept(world.now.utc_s)
    if seen.refused and not _is_unpaid(world, account):
        seen.refused, account.why_not = False, ""
        world.log(f"{account.identity.hex()[:8]} credits our payments and carries our traffic: it is paid again")
