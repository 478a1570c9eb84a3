"""Unsold: a client that can't pay costs a node in the middle no more than the grace, and as much bought in vain."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from mesh import DEFAULT, HOST, MB, PLENTY, Mesh
from playbook import MSAT_PER_KB, settings

from ngp.core import events as ev
from ngp.core import unsold, upstream
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import State
from ngp.core.kernel import HeldPacket, Hint, HintKind, Verdict
from ngp.core.messages import Accept, Ask, Cancel, Reject, RejectReason, Role
from ngp.core.openings import Openings, pools_of
from ngp.core.selling.sale import Sale
from ngp.core.unsold import FIRST_PAUSE_S, LOOK_S, SALE_LOOK_S
from ngp.core.world import World

GRACE, KB = 256 << 10, 1 << 10
STRICT = settings(**{**PLENTY, "grace_data_bytes": GRACE, "grace_time_s": 10})


def line(names: str = "abc", clients: str = "") -> Mesh:
    """Return a line whose b gives little credit, with further clients of b that have paid."""
    mesh = Mesh(names, b=STRICT)
    for name in clients:
        mesh.add_client(name, "b")
        mesh["b"].world.client(mesh[name].identity).paid_msat = 1_000_000_000
    return mesh


def exhaust(mesh: Mesh, client: str = "a", destination: str = HOST) -> None:
    """Let a client use up its credit, and b's kernel tell that."""
    at, who = mesh["b"], mesh[client].identity
    sale = at.world.sales.find(who, ip_address(destination))
    assert sale is not None
    credit = at.world.clients[who].credit
    mesh.count("b", sale.rests_on, credit.data_bytes if credit is not None else GRACE)
    mesh.count("b", sale.id, credit.data_bytes if credit is not None else GRACE)
    at.step(ev.Hinted((Hint(HintKind.ACCOUNT_EXHAUSTED, who),)))
    mesh.settle()


def stream(mesh: Mesh, size: int, contract: bytes, *sold: bytes, name: str = "b") -> None:
    """Let bytes come by a purchase, and those of them pass that are sold; the next look sees them."""
    for one in (contract, *sold):
        mesh[name].counts.setdefault(one, [0, 0])[1] += size
    mesh.wait(2 * LOOK_S)


def brings(mesh: Mesh, size: int, contract: bytes) -> None:
    """Let bytes come by a purchase that is read once a second."""
    mesh["b"].counts.setdefault(contract, [0, 0])[1] += size
    mesh["b"].step(ev.UsageRead((mesh["b"].reading(contract),)))
    mesh.wait(1)


def cancels(mesh: Mesh, client: str, contract: bytes) -> None:
    """Let a client end its contract with b; what follows from that is still on its way."""
    mesh["b"].step(ev.MessageReceived(mesh[client].identity, mesh["b"].link(client), 1, Cancel(contract), 1 << 40))


def reasons(mesh: Mesh, name: str, contract: bytes) -> list[str]:
    """Return the reasons for which a node told its neighbour that a contract is over."""
    return [said.reason for said in mesh[name].sent(Cancel) if said.contract == contract]  # type: ignore[attr-defined]


def refused(mesh: Mesh, client: str) -> None:
    """Let b's kernel tell that it refused a packet for lack of a client's money."""
    mesh["b"].step(ev.Hinted((Hint(HintKind.ACCOUNT_EXHAUSTED, mesh[client].identity),)))
    mesh.settle()


def shared(count: int) -> tuple[Mesh, list[Sale]]:
    """Let x, which has no money now, and y, which has some, buy the same destinations. Returns x's contracts.

    x doesn't use them. So they stay, also when the time of the grace is over.
    """
    mesh = line(clients="xy")
    at, x = mesh["b"], mesh["x"].identity
    hosts = [ip_address("203.0.113.0") + number for number in range(count)]
    for number, host in enumerate(hosts):
        for client in "yx":
            mesh[client].world.openings, at.world.openings = Openings(), Openings()  # not what this is about
            at.step(HeldPacket(1000 + number, at.link(client), host, at.onward))
            mesh.settle()
    account = at.world.clients[x]
    account.charged_msat = account.paid_msat + 1_000_000
    mesh["b"].save(account)
    refused(mesh, "x")
    mesh.wait(STRICT.grace_time_s + 1)
    sales = at.world.sold_to(x)
    assert len(sales) == count and all(one.running for one in sales) and x in at.world.streams.debtors
    return mesh, sales


