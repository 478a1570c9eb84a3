"""Standing: the reputation of a neighbour as a whole, which listings show."""

from __future__ import annotations

from ngp.core.reputation import STRANGERS_PPM
from ngp.core.selling import grace
from ngp.core.world import World


def reputation_ppm(world: World, identity: bytes) -> int:
    """Return a neighbour's reputation in millionths: that of its worse role, if it has accounts in both."""
    found = []
    if (client := world.clients.get(identity)) is not None:
        found.append(grace.standing(world, client))
    if (server := world.servers.get(identity)) is not None:
        found.append(server.reputation)
    return min((one.ppm(world.now.utc_s) for one in found), default=STRANGERS_PPM)
