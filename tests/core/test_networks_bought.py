"""Networks bought: a purchase of a network, or of a default route, and contracts within it that rest on something else.

Our routes to single hosts in it may lead another way than the network's: what a contract costs depends on its own.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from mesh import HOST, MB, PLENTY, Mesh, asks
from playbook import MSAT_PER_KB, settings

from ngp.core import basis_changed
from ngp.core import events as ev
from ngp.core.buying.purchase import Purchase
from ngp.core.kernel import HeldPacket, Onward
from ngp.core.messages import Ask, Propose, Reject, RejectReason
from ngp.core.selling.sale import Sale
from ngp.core.settings import Margin

DEAR = asks(20)
HOUSEHOLD = settings(**{**PLENTY, "sells": False, "buys_default_route": True})


def goes_by(mesh: Mesh, sale: Sale, purchase: Purchase, seconds: int, size: int = MB, asks: bool = True) -> None:
    """Let traffic of a's, which goes by a purchase of b's, be counted each second while its contract runs.

    Args: asks: a's meter counts it, too, so it asks for a new contract when that ends.
    """
    for _ in range(seconds):
        for contract in (purchase.id, sale.id):
            mesh["b"].counts.setdefault(contract, [0, 0])[0] += size
        mesh["b"].step(ev.UsageRead((mesh["b"].reading(purchase.id), mesh["b"].reading(sale.id))))
        if asks:
            mesh["a"].counts[sale.id] = list(mesh["b"].counts[sale.id])
            mesh["a"].step(ev.UsageRead((mesh["a"].reading(sale.id),)))
        mesh.settle()
        mesh.wait(1)
        if not sale.running:
            break


def with_a_dear_way(way: str) -> Mesh:
    """Return a mesh in which b sells to a what it buys from c, or sends to its uplink; d and h are b's neighbours."""
    mesh = Mesh("abc" if way == "c" else "ab", d=DEAR, h=HOUSEHOLD)
    for name in "zdh":
        mesh.add(name, "b")
    mesh["d"].step(ev.SettingsChanged(DEAR))
    mesh["h"].step(ev.SettingsChanged(HOUSEHOLD))
    mesh["z"].route = mesh["h"].route = "b"
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").running
    return mesh


def buys_the_network(mesh: Mesh) -> None:
    """Let b's household send to another host of the network, so that b buys that from d, where its route leads now."""
    d = mesh["d"]
    d.prefix = mesh["b"].prefix
    d.step(HeldPacket(999, d.link("b"), ip_address("198.51.100.9"), d.onward))
    mesh.settle()


@pytest.mark.parametrize("way", ["c", "its uplink"])
@pytest.mark.parametrize("network", ["198.51.100.1/32", "198.51.100.0/24"])
def test_a_contract_ends_when_its_traffic_goes_by_a_dearer_purchase_of_a_network(network: str, way: str) -> None:
    """Another client has b buy the network, to which b's route leads another way now."""
    mesh = with_a_dear_way(way)
    b, sale = mesh["b"], mesh["b"].sale("a")
    b.route, b.prefix = "d", ip_network(network)
    mesh.packet("z", "b")
    assert b.purchase("d").price_msat_per_gib == 20 * MSAT_PER_KB
    goes_by(mesh, sale, b.purchase("d"), 20)
    assert sale.used_bytes < 2 * MB


@pytest.mark.parametrize("way", ["c", "its uplink"])
def test_a_contract_ends_when_its_traffic_goes_by_a_dearer_default_route(way: str) -> None:
    mesh = with_a_dear_way(way)
    b, sale = mesh["b"], mesh["b"].sale("a")
    b.lead("d")
    b.step(HeldPacket(999, b.link("h"), ip_address("203.0.113.9"), b.onward))
    mesh.settle()
    whole = b.world.purchases.exact(mesh["d"].identity, ip_network("0.0.0.0/0"))
    assert whole is not None and whole.running and whole.price_msat_per_gib == 20 * MSAT_PER_KB
    goes_by(mesh, sale, whole, 20)
    assert sale.used_bytes < 2 * MB


@pytest.mark.parametrize("way", ["c", "its uplink"])
def test_a_contract_whose_own_route_stands_goes_on_when_the_network_around_it_is_bought_at_a_higher_price(
    way: str,
) -> None:
    mesh = with_a_dear_way(way)
    b, sale = mesh["b"], mesh["b"].sale("a")
    b.others = {ip_network(f"{HOST}/32"): "c" if way == "c" else ""}
    b.route, b.prefix = "d", ip_network("198.51.100.0/24")
    buys_the_network(mesh)
    bought = b.world.purchases.exact(mesh["d"].identity, ip_network("198.51.100.0/24"))
    assert bought is not None and bought.running and sale.running
    assert sale.rests_on == (b.purchase("c").id if way == "c" else b"")


