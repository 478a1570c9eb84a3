"""Held packets: the first packets to a destination wait here, in the kernel, while the daemon negotiates.

A packet is held as long as it gets no verdict. What strangers send must neither use memory without bound nor take much
of the loop's time. So the number of held packets is bounded, in total and for each neighbour; else one flooding
neighbour would take every place. Keys and link addresses cost nothing, so neighbours that never paid take at most half
of the places together. Each wake-up of the loop reads a limited burst. Addresses are read from fixed offsets; a general
parser would be some twenty times slower.

A packet is released by the verdict REPEAT: it meets the gate again and is charged like any other; a plain accept would
carry it for nothing. Without a verdict nothing passes: the rule has no bypass, the queue has no fail-open, and when the
process dies, the kernel drops the held packets.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import netfilterqueue

from ngp.core.kernel import HeldPacket, Verdict
from ngp.core.messages import Address
from ngp.core.values import Check
from ngp.errors import KernelError
from ngp.modules.network.icmp import Prohibiter, is_error

HELD_MAX = 4096
HELD_PER_NEIGHBOUR_MAX = 512
# Packets read in one wake-up. We must read faster than the gate lets packets in: in the kernel's queue one neighbour's
# packets delay those of other neighbours.
_BURST_PACKETS = 256
_COPY_BYTES = 1280  # of each packet, what we get: as much as the longest ICMP answer quotes, and more than any header
_KERNEL_QUEUE_MAX = HELD_MAX + 1024  # packets in the kernel: a burst on top of those that wait for a verdict
_SOCKET_BUFFER_BYTES = 4 << 20
_NAMES_MAX_AGE_S = 1.0


@dataclass(slots=True)
class _Held:
    packet: netfilterqueue.Packet
    neighbour: tuple[str, bytes]
    has_paid: bool
    payload: bytes
    since_s: float


class _BurstSocket(socket.socket):
    """The queue's socket as `run_socket` needs it. After a burst it says that nothing is left, so that reading ends.

    NetfilterQueue's own `run(block=False)` reads until the socket is empty, which it never is during a flood.
    """

    left = 0

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive one message without waiting. Raises BlockingIOError at the end of the burst."""
        if self.left <= 0:
            raise BlockingIOError(errno.EAGAIN, "burst used up")
        self.left -= 1
        return super().recv(bufsize, flags | socket.MSG_DONTWAIT)


def parse_addresses(payload: bytes) -> tuple[Address, Address] | None:
    """Read source and destination of an IP packet. Pure; takes hostile bytes.

    Args: payload: from the IP header on; may be cut short behind it.
    Returns: None if it has no valid IPv4 or IPv6 header.
    """
    version = payload[0] >> 4 if payload else 0
    if version == 4 and len(payload) >= 20:
        header_bytes, length_bytes = (payload[0] & 15) * 4, int.from_bytes(payload[2:4], "big")
        if header_bytes < 20 or length_bytes < header_bytes:
            return None
        return IPv4Address(payload[12:16]), IPv4Address(payload[16:20])
    if version == 6 and len(payload) >= 40:
        return IPv6Address(payload[8:24]), IPv6Address(payload[24:40])
    return None


