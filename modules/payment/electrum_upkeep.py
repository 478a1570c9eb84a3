"""Upkeep of an Electrum node: lists its channels and opens new ones.

Source: electrum/commands.py, lnchannel.py, lnpeer.py of Debian's python3-electrum 4.3.4.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ngp.core.channels import Channel, ChannelEnd, ChannelState
from ngp.core.pricing import SAT_MSAT
from ngp.errors import PaymentError, UsageError
from ngp.modules.payment.electrum_rpc import ElectrumError
from ngp.modules.payment.electrum_wallet import ElectrumWallet, btc
from ngp.ports.payment import ChainView

CONNECT_TIMEOUT_S = 20.0
OPEN_TIMEOUT_S = 60.0
_CONNECT_POLL_S = 0.2
# The largest minimum that a peer may ask for (lnutil.ChannelConfig.validate_params). Electrum doesn't report the actual
# one.
LEAST_HTLC_MSAT = 1_000
# Names of lnchannel.ChannelState. A CLOSED channel still waits for its coins, so it is listed; a REDEEMED one is over.
_STATES = {
    **dict.fromkeys(("PREOPENING", "OPENING", "FUNDED"), ChannelState.OPENING),
    **dict.fromkeys(
        ("SHUTDOWN", "CLOSING", "FORCE_CLOSING", "REQUESTED_FCLOSE", "WE_ARE_TOXIC", "CLOSED"), ChannelState.CLOSING
    ),
}
# Electrum's errors when a channel is opened, and what its operator can do.
_OPEN_REMEDIES = (
    ("Password required", "its wallet has a password, which ngp doesn't: `electrum open_channel`"),
    ("Insufficient funds", "its wallet holds less than that: send it coins (`electrum getunusedaddress`)"),
    ("funding_sat too low", "raise --amount"),
    ("funding_sat too high", "lower --amount, or open two channels"),
    ("Not a trampoline node", "`electrum setconfig use_gossip true`, and start its daemon again"),
)


class ElectrumUpkeep:
    """Channels of an Electrum node; implements `ngp.ports.ChannelManager`.

    Args:
        wallet: calls the node.
    """

    takes_csv_delay = False

    def __init__(self, wallet: ElectrumWallet) -> None:
        self._wallet = wallet
        self._hosts: dict[str, str] = {}

    async def chain(self) -> ChainView:
        """Return how far the node has followed the chain of its server."""
        told = await self._wallet.ask_daemon("getinfo")
        return ChainView(told["blockchain_height"], 0 < told["server_height"] <= told["blockchain_height"])

    async def channels(self) -> list[Channel]:
        """Return the open channels, active or not; both balances are rounded down to whole sat."""
        return [_channel(one) for one in await self._wallet.channels() if one["state"] == "OPEN"]

    async def pending_channels(self) -> list[Channel]:
        """Return the channels that are being opened or closed; Electrum doesn't report how long that takes."""
        found = [(one, _STATES.get(one["state"])) for one in await self._wallet.channels()]
        return [replace(_channel(one), state=state, active=False) for one, state in found if state]

    async def connect(self, peer: str, host: str) -> None:
        """Connect to another node, and return when it is connected; no error if it is connected already."""
        await self._wallet.ask("add_peer", connection_string=f"{peer}@{host}")
        self._hosts[peer] = host
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while not any(one["node_id"] == peer and one["initialized"] for one in await self._wallet.ask("list_peers")):
            if time.monotonic() > deadline:
                raise PaymentError(
                    f"node {peer} doesn't answer at {host}: is the neighbour's node up, and does it listen there? "
                    "If not, give its address with --host HOST:PORT"
                )
            await asyncio.sleep(_CONNECT_POLL_S)

    async def open_channel(self, peer: str, amount_sat: int, push_sat: int, csv_delay_blocks: int | None) -> str:
        """Open a private channel with a connected peer."""
        if csv_delay_blocks is not None:
            raise UsageError(
                f"Electrum takes the delay from its own settings: `electrum setconfig lightning_to_self_delay "
                f"{csv_delay_blocks}`, and open the channel without --csv-delay"
            )
        if peer not in self._hosts:
            raise PaymentError(f"node {peer} is not connected: connect first")
        words = {"connection_string": f"{peer}@{self._hosts[peer]}", "amount": btc(amount_sat)}
        try:
            return str(await self._wallet.ask("open_channel", OPEN_TIMEOUT_S, push_amount=btc(push_sat), **words))
        except ElectrumError as error:
            for said, remedy in _OPEN_REMEDIES:
                if said in error.detail:
                    raise PaymentError(f"Electrum opens no channel ({error.detail}): {remedy}") from error
            raise


def _channel(told: Mapping[str, Any]) -> Channel:
    return Channel(
        peer=told["remote_pubkey"],
        point=told["channel_point"],
        active=told["peer_state"] == "GOOD",
        private=True,  # Electrum announces no channel
        capacity_sat=told["local_balance"] + told["remote_balance"],
        least_htlc_msat=LEAST_HTLC_MSAT,
        our_wait_blocks=0,
        our_end=_end(told, "local"),
        their_end=_end(told, "remote"),
    )


def _end(told: Mapping[str, Any], whose: str) -> ChannelEnd:
    """Read what one end may send. Electrum itself already leaves room for a rise of the commitment's fee."""
    sent_sat = told[f"{whose}_unsettled_sent"]
    return ChannelEnd(
        balance_msat=(told[f"{whose}_balance"] - sent_sat) * SAT_MSAT,
        held_back_msat=told[f"{whose}_reserve"] * SAT_MSAT,
        least_htlc_msat=LEAST_HTLC_MSAT,
        in_flight_msat=sent_sat * SAT_MSAT,
    )
