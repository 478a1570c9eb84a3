"""A node in the middle sells a default route that it buys itself: at its cost and margin, and only what that covers."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from mesh import DEFAULT, HOST, MB, PLENTY, Mesh, Node, promised
from playbook import MSAT_PER_KB, settings

from ngp.core import default_resale, elsewhere
from ngp.core import events as ev
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import CloseReason, State
from ngp.core.kernel import HeldPacket, Onward, Router
from ngp.core.messages import Accept, Ask, Cancel, Hello, Propose, Reject, RejectReason
from ngp.core.selling.sale import Sale
from ngp.core.settings import Settings
from ngp.core.values import Now

THERE, PART = ip_address("203.0.113.9"), ip_network("203.0.113.0/24")
PRICE = 5 * MSAT_PER_KB


def household(**changes: object) -> Settings:
    return settings(**{**PLENTY, "sells": False, "buys_default_route": True, **changes})


def priced(msat_per_kb: int) -> Settings:
    price = msat_per_kb * MSAT_PER_KB
    return settings(**{**PLENTY, "sell_msat_per_gib": price, "sell_min_msat_per_gib": price})


def sold_whole(node: Node, client: str) -> Sale | None:
    found = node.world.sales.exact(node.mesh[client].identity, DEFAULT)
    return found if found is not None and found.running else None


def bought_whole(node: Node, server: str) -> Purchase | None:
    found = node.world.purchases.exact(node.mesh[server].identity, DEFAULT)
    return found if found is not None and found.running else None


def line(names: str = "abc", **confs: Settings) -> Mesh:
    """A household a behind a line of routers; it has bought its first destination and the default route."""
    mesh = Mesh(names, **{"a": household(), **confs})
    mesh.packet("a", "b")
    return mesh


def with_dear(leads: bool) -> Mesh:
    """A line a, b, c with a dear neighbour d. Args: leads: b's route to PART leads to d; else d is c's neighbour."""
    mesh = Mesh("abc", a=household())
    near = "b" if leads else "c"
    mesh.add("d", near)
    mesh["d"].world.settings = priced(40)
    if leads:
        mesh["b"].others = {PART: "d"}
    mesh.packet("a", "b")
    return mesh


def hold(mesh: Mesh, client: str, server: str, onward: Onward) -> None:
    """Have a node hold a client's packet to THERE. Args: onward: where it would go from here."""
    at = mesh[server]
    at.step(HeldPacket(99, at.link(client), THERE, onward))
    mesh.settle()


def part_of(node: Node, client: str) -> Sale | None:
    """Return the contract by which a client buys THERE; None if that is the one for the default route."""
    found = node.world.sales.find(node.mesh[client].identity, THERE)
    return found if found is not None and found.destination.bits else None


# --- what is sold -----------------------------------------------------------------------------------------------------


