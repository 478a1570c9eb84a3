"""Datapath: the network port. The meter's programs and tables, the gate that asks them, and the queue of held packets.

The kernel works on alone when the daemon dies, so `set_up` first looks for what is running: by the programs that hang
on the interfaces (they survive even where `ip netns exec` threw the pins' mount away), else by the pins. Programs are
always loaded afresh, onto the running tables, and take the place of the old ones in one step: an upgrade and a restart
are the same thing. Egress hooks stand before the gate does, so no download is free because the order was wrong.

Only an upgrade that changes LAYOUT needs new tables, too. `end_former` stops the contracts of the old ones and reads
what they used; when the ledger has that, `set_up` puts new programs and empty tables in their place. The old programs
stay where they are until then, and refuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ngp.core.messages import Address
from ngp.errors import KernelError
from ngp.modules.bpf import Table, library
from ngp.modules.network import bpf, former, gate, hooks, layout, sides
from ngp.modules.network import check as host_check
from ngp.modules.network.alarm import Alarm
from ngp.modules.network.find import close_tables, find_running
from ngp.modules.network.gate import Gate, GatePaths
from ngp.modules.network.hints import HintReader
from ngp.modules.network.hooks import Direction
from ngp.modules.network.host import Host
from ngp.modules.network.layout import Counter
from ngp.modules.network.meter import GATE_PROGRAMS, Meter, read_families, read_interfaces, read_sells
from ngp.modules.network.queue import HeldQueue, try_number
from ngp.modules.network.settle import ProgramsWait, Settling
from ngp.ports import (
    AccountLimit,
    AccountReading,
    Adopted,
    Check,
    DesiredNetwork,
    FreeRule,
    Grant,
    HeldPacket,
    Hint,
    KernelNeighbour,
    KernelState,
    Reading,
    Verdict,
)

_HELD_MAX_AGE_S = 10.0  # a backstop: the core decides long before
_EXPIRE_EVERY_S = 1.0


_log = logging.getLogger("ngp")


def _size_text(size: int, wanted: int) -> str:
    return f"the running meter has room for {size} contracts; CONTRACTS_MAX {wanted} counts after: ngp stop; ngp start"


class Datapath:
    """Gates, meters and cuts IP traffic (`ngp.network` port).

    Args:
        state_dir: the BPF file system is mounted below it.
        use_tcx: None: where the kernel has it.
    """

    def __init__(self, state_dir: Path, use_tcx: bool | None = None) -> None:
        self._folder = state_dir.absolute() / "bpf"
        self._use_tcx = use_tcx
        self._paths = GatePaths(*(self._folder / name for name in GATE_PROGRAMS))
        self._host: Host | None = None
        self._running: Meter | None = None
        self._gate: Gate | None = None
        self._queue: HeldQueue | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_held: Callable[[HeldPacket], None] | None = None
        self._hints: HintReader | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._alarm: Alarm | None = None
        self._wait: ProgramsWait | None = None
        self._settling = Settling(self._wait_for_programs)
        self._gate_restored = 0
        self._left_out: tuple[FreeRule, ...] = ()
        self._runs_beside: DesiredNetwork | None = None
        self._former_ended = False

    def mesh_interfaces(self, patterns: Sequence[str], ignored: Sequence[str]) -> tuple[str, ...]:
        """Return the interfaces that exist now and that MESH_INTERFACES means, sorted. Raises KernelError."""
        host = self._open_host()
        host.forget()
        return host.mesh_interfaces(patterns, ignored)

    def left_out(self, patterns: Sequence[str], ignored: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return those that MESH_INTERFACES means and that can't be mesh interfaces: why, and what to do, by name."""
        return self._open_host().left_out(patterns, ignored)

    def other_interfaces(
        self, mesh: Sequence[str], lan: Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the interfaces that aren't mesh: those that are ours, and which of the others lead somewhere now."""
        host = self._open_host()
        host.forget()
        found = sides.look(host, mesh)
        ours = sides.lan_of(found, lan)
        return ours, sides.upstream_of(found, ours)

    def local_addresses(self) -> tuple[Address, ...]:
        """Return this host's own addresses, both families; no loopback and no link-local ones. Raises KernelError."""
        return self._open_host().local_addresses()

    def watch(
        self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None], on_touched: Callable[[], None]
    ) -> None:
        """Call on_change in the loop after links, addresses or routes changed, some times a second at most.

        on_touched is called at once after anybody changed the firewall's table or the hooks that we stand in, but takes
        no more than a tenth of the loop's time; the legacy tables announce no change.
        """
        self.stop_watching()
        self._open_host().watch(loop, on_change)
        self._alarm = Alarm(loop, on_touched)

    def stop_watching(self) -> None:
        """End `watch`; safe to call twice."""
        if self._host is not None:
            self._host.stop_watching()
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None

    def check(self, desired: DesiredNetwork) -> list[Check]:
        """Say what this host can do and what is missing; touches nothing."""
        lines = host_check.check(desired)
        try:
            library()
            tcx = hooks.has_tcx()
            lines.append(Check("hook", True, "tcx" if tcx else "clsact (tcx comes with Linux 6.6)"))
            lines.append(Check("meter", True, "runs") if self._in_force() else host_check.meter(desired))
        except KernelError as error:
            lines.append(Check("libbpf", False, str(error), "apt install libbpf1"))
        try:
            gate.gate_chains(desired, self._paths)
        except KernelError as error:
            lines.append(Check("gate", False, str(error), "correct net.conf, or --state-dir"))
        lines.extend(self._check_running(desired))
        return lines

    def look(self, desired: DesiredNetwork, most_s: float) -> list[Check]:
        """Say what of `check` may come and go and costs little to ask for; touches nothing."""
        return host_check.look(desired, most_s)

    def beside(self) -> Datapath:
        """Return one for the questions of another thread, since a `Host` is one thread's; it knows what runs here."""
        other = Datapath(self._folder.parent, self._use_tcx)
        other._runs_beside = self._in_force()
        return other

    def taken(self, desired: DesiredNetwork) -> list[Check]:
        """Say whether another program has the queue; the number that we have ourselves isn't asked for."""
        runs = self._in_force()
        ours = runs is not None and runs.queue_number == desired.queue_number
        return [] if ours else [try_number(desired.queue_number)]

    def refuse(self, desired: DesiredNetwork) -> None:
        """Raise KernelError where this host lets traffic past the meter, or gates what isn't forwarded."""
        host_check.refuse(desired)

    def kernel_state(self) -> KernelState:
        """Return which parts of ngp are in the kernel; touches nothing. Raises KernelError, also without root."""
        if os.geteuid() != 0:  # else the kernel would hide the programs, as if none of ours were loaded
            raise KernelError("only root can see what ngp has in the kernel; use sudo")
        tables = find_running(self._folder)
        meter, sells = bool(tables), read_sells(tables)
        close_tables(tables)
        chains = gate.entered()
        return KernelState(meter, sells, gate.GATE in chains, gate.CLOSED in chains)

    def end_former(self, desired: DesiredNetwork | None) -> list[Reading] | None:
        """Let nothing more pass on the contracts of another version's meter; return what they used, None if none runs.

        The same again until `set_up` or `clean_up` takes that meter away, which is to happen when this is booked.
        Args: desired: what `set_up` will be called with; first it is seen whether the kernel takes our programs.
        Raises: KernelError; also where that version isn't known.
        """
        tables = find_running(self._folder)
        try:
            if not former.is_former(tables):
                return None
            ours = host_check.meter(desired) if desired is not None else None
            if ours is not None and not ours.ok:
                raise KernelError(ours.found)
            with contextlib.closing(ProgramsWait()) as programs:
                readings = former.last_readings(tables, programs.wait)
        finally:
            close_tables(tables)
        self._former_ended = True
        return readings

    def set_up(self, desired: DesiredNetwork) -> Adopted:
        """Load and attach, or adopt what a killed daemon left running. Raises KernelError and then leaves nothing.

        What it adopted goes on running even when it raises, and what was closed before is closed again. Of an adopted
        account `spent` is read first, then every processor has left the programs, then its contracts are read.
        """
        tables = find_running(self._folder)
        was_closed = gate.CLOSED in gate.entered()
        try:
            tables, interfaces = self._let_go_of_former(tables)
            bpf.mount_bpffs(self._folder)
            self._running = Meter(tables, desired, self._folder, self._index_of)
            self._running.take_over(interfaces)
            self._wait = ProgramsWait()
            accounts = self._running.accounts.adopt(self._wait.wait)
            adopted = Adopted(tuple(accounts), tuple(self._running.contracts.adopt()))
            if self._running.contracts.slots_max != desired.contracts_max:
                _log.warning("%s", _size_text(self._running.contracts.slots_max, desired.contracts_max))
            self._gate = Gate(self._paths, desired)
            self._bring_about(desired, programs_changed=True)
        except KernelError:
            self.close()
            close_tables(tables)
            if not tables:
                self.clean_up(leave_closed=was_closed)
            raise
        return adopted

    def apply(self, desired: DesiredNetwork) -> bool:
        """Make the kernel match; repeatable; adds before it deletes.

        Returns: whether the gate, wanted as before, had been changed by somebody else.
        """
        as_before = desired == self._required().desired
        restored = self._bring_about(desired, programs_changed=False) and as_before
        self._gate_restored += restored
        return restored

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        on_held: Callable[[HeldPacket], None],
        on_hints: Callable[[Sequence[Hint]], None],
    ) -> None:
        """Begin to receive held packets and hints in the event loop. Raises KernelError."""
        running = self._required()
        self._loop, self._on_held = loop, on_held
        self._hints = HintReader(running.tables[layout.HINTS], running.contracts, running.accounts, loop, on_hints)
        self._match_queue(running.desired)
        self._timer = loop.call_later(_EXPIRE_EVERY_S, self._expire)

    def set_neighbours(self, neighbours: Sequence[KernelNeighbour]) -> None:
        """Add or change neighbours."""
        running = self._required()
        running.neighbours.set(neighbours, running.contracts)

    def forget_neighbours(self, neighbours: Sequence[int]) -> None:
        """Remove neighbours by number."""
        running = self._required()
        running.neighbours.forget(neighbours, running.contracts)

    def limit_accounts(self, limits: Sequence[AccountLimit]) -> None:
        """Create or change clients' accounts; raises KernelError when the table is full."""
        self._required().accounts.limit(limits)

    def forget_accounts(self, accounts: Sequence[bytes]) -> None:
        """Take accounts without contracts out of the kernel; unknown ones are passed over."""
        self._required().accounts.forget(accounts)

    def grant(self, grants: Sequence[Grant]) -> None:
        """Create or change contracts; raises KernelError when the table is full, naming CONTRACTS_MAX.

        Also where a grant's account isn't known.
        """
        self._required().contracts.grant(grants)

    def block_all(self) -> None:
        """Let nothing more pass on any contract, until it is granted again."""
        self._required().contracts.block_all()

    async def settled(self) -> None:
        """Return when every packet that was on its way through the meter has left it: what is read then is final."""
        self._required()
        await self._settling.settled()

    def revoke(self, contracts: Sequence[bytes]) -> None:
        """Take contracts out of the kernel; who wants their last readings blocks, waits and reads first."""
        self._required().contracts.revoke(contracts)

    def read(self, contracts: Sequence[bytes] | None = None) -> list[Reading]:
        """Read counters; None: only those that changed since the last call with None."""
        return self._required().contracts.read(contracts)

    def read_accounts(self, accounts: Sequence[bytes] | None = None) -> list[AccountReading]:
        """Read accounts; None: only those that changed since the last call with None."""
        return self._required().accounts.read(accounts)

    def verdict(self, handle: int, verdict: Verdict) -> None:
        """Decide about a held packet; a handle already decided is passed over."""
        if self._queue is not None:
            self._queue.verdict(handle, verdict)

    def lane_bytes(self, neighbour: int) -> int:
        """Return what a neighbour exchanged with payment services, both directions; 0 where it isn't known."""
        return self._required().neighbours.lane_bytes(neighbour)

    def counters(self) -> dict[str, int]:
        """Return kernel and queue counters, in packets: held, dropped, hints_lost, refused_exhausted, ...

        Besides gate_restored: how often the gate was put back.
        """
        counts = {"held": 0, "dropped": 0, "gate_restored": self._gate_restored}
        if self._running is not None:
            table = self._running.tables[layout.COUNTERS]
            for counter in Counter:
                value = table.get(struct.pack("=I", counter)) or b""
                counts[counter.name.lower()] = sum(struct.unpack(f"={len(value) // 8}Q", value))
        return counts | (self._queue.counters() if self._queue is not None else {})

    def describe(self) -> dict[str, str]:
        """Return which interception, hook and object are in use, for status."""
        running = self._required()
        size, wanted = running.contracts.slots_max, running.desired.contracts_max
        return {
            "interception": self._gate.describe() if self._gate is not None else "none",
            "hook": "tcx" if running.use_tcx(self._use_tcx) else "clsact",
            "object": str(bpf.object_path()),
            "pins": str(self._folder),
            "contracts": f"{len(running.contracts)} of {running.contracts.slots_max}",
            "accounts": f"{len(running.accounts)} of {running.accounts.slots_max - 1}",
            **({} if size == wanted else {"contracts_max": _size_text(size, wanted)}),
        }

    def close(self) -> None:
        """Let go of sockets and descriptors; the kernel goes on gating, metering and cutting."""
        self.stop_watching()
        if self._timer is not None:
            self._timer.cancel()
        if self._queue is not None:
            self._queue.close()
        if self._hints is not None:
            self._hints.close()
        if self._running is not None:
            self._running.close()
        if self._wait is not None:
            self._wait.close()
        if self._host is not None:
            self._host.close()
        self._host = self._queue = self._hints = self._running = self._wait = self._gate = self._timer = None

    def shut(self, mesh: Sequence[str], ignored: Sequence[str], families: Iterable[int]) -> None:
        """Drop what is forwarded from or to mesh interfaces, by names and patterns, until `set_up` or `clean_up`.

        Raises: KernelError; also where a meter stands, whose gate this would take away.
        """
        if self.kernel_state().meter:
            raise KernelError("a meter stands in this network namespace, by a daemon that runs or was killed; ngp stop")
        gate.shut(mesh, ignored, families)

    def clean_up(self, leave_closed: bool) -> None:
        """Remove all that ngp made and nothing else; needs no memory of what was set. Safe to call twice.

        With `leave_closed` a rule stays that drops forwarded traffic of the mesh interfaces (WHEN_STOPPED: closed).
        """
        tables = find_running(self._folder)
        interfaces = read_interfaces(tables)
        families = read_families(tables)
        close_tables(tables)
        self.close()
        names = {index: name for index, name in socket.if_nameindex()}
        mesh = sorted(names[index] for index, flags in interfaces.items() if flags & layout.MESH and index in names)
        gate.clean_up(leave_closed, mesh, families)
        for index in names:
            for direction in Direction:
                hooks.detach(index, direction)
            if interfaces.get(index, 0) & layout.MADE_CLSACT:
                hooks.remove_clsact(index)
        bpf.unmount_bpffs(self._folder, (layout.TABLES_BEGIN, layout.GATE_PROGRAMS_BEGIN))

    # --- inside ---

    def _check_running(self, desired: DesiredNetwork) -> list[Check]:
        """Look at a running meter: whether it is one to go on with, and compare its table with CONTRACTS_MAX."""
        try:
            tables = find_running(self._folder)
        except KernelError as error:
            return [Check("contracts", False, str(error), "run as root")]
        try:
            if former.is_former(tables):
                return [Check("contracts", True, "of another version of ngp; a start books and takes over what runs")]
        except KernelError as error:
            return [Check("contracts", False, str(error), former.HOW_TO_END)]
        finally:
            size = tables[layout.CONTRACTS].entries if layout.CONTRACTS in tables else desired.contracts_max
            close_tables(tables)
        if size == desired.contracts_max:
            return []
        return [Check("contracts", True, _size_text(size, desired.contracts_max), "ngp stop; ngp start")]

    def _open_host(self) -> Host:
        if self._host is None:
            self._host = Host()
        return self._host

    def _in_force(self) -> DesiredNetwork | None:
        """Return what this daemon has set up, here or in the one that this one stands beside."""
        return self._running.desired if self._running is not None else self._runs_beside

    def _required(self) -> Meter:
        if self._running is None:
            raise KernelError("the datapath is not set up; ngp start does it")
        return self._running

    def _index_of(self, name: str) -> int | None:
        try:
            return socket.if_nametoindex(name)
        except OSError:
            return None

    def _wait_for_programs(self) -> None:
        wait = self._wait
        if wait is not None:
            wait.wait()

    def _let_go_of_former(self, tables: dict[str, Table]) -> tuple[dict[str, Table], dict[int, int]]:
        """Return what of running tables is to be adopted, and the interfaces of a former meter; unpin its tables.

        Its programs stay where they hang, and refuse, until ours take their place.
        """
        if not former.is_former(tables):
            return tables, {}
        if not self._former_ended:
            raise KernelError("what another version's meter counted isn't booked; this is a defect of ngp, report it")
        interfaces = read_interfaces(tables)
        close_tables(tables)
        for path in bpf.pins(self._folder, layout.TABLES_BEGIN):  # else a start might find some of theirs and of ours
            path.unlink(missing_ok=True)
        self._former_ended = False
        return {}, interfaces

    def _bring_about(self, desired: DesiredNetwork, programs_changed: bool) -> bool:
        """Make the kernel match; return whether the gate had to be changed."""
        running, host = self._required(), self._open_host()
        if self._gate is None:
            raise KernelError("the datapath is not set up; ngp start does it")
        self._tell_left_out(desired)
        host.forget()
        running.widen(desired, host)
        running.hook(desired, self._use_tcx)
        changed = self._gate.apply(desired, programs_changed)
        running.narrow(desired)
        if self._loop is not None:
            self._match_queue(desired)
        return changed

    def _tell_left_out(self, desired: DesiredNetwork) -> None:
        """Log, once while it lasts, which services have no room; `ngp check` says it as well."""
        missing = layout.left_out(desired.free, desired.services, desired.own_services) if desired.sells else ()
        if missing and missing != self._left_out:
            named = ", ".join(map(host_check.service_name, missing))
            _log.warning("%s: left out, as %s; %s", named, host_check.NO_ROOM, host_check.LESS)
        self._left_out = missing

    def _match_queue(self, desired: DesiredNetwork) -> None:
        """Hold the queue open exactly while we sell."""
        if desired.sells and self._queue is None and self._loop is not None:
            self._queue = HeldQueue(
                desired.queue_number, self._held, self._open_host().has_link_addresses, self._required().sent_to
            )
            try:
                self._queue.start(self._loop)
            except KernelError:
                self._queue = None
                raise
        elif not desired.sells and self._queue is not None:
            self._queue.close()
            self._queue = None

    def _held(self, packet: HeldPacket) -> None:
        if self._on_held is None:
            return
        try:
            route = self._open_host().route_prefix(packet.destination)
        except KernelError:
            route = None
        self._on_held(replace(packet, route=route))

    def _expire(self) -> None:
        if self._queue is not None:
            self._queue.expire(_HELD_MAX_AGE_S)
        if self._running is not None:
            self._running.flows.sweep()
        if self._loop is not None:
            self._timer = self._loop.call_later(_EXPIRE_EVERY_S, self._expire)
