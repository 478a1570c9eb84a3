"""Signature: what a landlord signs when it answers over gRPC, and the names by which both ends find each other.

The signature is made with the landlord's identity key, which the tenant pins. It covers the method, the request, the
reply and the certificate of the TLS connection, so a reply fits one question on one connection.
"""

from __future__ import annotations

from hashlib import sha256

from ngp.core.rental.calls import Call

SERVICE = "ngp.Landlord"
PROOF, SIGNATURE = "proof-bin", "sig-bin"
"""gRPC's header of a request with the proof of the WireGuard key, and the trailer of a reply with the signature."""
_LABEL = b"ngp reply of a landlord v1\n"


def signed_bytes(call: Call, reply: bytes, certificate: bytes) -> bytes:
    """Return what is signed. Args: certificate: SHA-256 of the DER of the server's certificate, 32 bytes."""
    method = call.method.encode()
    return _LABEL + bytes([len(method)]) + method + certificate + sha256(call.request).digest() + reply
