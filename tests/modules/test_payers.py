"""Who pays for a packet: exactly one neighbour at each hop, or nobody by a named rule, for every pair of ends."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
from crafted import send
from kernel_lab import CLIENT, INTERNET, desired, dropped, passes, sh
from meter_lab import NEIGHBOUR, metered, wait_until
from star_lab import (
    ADDRESSES,
    BITS,
    DOWN_BYTES,
    SECOND,
    UP_BYTES,
    Star,
    age,
    neighbours,
    once,
    payers,
    star,
    swept,
    table,
)

from core_tests.hostile import udp
from ngp.core.kernel import Hint, HintKind, KernelNeighbour
from ngp.modules.network import layout
from ngp.modules.network.meter import table_sizes

ENDS = tuple(ADDRESSES)
PAIRS = [pair for pair in itertools.permutations(ENDS, 2) if pair[0][-1] != pair[1][-1]]
PAYER = {"A": "A", "behind A": "A", "B": "B", "behind B": "B"}
NUMBER = {"A": NEIGHBOUR, "B": SECOND}


@dataclass(frozen=True, slots=True)
class Hub:
    star: Star
    masquerades: bool


@pytest.fixture(scope="module", params=[False, True], ids=["routed", "masqueraded"])
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with star(tmp_path_factory.mktemp("star")) as built:
        if request.param:
            _masquerade()
        yield Hub(built, request.param)


def _masquerade() -> None:
    """Masquerade all that leaves upstream; what A, its hosts and our LAN send to B; and what our LAN sends to A."""
    for family, command in ((4, "iptables"), (6, "ip6tables")):
        sh(f"{command} -t nat -A POSTROUTING -o up0 -j MASQUERADE")
        for name, out in (("A", "m1"), ("behind A", "m1"), ("LAN", "m1"), ("LAN", "m0")):
            sh(f"{command} -t nat -A POSTROUTING -s {ADDRESSES[name][family]} -o {out} -j MASQUERADE")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("begins", "answers"), PAIRS, ids=[" to ".join(pair) for pair in PAIRS])
def test_the_side_that_begins_pays_for_both_directions_alone(hub: Hub, begins: str, answers: str, family: int) -> None:
    """Each neighbour has bought all ends but its own from us, and we have bought from each the host behind it.

    A LAN that is hidden behind our own address is an exception: nobody can buy that.
    """
    hosts = {name: f"{addresses[family]}/{BITS[family]}" for name, addresses in ADDRESSES.items()}
    hidden = begins == "LAN" and hub.masquerades
    sold = {
        (name, end): hub.star.sell(number, host)
        for name, number in NUMBER.items()
        for end, host in hosts.items()
        if end[-1] != name and not (end == "LAN" and hidden)
    }
    bought = {name: hub.star.buy(number, hosts[f"behind {name}"]) for name, number in NUMBER.items()}
    hub.star.talk(begins, answers, family)
    carried = {which: hub.star.world.used(contract) for which, contract in sold.items()}
    if begins in PAYER:
        wanted = {(PAYER[begins], answers): once(family)}
    elif begins == "internet" and answers in PAYER:  # its contract covers the asking end: the question counts as "from"
        wanted = {(PAYER[answers], begins): once(family)[::-1]}
    elif begins == "LAN" and answers in ("A", "B") and not hidden:  # the same: we don't buy A's or B's own address
        wanted = {(answers, begins): once(family)[::-1]}
    else:
        wanted = {}
    assert {which: used for which, used in carried.items() if used != (0, 0)} == wanted
    for name, contract in bought.items():
        to, back = hub.star.world.used(contract)
        ours = answers == f"behind {name}" and begins != "internet"
        assert to == (once(family)[0] if ours else 0), "what we send to our seller is our purchase"
        assert back >= (once(family)[1] if ours else 0), "a buyer's meter may count more, never less"
    hub.star.world.datapath.revoke([*sold.values(), *bought.values()])


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Star]:
    with star(tmp_path) as built:
        yield built


def _bought_each_other(hub: Star) -> tuple[bytes, bytes]:
    """Let A buy B's own address, and let B buy a host behind A."""
    first = hub.sell(NEIGHBOUR, f"{ADDRESSES['B'][4]}/32")
    return first, hub.sell(SECOND, f"{ADDRESSES['behind A'][4]}/32")


