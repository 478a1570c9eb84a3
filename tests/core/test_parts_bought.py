"""Parts bought: a network, and a part of it, are bought by themselves, so there are two purchases for one packet."""

from __future__ import annotations

from collections import deque
from ipaddress import ip_address, ip_network

import pytest
from mesh import MB, PLENTY, Mesh, asks
from playbook import MSAT_PER_KB, settings

from ngp.core import events as ev
from ngp.core import upstream
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import State
from ngp.core.kernel import HeldPacket, Hint, HintKind, Onward, Router, Verdict
from ngp.core.messages import Accept, Ask, Cancel, Prefix, Propose, Reject, mark
from ngp.core.selling.sale import Sale
from ngp.core.settings import Settings
from ngp.core.values import Now

NETWORK, FIRST, HALF = (ip_network(f"198.51.100.0/{bits}") for bits in (24, 32, 25))
UPPER_HALF = ip_network("198.51.100.128/25")
GRACE = 256 << 10
STRICT = settings(**{**PLENTY, "grace_data_bytes": GRACE, "grace_time_s": 10})


def star(d_asks: int, **confs: Settings) -> Mesh:
    """Return a mesh in which b's route for a network leads to c; d sells to b, too, and a and z are b's clients."""
    mesh = Mesh("abc", **confs)
    for name in "dz":
        mesh.add(name, "b")
    mesh["d"].step(ev.SettingsChanged(asks(d_asks)))
    mesh["z"].route = "b"
    mesh["b"].prefix = NETWORK
    return mesh


def ask(mesh: Mesh, client: str, prefix: Prefix) -> None:
    """Let a client ask b for exactly this prefix."""
    b = mesh["b"]
    question = Ask(prefix, 0, 0)
    number = (1 << 41) + len(b.said)
    b.step(ev.MessageReceived(mesh[client].identity, b.link(client), 1, question, number, onward=b.onward))
    mesh.settle()


def send(mesh: Mesh, client: str, address: str) -> None:
    """Let b hold a packet of a client."""
    b = mesh["b"]
    b.step(HeldPacket(len(b.said) + 10, b.link(client), ip_address(address), b.onward))
    mesh.settle()


def sold(mesh: Mesh, client: str, prefix: Prefix = NETWORK) -> Sale:
    found = mesh["b"].world.sales.exact(mesh[client].identity, prefix)
    assert found is not None
    return found


def bought(mesh: Mesh, server: str, prefix: Prefix) -> Purchase:
    found = mesh["b"].world.purchases.exact(mesh[server].identity, prefix)
    assert found is not None and found.running
    return found


@pytest.mark.parametrize("part", [None, FIRST, HALF])
def test_a_stream_for_a_client_without_money_ends_whatever_is_bought_within_its_network(part: Prefix | None) -> None:
    mesh = star(4, b=STRICT)
    b, a = mesh["b"], mesh["a"]
    for name in "az":
        b.world.client(mesh[name].identity).paid_msat = 1000
    if part is not None:
        ask(mesh, "z", part)
    send(mesh, "a", "198.51.100.7")
    sale, account = sold(mesh, "a"), b.world.clients[a.identity]
    whole = b.world.running_purchase(sale.rests_on)
    assert whole is not None and whole.destination.prefix == NETWORK
    while account.balance_msat > -1270:
        mesh.count("b", whole.id, 2048)
        mesh.count("b", sale.id, 2048)
    for _ in range(10):
        b.counts.setdefault(whole.id, [0, 0])[1] += MB
        b.step(ev.UsageRead((b.reading(whole.id),)))
        b.step(ev.Hinted((Hint(HintKind.ACCOUNT_EXHAUSTED, a.identity),)))
        mesh.wait(1)
        if not whole.running:
            break
    assert not whole.running and not sale.running and whole.used_from_bytes <= 3 * MB


def leads(mesh: Mesh, others: dict[Prefix, str], route: str = "c") -> None:
    """Have b's route for the network lead one way, and routes for parts of it others."""
    mesh["b"].prefix = NETWORK
    mesh["b"].lead(route, others)


def is_by_addresses(mesh: Mesh, client: str) -> bool:
    """Say whether b doesn't sell the network as a whole to a client, but its addresses."""
    send(mesh, client, "198.51.100.200")
    whole = mesh["b"].world.sales.exact(mesh[client].identity, NETWORK)
    return (whole is None or not whole.running) and sold(mesh, client, ip_network("198.51.100.200/32")).running


