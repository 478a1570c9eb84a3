"""Wire: messages <-> signed bytes. Hostile input ends here: it becomes a valid value or a `PeerError`.

A datagram is one msgpack array followed by an Ed25519 signature (RFC 8032) over a fixed prefix and that array. Because
of the prefix, nobody can present a signature that was made here as this key's signature of something else. The
recipient's key and its boot counter are signed too, so a datagram can't be passed on to a third node. Nor can it be
replayed to a node that restarted and so forgot which sequences it had seen.

A flood of invalid datagrams must not cost much work, so cheap checks come first. `parse` checks size, form, version and
recipient; the caller then checks its replay window and its rate limits; only `Sealed.open` does the expensive part: it
checks the signature and builds the message. Only the canonical encoding is accepted, the bytes that msgpack itself
would write, so equal messages have equal bytes. Text can't have control characters, as it may reach an operator's
terminal.

The protocol can grow without a new version, like BOLT 1. A message may end with a map of extensions, from numbers to
bytes. An extension that we don't know is ignored if its number is odd; if it is even, the message is refused. A message
of an unknown kind is acknowledged, counted and ignored.

Signatures are made and checked by libsodium. The OpenSSL of `cryptography` makes and accepts the same ones, but takes
nearly twice as long, and a first packet waits until two are made and two are checked.

The limits below are those of docs/protocol.md; a message with all values at their limits still fits MAX_DATAGRAM_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import msgpack
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from ngp.core import messages
from ngp.core.messages import MARK_BYTES, MOST_HOPS, Address, Message, Prefix, StatementLine
from ngp.errors import PeerError

VERSION = 3
SIGNED_PREFIX = b"ngp message v3\n"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_DATAGRAM_BYTES = 1280  # the smallest MTU of IPv6 (RFC 8200)
EVERYBODY = bytes(KEY_BYTES)

MAX_COUNT = 2**32 - 1
MAX_BOOT = 2**31 - 1
MAX_ID = MAX_BOOT << 32 | MAX_COUNT  # below 2**63, so that it fits into a column of the ledger
MAX_MSAT = 21_000_000 * 10**8 * 1000  # all bitcoin there will ever be
MAX_PRICE_MSAT_PER_GIB = 2**50
MAX_DATA_BYTES = 2**60
MAX_LIFETIME_S = 10 * 31_557_600
MAX_QUOTE_VALID_S = 86_400
MAX_ROUND = 255
MAX_WAIT_MS = 60_000
MAX_PATH = MOST_HOPS
MAX_BOLT11_CHARS = 990
MAX_ADDRESSES = 32
MAX_LINES = 20
MAX_ACKS = 100
MAX_SOFTWARE_BYTES = 64
PAYEE_BYTES = 33
MAX_PROOF_BYTES = 128
MAX_NETWORK_BYTES = 16
MAX_REASON_BYTES = 200
MAX_CALL_NUMBER = 2**63 - 1
MAX_CONTENT_BYTES = 960
MAX_CALL_PARTS, MAX_ANSWER_PARTS = 2, 64
MAX_KIND = 2**16 - 1
MAX_EXTENSION = 2**16 - 1
MAX_EXTENSIONS_BYTES = 64

CONTRACT_BYTES = 16
HASH_BYTES = 32


class _Refused(Exception):
    """A field is outside its limits; becomes ValueError for our own messages and PeerError for a neighbour's."""


# --- fields: each codec is (to wire, from wire); both check, so that we send nothing that a neighbour would refuse ----

_Convert = Callable[[Any], Any]
_Codec = tuple[_Convert, _Convert]


def _number(most: int, least: int = 0) -> _Codec:
    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:  # isinstance would accept a bool too
            raise _Refused(f"number {value!r:.40} isn't in {least}..{most}")
        return value

    return check, check


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise _Refused(f"{value!r:.40} isn't a bool")
    return value


def _octets(*lengths: int) -> _Codec:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) not in lengths:
            raise _Refused(f"{value!r:.80} isn't {' or '.join(map(str, lengths))} bytes")
        return value

    return check, check