class HeldQueue:
    """Receives the gate's unknown packets and keeps them until their verdict.

    Args:
        number: NFQUEUE number.
        on_held: called in the loop once for every packet that is held; may decide at once.
        has_link_addresses: says whether neighbours on an interface have a MAC.
        sent_to: returns where a packet was sent if this host has rewritten its destination, else None. Its arguments:
            the interface's index, the link address, the packet from the IP header on.
        has_paid: says whether the neighbour on a link has paid us. Its arguments: as the first two of `sent_to`.
        held_max, per_neighbour_max: the most packets that are kept in all, and for one (interface, link address); more
            are dropped. Neighbours that never paid get half of held_max together.
        monotonic_s: returns the seconds of a clock that never goes back.
    """

    def __init__(
        self,
        number: int,
        on_held: Callable[[HeldPacket], None],
        has_link_addresses: Callable[[str], bool],
        sent_to: Callable[[int, bytes, bytes], Address | None] = lambda _interface, _link_address, _payload: None,
        has_paid: Callable[[int, bytes], bool] = lambda _interface, _link_address: False,
        held_max: int = HELD_MAX,
        per_neighbour_max: int = HELD_PER_NEIGHBOUR_MAX,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._number, self._on_held, self._has_link_addresses = number, on_held, has_link_addresses
        self._sent_to, self._has_paid = sent_to, has_paid
        self._held_max, self._per_neighbour_max, self._now_s = held_max, per_neighbour_max, monotonic_s
        self._held: dict[int, _Held] = {}
        self._held_by: Counter[tuple[str, bytes]] = Counter()
        self._held_unpaid = 0
        self._counts: Counter[str] = Counter()
        self._next_handle = 1
        self._arrived: list[HeldPacket] = []
        self._names: dict[int, str] = {}
        self._names_at_s = 0.0
        self._prohibiter = Prohibiter(monotonic_s)
        self._queue: netfilterqueue.NetfilterQueue | None = None
        self._socket: _BurstSocket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind the queue and receive in the loop. Call `close` in the same thread.

        Raises: KernelError if the number is taken or rights are missing.
        """
        self.bind()
        assert self._queue is not None
        self._loop = loop
        self._socket = _BurstSocket(fileno=os.dup(self._queue.get_fd()))
        loop.add_reader(self._socket.fileno(), self._read)

    def bind(self) -> None:
        """Bind the queue only; nothing is read yet. Raises KernelError."""
        try:
            queue = netfilterqueue.NetfilterQueue()  # needs rights, and a kernel that has queues
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # with a smaller buffer packets only get lost sooner
                queue.bind(
                    self._number,
                    self._receive,
                    max_len=_KERNEL_QUEUE_MAX,
                    range=_COPY_BYTES,
                    sock_len=_SOCKET_BUFFER_BYTES,
                )
        except OSError as error:
            raise self._bind_error(error) from error
        self._queue = queue

    def verdict(self, handle: int, verdict: Verdict) -> None:
        """Decide about a held packet; ignored if the packet was decided about before."""
        held = self._held.pop(handle, None)
        if held is None:
            return
        self._held_unpaid -= not held.has_paid
        self._held_by[held.neighbour] -= 1
        if self._held_by[held.neighbour] <= 0:
            del self._held_by[held.neighbour]
        if verdict is Verdict.REPEAT:
            held.packet.repeat()
            self._counts["released"] += 1
            return
        held.packet.drop()
        self._counts["dropped"] += 1
        if verdict is Verdict.PROHIBIT and self._prohibiter.answer(held.payload):
            self._counts["prohibited"] += 1

    def expire(self, max_age_s: float) -> list[int]:
        """Drop packets that have been held longer than max_age_s; return their handles."""
        limit_s = self._now_s() - max_age_s
        old = []
        for handle, held in self._held.items():  # in order of arrival
            if held.since_s > limit_s:
                break
            old.append(handle)
        for handle in old:
            self.verdict(handle, Verdict.DROP)
        return old

    def counters(self) -> dict[str, int]:
        """Count packets.

        Returns: held (now), released, dropped, prohibited (the sender was told by ICMP), malformed, over_limit (dropped
            because the table was full; malformed and over_limit are part of dropped), queue_overflow (dropped by the
            kernel, whose queue or our socket was full).
        """
        names = ("released", "dropped", "prohibited", "malformed", "over_limit")
        return {
            "held": len(self._held),
            **{name: self._counts[name] for name in names},
            "queue_overflow": self._overflow(),
        }

    def close(self) -> None:
        """Drop what is held, and close the queue; safe to call twice. Call it in the loop's thread."""
        for handle in list(self._held):
            self.verdict(handle, Verdict.DROP)
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        if self._queue is not None:
            self._queue.unbind()
        self._queue = self._socket = None
        self._prohibiter.close()

    def _read(self) -> None:
        if self._queue is None or self._socket is None:
            return
        self._socket.left = _BURST_PACKETS
        self._queue.run_socket(self._socket)
        arrived, self._arrived = self._arrived, []
        for held in arrived:
            self._on_held(held)

    def _receive(self, packet: netfilterqueue.Packet) -> None:
        """Keep a packet or drop it. Must not raise, since C code calls it."""
        payload = packet.get_payload() if packet.get_payload_len() else b""
        addresses = parse_addresses(payload)
        interface = self._name(packet.indev)
        if addresses is None or not interface:
            self._refuse(packet, "malformed")
            return
        # An error belongs to the contract of the packet that it quotes. By itself it begins none: else forged sources
        # would make a router that refuses packets buy a contract for each of them, with its own ICMP answers.
        if is_error(payload):
            packet.drop()
            self._counts["dropped"] += 1
            return
        link_address = self._link_address(packet, interface)
        neighbour = (interface, link_address)
        has_paid = self._has_paid(packet.indev, link_address)
        full = len(self._held) >= self._held_max or (not has_paid and self._held_unpaid >= self._held_max // 2)
        if full or self._held_by[neighbour] >= self._per_neighbour_max:
            self._refuse(packet, "over_limit")
            return
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._held[handle] = _Held(packet, neighbour, has_paid, payload, self._now_s())
        self._held_unpaid += not has_paid
        self._held_by[neighbour] += 1
        destination = self._sent_to(packet.indev, link_address, payload) or addresses[1]
        self._arrived.append(HeldPacket(handle, neighbour, destination))

    def _refuse(self, packet: netfilterqueue.Packet, why: str) -> None:
        packet.drop()
        self._counts["dropped"] += 1
        self._counts[why] += 1

    def _link_address(self, packet: netfilterqueue.Packet, interface: str) -> bytes:
        # The kernel gives 8 bytes whatever the medium; ipip and GRE put IP addresses there.
        if not self._has_link_addresses(interface):
            return b""
        return (packet.get_hw() or b"")[:6]

    def _name(self, index: int) -> str:
        now_s = self._now_s()
        if now_s - self._names_at_s > _NAMES_MAX_AGE_S:  # an index may get another name
            self._names, self._names_at_s = {}, now_s
        if index not in self._names:
            try:
                self._names[index] = socket.if_indextoname(index)
            except OSError:
                return ""
        return self._names[index]

    def _kernel_row(self) -> list[int]:
        """Return our row of nfnetlink_queue: number, port id, waiting, mode, range, dropped, user dropped, ..."""
        try:
            lines = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text().splitlines()
        except OSError:
            return []
        rows = ([int(word) for word in line.split()] for line in lines)
        return next((row for row in rows if row and row[0] == self._number), [])

    def _overflow(self) -> int:
        row = self._kernel_row()
        return row[5] + row[6] if self._queue is not None and len(row) > 6 else 0

    def _bind_error(self, error: OSError) -> KernelError:
        row = self._kernel_row()
        if row:
            return KernelError(
                f"NFQUEUE number {self._number} is in use by another program (netlink port {row[1]}, usually its "
                "process id); stop it, or set QUEUE_NUMBER in net.conf to a free number"
            )
        return KernelError(
            f"NFQUEUE number {self._number} can't be bound ({error}); run as root, on a kernel with nfnetlink_queue"
        )


def try_number(number: int) -> Check:
    """Bind a queue and release it at once, to see whether a start could. Don't call this while we have the queue."""
    queue = HeldQueue(number, lambda _packet: None, lambda _interface: False)
    try:
        queue.bind()
    except KernelError as error:
        return Check("queue", False, str(error))
    finally:
        queue.close()
    return Check("queue", True, f"NFQUEUE number {number} is free")