def looks(monkeypatch: pytest.MonkeyPatch) -> list[Sale]:
    """Return a list of the contracts whose purchases are looked for from now on, which grows with each look."""
    found: list[Sale] = []
    real = upstream.ways

    def ways(world: World, sale: Sale) -> list[Purchase]:
        found.append(sale)
        return real(world, sale)

    monkeypatch.setattr(upstream, "ways", ways)
    return found


def test_what_is_bought_for_a_client_without_money_ends_after_as_much_as_the_grace() -> None:
    mesh = line()
    mesh.packet("a", "b")
    sale, purchase = mesh["b"].sale("a"), mesh["b"].purchase("c")
    exhaust(mesh)
    for _ in range(4):
        stream(mesh, 60 * KB, purchase.id)
        assert sale.running and purchase.running, "its payment may be on its way"
    stream(mesh, 60 * KB, purchase.id)
    assert (sale.state, sale.reason) == (State.CLOSED, "unpaid") and reasons(mesh, "b", sale.id) == ["unpaid"]
    assert not purchase.running and reasons(mesh, "b", purchase.id)
    assert not any(one.running for one in mesh["c"].world.contracts.values()), "c charges nothing any more"


def test_a_client_that_pays_meanwhile_keeps_its_contracts() -> None:
    mesh = line()
    mesh.packet("a", "b")
    sale, purchase = mesh["b"].sale("a"), mesh["b"].purchase("c")
    exhaust(mesh)
    stream(mesh, 200 * KB, purchase.id)
    mesh["b"].world.clients[mesh["a"].identity].paid_msat += 100_000
    for _ in range(10):
        stream(mesh, 200 * KB, purchase.id, sale.id)
    mesh.wait(20)
    assert sale.running and purchase.running and not mesh["b"].world.streams.debtors


def test_a_client_that_pays_nothing_within_the_time_of_the_grace_loses_what_is_bought_for_it() -> None:
    mesh = line()
    mesh.packet("a", "b")
    sale, purchase = mesh["b"].sale("a"), mesh["b"].purchase("c")
    mesh["b"].world.clients[mesh["a"].identity].unpaid.clear()  # as if a payment had come before
    exhaust(mesh)
    mesh.wait(9)
    assert sale.running and purchase.running
    mesh.wait(2)
    assert not sale.running and not purchase.running


def test_a_client_that_pays_in_small_amounts_keeps_its_contracts() -> None:
    mesh = line()
    mesh.packet("a", "b")
    sale, account = mesh["b"].sale("a"), mesh["b"].world.clients[mesh["a"].identity]
    account.unpaid.clear()
    exhaust(mesh)
    for _ in range(6):
        account.paid_msat += 100
        mesh.count("b", sale.rests_on, 10 * KB)
        mesh.count("b", sale.id, 10 * KB)
        mesh.wait(5)
    assert sale.running and account.identity in mesh["b"].world.streams.debtors


def test_nothing_more_is_bought_for_a_client_that_owes_money_until_its_money_covers_what_was_unsold() -> None:
    mesh = line()
    mesh.packet("a", "b")
    exhaust(mesh)
    stream(mesh, 500 * KB, mesh["b"].purchase("c").id)
    account, accepts = mesh["b"].world.clients[mesh["a"].identity], len(mesh["b"].sent(Accept))
    for _ in range(3):
        mesh.packet("a", "b")
        mesh.wait(12)
    assert len(mesh["b"].sent(Accept)) == accepts
    for paid_kb, buys in ((400, False), (600, True)):
        account.paid_msat = account.charged_msat + paid_kb * 6
        mesh.packet("a", "b")
        mesh.wait(1)
        assert (len(mesh["b"].sent(Accept)) > accepts) is buys
        mesh.wait(12)


def test_what_many_purchases_bring_for_one_client_counts_together() -> None:
    mesh = line()
    at = mesh["b"]
    hosts = [f"203.0.113.{number}" for number in range(1, 9)]
    for number, host in enumerate(hosts):
        at.step(HeldPacket(500 + number, at.link("a"), ip_address(host), at.onward))
    mesh.settle()
    found = [at.world.purchases.find(mesh["c"].identity, ip_address(host)) for host in hosts]
    purchases = [one for one in found if one is not None]
    assert len(purchases) == 8
    for one in purchases[:4]:
        mesh.count("b", one.id, KB)
    exhaust(mesh, destination=hosts[0])
    for one in purchases:
        at.counts.setdefault(one.id, [0, 0])[1] += 40 * KB
    mesh.wait(3 * LOOK_S)
    assert not any(one.running for one in at.world.contracts.values())


