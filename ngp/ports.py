"""Ports: what the world around the core must offer, and the values that cross the border.

An adapter in `modules/` implements one of these; setup.cfg's entry points (`ngp.link`, `ngp.network`, `ngp.payment`)
name it, so anybody can add one. The ledger's adapters are in `ngp/store/`, since money is conserved by what they do.
Link and payment wait for others and are asynchronous; the network port is a few microseconds of system calls and is
not, nor is the ledger, which is asked by one thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from ngp.core.channels import ChainView, Channel, ChannelEnd, ChannelState, Tower, Watch
from ngp.core.messages import Address, Prefix, Role, StatementLine
from ngp.core.records import ContractRecord, JournalRecord, Record, Snapshot
from ngp.core.values import (
    UNKNOWN_PAYMENT,
    AccountLimit,
    AccountReading,
    Adopted,
    AdoptedAccount,
    AdoptedContract,
    Check,
    DecodedInvoice,
    DesiredNetwork,
    FreeRule,
    Grant,
    HeldPacket,
    Hint,
    HintKind,
    InvoiceState,
    KernelNeighbour,
    LinkPeer,
    NewInvoice,
    Now,
    PaymentCapabilities,
    PaymentInfo,
    PaymentOutcome,
    PaymentStatus,
    Reading,
    Settlement,
    Standing,
    Verdict,
)

__all__ = [
    "UNKNOWN_PAYMENT",
    "AccountLimit",
    "AccountReading",
    "Address",
    "Adopted",
    "AdoptedAccount",
    "AdoptedContract",
    "ChainView",
    "Channel",
    "ChannelEnd",
    "ChannelManager",
    "ChannelState",
    "Check",
    "Clock",
    "DecodedInvoice",
    "DesiredNetwork",
    "FreeRule",
    "Grant",
    "HeldPacket",
    "Hint",
    "HintKind",
    "InvoiceState",
    "KernelNeighbour",
    "Ledger",
    "Link",
    "LinkPeer",
    "Network",
    "NewInvoice",
    "Now",
    "Payment",
    "PaymentCapabilities",
    "PaymentInfo",
    "PaymentOutcome",
    "PaymentStatus",
    "Prefix",
    "Reading",
    "Role",
    "Settlement",
    "Standing",
    "Store",
    "Tower",
    "TowerManager",
    "Verdict",
    "Watch",
]


# --- link -------------------------------------------------------------------------------------------------------------


class Link(Protocol):
    """Carries datagrams between this daemon and its neighbours'."""

    max_datagram_bytes: int

    def check(self, interfaces: Sequence[str]) -> list[Check]:
        """Say what of this host stands in the way, and how neighbours are found there; touches nothing.

        Costs little once it is open.
        """

    def taken(self, interfaces: Sequence[str]) -> list[Check]:
        """Say, in the words of a start, whether it can be opened there; leaves nothing. Not while a daemon has it."""

    async def open(self, interfaces: Sequence[str], receive: Callable[[LinkPeer, bytes], None]) -> None:
        """Start on these interfaces; `receive` is called in the event loop. Raises KernelError."""

    async def update(self, interfaces: Sequence[str]) -> None:
        """Follow a changed list of interfaces; those that stay are not disturbed."""

    def send(self, peer: LinkPeer, datagram: bytes) -> None:
        """Send to one neighbour; never blocks, may lose. Raises ValueError above max_datagram_bytes."""

    def broadcast(self, interface: str, datagram: bytes) -> None:
        """Send to every neighbour on an interface; never blocks, may lose."""

    def trust(self, peer: LinkPeer) -> None:
        """Prefer what comes from this link address, which proved itself: strangers' floods don't crowd it out."""

    def counters(self) -> dict[str, int]:
        """Datagrams refused below the wire layer, by reason."""

    async def close(self) -> None:
        """Release the sockets; safe to call twice."""


# --- network ----------------------------------------------------------------------------------------------------------


