"""A fork in use: a client that may pay either of two gateways asks both, and leaves one that fails it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from mesh import DEFAULT, Mesh
from playbook import settings

from ngp.core import events as ev
from ngp.core.buying import choosing
from ngp.core.kernel import Fork, Hint, HintKind, Router
from ngp.core.messages import Ask, Propose
from ngp.core.settings import Settings
from ngp.core.timers import Due

PLENTY = {"grace_data_bytes": 1 << 30, "grace_time_s": 3600, "buy_max_msat_per_gib": 9000}
SAMPLE = ip_network("198.51.100.1/32")


def price(msat_per_gib: int, **more: object) -> Settings:
    return settings(**PLENTY, sell_msat_per_gib=msat_per_gib, sell_min_msat_per_gib=msat_per_gib, **more)


class Fork2(Mesh):
    """A client `c` with the gateways `w`, to which its own route leads, and `e`."""

    def __init__(self, west: Settings, east: Settings, chosen: str = "", **more: object) -> None:
        client = settings(**PLENTY, sells=False, choose_routes=True, **more)
        super().__init__("cwe", c=client, w=west, e=east)
        self["c"].route, self["w"].route, self["e"].route = "w", "", ""
        self.introduce("c", "e")
        self.answers = {"w", "e"}
        self.see(chosen=chosen)

    def see(self, gateways: str = "we", chosen: str = "") -> None:
        """Have the client's host tell of the ways to everywhere."""
        routers = tuple(self.router(name) for name in gateways)
        if chosen:
            self["c"].routes = {DEFAULT: self.router(chosen)}
        self["c"].step(ev.ForksSeen((Fork(DEFAULT, routers, self.router(chosen) if chosen else None),)))

    def router(self, name: str) -> Router:
        return Router(*self["c"].link(name))

    @property
    def way(self) -> str:
        """The gateway to which the client's packets go."""
        led = self["c"].routes.get(DEFAULT)
        return next((name for name in "we" if led is not None and led == self.router(name)), self["c"].route)

    def send(self, seconds: float, size: int = 1000) -> None:
        """Have the client send a packet each 0.25 s, and answers come for those through gateways that carry."""
        for _ in range(int(seconds * 4)):
            way = self["c"].route = self.way
            if self["w"].world.sales.find(self["c"].identity, SAMPLE.network_address) is None or way == "e":
                self.packet("c", way)
            bought = self["c"].world.purchases.find(self[way].identity, SAMPLE.network_address)
            if bought is not None:
                count = self["c"].counts.setdefault(bought.id, [0, 0])
                count[0] += size
                count[1] += size if way in self.answers else 0
                self["c"].step(ev.UsageRead((self["c"].reading(bought.id),)))
            self.settle()
            self.wait(0.25)

    def sells_whole(self, name: str) -> bool:
        """Say whether the client has bought a gateway's default route."""
        found = self["c"].world.purchases.exact(self[name].identity, DEFAULT)
        return found is not None and found.running

    def bought(self, name: str) -> int:
        """Return what the client sent through a gateway."""
        found = self["c"].world.purchases.find(self[name].identity, SAMPLE.network_address)
        return found.used_to_bytes if found is not None else 0


def test_the_cheaper_one_is_chosen_and_bought_from_by_its_quote() -> None:
    net = Fork2(price(5000), price(2000))
    net.send(2.0)
    assert net.way == "w", "at first all stays as it is"
    net.send(2.0)
    assert net.way == "e"
    assert net["c"].purchase("e").running and net["c"].purchase("w").running
    assert net["c"].purchase("e").price_msat_per_gib == 2000


def test_each_neighbour_is_listed_with_the_price_by_which_it_is_compared_the_chosen_one_too() -> None:
    net = Fork2(price(5000), price(2000))
    net.send(5.0)
    assert net.way == "e"
    world = net["c"].world
    there = {name: world.peers.by_link[net["c"].link(name)] for name in "we"}
    listed = {name: choosing.offers_of(world, one) for name, one in there.items()}
    assert listed == {"w": [(SAMPLE, 5000)], "e": [(SAMPLE, 2000)]}
    state = world.buying.forks.all[DEFAULT]
    state.offers.clear()  # as for one that carried from the first packet on, and was never asked
    assert choosing.offers_of(world, there["e"]) == [(SAMPLE, 2000)]


