"""Lightning: whether our node's channels suit the trade with neighbours, what watches the channels, and what to do.

A peer can close a channel with an old state and so take back what it has paid since. We, or a watchtower, can punish
that until the CSV delay is over. A node in a mesh is away at times, so each channel needs a long CSV delay or a tower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ngp import identity
from ngp.core.channels import Channel, ChannelState
from ngp.core.host_port import join_host_port
from ngp.core.peers import Neighbour
from ngp.core.pricing import SAT_MSAT, ceil_to_sat_msat
from ngp.core.settings import Settings
from ngp.core.values import Check
from ngp.core.world import World
from ngp.errors import PaymentError, UsageError
from ngp.ports import ChannelManager, Payment, TowerManager
from ngp.ports.payment import ChainView, Watch

PEER_PORT = 9735
TOWER_PORT = 9911
# A block comes every ten minutes on average.
BLOCKS_A_DAY = 144
TOP_UPS_AHEAD = 10
# The smallest channel that Electrum opens or accepts (lnutil.MIN_FUNDING_SAT); LND's minimum is lower.
LEAST_CHANNEL_SAT = 200_000
SAFETY = "watchtower"
CHAIN = "chain"
WAIT_FOR_SYNC = "let the node catch up; if it doesn't, check that its chain back end or server is up"
ADD_A_TOWER = "ngp lightning tower add PUBKEY@HOST:PORT"
SWITCH_ON = "write wtclient.active=1 into lnd.conf, and restart LND"
_KEY = re.compile(r"0[23][0-9a-f]{64}")
_PLACE = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:@/\s]+)(:(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a channel doesn't suit, and the command or the setting that mends it."""

    why: str
    remedy: str


# --- words of a command -----------------------------------------------------------------------------------------------


def tower_place(text: str) -> tuple[str, str]:
    """Read PUBKEY@HOST:PORT; returns key and `host:port`. Raises UsageError."""
    key, at, place = text.partition("@")
    if not at:
        raise UsageError(f"{text!r} is no watchtower: write PUBKEY@HOST:PORT, as `lncli tower info` shows at the tower")
    return tower_key(key), host_port(place, TOWER_PORT)


def tower_key(text: str) -> str:
    """Read a tower's public key. Raises UsageError."""
    if not _KEY.fullmatch(text.lower()):
        raise UsageError(f"{text!r} is no watchtower's key: it has 66 hexadecimal digits and begins with 02 or 03")
    return text.lower()


def host_port(text: str, usual_port: int) -> str:
    """Read HOST or HOST:PORT, an IPv6 address in brackets. Raises UsageError."""
    found = _PLACE.fullmatch(text)
    port = int(found["port"] or usual_port) if found else 0
    if found is None or not 0 < port < 65536:
        raise UsageError(f"{text!r} is not HOST:PORT: write 192.0.2.1:{usual_port} or [2001:db8::1]:{usual_port}")
    return f"{found['host']}:{port}"


def peer_host(neighbour: Neighbour) -> str:
    """Return where a neighbour's Lightning node most likely listens: an address of the neighbour, the usual port.

    Raises UsageError if the neighbour announced no address; then the operator must give it with `--host`.
    """
    for address in neighbour.addresses:
        if not address.is_link_local:
            return join_host_port(str(address), PEER_PORT)
    raise UsageError("the neighbour announced no address for its node: give one with --host HOST:PORT")


# --- what suits -------------------------------------------------------------------------------------------------------


def lacks(channel: Channel, neighbour: Neighbour, world: World) -> list[Lack]:
    """Return what a channel lacks for trading with a neighbour; empty if it suits."""
    settings = world.settings
    who, amount_sat = identity.short_text(neighbour.identity), _amount_sat(settings)
    if channel.state is not ChannelState.OPEN:
        return [Lack(f"the channel is {channel.state}", "wait for the blocks that are left")]
    if not channel.active:
        return [Lack("the peer isn't connected", f"lncli connect {channel.peer}@HOST:PORT, if its node is up")]
    found = []
    sends, receives = settings.buys and neighbour.sells, settings.sells and neighbour.buys
    can_send, can_receive = channel.can_send_sat >= amount_sat, channel.can_receive_sat >= amount_sat
    # Where both neighbours buy and sell, one direction is enough: a payment the one way makes room for one back.
    if sends and not can_send and not (receives and can_receive):
        why = f"{channel.can_send_sat} sat can be sent, less than PAYMENT_AMOUNT ({amount_sat} sat)"
        found.append(Lack(why, _open_line(who, amount_sat)))
    if receives and not can_receive and not (sends and can_send):
        why = f"{channel.can_receive_sat} sat can be received, less than PAYMENT_AMOUNT ({amount_sat} sat)"
        found.append(Lack(why, "let the neighbour open a channel with us (ngp lightning open on its router)"))
    if channel.least_htlc_msat > settings.payment_amount_msat:
        least_sat = ceil_to_sat_msat(channel.least_htlc_msat) // SAT_MSAT
        why = f"the channel takes no payment below {least_sat} sat"
        found.append(Lack(why, f"PAYMENT_AMOUNT: {least_sat} sat; ngp reload"))
    return found