def _answer(client: socket.socket, server: socket.socket) -> None:
    """Let a server send something more to a client."""
    server.sendto(bytes(DOWN_BYTES), client.getsockname()[:2])


def _queued(hub: Star) -> int:
    return hub.world.datapath.counters()["passed_to_queue"]


@contextmanager
def _two_conversations(alone: Star) -> Iterator[tuple[socket.socket, ...]]:
    """Open the ends of a conversation that A begins with B, then of one that B begins with a host behind A."""
    with (
        alone.socket("A", 4) as first,
        alone.socket("B", 4, 5000) as answers_first,
        alone.socket("B", 4) as second,
        alone.socket("behind A", 4, 5001) as answers_second,
    ):
        yield first, answers_first, second, answers_second


@pytest.mark.parametrize(("has_paid", "most"), [(True, 4096), (False, 64)], ids=["paid", "on grace"])
def test_a_flood_of_flows_does_not_push_out_those_of_others(alone: Star, has_paid: bool, most: int) -> None:
    alone.world.datapath.set_neighbours(neighbours(alone, has_paid=has_paid))
    floods, suffers = _bought_each_other(alone)
    sh("iptables -A OUTPUT -p icmp -j DROP", alone.second)  # otherwise packets without a listener would be answered
    with _two_conversations(alone) as (first, answers_first, second, answers_second):
        alone.ask(second, answers_second)
        alone.ask(first, answers_first)
        for port in range(20_000, 20_000 + most):
            first.sendto(b"", (ADDRESSES["B"][4], port))
        wait_until(lambda: alone.world.used(floods)[0] == once(4)[0] + 28 * most, "all have passed")
        assert Counter(payers(alone)) == {NEIGHBOUR: most, SECOND: 1}
        _answer(second, answers_second)
        assert len(second.recv(2048)) == DOWN_BYTES and _queued(alone) == 0
        assert alone.world.used(suffers) == (once(4)[0], 2 * once(4)[1])
        _answer(first, answers_first)
        wait_until(lambda: _queued(alone) == 1, "the oldest of the flood is forgotten: its answer isn't a return")
        alone.ask(first, answers_first)
        assert alone.world.used(floods) == (2 * once(4)[0] + 28 * most, 2 * once(4)[1]), "until its payer sends again"


