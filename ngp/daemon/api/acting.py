"""Acting: the operator's commands to a running node. Each returns a text for the operator, or raises NgpError."""

from __future__ import annotations

import secrets
from base64 import b64encode
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

from ngp import identity
from ngp.core.buying import refunds as buying
from ngp.core.events import AskRefund, BlockNeighbour, InvoiceMade, RefundNeighbour
from ngp.core.pricing import SAT_MSAT, show_money
from ngp.core.records import PaymentKind
from ngp.core.rental.events import ReleaseRental, SwitchRental
from ngp.core.rental.pools import networks_text
from ngp.core.rental.rental import Rental, RentalState
from ngp.core.selling import refunds as selling
from ngp.daemon import lightning
from ngp.daemon.api.reading import channel_manager, tower_manager
from ngp.daemon.node import Node
from ngp.errors import ConfigError, LedgerError, PaymentError, UsageError

MANUAL_EXPIRY_S = 60


class Acting:
    """Carries out commands on one node. An argument `neighbour` is an identity, as `find` returns it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._world = node.parts.gatekeeper.world

    def find(self, written: str) -> bytes:
        """Find a neighbour by its key, the first letters of its key, or an address. Raises UsageError."""
        by_address = {
            one.identity
            for one in self._world.peers.by_link.values()
            if written in (*self._node.post.transports(one.link), one.link[1].hex(":"))
        }
        if len(by_address) > 1:  # one of them may claim an address that isn't its own
            keys = ", ".join(map(identity.short_text, sorted(by_address)))
            raise UsageError(f"{written} is the address of several neighbours ({keys}): use the key of one")
        if by_address:
            return by_address.pop()
        return identity.match(written, self._known())

    def _known(self) -> set[bytes]:
        known = {neighbour.identity for neighbour in self._world.peers.neighbours.values()}
        known |= self._world.clients.keys() | self._world.servers.keys() | self._world.peers.blocked
        return known - self._world.letting.rentals.keys()  # tenants' accounts have the ids of their rentals

    # --- the daemon ---------------------------------------------------------------------------------------------------

    def stop(self) -> str:
        """Begin to stop; the caller waits for the process to end. Returns what is lost; "" if nothing is."""
        lost = ""
        try:
            self._node.loop.write_totals()
        except LedgerError as error:
            lost = f"traffic and commands since the ledger could last be written are lost: {error}"
        self._node.loop.stopping.set()
        return lost

    async def reload(self) -> str:
        """Apply a changed net.conf. Returns what was applied. Raises ConfigError, KernelError, PaymentError."""
        return await self._node.reload()

    def backup(self, file: Path) -> str:
        """Copy the ledger; write the latest totals first, if the ledger can be written.

        Args: file: an absolute path. Raises: LedgerError.
        """
        if not self._node.loop.ledger_why_not:  # otherwise back up what the ledger has
            self._node.loop.write_totals()
        self._node.parts.ledger.backup(file)
        return f"ledger copied to {file}"

    # --- neighbours and money -----------------------------------------------------------------------------------------

    def block(self, neighbour: bytes, blocked: bool) -> str:
        """Stop all trade with a neighbour; or allow it again, and drop the dispute about its bill."""
        self._node.loop.obey(BlockNeighbour(neighbour, blocked))
        return f"{identity.short_text(neighbour)} {'is blocked' if blocked else 'may trade again'}"

    async def refund(self, neighbour: bytes) -> str:
        """Offer a neighbour its balance back. Returns what was offered, in words for the operator.

        Raises: PaymentError: nothing can be offered, or our payment node may not pay; the text says why.
        """
        if why_not := selling.why_no_refund(self._world, neighbour):
            raise PaymentError(why_not)
        account = self._world.clients[neighbour]
        amount_msat = selling.offerable_msat(self._world, account)
        await self._must_be_able_to_spend()
        unanswered_msat = account.refund.offered_msat
        self._node.loop.obey(RefundNeighbour(neighbour))
        said = f"refund of {amount_msat // SAT_MSAT} sat offered to {identity.short_text(neighbour)}"
        if unanswered_msat:
            said += (
                f" once more: that neighbour sent no invoice for the {unanswered_msat // SAT_MSAT} sat offered before; "
                "money that you credited by hand isn't in its books, so it won't ask for that"
            )
        return f"{said}; the neighbour asks for at most the balance in its own books; ngp ledger shows what is paid"

    async def _must_be_able_to_spend(self) -> None:
        payment = self._node.parts.payment
        without = await payment.check(spends=False)  # other obstacles are reported by `ngp check`
        for one in await payment.check(spends=True):
            if not one.ok and one not in without:
                raise PaymentError(f"no refund can be paid: {one.name} {one.found}; {one.remedy}")

    def ask_refund(self, neighbour: bytes) -> str:
        """Ask a neighbour for our balance. Returns a sentence for the operator.

        Raises: PaymentError: there is nothing to ask for, the neighbour is away, or our node can make no invoice.
        """
        if why_not := buying.why_not_ask(self._world, neighbour):
            raise PaymentError(why_not)
        if away := self._node.payment.why_not:
            raise PaymentError(f"no refund can be asked for while our payment node can't make an invoice: {away}")
        account = self._world.servers[neighbour]
        self._node.loop.obey(AskRefund(neighbour))
        balance = f"{account.balance_msat // SAT_MSAT} sat"
        held = ", except what running contracts reserve (ngp block ends them)" if account.running else ""
        return (
            f"{identity.short_text(neighbour)} is asked for our {balance}{held}; the log shows its answer, ngp ledger "
            "what it pays back"
        )

    async def credit(self, written: str, amount_msat: int) -> str:
        """Credit a neighbour or a rental by hand; play money only.

        Args: written: as `find` or `find_rental` take it.
        Raises: PaymentError, also if the money is real. UsageError: none or several fit, or the rental can't be paid.
        """
        if not self._world.node.settles_by_proof:
            raise PaymentError("payments by hand are for the sandbox only; over Lightning invoices are paid")
        rental = self._payable(written, amount_msat)
        account, kind = (self.find(written), PaymentKind.MANUAL) if rental is None else (rental.id, PaymentKind.RENT)
        payment, preimage = self._node.parts.payment, secrets.token_bytes(32)
        made = await payment.create_invoice(amount_msat, "payment by hand", MANUAL_EXPIRY_S, preimage=preimage)
        invoice = InvoiceMade(account, kind, made.bolt11, made.payment_hash, made.amount_msat, made.expires_in_s)
        self._node.loop.obey(invoice)
        await payment.settle_invoice(preimage)
        whose = identity.short_text(account) if rental is None else _named(rental)
        return f"{show_money(amount_msat)} (not real money) credited to {whose}"

    def _payable(self, written: str, amount_msat: int) -> Rental | None:
        """Return the rental that `written` means; None if it means none. This payment replaces its open invoice."""
        if not any(_is_named(one, written) for one in self._world.letting.rentals.values()):
            return None
        rental = self.find_rental(written)
        if any(known.hex().startswith(written.lower()) for known in self._known()):
            raise UsageError(f"{written!r} fits a neighbour and {_named(rental)}: write more letters")
        if rental.state is RentalState.RELEASED:
            raise UsageError(f"{_named(rental)} is released: it can't be paid any more")
        if self._world.client(rental.id).invoice.asked:
            raise UsageError(f"an invoice for {_named(rental)} is being made: try again in a moment")
        least_msat = rental.activation_fee_msat if rental.state is RentalState.PENDING else 0
        if amount_msat <= least_msat:
            fee = f"its activation fee, {show_money(least_msat)}"
            raise UsageError(f"the first payment of {_named(rental)} must be more than {fee}, which is charged first")
        return rental

    def fault(self, name: str, value: str) -> str:
        """Make the sandbox's payment node misbehave, or behave well again, so that operators can see what ngp does.

        Raises:
            PaymentError: the payment module isn't the sandbox.
            UsageError: there is no such fault, or the value doesn't suit it.
        """
        set_fault = getattr(self._node.parts.payment, "set_fault", None)
        if self._world.node.real_money or set_fault is None:
            raise PaymentError("faults on request are for the sandbox only: PAYMENT_INTERFACE: sandbox has them")
        try:
            set_fault(name, value)
        except ConfigError as error:
            raise UsageError(str(error)) from error  # a word of the command, not of net.conf
        return f"fault {name}: {value}"

    # --- renting ------------------------------------------------------------------------------------------------------

    async def call(self, landlord: bytes, content: bytes) -> bytes:
        """Ask a neighbour something about renting from it. Returns its answer, empty if it lets nothing to us.

        Raises: LandlordError: it is away, or doesn't answer.
        """
        return await self._node.calls.ask(landlord, content)

    # --- letting ------------------------------------------------------------------------------------------------------

    def find_rental(self, written: str) -> Rental:
        """Find a rental by its id, its tenant's WireGuard key, the first letters of either, or an address.

        Raises: UsageError: none or several fit.
        """
        found = [one for one in self._world.letting.rentals.values() if _is_named(one, written)]
        if not found:
            raise UsageError(f"no rental has the id, WireGuard key or address {written!r}: `ngp rentals` lists them")
        found = [one for one in found if one.holds_networks] or found
        if len(found) > 1:
            some = ", ".join(identity.short_text(one.id) for one in found[:4])
            raise UsageError(f"{written!r} fits {len(found)} rentals ({some}): write more letters")
        return found[0]

    def switch_rental(self, rental: Rental, on: bool) -> str:
        """Switch a rental off, or on again. Returns its state in words. Raises: UsageError: its state doesn't allow it.

        LedgerError: nothing was done.
        """
        may = (RentalState.OFF,) if on else (RentalState.ACTIVE, RentalState.RESERVED)
        if rental.state not in may:
            fits = " or ".join(may)
            raise UsageError(f"{_named(rental)} is {rental.state}; only a rental that is {fits} can be switched")
        self._node.loop.obey(SwitchRental(rental.id, on))
        if rental.state is RentalState.RESERVED:
            return f"{_named(rental)} is on again, but has no credit: it is reserved until its tenant pays"
        return f"{_named(rental)} is {rental.state}"

    def release_rental(self, rental: Rental) -> str:
        """Give a rental's networks back. Returns what happened, in words. Raises: UsageError: it is over already.

        LedgerError: nothing was done.
        """
        if rental.state is RentalState.RELEASED:
            raise UsageError(f"{_named(rental)} is released already")
        self._node.loop.obey(ReleaseRental(rental.id))
        left_msat = self._world.client(rental.id).balance_msat if rental.payments else 0
        kept = f"; the tenant still has {show_money(left_msat)} with us (ngp rent refund)" if left_msat else ""
        return f"{_named(rental)} is released: its networks may be let again{kept}"

    # --- Lightning ----------------------------------------------------------------------------------------------------

    async def open_channel(
        self, neighbour: bytes, amount_sat: int, push_sat: int, host: str | None, csv_delay_blocks: int | None
    ) -> str:
        """Open a private channel with a neighbour's node.

        Args:
            push_sat: given to the neighbour at once, at most amount_sat.
            host: where the neighbour's node listens; None for its most likely address.
            csv_delay_blocks: None for CSV_DELAY.
        """
        manager, known = channel_manager(self._node), self._world.peers.any_link(neighbour)
        if known is None or not known.payee:
            raise PaymentError(
                f"{identity.short_text(neighbour)} has not announced a Lightning node: that neighbour must be up, "
                "with PAYMENT_INTERFACE: lnd or electrum on the same network"
            )
        place = lightning.host_port(host, lightning.PEER_PORT) if host else lightning.peer_host(known)
        if csv_delay_blocks is None and manager.takes_csv_delay:
            csv_delay_blocks = self._node.settings.csv_delay_blocks
        peer = known.payee.hex()
        await manager.connect(peer, place)
        point = await manager.open_channel(peer, amount_sat, push_sat, csv_delay_blocks)
        return (
            f"channel {point} with {peer} is being opened; it can be used when its transaction is confirmed: "
            "ngp lightning status"
        )

    async def add_tower(self, written: str) -> str:
        """Let a watchtower watch our channels. Args: written: PUBKEY@HOST:PORT."""
        key, address = lightning.tower_place(written)
        await tower_manager(self._node).add_tower(key, address)
        return f"watchtower {key} at {address} is asked for a session; ngp lightning tower list shows what it agrees to"

    async def remove_tower(self, written: str) -> str:
        """Stop sending backups to a watchtower. Args: written: its key."""
        key = lightning.tower_key(written)
        await tower_manager(self._node).remove_tower(key)
        return f"watchtower {key} gets no more backups; it keeps those it has"


def _is_named(rental: Rental, written: str) -> bool:
    """Say whether an operator's word means a rental. Raises UsageError if there is no word."""
    text = written.strip()
    if not text:
        raise UsageError("name a rental: its id, its WireGuard key, the first letters of either, or an address")
    with suppress(ValueError):
        where = ip_network(text, strict=False)
        return any(one.version == where.version and where.subnet_of(one) for one in rental.networks)  # type: ignore[arg-type]
    return rental.id.hex().startswith(text.lower()) or b64encode(rental.wireguard_key).decode().startswith(text)


def _named(rental: Rental) -> str:
    return f"rental {identity.short_text(rental.id)} ({networks_text(rental.networks)})"
