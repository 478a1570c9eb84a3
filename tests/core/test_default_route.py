"""A default route that is bought as a whole (BUY_DEFAULT_ROUTE): one contract for all destinations behind a gateway."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from mesh import DEFAULT, HOST, PLENTY, Mesh
from playbook import MSAT_PER_KB, Sim, account, bought, settings, tell

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.buying import default_route
from ngp.core.buying.fork import ForkState
from ngp.core.kernel import Fork, HeldPacket, Onward, Router, Verdict
from ngp.core.messages import Accept, Ask, Cancel, Prefix, Propose, Reject, RejectReason
from ngp.core.selling.sale import Sale
from ngp.core.settings import PriceRule, Settings
from ngp.daemon import checkup

WHOLE: dict[int, Prefix] = {4: DEFAULT, 6: ip_network("::/0")}
FIRST = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
OTHERS = {4: [f"203.0.113.{n}" for n in range(1, 21)], 6: [f"2001:db8:{n}::1" for n in range(1, 21)]}


def household(**changes: object) -> Settings:
    return settings(sells=False, buys_default_route=True, **changes)


def opened(sim: Sim, first: str = FIRST[4]) -> Sim:
    """Send a first packet, and wait until the default route is bought."""
    sim.up(first)
    sim.run(0.2)
    return sim


def sold(sim: Sim) -> dict[str, int]:
    """Return the bytes of each of the gateway's open contracts, by destination."""
    return {str(one.destination): one.used_bytes for one in sim.gateway.world.contracts.values()}


def replies(effects: list[fx.Effect]) -> list[object]:
    return [one.message for one in effects if isinstance(one, fx.Send)]


@pytest.mark.parametrize("version", [4, 6])
def test_after_the_first_destination_one_contract_carries_all_others_and_none_of_their_packets_waits(
    version: int,
) -> None:
    sim = opened(Sim(client=household()), FIRST[version])
    assert [type(one) for one in sim.sent(sim.client, Accept)] == [Accept] * 2
    assert [one.destination for one in sim.sent(sim.client, Ask)] == [WHOLE[version]]  # type: ignore[attr-defined]
    for host in OTHERS[version]:
        sim.up(host, 700)
        sim.down(host, 300)
        assert not sim.gateway.held
    sim.run(6)
    host = f"{FIRST[version]}/{32 if version == 4 else 128}"
    assert sold(sim) == {host: 1000, str(WHOLE[version]): 20 * 1000}
    assert bought(sim).billed_msat == account(sim).charged_msat > 0 and not bought(sim).disputed


def test_without_the_key_nothing_is_asked_and_an_offer_is_refused() -> None:
    sim = opened(Sim())
    assert not sim.sent(sim.client, Ask)
    effects = tell(sim, sim.client, Propose(b"w" * 16, DEFAULT, MSAT_PER_KB, 100_000, 60, 10, 0, 1))
    assert replies(effects) == [Reject(b"w" * 16, RejectReason.NOT_BUYING)]


@pytest.mark.parametrize(
    ("offered", "sends_to_host"),
    [("128.0.0.0/1", ""), ("2000::/3", ""), ("0.0.0.0/0", "198.51.100.9/32"), ("0.0.0.0/0", None)],
)
def test_a_part_of_it_is_refused_and_so_is_one_that_leads_elsewhere(offered: str, sends_to_host: str | None) -> None:
    sim = Sim(client=household())
    sim.client.sends_to_peer, sim.client.sends_to_host = sends_to_host is not None, sends_to_host or ""
    effects = tell(sim, sim.client, Propose(b"w" * 16, ip_network(offered), MSAT_PER_KB, 100_000, 60, 10, 0, 1))
    asked = [Ask(ip_network(sends_to_host), 0, 0)] if sends_to_host else []
    assert replies(effects) == [Reject(b"w" * 16, RejectReason.NOT_BUYING), *asked]


def test_what_is_reached_by_another_route_makes_nobody_ask() -> None:
    sim = Sim(client=household())
    sim.client.sends_to_host = f"{HOST}/32"
    opened(sim, HOST)
    assert list(sold(sim)) == [f"{HOST}/32"] and not sim.sent(sim.client, Ask)


