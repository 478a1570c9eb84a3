"""Payment: the port for the Lightning node, and two more for modules that also know its channels or its watchtowers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from ngp.core.channels import Channel
from ngp.core.payment_node import DecodedInvoice, PaymentOutcome, Settlement
from ngp.core.values import Check


@dataclass(frozen=True, slots=True)
class PaymentCapabilities:
    """What a payment module can do; the core's rules adapt to it.

    Attributes:
        real_money: False for the sandbox; every listing says so.
        settles_by_proof: the module has no payment network: handing a preimage to `settle_invoice` settles the invoice.
        least_amount_msat: smallest invoice that the module makes (1,000 where only whole sat are possible).
        why_no_holding: why the module can't make hold invoices, whose payment waits until we take it or give it back,
            with the remedy; "" if it can.
    """

    real_money: bool
    settles_by_proof: bool
    least_amount_msat: int
    why_no_holding: str = "it can't hold payments back: use lnd"


@dataclass(frozen=True, slots=True)
class PaymentInfo:
    """The Lightning node that the payment module uses.

    Attributes:
        account_id: the node's public key.
        network: the Lightning network that the node is on: `mainnet`, `testnet4`, ...; `sandbox`.
        addresses: `host:port` where others reach the node, as it announces them. A node whose addresses change is
            still the same node.
    """

    account_id: str
    network: str
    addresses: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class NewInvoice:
    """An invoice that we made."""

    bolt11: str
    payment_hash: bytes
    amount_msat: int
    expires_in_s: int


class InvoiceState(StrEnum):
    """State of an invoice of ours."""

    OPEN = "open"  # it can be paid
    ACCEPTED = "accepted"  # a payment has arrived, but the node hasn't settled or booked it yet
    SETTLED = "settled"  # it is paid
    CANCELLED = "cancelled"  # it can't be paid any more


@dataclass(frozen=True, slots=True)
class Tower:
    """A watchtower that our node knows.

    Attributes:
        key: its public key, hex.
        addresses: `host:port`.
        used: our node makes new sessions with the tower.
        sessions: number of sessions agreed with the tower; a backup needs one.
        backups: number of states that the tower has.
        pending_backups: number of states that weren't sent to the tower yet, or that it hasn't confirmed.
    """

    key: str
    addresses: tuple[str, ...]
    used: bool
    sessions: int
    backups: int
    pending_backups: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Who watches the chain for us.

    Attributes:
        active: the node's watchtower client runs; without it no tower can be added.
        towers: the towers that the client knows.
        backups, pending_backups: number of states handed to towers, and still to be handed, since the node's start.
        failed_backups: number of states that no tower will punish, because the amount that it could take is too small.
        unknown: why none of this is known (a missing permission); "" if it is known.
    """

    active: bool = False
    towers: tuple[Tower, ...] = ()
    backups: int = 0
    pending_backups: int = 0
    failed_backups: int = 0
    unknown: str = ""

    @property
    def watched(self) -> bool:
        """Whether a tower takes our backups."""
        return any(tower.used and tower.sessions for tower in self.towers)


@dataclass(frozen=True, slots=True)
class ChainView:
    """The newest block that our payment node has seen, and whether the chain has no newer one."""

    height: int
    synced: bool


