"""Endings of sales: tell each client which of its contracts are over, until it has stored that.

A client that doesn't know that its contract is over goes on with it. If it only receives, it would wait for ever: what
comes is dropped here, and only the client's question shows that the destination is still wanted. So an end that a
client hasn't acknowledged is told again when the client is met again, with its reason, by which the client knows
whether to ask. We may be killed before a client acknowledges an end: after a start, the ends of which the ledger has no
acknowledged bill are told again.
"""

from __future__ import annotations

from ngp.core.messages import Cancel, Role
from ngp.core.peers import Neighbour
from ngp.core.records import ContractRecord
from ngp.core.selling import statements
from ngp.core.selling.account import MOST_UNTOLD, ClientAccount
from ngp.core.selling.sale import Sale
from ngp.core.world import World

RECENT_S = 120  # for so long may a client ask for what it misses (`buying.endings`)
MOST_STRANGER_TOLD_AGAIN = 16  # most ends that a client that never paid is told at a time when it is back


def over(world: World, account: ClientAccount, sale: Sale) -> None:
    """Tell a client that its contract is over; if it is away, it is told when it is back."""
    account.untold.note(sale.id, sale.reason)
    neighbour = world.peers.any_link(sale.identity)
    if neighbour is not None:
        world.send(neighbour, Cancel(sale.id, sale.reason))


def told(world: World, identity: bytes, contract: bytes) -> None:
    """Note that a client has stored that a contract is over, and tell it one more that it may not know."""
    account, neighbour = world.clients.get(identity), world.peers.any_link(identity)
    if account is None:
        return
    statements.told(world, account, contract)
    if account.untold.pop(contract, None) is None:
        return
    while neighbour is not None and account.tell_next:
        if _tell(world, neighbour, account, account.tell_next.pop()):
            break


def came_back(world: World, neighbour: Neighbour, account: ClientAccount) -> None:
    """Tell a client that was away which of its contracts are over, the latest first.

    One that never paid shows by its answers that it is there, before it is told all.
    """
    traded = world.has_traded(Role.SERVER, neighbour.identity)
    most = MOST_UNTOLD if traded else MOST_STRANGER_TOLD_AGAIN
    over = list(account.untold)
    account.tell_next = over[:-most]
    for contract in reversed(over[-most:]):
        _tell(world, neighbour, account, contract)


def _tell(world: World, neighbour: Neighbour, account: ClientAccount, contract: bytes) -> bool:
    """Tell a client that a contract is over, unless it has stored that. Returns whether we did."""
    reason = account.untold.get(contract)
    if reason is not None:
        world.send(neighbour, Cancel(contract, reason))
    return reason is not None


def restore(world: World, record: ContractRecord) -> None:
    """Tell a client again that a contract is over, as it may not know it: it hasn't acknowledged its bill.

    A contract that carried nothing has no bill: its end is told again if that was a moment ago.
    """
    is_recent = world.now.utc_s - record.closed_at_s <= RECENT_S
    if record.billed_bytes < record.used_bytes or (not record.used_bytes and is_recent):
        world.client(record.identity).untold.note(record.contract, record.reason)
