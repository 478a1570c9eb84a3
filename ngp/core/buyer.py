"""Buyer: answer proposals by the operator's policy, meter what we get, renew in time; `bills` checks the bill.

A buyer never holds its own packets and trusts no bill: its own meter counts at its own interface with the same rule
and the same limit, so both sides arrive at the same number.
"""

from __future__ import annotations

from ngp.core import networks
from ngp.core.contract import CloseReason, Contract, State
from ngp.core.messages import Accept, Ask, Cancel, Prefix, Propose, Reject, RejectReason, Role
from ngp.core.policy import Answer, answer_proposal, buy_terms
from ngp.core.pricing import show_price
from ngp.core.timers import Due
from ngp.core.values import Reading
from ngp.core.world import Neighbour, World, renewal_bytes, renewal_time_s

RENEWAL_ANSWER_S = 3.0
MOST_BOUGHT = 65536
MOST_ENDED = 4096
RATE_SMOOTHING_S = 1.0
MOST_DATA_BYTES = 1 << 60  # what fits a message
MOST_QUOTED_LIFETIME_S = 32 * 86400
MOST_PRICES = 64
MOST_DECLINED = 256
DECLINED_S = 30.0  # a server keeps a refusal no longer
LOOP_S = 10.0
WORTH_BYTES = 64 * 1024
WORTH_S = 60.0
"""A contract that ends with less than both came to nothing: its server may cut each one after our first packet."""


# --- negotiation ------------------------------------------------------------------------------------------------------


def proposed(world: World, neighbour: Neighbour, propose: Propose, message_id: int) -> bool:
    """Answer a server's proposal. Returns whether it was answered by a message."""
    known = world.contracts.get(propose.contract)
    if known is not None:
        _renewal_proposed(world, neighbour, known, propose, message_id)
        return True
    objection = _objection(world, neighbour, propose)
    if objection is not None:
        _note_decline(world, neighbour, propose.destination)
        world.send(neighbour, Reject(propose.contract, objection), message_id)
        return True
    terms = buy_terms(world.settings, propose.destination, neighbour.link[0])
    answer, price = answer_proposal(terms, propose.price_msat_per_gib, propose.round)
    if answer is Answer.ACCEPT:
        _accept(world, neighbour, propose, message_id)
    else:
        counter = price if answer is Answer.COUNTER else None
        world.send(neighbour, Reject(propose.contract, RejectReason.PRICE, counter), message_id)
        if counter is None:
            _note_decline(world, neighbour, propose.destination)
            key = "BUY_PRICE_MAX" if terms.most_msat_per_gib == world.settings.buy_max_msat_per_gib else "PRICES"
            world.log(
                f"proposal of {neighbour.identity.hex()[:8]} for {propose.destination} declined: "
                f"{show_price(propose.price_msat_per_gib)} is above {key} {show_price(terms.most_msat_per_gib)}"
            )
    return True


def _note_decline(world: World, neighbour: Neighbour, destination: Prefix) -> None:
    key = (neighbour.identity, neighbour.link, destination)
    world.declined.pop(key, None)  # entered anew, behind the others
    world.declined[key] = world.now.monotonic_s
    if len(world.declined) > MOST_DECLINED:
        del world.declined[next(iter(world.declined))]


def ask_again(world: World, identity: bytes | None = None) -> None:
    """Ask for what we declined lately, of one server or of all: our terms changed, and theirs still keep it closed."""
    for key, at_mono_s in list(world.declined.items()):
        who, link, destination = key
        if identity is not None and who != identity:
            continue
        del world.declined[key]
        neighbour = world.neighbours.get((who, link))
        if neighbour is not None and world.now.monotonic_s - at_mono_s < DECLINED_S:
            world.send(neighbour, Ask(destination, 0, 0))


