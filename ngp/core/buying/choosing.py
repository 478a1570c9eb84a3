"""Choosing: which of several neighbours carries our traffic, if the routes lead through several (CHOOSE_ROUTES).

Routing daemons and the operator decide which neighbours can carry a packet. While something is sent, or clients of ours
ask for a price, all of them are asked for their price of one of the destinations, and our meter for the present one is
read at each look. What counts is the price of what arrives: the price divided by the quality. The present neighbour
stays unless it costs a tenth more than another one.

- A neighbour is left if no answers come for what is sent, and it answers no hellos for 0.3 s. As long as answers come,
  its kernel carries what is paid for while its daemon is away.
- If nothing comes back for 3 s of what is sent, another neighbour is tried. If answers come from there, the first one
  has lost most of its quality: it may sell cheaply and drop everything. If they don't, the destination is the reason.
- A neighbour that renews only above our limit is left before the contract ends.

A route is made in the kernel first; then the quote of the neighbour, which was asked for before, is accepted. So the
next packet finds a contract. Contracts elsewhere, and with the neighbour that was left, stay as they are. Only that
for the sample is ended when it has carried nothing for 10 s, as the neighbour is to be asked for its present price.
"""

from __future__ import annotations

from itertools import islice

from ngp.core import networks
from ngp.core.buying import bills, default_route, service
from ngp.core.buying.fork import Candidate, ForkState, choose
from ngp.core.buying.negotiation import accept_quote
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import IN_USE_S, State
from ngp.core.effects import Greet, ReadMeters, SetRoutes
from ngp.core.kernel import Fork, Reading, Router
from ngp.core.messages import Ask, Prefix, Propose, Reject, RejectReason
from ngp.core.peers import Neighbour
from ngp.core.policy import buy_terms
from ngp.core.pricing import about_price
from ngp.core.settings import Settings
from ngp.core.timers import Due
from ngp.core.world import World

LOOK_S = 0.1
GREET_S = 1.0  # between two hellos to the present neighbour, as long as it answers
LATE_S, SILENT_S = 0.2, 0.3  # an answer to a hello that takes longer is late; after so long none is expected any more
MOST_READ = 64  # contracts with a neighbour that are read at each look
WINDOW_S, MOST_UNANSWERED = 1.0, 3
ASK_S, REFUSED_ASK_S = 5.0, 60.0  # a quote is valid for 10 s
LEFT_ASK_S = 30.0
"""A neighbour that was left is asked again after this time: one that offers a low price each time it is left, and a
high one when it is chosen, must not have us change all the time."""
ENDS_S = 1.0  # from the end of a contract until its server can offer another
SETTLE_S = 3.0
"""From a start until the first choice: until then the neighbours say hello, and what a killed daemon chose goes on."""


def forks_seen(world: World, forks: tuple[Fork, ...]) -> None:
    """Take over what the host's routes are now; make our routes anew if they aren't as chosen."""
    known, found = world.buying.forks, dict[Prefix, ForkState]()
    if not known.all:
        known.began_mono_s = world.now.monotonic_s
    led = {prefix: (state, state.chosen) for prefix, state in known.all.items() if state.chosen is not None}
    for fork in forks:
        state = known.all.get(fork.prefix) or ForkState(fork, fork.chosen)
        state.fork, found[fork.prefix] = fork, state
        is_left = state.chosen is not None and state.chosen.place not in [one.place for one in fork.routers]
        if is_left or len(fork.routers) < 2:
            state.chosen = None
    _log_ended(world, led, found)
    known.take(found)
    known.in_use = {prefix: found[prefix] for prefix in known.in_use if prefix in found}
    for state in known.in_use.values():
        _decide(world, state)
    there = {fork.prefix: fork.chosen.place for fork in forks if fork.chosen is not None}
    if _places(world) != there or any(fork.is_stale for fork in forks):
        _set_routes(world)


