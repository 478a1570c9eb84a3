"""Two ways: the routes of a node in the middle have changed, and what a client bought may go by two purchases."""

from __future__ import annotations

import pytest
from mesh import MB, PLENTY, Mesh
from playbook import MSAT_PER_KB, settings
from test_unsold import GRACE, KB, brings, cancels, exhaust, line, stream

from ngp.core import events as ev
from ngp.core.buying.purchase import Purchase

DEAR = {"sell_msat_per_gib": 50 * MSAT_PER_KB, "sell_min_msat_per_gib": 50 * MSAT_PER_KB}


def moved(mesh: Mesh, buyer: str = "a") -> tuple[Mesh, Purchase, Purchase]:
    """Let b sell to a client by c; then b's route leads to d, by which it buys the same."""
    mesh.add("d", "b")
    mesh.packet(buyer, "b")
    old = mesh["b"].purchase("c")
    mesh.carry(f"{buyer}bc", 2000)
    mesh["b"].lead("d")
    mesh.packet("b", "d")
    return mesh, old, mesh["b"].purchase("d")


def test_a_sale_from_while_our_route_led_upstream_ends_when_it_leads_back_to_a_dear_purchase() -> None:
    free = {"sell_msat_per_gib": MSAT_PER_KB, "sell_min_msat_per_gib": MSAT_PER_KB}
    mesh = Mesh("abc", c=settings(**PLENTY, **DEAR), b=settings(**{**PLENTY, **free}))
    b = mesh["b"]
    mesh.packet("b", "c")
    b.lead("")
    mesh.packet("a", "b")
    sale = b.sale("a")
    assert sale.running and not sale.rests_on
    mesh.carry("bc", KB)
    mesh.count("b", sale.id, KB)
    mesh.wait(2)
    assert sale.running, "it goes upstream"
    b.lead("c")  # nothing is bought, as it was bought before
    for _ in range(3):
        mesh.carry("bc", KB)
        mesh.count("b", sale.id, KB)
        mesh.wait(1)
    assert not sale.running and not b.world.resold.doubtful


def test_a_sale_that_moves_from_a_purchase_that_ends_soon_to_another_does_not_end_with_it() -> None:
    mesh = Mesh("abc")
    b = mesh["b"]
    mesh.packet("a", "b")
    sale, old = b.sale("a"), b.purchase("c")
    mesh["c"].step(ev.SettingsChanged(settings(**PLENTY, contract_time_s=60)))
    mesh.renew("b", old, old.data_limit_bytes + MB)
    assert b.granted[sale.id].expires_in_s <= 60
    mesh.add("d", "b")
    b.lead("d")
    mesh.packet("b", "d")
    new = b.purchase("d")
    for _ in range(15):
        for name, contract in (("b", new.id), ("b", sale.id)):
            mesh.count(name, contract, KB)
        mesh.wait(1)
    assert sale.rests_on == new.id and b.granted[sale.id].expires_in_s > 3000


def test_a_sale_that_moves_to_another_purchase_and_its_account_have_the_same_sum_after_a_kill() -> None:
    mesh = Mesh("abc", b=settings(**{**PLENTY, **DEAR}))
    mesh.add("z", "b")
    b = mesh["b"]
    b.lead("")
    mesh.packet("a", "b")
    sale = b.sale("a")
    mesh.count("b", sale.id, MB)
    b.route = "c"
    mesh["z"].route = "b"
    mesh.packet("z", "b")
    assert sale.rests_on == b.purchase("c").id
    mesh.kill("b")
    (again,) = b.world.sold_to(mesh["a"].identity)
    assert b.world.clients[mesh["a"].identity].charged_msat == again.charged_msat > 0


def comes_for_nobody(mesh: Mesh, old: Purchase, new: Purchase) -> int:
    """Let a stream come by the new way that nobody pays for, while z, which pays, sends by it, and a little by the old.

    Returns the bytes that came until the new purchase ended, or when it didn't for long.
    """
    sale, came = mesh["b"].sale("z"), 0
    for number in range(200):
        if not new.running:
            break
        for contract in (new.id, sale.id, *((old.id, sale.id) if number % 20 == 0 else ())):
            mesh.count("b", contract, 1600)
        came += 60 * KB
        stream(mesh, 60 * KB, new.id)
    return came


@pytest.mark.parametrize("trickles", [True, False])
def test_a_price_that_rises_on_one_of_two_ways_is_not_sold_below(trickles: bool) -> None:
    """The old way's server could send a little now and then, so that the sale would rest on its cheap purchase."""
    mesh, old, new = moved(Mesh("abc"))
    sale = mesh["b"].sale("a")
    mesh["d"].step(ev.SettingsChanged(settings(**PLENTY, **DEAR)))
    before = new.charged_msat, sale.charged_msat
    for number in range(300):
        for name, contract in (("a", sale.id), ("d", new.id), ("b", new.id), ("b", sale.id)):
            mesh.count(name, contract, MB)
        if trickles and number % 20 == 0:
            for name, contract in (("b", old.id), ("c", old.id), ("b", sale.id), ("a", sale.id)):
                mesh.count(name, contract, 1000)
        mesh.settle()
        mesh.wait(0.2)
        if not (sale.running and new.running):
            break
    assert sale.charged_msat - before[1] >= new.charged_msat - before[0]


@pytest.mark.parametrize("pays", [True, False])
def test_what_was_bought_by_the_new_way_ends_though_the_sale_rested_on_the_old_one(pays: bool) -> None:
    mesh, _, new = moved(line())
    sale, came = mesh["b"].sale("a"), 0
    mesh.wait(1)
    for contract in (new.id, sale.id):
        mesh.count("b", contract, 2000)
    if pays:
        cancels(mesh, "a", sale.id)
    else:
        mesh.wait(12)
    mesh.settle()
    while new.running and came < 50 * MB:
        came += MB
        brings(mesh, MB, new.id)
    assert not sale.running and came <= 2 * MB


def test_the_packets_of_a_client_that_pays_hide_no_stream_for_one_that_does_not() -> None:
    mesh, old, new = moved(line(clients="z"), "z")
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").rests_on == new.id and mesh["b"].sale("z").rests_on == old.id
    exhaust(mesh)
    came = comes_for_nobody(mesh, old, new)
    assert GRACE < came <= 4 * GRACE


def test_what_the_household_once_sent_by_the_old_way_hides_no_stream_by_the_new_one() -> None:
    mesh, old, new = moved(line(clients="z"), "z")
    mesh.packet("a", "b")
    mesh.count("b", old.id, 10 * MB)
    exhaust(mesh)
    came = comes_for_nobody(mesh, old, new)
    assert came <= 4 * GRACE


def test_what_the_household_receives_by_one_way_goes_on_when_a_clients_contract_by_another_ends() -> None:
    mesh, _, new = moved(line())
    mesh.count("b", new.id, 5000)
    cancels(mesh, "a", mesh["b"].sale("a").id)
    mesh.settle()
    for _ in range(3):
        brings(mesh, MB, new.id)
    assert new.running
