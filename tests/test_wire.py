"""The wire: every message survives encoding and decoding, and hostile input becomes a value or a PeerError."""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, get_args

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from wire_strategies import BY_TYPE, MESSAGES, bolt11, octets

from ngp import wire
from ngp.core import messages as m
from ngp.errors import PeerError
from ngp.modules.link.udp import UdpLink

ALICE = SigningKey(b"a" * 32)
A = bytes(ALICE.verify_key)
B = bytes(SigningKey(b"b" * 32).verify_key)
SEQUENCE = (7 << 32) + 9

_16 = bytes(range(16))
_PATH = (_16[:8],) * wire.MAX_PATH
_MANY_ADDRESSES = tuple(IPv6Address(2**128 - 1 - i) for i in range(32))
LARGEST: list[m.Message] = [
    m.Hello("n" * 16, True, True, _MANY_ADDRESSES, "s" * 64, True, b"p" * 33, "z" * 128),
    m.Ask(IPv6Network("2001:db8::/32"), wire.MAX_DATA_BYTES, wire.MAX_LIFETIME_S, _16, wire.MAX_WAIT_MS, _PATH),
    m.Propose(_16, IPv6Network("::/0"), 2**50, 2**60, wire.MAX_LIFETIME_S, 86400, 2**60, 255, _PATH),
    m.Accept(_16, 2**50, 2**60),
    m.Reject(_16, m.RejectReason.NOT_RENEWING, 2**50, IPv6Network("2001:db8::/32")),
    m.Cancel(_16, "r" * 200),
    m.Declined(b"h" * 32, m.DeclineReason.NOT_BUYING, wire.MAX_MSAT),
    m.Invoice("l" * wire.MAX_BOLT11_CHARS, wire.MAX_MSAT),
    m.Paid(b"h" * 32, b"p" * 32),
    m.Statement(wire.MAX_MSAT, wire.MAX_MSAT, wire.MAX_MSAT, (m.StatementLine(_16, 2**60, 2**60, wire.MAX_MSAT),) * 20),
    m.Refund(wire.MAX_MSAT, "l" * wire.MAX_BOLT11_CHARS),
    m.Bye(),
    m.Ack((wire.MAX_ID,) * wire.MAX_ACKS),
    m.Call(wire.MAX_CALL_NUMBER, 1, wire.MAX_CALL_PARTS, b"c" * wire.MAX_CONTENT_BYTES),
    m.Answer(wire.MAX_CALL_NUMBER, 63, wire.MAX_ANSWER_PARTS, b"c" * wire.MAX_CONTENT_BYTES),
]


def seal(message: m.Message, reply_to: int = 0) -> bytes:
    return wire.seal(ALICE, A, B, SEQUENCE, 3, message, reply_to)


def sealed_raw(fields: Any) -> bytes:
    payload: bytes = fields if isinstance(fields, bytes) else msgpack.packb(fields)
    return payload + ALICE.sign(wire.SIGNED_PREFIX + payload).signature


def extended(message: m.Message, extensions: Any) -> bytes:
    """Seal a message as a later version would, with extensions behind it."""
    return sealed_raw([*msgpack.unpackb(seal(message)[: -wire.SIGNATURE_BYTES]), extensions])


def reason(datagram: bytes, **arguments: int) -> str:
    with pytest.raises(PeerError) as caught:
        wire.parse(datagram, B, **arguments).open()
    return caught.value.reason


def test_every_message_has_a_kind_and_a_strategy() -> None:
    assert set(get_args(m.Message)) == set(wire.FIELDS) == set(BY_TYPE)
    assert len({number for number, _ in wire.FIELDS.values()}) == len(wire.FIELDS)


def test_fields_are_those_of_the_dataclasses_in_order() -> None:
    for kind, (_, fields) in wire.FIELDS.items():
        assert tuple(name for name, _ in fields) == tuple(kind.__dataclass_fields__)