@pytest.mark.parametrize("d_asks", [1, 20])
@pytest.mark.parametrize("route", ["c", ""])
@pytest.mark.parametrize("part", [FIRST, HALF, UPPER_HALF])
def test_a_network_is_sold_by_its_addresses_if_our_route_to_a_part_leads_to_another_seller(
    d_asks: int, route: str, part: Prefix
) -> None:
    mesh = star(d_asks)
    leads(mesh, {part: "d"}, route)
    send(mesh, "a", "198.51.100.200")
    assert mesh["b"].verdicts == [Verdict.REPEAT], "the first packet passes: its own route is known"
    assert is_by_addresses(mesh, "a") and is_by_addresses(mesh, "z")


@pytest.mark.parametrize("route", ["c", ""])
@pytest.mark.parametrize("part", [FIRST, HALF, UPPER_HALF])
def test_a_change_of_routes_ends_the_contracts_for_a_network_whose_part_leads_to_another_seller(
    route: str, part: Prefix
) -> None:
    mesh = star(20)
    leads(mesh, {}, route)
    send(mesh, "a", "198.51.100.7")
    sale = sold(mesh, "a")
    leads(mesh, {part: "d"}, route)
    assert not sale.running and is_by_addresses(mesh, "a")


@pytest.mark.parametrize("wide", ["198.51.100.0/24", "198.51.0.0/16"])
def test_a_part_is_not_sold_below_cost_if_a_wider_purchase_carries_it(wide: str) -> None:
    mesh = star(20)
    mesh["b"].prefix, mesh["b"].route = ip_network(wide), "d"
    ask(mesh, "z", ip_network(wide))
    leads(mesh, {HALF: "d"})
    send(mesh, "a", "198.51.100.200")
    assert is_by_addresses(mesh, "a")


def test_after_a_while_and_when_the_routes_are_one_again_a_network_is_sold_as_a_whole() -> None:
    mesh = star(20)
    leads(mesh, {HALF: "d"})
    send(mesh, "a", "198.51.100.7")
    leads(mesh, {})
    mesh.wait(60)
    assert is_by_addresses(mesh, "z")
    mesh.now = Now(mesh.now.utc_s + 3600, mesh.now.monotonic_s + 3600)
    send(mesh, "z", "198.51.100.7")
    assert sold(mesh, "z").running


def test_routes_to_neighbours_that_sell_us_nothing_dont_matter() -> None:
    mesh = star(20)
    mesh["b"].world.peers.by_link[mesh["b"].link("d")].sells = False
    leads(mesh, {HALF: "d"})
    send(mesh, "a", "198.51.100.7")
    assert sold(mesh, "a").running


def test_a_neighbour_that_begins_to_sell_us_a_part_ends_the_contracts_for_the_network() -> None:
    mesh = star(20)
    link = mesh["b"].link("d")
    mesh["b"].world.peers.by_link[link].sells = False
    leads(mesh, {HALF: "d"})
    send(mesh, "a", "198.51.100.7")
    sale = sold(mesh, "a")
    mesh.introduce("d", "b")
    mesh.wait(1)
    assert mesh["b"].world.peers.by_link[link].sells and not sale.running


def test_a_router_that_is_not_known_yet_may_sell_us_a_part_and_is_looked_at_again_soon() -> None:
    mesh = star(20)
    b = mesh["b"]
    b.prefix = NETWORK
    send(mesh, "a", "198.51.100.7")
    unknown = Onward(NETWORK, Router(*b.link("c")), (Router("to-d", None, ip_address("192.0.2.1")),))
    b.step(ev.RoutesLookedUp(((sold(mesh, "a").id, unknown),)))
    mesh.settle()
    assert is_by_addresses(mesh, "a")
    mesh.wait(11)
    send(mesh, "z", "198.51.100.7")
    assert sold(mesh, "z").running


def test_a_client_that_sells_us_a_part_of_a_network_gets_the_network_by_its_addresses() -> None:
    """Otherwise it could pay us less for its packets to that part than we pay it for them."""
    mesh = star(20, a=asks(30))
    leads(mesh, {HALF: "a"})
    send(mesh, "a", "198.51.100.200")
    assert is_by_addresses(mesh, "a")