def test_one_that_was_left_is_asked_for_its_present_price() -> None:
    net = Fork2(price(5000), price(3000))
    net.send(5.0)
    left = net["c"].purchase("w")
    assert net.way == "e" and left.running
    net["w"].step(ev.SettingsChanged(price(2000)))
    net.send(25.0)
    assert net.way == "e" and left.running, "not before it was left for half a minute"
    net.send(10.0)
    assert net.way == "w" and not left.running
    assert net["c"].purchase("w").price_msat_per_gib == 2000
    assert net["w"].world.sales.find(net["c"].identity, SAMPLE.network_address).price_msat_per_gib == 2000


def test_the_default_route_of_one_that_was_chosen_is_bought_when_answers_come_not_with_the_next_destination() -> None:
    net = Fork2(price(5000), price(2000), buys_default_route=True)
    net.send(2.0)
    assert net.way == "w" and net.sells_whole("w") and not net.sells_whole("e")
    net.answers = {"w"}
    net.send(2.0)
    late = net["c"].purchase("w").id
    net["c"].counts[late][1] += 1000  # comes back through the one that was left
    net["c"].step(ev.UsageRead((net["c"].reading(late),)))
    net.settle()
    assert net.way == "e" and not net.sells_whole("e")
    net.answers = {"w", "e"}
    net.send(0.5)
    assert net.way == "e" and net.sells_whole("e")
    net.send(10.0)
    assert [one.destination for one in net["c"].sent(Ask)].count(DEFAULT) == 2, "each is asked once"  # type: ignore[attr-defined]


def test_one_that_was_chosen_is_not_asked_for_a_default_route_that_nobody_wants() -> None:
    net = Fork2(price(5000), price(2000))
    net.send(5.0)
    assert net.way == "e" and not net.sells_whole("e")


