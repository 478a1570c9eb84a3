"""Mesh: the face for neighbours, whose calls are messages of the mesh link.

The link's signatures say which neighbour asks, and the link delivers no message twice. So an answer needs no signature
of its own. A call proves its WireGuard key nevertheless: a neighbour must not see, or ask for, what another one rents.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from google.protobuf.message import DecodeError

import ngp.calls.landlord_pb2 as pb
from ngp import identity
from ngp.calls.answering import ADD_CREDIT, BUSY, MALFORMED, Answering, Asking
from ngp.core.rental.calls import Call
from ngp.core.rental.terms import LettingSettings
from ngp.core.values import Check
from ngp.modules.face.door import Limits, Requests
from ngp.ports import LettingService

FACE = "mesh"


class MeshFace:
    """Answers neighbours' calls; implements `ngp.ports.NeighbourFace`.

    Args: state_dir: has the identity.
    """

    def __init__(self, state_dir: Path, limits: Limits | None = None) -> None:
        self._state_dir = state_dir
        self._limits = limits or Limits()
        self._requests = Requests(self._limits)
        self._answering: Answering | None = None
        self._is_open = False

    async def open(self, letting: LettingService, settings: LettingSettings) -> None:
        """Answer neighbours, or say that nothing is let to them, as net.conf says. Raises: ConfigError."""
        self._is_open = settings.mesh
        if self._is_open and self._answering is None:
            public = identity.public_key(identity.load_or_create(self._state_dir))
            self._answering = Answering(letting, public, FACE, self._limits.first_invoices_of_one)

    def check(self, settings: LettingSettings) -> list[Check]:
        """Return no checks: neighbours know this node already, and no port is needed."""
        return []

    async def close(self) -> None:
        """Let nothing to neighbours any more."""
        self._is_open = False

    async def answer(self, content: bytes, neighbour: bytes, who: Hashable) -> bytes:
        """Answer a neighbour's call; the answer is empty if LANDLORD_MESH is `no`.

        Args: neighbour: the neighbour's identity. who: its link address, and our interface there.
        """
        if not self._is_open or self._answering is None:
            return b""
        reply = await self._reply(self._answering, content, neighbour, who)
        return reply.SerializeToString()

    async def _reply(self, answering: Answering, content: bytes, neighbour: bytes, who: Hashable) -> pb.Reply:
        try:
            carried = pb.Carried.FromString(content)
        except DecodeError:
            carried = pb.Carried()
        call = Call(carried.method, carried.request)
        if why_not := await self._requests.refusal(who, call.method == ADD_CREDIT):
            return answering.refusal(call, BUSY, why_not)
        if call.method not in answering.methods:
            known = ", ".join(sorted(answering.methods))
            return answering.refusal(call, MALFORMED, f"there is no such method; there are {known}")
        with self._requests.holding() as hold_s:
            return await answering.answer(call, carried.proof, Asking(who, hold_s, neighbour))
