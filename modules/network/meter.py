"""The loaded meter: its programs and tables, and what they are told about interfaces, free traffic and rates.

A change of settings has four steps, in an order that never leaves a packet unmetered. `widen` tells the kernel what is
new. `hook` attaches programs. Then the caller changes the gate. At last `narrow` removes what is no longer wanted.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

from ngp.core.messages import Address, Role
from ngp.errors import MomentError
from ngp.modules.bpf import Programs, Table, library, require
from ngp.modules.network import bpf, flows, hooks, layers, layout, rewrites
from ngp.modules.network.accounts import AccountTable
from ngp.modules.network.contracts import ContractTable
from ngp.modules.network.flows import FlowSweeper, Rooms
from ngp.modules.network.hooks import Direction
from ngp.modules.network.host import Host
from ngp.modules.network.neighbours import NeighbourTable
from ngp.ports.network import DesiredNetwork, FreeRule

HOLD_WINDOW_NS = 1_000_000_000
HOLD_PACKETS, HOLD_PACKETS_PAID = 8, 64  # held to one destination in a window: of anybody; of those that have paid
_OWN_ADDRESSES_MOST = 4096 * 32  # the daemon knows 4,096 neighbours at a time, and a hello may name 32 addresses
_FLOWS_A_CONTRACT, _FLOWS_LEAST = 4, 1 << 14
GATE_PROGRAMS = (
    *("xt_unpaid_up", "xt_unpaid_mesh", "xt_unpaid_lan", "xt_unknown", "xt_unknown_mesh"),
    *("xt_over_rate", "xt_forged", "xt_unpaid_from", "xt_unpaid_to", "xt_slowed"),
)


class Meter:
    """Programs and tables in the kernel, new or adopted.

    Args:
        adopted: tables of a running meter, which are used again, or none; closed here.
        folder: mounted BPF file system for the pins.
        index_of: returns an interface's index by name, or None if it doesn't exist.
    Raises: KernelError.
    """

    def __init__(
        self,
        adopted: dict[str, Table],
        desired: DesiredNetwork,
        folder: Path,
        index_of: Callable[[str], int | None],
    ) -> None:
        self.desired = desired
        self._index_of = index_of
        self._uppers: set[bytes] = set()
        self._ours: set[bytes] = set()
        self.rewrites = False
        self._rooms = Rooms(0, 0)
        sizes = {} if adopted else table_sizes(desired.contracts_max)
        with contextlib.ExitStack() as undo:
            self.programs = Programs(bpf.object_path(), sizes, adopted)
            undo.callback(self.programs.close)
            self.tables: dict[str, Table] = {}
            for name in layout.TABLES:
                self.tables[name] = self.programs.table(name)
                undo.callback(self.tables[name].close)
            for table in adopted.values():
                table.close()
            self._config = self.tables[layout.CONFIG].map_memory()
            undo.callback(self._config.close)
            self._flags = memoryview(self._config).cast("Q")
            undo.callback(self._flags.release)
            self._rooms = flows.divide(self.tables[layout.FLOWS].entries, 0, 0)
            self._write_config(desired)
            for number in (layout.STRANGERS_LANE, layout.NEWCOMERS_LANE):
                self.tables[layout.LANES].add(struct.pack("=I", number), layout.LANE.pack(0, 0, 0))
            self._bind_and_pin(folder)
            self.neighbours = NeighbourTable(self.tables, index_of, self._show_several_links)
            self.accounts = AccountTable(self.tables)
            undo.callback(self.accounts.close)
            self.flows = FlowSweeper(self.tables, self._flows_of)
            self.contracts = ContractTable(
                self.tables,
                self.accounts,
                self.neighbours.first_of,
                self.neighbours.link_of,
                self.neighbours.is_own,
                self._show_prefixes,
                self._show_purchases,
            )
            self._open = undo.pop_all()

    def take_over(self, interfaces: dict[int, int]) -> None:
        """Store where another version's programs are attached, so that `narrow` removes those that ours don't replace.

        Args: interfaces: flags by index, as `read_interfaces` returns them.
        """
        for index, flags in interfaces.items():
            self._set_interface(index, flags)

    def use_tcx(self, wanted: bool | None) -> bool:
        """Return True for tcx, False for clsact. Args: wanted: None: tcx if the kernel has it."""
        return hooks.has_tcx() if wanted is None else wanted

    def widen(self, desired: DesiredNetwork, host: Host) -> None:
        """Tell the kernel what is new, before any program needs it."""
        self.rewrites = desired.sells and rewrites.may_happen(desired.families)
        self._ours = {layout.our_key(address) for address in host.all_addresses()[: layout.MOST_OURS]}
        self.tables[layout.OURS].set_many(list(self._ours), [bytes(4)] * len(self._ours))
        free = _free_tables(desired)
        known = read_interfaces(self.tables)
        layer3 = False
        lans = {self._require_index(name) for name in filter(self._index_of, desired.lan_interfaces)}
        for index in lans:
            self._set_interface(index, layout.LAN)
        for name in desired.mesh_interfaces:
            index = self._require_index(name)
            flags = layout.MESH
            flags |= layout.LINK_ADDRESSES if host.has_link_addresses(name) else 0
            layer3 |= not flags & layout.LINK_ADDRESSES
            self._set_interface(index, flags | known.get(index, 0) & layout.MADE_CLSACT)
        # Before the gate, which remembers no flows to upstream: their answers from a LAN would count as our purchase.
        for index, flags in read_interfaces(self.tables).items():
            if flags & layout.LAN and index not in lans:
                self.tables[layout.INTERFACES].delete(struct.pack("=I", index))
        for version, entries in free.items():
            self.tables[layout.FREE[version]].set_many(list(entries), list(entries.values()))
        self._uppers = {
            layout.neighbour_key(layout.link_key(index, mac))
            for index, mac in layers.stand_on(host.interfaces(), desired.mesh_interfaces)
        }
        self.tables[layout.UPPERS].set_many(list(self._uppers), [bytes(4)] * len(self._uppers))
        self._write_config(desired)
        self._flags[0] = self._flags[0] & ~layout.ALONE | self._config_flags(desired, layer3)
        self.neighbours.follow(self.contracts)

    def hook(self, desired: DesiredNetwork, use_tcx: bool | None) -> None:
        """Attach the programs to the mesh interfaces."""
        tcx = self.use_tcx(use_tcx)
        wanted = [Direction.OUT, Direction.IN] if desired.buys or self.rewrites else [Direction.OUT]
        for name in desired.mesh_interfaces:
            index = self._require_index(name)
            for direction in wanted:
                if hooks.attach(index, direction, self.programs.program(direction.program), tcx):
                    flags = read_interfaces(self.tables)[index] | layout.MADE_CLSACT
                    self._set_interface(index, flags)

    def narrow(self, desired: DesiredNetwork) -> None:
        """Remove what is no longer wanted."""
        self.desired = desired
        mesh = {self._index_of(name) for name in desired.mesh_interfaces}
        kept = mesh | {self._index_of(name) for name in desired.lan_interfaces}
        existing = {index for index, _ in socket.if_nameindex()}
        for index, flags in read_interfaces(self.tables).items():
            if index in existing and index not in mesh:
                hooks.detach(index, Direction.OUT)
            if index in existing and not (index in mesh and (desired.buys or self.rewrites)):
                hooks.detach(index, Direction.IN)
            if index in existing and index not in mesh and flags & layout.MADE_CLSACT:
                hooks.remove_clsact(index)
            if index not in kept:
                self.tables[layout.INTERFACES].delete(struct.pack("=I", index))
        for version, entries in _free_tables(desired).items():
            table = self.tables[layout.FREE[version]]
            for key in table.all_keys():
                if key not in entries:
                    table.delete(key)
        interfaces = read_interfaces(self.tables)
        layer3 = any(not interfaces.get(index or 0, 0) & layout.LINK_ADDRESSES for index in mesh)
        for name, wanted in ((layout.UPPERS, self._uppers), (layout.OURS, self._ours)):
            for key in self.tables[name].all_keys():
                if key not in wanted:
                    self.tables[name].delete(key)
        stay = self._flags[0] & (layout.PREFIXES_FLAGS | layout.SEVERAL_LINKS | layout.NOTHING_BOUGHT)
        alone = len(desired.mesh_interfaces) == 1 and not desired.lan_interfaces
        self._flags[0] = stay | self._config_flags(desired, layer3) | layout.ALONE * alone

    def close(self) -> None:
        """Release the mapped memory, and close descriptors."""
        self.contracts.close()
        self._open.close()

    def _config_flags(self, desired: DesiredNetwork, layer3: bool) -> int:
        flags = layout.HAS_UPPERS * bool(self._uppers) | layout.REWRITES * self.rewrites
        return _config_flags(desired, layer3) | flags

    def sent_to(self, interface: int, link_address: bytes, payload: bytes) -> Address | None:
        """Return where a held packet was sent if this host has rewritten its destination; else None."""
        if not self.rewrites:
            return None
        key = layout.held_key(self.neighbours.first_link(layout.link_key(interface, link_address)), payload)
        found = self.tables[layout.HELD_FOR].get(key) if key else None
        if found is None:
            return None
        return ip_address(found[:4] if payload[0] >> 4 == 4 else found)

    def sweep_flows(self, now_s: float) -> None:
        """Divide the table of flows among the present payers; remove flows that are old or have no room any more."""
        rooms = flows.divide(self.tables[layout.FLOWS].entries, *self.neighbours.payers())
        if rooms != self._rooms:
            self._rooms = rooms
            at = layout.CONFIG_FLOWS_BITS_AT
            self._config[at : at + 2] = bytes((rooms.paid_bits, rooms.on_grace_bits))
            self.flows.hurry()
        self.flows.sweep(now_s)

    def _flows_of(self, payer: int) -> int:
        if self.neighbours.on_grace(payer):
            return 1 << self._rooms.on_grace_bits
        known = payer in (layout.OUR_FLOWS, layout.STRANGERS_FLOWS) or self.neighbours.is_known(payer)
        return known << self._rooms.paid_bits

    def has_paid(self, interface: int, link_address: bytes) -> bool:
        """Say whether the neighbour on a link has paid us."""
        return self.neighbours.has_paid(layout.link_key(interface, link_address))

    def _show_prefixes(self, role: Role, version: int, any_left: bool) -> None:
        self._show(layout.prefixes_flag(role, version), any_left)

    def _show_purchases(self, any_left: bool) -> None:
        self._show(layout.NOTHING_BOUGHT, not any_left)

    def _show_several_links(self, any_has: bool) -> None:
        self._show(layout.SEVERAL_LINKS, any_has)

    def _show(self, flag: int, is_so: bool) -> None:
        self._flags[0] = self._flags[0] | flag if is_so else self._flags[0] & ~flag

    def _require_index(self, name: str) -> int:
        index = self._index_of(name)
        if index is None:
            raise MomentError(  # it existed when the interfaces were listed
                f"interface {name} doesn't exist; correct MESH_INTERFACES: ip -brief link lists the interfaces"
            )
        return index

    def _set_interface(self, index: int, flags: int) -> None:
        self.tables[layout.INTERFACES].set(struct.pack("=I", index), struct.pack("=I", flags))

    def _write_config(self, desired: DesiredNetwork) -> None:
        stranger_ns, neighbour_ns = (10**9 // max(1, each) for each in (desired.stranger_rate, desired.neighbour_rate))
        tail = layout.CONFIG_TAIL.pack(
            layout.LAYOUT,
            socket.htons(desired.link_port),
            self._rooms.paid_bits,
            self._rooms.on_grace_bits,
            stranger_ns,
            stranger_ns * desired.stranger_burst,
            neighbour_ns,
            neighbour_ns * desired.neighbour_burst,
            HOLD_WINDOW_NS,
            HOLD_PACKETS,
            HOLD_PACKETS_PAID,
            2**10 * 10**9 // desired.lane_bytes_s,
            desired.lane_burst_bytes * 10**9 // desired.lane_bytes_s,
            2**10 * 10**9 // desired.unpaid_bytes_s if desired.unpaid_bytes_s else 0,
            desired.unpaid_burst_bytes * 10**9 // max(1, desired.unpaid_bytes_s),
        )
        self._config[8 : 8 + len(tail)] = tail

    def _bind_and_pin(self, folder: Path) -> None:
        """Pin all tables, and bind them to the egress program, so that the program on an interface leads to them."""
        program = self.programs.program(hooks.OUT_PROGRAM)
        for name, table in self.tables.items():
            result = library().bpf_prog_bind_map(program, table.descriptor, None)
            require(result, f"binding the table {name}")
            bpf.pin(table.descriptor, folder / name)
        for name in GATE_PROGRAMS:
            bpf.pin(self.programs.program(name), folder / name)


def table_sizes(contracts_max: int) -> dict[str, int]:
    """Return the sizes of those tables that grow with CONTRACTS_MAX.

    The tables of single hosts also hold the own addresses that neighbours announce. Announcing costs a neighbour
    nothing. So there is room for all announced addresses; else they would take the contracts' room. Memory is used only
    for entries that exist. The tables of flows grow with CONTRACTS_MAX up to a limit, so that customers can't use up
    the memory of a small router.
    """
    remembered = max(_FLOWS_LEAST, min(layout.FLOWS_MOST, _FLOWS_A_CONTRACT << (contracts_max - 1).bit_length()))
    return {
        **dict.fromkeys((layout.FLOWS, layout.PLACES), remembered),
        **dict.fromkeys((layout.CONTRACTS, layout.LABELS, *layout.PREFIXES.values()), contracts_max),
        **dict.fromkeys(layout.HOSTS.values(), contracts_max + _OWN_ADDRESSES_MOST),
    }


def _services(desired: DesiredNetwork) -> tuple[FreeRule, ...]:
    """Return the payment services to which there are lanes: none if we don't sell, as there is no gate then."""
    return desired.services if desired.sells else ()


