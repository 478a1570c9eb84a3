"""Two gateways undercut each other, and the client pays whoever asks less, each at its price for what it carried. When
both ask the same, nothing changes."""

from __future__ import annotations

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.session import Session
from core_tests.shell import await_until
from core_tests.trade import MSAT_PER_KB, cost_msat, used

REMOTE = "198.51.100.1"
WAIT_S = 90.0  # a price is asked for every 5 s, and of a gateway that was left after half a minute
RATE_PPS = 50
ALIKE_BYTES = 200_000
WAR = (("east", 3), ("west", 2))  # who is the cheaper one, and its price; west begins with 5


def expect(session: Session) -> None:
    client, internet = session.hosts["client"], session.hosts["internet"]
    deals = {name: session.deal(name, "client") for name in ("west", "east")}
    traffic.udp_echo(internet, REMOTE, 5000)
    counter = internet.counter("wan0")

    def carried(gateway: str) -> int:
        """Return the bytes that went through a gateway, which hides the client behind its own address."""
        outside = session.hosts[gateway].address("wan0", 4)
        return counter.bytes_of(outside)

    flow = traffic.start(client, "udp-send", REMOTE, 5000, 600 * RATE_PPS, 472, RATE_PPS, 0)
    for number, (gateway, price) in enumerate(WAR):
        if number:
            _ask(session.daemons[gateway], price)
        await_until(lambda gateway=gateway: _chosen(session) == gateway, WAIT_S, f"{gateway} at {price} msat")  # type: ignore[misc]
        before = carried(gateway)
        await_until(lambda gateway=gateway, before=before: carried(gateway) > before, what=f"traffic through {gateway}")  # type: ignore[misc]
    _ask(session.daemons["east"], 2)
    so_far, east = carried("west"), deals["east"]
    # Its contract ends when it wasn't used for a while, so that it may offer its new price.
    await_until(lambda: all(row["state"] == "closed" for row in east.sold()), WAIT_S, "the end of what isn't used")
    await_until(lambda: carried("west") - so_far > ALIKE_BYTES, WAIT_S, "traffic while both ask the same")
    assert _chosen(session) == "west"
    flow.kill()
    flow.wait()
    for deal in deals.values():
        deal.await_settled()
    for name, deal in deals.items():
        deal.assert_books_agree(refused=True)  # a slow gateway holds 8 packets until the accept comes
        sold = deal.sold()
        assert sum(map(used, sold)) == carried(name)
        prices = {row["price_msat_per_gib"] // MSAT_PER_KB for row in sold if used(row)}
        assert prices == ({5, 2} if name == "west" else {3})
        assert deal.earned()["charged_msat"] == sum(map(cost_msat, sold))
    session.assert_conserved()
    assert "default" not in client.run("ip", "route", "show", "table", "main", "proto", "225").stdout


def _ask(gateway: Daemon, price: int) -> None:
    """Have a gateway ask another price."""
    text = gateway.config.read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("SELL_PRICE")]
    said = gateway.reload("\n".join([*lines, f"SELL_PRICE: {price} msat", f"SELL_PRICE_MIN: {price} msat", ""]))
    assert said.returncode == 0, said.stderr


def _chosen(session: Session) -> str:
    """Return the gateway that the client has chosen, by its listing; "" if none."""
    listed = session.daemons["client"].ask("neighbours")
    found = [row["neighbour"] for row in listed if "0.0.0.0/0" in row["chosen_for"]]
    return next((name for name, key in session.keys.items() if key in found), "")
