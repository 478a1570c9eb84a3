"""Calls over the mesh link: a call gets its own answer, however it is cut, and floods cost no more than their bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any

import pytest

from ngp import wire
from ngp.core.effects import HandOver
from ngp.core.messages import Answer, Call, Message
from ngp.core.peers import Neighbour
from ngp.daemon import link_calls
from ngp.daemon.link_calls import MOST_CALLS, MOST_CALLS_OF_ONE, LinkCalls
from ngp.errors import LandlordError

TENANT, LANDLORD, OTHER = b"T" * 32, b"L" * 32, b"O" * 32
LINK = ("mesh0", b"\2\0\0\0\0\1")


class End:
    """One daemon's end: a world with one neighbour, and what it sent."""

    def __init__(self, other: bytes, landlord: Callable[[bytes, bytes, Hashable], Awaitable[bytes]]) -> None:
        self.world = _World(other)
        self.sent: list[Message] = []
        self.calls = LinkCalls(self.world, self, landlord)  # type: ignore[arg-type]

    def send(self, _identity: bytes, _link: tuple[str, bytes], message: Message) -> None:
        self.sent.append(message)

    def hear(self, identity: bytes, message: Call | Answer, link: tuple[str, bytes] = LINK) -> None:
        self.calls.carry_out([HandOver(identity, link, message)])


class _World:
    def __init__(self, neighbour: bytes) -> None:
        self.peers = self
        self.neighbour, self.up, self.boot = neighbour, True, 1
        self.blocked, self.counters = set[bytes](), dict[str, int]()

    def any_link(self, identity: bytes) -> Neighbour | None:
        if not self.up or identity != self.neighbour:
            return None
        return Neighbour(identity, LINK, 1, boot=self.boot)

    def count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1


async def nobody(_content: bytes, _neighbour: bytes, _who: Hashable) -> bytes:
    return b""


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def a_moment() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("length", [0, 1, 960, 961, 64 * 960])
def test_a_call_gets_its_answer_whatever_its_length_and_in_any_order(length: int) -> None:
    whole = bytes(index % 251 for index in range(length))

    async def landlord(content: bytes, neighbour: bytes, who: Hashable) -> bytes:
        assert (content, neighbour, who) == (b"what?", TENANT, LINK)
        return whole

    async def test() -> None:
        tenant, owner = End(LANDLORD, nobody), End(TENANT, landlord)
        asking = asyncio.create_task(tenant.calls.ask(LANDLORD, b"what?"))
        await a_moment()
        (call,) = tenant.sent
        assert isinstance(call, Call)
        owner.hear(TENANT, call)
        await a_moment()
        parts = [one for one in owner.sent if isinstance(one, Answer)]
        assert len(parts) == max(1, -(-length // wire.MAX_CONTENT_BYTES)) <= wire.MAX_ANSWER_PARTS
        for part in (*reversed(parts), *parts):  # the second copy comes too late
            tenant.hear(LANDLORD, part)
        assert await asking == whole

    run(test)


def test_an_answer_counts_for_its_own_call_and_from_its_own_landlord_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_calls, "ANSWER_S", 0.2)

    async def test() -> None:
        tenant = End(LANDLORD, nobody)
        asking = asyncio.create_task(tenant.calls.ask(LANDLORD, b"?"))
        await a_moment()
        (call,) = tenant.sent
        assert isinstance(call, Call)
        tenant.hear(OTHER, Answer(call.number, 0, 1, b"forged"))
        tenant.hear(LANDLORD, Answer(call.number + 1, 0, 1, b"of another call"))
        tenant.hear(LANDLORD, Answer(call.number, 63, 1, b"a part that there can't be"))
        tenant.hear(LANDLORD, Answer(call.number, 1, 2, b"b"))
        assert not asking.done()
        with pytest.raises(LandlordError, match="doesn't answer within 0.2 s"):
            await asking
        tenant.hear(LANDLORD, Answer(call.number, 0, 2, b"too late"))
        assert not tenant.calls._waiting, "nothing is kept for a call that is over"

    run(test)


def test_a_call_may_have_two_parts_and_waits_for_the_second_with_a_place_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_calls, "PARTS_S", 0.1)
    heard: list[bytes] = []

    async def landlord(content: bytes, _neighbour: bytes, _who: Hashable) -> bytes:
        heard.append(content)
        return b"!"

    async def test() -> None:
        tenant, owner = End(LANDLORD, nobody), End(TENANT, landlord)
        asking = asyncio.create_task(tenant.calls.ask(LANDLORD, b"x" * link_calls.MOST_CALL_BYTES))
        await a_moment()
        first, second = [one for one in tenant.sent if isinstance(one, Call)]
        owner.hear(TENANT, second)
        owner.hear(OTHER, first)  # another's part doesn't complete it
        await a_moment()
        assert not heard
        owner.hear(TENANT, first)
        await a_moment()
        assert heard == [b"x" * link_calls.MOST_CALL_BYTES] and len(owner.sent) == 1
        await asyncio.sleep(0.2)
        assert not owner.calls._serving and not owner.calls._arriving and len(owner.sent) == 1, "the half one is over"
        asking.cancel()

    run(test)