def _content(value: Any) -> bytes:
    if type(value) is not bytes or len(value) > MAX_CONTENT_BYTES:
        raise _Refused(f"{value!r:.80} isn't at most {MAX_CONTENT_BYTES} bytes")
    return value


def _text(max_bytes: int) -> _Codec:
    def check(value: Any) -> str:
        if type(value) is not str or not value.isprintable() or len(value.encode()) > max_bytes:
            raise _Refused(f"{value!r:.80} isn't printable text of at most {max_bytes} bytes")
        return value

    return check, check


def _bolt11(may_be_empty: bool) -> _Codec:
    def check(value: Any) -> str:
        if type(value) is str:
            if value == "" and may_be_empty:
                return value
            if 0 < len(value) <= MAX_BOLT11_CHARS and value.isascii() and value.isalnum():
                return value
        raise _Refused(f"{value!r:.40} doesn't look like a BOLT11 invoice")

    return check, check


def _word(words: type[StrEnum]) -> _Codec:
    known = {word.value: word for word in words}

    def to_wire(value: Any) -> str:
        if type(value) is not words:
            raise _Refused(f"{value!r} isn't a {words.__name__}")
        return str(value.value)

    def from_wire(value: Any) -> StrEnum:
        if type(value) is not str or value not in known:
            raise _Refused(f"{value!r:.40} isn't a {words.__name__}")
        return known[value]

    return to_wire, from_wire


def _optional(codec: _Codec) -> _Codec:
    to_wire, from_wire = codec
    return (
        lambda value: None if value is None else to_wire(value),
        lambda value: None if value is None else from_wire(value),
    )


def _many(codec: _Codec, most: int, least: int = 0) -> _Codec:
    to_wire, from_wire = codec

    def put(values: Any) -> list[Any]:
        if type(values) is not tuple or not least <= len(values) <= most:
            raise _Refused(f"not a tuple of {least} to {most} entries")
        return [to_wire(value) for value in values]

    def take(values: Any) -> tuple[Any, ...]:
        if type(values) is not list or not least <= len(values) <= most:
            raise _Refused(f"not a list of {least} to {most} entries")
        return tuple([from_wire(value) for value in values])

    return put, take


def _address_to_wire(value: Any) -> bytes:
    if type(value) not in (IPv4Address, IPv6Address) or getattr(value, "scope_id", None) is not None:
        raise _Refused(f"{value!r} isn't an address without a scope")
    packed: bytes = value.packed
    return packed


def _address_from_wire(value: Any) -> Address:
    if type(value) is bytes:
        if len(value) == 4:
            return IPv4Address(value)
        if len(value) == 16:
            return IPv6Address(value)
    raise _Refused(f"{value!r:.80} isn't an address")


def _prefix_to_wire(value: Any) -> list[Any]:
    if type(value) not in (IPv4Network, IPv6Network):
        raise _Refused(f"{value!r} isn't a prefix")
    return [_address_to_wire(value.network_address), value.prefixlen]


def _prefix_from_wire(value: Any) -> Prefix:
    if type(value) is not list or len(value) != 2 or type(value[0]) is not bytes or type(value[1]) is not int:
        raise _Refused(f"{value!r:.80} isn't a prefix")
    packed, length = value
    try:
        if len(packed) == 4:
            return IPv4Network((packed, length))
        if len(packed) == 16:
            return IPv6Network((packed, length))
    except ValueError as error:  # host bits are set, or the length is out of range
        raise _Refused(str(error)) from None
    raise _Refused(f"{value!r:.80} isn't a prefix")


def _record(made: Callable[..., Any], fields: tuple[tuple[str, _Codec], ...]) -> _Codec:
    names = tuple(name for name, _ in fields)
    puts = tuple(codec[0] for _, codec in fields)
    takes = tuple(codec[1] for _, codec in fields)
    count = len(fields)

    def to_wire(value: Any) -> list[Any]:
        if type(value) is not made:
            raise _Refused(f"{value!r:.80} isn't a {made!r}")
        return [put(getattr(value, name)) for put, name in zip(puts, names, strict=True)]

    def from_wire(value: Any) -> Any:
        if type(value) is not list or len(value) != count:
            raise _Refused(f"not {count} fields")
        return made(*[take(field) for take, field in zip(takes, value, strict=True)])

    return to_wire, from_wire


