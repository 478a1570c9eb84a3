"""Ports: the interfaces between ngp and the world around it. The values that they take and return are in `ngp.core`.

An adapter in `modules/` implements one of these. It is found by an entry point (`ngp.link`, `ngp.network`,
`ngp.payment` in setup.cfg), so anybody can add one. The ledger's adapters are in `ngp/store/`, since the conservation
of money depends on them. Link and payment wait for others, so they are asynchronous. The network port makes system
calls of a few microseconds, and the ledger is used by one thread, so these two are synchronous.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from ngp.core.channels import ChainView, Channel, Watch
from ngp.core.messages import Address, Prefix, StatementLine
from ngp.core.records import AccountRecord, ContractRecord, JournalRecord, Record, RentalRecord, Snapshot
from ngp.core.rental.status import Asked, Configuration, RentalStatus
from ngp.core.rental.terms import LettingSettings, Offer
from ngp.core.values import (
    AccountLimit,
    AccountReading,
    Adopted,
    Check,
    DecodedInvoice,
    DesiredNetwork,
    DesiredTunnel,
    Grant,
    HeldPacket,
    Hint,
    InvoiceState,
    KernelNeighbour,
    KernelState,
    LinkPeer,
    NewInvoice,
    Now,
    PaymentCapabilities,
    PaymentInfo,
    PaymentOutcome,
    PeerReading,
    Reading,
    Settlement,
    TunnelPeer,
    Verdict,
)

# --- link -------------------------------------------------------------------------------------------------------------


class Link(Protocol):
    """Carries datagrams between this daemon and those of neighbours."""

    max_datagram_bytes: int

    def check(self, interfaces: Sequence[str]) -> list[Check]:
        """Return obstacles on this host, and how neighbours are found on these interfaces; changes nothing.

        The call is cheap once the link is open.
        """

    def taken(self, interfaces: Sequence[str]) -> list[Check]:
        """Open and close the link, to find what would stop a start from opening it. Not while our daemon runs."""

    async def open(self, interfaces: Sequence[str], receive: Callable[[LinkPeer, bytes], None]) -> None:
        """Start on these interfaces; `receive` is called in the event loop for each datagram. Raises KernelError."""

    async def update(self, interfaces: Sequence[str]) -> None:
        """Use another list of interfaces; those that are in both lists are not disturbed."""

    def send(self, peer: LinkPeer, datagram: bytes) -> None:
        """Send to one neighbour; never blocks, may lose the datagram. Raises ValueError above max_datagram_bytes."""

    def broadcast(self, interface: str, datagram: bytes) -> None:
        """Send to every neighbour on an interface; never blocks, may lose the datagram."""

    def trust(self, peer: LinkPeer) -> None:
        """Prefer datagrams of this link address, which is proven, so that strangers' floods don't displace them."""

    def counters(self) -> dict[str, int]:
        """Return the numbers of datagrams refused below the wire layer, by reason."""

    async def close(self) -> None:
        """Release the sockets; safe to call twice."""


# --- network ----------------------------------------------------------------------------------------------------------


class Network(Protocol):
    """Gates, meters and cuts traffic in the kernel, and answers questions about the host.

    The questions are answered whether or not it is set up, and also after `close`.
    """

    def mesh_interfaces(self, patterns: Sequence[str], ignored: Sequence[str]) -> tuple[str, ...]:
        """Return the existing interfaces that MESH_INTERFACES matches, sorted. Raises KernelError."""

    def left_out(self, patterns: Sequence[str], ignored: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return interfaces that MESH_INTERFACES matches but that can't be mesh: by name, the reason and the remedy.

        The remedy is "" if nothing has to be done: only a pattern matches the interface, and it receives no packets
        that would have to be charged on it.
        """

    def other_interfaces(
        self, mesh: Sequence[str], lan: Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the interfaces that aren't mesh: our LAN interfaces, and which of the remaining ones have a route now.

        Args:
            mesh: names.
            lan: names and patterns of LAN_INTERFACE; None: `auto`.
        Raises: KernelError.
        """

    def local_addresses(self) -> tuple[Address, ...]:
        """Return this host's own addresses, both families; no loopback and no link-local ones. Raises KernelError."""

    def watch(
        self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None], on_touched: Callable[[], None]
    ) -> None:
        """Call on_change in the loop after links, addresses or routes changed, a few times a second at most.

        on_touched is called at once when a program, even this one, changed the tables that have the gate; `apply` then
        repairs the gate.
        """

    def stop_watching(self) -> None:
        """End `watch`; safe to call twice."""

    def beside(self) -> Network:
        """Return another instance, for questions about the host from another thread. The caller closes it.

        The other instance knows what this one has in the kernel, and doesn't report it as another program's.
        """

    def taken(self, desired: DesiredNetwork) -> list[Check]:
        """Return the obstacles that a start would meet: another program uses what only one can use (a queue number).

        Leaves nothing behind. Don't call it while a daemon of ours runs with the same settings.
        """

    def refuse(self, desired: DesiredNetwork) -> None:
        """Raise KernelError if traffic can bypass the meter on this host, so that a start fails and doesn't hide it."""

    def check(self, desired: DesiredNetwork) -> list[Check]:
        """Return what this host can do and what is missing; changes nothing."""

    def look(self, desired: DesiredNetwork, most_s: float) -> list[Check]:
        """Return the cheap checks of things that may change while the daemon runs; takes about `most_s` at most."""

    def next_hops(self, desired: DesiredNetwork) -> list[tuple[str, Address, bytes]]:
        """Return the routers to which default routes into the mesh lead: interface, address, and link address.

        A router whose link address isn't known yet is left out. Raises KernelError.
        """

    def kernel_state(self) -> KernelState:
        """Return which parts of ngp are in the kernel; changes nothing. Raises KernelError, also if we aren't root."""

    def end_former(self, desired: DesiredNetwork | None) -> list[Reading] | None:
        """Stop the contracts of another version's meter, and return what they used; None if no such meter runs.

        Call `set_up`, which removes that meter, only when all of this is charged. Before that, each call returns the
        same, also after a crash.

        Args: desired: what `set_up` will be called with; if `set_up` would fail, nothing is stopped. None: `set_up`
            won't be called.
        Raises: KernelError; also if this version of ngp doesn't know that meter.
        """

    def set_up(self, desired: DesiredNetwork) -> Adopted:
        """Load and attach the programs, or adopt those that a killed daemon left running.

        Adopting reads what each account spent, waits until every processor has left the programs, and only then reads
        the contracts. So their counters include everything that the account was charged for.
        Raises: KernelError; then nothing of a new set-up is left.
        """

    def apply(self, desired: DesiredNetwork) -> bool:
        """Make the kernel match the desired state. May be repeated; adds before it deletes.

        Returns: whether another program had changed the gate. Raises KernelError.
        """

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        on_held: Callable[[HeldPacket], None],
        on_hints: Callable[[Sequence[Hint]], None],
    ) -> None:
        """Start to receive held packets and hints in the event loop."""

    def set_neighbours(self, neighbours: Sequence[KernelNeighbour]) -> None:
        """Add or change neighbours."""

    def forget_neighbours(self, neighbours: Sequence[int]) -> None:
        """Remove neighbours by number."""

    def limit_accounts(self, limits: Sequence[AccountLimit]) -> None:
        """Create or change clients' accounts. Raises KernelError if the table is full."""

    def forget_accounts(self, accounts: Sequence[bytes]) -> None:
        """Remove accounts without contracts from the kernel; unknown ones are ignored."""

    def grant(self, grants: Sequence[Grant]) -> None:
        """Create or change contracts.

        Raises: KernelError: the table is full (the text names contracts_max), or a grant's account isn't known.
        """

    def block_all(self) -> None:
        """Let nothing more pass on any contract until it is granted again."""

    async def settled(self) -> None:
        """Return when every packet that was inside the meter has left it.

        After that the readings of a contract that was blocked before the call are final, and a limit that was lowered
        before the call is in force for every packet.
        """

    def revoke(self, contracts: Sequence[bytes]) -> None:
        """Remove contracts from the kernel. For their last readings first block them, await `settled`, and read."""

    def read(self, contracts: Sequence[bytes] | None = None) -> list[Reading]:
        """Read contracts. Args: contracts: None: those that changed since the last call with None."""

    def read_accounts(self, accounts: Sequence[bytes] | None = None) -> list[AccountReading]:
        """Read accounts. Args: accounts: None: those that changed since the last call with None."""

    def sends_to(self, links: Mapping[int, tuple[str, bytes]], destination: Prefix) -> Prefix | None:
        """Return the part of a destination to which our traffic goes through a neighbour.

        All of it if our route for the whole destination leads to one of the neighbour's links. Otherwise the host in it
        to which, in the last seconds, a packet was sent to such a link and no contract covered it. None if there was no
        such packet, or if the destination is on the link itself.

        Args: links: interface and link address of each of the neighbour's links, by number, also new ones.
        """

    def uncovered(self) -> list[tuple[int, Address, float]]:
        """Return what we sent lately to sellers, and no contract covered it then.

        Returns: the number of one of the seller's links, the destination, and how many seconds ago a packet went there.
        """

    def verdict(self, handle: int, verdict: Verdict) -> None:
        """Decide about a held packet; one that was decided about before is ignored."""

    def lane_bytes(self, neighbour: int) -> int:
        """Return a neighbour's bytes to and from payment services; 0 if the neighbour isn't known."""

    def counters(self) -> dict[str, int]:
        """Return counters of kernel and queue: held, dropped, hints_lost, ..."""

    def describe(self) -> dict[str, str]:
        """Return which interception, hook and object are in use, for status."""

    def close(self) -> None:
        """Close sockets and descriptors; the kernel goes on gating, metering and cutting."""

    def shut(self, mesh: Sequence[str], ignored: Sequence[str], families: Iterable[int]) -> None:
        """Drop traffic from and to mesh interfaces until `set_up` or `clean_up`; the interfaces needn't exist yet.

        Args: mesh, ignored: names and patterns of MESH_INTERFACES and IGNORE_INTERFACE. families: 4, 6.
        Raises: KernelError; also if there is a meter.
        """

    def clean_up(self, leave_closed: bool) -> None:
        """Remove all that ngp made, and nothing else, without a record of what it made. Safe to call twice.

        `leave_closed` leaves a rule that drops forwarded traffic of the mesh interfaces (WHEN_STOPPED: closed). If no
        mesh interface is known, an existing rule of this kind stays.
        """


