"""Upkeep of an LND node: lists its channels and watchtowers, opens channels, adds towers.

Payments work without this. So if the macaroon lacks the right to read something, that part is left out, without an
error.

Source: https://lightning.engineering/api-docs/api/lnd/ (Lightning, WatchtowerClient)
"""

from __future__ import annotations

import time

import grpc

from ngp.core.channels import Channel
from ngp.errors import PaymentError, UsageError
from ngp.modules.payment import lnd_client as client
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment.lnd_channel import channel, pending
from ngp.modules.payment.lnd_client import CALL_TIMEOUT_S, LndClient, LndError
from ngp.ports.payment import ChainView, Tower, Watch

OPEN_TIMEOUT_S = 60.0
POLICY_LASTS_S = 600.0
_KEY_BYTES = 33
# Errors of LND, or of the peer's LND, when a channel is opened, and what the operator can do.
_OPEN_REMEDIES = {
    "before the wallet is fully synced": "wait until `ngp lightning status` calls the node synced",
    "synchronizing blockchain": "the neighbour's node isn't synced yet: try again later",
    "channel is too small": "raise --amount",
    "below min chan size": "raise --amount",
    "funding amount is too large": "lower --amount, or open two channels",
    "exceeds maximum chan size": "lower --amount, or open two channels",
    "not enough witness outputs": "the node's wallet holds less than that: send it coins (lncli newaddress p2wkh)",
    "insufficient funds": "the node's wallet holds less than that: send it coins (lncli newaddress p2wkh)",
    "funder balance too small": "lower --push, or raise --amount",
    "must be below the local funding amount": "lower --push",
    "csv delay too large": "lower --csv-delay, or the neighbour raises bitcoin.maxlocaldelay in its lnd.conf",
    "pending channels exceed": "wait for the channel that is being opened; `ngp lightning status` shows it",
    "is not online": "is the neighbour's node up? Give its address with --host HOST:PORT",
}
_UNSURE = "LND doesn't say whether the channel is being opened: look at `ngp lightning status` before another try"
_CONNECT_REMEDY = "is the neighbour's node up, and does it listen there? If not, give its address with --host HOST:PORT"
_NOT_ACTIVE = "watchtower client not active"


