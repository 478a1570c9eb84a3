"""Seller: hold a neighbour's first packet, propose, agree or refuse; `grants` supplies and charges what was agreed.

A packet's way: held -> proposed -> accepted -> granted and released. What a stranger can cost is bounded everywhere:
packets held, quotes open, credit, invoices.
"""

from __future__ import annotations

import logging
from itertools import islice

from ngp.core import grace, invoices, metering, networks
from ngp.core.account import Account
from ngp.core.contract import CloseReason, Contract, State
from ngp.core.effects import Decide, ForgetNeighbour, GrantContract, Greet
from ngp.core.events import PacketHeld
from ngp.core.messages import (
    Accept,
    Ask,
    Cancel,
    Propose,
    Reject,
    RejectReason,
    Role,
)
from ngp.core.policy import SellTerms, answer_counter, ask_terms, sell_terms
from ngp.core.pricing import show_price
from ngp.core.timers import Due
from ngp.core.values import Grant, Verdict
from ngp.core.world import Neighbour, World

QUOTE_VALID_S = 10
REFUSAL_S = 30.0
SILENCE_S = 5.0
STRANGER_HOLD_S = 3.0
MOST_OTHER_VERSIONS = 256
STRANGERS_TOLD_EVERY_S = 3600.0
SILENT_AT_FIRST_S = 15.0  # longer than a neighbour's daemon is ever silent
MOST_STRANGER_PACKETS = 1024
MOST_HELD_PER_CONTRACT = 64
MOST_QUOTES_PER_NEIGHBOUR = 4096
MOST_QUOTED_AGAIN = 256
MOST_DATA_BYTES = 1 << 60  # what fits a message
_WHY_DECLINED = {
    RejectReason.PRICE: "too dear for it; SELL_PRICE_MIN or PRICES says how low we go",
    RejectReason.TERMS: "it disputes our bill, until its operator says `ngp unblock`",
    RejectReason.BLOCKED: "its operator blocked us",
    RejectReason.NOT_BUYING: "it doesn't buy that",
    RejectReason.NOT_RENEWING: "it has renewal off, and bought that already",
    RejectReason.BUSY: "it has too many contracts",
}


# --- first packets ----------------------------------------------------------------------------------------------------


def packet_held(world: World, packet: PacketHeld) -> None:
    """Decide about a packet whose destination the kernel doesn't know for this neighbour."""
    neighbour = world.by_link.get(packet.link)
    if neighbour is None or not neighbour.network or (not neighbour.up and not neighbour.blocked):
        _hold_for_stranger(world, packet)
        return
    if not _trades(world, neighbour):
        world.do(Decide(packet.handle, Verdict.PROHIBIT))
        return
    contract = world.coverage.find(Role.SERVER, neighbour.number, packet.destination)
    if contract is not None:
        _hold_for_contract(world, contract, packet)
        return
    if not _may_quote(world, neighbour):
        world.count("quotes_refused")
        world.do(Decide(packet.handle, Verdict.DROP))
        return
    terms = sell_terms(world.settings, packet.destination, packet.link[0], packet.route)
    contract = _quote(world, neighbour, terms)
    contract.held.append(packet.handle)


def _hold_for_stranger(world: World, packet: PacketHeld) -> None:
    """Keep the packet for a moment and ask who is there; a flood finds a full list and one question a second."""
    if len(world.strangers) >= MOST_STRANGER_PACKETS:
        world.do(Decide(packet.handle, Verdict.DROP))
        return
    world.strangers.append((world.now.monotonic_s + STRANGER_HOLD_S, packet))
    world.timers.set_if_unset(Due.STRANGERS, b"", world.now.monotonic_s + STRANGER_HOLD_S)
    interface = packet.link[0]
    if world.greeted.get(interface, float("-inf")) + 1.0 <= world.now.monotonic_s:
        world.greeted[interface] = world.now.monotonic_s
        world.do(Greet(interface))


def strangers_known(world: World, neighbour: Neighbour) -> None:
    """A link said who it is: look again at the packets that it sent before."""
    waiting = [packet for _, packet in world.strangers if packet.link == neighbour.link]
    if waiting:
        world.strangers = type(world.strangers)(item for item in world.strangers if item[1].link != neighbour.link)
        for packet in waiting:
            packet_held(world, packet)


