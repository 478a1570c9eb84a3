"""A network that has no IPv4 at all: neighbours find each other, agree and pay, for pings and a stream."""

from __future__ import annotations

from core_tests import traffic
from core_tests.session import Session
from core_tests.shell import LabError, await_until
from core_tests.trade import used

PINGED, STREAMED = "2001:db8:ffff::1", "2001:db8:ffff::2"
STREAM_BYTES = 1_000_000
PINGS = 10


def expect(session: Session) -> None:
    deal, client, internet = session.deal("gateway", "client"), session.hosts["client"], session.hosts["internet"]
    for host in session.hosts.values():
        for interface in host.addresses:
            try:
                raise AssertionError(f"{host.name} has {host.address(interface, 4)}")
            except LabError:
                continue
    counter = internet.counter("wan0")
    assert traffic.ping(client, PINGED, count=PINGS).received == PINGS
    await_until(lambda: deal.earned()["paid_msat"], what="the first payment")
    sink = traffic.tcp_sink(internet, STREAMED, 5000)
    assert traffic.tcp_send(client, STREAMED, sink.port, size_bytes=STREAM_BYTES).intact
    deal.assert_books_agree()
    for row in deal.sold():
        remote = row["destination"].partition("/")[0]
        carried = counter.bytes_of(remote)
        assert used(row) == carried
    assert {row["destination"] for row in deal.sold()} == {f"{PINGED}/128", f"{STREAMED}/128"}
