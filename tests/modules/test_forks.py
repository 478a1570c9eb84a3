"""Forks in the kernel: where routes lead several ways, and routes of our own that leave the operator's as they are."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from ipaddress import ip_address, ip_network
from unittest import mock

import pytest
from kernel_lab import Lab, gateway, sh

from core_tests.shell import await_until
from ngp.core.kernel import UNKNOWN_ROUTER, Fork, Router
from ngp.errors import KernelError
from ngp.modules import rtnetlink
from ngp.modules.netlink import Asker
from ngp.modules.network.forks import MADE_BY, Forks, others_in, rule_behind, rules_for
from ngp.modules.network.host import Host
from ngp.modules.routing_rules import Rule

EVERYTHING, EVERYTHING_6 = ip_network("0.0.0.0/0"), ip_network("::/0")
PART = ip_network("198.51.100.0/24")
WEST, EAST = (Router(f"w{number}", None, ip_address(f"10.0.{number}.2")) for number in (0, 1))
MESH = ("w0", "w1", "tun0")
EAST_6 = Router("w1", None, ip_address("fd00:1::2"))
TABLE, PRIORITY = 10325, 10325


@pytest.fixture
def hosts() -> Iterator[Lab]:
    with gateway() as built:
        sh("ip route flush default; ip -6 route flush default; ip tuntap add tun0 mode tun")
        for number in (0, 1):
            sh(f"ip link add w{number} type veth peer name x{number} && ip link set x{number} up")
            sh(f"ip link set w{number} up && ip address add 10.0.{number}.1/24 dev w{number}")
            sh(f"ip address add fd00:{number}::1/64 dev w{number} nodad")
            sh(f"ip route add default via 10.0.{number}.2 metric {100 + number} mtu 1300")
            sh(f"ip -6 route add default via fd00:{number}::2 metric {100 + number}")
        sh("ip route add 198.51.100.0/24 nexthop via 10.0.1.2 nexthop via 10.0.0.2")
        sh("ip route add 203.0.113.0/24 via 10.0.0.2")
        yield built


@pytest.fixture
def host(hosts: Lab) -> Iterator[Host]:
    with closing(Host()) as opened:
        yield opened


def find(host: Host, families: tuple[int, ...] = (4, 6)) -> dict[object, Fork]:
    host.forget()
    return {fork.prefix: fork for fork in Forks(host).find(MESH, families)}


def places(fork: Fork) -> list[object]:
    return [router.place for router in fork.routers]


def operators() -> str:
    """Return rules and routes, ours too: when ours are removed, all must be as before."""
    ours = f"ip -4 route show table all proto {MADE_BY}; ip -6 route show table all proto {MADE_BY}"
    return sh(f"ip -4 rule; ip -6 rule; {ours}; ip -4 route; ip -6 route | sed /^fe80/d")  # those come when they like


def test_forks_are_prefixes_with_several_routers_in_the_order_of_metrics(host: Host) -> None:
    found = find(host)
    assert set(found) == {EVERYTHING, EVERYTHING_6, PART}
    assert places(found[EVERYTHING]) == [WEST.place, EAST.place]
    assert set(places(found[PART])) == {WEST.place, EAST.place}
    assert found[EVERYTHING].chosen is None
    assert set(find(host, (4,))) == {EVERYTHING, PART}
    assert Forks(host).find(("w0",), (4, 6)) == ()


def test_routes_into_the_mesh_and_the_one_router_of_the_default_route(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(version: int = 4, mesh: tuple[str, ...] = MESH) -> tuple[object, set[object], bool]:
        host.forget()
        found = Forks(host).mesh_routes(version, mesh)
        default = found.default.place if found.default is not None else None
        return default, {(str(prefix), router.place) for prefix, router in found.others}, found.is_whole

    parts = {(str(PART), WEST.place), (str(PART), EAST.place), ("203.0.113.0/24", WEST.place)}
    assert look() == (WEST.place, parts, True)
    assert look(6) == (("w0", ip_address("fd00:0::2")), set(), True)
    assert look(mesh=("w1",)) == (None, {(str(PART), EAST.place)}, True)
    monkeypatch.setattr("ngp.modules.network.forks.MOST_OTHERS", 2)
    assert look()[2] is False
    monkeypatch.undo()
    sh("ip route flush default; ip route add default nexthop via 10.0.1.2 nexthop via 10.0.0.2")
    assert look()[0] is None, "traffic is shared between two routers"
    sh("ip route flush default; ip route add 128.0.0.0/1 via 10.0.1.2")
    assert look() == (None, {*parts, ("128.0.0.0/1", EAST.place)}, True)


def test_the_routers_of_routes_inside_a_prefix_are_found_and_read_anew_after_changes_only(host: Host) -> None:
    forks = Forks(host)

    def inside(prefix: str, mesh: tuple[str, ...] = MESH, fresh: bool = True) -> set[object]:
        return {router.place for router in forks.inside(ip_network(prefix), mesh, fresh)}

    assert inside("198.51.0.0/16") == {WEST.place, EAST.place} and inside("203.0.113.0/24") == set()
    assert inside("203.0.0.0/8") == {WEST.place} and inside("203.0.0.0/8", ("w1",)) == set()
    assert inside("198.52.0.0/16") == inside("2001:db8::/32") == set()
    sh("ip route add 203.0.113.255/32 via 10.0.1.2; ip -6 route add 2001:db8:ffff::/48 via fd00:1::2")
    assert inside("203.0.113.0/24") == set(), "what was read stands until a change is told"
    host.forget()
    assert inside("203.0.113.0/24", fresh=False) == set(), "clients cause this one: not again within a second"
    assert inside("203.0.113.0/24") == inside("203.0.113.254/31") == {EAST.place} and inside("203.0.112.0/24") == set()
    assert inside("2001:db8::/32") == {EAST_6.place} and inside("2001:db8:ffff::/48") == set()


def test_more_routes_than_are_read_may_lead_anywhere(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ngp.modules.network.forks.MOST_ROUTES", 2)
    assert Forks(host).inside(PART, MESH, True) == (UNKNOWN_ROUTER,)
    monkeypatch.setattr("ngp.modules.network.forks.MOST_ROUTES", 3)
    assert Forks(host).inside(PART, MESH, True) == ()


def test_a_link_without_carrier_is_no_way(host: Host) -> None:
    sh("ip link set x0 down")
    await_until(lambda: EVERYTHING not in find(host), what="the loss of the carrier")


def test_our_route_takes_the_place_of_the_same_prefixs_routes_and_of_no_others(host: Host) -> None:
    before, forks = operators(), Forks(host)
    forks.find(MESH, (4, 6))
    forks.set_routes({EVERYTHING: EAST}, TABLE, PRIORITY)
    assert "via 10.0.1.2 dev w1 table 10325" in sh("ip route get 192.0.2.1")
    assert "mtu 1300" in sh("ip route get 192.0.2.1"), "as the operator's route says"
    assert "dev w0" in sh("ip route get 203.0.113.1") and "dev w0" in sh("ip route get 10.0.0.7")
    forks.set_routes({EVERYTHING: WEST, PART: EAST}, TABLE, PRIORITY)
    assert "dev w0" in sh("ip route get 192.0.2.1")
    assert {"dev w1" in sh(f"ip route get 198.51.100.{number}") for number in range(1, 30)} == {True}
    sh("ip route add 198.51.100.7/32 via 10.0.0.2")
    assert "dev w0" in sh("ip route get 198.51.100.7"), "a longer prefix of the operator's comes first"
    sh("ip route del 198.51.100.7/32")
    forks.clean_up()
    assert operators() == before
    forks.clean_up()


def test_what_a_killed_daemon_left_is_found_and_moved_to_another_table(host: Host) -> None:
    before, first = operators(), Forks(host)
    first.find(MESH, (4, 6))
    first.set_routes({EVERYTHING: EAST, EVERYTHING_6: EAST_6}, TABLE, PRIORITY)
    second = Forks(host)
    found = {fork.prefix: fork for fork in second.find(MESH, (4, 6))}
    assert found[EVERYTHING].chosen is not None and found[EVERYTHING].chosen.place == EAST.place
    assert found[EVERYTHING_6].chosen is not None and found[PART].chosen is None
    second.set_routes({EVERYTHING: EAST}, 300, 1000)
    shown = operators()
    assert "lookup 300" in shown and "10325" not in shown and "fd00:1::2 dev w1 table" not in shown
    sh("ip route del default via 10.0.0.2; ip route del default via 10.0.1.2")
    (left,) = [fork for fork in second.find(MESH, (4,)) if fork.prefix == EVERYTHING]
    assert left.routers == () and left.chosen is not None, "still told, so that it is removed"
    sh("ip route add default via 10.0.0.2 metric 100 mtu 1300; ip route add default via 10.0.1.2 metric 101 mtu 1300")
    second.clean_up()
    assert operators() == before


@pytest.mark.parametrize(
    "touch",
    [
        "ip route change default via 10.0.1.2 metric 101 mtu 1200",
        "ip route change default via 10.0.1.2 metric 101 mtu 1300 advmss 1000 src 10.0.0.1",
        "ip -4 rule del table 10325",
        f"ip -4 rule del table main protocol {MADE_BY}",
    ],
)
def test_our_route_is_made_anew_when_the_operators_one_changed_or_a_rule_of_ours_is_gone(
    host: Host, touch: str
) -> None:
    forks = Forks(host)
    assert not any(fork.is_stale for fork in forks.find(MESH, (4, 6)))
    forks.set_routes({EVERYTHING: EAST, EVERYTHING_6: EAST_6}, TABLE, PRIORITY)
    assert not any(fork.is_stale for fork in forks.find(MESH, (4, 6)))
    sh(touch)
    assert {fork.prefix for fork in forks.find(MESH, (4, 6)) if fork.is_stale} == {EVERYTHING}
    forks.set_routes({EVERYTHING: EAST, EVERYTHING_6: EAST_6}, TABLE, PRIORITY)
    assert not any(fork.is_stale for fork in forks.find(MESH, (4, 6)))
    theirs = sh("ip route show default | grep 10.0.1.2").replace("metric 101", f"proto {MADE_BY}").split()
    assert sorted(sh(f"ip route show table {TABLE}").split()) == sorted(theirs)
    assert "dev w1 table 10325" in sh("ip route get 192.0.2.1")


@pytest.mark.parametrize(
    ("theirs", "route"),
    [
        (f"ip route add default via 10.0.0.2 table {TABLE}", "0.0.0.0/0"),
        (f"ip -6 route add 2001:db8:7::/48 via fd00::2 table {TABLE}", "2001:db8:7::/48"),
        (f"ip route add blackhole 192.0.2.0/24 table {TABLE}", "192.0.2.0/24"),
    ],
)
def test_a_table_that_somebody_else_uses_stays_as_it_is(host: Host, theirs: str, route: str) -> None:
    forks = Forks(host)
    forks.find(MESH, (4, 6))
    sh(theirs)
    both = f"ip -4 route show table all | grep {TABLE} || true; ip -6 route show table all | grep {TABLE} || true"
    before, table = operators(), sh(both)
    assert others_in(TABLE) == ip_network(route) and others_in(TABLE + 1) is None
    with pytest.raises(KernelError, match=rf"routing table {TABLE} has one to {route} that isn't ours"):
        forks.set_routes({EVERYTHING: EAST}, TABLE, PRIORITY)
    forks.clean_up()
    assert operators() == before and sh(both) == table


def test_without_ipv6_in_the_kernel_its_answers_about_ipv4_are_not_taken_for_ipv6(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rtnetlink._FAMILY, 6, socket.AF_X25)  # nothing in the kernel answers for this one either
    forks = Forks(host)
    assert {fork.prefix for fork in forks.find(MESH, (4, 6))} == {EVERYTHING, PART}
    forks.set_routes({EVERYTHING: EAST, PART: EAST}, TABLE, PRIORITY)
    found = forks.find(MESH, (4, 6))
    assert {fork.prefix for fork in found} == {EVERYTHING, PART} and not any(fork.is_stale for fork in found)
    assert not list(rtnetlink.routes(rtnetlink.open_asker(), 6)) and others_in(rtnetlink.MAIN_TABLE) is not None
    forks.clean_up()
    assert {fork.chosen for fork in forks.find(MESH, (4, 6))} == {None}


class Killed(BaseException):
    """Stands for kill -9: no code handles it."""


@contextmanager
def killed_after(changes: int) -> Iterator[None]:
    """End what runs inside when it asks the kernel for one change more than so many."""
    order, left = Asker.order, iter(range(changes))

    def ordered(kernel: Asker, kind: int, body: bytes, flags: int = 0) -> None:
        if next(left, None) is None:
            raise Killed
        order(kernel, kind, body, flags)

    with suppress(Killed), mock.patch.object(Asker, "order", ordered):
        yield


def test_a_kill_between_two_changes_leaves_every_other_way_alone_and_a_stop_removes_the_rest(host: Host) -> None:
    before = operators()
    steps: list[int] = []
    moves: list[tuple[dict[object, Router], int, int]] = [
        ({EVERYTHING: EAST, EVERYTHING_6: EAST_6, PART: WEST}, TABLE, PRIORITY),
        ({EVERYTHING: WEST, PART: EAST}, TABLE, PRIORITY),
        ({EVERYTHING: WEST}, 300, 1000),
        ({}, 300, 1000),
    ]
    for last, move in enumerate(moves):
        for step in range(100):
            forks = Forks(host)
            forks.find(MESH, (4, 6))
            for former in moves[:last]:
                forks.set_routes(*former)
            done = False
            with killed_after(step):
                forks.set_routes(*move)
                done = True
            assert "dev w0" in sh("ip route get 203.0.113.1") and "dev w0" in sh("ip route get 10.0.0.7")
            assert "dev w" in sh("ip route get 192.0.2.1") and "dev w" in sh("ip route get 198.51.100.7")
            Forks(host).clean_up()
            assert operators() == before
            if done:
                steps.append(step)
                break
    assert len(steps) == len(moves) and min(steps) > 2, "each was interrupted at each of its steps"


def test_a_route_whose_router_is_gone_is_refused(host: Host) -> None:
    forks = Forks(host)
    forks.find(MESH, (4, 6))
    with pytest.raises(KernelError, match=r"no route to 0.0.0.0/0 leads to 10.0.0.99 on w0 any more"):
        forks.set_routes({EVERYTHING: Router("w0", None, ip_address("10.0.0.99"))}, TABLE, PRIORITY)


def test_a_peer_on_an_interface_without_link_addresses_needs_no_address(host: Host) -> None:
    sh("ip link set tun0 up && ip route add default dev tun0 metric 7")
    assert places(find(host)[EVERYTHING])[-2:] == [WEST.place, EAST.place]
    forks = Forks(host)
    if ("tun0", None) in places(forks.find(MESH, (4,))[0]):  # a tun that nobody holds has no carrier
        forks.set_routes({EVERYTHING: Router("tun0", b"", None)}, TABLE, PRIORITY)
        assert "dev tun0" in sh("ip route get 192.0.2.1")


def test_rules_for_longer_prefixes_come_first() -> None:
    assert rules_for(EVERYTHING, TABLE, 5000) == (Rule(4, 4999, 254, 0), Rule(4, 5000, TABLE, None))
    assert rules_for(PART, TABLE, 5000) == (Rule(4, 4951, 254, 24), Rule(4, 4952, TABLE, 23))
    assert rules_for(ip_network("2001:db8::1/128"), TABLE, 258)[0].priority == 1


def test_a_rule_that_ours_lead_past_is_found(host: Host) -> None:
    forks = Forks(host)
    forks.find(MESH, (4, 6))
    forks.set_routes({EVERYTHING: EAST}, TABLE, PRIORITY)
    sh("ip rule add from 192.0.2.1 lookup 77 priority 100; ip rule add iif lo lookup 77 priority 20000")
    assert rule_behind(PRIORITY) is None, "one comes first, the other is for this host's own packets"
    sh("ip -6 rule add not fwmark 0xca6c lookup 51820")
    assert rule_behind(PRIORITY) == Rule(6, 32765, 51820)
