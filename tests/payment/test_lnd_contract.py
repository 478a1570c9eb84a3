"""The suite that every payment module answers, on two LND nodes with a channel."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from contract_suite import Nodes, PaymentContract
from lnd_nodes import chain_of, options

from core_tests.lightning.network import LightningNetwork
from ngp.modules.payment.lnd import LndPayment
from ngp.ports import NewInvoice

# One network of nodes serves all of these tests, so they run in one process.
pytestmark = pytest.mark.xdist_group("lnd contract")
PAYER, PAYEE = "payer", "payee"


@pytest.fixture(scope="module")
def network() -> Iterator[LightningNetwork]:
    """Two nodes of this module's own; both have a part of the channel."""
    with chain_of(PAYER, PAYEE) as made:
        yield made


class Holding(LndPayment):
    """A payee that makes its next invoice a held one when it is told to."""

    hold_next = False

    async def create_invoice(
        self, amount_msat: int, memo: str, expiry_s: int, preimage: bytes | None = None, hold: bool = False
    ) -> NewInvoice:
        held, self.hold_next = self.hold_next, False
        if not held:
            return await super().create_invoice(amount_msat, memo, expiry_s, preimage, hold)
        self.preimage = bytes(range(32))
        return await super().create_invoice(amount_msat, memo, expiry_s, self.preimage, hold=True)


@asynccontextmanager
async def nodes_of(network: LightningNetwork) -> AsyncIterator[Nodes]:
    for node in network.nodes.values():
        await asyncio.to_thread(node.await_settled)  # of the test before
    with tempfile.TemporaryDirectory() as name:
        where = {PAYER: options(network.node(PAYER)), PAYEE: options(network.node(PAYEE))}
        opened: list[LndPayment] = []

        def module(kind: type[LndPayment], who: str) -> LndPayment:
            folder = Path(name) / who
            folder.mkdir(exist_ok=True)
            opened.append(kind(folder, where[who]))
            return opened[-1]

        async def restart(kind: type[LndPayment], who: str, old: LndPayment) -> LndPayment:
            await old.close()
            return module(kind, who)

        payer, payee = module(LndPayment, PAYER), module(Holding, PAYEE)
        assert isinstance(payee, Holding)
        released: list[asyncio.Task[None]] = []

        def hold() -> None:
            payee.hold_next = True

        yield Nodes(
            payer=payer,
            payee=payee,
            restart_payer=lambda: restart(LndPayment, PAYER, payer),
            restart_payee=lambda: restart(Holding, PAYEE, payee),
            hold_next_payment=hold,
            release=lambda: released.append(asyncio.ensure_future(payee.settle_invoice(payee.preimage))),
        )
        await asyncio.gather(*released)
        for one in opened:
            await one.close()


@pytest.mark.usefixtures("network")
class TestLnd(PaymentContract):
    """LND as it comes."""

    @pytest.fixture(autouse=True)
    def _network(self, network: LightningNetwork) -> None:
        self.network = network

    def nodes(self) -> AbstractAsyncContextManager[Nodes]:
        return nodes_of(self.network)