def _objection(world: World, neighbour: Neighbour, propose: Propose) -> RejectReason | None:
    if not world.settings.buys:
        return RejectReason.NOT_BUYING
    if neighbour.blocked:
        return RejectReason.BLOCKED
    if not networks.is_same(neighbour.network, world.means.network):
        return RejectReason.NETWORK
    account = world.account(neighbour.identity, Role.CLIENT)
    if account.disputed:
        return RejectReason.TERMS
    full = account.running >= world.settings.contracts_max // 2 or len(world.contracts) >= world.settings.contracts_max
    if full or propose.lifetime_s > MOST_QUOTED_LIFETIME_S:
        return RejectReason.BUSY
    if _sells_it_the_same(world, neighbour, propose.destination):
        who = neighbour.identity.hex()[:8]
        world.log(f"proposal of {who} for {propose.destination} declined: it buys that from us, so the routes loop")
        return RejectReason.NOT_BUYING
    if world.settings.never_renews and _bought_before(world, neighbour, propose.destination):
        return RejectReason.NOT_RENEWING
    if not world.may_open(Role.CLIENT, neighbour):
        return RejectReason.BUSY
    return None


def _sells_it_the_same(world: World, neighbour: Neighbour, destination: Prefix) -> bool:
    """In a routing loop each would charge the other for every round of a packet; what lies idle is of an old route."""
    sold = world.coverage.exact(Role.SERVER, neighbour.number, destination)
    return sold is not None and sold.running and world.now.monotonic_s - sold.carried_mono_s < LOOP_S


def _bought_before(world: World, neighbour: Neighbour, destination: Prefix) -> bool:
    """With renewal off a destination is bought once, until it was idle for CONTRACT_TIME: every proposal shows use."""
    key = (neighbour.identity, str(destination))
    last = world.bought.get(key)
    if last is None or world.now.monotonic_s - last > world.settings.contract_time_s:
        if len(world.bought) > 4096:
            for old, at in list(world.bought.items()):
                if world.now.monotonic_s - at > world.settings.contract_time_s or len(world.bought) > MOST_BOUGHT:
                    del world.bought[old]
        return False
    world.bought[key] = world.now.monotonic_s
    return True


def _accept(world: World, neighbour: Neighbour, propose: Propose, message_id: int) -> None:
    standing = world.coverage.exact(Role.CLIENT, neighbour.number, propose.destination)
    if standing is not None and standing.running:
        world.halt(standing, CloseReason.CANCELLED)  # the server forgot it: it proposed the same destination anew
    contract = Contract(
        contract=propose.contract,
        role=Role.CLIENT,
        identity=neighbour.identity,
        link=neighbour.link,
        neighbour=neighbour.number,
        destination=propose.destination,
        prices=[(0, propose.price_msat_per_gib)],
        data_limit_bytes=propose.data_limit_bytes,
        lifetime_s=propose.lifetime_s,
    )
    account = world.account(neighbour.identity, Role.CLIENT)
    world.add_contract(contract)
    contract.opened_at_s = world.now.utc_s
    contract.carried_mono_s = world.now.monotonic_s
    account.running += 1
    world.count_opening(contract)
    world.move(contract, State.ACTIVE if account.balance_msat > 0 or not propose.price_msat_per_gib else State.ACCEPTED)
    if world.settings.never_renews:
        world.bought[neighbour.identity, str(propose.destination)] = world.now.monotonic_s
    _live_until(world, contract)
    world.journal("contract", contract.identity, contract.state.value, contract=contract.contract)
    world.save(contract)
    world.grant(contract)
    world.send(neighbour, Accept(contract.contract, propose.price_msat_per_gib, propose.data_limit_bytes), message_id)


def _live_until(world: World, contract: Contract) -> None:
    contract.expires_at_s = world.now.utc_s + contract.lifetime_s
    contract.expires_mono_s = world.now.monotonic_s + contract.lifetime_s
    world.watch_end(contract)
    if not world.settings.never_renews and world.settings.time_renewal_s != 0:
        world.timers.set(
            Due.RENEWAL, contract.contract, contract.expires_mono_s - renewal_time_s(world.settings, contract)
        )


def rejected(world: World, neighbour: Neighbour, reject: Reject) -> None:
    """A server takes back a quote that we accepted, or declines a renewal."""
    contract = world.contracts.get(reject.contract)
    if contract is None or not _ours(contract, neighbour):
        return
    if contract.state is State.RENEWING:
        world.move(contract, State.ACTIVE, f"renewal declined: {reject.reason.value}")
    else:
        world.halt(contract, CloseReason.CANCELLED)


def _ours(contract: Contract, neighbour: Neighbour) -> bool:
    """Say whether a server may speak about a contract: it is the other side, on the link that it was made on."""
    return (contract.role, contract.identity, contract.link) == (Role.CLIENT, neighbour.identity, neighbour.link)


