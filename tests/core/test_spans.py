"""Spans of addresses say the same as the prefixes that they are made of."""

from __future__ import annotations

from ipaddress import IPv4Network

import hypothesis.strategies as st
from hypothesis import given

from ngp.core.prefixes import covers
from ngp.core.spans import Spans

NETWORKS = st.builds(
    lambda address, bits: IPv4Network((address >> (32 - bits) << (32 - bits), bits)),
    st.integers(0, 255),
    st.integers(24, 32),
)


@given(st.lists(NETWORKS, max_size=6), NETWORKS)
def test_they_overlap_and_cover_as_the_prefixes_do(prefixes: list[IPv4Network], other: IPv4Network) -> None:
    spans = Spans(prefixes)
    assert spans.overlap(other) is any(covers(one, other) or covers(other, one) for one in prefixes)
    every = {address for one in prefixes for address in one}
    assert spans.cover(other) is all(address in every for address in other)
