"""Faults of a real LND node: killed, away, with another certificate, too few rights, a fee above the limit."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from contract_suite import comes_to, watching
from lnd_nodes import chain_of, modules, options

from core_tests.lightning.network import LightningNetwork
from core_tests.lightning.nodes import Lnd
from ngp.core.payment_node import PaymentStatus
from ngp.errors import PaymentError
from ngp.modules.payment.lnd import LndPayment

# All of these tests use one network of nodes, so they run in one process.
pytestmark = pytest.mark.xdist_group("lnd faults")
ALICE, BOB, CAROL = "alice", "bob", "carol"
FEES_MSAT = 10_000
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def network() -> Iterator[LightningNetwork]:
    """Alice pays Carol through Bob, who charges a fee."""
    with chain_of(ALICE, BOB, CAROL) as made:
        yield made


async def settled_up(payment: LndPayment) -> None:
    """Wait until a restarted node serves and its channels are active again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await payment.wait_ready()
                return
            except PaymentError:
                await asyncio.sleep(0.2)


def test_a_cursor_that_the_node_has_not_reached_is_no_silence(network: LightningNetwork, tmp_path: Path) -> None:
    """As after a restore. LND alone would report nothing until its settle index has grown up to the cursor."""

    async def scenario() -> None:
        async with modules(tmp_path, [network.node(ALICE), network.node(BOB)]) as (alice, bob):
            made = await bob.create_invoice(2_000, "", 600)
            assert (await alice.pay(made.bolt11, 0, 20)).status is PaymentStatus.SUCCEEDED
            async with watching(bob, 1_000_000) as told:
                async for settled in told:
                    if settled.payment_hash == made.payment_hash:
                        break

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


def test_a_fee_above_the_limit_is_refused_and_one_within_is_counted(network: LightningNetwork, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with modules(tmp_path, [network.node(ALICE), network.node(CAROL)]) as (alice, carol):
            made = await carol.create_invoice(2_000_000, "", 600)
            before_msat = await alice.balance_msat()
            refused = await alice.pay(made.bolt11, 0, 20)
            assert refused.status is PaymentStatus.FAILED and "route" in refused.reason
            assert await alice.balance_msat() == before_msat
            paid = await alice.pay(made.bolt11, FEES_MSAT, 20)
            assert paid.status is PaymentStatus.SUCCEEDED and 0 < paid.fee_msat <= FEES_MSAT

    asyncio.run(scenario())


def test_a_direct_channel_is_used_and_costs_nothing(network: LightningNetwork, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with modules(tmp_path, [network.node(ALICE), network.node(BOB)]) as (alice, bob):
            made = await bob.create_invoice(50_000, "", 600)
            paid = await alice.pay(made.bolt11, FEES_MSAT, 20, (await bob.info()).account_id)
            assert (paid.status, paid.fee_msat) == (PaymentStatus.SUCCEEDED, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("victim", [ALICE, BOB])
def test_a_node_killed_with_a_payment_on_its_way_pays_it_once(
    network: LightningNetwork, tmp_path: Path, victim: str
) -> None:
    async def scenario() -> None:
        preimage = secrets.token_bytes(32)
        payment_hash = sha256(preimage).digest()
        async with modules(tmp_path, [network.node(ALICE), network.node(BOB)]) as (alice, bob):
            await alice.wait_ready()
            cursor = await asyncio.to_thread(newest_settlement, network.node(BOB))
            before_msat = await alice.balance_msat()
            made = await bob.create_invoice(77_000, "", 600, preimage, hold=True)
            assert (await alice.pay(made.bolt11, 0, 2)).status is PaymentStatus.PENDING
            network.node(victim).kill9()
            if victim == ALICE:
                with pytest.raises(PaymentError, match="is it running"):
                    await alice.track(payment_hash)
                assert (await alice.pay(made.bolt11, 0, 2)).status is PaymentStatus.PENDING  # nobody can tell now
                assert (await alice.info()).network == "regtest"  # from memory
            await asyncio.to_thread(network.node(victim).start)
            await settled_up(alice)
            await settled_up(bob)
            assert (await alice.track(payment_hash)).status is PaymentStatus.PENDING
            await bob.settle_invoice(preimage)
            outcome = await alice.pay(made.bolt11, 0, PATIENCE_S)
            assert (outcome.status, outcome.preimage) == (PaymentStatus.SUCCEEDED, preimage)
            assert await alice.track(payment_hash) == outcome
            await comes_to(alice, before_msat - 77_000)
            async for told in bob.watch_settlements(cursor):
                assert (told.payment_hash, told.amount_msat) == (payment_hash, 77_000)
                break

    asyncio.run(scenario())


def newest_settlement(node: Lnd) -> int:
    """Return the latest position in the stream of settlements."""
    return max((int(one["settle_index"]) for one in node.invoices()), default=0)


def test_another_certificate_is_refused_until_it_is_given(network: LightningNetwork, tmp_path: Path) -> None:
    async def scenario() -> None:
        node, other = network.node(ALICE), network.node(BOB)
        given = tmp_path / "tls.cert"
        shutil.copy(other.certificate, given)
        payment = LndPayment(tmp_path, {**options(node), "LND_CERT": str(given)})
        with pytest.raises(PaymentError, match="another certificate"):
            await payment.info()
        shutil.copy(node.certificate, given)
        assert (await payment.info()).account_id == await asyncio.to_thread(node.key)
        await payment.close()

    asyncio.run(scenario())


def test_a_macaroon_without_a_right_is_named_with_the_remedy_which_works_at_once(
    network: LightningNetwork, tmp_path: Path
) -> None:
    async def scenario() -> None:
        node = network.node(ALICE)
        given = tmp_path / "ngp.macaroon"
        shutil.copy(node.admin_macaroon.with_name("readonly.macaroon"), given)
        payment = LndPayment(tmp_path, options(node, given))
        assert (await payment.info()).network == "regtest"
        with pytest.raises(PaymentError, match="does not allow AddInvoice"):
            await payment.create_invoice(1000, "", 60)
        (line,) = await payment.check(spends=True)
        assert not line.ok and "AddInvoice" in line.found and "SendPaymentV2" in line.found
        async with modules(tmp_path, [network.node(BOB)]) as (bob,):
            asked = await bob.create_invoice(20_000, "", 600)
        refused = await payment.pay(asked.bolt11, 0, 20)
        assert refused.status is PaymentStatus.FAILED and "does not allow SendPaymentV2" in refused.reason
        words = line.remedy.removesuffix("; chmod 600 ngp.macaroon").replace("ngp.macaroon", str(given)).split()
        done = await asyncio.to_thread(node.control, *words[1:])
        assert done.returncode == 0, done.stderr
        assert [one.ok for one in await payment.check(spends=True)] == [True]
        made = await payment.create_invoice(1000, "", 60)
        await payment.cancel_invoice(made.payment_hash)
        assert await payment.sign(b"x")
        assert (await payment.track(made.payment_hash)).reason == "unknown"
        await payment.close()

    asyncio.run(scenario())