def _log_ended(world: World, led: dict[Prefix, tuple[ForkState, Router]], found: dict[Prefix, ForkState]) -> None:
    """Say which routes of ours end, since the host's routes leave nothing to choose, or no longer lead that way.

    Args: led: the states that had a route of ours, each with its router. found: the states as they are now.
    """
    for prefix, (state, router) in led.items():
        now = found.get(prefix)
        if now is not None and now.chosen is not None:
            continue
        neighbour = _at(world, router)
        through = _told(world, state, neighbour) if neighbour is not None else f"a router on {router.interface}"
        places = [one.place for one in now.fork.routers] if now is not None else []
        why = "only this way is left" if router.place in places else "the host's routes no longer lead that way"
        world.log(f"no route of ours leads packets to {prefix} through {through} any more: {why}")


def switched(world: World, before: Settings) -> None:
    """Follow changed settings: without CHOOSE_ROUTES no route of ours is left."""
    if _numbers(before) == _numbers(world.settings):
        return
    if not world.settings.choose_routes:
        world.buying.forks.take({})
        world.buying.forks.in_use.clear()
    _set_routes(world)


def _numbers(settings: Settings) -> tuple[bool, int, int]:
    return settings.choose_routes, settings.route_table, settings.route_priority


def used(world: World, destination: Prefix) -> None:
    """Note that something is sent to a destination."""
    if (state := _take_into_use(world, destination)) is not None:
        state.carries = True


def wanted(world: World, destination: Prefix) -> None:
    """Note that a client wants a destination, for which we ask the present neighbour.

    So the neighbours are compared although the client may refuse what the present one's price makes of ours. Nothing is
    bought before the client has accepted.
    """
    _take_into_use(world, destination)


def _take_into_use(world: World, destination: Prefix) -> ForkState | None:
    state, now = world.buying.forks.of(destination), world.now.monotonic_s
    if state is None or len(state.fork.routers) < 2:
        return None
    if not destination.prefixlen and state.sample is not None:
        destination = state.sample  # not every neighbour sells a default route, so a host compares them better
    if state.sample is None or now - state.used_mono_s > IN_USE_S:
        if state.sample != destination:
            state.sample = destination
            state.offers.clear()
            state.ask_mono_s.clear()
            state.asked.clear()
        state.window_mono_s, state.unanswered = now, 0
        state.sent, state.returned, state.carries = False, False, False
    state.used_mono_s = now
    world.buying.forks.in_use[state.fork.prefix] = state
    world.timers.set_if_unset(Due.FORKS, b"", now)
    return state


def carried(world: World, purchase: Purchase, reading: Reading) -> None:
    """Note what our meter counted, before the purchase's own counters are set."""
    state = world.buying.forks.of(purchase.destination.prefix) if world.buying.forks.all else None
    if state is None:
        return
    neighbour = _at(world, state.router)
    sent, returned = reading.used_to_bytes > purchase.used_to_bytes, reading.used_from_bytes > purchase.used_from_bytes
    if returned:
        state.returned = state.judged = True
        if neighbour is not None:
            neighbour.quality.unanswered_mono_s = 0.0
            if neighbour.identity == purchase.identity and state.carried_by != state.router:
                state.carried_by = state.router
                default_route.carried(world, neighbour, state.fork.prefix)
    if sent and neighbour is not None and neighbour.identity == purchase.identity:
        state.sent = True
        if not (returned or neighbour.quality.unanswered_mono_s):
            neighbour.quality.unanswered_mono_s = world.now.monotonic_s
    if sent:
        used(world, purchase.destination.prefix)


def offered(world: World, neighbour: Neighbour, propose: Propose) -> None:
    """Note a price; if traffic goes through the neighbour already, accept its quote, which we asked for."""
    state = world.buying.forks.of(propose.destination)
    if state is None:
        return
    bought = world.running_purchase(propose.contract)
    if bought is not None:
        used(world, propose.destination)
    who, present = neighbour.identity, _at(world, state.router)
    if state.sample != propose.destination or who not in [one.identity for one in _neighbours(world, state)]:
        return
    is_present = present is not None and present.identity == who
    if not (is_present or who in state.asked):  # nobody is chosen by what it says unasked
        return
    state.asked.discard(who)
    state.offers[who] = propose.price_msat_per_gib
    if not _is_affordable(world, state, neighbour):
        state.ask_mono_s[who] = world.now.monotonic_s + REFUSED_ASK_S
    if is_present and bought is None and _buy(world, state, neighbour):
        world.buying.forks.moved.append((propose.destination, who))


