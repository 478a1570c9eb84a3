"""Inlet: receives ngp's datagrams from the kernel, each with the link address of its frame, and keeps floods out.

The kernel's part is inlet.bpf.c. Its filters are on our sockets and put the datagrams into one ring buffer. The daemon
reads the ring buffer in small parts, so that its other work gets its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ngp.modules import bpf

MOST_TRUSTED = 4096
# Datagrams that are read from the ring buffer at a time. Many, for two reasons: a read costs little, as signatures are
# checked later; and in the ring one neighbour's datagrams can delay another's, while the queues behind the ring serve
# the neighbours in turn.
READS_AT_ONCE = 256
_SO_ATTACH_BPF = 50
_HEAD = struct.Struct("=I6s2xHBx16s")
_LINK = struct.Struct("=I6s2x")
_COUNTERS = ("own", "malformed", "oversized", "not_from_link", "link_rate", "stranger_link_rate", "inlet_full")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A datagram and its source: interface, link address (zeros if there is none) and IP address (empty if none)."""

    index: int
    mac: bytes
    source: bytes
    datagram: bytes


def read_arrival(record: bytes) -> Arrival:
    """Parse a record of the ring, as inlet.bpf.c writes it."""
    index, mac, length, version, source = _HEAD.unpack_from(record)
    return Arrival(index, mac, source[: {4: 4, 6: 16}.get(version, 0)], record[_HEAD.size : _HEAD.size + length])


def object_path() -> Path:
    """Return the inlet's object file for this machine's byte order."""
    return bpf.compiled(Path(__file__).with_name("inlet"))


class Inlet:
    """The filters in the kernel, and the ring buffer that they fill.

    Raises: KernelError.
    """

    def __init__(self, on_arrival: Callable[[Arrival], None]) -> None:
        self._on_arrival = on_arrival
        self._trusted: OrderedDict[bytes, None] = OrderedDict()  # the link address first whose last `trust` is oldest
        with contextlib.ExitStack() as undo:
            self._programs = bpf.Programs(object_path(), {}, {})
            undo.callback(self._programs.close)
            self._buckets, self._shared = self._table("trusted", undo), self._table("shared", undo)
            self._counts = self._table("counts", undo)
            self._shared.set(struct.pack("=I", 1), struct.pack("=Q", secrets.randbits(64) | 1))
            with contextlib.ExitStack() as for_a_moment:
                ring = self._table("ring", for_a_moment)
                self._ring = bpf.RingReader(ring, asyncio.get_running_loop(), self._read, READS_AT_ONCE)
            undo.callback(self._ring.close)
            self._open = undo.pop_all()

    def _table(self, name: str, closing: contextlib.ExitStack) -> bpf.Table:
        table = self._programs.table(f"inlet_{name}")
        closing.callback(table.close)
        return table

    def filter(self, one: socket.socket, program: str) -> None:
        """Redirect a socket's datagrams into the ring buffer; the socket's own queue stays empty."""
        descriptor = struct.pack("=i", self._programs.program(program))
        one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, descriptor)

    def trust(self, index: int, mac: bytes) -> None:
        """Give a link address its own token bucket.

        If there is no room, the link address that was trusted longest ago loses its bucket.
        """
        link = _LINK.pack(index, mac)
        if link not in self._trusted:
            if len(self._trusted) >= MOST_TRUSTED:
                self._buckets.delete(self._trusted.popitem(last=False)[0])
            self._buckets.set(link, bytes(8))
            self._trusted[link] = None
        self._trusted.move_to_end(link)

    def counters(self) -> dict[str, int]:
        """Return how many datagrams were refused, by reason."""
        counts = {}
        for number, name in enumerate(_COUNTERS):
            by_processor = self._counts.get(struct.pack("=I", number)) or b""
            counts[name] = sum(value for (value,) in struct.iter_unpack("=Q", by_processor))
        return {name: count for name, count in counts.items() if count}

    def close(self) -> None:
        """Close the programs and the ring; sockets that still have a filter keep it."""
        self._open.close()

    def _read(self, records: list[bytes]) -> None:
        for record in records:
            self._on_arrival(read_arrival(record))
