"""Statements: send each client its bill until the client has it, whatever crashes or is lost in between.

Lines are cumulative: a line that comes twice changes nothing, but no last line may be lost. What is in memory is lost
in a crash. So the ledger keeps for each closed contract how many bytes of its bill the client has acknowledged
(`billed_bytes`). When we or the client come back, or when a statement was lost, the lines that aren't acknowledged are
read from the ledger (`RecallBills`), page by page, and sent again. Running contracts need none of this: their last line
is yet to come.

A client may acknowledge a line of a contract that still runs on its side. It writes such lines only once a minute, and
a power cut takes what wasn't flushed to its disk. So we hold an acknowledgement for HELD_S before we write it to the
ledger, many in one commit. If the client restarts within that time, the acknowledgement doesn't count.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from ngp.core.effects import Persist, RecallBills
from ngp.core.events import BillsRecalled
from ngp.core.messages import Role, Statement, StatementLine
from ngp.core.peers import Neighbour
from ngp.core.records import BilledRecord
from ngp.core.selling.account import FROM_THE_FIRST, ClientAccount
from ngp.core.selling.sale import Sale
from ngp.core.timers import Due
from ngp.core.world import World

STATEMENT_INTERVAL_S = 5.0
CLOSED_WAIT_S = 0.05  # from a contract's end to the statement with its last line
BACK_WAIT_S = 0.2  # from a client's return to its statement
LINES_PER_STATEMENT = 16
# A long bill is sent in parts, with pauses: a part takes two ms, and a first packet may wait for it. After a start, all
# that was carried is billed at once.
LINES_AT_ONCE = 16 * LINES_PER_STATEMENT
REST_PAUSE_S = 0.01
MOST_UNSTATED = 16384
MOST_STATED_AGAIN = 1024
RECALL_PAUSE_S = 1.0
HELD_S = 120.0
MOST_HELD = 32768


def add_to_statement(account: ClientAccount, sale: Sale) -> None:
    """Add a contract's totals to the next statement."""
    if len(account.unstated) >= MOST_UNSTATED and sale.id not in account.unstated:
        left_out = account.unstated.pop(next(iter(account.unstated)))
        if left_out.closed_at_s:
            account.recall_after = FROM_THE_FIRST
    account.unstated[sale.id] = sale


def statement_due(world: World, account: ClientAccount) -> None:
    """Send a client its totals and those of contracts that changed; if it is away, wait until it is back."""
    neighbour = world.peers.any_link(account.identity)
    if neighbour is None:
        return
    changed = [account.unstated.pop(one) for one in list(islice(account.unstated, LINES_AT_ONCE))]
    _send(world, neighbour, account, [_line(sale) for sale in changed])
    if account.unstated:
        world.timers.set(Due.STATEMENT, account.identity, world.now.monotonic_s + REST_PAUSE_S)
    elif account.recall_after is not None:
        world.do(RecallBills(account.identity, account.recall_after))
        account.recall_after = None


def recalled(world: World, event: BillsRecalled) -> None:
    """Send a page of closed contracts' bills again, and plan to read the next page in a while."""
    account = world.client(event.identity)
    neighbour = world.peers.any_link(event.identity)
    if neighbour is None:
        account.recall_after = FROM_THE_FIRST
        return
    lines = [line for line in event.lines if not _held(world, line)]
    if lines:
        _send(world, neighbour, account, lines)
    if event.after is not None and account.recall_after is None:
        account.recall_after = event.after
    if account.recall_after is not None:
        world.timers.set_if_unset(Due.STATEMENT, account.identity, world.now.monotonic_s + RECALL_PAUSE_S)


def came_back(world: World, neighbour: Neighbour, account: ClientAccount) -> None:
    """Plan to send a client that was away all totals that it may have missed, of running and closed contracts."""
    for sale in islice(neighbour.contracts.values(), MOST_STATED_AGAIN):
        if isinstance(sale, Sale) and sale.running:
            add_to_statement(account, sale)
    account.recall_after = FROM_THE_FIRST
    world.timers.set_if_unset(Due.STATEMENT, account.identity, world.now.monotonic_s + BACK_WAIT_S)


def restarted(world: World, identity: bytes) -> None:
    """Forget which bills a client acknowledged lately: its ledger may not have them."""
    for contract_id, (_, record) in list(world.acknowledged.items()):
        if record.identity == identity:
            del world.acknowledged[contract_id]
    if (account := world.clients.get(identity)) is not None:
        account.billed_untold.clear()


def delivered(world: World, identity: bytes, statement: Statement) -> None:
    """Note which closed contracts' bills a client has acknowledged.

    For those of which it hasn't stored yet that they are over, that is noted when it has: after a start only a bill
    that isn't acknowledged shows that it may not know (`endings.restore`).
    """
    account = world.clients.get(identity)
    for line in statement.lines:
        if line.contract not in world.contracts:
            record = BilledRecord(line.contract, Role.SERVER, identity, line.used_bytes)
            if account is not None and line.contract in account.untold:
                account.billed_untold.note(line.contract, record)
            else:
                _acknowledged(world, record)


def told(world: World, account: ClientAccount, contract: bytes) -> None:
    """Note a bill that a client has acknowledged before it stored that the contract is over."""
    record = account.billed_untold.pop(contract, None)
    if record is not None:
        _acknowledged(world, record)


def _acknowledged(world: World, record: BilledRecord) -> None:
    world.acknowledged.pop(record.contract, None)  # so that it moves to the end
    world.acknowledged[record.contract] = (world.now.monotonic_s, record)


def undelivered(world: World, identity: bytes, statement: Statement) -> None:
    """Plan to send the lines of a lost statement again with the next one."""
    account = world.client(identity)
    for line in statement.lines:
        sale = world.sale(line.contract)
        if sale is not None:
            add_to_statement(account, sale)
        else:
            account.recall_after = FROM_THE_FIRST
    world.timers.set_if_unset(Due.STATEMENT, identity, world.now.monotonic_s + STATEMENT_INTERVAL_S)


def write_acknowledged(world: World, most: int) -> bool:
    """Write acknowledgements that were held long enough, or more than MOST_HELD. Returns whether more are due."""
    held_since = world.now.monotonic_s - HELD_S
    for contract_id, (at_mono_s, record) in list(islice(world.acknowledged.items(), most)):
        if at_mono_s > held_since and len(world.acknowledged) <= MOST_HELD:
            return False
        del world.acknowledged[contract_id]
        world.do(Persist(record))
    return bool(world.acknowledged)


def _line(sale: Sale) -> StatementLine:
    return StatementLine(sale.id, sale.used_to_bytes, sale.used_from_bytes, sale.charged_msat)


def _held(world: World, line: StatementLine) -> bool:
    """Say whether a client acknowledged this line lately."""
    held = world.acknowledged.get(line.contract)
    return held is not None and held[1].billed_bytes >= line.used_bytes


def _send(world: World, neighbour: Neighbour, account: ClientAccount, lines: Sequence[StatementLine]) -> None:
    """Send the account's totals with the lines, in as many messages as these need, but at least one."""
    for start in range(0, max(1, len(lines)), LINES_PER_STATEMENT):
        part = tuple(lines[start : start + LINES_PER_STATEMENT])
        world.send(neighbour, Statement(account.paid_msat, account.charged_msat, account.refunded_msat, part))
