"""Bills: compare what a server bills with our own meter, and end contracts that may still run on the server's side.

A server charges what it hands to its interface. What its queue drops, or what is lost on the air, doesn't reach our
meter, so even an honest bill is higher. We trust a server with as much as it has served, and with the grace before
that, so the account's bill may exceed our meter by as much, and by PAYMENT_AMOUNT at most. Beside that, the share of
what came back that the link may have lost (`loss`) is written off for good. So a lossy link causes no dispute, and a
server that cheats gains that trust once, and that share. What it is believed isn't served: so it is paid as much less.

A server that bills more than that isn't paid any more. A bill of an identity from which we never bought is no bill at
all: anybody can send one, and keys cost nothing, so it leaves nothing in ledger, journal and log.

Our meter may also stop before the server does (a restart, a block, a move); the server can't know that, and carries on
for a while. Bills for such traffic are believed up to the money that the server may have in hand.
"""

from __future__ import annotations

import logging
from itertools import islice

from ngp.core.buying import metering, service
from ngp.core.buying.account import ServerAccount
from ngp.core.buying.payments import pay_now
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import CloseReason
from ngp.core.effects import Persist
from ngp.core.messages import Cancel, Role, Statement
from ngp.core.orders import pending_msat
from ngp.core.peers import Neighbour
from ngp.core.pricing import affordable_bytes
from ngp.core.records import BilledRecord, PaymentKind, PaymentState
from ngp.core.topups import MOST_AHEAD
from ngp.core.world import TOP_UP_LASTS_S, World

DISOWN_PAUSE_S = 0.5  # least time between two answers that end at the server the contracts that we don't meter
MOST_DISOWNED_AGAIN = 256  # most contracts that a server that came back is told to end
CREDITED_WITHIN_S = 60  # within this time after a payment a server's statement may still lack it
MOVE_TAKES_S = 60.0  # for so long after a server moved, its bills of contracts at its old address are believed
REFUSES_AGAIN_S = 3600.0  # after this time another refusal is believed to have left some traffic unmetered
MOVES_AGAIN_S = 3600.0  # after this time another move of the server is believed


def stated(world: World, neighbour: Neighbour, statement: Statement) -> None:
    """Compare a server's bill with our meter; a bill that is too high is disputed, and nothing more is paid."""
    account = world.servers.get(neighbour.identity)
    if account is None or (account.empty and not _names_purchase(world, neighbour, statement)):
        _never_bought(world, neighbour, statement)
        return
    disowns = account.disown_not_before_mono_s <= world.now.monotonic_s
    account.loss.fade()
    for line in statement.lines:
        purchase = world.bought(line.contract)
        if purchase is not None and purchase.identity != neighbour.identity:
            continue
        unmetered = purchase is None or purchase.disowned
        if purchase is None:
            # Contracts that ended long ago or before a restart are in the ledger only. `_compare` checks their sum.
            world.do(Persist(BilledRecord(line.contract, Role.CLIENT, neighbour.identity, line.used_bytes)))
        else:
            account.loss.note(*purchase.stated(line.used_to_bytes))
            _contract_stated(world, neighbour, account, purchase, line.used_bytes)
        # A contract that we don't meter must end at the server too. We don't say so for each bill, since each message
        # costs a signature.
        if disowns and unmetered:
            account.disown_not_before_mono_s = world.now.monotonic_s + DISOWN_PAUSE_S
            world.send(neighbour, Cancel(line.contract))
    # The server has more of our money than it charged: from our payments, or its operator credited some by hand.
    if statement.paid_msat > statement.charged_msat + statement.refunded_msat:
        metering.paid_for(world, account)
    _look_for_missing(world, account, statement.paid_msat)
    account.billed_msat = max(account.billed_msat, statement.charged_msat)
    _compare(world, account)
    service.credited(world, account, statement.paid_msat)
    pay_now(world, account)
    if not account.empty:
        world.save_account(account)


def _names_purchase(world: World, neighbour: Neighbour, statement: Statement) -> bool:
    found = (world.bought(line.contract) for line in statement.lines)
    return any(purchase is not None and purchase.identity == neighbour.identity for purchase in found)


def _never_bought(world: World, neighbour: Neighbour, statement: Statement) -> None:
    """Tell a server to end the contracts that it bills and that our ledger doesn't know; nothing is written.

    This happens after we restored an older ledger.
    """
    if statement.lines and neighbour.tells.take(world.now.monotonic_s):
        for line in statement.lines:
            world.send(neighbour, Cancel(line.contract))