def _fill(hub: Star) -> None:
    """Fill the table of flows with those of other payers."""
    flows, places = table(hub, layout.FLOWS), table(hub, layout.PLACES)
    room = table_sizes(desired().contracts_max)[layout.FLOWS]
    for number in range(room - len(flows.all_keys())):
        place = layout.FLOW_PLACE.pack(1000 + number // 4096, number % 4096)
        flow = b"other".ljust(36, b"\0") + number.to_bytes(4, "big")
        flows.set(flow, layout.FLOW_MEMORY.pack(*layout.FLOW_PLACE.unpack(place), time.monotonic_ns()))
        places.set(place, flow)


def test_others_flows_that_fill_the_table_end_no_conversation_and_charge_nobody(alone: Star) -> None:
    """A known limit: if others' flows fill the table, each payer within its own room, new flows aren't remembered.

    They are again when the others' flows are old.
    """
    pays, suffers = _bought_each_other(alone)
    sh("iptables -A OUTPUT -p icmp -j DROP", alone.second)  # what nobody listens for would be answered
    with _two_conversations(alone) as (first, answers_first, second, answers_second):
        alone.ask(second, answers_second)
        _fill(alone)
        first.sendto(bytes(UP_BYTES), (ADDRESSES["B"][4], 5000))
        _, seen = answers_first.recvfrom(2048)
        answers_first.sendto(bytes(DOWN_BYTES), seen)
        wait_until(lambda: _queued(alone) == 1, "its answer isn't known to be one")
        _answer(second, answers_second)
        assert len(second.recv(2048)) == DOWN_BYTES
        up, down = once(4)
        assert (alone.world.used(pays), alone.world.used(suffers)) == ((up, 0), (up, 2 * down))
        age(alone, 601)
        swept(alone, len(table(alone, layout.FLOWS).all_keys()))
        alone.ask(first, answers_first)
        assert alone.world.used(pays) == (2 * up, down)


def test_payers_that_fill_their_rooms_leave_room_for_others(alone: Star) -> None:
    """Else four neighbours that paid once could fill a small table for ten minutes.

    Then others' flows weren't remembered, and the side that didn't begin would pay.
    """
    macs = [bytes([2, 0, 0, 0, 0, n]) for n in range(1, 5)]
    four = [KernelNeighbour(100 + n, "m0", mac, (), True, False, has_paid=True) for n, mac in enumerate(macs)]
    alone.world.datapath.set_neighbours([*neighbours(alone), *four])
    alone.world.datapath._expire()
    sh("iptables -A OUTPUT -p icmp -j DROP", alone.second)
    for n, mac in enumerate(macs):
        alone.sell(100 + n, f"{ADDRESSES['B'][4]}/32")
        to = ADDRESSES["B"][4]
        send(alone.world, [udp(f"10.77.1.{60 + n}", to, 20_000 + port, b"") for port in range(4200)], source=mac)
    wait_until(lambda: len(set(payers(alone))) == 4, "all four have sent")
    pays, suffers = _bought_each_other(alone)
    alone.talk("A", "B", 4)
    assert (alone.world.used(pays), alone.world.used(suffers)) == (once(4), (0, 0))
    assert Counter(payers(alone)) == {NEIGHBOUR: 1, **{100 + n: 1024 for n in range(4)}}


def test_a_flow_is_forgotten_after_its_payers_last_packet_whatever_the_other_end_sends(alone: Star) -> None:
    _bought_each_other(alone)
    with alone.socket("A", 4) as client, alone.socket("B", 4, 5000) as server:
        alone.ask(client, server)
        age(alone, 599)
        _answer(client, server)
        assert len(client.recv(2048)) == DOWN_BYTES
        age(alone, 2)
        _answer(client, server)
        wait_until(lambda: _queued(alone) == 1, "no return any more")
        alone.ask(client, server)
        age(alone, 599)
        alone.ask(client, server)
        age(alone, 599)
        _answer(client, server)
        assert len(client.recv(2048)) == DOWN_BYTES and _queued(alone) == 1, "the payer's packet counts"


def test_what_is_forgotten_and_whose_payer_is_gone_leaves_the_tables(alone: Star) -> None:
    _bought_each_other(alone)
    alone.talk("A", "B", 4)
    alone.talk("B", "behind A", 4)
    alone.talk("LAN", "A", 4)
    assert sorted(payers(alone)) == [layout.OUR_FLOWS, NEIGHBOUR, SECOND]
    alone.world.datapath.forget_neighbours([SECOND])
    swept(alone)
    assert sorted(payers(alone)) == [layout.OUR_FLOWS, NEIGHBOUR]
    age(alone, 601)
    swept(alone)
    assert payers(alone) == [] and not table(alone, layout.PLACES).all_keys()


def test_a_gateway_whose_customers_only_reach_its_uplink_remembers_no_flow(alone: Star) -> None:
    alone.sell(NEIGHBOUR, f"{INTERNET[4]}/32")
    alone.talk("A", "internet", 4)
    alone.talk("internet", "A", 4)
    assert payers(alone) == []


def test_two_conversations_between_the_same_two_hosts_are_paid_by_their_own_beginners(alone: Star) -> None:
    """On one processor, a return is followed by a packet between the same addresses for which its sender pays."""
    first, second = alone.sell(NEIGHBOUR, f"{ADDRESSES['B'][4]}/32"), alone.sell(SECOND, f"{ADDRESSES['A'][4]}/32")
    with (
        alone.socket("A", 4) as a_asks,
        alone.socket("B", 4, 5000) as b_answers,
        alone.socket("B", 4) as b_asks,
        alone.socket("A", 4, 5001) as a_answers,
    ):
        for _ in range(5):
            alone.ask(a_asks, b_answers)
            alone.ask(b_asks, a_answers)
    each = tuple(5 * size for size in once(4))
    assert (alone.world.used(first), alone.world.used(second)) == (each, each)


UPLINKS = {
    "two halves": "ip route add 0.0.0.0/1 via {0} && ip route add 128.0.0.0/1 via {0}",
    "specific routes": "ip route add 198.51.100.0/24 via {0}",
    "another table": "ip route add default via {0} table 7 && ip rule add pref 40000 table 7",
}


@pytest.mark.parametrize("routes", UPLINKS.values(), ids=list(UPLINKS))
def test_an_uplink_without_a_default_route_carries_nothing_that_nobody_pays_for(alone: Star, routes: str) -> None:
    sh(routes.format(INTERNET[4]))
    sh("ip addr add 198.51.100.7/32 dev lo", alone.world.lab.internet)
    network = alone.world.datapath
    lan, upstream = network.other_interfaces(("m0", "m1"), None)
    assert (lan, upstream) == (("lan0",), ("up0",))
    network.apply(desired(buys=True, lan_interfaces=lan, upstream_interfaces=upstream))
    assert dropped(alone.world.lab.client, "198.51.100.7") and _queued(alone) == 1, "its own address is no excuse"
    assert dropped(alone.world.lab.internet, ADDRESSES["A"][4]) and network.counters()["uncovered"] == 1
    sold = alone.sell(NEIGHBOUR, "198.51.100.7/32")
    assert passes(alone.world.lab.client, "198.51.100.7")
    assert alone.world.used(sold) == (84, 84)


def test_what_a_neighbour_bought_and_begins_a_conversation_itself_is_asked_for(alone: Star) -> None:
    """The neighbour's gate takes our traffic for a return, so it would never offer us a contract for it."""
    for number in (NEIGHBOUR, SECOND):
        alone.sell(number, f"{ADDRESSES['LAN'][4]}/32")
    found: list[Hint] = []

    async def scenario() -> None:
        heard = asyncio.Event()

        def on_hints(hints: Sequence[Hint]) -> None:
            found.extend(hints)
            if len(found) == 2:
                heard.set()

        alone.world.datapath.start(asyncio.get_running_loop(), lambda _held: None, on_hints)
        for begins, answers in (("LAN", "B"), ("LAN", "behind B"), ("LAN", "A"), ("LAN", "behind A")):
            with alone.socket(begins, 4) as client:
                for _ in range(3):
                    client.sendto(bytes(UP_BYTES), (ADDRESSES[answers][4], 9))
        await asyncio.wait_for(heard.wait(), 60)

    asyncio.run(scenario())
    wanted = [(SECOND, ADDRESSES["behind B"][4]), (NEIGHBOUR, ADDRESSES["behind A"][4])]
    assert found == [Hint(HintKind.UNBOUGHT, b"", number, ip_address(address)) for number, address in wanted]


def test_a_gateway_with_one_mesh_interface_knows_downloads_without_a_look_up(tmp_path: Path) -> None:
    """This holds until there is a second mesh interface, or a LAN.

    Traffic that turns around on the only mesh interface still counts as mesh traffic.
    """
    with metered(tmp_path, mesh_interfaces=("m0",)) as world:
        sold = world.grant(f"{INTERNET[4]}/32")
        assert passes(world.lab.client, INTERNET[4]) and world.used(sold) == (84, 84)
        behind = ADDRESSES["behind A"][4]
        sh(f"ip route add {behind}/32 via {CLIENT[4]} && sysctl -qw net.ipv4.conf.all.send_redirects=0")
        sh("sysctl -qw net.ipv4.conf.m0.send_redirects=0")
        turned = world.grant(f"{behind}/32")
        send(world, [udp(CLIENT[4], behind, 9, bytes(100))], times=3)
        wait_until(lambda: world.used(turned) == (3 * 128, 0), "charged once, at the gate")
        assert world.datapath.counters()["uncovered"] == 0
