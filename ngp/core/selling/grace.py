"""Grace: the credit that lets a client begin before its payment has come, and go on while the next one is on its way.

Credit is opened when a contract is accepted without money or when the balance runs low, and belongs to the account
until all is paid. Only a running daemon opens it. If the account has paid before, the credit doesn't end while none of
it is used. From the first byte on it lasts GRACE_TIME. What was used by then is a debt, and there is no new credit
before the debt is paid; a payment of a part of it opens that part again. When credit has ended, all of it counts as
used until the kernel's counters have told how much really was. An identity has one credit, and all of it counts on one
link. So neither new keys on one link nor further links of one key bring more credit (`CreditLine`). Clients that never
paid get none while too much was lost for such clients (`losses`).

A client's reputation says whether it pays in time (`judge`), and its credit is the same with any reputation. A client
that pays late has paid, and one that doesn't pay gets no more credit. Less credit for a worse reputation would only
harm honest clients, since a cheat takes a new key.
"""

from __future__ import annotations

from ngp.core.kernel import LARGEST_PACKET_BYTES, UNITS_PER_MSAT
from ngp.core.records import AccountRecord
from ngp.core.reputation import Reputation
from ngp.core.selling.account import ClientAccount, Credit
from ngp.core.selling.sale import Sale
from ngp.core.streams import NEWCOMERS
from ngp.core.timers import Due
from ngp.core.world import World

CREDIT_UNUSED_S = 2.0
"""An account that never paid loses its grace if it isn't used within this time: others may need it. The time is enough
for TCP, which repeats a dropped first packet after 1 s."""
READ_WITHIN_S = 2.0
"""Within this time after the end of a credit the kernel's counters are read. Only then is it known how much of the
credit was used, so until then all of it counts as used."""
DEFAULT_REMEMBERED_S = 3600.0


def standing(world: World, account: ClientAccount) -> Reputation:
    """Return a client's reputation; what it still owes after its credit's time is over counts as a broken word.

    It is noted for good only when the payment comes, so that nothing is noted twice, whatever is killed.
    """
    return account.reputation.broken(world.now.utc_s) if _is_late(world, account) else account.reputation


def judge(world: World, account: ClientAccount) -> None:
    """Note, when a client's payment arrives, whether it comes in time; the caller saves the account."""
    judged = account.reputation.broken if _is_late(world, account) else account.reputation.kept
    account.reputation = judged(world.now.utc_s)


def _is_late(world: World, account: ClientAccount) -> bool:
    return account.debt_msat > 0 and account.open_credit(world.now.monotonic_s) is None


def left_bytes(world: World, account: ClientAccount, price_msat_per_gib: int) -> int:
    """Return how much a client can pay for now, with its money and the credit that is open. Args: price: above 0."""
    lent_bytes = 0
    if account.open_credit(world.now.monotonic_s) is not None:
        lent_bytes = account.grace_left_bytes(world.settings.grace_data_bytes)
    return max(0, account.funds_msat) * UNITS_PER_MSAT // price_msat_per_gib + lent_bytes


