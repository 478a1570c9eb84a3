"""Other things that a paying neighbour expects of a route: inbound connections, its LAN, and errors from routers."""

from __future__ import annotations

import re

import pytest

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import Trade, open_trade, speak_as, used

VERSIONS = (4, 6)
SMALL_MTU = 1300
SIZE_BYTES = 300_000


def test_an_inbound_connection_needs_the_clients_contract(lab: Lab) -> None:
    trade = open_trade(lab, masquerade=False)
    net = trade.net
    trade.prepay()
    at_client = net.client.counter("mesh0", "in")
    for version in VERSIONS:
        local, via = net.client.address("mesh0", version), net.gateway.address("wan0", version)
        covered, uncovered = net.remote(version, 1), net.remote(version, 2)
        assert traffic.ping(net.client, covered).received == 1
        traffic.tcp_sink(net.client, local, 5001)
        speak_as(net.internet, uncovered, local, via)
        with pytest.raises(traffic.TrafficError):
            traffic.tcp_send(net.internet, local, 5001, size_bytes=1000, timeout_s=1)
        assert at_client.total("in", source=uncovered).packets == 0
        speak_as(net.internet, covered, local, via)
        assert traffic.tcp_send(net.internet, local, 5001, size_bytes=SIZE_BYTES).intact
    trade.assert_books_agree()
    for version in VERSIONS:
        (row,) = rows_of(trade, net.remote(version, 1))
        assert row["used_from_bytes"] == at_client.total("in", source=net.remote(version, 1)).bytes > SIZE_BYTES
        assert not rows_of(trade, net.remote(version, 2))


def rows_of(trade: Trade, remote: str) -> list[dict[str, int]]:
    return [row for row in trade.sold() if row["destination"].startswith(f"{remote}/")]


@pytest.mark.parametrize(
    "masqueraded", [False, pytest.param(True, marks=pytest.mark.long)], ids=["routed", "masqueraded"]
)
def test_a_household_behind_the_client_is_served_on_the_clients_account(lab: Lab, masqueraded: bool) -> None:
    trade = open_trade(lab, households=1)
    net = trade.net
    assert net.household is not None
    if masqueraded:
        net.client.masquerade("mesh0")
    trade.prepay()
    at_internet, at_home = net.internet.counter("wan0", "in"), net.household.counter("lan0", "in")
    for version in VERSIONS:
        remote = net.remote(version)
        traffic.tcp_sink(net.internet, remote, 5001)
        assert traffic.tcp_send(net.household, remote, 5001, size_bytes=SIZE_BYTES).intact
        assert traffic.ping(net.household, remote, count=3).received == 3
    trade.assert_books_agree()
    for version in VERSIONS:
        (row,) = rows_of(trade, net.remote(version))
        assert row["used_to_bytes"] == at_internet.total("in", destination=net.remote(version)).bytes
        assert row["used_from_bytes"] == at_home.total("in", source=net.remote(version)).bytes
    # The household's own network is up to the client.
    assert traffic.ping(net.household, net.client.address("lan0", 4)).received == 1
    assert len(trade.sold()) == 3


def test_traceroute_sees_every_router(lab: Lab) -> None:
    trade = open_trade(lab)
    net = trade.net
    for version in VERSIONS:
        remote = net.remote(version)
        speak_as(net.internet, remote, net.client.address("mesh0", version), net.gateway.address("wan0", version))
        said = net.client.sh("traceroute", f"-{version}", "-n", "-q", "1", "-w", "20", "-m", "5", remote)
        hops = [line.split()[1] for line in said.splitlines() if re.match(r"\s*\d+\s", line)]
        assert hops == [net.gateway.address("mesh0", version), remote]
    trade.assert_books_agree(refused=True)  # only the sender counted packets whose TTL ended at the gateway


def test_path_mtu_is_found_through_a_contract(lab: Lab) -> None:
    """The gateway's own `too big` reaches the client; a contract covers the `too big` of a router behind it."""
    trade = open_trade(lab, wan_mtu=SMALL_MTU)
    net = trade.net
    at_internet = net.internet.counter("wan0", "in")
    for version in VERSIONS:
        remote = net.remote(version)
        traffic.tcp_sink(net.internet, remote, 5001)
        assert traffic.tcp_send(net.client, remote, 5001, size_bytes=SIZE_BYTES).intact
        done = net.client.run("ping", "-n", "-c", "1", "-M", "do", "-s", "1400", "-W", "20", remote)
        assert f"mtu={SMALL_MTU}" in (done.stdout + done.stderr).replace(" = ", "=")
    trade.assert_books_agree(refused=True)  # the same holds for packets that were too big
    for version in VERSIONS:
        (row,) = rows_of(trade, net.remote(version))
        sent = at_internet.total("in", destination=net.remote(version)).bytes
        assert row["used_to_bytes"] >= sent
        assert used(row) <= sent + at_internet.total("in").bytes


def test_a_remote_routers_errors_belong_to_the_contract_they_quote(lab: Lab) -> None:
    """An error comes from an address that nobody bought, and must still arrive, or the sender would wait for ever."""
    trade = open_trade(lab)
    net = trade.net
    at_client = net.client.counter("mesh0", "in")
    for version in VERSIONS:
        remote = net.remote(version)
        assert traffic.ping(net.client, remote).received == 1
        family = {4: "ip", 6: "ip6"}[version]
        reject = {4: "icmp type host-unreachable", 6: "icmpv6 type admin-prohibited"}[version]
        net.internet.sh("nft", "-f", "-", text_in="\n".join([
            f"table {family} lab_errors {{", "chain in {", "type filter hook input priority 0",
            f"udp dport 7000 reject with {reject}", "}", "}", ""]))  # fmt: skip
        before = at_client.total("in", protocol={4: 1, 6: 58}[version]).packets
        traffic.udp_send(net.client, remote, 7000, count=1)
        await_until(
            lambda version=version, before=before:  # type: ignore[misc]
            at_client.total("in", protocol={4: 1, 6: 58}[version]).packets > before, what="the error"
        )
    trade.assert_books_agree()
