"""Lightning: whether our node's channels suit the trade with the neighbours, and what to do where they don't."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ngp import identity
from ngp.core.values import Channel
from ngp.core.world import Neighbour, World

PEER_PORT = 9735
# A block comes every ten minutes on average: a day.
BLOCKS_A_DAY = 144
TOP_UPS_AHEAD = 10


def peer_host(neighbour: Neighbour) -> str:
    """Return where a neighbour's Lightning node most likely listens: an address of its own, the usual port.

    Raises ValueError where the neighbour told no address; `--host` says it then.
    """
    for address in neighbour.addresses:
        if not address.is_link_local:
            return f"[{address}]:{PEER_PORT}" if address.version == 6 else f"{address}:{PEER_PORT}"
    raise ValueError("the neighbour told no address")


def advice(channels: Sequence[Channel], neighbours: Iterable[Neighbour], world: World) -> list[str]:
    """Say, for each neighbour that we trade with, what its channel lacks. Empty: all is well."""
    said: list[str] = []
    amount_sat = -(-world.settings.payment_amount_msat // 1000)
    for neighbour in neighbours:
        who, key = identity.short_text(neighbour.identity), neighbour.payee.hex()
        with_it = [one for one in channels if one.peer == key]
        buys_from_it = world.settings.buys and neighbour.sells
        if not with_it:
            if buys_from_it:
                size = max(TOP_UPS_AHEAD * amount_sat, 100_000)
                said.append(f"{who}: no channel; payments need a way through others. ngp lightning open {who} "
                            f"--amount {size}")  # fmt: skip
            continue
        usable = [one for one in with_it if one.active]
        if not usable:
            said.append(f"{who}: the channel is not active: is the neighbour's node up, and reachable?")
            continue
        if buys_from_it and max(one.ours_sat for one in usable) < amount_sat:
            said.append(f"{who}: less than PAYMENT_AMOUNT ({amount_sat} sat) can be sent: open another channel")
        if world.settings.sells and neighbour.buys and max(one.theirs_sat for one in usable) < amount_sat:
            said.append(f"{who}: less than PAYMENT_AMOUNT ({amount_sat} sat) can be received: it must open a channel "
                        "or be paid first")  # fmt: skip
        if max(one.least_htlc_msat for one in usable) > world.settings.payment_amount_msat:
            least = min(one.least_htlc_msat for one in usable)
            said.append(f"{who}: the channel takes no payment below {least} msat: raise PAYMENT_AMOUNT")
        if 0 < min(one.wait_blocks for one in usable) < BLOCKS_A_DAY:
            said.append(f"{who}: the peer could close with an old state while we are away for a day "
                        "(short CSV delay): keep the node online, or use a watchtower")  # fmt: skip
    return said
