"""What is rented is routed on to machines behind the tenant, or let on to tenants of its own.

A lets a prefix to B, which is behind NAT; B lets parts of it to C, also behind NAT. A third party reaches C.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace

import pytest

from core_tests import traffic
from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.market import V6, Market, open_market, place_of
from core_tests.renting import NET_CONF, fingerprint_of
from core_tests.shell import await_until
from ngp.errors import ExitCode

POOLS = ["198.51.100.0/28", "2001:db8:100::/52"]
LARGE = {"name": "large", "ipv4": 29, "ipv6": 56}


def is_reached(host: Host, address: str) -> bool:
    return traffic.ping(host, address, wait_s=1).received == 1


def test_the_rest_of_an_ipv6_subnet_is_routed_on_to_machines_behind(lab: Lab) -> None:
    market = open_market(lab)
    tenant, behind = market.tenant, lab.host("behind")
    lab.link(End(tenant, "lan0"), End(behind, "eth0", v6="2001:db8:100::5/64"))
    tenant.add_address("lan0", "fe80::1/64")
    behind.route("::/0", via="fe80::1", device="eth0")
    tenant.forward()
    tenant.route("2001:db8:100::/64", device="lan0")
    market.done("trust", "let", "203.0.113.1", fingerprint_of(market.daemon))
    market.done("new", "let", "--name", "shop", "--yes", "--up")
    own = tenant.ip("address", "show", "dev", market.status()["id"])
    assert f"{V6}/128" in own, "the tunnel has the first address that isn't the routers'"
    await_until(lambda: market.reached(V6), what="the tunnel's own address answers")
    await_until(lambda: market.reached("2001:db8:100::5"), what="the machine behind answers")
    assert is_reached(behind, market.third.address("wan0", 6)), "and reaches the internet with its rented address"
    direct = json.loads(tenant.ip("-6", "-j", "route", "get", "2001:db8:100::5", "from", V6))
    assert direct[0]["dev"] == "lan0", "not by the landlord"


@dataclass
class Chain:
    """A lets to B, B to C."""

    a: Market
    b: Market
    c: Host


@pytest.fixture
def chain(lab: Lab) -> Chain:
    a = open_market(lab)
    nat, c = lab.hosts["nat"], lab.host("c")
    lab.link(End(nat, "lan1", "192.168.8.1/24"), End(c, "eth0", "192.168.8.2/24"))
    c.route("default", via="192.168.8.1")
    nat.route("198.51.100.0/28", via="203.0.113.1")
    a.third.route("198.51.100.0/28", via="203.0.113.1")
    a.third.route("2001:db8:100::/52", via="2001:db8:2::1")
    lab.await_carriers()
    a.daemon.reload(NET_CONF | {"LANDLORD_POOLS": POOLS, "LANDLORD_OFFERS": [LARGE]})
    a.done("trust", "a", "203.0.113.1", fingerprint_of(a.daemon))
    a.done("new", "a", "--name", "prefix", "--yes", "--up")
    row, middle = a.status(), a.tenant
    assert row["networks"] == ["198.51.100.0/29", "2001:db8:100::/56"]
    middle.forward()
    daemon = middle.daemon(
        {
            "LANDLORD": True,
            "LANDLORD_POOLS": [
                {"prefix": "198.51.100.0/29", "except": "198.51.100.0/32"},
                {"prefix": "2001:db8:100::/56", "except": "2001:db8:100::/64"},
            ],
            "LANDLORD_OUTSIDE": row["id"],
            "LANDLORD_INTERFACE": f"let{secrets.token_hex(4)}",
            "LANDLORD_HTTPS": "198.51.100.0:443",
            "LANDLORD_PORT": 51821,
            "LANDLORD_MTU": 1340,
        }
    )
    config, state_dir = place_of(c)
    b = replace(a, daemon=daemon, landlord=middle, tenant=c, config=config, state_dir=state_dir)
    return Chain(a, b, c)


def test_what_is_rented_is_let_on_and_ends_with_the_rental(chain: Chain) -> None:
    a, b = chain.a, chain.b
    lines = {line["name"]: line for line in b.daemon.json("check", "--config", str(b.daemon.config))}
    outside = a.status()["id"]
    assert f"packets from it leave by {outside}" in lines["way out of 2001:db8:100:80::/57"]["found"], lines.keys()
    assert not [line for name, line in lines.items() if name.startswith(("pool ", "way out")) and line["remedy"]]

    b.done("trust", "b", "198.51.100.0", fingerprint_of(b.daemon))
    b.done("new", "b", "--name", "part", "--yes", "--up")
    v4, v6 = b.status()["networks"]
    assert v4.startswith("198.51.100.") and v6.startswith("2001:db8:100:") and v6.endswith("/64")
    addresses = v4.partition("/")[0], v6.replace("::/64", "::1")
    await_until(lambda: all(is_reached(a.third, each) for each in addresses), what="the third party reaches C")
    assert is_reached(chain.c, "203.0.113.3"), "C's own route stays"
    assert b.rent("autopay", "--once").returncode == 0 and b.status()["proven"], "an echo through both tunnels"

    a.daemon.cli("rentals", "release", "198.51.100.0", "--yes")
    for address in addresses:
        assert not is_reached(a.third, address)
    refused = b.rent("autopay", "--once")
    assert refused.returncode == ExitCode.OTHER and "landlord 198.51.100.0" in refused.stderr, refused.stderr
    (let,) = b.daemon.json("rentals")
    assert let["state"] == "active", "B's tenant keeps its credit with B"
    assert a.rent("autopay", "--once").returncode != 0, "B pays no more for what was released"


def test_the_check_says_that_packets_leave_elsewhere(chain: Chain) -> None:
    chain.a.done("down", "prefix")
    chain.a.done("up", "prefix")
    for rule in json.loads(chain.b.landlord.ip("-N", "-j", "-6", "rule")):
        if rule.get("src") == "2001:db8:100::":
            chain.b.landlord.ip("-6", "rule", "del", "priority", str(rule["priority"]))
    chain.b.landlord.route("::/0", device="eth0")
    lines = {line["name"]: line for line in chain.b.daemon.json("check", "--config", str(chain.b.daemon.config))}
    warned = lines["way out of 2001:db8:100:80::/57"]
    assert "leave by eth0, not by" in warned["found"] and "ngp rent up RENTAL" in warned["remedy"]
