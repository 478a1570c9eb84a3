"""Identity: the node's own Ed25519 key, in STATE_DIR/identity.key, and how identities are written for people.

Anyone who reads the key can trade in this node's name and spend its money.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ngp import key_file
from ngp.errors import UsageError

KEY_FILE = "identity.key"
SHORT_DIGITS = 16


def load(state_dir: Path) -> Ed25519PrivateKey | None:
    """Read the identity key; None if there is none yet. Raises: as `load_or_create`."""
    return load_or_create(state_dir) if os.path.lexists(state_dir / KEY_FILE) else None


def load_or_create(state_dir: Path, new: Ed25519PrivateKey | None = None) -> Ed25519PrivateKey:
    """Read the identity key, or make one if there is none.

    Args: state_dir: an existing folder. new: the key to keep if there is none yet; None: a random one.
    Raises: ConfigError with file and remedy; MomentError: the disk is full, or a similar obstacle.
    """
    key = key_file.load_or_create(
        state_dir / KEY_FILE,
        "identity key",
        "identity",
        lambda: (new or Ed25519PrivateKey.generate()).private_bytes_raw(),
    )
    return Ed25519PrivateKey.from_private_bytes(key)


def public_key(private_key: Ed25519PrivateKey) -> bytes:
    """Return the identity: the 32 bytes of the public key."""
    return private_key.public_key().public_bytes_raw()


def payee_statement(identity: bytes, network: str) -> bytes:
    """Return the text that a payment node signs to confirm that it makes an identity's invoices.

    Args:
        identity: public key of the ngp node, 32 bytes.
        network: the payment network; the same keys may be used on several.
    """
    return b"ngp payee of " + identity.hex().encode() + b" on " + network.encode()


def text(identity: bytes) -> str:
    """Write an identity in full: 64 hex digits."""
    return identity.hex()


def short_text(identity: bytes) -> str:
    """Write an identity for a listing: its first 16 hex digits."""
    return identity.hex()[:SHORT_DIGITS]


def match(written: str, known: Iterable[bytes]) -> bytes:
    """Find the identity that begins with these hex digits, upper or lower case.

    Raises: UsageError if none or several do.
    """
    digits = written.strip().lower()
    if not digits or any(digit not in "0123456789abcdef" for digit in digits):
        raise UsageError(f"{written!r} is neither a neighbour's address nor a key: `ngp neighbours` lists both")
    found = sorted({identity for identity in known if identity.hex().startswith(digits)})
    if not found:
        raise UsageError(f"no neighbour's key begins with {written!r}; `ngp neighbours` lists the keys")
    if len(found) > 1:
        some = ", ".join(short_text(identity) for identity in found[:4])
        raise UsageError(f"{written!r} fits {len(found)} neighbours ({some}); write more digits")
    return found[0]