def test_a_contract_beyond_those_that_are_looked_up_pays_the_dearer_way_from_its_renewal_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(basis_changed, "MOST_LOOKED_UP", 0)
    mesh = with_a_dear_way("its uplink")
    b, sale = mesh["b"], mesh["b"].sale("a")
    b.route, b.prefix = "d", ip_network("198.51.100.0/24")
    mesh.packet("z", "b")
    goes_by(mesh, sale, b.purchase("d"), 80)
    assert not sale.running or (sale.rests_on == b.purchase("d").id and sale.price_msat_per_gib > 20 * MSAT_PER_KB)


def test_the_routes_of_a_limited_number_of_contracts_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basis_changed, "MOST_LOOKED_UP", most := 10)
    mesh, looked = with_a_dear_way("its uplink"), []
    b = mesh["b"]
    for number in range(2 * most):
        b.step(HeldPacket(number + 10, b.link("a"), ip_address(0x0A010000 + number), b.onward))
        mesh.settle()
    b.route, b.prefix = "d", ip_network("10.1.0.0/16")
    monkeypatch.setattr(b, "onward_to", lambda prefix: looked.append(prefix) or Onward())
    b.step(HeldPacket(5, b.link("z"), ip_address("10.1.2.3"), b.onward))
    mesh.settle()
    assert len([prefix for prefix in looked if prefix.prefixlen == 32]) == most
    assert all(one.running for one in b.world.sold_to(mesh["a"].identity))


def beyond_the_looked_up(way: str) -> tuple[Mesh, Purchase]:
    """Return a mesh in which a's traffic goes by d's dear network now; b hasn't looked up that route."""
    mesh = with_a_dear_way(way)
    b = mesh["b"]
    b.others = {ip_network(f"{HOST}/32"): "c" if way == "c" else ""}
    b.route, b.prefix = "d", ip_network("198.51.100.0/24")
    buys_the_network(mesh)
    b.others = {}
    dear = b.world.purchases.exact(mesh["d"].identity, b.prefix)
    assert dear is not None and dear.running and b.sale("a").running
    return mesh, dear


def asks_to_renew(mesh: Mesh, client: str, sale: Sale, destination: str) -> None:
    b, prefix = mesh["b"], ip_network(destination)
    ask, number = Ask(prefix, 0, 0, sale.id), (1 << 41) + len(b.said)
    b.step(ev.MessageReceived(sale.identity, sale.link, 1, ask, number, None, None, b.onward_to(prefix)))
    mesh.settle()


@pytest.mark.parametrize("way", ["c", "its uplink"])
def test_a_renewal_shows_where_the_route_leads_and_ends_a_contract_that_is_too_cheap_for_it(way: str) -> None:
    """Whatever its client would pay: it is agreed anew."""
    mesh, dear = beyond_the_looked_up(way)
    sale = mesh["b"].sale("a")
    mesh["a"].step(ev.SettingsChanged(settings(**{**PLENTY, "buy_max_msat_per_gib": 6 * MSAT_PER_KB})))
    asks_to_renew(mesh, "a", sale, f"{HOST}/32")
    assert not sale.running and dear.running


def test_a_client_cannot_choose_by_what_it_asks_for_which_route_its_renewal_is_judged_by() -> None:
    mesh, _ = beyond_the_looked_up("its uplink")
    sale = mesh["b"].sale("a")
    limit_bytes = sale.data_limit_bytes
    asks_to_renew(mesh, "a", sale, "203.0.113.9/32")
    assert mesh["b"].sent(Reject)[-1] == Reject(sale.id, RejectReason.TERMS)
    assert sale.data_limit_bytes == limit_bytes and sale.renewal_offer is None


def test_clients_that_renew_at_once_after_a_change_of_routes_to_a_way_of_equal_price_keep_their_contracts() -> None:
    mesh, names = Mesh("abc"), "efghijklm"
    b = mesh["b"]
    for name in f"dz{names}":
        mesh.add(name, "b")
        mesh[name].route = "b" if name != "d" else ""
    for name in names:
        mesh.packet(name, "b")
    sales = [b.sale(name) for name in names]
    b.others = {ip_network(f"{HOST}/32"): "c"}
    b.route, b.prefix = "d", ip_network("198.51.100.0/24")
    buys_the_network(mesh)
    b.others = {}
    for name, sale in zip(names, sales, strict=True):
        asks_to_renew(mesh, name, sale, f"{HOST}/32")
    mesh.wait(1)
    assert all(one.running for one in sales)


def extend(mesh: Mesh, name: str, server: str, limit_bytes: int) -> None:
    """Let a node ask for a renewal of its purchase."""
    assert mesh.renew(name, mesh[name].purchase(server), limit_bytes)


@pytest.mark.parametrize("falls", [False, True])
def test_a_contract_in_use_that_is_too_cheap_for_the_way_it_goes_ends_at_its_renewal(falls: bool) -> None:
    """Also if that way is to cost less later."""
    mesh, dear = beyond_the_looked_up("c")
    sale = mesh["b"].sale("a")
    if falls:
        mesh["d"].step(ev.SettingsChanged(settings(**PLENTY)))
        mesh.count("d", dear.id, 80 * MB)
        mesh.count("b", dear.id, 80 * MB)
        mesh.settle()
        assert dear.price_msat_per_gib < dear.highest_msat_per_gib == 20 * MSAT_PER_KB
    goes_by(mesh, sale, dear, 12, 10_000, asks=False)
    extend(mesh, "a", "b", 2 * sale.data_limit_bytes)
    assert not sale.running