def test_one_that_changes_its_price_all_the_time_moves_us_seldom() -> None:
    net = Fork2(price(5000), price(4000, contract_data_bytes=100_000))
    ways = []
    for _ in range(120):
        asked = 1000 if net.way == "w" else 9000  # low while it isn't chosen, high at its next renewal
        net["e"].world.settings = price(asked, contract_data_bytes=100_000)
        net.send(1.0, size=20_000 if net.way == "e" else 1000)
        ways.append(net.way)
    assert {"w", "e"} == set(ways)
    assert sum(one != other for one, other in zip(ways, ways[1:], strict=False)) <= 2 * (120 // 30 + 1)


def test_what_a_neighbour_offers_unasked_chooses_nobody() -> None:
    net = Fork2(price(5000), price(6000))
    net.send(5.0)
    cheap = Propose(b"p" * 16, SAMPLE, 1, 1 << 20, 3600, 10, 0, 1, ())
    for _ in range(5):
        heard = ev.MessageReceived(net["e"].identity, net["c"].link("e"), 1, cheap, 77, None, None)
        net["c"].step(heard)
        net.send(1.0)
    assert net.way == "w"


def test_a_choice_whose_neighbour_is_forgotten_is_left() -> None:
    net = Fork2(price(5000), price(2000))
    net.send(5.0)
    assert net.way == "e"
    world = net["c"].world
    world.peers.by_link.pop(net["c"].link("e"))
    net.mute.add("e")
    net.send(2.0)
    assert net.way == "w"


def test_a_route_that_is_stale_is_made_anew() -> None:
    net = Fork2(price(5000), price(2000))
    net.send(5.0)
    chosen = net["c"].routes[DEFAULT]
    routers = tuple(net.router(name) for name in "we")
    for is_stale in (False, True):
        net["c"].routes.clear()  # somebody removed our rule
        net["c"].step(ev.ForksSeen((Fork(DEFAULT, routers, chosen, is_stale),)))
        assert net["c"].routes == ({DEFAULT: chosen} if is_stale else {})


def test_without_use_nobody_is_asked_and_no_timer_rings() -> None:
    net = Fork2(price(5000), price(2000))
    net.wait(8.0)
    assert net["c"].sent(Ask) == [] and net["c"].routes == {}
    net.send(1.0)
    net.wait(12.0)
    asked = len(net["c"].sent(Ask))
    net.wait(30.0)
    assert len(net["c"].sent(Ask)) == asked
    assert (Due.FORKS, b"") not in net["c"].world.timers.ring(1e9)


def test_equal_offers_leave_the_operators_first_in_place() -> None:
    net = Fork2(price(5000), price(5000))
    net.send(20.0)
    assert net.way == "w" and net.bought("e") == 0


def test_a_little_cheaper_is_not_enough() -> None:
    net = Fork2(price(5000), price(4600))
    net.send(10.0)
    assert net.way == "w"


def test_one_above_our_limit_is_never_chosen_and_seldom_asked() -> None:
    net = Fork2(price(5000), price(9001))
    net.send(20.0)
    net["c"].world.peers.blocked.add(net["w"].identity)
    net.send(3.0)
    assert net.way == "w"
    assert len(net["c"].sent(Ask)) <= 2


def test_a_gateway_that_falls_silent_is_left_within_a_second() -> None:
    net = Fork2(price(2000), price(5000))
    net.send(5.0)
    assert net.way == "w"
    net.mute.add("w")
    net.answers.discard("w")
    net.send(1.0)
    assert net.way == "e"
    net.mute.clear()
    net.answers.add("w")
    net.send(1.0)
    assert net.way == "e", "it isn't back only because it would be cheaper"


def test_a_gateway_that_carries_stays_though_its_daemon_is_silent() -> None:
    net = Fork2(price(2000), price(5000))
    net.send(5.0)
    net.mute.add("w")
    net.send(10.0)
    net.wait(8.0)
    net.send(2.0)
    assert net.way == "w", "also if nothing is sent for a while"
    net.answers.discard("w")
    net.send(1.0)
    assert net.way == "e"


def test_a_gateway_whose_daemon_is_silent_is_left_when_its_contract_must_be_renewed() -> None:
    net = Fork2(price(2000, contract_data_bytes=400_000), price(5000))
    net.send(5.0)
    net.mute.add("w")
    net.lost.add(Ask)
    net.send(2.0, size=1000)
    assert net.way == "w"
    net.send(2.0, size=60_000)
    assert net.way == "e"
    assert net.bought("w") < 400_000


def test_one_that_brings_no_answers_is_left_and_has_lost_its_quality() -> None:
    net = Fork2(price(5000), price(1000))
    net.answers.discard("e")
    net.send(4.0)
    assert net.way == "e"
    net.send(6.0)
    assert net.way == "w"
    neighbour = net["c"].world.peers.neighbours[net["e"].identity, net["c"].link("e")]
    assert neighbour.quality.value(net.now.monotonic_s) < 0.15
    net.send(20.0)
    assert net.way == "w"


def test_a_destination_that_answers_nobody_is_no_reason_to_change_for_ever() -> None:
    net = Fork2(price(5000), price(5000))
    net.answers.clear()
    ways = []
    for _ in range(60):
        net.send(1.0)
        ways.append(net.way)
    assert sum(one != other for one, other in zip(ways, ways[1:], strict=False)) <= 2
    assert len(set(ways[-40:])) == 1
    assert all(one.quality.value(net.now.monotonic_s) > 0.9 for one in net["c"].world.peers.by_link.values())


def test_one_that_is_blocked_stops_or_sells_no_more_is_left() -> None:
    for leave in ("block", "bye", "sells nothing"):
        net = Fork2(price(2000), price(5000))
        net.send(5.0)
        neighbour = net["c"].world.peers.neighbours[net["w"].identity, net["c"].link("w")]
        if leave == "block":
            net["c"].step(ev.BlockNeighbour(net["w"].identity, True))
        elif leave == "bye":
            neighbour.up = False
            net.mute.add("w")
        else:
            net["w"].world.settings = replace(net["w"].world.settings, sells=False)
        net.send(1.0)
        assert net.way == "e", leave


def test_the_operators_first_router_stays_if_it_charges_nothing() -> None:
    net = Fork2(settings(**PLENTY, sells=False), price(1000))
    for _ in range(40):
        net["c"].step(ev.Hinted((Hint(HintKind.UNBOUGHT, b"", 1, SAMPLE.network_address),)))
        net.wait(0.25)
    assert net.way == "w" and net["c"].routes == {}
    net = Fork2(price(5000), price(1000))
    net["c"].world.peers.by_link.pop(net["c"].link("w"))  # no neighbour
    for _ in range(40):
        net["c"].step(ev.Hinted((Hint(HintKind.UNBOUGHT, b"", 1, SAMPLE.network_address),)))
        net.wait(0.25)
    assert net["c"].routes == {}


def test_one_that_is_chosen_again_is_not_judged_by_what_was_unanswered_when_it_was_left() -> None:
    net = Fork2(price(2000), price(5000))
    net.send(5.0)
    neighbour = net["c"].world.peers.neighbours[net["w"].identity, net["c"].link("w")]
    net["c"].step(ev.BlockNeighbour(net["w"].identity, True))
    net.send(1.0)
    assert net.way == "e"
    neighbour.quality.unanswered_mono_s = net.now.monotonic_s
    net["c"].step(ev.BlockNeighbour(net["w"].identity, False))
    net.wait(2.0)
    net.mute.add("w")
    net["c"].step(ev.BlockNeighbour(net["e"].identity, True))
    net.wait(0.6)
    assert net.way == "w"
    assert not neighbour.quality.silent


def test_a_router_that_is_gone_is_left_at_once_and_without_choice_the_operators_routes_lead() -> None:
    net = Fork2(price(5000), price(2000))
    net.send(5.0)
    assert net.way == "e"
    net.see("w", chosen="e")
    assert net["c"].routes == {}
    net.see("we")
    net.send(1.0)
    assert net.way == "e"


@pytest.mark.parametrize(
    ("left", "why"),
    [("w", "the host's routes no longer lead that way"), ("", "no longer lead"), ("e", "only this way is left")],
)
def test_a_route_of_ours_that_ends_with_the_hosts_routes_is_told_once(left: str, why: str) -> None:
    net = Fork2(price(5000), price(2000))
    net.send(5.0)
    assert net.way == "e"
    before = len(net["c"].logged)
    if left:
        net.see(left, chosen="e")
        assert net["c"].routes == {}
    for _ in range(2):
        net.see(left) if left else net["c"].step(ev.ForksSeen(()))
    (line,) = [text for text in net["c"].logged[before:] if "no route of ours" in text]
    assert line.startswith("no route of ours leads packets to 0.0.0.0/0 through ") and "msat/kB, quality" in line
    assert why in line


def test_what_a_killed_daemon_chose_goes_on() -> None:
    net = Fork2(price(5000), price(5000), chosen="e")
    net.send(8.0)
    assert net["c"].world.buying.forks.all[DEFAULT].chosen == net.router("e")


@pytest.mark.parametrize("has_quote", [True, False])
def test_what_a_node_in_the_middle_sells_ends_when_its_choice_makes_it_too_cheap(has_quote: bool) -> None:
    net = Fork2(price(5000), price(2000))
    net["c"].world.settings = replace(net["c"].world.settings, sells=True, sell_msat_per_gib=0, sell_min_msat_per_gib=0)
    net.introduce("c", "w")
    net.add_client("h", "c")
    net.send(5.0)
    assert net.way == net["c"].route == "e"
    net.packet("h", "c")
    sale = net["c"].sale("h")
    assert sale.running and sale.price_msat_per_gib == 2200
    if not has_quote:
        for blocked in (True, False):  # that ends what was bought there
            net["c"].step(ev.BlockNeighbour(net["w"].identity, blocked))
            net.settle()
    net.mute.add("e")
    net.answers.discard("e")
    net.send(2.0)
    assert net.way == "w" and not sale.running
    net.packet("h", "c")
    assert net["c"].sale("h").price_msat_per_gib == 5500


def test_a_node_in_the_middle_finds_the_gateway_that_its_client_can_pay() -> None:
    net = Fork2(price(8500), price(2000))
    net["c"].world.settings = replace(net["c"].world.settings, sells=True, sell_msat_per_gib=0, sell_min_msat_per_gib=0)
    net.introduce("c", "w")
    net.add_client("h", "c")
    net["h"].world.settings = replace(net["h"].world.settings, buy_msat_per_gib=9000, buy_max_msat_per_gib=9000)
    net.wait(4.0)
    net.packet("h", "c")
    assert net["c"].world.purchases.find(net["w"].identity, SAMPLE.network_address) is None, "9350 is above 9000"
    net.wait(1.0)
    net["c"].route = net.way
    assert net.way == "e" and net["c"].world.purchases.find(net["e"].identity, SAMPLE.network_address) is None
    net.wait(30.0)  # until then the kernel drops what the client refused
    net.packet("h", "c")
    assert net["c"].sale("h").running and net["c"].sale("h").price_msat_per_gib == 2200


def test_switched_off_nothing_of_ours_is_left() -> None:
    net = Fork2(price(5000), price(2000))
    net.send(5.0)
    assert net["c"].routes
    net["c"].step(ev.SettingsChanged(replace(net["c"].world.settings, choose_routes=False)))
    assert net["c"].routes == {} and not net["c"].world.buying.forks.all
    net.send(3.0)
    assert net["c"].routes == {}


def test_routes_that_somebody_removed_are_made_again() -> None:
    net = Fork2(price(5000), price(2000))
    net.send(5.0)
    net["c"].routes = {}
    net.see("we")
    assert net["c"].routes == {DEFAULT: net.router("e")}
