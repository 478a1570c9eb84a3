"""Renewal, as the buyer: ask for more data or time before either is used up, so that no packet waits."""

from __future__ import annotations

from ngp.core.buying.purchase import Purchase
from ngp.core.contract import State
from ngp.core.messages import MOST_DATA_BYTES, Accept, Ask, Cancel, Propose, Reject, RejectReason, Role
from ngp.core.peers import Neighbour
from ngp.core.policy import buy_terms
from ngp.core.timers import Due
from ngp.core.values import DAY_S
from ngp.core.world import World

RENEWAL_ANSWER_S = 3.0
MOST_PRICES = 64
MOST_QUOTED_LIFETIME_S = 32 * DAY_S
"""The longest lifetime that a client agrees to, for a new contract and for a renewal."""
WORTH_BYTES = 64 * 1024
"""Least that a contract or renewal should carry to be worth its cost: a server must not make us buy byte by byte."""


def live_until(world: World, purchase: Purchase) -> None:
    """Start a contract's lifetime, and plan its renewal."""
    before_mono_s = purchase.expires_mono_s
    world.begin_lifetime(purchase)
    for sale in world.resting.get(purchase.id, {}).values():
        if sale.running and sale.expires_mono_s > min(before_mono_s, purchase.expires_mono_s):
            world.grant(sale)  # the kernel ends it with the purchase, also if no daemon runs then
    if not world.settings.never_renews and world.settings.time_renewal_s != 0:
        world.timers.set(Due.RENEWAL, purchase.id, purchase.expires_mono_s - purchase.renewal_time_s(world.settings))


def renew_if_due(world: World, purchase: Purchase) -> None:
    """Ask for a renewal when data or time run low; when time runs low, only if the contract carried bytes lately."""
    settings = world.settings
    if purchase.state not in (State.ACCEPTED, State.ACTIVE) or settings.never_renews:
        return
    by_data = settings.data_renewal_bytes != 0 and (
        purchase.data_limit_bytes - purchase.used_bytes <= purchase.renewal_bytes(settings)
    )
    left_s = purchase.expires_mono_s - world.now.monotonic_s
    lately = world.now.monotonic_s - purchase.rate.at_mono_s <= max(purchase.lifetime_s / 2, 1.0)
    by_time = settings.time_renewal_s != 0 and left_s <= purchase.renewal_time_s(settings) and lately
    if not (by_data or (by_time and purchase.used_bytes)):
        return
    if left_s <= 0:
        return
    limit = purchase.data_limit_bytes
    wanted = settings.contract_data_bytes + (limit if by_data else purchase.used_bytes)
    ask_renewal(world, purchase, min(max(limit, wanted), MOST_DATA_BYTES))


def ask_renewal(world: World, purchase: Purchase, limit_bytes: int, client: bytes | None = None) -> bool:
    """Ask for a larger limit and a new lifetime. Args: client: who needs it; None: for whom it was opened.

    Returns False if the server is away, or renewed too often for almost nothing, or the contract isn't running.
    """
    neighbour = world.peers.of(purchase)
    if neighbour is None or not neighbour.up or purchase.state not in (State.ACCEPTED, State.ACTIVE):
        return False
    whom = purchase.opened_for if client is None else client
    if _renews_poorly(world, purchase) and not world.may_open(Role.CLIENT, neighbour, whom, len(purchase.path)):
        return False
    purchase.opened_for = whom
    world.move(purchase, State.RENEWING)
    world.timers.set(Due.RENEWAL, purchase.id, world.now.monotonic_s + RENEWAL_ANSWER_S)
    world.send(neighbour, Ask(purchase.destination.prefix, limit_bytes, purchase.lifetime_s, purchase.id))
    return True


def _renews_poorly(world: World, purchase: Purchase) -> bool:
    """Say whether almost nothing was carried since the last renewal: a server must not make us buy byte by byte."""
    return purchase.since_renewal_bytes < min(WORTH_BYTES, world.settings.contract_data_bytes // 2)


def renewal_due(world: World, purchase: Purchase) -> None:
    """Check a contract that is near its end, or whose renewal wasn't answered."""
    if purchase.state is State.RENEWING:
        renewal_over(world, purchase, "renewal not answered")
    renew_if_due(world, purchase)
    if purchase.state in (State.ACCEPTED, State.ACTIVE) and purchase.expires_mono_s > world.now.monotonic_s:
        world.timers.set(Due.RENEWAL, purchase.id, world.now.monotonic_s + max(0.2, purchase.lifetime_s / 50))


def renewal_over(world: World, purchase: Purchase, why: str = "") -> None:
    """End a renewal, agreed or not: the contract is active, unless it still waits for the first payment."""
    unpaid = world.server(purchase.identity).unpaid
    world.move(purchase, State.ACCEPTED if purchase.id in unpaid else State.ACTIVE, why)


def renewal_proposed(
    world: World, neighbour: Neighbour, purchase: Purchase | None, propose: Propose, message_id: int
) -> None:
    """Answer a proposed renewal. Bytes already bought keep their price: an offset below our limit is refused."""
    ours = purchase is not None and purchase.identity == neighbour.identity and purchase.running
    if purchase is None or not ours or purchase.destination.prefix != propose.destination:
        world.send(neighbour, Cancel(propose.contract), message_id)
        return
    accept = Accept(purchase.id, propose.price_msat_per_gib, propose.data_limit_bytes)
    agreed = Accept(purchase.id, purchase.price_msat_per_gib, purchase.data_limit_bytes)
    if accept == agreed and propose.from_offset_bytes < purchase.data_limit_bytes:
        world.send(neighbour, accept, message_id)  # the server didn't hear it, or its proposal is late
        return
    objection = _objection(world, neighbour, purchase, propose)
    if objection is not None:
        world.send(neighbour, Reject(purchase.id, objection), message_id)
        return
    if _renews_poorly(world, purchase):
        world.count_idle(purchase)
    before_msat_per_gib = purchase.price_msat_per_gib
    purchase.renew(propose.price_msat_per_gib, propose.data_limit_bytes, propose.lifetime_s)
    world.tell_price(purchase, before_msat_per_gib)
    renewal_over(world, purchase)
    live_until(world, purchase)
    world.journal("contract", purchase.identity, "renewed", contract=purchase.id)
    world.save(purchase)
    world.grant(purchase)
    world.send(neighbour, accept, message_id)
    renew_if_due(world, purchase)


def _objection(world: World, neighbour: Neighbour, purchase: Purchase, propose: Propose) -> RejectReason | None:
    limit, price = purchase.data_limit_bytes, propose.price_msat_per_gib
    if propose.from_offset_bytes < limit or propose.data_limit_bytes < limit:
        return RejectReason.TERMS
    if len(purchase.prices) >= MOST_PRICES and price != purchase.price_msat_per_gib:
        return RejectReason.TERMS
    if propose.lifetime_s > MOST_QUOTED_LIFETIME_S:
        return RejectReason.BUSY
    if price > buy_terms(world.settings, purchase.destination.prefix, world.occasion(purchase)).most_msat_per_gib:
        return RejectReason.PRICE
    blocked, disputed = purchase.identity in world.peers.blocked, world.server(purchase.identity).disputed
    if blocked or disputed or not world.settings.buys:
        return RejectReason.NOT_BUYING
    if purchase.state is not State.RENEWING:
        return RejectReason.LAPSED
    # Thousands of renewals may have been asked for before the first was counted.
    if _renews_poorly(world, purchase):
        may = world.may_open(Role.CLIENT, neighbour, purchase.opened_for, len(purchase.path))
        return None if may else RejectReason.BUSY
    return None
