"""The suite that every payment module answers, on two Electrum daemons with a channel."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from contract_suite import Nodes, PaymentContract
from electrum_nodes import Pair, options, pair

from core_tests.lightning.electrum import Electrum
from ngp.modules.payment.electrum import ElectrumPayment

# One pair of nodes serves all tests of Electrum, so they run in one process.
pytestmark = pytest.mark.xdist_group("electrum")


@pytest.fixture(scope="module")
def electrums() -> Iterator[Pair]:
    """Two daemons of this module's own; both have a part of the channel."""
    with pair() as made:
        yield made


@asynccontextmanager
async def nodes_of(found: Pair) -> AsyncIterator[Nodes]:
    for node in found.nodes:
        await asyncio.to_thread(node.await_settled)  # of the test before
    with tempfile.TemporaryDirectory() as name:
        opened: list[ElectrumPayment] = []

        def module(node: Electrum) -> ElectrumPayment:
            folder = Path(name) / node.name
            folder.mkdir(exist_ok=True)
            opened.append(ElectrumPayment(folder, options(node)))
            return opened[-1]

        async def restart(node: Electrum, old: ElectrumPayment) -> ElectrumPayment:
            await old.close()
            return module(node)

        payer, payee = module(found.payer), module(found.payee)
        yield Nodes(
            payer=payer,
            payee=payee,
            restart_payer=lambda: restart(found.payer, payer),
            restart_payee=lambda: restart(found.payee, payee),
            # Electrum makes no hold invoices, but has a switch for tests of its own.
            hold_next_payment=lambda: found.payee.rpc("enable_htlc_settle", b=False),
            release=lambda: found.payee.rpc("enable_htlc_settle", b=True),
        )
        for one in opened:
            await one.close()


@pytest.mark.usefixtures("electrums")
class TestElectrum(PaymentContract):
    """Electrum as Debian has it."""

    @pytest.fixture(autouse=True)
    def _pair(self, electrums: Pair) -> None:
        self.pair = electrums

    def nodes(self) -> AbstractAsyncContextManager[Nodes]:
        return nodes_of(self.pair)