def test_a_stream_for_one_client_ends_a_purchase_of_several_and_its_destination_is_withheld_for_longer_each_time() -> (
    None
):
    mesh = line(clients="z")
    mesh.packet("a", "b")
    mesh.packet("z", "b")
    purchase, paid = mesh["b"].purchase("c"), mesh["b"].sale("z")
    exhaust(mesh)
    for _ in range(20):
        stream(mesh, 100 * KB, purchase.id, paid.id)
    assert paid.running and purchase.running, "what the other client takes is sold"
    pause_s = FIRST_PAUSE_S
    for _ in range(3):
        unsold_bytes = -purchase.used_from_bytes
        for _ in range(6):
            stream(mesh, 60 * KB, purchase.id)
        assert not purchase.running and reasons(mesh, "b", paid.id) == ["upstream"]
        assert unsold_bytes + purchase.used_from_bytes <= GRACE + 120 * KB
        mesh.wait(6)
        said = len(mesh["b"].sent(Reject))
        mesh.packet("z", "b")
        assert mesh["b"].verdicts[-1] is Verdict.PROHIBIT and len(mesh["b"].sent(Reject)) == said + 1
        mesh.wait(pause_s)
        pause_s *= 2
        mesh.packet("z", "b")
        purchase, paid = mesh["b"].purchase("c"), mesh["b"].sale("z")
        assert paid.running and purchase.running
    account = mesh["b"].world.clients[mesh["a"].identity]
    account.paid_msat = 10_000_000
    unsold.paid(mesh["b"].world, account)
    assert not mesh["b"].world.streams.withheld


def test_a_destination_that_we_use_ourselves_stays_bought() -> None:
    mesh = line()
    mesh.packet("a", "b")
    purchase = mesh["b"].purchase("c")
    exhaust(mesh)
    for _ in range(20):
        mesh["b"].counts[purchase.id][0] += 5 * KB
        stream(mesh, 200 * KB, purchase.id)
    assert purchase.running


@pytest.mark.parametrize("ours", [False, True])
def test_with_its_last_client_a_purchase_ends_all_along_the_line_unless_it_is_ours_too(ours: bool) -> None:
    mesh = line("abcd")
    mesh.packet("a", "b")
    purchase, sale = mesh["b"].purchase("c"), mesh["b"].sale("a")
    if ours:
        mesh.count("b", purchase.id, 10 * KB)
    ended = Cancel(sale.id)
    mesh["b"].step(ev.MessageReceived(mesh["a"].identity, mesh["b"].link("a"), 1, ended, 1 << 40))
    mesh.settle()
    assert not sale.running and purchase.running is ours
    assert mesh["c"].sale("b").running is ours if ours else not mesh["d"].world.resting
    assert any(one.running for one in mesh["d"].world.contracts.values()) is ours
    if ours:  # what comes while nothing is sent is for the client that is gone
        for _ in range(6):
            brings(mesh, 60 * KB, purchase.id)
        assert not purchase.running


def test_a_client_that_ends_its_contracts_again_and_again_does_not_use_up_our_openings() -> None:
    mesh = line(clients="z")
    at = mesh["b"]
    for number in range(20):
        mesh.packet("z", "b")
        mesh.count("b", at.sale("z").id, 100)
        mesh.count("b", at.purchase("c").id, 100)
        ended = Cancel(at.sale("z").id)
        at.step(ev.MessageReceived(mesh["z"].identity, at.link("z"), 1, ended, (1 << 40) + number))
        mesh.settle()
    assert len(at.sent(Accept)) == 20
    pools = pools_of(Role.CLIENT, mesh["c"].identity, at.link("c"), trades=False)
    assert [at.world.openings.level(pool, mesh.now.monotonic_s) for pool in pools] == [0, 0]


def test_a_refusal_says_that_the_destination_is_withheld() -> None:
    mesh = line(clients="z")
    mesh.packet("a", "b")
    mesh.packet("z", "b")
    purchase, at = mesh["b"].purchase("c"), mesh["b"]
    exhaust(mesh)
    for _ in range(6):
        stream(mesh, 60 * KB, purchase.id)
    ask = Ask(ip_network(f"{HOST}/32"), 0, 0)
    at.step(ev.MessageReceived(mesh["z"].identity, at.link("z"), 1, ask, 1 << 41, onward=at.onward))
    assert [said.reason for said in at.sent(Reject)] == [RejectReason.UPSTREAM]  # type: ignore[attr-defined]