_FLAG = (_flag, _flag)
_CONTENT = (_content, _content)
_ADDRESS = (_address_to_wire, _address_from_wire)
_PREFIX = (_prefix_to_wire, _prefix_from_wire)
_MSAT = _number(MAX_MSAT)
_DATA = _number(MAX_DATA_BYTES)
_PRICE = _number(MAX_PRICE_MSAT_PER_GIB)
_LIFETIME = _number(MAX_LIFETIME_S)
_CONTRACT = _octets(CONTRACT_BYTES)
_PATH = _many(_octets(MARK_BYTES), MAX_PATH)
_LINE = _record(
    StatementLine,
    (("contract", _CONTRACT), ("used_to_bytes", _DATA), ("used_from_bytes", _DATA), ("charged_msat", _MSAT)),
)


def _parts(most: int) -> tuple[tuple[str, _Codec], ...]:
    """Return the fields of a message that is one part of a longer content. Args: most: parts of a content at most."""
    return (
        ("number", _number(MAX_CALL_NUMBER)),
        ("part", _number(most - 1)),
        ("parts", _number(most, least=1)),
        ("content", _CONTENT),
    )


# By kind: its number, and its fields in the order of the dataclass. A change of numbers or fields needs a new VERSION.
FIELDS: dict[type[Message], tuple[int, tuple[tuple[str, _Codec], ...]]] = {
    messages.Hello: (
        1,
        (
            ("network", _text(MAX_NETWORK_BYTES)),
            ("sells", _FLAG),
            ("buys", _FLAG),
            ("addresses", _many(_ADDRESS, MAX_ADDRESSES)),
            ("software", _text(MAX_SOFTWARE_BYTES)),
            ("wants_reply", _FLAG),
            ("payee", _octets(0, PAYEE_BYTES)),
            ("payee_proof", _text(MAX_PROOF_BYTES)),
        ),
    ),
    messages.Ask: (
        2,
        (
            ("destination", _PREFIX),
            ("data_limit_bytes", _DATA),
            ("lifetime_s", _LIFETIME),
            ("contract", _octets(0, CONTRACT_BYTES)),
            ("wait_ms", _number(MAX_WAIT_MS)),
            ("path", _PATH),
        ),
    ),
    messages.Propose: (
        3,
        (
            ("contract", _CONTRACT),
            ("destination", _PREFIX),
            ("price_msat_per_gib", _PRICE),
            ("data_limit_bytes", _DATA),
            ("lifetime_s", _LIFETIME),
            ("quote_valid_s", _number(MAX_QUOTE_VALID_S)),
            ("from_offset_bytes", _DATA),
            ("round", _number(MAX_ROUND, least=1)),
            ("path", _PATH),
        ),
    ),
    messages.Accept: (4, (("contract", _CONTRACT), ("price_msat_per_gib", _PRICE), ("data_limit_bytes", _DATA))),
    messages.Reject: (
        5,
        (
            ("contract", _octets(0, CONTRACT_BYTES)),
            ("reason", _word(messages.RejectReason)),
            ("counter_msat_per_gib", _optional(_PRICE)),
            ("destination", _optional(_PREFIX)),
        ),
    ),
    messages.Invoice: (6, (("bolt11", _bolt11(may_be_empty=False)), ("amount_msat", _MSAT))),
    messages.Paid: (7, (("payment_hash", _octets(HASH_BYTES)), ("preimage", _octets(HASH_BYTES)))),
    messages.Statement: (
        8,
        (
            ("paid_msat", _MSAT),
            ("charged_msat", _MSAT),
            ("refunded_msat", _MSAT),
            ("lines", _many(_LINE, MAX_LINES)),
        ),
    ),
    messages.Cancel: (9, (("contract", _CONTRACT), ("reason", _text(MAX_REASON_BYTES)))),
    messages.Refund: (10, (("amount_msat", _MSAT), ("bolt11", _bolt11(may_be_empty=True)))),
    messages.Bye: (11, ()),
    messages.Ack: (12, (("message_ids", _many(_number(MAX_ID, least=1), MAX_ACKS, least=1)),)),
    messages.Declined: (
        13,
        (("payment_hash", _octets(0, HASH_BYTES)), ("reason", _word(messages.DeclineReason)), ("amount_msat", _MSAT)),
    ),
    messages.Call: (14, _parts(MAX_CALL_PARTS)),
    messages.Answer: (15, _parts(MAX_ANSWER_PARTS)),
}

