"""Node key: a Lightning node's secp256k1 identity in a file, and signatures of messages as by `lnd signmessage`.

What is signed is the double SHA-256 of "Lightning Signed Message:" and the message. The signature has 65 bytes (header,
R, S), written in zbase32; the public key can be computed from it. Source: lnd's rpcserver.go (SignMessage); eclair and
Core Lightning (lightning-signmessage) do the same.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from bech32 import convertbits
from coincurve import PrivateKey, PublicKey

from ngp import durable_file
from ngp.errors import PaymentError

_KEY_BYTES = 32
_PREFIX = b"Lightning Signed Message:"
_ZBASE32 = "ybndrfg8ejkmcpqxot1uwisza345h769"
_SIGNATURE_CHARS = 104  # 65 bytes
_HEADER = 27 + 4  # first byte of a compact signature by a compressed key; the recovery id (0 to 3) is added to it


def load_or_make(path: Path) -> PrivateKey:
    """Read the key, or make one (0600) if there is none.

    Raises:
        PaymentError: the file can't be read, or isn't a key.
    """
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable_file.create(path, PrivateKey().secret)
        secret = path.read_bytes()
    except OSError as error:
        raise PaymentError(f"payment node's key {path}: {error.strerror}; make it readable for this user") from error
    try:
        if len(secret) != _KEY_BYTES:
            raise ValueError("wrong length")
        return PrivateKey(secret)
    except ValueError as error:
        raise PaymentError(f"payment node's key {path}: not a key of 32 bytes; restore it, or move it away") from error


def sign(key: PrivateKey, message: bytes) -> str:
    """Sign a message; returns 104 characters of zbase32."""
    signature = key.sign_recoverable(_PREFIX + message, hasher=_double_sha256)
    compact = bytes([_HEADER + signature[64]]) + signature[:64]
    return "".join(_ZBASE32[five] for five in convertbits(compact, 8, 5) or [])


def signer(message: bytes, signature: str) -> str | None:
    """Return the public key (hex) that signed a message, or None if the signature isn't valid."""
    if len(signature) != _SIGNATURE_CHARS or any(character not in _ZBASE32 for character in signature):
        return None
    compact = bytes(convertbits([_ZBASE32.index(character) for character in signature], 5, 8) or [])
    recovery = compact[0] - _HEADER
    if not 0 <= recovery <= 3:
        return None
    try:
        key = PublicKey.from_signature_and_message(
            compact[1:] + bytes([recovery]), _PREFIX + message, hasher=_double_sha256
        )
    except Exception:  # noqa: BLE001  coincurve raises no narrower class if no key fits
        return None
    return key.format().hex()


def _double_sha256(data: bytes) -> bytes:
    return sha256(sha256(data).digest()).digest()
