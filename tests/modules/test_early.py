"""Early bytes: a full table costs little, however many contracts a neighbour proposes, and each byte is taken once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from charge_lab import CONTRACTS, ChargeLab
from meter_lab import contract_id

from ngp.core.kernel import Grant
from ngp.core.messages import Role
from ngp.core.prefixes import PackedPrefix
from ngp.modules.bpf import Table
from ngp.modules.network import layout
from ngp.modules.network.early import EarlyBytes

OURS, OTHERS = 7, 0x0A000007  # the other's number looks like a part of an address
PLACES = 4096


class Memory(Table):
    """The kernel's table of early bytes, in memory; counts how often it is read as a whole."""

    def __init__(self) -> None:
        self.key_bytes, self.value_bytes = layout.EARLY_KEY.size, layout.EARLY_VALUE.size
        self.known: dict[bytes, bytes] = {}
        self.read = 0

    def send(self, number: int, host: str, sent_bytes: int = 100, seconds_ago: float = 0.0) -> None:
        """Note a packet that was sent without a contract."""
        address = layout.address_bytes(ip_network(host)).ljust(16, b"\0")
        at_ns = time.monotonic_ns() - int(seconds_ago * 1e9)
        self.known[layout.EARLY_KEY.pack(number, address)] = layout.EARLY_VALUE.pack(at_ns, at_ns, 1, sent_bytes)

    def get(self, key: bytes) -> bytes | None:
        return self.known.get(key)

    def delete(self, key: bytes) -> bool:
        return self.known.pop(key, None) is not None

    def batches(self) -> Iterator[tuple[bytes, bytes]]:
        self.read += 1
        entries = list(self.known.items())
        for start in range(0, len(entries), 1000):
            keys, values = zip(*entries[start : start + 1000], strict=True)
            yield b"".join(keys), b"".join(values)


@pytest.fixture
def table() -> Memory:
    return Memory()


@pytest.fixture
def early(table: Memory) -> EarlyBytes:
    return EarlyBytes(table)


@pytest.mark.parametrize(
    ("network", "host"),
    [
        ("198.51.100.0/24", "198.51.100.9/32"),  # the latest of those in it
        ("198.51.100.0/29", "198.51.100.7/32"),
        ("198.51.100.8/30", "198.51.100.9/32"),
        ("198.51.96.0/19", "198.51.100.9/32"),
        ("0.0.0.0/0", "198.51.100.9/32"),
        ("198.51.100.9/32", "198.51.100.9/32"),
        ("198.51.100.10/31", None),
        ("198.51.101.0/24", None),  # another neighbour's
        ("203.0.113.0/24", None),  # too long ago
        ("2001:db8::/32", "2001:db8::7/128"),
        ("2001:db8::/65", "2001:db8::7/128"),
        ("2001:db8:1::/48", None),
        ("c633:6400::/24", None),  # the bytes of an IPv4 address
        ("10.0.0.0/8", None),  # the bytes of another's number
    ],
)
def test_the_host_to_which_we_sent_last(table: Memory, early: EarlyBytes, network: str, host: str | None) -> None:
    for number in range(1, 3000):
        table.send(OTHERS, f"198.51.101.{number % 256}/32")
        table.send(OURS, f"192.0.{number >> 8}.{number & 255}/32", seconds_ago=5)
    table.send(OURS, "203.0.113.5/32", seconds_ago=11)
    table.send(OURS, "198.51.100.7/32", seconds_ago=2)
    table.send(OURS, "2001:db8::7/128")
    table.send(OURS, "198.51.100.9/32")
    found = early.sent_lately(OURS, ip_network(network))
    assert found == (ip_network(host) if host else None)


def test_contracts_of_one_batch_read_the_table_once_and_take_each_byte_once(table: Memory, early: EarlyBytes) -> None:
    for number in range(1, 200):
        table.send(OURS, f"198.51.100.{number}/32", sent_bytes=10)
    table.send(OURS, "203.0.113.5/32", sent_bytes=7)
    networks = [ip_network(f"198.51.{number}.0/24") for number in range(100)]
    with early.read_once():
        assert not any(early.take(OURS, network) for network in networks)
        taken = [early.take(OURS, ip_network(network)) for network in ("198.51.100.0/24", "198.51.0.0/16")]
    assert taken == [1990, 0] and table.read == 1
    assert early.take(OURS, ip_network("203.0.113.0/24")) == 7 and not table.known


def test_a_proposal_looks_at_no_entry_but_those_of_its_network(
    table: Memory, early: EarlyBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each proposal takes 4 ms, and 4,500 of them, which anybody can send, hold the loop for 18 s."""
    looked_at: list[bytes] = []
    monkeypatch.setattr("ngp.modules.network.early._test_of", lambda _: lambda key: looked_at.append(key) or False)
    for number in range(4096):
        table.send(OURS, f"203.{number >> 8}.{number & 255}.1/32")
    for number in range(450):
        early.sent_lately(OURS, ip_network(f"10.0.{number & 255}.0/24"))
        early.sent_lately(OTHERS, ip_network("203.0.0.0/8"))
    assert not looked_at
    early.sent_lately(OURS, ip_network("203.7.0.0/16"))
    assert len(looked_at) == 256


def test_all_links_of_a_neighbour_and_all_contracts_of_a_batch_are_looked_up_together(
    lab: ChargeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent by any link of a neighbour is kept under its first link."""
    reads: list[str] = []
    batches = Table.batches

    def read(self: Table) -> Iterator[tuple[bytes, bytes]]:
        reads.append(self.name)
        return batches(self)

    monkeypatch.setattr(Table, "batches", read)
    lab.contracts._first_of = lambda _number: OURS
    for host in (3, 4):
        address, now_ns = bytes([10, 7, 0, host]).ljust(16, b"\0"), time.monotonic_ns() + host
        value = layout.EARLY_VALUE.pack(now_ns, now_ns, 1, 50)
        lab.tables[layout.EARLY].set(layout.EARLY_KEY.pack(OURS, address), value)
    assert lab.contracts.sent_lately(range(1, 9), ip_network("10.7.0.0/16")) == ip_network("10.7.0.4/32")
    assert len(reads) == 1
    ids = [contract_id() for _ in range(CONTRACTS // 2)]
    networks = [ip_network(f"10.{number}.0.0/16") for number in range(len(ids))]
    assert networks[7:]
    lab.contracts.grant(
        [
            Grant(name, OURS, Role.CLIENT, PackedPrefix.of(each), 10**6, 600.0)
            for name, each in zip(ids, networks, strict=True)
        ]
    )
    assert len(reads) == 2
    (used,) = [each for each in lab.contracts.read(None) if each.used_to_bytes]
    assert used.used_to_bytes == 100 and used.contract == ids[7]
    assert len(reads) == 3


def test_what_no_contract_covered_is_listed_with_its_age(table: Memory, early: EarlyBytes) -> None:
    table.send(OURS, "198.51.100.1/32", seconds_ago=5.0)
    table.send(OTHERS, "2001:db8::1/128")
    found = {(number, str(address)): round(age_s) for number, address, age_s in early.uncovered()}
    assert found == {(OURS, "198.51.100.1"): 5, (OTHERS, "2001:db8::1"): 0}
