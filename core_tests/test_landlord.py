"""A landlord's operator: a router without neighbours lets addresses, and its verbs show and do what is true."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from core_tests.lab import Lab
from core_tests.renting import NET_CONF, TUNNEL, Renting, open_renting
from core_tests.shell import await_until
from core_tests.staticwire import wg_text
from ngp.core.rental.terms import MONTH_S
from ngp.errors import ExitCode

SAT = 1000
FEE, RENT = 48_000 * SAT, 24_000 * SAT


@pytest.fixture
def renting(lab: Lab, tmp_path: Path) -> Renting:
    return open_renting(lab, tmp_path)


def test_what_is_let_is_listed_switched_off_and_on_and_given_back(renting: Renting) -> None:
    daemon = renting.daemon
    tenant = renting.rent()
    row = renting.row(tenant)
    assert (row["state"], row["networks"]) == ("active", ["198.51.100.1/32", "2001:db8:100::/64"])
    assert (row["rent_msat_per_month"], row["activation_fee_msat"], row["face"]) == (RENT, FEE, "https")
    letting = daemon.json("status")["letting"]
    assert (letting["active"], letting["pending"], letting["free"]) == (1, 0, 6)
    assert letting["faces"] == ["https 203.0.113.1 port 443"] and letting["tunnel"]
    (offer,) = daemon.json("rentals", "offers")
    assert (offer["free"], offer["networks"]) == (6, ["IPv4 /32", "IPv6 /64"])

    assert daemon.cli("rentals", "off", "198.51.100.1", "--yes").stdout.strip().endswith("is off")
    assert renting.row(tenant)["state"] == "off"
    daemon.await_logged("is off: switched off by the operator")
    assert daemon.cli("rentals", "on", row["id"][:8]).stdout.strip().endswith("is active")
    released = daemon.cli("rentals", "release", wg_text(tenant.key), "--yes").stdout
    assert "is released: its networks may be let again; the tenant still has " in released
    assert daemon.json("rentals") == []
    assert renting.row(tenant, "--all")["reason"] == "released by the operator"
    assert renting.row(renting.rent())["networks"] == row["networks"], "to the next"


def test_rentals_survive_a_kill_and_a_stop_and_the_books_have_them(renting: Renting) -> None:
    daemon = renting.daemon
    tenant = renting.rent(2000)
    before = renting.row(tenant)
    daemon.kill9()
    daemon.start()
    after = renting.row(tenant)
    for key in ("id", "state", "networks", "paid_msat", "activation_fee_msat", "started_at"):
        assert after[key] == before[key]
    assert after["credit_msat"] <= before["credit_msat"]
    daemon.stop()
    stopped = renting.row(tenant)
    assert (stopped["state"], stopped["networks"], stopped["endpoint"]) == ("active", before["networks"], None)
    kinds = [line["kind"] for line in daemon.json("ledger") if line["neighbour"] == before["id"]]
    assert "activation" in kinds and "payment" in kinds
    (account,) = daemon.json("accounts")
    assert (account["neighbour"], account["networks"]) == (before["id"], before["networks"])


def test_rent_is_charged_to_the_second_when_its_credit_ends(renting: Renting) -> None:
    daemon = renting.daemon
    assert daemon.reload(NET_CONF | {"LANDLORD_RENT": f"{MONTH_S // 2} sat"}).returncode == 0
    tenant = renting.rent(1000)
    row = renting.row(tenant)
    assert row["rent_msat_per_month"] == MONTH_S // 2 * SAT
    assert daemon.reload(NET_CONF | {"LANDLORD_RENT": f"{MONTH_S * 500} sat"}).returncode == 0
    assert renting.row(tenant)["rent_msat_per_month"] == MONTH_S // 2 * SAT, "until its next payment"
    quick = renting.rent(1000)
    await_until(lambda: renting.row(quick)["state"] == "reserved", what="the end of two seconds' credit")
    row = renting.row(quick)
    rents = [line for line in daemon.json("ledger") if line["neighbour"] == row["id"] and line["kind"] == "rent"]
    assert sum(line["amount_msat"] for line in rents) == -1000 * SAT, "all of its credit"
    assert row["credit_msat"] <= 0 and row["reserved_until"] > row["paid_until"]


def test_a_reload_takes_nothing_away_that_is_let(renting: Renting) -> None:
    daemon = renting.daemon
    tenant = renting.rent()
    fewer = NET_CONF | {"LANDLORD_POOLS": ["2001:db8:100::/61"]}
    for without in (fewer, {"MESH_INTERFACES": "wan0"}):
        refused = daemon.reload(without)
        assert refused.returncode == ExitCode.CONFIGURATION
        assert renting.row(tenant)["id"][:8] in refused.stderr and "ngp rentals release RENTAL" in refused.stderr
        assert renting.row(tenant)["state"] == "active"
    daemon.cli("rentals", "release", "198.51.100.1", "--yes")
    assert daemon.reload(fewer).stdout.startswith("applied: LANDLORD_POOLS")
    assert daemon.json("rentals", "offers")[0]["networks"] == ["IPv6 /64"]
    assert daemon.reload({"MESH_INTERFACES": "wan0"}).returncode == 0
    assert daemon.json("status")["letting"] is None and daemon.json("rentals", "offers") == []


def test_a_face_that_could_not_open_is_opened_by_the_next_reload(renting: Renting) -> None:
    daemon = renting.daemon
    elsewhere = NET_CONF | {"LANDLORD_HTTPS": ["203.0.113.1:443", "203.0.113.9:443"]}
    for _ in range(2):
        refused = daemon.reload(elsewhere)
        assert refused.returncode == ExitCode.OTHER  # it may come by itself
        assert "net.conf is applied, but tenants can't use all of it: " in refused.stderr
        assert "203.0.113.9" in refused.stderr and refused.stderr.strip().endswith("then reload again")
    renting.rent()
    renting.router.ip("address", "add", "203.0.113.9/24", "dev", "wan0")
    assert daemon.reload(elsewhere).returncode == 0
    with closing(renting.outside.connect(("203.0.113.9", 443), 10.0)) as connection:
        assert connection.getpeername() == ("203.0.113.9", 443)


def test_a_start_before_the_address_of_a_face_is_there_is_worth_a_retry(lab: Lab, tmp_path: Path) -> None:
    """As at a boot. After this exit code systemd tries again, after that of other refusals by the kernel it doesn't."""
    renting = open_renting(lab, tmp_path, start=False, LANDLORD_HTTPS="203.0.113.7:443")
    refused = renting.daemon.try_start()
    assert refused.returncode == ExitCode.OTHER and "LANDLORD_HTTPS 203.0.113.7:443" in refused.stdout
    renting.router.add_address("wan0", "203.0.113.7/32")
    renting.daemon.start()


