"""Resale, prices: a sale never costs less than what it rests on and the margin, also when that gets dearer."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from ipaddress import ip_network

import pytest
from mesh import HOST, MB, PLENTY, Mesh, asks, promised
from playbook import MSAT_PER_KB, settings

from ngp.core import events as ev
from ngp.core.contract import IN_USE_S, State
from ngp.core.messages import Accept, Ask, Cancel, Propose, Reject, RejectReason
from ngp.core.selling.quoting import REFUSAL_S
from ngp.core.settings import Hours, LoadPrice, Margin, PriceRule, Settings


def accept(mesh: Mesh, client: str) -> None:
    """Have a client accept what b offered it last, though its own accept was lost."""
    sale, at = mesh["b"].sale(client), mesh["b"]
    heard = Accept(sale.id, sale.price_msat_per_gib, sale.data_limit_bytes)
    at.step(ev.MessageReceived(mesh[client].identity, at.link(client), 1, heard, 1 << 40))


def sold_too_cheaply(mesh: Mesh) -> list[str]:
    """Return the clients whose running contracts with b cost no more than what they rest on."""
    world = mesh["b"].world
    return [
        sale.identity.decode()
        for contract, sales in world.resting.items()
        for sale in sales.values()
        if sale.running
        and (purchase := world.running_purchase(contract)) is not None
        and sale.price_msat_per_gib <= purchase.price_msat_per_gib
    ]


@pytest.mark.parametrize(
    ("margin", "cost", "least"),
    [
        (Margin(100_000, 0), 8 * MSAT_PER_KB, 9_227_469),
        (Margin(0, MSAT_PER_KB), 8 * MSAT_PER_KB, 9 * MSAT_PER_KB),
        (Margin(100_000, MSAT_PER_KB), 8 * MSAT_PER_KB, 10_276_045),
        (Margin(0, 0), 8 * MSAT_PER_KB, 8 * MSAT_PER_KB),
        (Margin(100_000, 0), 1, 2),
    ],
)
def test_a_dearer_upstream_raises_the_price_above_what_the_operator_asks(margin: Margin, cost: int, least: int) -> None:
    low = settings(**PLENTY, sell_msat_per_gib=0, sell_min_msat_per_gib=0, resale_margin=margin)
    dear = settings(**PLENTY, sell_msat_per_gib=cost, sell_min_msat_per_gib=cost)
    mesh = Mesh("abc", b=low, c=dear)
    mesh.packet("a", "b")
    assert mesh["b"].purchase("c").price_msat_per_gib == cost
    assert mesh["b"].sale("a").price_msat_per_gib == least
    assert len(mesh["b"].sent(Propose)) == 1, "b can't come down, so a's lower offer would cost a round trip in vain"


def test_a_counter_offer_never_gets_below_cost_and_margin() -> None:
    low = settings(**PLENTY, sell_msat_per_gib=20 * MSAT_PER_KB, sell_min_msat_per_gib=0)
    poor = settings(**{**PLENTY, "buy_max_msat_per_gib": 7 * MSAT_PER_KB}, buy_msat_per_gib=0)
    mesh = Mesh("abc", a=poor, b=low)
    mesh.packet("a", "b")
    assert 5.5 * MSAT_PER_KB <= mesh["b"].sale("a").price_msat_per_gib <= 7 * MSAT_PER_KB


def test_prices_for_a_neighbour_and_a_time_hold_for_new_contracts_and_what_was_agreed_stays() -> None:
    night = PriceRule(ip_network("0.0.0.0/0"), 9 * MSAT_PER_KB, hours=Hours(22 * 3600, 6 * 3600))
    friend = PriceRule(ip_network("0.0.0.0/0"), margin=Margin(0, MSAT_PER_KB), neighbour=b"a".ljust(32, b"-").hex())
    low = settings(**PLENTY, sell_msat_per_gib=0, sell_min_msat_per_gib=0, prices=(friend,))
    mesh = Mesh("abc", b=low, c=settings(**PLENTY, prices=(night,)))
    mesh.add_client("z", "b")
    mesh.now = replace(mesh.now, utc_offset_s=12 * 3600 - mesh.now.local_s)  # noon
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").price_msat_per_gib == 6 * MSAT_PER_KB  # the friend's margin
    mesh.packet("z", "b")
    assert mesh["b"].sale("z").price_msat_per_gib == -(-5 * MSAT_PER_KB * 11 // 10)
    mesh.now = replace(mesh.now, utc_offset_s=mesh.now.utc_offset_s + 11 * 3600)
    for client in "az":
        assert mesh["b"].sale(client).running and mesh["b"].purchase("c").price_msat_per_gib == 5 * MSAT_PER_KB
    mesh.carry("abc", 80 * MB)
    assert mesh["b"].purchase("c").price_msat_per_gib == 9 * MSAT_PER_KB  # renewed at night
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").price_msat_per_gib == 10 * MSAT_PER_KB


def test_a_quote_keeps_its_price_under_load_and_a_contract_too() -> None:
    loaded = settings(
        **PLENTY, sell_msat_per_gib=20 * MSAT_PER_KB, sell_min_msat_per_gib=19 * MSAT_PER_KB,
        load_price=LoadPrice(500_000, 3_000_000),
    )  # fmt: skip
    haggling = settings(**{**PLENTY, "buy_max_msat_per_gib": 20 * MSAT_PER_KB}, buy_msat_per_gib=19 * MSAT_PER_KB)
    mesh = Mesh("ab", a=haggling, b=loaded)
    mesh.lost = {Reject}
    mesh.packet("a", "b")
    quote = mesh["b"].sale("a")
    assert quote.state is State.QUOTED and quote.price_msat_per_gib == 20 * MSAT_PER_KB
    mesh["b"].step(ev.LoadSeen(1_000_000))
    counter = Reject(quote.id, RejectReason.PRICE, 1)
    mesh["b"].step(ev.MessageReceived(mesh["a"].identity, mesh["b"].link("a"), 1, counter, 1 << 40))
    assert quote.round == 2 and quote.price_msat_per_gib == 20 * MSAT_PER_KB  # it would be 40
    mesh.lost = set()
    mesh.settle()
    assert quote.running and quote.price_msat_per_gib == 20 * MSAT_PER_KB
    mesh.add_client("z", "b")
    mesh["z"].step(ev.SettingsChanged(settings(**PLENTY)))
    mesh.packet("z", "b")
    assert mesh["b"].sale("z").price_msat_per_gib == 59 * MSAT_PER_KB  # three times as much, less one step of haggling
    assert quote.running and quote.price_msat_per_gib == 20 * MSAT_PER_KB


def test_an_idle_dear_purchase_is_ended_when_a_client_finds_it_too_dear() -> None:
    """It would bind the node in the middle until CONTRACT_TIME, though the neighbour asks less by now."""
    dear = settings(**PLENTY, sell_msat_per_gib=40 * MSAT_PER_KB, sell_min_msat_per_gib=40 * MSAT_PER_KB)
    frugal = settings(**{**PLENTY, "buy_max_msat_per_gib": 10 * MSAT_PER_KB})
    mesh = Mesh("abc", c=dear)
    mesh.packet("a", "b")
    bought = mesh["b"].purchase("c")
    mesh["c"].step(ev.SettingsChanged(mesh.usual))
    mesh.add_client("z", "b")
    mesh["z"].step(ev.SettingsChanged(frugal))
    mesh.wait(IN_USE_S + 1)
    mesh.packet("z", "b")
    assert bought.running, "a's contract rests on it"
    ended = Cancel(mesh["b"].sale("a").id)
    mesh["b"].step(ev.MessageReceived(mesh["a"].identity, mesh["b"].link("a"), 1, ended, 1 << 40))
    mesh.settle()
    mesh.wait(REFUSAL_S + 1)
    mesh.packet("z", "b")
    assert not bought.running
    mesh.wait(REFUSAL_S + 1)
    mesh.packet("z", "b")
    assert mesh["b"].sale("z").running and mesh["b"].purchase("c").price_msat_per_gib == 5 * MSAT_PER_KB


def test_a_dearer_renewal_ends_the_sales_and_they_are_quoted_at_the_new_cost() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    dear = settings(**PLENTY, sell_msat_per_gib=8 * MSAT_PER_KB, sell_min_msat_per_gib=8 * MSAT_PER_KB)
    mesh["c"].step(ev.SettingsChanged(dear))
    mesh.carry("abc", 80 * MB)
    mesh.settle()
    assert mesh["b"].purchase("c").price_msat_per_gib == 8 * MSAT_PER_KB
    assert [said.reason for said in mesh["b"].sent(Cancel)] == ["upstream"]  # type: ignore[attr-defined]
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").price_msat_per_gib == Margin(100_000, 0).least_msat_per_gib(8 * MSAT_PER_KB)
    assert promised(mesh, "b")


def test_a_sale_that_was_ending_as_it_costs_more_ends_also_when_the_process_dies_before() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    mesh.halted = deque(maxlen=0)  # the kernel's last readings come too late
    mesh["c"].step(ev.SettingsChanged(asks(8)))
    mesh.carry("abc", 80 * MB)
    assert mesh["b"].purchase("c").price_msat_per_gib == 8 * MSAT_PER_KB
    mesh.halted = deque()
    mesh.kill("b")
    mesh.settle()
    assert not sold_too_cheaply(mesh)


def test_a_server_that_has_not_been_heard_since_a_start_still_has_its_price() -> None:
    mesh = Mesh("abc", b=asks(1), c=asks(40))
    b = mesh["b"]
    mesh.packet("a", "b")
    b.end("a")
    mesh.kill("b")
    mesh.introduce("a", "b")
    mesh.packet("a", "b")  # c's hello is late
    assert b.sale("a").rests_on == b.purchase("c").id and b.sale("a").price_msat_per_gib > 40 * MSAT_PER_KB


def test_a_former_server_that_says_no_hello_any_more_is_none_after_a_start() -> None:
    mesh = Mesh("abc")
    b = mesh["b"]
    mesh.packet("a", "b")
    mesh["c"].end("b")
    mesh.wait(2)
    mesh.kill("b")
    mesh.introduce("a", "b")
    mesh.packet("a", "b")
    assert b.sale("a").running and not b.sale("a").rests_on


def test_bytes_that_were_sold_at_an_earlier_lower_price_are_not_sold_below_what_they_cost_now() -> None:
    mesh = Mesh("abc", b=asks(2), c=asks(1))
    b = mesh["b"]
    mesh.packet("a", "b")
    sale, purchase = b.sale("a"), b.purchase("c")
    b.step(ev.SettingsChanged(asks(50)))
    mesh.renew("a", mesh["a"].purchase("b"), sale.data_limit_bytes + 100 * MB)
    assert [price for _, price in sale.prices] == [2 * MSAT_PER_KB, 50 * MSAT_PER_KB]
    mesh["c"].step(ev.SettingsChanged(asks(40)))
    mesh.renew("b", purchase, purchase.data_limit_bytes + 100 * MB)
    assert purchase.highest_msat_per_gib == 40 * MSAT_PER_KB and not sale.running


def test_the_kernel_ends_what_rests_on_a_purchase_that_is_renewed_for_a_shorter_time_with_it() -> None:
    mesh = Mesh("abc")
    b = mesh["b"]
    mesh.packet("a", "b")
    sale, purchase = b.sale("a"), b.purchase("c")
    agreed_mono_s = sale.expires_mono_s
    mesh["c"].step(ev.SettingsChanged(settings(**PLENTY, contract_time_s=60)))
    mesh.renew("b", purchase, purchase.data_limit_bytes + MB)
    assert b.granted[sale.id].expires_in_s <= 60 and sale.expires_mono_s == agreed_mono_s
    for _ in range(100):  # while a daemon runs, it is renewed
        mesh.carry("abc", 1000)
        mesh.wait(5)
    assert sale.running and b.granted[sale.id].expires_in_s <= 60


def test_a_route_that_changes_to_a_dearer_way_ends_what_was_sold_for_the_old_one() -> None:
    mesh = Mesh("abc")
    mesh["b"].route = ""
    mesh.packet("a", "b")
    old = mesh["b"].sale("a")
    assert old.price_msat_per_gib == 5 * MSAT_PER_KB and not old.rests_on
    mesh["b"].route = "c"
    mesh.packet("b", "c")
    assert mesh["b"].purchase("c").running and not old.running
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").rests_on and mesh["b"].sale("a").price_msat_per_gib > 5 * MSAT_PER_KB


def test_an_accept_that_waited_for_a_dearer_renewal_is_answered_with_a_cancel() -> None:
    mesh = Mesh("abc")
    mesh.add_client("x", "b")
    mesh.lost = {Accept}
    mesh.packet("a", "b")
    mesh.packet("x", "b")
    mesh.lost = set()
    waiting = mesh["b"].sale("x")
    accept(mesh, "a")
    mesh.settle()
    dear = settings(**PLENTY, sell_msat_per_gib=8 * MSAT_PER_KB, sell_min_msat_per_gib=8 * MSAT_PER_KB)
    mesh["c"].step(ev.SettingsChanged(dear))
    mesh["b"].said.clear()
    accept(mesh, "x")
    mesh.settle()
    assert mesh["b"].purchase("c").price_msat_per_gib == 8 * MSAT_PER_KB
    assert not waiting.running and Cancel(waiting.id, "upstream") in mesh["b"].sent(Cancel)
    assert not sold_too_cheaply(mesh)
    mesh.packet("x", "b")
    assert mesh["b"].sale("x").running and promised(mesh, "b")


@pytest.mark.parametrize("asked_again", [False, True])
def test_a_server_that_repeats_its_quote_at_a_higher_price_makes_us_sell_nothing_below_it(asked_again: bool) -> None:
    mesh = Mesh("abc")
    mesh.add_client("x", "b")
    mesh.lost = {Accept}
    mesh.packet("a", "b")
    at, quoted = mesh["b"], mesh["c"].sent(Propose)[-1]
    assert isinstance(quoted, Propose)
    if asked_again:
        mesh.wait(8.5)
        mesh.lost = {Accept, Ask}
        mesh.packet("x", "b")
        assert at.world.awaited
    dear = replace(quoted, price_msat_per_gib=8 * MSAT_PER_KB, round=4)
    at.step(ev.MessageReceived(mesh["c"].identity, at.link("c"), 1, dear, 1 << 40, None, quoted.destination))
    assert [said.reason for said in at.sent(Cancel)] == ["upstream"]  # type: ignore[attr-defined]
    mesh.lost = set()
    mesh.packet("a", "b")
    assert not sold_too_cheaply(mesh)


def test_a_quote_for_a_cheap_way_is_taken_back_when_the_route_changes_to_a_dearer_one() -> None:
    mesh = Mesh("abc")
    mesh["b"].route = ""
    mesh.lost = {Accept}
    mesh.packet("a", "b")
    old = mesh["b"].sale("a")
    mesh.lost = set()
    mesh["b"].route = "c"
    mesh.packet("b", "c")
    assert mesh["b"].purchase("c").running
    assert old.id not in mesh["b"].world.contracts and Cancel(old.id, "upstream") in mesh["b"].sent(Cancel)


def two_ways(**confs: Settings) -> Mesh:
    """Return a line a - b - c, in which b also has d as a neighbour, which asks half as much as c."""
    dear = settings(**PLENTY, sell_msat_per_gib=10 * MSAT_PER_KB, sell_min_msat_per_gib=10 * MSAT_PER_KB)
    mesh = Mesh("abc", c=dear, **confs)
    mesh.add("d", "b")
    return mesh


def keep_sending(mesh: Mesh, server: str, seconds: int, size: int = 10_000) -> None:
    """Let a's traffic go by way of one of b's servers for a while."""
    for _ in range(seconds):
        mesh.count("b", mesh["b"].sale("a").id, size)
        mesh.count("b", mesh["b"].purchase(server).id, size)
        mesh.wait(1)


def test_a_sale_follows_its_traffic_to_a_cheaper_way_and_costs_less_from_its_next_renewal_on() -> None:
    mesh = two_ways()
    mesh.packet("a", "b")
    sale, old = mesh["b"].sale("a"), mesh["b"].purchase("c")
    mesh["b"].route = "d"
    mesh.packet("b", "d")
    keep_sending(mesh, "d", 9)
    assert sale.rests_on == old.id and old.running, "answers may still come the old way"
    keep_sending(mesh, "d", 3)
    assert sale.running and sale.rests_on == mesh["b"].purchase("d").id and promised(mesh, "b")
    assert not old.running and not mesh["c"].world.contracts
    assert mesh["b"].ledger.contracts[sale.id].rests_on == sale.rests_on
    mesh.carry("ab", 80 * MB)
    assert sale.price_msat_per_gib == -(-5 * MSAT_PER_KB * 11 // 10) and len(sale.prices) == 2
    assert sale.due_msat(200 * MB) == sale.due_msat(100 * MB) + 100 * 1024 * 5.5, "what was agreed keeps its price"
    for name, role in (("a", "client"), ("b", "server")):
        (said,) = [text for text in mesh[name].logged if "renewed at" in text]
        assert f" {role} " in said and said.endswith(" renewed at 5.5 msat/kB, before at 11 msat/kB")


def test_a_renewal_rests_on_the_purchase_that_carries_the_traffic_also_after_a_restart() -> None:
    mesh = two_ways()
    mesh.packet("a", "b")
    mesh["b"].route = "d"
    mesh.packet("b", "d")
    mesh["b"].world.buying.left.clear()  # only a running daemon remembers that the route has changed
    keep_sending(mesh, "d", 11)
    old, new = mesh["b"].purchase("c"), mesh["b"].purchase("d")
    limit = old.data_limit_bytes
    mesh.carry("ab", 80 * MB)
    assert mesh["b"].sale("a").rests_on == new.id and old.data_limit_bytes == limit and promised(mesh, "b")


def test_a_sale_stays_on_a_purchase_that_still_carries_some_of_its_traffic() -> None:
    mesh = two_ways()
    mesh.packet("a", "b")
    mesh["b"].route = "d"
    mesh.packet("b", "d")
    for _ in range(15):
        mesh.count("b", mesh["b"].purchase("c").id, 1000)
        keep_sending(mesh, "d", 1)
    assert mesh["b"].sale("a").rests_on == mesh["b"].purchase("c").id


def test_a_sale_that_rested_on_nothing_is_put_on_what_is_bought_now() -> None:
    mesh = Mesh("abc", b=settings(**PLENTY, sell_msat_per_gib=9 * MSAT_PER_KB, sell_min_msat_per_gib=9 * MSAT_PER_KB))
    mesh["b"].route = ""
    mesh.packet("a", "b")
    mesh["b"].route = "c"
    mesh.packet("b", "c")
    sale, purchase = mesh["b"].sale("a"), mesh["b"].purchase("c")
    assert sale.running and sale.rests_on == purchase.id and promised(mesh, "b")
    mesh["c"].step(ev.BlockNeighbour(mesh["b"].identity, True))
    mesh.settle()
    assert not sale.running, "it ends with what it rests on"


def test_a_sale_that_finds_no_room_the_other_way_ends_and_is_agreed_anew() -> None:
    mesh = two_ways(d=settings(**PLENTY, contract_data_bytes=20_000))
    mesh["d"].step(ev.SettingsChanged(settings(**PLENTY, contract_time_s=60)))
    mesh.packet("a", "b")
    sale = mesh["b"].sale("a")
    mesh["b"].route = "d"
    mesh.packet("b", "d")
    for _ in range(12):
        if sale.running:
            keep_sending(mesh, "d", 1, 1000)
    assert not sale.running and sale.reason == "upstream"
    mesh.packet("a", "b")
    assert mesh["b"].sale("a").rests_on == mesh["b"].purchase("d").id and promised(mesh, "b")


@pytest.mark.parametrize("is_used", [True, False])
def test_a_neighbour_that_asks_and_finds_it_too_dear_ends_no_purchase_that_the_household_used(is_used: bool) -> None:
    """The household may wait for news on a quiet connection."""
    mesh = Mesh("bc")
    mesh.add_client("x", "b")
    mesh["x"].step(ev.SettingsChanged(settings(**{**PLENTY, "buy_max_msat_per_gib": 1, "buy_msat_per_gib": 1})))
    mesh.packet("b", "c")
    purchase, at = mesh["b"].purchase("c"), mesh["b"]
    if is_used:
        mesh.count("b", purchase.id, 20_000)
    mesh.wait(12)
    question = Ask(ip_network(f"{HOST}/32"), 0, 0)
    at.step(ev.MessageReceived(mesh["x"].identity, at.link("x"), 1, question, 1 << 41, onward=at.onward))
    mesh.settle()
    assert mesh["x"].sent(Reject) and purchase.running is is_used


def test_an_accept_that_came_too_late_ends_the_contract_though_the_next_renewal_is_asked_for() -> None:
    """Its server has another limit than we, and would refuse all later renewals."""
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    b, purchase, mesh.lost = mesh["b"], mesh["b"].purchase("c"), {Ask}
    assert mesh.renew("b", purchase, purchase.data_limit_bytes + MB)
    assert purchase.state is State.RENEWING
    refused = Reject(purchase.id, RejectReason.TERMS)
    b.step(ev.MessageReceived(mesh["c"].identity, b.link("c"), 1, refused, 1 << 43))
    mesh.settle()
    assert not purchase.running