class LndUpkeep:
    """Channels and towers of an LND node; implements `ngp.ports.ChannelManager` and `TowerManager`.

    Args:
        asked: calls the node.
    """

    takes_csv_delay = True

    def __init__(self, asked: LndClient) -> None:
        self._client = asked
        self._policies: dict[int, tuple[float, pb.ChannelEdge | None]] = {}

    # --- channels -----------------------------------------------------------------------------------------------------

    async def chain(self) -> ChainView:
        """Return how far the node has followed the chain."""
        answer = await self._client.call(client.GET_INFO, pb.GetInfoRequest())
        return ChainView(answer.block_height, answer.synced_to_chain)

    async def channels(self) -> list[Channel]:
        """Return the open channels, active or not."""
        found = (await self._client.call(client.LIST_CHANNELS, pb.ListChannelsRequest())).channels
        return [channel(one, await self._policies_of(one.chan_id)) for one in found]

    async def _policies_of(self, channel_id: int) -> pb.ChannelEdge | None:
        """Return the policies of both ends. They are needed after each payment, so they may be some minutes old."""
        asked_at_s, known = self._policies.get(channel_id, (-POLICY_LASTS_S, None))
        if time.monotonic() - asked_at_s < POLICY_LASTS_S:
            return known
        try:
            known = await self._client.call(client.CHANNEL_INFO, pb.ChanInfoRequest(chan_id=channel_id))
        except LndError as error:
            if not error.forbidden:  # the channel is so young that the node's graph lacks it
                return None
            known = None
        if known is None or (known.node1_policy.min_htlc and known.node2_policy.min_htlc):
            self._policies[channel_id] = (time.monotonic(), known)  # not kept until both ends have announced theirs
        return known

    async def pending_channels(self) -> list[Channel]:
        """Return the channels that are being opened or closed; none if the macaroon lacks the right to list them."""
        try:
            return pending(await self._client.call(client.PENDING_CHANNELS, pb.PendingChannelsRequest()))
        except LndError as error:
            if error.forbidden:
                return []
            raise

    async def connect(self, peer: str, host: str) -> None:
        """Connect to another node, and return when it is connected; no error if it is connected already."""
        where = pb.LightningAddress(pubkey=peer, host=host)
        try:
            await self._client.call(client.CONNECT_PEER, pb.ConnectPeerRequest(addr=where))
        except LndError as error:
            if "already" in error.detail:
                return
            if error.forbidden or error.code is grpc.StatusCode.UNAVAILABLE:
                raise
            late = error.code is grpc.StatusCode.DEADLINE_EXCEEDED
            why = f"no answer within {CALL_TIMEOUT_S:g} s" if late else error.detail
            raise PaymentError(f"{peer}@{host} can't be reached ({why}): {_CONNECT_REMEDY}") from error

    async def open_channel(self, peer: str, amount_sat: int, push_sat: int, csv_delay_blocks: int | None) -> str:
        """Open a private channel with a connected peer."""
        ask = pb.OpenChannelRequest(
            node_pubkey=key_bytes(peer),
            local_funding_amount=amount_sat,
            push_sat=push_sat,
            private=True,
            remote_csv_delay=csv_delay_blocks or 0,
        )
        try:
            point = await self._client.call(client.OPEN_CHANNEL, ask, OPEN_TIMEOUT_S)
        except LndError as error:
            if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise PaymentError(_UNSURE) from error
            said = error.detail.lower()
            remedy = next((remedy for words, remedy in _OPEN_REMEDIES.items() if words in said), "")
            if not remedy:
                raise
            raise PaymentError(f"no channel of {amount_sat} sat: {error.detail}; {remedy}") from error
        return f"{point.funding_txid_bytes[::-1].hex()}:{point.output_index}"

    # --- watchtowers --------------------------------------------------------------------------------------------------

    async def watch(self) -> Watch:
        """Return the node's towers and the backups that they got; if we lack the right to ask, `unknown` says that."""
        try:
            asked = pb.ListTowersRequest(include_sessions=True)
            towers = (await self._client.call(client.LIST_TOWERS, asked)).towers
            stats = await self._client.call(client.TOWER_STATS, pb.StatsRequest())
        except LndError as error:
            if _NOT_ACTIVE in error.detail:
                return Watch()
            if error.forbidden:
                return Watch(unknown=str(error))
            raise
        return Watch(
            True, tuple(map(_tower, towers)), stats.num_backups, stats.num_pending_backups, stats.num_failed_backups
        )

    async def add_tower(self, key: str, address: str) -> None:
        """Let a tower watch our channels; a second call adds an address."""
        asked = pb.AddTowerRequest(pubkey=key_bytes(key), address=address)
        try:
            await self._client.call(client.ADD_TOWER, asked)
        except LndError as error:
            raise _tower_error(error, f"{key}@{address}") from error

    async def remove_tower(self, key: str) -> None:
        """Stop sending backups to a tower."""
        try:
            await self._client.call(client.REMOVE_TOWER, pb.RemoveTowerRequest(pubkey=key_bytes(key)))
        except LndError as error:
            raise _tower_error(error, key) from error


def key_bytes(text: str) -> bytes:
    """Read a node's or a tower's public key. Raises UsageError."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise UsageError(f"{text!r} is no public key of a Lightning node: it has 66 hexadecimal digits")
    return key


def _tower_error(error: LndError, what: str) -> PaymentError:
    said = error.detail.lower()
    if _NOT_ACTIVE in said:
        return PaymentError("LND's watchtower client is off: write wtclient.active=1 into lnd.conf, and restart LND")
    if "invalid address" in said or "lookup" in said:
        return PaymentError(f"watchtower {what}: its address can't be used ({error.detail}); write PUBKEY@HOST:PORT")
    if "public key" in said or "pubkey" in said:
        return PaymentError(f"watchtower {what}: that is no key ({error.detail}); `lncli tower info` there shows it")
    if "not found" in said:
        return PaymentError(f"watchtower {what} isn't known: `ngp lightning tower list` lists the known ones")
    if "unacked" in said or "un-acked" in said:
        return PaymentError(f"watchtower {what} still waits for backups ({error.detail}): add another, and try later")
    return error


def _tower(told: pb.Tower) -> Tower:
    sessions = [session for kind in told.session_info for session in kind.sessions]
    return Tower(
        key=told.pubkey.hex(),
        addresses=tuple(told.addresses),
        used=any(kind.active_session_candidate for kind in told.session_info),
        sessions=len(sessions),
        backups=sum(session.num_backups for session in sessions),
        pending_backups=sum(session.num_pending_backups for session in sessions),
    )
