"""Mesh: a landlord that is a neighbour, asked over the mesh link by our own daemon.

Messages of the mesh link are signed by the neighbour's identity, so its key is all that a tenant must know of it. The
daemon carries bytes; the proofs are made here, and the WireGuard keys stay here.
"""

from __future__ import annotations

from collections.abc import Callable

import ngp.calls.landlord_pb2 as pb
from ngp.core.rental.calls import Call
from ngp.errors import LandlordError, NgpError
from ngp.tenant.calls import CallingLandlord
from ngp.tenant.landlord import NeighbourPlace

Ask = Callable[[str, bytes], bytes]
"""Has the daemon ask a neighbour, whose key is written in full. Returns its answer; raises NgpError."""


def mesh_landlord(place: NeighbourPlace, ask: Ask) -> CallingLandlord:
    """Return a neighbour as a landlord."""

    def carry(call: Call, proof: bytes) -> bytes:
        content = pb.Carried(method=call.method, request=call.request, proof=proof).SerializeToString()
        try:
            answer = ask(place.pin, content)
        except LandlordError:
            raise
        except NgpError as error:  # of our own daemon: it may be back in a moment
            raise LandlordError(f"landlord {place} can't be asked: {error}") from error
        if not answer:
            raise LandlordError(f"landlord {place} lets nothing to this router over the mesh: ask its operator")
        return answer

    return CallingLandlord(place, lambda: bytes.fromhex(place.pin), carry)
