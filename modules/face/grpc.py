"""gRPC: the face for tenants who prove their WireGuard key, and who know the landlord by its identity.

Calls are answered by `ngp.calls.answering`. Each reply, refusals too, is signed with the identity key, over the method,
the request, and the certificate of the connection. So it can't be passed off as the answer to another question, and a
man in the middle, whose certificate is another one, is found out by the first reply. That is why the certificate
itself needs no authority and no pin. Source: btc-lsp's authentication, whose weak points this closes.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ngp import identity
from ngp.calls.answering import ADD_CREDIT, BUSY, Answering, Asking
from ngp.calls.signature import PROOF, SERVICE, SIGNATURE, signed_bytes
from ngp.core.rental.calls import Call
from ngp.core.rental.terms import LettingSettings
from ngp.core.values import Check
from ngp.errors import NgpError
from ngp.modules.face.certificate import CertificateFiles
from ngp.modules.face.door import Door, Limits, Requests, shown
from ngp.modules.face.http2 import UNIMPLEMENTED, Http2Connection, RemoteCall, RemoteReply
from ngp.modules.face.tls import TlsStream
from ngp.ports import LettingService

FACE = "grpc"
CERTIFICATE = "grpc.pem"

_log = logging.getLogger("ngp")


class GrpcFace:
    """Serves calls over gRPC; implements `ngp.ports.Face`.

    Args: state_dir: has the identity, and the certificate.
    """

    def __init__(self, state_dir: Path, limits: Limits | None = None) -> None:
        self._state_dir = state_dir
        place = state_dir / CERTIFICATE
        self._files = CertificateFiles(place, place, is_ours=True, what="certificate of the gRPC face", anew="")
        self._limits = limits = limits or Limits()
        self._door = Door("LANDLORD_GRPC", limits, self._converse)
        self._requests = Requests(limits)
        self._key: Ed25519PrivateKey | None = None
        self._pin = b""
        self._answering: Answering | None = None

    async def open(self, letting: LettingService, settings: LettingSettings) -> None:
        """Serve as net.conf says. Raises: ConfigError, KernelError; then everything stays as it was."""
        if not settings.grpc:
            await self.close()
            return
        self._files.make_if_missing()
        context, pin = self._files.context("h2"), self._files.pin()
        self._key = self._key or identity.load_or_create(self._state_dir)
        public = identity.public_key(self._key)
        most_waiting = self._limits.first_invoices_of_one
        self._answering = self._answering or Answering(letting, public, FACE, most_waiting)
        is_news = await self._door.open(settings.grpc, context)
        self._pin = bytes.fromhex(pin)
        if is_news:
            _log.info("tenants may rent over gRPC at %s, pin %s", shown(settings.grpc), identity.text(public))

    def check(self, settings: LettingSettings) -> list[Check]:
        """Return the pin that tenants need, and what keeps the face from listening."""
        if not settings.grpc:
            return []
        try:
            key = identity.load(self._state_dir)
        except NgpError as error:
            return [Check("grpc", False, str(error), kind="configuration")]
        pin = identity.text(identity.public_key(key)) if key is not None else "is made at the start"
        why_not = self._door.check(settings.grpc)
        pinned = Check("grpc", True, f"{shown(settings.grpc)}; pin {pin}")
        return [pinned, *([Check("grpc", False, why_not, kind="kernel")] if why_not else [])]

    async def close(self) -> None:
        """Stop serving, and end all connections; safe to call twice."""
        await self._door.close()

    async def _converse(self, stream: TlsStream, who: Hashable) -> None:
        await Http2Connection(stream, self._limits.bounds, self._door, partial(self._answer, who, self._pin)).serve()

    async def _answer(self, who: Hashable, certificate: bytes, remote: RemoteCall) -> RemoteReply:
        """Answer one call. Args: certificate: the fingerprint of the certificate that the connection shows."""
        assert self._answering is not None and self._key is not None
        service, _, method = remote.path.removeprefix("/").partition("/")
        if service != SERVICE or method not in self._answering.methods:
            return RemoteReply(status=UNIMPLEMENTED, why=f"there is no such method; {SERVICE} has others")
        call = Call(method, remote.request)
        if why_not := await self._requests.refusal(who, method == ADD_CREDIT):
            reply = self._answering.refusal(call, BUSY, why_not)
        else:
            with self._requests.holding() as hold_s:
                reply = await self._answering.answer(call, remote.binary.get(PROOF, b""), Asking(who, hold_s))
        message = reply.SerializeToString()
        signature = self._key.sign(signed_bytes(call, message, certificate))
        return RemoteReply(message, ((SIGNATURE, signature),))
