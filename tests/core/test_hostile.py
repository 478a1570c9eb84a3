"""A hostile neighbour: its messages, in any order, raise no error, fill no table, and touch nobody else's contracts."""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from playbook import Sim, settings, tell
from scripted_neighbour import ScriptedNeighbour

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.contract import State
from ngp.core.kernel import HeldPacket
from ngp.core.lines import MOST_AT_ONCE, MOST_HOLDERS
from ngp.core.messages import (
    Accept,
    Ack,
    Answer,
    Ask,
    Bye,
    Call,
    Cancel,
    Declined,
    DeclineReason,
    Hello,
    Invoice,
    Message,
    Paid,
    Propose,
    Refund,
    Reject,
    RejectReason,
    Statement,
    StatementLine,
)
from ngp.core.payment_node import DecodedInvoice
from ngp.core.selling.negotiation import MOST_QUOTED_STRANGER_AGAIN

HOST = "198.51.100.1"
PRICE = st.sampled_from((0, 1, 5 << 20, (5 << 20) + 1, 1 << 50)) | st.integers(0, 1 << 50)
DATA = st.sampled_from((0, 1, 100 << 20, 1 << 60)) | st.integers(0, 1 << 60)
MSAT = st.sampled_from((0, 1, 999, 1000, 100_000, 21 * 10**17)) | st.integers(0, 21 * 10**17)
TIME = st.sampled_from((0, 1, 10, 3600, 315_576_000)) | st.integers(0, 315_576_000)
PREFIX = st.sampled_from(
    tuple(ip_network(text) for text in ("0.0.0.0/0", "198.51.100.1/32", "198.51.100.0/24", "::/0", "2001:db8::1/128"))
)


@cache  # called again and again with the same few contracts, and a strategy is slow to make
def messages(contracts: tuple[bytes, ...]) -> st.SearchStrategy[Message]:
    """Draw a message about these contracts."""
    contract = st.sampled_from([*contracts, b"\0" * 16, b"x" * 16])
    line = st.builds(StatementLine, contract, DATA, DATA, MSAT)
    return st.one_of(
        st.builds(
            Hello,
            st.sampled_from(("sandbox", "mainnet", "")),
            st.booleans(),
            st.booleans(),
            st.just(()),
            st.just(""),
            st.booleans(),
        ),
        st.builds(Ask, PREFIX, DATA, TIME, contract | st.just(b"")),
        st.builds(Propose, contract, PREFIX, PRICE, DATA, TIME, TIME, DATA, st.integers(1, 255)),
        st.builds(Accept, contract, PRICE, DATA),
        st.builds(Accept, contract, st.just(5 << 20), st.just(100 << 20)),
        st.builds(Reject, contract | st.just(b""), st.sampled_from(RejectReason), st.none() | PRICE),
        st.builds(Cancel, contract, st.sampled_from(("expired", "unpaid", "?"))),
        st.builds(Declined, st.sampled_from((b"", b"h" * 32)), st.sampled_from(DeclineReason), MSAT),
        st.builds(Invoice, st.just("lnx"), MSAT),
        st.builds(Paid, st.just(b"h" * 32), st.just(b"p" * 32)),
        st.builds(Statement, MSAT, MSAT, MSAT, st.lists(line, max_size=4).map(tuple)),
        st.builds(Refund, MSAT, st.sampled_from(("", "lnx"))),
        st.builds(Bye),
        st.builds(Ack, st.just((1,))),
        st.builds(Call, st.integers(0, 3), st.integers(0, 1), st.integers(1, 2), st.binary(max_size=8)),
        st.builds(Answer, st.integers(0, 3), st.integers(0, 3), st.integers(1, 3), st.binary(max_size=8)),
    )


def decoded(data: st.DataObject, message: Message) -> DecodedInvoice | None:
    if not isinstance(message, Invoice | Refund) or not message.bolt11:
        return None
    amount = data.draw(st.sampled_from((message.amount_msat, None, 0)))
    expires_in_s = data.draw(st.sampled_from((-1, 0, 600, 10**9)))
    payment_hash = data.draw(st.binary(min_size=32, max_size=32))
    invoice = DecodedInvoice(payment_hash, amount, expires_in_s, "", "sandbox", "")
    return data.draw(st.sampled_from((None, invoice)))