class Network(Protocol):
    """Gate, meter and cut traffic in the kernel, and know the host that it runs on.

    The questions about the host are answered whether or not anything is set up, also after `close`.
    """

    def mesh_interfaces(self, patterns: Sequence[str], ignored: Sequence[str]) -> tuple[str, ...]:
        """Return the interfaces that exist now and that MESH_INTERFACES means, sorted. Raises KernelError."""

    def left_out(self, patterns: Sequence[str], ignored: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return those that MESH_INTERFACES means and that can't be mesh interfaces: why, and what to do, by name."""

    def other_interfaces(
        self, mesh: Sequence[str], lan: Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the interfaces that aren't mesh: those that are ours, and which of the others lead somewhere now.

        Args: mesh: names. lan: names and patterns of LAN_INTERFACE; None: `auto`. Raises KernelError.
        """

    def local_addresses(self) -> tuple[Address, ...]:
        """Return this host's own addresses, both families; no loopback and no link-local ones. Raises KernelError."""

    def watch(
        self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None], on_touched: Callable[[], None]
    ) -> None:
        """Call on_change in the loop after links, addresses or routes changed, some times a second at most.

        on_touched is called at once after anybody, we too, changed what the gate stands in; `apply` then mends it.
        """

    def stop_watching(self) -> None:
        """End `watch`; safe to call twice."""

    def beside(self) -> Network:
        """Return one that another thread may ask about the host, and in whose answers this one runs. Close it."""

    def taken(self, desired: DesiredNetwork) -> list[Check]:
        """Say, in the words of a start, whether another program has what we need for ourselves; leaves nothing.

        It is tried out, so not while a daemon has it.
        """

    def refuse(self, desired: DesiredNetwork) -> None:
        """Raise KernelError where this host lets traffic past the meter, which a start must not hide."""

    def check(self, desired: DesiredNetwork) -> list[Check]:
        """Say what this host can do and what is missing; touches nothing."""

    def look(self, desired: DesiredNetwork, most_s: float) -> list[Check]:
        """Say what of `check` may come and go and costs little to ask for; takes about `most_s` at most."""

    def standing(self) -> Standing:
        """Say what of ours is in the kernel now; touches nothing. Raises KernelError, without rights too."""

    def set_up(self, desired: DesiredNetwork) -> Adopted:
        """Load and attach, or adopt what a killed daemon left running. Raises KernelError and then leaves nothing.

        Of an adopted account `spent` is read first, then every processor has left the programs, then its contracts are
        read: so what they used is at least what the account spent.
        """

    def apply(self, desired: DesiredNetwork) -> bool:
        """Make the kernel match; repeatable; adds before it deletes.

        Returns: whether the gate, wanted as before, had been changed by somebody else. Raises KernelError.
        """

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        on_held: Callable[[HeldPacket], None],
        on_hints: Callable[[Sequence[Hint]], None],
    ) -> None:
        """Begin to receive held packets and hints in the event loop."""

    def set_neighbours(self, neighbours: Sequence[KernelNeighbour]) -> None:
        """Add or change neighbours."""

    def forget_neighbours(self, neighbours: Sequence[int]) -> None:
        """Remove neighbours by number."""

    def limit_accounts(self, limits: Sequence[AccountLimit]) -> None:
        """Create or change clients' accounts; raises KernelError when the table is full."""

    def forget_accounts(self, accounts: Sequence[bytes]) -> None:
        """Take accounts without contracts out of the kernel; unknown ones are passed over."""

    def grant(self, grants: Sequence[Grant]) -> None:
        """Create or change contracts; raises KernelError when the table is full, naming contracts_max.

        Also where a grant's account isn't known.
        """

    async def settled(self) -> None:
        """Return when every packet that was on its way through the meter has left it: what is read then is final.

        So what was stopped (a contract blocked, a limit lowered) before the call lets nothing more through.
        """

    def revoke(self, contracts: Sequence[bytes]) -> None:
        """Take contracts out of the kernel; who wants their last readings blocks, waits and reads first."""

    def read(self, contracts: Sequence[bytes] | None = None) -> list[Reading]:
        """Read counters; None: only those that changed since the last call with None."""

    def read_accounts(self, accounts: Sequence[bytes] | None = None) -> list[AccountReading]:
        """Read accounts; None: only those that changed since the last call with None."""

    def verdict(self, handle: int, verdict: Verdict) -> None:
        """Decide about a held packet; a handle already decided is passed over."""

    def lane_bytes(self, neighbour: int) -> int:
        """Return what a neighbour exchanged with payment services, both directions; 0 where it isn't known."""

    def counters(self) -> dict[str, int]:
        """Kernel and queue counters: held, dropped, hints_lost, ..."""

    def describe(self) -> dict[str, str]:
        """Which interception, hook and object are in use, for status."""

    def close(self) -> None:
        """Let go of sockets and descriptors; the kernel goes on gating, metering and cutting."""

    def shut(self, mesh: Sequence[str], ignored: Sequence[str], families: Iterable[int]) -> None:
        """Drop what is forwarded from or to mesh interfaces, which needn't exist yet, until `set_up` or `clean_up`.

        Args: mesh, ignored: names and patterns of MESH_INTERFACES and IGNORE_INTERFACE. families: 4, 6.
        Raises: KernelError; also where a meter stands.
        """

    def clean_up(self, leave_closed: bool) -> None:
        """Remove all that ngp made and nothing else; needs no memory of what was set. Safe to call twice.

        With `leave_closed` a rule stays that drops forwarded traffic of the mesh interfaces (WHEN_STOPPED: closed); one
        that stands already stays where no mesh interface is known.
        """


