"""Channels and watchtowers on real LND nodes: opened, refused, shown from the beginning; an old state is punished."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from lnd_nodes import modules, nodes_of, options

from core_tests.lightning.network import LightningNetwork, Place
from core_tests.lightning.nodes import NETWORK, Lnd
from core_tests.ports import free_ports
from core_tests.shell import await_until, suspended
from ngp.core.channels import Channel, ChannelState
from ngp.core.payment_node import PaymentStatus
from ngp.errors import PaymentError, UsageError
from ngp.modules.payment.lnd import LndPayment
from ngp.modules.payment.macaroon import bake_line, needed
from ngp.ports.payment import Watch

# All of these tests use one network of nodes, in this order, so they run in one process.
pytestmark = pytest.mark.xdist_group("lnd channels")
T = TypeVar("T")
AWAY, PEER, TOWER = "away", "peer", "tower"
(TOWER_PORT,) = free_ports(1)
PATIENCE_S = 120.0  # LND tries a tower again after a pause that doubles
SIZE_SAT, PUSH_SAT, PAID_MSAT = 3_000_000, 1_000_000, 500_000_000


@pytest.fixture(scope="module")
def network() -> Iterator[LightningNetwork]:
    """A node that is often away, a peer of it, and a tower that belongs to neither."""
    places = [
        Place(AWAY, options=["--wtclient.active"]),
        Place(PEER),
        Place(TOWER, options=["--watchtower.active", f"--watchtower.listen=127.0.0.1:{TOWER_PORT}"]),
    ]
    with nodes_of(places) as made:
        yield made


async def until(ask: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> T:
    """Repeat a question until the answer is as wanted."""
    async with asyncio.timeout(PATIENCE_S):
        while not good(found := await ask()):
            await asyncio.sleep(0.1)
    return found


def test_a_tower_is_added_listed_and_has_sessions(network: LightningNetwork, tmp_path: Path) -> None:
    async def scenario() -> None:
        key = network.node(TOWER).cli("tower", "info")["pubkey"]
        async with modules(tmp_path, [network.node(AWAY), network.node(PEER)]) as (away, peer):
            assert await peer.watch() == Watch()  # the peer's watchtower client is off
            with pytest.raises(PaymentError, match=r"wtclient\.active=1"):
                await peer.add_tower(key, f"127.0.0.1:{TOWER_PORT}")
            assert await away.watch() == Watch(active=True)
            for bad_key, place, says in (
                ("02" + "11" * 32, f"127.0.0.1:{TOWER_PORT}", "that is no key"),
                (key, "no.such.host.invalid:9911", "address can't be used"),
            ):
                with pytest.raises(PaymentError, match=says):
                    await away.add_tower(bad_key, place)
            with pytest.raises(PaymentError, match="tower list"):
                await away.remove_tower("03" + "12" * 32)
            with pytest.raises(UsageError, match="66 hexadecimal digits"):
                await away.add_tower(key[:-2], "127.0.0.1")
            for _ in range(2):  # a second call is no error
                await away.add_tower(key, f"127.0.0.1:{TOWER_PORT}")
        network.node(AWAY).kill9()  # else it may wait: it looks for a tower at its start, then every few minutes
        network.node(AWAY).start()
        async with modules(tmp_path, [network.node(AWAY)]) as (away,):
            (tower,) = (await until(away.watch, lambda watch: watch.watched)).towers
            assert (tower.key, tower.addresses, tower.used) == (key, (f"127.0.0.1:{TOWER_PORT}",), True)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("amount_sat", "push_sat", "delay", "says"),
    [
        (1_000, 0, None, "raise --amount"),
        (20_000_000, 0, None, "lower --amount"),
        (100_000, 100_000, None, "lower --push"),
        (100_000, 0, 3_000, "lower --csv-delay"),
    ],
)
def test_a_channel_that_can_not_be_is_refused_with_the_remedy(
    network: LightningNetwork, tmp_path: Path, amount_sat: int, push_sat: int, delay: int | None, says: str
) -> None:
    async def scenario() -> None:
        network.connect(AWAY, PEER)
        async with modules(tmp_path, [network.node(AWAY)]) as (away,):
            with pytest.raises(PaymentError, match=says):
                await away.open_channel(network.node(PEER).key(), amount_sat, push_sat, delay)
            assert await away.channels() == []

    asyncio.run(scenario())


def test_a_peer_that_can_not_be_reached_is_named(network: LightningNetwork, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with modules(tmp_path, [network.node(AWAY)]) as (away,):
            with pytest.raises(PaymentError, match="--host"):
                await away.connect(network.node(PEER).key(), "no.such.host.invalid:9735")

    asyncio.run(scenario())


def test_what_a_daemon_s_macaroon_lacks_for_people_is_named(network: LightningNetwork, tmp_path: Path) -> None:
    async def scenario() -> None:
        node, baked = network.node(AWAY), tmp_path / "ngp.macaroon"
        node.cli_text(*bake_line(needed(spends=True), str(baked)).split()[1:])  # without the right that shows it
        payment = LndPayment(tmp_path, options(node, baked))
        (line,) = await payment.check(spends=True)
        assert line.ok and "GetChanInfo" in line.found and "wtclientrpc" in line.remedy  # a warning
        assert "does not allow ListTowers" in (await payment.watch()).unknown
        assert await payment.pending_channels() == []  # it can't be seen, and that is no error
        for refused, right in (
            (payment.add_tower("02" + "11" * 32, "127.0.0.1"), "uri:/wtclientrpc.WatchtowerClient/AddTower"),
            (payment.connect("02" + "11" * 32, "127.0.0.1"), "uri:/lnrpc.Lightning/OpenChannelSync"),
            (payment.open_channel("02" + "11" * 32, 100_000, 0, None), "uri:/lnrpc.Lightning/OpenChannelSync"),
        ):
            with pytest.raises(PaymentError, match=right):
                await refused
        await payment.close()

    asyncio.run(scenario())


def test_a_channel_is_shown_from_its_opening_on(network: LightningNetwork, tmp_path: Path) -> None:
    async def scenario() -> None:
        network.connect(AWAY, PEER)
        async with modules(tmp_path, [network.node(AWAY), network.node(PEER)]) as (away, peer):
            key = network.node(PEER).key()
            point = await away.open_channel(key, SIZE_SAT, PUSH_SAT, 1_008)
            assert await away.channels() == []
            (opening,) = await away.pending_channels()
            assert (opening.point, opening.state, opening.blocks_left) == (point, ChannelState.OPENING, 1)
            with pytest.raises(PaymentError, match="wait for the channel that is being opened"):
                await away.open_channel(key, SIZE_SAT, PUSH_SAT, 1_008)
            network.mine(3)
            (ours,) = await until(away.channels, usable)
            (theirs,) = await until(peer.channels, usable)
            assert ours.state is ChannelState.OPEN and ours.private and ours.capacity_sat == SIZE_SAT
            assert (ours.their_wait_blocks, theirs.our_wait_blocks) == (1_008, 1_008)
            assert 144 <= ours.our_wait_blocks == theirs.their_wait_blocks < 1_008  # LND's own, by the channel's size
            assert ours.can_receive_sat == theirs.can_send_sat == PUSH_SAT - SIZE_SAT // 100  # the reserve
            assert (await away.chain()).synced
            assert ours.least_htlc_msat == 1_000  # before and after the nodes' graphs contain the channel

    asyncio.run(scenario())


def usable(channels: list[Channel]) -> bool:
    return [one.active for one in channels] == [True]


def test_an_old_state_is_punished_by_the_tower_while_the_node_is_away(
    network: LightningNetwork, tmp_path: Path
) -> None:
    """The peer pays, then closes the channel with the state from before. It loses its part to the tower's answer.

    That comes long before the delay is over after which the peer could take the coins.
    """
    away, peer = network.node(AWAY), network.node(PEER)
    network.await_payable(AWAY, PEER)
    state, kept = peer.lnddir / "data" / "graph" / NETWORK / "channel.db", tmp_path / "old.db"
    copy_standing(peer, state, kept)
    backups = asyncio.run(be_paid(tmp_path, away, peer))
    assert backups > 0
    for node in (away, peer):
        node.kill9()
    shutil.copy(kept, state)
    peer.start()
    (old,) = peer.cli("listchannels")["channels"]
    assert int(old["local_balance"]) > PUSH_SAT - 10_000  # as if it had never paid
    closing = peer.cli("closechannel", "--force", *old["channel_point"].split(":"))["closing_txid"]
    outputs = json.loads(network.chain.rpc("decoderawtransaction", network.chain.rpc("getrawtransaction", closing)))
    (cheat,) = [out["n"] for out in outputs["vout"] if abs(out["value"] * 10**8 - PUSH_SAT) < 10_000]
    network.mine(1)
    assert network.chain.rpc("gettxout", closing, str(cheat)), "its CSV delay runs"
    (shown,) = asyncio.run(pending_of(tmp_path, peer))
    assert (shown.point, shown.state, shown.active) == (old["channel_point"], ChannelState.CLOSING, False)
    assert shown.blocks_left > 0

    def taken() -> bool:
        network.mine(1)
        time.sleep(0.2)  # for the tower's transaction; in a loop, since the number of blocks isn't certain
        return not network.chain.rpc("gettxout", closing, str(cheat))

    await_until(taken, PATIENCE_S, "what the peer cheated for taken, within some blocks of its 1008")
    assert not away.running


def copy_standing(node: Lnd, source: Path, target: Path) -> None:
    """Copy a stopped node's database: the state after a crash at this instant."""
    node.await_settled()
    assert node.process is not None
    with suspended(node.process.pid):
        shutil.copy(source, target)


async def pending_of(folder: Path, node: Lnd) -> list[Channel]:
    async with modules(folder, [node]) as (payment,):
        return await payment.pending_channels()


async def be_paid(folder: Path, away: Lnd, peer: Lnd) -> int:
    """Have the peer pay, and wait until the tower has backups of the states before that; returns their number."""
    async with modules(folder, [away, peer]) as (ours, theirs):
        await until(ours.channels, usable)
        await until(theirs.channels, usable)

        async def paid() -> bool:
            made = await ours.create_invoice(PAID_MSAT, "", 600)
            return (await theirs.pay(made.bolt11, 0, 10)).status is PaymentStatus.SUCCEEDED

        await until(paid, bool)
        (channel,) = await ours.channels()
        assert channel.least_htlc_msat == 1_000
        before = await until(ours.watch, lambda watch: watch.backups > 0 and not watch.pending_backups)
        return sum(tower.backups for tower in before.towers)