def _compare(world: World, account: ServerAccount) -> None:
    """Compare the account's bill with our meter, and write off what may be lost; dispute what is still too high."""
    tolerance_ppm = world.settings.verify_tolerance_ppm
    may_be_lost_msat, account.came_back_msat = account.loss.may_be_lost(account.came_back_msat, tolerance_ppm)
    account.ahead_msat = max(0, account.metered_msat - account.billed_msat)
    missing_msat = account.billed_msat - account.metered_msat - account.tolerated_msat
    written_off_msat = max(0, min(missing_msat, may_be_lost_msat))
    account.tolerated_msat += written_off_msat
    missing_msat -= written_off_msat
    trust_msat = min(world.settings.payment_amount_msat, world.trust_msat(account))
    most_msat = account.metered_msat + account.tolerated_msat + trust_msat
    account.charged_msat = max(account.charged_msat, min(account.billed_msat, most_msat))
    if missing_msat > trust_msat:
        _dispute(world, account)
    elif missing_msat > trust_msat // 2:
        world.log_seldom(
            ("loss", account.identity),
            f"{account.identity.hex()[:8]} billed {missing_msat} msat that our meter didn't count, beside "
            f"{account.tolerated_msat} msat written off: that was lost on the way, or the bill is too high; above "
            f"{trust_msat} msat ngp disputes the bill",
        )


def _contract_stated(
    world: World, neighbour: Neighbour, account: ServerAccount, purchase: Purchase, billed_bytes: int
) -> None:
    purchase.billed_bytes = max(purchase.billed_bytes, billed_bytes)
    if purchase.closed_at_s:
        world.save_contract(purchase)
    else:
        world.save_later(purchase.id)
    if purchase.meter_lost or _moved_away(world, neighbour, account, purchase):
        _forgive(world, account, purchase)


def _look_for_missing(world: World, account: ServerAccount, credited_msat: int) -> None:
    """Warn if a server's statement lacks payments whose preimages we have, as after it restored an older ledger.

    The latest payments don't count: the statement may have been on its way already.
    """
    missing_msat = account.paid_msat - credited_msat
    if missing_msat > 0:
        since_s = world.now.utc_s - CREDITED_WITHIN_S
        paid = world.money.payments_to(account.identity)
        top_ups = (one for one in paid if one.kind is PaymentKind.TOP_UP and one.state is PaymentState.SUCCEEDED)
        missing_msat -= sum(one.amount_msat for one in top_ups if one.settled_at_s >= since_s)
    account.missing_msat = max(0, missing_msat)
    if account.missing_msat:
        who = account.identity.hex()[:8]
        world.log_seldom(
            ("missing", account.identity),
            f"{who} has credited {credited_msat} msat of {account.paid_msat} msat that we paid it: perhaps it restored "
            f"an older ledger. Ask its operator to credit {account.missing_msat} msat; `ngp ledger` names the payments",
        )


def _moved_away(world: World, neighbour: Neighbour, account: ServerAccount, purchase: Purchase) -> bool:
    """Say whether a server has moved to another link address, so that its bill is believed; end its contracts then.

    Our meter counts at the old address, so it may have missed the traffic since the move, and would miss what contracts
    that aren't in use now carry later. The server is believed up to ten seconds' use, or what a stranger is trusted
    with, and only if the contract was in use at the move: otherwise a server that carries nothing any more could bill
    a top-up an hour. Within an hour it is believed only once: if a server moves again and again, its bills are
    disputed like any other.
    """
    before = world.peers.neighbours.get((purchase.identity, purchase.link))
    if purchase.link == neighbour.link or purchase.link[0] != neighbour.link[0]:
        return False
    if before is not None and before.heard_mono_s >= neighbour.met_mono_s:
        return False  # the server has two link addresses, and sends from both
    if world.now.monotonic_s - account.moved_mono_s > MOVES_AGAIN_S:
        if not purchase.running or world.now.monotonic_s - purchase.rate.at_mono_s > MOVE_TAKES_S:
            return False
        account.moved_mono_s = world.now.monotonic_s
        used_msat = max(int(account.rate.a_second * TOP_UP_LASTS_S), world.first_trust_msat(account))
        account.unmetered_msat = min(used_msat, _in_hand_msat(world, account))
        world.log(f"neighbour {account.identity.hex()[:8]} on {neighbour.link[0]} has another link address now")
        for other in list(before.contracts.values()) if before is not None else ():
            if isinstance(other, Purchase) and other.running:
                end(world, other)
    if purchase.running:
        end(world, purchase)
    return world.now.monotonic_s - account.moved_mono_s <= MOVE_TAKES_S


def _in_hand_msat(world: World, account: ServerAccount) -> int:
    """Return what the server may have in hand: money of ours that no bill has used yet, and what we may owe it."""
    msat = account.paid_msat - account.refunded_msat + pending_msat(world, account.identity)
    msat += min(MOST_AHEAD * world.settings.payment_amount_msat, world.trust_msat(account))
    return max(0, msat - max(account.charged_msat, account.metered_msat + account.tolerated_msat))