# --- renewal ----------------------------------------------------------------------------------------------------------


def renew_if_due(world: World, contract: Contract) -> None:
    """Ask for a renewal when data or time run low; by time only what carried bytes lately."""
    settings = world.settings
    if contract.halting is not None or contract.state not in (State.ACCEPTED, State.ACTIVE) or settings.never_renews:
        return
    by_data = settings.data_renewal_bytes != 0 and (
        contract.data_limit_bytes - contract.used_bytes <= renewal_bytes(settings, contract)
    )
    left_s = contract.expires_mono_s - world.now.monotonic_s
    lately = world.now.monotonic_s - contract.carried_mono_s <= max(contract.lifetime_s / 2, 1.0)
    by_time = settings.time_renewal_s != 0 and left_s <= renewal_time_s(settings, contract) and lately
    if not (by_data or (by_time and contract.used_bytes)) or contract.renews_idly(world.now.monotonic_s):
        return
    neighbour = world.neighbour_of(contract)
    if neighbour is None or not neighbour.up or left_s <= 0:
        return
    if _renews_poorly(world, contract) and not world.may_open(Role.CLIENT, neighbour):
        return
    limit = contract.data_limit_bytes
    wanted = settings.contract_data_bytes + (limit if by_data else contract.used_bytes)
    wanted = min(max(limit, wanted), MOST_DATA_BYTES)
    world.move(contract, State.RENEWING)
    world.timers.set(Due.RENEWAL, contract.contract, world.now.monotonic_s + RENEWAL_ANSWER_S)
    world.send(neighbour, Ask(contract.destination, wanted, contract.lifetime_s, contract.contract))


