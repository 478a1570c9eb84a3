"""Blocking: the operator stops all dealings with a neighbour, on all its links, or takes them up again.

A block has a record of its own for the identity, because links and accounts are forgotten sooner or later.
"""

from __future__ import annotations

from ngp.core.buying import bills, payments, service
from ngp.core.buying import negotiation as buying
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import CloseReason
from ngp.core.effects import Persist
from ngp.core.records import BlockRecord
from ngp.core.selling import negotiation as selling
from ngp.core.world import World


def block(world: World, identity: bytes) -> None:
    """End all contracts with a neighbour, in both roles. Money that the neighbour prepaid still belongs to it."""
    _mark(world, identity, blocked=True)
    for contract in list(world.contracts.values()):
        if contract.identity != identity or not contract.running:
            continue
        if isinstance(contract, Purchase):
            bills.disown(world, contract)
        else:
            world.halt(contract, CloseReason.CANCELLED)


def unblock(world: World, identity: bytes) -> None:
    """Deal with a neighbour again. A disputed bill is accepted, and contracts that were refused may be agreed now."""
    _mark(world, identity, blocked=False)
    if (account := world.servers.get(identity)) is not None:
        bills.accept_bill(world, account)
        service.forgive(world, account)
        payments.pay_now(world, account)
    selling.forget_refusals(world, identity)
    buying.ask_again(world, identity)
    world.forget_if_gone(identity)


def _mark(world: World, identity: bytes, blocked: bool) -> None:
    (world.peers.blocked.add if blocked else world.peers.blocked.discard)(identity)
    world.do(Persist(BlockRecord(identity, blocked), durable=True))
    world.tell_kernel_of(identity)