def strangers_due(world: World) -> None:
    """Drop packets of links that did not say who they are in time."""
    while world.strangers and world.strangers[0][0] <= world.now.monotonic_s:
        packet = world.strangers.popleft()[1]
        world.do(Decide(packet.handle, Verdict.DROP))
        _tell_of_silence(world, packet.link)
    if world.strangers:
        world.timers.set(Due.STRANGERS, b"", world.strangers[0][0])


def other_version_heard(world: World, link: tuple[str, bytes]) -> None:
    """Remember who speaks in messages that we can't read: the log names it, and must not say that nobody is there."""
    heard = world.other_versions
    heard.pop(link, None)
    heard[link] = world.now.monotonic_s
    if len(heard) > MOST_OTHER_VERSIONS:
        del heard[next(iter(heard))]


def _tell_of_silence(world: World, link: tuple[str, bytes]) -> None:
    """Tell the operator of a client on which no ngp runs (any more): a line an hour for each interface.

    Not at the first packet, as a hello may be under way. Link addresses cost nothing to make up, so they don't count;
    nor do names of interfaces that come and go: one is remembered for as long as it keeps the next line back.
    """
    now, (interface, link_address) = world.now.monotonic_s, link
    heard_at = world.other_versions.get(link)
    if heard_at is not None and now < heard_at + STRANGERS_TOLD_EVERY_S:
        return
    due = world.silence_due = {
        name: at for name, at in world.silence_due.items() if now < at + STRANGERS_TOLD_EVERY_S
    }
    if now < due.setdefault(interface, now + SILENT_AT_FIRST_S):
        return
    due[interface] = now + STRANGERS_TOLD_EVERY_S
    sender = f"packets from {link_address.hex(':')} on {interface}" if link_address else f"packets on {interface}"
    world.log(f"{sender} are dropped: nobody there says hello; does ngp run there?", logging.WARNING)


def _trades(world: World, neighbour: Neighbour) -> bool:
    return (
        world.settings.sells
        and neighbour.buys
        and not neighbour.blocked
        and networks.is_same(neighbour.network, world.means.network)
    )


