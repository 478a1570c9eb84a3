"""What `ngp check` concludes from what passes and what doesn't, without a look at rules and routes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from ngp.config import parse
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import State
from ngp.core.messages import Address
from ngp.core.payment_node import PaymentNode
from ngp.core.peers import Neighbour
from ngp.core.prefixes import PackedPrefix
from ngp.core.rate import Rate
from ngp.core.selling.sale import Sale
from ngp.core.values import Check, Now
from ngp.core.world import World
from ngp.daemon import evidence

SETTINGS = parse("MESH_INTERFACES: [eth1]\n", Path("/etc/ngp/net.conf"))
THEY = b"\x02" * 32
ONE, TWO = ip_address("198.51.100.1"), ip_address("198.51.100.2")
SENT = [(7, ONE, 5.0), (7, TWO, 0.5)]


@pytest.fixture
def world() -> World:
    node = PaymentNode("regtest", real_money=False, settles_by_proof=False, least_amount_msat=1000)
    made = World(SETTINGS, node, lambda: b"\x01" * 16, Now(1_800_000_000, 1000.0))
    seller = Neighbour(THEY, ("eth1", b"mac"), 7, network="regtest", up=True, sells=True)
    made.peers.by_link[seller.link] = seller
    return made


def deal(world: World, kind: type[Sale] | type[Purchase], destination: str, **facts: Any) -> Sale | Purchase:
    """Add a contract that was opened half a minute ago and carried something to its destination just now."""
    given = {"used_to_bytes": 84, "opened_at_s": world.now.utc_s - 30, "state": State.ACTIVE, **facts}
    made: Any = kind(
        id=bytes([len(world.contracts)]) * 16,
        identity=THEY,
        link=("eth1", b"mac"),
        link_number=7,
        destination=PackedPrefix.of(ip_network(destination)),
        prices=((0, 1),),
        data_limit_bytes=1 << 20,
        lifetime_s=3600,
        **given,
    )
    made.rate.count(84, world.now.monotonic_s)
    made.returned_mono_s = world.now.monotonic_s if made.used_from_bytes else 0.0
    world.contracts[made.id] = made
    return made  # type: ignore[no-any-return]


def look(world: World, uncovered: list[tuple[int, Address, float]]) -> evidence.Seen:
    return evidence.look(world, world.now, uncovered)


def told(world: World, before: list[tuple[int, Address, float]], now: list[tuple[int, Address, float]]) -> list[Check]:
    return evidence.compare(look(world, before), look(world, now))


def test_a_seller_that_offers_nothing_for_what_we_send_is_a_warning(world: World) -> None:
    (line,) = told(world, SENT, SENT)
    assert line.ok and "eth1 offers no contract" in line.found and "198.51.100.1, 198.51.100.2" in line.found
    assert line.found.endswith("unless it is free there, it doesn't pass")
    assert "ngp check" in line.remedy and "10325" in line.remedy
    assert told(world, SENT, []) == []  # an offer came meanwhile
    assert told(world, SENT[:1], SENT[:1]) == []  # one alone may be free there
    assert told(world, [(7, ONE, 61.0), (7, TWO, 62.0)], [(7, ONE, 63.0), (7, TWO, 64.0)]) == []
    assert told(world, [(8, ONE, 5.0), (8, TWO, 5.0)], [(8, ONE, 5.0), (8, TWO, 5.0)]) == []  # nobody has that number


def test_contracts_opened_since_show_that_the_seller_hears_us(world: World) -> None:
    bought = deal(world, Purchase, "203.0.113.9", used_from_bytes=84, opened_at_s=world.now.utc_s)
    assert told(world, SENT, SENT) == []
    bought.opened_at_s -= 60
    assert len(told(world, SENT, SENT)) == 1
    before = look(world, SENT)
    bought.used_from_bytes += 84  # something came back between the two looks
    assert evidence.compare(before, look(world, SENT)) == []


@pytest.mark.parametrize(
    "why", [{"up": False}, {"sells": False}, {"why_not_bought": "too dear"}, {"network": "sandbox"}], ids=str
)
def test_sellers_of_which_another_line_says_why_nothing_is_bought(world: World, why: dict[str, Any]) -> None:
    (seller,) = world.peers.by_link.values()
    for name, value in why.items():
        setattr(seller, name, value)
    assert told(world, SENT, SENT) == []


def test_who_buys_nothing_misses_no_offer(world: World) -> None:
    world.settings = replace(SETTINGS, buys=False)
    assert told(world, SENT, SENT) == []


@pytest.mark.parametrize(("kind", "remedy"), [(Sale, "way back"), (Purchase, "on that neighbour")])
def test_contracts_from_which_nothing_comes_back_are_a_warning(world: World, kind: Any, remedy: str) -> None:
    deal(world, kind, "198.51.100.1")
    deal(world, kind, "2001:db8:ffff::1", used_from_bytes=84)  # the other IP version works
    (line,) = told(world, [], [])
    assert line.ok and line.found.startswith("IPv4") and "198.51.100.1/32" in line.found and remedy in line.remedy
    other = deal(world, kind, "198.51.100.2", used_from_bytes=1)  # so the first host is down
    assert told(world, [], []) == []
    other.returned_mono_s -= 5  # what was used since got no answer
    (line,) = told(world, [], [])
    assert "198.51.100.1/32, 198.51.100.2/32" in line.found
    before = look(world, [])
    other.used_from_bytes += 1
    assert evidence.compare(before, look(world, [])) == []


@pytest.mark.parametrize("kind", [Sale, Purchase])
def test_a_contract_that_was_taken_over_at_a_start_shows_nothing_until_it_is_used(world: World, kind: Any) -> None:
    taken = deal(world, kind, "198.51.100.1", used_from_bytes=84)
    taken.rate, taken.returned_mono_s = Rate(at_mono_s=world.now.monotonic_s), 0.0  # as `restore` begins it again
    assert not look(world, []).is_doubtful
    taken.rate.count(84, world.now.monotonic_s + 1)
    assert look(world, []).is_doubtful


def test_a_contract_that_nobody_sent_through_shows_nothing(world: World) -> None:
    deal(world, Sale, "198.51.100.1", used_to_bytes=0)
    assert not look(world, []).is_doubtful


def test_a_contract_that_nobody_used_in_the_last_minute_shows_nothing(world: World) -> None:
    deal(world, Sale, "198.51.100.1")
    assert len(told(world, [], [])) == 1
    world.now = Now(world.now.utc_s + 61, world.now.monotonic_s + 61)
    assert told(world, [], []) == []
