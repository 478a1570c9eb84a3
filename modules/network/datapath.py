"""Datapath: the network port. The meter's programs and tables, the gate that asks them, and the queue of held packets.

The kernel goes on alone when the daemon dies. So `set_up` first looks for a running meter: by the programs on the
interfaces (which survive even if `ip netns exec` threw the mount with the pins away), else by the pins. The programs
are always loaded anew, onto the running tables, and replace the old programs in one step. So a restart and an upgrade
take the same steps. Egress programs are attached before the gate is set up, so no download ever passes unmetered.

Only an upgrade that changes LAYOUT also needs new tables. `end_former` stops the contracts of the old tables and reads
what they used. When the ledger has stored that, `set_up` replaces programs and tables. Until then the old programs stay
attached, and let nothing pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ngp.core.kernel import (
    UNKNOWN_ROUTER,
    AccountLimit,
    AccountReading,
    Adopted,
    Grant,
    HeldPacket,
    Hint,
    KernelNeighbour,
    MeshRoutes,
    Onward,
    Reading,
    Verdict,
)
from ngp.core.messages import Address, Prefix
from ngp.core.prefixes import PackedPrefix, sample
from ngp.core.values import Check
from ngp.errors import KernelError
from ngp.modules.bpf import Table, library
from ngp.modules.network import bpf, echo, former, gate, hooks, layout, services
from ngp.modules.network import check as host_check
from ngp.modules.network.find import close_tables, find_running
from ngp.modules.network.forks import Forks
from ngp.modules.network.gate import Gate, GatePaths
from ngp.modules.network.hints import HintReader
from ngp.modules.network.hooks import Direction
from ngp.modules.network.host_questions import HostQuestions
from ngp.modules.network.layout import Counter
from ngp.modules.network.meter import GATE_PROGRAMS, Meter, read_families, read_interfaces, read_sells
from ngp.modules.network.queue import HeldQueue, try_number
from ngp.modules.network.settle import ProgramsWait, Settling
from ngp.ports.network import DesiredNetwork, FreeRule, HostBytes, KernelState

_HELD_MAX_AGE_S = 10.0  # packets held for longer are dropped; a safeguard, as the core decides long before
_EXPIRE_EVERY_S = 1.0


_log = logging.getLogger("ngp")


def _total(table: Table, counter: Counter) -> int:
    """Add up a counter of all processors."""
    value = table.get(struct.pack("=I", counter)) or b""
    return sum(struct.unpack(f"={len(value) // 8}Q", value))


def _size_text(size: int, wanted: int) -> str:
    return f"the running meter has room for {size} contracts; CONTRACTS_MAX {wanted} counts after: ngp stop; ngp start"


class Datapath(HostQuestions):
    """Gates, meters and cuts IP traffic (`ngp.network` port).

    Args:
        state_dir: the BPF file system is mounted below it.
        use_tcx: whether to attach by tcx; None: if the kernel has tcx.
    """

    def __init__(self, state_dir: Path, use_tcx: bool | None = None) -> None:
        super().__init__()
        self._folder = state_dir.absolute() / "bpf"
        self._use_tcx = use_tcx
        self._paths = GatePaths(*(self._folder / name for name in GATE_PROGRAMS))
        self._running: Meter | None = None
        self._gate: Gate | None = None
        self._queue: HeldQueue | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_held: Callable[[HeldPacket], None] | None = None
        self._hints: HintReader | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wait: ProgramsWait | None = None
        self._settling = Settling(self._wait_for_programs)
        self._gate_restored = 0
        self._left_out: tuple[FreeRule, ...] = ()
        self._runs_beside: DesiredNetwork | None = None
        self._former_ended = False
        self._unsold: dict[bytes, int] = {}

    def check(self, desired: DesiredNetwork) -> list[Check]:
        """Say what this host can do and what is missing; changes nothing."""
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

    def beside(self) -> Datapath:
        """Return a second Datapath for another thread, with its own `Host`; it knows the settings in force here."""
        other = Datapath(self._folder.parent, self._use_tcx)
        other._runs_beside = self._in_force()
        return other

    def taken(self, desired: DesiredNetwork) -> list[Check]:
        """Check that no other program has our NFQUEUE number; nothing is tried if we have the number ourselves."""
        runs = self._in_force()
        ours = runs is not None and runs.queue_number == desired.queue_number
        return [] if ours else [try_number(desired.queue_number)]

    def kernel_state(self) -> KernelState:
        """Return which parts of ngp are in the kernel; changes nothing. Raises KernelError, also if we aren't root."""
        if os.geteuid() != 0:  # without root the kernel hides our programs, as if none were loaded
            raise KernelError("only root can see what ngp has in the kernel; use sudo")
        tables = find_running(self._folder)
        meter, sells = bool(tables), read_sells(tables)
        close_tables(tables)
        chains = gate.entered()
        return KernelState(meter, sells, gate.GATE in chains, gate.CLOSED in chains)

    def end_former(self, desired: DesiredNetwork | None) -> list[Reading] | None:
        """Stop the contracts of another version's meter, and return what they used; None if no such meter runs.

        Another call returns the same readings, until `set_up` or `clean_up` removes that meter. Remove it only when the
        readings are in the ledger.

        Args: desired: what `set_up` will be called with. If the kernel doesn't accept our programs, nothing is stopped.
        Raises: KernelError; also if that version isn't known.
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
        """Load and attach the programs, or adopt what a killed daemon left running. Raises KernelError.

        If this raises, nothing that it made is left; what was adopted goes on running; and if forwarding was closed
        (WHEN_STOPPED: closed), it is closed again. Adopting reads each account's `spent`, waits until every packet has
        left the programs, and then reads the contracts.
        """
        tables = find_running(self._folder)
        was_closed = gate.CLOSED in gate.entered()
        try:
            tables, interfaces = self._release_former(tables)
            bpf.mount_bpffs(self._folder)
            self._running = Meter(tables, desired, self._folder, self._index_of)
            self._running.take_over(interfaces)
            self._wait = ProgramsWait()
            self.unsold_by_purchase()  # what was counted before isn't news
            at_ns = time.monotonic_ns()
            accounts = self._running.accounts.adopt(self._wait.wait, at_ns)
            contracts, room = self._running.contracts.adopt(at_ns), self._running.contracts.slots_max
            adopted = Adopted(tuple(accounts), tuple(contracts), at_ns / 1e9, room)
            if self._running.contracts.slots_max != desired.contracts_max:
                _log.warning("%s", _size_text(self._running.contracts.slots_max, desired.contracts_max))
            self._gate = Gate(self._paths, desired)
            self._make_match(desired, programs_changed=True)
        except KernelError:
            self.close()
            close_tables(tables)
            if not tables:
                self.clean_up(leave_closed=was_closed)
            raise
        return adopted

    def apply(self, desired: DesiredNetwork) -> bool:
        """Make the kernel match `desired`. May be repeated; adds before it deletes.

        Returns: True if somebody else had changed the gate, so that it had to be repaired though `desired` is as
            before.
        """
        running = self._required()
        before = running.desired, running.rewrites
        restored = self._make_match(desired, programs_changed=False) and before == (desired, running.rewrites)
        self._gate_restored += restored
        return restored

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        on_held: Callable[[HeldPacket], None],
        on_hints: Callable[[Sequence[Hint]], None],
    ) -> None:
        """From now on, call `on_held` and `on_hints` in the event loop.

        Args:
            on_held: called for each packet that the kernel holds.
            on_hints: called with the kernel's reports: a contract or account is nearly used up or refused a packet, or
                there is traffic for which we should ask for a contract.
        Raises: KernelError.
        """
        running = self._required()
        self._loop, self._on_held = loop, on_held
        self._hints = HintReader(running.tables[layout.HINTS], running.contracts, running.accounts, loop, on_hints)
        self._open_or_close_queue(running.desired)
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
        """Create or change clients' accounts. Raises KernelError if the table is full."""
        self._required().accounts.limit(limits)

    def forget_accounts(self, accounts: Sequence[bytes]) -> None:
        """Take accounts without contracts out of the kernel; unknown ones are ignored."""
        self._required().accounts.forget(accounts)

    def grant(self, grants: Sequence[Grant]) -> None:
        """Create or change contracts.

        Raises: KernelError, which names CONTRACTS_MAX if the table is full; also if a grant's account isn't known.
        """
        self._required().contracts.grant(grants)

    def set_elsewhere(self, prefixes: Collection[Prefix]) -> None:
        """Except these prefixes and no others from contracts for default routes that we resell. Raises KernelError."""
        running = self._required()
        for version, name in layout.ELSEWHERE.items():
            wanted = [layout.elsewhere_key(prefix) for prefix in prefixes if prefix.version == version]
            running.tables[name].set_many(wanted, [layout.ELSEWHERE_VALUE] * len(wanted))
            for key in set(running.tables[name].all_keys()).difference(wanted):
                running.tables[name].delete(key)

    def unsold_bytes(self) -> int:
        """Return the bytes that came from the mesh to neighbours that didn't buy them, since the tables were made."""
        return _total(self._required().tables[layout.COUNTERS], Counter.UNSOLD_BYTES)

    def unsold_by_purchase(self) -> dict[bytes, int]:
        """Return such bytes, by the purchases by which they came, since the last such call or `set_up`.

        The kernel remembers the purchases that lost something last, and begins anew when one comes back.
        Raises: KernelError.
        """
        before, table = self._unsold, self._required().tables[layout.UNSOLD]
        self._unsold = {contract: int.from_bytes(value, sys.byteorder) for contract, value in table.items()}
        grown = ((one, now, before.get(one, 0)) for one, now in self._unsold.items() if now != before.get(one))
        return {contract: now - was if now > was else now for contract, now, was in grown}

    def block_all(self) -> None:
        """Let nothing more pass on any contract until it is granted again."""
        self._required().contracts.block_all()

    async def settled(self) -> None:
        """Return when every packet that is now on its way through the meter has left it; readings are final then."""
        self._required()
        await self._settling.settled()

    def revoke(self, contracts: Sequence[bytes]) -> None:
        """Take contracts out of the kernel. For their last readings first block them, await `settled`, and read."""
        self._required().contracts.revoke(contracts)

    def read(self, contracts: Sequence[bytes] | None = None) -> list[Reading]:
        """Read contracts. Args: contracts: which ones; None: those that changed since the last call with None."""
        return self._required().contracts.read(contracts)

    def read_accounts(self, accounts: Sequence[bytes] | None = None) -> list[AccountReading]:
        """Read accounts. Args: accounts: which ones; None: those that changed since the last call with None."""
        return self._required().accounts.read(accounts)

    def sends_to(self, links: Mapping[int, tuple[str, bytes]], destination: Prefix) -> Prefix | None:
        """Return the part of a destination to which our traffic goes through a neighbour; None if there is none.

        Args: links: interface and link address of each link of the neighbour, by the link's number.
        """
        contracts = self._required().contracts
        try:
            leads = self._open_host().leads_to(destination, links.values())
        except KernelError:
            return None
        if leads is not None:
            return destination if leads else None
        return contracts.sent_lately(links, destination)

    def onward(self, destination: Address, anew: bool = False) -> Onward:
        """Say where packets to a destination go on from here; as if they left the mesh, if the kernel doesn't say.

        Args: anew: ask the kernel, though the answer may be remembered for some seconds.
        """
        try:
            return self._open_host().onward(destination, self._required().desired.mesh_interfaces, anew)
        except KernelError:
            return Onward()

    def onward_whole(self, destination: Prefix, fresh: bool = False) -> Onward:
        """Say where packets to a destination go on from here, asked anew, and where those to parts of it do."""
        mesh = self._required().desired.mesh_interfaces
        found = self.onward(sample(destination), anew=True)
        if not PackedPrefix.of(destination).is_network:
            return found
        try:
            return replace(found, inside=self._open_forks().inside(destination, mesh, fresh))
        except KernelError:
            return replace(found, inside=(UNKNOWN_ROUTER,))

    def mesh_routes(self) -> tuple[MeshRoutes, ...]:
        """Return this host's routes that lead to other routers in the mesh, by IP version. Raises KernelError."""
        desired = self._required().desired
        self._open_host().forget()
        return tuple(
            self._open_forks().mesh_routes(version, desired.mesh_interfaces) for version in sorted(desired.families)
        )

    def uncovered(self) -> list[tuple[int, Address, float]]:
        """Return what we sent to sellers without a contract: the link's number, the destination, and its age in s."""
        return self._required().contracts.uncovered()

    def ask_echo(self, destination: Address) -> None:
        """Send an echo request to a destination; one that can't be sent is lost, like any packet."""
        with contextlib.suppress(OSError):
            echo.ask(destination)

    def inside(self, most: int) -> dict[bytes, list[HostBytes]]:
        """Return, by contract for several addresses, those in it with the most bytes, of all that were used last."""
        return self._required().contracts.inside(most)

    def verdict(self, handle: int, verdict: Verdict) -> None:
        """Decide about a held packet; ignored if the packet was decided about before."""
        if self._queue is not None:
            self._queue.verdict(handle, verdict)

    def lane_bytes(self, neighbour: int) -> int:
        """Return the bytes that a neighbour exchanged with payment services, both directions; 0 if it has no lane."""
        return self._required().neighbours.lane_bytes(neighbour)

    def counters(self) -> dict[str, int]:
        """Return kernel and queue counters, in packets: held, dropped, hints_lost, refused_exhausted, ...

        `gate_restored` doesn't count packets, but how often the gate was put back.
        """
        counts = {"held": 0, "dropped": 0, "gate_restored": self._gate_restored}
        if self._running is not None:
            table = self._running.tables[layout.COUNTERS]
            for counter in Counter:
                counts[counter.name.lower()] = _total(table, counter)
        return counts | (self._queue.counters() if self._queue is not None else {})

    def describe(self) -> dict[str, str]:
        """Return, for status, which iptables, hook and object file are in use, and how full the tables are."""
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
        """Close sockets and descriptors; the kernel goes on gating, metering and cutting."""
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
        self.close_host()
        self._queue = self._hints = self._running = self._wait = self._gate = self._timer = None

    def shut(self, mesh: Sequence[str], ignored: Sequence[str], families: Iterable[int]) -> None:
        """Drop traffic that is forwarded from or to mesh interfaces until `set_up` or `clean_up`.

        Args: mesh, ignored: names and patterns.
        Raises: KernelError; also if a meter is running, whose gate this would remove.
        """
        if self.kernel_state().meter:
            raise KernelError("this network namespace has a meter, of a daemon that runs or was killed; ngp stop")
        gate.shut(mesh, ignored, families)

    def clean_up(self, leave_closed: bool) -> None:
        """Remove all that ngp made, and nothing else. Finds it without a record of what was made. Safe to call twice.

        `leave_closed` leaves a rule that drops forwarded traffic of the mesh interfaces (WHEN_STOPPED: closed).
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
        Forks(self._open_host()).clean_up()
        self.close_host()
        bpf.unmount_bpffs(self._folder, (layout.TABLES_BEGIN, layout.GATE_PROGRAMS_BEGIN))

    # --- inside ---

    def _check_running(self, desired: DesiredNetwork) -> list[Check]:
        """Say whether a running meter can be adopted, and whether its size is CONTRACTS_MAX."""
        try:
            tables = find_running(self._folder)
        except KernelError as error:
            return [Check("contracts", False, str(error), "run as root")]
        try:
            if former.is_former(tables):
                return [Check("contracts", True, "of another version of ngp; a start charges them and takes them over")]
        except KernelError as error:
            return [Check("contracts", False, str(error), former.HOW_TO_END)]
        finally:
            size = tables[layout.CONTRACTS].entries if layout.CONTRACTS in tables else desired.contracts_max
            close_tables(tables)
        if size == desired.contracts_max:
            return []
        return [Check("contracts", True, _size_text(size, desired.contracts_max), "ngp stop; ngp start")]

    def _in_force(self) -> DesiredNetwork | None:
        """Return the settings in force: those of this Datapath, or of the one that this was made `beside`."""
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

    def _release_former(self, tables: dict[str, Table]) -> tuple[dict[str, Table], dict[int, int]]:
        """If the running tables are those of another version's meter, unpin and close them.

        That meter's programs stay attached, and let nothing pass, until ours replace them.

        Returns: the tables that this version can adopt (none of another version's), and the interfaces of the other
            version's meter (flags by index; empty if there is no such meter).
        Raises: KernelError.
        """
        if not former.is_former(tables):
            return tables, {}
        if not self._former_ended:
            raise KernelError(
                "another version's meter was counted, not charged; this is a defect of ngp, please report it"
            )
        interfaces = read_interfaces(tables)
        close_tables(tables)
        for path in bpf.pins(self._folder, layout.TABLES_BEGIN):  # else a later start may find old and new tables mixed
            path.unlink(missing_ok=True)
        self._former_ended = False
        return {}, interfaces

    def _make_match(self, desired: DesiredNetwork, programs_changed: bool) -> bool:
        """Make the kernel match `desired`; return whether the gate had to be changed."""
        running, host = self._required(), self._open_host()
        if self._gate is None:
            raise KernelError("the datapath is not set up; ngp start does it")
        self._warn_of_left_out(desired)
        host.forget()
        running.widen(desired, host)
        running.hook(desired, self._use_tcx)
        changed = self._gate.apply(desired, programs_changed, running.rewrites)
        running.narrow(desired)
        if self._loop is not None:
            self._open_or_close_queue(desired)
        return changed

    def _warn_of_left_out(self, desired: DesiredNetwork) -> None:
        """Warn of payment services for which there is no room, once for each set of them; `ngp check` does so too."""
        missing = layout.left_out(desired.free, desired.services, desired.own_services) if desired.sells else ()
        if missing and missing != self._left_out:
            named = ", ".join(map(services.name_of, missing))
            _log.warning("%s: left out, as %s; %s", named, services.NO_ROOM, services.LESS)
        self._left_out = missing

    def _open_or_close_queue(self, desired: DesiredNetwork) -> None:
        """Open the queue if we sell and it isn't open; close it if we don't sell."""
        if desired.sells and self._queue is None and self._loop is not None:
            running, has_link_addresses = self._required(), self._open_host().has_link_addresses
            self._queue = HeldQueue(
                desired.queue_number, self._held, has_link_addresses, running.sent_to, running.has_paid
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
        self._on_held(replace(packet, onward=self.onward(packet.destination)))

    def _expire(self) -> None:
        if self._queue is not None:
            self._queue.expire(_HELD_MAX_AGE_S)
        if self._running is not None:
            self._running.neighbours.enter_own(self._running.contracts)
            self._running.sweep_flows(time.monotonic())
        if self._loop is not None:
            self._timer = self._loop.call_later(_EXPIRE_EVERY_S, self._expire)
