"""Invoice: writes BOLT11 strings, and reads those of neighbours.

A neighbour's invoice may be hostile, so `read` first checks all bounds: length, fields, amount, expiry. The result is
a value or PeerError(`invoice`), nothing else. The `bolt11` package takes 5 to 8 ms per invoice, mostly for arithmetic
on single bits, and blocks a router's event loop for that time. `read` and `write` calculate with integers in about a
tenth of that time. They use the package for signatures, and the tests compare their results with the package's.

Source: https://github.com/lightning/bolts/blob/master/11-payment-encoding.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bech32 import CHARSET, bech32_decode, bech32_encode, convertbits
from bolt11 import Signature

from ngp.core.payment_node import DecodedInvoice
from ngp.errors import PeerError

INVOICE_CHARS_MAX = 2048
MEMO_BYTES_MAX = 639  # 1,023 characters of 5 bits
EXPIRY_S_MAX = 366 * 86_400
AMOUNT_MSAT_MAX = 21_000_000 * 100_000_000_000
_DEFAULT_EXPIRY_S = 3600
_SIGNATURE_CHARS = 104
_TIMESTAMP_CHARS = 7
_HASH_CHARS = 52
_KEY_CHARS = 53
# var_onion_optin (8), payment_secret (14) and option_payment_metadata (48), all required
_FEATURES = 1 << 8 | 1 << 14 | 1 << 48
# Networks by the prefix of their invoices; more networks than these share some of the prefixes (ngp/core/networks.py).
_NETWORKS = {"bc": "mainnet", "tb": "testnet", "tbs": "signet", "bcrt": "regtest", "sb": "simnet"}
_READABLE = re.compile(r"ln(bcrt|tbs|tb|bc|sb)(?:([0-9]{1,20})([munp]?))?")
_PICO = {"": 10**12, "m": 10**9, "u": 10**6, "n": 10**3, "p": 1}  # units in pico-bitcoin; 10 pico-bitcoin are one msat
_FIXED = {"p": _HASH_CHARS, "h": _HASH_CHARS, "s": _HASH_CHARS, "n": _KEY_CHARS}


@dataclass(frozen=True, slots=True)
class ParsedInvoice:
    """A BOLT11 invoice whose signature is valid.

    Attributes:
        prefix: `bc`, `tb`, `tbs`, `bcrt` or `sb`.
        timestamp_s: UTC seconds by the payee's clock.
        payee: compressed public key, hex.
    """

    prefix: str
    amount_msat: int | None
    timestamp_s: int
    expiry_s: int
    payment_hash: bytes
    payee: str
    memo: str
    metadata: bytes

    @property
    def network(self) -> str:
        """The network, or kind of network, of the prefix."""
        return _NETWORKS[self.prefix]

    def decoded(self, now_s: int, network: str | None = None) -> DecodedInvoice:
        """Return the parts that the core needs.

        Args:
            now_s: UTC seconds; `expires_in_s` is 0 or less if the invoice has expired.
            network: replaces the network that the prefix names.
        """
        return DecodedInvoice(
            payment_hash=self.payment_hash,
            amount_msat=self.amount_msat,
            expires_in_s=self.timestamp_s + self.expiry_s - now_s,
            payee=self.payee,
            network=network or self.network,
            memo=self.memo,
        )


def read(bolt11: str) -> ParsedInvoice:
    """Parse an invoice and check its signature.

    Raises:
        PeerError: with reason `invoice`, for all errors.
    """
    if len(bolt11) > INVOICE_CHARS_MAX:
        raise _wrong(f"{len(bolt11)} characters, at most {INVOICE_CHARS_MAX}")
    readable, data = bech32_decode(bolt11)
    if readable is None or data is None:
        raise _wrong("is not bech32, or its checksum is wrong")
    prefix, amount_msat = _read_amount(readable)
    body = data[:-_SIGNATURE_CHARS]
    if len(body) < _TIMESTAMP_CHARS:
        raise _wrong("is cut off")
    found = dict(_fields(body))
    payment_hash, memo = found.get("p"), found.get("d")
    if payment_hash is None or "s" not in found:
        raise _wrong("has no payment hash or no payment secret")
    if (memo is None) == ("h" not in found):
        raise _wrong("needs either a description or its hash")
    expiry_s = _number(found["x"]) if "x" in found else _DEFAULT_EXPIRY_S
    if expiry_s > EXPIRY_S_MAX:
        raise _wrong(f"is valid for longer than {EXPIRY_S_MAX} s")
    return ParsedInvoice(
        prefix=prefix,
        amount_msat=amount_msat,
        timestamp_s=_number(body[:_TIMESTAMP_CHARS]),
        expiry_s=expiry_s,
        payment_hash=_octets(payment_hash),
        payee=_check_signature(readable, body, data[-_SIGNATURE_CHARS:], found.get("n")),
        memo=_text(memo or []),
        metadata=_octets(found.get("m", [])),
    )


def write(
    key: bytes,
    prefix: str,
    amount_msat: int,
    timestamp_s: int,
    expiry_s: int,
    payment_hash: bytes,
    payment_secret: bytes,
    memo: str,
    metadata: bytes,
) -> str:
    """Make and sign an invoice.

    Args:
        key: the payee's secret key, 32 bytes.
        amount_msat: at least 1.
        memo: at most MEMO_BYTES_MAX in UTF-8.
        metadata: the `m` field, which the payer returns with the payment.
    """
    readable = f"ln{prefix}{_write_amount(amount_msat)}"
    body = (
        _digits(timestamp_s, _TIMESTAMP_CHARS)
        + _field("p", _fives(payment_hash))
        + _field("s", _fives(payment_secret))
        + _field("d", _fives(memo.encode()))
        + _field("x", _digits(expiry_s))
        + _field("m", _fives(metadata))
        + _field("9", _digits(_FEATURES))
    )
    signature = Signature.from_private_key(readable, key.hex(), _padded(body))
    return str(bech32_encode(readable, body + _fives(signature.signature_data)))


def _wrong(detail: str) -> PeerError:
    return PeerError("invoice", detail)


def _read_amount(readable: str) -> tuple[str, int | None]:
    match = _READABLE.fullmatch(readable)
    if match is None:
        raise _wrong("it doesn't begin with a known network and an amount")
    prefix, number, multiplier = match.groups()
    if number is None:
        return prefix, None
    amount_msat, rest = divmod(int(number) * _PICO[multiplier], 10)
    if rest or not 0 < amount_msat <= AMOUNT_MSAT_MAX:
        raise _wrong("its amount is zero, no whole number of msat, or more than all bitcoin")
    return prefix, amount_msat


def _write_amount(amount_msat: int) -> str:
    """Write an amount in its shortest form, as BOLT11 requires."""
    amount = amount_msat * 10
    for multiplier in "pnum":
        if amount % 1000:
            return f"{amount}{multiplier}"
        amount //= 1000
    return str(amount)


def _fields(body: list[int]) -> Iterator[tuple[str, list[int]]]:
    """Yield tag and content of each field. A tag that comes twice is refused: two programs might use different ones."""
    seen: set[str] = set()
    position = _TIMESTAMP_CHARS
    while position < len(body):
        head = body[position : position + 3]
        if len(head) < 3:
            raise _wrong("ends inside a field")
        tag, length = CHARSET[head[0]], head[1] * 32 + head[2]
        content = body[position + 3 : position + 3 + length]
        if len(content) < length:
            raise _wrong(f"field {tag} is longer than the invoice")
        position += 3 + length
        if tag not in "pshdnmx" or _FIXED.get(tag, length) != length:
            continue  # BOLT11: readers skip unknown fields, and fields with an unexpected length
        if tag in seen:
            raise _wrong(f"field {tag} comes twice")
        seen.add(tag)
        yield tag, content


def _check_signature(readable: str, body: list[int], signature: list[int], payee: list[int] | None) -> str:
    """Return the payee's public key. If the invoice names it (field `n`), the signature must be by that key."""
    checked = Signature(readable, _padded(body), _octets(signature))
    try:
        if payee is None:
            return str(checked.recover_public_key())
        named = _octets(payee).hex()
        checked.verify(named)
    except Exception as error:  # the library raises bare Exception and ValueError for hostile input
        raise _wrong(f"its signature is not valid ({type(error).__name__})") from error
    return named


def _text(fives: list[int]) -> str:
    try:
        return _octets(fives).decode()
    except UnicodeDecodeError as error:
        raise _wrong("its description is not UTF-8") from error


def _field(tag: str, content: list[int]) -> list[int]:
    return [CHARSET.index(tag), *_digits(len(content), 2), *content]


def _number(fives: list[int]) -> int:
    value = 0
    for five in fives:
        value = value << 5 | five
    return value


def _digits(value: int, length: int = 0) -> list[int]:
    length = length or -(-value.bit_length() // 5)
    return [value >> 5 * place & 31 for place in reversed(range(length))]


def _fives(octets: bytes) -> list[int]:
    return list(convertbits(octets, 8, 5) or [])


def _padded(fives: list[int]) -> bytes:
    """Return the signed bytes: the 5-bit groups, padded with zero bits to a whole byte."""
    return bytes(convertbits(fives, 5, 8) or [])


def _octets(fives: list[int]) -> bytes:
    return _padded(fives)[: len(fives) * 5 // 8]