def offer(world: World, account: ClientAccount, sale: Sale) -> bool:
    """Open credit for an account that has none open, as far as the contract's link and interface have room.

    Returns whether it was opened.
    """
    now, settings = world.now.monotonic_s, world.settings
    if account.debt_msat or account.open_credit(now) is not None:
        return False
    if not account.paid_msat and world.streams.is_far_above(NEWCOMERS, b"", now, settings.grace_data_bytes):
        return False
    if account.credit is None:
        left_bytes = world.credit.left_bytes(sale.link, settings.grace_data_bytes)
        # A packet larger than the credit is refused: new keys on one link could have us buy in vain with little rests.
        least_bytes = min(settings.grace_data_bytes // 2, LARGEST_PACKET_BYTES)
        if not sale.price_msat_per_gib or not left_bytes or left_bytes < least_bytes:
            return False
        account.credit = Credit(0, sale.price_msat_per_gib, now, sale.link)
        world.credit.change(account.credit, left_bytes)
    _open(world, account, account.credit, settings.grace_time_s)  # also credit that ended unused
    world.save_account(account)
    return True


def _open(world: World, account: ClientAccount, credit: Credit, lasts_s: float) -> None:
    now = world.now.monotonic_s
    credit.until_mono_s = now + lasts_s
    world.credit.count_on_interface(credit)  # it doesn't count there if it was an old default
    world.timers.set(Due.CREDIT, account.identity, credit.until_mono_s if account.paid_msat else now + CREDIT_UNUSED_S)


def restore(
    world: World, account: ClientAccount, record: AccountRecord, link: tuple[str, bytes], lasts_s: float
) -> None:
    """After a restart, take up again the credit that the account had, unless the credit ended unused.

    A ledger of an older version has neither the credit's size nor its price. Then the size is what the client owes, but
    at most that of GRACE_DATA, and the price is the present one.

    Args:
        record: the account's record.
        link: where the credit counts from now on.
        lasts_s: how long the credit still lasts, or, if negative, how long ago it ended. Its time went on while no
            daemon ran.
    """
    if not account.debt_msat and (lasts_s <= 0 or not record.grace_data_bytes):
        return
    price = record.grace_price_msat_per_gib or max(1, world.settings.sell_msat_per_gib)
    owed_bytes = -(-account.debt_msat * UNITS_PER_MSAT // price)
    data_bytes = record.grace_data_bytes or min(owed_bytes, world.settings.grace_data_bytes)
    account.credit = Credit(0, price, world.now.monotonic_s, link)
    world.credit.change(account.credit, data_bytes)
    _open(world, account, account.credit, min(lasts_s, world.settings.grace_time_s))  # more if a clock was set back
    if lasts_s <= -READ_WITHIN_S:
        credit_due(world, account)


def metered(world: World, account: ClientAccount) -> None:
    """After bytes were charged, extend the credit of an account that pays, as long as none of it is used."""
    now = world.now.monotonic_s
    credit = account.open_credit(now)
    if credit is not None and account.paid_msat and not account.debt_msat:
        credit.until_mono_s = now + world.settings.grace_time_s


def credit_due(world: World, account: ClientAccount) -> None:
    """End credit that nobody used, or whose time is over; what was used of it is a default until it is paid."""
    credit, now = account.credit, world.now.monotonic_s
    if credit is None:
        return
    if not account.debt_msat and not account.paid_msat:
        credit.until_mono_s = min(credit.until_mono_s, now)
    read_at = credit.until_mono_s + READ_WITHIN_S
    if credit.until_mono_s > now:
        world.timers.set(Due.CREDIT, account.identity, credit.until_mono_s)
    elif read_at > now:
        world.timers.set(Due.CREDIT, account.identity, read_at)
        world.limit(account)
    elif not account.debt_msat:
        take_back(world, account)
    else:
        _keep_what_is_owed(world, account, credit)
        if read_at + DEFAULT_REMEMBERED_S > now:
            world.timers.set(Due.CREDIT, account.identity, read_at + DEFAULT_REMEMBERED_S)
        else:
            world.credit.forget_on_interface(credit)


def _keep_what_is_owed(world: World, account: ClientAccount, credit: Credit) -> None:
    """Reduce credit that has ended to what was used of it.

    The ledger is told: another key may open the rest on the same link, and a restart must not give it twice.
    """
    unused_bytes = credit.data_bytes - credit.used_bytes(account.debt_msat)
    if unused_bytes:
        world.credit.change(credit, -unused_bytes)
        world.save_account(account)


def paid(world: World, account: ClientAccount) -> None:
    """End the credit of an account that owes nothing any more by the present readings, or open what is paid of it.

    The credit is taken back when all that was used of it has been read. A client that trusts us with a sat at a time
    can't pay its whole debt at once: it pays no more before it has seen something come back, so what it has paid of its
    credit is lent to it again.
    """
    credit, now = account.credit, world.now.monotonic_s
    if credit is None:
        return
    if not account.debt_msat:
        credit.until_mono_s = min(credit.until_mono_s, now)
        credit_due(world, account)
    else:
        _open(world, account, credit, world.settings.grace_time_s)


def take_back(world: World, account: ClientAccount) -> None:
    """Remove an account's credit: nothing is owed any more, nothing was used, or the account is forgotten."""
    if account.credit is not None:
        world.credit.change(account.credit, -account.credit.data_bytes)
        account.credit = None
        world.timers.clear(Due.CREDIT, account.identity)
        world.save_account(account)  # another key may open it on the same link, and a restart must not give it twice


def accepted_unpaid(world: World, account: ClientAccount, sale: Sale) -> None:
    """Set the time within which money must come for a contract that was accepted without money; else it ends.

    So neighbours that accept and never pay can't fill the tables. Credit doesn't make the time longer.
    """
    account.unpaid[sale.id] = sale
    until = world.now.monotonic_s + world.settings.grace_time_s
    world.timers.set_if_unset(Due.UNPAID, account.identity, until)