def test_a_client_that_asks_for_a_network_that_is_not_sold_as_a_whole_is_refused() -> None:
    mesh = star(20)
    leads(mesh, {HALF: "d"})
    send(mesh, "a", "198.51.100.200")
    ask(mesh, "a", NETWORK)
    refusals = mesh["b"].sent(Reject)
    assert isinstance(refusals[-1], Reject) and refusals[-1].destination == NETWORK


def test_a_network_within_which_we_bought_a_part_at_a_higher_price_is_sold_by_its_addresses() -> None:
    mesh = star(4, c=asks(20))
    ask(mesh, "z", FIRST)
    mesh["c"].step(ev.SettingsChanged(asks(4)))
    send(mesh, "a", "198.51.100.7")
    assert is_by_addresses(mesh, "a")
    send(mesh, "a", str(FIRST.network_address))
    part = sold(mesh, "a", FIRST)
    assert part.running and part.rests_on == bought(mesh, "c", FIRST).id
    assert part.price_msat_per_gib > 20 * MSAT_PER_KB


WIDE = ip_network("198.51.0.0/16")


def within_wide(*parts: Prefix) -> tuple[Mesh, list[Sale]]:
    """Return a mesh whose b has bought WIDE, on which what it sells to a rests, and the sales of these parts."""
    mesh = star(4, c=asks(5))
    mesh["b"].prefix = WIDE
    ask(mesh, "z", WIDE)
    for part in parts:
        ask(mesh, "a", part)
    sales = [sold(mesh, "a", part) for part in parts]
    assert all(one.rests_on == bought(mesh, "c", WIDE).id for one in sales)
    return mesh, sales


def offer(mesh: Mesh, prefix: Prefix, price_msat_per_kb: int) -> Purchase:
    """Let c offer b a prefix, which b buys."""
    mesh["c"].step(ev.SettingsChanged(asks(price_msat_per_kb)))
    question, number = Ask(prefix, 0, 0), (1 << 45) + len(mesh["c"].said)
    b, c = mesh["b"], mesh["c"]
    c.step(ev.MessageReceived(b.identity, c.link("b"), 1, question, number, onward=c.onward))
    mesh.settle()
    return bought(mesh, "c", prefix)


@pytest.mark.parametrize("part", [FIRST, ip_network("198.51.100.64/28"), NETWORK])
def test_a_dear_network_bought_between_a_sale_and_what_it_rests_on_ends_the_sale(part: Prefix) -> None:
    mesh, (sale,) = within_wide(part)
    between = offer(mesh, NETWORK, 500)
    assert between.price_msat_per_gib == 500 * MSAT_PER_KB and not sale.running
    ask(mesh, "a", part)
    assert sold(mesh, "a", part).price_msat_per_gib > 500 * MSAT_PER_KB


def test_a_quote_within_a_dear_network_bought_before_its_accept_is_taken_back() -> None:
    mesh, _ = within_wide()
    mesh.lost = {Accept}
    ask(mesh, "a", FIRST)
    quoted = sold(mesh, "a", FIRST)
    mesh.lost = set()
    offer(mesh, NETWORK, 500)
    assert quoted.id not in mesh["b"].world.contracts


def test_what_goes_by_a_narrower_purchase_still_is_not_touched_by_a_dear_one_around_it() -> None:
    mesh = star(4, c=asks(5))
    mesh["b"].prefix = FIRST
    ask(mesh, "a", FIRST)
    sale = sold(mesh, "a", FIRST)
    mesh["b"].prefix = WIDE
    ask(mesh, "z", WIDE)
    offer(mesh, NETWORK, 500)
    assert sale.running


def test_a_sale_costs_what_the_purchase_between_costs_also_while_that_is_idle() -> None:
    mesh, (sale,) = within_wide(FIRST)
    between = offer(mesh, NETWORK, 5)
    mesh.wait(11)
    assert sale.running and not between.in_use(mesh.now.monotonic_s)
    between.reprice(between.data_limit_bytes, 500 * MSAT_PER_KB)
    basis = upstream.basis(mesh["b"].world, sale)
    assert basis is not None and basis.cost_msat_per_gib == 500 * MSAT_PER_KB


@pytest.mark.parametrize(("part", "of"), [(FIRST, NETWORK), (FIRST, FIRST)])
def test_what_was_ending_for_a_dear_part_ends_also_when_the_process_dies_before(part: Prefix, of: Prefix) -> None:
    mesh, (sale,) = within_wide(of)
    mesh.halted = deque(maxlen=0)  # the kernel's last readings come too late
    offer(mesh, part, 500)
    assert sale.state is State.HALTING
    mesh.halted = deque()
    mesh.kill("b")
    mesh.settle()
    assert all(one.id != sale.id for one in mesh["b"].world.contracts.values())
    assert not any(isinstance(one, Sale) and one.destination.prefix == of for one in mesh["b"].world.contracts.values())


