"""AutoPay: keeps the credit of a rental, within the limits, for as long as the tunnel works.

Each look asks for the landlord's status and terms, compares them with our own books, and pays what is due in parts.
If anything is wrong, nothing is paid and the reason is logged; the next look tries again. A payment that the landlord
doesn't count ends all further payments until the landlord counts it.

Where traffic has a price, what is charged for it must agree with what the tunnel's interface counted
(`ngp.core.tenant.traffic`).

Without credit the landlord has the tunnel off, so nothing can prove that the tunnel works. Then back rent is paid
without such a proof, as far as our own books say that we owe it. With credit, every further payment needs the proof.

Whatever a landlord says, a rental costs no more than the highest rent that we allow, from the last payment by hand on
and by our own clock, the credit that we want to keep (`most_bought_msat`), and the traffic that was counted here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from ngp.core.pricing import SAT_MSAT, show_money
from ngp.core.tenant import traffic
from ngp.core.tenant.account import disagreements, follow
from ngp.core.tenant.answers import Status
from ngp.core.tenant.terms import Limits, SaleTerms, lasts_until_due_s, most_bought_msat, refusals, top_up_msat
from ngp.core.values import DAY_S
from ngp.errors import ConfigError, LandlordError, NgpError, PaymentError
from ngp.tenant import files, interface, rekey, renting
from ngp.tenant.books import Books, BooksFile
from ngp.tenant.home import Home, Tunnel
from ngp.tenant.landlord import Landlord, RefusedError
from ngp.tenant.payer import Payer
from ngp.tenant.proof import Proof
from ngp.tenant.renting import Quote

_log = logging.getLogger("ngp.tenant")

LOOK_AGAIN_S = 60.0
"""How long after a failed look the next one follows."""
LOOK_MOST_S = 6 * 3600.0
"""The longest time between two looks: disagreements should be found long before the credit ends."""
WARN_AGAIN_S = 3600.0
CONFIRM_S = 120.0
"""How long a landlord may take to count a payment."""


class LimitError(PaymentError):
    """A limit of the tenant refuses the landlord's terms."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One rental whose credit is kept, with all that this needs.

    Attributes:
        limits: returns the limits, read again when their file changes.
        warn_s: returns how long before the credit ends there are warnings, read again like the limits.
        keeps_route: only packets from the rented networks use the tunnel, see `renting.keep_configuration`.
        warned_at_s: when the last warning was logged, by the monotonic clock; empty if there was none.
    """

    home: Home
    tunnel: Tunnel
    landlord: Landlord
    books: BooksFile
    payer: Payer
    proof: Callable[[], Proof]
    limits: Callable[[], Limits]
    warn_s: Callable[[], int]
    keeps_route: bool = False
    warned_at_s: list[float] = field(default_factory=list)


async def look(kept: Kept) -> float:
    """Look once, and pay at most one part.

    Returns: seconds until the next look; 0: at once, as more may be due.
    Raises: NgpError: nothing was paid, or the outcome of a payment isn't known yet.
    """
    with _alone(kept):
        tunnel = await asyncio.to_thread(rekey.present, kept.home, kept.landlord, kept.tunnel)
        return await _look(replace(kept, tunnel=tunnel))


async def pay_by_hand(kept: Kept, quote: Quote) -> Status:
    """Pay an invoice that the user agreed to. Only fee limit and budgets hold, not the limits of automatic payments.

    What the landlord charged for traffic until the payment counts is accepted with it: our books don't have it yet, and
    the price may end with this payment, so that they are compared from then on.

    Returns: the status when the landlord has counted the payment. Raises: NgpError.
    """
    with _alone(kept):
        books, before = await kept.payer.finish(), quote.asked.status
        if books.account.started:
            _refuse_disagreement(kept, books, before)
        carried_msat = before.credit_msat if _is_metered(books, before) else None
        books = (await kept.payer.pay(quote, carried_msat)).accepted(int(time.time()))
        kept.books.write(books)
        status = await _confirmed(kept, books, quote)
        if carried_msat is not None:  # traffic went on while the payment was on its way
            books = replace(books, account=traffic.up_to_date(books.account, status))
            kept.books.write(books)
        outcome = f"{show_money(quote.amount_msat)} were paid, and nothing more is"
        await asyncio.to_thread(_configure, kept, _compared(kept, books, status, outcome), status)
        return status


def take_over(home: Home, tunnel: Tunnel, quote: Quote, status: Status) -> None:
    """Take over a payment that was made by hand from another wallet, and what traffic was charged until it counted.

    Args: quote: what was paid. status: after the payment. Raises: NgpError.
    """
    file = BooksFile(home.state_path(tunnel))
    with alone_with(home, tunnel):
        books = file.read()
        if _is_metered(books, quote.asked.status):
            books = replace(books, account=traffic.up_to_date(books.account, status))
        if books.pending is None and not disagreements(books.account, status, time.time()):
            file.write(replace(books, account=follow(books.account, status)).accepted(int(time.time())))


def _is_metered(books: Books, status: Status) -> bool:
    """Say whether a running rental's traffic has a price, so that its credit isn't known by our books alone."""
    return books.account.started and bool(status.price_msat_per_gib)


def _alone(kept: Kept) -> AbstractContextManager[None]:
    return alone_with(kept.home, kept.tunnel)


def alone_with(home: Home, tunnel: Tunnel) -> AbstractContextManager[None]:
    """Keep other processes from paying for the same rental meanwhile."""
    return files.only_one(home.lock_path(tunnel), f"another payment for {tunnel.shown_name}", "wait until it is over")


async def _look(kept: Kept) -> float:
    books = await kept.payer.finish()
    status = await asyncio.to_thread(_status, kept, books)
    limits = kept.limits()
    is_first = not books.account.started
    if status is not None:
        if is_first:
            raise PaymentError(
                f"landlord {kept.landlord.place} has a rental for this key, but by our books nothing was paid for it: "
                "nothing is paid; if it is yours, pay once by hand (`ngp rent add`, `staticIP AddCredit`)"
            )
        books = await asyncio.to_thread(_verified, kept, books, status, limits)
        await asyncio.to_thread(_configure, kept, books, status)
    terms = await asyncio.to_thread(kept.landlord.terms, kept.tunnel.offer)
    if refused := refusals(_judged(terms, books, status), limits, is_first):
        raise LimitError(f"{'; '.join(refused)}: nothing is paid")
    if status is not None:
        books = _compared(kept, kept.books.read(), status)
    credit_msat = status.credit_msat if status is not None and not is_first else 0
    amount_msat = top_up_msat(credit_msat, terms, limits, is_first)
    if not is_first:
        _warn_of_end(kept, credit_msat, books)
    if not amount_msat and books.traffic is not None:
        return LOOK_AGAIN_S
    if not amount_msat:
        return min(LOOK_MOST_S, max(LOOK_AGAIN_S, float(lasts_until_due_s(credit_msat, terms, limits))))
    is_off = status is None or traffic.is_cut_off(status)
    if not is_first:
        if not is_off and (why_not := await kept.proof().why_not()):
            raise PaymentError(f"{why_not}; payment of {show_money(amount_msat)} waits until the tunnel works")
        _refuse_above_ceiling(books, amount_msat, limits, is_proven=not is_off)
    quote = await asyncio.to_thread(_ask, kept, books, amount_msat, terms, is_first)
    _log.info("paying %s for %s", show_money(quote.amount_msat), kept.tunnel.shown_name)
    books = await kept.payer.pay(quote)
    await _confirmed(kept, books, quote)
    return 0.0


def _judged(terms: SaleTerms, books: Books, status: Status | None) -> SaleTerms:
    """Return the terms with which the limits are compared: the higher of what is offered and of what holds now.

    The present price always counts, the present rent only if it was agreed by a payment that our books don't have yet.
    """
    if status is None:
        return terms
    price = max(terms.price_msat_per_gib, status.price_msat_per_gib or 0)
    followed = status.payments > books.account.payments
    return replace(
        terms,
        price_msat_per_gib=price,
        rate_sat_s=max(terms.rate_sat_s, status.rate_sat_s) if followed else terms.rate_sat_s,
    )


def _refuse_above_ceiling(books: Books, amount_msat: int, limits: Limits, is_proven: bool) -> None:
    since_s = books.bought_since_s or time.time()
    most_msat = most_bought_msat(limits, time.time() - since_s, is_proven)
    most_msat += traffic.allowed_msat(books.traffic) if books.traffic is not None else 0
    if books.bought_msat + amount_msat > most_msat:
        days = (time.time() - since_s) / DAY_S
        kept = f", and the credit to keep by {limits.target_credit.name}" if is_proven else ""
        raise PaymentError(
            f"with {show_money(amount_msat)} more, {show_money(books.bought_msat + amount_msat)} of credit would be "
            f"bought in {days:.1f} days, but at {limits.rent_max.name} no more than {show_money(most_msat)} can be due "
            f"in that time (one {limits.payment_max.name}{kept} and the traffic counted here included): nothing is "
            "paid; compare `ngp rent status` with what was agreed, then raise the limit or pay by hand"
        )


def _status(kept: Kept, books: Books) -> Status | None:
    """Return the landlord's status; None if there is no rental yet."""
    try:
        status = kept.landlord.status(kept.tunnel)
        if status.payments < books.account.payments and books.proof:  # a kill came before the landlord got the proof
            status = kept.landlord.status(kept.tunnel, preimage=books.proof)
    except RefusedError as error:
        if books.account.started:
            paid = show_money(books.account.paid_msat)
            raise LandlordError(f"{error}; {paid} were paid for the rental: ask the landlord") from error
        return None
    return status if status.payments or books.account.started else None


