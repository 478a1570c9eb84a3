"""The gateway's radio goes away and comes back, again and again: the contract goes on, and nothing is charged twice."""

from __future__ import annotations

from core_tests import traffic
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import used

REMOTES = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
FLAPS = 4
COUNT = 20


def expect(session: Session) -> None:
    deal, client, gateway = session.deal("gateway", "client"), session.hosts["client"], session.hosts["gateway"]
    for host in (client, gateway):
        host.sysctl({"net.ipv6.conf.all.keep_addr_on_down": "1"})  # as routers have it, so that only the link is lost
    counter = session.hosts["internet"].counter("wan0")
    for remote in REMOTES.values():
        traffic.udp_echo(session.hosts["internet"], remote, 5000)
    for flap in range(1 + FLAPS):
        if flap:
            gateway.ip("link", "set", "mesh0", "down")
            await_until(lambda: not gateway.carriers(), what="the link is gone")
            gateway.ip("link", "set", "mesh0", "up")
            await_until(lambda: client.carriers() and gateway.carriers(), what="the link is back")
        for remote in REMOTES.values():
            sent = traffic.udp_send(client, remote, 5000, count=COUNT, payload_bytes=472, await_echoes=True)
            assert sent == COUNT
    assert deal.acquainted()
    deal.assert_books_agree()
    sold = {row["destination"].partition("/")[0]: row for row in deal.sold()}
    assert {remote: row["state"] for remote, row in sold.items()} == dict.fromkeys(REMOTES.values(), "active")
    for version, remote in REMOTES.items():
        carried = counter.bytes_of(remote)
        assert used(sold[remote]) == carried == (1 + FLAPS) * 2 * COUNT * traffic.l3_bytes(version, 472)