_BY_TYPE = {kind: (number, *_record(kind, fields)) for kind, (number, fields) in FIELDS.items()}
_BY_NUMBER = {number: _record(kind, fields)[1] for kind, (number, fields) in FIELDS.items()}
_HELLO = FIELDS[messages.Hello][0]
_ACK = FIELDS[messages.Ack][0]


# --- envelope ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a kind that this version doesn't know; its body is ignored."""

    kind: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """A parsed datagram whose signature hasn't been checked yet.

    Attributes:
        sender: the public key from which the datagram claims to be, 32 bytes.
        recipient: our key, or EVERYBODY.
        sequence: sender's boot counter << 32 | count; also the message's id.
        recipient_boot: the recipient's boot counter as the sender knows it; 0 in a hello if the sender doesn't know it.
        reply_to: id of the message that this one answers, or 0.
        signature: 64 bytes.
    """

    sender: bytes
    recipient: bytes
    sequence: int
    recipient_boot: int
    reply_to: int
    signature: bytes
    _kind: int
    _body: Any
    _signed: bytes

    @property
    def boot(self) -> int:
        """The sender's boot counter."""
        return self.sequence >> 32

    @property
    def is_hello(self) -> bool:
        """Say whether the datagram claims to be a hello."""
        return self._kind == _HELLO

    @property
    def is_ack(self) -> bool:
        """Say whether the datagram claims to be an ack."""
        return self._kind == _ACK

    def open(self) -> Message | Unknown:
        """Check the signature, then build the message. Raises: PeerError(`signature`, `malformed`)."""
        try:
            VerifyKey(self.sender).verify(SIGNED_PREFIX + self._signed, self.signature)
        except (BadSignatureError, ValueError):
            raise PeerError("signature", f"of a message that claims to be from {self.sender.hex()[:16]}") from None
        if self._kind not in _BY_NUMBER:
            return Unknown(self._kind)
        try:
            message: Message = _BY_NUMBER[self._kind](self._body)
        except _Refused as error:
            raise PeerError("malformed", f"kind {self._kind}: {error}") from None
        return message


def seal(
    private_key: SigningKey,
    sender: bytes,
    recipient: bytes,
    sequence: int,
    recipient_boot: int,
    message: Message,
    reply_to: int = 0,
) -> bytes:
    """Encode and sign a message of ours.

    Args: sender, recipient: public keys, 32 bytes; see `Sealed` for the rest.
    Returns: the datagram.
    Raises: ValueError if a field exceeds the limits of docs/protocol.md; a neighbour would refuse the message.
    """
    number, to_wire, _ = _BY_TYPE[type(message)]
    try:
        body = to_wire(message)
    except _Refused as error:
        raise ValueError(f"{type(message).__name__} can't be sent: {error}") from None
    envelope = (VERSION, sender, recipient, sequence, recipient_boot, reply_to, number, body)
    payload: bytes = msgpack.packb(envelope)
    return payload + private_key.sign(SIGNED_PREFIX + payload).signature


