"""A neighbour that roams between two gateways which don't hear each other, with a route through each (CHOOSE_ROUTES).
When the one that carries is out of reach, it takes the other by itself, and pays each for what that one carried."""

from __future__ import annotations

from core_tests import traffic
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import cost_msat, used

REMOTES = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
PLACES = {"west": (200.0, 250.0), "east": (800.0, 250.0)}
WAY = ("west", "east", "west")
COUNT = 40
WAIT_S = 60.0  # one that comes into reach is heard within seconds


def expect(session: Session) -> None:
    rover, internet = session.hosts["rover"], session.hosts["internet"]
    counter = internet.counter("wan0")
    for remote in REMOTES.values():
        traffic.udp_echo(internet, remote, 5000)

    def echoed(remote: str, count: int, wait_s: float = traffic.PATIENCE_S) -> int:
        return traffic.udp_send(
            rover, remote, 5000, count=count, payload_bytes=472, await_echoes=True, echo_wait_s=wait_s
        )

    def carried(gateway: str, version: int) -> int:
        """Return the bytes that went through a gateway, which hides the rover behind its own address."""
        outside, remote = session.hosts[gateway].address("wan0", version), REMOTES[version]
        return counter.total(None, outside, remote).bytes + counter.total(None, remote, outside).bytes

    for gateway in WAY:
        session.move("rover", PLACES[gateway])
        (away,) = set(PLACES) - {gateway}
        assert traffic.ping(rover, session.hosts[away].address("mesh0", 4), wait_s=0.2).received == 0
        for version, remote in REMOTES.items():
            await_until(lambda remote=remote: echoed(remote, 1, 0.5) == 1, WAIT_S, f"a way through {gateway}")  # type: ignore[misc]
            before = carried(gateway, version)
            assert echoed(remote, COUNT) == COUNT
            assert carried(gateway, version) - before == 2 * COUNT * traffic.l3_bytes(version, 472)
    deals = {}
    for gateway in PLACES:
        session.move("rover", PLACES[gateway])  # where the last bill still has to come from
        deals[gateway] = session.deal(gateway, "rover")
        deals[gateway].await_settled(refused=True)
    for gateway, deal in deals.items():
        deal.assert_books_agree(refused=True)  # the rover's meter has counted what it sent when the gateway was away
        assert deal.earned()["charged_msat"] == sum(map(cost_msat, deal.sold()))
        for version, remote in REMOTES.items():
            sold = [used(row) for row in deal.sold() if row["destination"].partition("/")[0] == remote]
            assert sum(sold) == carried(gateway, version)
    assert all("dispute" not in {line["kind"] for line in daemon.json("ledger")} for daemon in session.daemons.values())
