"""gRPC: a landlord that is asked over the network, and known by its identity or by its Lightning node's key.

Every answer must be signed by that identity for the certificate of its connection. Until such an answer was checked,
only the question for the offers is sent. So somebody in between learns nothing of the tenant.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import ngp.calls.landlord_pb2 as pb
from ngp import identity, node_key
from ngp.calls.answering import GET_OFFERS, GET_STATUS
from ngp.calls.grpc import CONTENT_TYPE, binary_text, framed, read_binary, unframed
from ngp.calls.signature import PROOF, SERVICE, SIGNATURE, signed_bytes
from ngp.core.rental.calls import Call
from ngp.errors import ConfigError, LandlordError
from ngp.tenant import tls
from ngp.tenant.calls import CallingLandlord, read_reply
from ngp.tenant.landlord import FingerprintError, HostPlace, printable, read_host_port

USUAL_PORT = 50051
ANSWER_BYTES_MAX = 1 << 16
ANSWER_S = 35.0
"""How long an answer may take; a landlord's payment node may take 30 s for an invoice."""
WAIT_FOR_PAYMENT_S = 45.0
_IDENTITY_DIGITS, _NODE_DIGITS = 64, 66


class GrpcPlace(HostPlace):
    """Where a landlord is. Attributes: pin: its identity (64 small hex digits), or its Lightning node's key (66)."""

    __slots__ = ()
    face, usual_port, pin_key = "grpc", USUAL_PORT, "TrustedKey"


def read_grpc_place(written: str, pin: str) -> GrpcPlace:
    """Read HOST[:PORT], and a key. Raises ConfigError."""
    host, port = read_host_port(written, USUAL_PORT)
    digits = pin.strip().lower()
    if re.fullmatch(rf"[0-9a-f]{{{_IDENTITY_DIGITS}}}|0[23][0-9a-f]{{{_NODE_DIGITS - 2}}}", digits) is None:
        raise ConfigError(
            f"the pin {pin[:80]!r} is neither a landlord's identity ({_IDENTITY_DIGITS} hexadecimal digits) nor its "
            f"Lightning node's public key ({_NODE_DIGITS}): ask the landlord, whose `ngp check` says it"
        )
    return GrpcPlace(host, port, digits)


def grpc_landlord(place: GrpcPlace) -> CallingLandlord:
    """Return a landlord behind gRPC. Every method raises LandlordError or ConfigError; none stays connected."""
    carrier = _Carrier(place)
    payee = place.pin if len(place.pin) == _NODE_DIGITS else ""
    return CallingLandlord(place, carrier.identity, carrier.carry, payee)


class _Carrier:
    """Carries calls, and checks who answers them."""

    def __init__(self, place: GrpcPlace) -> None:
        self._place = place
        self._identity = bytes.fromhex(place.pin) if len(place.pin) == _IDENTITY_DIGITS else b""
        self._certificate = b""

    def identity(self) -> bytes:
        """Return the landlord's identity; b"" before the first answer, if only its node's key is known."""
        return self._identity

    def carry(self, call: Call, proof: bytes) -> bytes:
        """Return the answer to a call. Raises: LandlordError. FingerprintError: somebody else answers."""
        most_s = WAIT_FOR_PAYMENT_S if call.method == GET_STATUS else ANSWER_S
        with tls.connected(self._place, most_s, "h2") as connection:
            client = _Client(connection, str(self._place))
            if connection.certificate != self._certificate and call.method != GET_OFFERS:
                offers = pb.GetOffersRequest(ctx=pb.Ctx(nonce=secrets.randbits(63) + 1))
                self._checked(client, Call(GET_OFFERS, offers.SerializeToString()), b"")
            return self._checked(client, call, proof)

    def _checked(self, client: _Client, call: Call, proof: bytes) -> bytes:
        reply, signature = client.ask(call, proof)
        known = self._identity or self._vouched(reply)
        certificate = client.connection.certificate
        try:
            Ed25519PublicKey.from_public_bytes(known).verify(signature, signed_bytes(call, reply, certificate))
        except (InvalidSignature, ValueError):
            raise FingerprintError(
                f"landlord {self._place} doesn't sign as {self._place.pin[:16]}..., which is trusted: somebody else "
                "answers there, and was asked for offers only; check host and port, give the landlord's identity and "
                "not the fingerprint of its certificate, or ask it over another way whether its key changed"
            ) from None
        self._identity, self._certificate = known, certificate
        return reply

    def _vouched(self, reply: bytes) -> bytes:
        """Return the identity in the offers, for which the trusted Lightning node vouches."""
        found = read_reply(reply, self._place)
        if found.WhichOneof("result") != "offers":
            why = printable(found.failure.text)
            raise LandlordError(f"landlord {self._place} doesn't tell its offers: {why}; try again later")
        offers, key = found.offers, bytes(found.ctx.key)
        signer = node_key.signer(identity.payee_statement(key, offers.network), offers.node_signature)
        if signer != self._place.pin:
            raise FingerprintError(
                f"landlord {self._place} shows no signature of the Lightning node {self._place.pin[:16]}..., which you "
                "trust: trust the landlord's identity instead, or ask again when the landlord's ngp is connected to "
                "that node"
            )
        return key


class _Client:
    """The tenant's end of one connection: one call after the other."""

    def __init__(self, connection: tls.Connection, landlord: str) -> None:
        self.connection = connection
        self._landlord = landlord
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.initiate_connection()

    def ask(self, call: Call, proof: bytes) -> tuple[bytes, bytes]:
        """Send a request. Returns the reply and its signature. Raises: LandlordError, OSError."""
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", f"/{SERVICE}/{call.method}"),
            (":authority", self._landlord),
            ("content-type", CONTENT_TYPE),
            ("te", "trailers"),
        ]
        headers += [(PROOF, binary_text(proof))] if proof else []
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, headers)
            self._h2.send_data(number, framed(call.request), end_stream=True)
            body, found = self._reply(number)
        except (h2.exceptions.H2Error, UnicodeDecodeError) as error:
            raise self._no_grpc(type(error).__name__) from error
        if found.get("grpc-status") != "0":
            why = printable(found.get("grpc-message") or f"gRPC status {found.get('grpc-status')}")
            raise LandlordError(f"landlord {self._landlord} doesn't serve {call.method}: {why}")
        message = unframed(body)
        if message is None:
            raise self._no_grpc("its message has another length")
        return message, read_binary(found.get(SIGNATURE, "").encode())

    def _reply(self, number: int) -> tuple[bytes, dict[str, str]]:
        """Return the body and all headers of a reply."""
        body, found, taken = bytearray(), dict[str, str](), 0
        while True:
            self.connection.socket.sendall(self._h2.data_to_send())
            data = self.connection.socket.recv(4096)
            taken += len(data)
            if not data:
                raise self._no_grpc("the connection ended before the answer")
            if taken > ANSWER_BYTES_MAX:
                raise LandlordError(f"landlord {self._landlord} answers more than {ANSWER_BYTES_MAX} bytes: ask it")
            for event in self._h2.receive_data(data):
                if isinstance(event, h2.events.ConnectionTerminated | h2.events.StreamReset):
                    raise self._no_grpc("it ended the call")
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    found |= _texts(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    body += event.data
                if isinstance(event, h2.events.StreamEnded) and event.stream_id == number:
                    return bytes(body), found

    def _no_grpc(self, why: str) -> LandlordError:
        return LandlordError(f"landlord {self._landlord} doesn't answer as gRPC requires ({why}): check host and port")


def _texts(headers: Iterable[Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in headers}