def parse(datagram: bytes, our_key: bytes, max_bytes: int = MAX_DATAGRAM_BYTES) -> Sealed:
    """Do the cheap checks: size, form, version, recipient. The signature isn't checked.

    Args: our_key: only datagrams to this key or to EVERYBODY pass. max_bytes: the link's limit.
    Raises: PeerError(`oversized`, `malformed`, `version`, `extension`, `own`, `foreign`).
    """
    if len(datagram) > max_bytes:
        raise PeerError("oversized", f"{len(datagram)} bytes, at most {max_bytes}")
    payload, signature = datagram[:-SIGNATURE_BYTES], datagram[-SIGNATURE_BYTES:]
    fields = _unpack(payload)
    if fields[0] != VERSION or type(fields[0]) is not int:
        raise PeerError("version", f"its messages have {fields[0]!r:.40}, ours {VERSION}")
    if len(fields) not in (8, 9):
        raise PeerError("malformed", f"{len(fields)} fields in the envelope")
    _, sender, recipient, sequence, recipient_boot, reply_to, kind, body = fields[:8]
    _check_envelope(sender, recipient, sequence, recipient_boot, reply_to, kind)
    for extensions in fields[8:]:
        _check_extensions(extensions)
    if sender == our_key:
        raise PeerError("own", "our own datagram came back")
    if recipient != our_key and recipient != EVERYBODY:
        raise PeerError("foreign", f"for {recipient.hex()[:16]}")
    if msgpack.packb(fields) != payload:
        raise PeerError("malformed", "not the canonical encoding")
    return Sealed(sender, recipient, sequence, recipient_boot, reply_to, signature, kind, body, payload)


def _unpack(payload: bytes) -> list[Any]:
    try:
        fields = msgpack.unpackb(
            payload,
            max_map_len=MAX_EXTENSIONS_BYTES,
            max_ext_len=0,
            strict_map_key=False,  # keys must be numbers, which is checked later; too few fit for costly collisions
        )
    except (ValueError, TypeError, RecursionError) as error:  # msgpack's own errors are ValueErrors
        raise PeerError("malformed", f"not msgpack: {error!s:.80}") from None
    if type(fields) is not list or not fields:
        raise PeerError("malformed", "not an envelope")
    return fields


def _check_envelope(sender: Any, recipient: Any, sequence: Any, recipient_boot: Any, reply_to: Any, kind: Any) -> None:
    if type(sender) is not bytes or len(sender) != KEY_BYTES or sender == EVERYBODY:
        raise PeerError("malformed", "sender isn't a key")
    if type(recipient) is not bytes or len(recipient) != KEY_BYTES:
        raise PeerError("malformed", "recipient isn't a key")
    if type(sequence) is not int or not 1 << 32 < sequence <= MAX_ID or not sequence & MAX_COUNT:
        raise PeerError("malformed", f"sequence {sequence!r:.40}")
    if type(recipient_boot) is not int or not 0 <= recipient_boot <= MAX_BOOT:
        raise PeerError("malformed", f"recipient_boot {recipient_boot!r:.40}")
    if type(reply_to) is not int or not 0 <= reply_to <= MAX_ID:
        raise PeerError("malformed", f"reply_to {reply_to!r:.40}")
    if type(kind) is not int or not 1 <= kind <= MAX_KIND:
        raise PeerError("malformed", f"kind {kind!r:.40}")
    if kind != _HELLO and (recipient == EVERYBODY or recipient_boot == 0):
        raise PeerError("malformed", "only a hello may be for everybody or without the recipient's boot")
    if recipient == EVERYBODY and recipient_boot != 0:
        raise PeerError("malformed", "a recipient's boot, but no recipient")


def _check_extensions(extensions: Any) -> None:
    """Refuse malformed extensions, and unknown ones with an even number: their sender requires us to know them."""
    if type(extensions) is not dict or not extensions or len(msgpack.packb(extensions)) > MAX_EXTENSIONS_BYTES:
        raise PeerError("malformed", f"extensions aren't a map of 2 to {MAX_EXTENSIONS_BYTES} bytes")
    numbers = list(extensions)
    if any(type(number) is not int or not 0 <= number <= MAX_EXTENSION for number in numbers):
        raise PeerError("malformed", f"an extension's number isn't in 0..{MAX_EXTENSION}")
    if numbers != sorted(numbers) or any(type(value) is not bytes for value in extensions.values()):
        raise PeerError("malformed", "extensions out of order, or not bytes")
    if unknown := [number for number in numbers if number % 2 == 0]:
        raise PeerError("extension", f"number {unknown[0]}, which this version doesn't know")