def test_each_hop_has_one_contract_which_costs_the_next_one_and_its_margin() -> None:
    mesh, price, rests_on = line("abcde"), PRICE, b""
    for client, server in ("de", "cd", "bc", "ab"):
        sale, purchase = sold_whole(mesh[server], client), bought_whole(mesh[client], server)
        assert sale is not None and purchase is not None and sale.id == purchase.id
        assert (sale.price_msat_per_gib, sale.rests_on) == (price, rests_on)
        assert mesh[server].world.kernel_grant(sale).resold is bool(rests_on)
        price, rests_on = -(-price * 11 // 10), sale.id
    assert [len([one for one in mesh[name].sent(Ask) if one.destination == DEFAULT]) for name in "abcde"] == [1] * 4 + [
        0
    ]  # type: ignore[attr-defined]
    assert not any(mesh[name].elsewhere for name in "bcd")


def test_nobody_buys_it_without_a_client_that_accepts() -> None:
    mesh = Mesh("abc", a=household())
    mesh.packet("b", "c")
    assert mesh["b"].purchase("c").running and not mesh["b"].sent(Ask), "a middle node doesn't ask for itself"
    mesh.lost = {Accept}
    mesh["b"].step(
        ev.MessageReceived(
            mesh["a"].identity, mesh["b"].link("a"), 1, Ask(DEFAULT, 0, 0), 1 << 40, None, None, mesh["b"].onward,
            False, mesh["b"].mesh_routes,
        )
    )  # fmt: skip
    mesh.settle()
    assert mesh["b"].sent(Propose)[-1].destination == DEFAULT and bought_whole(mesh["b"], "c") is None  # type: ignore[attr-defined]


def test_an_offer_that_no_client_asked_for_is_refused() -> None:
    mesh = Mesh("bc")
    offer = Propose(b"w" * 16, DEFAULT, PRICE, 1 << 20, 60, 10, 0, 1)
    mesh["b"].step(ev.MessageReceived(mesh["c"].identity, mesh["b"].link("c"), 1, offer, 1 << 40, None, DEFAULT))
    assert mesh["b"].sent(Reject) == [Reject(b"w" * 16, RejectReason.NOT_BUYING)]


def test_other_clients_rest_on_it_too_and_all_that_is_promised_is_there() -> None:
    mesh = line()
    mesh.add_client("x", "b")
    at = mesh["b"]
    whole = bought_whole(at, "c")
    at.step(HeldPacket(98, at.link("x"), THERE, at.onward))
    mesh.settle()
    host = at.world.sales.find(mesh["x"].identity, THERE)
    assert whole is not None and host is not None and host.rests_on == whole.id and promised(mesh, "b")
    limit = whole.data_limit_bytes
    for _ in range(6):
        for name, contract in (("b", whole.id), ("c", whole.id), ("b", sold_whole(at, "a").id), ("a", whole.id)):  # type: ignore[union-attr]
            mesh.count(name, contract, 30 * MB)
        mesh.settle()
        assert promised(mesh, "b")
    assert sold_whole(at, "a") is not None and whole.data_limit_bytes > limit


@pytest.mark.parametrize("why", ["buys nothing", "routes unknown", "too many routes", "several routers"])
def test_it_is_refused_where_it_cannot_be_resold(why: str) -> None:
    mesh = Mesh("abc", a=household())
    at = mesh["b"]
    if why == "buys nothing":
        at.world.settings = settings(**{**PLENTY, "buys": False})
    elif why == "too many routes":
        at.is_whole = False
    elif why == "several routers":
        mesh.add("d", "b")
        parts = ip_network("10.0.0.0/8").subnets(new_prefix=19)
        at.others = dict.fromkeys([part for part, _ in zip(parts, range(elsewhere.MOST_PARTS + 1), strict=False)], "d")
    ask = Ask(DEFAULT, 0, 0)
    routes = () if why == "routes unknown" else at.mesh_routes
    at.step(ev.MessageReceived(mesh["a"].identity, at.link("a"), 1, ask, 1 << 40, None, None, at.onward, False, routes))
    mesh.settle()
    assert at.sent(Reject) == [Reject(b"", RejectReason.UPSTREAM, destination=DEFAULT)] and not at.sent(Accept)


@pytest.mark.parametrize("names", ["abc", "abcdef"])
def test_a_ring_of_default_routes_is_cut(names: str) -> None:
    mesh = Mesh("x" + names, x=household())
    mesh.introduce(names[-1], names[0])
    mesh[names[-1]].route = names[0]
    at = mesh[names[0]]
    ask = Ask(DEFAULT, 0, 0)
    at.step(
        ev.MessageReceived(
            mesh["x"].identity, at.link("x"), 1, ask, 1 << 40, None, None, at.onward, False, at.mesh_routes
        )
    )
    mesh.settle()
    assert not any(one.sent(Accept) for one in mesh.routers.values())
    assert at.sent(Reject) == [Reject(b"", RejectReason.UPSTREAM, destination=DEFAULT)]


# --- what it doesn't cover --------------------------------------------------------------------------------------------


def test_what_our_routes_lead_to_another_seller_is_sold_by_itself_at_its_own_price() -> None:
    mesh = with_dear(leads=True)
    at, whole = mesh["b"], sold_whole(mesh["b"], "a")
    assert at.elsewhere == {PART} and whole is not None
    at.route = "d"
    hold(mesh, "a", "b", Onward(PART, Router(*at.link("d"))))
    part = part_of(at, "a")
    assert part is not None and part.running and part.destination.prefix == PART
    assert part.price_msat_per_gib == 44 * MSAT_PER_KB and sold_whole(at, "a") is whole
    assert whole.price_msat_per_gib == -(-PRICE * 11 // 10)


def test_what_leads_to_the_client_or_to_one_that_sells_nothing_is_no_exception() -> None:
    mesh = Mesh("abc", a=household())
    mesh["b"].others = {ip_network("10.0.0.0/16"): "a"}
    mesh.packet("a", "b")
    assert sold_whole(mesh["b"], "a") is not None and not mesh["b"].elsewhere


def test_a_client_that_begins_to_sell_becomes_an_exception_for_the_others_at_once() -> None:
    mesh = Mesh("abc", a=household())
    prefix = ip_network("10.0.0.0/16")
    mesh["b"].others = {prefix: "a"}
    mesh.packet("a", "b")
    hello = Hello("sandbox", True, True, (), "ngp", False)
    mesh["b"].step(ev.MessageReceived(mesh["a"].identity, mesh["b"].link("a"), 1, hello, 1 << 40))
    assert mesh["b"].elsewhere == {prefix} and sold_whole(mesh["b"], "a") is not None


def test_a_new_route_to_another_seller_ends_what_rests_on_the_default_route_there() -> None:
    mesh = line()
    mesh.add("d", "b")
    at = mesh["b"]
    mesh.add_client("x", "b")
    hold(mesh, "x", "b", at.onward)
    host, whole = part_of(at, "x"), bought_whole(at, "c")
    assert host is not None and whole is not None and host.running and host.rests_on == whole.id
    at.lead("c", {PART: "d", ip_network("192.0.2.0/24"): "c"})
    assert at.elsewhere == {PART} and sold_whole(at, "a") is not None
    assert (host.state, host.reason) == (State.CLOSED, CloseReason.UPSTREAM)


def test_a_part_that_costs_more_is_bought_by_nobody_before_a_client_has_asked_for_it() -> None:
    """c offers b what a's packet made it hold: a has paid only the default route's price for that packet."""
    mesh = with_dear(leads=False)
    at, whole = mesh["b"], sold_whole(mesh["b"], "a")
    mesh["c"].route = "d"
    hold(mesh, "b", "c", Onward(PART, Router(*mesh["c"].link("d"))))
    assert at.elsewhere == {PART} and Reject(mesh["c"].sent(Propose)[-1].contract, RejectReason.NOT_BUYING) in at.said  # type: ignore[attr-defined]
    assert at.world.purchases.exact(mesh["c"].identity, PART) is None
    hold(mesh, "a", "b", at.onward)
    part = part_of(at, "a")
    assert part is not None and part.running and part.price_msat_per_gib == -(-44 * MSAT_PER_KB * 11 // 10)
    assert at.world.running_purchase(part.rests_on).price_msat_per_gib == 44 * MSAT_PER_KB  # type: ignore[union-attr]
    assert sold_whole(at, "a") is whole and whole is not None


def test_a_part_that_costs_no_more_is_bought_and_is_an_exception_from_then_on() -> None:
    mesh = line()
    mesh.add("d", "c")
    mesh["d"].world.settings = priced(1)
    mesh["c"].world.settings = settings(**{**PLENTY, "sell_msat_per_gib": 0, "sell_min_msat_per_gib": 0})
    mesh["b"].prefix, mesh["c"].route = DEFAULT, "d"
    hold(mesh, "b", "c", Onward(PART, Router(*mesh["c"].link("d"))))
    bought = mesh["b"].world.purchases.exact(mesh["c"].identity, PART)
    assert bought is not None and bought.running and mesh["b"].elsewhere == {PART}


def test_what_was_bought_dearer_before_stays_apart() -> None:
    mesh = Mesh("abc", a=household(), c=priced(9))
    mesh.packet("b", "c")
    mesh["c"].world.settings = priced(5)
    mesh.add("x", "b")
    at = mesh["b"]
    at.step(HeldPacket(97, at.link("a"), THERE, at.onward))
    mesh.settle()
    assert sold_whole(at, "a") is not None and at.purchase("c").price_msat_per_gib == 9 * MSAT_PER_KB
    assert at.elsewhere == {ip_network(f"{HOST}/32")}


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["d", ""])
def test_when_our_default_route_leads_elsewhere_it_ends_and_its_clients_are_told(route: str) -> None:
    mesh = line()
    mesh.add("d", "b")
    at = mesh["b"]
    sale, purchase = sold_whole(at, "a"), bought_whole(at, "c")
    at.lead(route)
    assert sale is not None and purchase is not None
    assert Cancel(sale.id, CloseReason.UPSTREAM) in at.said and Cancel(purchase.id) in at.said
    assert bought_whole(mesh["a"], "b") is None and sold_whole(mesh["c"], "b") is None


def test_a_default_route_that_changed_before_the_client_accepted_is_not_bought() -> None:
    mesh = Mesh("abc", a=household())
    mesh.lost = {Accept}
    at = mesh["b"]
    ask = Ask(DEFAULT, 0, 0)
    at.step(
        ev.MessageReceived(
            mesh["a"].identity, at.link("a"), 1, ask, 1 << 40, None, None, at.onward, False, at.mesh_routes
        )
    )
    mesh.settle()
    offer = at.sent(Propose)[-1]
    assert isinstance(offer, Propose) and default_resale.is_in_use(at.world)
    at.lead("")
    accept = Accept(offer.contract, offer.price_msat_per_gib, offer.data_limit_bytes)
    at.step(ev.MessageReceived(mesh["a"].identity, at.link("a"), 1, accept, 2 << 40))
    mesh.settle()
    assert not at.sent(Accept) and sold_whole(at, "a") is None


def test_a_router_whose_link_address_is_forgotten_for_a_moment_ends_nothing() -> None:
    mesh = line()
    at = mesh["b"]
    (routes,) = at.mesh_routes
    assert routes.default is not None
    unknown = replace(routes, default=replace(routes.default, link_address=None))
    at.step(ev.RoutesSeen((unknown,)))
    assert sold_whole(at, "a") is not None and at.elsewhere == {DEFAULT}, "nothing is sold below cost meanwhile"
    at.step(ev.RoutesSeen((routes,)))
    assert sold_whole(at, "a") is not None and not at.elsewhere


def test_a_price_that_rises_upstream_ends_what_is_too_cheap() -> None:
    small = {"contract_data_bytes": 10 * MB}
    mesh = Mesh("abc", a=household(**small), b=settings(**{**PLENTY, **small}), c=settings(**{**PLENTY, **small}))
    mesh.packet("a", "b")
    at = mesh["b"]
    sale, whole = sold_whole(at, "a"), bought_whole(at, "c")
    assert sale is not None and whole is not None
    mesh["c"].world.settings = settings(**{**PLENTY, **small, "sell_msat_per_gib": 50 * MSAT_PER_KB})
    for _ in range(3):
        for name, contract in (("b", whole.id), ("c", whole.id), ("b", sale.id), ("a", sale.id)):
            mesh.count(name, contract, 3 * MB)
    if whole.price_msat_per_gib > PRICE:
        assert sale.state is State.CLOSED and sale.reason == CloseReason.UPSTREAM
    assert sale.price_msat_per_gib * 10 >= whole.price_msat_per_gib * 11 or not sale.running


def test_when_nobody_buys_it_any_more_it_is_ended() -> None:
    mesh = line()
    at = mesh["b"]
    sale, whole = sold_whole(at, "a"), bought_whole(at, "c")
    assert sale is not None and whole is not None
    at.step(ev.MessageReceived(mesh["a"].identity, at.link("a"), 1, Cancel(sale.id), 1 << 40))
    mesh.settle()
    mesh.packet("a", "b")
    mesh.count("b", whole.id, 1000)
    mesh.settle()
    assert bought_whole(at, "c") is None and Cancel(whole.id) in at.said and sold_whole(mesh["c"], "b") is None


def test_when_too_much_comes_that_nobody_pays_for_it_ends_and_is_refused_for_an_hour() -> None:
    mesh = line(b=settings(**{**PLENTY, "grace_data_bytes": 256 << 10}))
    at = mesh["b"]
    sale = sold_whole(at, "a")
    for counted in (5 * MB, 5 * MB + (256 << 10)):
        at.step(ev.UnsoldSeen(counted))
        assert sold_whole(at, "a") is sale, "what was lost before doesn't count, and GRACE_DATA is allowed"
    at.step(ev.UnsoldSeen(5 * MB + (256 << 10) + 1))
    mesh.settle()
    assert sold_whole(at, "a") is None and bought_whole(at, "c") is None and bought_whole(mesh["a"], "b") is None
    mesh.packet("a", "b")
    assert at.sale("a").running, "single destinations are bought as ever"
    ask = ev.MessageReceived(
        mesh["a"].identity, at.link("a"), 1, Ask(DEFAULT, 0, 0), 1 << 40, None, None, at.onward, False, at.mesh_routes
    )
    at.step(ask)
    assert at.said[-1] == Reject(b"", RejectReason.UPSTREAM, destination=DEFAULT)
    mesh.wait(default_resale.REFUSED_S)
    at.step(ask)
    mesh.settle()
    assert sold_whole(at, "a") is not None


def test_an_hour_that_begins_while_the_counter_is_low_for_a_moment_ends_nothing() -> None:
    mesh = line(b=settings(**{**PLENTY, "grace_data_bytes": 256 << 10}))
    at = mesh["b"]
    sale = sold_whole(at, "a")
    at.step(ev.UnsoldSeen(20 * MB))
    mesh.now = Now(mesh.now.utc_s, mesh.now.monotonic_s + default_resale.LOSS_WINDOW_S + 1)
    for counted in (10 * MB, 20 * MB):  # what another purchase lost was taken off before it was counted
        at.step(ev.UnsoldSeen(counted))
    assert sold_whole(at, "a") is sale is not None
    at.step(ev.UnsoldSeen(20 * MB + (256 << 10) + 1))
    mesh.settle()
    assert sold_whole(at, "a") is None


def test_a_trickle_that_nobody_pays_for_is_borne() -> None:
    mesh = line(b=settings(**{**PLENTY, "grace_data_bytes": 256 << 10}))
    at = mesh["b"]
    sale = sold_whole(at, "a")
    for hour in range(4):
        for counted in (0, 200 << 10):
            at.step(ev.UnsoldSeen(hour * (200 << 10) + counted))
        mesh.now = Now(mesh.now.utc_s, mesh.now.monotonic_s + default_resale.LOSS_WINDOW_S + 1)
    assert sold_whole(at, "a") is sale is not None


@pytest.mark.parametrize("moves", [False, True])
def test_a_reboot_goes_on_with_it_unless_the_default_route_leads_elsewhere_now(moves: bool) -> None:
    mesh = line()
    at = mesh["b"]
    mesh.add("d", "b")
    at.route, at.others = "" if moves else "c", {PART: "d"}
    at.reboot()
    mesh.settle()
    assert (sold_whole(at, "a") is None) is moves
    assert moves or at.elsewhere == {PART}


def test_settings_that_change_end_nothing_that_clients_rest_on() -> None:
    mesh = line()
    mesh["b"].step(ev.SettingsChanged(settings(**{**PLENTY, "payment_amount_msat": 200_000})))
    mesh.settle()
    assert sold_whole(mesh["b"], "a") is not None and bought_whole(mesh["b"], "c") is not None
