"""After an error of its own the daemon stops as if killed, instead of running on deaf or with half a change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ngp import store
from ngp.core.effects import CancelInvoice, Effect, GrantContract, Persist, TrackPayment
from ngp.core.events import BlockNeighbour, Stopping, Tick
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.kernel import Adopted, Grant
from ngp.core.kernel import Reading as MeterReading
from ngp.core.messages import Role
from ngp.core.peers import Neighbour
from ngp.core.prefixes import PackedPrefix
from ngp.core.records import AccountRecord, ContractRecord, NeighbourRecord
from ngp.core.values import Now
from ngp.core.world import PaymentNode, World
from ngp.daemon import main
from ngp.daemon import node as daemon_node
from ngp.daemon.api.acting import Acting
from ngp.daemon.api.reading import Reading
from ngp.daemon.fair_queue import QUEUE_MOST, ROOM
from ngp.daemon.node import Node
from ngp.daemon.options import StartOptions
from ngp.errors import KernelError, LedgerError, PaymentError, RecordError
from ngp.wire import MAX_BOOT
from tests.broken_node import SETTINGS, Broken, Closed, broken_node


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Node:
    return broken_node(monkeypatch)


def test_a_step_that_fails_stops_the_daemon_and_stores_nothing_of_its_batch(
    broken: Node, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        for _ in range(3):
            broken.loop.tell(Tick())
        await asyncio.wait_for(broken.loop.stopping.wait(), 60)
        broken.let_go()

    asyncio.run(scenario())
    assert broken.loop.crashed
    ledger: Any = broken.parts.ledger
    network: Any = broken.parts.network
    assert ledger.done == ["close"]  # no commit
    assert "clean_up" not in network.done and network.done[-1] == "close"
    (record,) = [one for one in caplog.records if one.levelname == "CRITICAL"]
    assert "nobody thought of this" in record.getMessage() and record.exc_info


def test_a_step_that_fails_while_the_daemon_stops_stores_nothing_of_its_batch_either(broken: Node) -> None:
    async def scenario() -> None:
        for _ in range(3):
            broken.loop.tell(Tick())
        await broken.stop()

    asyncio.run(scenario())
    ledger: Any = broken.parts.ledger
    network: Any = broken.parts.network
    assert broken.loop.crashed and ledger.done == ["close"]  # no commit
    assert "clean_up" not in network.done


def test_a_backup_meets_the_failed_step_and_writes_nothing(broken: Node) -> None:
    async def scenario() -> None:
        for _ in range(3):
            broken.loop.tell(Tick())
        with pytest.raises(LedgerError, match="see its log"):
            broken.loop.write_totals()
        broken.let_go()

    asyncio.run(scenario())
    ledger: Any = broken.parts.ledger
    assert ledger.done == ["close"]


def test_what_the_host_refuses_is_tried_again_and_what_nobody_thought_of_stops(
    broken: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_node, "KEEP_UP_S", 0.0)
    tries: list[int] = []

    async def work() -> None:
        tries.append(1)
        raise KernelError("no") if len(tries) < 3 else ValueError("never thought of")

    asyncio.run(broken._keep_up(work))
    assert len(tries) == 3 and broken.loop.crashed and broken.loop.stopping.is_set()


def test_a_call_to_the_payment_node_that_fails_unexpectedly_stops_the_daemon_too(broken: Node) -> None:
    """Otherwise it waits for that payment until the next start, and the neighbour is cut for lack of money."""

    async def scenario() -> None:
        broken.loop.executor.carry_out([CancelInvoice(bytes(32))])  # the module's answer can't be awaited
        await asyncio.wait_for(broken.loop.stopping.wait(), 60)

    asyncio.run(scenario())
    assert broken.loop.crashed


def test_a_node_that_does_not_tell_of_payments_fills_no_log(broken: Node, caplog: pytest.LogCaptureFixture) -> None:
    async def untold(_hash: bytes) -> None:
        raise PaymentError("the macaroon does not allow TrackPaymentV2")

    broken.parts.payment.track = untold  # type: ignore[method-assign, assignment]
    broken.loop.executor._tell = lambda _event: None

    async def scenario() -> None:
        broken.loop.executor.carry_out([TrackPayment(bytes([number]) * 32) for number in range(50)])
        await asyncio.gather(*broken.loop.executor._tasks)

    asyncio.run(scenario())
    assert [one.getMessage()[:24] for one in caplog.records] == ["payment 0000000000000000"]


def test_a_crowd_that_never_paid_leaves_the_messages_of_neighbours_that_paid_their_places(broken: Node) -> None:
    world = broken.parts.gatekeeper.world
    crowd = [Neighbour(bytes([number]) * 32, ("mesh0", bytes([number]) * 6), number) for number in range(2, 200)]
    payer = Neighbour(bytes(32), ("mesh0", b"\2payer"), 1)
    for one in (*crowd, payer):
        world.peers.by_link[one.link] = one
    world.client(payer.identity).paid_msat = 1000

    def unread() -> None:
        """A message that gives no event."""

    async def scenario() -> None:
        waiting = sum(broken.loop._in_turn(one.link, unread) for _ in range(QUEUE_MOST) for one in crowd)
        assert waiting <= ROOM
        assert all(broken.loop._in_turn(payer.link, unread) for _ in range(QUEUE_MOST))
        broken.loop.drain()
        assert broken.loop._in_turn(("mesh0", b"\2newer"), unread), "a stranger's hello"
        broken.let_go()

    asyncio.run(scenario())


class Full(Closed):
    """A ledger that refuses this many transactions."""

    def __init__(self, refusals: int, error: LedgerError | None = None) -> None:
        super().__init__()
        self.refusals, self.error = refusals, error or LedgerError("the disk is full")
        self.written: list[object] = []

    def commit(self, records: Sequence[object], _durable: bool) -> None:
        self.refusals -= 1
        if self.refusals >= 0:
            raise self.error
        self.written += records


class Noting(Broken):
    """A core that records the name of each event."""

    def __init__(self) -> None:
        super().__init__()
        self.world.contracts = {}

    def flush(self, most: int) -> None:
        """Have no totals to write."""

    def step(self, event: object, _now: Now) -> list[Effect]:
        return [Persist(type(event).__name__)]  # type: ignore[arg-type]


async def nothing() -> None:
    return


def node_of(broken: Node, close: Callable[[], Awaitable[None]] = nothing, **parts: object) -> Node:
    """Make a node of other parts. Args: close: what its post and payment node do when they are closed."""
    payment = SimpleNamespace(close=close, wait_ready=nothing)
    post: Any = SimpleNamespace(schedule=lambda: None, close=close)
    mended: Any = replace(broken.parts, payment=payment, **parts)  # type: ignore[arg-type]
    return Node(mended, lambda *_: post)


@pytest.mark.parametrize(("refusals", "written"), [(1, [Tick.__name__, Stopping.__name__]), (9, [])])
def test_a_stop_tries_once_more_what_the_ledger_refused_and_says_what_is_lost(
    broken: Node, caplog: pytest.LogCaptureFixture, refusals: int, written: list[str]
) -> None:
    ledger = Full(refusals)

    async def scenario() -> None:
        node = node_of(broken, ledger=ledger, gatekeeper=Noting())
        node.loop.tell(Tick())
        await asyncio.sleep(0)
        assert node.loop.ledger_why_not and not ledger.written
        await node.stop()

    asyncio.run(scenario())
    assert ledger.written == written
    assert ("is never charged" in caplog.text) == (not written)


def test_a_record_that_the_ledger_never_takes_ends_the_daemon_instead_of_waiting_for_ever(broken: Node) -> None:
    """Whoever can cause such a record would stop all trade until somebody restarts the daemon."""

    async def scenario() -> Node:
        node = node_of(broken, ledger=Full(1, RecordError("refused")), gatekeeper=Noting())
        node.loop.tell(Tick())
        await asyncio.wait_for(node.loop.stopping.wait(), 60)
        return node

    node = asyncio.run(scenario())
    assert node.loop.crashed and not node.loop._unstored


@pytest.mark.parametrize("refusals", [1, 9])
def test_a_stop_says_that_a_batch_is_lost_though_there_are_no_new_totals(broken: Node, refusals: int) -> None:
    async def scenario() -> tuple[str, list[object]]:
        ledger = Full(refusals)
        node = node_of(broken, ledger=ledger, gatekeeper=Noting())
        node.loop.tell(Tick())
        await asyncio.sleep(0)
        assert node.loop.ledger_why_not and not ledger.written
        return Acting(node).stop(), ledger.written

    lost, written = asyncio.run(scenario())
    assert ("the disk is full" in lost) == (refusals == 9)
    assert written == ([] if refusals == 9 else [Tick.__name__])


@pytest.mark.parametrize(
    ("stored", "year", "becomes"),
    [(0, 2026, 200_000_000), (0, 2095, MAX_BOOT // 2), (0, 1965, 1), (MAX_BOOT // 2, 2026, MAX_BOOT // 2 + 1)],
)
def test_a_clock_that_is_decades_off_uses_up_no_numbers_of_later_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: int, year: int, becomes: int
) -> None:
    with closing(store.at(tmp_path).open()) as ledger:
        if stored:
            ledger.next_boot(stored)
        monkeypatch.setattr(main.time, "time", lambda: (year - 1970) * 31_556_952.0)
        boot = main._next_boot(ledger)
        assert boot == becomes or (year == 2026 and not stored and becomes - 30_000_000 < boot < becomes + 30_000_000)
        assert main._next_boot(ledger) > boot


def test_a_ledger_that_has_counted_too_many_starts_says_what_to_do(tmp_path: Path) -> None:
    with closing(store.at(tmp_path).open()) as ledger:
        ledger.next_boot(MAX_BOOT)
        with pytest.raises(LedgerError, match=f"{MAX_BOOT + 1} starts.*restore the backup"):
            main._next_boot(ledger)


class Granting(Noting):
    """A core that grants a contract whatever happens, like an accept that was waiting, or a change of price."""

    def step(self, event: object, now: Now) -> list[Effect]:
        grant = Grant(bytes(16), 1, Role.SERVER, PackedPrefix.of(ip_network("198.51.100.1")), 1500, 60.0)
        return [*super().step(event, now), GrantContract(grant)]


def test_a_daemon_that_stops_reads_what_passed_when_nothing_can_pass_any_more(broken: Node) -> None:
    order: list[object] = []

    class Kernel(Closed):
        def grant(self, grants: Sequence[Grant]) -> None:
            order.extend(("blocked" if one.blocked else "may pass") for one in grants)

        async def settled(self) -> None:
            order.append("settled")

        def read(self, _contracts: object) -> Sequence[object]:
            order.append("read")
            return ()

    async def scenario() -> None:
        node = node_of(broken, network=Kernel(), gatekeeper=Granting())
        node.loop.tell(Tick())
        await node.stop()

    asyncio.run(scenario())
    assert order.index("settled") < order.index("read") and "may pass" not in order


def test_once_the_kernel_is_cleaned_up_nothing_more_is_done_there(broken: Node) -> None:
    """A timer that rings while the payment node is closed must not make a route that stays."""

    class Timed(Granting):
        def next_wake_mono_s(self) -> None:
            loop = asyncio.get_running_loop()
            return loop.time() + 0.001  # type: ignore[return-value]

    async def busy() -> None:
        await asyncio.sleep(0.05)

    async def scenario() -> Node:
        node = node_of(broken, busy, network=Closed(), gatekeeper=Timed())
        node.loop.tell(Tick())
        await asyncio.sleep(0)
        await node.stop()
        with pytest.raises(LedgerError, match="the daemon stops"):
            node.loop.obey(Tick())  # type: ignore[arg-type]
        return node

    node = asyncio.run(scenario())
    network: Any = node.parts.network
    assert not node.loop.crashed and network.done[-1] == "clean_up"


class Carrying(Closed):
    """A kernel that is empty at a start, and carries something by the first contract that it gets."""

    contract = b""

    def set_up(self, _desired: object) -> Adopted:
        self.done.append("set_up")
        return Adopted()

    def end_former(self, _desired: object) -> None:
        return None

    def grant(self, grants: Sequence[Grant]) -> None:
        self.done += ["blocked" if one.blocked else "may pass" for one in grants]
        self.contract = grants[0].contract

    def read(self, contracts: Sequence[bytes] | None = None) -> list[MeterReading]:
        return [MeterReading(self.contract, 700, 300)] if self.contract else []


def test_a_start_that_fails_after_a_reboot_charges_what_its_first_grants_carried(
    broken: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, link, sale = b"C" * 32, ("eth1", b"\2cccc\1"), bytes(16)

    async def refused(*_: object) -> None:
        raise KernelError("the port is taken")

    place = store.at(tmp_path)
    ledger = place.open()
    ledger.commit(
        [
            NeighbourRecord(client, *link, 1, False, True, 1, 1),
            AccountRecord(client, Role.SERVER, 5000, 0, 0, 0, 0),
            ContractRecord(
                *(sale, Role.SERVER, client, *link, "198.51.100.1/32", "active", "", ((0, 5 << 20),)),
                *(1 << 20, 600, 0, 0, 0, 0, 1, 601, 0),
            ),
        ]
    )
    kernel = Carrying()
    node_away: Any = SimpleNamespace(close=nothing, wait_ready=nothing)
    world = World(SETTINGS, PaymentNode("sandbox", False, True, 1), lambda: bytes(16), Now(1, 1.0))
    parts: Any = replace(
        broken.parts, store=place, ledger=ledger, network=kernel, payment=node_away, gatekeeper=Gatekeeper(world)
    )
    post = SimpleNamespace(schedule=lambda: None, open=refused, close=nothing, ourselves=None)

    async def opened(*_: object) -> tuple[object, ...]:
        return parts, None, ()

    monkeypatch.setattr(main, "open_parts", opened)
    monkeypatch.setattr(main, "Post", lambda *_: post)
    with pytest.raises(KernelError, match="the port is taken"):
        asyncio.run(main._run(StartOptions(tmp_path / "net.conf", tmp_path, print), SETTINGS))
    end = kernel.done.index("clean_up")
    assert kernel.done.index("may pass") < kernel.done.index("block_all") < kernel.done.index("settled") < end
    ledger = place.open()
    (charged,) = ledger.load(1).contracts
    (account,) = ledger.load(1).accounts
    ledger.close()
    assert (charged.used_to_bytes, charged.used_from_bytes, charged.charged_msat) == (700, 300, 5)
    assert account.charged_msat == 5


def test_an_operators_order_is_stored_before_it_is_confirmed_and_refused_if_it_cant_be(broken: Node) -> None:
    wanted = BlockNeighbour(bytes(32), True)

    async def scenario() -> None:
        ledger = Full(refusals=1)
        node = node_of(broken, ledger=ledger, gatekeeper=Noting())
        with pytest.raises(LedgerError, match="not done yet, .*: the disk is full"):
            node.loop.obey(wanted)
        with pytest.raises(LedgerError, match="nothing was done, .*: the disk is full"):
            node.loop.obey(BlockNeighbour(bytes(32), False))
        node.loop._thaw()
        assert ledger.written == [BlockNeighbour.__name__]  # only the first one
        node.loop.obey(wanted)
        assert ledger.written == [BlockNeighbour.__name__] * 2

    asyncio.run(scenario())


@pytest.mark.parametrize("is_there", [True, False], ids=["on a link", "on no link"])
@pytest.mark.parametrize("wanted", [True, False], ids=["block", "unblock"])
def test_a_block_that_waits_for_the_ledger_is_not_said_to_be_in_force(
    broken: Node, monkeypatch: pytest.MonkeyPatch, wanted: bool, is_there: bool
) -> None:
    who = b"\x7f" * 32
    world = World(SETTINGS, PaymentNode("sandbox", False, True, 1, b""), lambda: bytes(16), Now(1, 1.0))
    world.peers.blocked = set() if wanted else {who}
    if is_there:
        world.peers.add(Neighbour(who, ("eth1", b""), 1))
    parts: Any = broken.parts
    parts.ledger, parts.gatekeeper = Full(refusals=1), Gatekeeper(world)
    monkeypatch.setattr(parts.network, "lane_bytes", lambda _number: 0, raising=False)
    post: Any = SimpleNamespace(schedule=lambda: None, transport=lambda _link: "")

    async def scenario() -> None:
        node = Node(parts, lambda *_: post)

        def listed() -> list[tuple[bool, bool]]:
            return [(row.blocked, row.block_waits) for row in Reading(node).neighbours()]

        for waits in (True, False):
            with pytest.raises(LedgerError):
                node.loop.obey(BlockNeighbour(who, wanted))
            assert listed() == [(not wanted, True)], "nothing was done" if not waits else "not done yet"
        node.loop._thaw()
        assert listed() == ([(wanted, False)] if is_there or wanted else [])

    asyncio.run(scenario())


def test_trouble_that_lasts_is_logged_once(
    broken: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daemon_node, "KEEP_UP_S", 0.0)
    tries = 0

    async def work() -> None:
        nonlocal tries
        tries += 1
        if tries == 100:
            raise RuntimeError("enough")
        raise PaymentError("LND is locked: lncli unlock")

    asyncio.run(broken._keep_up(work))
    assert [one.message for one in caplog.records if "locked" in one.message] == [
        "LND is locked: lncli unlock; tried again every 0 s"
    ]