def test_a_purchase_whose_last_client_is_gone_ends_though_a_quote_that_lapsed_rested_on_it() -> None:
    mesh = line(clients="x")
    mesh.packet("a", "b")
    sale, purchase = mesh["b"].sale("a"), mesh["b"].purchase("c")
    mesh.carry("abc", 10_000)
    mesh.lost = {Accept}
    mesh.packet("x", "b")
    mesh.lost = set()
    assert mesh["b"].sale("x").rests_on == purchase.id
    cancels(mesh, "a", sale.id)
    mesh.wait(60)
    assert not sale.running and purchase.running
    brings(mesh, GRACE, purchase.id)
    assert purchase.running
    brings(mesh, 1, purchase.id)
    assert not purchase.running


def test_a_purchase_that_we_used_ourselves_ends_long_after_its_last_client_when_it_brings_much_for_nobody() -> None:
    mesh = line()
    mesh.packet("a", "b")
    sale, purchase = mesh["b"].sale("a"), mesh["b"].purchase("c")
    mesh.count("b", purchase.id, 10 * KB)
    cancels(mesh, "a", sale.id)
    mesh.wait(70)
    for _ in range(20):  # a download of ours: now and then it sends an acknowledgement
        mesh["b"].counts[purchase.id][0] += 52
        brings(mesh, 200 * KB, purchase.id)
    assert purchase.running
    brings(mesh, 200 * KB, purchase.id)
    brings(mesh, 200 * KB, purchase.id)
    assert not purchase.running


def test_a_stream_for_a_client_that_left_because_of_the_price_ends() -> None:
    mesh = Mesh("abc", a=settings(**{**PLENTY, "buy_max_msat_per_gib": 6 * MSAT_PER_KB}), b=STRICT)
    mesh.packet("a", "b")
    sale, purchase = mesh["b"].sale("a"), mesh["b"].purchase("c")
    mesh["b"].world.client(mesh["a"].identity).paid_msat = 1_000_000_000
    dear = settings(**PLENTY, sell_msat_per_gib=8 * MSAT_PER_KB, sell_min_msat_per_gib=8 * MSAT_PER_KB)
    mesh["c"].step(ev.SettingsChanged(dear))
    mesh.carry("abc", 80 * MB)
    mesh.settle()
    assert not sale.running and sale.reason == "upstream" and purchase.running
    brings(mesh, GRACE, purchase.id)
    brings(mesh, 1, purchase.id)
    assert not purchase.running


def test_a_default_route_that_is_withheld_leaves_single_destinations_for_sale() -> None:
    house = settings(**{**PLENTY, "sells": False, "buys_default_route": True})
    mesh = Mesh("abc", a=house, b=STRICT)
    mesh.add_client("z", "b")
    mesh["z"].step(ev.SettingsChanged(house))
    at, z = mesh["b"], mesh["z"].identity
    at.world.client(z).paid_msat = 1_000_000_000
    for name in "az":
        mesh.packet(name, "b")
    whole = at.world.purchases.exact(mesh["c"].identity, DEFAULT)
    sales = {name: at.world.sales.exact(mesh[name].identity, DEFAULT) for name in "az"}
    assert whole is not None and sales["a"] is not None and sales["z"] is not None
    mesh.count("b", whole.id, GRACE)
    mesh.count("b", sales["a"].id, GRACE)
    at.step(ev.Hinted((Hint(HintKind.ACCOUNT_EXHAUSTED, mesh["a"].identity),)))
    mesh.settle()
    for _ in range(12):  # somebody sends to a, from anywhere
        stream(mesh, 60 * KB, whole.id)
    assert not whole.running and not sales["z"].running
    mesh.wait(6)
    other = ip_address("192.0.2.77")
    at.step(HeldPacket(77, at.link("z"), other, at.onward))
    mesh.settle()
    sold = at.world.sales.find(z, other)
    assert sold is not None and sold.running


def test_a_purchase_that_was_ending_for_want_of_clients_ends_after_a_kill() -> None:
    mesh = line()
    mesh.packet("a", "b")
    at, sale, purchase = mesh["b"], mesh["b"].sale("a"), mesh["b"].purchase("c")
    mesh.carry("abc", 10_000)
    cancels(mesh, "a", sale.id)
    router, halted = mesh.halted.popleft()
    router.step(halted)
    assert purchase.state is State.HALTING
    mesh.kill("b")
    mesh.settle()
    assert at.world.running_purchase(purchase.id) is None


@pytest.mark.parametrize("restarts", [False, True])
def test_a_purchase_that_outlived_its_client_ends_when_it_brings_much_for_nobody_after_a_restart_too(
    restarts: bool,
) -> None:
    mesh = line()
    mesh.packet("a", "b")
    sale, purchase = mesh["b"].sale("a"), mesh["b"].purchase("c")
    mesh.count("b", purchase.id, 4000)  # b used it a little itself
    mesh.carry("abc", 2000)
    cancels(mesh, "a", sale.id)
    mesh.settle()
    assert purchase.running
    if restarts:
        mesh.wait(61)
        mesh["b"].reboot()
        mesh.introduce("b", "c")
        mesh.settle()
    purchase, came = mesh["b"].purchase("c"), 0
    while purchase.running and came < 50 * MB:
        came += MB
        brings(mesh, MB, purchase.id)
    assert came <= 2 * MB


