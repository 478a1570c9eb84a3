"""Keys: a tunnel's WireGuard keys. The private one never leaves this machine."""

from __future__ import annotations

import base64
import binascii

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ngp.errors import ConfigError


def new_private_key() -> str:
    """Make a key, as `wg genkey` writes it."""
    return base64.b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode()


def public_key(private_key: str) -> str:
    """Return the public key of a private one. Raises ConfigError, without the key."""
    try:
        secret = base64.b64decode(private_key, validate=True)
        public = X25519PrivateKey.from_private_bytes(secret).public_key()
    except (binascii.Error, ValueError):
        raise ConfigError("a WireGuard private key is damaged: restore the file from its backup") from None
    return base64.b64encode(public.public_bytes_raw()).decode()