def refused(world: World, neighbour: Neighbour, reject: Reject) -> None:
    """Note that a neighbour doesn't sell what we asked for. One that is busy is asked again soon."""
    if reject.destination is None or reject.reason is RejectReason.BUSY:
        return
    state = world.buying.forks.of(reject.destination)
    if state is not None and state.sample == reject.destination:
        state.offers.pop(neighbour.identity, None)
        state.ask_mono_s[neighbour.identity] = world.now.monotonic_s + REFUSED_ASK_S


def look(world: World) -> None:
    """Look after the forks in use: ask their neighbours, judge the present ones, choose."""
    forks, now = world.buying.forks, world.now.monotonic_s
    forks.in_use = {prefix: state for prefix, state in forks.in_use.items() if now - state.used_mono_s <= IN_USE_S}
    if not forks.in_use:
        return
    present = [neighbour for state in forks.in_use.values() if (neighbour := _at(world, state.router)) is not None]
    for neighbour in {one.number: one for one in present}.values():
        _watch(world, neighbour)
    for state in list(forks.in_use.values()):
        if now - state.window_mono_s >= WINDOW_S:
            _judge_answers(world, state)
        _ask_all(world, state)
        _decide(world, state)
    world.timers.set(Due.FORKS, b"", now + LOOK_S)


def chosen(world: World) -> list[tuple[Prefix, Router, Neighbour | None]]:
    """List our routes: prefix, router, and the neighbour there."""
    states = world.buying.forks.all.items()
    return [(prefix, one.chosen, _at(world, one.chosen)) for prefix, one in states if one.chosen is not None]


def offers_of(world: World, neighbour: Neighbour) -> list[tuple[Prefix, int]]:
    """List what a neighbour asks, msat per GiB, for the destinations by which it is compared with others.

    What is bought there already has the price that is paid, as the one that is chosen isn't asked again.
    """
    found = []
    for state in world.buying.forks.all.values():
        price = _price(world, state, neighbour) if neighbour in _neighbours(world, state) else None
        if state.sample is not None and price is not None:
            found.append((state.sample, price))
    return found


# --- measuring --------------------------------------------------------------------------------------------------------


def _watch(world: World, neighbour: Neighbour) -> None:
    """Judge whether a neighbour carries: say hello once a second, and at each look while something isn't answered."""
    quality, now = neighbour.quality, world.now.monotonic_s
    waits_s = now - quality.asked_mono_s if quality.asked_mono_s else 0.0
    unanswered_s = now - quality.unanswered_mono_s if quality.unanswered_mono_s else 0.0
    if LATE_S <= waits_s < SILENT_S:  # later it is silence, not loss
        quality.missed(now)
    if waits_s >= SILENT_S and not quality.silent and (unanswered_s >= SILENT_S or _must_renew(neighbour)):
        quality.fell_silent(now)
    if waits_s or unanswered_s or now - quality.greeted_mono_s >= GREET_S:
        _greet(world, neighbour)
    bought = (one.id for one in neighbour.contracts.values() if isinstance(one, Purchase))
    world.do(ReadMeters(tuple(world.with_sales(islice(bought, MOST_READ)))))


def _greet(world: World, neighbour: Neighbour) -> None:
    """Say hello to a neighbour, whose answer shows that it is there, and how long that takes."""
    quality = neighbour.quality
    quality.greeted_mono_s = world.now.monotonic_s
    quality.asked_mono_s = quality.asked_mono_s or world.now.monotonic_s
    world.do(Greet(neighbour.link[0], neighbour.identity, neighbour.link, wants_reply=True))


