"""A tenant behind NAT rents from our landlord by `ngp rent`, and is reached from the internet at its own address."""

from __future__ import annotations

import base64
import json
import random
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from core_tests.daemon import ngp_command
from core_tests.lab import Lab
from core_tests.market import TENANT, V4, V6, Market, open_market
from core_tests.renting import NET_CONF, fingerprint_of, pay
from core_tests.shell import await_until
from core_tests.staticwire import Session, Tenant
from ngp.core.rental.terms import MONTH_S
from ngp.errors import ExitCode


@pytest.fixture
def market(lab: Lab) -> Market:
    return open_market(lab)


def test_a_tenant_behind_nat_is_reached_at_its_own_addresses(market: Market) -> None:
    market.done("trust", "let", "203.0.113.1", fingerprint_of(market.daemon))
    market.done("new", "let", "--name", "shop", "--yes", "--up")
    row = market.status()
    assert row["networks"] == ["198.51.100.1/32", "2001:db8:100::/64"] and row["state"] == "active"
    await_until(lambda: market.reached(V4), what="the rented IPv4 address answers")
    await_until(lambda: market.reached(V6), what="the rented IPv6 address answers")
    assert "192.168.7.1" in market.tenant.ip("route", "get", "203.0.113.3"), "the host's own route stays"

    once = market.rent("autopay", "--once")  # proven by an echo through the tunnel
    assert once.returncode == 0, once.stderr
    row = market.status()
    assert row["payments"] == 3 and row["proven"] is True
    (let,) = market.daemon.json("rentals")
    assert (let["paid_msat"], let["payments"]) == (row["paid_msat"], 3)

    market.done("down", "shop")
    assert not market.reached(V4)
    assert "198.51.100.1" not in market.tenant.ip("rule")
    waiting = market.status()
    assert waiting["proven"] is False and "isn't up" in waiting["why_not"]
    market.done("up", "shop")
    await_until(lambda: market.reached(V4), what="the rented IPv4 address answers again")


@pytest.mark.first
def test_without_credit_the_tunnel_is_off_until_autopay_pays_what_is_owed(market: Market) -> None:
    """At a rent of 50 sat a second the least credit lasts 20 s."""
    market.daemon.reload({**NET_CONF, "LANDLORD_RENT": f"{50 * MONTH_S} sat"})
    limits = f"TENANT_RENT_MAX: {50 * MONTH_S} sat\nTENANT_TARGET_CREDIT: 5000 sat\nTENANT_TARGET_TIME: 3 months\n"
    limits += "TENANT_PAYMENT_MAX: 9000 sat\n"  # so that it takes one payment
    (market.tenant.folder / "net.conf").write_text(TENANT + limits)
    market.done("trust", "let", "203.0.113.1", fingerprint_of(market.daemon))
    market.done("new", "let", "--yes", "--up")
    await_until(lambda: market.reached(V4), what="the rented address answers")
    await_until(lambda: market.status()["state"] == "reserved", timeout_s=60, what="the credit ends")
    assert not market.reached(V4)
    assert market.status()["credit_msat"] <= 0
    keeps = market.tenant.popen(*market.command("autopay"))
    await_until(lambda: market.reached(V4), timeout_s=60, what="the same address answers again")
    keeps.terminate()
    assert keeps.wait() == 128 + signal.SIGTERM
    row = market.status()
    assert row["state"] == "active" and row["networks"][0] == f"{V4}/32"


def test_a_landlord_that_was_killed_and_one_with_another_certificate(market: Market) -> None:
    market.done("trust", "let", "203.0.113.1", fingerprint_of(market.daemon))
    market.done("new", "let", "--yes", "--up")
    await_until(lambda: market.reached(V4), what="the rented IPv4 address answers")
    market.daemon.kill9()
    assert market.rent("status").returncode == ExitCode.OTHER
    market.daemon.start()
    assert market.status()["payments"] == 1
    await_until(lambda: market.reached(V4), what="the rented IPv4 address answers again")
    market.daemon.stop()
    (market.daemon.state_dir / "https.pem").unlink()
    market.daemon.start()
    other = market.rent("add", V4, "--yes")
    assert other.returncode == ExitCode.CONFIGURATION and "nothing was sent" in other.stderr
    market.done("trust", "let", "203.0.113.1", fingerprint_of(market.daemon))
    market.done("add", V4, "--amount", "500", "--yes")
    assert market.status()["payments"] == 2


