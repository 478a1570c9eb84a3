"""Identity: the node's own Ed25519 key, in STATE_DIR/identity.key, and how identities are written for people.

Anyone who reads the key can trade in this node's name and spend its money, so the file has mode 0600. A file that
others can read is refused, not repaired: the key may be known already, and only the operator can judge that. The file
appears complete or not at all, so a crash can't leave half a key, and two daemons that start together use the same one.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ngp.errors import ConfigError, UsageError, passes, refused

KEY_FILE = "identity.key"
KEY_BYTES = 32
SHORT_DIGITS = 16


def load_or_create(state_dir: Path) -> Ed25519PrivateKey:
    """Read the identity key, or make one if there is none.

    Args: state_dir: an existing folder.
    Raises: ConfigError with file and remedy; MomentError: the disk is full, or a similar obstacle.
    """
    path = state_dir / KEY_FILE
    try:
        if not os.path.lexists(path):
            _create(path)
        return Ed25519PrivateKey.from_private_bytes(_read(path))
    except OSError as error:
        if passes(error):
            raise refused(f"identity key {path}", error, "try again") from error
        raise ConfigError(
            f"identity key {path}: {error.strerror}; choose a state directory that ngp can read and write (STATE_DIR)"
        ) from error


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


def _create(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(Ed25519PrivateKey.generate().private_bytes_raw())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, it doesn't replace a key that another process has just made
        except FileExistsError:
            return
    finally:
        os.unlink(temporary)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"identity key {path} isn't a regular file; move it away or restore it from a backup")
        if found.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"identity key {path} belongs to user {found.st_uid}; run: chown {os.geteuid()} {path}")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigError(
                f"identity key {path} has mode {stat.S_IMODE(found.st_mode):04o}, others can read or change it; if "
                f"nobody did, run: chmod 600 {path}; otherwise move it away, and the next start makes a new identity"
            )
        key = file.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"identity key {path} has {found.st_size} bytes instead of {KEY_BYTES}; restore it from a backup, "
            "or move it away, and the next start makes a new identity"
        )
    return key


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
