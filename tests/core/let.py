"""A simulated landlord: the real core and ledger, its own clocks, a payment node and a tunnel that are made up.

A step's records are stored before any effect is carried out, and a crash may come between any two effects. A crash
loses what wasn't carried out; the payment node and the tunnel live on, and a reboot empties the tunnel as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from unittest import mock

from playbook import settings

from core_tests.simulate.simulation import UTC_AT_START_S
from core_tests.simulate.stand_ins import PAYEES, Kernel
from ngp import store
from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.kernel import TENANTS, UNITS_PER_MSAT
from ngp.core.messages import Paid, Prefix, Role
from ngp.core.payment_node import (
    UNKNOWN_PAYMENT,
    DecodedInvoice,
    PaymentNode,
    PaymentOutcome,
    PaymentStatus,
    Settlement,
)
from ngp.core.records import PaymentKind, Record
from ngp.core.rental import landlord as rules
from ngp.core.rental import metering
from ngp.core.rental.effects import (
    AnswerTenant,
    HoldNetworks,
    RemoveTunnelPeer,
    SettleInvoice,
    SetTunnelPeer,
    WatchInvoice,
)
from ngp.core.rental.events import (
    CancelAsked,
    CreditAsked,
    InvoiceHeld,
    MoneyBackAsked,
    NetworksHeld,
    ReleaseRental,
    RentProven,
    TunnelPeerSet,
)
from ngp.core.rental.landlord import served, tunnel_peer
from ngp.core.rental.rental import Rental
from ngp.core.rental.service import ServiceClock
from ngp.core.rental.status import RentalStatus, credit_msat, status
from ngp.core.rental.terms import LettingSettings, Offer, Pool
from ngp.core.rental.tunnel import TunnelPeer
from ngp.core.restore import restore
from ngp.core.values import Now
from ngp.core.world import World
from ngp.ports import Store

SAT = 1000
MONTH_S = 2_629_800
NOTED_S = 3600.0
FEE, RENT = 48_000 * SAT, 24_000 * SAT


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def offer(**changes: object) -> Offer:
    """Return the shipped offer, with changes."""
    usual: dict[str, object] = dict(
        name="default", ipv4_bits=32, ipv6_bits=64, pools=(), rent_msat=RENT, price_msat_per_gib=0, rate_bytes_s=None,
        activation_fee_msat=FEE, initial_credit_min_msat=1000 * SAT, payment_min_msat=500 * SAT,
        credit_max_msat=72_000 * SAT, reserved_s=2 * MONTH_S,
    )  # fmt: skip
    return Offer(**{**usual, **changes})  # type: ignore[arg-type]


def overlap(some: Iterable[Prefix], others: Iterable[Prefix]) -> bool:
    """Say whether any two of them have an address in common."""
    every = list(others)
    return any(one.version == other.version and one.overlaps(other) for one in some for other in every)


def letting(*offers: Offer, pools: tuple[str, ...] = ("203.0.113.0/29", "2001:db8::/61")) -> LettingSettings:
    return LettingSettings(tuple(Pool(ip_network(one)) for one in pools), offers or (offer(),), 600, 100)


@dataclass
class PaymentNodeOfLandlord:
    """Its invoices, what was paid, and the settlements that it reports from the first on. `slow`: it makes none,
    and doesn't say so; `refuses`: why it makes none.

    `holds`: it can hold payments; `held`: the hashes of those that wait. `blocks_left`: of each of them. `away`: it
    takes no orders about them.

    `sent`: what it paid for its owner, each invoice once. `fails`: it pays nothing.
    """

    slow: bool = False
    refuses: str = ""
    holds: bool = False
    held: set[bytes] = field(default_factory=set)
    hold_invoices: set[bytes] = field(default_factory=set)
    blocks_left: int = 80
    away: bool = False
    preimages: dict[bytes, bytes] = field(default_factory=dict)
    amounts: dict[bytes, int] = field(default_factory=dict)
    cancelled: set[bytes] = field(default_factory=set)
    paid: list[tuple[bytes, int]] = field(default_factory=list)
    sent: dict[bytes, int] = field(default_factory=dict)
    fails: bool = False

    def send(self, payment_hash: bytes, amount_msat: int) -> PaymentOutcome:
        if self.fails:
            return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason="no route")
        self.sent[payment_hash] = amount_msat
        return self.track(payment_hash)

    def track(self, payment_hash: bytes) -> PaymentOutcome:
        if payment_hash in self.sent:
            return PaymentOutcome(payment_hash, PaymentStatus.SUCCEEDED, bytes(32))
        return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason=UNKNOWN_PAYMENT)

    def pay(self, payment_hash: bytes) -> bool:
        if payment_hash in self.cancelled or self.has_got(payment_hash):
            return False
        if payment_hash in self.hold_invoices:
            self.held.add(payment_hash)
        else:
            self.paid.append((payment_hash, self.amounts[payment_hash]))
        return True

    def has_got(self, payment_hash: bytes) -> bool:
        return any(payment_hash == one for one, _ in self.paid)

    def settle(self, payment_hash: bytes) -> bool:
        """Take a held payment. Returns whether it is ours now."""
        if self.away:
            return False
        if payment_hash in self.held:
            self.held.discard(payment_hash)
            self.paid.append((payment_hash, self.amounts[payment_hash]))
        return self.has_got(payment_hash)

    def cancel(self, payment_hash: bytes) -> bool:
        """Cancel an invoice, and give a held payment back. Returns whether nobody can pay it any more."""
        if self.away or self.has_got(payment_hash):
            return False
        self.held.discard(payment_hash)
        self.cancelled.add(payment_hash)
        return True


class Landlord:
    """One landlord. `at` moves its clocks; everything else is carried out at once.

    Args: place: of the ledger; None: a file in the folder. node: None: one that lives as long as this landlord.
    """

    def __init__(
        self,
        folder: Path,
        terms: LettingSettings | None = None,
        seed: int = 1,
        place: Store | None = None,
        node: PaymentNodeOfLandlord | None = None,
    ) -> None:
        self.chance = random.Random(seed)
        self.mono_s, self.utc_s, self.boot = 1000.0, float(UTC_AT_START_S), 1
        self.terms = terms or letting()
        self.node = node or PaymentNodeOfLandlord()
        self.peers: dict[bytes, tuple[Prefix, ...]] = {}
        self.idle: set[bytes] = set()
        """Tenants that the tunnel knows and that have no networks now."""
        self.kernel = Kernel()
        self.face = "https"
        self.answers: dict[int, AnswerTenant] = {}
        self.crash_after = -1
        self.log: list[str] = []
        self.others: list[Prefix] = []
        self.held_later: Callable[[HoldNetworks], None] | None = None
        self.tunnel_fails = ""
        self._watched: set[bytes] = set()
        self._starts = 0
        self._requests = 0
        self._place = place or store.at(folder)
        self._start()

    def close(self) -> None:
        self.ledger.close()

    # --- the daemon

    def _start(self) -> None:
        self.ledger = self._place.open()
        self._starts += 1
        self._watched.clear()
        world = World(
            settings=settings(letting=self.terms),
            node=PaymentNode("sandbox", False, not self.node.holds, 1000, PAYEES["gateway"], self.node.holds),
            new_id=lambda: self.chance.randbytes(16),
            now=self.clock(),
        )
        world.letting.clock = ServiceClock(self.boot)
        self.gatekeeper = Gatekeeper(world)
        snapshot = self.ledger.load(self.clock().utc_s)
        snapshot = replace(snapshot, others=(*snapshot.others, *self.others))
        self._read = snapshot.cursor
        started = self._starts
        self._carry_out(restore(self.gatekeeper, snapshot, self.kernel.adopted(self.mono_s), self.clock()))
        if self._starts != started:
            return  # it was killed at once, and the next start has done the rest
        self.peers, self.idle = {}, set()
        for one in served(world):  # as `Tunnel.set_up` makes them
            self._set_peer(one)
        self.hear()

    def crash(self, reboot: bool = False, for_s: float = 0.0) -> None:
        """Kill the daemon, and start it again after a time. A reboot starts the monotonic clock anew."""
        self.ledger.close()
        self.mono_s, self.utc_s = (10.0 if reboot else self.mono_s + for_s), self.utc_s + for_s
        self.boot += reboot
        if reboot:
            self.peers.clear()
            self.idle.clear()
            self.kernel = Kernel()
        self._start()

    @property
    def world(self) -> World:
        return self.gatekeeper.world

    def clock(self) -> Now:
        return Now(int(self.utc_s), self.mono_s)

    def happen(self, event: ev.Event) -> None:
        self._carry_out(self.gatekeeper.step(event, self.clock()))

    def _carry_out(self, effects: list[fx.Effect]) -> None:
        """Store the records; then do the rest, which may be cut short by a crash."""
        self._store([one.record for one in effects if isinstance(one, fx.Persist)])
        started = self._starts
        for effect in effects:
            if isinstance(effect, fx.Persist):
                continue
            if self._starts != started:
                return  # what happened meanwhile ended in a crash
            if self.crash_after == 0:
                self.crash_after = -1
                self.crash()
                return
            self.crash_after -= self.crash_after > 0
            self._do(effect)

    def _store(self, records: Sequence[Record]) -> None:
        self.ledger.commit(records)

    def _do(self, effect: fx.Effect) -> None:
        match effect:
            case fx.MakeInvoice() if self.node.refuses:
                self.happen(ev.InvoiceFailed(effect.identity, effect.kind, self.node.refuses))
            case fx.MakeInvoice() if self.node.slow:
                pass
            case fx.MakeInvoice():
                preimage = effect.preimage or self.chance.randbytes(32)
                payment_hash = sha256(preimage).digest()
                self.node.preimages[payment_hash] = preimage
                if effect.preimage:
                    self.node.hold_invoices.add(payment_hash)
                self.node.amounts[payment_hash] = effect.amount_msat
                self.happen(
                    ev.InvoiceMade(
                        effect.identity, effect.kind, payment_hash.hex(), payment_hash, effect.amount_msat,
                        effect.expiry_s, effect.preimage,
                    )
                )  # fmt: skip
            case WatchInvoice():
                self._watched.add(effect.payment_hash)
            case SettleInvoice():
                self._settle(effect.preimage)
            case HoldNetworks() if self.held_later is not None:
                self.held_later(effect)
            case HoldNetworks():
                self.happen(NetworksHeld(effect.rental, self._hold(effect)))
            case fx.PayInvoice():
                amount_msat = self.world.money.payments[effect.payment_hash].amount_msat
                self.happen(self.node.send(effect.payment_hash, amount_msat))
            case fx.TrackPayment():
                self.happen(self.node.track(effect.payment_hash))
            case fx.CancelInvoice():
                if self.node.cancel(effect.payment_hash):
                    self.happen(ev.InvoiceCancelled(effect.payment_hash))
            case fx.ProveSettlement():
                assert self.pay(sha256(effect.preimage).hexdigest())
            case AnswerTenant():
                self.answers[effect.request] = effect
            case SetTunnelPeer():
                if not (effect.held and self.tunnel_fails):
                    self._set_peer(effect.peer)
                if effect.held:
                    self.happen(TunnelPeerSet(effect.held, self.tunnel_fails))
            case RemoveTunnelPeer():
                self.peers.pop(effect.wireguard_key, None)
                self.idle.discard(effect.wireguard_key)
            case fx.Log():
                self.log.append(effect.text)
            case fx.LimitAccount():
                self.kernel.limit(effect.limit, self.mono_s)
            case fx.GrantContract():
                self.kernel.grant([effect.grant], self.mono_s)
            case fx.HaltContract():
                self.kernel.grant([effect.grant], self.mono_s)
                reading = next(iter(self.kernel.read([effect.grant.contract])), None)
                self.happen(ev.Halted(effect.grant.contract, reading))
            case fx.CountAccount():
                (account,) = self.kernel.read_accounts([effect.account], self.mono_s)
                readings = self.kernel.read(effect.contracts)
                self.happen(ev.AccountCounted(effect.account, account.spent_units, readings))
            case fx.RevokeContract():
                self.kernel.revoke(effect.contract)
            case fx.ForgetAccount():
                self.kernel.forget(effect.account)
            case _:
                raise AssertionError(f"nobody here carries out {effect!r}")

    def _hold(self, effect: HoldNetworks) -> tuple[Prefix, ...]:
        assert self.ledger.hold_networks(effect.rental, effect.networks) == (), "its only landlord is in the way"
        return tuple(self.others) if overlap(effect.networks, self.others) else ()

    def let_by_others(self, networks: Iterable[str]) -> None:
        """Let other landlords with the same ledger have these networks, except what is held here."""
        rentals = self.world.letting.rentals.values()
        ours = [network for one in rentals if one.state.value != "released" for network in one.networks]
        self.others = [one for one in map(ip_network, networks) if not overlap([one], ours)]

    def _set_peer(self, peer: TunnelPeer) -> None:
        if peer.networks:
            self.peers[peer.wireguard_key] = peer.networks
            self.idle.discard(peer.wireguard_key)
        else:
            self.peers.pop(peer.wireguard_key, None)
            self.idle.add(peer.wireguard_key)

    def _settle(self, preimage: bytes) -> None:
        """Take a held payment; nothing is taken from a tenant that the tunnel doesn't have."""
        payment_hash = sha256(preimage).digest()
        rental = self.world.letting.rentals[self.world.money.invoices[payment_hash].identity]
        assert self.peers.get(rental.wireguard_key) == rental.networks or rental.state.value != "pending"
        if not self.node.settle(payment_hash):
            self._watched.add(payment_hash)
        elif self.crash_after == 0:
            self.crash_after = -1
            self.crash()
        else:
            self.happen(RentProven(Paid(payment_hash, preimage)))
            self.hear()

    def _look_at_held(self) -> None:
        """Tell of the payments that wait at the node, as far as they are watched."""
        for payment_hash in sorted(self._watched & self.node.held):
            if not self.node.away and payment_hash in self._watched:
                self._watched.discard(payment_hash)
                self.happen(InvoiceHeld(payment_hash, self.node.blocks_left))

    # --- what happens

    def at(self, seconds: float, jump_s: float = 0.0) -> None:
        """Let time pass; the clock that shows the time of day may jump meanwhile.

        The landlord notes its service time each minute. Here it does so only in the last hours of a long time, and
        each hour before them: a month has 43,830 minutes, and a reboot reads only the last note.
        """
        end = self.mono_s + seconds
        self.utc_s += jump_s
        self._look_at_held()
        with mock.patch.object(rules, "SERVICE_SAVED_S", NOTED_S), mock.patch.object(metering, "RENT_AHEAD_S", NOTED_S):
            self._wake_until(end - 2 * NOTED_S)
        self._wake_until(end)
        self._pass(end - self.mono_s)

    def _wake_until(self, end_mono_s: float) -> None:
        while True:
            due = self.gatekeeper.next_wake_mono_s()
            if due is None or due > end_mono_s:
                return
            self._pass(max(0.0, due - self.mono_s))
            self.happen(ev.Tick())

    def _pass(self, seconds: float) -> None:
        self.mono_s, self.utc_s = self.mono_s + seconds, self.utc_s + seconds

    def ask(self, tenant: int, sat: int, name: str = "") -> AnswerTenant | None:
        """Ask for credit. Returns the answer, or None if a crash came before it."""
        self._requests += 1
        request = self._requests
        self.happen(CreditAsked(request, key(tenant), sat * SAT, self.face, name))
        return self.answers.get(request)

    def cancel(self, tenant: int) -> AnswerTenant | None:
        """Say that an unpaid rental isn't wanted. Returns the answer, or None if a crash came before it."""
        self._requests += 1
        request = self._requests
        self.happen(CancelAsked(request, key(tenant)))
        return self.answers.get(request)

    def pay(self, bolt11: str) -> bool:
        """Pay an invoice. Returns whether the node took the money; the daemon hears of it at once."""
        taken = self.node.pay(bytes.fromhex(bolt11))
        if taken:
            self.hear()
        return taken

    def rent(self, tenant: int, sat: int = 24_000) -> Rental:
        """Ask and pay; return the rental."""
        answer = self.ask(tenant, sat)
        assert answer is not None and not answer.why_not, answer
        assert self.pay(answer.bolt11)
        return self.rental(tenant)

    def pay_late(self, tenant: int) -> Rental:
        """Let a new tenant pay, and the operator end its rental before the node reports the payment to `hear`."""
        answer = self.ask(tenant, 1000)
        assert answer is not None
        self.node.paid.append((bytes.fromhex(answer.bolt11), FEE + 1000 * SAT))
        rental = self.rental(tenant)
        self.happen(ReleaseRental(rental.id))
        return rental

    def hear(self) -> None:
        """Let the node report the payments that it hasn't reported yet, and those that it holds."""
        self._look_at_held()
        for number, (payment_hash, amount) in enumerate(self.node.paid, 1):
            if number > self._read:
                self._read = number
                self.happen(Settlement(number, payment_hash, amount))

    def reload(self, terms: LettingSettings | None) -> None:
        """Read net.conf again, in which the operator has changed the terms; None: nothing is let any more."""
        self.terms = terms  # type: ignore[assignment]
        self.happen(ev.SettingsChanged(replace(self.world.settings, letting=terms)))

    def fetch(self, tenant: int, sat: int, **changes: object) -> AnswerTenant | None:
        """Ask for money back with a new invoice. Returns the answer, or None if a crash came before it."""
        self._requests += 1
        request, payment_hash = self._requests, self.chance.randbytes(32)
        decoded = DecodedInvoice(payment_hash, sat * SAT, 600, "02" * 33, "sandbox", "")
        decoded = replace(decoded, **changes)  # type: ignore[arg-type]
        decoded = replace(decoded, was_ordered=self.ledger.was_ordered(decoded.payment_hash))  # as the daemon does
        self.happen(MoneyBackAsked(request, key(tenant), payment_hash.hex(), decoded))
        return self.answers.get(request)

    def carry(self, tenant: int, size: int, towards: bool = True, version: int = 4) -> bool:
        """Send a packet to a tenant, or from it. Returns whether tunnel and kernel let it through."""
        networks = self.peers.get(key(tenant), ())
        network = next((one for one in networks if one.version == version), None)
        if network is None:
            return False
        address = str(network.network_address)
        return self.kernel.carry(TENANTS, Role.SERVER, address, size, towards, self.mono_s) is not False

    def read(self) -> None:
        """Let the daemon read the kernel's meters and hints, as it does each second."""
        readings, accounts = self.kernel.changed(), self.kernel.changed_accounts(self.mono_s)
        hints, self.kernel.hints = tuple(self.kernel.hints), []
        for event in (ev.UsageRead(readings), ev.UsageRead((), accounts), ev.Hinted(hints)):
            self.happen(event)

    # --- questions of a test

    def rental(self, tenant: int) -> Rental:
        return self.world.letting.by_key[key(tenant)]

    def tunnel_peer(self, tenant: int) -> TunnelPeer:
        return tunnel_peer(self.world, self.rental(tenant))

    def credit(self, tenant: int) -> int:
        return credit_msat(self.world, self.rental(tenant), self.clock())

    def status(self, tenant: int) -> RentalStatus:
        return status(self.world, self.rental(tenant), self.clock())

    def check(self) -> None:
        """Assert what holds at any moment."""
        rentals = list(self.world.letting.rentals.values())
        held = [network for one in rentals if one.holds_networks for network in one.networks]
        for place, one in enumerate(held):
            assert not overlap([one], held[place + 1 :])
        assert not overlap((network for one in rentals if one.state.value != "released" for network in one.networks),
                           self.others)  # fmt: skip
        of_keys = self.world.letting.all_by_key
        of_key = {(wireguard_key, one.id) for wireguard_key in of_keys for one in of_keys[wireguard_key]}
        assert of_key == {(one.wireguard_key, one.id) for one in rentals} and all(of_keys.values())
        for rental in rentals:
            account = self.world.client(rental.id)
            assert account.refund.promised_msat >= 0
            assert account.paid_msat == account.charged_msat + account.refunded_msat + account.balance_msat
            assert account.balance_msat >= 0 and rental.owed_msat >= 0
            self._check_limit(rental)
            assert rental.state.value != "active" or self.peers.get(rental.wireguard_key) == rental.networks
        idle = [one for one in rentals if one.state.value in ("reserved", "off") and not one.meter.is_closing]
        assert self.idle == {one.wireguard_key for one in idle}
        for tenant, networks in self.peers.items():
            rental = self.world.letting.by_key[tenant]
            assert rental.networks == networks
            if rental.meter.is_closing:
                assert rental.state.value == "reserved" and self.kernel.accounts[rental.id].limit.limit_units == 0
                continue
            held = self.node.held & rental.payable.keys()
            assert rental.state.value == "active" or (rental.state.value == "pending" and held)
        heard = sum(amount for _, amount in self.node.paid[: self._read])
        booked = [one for one in self.world.money.invoices.values() if one.kind is PaymentKind.RENT]
        assert sum(one.amount_msat for one in booked if one.state.value == "settled") <= heard
        self.audit()

    def _check_limit(self, rental: Rental) -> None:
        """Assert that all is covered that the kernel may still let pass."""
        entry, account = self.kernel.accounts.get(rental.id), self.world.client(rental.id)
        if entry is None or not rental.meter.is_in_kernel:
            assert not rental.meter.is_in_kernel, "metered without an account"
            return
        unread = sum(self.kernel.slots[one].used for one, _ in rental.contracts) - rental.used_bytes
        owed_msat = rental.rent_owed_msat(self.world.letting.clock.at_s(self.clock()))
        covered_msat = account.balance_msat - account.refund.promised_msat - owed_msat
        covered = covered_msat * UNITS_PER_MSAT - rental.traffic_units - unread * rental.price_msat_per_gib
        assert max(0, entry.limit.limit_units - entry.spent) <= max(0, covered)

    def audit(self) -> None:
        """Assert that accounts, payments and contracts in the ledger add up."""
        with suppress(FileNotFoundError):
            assert self._place.audit(60.0) == ([], "")
