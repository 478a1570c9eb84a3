"""Payments that a real LND node holds for us: taken, given back, and still known after a kill of the node."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from contract_suite import comes_to
from lnd_nodes import chain_of, modules, options

from core_tests.lightning.network import LightningNetwork
from ngp.core.payment_node import PaymentStatus
from ngp.core.rental.holding import LEAST_BLOCKS_LEFT
from ngp.errors import PaymentError
from ngp.modules.payment.lnd import LndPayment
from ngp.modules.payment.lnd_client import TO_HOLD
from ngp.modules.payment.macaroon import bake_line, needed
from ngp.ports.payment import InvoiceState, NewInvoice

# All of these tests use one network of nodes, so they run in one process.
pytestmark = pytest.mark.xdist_group("lnd holding")
TENANT, LANDLORD = "tenant", "landlord"
AMOUNT_MSAT = 49_000_000
PATIENCE_S = 120.0
LND_CANCELS_BLOCKS = 18  # invoices.holdexpirydelta, as LND ships it


@pytest.fixture(scope="module")
def network() -> Iterator[LightningNetwork]:
    with chain_of(TENANT, LANDLORD) as made:
        yield made


async def invoice_of(landlord: LndPayment) -> tuple[bytes, NewInvoice]:
    preimage = secrets.token_bytes(32)
    made = await landlord.create_invoice(AMOUNT_MSAT, "rent of 203.0.113.0/32", 600, preimage, hold=True)
    assert made.payment_hash == sha256(preimage).digest()
    return preimage, made


async def pays(tenant: LndPayment, landlord: LndPayment, made: NewInvoice) -> int:
    """Pay as far as the payment is held. Returns how many blocks it has left."""
    waiting = asyncio.create_task(landlord.wait_held(made.payment_hash))
    assert (await tenant.pay(made.bolt11, 0, 3)).status is PaymentStatus.PENDING
    blocks_left = await asyncio.wait_for(waiting, PATIENCE_S)
    assert blocks_left is not None
    assert await landlord.lookup_invoice(made.payment_hash) is InvoiceState.ACCEPTED
    return blocks_left


def test_a_payment_waits_until_it_is_taken_and_the_payer_has_its_proof(
    network: LightningNetwork, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with modules(tmp_path, [network.node(TENANT), network.node(LANDLORD)]) as (tenant, landlord):
            before_msat = await tenant.balance_msat()
            preimage, made = await invoice_of(landlord)
            assert await pays(tenant, landlord, made) > LEAST_BLOCKS_LEFT
            assert await landlord.wait_held(made.payment_hash), "it is told again, as after a start"
            for _ in range(2):
                await landlord.settle_invoice(preimage)
            outcome = await tenant.pay(made.bolt11, 0, PATIENCE_S)
            assert (outcome.status, outcome.preimage) == (PaymentStatus.SUCCEEDED, preimage)
            assert await landlord.wait_held(made.payment_hash) is None
            await comes_to(tenant, before_msat - AMOUNT_MSAT)

    asyncio.run(scenario())


def test_a_payment_that_is_given_back_costs_the_payer_nothing_and_can_not_be_taken_any_more(
    network: LightningNetwork, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with modules(tmp_path, [network.node(TENANT), network.node(LANDLORD)]) as (tenant, landlord):
            before_msat = await tenant.balance_msat()
            preimage, made = await invoice_of(landlord)
            await pays(tenant, landlord, made)
            for _ in range(2):
                await landlord.cancel_invoice(made.payment_hash)
            assert (await tenant.pay(made.bolt11, 0, PATIENCE_S)).status is PaymentStatus.FAILED
            assert await landlord.wait_held(made.payment_hash) is None
            with pytest.raises(PaymentError):
                await landlord.settle_invoice(preimage)
            await comes_to(tenant, before_msat)

    asyncio.run(scenario())


def test_an_invoice_that_is_over_or_unknown_is_waited_for_no_longer(network: LightningNetwork, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with modules(tmp_path, [network.node(LANDLORD)]) as (landlord,):
            _, made = await invoice_of(landlord)
            waiting = asyncio.create_task(landlord.wait_held(made.payment_hash))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            await landlord.cancel_invoice(made.payment_hash)
            assert await asyncio.wait_for(waiting, PATIENCE_S) is None
            assert await landlord.wait_held(secrets.token_bytes(32)) is None

    asyncio.run(scenario())


def test_as_many_invoices_are_watched_as_net_conf_ships_with(network: LightningNetwork, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with modules(tmp_path, [network.node(TENANT), network.node(LANDLORD)]) as (tenant, landlord):
            made = [(await invoice_of(landlord))[1] for _ in range(100)]
            waiting = {one.payment_hash: asyncio.create_task(landlord.wait_held(one.payment_hash)) for one in made}
            await pays(tenant, landlord, made[-1])
            assert [one for one in made if waiting[one.payment_hash].done()] == [made[-1]]
            for one in made:
                await landlord.cancel_invoice(one.payment_hash)
            assert await asyncio.gather(*waiting.values()) == [None] * 99 + [waiting[made[-1].payment_hash].result()]

    asyncio.run(scenario())


def test_a_node_killed_while_it_holds_a_payment_holds_it_still(network: LightningNetwork, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with modules(tmp_path, [network.node(TENANT), network.node(LANDLORD)]) as (tenant, landlord):
            preimage, made = await invoice_of(landlord)
            waiting = asyncio.create_task(landlord.wait_held(made.payment_hash))
            await asyncio.sleep(0.5)
            network.node(LANDLORD).kill9()
            with pytest.raises(PaymentError):
                await asyncio.wait_for(waiting, PATIENCE_S)
            await asyncio.to_thread(network.node(LANDLORD).start)
            await _ready(landlord)
            await _ready(tenant)
            await asyncio.to_thread(network.await_payable, TENANT, LANDLORD)
            await pays(tenant, landlord, made)
            network.node(LANDLORD).kill9()
            with pytest.raises(PaymentError):
                await landlord.settle_invoice(preimage)
            await asyncio.to_thread(network.node(LANDLORD).start)
            await _ready(landlord)
            assert await landlord.wait_held(made.payment_hash)
            await landlord.settle_invoice(preimage)
            assert (await tenant.pay(made.bolt11, 0, PATIENCE_S)).status is PaymentStatus.SUCCEEDED

    asyncio.run(scenario())


def test_a_payment_has_fewer_blocks_left_with_each_block_and_ends_before_the_channel_closes(
    network: LightningNetwork, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with modules(tmp_path, [network.node(TENANT), network.node(LANDLORD)]) as (tenant, landlord):
            _, made = await invoice_of(landlord)
            blocks_left = await pays(tenant, landlord, made)
            await asyncio.to_thread(network.mine, blocks_left - LEAST_BLOCKS_LEFT + 1)
            assert await landlord.wait_held(made.payment_hash) == LEAST_BLOCKS_LEFT - 1
            await asyncio.to_thread(network.mine, LEAST_BLOCKS_LEFT - LND_CANCELS_BLOCKS)
            assert (await tenant.pay(made.bolt11, 0, PATIENCE_S)).status is PaymentStatus.FAILED
            assert await landlord.wait_held(made.payment_hash) is None

    asyncio.run(scenario())


def test_a_macaroon_without_these_rights_is_named_with_the_command_that_bakes_them(
    network: LightningNetwork, tmp_path: Path
) -> None:
    node, baked = network.node(LANDLORD), tmp_path / "ngp.macaroon"
    node.cli_text(*bake_line(needed(spends=True), str(baked)).split()[1:])
    why_not = LndPayment(tmp_path, options(node, baked)).capabilities().why_no_holding
    assert all(f"uri:{method.path}" in why_not and method.name in why_not for method in TO_HOLD)
    node.cli_text(*bake_line([*needed(spends=True), *TO_HOLD], str(baked)).split()[1:])
    allowed = LndPayment(tmp_path, options(node, baked))
    assert allowed.capabilities().why_no_holding == ""

    async def scenario() -> None:
        _, made = await invoice_of(allowed)
        waiting = asyncio.create_task(allowed.wait_held(made.payment_hash))
        await asyncio.sleep(0.5)
        await allowed.cancel_invoice(made.payment_hash)
        assert await waiting is None
        await allowed.close()

    asyncio.run(scenario())


async def _ready(node: LndPayment) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await node.wait_ready()
                return
            except PaymentError:
                await asyncio.sleep(0.2)