def test_a_server_cannot_sell_again_to_nobody_what_we_ended_for_want_of_clients() -> None:
    """By a `Cancel` that says that the contract ended by itself, which we would ask for anew."""
    mesh = line()
    mesh.packet("a", "b")
    at, old, came = mesh["b"], mesh["b"].purchase("c"), 0
    exhaust(mesh)
    while old.running:
        came += 60 * KB
        stream(mesh, 60 * KB, old.id)
    assert old.unneeded and came <= 2 * GRACE
    said = Cancel(old.id, "upstream")
    at.step(ev.MessageReceived(mesh["c"].identity, at.link("c"), 1, said, 1 << 41))
    mesh.settle()
    mesh.wait(2)
    assert not any(one.running for one in at.world.contracts.values())


@pytest.mark.parametrize("uses_it", [False, True])
def test_what_may_be_for_nobody_is_not_asked_for_anew(uses_it: bool) -> None:
    mesh = line()
    mesh.packet("a", "b")
    at, old = mesh["b"], mesh["b"].purchase("c")
    mesh.carry("abc", 10_000)
    mesh.count("b", old.id, 5000)  # the household used it once
    mesh.wait(1)
    cancels(mesh, "a", at.sale("a").id)
    mesh.settle()
    mesh.wait(60)
    brings(mesh, 100 * KB, old.id)
    if uses_it:
        mesh.count("b", old.id, 500)
    mesh["c"].end("b")
    mesh.wait(2)
    assert any(one.running for one in at.world.contracts.values()) is uses_it
    if uses_it:
        new, came = at.purchase("c"), 0
        while new.running and came < 50 * MB:
            came += MB
            brings(mesh, MB, new.id)
        assert came <= 2 * MB, "somebody still sends to the client that is gone"


def test_what_the_household_receives_goes_on_after_a_restart_of_a_node_with_other_clients() -> None:
    mesh = line()
    at = mesh["b"]
    at.world.client(mesh["a"].identity).paid_msat = 1000
    mesh.packet("b", "c")
    mesh.count("b", at.purchase("c").id, 5000)
    mesh.wait(61)
    at.reboot()
    for name in "ac":
        mesh.introduce("b", name)
    mesh.settle()
    for _ in range(3):
        brings(mesh, MB, at.purchase("c").id)
    assert at.purchase("c").running


def test_a_client_without_money_does_not_have_all_its_contracts_looked_at_ten_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mesh, sales = shared(100)
    assert mesh["b"].world.streams.of, "it is looked ten times a second"
    looked = looks(monkeypatch)
    mesh.wait(1)
    assert not looked
    for _ in range(20):
        refused(mesh, "x")
        mesh.wait(LOOK_S / 2)
    times = 1 + 1 / (len(sales) * SALE_LOOK_S)
    assert 2 * len(sales) <= len(looked) <= 2 * times * len(sales)


def test_what_a_client_without_money_did_not_use_ends_when_it_is_used() -> None:
    mesh, sales = shared(3)
    mesh.count("b", sales[1].rests_on, 60)
    mesh.count("b", sales[1].id, 60)
    mesh.wait(2 * LOOK_S)
    assert [one.running for one in sales] == [True, False, True] and sales[1].reason == "unpaid"


@pytest.mark.parametrize("pays", [False, True])
def test_what_a_client_without_money_did_not_use_ends_when_others_need_the_purchase_no_more(pays: bool) -> None:
    """As soon as a packet of it is refused, or, if it paid a little, when its time is over once more."""
    mesh, (sale,) = shared(1)
    at = mesh["b"]
    purchase, others = at.world.running_purchase(sale.rests_on), at.world.sold_to(mesh["y"].identity)
    assert purchase is not None
    mesh.count("b", purchase.id, 10 * KB)  # we use it, too
    cancels(mesh, "y", others[0].id)
    mesh.settle()
    assert sale.running and purchase.running
    if pays:
        at.world.clients[sale.identity].paid_msat += 100
        mesh.wait(STRICT.grace_time_s - 1)
        assert sale.running
        mesh.wait(2)
    else:
        refused(mesh, "x")
        mesh.wait(2 * LOOK_S)
    assert not sale.running and sale.reason == "unpaid" and purchase.running
