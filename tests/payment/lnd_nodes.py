"""Real LND nodes for tests of the module: one network a test file, modules opened and closed with each test."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from core_tests.lightning.build import programs
from core_tests.lightning.network import LightningNetwork, Place
from core_tests.lightning.nodes import Lnd
from ngp.modules.payment.lnd import LndPayment


@contextmanager
def nodes_of(places: Sequence[Place]) -> Iterator[LightningNetwork]:
    """Nodes in the network where the test runs, with coins and without channels."""
    with tempfile.TemporaryDirectory() as folder, LightningNetwork(programs(), Path(folder), places) as made:
        yield made


@contextmanager
def chain_of(*names: str) -> Iterator[LightningNetwork]:
    """Nodes, each with a channel to the next, ready to pay along all of it."""
    with nodes_of([Place(name) for name in names]) as made:
        for one, next_one in zip(names, names[1:], strict=False):
            made.open(one, next_one, push_sat=1_000_000)
            made.await_payable(one, next_one)
        if len(names) > 2:
            made.mine(6)  # BOLT 7: a channel is announced after six blocks
            made.await_payable(names[0], names[-1])
        yield made


def options(node: Lnd, macaroon: Path | None = None) -> dict[str, str]:
    """Say how the module reaches a node, as in net.conf."""
    chosen = macaroon or node.admin_macaroon
    chosen.chmod(0o600)
    return {"LND_HOST": node.rpc_host, "LND_CERT": str(node.certificate), "LND_MACAROON": str(chosen)}


@asynccontextmanager
async def modules(state: Path, nodes: Sequence[Lnd]) -> AsyncIterator[list[LndPayment]]:
    """One module for each node, closed at the end of the block."""
    opened = []
    for node in nodes:
        await asyncio.to_thread(node.await_settled)  # of the test before
        folder = state / node.name
        folder.mkdir(exist_ok=True)
        opened.append(LndPayment(folder, options(node)))
    try:
        yield opened
    finally:
        for one in opened:
            await one.close()
