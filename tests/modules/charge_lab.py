"""The meter's charge without packets or interfaces: real tables and ngp's own code, one charge at a time."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import platform
import struct
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_network
from pathlib import Path

from meter_lab import contract_id

from ngp.core.kernel import AccountLimit, AccountReading, Grant, Hint, Reading
from ngp.core.messages import Role
from ngp.core.prefixes import PackedPrefix
from ngp.modules.bpf import Programs, Table, library
from ngp.modules.network import layout
from ngp.modules.network.accounts import AccountTable
from ngp.modules.network.contracts import ContractTable
from ngp.modules.network.hints import HintReader
from ngp.modules.network.meter import table_sizes

SOURCES = Path(__file__).resolve().parents[2] / "modules/network"
CONTRACTS = 64
ALICE, BOB = b"alice" + bytes(27), b"bob" + bytes(29)
NEVER = 1 << 60


class _Run(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf 1."""

    _fields_ = [
        *(("sz", ctypes.c_size_t), ("data_in", ctypes.c_char_p), ("data_out", ctypes.c_void_p)),
        *(("data_size_in", ctypes.c_uint32), ("data_size_out", ctypes.c_uint32)),
        *(("ctx_in", ctypes.c_void_p), ("ctx_out", ctypes.c_void_p)),
        *((name, ctypes.c_uint32) for name in ("ctx_size_in", "ctx_size_out", "retval")),
        *(("repeat", ctypes.c_int), ("duration", ctypes.c_uint32), ("flags", ctypes.c_uint32)),
        *(("cpu", ctypes.c_uint32), ("batch_size", ctypes.c_uint32)),
    ]


def run(program: int, payload: bytes = bytes(64), times: int = 1) -> int:
    """Run a program on a made-up frame, and return its last result."""
    frame = bytes(14) + payload.ljust(64, b"\0")
    options = _Run(sz=ctypes.sizeof(_Run), data_in=frame, data_size_in=len(frame), repeat=times)
    result = library().bpf_prog_test_run_opts(program, ctypes.byref(options))
    assert result == 0, result
    return ctypes.c_int32(options.retval).value


class ChargeLab:
    """The tables of a meter that isn't attached anywhere.

    Contracts are numbered in the order in which they were made.
    """

    def __init__(self, programs: Programs, loop: asyncio.AbstractEventLoop) -> None:
        self.programs, self._loop = programs, loop
        names = (layout.CONTRACTS, layout.LABELS, layout.ACCOUNTS, layout.IDENTITIES, layout.EARLY, layout.HINTS)
        self.tables: dict[str, Table] = {}
        for name in (*names, "lab_meddling", layout.COUNTERS, *layout.HOSTS.values(), *layout.PREFIXES.values()):
            self.tables[name] = programs.table(name)
        self._meddling = self.tables["lab_meddling"]
        self.ids: list[bytes] = []
        self._told: list[Hint] = []
        self.any_purchases: list[bool] = []
        self.open()

    def open(self) -> None:
        """Begin with the tables as they are, like a daemon that starts."""
        self.accounts = AccountTable(self.tables)
        self.contracts = ContractTable(
            *(self.tables, self.accounts, lambda number: number, lambda _: bytes(10), lambda *_: False),
            *(lambda *_: None, self.any_purchases.append),
        )
        reader = HintReader(self.tables[layout.HINTS], self.contracts, self.accounts, self._loop, self._told.extend)
        self._close_hints = reader.close

    def reopen(self) -> None:
        """End without cleaning up, and begin again."""
        self.close()
        self.open()

    def close(self) -> None:
        """Release the mapped memory."""
        self._close_hints()
        self.contracts.close()
        self.accounts.close()

    def limit(self, limit_units: int, account: bytes = ALICE, **changes: object) -> None:
        """Set how much an account may spend."""
        self.accounts.limit([AccountLimit(account, limit_units, **changes)])  # type: ignore[arg-type]

    def grant(self, number: int | None = None, **changes: object) -> int:
        """Make a contract, or change one; returns its number."""
        if number is None:
            number = len(self.ids)
            self.ids.append(contract_id())
        values: dict[str, object] = {
            "contract": self.ids[number],
            "neighbour": 7,
            "role": Role.SERVER,
            "destination": PackedPrefix.of(ip_network(IPv4Address("10.0.0.0") + number)),
            "limit_bytes": NEVER,
            "expires_in_s": 600.0,
            "account": ALICE,
            "price_msat_per_gib": 1,
        }
        self.contracts.grant([Grant(**{**values, **changes})])  # type: ignore[arg-type]
        return number

    def ask(self, number: int, size_bytes: int, others_bytes: int = 0, role: Role = Role.SERVER) -> bool:
        """Charge a packet; say whether it may pass.

        Args: others_bytes: what other packets use of the contract after it was looked at, before the account pays.
        """
        request = struct.pack("=QQII", size_bytes, others_bytes, number, layout.ROLE[role])
        return run(self.programs.program("ask"), request) == 1

    def meddle(self, by: int) -> None:
        """Let another packet be charged `by` between the next reading of a word and its swap."""
        self._meddling.set(bytes(4), by.to_bytes(8, sys.byteorder))

    def spent(self, account: bytes = ALICE) -> int:
        """Return what an account spent."""
        return self.account(account).spent_units

    def account(self, account: bytes = ALICE) -> AccountReading:
        """Read an account."""
        (found,) = self.accounts.read([account])
        return found

    def read(self, number: int) -> Reading:
        """Read a contract."""
        (found,) = self.contracts.read([self.ids[number]])
        return found

    def used(self, number: int) -> int:
        """Return a contract's bytes, both directions together."""
        found = self.read(number)
        return found.used_to_bytes + found.used_from_bytes

    def counter(self, which: layout.Counter) -> int:
        """Return one of the kernel's counters."""
        value = self.tables[layout.COUNTERS].get(struct.pack("=I", which)) or b""
        return sum(struct.unpack(f"={len(value) // 8}Q", value))

    def hints(self) -> list[Hint]:
        """Return the hints that came since the last call."""
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()  # one turn of the loop
        told, self._told[:] = list(self._told), []
        return told


def build(folder: Path) -> Path:
    """Compile the lab's programs, which include ngp's own code for charging."""
    source, built = Path(__file__).with_name("charge.bpf.c"), folder / "charge.o"
    include = f"/usr/include/{platform.machine()}-linux-gnu"
    words = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-idirafter", include, "-I", str(SOURCES)]
    subprocess.run([*words, "-c", str(source), "-o", str(built)], check=True)
    return built


@contextlib.contextmanager
def charge_lab(built: Path) -> Iterator[ChargeLab]:
    """Load the lab's programs. Args: built: the object that `build` made."""
    with contextlib.ExitStack() as undo:
        programs = Programs(built, table_sizes(CONTRACTS), {})
        undo.callback(programs.close)
        loop = asyncio.new_event_loop()
        undo.callback(loop.close)
        lab = ChargeLab(programs, loop)
        for table in lab.tables.values():
            undo.callback(table.close)
        undo.callback(lambda: lab.close())
        yield lab
