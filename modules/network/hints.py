"""Hints: what the kernel tells through its ring buffer, read in the event loop.

They only hasten what a scan of the table would find; a hint that is left from a contract which is gone is thrown away.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Sequence

from ngp.errors import KernelError
from ngp.modules.network import bpf, layout
from ngp.modules.network.bpf import Table
from ngp.modules.network.contracts import ContractTable
from ngp.ports import Hint, HintKind

_KINDS = {1: HintKind.LOW, 2: HintKind.DEPLETED}


class HintReader:
    """Reads the kernel's ring buffer in the event loop."""

    def __init__(
        self,
        table: Table,
        contracts: ContractTable,
        loop: asyncio.AbstractEventLoop,
        on_hints: Callable[[Sequence[Hint]], None],
    ) -> None:
        self._contracts, self._loop, self._on_hints = contracts, loop, on_hints
        self._arrived: list[Hint] = []
        self._callback = bpf.RING_CALLBACK(self._take)
        ring = bpf.library().ring_buffer__new(table.descriptor, self._callback, None, None)
        if not ring:
            raise KernelError("the kernel's ring buffer can't be opened; raise the limit of locked memory (ulimit -l)")
        self._ring = ctypes.c_void_p(ring)
        self._descriptor = int(bpf.library().ring_buffer__epoll_fd(self._ring))
        loop.add_reader(self._descriptor, self._read)

    def close(self) -> None:
        """Stop reading; what is left in the ring stays for the next daemon."""
        self._loop.remove_reader(self._descriptor)
        bpf.library().ring_buffer__free(self._ring)

    def _take(self, _context: int, data: int, size: int) -> int:
        kind, slot, tag = layout.HINT.unpack_from(ctypes.string_at(data, size))
        contract = self._contracts.contract_of(slot, tag)
        if contract is not None and kind in _KINDS:
            self._arrived.append(Hint(_KINDS[kind], contract))
        return 0

    def _read(self) -> None:
        bpf.library().ring_buffer__consume(self._ring)
        arrived, self._arrived = self._arrived, []
        if arrived:
            self._on_hints(arrived)
