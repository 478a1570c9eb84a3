"""Sandbox: a payment module with invoices as on Lightning and money that is not real.

With the sandbox two routers can try ngp without a Lightning node and without coins. Invoices are genuine BOLT11 with
the regtest prefix, signed by a key of this node, with a random preimage. Only the way of the payment is simulated. The
preimage is masked in the invoice's `m` field. The payer 'pays' by unmasking the preimage after a delay, and takes the
amount off a fictitious balance. As on Lightning, the preimage then proves the payment: ngp's `paid` message carries it
to the payee, where `settle_invoice` books it.

The mask doesn't hide the preimage from an attacker. It needn't: an attacker could just as well give itself a larger
balance. The mask only makes sure that nobody has a preimage by accident: a node has it only after it has paid. Each
listing says that the money isn't real, and `hello` names the network `sandbox`, with which no real node trades.

Faults can be switched on, by option or by `set_fault`, so that operators and tests see how a real node may misbehave:
slow, stuck, failed, lost reply, duplicate, down.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from ngp import invoice, node_key
from ngp.core.payment_node import UNKNOWN_PAYMENT, DecodedInvoice, PaymentOutcome, PaymentStatus, Settlement
from ngp.core.values import Check
from ngp.errors import ConfigError, PaymentError, PeerError
from ngp.modules.payment.sandbox_node import Fate, SandboxNode, Start
from ngp.ports.payment import InvoiceState, NewInvoice, PaymentCapabilities, PaymentInfo

NETWORK = "sandbox"
FIRST_BALANCE_MSAT = 100_000_000_000  # one fictitious bitcoin
_PREFIX = "bcrt"
_MARK = b"ngp1"
_MASK = b"ngp sandbox: this money is not real"
_OPTIONS = {"delay_s": 0.0, "settle_delay_s": 0.0, "fee_msat": 0.0, "balance_msat": float(FIRST_BALANCE_MSAT)}


class Fault(StrEnum):
    """Faults that can be switched on."""

    SLOW = "slow"  # payments and settlements take longer, by as many seconds as the value says
    STUCK = "stuck"  # payments stay pending until the fault ends, and then succeed, or fail if `fail` ended it
    FAILED = "failed"  # payments fail
    LOST_REPLY = "lost reply"  # `pay` returns PENDING, whatever happened
    DUPLICATE = "duplicate"  # every settlement is reported twice
    DOWN = "down"  # the node does not answer


class SandboxPayment:
    """The simulated payment node; implements `ngp.ports.Payment`.

    Args:
        state_dir: has `sandbox.key` and `sandbox.db`.
        options: `delay_s` of a payment, `settle_delay_s` until a settlement is reported, `fee_msat` of a payment,
            `balance_msat` at the first start, and any fault by its name (`slow`: seconds, others: on).

    Raises:
        ConfigError: an unknown option, or a value that is no number.
        PaymentError: key or database can't be used.
    """

    def __init__(self, state_dir: Path, options: Mapping[str, str] | None = None) -> None:
        self._faults: dict[Fault, str] = {}
        numbers = dict(_OPTIONS)
        faults: list[tuple[Fault, str]] = []
        for name, value in (options or {}).items():
            if name in _OPTIONS:
                numbers[name] = _number(name, value)
            elif name in tuple(Fault):
                faults.append((Fault(name), value))
            else:
                known = ", ".join([*_OPTIONS, *Fault])
                raise ConfigError(f"sandbox option {name!r} is unknown; use one of {known}")
        self._delay_s, self._settle_delay_s = numbers["delay_s"], numbers["settle_delay_s"]
        self._fee_msat = int(numbers["fee_msat"])
        self._changed = asyncio.Event()
        self._closed = False
        self._key = node_key.load_or_make(state_dir / "sandbox.key")
        self._account_id = self._key.public_key.format().hex()
        self._node = SandboxNode(state_dir / "sandbox.db", int(numbers["balance_msat"]), time.time())
        for fault, value in faults:
            self.set_fault(fault, value)

    def set_fault(self, name: str, value: str = "on") -> None:
        """Begin a fault at run time, or end it with `off`.

        Args:
            name: one of `Fault`.
            value: `on` or `off`; for `slow` a number of seconds, or `off`; for `stuck` also `fail`, which ends the
                fault and lets the payments fail.

        Raises:
            ConfigError: no such fault, or `slow` without seconds.
        """
        fault = _fault(name)
        if value in ("off", "fail"):
            self._faults.pop(fault, None)
            if fault is Fault.STUCK:
                self._node.release(Fate.FAIL if value == "fail" else Fate.SUCCEED, time.time())
        else:
            if fault is Fault.SLOW:
                _number(name, value)
            self._faults[fault] = value
        self._wake()

    async def wait_ready(self) -> None:
        """Return when the node can be used: at once, unless it is `down`."""
        while Fault.DOWN in self._faults:
            await self._wait(None)
        self._serve()

    async def info(self) -> PaymentInfo:
        """Return the key that signs the invoices, and the network `sandbox`."""
        self._serve()
        return PaymentInfo(self._account_id, NETWORK)

    async def confirm_node(self) -> None:
        """Do nothing: the node is part of this process."""

    def capabilities(self) -> PaymentCapabilities:
        """Return the capabilities: the money isn't real, and a preimage settles an invoice."""
        return PaymentCapabilities(real_money=False, settles_by_proof=True, least_amount_msat=1)

    async def check(self, spends: bool) -> list[Check]:
        """Return no checks, as nothing has to be set up."""
        return []

    async def balance_msat(self) -> int:
        """Return what is left of the fictitious balance."""
        self._serve()
        return self._node.balance_msat()

    # --- receiving ----------------------------------------------------------------------------------------------------

    async def create_invoice(
        self, amount_msat: int, memo: str, expiry_s: int, preimage: bytes | None = None, hold: bool = False
    ) -> NewInvoice:
        """Make an invoice. Raises PaymentError for `hold`: the payer has the preimage, so nothing can be held back."""
        self._serve()
        if hold:
            raise PaymentError("the sandbox can't hold payments; use lnd for that")
        _check_terms(amount_msat, memo, expiry_s)
        preimage = preimage or secrets.token_bytes(32)
        if len(preimage) != 32:
            raise PaymentError(f"a preimage has 32 bytes, not {len(preimage)}")
        payment_hash = sha256(preimage).digest()
        now_s = time.time()
        text = invoice.write(
            key=self._key.secret, prefix=_PREFIX, amount_msat=amount_msat, timestamp_s=int(now_s), expiry_s=expiry_s,
            payment_hash=payment_hash, payment_secret=secrets.token_bytes(32), memo=memo,
            metadata=_MARK + _masked(preimage, payment_hash),
        )  # fmt: skip
        self._node.add_invoice(payment_hash, amount_msat, int(now_s) + expiry_s, now_s)
        return NewInvoice(text, payment_hash, amount_msat, expiry_s)

    async def lookup_invoice(self, payment_hash: bytes) -> InvoiceState:
        """Return the state of an invoice of ours."""
        self._serve()
        return self._node.invoice_state(payment_hash, time.time())

    async def wait_held(self, payment_hash: bytes) -> int | None:  # noqa: ARG002  the port's
        """Return None: the payer has the preimage, so nothing can be held back."""
        return None

    async def settle_invoice(self, preimage: bytes) -> None:
        """Accept the payer's proof; `watch_settlements` reports it after the delay. Twice is no error."""
        self._serve()
        now_s = time.time()
        self._node.settle(sha256(preimage).digest(), now_s + self._settle_delay_s + self._slow_s(), now_s)
        self._wake()

    async def cancel_invoice(self, payment_hash: bytes) -> None:
        """Cancel an invoice that isn't paid."""
        self._serve()
        self._node.cancel(payment_hash, time.time())

    async def watch_settlements(self, cursor: int) -> AsyncIterator[Settlement]:
        """Yield settlements after the cursor; pauses while the node is down, ends when the module is closed."""
        while not self._closed:
            now_s = time.time()
            due_s: float | None = None
            if Fault.DOWN not in self._faults:
                found, due_s = self._node.settlements(cursor, now_s)
                for settlement in found:
                    cursor = settlement.cursor
                    yield settlement
                    if Fault.DUPLICATE in self._faults:
                        yield settlement
                if found:
                    continue
            await self._wait(None if due_s is None else due_s - now_s)

    # --- paying -------------------------------------------------------------------------------------------------------

    def decode(self, bolt11: str) -> DecodedInvoice:
        """Parse and check an invoice; only the regtest prefix is accepted.

        An invoice without the sandbox's mark in its `m` field has the network `regtest`. `expires_in_s` is 0 or less if
        the invoice has expired. Raises PeerError(`invoice`).
        """
        parsed = _read(bolt11)
        return parsed.decoded(int(time.time()), NETWORK if parsed.metadata.startswith(_MARK) else None)

    async def pay(
        self, bolt11: str, fee_limit_msat: int, timeout_s: float, via_peer: str | None = None
    ) -> PaymentOutcome:
        """Pay an invoice once; a second call for the same hash waits for the outcome of the same payment.

        Args:
            bolt11: an invoice with an amount.
            fee_limit_msat: the most that the simulated fee may be.
            timeout_s: how long to wait; after that PENDING is returned, and the payment goes on.
            via_peer: ignored, as there are no channels.
        """
        self._serve()
        try:
            parsed = _read(bolt11)
        except PeerError as error:
            raise PaymentError(f"can't pay: not an invoice of this network ({error})") from error
        now_s = time.time()
        if self._node.outcome(parsed.payment_hash, now_s) is None:
            why_not = self._why_not(parsed, fee_limit_msat, now_s)
            if why_not:
                return PaymentOutcome(parsed.payment_hash, PaymentStatus.FAILED, reason=why_not)
            self._start(parsed, now_s)
            if Fault.LOST_REPLY in self._faults:
                return PaymentOutcome(parsed.payment_hash, PaymentStatus.PENDING)
        return await self._follow(parsed.payment_hash, time.monotonic() + timeout_s)

    async def track(self, payment_hash: bytes) -> PaymentOutcome:
        """Return a payment's outcome; FAILED with reason UNKNOWN_PAYMENT if the node doesn't know the payment."""
        self._serve()
        found = self._node.outcome(payment_hash, time.time())
        if found is None:
            return PaymentOutcome(payment_hash, PaymentStatus.FAILED, reason=UNKNOWN_PAYMENT)
        return found[0]

    def _why_not(self, parsed: invoice.ParsedInvoice, fee_limit_msat: int, now_s: float) -> str:
        """Return why a payment can't start, or "". A payment that can't start isn't stored, and may be tried again."""
        if parsed.amount_msat is None:
            return "the invoice has no amount"
        if parsed.timestamp_s + parsed.expiry_s <= now_s:
            return "the invoice has expired"
        if parsed.payee == self._account_id:
            return "the invoice is our own"
        if not parsed.metadata.startswith(_MARK):
            return "the invoice is not of a sandbox: there is no route to its payee"
        if self._fee_msat > fee_limit_msat:
            return f"the fee of {self._fee_msat} msat is above the limit of {fee_limit_msat} msat"
        balance_msat = self._node.balance_msat()
        if parsed.amount_msat + self._fee_msat > balance_msat:
            return f"the balance of {balance_msat} msat does not cover {parsed.amount_msat + self._fee_msat} msat"
        return ""

    def _start(self, parsed: invoice.ParsedInvoice, now_s: float) -> None:
        fate, reason = Fate.SUCCEED, ""
        if Fault.STUCK in self._faults:
            fate = Fate.STUCK
        elif Fault.FAILED in self._faults:
            fate, reason = Fate.FAIL, "no route (fault `failed`)"
        self._node.start(
            Start(
                payment_hash=parsed.payment_hash,
                amount_msat=parsed.amount_msat or 0,
                fee_msat=self._fee_msat,
                preimage=_masked(parsed.metadata[len(_MARK) :], parsed.payment_hash),
                reason=reason,
                fate=fate,
                due_at_s=now_s + self._delay_s + self._slow_s(),
                expires_at_s=parsed.timestamp_s + parsed.expiry_s,
            ),
            now_s,
        )

    async def _follow(self, payment_hash: bytes, until_s: float) -> PaymentOutcome:
        """Wait for the outcome; PENDING if the time is up or the node has gone down."""
        while not self._closed and Fault.DOWN not in self._faults:
            now_s = time.time()
            found = self._node.outcome(payment_hash, now_s)
            assert found is not None  # it was started, and pending payments are never pruned
            outcome, due_s = found
            left_s = until_s - time.monotonic()
            if outcome.status is not PaymentStatus.PENDING or left_s <= 0:
                return outcome
            await self._wait(left_s if due_s is None else min(left_s, max(0.0, due_s - now_s)))
        return PaymentOutcome(payment_hash, PaymentStatus.PENDING)

    # --- identity -----------------------------------------------------------------------------------------------------

    async def sign(self, message: bytes) -> str:
        """Sign with the node's key."""
        self._serve()
        return node_key.sign(self._key, message)

    def verify(self, message: bytes, signature: str) -> str | None:
        """Return the public key that signed, or None."""
        return node_key.signer(message, signature)

    async def close(self) -> None:
        """Close the file; watchers end, payments on their way go on by themselves. Safe to call twice."""
        self._closed = True
        self._wake()
        self._node.close()

    def _serve(self) -> None:
        if self._closed:
            raise PaymentError("the sandbox is closed; start ngp again")
        if Fault.DOWN in self._faults:
            raise PaymentError("the sandbox's node is down (fault `down`); end it by set_fault('down', 'off')")

    def _slow_s(self) -> float:
        return float(self._faults.get(Fault.SLOW, 0.0))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, timeout_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)


