"""Money: the payment network of a mesh. Wallets without bounds, or channels between neighbours that can run dry.

A channel has a fixed size; what one end gains, the other end loses. A node that finds its end dry swaps coins of the
chain for balance, which takes time and costs a fee that leaves the mesh. All else adds up to zero, to the msat.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from core_tests.simulate.stand_ins import PaymentNetwork
from ngp.core.payment_node import PaymentOutcome, PaymentStatus, Settlement

SWAP_TAKES_S = 60.0
SWAP_FEE_PPM = 2_000


@dataclass(slots=True)
class Wallet:
    """What a node's payments came to; the sums are msat.

    Attributes:
        received_msat, sent_msat: by `arrivals` and `payments` in the mesh.
        refusals: payments that failed as the channel was dry.
        swaps: how often it refilled a channel, for `fees_msat` in all.
        coins_msat: how much more it has on the chain than at the start, before fees: swaps move it there and back.
    """

    received_msat: int = 0
    arrivals: int = 0
    sent_msat: int = 0
    payments: int = 0
    refusals: int = 0
    swaps: int = 0
    fees_msat: int = 0
    coins_msat: int = 0


class Wallets(PaymentNetwork):
    """All wallets and channels.

    Args:
        channel_msat: size of each channel, which is half full at both ends at first; None: payments aren't bounded.

    Attributes:
        moved: what was paid, by payer and payee.
        settled: is told of each payment that arrived, with its payee. later: does something after some seconds.
    """

    def __init__(self, chance: random.Random, channel_msat: int | None = None) -> None:
        super().__init__(chance)
        self.channel_msat = channel_msat
        self.of: dict[str, Wallet] = {}
        self.moved: dict[tuple[str, str], int] = {}
        self.settled: Callable[[str, Settlement], None] | None = None
        self.later: Callable[[float, Callable[[], None]], None] | None = None
        self._ends: dict[tuple[str, str], int] = {}
        self._swapping: set[tuple[str, str]] = set()

    def wallet(self, owner: str) -> Wallet:
        """Return a node's wallet."""
        return self.of.setdefault(owner, Wallet())

    def end_msat(self, owner: str, other: str) -> int:
        """Return what a node can send in its channel with another one."""
        assert self.channel_msat is not None
        return self._ends.setdefault((owner, other), self.channel_msat // 2)

    def pay(self, payer: str, payment_hash: bytes, fee_limit_msat: int) -> PaymentOutcome:
        """Pay an invoice over the channel with its owner, unless that is dry."""
        owner, amount_msat = self.invoices.get(payment_hash, ("", 0))
        bounded = self.channel_msat is not None and owner and payment_hash not in self.paid
        if bounded and self.end_msat(payer, owner) < amount_msat:
            self.wallet(payer).refusals += 1
            self._swap_soon(payer, owner)
            return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason="the channel is dry")
        return super().pay(payer, payment_hash, fee_limit_msat)

    def settle(self, payer: str, payment_hash: bytes) -> PaymentOutcome:
        """Move the money, once, and tell its payee."""
        is_new = payment_hash not in self.paid
        outcome = super().settle(payer, payment_hash)
        if is_new:
            owner, amount_msat = self.invoices[payment_hash]
            sent, received = self.wallet(payer), self.wallet(owner)
            sent.sent_msat, sent.payments = sent.sent_msat + amount_msat, sent.payments + 1
            received.received_msat, received.arrivals = received.received_msat + amount_msat, received.arrivals + 1
            self.moved[payer, owner] = self.moved.get((payer, owner), 0) + amount_msat
            if self.channel_msat is not None:
                self._shift(payer, owner, amount_msat)
            if self.settled is not None:
                self.settled(owner, Settlement(*self.stream[owner][-1]))
        return outcome

    def _shift(self, giver: str, taker: str, amount_msat: int) -> None:
        self._ends[giver, taker] = self.end_msat(giver, taker) - amount_msat
        self._ends[taker, giver] = self.end_msat(taker, giver) + amount_msat

    def _swap_soon(self, owner: str, other: str) -> None:
        if self.later is not None and (owner, other) not in self._swapping:
            self._swapping.add((owner, other))
            self.later(SWAP_TAKES_S, lambda: self._swap(owner, other))

    def _swap(self, owner: str, other: str) -> None:
        """Fill an end of a channel to the half again: the other end gets coins for its balance."""
        self._swapping.discard((owner, other))
        assert self.channel_msat is not None
        amount_msat = self.channel_msat // 2 - self.end_msat(owner, other)
        if amount_msat <= 0:
            return
        self._shift(other, owner, amount_msat)
        ours, theirs = self.wallet(owner), self.wallet(other)
        ours.coins_msat, theirs.coins_msat = ours.coins_msat - amount_msat, theirs.coins_msat + amount_msat
        ours.swaps, ours.fees_msat = ours.swaps + 1, ours.fees_msat + amount_msat * SWAP_FEE_PPM // 1_000_000
