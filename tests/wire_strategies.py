"""Hypothesis strategies for every message, up to the limits of the wire."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import strategies as st

from ngp import wire
from ngp.core import messages as m


def numbers(most: int, least: int = 0) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(least, most), st.sampled_from([least, most]))


def octets(length: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=length, max_size=length)


def text(max_bytes: int) -> st.SearchStrategy[str]:
    return st.text(max_size=max_bytes).filter(lambda t: t.isprintable() and len(t.encode()) <= max_bytes)


addresses = st.one_of(
    st.integers(0, 2**32 - 1).map(IPv4Address),
    st.integers(0, 2**128 - 1).map(IPv6Address),
)
prefixes = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda p: IPv4Network(p, strict=False)),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(lambda p: IPv6Network(p, strict=False)),
)
msat = numbers(wire.MAX_MSAT)
price = numbers(wire.MAX_PRICE_MSAT_PER_GIB)
data = numbers(wire.MAX_DATA_BYTES)
lifetime = numbers(wire.MAX_LIFETIME_S)
contract = octets(16)
paths = st.lists(octets(m.MARK_BYTES), max_size=wire.MAX_PATH).map(tuple)
bolt11 = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=60).map(lambda t: "lnbc" + t)


def parts(kind: type[m.Call] | type[m.Answer], most: int) -> st.SearchStrategy[m.Message]:
    content = st.binary(max_size=wire.MAX_CONTENT_BYTES)
    return st.builds(kind, numbers(wire.MAX_CALL_NUMBER), numbers(most - 1), numbers(most, 1), content)


BY_TYPE: dict[type[m.Message], st.SearchStrategy[m.Message]] = {
    m.Hello: st.builds(
        m.Hello,
        text(wire.MAX_NETWORK_BYTES),
        st.booleans(),
        st.booleans(),
        st.lists(addresses, max_size=wire.MAX_ADDRESSES).map(tuple),
        text(wire.MAX_SOFTWARE_BYTES),
        st.booleans(),
        st.one_of(st.just(b""), st.binary(min_size=wire.PAYEE_BYTES, max_size=wire.PAYEE_BYTES)),
        text(wire.MAX_PROOF_BYTES),
    ),
    m.Ask: st.builds(
        m.Ask, prefixes, data, lifetime, st.one_of(st.just(b""), contract), numbers(wire.MAX_WAIT_MS), paths
    ),
    m.Propose: st.builds(
        m.Propose,
        contract,
        prefixes,
        price,
        data,
        lifetime,
        numbers(wire.MAX_QUOTE_VALID_S),
        data,
        numbers(wire.MAX_ROUND, 1),
        paths,
    ),
    m.Accept: st.builds(m.Accept, contract, price, data),
    m.Reject: st.builds(
        m.Reject,
        st.one_of(st.just(b""), contract),
        st.sampled_from(m.RejectReason),
        st.one_of(st.none(), price),
        st.one_of(st.none(), prefixes),
    ),
    m.Cancel: st.builds(m.Cancel, contract, text(wire.MAX_REASON_BYTES)),
    m.Declined: st.builds(m.Declined, st.one_of(st.just(b""), octets(32)), st.sampled_from(m.DeclineReason), msat),
    m.Invoice: st.builds(m.Invoice, bolt11, msat),
    m.Paid: st.builds(m.Paid, octets(32), octets(32)),
    m.Statement: st.builds(
        m.Statement,
        msat,
        msat,
        msat,
        st.lists(st.builds(m.StatementLine, contract, data, data, msat), max_size=wire.MAX_LINES).map(tuple),
    ),
    m.Refund: st.builds(m.Refund, msat, st.one_of(st.just(""), bolt11)),
    m.Bye: st.just(m.Bye()),
    m.Ack: st.builds(m.Ack, st.lists(numbers(wire.MAX_ID, 1), min_size=1, max_size=wire.MAX_ACKS).map(tuple)),
    m.Call: parts(m.Call, wire.MAX_CALL_PARTS),
    m.Answer: parts(m.Answer, wire.MAX_ANSWER_PARTS),
}
MESSAGES = st.one_of(*BY_TYPE.values())
