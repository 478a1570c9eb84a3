"""The meter's tables in bytes: which free destinations and payment services have room there."""

from __future__ import annotations

import socket
from ipaddress import ip_network

from ngp.modules.network import layout
from ngp.modules.network.meter import GATE_PROGRAMS
from ngp.ports.network import FreeRule

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
OURS, OTHER, BEHIND = (ip_network(address) for address in ("203.0.113.1", "203.0.113.77", "198.51.100.7"))


def test_the_books_of_this_layout_are_as_they_are_written() -> None:
    """The entry in BOOKS must be written in numbers: names of present values would change with the next LAYOUT."""
    books = layout.BOOKS[layout.LAYOUT]
    assert books == layout.Books(
        *(layout.CONTRACTS, layout.LABELS, layout.LINE_WORDS),
        *(layout.TAG, layout.LIMIT, layout.USED, layout.USED_TO),
        label=books.label,
    )
    assert books.label.format == layout.LABEL.format
    assert all(name.startswith(layout.TABLES_BEGIN) for name in layout.TABLES)
    assert all(name.startswith(layout.GATE_PROGRAMS_BEGIN) for name in GATE_PROGRAMS)
    assert layout.SELLS | layout.BUYS | sum(layout.FAMILY.values()) == 0b1111


def pairs(address: str, tables: dict[int, dict[bytes, bytes]]) -> int:
    """Count the pairs of protocol and port at an address."""
    where = ip_network(address)
    key = where.prefixlen.to_bytes(4, "little") + where.network_address.packed
    return tables[where.version][key][4]


def test_services_that_meet_under_this_router_and_have_no_room_are_left_out_and_told() -> None:
    """Services may meet when our addresses change at run time. An error then would leave the gate out of date."""
    own = tuple(FreeRule(where, TCP, port) for where in (OURS, OTHER) for port in range(10, 15))
    own = tuple(one if one.prefix == OURS else FreeRule(one.prefix, UDP, one.port) for one in own)
    tables = layout.free_tables((), (), own)
    assert pairs("127.0.0.1", tables) == pairs("::1", tables) == 8
    assert layout.left_out((), (), own) == own[8:], "the last ones written"
    assert not layout.left_out((), (), own[:8])
    assert not layout.left_out((), (), (*own[:8], FreeRule(OTHER, TCP, 10))), "the same port, by another address"


def test_what_is_free_in_a_wider_prefix_takes_room_too_and_stays() -> None:
    free = tuple(FreeRule(ip_network("0.0.0.0/0"), UDP, port) for port in range(1, 6))
    services = tuple(FreeRule(BEHIND, TCP, port) for port in range(1, 6))
    tables = layout.free_tables(free, services)
    assert pairs("198.51.100.7", tables) == 8 and pairs("0.0.0.0/0", tables) == 5
    assert layout.left_out(free, services, ()) == services[3:]
    own = tuple(FreeRule(OURS, TCP, port) for port in range(1, 6))
    assert layout.left_out(free, (), own) == own[3:] and pairs("::1", layout.free_tables(free, (), own)) == 5
    all_free = (*free, FreeRule(BEHIND))
    assert not layout.left_out(all_free, services, ())
