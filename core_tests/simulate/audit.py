"""Audit: after a run, add up all ledgers, and compare them with the wallets and with what the kernels counted.

What fails here is a fault of the core or of the simulator: no run with a fault reports figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from core_tests.simulate.mesh import Mesh, MeshNode
from ngp.core.messages import Role
from ngp.core.pricing import amount_due_msat
from ngp.core.records import AccountRecord, Direction, PaymentState
from ngp.errors import NgpError

MOST_NAMED = 5


class BooksError(NgpError):
    """Ledgers, wallets and meters of a simulated mesh don't agree."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What was added up; all but `accounts` msat. The books of honest and lying nodes are among it.

    Attributes:
        accounts: how many pairs of accounts were compared.
        paid_msat: by clients, as their ledgers say; received_msat: as the ledgers of those that were paid say.
        charged_msat: by servers. fees_msat: what left the mesh.
        wallets_msat: what all wallets came to, with those fees: 0.
        uncharged_bytes: what was carried just before power cuts, and is in no ledger.
    """

    accounts: int
    paid_msat: int
    received_msat: int
    charged_msat: int
    fees_msat: int
    wallets_msat: int
    uncharged_bytes: int


def audit(mesh: Mesh) -> Sums:
    """Compare everything. Raises: BooksError names the first differences."""
    faults = [*_wallets(mesh), *_pairs(mesh), *_contracts(mesh)]
    if faults:
        more = f" (and {len(faults) - MOST_NAMED} more)" if len(faults) > MOST_NAMED else ""
        raise BooksError(f"the books don't add up: {'; '.join(faults[:MOST_NAMED])}{more}")
    wallets = mesh.wallets.of.values()
    fees = sum(one.fees_msat for one in wallets)
    sums = Sums(
        accounts=sum(len(node.ledger.accounts) for node in mesh.nodes),
        paid_msat=sum(_paid(node, Direction.OUT) for node in mesh.nodes),
        received_msat=sum(_paid(node, Direction.IN) for node in mesh.nodes),
        charged_msat=sum(one.charged_msat for node in mesh.nodes for one in _accounts(node, Role.SERVER)),
        fees_msat=fees,
        wallets_msat=sum(one.received_msat - one.sent_msat + one.coins_msat for one in wallets),
        uncharged_bytes=sum(_carried(node) - _booked(node) for node in mesh.nodes),
    )
    if sums.paid_msat != sums.received_msat or sums.wallets_msat:
        raise BooksError(f"the books don't sum to zero: {sums}")
    return sums


def _paid(node: MeshNode, direction: Direction) -> int:
    final = PaymentState.SUCCEEDED if direction is Direction.OUT else PaymentState.SETTLED
    payments = node.ledger.payments.values()
    return sum(one.amount_msat for one in payments if one.direction is direction and one.state is final)


def _carried(node: MeshNode) -> int:
    sold = (one.contract for one in node.ledger.contracts.values() if one.role is Role.SERVER)
    return sum(node.kernel.passed.get(contract, 0) for contract in sold)


def _booked(node: MeshNode) -> int:
    sold = (one for one in node.ledger.contracts.values() if one.role is Role.SERVER)
    return sum(one.used_to_bytes + one.used_from_bytes for one in sold)


def _accounts(node: MeshNode, role: Role) -> Iterator[AccountRecord]:
    return (one for one in node.ledger.accounts.values() if one.role is role)


def _wallets(mesh: Mesh) -> Iterator[str]:
    """Each ledger's payments are those that its wallet made and got."""
    for node in mesh.nodes:
        wallet = mesh.wallets.wallet(node.name)
        for direction, moved in ((Direction.OUT, wallet.sent_msat), (Direction.IN, wallet.received_msat)):
            if (booked := _paid(node, direction)) != moved:
                yield f"node {node.number} booked {booked} msat {direction.value}, its wallet moved {moved}"


def _pairs(mesh: Mesh) -> Iterator[str]:
    """What a client's account with a server got is what the client's wallet paid it, and what the client booked."""
    by_identity = {node.identity: node for node in mesh.nodes}
    booked: dict[tuple[str, str], int] = {}
    for server in mesh.nodes:
        for account in _accounts(server, Role.SERVER):
            client = by_identity[account.identity]
            theirs = client.ledger.accounts.get((server.identity, Role.CLIENT))
            paid = theirs.paid_msat if theirs is not None else 0
            who = f"node {client.number} as the client of {server.number}"
            if paid != account.paid_msat:
                yield f"{who} booked {paid} msat as paid, the server {account.paid_msat}"
            if account.refunded_msat:
                booked[server.name, client.name] = booked.get((server.name, client.name), 0) + account.refunded_msat
            booked[client.name, server.name] = booked.get((client.name, server.name), 0) + account.paid_msat
    for names in booked.keys() | mesh.wallets.moved.keys():
        in_ledgers, moved = booked.get(names, 0), mesh.wallets.moved.get(names, 0)
        if in_ledgers != moved:
            numbers = " to ".join(str(int(name[-8:], 16)) for name in names)
            yield f"from node {numbers}: {in_ledgers} msat in the ledgers, moved {moved}"


def _contracts(mesh: Mesh) -> Iterator[str]:
    """Each sale is charged for what its kernel let through, by its prices, and each account for its sales.

    A machine whose power was cut lost what its kernel had counted since the ledger was last written: so much is charged
    too little, never too much.
    """
    for node in mesh.nodes:
        charged: dict[bytes, int] = {}
        for contract in node.ledger.contracts.values():
            if contract.role is not Role.SERVER:
                continue
            used = contract.used_to_bytes + contract.used_from_bytes
            name = f"node {node.number}'s contract {contract.contract.hex()[:8]}"
            if contract.charged_msat != amount_due_msat(used, contract.prices):
                yield f"{name} charges {contract.charged_msat} msat for {used} bytes"
            passed = node.kernel.passed.get(contract.contract, 0)
            if passed < used or (passed > used and node.boot == 1):
                yield f"{name} has {used} bytes, its kernel let {passed} through"
            charged[contract.identity] = charged.get(contract.identity, 0) + contract.charged_msat
        for account in _accounts(node, Role.SERVER):
            if account.charged_msat != (sales_msat := charged.get(account.identity, 0)):
                yield f"node {node.number} charged an account {account.charged_msat} msat, its sales {sales_msat}"
