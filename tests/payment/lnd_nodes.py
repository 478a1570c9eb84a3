"""Real LND nodes for tests of the module: one network for each test file; each test opens and closes its modules."""

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
    """Start nodes in the network where the test runs, with coins and without channels."""
    with tempfile.TemporaryDirectory() as folder, LightningNetwork(programs(), Path(folder), places) as made:
        yield made


@contextmanager
def chain_of(*names: str) -> Iterator[LightningNetwork]:
    """Start nodes, each with a channel to the next, ready to pay along the whole line."""
    with nodes_of([Place(name) for name in names]) as made:
        for one, next_one in zip(names, names[1:], strict=False):
            made.open(one, next_one, push_sat=1_000_000)
            made.await_payable(one, next_one)
        if len(names) > 2:
            made.mine(6)  # BOLT 7: a channel is announced after six blocks
            made.await_payable(names[0], names[-1])
        yield made


def options(node: Lnd, macaroon: Path | None = None) -> dict[str, str]:
    """Return the settings by which the module reaches a node, as in net.conf."""
    chosen = macaroon or node.admin_macaroon
    chosen.chmod(0o600)
    return {"LND_HOST": node.rpc_host, "LND_CERT": str(node.certificate), "LND_MACAROON": str(chosen)}


@asynccontextmanager
async def modules(state: Path, nodes: Sequence[Lnd]) -> AsyncIterator[list[LndPayment]]:
    """Open one module for each node; they are closed at the end of the block."""
    opened = []
    for node in nodes:
        await asyncio.to_thread(node.await_settled)  # payments of the test before
        folder = state / node.name
        folder.mkdir(exist_ok=True)
        opened.append(LndPayment(folder, options(node)))
    try:
        yield opened
    finally:
        for one in opened:
            await one.close()