def _free_tables(desired: DesiredNetwork) -> dict[int, dict[bytes, bytes]]:
    return layout.free_tables(desired.free, _services(desired), desired.own_services if desired.sells else ())


def _config_flags(desired: DesiredNetwork, layer3: bool) -> int:
    flags = layout.SELLS * desired.sells | layout.BUYS * desired.buys | layout.LAYER3 * layer3
    flags |= layout.OWN_SERVICES_FLAG * bool(desired.sells and desired.own_services)
    for version in desired.families:
        flags |= layout.FAMILY[version]
        flags |= layout.FREE_FLAG[version] * any(rule.prefix.version == version for rule in desired.free)
        flags |= layout.OFFERS_FLAG[version] * any(rule.prefix.version == version for rule in _services(desired))
    return flags


@contextlib.contextmanager
def _config_words(tables: dict[str, Table]) -> Iterator[memoryview]:
    memory = tables[layout.CONFIG].map_memory()
    words = memoryview(memory).cast("Q")
    try:
        yield words
    finally:
        words.release()
        memory.close()


def read_layout(tables: dict[str, Table]) -> int:
    """Return the LAYOUT of a running meter, of whatever version; 0 if it can't be read."""
    if layout.CONFIG not in tables:
        return 0
    with _config_words(tables) as words:
        return words[1] & 0xFFFFFFFF if struct.pack("=H", 1)[0] else words[1] >> 32


def read_sells(tables: dict[str, Table]) -> bool:
    """Say whether a running meter was set up to sell."""
    if layout.CONFIG not in tables:
        return False
    with _config_words(tables) as words:
        return bool(words[0] & layout.SELLS)


def read_families(tables: dict[str, Table]) -> frozenset[int]:
    if layout.CONFIG not in tables:
        return frozenset({4, 6})
    with _config_words(tables) as words:
        return frozenset(version for version, flag in layout.FAMILY.items() if words[0] & flag)


def read_interfaces(tables: dict[str, Table]) -> dict[int, int]:
    if layout.INTERFACES not in tables:
        return {}
    items = tables[layout.INTERFACES].items()
    return {struct.unpack("=I", key)[0]: struct.unpack("=I", value)[0] for key, value in items}
