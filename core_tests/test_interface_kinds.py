"""Interfaces of every kind, as mesh and as uplink: first packet, bytes, cut, and nothing left by `ngp stop`.

The kernel decides which kinds exist. Kinds in EVERYWHERE are tested on each kernel. Of the others, pytest collects
those that the kernel has, and its summary names those that it lacks. With `--all-kinds`, as on a distribution's own
kernel, all are tested, and a kind that is missing fails.
"""

from __future__ import annotations

import pytest

from core_tests import interface_kinds as kinds
from core_tests import traffic
from core_tests.counter import Counter
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import CLIENT, GATEWAY, Trade, start_all, used

CONTRACT_KB = 40
LEAST_USED = (CONTRACT_KB << 10) - 2 * 1100  # the last packets have no room any more
PATIENCE_S = 30.0
SIZE = 100_000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Test each kind that the kernel has."""
    metafunc.parametrize("kind", list(kinds.KINDS) if metafunc.config.getoption("--all-kinds") else kinds.present())


def test_traffic_is_sold_metered_and_cut_and_nothing_is_left(lab: Lab, kind: str) -> None:
    """The gateway's mesh interface and its uplink are of this kind, and so are the interfaces at their other ends."""
    net = kinds.three_hosts_by(lab, kind)
    versions = kinds.KINDS[kind].versions
    trade = Trade(net, net.gateway.daemon(GATEWAY, start=False), net.client.daemon(CLIENT, start=False))
    start_all(trade.gateway, trade.client)
    assert kernel_state(net.gateway)  # otherwise the test would compare two empty lists
    trade.await_acquainted()
    trade.prepay()  # by a first packet
    at_internet, at_client = net.internet.counter("wan0", "in"), net.client.counter("mesh0", "in")
    for version in versions:
        carry(trade, version, at_internet, at_client)
    cut(trade, versions)
    for daemon in (trade.client, trade.gateway):
        daemon.stop()
    assert [kernel_state(host) for host in (net.gateway, net.client)] == [[], []]


def carry(trade: Trade, version: int, at_internet: Counter, at_client: Counter) -> None:
    """Send by a contract, and compare both meters with the count at the receivers.

    Counting begins when the contract runs: how many earlier packets the client counts depends on the time.
    """
    remote = trade.net.remote(version)
    assert traffic.ping(trade.net.client, remote, wait_s=PATIENCE_S).received == 1
    before = sides(trade, remote)
    there, back = at_internet.total("in", destination=remote).bytes, at_client.total("in", source=remote).bytes
    traffic.tcp_sink(trade.net.internet, remote, 5001)
    assert traffic.tcp_send(trade.net.client, remote, 5001, size_bytes=SIZE).intact
    there = at_internet.total("in", destination=remote).bytes - there
    back = at_client.total("in", source=remote).bytes - back
    assert there > SIZE and back > 0
    wanted = [(to + there, back + back_before) for to, back_before in before]
    await_until(lambda: sides(trade, remote) == wanted, what=f"meters that show {there} bytes sent and {back} back")


def sides(trade: Trade, remote: str) -> list[tuple[int, int]]:
    """Return (bytes to, bytes from) a destination by the gateway's and by the client's meter."""
    found = []
    for rows in (trade.sold(), trade.bought()):
        (row,) = [row for row in rows if row["destination"].startswith(f"{remote}/")]
        found.append((int(row["used_to_bytes"]), int(row["used_from_bytes"])))
    return found


def cut(trade: Trade, versions: tuple[int, ...]) -> None:
    """Use up a contract that may not be renewed, and check that nothing more passes."""
    once = {"CONTRACT_DATA": f"{CONTRACT_KB} kB", "DATA_RENEWAL": 0, "TIME_RENEWAL": 0}
    assert trade.gateway.reload({**GATEWAY, **once}).returncode == 0
    assert trade.client.reload({**CLIENT, **once}).returncode == 0
    for version in versions:
        remote = trade.net.remote(version, 3)
        assert traffic.ping(trade.net.client, remote, wait_s=PATIENCE_S).received == 1
        pings = [traffic.ping(trade.net.client, remote, count=10, payload_bytes=1000, wait_s=1) for _ in range(3)]
        assert sum(one.received for one in pings) <= 20
        await_used_up(trade, remote)
        assert not traffic.ping(trade.net.client, remote, wait_s=1).received


def await_used_up(trade: Trade, remote: str) -> None:
    """Send until a contract has no room for a long ping and its answer by the gateway's meter, and has ended.

    Before it ends, a short ping may still have room.
    """

    def is_used_up() -> bool:
        traffic.ping(trade.net.client, remote, payload_bytes=1000, wait_s=1)  # a slow machine loses some
        (row,) = [row for row in trade.sold() if row["destination"].startswith(f"{remote}/")]
        return row["state"] == "closed" and LEAST_USED < used(row) <= CONTRACT_KB << 10

    await_until(is_used_up, what="a contract that is used up and closed")


def kernel_state(host: Host) -> list[str]:
    """Return hooks on interfaces and rules, of which a stop may leave none."""
    names = [line.split(":")[1].strip().partition("@")[0] for line in host.ip("-o", "link").splitlines()]
    shown = [host.sh("tc", "qdisc", "show", "dev", name) for name in names]
    shown += [host.sh("tc", "filter", "show", "dev", name, side) for name in names for side in ("ingress", "egress")]
    shown += [host.sh("nft", "list", "ruleset"), host.sh("bpftool", "net")]
    return [line for each in shown for line in each.splitlines() if "clsact" in line or "ngp" in line.lower()]