def test_a_landlord_that_is_away_is_said_at_once() -> None:
    async def test() -> None:
        tenant = End(LANDLORD, nobody)
        tenant.world.up = False
        with pytest.raises(LandlordError, match=f"{LANDLORD.hex()[:16]} is away"):
            await tenant.calls.ask(LANDLORD, b"?")
        assert not tenant.sent

    run(test)


@pytest.mark.parametrize(("what", "value", "said"), [("up", False, "went away"), ("boot", 2, "was restarted")])
def test_a_landlord_that_goes_before_it_answered_is_not_waited_for(
    what: str, value: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_calls, "LOOK_S", 0.01)

    async def test() -> None:
        tenant = End(LANDLORD, nobody)
        asking = asyncio.create_task(tenant.calls.ask(LANDLORD, b"?"))
        await asyncio.sleep(0.05)
        assert not asking.done()
        setattr(tenant.world, what, value)
        with pytest.raises(LandlordError, match=f"{said} before it answered"):
            await asking

    run(test)


def test_a_flood_is_dropped_beyond_its_bound_and_leaves_room_for_others() -> None:
    release = asyncio.Event()

    async def slow(_content: bytes, _neighbour: bytes, _who: Hashable) -> bytes:
        await release.wait()
        return b"done"

    async def test() -> None:
        owner = End(TENANT, slow)
        for number in range(1000):
            owner.hear(OTHER, Call(number, 0, 1, b"?"))
        assert owner.world.counters == {"calls_dropped": 1000 - MOST_CALLS_OF_ONE}
        owner.hear(TENANT, Call(7, 0, 1, b"?"), ("mesh0", b"\2\0\0\0\0\2"))
        for number in range(1000):
            owner.hear(OTHER, Call(number, 0, 1, b"?"), ("mesh0", number.to_bytes(6, "big")))
        assert len(owner.calls._serving) == MOST_CALLS == len(owner.calls._arriving)
        release.set()
        await a_moment()
        assert len(owner.sent) == MOST_CALLS and not owner.calls._serving and not owner.calls._of_one
        owner.hear(OTHER, Call(1, 0, 1, b"?"))
        await a_moment()
        assert len(owner.sent) == MOST_CALLS + 1

    run(test)


def test_calls_that_are_never_complete_make_room_for_a_newcomers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One neighbour has twenty link addresses, and begins as many calls as it may at each, again and again."""
    monkeypatch.setattr(link_calls, "PARTS_S", 600)

    async def landlord(content: bytes, _neighbour: bytes, _who: Hashable) -> bytes:
        return content

    async def test() -> None:
        owner, answered = End(TENANT, landlord), 0
        for number in range(50):
            for place in range(20 * MOST_CALLS_OF_ONE):
                link = ("mesh0", bytes([2, 0, 0, 0, 1, place % 20]))
                owner.hear(OTHER, Call(number * 1000 + place, 0, 2, b"half"), link)
            owner.hear(TENANT, Call(number, 0, 2, b"wh"))
            owner.hear(OTHER, Call(number * 1000 + 999, 0, 2, b"half"), ("mesh0", bytes(6)))
            owner.hear(TENANT, Call(number, 1, 2, b"ole"))
            await a_moment()
            answered += owner.sent == [Answer(number, 0, 1, b"whole")]
            owner.sent.clear()
        assert answered == 50
        assert len(owner.calls._serving) <= MOST_CALLS and len(owner.calls._arriving) <= MOST_CALLS
        owner.calls.close()
        await a_moment()
        assert not owner.calls._serving and not owner.calls._of_one and not owner.calls._arriving

    run(test)


def test_a_blocked_neighbour_is_let_nothing() -> None:
    async def landlord(_content: bytes, _neighbour: bytes, _who: Hashable) -> bytes:
        raise AssertionError

    async def test() -> None:
        owner = End(TENANT, landlord)
        owner.world.blocked.add(TENANT)
        owner.hear(TENANT, Call(1, 0, 1, b"?"))
        await a_moment()
        assert owner.sent == [Answer(1, 0, 1, b"")]

    run(test)


def test_a_fault_while_answering_is_logged_and_frees_the_place(caplog: pytest.LogCaptureFixture) -> None:
    async def faulty(_content: bytes, _neighbour: bytes, _who: Hashable) -> bytes:
        raise ZeroDivisionError

    async def test() -> None:
        owner = End(TENANT, faulty)
        owner.hear(TENANT, Call(1, 0, 1, b"?"))
        await a_moment()
        assert not owner.sent and not owner.calls._serving and "fault of ngp" in caplog.text

    run(test)


def test_a_daemon_that_stops_ends_what_it_answers() -> None:
    async def endless(_content: bytes, _neighbour: bytes, _who: Hashable) -> bytes:
        await asyncio.sleep(3600)
        return b""

    async def test() -> None:
        owner = End(TENANT, endless)
        owner.hear(TENANT, Call(1, 0, 1, b"?"))
        await a_moment()
        owner.calls.close()
        await a_moment()
        assert not owner.calls._serving and not owner.sent

    run(test)