class Payment(Protocol):
    """Receives and makes Lightning payments. Every method raises PaymentError with a remedy if the node refuses."""

    async def wait_ready(self) -> None:
        """Return when the node can be used; afterwards the module reconnects by itself."""

    async def info(self) -> PaymentInfo: ...

    async def confirm_node(self) -> None:
        """Raise PaymentError if another node answers now than the one that `info` described; doesn't wait."""

    def capabilities(self) -> PaymentCapabilities: ...

    async def check(self, spends: bool) -> list[Check]:
        """Check our rights at the node: which are missing, and which are more than needed.

        Args: spends: whether ngp pays, too.
        """

    async def balance_msat(self) -> int:
        """Return what can be spent now."""

    async def create_invoice(
        self, amount_msat: int, memo: str, expiry_s: int, preimage: bytes | None = None, hold: bool = False
    ) -> NewInvoice:
        """Make an invoice.

        Args:
            preimage: 32 bytes; None: the module chooses one.
            hold: the payment waits for `settle_invoice` or `cancel_invoice`; only if `why_no_holding` is empty.
        """

    async def lookup_invoice(self, payment_hash: bytes) -> InvoiceState: ...

    async def wait_held(self, payment_hash: bytes) -> int | None:
        """Wait until the payment of a hold invoice has arrived at the node, where it waits for our decision.

        Returns: after how many blocks the payment ends by itself; None: the invoice is settled, cancelled or unknown.
        """

    async def settle_invoice(self, preimage: bytes) -> None:
        """Settle a held invoice, or with `settles_by_proof` any invoice of ours; settling twice is no error."""

    async def cancel_invoice(self, payment_hash: bytes) -> None:
        """Cancel an invoice; return when it is certain that the node accepts no money for it.

        A payment that is held goes back to its payer.
        """

    def watch_settlements(self, cursor: int) -> AsyncIterator[Settlement]:
        """Yield every settlement after the cursor, at least once, without end.

        A node that was restored may count its settlements from the beginning again: then yield all.
        """

    def decode(self, bolt11: str) -> DecodedInvoice:
        """Parse an invoice and check its signature; the input may be hostile. Raises PeerError(`invoice`)."""

    async def pay(
        self, bolt11: str, fee_limit_msat: int, timeout_s: float, via_peer: str | None = None
    ) -> PaymentOutcome:
        """Pay an invoice once: a second call for the same payment hash only follows the first payment."""

    async def track(self, payment_hash: bytes) -> PaymentOutcome:
        """Return a payment's outcome; FAILED with reason `unknown` if the node doesn't know it."""

    async def sign(self, message: bytes) -> str:
        """Sign with the node's key (zbase32, as `lnd signmessage` does)."""

    def verify(self, message: bytes, signature: str) -> str | None:
        """Return the public key that signed, or None if the signature isn't valid; doesn't need the node."""

    async def close(self) -> None: ...


@runtime_checkable
class ChannelManager(Protocol):
    """The channels of the node; a payment module may offer this too. Every method raises PaymentError.

    `takes_csv_delay` says whether `open_channel` can ask for a delay; otherwise the node uses its own setting.
    """

    takes_csv_delay: bool

    async def chain(self) -> ChainView:
        """Return how far the node has followed the chain; a node that is behind opens no channel."""

    async def channels(self) -> list[Channel]:
        """Return the open channels, active or not; it is called after each payment."""

    async def pending_channels(self) -> list[Channel]:
        """Return the channels that are being opened or closed, as far as the node reports them."""

    async def connect(self, peer: str, host: str) -> None:
        """Connect to another node; no error if it is connected already.

        Args:
            peer: its public key, hex.
            host: `host:port`.
        """

    async def open_channel(self, peer: str, amount_sat: int, push_sat: int, csv_delay_blocks: int | None) -> str:
        """Open a private channel with a connected peer; returns its funding transaction and output.

        Args:
            peer: its public key, hex.
            amount_sat: the channel's size, paid by us.
            push_sat: the part of `amount_sat` that is given to the peer at once.
            csv_delay_blocks: how long the peer waits for its coins after it closes alone; None: the node's setting.
        """


@runtime_checkable
class TowerManager(Protocol):
    """The watchtowers of the node; a payment module may offer this too. Every method raises PaymentError."""

    async def watch(self) -> Watch:
        """Return the node's towers, and the backups that they got."""

    async def add_tower(self, key: str, address: str) -> None:
        """Let a tower watch our channels; for a tower that is known, add an address.

        Args:
            key: its public key, hex.
            address: `host:port`.
        """

    async def remove_tower(self, key: str) -> None:
        """Stop sending backups to a tower."""