# --- payment ----------------------------------------------------------------------------------------------------------


class Payment(Protocol):
    """Receives and makes Lightning payments. Every method raises PaymentError with a remedy where the node refuses."""

    async def wait_ready(self) -> None:
        """Return when the node serves; reconnects by itself after."""

    async def info(self) -> PaymentInfo: ...

    async def confirm_node(self) -> None:
        """Raise PaymentError where another node answers now than the one that `info` told of; doesn't wait."""

    def capabilities(self) -> PaymentCapabilities: ...

    async def check(self, spends: bool) -> list[Check]:
        """Say what is missing or too much in what we were given to use the node with; `spends`: we pay as well."""

    async def balance_msat(self) -> int:
        """What can be spent now."""

    async def create_invoice(
        self, amount_msat: int, memo: str, expiry_s: int, preimage: bytes | None = None, hold: bool = False
    ) -> NewInvoice: ...

    async def lookup_invoice(self, payment_hash: bytes) -> InvoiceState: ...

    async def settle_invoice(self, preimage: bytes) -> None:
        """Settle a held invoice (or, where `settles_by_proof`, any of ours); settling twice is no error."""

    async def cancel_invoice(self, payment_hash: bytes) -> None:
        """Return when no money is taken for an invoice (any more)."""

    def watch_settlements(self, cursor: int) -> AsyncIterator[Settlement]:
        """Yield every settlement behind the cursor, at least once, for ever; of a node that counts anew all of them."""

    def decode(self, bolt11: str) -> DecodedInvoice:
        """Parse and check the signature; hostile input. Raises PeerError(`invoice`)."""

    async def pay(
        self, bolt11: str, fee_limit_msat: int, timeout_s: float, via_peer: str | None = None
    ) -> PaymentOutcome:
        """Pay once; the payment hash makes it idempotent: a second call for the same hash tracks the first."""

    async def track(self, payment_hash: bytes) -> PaymentOutcome:
        """Ask what became of a payment; FAILED with reason `unknown` if the node never heard of it."""

    async def sign(self, message: bytes) -> str:
        """Sign with the node's key (zbase32, as `lnd signmessage` does)."""

    def verify(self, message: bytes, signature: str) -> str | None:
        """Return the public key that signed, or None; asks no node."""

    async def close(self) -> None: ...


@runtime_checkable
class ChannelManager(Protocol):
    """What a payment module may offer besides: the channels of its node. Every method raises PaymentError.

    `takes_csv_delay` says whether `open_channel` can ask for a delay; else the node has it in its own settings.
    """

    takes_csv_delay: bool

    async def chain(self) -> ChainView:
        """Say how far the node has followed the chain: one that is behind opens no channel."""

    async def channels(self) -> list[Channel]:
        """Return the open channels, active or not; asked after each payment."""

    async def pending_channels(self) -> list[Channel]:
        """Return the channels that are being opened or closed, as far as the node tells."""

    async def connect(self, peer: str, host: str) -> None:
        """Make a node a peer; done again it is no error.

        Args:
            peer: its public key, hex.
            host: `host:port`.
        """

    async def open_channel(self, peer: str, amount_sat: int, push_sat: int, csv_delay_blocks: int | None) -> str:
        """Open a private channel with a connected peer; returns its funding transaction and output.

        Args:
            peer: its public key, hex.
            amount_sat: the channel's size; ours but for push_sat.
            push_sat: given to the peer at once.
            csv_delay_blocks: how long the peer waits for its coins after closing alone; None: as the node does.
        """