@pytest.mark.parametrize("before", [0, 4])
def test_a_part_whose_price_rises_ends_the_contract_for_the_network(before: int) -> None:
    mesh = star(4, c=asks(before))
    ask(mesh, "z", FIRST)
    send(mesh, "a", "198.51.100.7")
    sale, part = sold(mesh, "a"), bought(mesh, "c", FIRST)
    mesh["c"].step(ev.SettingsChanged(asks(20)))
    mesh.renew("b", part, part.data_limit_bytes + MB)
    assert part.highest_msat_per_gib == 20 * MSAT_PER_KB and not sale.running
    assert is_by_addresses(mesh, "a")


def test_a_network_that_gets_cheaper_is_not_renewed_if_a_part_is_dear_for_it_now() -> None:
    mesh = star(4, c=asks(8))
    ask(mesh, "z", FIRST)
    send(mesh, "a", "198.51.100.7")
    sale, whole = sold(mesh, "a"), bought(mesh, "c", NETWORK)
    mesh["c"].step(ev.SettingsChanged(asks(2)))
    bought_by_a = mesh["a"].world.purchases.exact(mesh["b"].identity, NETWORK)
    assert bought_by_a is not None
    for _ in range(2):
        mesh.renew("b", whole, whole.data_limit_bytes + MB)
        mesh.count("b", whole.id, whole.prices[-1][0] - whole.used_bytes + MB)
        mesh.renew("a", bought_by_a, bought_by_a.data_limit_bytes + MB)
    assert not sale.running and is_by_addresses(mesh, "a")


@pytest.mark.parametrize("also", [None, HALF, FIRST])
def test_a_part_that_its_server_offers_unasked_at_a_higher_price_ends_all_contracts_around_it(
    also: Prefix | None,
) -> None:
    mesh = star(4)
    send(mesh, "a", "198.51.100.7")
    if also is not None:
        ask(mesh, "a", also)
    sale, b, mesh.lost = sold(mesh, "a"), mesh["b"], {Accept}
    link, price = b.link("c"), 20 * MSAT_PER_KB
    offer = Propose(bytes(16), FIRST, price, MB, 3600, 10, 0, 4, (mark(mesh["c"].identity),))
    b.step(ev.MessageReceived(mesh["c"].identity, link, 1, offer, 1 << 43, None, FIRST, b.onward))
    mesh.settle()
    assert bought(mesh, "c", FIRST).price_msat_per_gib == price and not sale.running
    assert not [one for one in b.world.sold_to(mesh["a"].identity) if one.running]
    mesh.lost = set()
    assert is_by_addresses(mesh, "a")


def test_a_network_whose_route_moves_to_a_server_that_sold_us_a_dear_part_ends() -> None:
    mesh = star(20)
    mesh["b"].prefix, mesh["b"].route = FIRST, "d"
    ask(mesh, "z", FIRST)
    leads(mesh, {})
    send(mesh, "a", "198.51.100.7")
    sale = sold(mesh, "a")
    leads(mesh, {}, "d")
    assert not sale.running and is_by_addresses(mesh, "z")


def test_a_client_to_which_our_route_for_its_network_leads_gets_it_no_more() -> None:
    """It could sell us a part of it for more, and send there itself."""
    mesh = star(20, a=asks(30))
    leads(mesh, {})
    send(mesh, "a", "198.51.100.7")
    sale = sold(mesh, "a")
    leads(mesh, {}, "a")
    assert not sale.running


def test_a_contract_that_waits_for_money_with_its_first_packet_ends_like_others_when_the_network_is_taken_apart() -> (
    None
):
    mesh = star(20, b=settings(**{**PLENTY, "grace_data_bytes": 0}))
    b, a = mesh["b"], mesh["a"]
    leads(mesh, {})
    send(mesh, "a", "198.51.100.7")
    sale, account = sold(mesh, "a"), b.world.client(a.identity)
    sale.held = sale.held or [77]
    leads(mesh, {HALF: "d"})
    neighbour = b.world.peers.of(sale)
    assert not sale.running and sale.id not in b.world.contracts and account.running == 0
    assert neighbour is not None and neighbour.quotes == 0 and b.sent(Cancel)