def test_a_gateway_that_cannot_resell_its_default_route_refuses_and_each_host_is_bought_as_before() -> None:
    mesh = Mesh("abc", a=household(**PLENTY))
    mesh["b"].is_whole = False
    mesh.packet("a", "b")
    assert mesh["b"].sent(Reject) == [Reject(b"", RejectReason.UPSTREAM, destination=DEFAULT)]
    assert mesh["b"].sale("a").running and mesh["b"].verdicts == [Verdict.REPEAT]
    (neighbour,) = mesh["a"].world.peers.by_link.values()
    assert not neighbour.why_not_bought, "all of it can be bought"
    at = mesh["b"]
    other = HeldPacket(99, at.link("a"), ip_address("203.0.113.9"), at.onward)
    at.step(other)
    mesh.settle()
    assert len(mesh["a"].sent(Ask)) == 1 and len(mesh["a"].sent(Accept)) == 2, "asked once, and goes on by hosts"
    assert not [line.name for line in checkup.neighbours(mesh["a"].world, ["to-b"])], "its answer may be on its way"
    mesh.wait(default_route.AGAIN_S)
    (line,) = checkup.neighbours(mesh["a"].world, ["to-b"])
    assert (line.name, line.ok) == ("default route", True) and "doesn't sell 0.0.0.0/0 as a whole" in line.found
    at.step(HeldPacket(100, at.link("a"), ip_address("203.0.113.10"), at.onward))
    mesh.settle()
    assert len(mesh["a"].sent(Ask)) == 2


def test_a_server_that_never_answers_changes_nothing() -> None:
    sim = Sim(client=household())
    sim.silenced = {Ask}
    opened(sim)
    for host in OTHERS[4]:
        sim.up(host)
        sim.run(0.1)
    assert len(sold(sim)) == 21 and sim.passed == 21_000
    assert len(sim.sent(sim.client, Ask)) == 1


def test_a_price_that_is_too_high_for_all_of_it_is_refused_and_its_destinations_stay_for_sale() -> None:
    dear = PriceRule(ip_network("203.0.113.0/24"), 50 * MSAT_PER_KB)
    sim = opened(Sim(settings(prices=(dear,)), household()))
    assert sim.sent(sim.client, Ask)
    for number in (2, 3):
        sim.up(f"198.51.100.{number}")
        sim.run(1)
    assert sold(sim) == {f"198.51.100.{number}/32": 1000 for number in (1, 2, 3)}, "and no refusal is remembered"


@pytest.mark.parametrize("silenced", [set(), {Reject}], ids=["refused", "unanswered"])
def test_an_offer_that_nobody_takes_holds_no_packet_and_blocks_none(silenced: set[type]) -> None:
    sim = Sim()
    sim.silenced = silenced
    tell(sim, sim.gateway, Ask(DEFAULT, 0, 0))
    sim.run(1)
    assert ("0.0.0.0/0" in sold(sim)) == bool(silenced)
    for number in (1, 2):
        sim.up(f"198.51.100.{number}")
    sim.run(0.2)
    assert sim.passed == 2000 and not sim.gateway.held
    sim.run(30)
    assert "0.0.0.0/0" not in sold(sim)
    sim.up("198.51.100.3")
    sim.run(0.2)
    assert sim.passed == 3000


@pytest.mark.parametrize("asked", ["0.0.0.0/1", "128.0.0.0/1", "64.0.0.0/7", "2000::/3", "::/15"])
def test_a_part_of_a_default_route_is_sold_to_nobody(asked: str) -> None:
    sim, part = Sim(), ip_network(asked)
    refusal = Reject(b"", RejectReason.NOT_SELLING, destination=part)
    assert replies(tell(sim, sim.gateway, Ask(part, 0, 0))) == [refusal]
    assert not sim.gateway.world.contracts


THERE, PART = ip_address("203.0.113.9"), ip_network("203.0.113.0/24")
DEAR = settings(**{**PLENTY, "sell_msat_per_gib": 40 * MSAT_PER_KB})


def beside_a_dear_neighbour(most_msat_per_kb: int) -> tuple[Mesh, Sale]:
    """b has an uplink, and sold its default route to a. c sells a part dearly. b's kernel holds what a sends there."""
    mesh = Mesh("ab", a=household(**{**PLENTY, "buy_max_msat_per_gib": most_msat_per_kb * MSAT_PER_KB}))
    mesh.packet("a", "b")
    whole = mesh["b"].world.sales.exact(mesh["a"].identity, DEFAULT)
    assert whole is not None and whole.running
    mesh.add("c", "b")
    at, mesh["c"].world.settings, mesh["b"].route = mesh["b"], DEAR, "c"
    at.step(HeldPacket(99, at.link("a"), THERE, Onward(PART, Router(*at.link("c")))))
    mesh.settle()
    return mesh, whole