# --- tunnel -----------------------------------------------------------------------------------------------------------


class Tunnel(Protocol):
    """The landlord's WireGuard tunnel: tenants are its peers. Calls take milliseconds and don't wait for others.

    A tenant can send from its networks only, and packets to them reach only that tenant. WireGuard itself would move a
    network that is given to a second peer; this port refuses that.
    """

    def check(self, desired: DesiredTunnel) -> list[Check]:
        """Return what is missing on this host, and whether packets from outside find the pools; changes nothing."""

    def set_up(self, desired: DesiredTunnel, peers: Sequence[TunnelPeer]) -> None:
        """Make the tunnel, or take over the one that a killed daemon left; then its peers are exactly these.

        Peers that are right already aren't disturbed. Raises: KernelError; then nothing of a new set-up is left.
        """

    def set_peers(self, peers: Sequence[TunnelPeer]) -> None:
        """Add peers or change them. Raises: KernelError, also if another peer has one of the networks."""

    def remove_peers(self, wireguard_keys: Sequence[bytes]) -> None:
        """Remove peers; unknown ones are ignored. Raises: KernelError."""

    def stands(self) -> bool:
        """Say whether what `set_up` made still exists, at little cost. Raises: KernelError."""

    def read(self) -> list[PeerReading]:
        """Return what the tunnel knows of its peers. Raises: KernelError."""

    def addresses(self, interface: str) -> tuple[Address, ...]:
        """Return an interface's own addresses, both families, without link-local ones. Raises: KernelError."""

    def describe(self) -> dict[str, str]:
        """Return which implementation is in use, for status."""

    def close(self) -> None:
        """Close sockets; the tunnel goes on."""

    def clean_up(self) -> None:
        """Remove all that this port made, and nothing else, without a record of what it made. Safe to call twice."""


