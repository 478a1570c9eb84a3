"""Hints: what the kernel's programs report through a ring buffer, read in the event loop.

They report that a contract or account is nearly used up or refused a packet, and traffic for which we should ask for a
contract. The regular reading of the counters finds the same about contracts and accounts, so a lost hint only costs
time. A hint about a contract or account that is gone is ignored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from ngp.core.kernel import Hint, HintKind
from ngp.modules.bpf import RingReader, Table
from ngp.modules.network import layout
from ngp.modules.network.accounts import AccountTable
from ngp.modules.network.contracts import ContractTable

_HINTS_AT_ONCE = 16384  # read in one turn of the loop; more than the ring holds
_CONTRACTS = {1: HintKind.LOW, 2: HintKind.EXHAUSTED}
_UNBOUGHT = 5
_KINDS = _CONTRACTS | {3: HintKind.ACCOUNT_LOW, 4: HintKind.ACCOUNT_EXHAUSTED}


class HintReader:
    """Reads the kernel's ring buffer in the event loop."""

    def __init__(
        self,
        table: Table,
        contracts: ContractTable,
        accounts: AccountTable,
        loop: asyncio.AbstractEventLoop,
        on_hints: Callable[[Sequence[Hint]], None],
    ) -> None:
        self._contracts, self._accounts, self._on_hints = contracts, accounts, on_hints
        self._ring = RingReader(table, loop, self._read, _HINTS_AT_ONCE)

    def close(self) -> None:
        """Stop reading; hints that are left in the ring stay for the next daemon."""
        self._ring.close()

    def _read(self, records: list[bytes]) -> None:
        hints = []
        for record in records:
            kind, slot, tag = layout.HINT.unpack_from(record)
            if kind == _UNBOUGHT:
                address = record[layout.HINT.size :]
                hints.append(Hint(HintKind.UNBOUGHT, b"", slot, ip_address(address if tag else address[:4])))
                continue
            of = self._contracts.contract_of if kind in _CONTRACTS else self._accounts.account_of
            key = of(slot, tag)
            if key is not None and kind in _KINDS:
                hints.append(Hint(_KINDS[kind], key))
        if hints:
            self._on_hints(hints)