@effort(
    max_examples=effort.default.max_examples // 3,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data(), st.booleans())
def test_no_message_raises_and_all_ends(data: st.DataObject, never: bool) -> None:
    both = settings(contract_time_s=30, **({"data_renewal_bytes": 0, "time_renewal_s": 0} if never else {}))
    sim = Sim(both, both)
    sim.up("198.51.100.1")
    sim.run(0.1)
    victim, attacker = sim.gateway, sim.client
    for _ in range(data.draw(st.integers(1, 40))):
        known = tuple(victim.world.contracts)
        message = data.draw(messages(known))
        heard = ev.MessageReceived(attacker.identity, attacker.link, 1, message, 1 << 33, decoded(data, message))
        sim.carry_out(victim, victim.gatekeeper.step(heard, sim.clock()))
        if data.draw(st.booleans()):
            sim.up(data.draw(st.sampled_from(("198.51.100.1", "198.51.100.77", "203.0.113.5"))))
        if data.draw(st.integers(0, 5)) == 0:
            sim.run(data.draw(st.sampled_from((0.1, 1.0, 11.0))))
        for effect in victim.log:
            if isinstance(effect, fx.Send):
                _fits(effect.message)
    sim.silenced = {Propose, Accept, Ask, Invoice}
    sim.run(33 * 86_400.0 if any(c.lifetime_s > 1000 for c in victim.world.contracts.values()) else 200.0)
    assert not victim.held
    assert not victim.world.contracts


def _fits(message: Any) -> None:
    """Assert that the wire format has room for a message that we send."""
    from ngp import wire

    number, to_wire, _ = wire._BY_TYPE[type(message)]
    to_wire(message)


def test_hellos_of_made_up_keys_fill_nothing() -> None:
    sim = Sim()
    world = sim.gateway.world
    hello = Hello("sandbox", True, True, (), "", False)
    for number in range(6000):
        link = ("eth1", number.to_bytes(6, "big"))
        sim.now += 0.05
        who = number.to_bytes(32, "big")
        sim.gateway.gatekeeper.step(ev.MessageReceived(who, link, 1, hello, 1 << 33), sim.clock())
        wrong = Statement(0, 10**9, 0, ())
        sim.gateway.gatekeeper.step(ev.MessageReceived(who, link, 1, wrong, 1 << 33), sim.clock())
    assert len(world.peers.neighbours) <= 4096 and len(world.peers.by_link) <= 4096
    assert len(world.accounts) <= 2 * 4096
    assert len(sim.gateway.ledger.neighbours) <= 1


def test_what_neighbours_say_for_nothing_does_not_fill_the_log() -> None:
    """Each goodbye is a line, and each made-up key another; a log of 5 MB would hold nothing else after minutes."""
    sim = Sim()
    sim.flow(HOST, 100_000, 2)
    trader = sim.client

    def lines(effects: list[fx.Effect]) -> list[str]:
        return [one.text for one in effects if isinstance(one, fx.Log)]

    told: list[str] = []
    for number in range(5000):
        stranger = ScriptedNeighbour(sim, sim.gateway, number.to_bytes(32, "big"), (number % 50).to_bytes(6, "big"))
        told += lines(stranger.say(Bye()))
        told += lines(stranger.say(Bye()))
    assert len(told) == MOST_AT_ONCE * 2 // 3, "the other third were the lines that each of them was found"
    sim.now += 60
    assert lines(stranger.say(Bye()))[0].endswith("lines about neighbours that never paid on eth1 left out)")
    assert lines(tell(sim, sim.gateway, Bye())) == [f"neighbour {trader.identity.hex()[:8]} on {trader.link[0]} stops"]
    told = [line for _ in range(3 * MOST_AT_ONCE) for line in lines(tell(sim, sim.gateway, Bye()))]
    assert len(told) == MOST_AT_ONCE - 1, "one that paid may cause as many, and they count for itself"
    for number in range(2, 6000):
        sim.gateway.world.lines.limited([fx.Log(20, "x")], number.to_bytes(32, "big"), "eth1", True, sim.now)
    assert len(sim.gateway.world.lines) <= MOST_HOLDERS


@pytest.mark.parametrize("offers_first", [False, True])
def test_a_bill_of_an_identity_that_we_never_bought_from_leaves_nothing(offers_first: bool) -> None:
    """Else each made-up key leaves an account, a line of the journal, a warning, and a dispute in `ngp check`."""
    sim = Sim()
    billed = Statement(0, 2 * 10**18, 0, (StatementLine(b"c" * 16, 1 << 40, 0, 2 * 10**18),))
    for number in range(1, 50):
        stranger = ScriptedNeighbour(sim, sim.gateway, number.to_bytes(32, "big"), number.to_bytes(6, "big"))
        if offers_first:  # this proposal is declined (it is for 33 days), but opens an account in memory
            stranger.say(Propose(b"d" * 16, ip_network("198.51.100.7/32"), 7, 1000, 33 * 86400, 5, 0, 1))
            assert not stranger.victim.world.servers[stranger.identity].running
        effects = [one for _ in range(50) for one in stranger.say(billed)]
        assert not [one for one in effects if isinstance(one, fx.Persist | fx.Log)]
        ended = [one.message for one in effects if isinstance(one, fx.Send)]
        assert ended and set(ended) == {Cancel(b"c" * 16)}, "if we lost our ledger, the server must hear of it"
        assert len(ended) <= 4
    assert not [one for one in sim.gateway.world.servers.values() if one.disputed or one.billed_msat]


def test_quotes_and_refusals_of_one_neighbour_are_bounded() -> None:
    sim = Sim()
    step, world = sim.gateway.gatekeeper.step, sim.gateway.world
    for number in range(12_000):
        packet = HeldPacket(10**6 + number, sim.client.link, ip_address(0x0B000000 + number))
        for effect in step(packet, sim.clock()):
            if isinstance(effect, fx.Send) and isinstance(effect.message, Propose):
                no = Reject(effect.message.contract, RejectReason.PRICE)
                step(ev.MessageReceived(sim.client.identity, sim.client.link, 1, no, 1 << 33), sim.clock())
    assert len(world.contracts) <= 4096
    sim.now += 31
    step(ev.Tick(), sim.clock())
    assert not world.contracts and world.peers.by_link[sim.client.link].quotes == 0


@pytest.mark.parametrize("by", ["restarts", "goodbyes"])
def test_a_neighbour_that_is_away_and_back_all_the_time_is_told_seldom(by: str) -> None:
    """Each return costs a repetition of all that the neighbour may have missed, and a return costs one message."""
    sim = Sim(client=settings(sells=False, buys=False))
    who, link, hello = b"T" * 32, ("eth1", b"\2other"), Hello("sandbox", True, True, (), "", False)
    told: list[fx.Effect] = []

    def say(message: Message, boot: int = 1) -> None:
        effects = sim.gateway.gatekeeper.step(ev.MessageReceived(who, link, boot, message, 9 << 32), sim.clock())
        told.extend(one for one in effects if isinstance(one, fx.Send) and isinstance(one.message, Propose))

    say(hello)
    for number in range(200):
        say(Ask(ip_network(f"10.0.{number}.1/32"), 0, 0))
    told.clear()
    for number in range(300):
        if by == "goodbyes":
            say(Bye())
        say(hello, boot=2 + number if by == "restarts" else 1)
        sim.now += 0.01
    assert 0 < len(told) <= 5 * MOST_QUOTED_STRANGER_AGAIN
    told.clear()
    sim.now += 3
    say(hello, boot=301 if by == "restarts" else 1)
    assert len(told) == MOST_QUOTED_STRANGER_AGAIN, "it hears what it missed, though late"


def test_strangers_fill_a_short_list_and_every_packet_gets_its_verdict() -> None:
    sim = Sim()
    verdicts = []
    for number in range(3000):
        packet = HeldPacket(10**6 + number, ("eth1", number.to_bytes(6, "big")), ip_address("203.0.113.1"))
        verdicts += [e for e in sim.gateway.gatekeeper.step(packet, sim.clock()) if isinstance(e, fx.Decide)]
    assert len(sim.gateway.world.peers.strangers) <= 1024
    sim.now += 4
    verdicts += [e for e in sim.gateway.gatekeeper.step(ev.Tick(), sim.clock()) if isinstance(e, fx.Decide)]
    assert sorted(e.handle for e in verdicts) == list(range(10**6, 10**6 + 3000))


WHY = "nobody there says hello in words that we understand; does ngp run there, and in the same version?"


def told_of_packets(sim: Sim, links: list[tuple[str, bytes]]) -> list[str]:
    """Let packets of these links wait in vain, and return the warnings in the log."""
    step, now, said = sim.gateway.gatekeeper.step, sim.clock, list[fx.Effect]()
    for handle, link in enumerate(links, 10**6):
        said += step(HeldPacket(handle, link, ip_address(HOST)), now())
    sim.now += 3.1
    said += step(ev.Tick(), now())
    assert sum(isinstance(one, fx.Decide) for one in said) == len(links)
    return [one.text for one in said if isinstance(one, fx.Log) and "says hello" in one.text]


def test_a_client_without_ngp_is_warned_of_once_an_hour_on_each_interface() -> None:
    sim = Sim()
    first, other, tunnel = ("eth1", b"\2first"), ("eth1", b"\2other"), ("wg0", b"")
    assert told_of_packets(sim, [first, tunnel]) == [], "its hello may be under way"
    sim.now += 15
    assert told_of_packets(sim, [first, first, other, tunnel]) == [
        "packets from 02:66:69:72:73:74 on eth1 are dropped: " + WHY,
        "packets on wg0 are dropped: " + WHY,
    ]
    assert told_of_packets(sim, [other, tunnel]) == []
    sim.now += 3600
    (again,) = told_of_packets(sim, [other])
    assert again.startswith("packets from 02:6f:74:68:65:72 on eth1 ")


def test_a_client_without_ngp_that_is_slowed_is_not_called_dropped() -> None:
    sim = Sim(gateway=settings(unpaid_bytes_s=1000))
    told_of_packets(sim, [("eth1", b"first")])
    sim.now += 15
    (told,) = told_of_packets(sim, [("eth1", b"first")])
    assert told == f"packets from 66:69:72:73:74 on eth1 pass only slowly and uncharged, by UNPAID_RATE: {WHY}"
    assert sim.gateway.world.peers.unheard["eth1"].slowed


def test_a_client_whose_ngp_stopped_is_warned_of_as_well() -> None:
    sim = Sim()
    sim.happen(sim.gateway, ev.MessageReceived(sim.client.identity, sim.client.link, 1, Bye(), 9 << 32))
    told = told_of_packets(sim, [sim.client.link])
    sim.now += 15
    assert len(told + told_of_packets(sim, [sim.client.link])) == 1


def test_a_check_is_told_since_when_a_links_packets_are_dropped() -> None:
    sim = Sim()
    told_of_packets(sim, [("eth1", b"first")])
    began = sim.gateway.world.peers.unheard["eth1"].first_mono_s
    sim.now += 15
    told_of_packets(sim, [("eth1", b"other")])
    one = sim.gateway.world.peers.unheard["eth1"]
    assert (one.link_address, one.first_mono_s) == (b"other", began) and one.last_mono_s >= began + 15
    sim.now += 60
    told_of_packets(sim, [("eth1", b"other")])
    assert sim.gateway.world.peers.unheard["eth1"].first_mono_s > began + 60, "it was quiet for a minute"


def test_interfaces_that_come_and_go_leave_no_memory_of_warnings() -> None:
    sim = Sim()
    for number in range(3):
        told = told_of_packets(sim, [(f"wg{number}", b"")])
        sim.now += 15
        assert len(told + told_of_packets(sim, [(f"wg{number}", b"")])) == 1
        sim.now += 7200
    assert list(sim.gateway.world.peers.silence_due) == ["wg2"]
    assert list(sim.gateway.world.peers.unheard) == ["wg2"]


def test_second_identity_on_a_live_link_is_refused() -> None:
    sim = Sim()
    thief = ev.MessageReceived(b"T" * 32, sim.client.link, 1, Hello("sandbox", True, True, (), "", False), 9 << 32)
    sim.happen(sim.gateway, thief)
    assert sim.gateway.world.peers.by_link[sim.client.link].identity == sim.client.identity
    assert sim.gateway.world.counters["link_taken"] == 1


def test_nobody_changes_the_contract_of_another() -> None:
    sim = Sim()
    sim.up(HOST)
    sim.run(0.1)
    contract = sim.contracts(sim.gateway)[0].contract
    other = ("eth1", b"\2other")
    asks = (Cancel(contract, "cancelled"), Ask(ip_network(HOST), 0, 0, contract))
    for node, messages in ((sim.gateway, asks), (sim.client, (Cancel(contract, "expired"),))):
        for message in (Hello("sandbox", True, True, (), "", False), *messages):
            sim.happen(node, ev.MessageReceived(b"T" * 32, other, 1, message, 9 << 32))
    assert sim.gateway.world.contracts[contract].state is not State.RENEWING
    assert sim.gateway.world.contracts[contract].running
    assert sim.client.world.contracts[contract].running


def test_the_id_of_a_purchase_that_is_over_is_not_bought_again() -> None:
    sim = Sim()
    sim.up(HOST)
    sim.run(0.1)
    (bought,) = sim.sent(sim.gateway, Propose)
    assert isinstance(bought, Propose)
    tell(sim, sim.client, Cancel(bought.contract, "cancelled"))
    sim.run(1)
    assert not sim.client.world.contracts
    done = tell(sim, sim.client, bought)
    assert [one.message for one in done if isinstance(one, fx.Send)] == [Cancel(bought.contract, "cancelled")]
    assert not sim.client.world.contracts