def _forgive(world: World, account: ServerAccount, purchase: Purchase) -> None:
    """Believe what was carried while our meter didn't count: before a start, after a move or after we ended a contract.

    While we are away, the server goes on carrying what was prepaid, or what its grace covers. So bills for such traffic
    are believed, all together up to the money that the server may have in hand when the first of them comes. What we
    pay later doesn't raise this sum: otherwise the server could bill any sum, and we would go on paying. After a start,
    only a contract's first bill is believed. After we ended the contract, every bill of it is, since nobody knows when
    the server heard of the end.
    """
    purchase.meter_lost = purchase.meter_lost and purchase.reason == CloseReason.CANCELLED.value
    used = purchase.used_bytes
    if account.unmetered_msat is None:
        account.unmetered_msat = _in_hand_msat(world, account)
    before = used + purchase.forgiven_bytes
    believed = before + affordable_bytes(account.unmetered_msat, before, purchase.billed_bytes, purchase.prices)
    account.unmetered_msat -= purchase.due_msat(believed) - purchase.due_msat(before)
    purchase.forgiven_bytes = believed - used
    forgiven_msat = purchase.due_msat(believed) - purchase.due_msat(used)
    grown_msat = max(0, forgiven_msat - purchase.tolerated_msat)
    account.tolerated_msat += grown_msat
    account.seen.served_msat += min(grown_msat, account.metered_msat)  # else a stranger would be trusted for nothing
    purchase.tolerated_msat = max(purchase.tolerated_msat, forgiven_msat)


def _dispute(world: World, account: ServerAccount) -> None:
    if not account.disputed:
        account.disputed = True
        account.reputation = account.reputation.broken(world.now.utc_s)
        world.journal("dispute", account.identity, "open")
        is_free = " (perhaps FREE_DESTINATIONS: our meter leaves out what they name, and it may charge for that)"
        cause = is_free if world.settings.free_destinations else ""
        world.log(
            f"the bill of {account.identity.hex()[:8]} is more than our meter counted ({account.billed_msat} msat "
            f"billed, {account.metered_msat} msat metered, {account.tolerated_msat} msat tolerated, as "
            f"{account.loss.ppm / 10_000:.1f} % of what we sent was lost): nothing more is paid to it; find out why"
            f"{cause}, then run `ngp unblock {account.identity.hex()[:16]}`",
            logging.WARNING,
        )


def accept_bill(world: World, account: ServerAccount) -> None:
    """Close a dispute on the operator's command: the bill is accepted as it is."""
    if not account.disputed:
        return
    account.disputed = False
    account.tolerated_msat = max(account.tolerated_msat, account.billed_msat - account.metered_msat)
    account.charged_msat = max(account.charged_msat, account.billed_msat)
    world.journal("dispute", account.identity, "closed")
    world.save_account(account)


# --- contracts that we end --------------------------------------------------------------------------------------------


def disown(world: World, purchase: Purchase) -> None:
    """End a contract that we bought, and tell its server: otherwise it goes on and bills what our meter doesn't count.

    A server that is away is told when it is back, and each time it bills the contract, until it confirms the end.
    """
    purchase.meter_lost = True
    world.server(purchase.identity).unmetered_msat = None
    end(world, purchase)


def end(world: World, purchase: Purchase) -> None:
    """End a contract that we bought, and tell its server. Our meter has counted all of it: nothing is on its way."""
    purchase.disowned = True
    world.halt(purchase, CloseReason.CANCELLED)
    neighbour = world.peers.any_link(purchase.identity)
    if neighbour is not None:
        world.send(neighbour, Cancel(purchase.id))


def end_refused(world: World, purchase: Purchase) -> None:
    """End a contract that its server refused while it ran: it may carry some more before it hears that we ended it.

    Of that it is believed as much as we use in ten seconds, and only once an hour. Otherwise it could refuse again and
    again, and bill each time what it never carried. More may be believed already, if our meter was lost.
    """
    account = world.server(purchase.identity)
    if not purchase.meter_lost and world.now.monotonic_s - account.refused_mono_s > REFUSES_AGAIN_S:
        account.refused_mono_s, purchase.meter_lost = world.now.monotonic_s, True
        account.unmetered_msat = min(int(account.rate.a_second * TOP_UP_LASTS_S), _in_hand_msat(world, account))
    end(world, purchase)


def came_back(world: World, neighbour: Neighbour) -> None:
    """Tell a server that was away which contracts we ended in that time."""
    disowned = (one for one in world.buying.ended.values() if one.disowned and one.identity == neighbour.identity)
    for purchase in islice(disowned, MOST_DISOWNED_AGAIN):
        world.send(neighbour, Cancel(purchase.id))