def _compared(kept: Kept, books: Books, status: Status, outcome: str = "nothing is paid") -> Books:
    """Compare the landlord's word with our books, and take over payments that were made by hand."""
    _refuse_disagreement(kept, books, status, outcome)
    account = follow(books.account, status)
    if account != books.account:
        books = replace(books, account=account)
        kept.books.write(books)
    return books


def _verified(kept: Kept, books: Books, status: Status, limits: Limits) -> Books:
    """Compare what was charged for traffic with what the tunnel's interface counted. Raises NgpError."""
    price, before = status.price_msat_per_gib or 0, books.traffic
    if before is None and not 0 < price <= limits.price_max.value:
        _refuse_disagreement(kept, books, status)
        return books
    reading = interface.counted(kept.tunnel.interface)
    now = traffic.count(before, reading, min(price, limits.price_max.value))
    if before is None:  # what the credit was used for until now isn't known here
        bought_msat = min(books.bought_msat, max(0, status.credit_msat))
        books = replace(books, bought_msat=bought_msat, bought_since_s=int(time.time()))
    else:
        charged = traffic.charge(now, books.account, status)
        if wrong := traffic.overcharge(charged, status):
            kept.books.write(replace(books, traffic=now))
            raise PaymentError(f"landlord {kept.landlord.place}: {wrong}: nothing is paid")
        now = charged
    books = replace(books, account=traffic.up_to_date(books.account, status), traffic=now)
    _refuse_disagreement(kept, books, status)
    kept.books.write(books)
    return books


