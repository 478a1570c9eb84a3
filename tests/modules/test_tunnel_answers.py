"""The tunnel's own packets leave by LANDLORD_OUTSIDE where the default route leads elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tunnel_lab import LANDLORD, OUTSIDE, POOLS, PORT, Built, tunnel_lab

from core_tests.lab import End
from ngp.modules.tunnel import answers

TABLE = 77
OTHER = {4: "203.0.113.65", 6: "2001:db8:3::1"}  # the landlord's address on the uplink of the default route
CALLER = {4: "198.18.0.9", 6: "2001:db8:77::9"}


@pytest.fixture
def built(tunnel_kind: str) -> Iterator[Built]:
    """A landlord whose default route leads to eth0, while packets from wan0's addresses leave by wan0."""
    with tunnel_lab(tunnel_kind) as (lab, tunnel):
        lab.lab.link(End(lab.landlord, "eth0", f"{OTHER[4]}/26", f"{OTHER[6]}/64"), End(lab.lab.host("isp"), "lan0"))
        for version, everywhere in ((4, "default"), (6, "::/0")):
            lab.landlord.ip(f"-{version}", "route", "del", everywhere)
            lab.landlord.route(everywhere, device="eth0")
            route = ("via", OUTSIDE[version], "dev", "wan0", "table", str(TABLE))
            lab.landlord.ip(f"-{version}", "route", "add", everywhere, *route)
        yield lab, tunnel


def lead_by_source(built: Built, version: int, word: str = "add") -> None:
    """Make (or delete) the operator's rule for packets from the landlord's address at wan0."""
    built[0].landlord.ip(f"-{version}", "rule", word, "from", LANDLORD[version], "lookup", str(TABLE))


def way_of(built: Built, version: int, *words: str, port: int = PORT) -> str:
    """Return by which interface a UDP packet of the landlord's own leaves. Args: words: more of `ip route get`."""
    question = ("route", "get", CALLER[version], *words, "ipproto", "udp", "sport", str(port), "dport", "40000")
    (row,) = json.loads(built[0].landlord.ip(f"-{version}", "-j", *question))
    return str(row["dev"])


@pytest.mark.parametrize("version", [4, 6])
def test_what_has_no_source_yet_leaves_where_the_tunnels_address_does(built: Built, version: int) -> None:
    lab, tunnel = built
    lead_by_source(built, version)
    tunnel.set_up(lab.desired(), [])
    assert way_of(built, version) == "wan0"
    assert way_of(built, version, "from", OTHER[version]) == "eth0", "a source that was chosen stays right"
    assert way_of(built, version, port=PORT + 1) == "eth0", "other programs of this host aren't touched"
    tunnel.set_up(lab.desired(port=PORT + 1), [])
    assert (way_of(built, version), way_of(built, version, port=PORT + 1)) == ("eth0", "wan0")


@pytest.mark.parametrize("version", [4, 6])
def test_the_rule_follows_the_operators_and_goes_with_the_tunnel(built: Built, version: int) -> None:
    lab, tunnel = built
    before = lab.landlord.ip(f"-{version}", "rule")
    tunnel.set_up(lab.desired(), [])
    assert lab.landlord.ip(f"-{version}", "rule") == before, "where nothing leads elsewhere, no rule is needed"
    lead_by_source(built, version)
    assert tunnel.stands() and way_of(built, version) == "wan0"
    lead_by_source(built, version, "del")
    assert tunnel.stands() and way_of(built, version) == "eth0"
    lead_by_source(built, version)
    tunnel.set_up(lab.desired(), [])
    tunnel.clean_up()
    lead_by_source(built, version, "del")
    assert lab.landlord.ip(f"-{version}", "rule") == before


def test_rules_of_a_killed_daemon_are_taken_over_and_other_rules_stay(built: Built) -> None:
    lab, tunnel = built
    lab.landlord.ip(*f"rule add iif lo ipproto udp sport 9 priority {answers.PRIORITY} lookup 9".split())
    for version in (4, 6):
        lead_by_source(built, version)
    tunnel.set_up(lab.desired(port=PORT + 1), [])
    tunnel.close()  # as a killed daemon: nothing is removed
    tunnel.set_up(lab.desired(), [])
    for version in (4, 6):
        assert (way_of(built, version), way_of(built, version, port=PORT + 1)) == ("wan0", "eth0")
    tunnel.clean_up()
    assert "sport 9" in lab.landlord.ip("rule") and str(PORT) not in lab.landlord.ip("rule")


def test_an_interface_outside_that_is_gone_leaves_no_rule(built: Built) -> None:
    lab, tunnel = built
    lead_by_source(built, 4)
    tunnel.set_up(lab.desired(pools=POOLS[:1]), [])
    assert way_of(built, 4) == "wan0"
    lab.landlord.ip("link", "delete", "wan0")
    assert tunnel.stands()
    assert f"sport {PORT}" not in lab.landlord.ip("rule")