def test_a_reload_changes_the_rate_of_tenants_that_are_there(renting: Renting) -> None:
    daemon = renting.daemon
    renting.rent()
    assert "bytes/second" not in renting.rules()
    assert daemon.reload(NET_CONF | {"LANDLORD_RATE": "64 kB/s"}).returncode == 0
    assert f"{64 << 10} bytes/second" in renting.rules() or "64 kbytes/second" in renting.rules()
    assert daemon.reload(NET_CONF).returncode == 0
    assert "bytes/second" not in renting.rules()


def test_a_gateway_lets_too_and_its_tunnel_is_no_mesh_interface(renting: Renting) -> None:
    renting.router.ip("link", "add", "mesh0", "type", "veth", "peer", "name", "far0")
    renting.router.ip("link", "set", "mesh0", "up")
    gateway = NET_CONF | {"MESH_INTERFACES": "all", "IGNORE_INTERFACE": ["wan0", "far0"]}
    assert renting.daemon.reload(gateway).returncode == 0
    tenant = renting.rent()
    for _ in range(2):
        assert renting.daemon.json("status")["interfaces"] == ["mesh0"]
        assert renting.row(tenant)["state"] == "active"
        renting.daemon.kill9()
        renting.daemon.start()


def test_check_has_the_landlords_lines_with_and_without_a_daemon(renting: Renting) -> None:
    daemon = renting.daemon
    renting.rent()
    place = ("--config", str(daemon.config))

    def lines() -> dict[str, dict[str, Any]]:
        return {line["name"]: line for line in json.loads(daemon.cli("check", "--json", *place).stdout)}

    assert "pools when stopped" not in lines(), "without a default route nothing is sent back"
    renting.router.route("default", via="203.0.113.2")
    renting.router.route("::/0", via="2001:db8:2::2")
    for family, pool in (("-4", "198.51.100.0/29"), ("-6", "2001:db8:100::/61")):
        assert "pools when stopped" in lines()
        renting.router.ip(family, "route", "add", "unreachable", pool, "metric", "4294967295")
    beside = lines()
    assert "fingerprint" in beside["https"]["found"] and "mesh interfaces" not in beside
    assert beside[f"interface {TUNNEL}"]["found"].startswith("the landlord's tunnel")
    assert not [line for line in beside.values() if not line["ok"] or line["remedy"]], "nothing is amiss"
    daemon.stop()
    alone = lines()
    assert alone["https"]["found"] == beside["https"]["found"]
    daemon.configure(NET_CONF | {"LANDLORD_OUTSIDE": "wan7"})
    missing = lines()["interface wan7"]
    assert not missing["ok"] and missing["found"] == "LANDLORD_OUTSIDE: no interface has this name"
    started = daemon.cli("start", *place)
    assert started.returncode == 0 and "WARNING interface wan7: LANDLORD_OUTSIDE" in started.stderr
