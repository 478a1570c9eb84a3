"""Flows: conversations over several hops, whose first packet waits at each gate that has no contract for it.

Whoever begins a conversation pays for both directions: each node on the path buys the destination from the next one,
except from the destination itself. A packet that a gate refuses is gone; a chunk of the stream is sent again later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from core_tests.simulate.graph import Edge
from core_tests.simulate.lies import Lie
from core_tests.simulate.mesh import Mesh, MeshNode
from ngp.core.kernel import HeldPacket, Verdict
from ngp.core.messages import Prefix, Role
from ngp.core.prefixes import host_prefix

FIRST_PACKET_BYTES = 60
PING_BYTES = 84
AGAIN_AFTER_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""When TCP sends a first packet again that wasn't answered (RFC 6298, Linux's tcp_syn_retries cut to five)."""
CHUNK_BYTES = 64 << 10  # a GSO superpacket
CHUNK_EVERY_S = 0.5  # so a flow has 1 Mbit/s
UP_SHARE = 20  # of what is sent, 1/20 goes up: acknowledgements
STALLED_S = 30.0


@dataclass(eq=False)
class Flow:
    """One conversation between two nodes.

    Attributes:
        size_bytes: to be delivered to its source; 0: a ping, which ends with its answer.
        began_at: when its first packet was sent. answered_at: when the answer arrived; None: not yet.
        hops: links on the path of the last first packet; round_trip_s: what the links alone take.
        delivered_bytes: what arrived at either end. ended: it has all bytes, or has given up.
        tries: how many first packets were sent.
    """

    source: MeshNode
    target: MeshNode
    size_bytes: int
    began_at: float = 0.0
    answered_at: float | None = None
    hops: int = 0
    round_trip_s: float = 0.0
    delivered_bytes: int = 0
    ended: bool = False
    tries: int = 0
    path: list[MeshNode] = field(default_factory=list)
    moved_at: float = 0.0

    @property
    def complete(self) -> bool:
        """True if it was answered and all its bytes arrived."""
        return self.answered_at is not None and self.delivered_bytes >= self.size_bytes


