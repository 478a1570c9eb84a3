"""The books of both daemons and both nodes after a trade, compared payment by payment, to the msat.

A daemon that dies may lose a contract that was still being agreed, and a client's meter counts packets that the gate
then refuses. So the two sides' contracts are compared by their bills, which must be the same on both sides.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from core_tests.counter import Counter
from core_tests.daemon import Daemon
from core_tests.lightning.nodes import Lnd
from core_tests.lightning.steps import stored
from core_tests.lightning.trade import LightningTrade
from core_tests.shell import await_until
from core_tests.trade import SETTLED_S, Trade, assert_conserved, used

ENDED_S = 180.0
UNDER_WAY = ("IN_FLIGHT", "INITIATED")


@dataclass(frozen=True, slots=True)
class Before:
    """The payments and balances of both nodes before the trade: those of the laboratory itself.

    Args:
        sent, received: amounts by payment hash, msat.
        paying_msat, earning_msat: both nodes' balances in their channels.
    """

    sent: dict[str, int]
    received: dict[str, int]
    paying_msat: int
    earning_msat: int


def look(made: LightningTrade) -> Before:
    """Read both nodes' payments and balances."""
    return Before(sent(made.paying), made.earning.received(), balance_msat(made.paying), balance_msat(made.earning))


def assert_all_agree(made: LightningTrade, before: Before) -> tuple[int, int]:
    """Assert that ledgers, nodes and channels agree, and that no hash is there twice.

    The client pays nothing more after this. A payment that its node calls in flight, while none of its channels has it
    (lightningnetwork/lnd#5152), must have reached nobody, and must still be reserved. A payment that the gateway's node
    settled and sent back (`Lnd.sent_back`) is booked as that node says; only such payments may be missing.

    Returns: the sum of all payments, msat, and how many of them were sent back.
    """
    client = made.trade.client
    done = client.reload(f"{client.config.read_text()}BUY: no\n")  # so that nothing changes meanwhile
    assert done.returncode == 0, done.stderr
    for node in (made.paying, made.earning):
        node.await_settled()
    await_until(lambda: not _held_back(made), ENDED_S, "no payment on its way except those that no channel has")
    _await_alike(made, before)
    assert_conserved(made.trade.gateway)
    bought, sold = booked(made.trade.client), booked(made.trade.gateway)
    assert {payment: -amount for payment, amount in bought.items()} == _without(sent(made.paying), before.sent)
    assert sold == _without(made.earning.received(), before.received)
    paid = made.trade.earned()["paid_msat"]
    assert (paid, -made.trade.spent()["paid_msat"]) == (sum(sold.values()), sum(bought.values()))
    back = {payment: amount for payment, amount in sold.items() if payment in made.earning.sent_back()}
    moved = paid - sum(back.values())
    assert balance_msat(made.earning) == before.earning_msat + moved  # over the direct channel: no routing fee
    assert balance_msat(made.paying) == before.paying_msat - moved
    return int(paid), len(back)


def assert_nothing_was_free(made: LightningTrade, at_internet: Counter, price_msat: int, grace_bytes: int) -> None:
    """Assert that every byte that arrived is charged, and that the unpaid part is within the grace.

    Args:
        at_internet: counts packets that come in at wan0.
        price_msat: of a byte.
    """
    rows = made.trade.sold()
    hosts = {row["destination"].rpartition("/")[0] for row in rows}
    arrived = sum(at_internet.total("in", destination=host).bytes for host in hosts)
    assert arrived == sum(row["used_to_bytes"] for row in rows)
    account = made.trade.earned()
    assert arrived * price_msat <= account["charged_msat"] <= account["paid_msat"] + grace_bytes * price_msat


def _await_alike(made: LightningTrade, before: Before) -> None:
    """Wait until both sides have the last payments and bills. Raises: AssertionError with those that one lacks."""
    deadline = time.monotonic() + SETTLED_S
    while unlike := unlike_bills(made.trade) + _unlike_payments(made):
        assert time.monotonic() < deadline, unlike


def _unlike_payments(made: LightningTrade) -> list[str]:
    """List payments that are in one ledger only, except those that were settled and sent back."""
    bought, back = booked(made.trade.client), made.earning.sent_back()
    ours = {(payment, -amount) for payment, amount in bought.items() if payment not in back}
    theirs = {(payment, amount) for payment, amount in booked(made.trade.gateway).items() if payment not in back}
    return [f"payment {payment}: {amount} msat, on one side" for payment, amount in ours ^ theirs]


def unlike_bills(trade: Trade) -> list[str]:
    """List the bills that differ between the two sides."""
    theirs = {row["id"]: row["billed_bytes"] for row in trade.bought()}
    found = [f"{row['id']}: {used(row)} bytes sold, not as billed" for row in trade.sold()
             if theirs.pop(row["id"], 0) != used(row)]  # fmt: skip
    found += [f"{contract}: {billed} billed, not sold" for contract, billed in theirs.items() if billed]
    earned, spent = trade.earned(), trade.spent()
    return found + [key for key in ("charged_msat", "refunded_msat") if earned[key] != spent[key]]


def booked(daemon: Daemon) -> dict[str, int]:
    """Return a ledger's payments, amounts by hash. Fails if a hash is there twice."""
    rows = [row for row in daemon.json("ledger") if row["kind"] == "payment"]
    found = {row["payment_hash"]: row["amount_msat"] for row in rows}
    assert len(found) == len(rows)
    return found


def sent(node: Lnd) -> dict[str, int]:
    """Return a node's payments, amounts by hash; none of them may have a fee."""
    assert not [one for one in node.payments() if one["status"] == "SUCCEEDED" and one["fee_msat"] != "0"]
    return node.sent()


def _held_back(made: LightningTrade) -> list[str]:
    """List payments that only the client's node, or only its daemon, calls in flight, or that the gateway has."""
    ours = under_way(made.paying)
    ask = "SELECT count(*) FROM payments WHERE state = 'pending'"
    if stored(made.trade.client, ask) != len(ours):
        return ours or ["in the ledger only"]
    taken = made.earning.received()
    each = f"{ask} AND payment_hash = ?"
    return [one for one in ours if one in taken or not stored(made.trade.client, each, bytes.fromhex(one))]


def under_way(node: Lnd) -> list[str]:
    """Return the hashes of a node's payments that are neither settled nor failed."""
    return [one["payment_hash"] for one in node.payments() if one["status"] in UNDER_WAY]


def balance_msat(node: Lnd) -> int:
    """Return a node's balance in its channels."""
    return int(node.cli("channelbalance")["local_balance"]["msat"])


def _without(all_of_it: dict[str, int], some: dict[str, int]) -> dict[str, int]:
    return {key: amount for key, amount in all_of_it.items() if key not in some}
