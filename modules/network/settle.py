"""Settling: wait until every packet that is on its way through the programs has left them.

When a contract is stopped or a limit is lowered, a packet that is already in a program may still pass. The counters are
final when that packet has left the program.

When a map inside another map is replaced, the kernel waits until no running program uses the old one
(`maybe_wait_bpf_programs` in kernel/bpf/syscall.c, since Linux 4.20). We need nothing but this wait, so we replace a
map by itself. That takes some 15 ms, the kernel's usual grace period. `membarrier(MEMBARRIER_CMD_GLOBAL)` takes as
long, but the kernel refuses it where processors run without a clock tick (nohz_full).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
from collections.abc import Callable

from ngp.modules.bpf import library, require

_ARRAY, _ARRAY_OF_MAPS = 2, 12


class _CreateOptions(ctypes.Structure):
    """struct bpf_map_create_opts of libbpf 1."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        *((name, ctypes.c_uint32) for name in ("btf_fd", "key_type", "value_type", "vmlinux_value_type")),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    ]


class ProgramsWait:
    """Waits for running programs; may be used from any thread. Raises: KernelError."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        create = library().bpf_map_create
        self._inner = require(create(_ARRAY, b"ngp_waited", 4, 4, 1, None), "making a map")
        options = _CreateOptions(sz=ctypes.sizeof(_CreateOptions), inner_map_fd=self._inner)
        outer = create(_ARRAY_OF_MAPS, b"ngp_wait", 4, 4, 1, ctypes.byref(options))
        if outer < 0:
            os.close(self._inner)
        self._outer = require(outer, "making a map of maps")

    def wait(self) -> None:
        """Return when every program that ran at the call has ended; at once if closed. Raises KernelError."""
        with self._lock:
            if self._outer < 0:
                return
            value = self._inner.to_bytes(4, sys.byteorder)
            require(library().bpf_map_update_elem(self._outer, bytes(4), value, 0), "waiting for running programs")

    def close(self) -> None:
        """Close the maps, after a wait that is under way; safe to call twice."""
        with self._lock:
            if self._outer >= 0:
                os.close(self._outer)
                os.close(self._inner)
            self._outer = -1


class Settling:
    """Lets many callers share one wait: all who called `settled` before a wait begins return when that wait ends.

    Args: wait: blocks until the BPF programs that handle a packet now have finished with it. It is called in a thread,
        never twice at the same time.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def settled(self) -> None:
        """Return when a wait that began after the call is over. Raises what `wait` raises."""
        if self._next is None or self._next.done():  # done: its event loop ended before the wait began
            self._next = asyncio.create_task(self._after(self._running))
        await asyncio.shield(self._next)

    async def _after(self, running: asyncio.Task[None] | None) -> None:
        if running is not None and not running.done():
            await asyncio.wait({running})
        self._running, self._next = self._next, None
        await asyncio.to_thread(self._wait)