def test_static_ip_with_its_published_file_sends_all_traffic_through_the_tunnel(market: Market, tmp_path: Path) -> None:
    home = market.tenant.folder / "home"
    words = ["env", f"HOME={home}", str(Path(ngp_command()[0]).with_name("staticIP"))]
    words += ["--rental_server_host", "203.0.113.1", "--rental_server_fingerprint", fingerprint_of(market.daemon)]
    waiting = market.tenant.popen(*words, "--json", "--amount", "1000", "AddCredit", stdout=subprocess.PIPE)
    assert waiting.stdout is not None
    asked = json.loads(waiting.stdout.readline())
    assert asked["amount_msat"] == 49_000_000

    with closing(Session("203.0.113.1", 443, connect=market.third.connect)) as session:
        pay(Tenant(session, base64.b64decode(asked["wireguard_key"])), asked["invoice"], tmp_path)
    rest = waiting.communicate(timeout=60)[0]
    assert waiting.returncode == 0 and json.loads(rest)[0]["state"] == "active"
    (conf,) = (home / ".StaticWire" / "WireGuardConfigFiles").iterdir()
    market.tenant.sh("wg-quick", "up", str(conf))
    await_until(lambda: market.reached(V4), what="the rented IPv4 address answers")
    await_until(lambda: market.reached(V6), what="the rented IPv6 address answers")
    assert conf.stem in market.tenant.ip("route", "get", "203.0.113.3"), "as published: all of the machine's traffic"
    (row,) = json.loads(market.tenant.sh(*words[:3], "--json", "GetRentalStatus"))
    assert row["networks"] == [f"{V4}/32", "2001:db8:100::/64"]
    market.tenant.sh("wg-quick", "down", str(conf))


def test_static_ip_is_tried_with_payments_that_the_sandboxs_operator_makes(market: Market) -> None:
    home = market.tenant.folder / "home"
    words = ["env", f"HOME={home}", str(Path(ngp_command()[0]).with_name("staticIP"))]
    words += ["--rental_server_host", "203.0.113.1", "--rental_server_fingerprint", fingerprint_of(market.daemon)]
    waiting = market.tenant.popen(*words, "--amount", "1000", "AddCredit", stdout=subprocess.PIPE)

    def rental() -> dict[str, object]:
        return dict(next(iter(market.daemon.json("rentals")), {}))

    await_until(lambda: rental().get("state") == "pending" and rental()["unpaid_invoice"], what="the rental waits")
    few = market.daemon.cli("server", f"payment {V4} 48000 sat")
    assert few.returncode == ExitCode.USAGE and "activation fee, 48000 sat" in few.stderr
    said = market.daemon.cli("server", f"payment {V4} 49000 sat").stdout
    assert "49000 sat (not real money) credited to rental" in said
    waiting.communicate(timeout=60)
    assert waiting.returncode == 0 and rental()["state"] == "active"
    first = str(rental()["id"])
    for written in (first, first[:8], str(rental()["wireguard_key"])):
        market.daemon.cli("server", f"payment {written} 100 sat")
    row = rental()
    assert (row["paid_msat"], row["payments"], row["unpaid_invoice"]) == (49_300_000, 4, None)
    market.daemon.cli("rentals", "release", first[:8], "--yes")
    over = market.daemon.cli("server", f"payment {first} 100 sat")
    assert over.returncode == ExitCode.USAGE and "is released" in over.stderr
    assert market.daemon.json("rentals", "--all")[0]["paid_msat"] == 49_300_000


@pytest.mark.first
def test_autopay_that_is_killed_at_any_moment_pays_once(market: Market, request: pytest.FixtureRequest) -> None:
    """Each round lets the target rise by one payment; AutoPay is killed at some moment, and then runs to its end."""
    rounds = request.config.getoption("--rounds") if request.config.getoption("--long") else 4
    chance, config = random.Random(7), market.tenant.folder / "net.conf"
    market.done("trust", "let", "203.0.113.1", fingerprint_of(market.daemon))
    market.done("new", "let", "--yes", "--up")
    target_sat = 1000
    for number in range(rounds):
        target_sat += 1000
        config.write_text(
            TENANT + f"BUDGET_DAY: 200000 sat\nTENANT_TARGET_CREDIT: {target_sat} sat\nTENANT_TARGET_TIME: 3 months\n"
            "TENANT_PAYMENT_MIN: 500 sat\n"
        )
        process = market.tenant.popen(*market.command("autopay"), stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.5, 2.5))
        process.kill()
        process.wait()
        market.done("autopay", "--once")
        (let,) = market.daemon.json("rentals")
        row = market.assert_paid_once(let, f"round {number}")
        assert -1000 < target_sat * 1000 - row["credit_msat"] < 501_000, f"round {number}"