@runtime_checkable
class TowerManager(Protocol):
    """What a payment module may offer besides: watchtowers for its node. Every method raises PaymentError."""

    async def watch(self) -> Watch:
        """Say which towers the node has, and what they were given."""

    async def add_tower(self, key: str, address: str) -> None:
        """Have a tower watch our channels; done again it adds an address.

        Args:
            key: its public key, hex.
            address: `host:port`.
        """

    async def remove_tower(self, key: str) -> None:
        """Send a tower nothing more."""


# --- ledger -----------------------------------------------------------------------------------------------------------


class Ledger(Protocol):
    """An open ledger: what survives the process. For one thread; every method raises LedgerError with a remedy."""

    def close(self) -> None:
        """Let go of it; safe to call twice."""

    def next_boot(self, least: int = 1) -> int:
        """Count this start, durably, and return the number: one more than the last, and at least `least`.

        Neighbours refuse a number that they have seen. `least` is taken from the clock, so that a ledger put back from
        a backup doesn't begin with numbers that were used after the backup was made.
        """

    def commit(self, records: Sequence[Record], durable: bool = False) -> None:
        """Write records in one transaction, all or none; what is written twice changes nothing.

        A payment only moves forward, and a settled one keeps its amount: a record that says otherwise refuses the
        whole transaction.

        Args:
            records: in the order in which they arose; of several with one key the last one counts.
            durable: return only when they survive a power cut; for everything that moves money. Others survive a
                killed process.

        Raises:
            LedgerError: the ledger can't be written, or a payment would go back; it is as it was before.
        """

    def load(self, now_utc_s: int) -> Snapshot:
        """Read what a start needs: all that is not over, and the last hour's and day's for what comes late.

        Args:
            now_utc_s: contracts closed in the hour before it, and payments begun or ended in the day before it, are
                included. Money counts as spent with fees, also while a payment's outcome isn't known.
        """

    def journal(self, since_s: int | None = None) -> Iterator[JournalRecord]:
        """Yield the journal, oldest first; commits may go on between two lines.

        Lines of kind `summary` come first: one per neighbour, role (as `state`) and day of folded contracts.

        Args:
            since_s: leave out what is older, UTC seconds.
        """

    def contracts(self, include_closed: bool = False) -> list[ContractRecord]:
        """List contracts: those that run, then, if asked for, closed ones, the last closed first."""

    def unacknowledged(
        self, identity: bytes, after: tuple[int, bytes], limit: int
    ) -> tuple[tuple[StatementLine, ...], tuple[int, bytes] | None]:
        """Read bills of contracts that we sold and closed, in the order of closing, that their client hasn't got yet.

        Args:
            after: (closed when, contract) of the last one that was read, or (0, b"").
            limit: most to read, >= 1.

        Returns:
            The lines, and what to give as `after` for the next ones; None when these were all.
        """

    def backup(self, target: Path) -> None:
        """Copy the ledger to a file (0600) while it is in use; the copy is checked before it takes its place.

        Raises:
            LedgerError: `target` is something else than an older backup, or can't be written.
        """

    def prune(self, now_utc_s: int) -> bool:
        """Fold and shorten what is old, a bounded piece of work; return whether more is waiting."""


class Store(Protocol):
    """The place of a node's ledger, whether there is one yet or not; str() names it in errors."""

    def exists(self) -> bool:
        """Say whether there is a ledger, whole or not. Raises LedgerError where that can't be seen."""

    def open(self) -> Ledger:
        """Open the ledger, creating it where there is none, and bring an older one up to date.

        Raises:
            LedgerError: it is damaged, empty, foreign, newer, or can't be read and written; never begins blank.
        """

    def look(self) -> None:
        """Look whether the ledger at rest is whole; an older one stays as it is. Raises LedgerError."""

    def audit(self, most_s: float) -> tuple[list[str], str]:
        """Add up accounts against payments, contracts and journal; writes nothing, from any thread.

        Args:
            most_s: how long it may take; a router's flash is slow, and payments are kept for ever.

        Returns:
            What doesn't add up, one sentence each, and why that isn't known; both empty when all does.

        Raises:
            LedgerError: it can't be read.
        """

    def written_s(self) -> int:
        """Return when a daemon last wrote to it, UTC seconds; 0 where that isn't known (any more)."""


# --- clock ------------------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """Where time comes from; tests bring their own."""

    def now(self) -> Now: ...
