"""Proof: a tenant proves that it has the private key of a WireGuard key, without a handshake of WireGuard.

Tenant and landlord have a secret in common: the X25519 product of one's private and the other's public key (RFC 7748).
HKDF (RFC 5869) turns this secret, both public keys, the landlord's identity and its session into a key that serves this
purpose only. The identity is the one that the tenant trusts: another landlord may name our tunnel's key and our session
as its own, but a proof that is made for it doesn't fit here.
The proof is an HMAC with that key over the method and the whole request. So a proof is good for one landlord, method,
request and session.
WireGuard hashes the same product with labels of its own, so neither protocol learns anything of the other's use.

A request has a nonce, taken from the session's clock. The landlord accepts a key's nonces only if they grow, and none
that is ahead of the clock: otherwise one request could use up all numbers. Nothing is remembered before a proof fits. A
session lives as long as the landlord's process, so after a crash no old request fits, and nothing of this is stored.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ngp.core.rental.calls import Call, Session
from ngp.errors import ProofError

KEY_BYTES = SESSION_BYTES = 32
MOST_AHEAD_US = 1_000_000
_LABEL = b"ngp proof of a WireGuard key v1"
_MOST_KEYS = 4096
_AGAIN = "ask for the offers, which name the session and its clock, then repeat the request"


def prove(private_key: X25519PrivateKey, session: Session, call: Call) -> bytes:
    """Return the tenant's proof of a key. Raises: ValueError: the landlord's key can't be used with X25519."""
    parties = session.landlord + private_key.public_key().public_bytes_raw() + session.tunnel_key
    return _proof(private_key, session.tunnel_key, parties, session.id, call)


def _proof(private_key: X25519PrivateKey, other: bytes, parties: bytes, session: bytes, call: Call) -> bytes:
    product = private_key.exchange(X25519PublicKey.from_public_bytes(other))
    key = HKDF(SHA256(), 32, salt=session, info=_LABEL + parties).derive(product)
    method = call.method.encode()
    return hmac.digest(key, bytes([len(method)]) + method + call.request, sha256)


class Proofs:
    """Checks proofs for one landlord, during one session.

    Args:
        identity: the landlord's.
        private_key: of the tunnel.
        now_s: monotonic seconds, now.
    """

    def __init__(self, identity: bytes, private_key: X25519PrivateKey, now_s: float) -> None:
        self._identity = identity
        self._private_key = private_key
        self._own = private_key.public_key().public_bytes_raw()
        self._id = secrets.token_bytes(SESSION_BYTES)
        self._began_s = now_s
        self._last: OrderedDict[bytes, int] = OrderedDict()
        """The last nonce of each key; the key without a call for longest is the first."""
        self._forgotten = 0
        """The largest nonce of a key that isn't remembered any more."""

    def session(self, now_s: float) -> Session:
        """Return what tenants must know."""
        return Session(self._identity, self._own, self._id, self._clock_us(now_s))

    def check(self, call: Call, nonce: int, proofs: Sequence[tuple[bytes, bytes]], now_s: float) -> None:
        """Accept a call once.

        Args:
            nonce: the one in the request.
            proofs: WireGuard keys of 32 bytes, each with its proof.
            now_s: monotonic seconds.
        Raises: ProofError: one of the proofs doesn't fit, or the nonce was used, or is ahead; nothing is remembered.
        """
        for key, proof in proofs:
            if not self._fits(key, proof, call):
                raise ProofError(f"the proof of the WireGuard key doesn't fit: {_AGAIN}")
        if nonce > self._clock_us(now_s) + MOST_AHEAD_US:
            raise ProofError(f"the nonce is ahead of the session's clock: {_AGAIN}")
        if any(nonce <= self._last.get(key, self._forgotten) for key, _ in proofs):
            raise ProofError(f"the nonce isn't above the last one of this key: {_AGAIN}")
        for key, _ in proofs:
            self._last[key] = nonce
            self._last.move_to_end(key)
        while len(self._last) > _MOST_KEYS:
            self._forgotten = max(self._forgotten, self._last.popitem(last=False)[1])

    def _fits(self, key: bytes, proof: bytes, call: Call) -> bool:
        try:
            right = _proof(self._private_key, key, self._identity + key + self._own, self._id, call)
        except ValueError:  # no key, or one whose product is 0 with every other
            return False
        return hmac.compare_digest(right, proof)

    def _clock_us(self, now_s: float) -> int:
        return int((now_s - self._began_s) * 1e6)