def test_a_client_cannot_keep_a_contract_that_is_too_cheap_by_asking_again_and_again() -> None:
    mesh, dear = beyond_the_looked_up("c")
    b, sale = mesh["b"], mesh["b"].sale("a")
    goes_by(mesh, sale, dear, 12, 10_000, asks=False)
    extend(mesh, "b", "d", 900 * MB)
    mesh.lost = {Propose}
    asks_to_renew(mesh, "a", sale, f"{HOST}/32")
    assert not sale.running and b.world.sales.find(sale.identity, ip_address(HOST)) is None


@pytest.mark.parametrize("waits", [True, False])
def test_a_renewal_that_waited_for_room_is_no_cheaper_than_the_way_that_its_route_leads(waits: bool) -> None:
    mesh = Mesh("abc", b=asks(20))
    for name in "zd":
        mesh.add(name, "b")
    mesh["d"].step(ev.SettingsChanged(asks(15)))
    mesh["z"].route = "b"
    mesh.packet("a", "b")
    b, sale = mesh["b"], mesh["b"].sale("a")
    b.step(ev.SettingsChanged(settings(**PLENTY)))
    b.others = {ip_network(f"{HOST}/32"): "c"}
    b.route, b.prefix = "d", ip_network("198.51.100.0/24")
    buys_the_network(mesh)
    b.others = {}
    if not waits:
        extend(mesh, "b", "c", 900 * MB)
    mesh.count("b", sale.id, 1000)
    limit_bytes = sale.data_limit_bytes
    extend(mesh, "a", "b", 2 * limit_bytes)
    assert sale.data_limit_bytes > limit_bytes and sale.price_msat_per_gib > 15 * MSAT_PER_KB


@pytest.mark.parametrize("declined", [True, False])
def test_a_contract_above_its_cost_goes_on_when_it_isnt_renewed_at_a_higher_margin(declined: bool) -> None:
    free = {"sell_msat_per_gib": 0, "sell_min_msat_per_gib": 0}
    mesh = Mesh("abc", b=settings(**PLENTY, **free))
    mesh.packet("a", "b")
    mesh.carry("abc", 100_000)
    b, sale = mesh["b"], mesh["b"].sale("a")
    extend(mesh, "b", "c", 400 * MB)
    b.step(ev.SettingsChanged(settings(**PLENTY, **free, resale_margin=Margin(300_000, 0))))
    if declined:
        mesh["a"].step(ev.SettingsChanged(settings(**{**PLENTY, "buy_max_msat_per_gib": 6 * MSAT_PER_KB})))
    else:
        mesh.lost = {Propose}
    extend(mesh, "a", "b", 2 * sale.data_limit_bytes)
    mesh.wait(11)
    assert sale.running and sale.price_msat_per_gib > b.purchase("c").highest_msat_per_gib


def offered_less(mesh: Mesh, msat_per_kb: int) -> Sale:
    """Let b lower its price, and a ask for a renewal that it doesn't answer. Returns a's contract."""
    deliver, b = mesh._deliver, mesh["b"]
    mesh._deliver = lambda sender, receiver, said: None if receiver is mesh["a"] else deliver(sender, receiver, said)
    sale = b.sale("a")
    b.step(ev.SettingsChanged(asks(msat_per_kb)))
    for contract in (sale.id, b.purchase("c").id):
        mesh.count("b", contract, MB)
    asks_to_renew(mesh, "a", sale, f"{HOST}/32")
    assert sale.renewal_offer is not None and sale.renewal_offer.price_msat_per_gib < 6 * MSAT_PER_KB
    return sale


def test_a_contract_whose_open_renewal_is_too_cheap_for_the_way_it_goes_now_ends() -> None:
    """It costs enough until then. Its client may keep the offer open by asking again, and accept it at last."""
    mesh = Mesh("abc", b=asks(12))
    for name in "dz":
        mesh.add(name, "b")
    mesh["d"].step(ev.SettingsChanged(asks(9)))
    mesh["z"].route = "b"
    mesh.packet("a", "b")
    sale = offered_less(mesh, 5)
    mesh["b"].route = "d"
    mesh.packet("z", "b")
    assert not sale.running


def test_a_client_cannot_keep_a_renewal_from_before_the_route_changed_by_asking_again() -> None:
    """What it goes by now was bought before, so nothing but the question shows where the route leads."""
    mesh = Mesh("abc")
    mesh.add("d", "b")
    mesh["d"].step(ev.SettingsChanged(asks(9)))
    b = mesh["b"]
    b.route = "d"
    mesh.packet("b", "d")
    mesh.wait(12)
    b.route = "c"
    mesh.packet("a", "b")
    sale = offered_less(mesh, 5)
    b.route = "d"
    asks_to_renew(mesh, "a", sale, f"{HOST}/32")
    assert not sale.running and mesh["b"].sent(Reject)[-1] == Reject(sale.id, RejectReason.LAPSED)