# --- face -------------------------------------------------------------------------------------------------------------


class LettingService(Protocol):
    """What a face asks of the landlord; `ngp.daemon.letting` implements it. All errors but LedgerError: RentalError."""

    def offer(self, name: str = "") -> Offer:
        """Return an offer by its name, or the first one."""

    async def ask(self, wireguard_key: bytes, amount_msat: int, face: str, offer: str = "") -> Asked:
        """Return an invoice for a tenant's new or running rental. Raises: LedgerError: nothing can be written now.

        Args: amount_msat: the credit to add; a new rental's invoice includes the activation fee as well.
        """

    def status(self, wireguard_key: bytes) -> RentalStatus:
        """Return a tenant's newest rental."""

    async def paid(self, wireguard_key: bytes, bolt11: str, most_s: float) -> RentalStatus:
        """Wait until an invoice of a tenant is paid, or some seconds have passed. Returns the status then."""

    def prove(self, preimage: bytes) -> None:
        """Take the preimage of a tenant's invoice as proof of its payment; any other has no effect."""

    def configuration(self, wireguard_key: bytes) -> Configuration:
        """Return what a tenant's tunnel needs, once its rental is paid."""


class Face(Protocol):
    """A way for tenants to reach the landlord over the network. Requests are bounded in size, time and number."""

    async def open(self, letting: LettingService, settings: LettingSettings) -> None:
        """Serve as net.conf says; without an address of its own in it, serve nobody. Raises: ConfigError, KernelError.

        A second call applies changed settings; if that fails, the former ones stay in force.
        """

    def check(self, settings: LettingSettings) -> list[Check]:
        """Return what a tenant needs to know (the certificate's fingerprint), and what is missing; changes nothing."""

    async def close(self) -> None:
        """Stop serving; safe to call twice."""


