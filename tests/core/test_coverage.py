"""Coverage: the contract with the longest prefix is found, however a client chooses its destinations."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from ngp.core.contract import State
from ngp.core.coverage import Coverage
from ngp.core.messages import Prefix
from ngp.core.prefixes import PackedPrefix
from ngp.core.selling.sale import Sale

WHO, ANOTHER = b"w" * 32, b"a" * 32
ONE_HASH = (1 << 61) - 1
"""Python hashes whole numbers that differ by a multiple of this to the same number, on 64-bit machines."""


def sale(destination: Prefix, who: bytes = WHO) -> Sale:
    return Sale(
        id=bytes(16), identity=who, link=("mesh0", b""), link_number=1, destination=PackedPrefix.of(destination),
        prices=((0, 1),), data_limit_bytes=0, lifetime_s=0, state=State.ACTIVE,
    )  # fmt: skip


def test_a_packed_prefix_is_the_prefix_and_its_text() -> None:
    for text in ("198.51.100.7/32", "198.51.100.0/24", "0.0.0.0/0", "2001:db8::1/128", "2001:db8::/33", "::/0"):
        packed = PackedPrefix.of(ip_network(text))
        assert packed.prefix == ip_network(text) and str(packed) == text
        assert packed == PackedPrefix.of(ip_network(text))


def test_the_longest_prefix_is_found_until_it_is_removed() -> None:
    coverage = Coverage[Sale]()
    wide, narrow, wide6 = map(sale, map(ip_network, ("198.51.100.0/24", "198.51.100.7/32", "2001:db8::/33")))
    for one in (narrow, wide, wide6, sale(ip_network("198.51.100.7/32"), ANOTHER)):
        coverage.add(one)
    assert coverage.find(WHO, ip_address("198.51.100.7")) is narrow
    assert coverage.find(WHO, ip_address("198.51.100.8")) is wide
    assert coverage.find(WHO, ip_address("2001:db8:7fff::1")) is wide6
    for outside in ("198.51.101.7", "2001:db8:8000::1"):
        assert coverage.find(WHO, ip_address(outside)) is None
    coverage.remove(narrow)
    assert coverage.find(WHO, ip_address("198.51.100.7")) is wide
    assert coverage.exact(WHO, narrow.destination.prefix) is None
    assert coverage.exact(WHO, wide.destination.prefix) is wide


def test_a_contract_that_was_replaced_does_not_take_out_the_new_one() -> None:
    coverage, destination = Coverage[Sale](), ip_network("2001:db8::1/128")
    old, new = sale(destination), sale(destination)
    coverage.add(old)
    coverage.add(new)
    coverage.remove(old)
    assert coverage.exact(WHO, destination) is new
    coverage.remove(new)
    coverage.remove(new)
    assert not coverage._contracts, "what a neighbour had is forgotten completely"


@st.composite
def prefixes(draw: st.DrawFn) -> list[Prefix]:
    """Draw prefixes that are often within each other, at the ends of the address space too."""
    bits = draw(st.sampled_from((32, 128)))
    ends = st.sampled_from((0, (1 << bits) - 1)) | st.integers(0, (1 << bits) - 1)
    drawn = draw(st.lists(st.tuples(ends, st.sampled_from((0, 1, bits // 2, bits - 1, bits)) | st.integers(0, bits))))
    kind = IPv4Network if bits == 32 else IPv6Network
    return list({kind((base >> (bits - length) << (bits - length), length)) for base, length in drawn})


@given(prefixes())
def test_what_is_around_all_of_a_prefix_is_found(drawn: list[Prefix]) -> None:
    coverage = Coverage[Sale]()
    contracts = [sale(one) for one in drawn]
    for contract in contracts:
        coverage.add(contract)
    for prefix in drawn:
        around = [one for one in contracts if one.destination.covers(PackedPrefix.of(prefix))]
        assert coverage.covering(WHO, prefix) is max(around, key=lambda one: one.destination.bits)


@given(prefixes())
def test_what_is_within_a_prefix_is_found(drawn: list[Prefix]) -> None:
    coverage = Coverage[Sale]()
    contracts = [sale(one) for one in drawn]
    for contract in contracts:
        coverage.add(contract)
    for prefix in map(PackedPrefix.of, drawn):
        within = {one.id for one in contracts if prefix != one.destination and prefix.covers(one.destination)}
        assert {one.id for one in coverage.within(WHO, prefix)} == within


@given(prefixes())
def test_the_last_address_of_a_prefix(drawn: list[Prefix]) -> None:
    for prefix in drawn:
        assert PackedPrefix.of(prefix).last_address == prefix.broadcast_address.packed


def test_a_client_cannot_choose_addresses_that_all_have_one_hash() -> None:
    first = 0x20010DB8 << 96
    first += -first % ONE_HASH
    chosen = [IPv6Network((first + number * ONE_HASH, 128)) for number in range(1000)]
    assert len({hash(int(one.network_address)) for one in chosen}) == 1
    coverage = Coverage[Sale]()
    for each in chosen:
        coverage.add(sale(each))
    (of_length,) = coverage._contracts[WHO, 6].values()
    assert len(set(map(hash, of_length))) == len(chosen), "each look-up would go through all of them"