def _renews_poorly(world: World, contract: Contract) -> bool:
    """Say whether a renewal would follow on next to nothing carried: a server may sell byte by byte."""
    return contract.since_renewal_bytes < min(WORTH_BYTES, world.settings.contract_data_bytes // 2)


def renewal_due(world: World, contract: Contract) -> None:
    """Look at a contract whose end comes near, or whose renewal was not answered."""
    if contract.state is State.RENEWING:
        world.move(contract, State.ACTIVE, "renewal not answered")
    renew_if_due(world, contract)
    if contract.state in (State.ACCEPTED, State.ACTIVE) and contract.expires_mono_s > world.now.monotonic_s:
        world.timers.set(Due.RENEWAL, contract.contract, world.now.monotonic_s + max(0.2, contract.lifetime_s / 50))


def _renewal_proposed(
    world: World, neighbour: Neighbour, contract: Contract, propose: Propose, message_id: int
) -> None:
    """Accept a renewal on its terms. Bytes already bought keep their price: an offset below our limit is refused."""
    alive = _ours(contract, neighbour) and contract.running and contract.halting is None
    if not alive or contract.destination != propose.destination:
        world.send(neighbour, Cancel(propose.contract, CloseReason.CANCELLED.value), message_id)
        return
    accept = Accept(contract.contract, propose.price_msat_per_gib, propose.data_limit_bytes)
    repeated = propose.from_offset_bytes == 0 and contract.state is not State.RENEWING
    if repeated and (accept.price_msat_per_gib, accept.data_limit_bytes) == (
        contract.prices[0][1],
        contract.data_limit_bytes,
    ):
        world.send(neighbour, accept, message_id)  # the server didn't hear our first accept
        return
    terms = buy_terms(world.settings, contract.destination, neighbour.link[0])
    if propose.from_offset_bytes < contract.data_limit_bytes or propose.data_limit_bytes < contract.data_limit_bytes:
        reason: RejectReason | None = RejectReason.TERMS
    elif len(contract.prices) >= MOST_PRICES and propose.price_msat_per_gib != contract.price_msat_per_gib:
        reason = RejectReason.TERMS
    elif propose.price_msat_per_gib > terms.most_msat_per_gib:
        reason = RejectReason.PRICE
    elif not world.settings.buys or neighbour.blocked or world.account(contract.identity, Role.CLIENT).disputed:
        reason = RejectReason.NOT_BUYING
    else:
        reason = None
    if reason is not None or contract.state is not State.RENEWING:
        world.send(neighbour, Reject(contract.contract, reason or RejectReason.LAPSED), message_id)
        return
    if _renews_poorly(world, contract):
        world.count_idle(contract)
    contract.note_renewal(world.now.monotonic_s)
    contract.reprice(contract.data_limit_bytes, propose.price_msat_per_gib)
    contract.data_limit_bytes = propose.data_limit_bytes
    contract.lifetime_s = propose.lifetime_s
    world.move(contract, State.ACTIVE)
    world.timers.clear(Due.EXHAUSTED, contract.contract)
    _live_until(world, contract)
    world.journal("contract", contract.identity, "renewed", contract=contract.contract)
    world.save(contract)
    world.grant(contract)
    world.send(neighbour, accept, message_id)
    renew_if_due(world, contract)


# --- meter ------------------------------------------------------------------------------------------------------------


def usage_read(world: World, contract: Contract, reading: Reading) -> None:
    """Take what our own meter counted, and renew when it says so."""
    account = world.account(contract.identity, Role.CLIENT)
    carried = reading.used_to_bytes + reading.used_from_bytes - contract.used_bytes
    if carried <= 0:
        return
    now = world.now.monotonic_s
    elapsed = max(0.001, now - contract.carried_mono_s)
    contract.rate_bytes_s += (carried / elapsed - contract.rate_bytes_s) * min(1.0, elapsed / RATE_SMOOTHING_S)
    contract.carried_mono_s = now
    before = contract.used_bytes
    due = meter(world, contract, reading)
    if contract.used_to_bytes:
        world.uncount_opening(contract)
    if before < WORTH_BYTES <= contract.used_bytes:
        world.count_idle(contract, -1)
    elapsed = max(0.001, now - account.rated_mono_s)
    account.rate_msat_s += (due / elapsed - account.rate_msat_s) * min(1.0, elapsed / RATE_SMOOTHING_S)
    account.rated_mono_s = now
    world.unflushed.add(contract.contract)
    if world.settings.never_renews:
        world.bought[contract.identity, str(contract.destination)] = now
    renew_if_due(world, contract)


def exhausted(world: World, contract: Contract) -> None:
    """Our own meter reached the limit: try to renew; only the server's notice, or the lifetime, ends it.

    The server may have carried less than we count (what it refused we sent all the same); while it carries, we meter.
    """
    if contract.running and contract.halting is None:
        renew_if_due(world, contract)


def meter(world: World, contract: Contract, reading: Reading) -> int:
    """Price what our own meter counted. Returns the msat that came on top, >= 0."""
    contract.used_to_bytes, contract.used_from_bytes = reading.used_to_bytes, reading.used_from_bytes
    due = contract.due_msat(contract.used_bytes) - contract.charged_msat
    contract.charged_msat += due
    contract.unsaved_msat += due
    account = world.account(contract.identity, Role.CLIENT)
    account.metered_msat += due
    account.unsaved_msat += due
    account.sent = account.sent or contract.used_to_bytes > 0
    return due


def cancelled(world: World, neighbour: Neighbour, cancel: Cancel) -> None:
    """A server says that a contract is over: our mirror of it ends too, unless it was we who wanted that."""
    contract = world.contracts.get(cancel.contract) or world.ended.get(cancel.contract)
    if contract is None or not _ours(contract, neighbour):
        return
    contract.disowned = False
    if contract.running:
        known = cancel.reason in [reason.value for reason in CloseReason]
        world.halt(contract, CloseReason(cancel.reason) if known else CloseReason.CANCELLED)


def halted(world: World, contract: Contract, reading: Reading | None) -> None:
    """End our mirror of a contract after our meter's last reading."""
    account = world.account(contract.identity, Role.CLIENT)
    if reading is not None:
        usage_read(world, contract, reading)
    account.running -= 1
    if contract.used_bytes < WORTH_BYTES and world.now.utc_s - contract.opened_at_s < WORTH_S:
        world.count_opening(contract)
    world.close(contract, contract.charged_msat)
    _remember(world, contract)
    world.forget_if_gone(contract.identity)


def _remember(world: World, contract: Contract) -> None:
    """Keep what ended for the statement that tells its last bytes: it comes behind the notice."""
    world.ended[contract.contract] = contract
    if len(world.ended) > MOST_ENDED:
        del world.ended[next(iter(world.ended))]