def is_safe(channel: Channel, watch: Watch, settings: Settings) -> bool:
    """Say whether an old state would be punished although our node is away at times: by a tower, or by us in time."""
    return (
        watch.watched
        or channel.state is not ChannelState.OPEN
        or not channel.their_wait_blocks  # the node doesn't say
        or channel.their_wait_blocks >= settings.csv_delay_blocks
    )


def safety(channels: Sequence[Channel], watch: Watch, settings: Settings) -> Check:
    """Return the line of `ngp check` on what would punish an old state of our channels; a warning if nothing would."""
    in_use = [one for one in channels if one.state is ChannelState.OPEN]
    if not in_use:
        return Check(SAFETY, True, "no open channel yet")
    shortest = min((one.their_wait_blocks for one in in_use if one.their_wait_blocks), default=0)
    if not shortest and not watch.watched:
        return Check(SAFETY, True, "not known: this node reports neither CSV delays nor watchtowers")
    if watch.watched:
        using = sum(tower.used and tower.sessions > 0 for tower in watch.towers)
        backups = sum(tower.backups for tower in watch.towers)
        return Check(SAFETY, True, f"{using} in use, {backups} backups; {watch.pending_backups} wait to be sent")
    if shortest >= settings.csv_delay_blocks:
        found = f"none; each channel's CSV delay is {blocks(shortest)} or more; don't be away for longer"
        return Check(SAFETY, True, found)
    short = sum(not is_safe(one, watch, settings) for one in in_use)
    less = f"CSV_DELAY: {shortest}, if this node is never away for more than {shortest} blocks"
    found = (
        f"none in use ({watch.unknown or _tower_state(watch)}), and {short} of {len(in_use)} open channels have a CSV "
        f"delay below {blocks(settings.csv_delay_blocks)} (CSV_DELAY), the shortest {blocks(shortest)}: if this node "
        "is away longer, the peer can close the channel with an old state and take back what it paid since"
    )
    return Check(SAFETY, True, found, f"{_tower_remedy(watch)}; or {less}")


def advice(
    channels: Sequence[Channel], neighbours: Iterable[Neighbour], world: World, watch: Watch, chain: ChainView
) -> list[str]:
    """Return what the channels with our neighbours lack, each with the next command; empty if all is well."""
    said: list[str] = []
    if not chain.synced:
        said.append(f"{_behind(chain)}. Next: {WAIT_FOR_SYNC}")
    for neighbour in neighbours:
        who, key = identity.short_text(neighbour.identity), neighbour.payee.hex()
        with_it = [one for one in channels if one.peer == key]
        if not with_it and world.settings.buys and neighbour.sells:
            how = _open_line(who, _amount_sat(world.settings)) if chain.synced else "open one when the node is synced"
            said.append(f"{who}: no channel; payments need a route through other nodes. Next: {how}")
        best: list[Lack] = min((lacks(one, neighbour, world) for one in with_it), key=len, default=[])
        said += [f"{who}: {lack.why}. Next: {lack.remedy}" for lack in best]
    safe = safety(channels, watch, world.settings)
    if safe.remedy:
        said.append(f"watchtower: {safe.found}. Next: {safe.remedy}")
    return said


async def look(payment: Payment, settings: Settings) -> list[Check]:
    """Ask the node whether it follows the chain, and what watches its channels.

    Returns no line if the node has no channels, or can't be asked (another line of `ngp check` says why).
    """
    if not isinstance(payment, ChannelManager):
        return []
    try:
        chain = await payment.chain()
        behind = [] if chain.synced else [Check(CHAIN, True, _behind(chain), WAIT_FOR_SYNC)]
        return [*behind, safety(await payment.channels(), await watch_of(payment), settings)]
    except PaymentError:
        return []


async def watch_of(payment: Payment) -> Watch:
    """Ask the node for its towers. Raises PaymentError."""
    if isinstance(payment, TowerManager):
        return await payment.watch()
    return Watch(unknown="this payment module knows of no watchtowers")


def blocks(count: int) -> str:
    """Write a number of blocks with the time that they take."""
    days = count / BLOCKS_A_DAY
    return f"{count} blocks (about {f'{days:.0f} days' if days >= 2 else f'{days * 24:.0f} h'})"


def _behind(chain: ChainView) -> str:
    where = f"is behind the chain, at block {chain.height}" if chain.height >= 0 else "has heard of no block yet"
    return f"the node {where}: it can't watch its channels, and opens none, until it is synced"


def _tower_state(watch: Watch) -> str:
    if not watch.active:
        return "the node's watchtower client is off"
    return "no tower has agreed on a session" if watch.towers else "no tower is known"


def _tower_remedy(watch: Watch) -> str:
    if watch.unknown:
        return "bake a new macaroon, with which ngp may see the towers"
    if not watch.active:
        return f"{SWITCH_ON}; then {ADD_A_TOWER}"
    if watch.towers:
        return "check that a tower is up and reachable (`ngp lightning tower list`), or add another"
    return ADD_A_TOWER


def _amount_sat(settings: Settings) -> int:
    return ceil_to_sat_msat(settings.payment_amount_msat) // SAT_MSAT


def _open_line(who: str, amount_sat: int) -> str:
    return f"ngp lightning open {who} --amount {max(TOP_UPS_AHEAD * amount_sat, LEAST_CHANNEL_SAT)}"
