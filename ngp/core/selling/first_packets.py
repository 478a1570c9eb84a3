"""First packets: a packet that no contract covers is held until its sender has agreed to a price, or has refused.

Everything that a stranger can cost us is bounded: held packets, open quotes, credit, invoices.
"""

from __future__ import annotations

import logging

from ngp.core import parts, upstream
from ngp.core.contract import State
from ngp.core.effects import Decide, Greet
from ngp.core.kernel import HeldPacket, Verdict
from ngp.core.peers import Neighbour, Unheard
from ngp.core.policy import sell_terms
from ngp.core.selling.negotiation import may_quote, trades
from ngp.core.selling.quoting import Wish, offer_again, quote
from ngp.core.selling.sale import Sale
from ngp.core.timers import Due
from ngp.core.world import World

STRANGER_HOLD_S = 3.0
STRANGERS_WARN_EVERY_S = 3600.0
SILENT_AT_FIRST_S = 15.0  # until the first warning about an interface; no neighbour's daemon is silent for longer
UNHEARD_S = 60.0
MOST_STRANGER_PACKETS = 1024
MOST_HELD_PER_CONTRACT = 64


def packet_held(world: World, packet: HeldPacket) -> None:
    """Decide about a packet to a destination for which the kernel has no contract with the packet's sender."""
    neighbour = world.peers.by_link.get(packet.link)
    if neighbour is None or not neighbour.network or not (neighbour.up or neighbour.identity in world.peers.blocked):
        _hold_for_stranger(world, packet)
        return
    if not trades(world, neighbour):
        slowed = _is_slowed(world, packet) and neighbour.identity not in world.peers.blocked
        world.do(Decide(packet.handle, Verdict.REPEAT if slowed else Verdict.PROHIBIT))
        return
    sale = world.sales.find(neighbour.identity, packet.destination)
    if sale is not None and not sale.destination.is_default:  # the packet of a default route's contract isn't held
        _hold_for_contract(world, sale, packet)
        return
    if upstream.is_unknown(world, packet.onward.router):  # the kernel looks for it, and the sender repeats the packet
        world.do(Decide(packet.handle, Verdict.DROP))
        return
    if not may_quote(world, neighbour):
        world.count("quotes_refused")
        world.do(Decide(packet.handle, Verdict.DROP))
        return
    usual = sell_terms(world.settings, packet.destination, world.occasion(neighbour), packet.onward.route)
    terms = parts.terms(world, neighbour, packet.destination, usual)
    quote(world, neighbour, Wish(terms, packet.onward, packet))


def _is_slowed(world: World, packet: HeldPacket) -> bool:
    """Say whether a packet that nobody pays for may pass by UNPAID_RATE, so that it goes back to the kernel."""
    return bool(world.settings.unpaid_bytes_s) and packet.onward.router is None


def _hold_for_stranger(world: World, packet: HeldPacket) -> None:
    """Hold the packet for a moment and broadcast a hello. A flood fills a short list and causes one hello a second."""
    if len(world.peers.strangers) >= MOST_STRANGER_PACKETS:
        world.do(Decide(packet.handle, Verdict.DROP))
        return
    world.peers.strangers.append((world.now.monotonic_s + STRANGER_HOLD_S, packet))
    world.timers.set_if_unset(Due.STRANGERS, b"", world.now.monotonic_s + STRANGER_HOLD_S)
    interface = packet.link[0]
    if world.peers.greeted.get(interface, float("-inf")) + 1.0 <= world.now.monotonic_s:
        world.peers.greeted[interface] = world.now.monotonic_s
        world.do(Greet(interface))


def strangers_known(world: World, neighbour: Neighbour) -> None:
    """Decide about the packets that a link sent before it said hello."""
    strangers = world.peers.strangers
    waiting = [packet for _, packet in strangers if packet.link == neighbour.link]
    if waiting:
        world.peers.strangers = type(strangers)(item for item in strangers if item[1].link != neighbour.link)
        for packet in waiting:
            packet_held(world, packet)


def strangers_due(world: World) -> None:
    """Drop the packets of links that didn't say hello in time, or let them pass by UNPAID_RATE."""
    while world.peers.strangers and world.peers.strangers[0][0] <= world.now.monotonic_s:
        packet = world.peers.strangers.popleft()[1]
        slowed = _is_slowed(world, packet)
        world.do(Decide(packet.handle, Verdict.REPEAT if slowed else Verdict.DROP))
        _note_silence(world, packet.link, slowed)
        _tell_of_silence(world, packet.link, slowed)
    if world.peers.strangers:
        world.timers.set(Due.STRANGERS, b"", world.peers.strangers[0][0])


def _note_silence(world: World, link: tuple[str, bytes], slowed: bool) -> None:
    """Remember, for `ngp check`, since when packets of an interface's strangers have been dropped or slowed."""
    now, (interface, link_address) = world.now.monotonic_s, link
    unheard = world.peers.unheard = {
        name: one for name, one in world.peers.unheard.items() if now < one.last_mono_s + UNHEARD_S
    }
    one = unheard.setdefault(interface, Unheard(link_address, now, now))
    one.link_address, one.last_mono_s, one.slowed = link_address, now, slowed


def _tell_of_silence(world: World, link: tuple[str, bytes], slowed: bool) -> None:
    """Warn the operator of a client on which no ngp of our version runs (any more), once an hour for each interface.

    The first packet causes no warning, as a hello may be on its way. All link addresses on an interface share one
    warning, since new ones cost nothing. An interface is remembered only while its next warning must wait, since names
    of interfaces come and go.
    """
    now, (interface, link_address) = world.now.monotonic_s, link
    due = world.peers.silence_due = {
        name: at for name, at in world.peers.silence_due.items() if now < at + STRANGERS_WARN_EVERY_S
    }
    if now < due.setdefault(interface, now + SILENT_AT_FIRST_S):
        return
    due[interface] = now + STRANGERS_WARN_EVERY_S
    sender = f"packets from {link_address.hex(':')} on {interface}" if link_address else f"packets on {interface}"
    why = "nobody there says hello in words that we understand; does ngp run there, and in the same version?"
    fate = "pass only slowly and uncharged, by UNPAID_RATE" if slowed else "are dropped"
    world.log(f"{sender} {fate}: {why}", logging.WARNING)


def _hold_for_contract(world: World, sale: Sale, packet: HeldPacket) -> None:
    if sale.state in (State.QUOTING, State.QUOTED) and len(sale.held) < MOST_HELD_PER_CONTRACT:
        if sale.state is State.QUOTED and sale.asked and not (sale.held or sale.agreed):
            offer_again(world, sale)
        sale.held.append(packet.handle)
        sale.first = sale.first or packet.destination
    else:  # if the contract runs, the kernel decides; if it was refused, waiting is useless
        world.do(Decide(packet.handle, Verdict.REPEAT if sale.running else Verdict.DROP))