def _must_renew(neighbour: Neighbour) -> bool:
    """Say whether a purchase waits for a renewal: it ends soon if nobody answers."""
    return any(isinstance(one, Purchase) and one.state is State.RENEWING for one in neighbour.contracts.values())


def _judge_answers(world: World, state: ForkState) -> None:
    """Look whether answers came for what was sent; if they don't, try another neighbour."""
    sent, returned = state.sent, state.returned
    state.sent, state.returned, state.window_mono_s = False, False, world.now.monotonic_s
    if returned:
        state.unanswered = 0
        present = _at(world, state.router)
        for neighbour in _neighbours(world, state):
            if neighbour.identity in state.suspects and neighbour is not present:
                neighbour.quality.is_mute(world.now.monotonic_s)
        state.suspects.clear()
    elif sent and state.judged:
        state.unanswered += 1
        if state.unanswered >= MOST_UNANSWERED and (present := _at(world, state.router)) is not None:
            state.unanswered = 0
            state.suspects.add(present.identity)
            if not any(_may_carry(world, state, one) for one in _neighbours(world, state)):
                state.suspects.clear()
                state.judged = False


# --- prices -----------------------------------------------------------------------------------------------------------


def _ask_all(world: World, state: ForkState) -> None:
    """Ask the neighbours that don't carry the traffic for their price; their answers also show that they are there."""
    now, present = world.now.monotonic_s, _at(world, state.router)
    for neighbour in _neighbours(world, state):
        if neighbour is present or now < state.ask_mono_s.get(neighbour.identity, 0.0):
            continue
        state.ask_mono_s[neighbour.identity] = now + ASK_S
        quality = neighbour.quality
        if quality.asked_mono_s and now - quality.asked_mono_s >= ASK_S and not quality.silent:
            quality.fell_silent(now)
        _greet(world, neighbour)
        bought = _covering(world, state, neighbour)
        if bought is None:
            _ask(world, state, neighbour)
        elif end_if_idle(world, bought):
            state.ask_mono_s[neighbour.identity] = now + ENDS_S


def end_if_idle(world: World, purchase: Purchase) -> bool:
    """End a purchase that carries nothing and that no sale needs: its price binds us, but its server may ask less now.

    Returns: whether it was ended.
    """
    is_needed = any(not sale.refused for sale in world.resting.get(purchase.id, {}).values())
    if is_needed or purchase.in_use(world.now.monotonic_s):
        return False
    bills.end(world, purchase)
    return True


def _ask(world: World, state: ForkState, neighbour: Neighbour) -> None:
    if state.sample is None or _covering(world, state, neighbour) is not None:
        return
    state.asked.add(neighbour.identity)
    world.buying.asked.note((neighbour.identity, state.sample), world.now.monotonic_s + ASK_S)
    world.send(neighbour, Ask(state.sample, 0, 0))


def _buy(world: World, state: ForkState, neighbour: Neighbour) -> bool:
    """Buy the sample from a neighbour, unless that is done: by its quote, else ask for one. Returns whether we did."""
    if state.sample is None or not state.carries or _covering(world, state, neighbour) is not None:
        return False
    quote = world.buying.quotes.get((neighbour.identity, state.sample))
    if quote is not None and quote.until_mono_s > world.now.monotonic_s:
        return accept_quote(world, neighbour.identity, quote)
    _ask(world, state, neighbour)
    return False


def _covering(world: World, state: ForkState, neighbour: Neighbour) -> Purchase | None:
    """Return the running purchase of the sample from a neighbour."""
    found = world.purchases.covering(neighbour.identity, state.sample) if state.sample else None
    return found if found is not None and found.running else None


def _price(world: World, state: ForkState, neighbour: Neighbour) -> int | None:
    """Return a neighbour's last word about the price of the sample, or what we pay there; None: not known."""
    running = _covering(world, state, neighbour)
    return state.offers.get(neighbour.identity, running.price_msat_per_gib if running is not None else None)


