"""Losses: what a destination sends to others, who have not bought it, costs a node in the middle only the grace."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

import pytest
from mesh import HOST, MB, PLENTY, Mesh, Node
from playbook import settings
from test_default_resale import bought_whole, line, sold_whole
from test_two_ways import moved
from test_unsold import GRACE, KB, STRICT, cancels, exhaust, reasons
from test_unsold import line as line_of

from ngp.core import events as ev
from ngp.core import upstream
from ngp.core.buying.purchase import Purchase
from ngp.core.kernel import HeldPacket, Verdict
from ngp.core.settings import Margin
from ngp.core.streams import LOSS_WINDOW_S, MOST_GRACES, NEWCOMERS
from ngp.core.unsold import FIRST_PAUSE_S, MOST_PAUSE_S

ABOVE = GRACE + 1


def lose(mesh: Mesh, size: int, *contracts: bytes) -> None:
    """Let b's kernel refuse bytes that came by each of these purchases, as nobody had bought them."""
    mesh["b"].step(ev.LossesSeen(tuple((one, size) for one in contracts)))
    mesh.settle()


def lost(mesh: Mesh, client: str) -> int:
    """Return what b lost for a client by what it bought from c. Args: client: "": those that never paid."""
    about = (mesh[client].identity, mesh["c"].identity) if client else (NEWCOMERS, b"")
    return mesh["b"].world.streams.by_client.lately(about, mesh.now.monotonic_s).counted_bytes


def bought_for_a(clients: str = "") -> tuple[Mesh, Node, Purchase]:
    """Return a line whose b has bought HOST from c for a, and for further clients, all of which pay."""
    mesh = line_of(clients=clients)
    mesh["b"].world.client(mesh["a"].identity).paid_msat = 1_000_000_000
    for name in "a" + clients:
        mesh.packet(name, "b")
    return mesh, mesh["b"], mesh["b"].purchase("c")


def buy(mesh: Mesh, client: str, hosts: Iterable[str]) -> list[Purchase]:
    """Let a client buy destinations, and return b's purchases of them."""
    at, found = mesh["b"], []
    for number, host in enumerate(hosts):
        at.step(HeldPacket(500 + number, at.link(client), ip_address(host), at.onward))
        mesh.settle()
        found.append(at.world.purchases.find(mesh["c"].identity, ip_address(host)))
    return [one for one in found if one is not None]