def test_what_goes_on_to_the_mesh_is_sold_by_itself_and_the_default_route_stays() -> None:
    mesh, whole = beside_a_dear_neighbour(50)
    at = mesh["b"]
    part = at.world.sales.find(mesh["a"].identity, THERE)
    assert part is not None and part.running and part.destination.prefix == PART
    cost = at.world.running_purchase(part.rests_on)
    assert cost is not None and part.price_msat_per_gib == cost.price_msat_per_gib * 11 // 10 == 44 * MSAT_PER_KB
    assert whole.running and whole.price_msat_per_gib == 5 * MSAT_PER_KB, "it doesn't cover what is bought of c"
    assert at.verdicts == [Verdict.REPEAT] * 2


def test_who_declines_a_dear_part_is_refused_there_and_keeps_the_default_route() -> None:
    mesh, whole = beside_a_dear_neighbour(10)
    at = mesh["b"]
    part = at.world.sales.find(mesh["a"].identity, THERE)
    assert part is not None and part.refused and part.destination.prefix == PART
    assert at.verdicts == [Verdict.REPEAT, Verdict.PROHIBIT] and whole.running
    assert not at.sent(Accept), "nothing was bought for it"


def test_a_packet_that_is_held_beside_the_running_contract_is_quoted_for_its_host() -> None:
    """The kernel holds it because it goes on to the mesh; to let it go again would hold it again, without end."""
    sim = opened(Sim(client=household()))
    host = ip_address("203.0.113.9")
    sim.gateway.held[99], sim.gateway.held_since[99] = sim.refusals.append, sim.now
    sim.happen(sim.gateway, HeldPacket(99, sim.client.link, host, Onward(None)))
    sim.run(0.1)
    assert "203.0.113.9/32" in sold(sim) and sim.refusals == [Verdict.REPEAT]


def test_it_is_renewed_by_data_and_by_time_and_no_packet_waits() -> None:
    small = {"contract_data_bytes": 200_000, "contract_time_s": 60}
    sim = opened(Sim(settings(**small), household(**small)))
    sim.flow("203.0.113.9", 20_000, 100)
    sim.run(6)
    assert len(sim.sent(sim.client, Accept)) > 10, "renewals"
    assert sorted(sold(sim)) == ["0.0.0.0/0"] and sold(sim)["0.0.0.0/0"] == 2_000_000
    assert bought(sim).billed_msat == account(sim).charged_msat and not sim.refusals


def test_it_goes_on_after_each_side_was_killed() -> None:
    sim = opened(Sim(client=household()))
    for node in (sim.gateway, sim.client):
        sim.crash(node)
        sim.up("203.0.113.9", 500)
        sim.run(1)
        assert not sim.gateway.held
    sim.run(10)
    assert sold(sim)["0.0.0.0/0"] == 1000
    assert len(sim.sent(sim.client, Ask)) == 1 and not bought(sim).disputed


def test_when_its_contract_is_over_the_next_destination_asks_for_it_again() -> None:
    sim = opened(Sim(client=household()))
    (whole,) = [one for one in sim.gateway.world.contracts.values() if one.destination.is_default]
    tell(sim, sim.client, Cancel(whole.id, "upstream"))
    sim.happen(sim.gateway, ev.BlockNeighbour(sim.client.identity, True))
    sim.run(1)
    sim.happen(sim.gateway, ev.BlockNeighbour(sim.client.identity, False))
    sim.run(1)
    opened(sim, "203.0.113.9")
    assert "0.0.0.0/0" in sold(sim) and len(sim.sent(sim.client, Ask)) == 2


@pytest.mark.parametrize("restarts", [False, True])
def test_without_the_key_a_running_contract_ends(restarts: bool) -> None:
    sim, without = opened(Sim(client=household())), settings(sells=False)
    sim.client.settings = without
    if restarts:
        sim.crash(sim.client)
    else:
        sim.happen(sim.client, ev.SettingsChanged(without))
    sim.run(1)
    opened(sim, "203.0.113.9")
    assert sorted(sold(sim)) == ["198.51.100.1/32", "203.0.113.9/32"] and sim.passed == 2000


def test_several_gateways_are_compared_by_a_host_not_by_the_default_route() -> None:
    sim = Sim(client=household(choose_routes=True))
    forks = sim.client.world.buying.forks
    two = tuple(Router("eth1", bytes([2, 0, 0, 0, 0, n]), ip_address(f"192.0.2.{n}")) for n in (1, 2))
    forks.take({DEFAULT: ForkState(Fork(DEFAULT, two))})
    opened(sim)
    sim.run(20)
    sim.up("203.0.113.9")
    sim.run(1)
    assert forks.all[DEFAULT].sample == ip_network(f"{FIRST[4]}/32")