def _is_affordable(world: World, state: ForkState, neighbour: Neighbour) -> bool:
    price = _price(world, state, neighbour)
    if price is None or state.sample is None:
        return True
    return price <= buy_terms(world.settings, state.sample, world.occasion(neighbour)).most_msat_per_gib


# --- choosing ---------------------------------------------------------------------------------------------------------


def _decide(world: World, state: ForkState) -> None:
    """Choose a neighbour. The operator's first router stays if it is no neighbour or sells nothing: it is free."""
    present = _at(world, state.router)
    is_free = state.chosen is None and (present is None or not present.sells)
    if is_free or world.now.monotonic_s - world.buying.forks.began_mono_s < SETTLE_S:
        return
    candidates = _candidates(world, state)
    if not candidates:
        return
    places = {one.router.place: one for one in candidates}
    now = places.get(state.router.place) if state.router is not None else None
    best = choose(list(candidates), now)
    is_known = sum(one.price_msat_per_gib is not None for one in candidates) > 1
    if best is not now or (state.chosen is None and is_known):
        _lead(world, state, present, candidates[best], best)


def _candidates(world: World, state: ForkState) -> dict[Candidate, Neighbour]:
    found = {}
    for router in state.fork.routers:
        neighbour = _at(world, router)
        if neighbour is not None and _may_carry(world, state, neighbour):
            quality = neighbour.quality.value(world.now.monotonic_s)
            found[Candidate(router, _price(world, state, neighbour), quality)] = neighbour
    return found


def _may_carry(world: World, state: ForkState, neighbour: Neighbour) -> bool:
    account = world.servers.get(neighbour.identity)
    return (
        neighbour.up
        and neighbour.sells
        and not neighbour.quality.silent
        and neighbour.identity not in world.peers.blocked
        and neighbour.identity not in state.suspects
        and networks.is_same(neighbour.network, world.node.network)
        and not (account is not None and (account.disputed or service.why_unpaid(world, account)))
        and _is_affordable(world, state, neighbour)
    )


def _lead(world: World, state: ForkState, before: Neighbour | None, after: Neighbour, best: Candidate) -> None:
    """Lead a fork's packets through a neighbour, and buy the sample there."""
    state.chosen, state.unanswered = best.router, 0
    after.quality.asked_mono_s = after.quality.unanswered_mono_s = 0.0  # from when it last carried, or was asked
    _set_routes(world)
    if before is not after:
        left = f", no longer through {_told(world, state, before)}" if before is not None else ""
        world.log(f"packets to {state.fork.prefix} go through {_told(world, state, after)}{left}")
        if before is not None:
            state.ask_mono_s[before.identity] = world.now.monotonic_s + LEFT_ASK_S
    world.buying.forks.moved.append((state.fork.prefix, after.identity))
    _buy(world, state, after)


def _told(world: World, state: ForkState, neighbour: Neighbour) -> str:
    """Name a neighbour for the log, with the reasons for which it is chosen or left."""
    price, quality = _price(world, state, neighbour), neighbour.quality.value(world.now.monotonic_s)
    asks = "its price isn't known" if price is None else about_price(price)
    brings = "no answers come" if neighbour.identity in state.suspects else f"quality {quality:.2f}"
    return f"{neighbour.identity.hex()[:8]} on {neighbour.link[0]} ({asks}, {brings})"


def _places(world: World) -> dict[Prefix, object]:
    return {prefix: router.place for prefix, router, _ in chosen(world)}


def _set_routes(world: World) -> None:
    routes = tuple((prefix, router) for prefix, router, _ in chosen(world))
    world.do(SetRoutes(routes, world.settings.route_table, world.settings.route_priority))


def _neighbours(world: World, state: ForkState) -> list[Neighbour]:
    return [one for router in state.fork.routers if (one := _at(world, router)) is not None]


def _at(world: World, router: Router | None) -> Neighbour | None:
    return world.peers.at(router) if router is not None else None