def _ask(kept: Kept, books: Books, amount_msat: int, terms: SaleTerms, is_first: bool) -> Quote:
    quote = renting.ask(kept.landlord, kept.tunnel, amount_msat // SAT_MSAT, terms, is_first)
    if not is_first:
        _refuse_disagreement(kept, books, quote.asked.status)
    return quote


def _refuse_disagreement(kept: Kept, books: Books, status: Status, outcome: str = "nothing is paid") -> None:
    if wrong := disagreements(books.account, status, time.time()):
        raise PaymentError(f"landlord {kept.landlord.place}: {'; '.join(wrong)}: {outcome}")


async def _confirmed(kept: Kept, books: Books, quote: Quote) -> Status:
    """Wait until the landlord counts a payment. Returns the status then. Raises PaymentError."""
    until_s = time.monotonic() + CONFIRM_S
    while True:
        status = await asyncio.to_thread(kept.landlord.status, kept.tunnel, quote.asked.bolt11, books.proof)
        if status.payments >= books.account.payments and status.paid_msat >= books.account.paid_msat:
            return status
        if time.monotonic() > until_s:
            raise PaymentError(
                f"landlord {kept.landlord.place} hasn't counted the payment of {show_money(quote.amount_msat)} within "
                f"{CONFIRM_S:g} s: nothing more is paid until it does; ask the landlord"
            )
        await asyncio.sleep(renting.POLL_S)


def _configure(kept: Kept, books: Books, status: Status) -> None:
    """Write the configuration of a paid rental, unless the file is there already."""
    if kept.home.conf_path(kept.tunnel).exists():
        return
    written = renting.keep_configuration(kept.home, kept.landlord, kept.tunnel, status, kept.keeps_route)
    kept.books.write(replace(books, should_run=True))
    _log.info("configuration written to %s", written.path)


def _warn_of_end(kept: Kept, credit_msat: int, books: Books) -> None:
    rate = books.account.rate_sat_s * SAT_MSAT
    if not rate:  # no time uses the credit up
        return
    left_s = credit_msat / rate
    now_s = time.monotonic()
    if left_s < kept.warn_s() and (not kept.warned_at_s or now_s - kept.warned_at_s[-1] >= WARN_AGAIN_S):
        kept.warned_at_s[:] = [now_s]
        _log.warning("the credit of %s ends in %.1f h", kept.tunnel.shown_name, max(0.0, left_s / 3600))


def _warn_by_our_books(kept: Kept) -> None:
    """Warn of the end of the credit although the landlord can't be asked, or isn't believed."""
    with contextlib.suppress(NgpError):  # the reason why we came here has just been logged
        books = kept.books.read()
        if books.account.started:
            _warn_of_end(kept, books.account.credit_msat(time.time()), books)


async def keep(kept: Kept, once: bool, changed: Callable[[], bool], alone: bool = True) -> None:
    """Look again and again; with `once` until nothing is due. Only an error or a cancellation ends it.

    Args:
        changed: says whether settings changed since the last call: then it looks at once.
        alone: no other rental is kept, so the command may end when this one can't be kept. Otherwise no fault of this
            one, a defect of ours included, ends the others.
    Raises: NgpError: with `once` any; otherwise ConfigError and LimitError at the first look, as the user is there.
    """
    first, said = True, ""
    while True:
        try:
            pause_s = await look(kept)
            if first and not once:
                _log.info("AutoPay keeps the credit of %s", kept.tunnel.shown_name)
            first, said = False, ""
        except Exception as error:
            if not isinstance(error, NgpError):
                if alone:
                    raise
                error = NgpError(f"a defect of ngp ({type(error).__name__}: {error}): nothing is paid; report it")
            if once or (first and alone and isinstance(error, ConfigError | LimitError)):
                raise error
            if str(error) != said:
                said = str(error)
                _log.error("%s: %s", kept.tunnel.shown_name, said)
            _warn_by_our_books(kept)
            pause_s = LOOK_AGAIN_S
        if once and pause_s:
            return
        await _pause(pause_s, changed)


async def _pause(pause_s: float, changed: Callable[[], bool]) -> None:
    until_s = time.monotonic() + pause_s
    while (left_s := until_s - time.monotonic()) > 0 and not changed():
        await asyncio.sleep(min(left_s, 2.0))