def _may_quote(world: World, neighbour: Neighbour) -> bool:
    """Bound what one neighbour can fill of our tables with quotes and refusals, and all together."""
    most = world.settings.contracts_max
    account = world.accounts.get((neighbour.identity, Role.SERVER))
    if account is not None and account.running >= max(16, most // 2):
        return False
    if not world.may_open(Role.SERVER, neighbour):
        return False
    return neighbour.quotes < min(MOST_QUOTES_PER_NEIGHBOUR, max(16, most // 16)) and len(world.contracts) < most


def _hold_for_contract(world: World, contract: Contract, packet: PacketHeld) -> None:
    if contract.state is State.QUOTED and len(contract.held) < MOST_HELD_PER_CONTRACT:
        contract.held.append(packet.handle)
    else:  # the kernel knows what runs, and decides; of what doesn't, nothing is to be waited for
        passes = contract.running and contract.halting is None
        world.do(Decide(packet.handle, Verdict.REPEAT if passes else Verdict.DROP))


# --- negotiation ------------------------------------------------------------------------------------------------------


def _quote(world: World, neighbour: Neighbour, terms: SellTerms, reply_to: int = 0) -> Contract:
    contract = Contract(
        contract=world.new_id(),
        role=Role.SERVER,
        identity=neighbour.identity,
        link=neighbour.link,
        neighbour=neighbour.number,
        destination=terms.destination,
        prices=[(0, terms.ask_msat_per_gib)],
        data_limit_bytes=world.settings.contract_data_bytes,
        lifetime_s=world.settings.contract_time_s,
    )
    world.add_contract(contract)
    neighbour.quotes += 1
    _propose(world, neighbour, contract, reply_to)
    return contract


def _propose(world: World, neighbour: Neighbour, contract: Contract, reply_to: int = 0) -> None:
    contract.quoted_until_mono_s = world.now.monotonic_s + QUOTE_VALID_S
    world.timers.set(Due.QUOTE, contract.contract, contract.quoted_until_mono_s)
    world.send(
        neighbour,
        Propose(
            contract=contract.contract,
            destination=contract.destination,
            price_msat_per_gib=contract.price_msat_per_gib,
            data_limit_bytes=contract.data_limit_bytes,
            lifetime_s=contract.lifetime_s,
            quote_valid_s=QUOTE_VALID_S,
            from_offset_bytes=0,
            round=contract.round,
        ),
        reply_to,
    )


def quote_again(world: World, neighbour: Neighbour) -> None:
    """Repeat the open quotes to a neighbour that was away when they were sent."""
    for contract in islice(neighbour.contracts.values(), MOST_QUOTED_AGAIN):
        if contract.role is Role.SERVER and contract.state is State.QUOTED:
            _propose(world, neighbour, contract)


def asked(world: World, neighbour: Neighbour, ask: Ask, message_id: int) -> None:
    """Answer a client that wants a quote before it sends, or a renewal."""
    if not _trades(world, neighbour):
        world.send(neighbour, Reject(ask.contract, RejectReason.NOT_SELLING), message_id)
        return
    if ask.contract:
        _renewal_asked(world, neighbour, ask, message_id)
        return
    terms = ask_terms(world.settings, ask.destination, neighbour.link[0])
    standing = world.coverage.exact(Role.SERVER, neighbour.number, terms.destination)
    if standing is not None and standing.state is State.QUOTED:
        _propose(world, neighbour, standing, message_id)
        return
    if standing is not None and standing.refused:  # it said no, or nothing, and asks now: its terms have changed
        refusal_due(world, standing)
        standing = None
    if standing is not None or not _may_quote(world, neighbour):
        world.send(neighbour, Reject(b"", RejectReason.BUSY), message_id)
    else:
        _quote(world, neighbour, terms, message_id)


def _renewal_asked(world: World, neighbour: Neighbour, ask: Ask, message_id: int) -> None:
    contract = _own_contract(world, neighbour, ask.contract)
    if contract is None or not contract.running or contract.halting is not None:
        world.send(neighbour, Cancel(ask.contract, CloseReason.CANCELLED.value), message_id)
        return
    idly = contract.since_renewal_bytes <= 0 and not world.may_open(Role.SERVER, neighbour)
    if contract.offered is None and (idly or contract.renews_idly(world.now.monotonic_s)):
        world.send(neighbour, Reject(ask.contract, RejectReason.BUSY), message_id)
        return
    if contract.offered is None:  # an offer that stands is only repeated: its accept may be on the way
        terms = ask_terms(world.settings, contract.destination, neighbour.link[0])
        most = min(contract.data_limit_bytes + world.settings.contract_data_bytes, MOST_DATA_BYTES)
        limit = min(max(ask.data_limit_bytes, contract.data_limit_bytes), most) if ask.data_limit_bytes else most
        price = min(terms.ask_msat_per_gib, max(terms.least_msat_per_gib, contract.price_msat_per_gib))
        contract.offered = (limit, world.settings.contract_time_s, price)  # what was agreed stays agreed if we may
    limit, lifetime_s, price = contract.offered
    if contract.state is not State.RENEWING:
        world.move(contract, State.RENEWING)
    world.timers.set(Due.QUOTE, contract.contract, world.now.monotonic_s + QUOTE_VALID_S)
    world.send(
        neighbour,
        Propose(
            contract=contract.contract,
            destination=contract.destination,
            price_msat_per_gib=price,
            data_limit_bytes=limit,
            lifetime_s=lifetime_s,
            quote_valid_s=QUOTE_VALID_S,
            from_offset_bytes=contract.data_limit_bytes,
            round=1,
        ),
        message_id,
    )


def _own_contract(world: World, neighbour: Neighbour, contract_id: bytes) -> Contract | None:
    """Find a contract that this neighbour may speak about: its own, on the link that it was made on."""
    contract = world.contracts.get(contract_id)
    if contract is None or contract.role is not Role.SERVER:
        return None
    return contract if (contract.identity, contract.link) == (neighbour.identity, neighbour.link) else None


def accepted(world: World, neighbour: Neighbour, accept: Accept, message_id: int) -> bool:
    """Take an accept. Returns whether it was answered by a message (else it only needs an acknowledgement)."""
    contract = _own_contract(world, neighbour, accept.contract)
    if contract is None:
        world.send(neighbour, Cancel(accept.contract, CloseReason.CANCELLED.value), message_id)
        return True
    if contract.halting is not None or neighbour.blocked:
        reason = RejectReason.BLOCKED if neighbour.blocked else RejectReason.LAPSED
        world.send(neighbour, Reject(accept.contract, reason), message_id)
        return True
    if contract.offered is not None and contract.state is State.RENEWING:
        limit, _, price = contract.offered
        if (accept.price_msat_per_gib, accept.data_limit_bytes) != (price, limit):
            world.send(neighbour, Reject(accept.contract, RejectReason.TERMS), message_id)
            return True
        _renew(world, contract)
        return False
    if (accept.price_msat_per_gib, accept.data_limit_bytes) != (
        contract.price_msat_per_gib,
        contract.data_limit_bytes,
    ):
        world.send(neighbour, Reject(accept.contract, RejectReason.TERMS), message_id)
        return True
    if contract.running:
        return False
    if contract.state is not State.QUOTED or world.now.monotonic_s > contract.quoted_until_mono_s:
        world.send(neighbour, Reject(accept.contract, RejectReason.LAPSED), message_id)
        return True
    if not world.may_open(Role.SERVER, neighbour):  # it has quotes without number, and accepts them all at once
        world.send(neighbour, Reject(accept.contract, RejectReason.BUSY), message_id)
        world.move(contract, State.REJECTED, RejectReason.BUSY.value)
        _refuse(world, contract, SILENCE_S)
        return True
    _open(world, neighbour, contract)
    return False


def _open(world: World, neighbour: Neighbour, contract: Contract) -> None:
    account = world.account(contract.identity, Role.SERVER)
    neighbour.quotes -= 1
    world.timers.clear(Due.QUOTE, contract.contract)
    contract.opened_at_s = world.now.utc_s
    contract.carried_mono_s = world.now.monotonic_s
    account.running += 1
    account.priced += contract.price_msat_per_gib > 0
    world.count_opening(contract)
    _run(world, account, contract, "")


def _run(world: World, account: Account, contract: Contract, journalled: str) -> None:
    """Let a contract that was agreed, or renewed, begin: on money, or on credit until its money comes."""
    contract.expires_at_s = world.now.utc_s + contract.lifetime_s
    contract.expires_mono_s = world.now.monotonic_s + contract.lifetime_s
    world.watch_end(contract)
    if account.funds_msat > 0 or not contract.price_msat_per_gib:
        world.move(contract, State.ACTIVE)
        account.unpaid.pop(contract.contract, None)
    else:
        world.move(contract, State.ACCEPTED)
        grace.accepted_unpaid(world, account, contract)
        grace.offer(world, account, contract)
    world.journal("contract", contract.identity, journalled or contract.state.value, contract=contract.contract)
    world.save(contract)
    world.limit(account)
    world.grant(contract)
    metering.release(world, contract)
    invoices.top_up_if_low(world, account)


def _renew(world: World, contract: Contract) -> None:
    account = world.account(contract.identity, Role.SERVER)
    assert contract.offered is not None
    limit, lifetime_s, price = contract.offered
    contract.offered = None
    if contract.since_renewal_bytes <= 0:  # a line in the ledger for nothing, like an opening
        world.count_idle(contract)
    contract.note_renewal(world.now.monotonic_s)
    account.priced -= contract.price_msat_per_gib > 0
    contract.reprice(contract.data_limit_bytes, price)
    account.priced += contract.price_msat_per_gib > 0
    contract.data_limit_bytes, contract.lifetime_s = limit, lifetime_s
    world.timers.clear(Due.QUOTE, contract.contract)
    world.timers.clear(Due.EXHAUSTED, contract.contract)
    _run(world, account, contract, "renewed")


def rejected(world: World, neighbour: Neighbour, reject: Reject, message_id: int) -> bool:
    """Take a client's no, or its counter-offer. Returns whether it was answered by a message."""
    contract = _own_contract(world, neighbour, reject.contract)
    if contract is None:
        return False
    if contract.state is State.RENEWING:
        _renewal_over(world, contract)
    if contract.state is not State.QUOTED:
        return False
    terms = ask_terms(world.settings, contract.destination, neighbour.link[0])
    price = None
    if reject.counter_msat_per_gib is not None:
        price = answer_counter(terms, reject.counter_msat_per_gib, contract.round)
    world.move(contract, State.REJECTED, reject.reason.value)
    if price is None:
        world.log(
            f"neighbour {neighbour.identity.hex()[:8]} declined {contract.destination} at "
            f"{show_price(contract.price_msat_per_gib)}: {_WHY_DECLINED.get(reject.reason, reject.reason.value)}"
        )
        use_shows = reject.reason is RejectReason.NOT_RENEWING  # only by a proposal: the client wants to know of it
        _refuse(world, contract, min(REFUSAL_S, contract.lifetime_s / 4) if use_shows else REFUSAL_S)
        return False
    contract.prices = [(0, price)]
    contract.round += 1
    world.move(contract, State.QUOTED, f"round {contract.round}")
    _propose(world, neighbour, contract, message_id)
    return True


def cancelled(world: World, neighbour: Neighbour, contract_id: bytes) -> None:
    """End a contract that its client has ended, and so doesn't meter any more."""
    contract = _own_contract(world, neighbour, contract_id)
    if contract is None:
        return
    if contract.state is State.RENEWING:
        _renewal_over(world, contract)
    if contract.running:
        world.halt(contract, CloseReason.CANCELLED)
    elif contract.state is State.QUOTED:
        world.move(contract, State.REJECTED, CloseReason.CANCELLED.value)
        _refuse(world, contract, REFUSAL_S)


def _renewal_over(world: World, contract: Contract) -> None:
    """Go back to what was agreed before the renewal was talked about."""
    contract.offered = None
    world.timers.clear(Due.QUOTE, contract.contract)
    unpaid = world.account(contract.identity, contract.role).unpaid
    world.move(contract, State.ACCEPTED if contract.contract in unpaid else State.ACTIVE)


def quote_due(world: World, contract: Contract) -> None:
    """Let a quote lapse; its packets are dropped and the destination stays closed for a moment."""
    if contract.state is State.RENEWING:
        _renewal_over(world, contract)
    elif contract.state is State.QUOTED:
        world.move(contract, State.LAPSED)
        _refuse(world, contract, SILENCE_S)


def _refuse(world: World, contract: Contract, for_s: float) -> None:
    """Remember a refusal in the kernel, so that a flood of it costs nothing; tell the held packets' sender."""
    world.timers.clear(Due.QUOTE, contract.contract)
    verdict = Verdict.PROHIBIT if contract.state is State.REJECTED else Verdict.DROP
    for handle in contract.held:
        world.do(Decide(handle, verdict))
    contract.held.clear()
    world.do(
        GrantContract(
            Grant(
                contract=contract.contract,
                neighbour=contract.neighbour,
                role=Role.SERVER,
                destination=contract.destination,
                limit_bytes=0,
                expires_in_s=for_s,
                blocked=True,
            )
        )
    )
    world.timers.set(Due.REFUSAL, contract.contract, world.now.monotonic_s + for_s)


def refusal_due(world: World, contract: Contract) -> None:
    """Forget a refusal: the next packet may ask again."""
    world.timers.clear(Due.REFUSAL, contract.contract)
    neighbour = world.neighbour_of(contract)
    if neighbour is not None:
        neighbour.quotes -= 1
    world.remove_contract(contract)


def forget_refusals(world: World, identity: bytes | None = None) -> None:
    """Forget what one client or all of them refused: our terms changed, and they may agree now."""
    for contract in list(world.contracts.values()):
        if contract.refused and (identity is None or contract.identity == identity):
            refusal_due(world, contract)


# --- neighbours -------------------------------------------------------------------------------------------------------


def drop_neighbour(world: World, neighbour: Neighbour) -> None:
    """Take a link's old identity out of the way of a new one, with what isn't running of its contracts."""
    for contract in list(neighbour.contracts.values()):
        if contract.running:
            world.halt(contract, CloseReason.CANCELLED)
            continue
        for handle in contract.held:
            world.do(Decide(handle, Verdict.DROP))
        for due in (Due.QUOTE, Due.REFUSAL):
            world.timers.clear(due, contract.contract)
        world.remove_contract(contract)
    world.remove_neighbour(neighbour)
    world.do(ForgetNeighbour(neighbour.number))