def _read(bolt11: str) -> invoice.ParsedInvoice:
    parsed = invoice.read(bolt11)
    if parsed.prefix != _PREFIX:
        raise PeerError("invoice", f"is of {parsed.network}, but the sandbox accepts only its own")
    return parsed


def _masked(preimage: bytes, payment_hash: bytes) -> bytes:
    """Mask or unmask a preimage; a value of another length gives an empty result, which proves nothing."""
    mask = sha256(_MASK + payment_hash).digest()
    return bytes(a ^ b for a, b in zip(preimage, mask, strict=True)) if len(preimage) == len(mask) else b""


def _check_terms(amount_msat: int, memo: str, expiry_s: int) -> None:
    if not 0 < amount_msat <= invoice.AMOUNT_MSAT_MAX:
        raise PaymentError(f"an invoice over {amount_msat} msat can't be made; use 1 to {invoice.AMOUNT_MSAT_MAX}")
    if not 0 < expiry_s <= invoice.EXPIRY_S_MAX:
        raise PaymentError(f"an invoice can't be valid for {expiry_s} s; use 1 to {invoice.EXPIRY_S_MAX}")
    if len(memo.encode()) > invoice.MEMO_BYTES_MAX:
        raise PaymentError(f"the memo has {len(memo.encode())} bytes; use at most {invoice.MEMO_BYTES_MAX}")


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e15:
        raise ConfigError(f"sandbox option {name}: {value!r} is not a number of 0 or more")
    return number


def _fault(name: str) -> Fault:
    try:
        return Fault(name)
    except ValueError:
        raise ConfigError(f"fault {name!r} is unknown; use one of {', '.join(Fault)}") from None
