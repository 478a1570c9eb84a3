"""The suite for all payment modules, with two Electrum daemons and a channel."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from contract_suite import AMOUNT_MSAT, FEE_LIMIT_MSAT, TIMEOUT_S, Nodes, PaymentContract, comes_to, watching
from electrum_nodes import Pair, options, pair

from core_tests.lightning.electrum import Electrum
from core_tests.lightning.network import CHANNEL_SAT
from core_tests.shell import await_until
from ngp.core.payment_node import PaymentStatus, Settlement
from ngp.errors import PaymentError
from ngp.modules.payment.electrum import ElectrumPayment

# One pair of nodes serves all tests of Electrum, so they run in one process.
pytestmark = pytest.mark.xdist_group("electrum")

IN_FLIGHT = 4  # electrum: PR_INFLIGHT (invoices.py)


@pytest.fixture(scope="module")
def electrums() -> Iterator[Pair]:
    """Two daemons of this file's own; both have a part of the channel."""
    with pair() as made:
        yield made


@asynccontextmanager
async def nodes_of(found: Pair) -> AsyncIterator[Nodes]:
    for node in found.nodes:
        await asyncio.to_thread(node.await_settled)  # payments of the test before
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
            # Electrum can't make hold invoices, but has a switch for its own tests.
            hold_next_payment=lambda: found.payee.rpc("enable_htlc_settle", b=False),
            release=lambda: found.payee.rpc("enable_htlc_settle", b=True),
            has_order=lambda wanted: any(
                (one["invoice_id"], one["status"]) == (wanted.hex(), IN_FLIGHT)
                for one in found.payer.rpc("list_invoices")
            ),
            chooses_preimages=False,
            signs=False,
        )
        for one in opened:
            await one.close()


@pytest.mark.usefixtures("electrums")
class TestElectrum(PaymentContract):
    """Electrum as Debian ships it."""

    @pytest.fixture(autouse=True)
    def _pair(self, electrums: Pair) -> None:
        self.pair = electrums

    def nodes(self) -> AbstractAsyncContextManager[Nodes]:
        return nodes_of(self.pair)


async def ready(payment: ElectrumPayment) -> None:
    """Wait until a restarted daemon serves and its wallet is loaded."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                return await payment.wait_ready()
            except PaymentError:
                await asyncio.sleep(0.1)


def arriving(payee: Electrum) -> bool:
    """Say whether a payment is in the payee's channel: from then on a killed daemon can't undo it."""
    return any(one["remote_unsettled_sent"] for one in payee.channels())


@pytest.mark.parametrize("victim", ["payer", "payee"])
def test_a_daemon_killed_with_a_payment_on_its_way_pays_it_once(electrums: Pair, tmp_path: Path, victim: str) -> None:
    async def scenario() -> None:
        payer, payee = (ElectrumPayment(tmp_path / node.name, options(node)) for node in electrums.nodes)
        for node in electrums.nodes:
            (tmp_path / node.name).mkdir()
            await asyncio.to_thread(node.await_settled)
        before_msat, killed = await payer.balance_msat(), getattr(electrums, victim)
        made = await payee.create_invoice(AMOUNT_MSAT, "", 600)
        electrums.payee.rpc("enable_htlc_settle", b=False)
        assert (await payer.pay(made.bolt11, 0, 1)).status is PaymentStatus.PENDING
        await asyncio.to_thread(await_until, lambda: arriving(electrums.payee), TIMEOUT_S, "the payment at the payee")
        await asyncio.to_thread(killed.kill9)
        if victim == "payer":
            with pytest.raises(PaymentError, match="electrum daemon -d"):
                await payer.track(made.payment_hash)
        await asyncio.to_thread(killed.launch)
        await ready(payer)
        await ready(payee)
        if victim == "payer":
            assert (await payer.track(made.payment_hash)).status is PaymentStatus.PENDING
        electrums.payee.rpc("enable_htlc_settle", b=True)
        outcome = await payer.pay(made.bolt11, FEE_LIMIT_MSAT, 3 * TIMEOUT_S)
        assert outcome.status is PaymentStatus.SUCCEEDED
        assert await payer.track(made.payment_hash) == outcome
        await comes_to(payer, before_msat - AMOUNT_MSAT)
        async with asyncio.timeout(TIMEOUT_S), watching(payee, 0) as stream:
            found = [told async for told in take_until(stream, made.payment_hash)]
        assert [told.amount_msat for told in found if told.payment_hash == made.payment_hash] == [AMOUNT_MSAT]
        await payer.close()
        await payee.close()

    asyncio.run(scenario())


def test_a_wallet_with_a_password_is_locked_until_somebody_loads_it(electrums: Pair, tmp_path: Path) -> None:
    async def scenario() -> None:
        node, wallet = electrums.payer, str(tmp_path / "wallet")
        node.rpc("create", wallet_path=wallet, password="s3cret")
        payment = ElectrumPayment(tmp_path, {**options(node), "ELECTRUM_WALLET": wallet})
        with pytest.raises(PaymentError, match="electrum load_wallet"):
            await payment.wait_ready()
        node.rpc("load_wallet", wallet_path=wallet, password="s3cret")
        await payment.wait_ready()
        assert (await payment.info()).account_id == node.rpc("nodeid", wallet=wallet).partition("@")[0] != node.key()
        node.rpc("close_wallet", wallet_path=wallet)
        await payment.close()

    asyncio.run(scenario())


def test_a_channel_that_can_not_be_opened_says_what_to_do(electrums: Pair, tmp_path: Path) -> None:
    async def scenario() -> None:
        payer, payee = ElectrumPayment(tmp_path, options(electrums.payer)), electrums.payee
        peer, host = payee.key(), payee.host
        with pytest.raises(PaymentError, match="connect first"):
            await payer.open_channel(peer, 500_000, 0, None)
        await payer.connect(peer, host)
        for amount_sat, remedy in ((100_000, "raise --amount"), (20_000_000, "lower --amount")):
            with pytest.raises(PaymentError, match=remedy):
                await payer.open_channel(peer, amount_sat, 0, None)
        (channel,) = await payer.channels()
        assert (channel.peer, channel.active, channel.capacity_sat) == (peer, True, CHANNEL_SAT)
        assert (await payer.chain()).synced and await payer.pending_channels() == []
        await payer.close()

    asyncio.run(scenario())


async def take_until(stream: AsyncIterator[Settlement], payment_hash: bytes) -> AsyncIterator[Settlement]:
    """Yield settlements up to this one."""
    async for told in stream:
        yield told
        if told.payment_hash == payment_hash:
            return