# --- payment ----------------------------------------------------------------------------------------------------------


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
    ) -> NewInvoice: ...

    async def lookup_invoice(self, payment_hash: bytes) -> InvoiceState: ...

    async def settle_invoice(self, preimage: bytes) -> None:
        """Settle a held invoice, or with `settles_by_proof` any invoice of ours; settling twice is no error."""

    async def cancel_invoice(self, payment_hash: bytes) -> None:
        """Cancel an invoice; return when it is certain that the node accepts no money for it."""

    def watch_settlements(self, cursor: int) -> AsyncIterator[Settlement]:
        """Yield every settlement after the cursor, at least once, without end.

        A node that was restored may count its settlements from the beginning again: then yield all.
        """

    def decode(self, bolt11: str) -> DecodedInvoice:
        """Parse an invoice and check its signature; the input may be hostile. Raises PeerError(`invoice`)."""

    async def pay(
        self, bolt11: str, fee_limit_msat: int, timeout_s: float, via_peer: str | None = None
    ) -> PaymentOutcome:
        """Pay an invoice once; idempotent by payment hash: a second call for the same hash tracks the first."""

    async def track(self, payment_hash: bytes) -> PaymentOutcome:
        """Return a payment's outcome; FAILED with reason `unknown` if the node doesn't know it."""

    async def sign(self, message: bytes) -> str:
        """Sign with the node's key (zbase32, as `lnd signmessage` does)."""

    def verify(self, message: bytes, signature: str) -> str | None:
        """Return the public key that signed, or None; doesn't need the node."""

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
            push_sat: the part of it that is given to the peer at once.
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


# --- ledger -----------------------------------------------------------------------------------------------------------