class Traffic:
    """Carries flows over a mesh. `active`: how many have not ended."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.flows: list[Flow] = []
        self.active = 0
        self._hosts: dict[int, Prefix] = {}

    def begin(self, flow: Flow, again_after_s: tuple[float, ...] = AGAIN_AFTER_S) -> None:
        """Send a flow's first packet now.

        Args: again_after_s: the pauses after which it is sent again until it is answered; then the flow gives up.
        """
        self.flows.append(flow)
        self.active += 1
        flow.began_at = self._mesh.now
        self._try(flow, list(again_after_s))

    def _try(self, flow: Flow, pauses: list[float]) -> None:
        if flow.ended or flow.answered_at is not None:
            return
        found = self._mesh.routes.path(flow.source.number, flow.target.number)
        if found is not None and flow.source.awake:
            flow.path = [self._mesh.nodes[number] for number in found]
            flow.tries, flow.hops = flow.tries + 1, len(found) - 1
            self._send(flow, flow.path, 0)
        if pauses:
            self._mesh.at(self._mesh.now + pauses[0], lambda: self._try(flow, pauses[1:]))
        else:
            self._mesh.at(self._mesh.now + AGAIN_AFTER_S[-1], lambda: self._give_up(flow))

    def _give_up(self, flow: Flow) -> None:
        if flow.answered_at is None:
            self._end(flow)

    def _end(self, flow: Flow) -> None:
        if not flow.ended:
            flow.ended = True
            self.active -= 1
            flow.path = []

    # --- the first packet

    def _size(self, flow: Flow) -> int:
        return FIRST_PACKET_BYTES if flow.size_bytes else PING_BYTES

    def _send(self, flow: Flow, path: list[MeshNode], position: int) -> None:
        """Send the first packet from a node of the path to the next one."""
        node, following = path[position], path[position + 1]
        self._meter(node, following, Role.CLIENT, flow, self._size(flow), True)
        edge = node.edges[following.number]
        if not self._is_lost(edge):
            self._mesh.at(self._mesh.now + edge.delay_s, lambda: self._gate(flow, path, position + 1))

    def _gate(self, flow: Flow, path: list[MeshNode], position: int) -> None:
        """Let the first packet through a node's gate, hold it there, or drop it."""
        node, before = path[position], path[position - 1]
        if not node.awake or not before.awake:
            return
        if position == len(path) - 1:
            self._answer(flow, path)
            return
        passed = self._meter(node, before, Role.SERVER, flow, self._size(flow), True)
        if passed:
            if node.lie is not Lie.CARRIES_NOTHING:
                self._send(flow, path, position)
        elif passed is None:
            self._hold(flow, path, position)

    def _hold(self, flow: Flow, path: list[MeshNode], position: int) -> None:
        node, mesh = path[position], self._mesh
        handle = mesh.handle()

        def decide(verdict: Verdict) -> None:
            if verdict is Verdict.REPEAT:
                self._gate(flow, path, position)

        node.held[handle], node.held_since[handle] = decide, mesh.now
        onward = mesh.onward(node, self._host(flow.target))
        mesh.happen(node, HeldPacket(handle, path[position - 1].link, flow.target.address, onward))

    def _answer(self, flow: Flow, path: list[MeshNode]) -> None:
        """Send the answer back to the source, if it isn't lost on the way."""
        if self._pass_down(flow, path, self._size(flow)):
            back_s = sum(other.edges[node.number].delay_s for node, other in pairwise(path))
            there_s = sum(node.edges[other.number].delay_s for node, other in pairwise(path))
            self._mesh.at(self._mesh.now + back_s, lambda: self._answered(flow, path, there_s + back_s))

    def _answered(self, flow: Flow, path: list[MeshNode], round_trip_s: float) -> None:
        flow.moved_at = self._mesh.now
        if flow.answered_at is not None or flow.ended:
            return
        flow.answered_at, flow.hops, flow.round_trip_s = self._mesh.now, len(path) - 1, round_trip_s
        flow.path = path
        if flow.size_bytes:
            self._stream(flow)
        else:
            self._end(flow)

    # --- the stream

    def _stream(self, flow: Flow) -> None:
        """Send the next chunk in both directions; if one of them is refused, it is sent again later."""
        if flow.ended:
            return
        left = flow.size_bytes - flow.delivered_bytes
        down = min(CHUNK_BYTES, left - left // UP_SHARE)
        up = min(CHUNK_BYTES // UP_SHARE, left - down)
        path, arrived = flow.path, 0
        if all(node.awake for node in path):
            if up:
                arrived += self._pass_up(flow, path, up)
            arrived += self._pass_down(flow, path, down)
        flow.delivered_bytes += arrived
        now = self._mesh.now
        if arrived:
            flow.moved_at = now
        if flow.delivered_bytes >= flow.size_bytes or now - flow.moved_at > STALLED_S:
            self._end(flow)
            return
        if not arrived:  # a contract ended or a node is gone: a packet that waits at the gates opens the way again
            self._reopen(flow)
        self._mesh.at(now + CHUNK_EVERY_S, lambda: self._stream(flow))

    def _reopen(self, flow: Flow) -> None:
        found = self._mesh.routes.path(flow.source.number, flow.target.number)
        if found is not None and flow.source.awake:
            flow.path = [self._mesh.nodes[number] for number in found]
            self._send(flow, flow.path, 0)

    def _pass_up(self, flow: Flow, path: list[MeshNode], size: int) -> int:
        """Carry bytes to the target. Returns how many arrive."""
        last = len(path) - 1
        for position in range(last):
            node, following = path[position], path[position + 1]
            self._meter(node, following, Role.CLIENT, flow, size, True)
            size = self._arriving(node.edges[following.number], size)
            if not size:
                return 0
            if position + 1 < last:
                if not self._meter(following, node, Role.SERVER, flow, size, True):
                    return 0
                if following.lie is Lie.CARRIES_NOTHING:
                    return 0
        return size

    def _pass_down(self, flow: Flow, path: list[MeshNode], size: int) -> int:
        """Carry bytes back to the source. Returns how many arrive."""
        last = len(path) - 1
        for position in range(last, 0, -1):
            node, before = path[position], path[position - 1]
            if position < last and not self._sells(node, before, flow, size):
                return 0
            size = self._arriving(node.edges[before.number], size)
            if not size:
                return 0
            self._meter(before, node, Role.CLIENT, flow, size, False)
        return size

    def _sells(self, node: MeshNode, client: MeshNode, flow: Flow, size: int) -> bool:
        if node.lie is Lie.CARRIES_NOTHING:
            return False
        return bool(self._meter(node, client, Role.SERVER, flow, size, False))

    # --- a link and a meter

    def _is_lost(self, edge: Edge) -> bool:
        return edge.loss > 0 and self._mesh.chance.random() < edge.loss

    def _arriving(self, edge: Edge, size: int) -> int:
        """Return how much of a chunk the link carries; of a single packet all or nothing."""
        if not edge.loss:
            return size
        if size <= PING_BYTES:
            return 0 if self._is_lost(edge) else size
        return size - int(size * edge.loss + self._mesh.chance.random())

    def _meter(self, node: MeshNode, other: MeshNode, role: Role, flow: Flow, size: int, towards: bool) -> bool | None:
        slot = node.kernel.find_host(node.number_of(other), role, self._host(flow.target))
        passed = node.kernel.meter(slot, size, towards, self._mesh.now)
        if slot is not None:
            self._mesh.metered(node)
        return passed

    def _host(self, node: MeshNode) -> Prefix:
        host = self._hosts.get(node.number)
        if host is None:
            host = self._hosts[node.number] = host_prefix(node.address)
        return host
