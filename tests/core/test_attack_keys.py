"""Strangers that carry next to nothing, under many keys or at many link addresses, get the grace together."""

from __future__ import annotations

from ipaddress import ip_network

from playbook import Sim, settings

from ngp.core import events as ev
from ngp.core.kernel import Reading
from ngp.core.messages import Hello, Invoice, Message, Propose, Statement, StatementLine

DEST = ip_network("198.51.100.1/32")
GRACE_MSAT = 1280


def client_of_strangers(**changes: object) -> Sim:
    return Sim(settings(), settings(sells=False, **{"trust_amount_msat": None, **changes}))


def hear(sim: Sim, who: bytes, link: tuple[str, bytes], message: Message) -> None:
    """Have the client hear a stranger, through which its traffic goes."""
    decoded = sim.payments.decode(message.bolt11) if isinstance(message, Invoice) else None
    sends_to = message.destination if isinstance(message, Propose) else None
    heard = ev.MessageReceived(who, link, 7, message, next(sim._ids), decoded, sends_to)
    sim.carry_out(sim.client, sim.client.gatekeeper.step(heard, sim.clock()))


def offer(sim: Sim, who: bytes, link: tuple[str, bytes], contract: bytes) -> None:
    hear(sim, who, link, Hello("sandbox", True, True, (), "ngp", False))
    hear(sim, who, link, Propose(contract, DEST, 5 << 20, 1 << 30, 3600, 60, 0, 1))


def ask(sim: Sim, who: bytes, link: tuple[str, bytes], *amounts_msat: int) -> None:
    for amount_msat in amounts_msat:
        asked = sim.payments.invoice("gateway", amount_msat)
        hear(sim, who, link, Invoice(asked.hex(), amount_msat))


def metered(sim: Sim, contract: bytes, to_bytes: int, from_bytes: int) -> None:
    sim.happen(sim.client, ev.UsageRead((Reading(contract, to_bytes, from_bytes, False),)))


def paid_msat(sim: Sim) -> int:
    return sum(one.paid_msat for one in sim.client.world.servers.values())


def test_a_stranger_that_carries_nothing_earns_no_trust_by_moving_every_hour() -> None:
    """After a move its bills are believed: that once counted as carried, and doubled what it was trusted with."""
    sim, who = client_of_strangers(), b"E" * 32
    before, used = b"", 0
    for hour in range(8):
        link, contract = ("eth1", b"\2xxx" + bytes([hour, 1])), bytes([hour, 9]) * 8
        hear(sim, who, link, Hello("sandbox", True, True, (), "ngp", False))
        ours = sim.client.world.server(who)
        if before:
            metered(sim, before, used + 200, 0)  # it is in use, though nothing comes back
            believed_msat = ours.metered_msat + ours.tolerated_msat + ours.paid_msat + 900
            lines = (StatementLine(before, used, 10**9, 0),)
            hear(sim, who, link, Statement(ours.paid_msat, believed_msat, 0, lines))
        offer(sim, who, link, contract)
        used = 0
        for _ in range(20):
            used += 200
            metered(sim, contract, used, 0)
            ask(sim, who, link, 100_000, 10_000, 5000, 2000, 1000)
            sim.run(1)
        before = contract
        sim.now += 3601
    assert paid_msat(sim) <= 2 * GRACE_MSAT