class Ledger(Protocol):
    """An open ledger: the data that survives the process. For one thread. Methods raise LedgerError with a remedy."""

    def close(self) -> None:
        """Close the ledger; safe to call twice."""

    def next_boot(self, least: int = 1) -> int:
        """Count this start, durably, and return the number: one more than the last, and at least `least`.

        Neighbours refuse a number that they have seen. `least` comes from the clock, so that a ledger restored from a
        backup doesn't use numbers again that were used after the backup was made.
        """

    def commit(self, records: Sequence[Record], durable: bool = False) -> None:
        """Write records in one transaction, all or none; a record written twice changes nothing.

        A payment's state only moves forward, and a settled payment keeps its amount: for a record that contradicts
        this, the whole transaction is refused.

        Args:
            records: in the order in which they arose; of several with one key the last one counts.
            durable: return only when the records survive a power cut, as those that move money must. Others survive a
                killed process, but perhaps no power cut.

        Raises:
            LedgerError: the ledger can't be written, or a payment would move back; the ledger is unchanged.
        """

    def hold_networks(self, rental: bytes, networks: Sequence[Prefix]) -> tuple[Prefix, ...]:
        """Hold networks for a rental, durably, before anybody is told of them; other landlords may share the database.

        The hold ends when the rental's record is written as released, or is forgotten. If the daemon dies before the
        first record of the rental is written, the hold ends at the next `open`.

        Returns:
            Nothing if the networks are held now. Otherwise all networks that are held for other rentals; nothing
            changes then.
        """

    def load(self, now_utc_s: int) -> Snapshot:
        """Read what a start needs: all that is open, and what ended lately, as messages about it may still come.

        Args:
            now_utc_s: contracts closed in the hour before this time, and payments begun or ended in the day before it,
                are included. If the newest payment is older than a day, as when the clock is ahead, those of the day
                before it are included. Money counts as spent with fees, also while a payment's outcome isn't known.
        """

    def journal(self, since_s: int | None = None) -> Iterator[JournalRecord]:
        """Yield the journal, oldest first; commits may happen between two lines.

        Lines of kind `summary` come first. Each is the sum of contracts that `prune` folded: those of one neighbour,
        one role (as `state`) and one day.

        Args:
            since_s: leave out older lines, UTC seconds.
        """

    def contracts(self, include_closed: bool = False) -> list[ContractRecord]:
        """List running contracts and then, if wanted, closed ones, the last closed first."""

    def rentals(self) -> list[tuple[RentalRecord, AccountRecord]]:
        """List all rentals, also released ones, each with its account, the oldest first."""

    def unacknowledged(
        self, identity: bytes, after: tuple[int, bytes], limit: int
    ) -> tuple[tuple[StatementLine, ...], tuple[int, bytes] | None]:
        """Read the bills of closed contracts that we sold and whose client hasn't acknowledged them, oldest first.

        Args:
            after: (time of closing, contract) of the last one that was read, or (0, b"").
            limit: most to read, >= 1.

        Returns:
            The lines, and the `after` for the next call, or None if these were the last.
        """

    def backup(self, target: Path) -> None:
        """Copy the ledger to a file (0600) while it is in use; the copy is checked before it gets its name.

        Raises:
            LedgerError: `target` exists and isn't an older backup, or can't be written.
        """

    def prune(self, now_utc_s: int) -> bool:
        """Fold old contracts into sums and delete old records, a bounded number; return whether more is left to do."""


class Store(Protocol):
    """The place of a node's ledger, whether a ledger exists or not; str() names the place in errors."""

    def exists(self) -> bool:
        """Say whether there is a ledger, intact or not. Raises LedgerError if its folder can't be read."""

    def open(self) -> Ledger:
        """Open the ledger, or create it if there is none, and bring an older one up to date.

        Raises:
            LedgerError: the file is damaged, empty, no ledger, of a newer version, or can't be read or written. ngp
                never replaces it.
        """

    def look(self) -> None:
        """Check that a ledger that isn't in use is intact; doesn't update an older one. Raises LedgerError."""

    def audit(self, most_s: float) -> tuple[list[str], str]:
        """Compare accounts with payments, contracts and journal; writes nothing, and may run in any thread.

        Args:
            most_s: how long it may take; a router's flash is slow, and payments are kept for ever.

        Returns:
            The sums that differ, a sentence each, and why the audit is incomplete; both empty if all is well.

        Raises:
            LedgerError: the ledger can't be read.
        """

    def written_s(self) -> int:
        """Return when a daemon last wrote to the ledger, UTC seconds; 0 if that isn't known (any more)."""


# --- clock ------------------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """The source of time; tests have their own."""

    def now(self) -> Now: ...