def test_protocol_document_lists_every_kind_and_field_in_order() -> None:
    document = (Path(__file__).resolve().parent.parent / "docs" / "protocol.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in document.splitlines() if line.count("|") == 6]
    found: dict[tuple[int, str], list[str]] = {}
    key = (0, "")
    for number, name, _, field, _ in rows:
        if number.isdigit():
            key = int(number), name
        if key[0] and field:
            found.setdefault(key, []).append(field)
    expected = {
        (number, kind.__name__.lower()): [name for name, _ in fields]
        for kind, (number, fields) in wire.FIELDS.items()
        if fields
    }
    assert found == expected


@pytest.mark.parametrize(("words", "message"), [(m.RejectReason, "reject"), (m.DeclineReason, "declined")])
def test_protocol_document_says_what_each_reason_means(words: type[StrEnum], message: str) -> None:
    document = (Path(__file__).resolve().parent.parent / "docs" / "protocol.md").read_text()
    _, table = document.split(f"| reason of {message} |")
    assert re.findall(r"^\| `([a-z ]+)` \|", table.partition("\n\n")[0], re.MULTILINE) == list(words)


@pytest.mark.parametrize("kind", BY_TYPE, ids=lambda kind: kind.__name__)
@given(random=st.data(), reply_to=st.integers(0, wire.MAX_ID))
@settings(max_examples=settings.default.max_examples // 2)
def test_round_trip_and_equal_bytes(kind: type[m.Message], random: st.DataObject, reply_to: int) -> None:
    message = random.draw(BY_TYPE[kind])
    datagram = seal(message, reply_to)
    sealed = wire.parse(datagram, B)
    back = sealed.open()
    assert back == message and type(back) is kind
    assert (sealed.sender, sealed.sequence, sealed.boot, sealed.recipient_boot, sealed.reply_to) == (
        A, SEQUENCE, 7, 3, reply_to,
    )  # fmt: skip
    assert seal(back, reply_to) == datagram


@pytest.mark.parametrize("message", LARGEST, ids=lambda message: type(message).__name__)
def test_at_its_limits_a_message_fits_a_datagram(message: m.Message) -> None:
    datagram = wire.seal(ALICE, A, B, wire.MAX_ID, wire.MAX_BOOT, message, wire.MAX_ID)
    assert len(datagram) + wire.MAX_EXTENSIONS_BYTES <= UdpLink.max_datagram_bytes <= wire.MAX_DATAGRAM_BYTES
    assert wire.parse(datagram, B).open() == message


def test_largest_is_complete() -> None:
    assert {type(message) for message in LARGEST} == set(wire.FIELDS)


def test_any_changed_byte_is_refused() -> None:
    datagram = seal(m.Accept(_16, 5 << 20, 1 << 30), SEQUENCE)
    for position in range(len(datagram)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(datagram)
            changed[position] ^= flip
            assert reason(bytes(changed)) in {"malformed", "version", "foreign", "signature"}, position


def test_any_cut_or_tail_is_refused() -> None:
    datagram = seal(m.Accept(_16, 5 << 20, 1 << 30))
    for length in range(len(datagram)):
        assert reason(datagram[:length]) in {"malformed", "signature", "version"}
    assert reason(datagram + b"\0") in {"malformed", "signature"}


@given(st.binary(max_size=1400))
def test_random_bytes_are_refused_with_a_reason(junk: bytes) -> None:
    reason(junk)


@given(MESSAGES, st.lists(st.tuples(st.integers(0, 1279), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_message_that_is_altered_and_signed_again_is_valid_or_malformed(
    message: m.Message, edits: list[tuple[int, int]]
) -> None:
    """A neighbour may sign anything: behind a valid signature there is a valid message, or it is `malformed`."""
    payload = bytearray(seal(message)[: -wire.SIGNATURE_BYTES])
    for position, value in edits:
        payload[position % len(payload)] = value
    datagram = sealed_raw(bytes(payload))
    try:
        sealed = wire.parse(datagram, B)
        back = sealed.open()
    except PeerError:
        return
    if isinstance(back, wire.Unknown):
        return
    assert wire.seal(ALICE, A, sealed.recipient, sealed.sequence, sealed.recipient_boot, back, sealed.reply_to) == (
        datagram
    )


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=40)
    | st.text(max_size=20) | st.sampled_from([msgpack.ExtType(5, b""), msgpack.Timestamp(0, 0)]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(st.integers(0, 17), _JUNK)
def test_any_signed_body_is_a_value_or_a_peer_error(kind: int, body: Any) -> None:
    try:
        wire.parse(sealed_raw([wire.VERSION, A, B, SEQUENCE, 3, 0, kind, body]), B).open()
    except PeerError as error:
        assert error.reason == "malformed"


@given(_JUNK | st.dictionaries(st.integers(-1, 2**16) | st.text(max_size=2), _JUNK, max_size=4))
def test_any_signed_extensions_are_passed_over_or_refused(extensions: Any) -> None:
    try:
        assert wire.parse(extended(m.Bye(), extensions), B).open() == m.Bye()
    except PeerError as error:
        assert error.reason in {"malformed", "extension"}


def test_extensions_that_we_may_not_know_are_passed_over() -> None:
    accept = m.Accept(_16, 5 << 20, 1 << 30)
    longest = {7: b"x" * (wire.MAX_EXTENSIONS_BYTES - 4)}
    for extensions in ({1: b""}, {1: b"a", 3: b"b", wire.MAX_EXTENSION: b"c"}, longest):
        assert wire.parse(extended(accept, extensions), B).open() == accept
        changed = bytearray(extended(accept, extensions))
        changed[-wire.SIGNATURE_BYTES - 2] ^= 2
        assert reason(bytes(changed)) in {"signature", "malformed", "extension"}


def test_a_message_with_an_unknown_even_extension_is_refused() -> None:
    for extensions in ({2: b""}, {0: b"a"}, {1: b"a", 4: b"b"}):
        assert reason(extended(m.Bye(), extensions)) == "extension"


def test_extensions_have_one_encoding_and_bounds() -> None:
    odd: list[Any] = [
        {}, [], None, {3: b"", 1: b""}, {1: "text"}, {1: 5}, {"1": b""}, {True: b""}, {-1: b""},
        {wire.MAX_EXTENSION + 2: b""}, {1: b"x" * (wire.MAX_EXTENSIONS_BYTES - 3)}, {1: {1: b""}},
    ]  # fmt: skip
    for extensions in odd:
        assert reason(extended(m.Bye(), extensions)) == "malformed", extensions
    twice = extended(m.Bye(), {1: b"", 3: b""})[: -wire.SIGNATURE_BYTES].replace(b"\x03\xc4\0", b"\x01\xc4\0")
    assert reason(sealed_raw(twice)) == "malformed"  # the same number twice
    assert reason(sealed_raw([wire.VERSION, A, B, SEQUENCE, 3, 0, 11, [], {1: b""}, {1: b""}])) == "malformed"


def test_a_kind_that_we_do_not_know_is_named_behind_its_signature_alone() -> None:
    later = [wire.VERSION, A, B, SEQUENCE, 3, 0, 200, ["anything", {"at": b"all"}, b"x" * 500]]
    assert wire.parse(sealed_raw(later), B).open() == wire.Unknown(200)
    forged = bytearray(sealed_raw(later))
    forged[-1] ^= 1
    assert reason(bytes(forged)) == "signature"


@given(st.lists(_JUNK, max_size=10))
def test_any_signed_envelope_is_a_value_or_a_peer_error(fields: list[Any]) -> None:
    reason(sealed_raw(fields))


def test_deep_nesting_is_malformed() -> None:
    assert reason(sealed_raw(b"\x91" * 1100 + b"\x90")) == "malformed"


def test_refusals_name_their_reason() -> None:
    good = [wire.VERSION, A, B, SEQUENCE, 3, 0, 11, []]
    assert wire.parse(sealed_raw(good), B).open() == m.Bye()
    assert reason(b"x" * 1281) == "oversized"
    assert reason(sealed_raw(good), max_bytes=100) == "oversized"
    assert reason(sealed_raw([1, *good[1:]])) == "version"
    assert reason(sealed_raw([wire.VERSION + 1, *good[1:]])) == "version"
    assert reason(sealed_raw([True, *good[1:]])) == "version"
    assert reason(sealed_raw([wire.VERSION, A, A[::-1], *good[3:]])) == "foreign"
    assert reason(sealed_raw([wire.VERSION, B, B, *good[3:]])) == "own"
    assert reason(sealed_raw([wire.VERSION, B[::-1], B, *good[3:]])) == "signature"
    assert reason(sealed_raw([*good, 0])) == "malformed"
    for position, bad in [
        (1, bytes(32)), (1, A[:31]), (2, "x" * 32), (3, 0), (3, 1 << 32), (3, 2**63), (3, 5), (3, True), (4, -1),
        (4, 0), (4, 2**31), (4, False), (5, -1), (5, 2**63), (5, None), (6, 0), (6, wire.MAX_KIND + 1), (6, "11"),
        (7, None), (7, [0]), (2, wire.EVERYBODY),
    ]:  # fmt: skip
        fields = list(good)
        fields[position] = bad
        assert reason(sealed_raw(fields)) == "malformed", (position, bad)


def test_only_one_encoding_is_accepted() -> None:
    payload = seal(m.Bye())[: -wire.SIGNATURE_BYTES]
    assert payload[:2] == bytes([0x98, wire.VERSION])
    assert reason(sealed_raw(b"\x98\xcc" + payload[1:])) == "malformed"  # the version in two bytes
    assert reason(sealed_raw(b"\xdc\x00\x08" + payload[1:])) == "malformed"  # the array's length in two bytes


def test_hello_alone_may_be_for_everybody() -> None:
    hello = m.Hello("sandbox", True, True, (), "ngp", True)
    assert wire.parse(wire.seal(ALICE, A, wire.EVERYBODY, SEQUENCE, 0, hello), B).open() == hello
    assert wire.parse(wire.seal(ALICE, A, B, SEQUENCE, 0, hello), B).open() == hello
    assert reason(wire.seal(ALICE, A, wire.EVERYBODY, SEQUENCE, 3, hello)) == "malformed"
    assert reason(wire.seal(ALICE, A, wire.EVERYBODY, SEQUENCE, 0, m.Bye())) == "malformed"


def test_another_library_makes_the_same_signature() -> None:
    payload, signature = (one := seal(m.Bye()))[:-64], one[-64:]
    assert Ed25519PrivateKey.from_private_bytes(bytes(ALICE)).sign(wire.SIGNED_PREFIX + payload) == signature


def test_a_signature_made_for_something_else_is_refused() -> None:
    payload = seal(m.Bye())[: -wire.SIGNATURE_BYTES]
    assert reason(payload + ALICE.sign(payload).signature) == "signature"


@given(octets(16), bolt11)
@settings(max_examples=5)
def test_what_a_neighbour_would_refuse_is_not_sent(contract: bytes, invoice: str) -> None:
    unsendable: list[m.Message] = [
        m.Cancel(contract, "\x1b[2J"),
        m.Cancel(contract, "x" * 201),
        m.Cancel(contract[1:], ""),
        m.Invoice(invoice + "!", 1),
        m.Invoice("", 1),
        m.Invoice(invoice, -1),
        m.Invoice(invoice, True),
        m.Accept(contract, 2**50 + 1, 0),
        m.Hello("sandbox", True, True, (IPv6Address("fe80::1%eth0"),), "", True),
        m.Ack(()),
    ]
    for bad in unsendable:
        with pytest.raises(ValueError, match="can't be sent"):
            seal(bad)
