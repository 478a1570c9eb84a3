"""Parts bought: a network, and a part of it, are bought by themselves, so there are two purchases for one packet."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from mesh import MB, PLENTY, Mesh, asks
from playbook import MSAT_PER_KB, settings

from ngp.core import elsewhere
from ngp.core import events as ev
from ngp.core.buying.purchase import Purchase
from ngp.core.buying.renewal import ask_renewal
from ngp.core.contract import CloseReason
from ngp.core.effects import GrantContract, SetElsewhere
from ngp.core.kernel import HeldPacket, Hint, HintKind, Onward, Verdict
from ngp.core.messages import Ask, Prefix, Reject
from ngp.core.selling.sale import Sale
from ngp.core.settings import Settings

NETWORK, FIRST, HALF = (ip_network(f"198.51.100.0/{bits}") for bits in (24, 32, 25))
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


def leads_half_to_d(mesh: Mesh) -> None:
    mesh["b"].prefix, mesh["b"].route = HALF, "d"


def with_a_dear_half(d_asks: int = 20, **confs: Settings) -> tuple[Mesh, Sale]:
    """Return a mesh in which b sold the network to a, by c, and then half of it to z, by d; and a's contract."""
    mesh = star(d_asks, **confs)
    send(mesh, "a", "198.51.100.7")
    sale = sold(mesh, "a")
    leads_half_to_d(mesh)
    send(mesh, "z", "198.51.100.9")
    return mesh, sale


def excepted(mesh: Mesh, sale: Sale) -> set[Prefix]:
    """Return what the kernel excepts from a sale of b."""
    grants = [fx for fx in mesh["b"].done if isinstance(fx, GrantContract) and fx.grant.contract == sale.id]
    return mesh["b"].elsewhere if grants[-1].grant.resold else set()


@pytest.mark.parametrize("d_asks", [4, 20])
def test_a_part_bought_elsewhere_is_excepted_from_a_network_that_is_too_cheap_for_it(d_asks: int) -> None:
    mesh, sale = with_a_dear_half(d_asks)
    assert sale.running and bought(mesh, "d", HALF).running
    assert excepted(mesh, sale) == ({HALF} if d_asks == 20 else set())
    assert not excepted(mesh, sold(mesh, "z", HALF))


def test_a_dear_part_is_sold_by_itself_above_its_cost_and_the_rest_goes_on() -> None:
    mesh, sale = with_a_dear_half()
    send(mesh, "a", "198.51.100.10")
    part = sold(mesh, "a", HALF)
    assert part.running and part.rests_on == bought(mesh, "d", HALF).id and part.price_msat_per_gib > 20 * MSAT_PER_KB
    assert sale.running and sale.price_msat_per_gib < 20 * MSAT_PER_KB and not excepted(mesh, part)


def test_a_part_that_its_own_server_sold_us_at_a_higher_price_is_sold_by_its_address() -> None:
    mesh = star(4, c=asks(20))
    ask(mesh, "z", FIRST)
    mesh["c"].step(ev.SettingsChanged(asks(4)))
    send(mesh, "a", "198.51.100.7")
    sale = sold(mesh, "a")
    assert sale.price_msat_per_gib < 20 * MSAT_PER_KB and excepted(mesh, sale) == {FIRST}
    send(mesh, "a", str(FIRST.network_address))
    part = sold(mesh, "a", FIRST)
    assert part.running and part.price_msat_per_gib > 20 * MSAT_PER_KB
    assert part.rests_on == bought(mesh, "c", FIRST).id


def test_a_network_that_costs_us_nothing_excepts_a_part_that_does() -> None:
    mesh = star(20, b=asks(5))
    mesh["b"].route = ""
    send(mesh, "a", "198.51.100.7")
    sale = sold(mesh, "a")
    leads_half_to_d(mesh)
    send(mesh, "z", "198.51.100.9")
    assert not sale.rests_on and sale.running and excepted(mesh, sale) == {HALF}


def test_a_part_whose_price_rises_at_its_renewal_is_excepted_from_then_on() -> None:
    mesh, sale = with_a_dear_half(4)
    purchase = bought(mesh, "d", HALF)
    assert not excepted(mesh, sale)
    mesh["d"].step(ev.SettingsChanged(asks(20)))
    mesh["b"].world.effects = []
    ask_renewal(mesh["b"].world, purchase, purchase.data_limit_bytes + MB)
    mesh["b"].carry_out(mesh["b"].world.effects)
    mesh.settle()
    assert purchase.highest_msat_per_gib == 20 * MSAT_PER_KB
    assert sale.running and excepted(mesh, sale) == {HALF}


