"""A tenant that changes its network, and one whose rented address somebody outside looks at before more is paid."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from core_tests.lab import BRIDGE, End, Lab
from core_tests.market import TENANT, V4, V6, Market, open_market
from core_tests.renting import NET_CONF, fingerprint_of
from core_tests.shell import await_until
from core_tests.topologies import POOL_V6

LIMITS = f"{TENANT}BUDGET_DAY: 200000 sat\nTENANT_TARGET_TIME: 3 months\nTENANT_PAYMENT_MAX: 9000 sat\n"


def target(market: Market, sat: int, more: str = "") -> None:
    """Write net.conf with another credit to keep; AutoPay notices it at once."""
    (market.tenant.folder / "net.conf").write_text(f"{LIMITS}TENANT_TARGET_CREDIT: {sat} sat\n{more}")


@pytest.mark.parametrize("all_traffic", [False, True])
def test_a_tenant_that_changes_its_network_keeps_tunnel_and_autopay(lab: Lab, all_traffic: bool) -> None:
    """First behind one router, then behind another one, with another address inside and outside."""
    market = open_market(lab)
    tenant, other = market.tenant, lab.host("other", forward=True)
    lab.link(End(other, "wan0", "203.0.113.7/24"), End(lab.hosts["internet"], "port9"))
    lab.hosts["internet"].ip("link", "set", "port9", "master", BRIDGE)
    lab.link(End(other, "lan0", "10.9.8.1/24"), End(tenant, "eth1"))
    other.masquerade("wan0")
    lab.await_carriers()
    more = "TENANT_ALL_TRAFFIC: yes\n" if all_traffic else ""
    target(market, 2000, more)
    market.done("trust", "let", "203.0.113.1", fingerprint_of(market.daemon))
    market.done("new", "let", "--name", "shop", "--yes", "--up")
    await_until(lambda: market.reached(V4) and market.reached(V6), what="the rented addresses answer")
    keeps = tenant.popen(*market.command("autopay"))
    await_until(lambda: market.status()["payments"] == 2, what="AutoPay fills the credit")
    (let,) = market.daemon.json("rentals")
    assert let["endpoint"].startswith("203.0.113.2:")

    tenant.ip("link", "set", "eth0", "down")
    tenant.add_address("eth1", "10.9.8.2/24")
    tenant.route("default", via="10.9.8.1")
    await_until(lambda: market.reached(V4) and market.reached(V6), timeout_s=60, what="they answer elsewhere")
    (let,) = market.daemon.json("rentals")
    assert let["endpoint"].startswith("203.0.113.7:")
    target(market, 4000, more)
    await_until(lambda: market.status()["payments"] == 3, what="the same AutoPay goes on")
    assert keeps.poll() is None


SERVER = """
import http.server, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ping = subprocess.run(["ping", "-n", "-c", "1", "-W", "1", sys.argv[1]], stdout=subprocess.DEVNULL)
        self.send_response(503 if ping.returncode else 204)
        self.end_headers()
    def log_message(self, *words):
        pass
http.server.HTTPServer(("203.0.113.3", 8080), Handler).serve_forever()
"""
PROBE = f"""#!/bin/sh
echo once >> "$(dirname "$0")/probed"
exec {shlex.quote(sys.executable)} -c '
from urllib.request import urlopen
urlopen("http://203.0.113.3:8080", timeout=5)'
"""


def test_payment_waits_until_somebody_outside_reaches_the_rented_address(lab: Lab) -> None:
    market = open_market(lab)
    probe, probed = (market.tenant.folder / name for name in ("probe", "probed"))
    probe.write_text(PROBE)
    probe.chmod(0o755)
    more = f"TENANT_PROBE: {probe}\n"
    target(market, 2000, more)
    market.third.popen(sys.executable, "-c", SERVER, V4)
    market.done("trust", "let", "203.0.113.1", fingerprint_of(market.daemon))
    market.done("new", "let", "--name", "shop", "--yes", "--up")
    await_until(lambda: market.reached(V4), what="the rented address answers")
    market.third.ip("route", "replace", "blackhole", f"{V4}/32")  # the tunnel works, but the internet doesn't reach it
    log = Path(market.tenant.folder / "state" / "tenant" / "debug.log")
    keeps = market.tenant.popen(*market.command("autopay"))
    await_until(lambda: log.exists() and "payment of" in log.read_text(), what="AutoPay says why it waits")
    assert f"the probe '{probe}' ended with 1; payment of" in log.read_text() and "waits until" in log.read_text()
    row = market.status()
    assert row["payments"] == 1 and row["proven"] is False and "the probe" in row["why_not"]

    market.third.ip("route", "del", "blackhole", f"{V4}/32")
    keeps.send_signal(signal.SIGHUP)  # it looks at once; otherwise within a minute
    await_until(lambda: market.status()["payments"] == 2, what="AutoPay pays")
    assert market.status()["proven"] is True and keeps.poll() is None

    probe.write_text("#!/bin/sh\nsleep 4321 & sleep 4321\n")
    target(market, 5000, more)
    began = time.monotonic()
    await_until(lambda: "nothing within 20 s" in log.read_text(), timeout_s=60, what="a probe that hangs is ended")
    assert time.monotonic() - began < 40 and market.daemon.json("rentals")[0]["payments"] == 2
    assert "4321" not in market.tenant.sh("ps", "-o", "args", "-p", ",".join(map(str, market.tenant.pids())))
    assert probed.read_text().count("once") >= 2


def test_a_rental_without_ipv4_is_proven_although_the_landlords_end_is_ipv4(lab: Lab) -> None:
    market = open_market(lab)
    market.daemon.reload(NET_CONF | {"LANDLORD_OFFERS": [{"name": "six", "ipv6": 64}], "LANDLORD_POOLS": [POOL_V6]})
    target(market, 2000)
    market.done("trust", "let", "203.0.113.1", fingerprint_of(market.daemon))
    market.done("new", "let", "--name", "shop", "--yes", "--up")
    await_until(lambda: market.reached(V6), what="the rented address answers")
    market.landlord.route("::/0", via="2001:db8:2::3")
    assert not market.tenant.ip("-6", "route", "show", "default"), "a machine without IPv6 but for the rented one"
    assert market.rent("autopay", "--once").returncode == 0
    assert market.status()["payments"] == 2
    market.tenant.add_address("eth0", "2001:db8:7::2/64")
    market.tenant.route("::/0", via="2001:db8:7::1")
    assert market.status()["proven"] is True, "a default route elsewhere changes nothing"
    market.daemon.cli("rentals", "off", V6, "--yes")
    refused = market.status()
    assert refused["proven"] is False and "the landlord doesn't answer through the tunnel" in refused["why_not"]
