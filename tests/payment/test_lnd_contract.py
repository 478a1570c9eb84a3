"""The suite for all payment modules, with two LND nodes and a channel."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from contract_suite import TIMEOUT_S, Nodes, PaymentContract
from lnd_nodes import chain_of, options

from core_tests.lightning.network import LightningNetwork
from ngp.core.channels import Channel
from ngp.core.payment_node import PaymentStatus
from ngp.core.pricing import SAT_MSAT
from ngp.core.reach import left_msat
from ngp.modules.payment.lnd import LndPayment
from ngp.ports.payment import NewInvoice

# All of these tests use one network of nodes, so they run in one process.
pytestmark = pytest.mark.xdist_group("lnd contract")
PAYER, PAYEE = "payer", "payee"


@pytest.fixture(scope="module")
def network() -> Iterator[LightningNetwork]:
    """Two nodes of this file's own; both have a part of the channel."""
    with chain_of(PAYER, PAYEE) as made:
        yield made


class Holding(LndPayment):
    """A payee whose next invoice is a hold invoice if the test wants it."""

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
        await asyncio.to_thread(node.await_settled)  # payments of the test before
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
            has_order=lambda wanted: any(one["payment_hash"] == wanted.hex() for one in network.node(PAYER).payments()),
        )
        await asyncio.gather(*released)
        for one in opened:
            await one.close()


@pytest.mark.usefixtures("network")
class TestLnd(PaymentContract):
    """LND as shipped."""

    @pytest.fixture(autouse=True)
    def _network(self, network: LightningNetwork) -> None:
        self.network = network

    def nodes(self) -> AbstractAsyncContextManager[Nodes]:
        return nodes_of(self.network)

    def test_the_most_that_an_end_can_send_arrives_and_its_reserve_does_not(self) -> None:
        """Both ends compute the most that each end may send; LND carries just that, and refuses more."""

        async def pays(payer: LndPayment, payee: LndPayment, amount_msat: int) -> PaymentStatus:
            (over,) = await payer.channels()
            made = await payee.create_invoice(amount_msat, "all of it", 600)
            outcome = await payer.pay(made.bolt11, 0, 30.0, over.peer)
            for node in self.network.nodes.values():
                await asyncio.to_thread(node.await_settled)
            return outcome.status

        async def seen_alike(one: LndPayment, other: LndPayment) -> Channel:
            async with asyncio.timeout(TIMEOUT_S):  # the ends of a new channel haven't told each other their policies
                while True:
                    (ours,), (theirs,) = await one.channels(), await other.channels()
                    if (ours.our_end, ours.their_end) == (theirs.their_end, theirs.our_end):
                        return ours
                    await asyncio.sleep(0.1)

        async def scenario() -> None:
            async with self.nodes() as nodes:
                payer, payee = nodes.payer, nodes.payee
                assert isinstance(payer, LndPayment) and isinstance(payee, LndPayment)
                (before,) = await payer.channels()
                for one, other in ((payer, payee), (payee, payer)):
                    ours = await seen_alike(one, other)
                    most = left_msat(ours, ours=True)
                    assert most > ours.our_end.dust_msat > 0
                    assert await pays(one, other, most + ours.our_end.held_back_msat) is PaymentStatus.FAILED
                    assert await pays(one, other, most) is PaymentStatus.SUCCEEDED
                    (after,) = await one.channels()
                    assert left_msat(after, ours=True) < 1000 * SAT_MSAT
                assert await pays(payer, payee, before.their_end.balance_msat) is PaymentStatus.SUCCEEDED

        asyncio.run(scenario())