def test_a_destination_that_sends_to_others_is_no_longer_bought_after_as_much_as_the_grace() -> None:
    mesh, at, purchase = bought_for_a()
    (other,) = buy(mesh, "a", ["203.0.113.1"])
    sale = at.sale("a")
    for _ in range(4):
        lose(mesh, GRACE // 4, purchase.id)
        assert sale.running and purchase.running
    lose(mesh, 1, purchase.id)
    assert not purchase.running and reasons(mesh, "b", sale.id) == ["upstream"] and reasons(mesh, "b", purchase.id)
    assert not at.world.streams.of and other.running and mesh["c"].world.contracts.keys() == {other.id}
    (line,) = (text for text in at.logged if "bytes came from" in text)
    assert line.startswith(f"{ABOVE} bytes came from {HOST}/32 by {purchase.identity.hex()[:8]} ")
    assert "the contracts for it of all clients end, and it isn't sold to them for 30 s" in line
    assert "block the client" in line


def test_it_is_withheld_for_longer_each_time_though_all_clients_pay() -> None:
    mesh, at, purchase = bought_for_a("z")
    lose(mesh, ABOVE, purchase.id)
    pause_s = FIRST_PAUSE_S
    for _ in range(3):
        assert not purchase.running
        lose(mesh, 100 * KB, purchase.id)  # it came before the end
        mesh.wait(pause_s - 1)
        mesh.packet("z", "b")
        assert at.verdicts[-1] is Verdict.PROHIBIT, "the money of its clients doesn't end the pause"
        mesh.wait(32)
        pause_s *= 2
        mesh.packet("z", "b")
        purchase = at.purchase("c")
        assert purchase.running
        lose(mesh, 60 * KB, purchase.id)
        assert purchase.running
        lose(mesh, 5 * KB, purchase.id)


def test_after_an_hour_of_peace_the_pause_is_short_again() -> None:
    mesh, at, purchase = bought_for_a()
    for _ in range(2):
        lose(mesh, ABOVE, purchase.id)
        (withheld,) = at.world.streams.withheld.values()
        assert withheld.times == 1 and not purchase.running
        mesh.now = type(mesh.now)(mesh.now.utc_s, withheld.until_mono_s + MOST_PAUSE_S + 1)
        mesh.packet("a", "b")
        purchase = at.purchase("c")
        lose(mesh, GRACE, purchase.id)
        assert purchase.running
        mesh.now = type(mesh.now)(mesh.now.utc_s, mesh.now.monotonic_s + LOSS_WINDOW_S + 1)


def test_a_trickle_is_borne() -> None:
    mesh, _, purchase = bought_for_a()
    for _ in range(4):
        lose(mesh, GRACE, purchase.id)
        mesh.now = type(mesh.now)(mesh.now.utc_s, mesh.now.monotonic_s + LOSS_WINDOW_S + 1)
    assert purchase.running


def test_a_client_that_ends_its_contract_in_time_and_buys_it_again_begins_with_no_new_grace() -> None:
    mesh, at, purchase = bought_for_a()
    lose(mesh, GRACE // 2, purchase.id)
    cancels(mesh, "a", at.sale("a").id)
    mesh.settle()
    assert not purchase.running
    lose(mesh, GRACE // 4, purchase.id)  # it was counted before the end, and is read only now
    mesh.packet("a", "b")
    again = at.purchase("c")
    lose(mesh, GRACE // 4, again.id)
    assert again.running
    lose(mesh, 1, again.id)
    assert not again.running


def test_many_destinations_of_one_client_count_together() -> None:
    mesh, at, first = bought_for_a()
    purchases = [first, *buy(mesh, "a", (f"203.0.113.{number}" for number in range(1, 36)))]
    assert len(purchases) == 36
    for size in (20 * KB, 30 * KB):
        lose(mesh, size, *(one.id for one in purchases))
    assert all(one.running for one in purchases), "together they are above it, but each brought little"
    lose(mesh, 10 * KB, *(one.id for one in purchases))
    lose(mesh, 1, *(one.id for one in purchases))
    assert not any(one.running for one in purchases), "above eight times the grace nothing is borne"
    assert not buy(mesh, "a", ["203.0.113.99"]), "and nothing more is bought"
    mesh.now = type(mesh.now)(mesh.now.utc_s, mesh.now.monotonic_s + LOSS_WINDOW_S + 1)
    mesh.wait(1)
    assert buy(mesh, "a", ["203.0.113.99"])


def sell(mesh: Mesh, client: str, size: int) -> Purchase:
    """Let a client get so much from HOST."""
    at = mesh["b"]
    purchase, sale = at.purchase("c"), at.sale(client)
    for one in (purchase, sale):
        at.counts.setdefault(one.id, [0, 0])[1] += size
    at.step(ev.UsageRead((at.reading(purchase.id), at.reading(sale.id))))
    mesh.settle()
    purchase.rate.a_second = 0.0  # it came long ago
    return purchase


def test_what_was_on_its_way_to_a_client_that_left_in_a_fast_download_is_borne() -> None:
    mesh, at, purchase = bought_for_a("z")
    sell(mesh, "a", 40 * MB)
    cancels(mesh, "a", at.sale("a").id)
    mesh.settle()
    lose(mesh, 3 * MB, purchase.id)
    assert purchase.running and at.sale("z").running and lost(mesh, "z") == lost(mesh, "a") == 0
    lose(mesh, MB + ABOVE, purchase.id)
    assert not purchase.running


@pytest.mark.parametrize("fast", [True, False])
def test_what_was_on_its_way_may_be_half_a_second_of_a_fast_flow(fast: bool) -> None:
    mesh, at, purchase = bought_for_a()
    purchase.rate.a_second, purchase.rate.at_mono_s = 8.0 * MB if fast else 0.0, mesh.now.monotonic_s
    lose(mesh, 3 * MB, purchase.id)
    assert purchase.running is fast and lost(mesh, "a") == GRACE
    lose(mesh, MB + 1, purchase.id)
    assert not purchase.running


@pytest.mark.parametrize(
    ("margin", "borne"), [(Margin(0, 0), 0), (Margin(50_000, 0), 2 * MB - 1), (Margin(0, 1 << 30), 4 * MB - 1)]
)
def test_no_more_is_borne_than_what_was_earned_above_cost_pays_for_and_that_once(margin: Margin, borne: int) -> None:
    free = {"sell_msat_per_gib": 0, "sell_min_msat_per_gib": 0}
    mesh = Mesh("abc", b=settings(**{**PLENTY, **free, "grace_data_bytes": GRACE, "resale_margin": margin}))
    at = mesh["b"]
    at.world.client(mesh["a"].identity).paid_msat = 1_000_000_000
    mesh.packet("a", "b")
    purchase = sell(mesh, "a", 40 * MB)
    lose(mesh, borne, purchase.id)
    assert lost(mesh, "a") == 0
    lose(mesh, GRACE, purchase.id)
    assert purchase.running
    lose(mesh, 2, purchase.id)
    assert not purchase.running


def test_what_our_household_used_before_a_start_pays_for_no_loss() -> None:
    mesh, at, purchase = bought_for_a()
    mesh.count("b", purchase.id, 40 * MB)
    mesh.kill("b")
    purchase = at.purchase("c")
    lose(mesh, ABOVE, purchase.id)
    assert not purchase.running


def test_others_that_share_what_a_client_buys_cannot_have_it_bought_nothing_more() -> None:
    mesh, at, _ = bought_for_a("z")
    at.world.clients[mesh["z"].identity].paid_msat = 0
    hosts = [f"203.0.113.{number}" for number in range(1, 13)]
    for one in buy(mesh, "a", hosts):
        buy(mesh, "z", [str(one.destination.prefix.network_address)])
        lose(mesh, ABOVE, one.id)
    assert buy(mesh, "a", ["203.0.113.99"])


def test_a_client_for_which_too_much_was_lost_takes_nothing_from_others() -> None:
    mesh, at, shared = bought_for_a("z")
    at.world.streams.of_client(mesh["a"].identity, mesh["c"].identity, mesh.now.monotonic_s).counted_bytes = 100 * GRACE
    lose(mesh, KB, shared.id)
    assert shared.running


def test_one_fast_stream_does_not_keep_its_client_from_buying_anything_else() -> None:
    mesh, at, purchase = bought_for_a()
    lose(mesh, 100 * GRACE, purchase.id)
    assert not purchase.running and lost(mesh, "a") == GRACE
    (other,) = buy(mesh, "a", ["203.0.113.99"])
    lose(mesh, 60 * KB, other.id)
    assert other.running


def test_keys_that_never_paid_are_one_for_which_it_counts_until_that_is_above_what_it_may_lose() -> None:
    mesh, at, purchase = bought_for_a("xyz")
    for name in "xyz":
        at.world.clients[mesh[name].identity].paid_msat = 0
    lose(mesh, GRACE, purchase.id)
    assert lost(mesh, "") == GRACE and lost(mesh, "a") == 0
    at.world.streams.of_client(b"", mesh["c"].identity, mesh.now.monotonic_s).counted_bytes += MOST_GRACES * GRACE
    (own,) = buy(mesh, "a", ["203.0.113.1"])
    lose(mesh, GRACE, own.id)
    assert lost(mesh, "a") == GRACE
    lose(mesh, ABOVE, purchase.id)
    assert not purchase.running and lost(mesh, "a") == 2 * GRACE, "they take no part of it any more"


def test_keys_that_never_paid_begin_with_no_new_grace_each() -> None:
    mesh, at, purchase = bought_for_a("xyz")
    for name in "axyz":
        at.world.clients[mesh[name].identity].paid_msat = 0
    cancels(mesh, "a", at.sale("a").id)
    graces = 0
    for number in range(60):
        (one,) = buy(mesh, "xyz"[number % 3], [f"203.0.113.{number}"]) or [None]
        if one is None:
            break
        lose(mesh, ABOVE, one.id)
        assert not one.running
        graces += 1
    assert graces == MOST_GRACES + 1


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("paid_msat", [0, 1_000_000_000])
def test_two_keys_have_no_more_graces_by_what_they_share(paid_msat: int, leaves: bool) -> None:
    mesh, at, _ = bought_for_a("z")
    at.world.clients[mesh["z"].identity].paid_msat = paid_msat
    ended = 0
    for number in range(60):
        hosts = [f"203.0.113.{number}"]
        buy(mesh, "z", hosts)
        if leaves and (sale := at.world.sales.find(mesh["z"].identity, ip_address(hosts[0]))) is not None:
            cancels(mesh, "z", sale.id)
            mesh.settle()
        for one in buy(mesh, "a", hosts):
            lose(mesh, ABOVE, one.id)
            ended += not one.running
    assert ended <= 2 * (MOST_GRACES + 1)


def test_what_several_clients_use_counts_for_each_in_part() -> None:
    mesh, at, shared = bought_for_a("xyz")
    (own,) = buy(mesh, "z", ["203.0.113.1"])
    lose(mesh, GRACE, shared.id)
    lose(mesh, 100 * KB, own.id)
    assert own.running and shared.running
    assert lost(mesh, "z") == GRACE // 4 + 100 * KB and lost(mesh, "a") == GRACE // 4


def test_who_has_brought_much_pays_for_what_was_on_its_way_not_those_that_use_the_same() -> None:
    mesh, at, purchase = bought_for_a("z")
    sell(mesh, "a", 40 * MB)
    for stays in (True, False):
        if not stays:
            cancels(mesh, "a", at.sale("a").id)
            mesh.settle()
        lose(mesh, MB, purchase.id)
        assert purchase.running and lost(mesh, "z") == 0
    assert buy(mesh, "z", ["203.0.113.99"])


def test_what_cheap_traffic_brought_pays_for_little_dear_traffic() -> None:
    mesh, at, purchase = bought_for_a()
    sell(mesh, "a", 40 * MB)
    price = purchase.price_msat_per_gib
    (dear,) = buy(mesh, "a", ["203.0.113.1"])
    dear.prices = ((0, 1000 * price),)
    lose(mesh, ABOVE + 5 * KB, dear.id)
    assert not dear.running


@pytest.mark.parametrize("paid_msat", [0, 1_000_000_000])
def test_who_has_something_sent_by_what_another_one_pays_for_does_not_lock_it_out(paid_msat: int) -> None:
    mesh, at, _ = bought_for_a("z")
    at.world.clients[mesh["z"].identity].paid_msat = paid_msat
    sell(mesh, "a", 40 * MB)
    for number in range(20):
        hosts = [f"203.0.113.{number}"]
        for one in buy(mesh, "a", hosts):
            buy(mesh, "z", hosts)
            if len(at.world.resting[one.id]) > 1:
                lose(mesh, ABOVE, one.id)
    assert buy(mesh, "a", ["203.0.113.99"])
    assert paid_msat or not buy(mesh, "z", ["203.0.113.98"])


def test_a_client_behind_which_there_is_a_town_may_lose_more_at_once() -> None:
    mesh, at, large = bought_for_a()
    many = buy(mesh, "a", (f"203.0.113.{number}" for number in range(1, 36)))
    sell(mesh, "a", 100 * MB)
    lose(mesh, 200 * KB, *(one.id for one in many))
    assert all(one.running for one in many) and buy(mesh, "a", ["203.0.113.99"]) and lost(mesh, "a") == 0
    lose(mesh, 10 * MB, large.id)
    assert not large.running, "it pays only once"


def test_what_is_lost_by_a_purchase_that_its_server_ends_counts() -> None:
    mesh, at, purchase = bought_for_a()
    mesh["c"].end("b")
    assert not purchase.running
    lose(mesh, ABOVE, purchase.id)
    mesh.packet("a", "b")
    assert at.verdicts[-1] is Verdict.PROHIBIT and lost(mesh, "a") == GRACE


@pytest.mark.parametrize("stays", [True, False])
def test_a_key_that_never_paid_does_not_end_what_a_client_pays_for_and_draws_nothing_of_what_that_brought(
    stays: bool,
) -> None:
    mesh, at, purchase = bought_for_a("z")
    at.world.clients[mesh["z"].identity].paid_msat = 0
    if not stays:
        cancels(mesh, "z", at.sale("z").id)
        mesh.settle()
    sell(mesh, "a", 40 * MB)
    sale = at.sale("z") if stays else None
    purchase.rate.a_second, purchase.rate.at_mono_s = 8.0 * MB, mesh.now.monotonic_s
    lose(mesh, 3 * MB, purchase.id)
    assert lost(mesh, "") == GRACE and (sale is None or sale.running), "half a second's flow is borne"
    lose(mesh, 2 * MB, purchase.id)
    assert purchase.running and at.sale("a").running and lost(mesh, "a") == 0
    assert sale is None or reasons(mesh, "b", sale.id) == ["upstream"]
    (line,) = (text for text in at.logged if "bytes came from" in text)
    assert "the contracts for it of clients that never paid end, and it isn't sold to them for 30 s" in line
    mesh.packet("z", "b")
    assert at.verdicts[-1] is Verdict.PROHIBIT, "it gets that no more for a while, only other destinations"
    assert buy(mesh, "z", ["203.0.113.2"])
    (own,) = buy(mesh, "a", ["203.0.113.1"])
    lose(mesh, 3 * MB, own.id)
    assert own.running and lost(mesh, "a") == 0, "it has paid for that, and nothing was taken from it"


def test_what_was_earned_is_forgotten_by_and_by() -> None:
    mesh, at, purchase = bought_for_a()
    sell(mesh, "a", 40 * MB)
    for _ in range(2):
        mesh.now = type(mesh.now)(mesh.now.utc_s, mesh.now.monotonic_s + LOSS_WINDOW_S + 1)
        at.world.streams.of_client(mesh["a"].identity, mesh["c"].identity, mesh.now.monotonic_s)
    lose(mesh, MB + GRACE + KB, purchase.id)
    assert not purchase.running


def test_what_comes_late_by_a_purchase_that_ended_ends_the_next_one_too() -> None:
    mesh, at, purchase = bought_for_a()
    lose(mesh, GRACE, purchase.id)
    mesh["c"].end("b")
    mesh.packet("a", "b")
    again = at.purchase("c")
    assert again is not purchase and again.running
    lose(mesh, 1, purchase.id)
    assert not again.running


def test_what_comes_late_for_clients_does_not_end_what_the_household_bought_since() -> None:
    mesh, at, purchase = bought_for_a()
    lose(mesh, GRACE, purchase.id)
    mesh["a"].route = ""
    mesh["c"].end("b")
    mesh.packet("b", "c")
    ours = at.purchase("c")
    assert ours is not purchase and ours.running
    lose(mesh, 1, purchase.id)
    assert ours.running


def test_what_is_lost_by_a_purchase_that_a_sale_moved_away_from_counts() -> None:
    mesh, old, new = moved(line_of(clients="z"))
    at, sale = mesh["b"], mesh["b"].sale("a")
    at.world.client(mesh["a"].identity).paid_msat = 1_000_000_000
    at.world.effects = []
    assert upstream.move(at.world, sale, new)
    at.carry_out(at.world.effects)
    assert old.running
    lose(mesh, ABOVE, old.id)
    assert not old.running and lost(mesh, "a") == GRACE


def test_after_a_price_has_fallen_a_purchase_earns_again_and_costs_nothing_when_it_is_free() -> None:
    mesh, at, purchase = bought_for_a()
    dear = purchase.price_msat_per_gib
    purchase.prices = ((0, 2 * dear), (1, dear))
    purchase.used_to_bytes = purchase.renewed_at_bytes = 10
    sell(mesh, "a", 40 * MB)
    lose(mesh, 3 * MB, purchase.id)
    assert purchase.running
    purchase.prices = ((0, dear), (1, 0))
    lose(mesh, 30 * MB, purchase.id)
    assert purchase.running


def test_what_is_lost_by_a_purchase_on_which_its_sale_does_not_rest_counts() -> None:
    mesh, old, new = moved(line_of(clients="z"))
    at, sale = mesh["b"], mesh["b"].sale("a")
    at.world.client(mesh["a"].identity).paid_msat = 1_000_000_000
    mesh.count("b", new.id, 10 * KB)
    mesh.count("b", sale.id, 10 * KB)
    assert sale.rests_on == old.id and new.running
    lose(mesh, ABOVE, new.id)
    assert not new.running


def test_what_was_dear_when_it_came_is_not_lost_at_the_price_of_what_comes_next() -> None:
    mesh, at, purchase = bought_for_a()
    sell(mesh, "a", 40 * MB)
    dear = purchase.price_msat_per_gib
    purchase.prices, purchase.renewed_at_bytes = ((0, dear), (purchase.used_bytes, 0)), 0
    assert purchase.highest_msat_per_gib == 0
    lose(mesh, 4 * MB + ABOVE, purchase.id)
    assert not purchase.running


def test_what_only_our_household_wants_stays_and_what_it_shares_is_bought_again_for_it_alone() -> None:
    mesh, at, purchase = bought_for_a()
    mesh.count("b", purchase.id, 10 * KB)
    lose(mesh, ABOVE, purchase.id)
    assert not purchase.running
    mesh.packet("b", "c")  # its next packet
    ours = at.purchase("c")
    assert ours is not purchase and ours.running
    lose(mesh, 10 * MB, ours.id)
    assert ours.running
    mesh.packet("a", "b")
    assert at.verdicts[-1] is Verdict.PROHIBIT, "clients don't get it meanwhile"


def test_what_costs_nothing_stays() -> None:
    mesh = Mesh("abc", b=STRICT, c=settings(**PLENTY, sell_msat_per_gib=0, sell_min_msat_per_gib=0))
    mesh.packet("a", "b")
    purchase = mesh["b"].purchase("c")
    assert purchase.highest_msat_per_gib == 0
    lose(mesh, 10 * MB, purchase.id)
    assert purchase.running


def test_a_debtor_that_pays_does_not_end_the_pause_of_what_was_refused_as_nobodys() -> None:
    mesh, at, purchase = bought_for_a()
    at.world.clients[mesh["a"].identity].paid_msat = 0
    exhaust(mesh)
    assert at.world.streams.debtors
    lose(mesh, ABOVE, purchase.id)
    at.world.clients[mesh["a"].identity].paid_msat = 1_000_000_000
    mesh.wait(2)
    assert not at.world.streams.debtors and len(at.world.streams.withheld) == 1


def test_purchases_that_nobody_knows_any_more_and_many_destinations_leave_little_behind() -> None:
    mesh, at, purchase = bought_for_a()
    lose(mesh, MB, b"unknown", purchase.id)
    assert not purchase.running and at.world.streams.lost_bytes == 2 * MB
    assert not at.world.streams.losses and len(at.world.streams.by_client) == 1


@pytest.mark.parametrize("whole_bytes", [0, 1])
def test_it_is_not_counted_for_the_default_route_too(whole_bytes: int) -> None:
    mesh = line(b=settings(**{**PLENTY, "grace_data_bytes": GRACE}))
    at = mesh["b"]
    whole = bought_whole(at, "c")
    assert whole is not None
    at.step(ev.UnsoldSeen(0))
    lose(mesh, MB, b"another", whole.id)
    at.step(ev.UnsoldSeen(MB + GRACE + whole_bytes))
    mesh.settle()
    assert (sold_whole(at, "a") is None) is bool(whole_bytes) and whole.running is not bool(whole_bytes)
