"""Calls: what a tenant here asks a landlord in the mesh, and what neighbours ask our own landlord, as link messages.

The messages carry bytes; `modules/face/mesh.py` and `ngp/tenant/mesh.py` know what they mean. A neighbour that sends
call after call must not fill memory: few are answered at a time, and the rest are dropped, as if they were lost. A
neighbour may have many link addresses, which cost nothing. So when all places are taken, a new call isn't dropped: of
the link address that has most places, the oldest call makes room. An honest call is answered within milliseconds.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence

from ngp.core.effects import Effect, HandOver
from ngp.core.messages import Answer, Call
from ngp.core.peers import named
from ngp.core.world import World
from ngp.daemon.post import Post
from ngp.delivery import LinkKey
from ngp.errors import LandlordError
from ngp.wire import MAX_ANSWER_PARTS, MAX_CALL_PARTS, MAX_CONTENT_BYTES

MOST_CALLS = 128
MOST_CALLS_OF_ONE = 8
MOST_CALL_BYTES = MAX_CALL_PARTS * MAX_CONTENT_BYTES
PARTS_S = 15.0
"""How long we wait for all parts of a call: after that time the sender's courier doesn't repeat missing parts."""
ANSWER_S = 45.0
"""How long a tenant waits for an answer: the 20 s that a landlord may wait for a payment before it answers, and the
time that it takes to repeat lost messages."""

LOOK_S = 1.0
"""While a tenant waits for an answer, it checks so often whether the landlord is still there."""

_log = logging.getLogger("ngp")


class LinkCalls:
    """Both ends of the calls between this daemon and its neighbours.

    Args:
        post: sends our messages.
        landlord: answers the call of a neighbour on a link; an empty answer says that nothing is let to it.
    """

    def __init__(
        self,
        world: World,
        post: Post,
        landlord: Callable[[bytes, bytes, Hashable], Awaitable[bytes]],
    ) -> None:
        self._world = world
        self._post = post
        self._landlord = landlord
        self._numbers = itertools.count(1)
        self._waiting: dict[tuple[bytes, int], _Whole] = {}
        self._arriving: dict[tuple[bytes, LinkKey, int], _Whole] = {}
        self._serving: dict[asyncio.Task[None], tuple[bytes, LinkKey, int]] = {}
        self._of_one: Counter[LinkKey] = Counter()

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Carry out those of a batch's effects that hand over a call or an answer; the others are ignored."""
        for effect in effects:
            match effect:
                case HandOver(message=Call() as call):
                    self._called(effect.identity, effect.link, call)
                case HandOver(message=Answer() as answer):
                    if whole := self._waiting.get((effect.identity, answer.number)):
                        whole.take(answer)

    # --- the tenant's end ---------------------------------------------------------------------------------------------

    async def ask(self, landlord: bytes, content: bytes) -> bytes:
        """Ask a neighbour. Returns its answer.

        Args: landlord: its identity. content: at most MOST_CALL_BYTES.
        Raises: LandlordError: it is away, or doesn't answer.
        """
        neighbour = self._world.peers.any_link(landlord)
        if neighbour is None:
            raise LandlordError(f"{named(landlord)} is away: try again when `ngp neighbours` lists it as up")
        number = next(self._numbers)
        answer = self._waiting[landlord, number] = _Whole()
        try:
            self._send(Call, landlord, neighbour.link, number, content)
            async with asyncio.timeout(ANSWER_S):
                return await self._answer(landlord, neighbour.boot, answer.content)
        except TimeoutError:
            raise LandlordError(
                f"{named(landlord)} doesn't answer within {ANSWER_S:g} s: try again; if it never does, its ngp is of "
                "a version that lets nothing over the mesh"
            ) from None
        finally:
            del self._waiting[landlord, number]

    async def _answer(self, landlord: bytes, boot: int, answer: asyncio.Future[bytes]) -> bytes:
        """Wait for an answer. Raises: LandlordError: the landlord went away, or was restarted and forgot the call."""
        while not answer.done():
            await asyncio.wait({answer}, timeout=LOOK_S)
            present = self._world.peers.any_link(landlord)
            if not answer.done() and (present is None or present.boot != boot):
                how = "went away" if present is None else "was restarted"
                raise LandlordError(f"{named(landlord)} {how} before it answered: try again in a moment")
        return answer.result()

    # --- the landlord's end -------------------------------------------------------------------------------------------

    def _called(self, identity: bytes, link: LinkKey, call: Call) -> None:
        key = identity, link, call.number
        if arriving := self._arriving.get(key):
            arriving.take(call)
            return
        if self._of_one[link] >= MOST_CALLS_OF_ONE:
            self._world.count("calls_dropped")
            return
        if len(self._serving) >= MOST_CALLS:
            self._make_room()
        self._of_one[link] += 1
        whole = self._arriving[key] = _Whole()
        whole.take(call)
        task = asyncio.create_task(self._serve(identity, link, call.number, whole))
        self._serving[task] = key
        task.add_done_callback(lambda ended: self._ended(link, ended))

    def _make_room(self) -> None:
        places = Counter(link for _, link, _ in self._serving.values())
        crowded = max(places, key=places.__getitem__)
        oldest = next(task for task, (_, link, _) in self._serving.items() if link == crowded)
        self._arriving.pop(self._serving.pop(oldest), None)  # if it hasn't begun yet, it can't do that itself
        oldest.cancel()
        self._world.count("calls_dropped")

    async def _serve(self, identity: bytes, link: LinkKey, number: int, call: _Whole) -> None:
        try:
            content = await asyncio.wait_for(call.content, PARTS_S)
        except TimeoutError:
            return
        finally:
            if self._arriving.get((identity, link, number)) is call:
                del self._arriving[identity, link, number]
        blocked = identity in self._world.peers.blocked
        answer = b"" if blocked else await self._landlord(content, identity, link)
        self._send(Answer, identity, link, number, answer)

    def _ended(self, link: LinkKey, task: asyncio.Task[None]) -> None:
        self._serving.pop(task, None)
        self._of_one[link] -= 1
        if not self._of_one[link]:
            del self._of_one[link]
        if not task.cancelled() and (error := task.exception()):
            _log.error("mesh: a call ended with a fault of ngp: %r", error, exc_info=error)

    # --- both ---------------------------------------------------------------------------------------------------------

    def _send(self, kind: type[Call] | type[Answer], to: bytes, link: LinkKey, number: int, content: bytes) -> None:
        pieces = [content[at : at + MAX_CONTENT_BYTES] for at in range(0, len(content), MAX_CONTENT_BYTES)] or [b""]
        if len(pieces) > MAX_ANSWER_PARTS:
            raise ValueError(f"a message of {len(content)} bytes for {named(to)}")
        for part, piece in enumerate(pieces):
            self._post.send(to, link, kind(number, part, len(pieces), piece))

    def close(self) -> None:
        """End the calls that are being answered: their senders ask again. Safe to call twice."""
        for task in self._serving:
            task.cancel()


class _Whole:
    """A call or an answer that arrives part by part."""

    def __init__(self) -> None:
        self.content: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._parts: dict[int, bytes] = {}

    def take(self, message: Call | Answer) -> None:
        """Take a part. If a sender's parts contradict each other, the content is a mixture, or never complete."""
        self._parts[message.part] = message.content
        if not self.content.done() and all(part in self._parts for part in range(message.parts)):
            self.content.set_result(b"".join(self._parts[part] for part in range(message.parts)))