def test_a_network_whose_price_falls_at_its_renewal_excepts_what_it_is_too_cheap_for_now() -> None:
    mesh, sale = with_a_dear_half(7, c=asks(9))
    assert not excepted(mesh, sale)
    mesh["c"].step(ev.SettingsChanged(asks(2)))
    purchase = bought(mesh, "c", NETWORK)
    for name, contract in (("b", purchase), ("a", mesh["a"].world.purchases.exact(mesh["b"].identity, NETWORK))):
        assert contract is not None
        mesh[name].world.effects = []
        ask_renewal(mesh[name].world, contract, contract.data_limit_bytes + MB)
        mesh[name].carry_out(mesh[name].world.effects)
        mesh.settle()
        mesh.count("b", purchase.id, purchase.data_limit_bytes - MB // 2)  # what was bought at the old price is used up
    assert sale.price_msat_per_gib < 7 * MSAT_PER_KB and excepted(mesh, sale) == {HALF}


def test_a_dear_part_within_a_dear_part_is_sold_by_itself_too() -> None:
    mesh = star(50)
    leads_half_to_d(mesh)
    ask(mesh, "z", FIRST)
    mesh["d"].step(ev.SettingsChanged(asks(20)))
    ask(mesh, "z", HALF)
    mesh["b"].prefix, mesh["b"].route = NETWORK, "c"
    send(mesh, "a", "198.51.100.200")
    leads_half_to_d(mesh)
    send(mesh, "a", "198.51.100.9")
    assert excepted(mesh, sold(mesh, "a")) == excepted(mesh, sold(mesh, "a", HALF)) == {HALF, FIRST}
    for address, cost in ((str(FIRST.network_address), 50), ("198.51.100.10", 20)):
        send(mesh, "a", address)
        host = sold(mesh, "a", ip_network(f"{address}/32"))
        assert host.running and cost < host.price_msat_per_gib / MSAT_PER_KB < cost * 1.2


def test_a_server_that_offers_a_dear_part_unasked_is_asked_for_it_and_nothing_that_it_held_is_paid_for() -> None:
    """It holds packets that a sent, at the network's price."""
    mesh = star(20)
    send(mesh, "a", "198.51.100.7")
    sale = sold(mesh, "a")
    leads_half_to_d(mesh)
    d, b = mesh["d"], mesh["b"]
    d.step(HeldPacket(1, d.link("b"), ip_address("198.51.100.9"), Onward(HALF)))
    mesh.settle()
    assert d.verdicts == [Verdict.PROHIBIT] and excepted(mesh, sale) == {HALF}
    assert bought(mesh, "d", HALF).running and len(b.sent(Reject)) == 1
    d.step(HeldPacket(2, d.link("b"), ip_address("198.51.100.9"), Onward(HALF)))
    mesh.settle()
    assert len(b.sent(Reject)) == 1


def test_an_offer_of_a_neighbour_to_which_no_packet_goes_excepts_nothing() -> None:
    mesh = star(20)
    send(mesh, "a", "198.51.100.7")
    d = mesh["d"]
    d.step(HeldPacket(1, d.link("b"), ip_address("198.51.100.9"), Onward(HALF)))
    mesh.settle()
    assert not excepted(mesh, sold(mesh, "a")) and not mesh["b"].elsewhere


def test_a_client_that_sells_us_a_part_of_what_it_buys_gets_all_of_it() -> None:
    """Its own packets to that part would come back to it."""
    mesh = star(20, a=asks(30))
    send(mesh, "a", "198.51.100.7")
    mesh["b"].prefix, mesh["b"].route = HALF, "a"
    ask(mesh, "z", HALF)
    assert not excepted(mesh, sold(mesh, "a"))


@pytest.mark.parametrize("way", ["c", ""])
def test_a_network_with_too_many_dear_parts_is_sold_by_its_addresses(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(elsewhere, "MOST_PARTS", 2)
    mesh = star(4, c=asks(20))
    for part in (FIRST, ip_network("198.51.100.1/32"), ip_network("198.51.100.2/32")):
        ask(mesh, "z", part)
    mesh["c"].step(ev.SettingsChanged(asks(4)))
    mesh["b"].route = way
    send(mesh, "a", "198.51.100.7")
    assert mesh["b"].world.sales.exact(mesh["a"].identity, NETWORK) is None
    send(mesh, "a", "198.51.100.7")
    ask(mesh, "a", NETWORK)
    assert mesh["b"].world.sales.exact(mesh["a"].identity, NETWORK) is None
    assert sold(mesh, "a", ip_network("198.51.100.7/32")).running and not mesh["b"].elsewhere


def test_one_dear_part_too_many_ends_the_contracts_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "MOST_PARTS", 0)
    mesh, sale = with_a_dear_half()
    assert not sale.running
    send(mesh, "a", "198.51.100.10")
    assert sold(mesh, "a", HALF).running


def test_dear_parts_are_excepted_before_anything_passes_after_a_start() -> None:
    mesh, sale = with_a_dear_half()
    b = mesh["b"]
    b.done.clear()
    mesh.kill("b")
    told = [at for at, effect in enumerate(b.done) if isinstance(effect, SetElsewhere)]
    granted = [at for at, fx in enumerate(b.done) if isinstance(fx, GrantContract) and fx.grant.contract == sale.id]
    assert b.elsewhere == {HALF} and told[0] < granted[0]
    assert all(b.done[at].grant.resold for at in granted)


def test_dear_parts_are_forgotten_with_the_last_network_around_them() -> None:
    mesh, sale = with_a_dear_half()
    b = mesh["b"]
    assert b.world.resold.dear
    b.world.effects = []
    b.world.halt(sale, CloseReason.UPSTREAM)
    b.carry_out(b.world.effects)
    mesh.settle()
    assert not b.world.resold.dear
