"""After waiting: when money comes for a contract that waited, what it rests on is looked at again."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from mesh import HOST, MB, PLENTY, Mesh, Node, asks, promised
from playbook import settings
from test_losses_newcomers import accepts, quoted, shared, tries
from test_unbought import RICH_MSAT, is_bought, owes, pays, three_wait_and_one_buys, waits
from test_unsold import GRACE, KB, cancels, exhaust, line, stream

from ngp.core import basis_changed, upstream
from ngp.core import events as ev
from ngp.core.buying.purchase import Purchase
from ngp.core.contract import State
from ngp.core.messages import Ask, Cancel, Hello
from ngp.core.records import ContractRecord, Record
from ngp.core.selling.sale import Sale
from ngp.core.streams import Debtor
from ngp.core.timers import Due

DEAR = 8


def purchase_of(at: Node, sale: Sale) -> Purchase:
    purchase = at.world.running_purchase(sale.rests_on)
    assert purchase is not None
    return purchase


def test_contracts_that_waited_share_no_more_than_was_bought() -> None:
    mesh, at = three_wait_and_one_buys()
    paid, purchase, waited = at.sale("a"), at.purchase("c"), [at.sale(name) for name in "xyz"]
    assert paid.running and upstream.free(at.world, purchase) == 0
    for name in "xyz":
        pays(mesh, name, 1000)
    assert paid.running and upstream.free(at.world, purchase) == 0
    assert {(one.running, one.reason) for one in waited} == {(False, "upstream")}


def test_who_lost_too_much_gets_nothing_though_another_client_bought_it_meanwhile() -> None:
    mesh, at, sale = waits(paid_msat=1_000_000)
    loss = at.world.streams.of_client(sale.identity, mesh["c"].identity, mesh.now.monotonic_s)
    loss.counted_bytes = 100 * GRACE
    assert tries(mesh, "a", "203.0.113.1") and is_bought(at, sale)
    purchase_of(at, sale).data_limit_bytes *= 2
    pays(mesh, "z", 1_000_000)
    assert not sale.running and at.granted[sale.id].blocked


def moved(waits_for_money: bool) -> tuple[Mesh, Node, Sale]:
    """Return a mesh whose z has a contract that waits, or an offer, by c; then our route leads to d, where a buys."""
    mesh = Mesh("abc", b=settings(**{**PLENTY, "grace_data_bytes": GRACE, "grace_time_s": 10}))
    for name in "dz":
        mesh.add(name, "b")
    mesh["z"].route = "b"
    at = mesh["b"]
    at.world.client(mesh["a"].identity).paid_msat = RICH_MSAT
    if waits_for_money:
        at.world.credit.outstanding[at.link("z")] = GRACE
    sale = quoted(mesh, "z", HOST)
    if waits_for_money:
        accepts(mesh, "z", sale)
        assert sale.unbought
    mesh["d"].step(ev.SettingsChanged(settings(**PLENTY, contract_data_bytes=4 * MB)))
    at.lead("d")
    mesh.packet("a", "b")
    return mesh, at, sale


def test_a_contract_that_waits_follows_our_route_and_ends_when_the_new_way_gets_dearer() -> None:
    mesh, at, sale = moved(waits_for_money=True)
    purchase = at.purchase("d")
    assert sale.running and sale.unbought and sale.rests_on == purchase.id
    mesh["d"].step(ev.SettingsChanged(asks(DEAR)))
    for one in (purchase.id, at.sale("a").id):
        mesh.count("b", one, 100 * KB)
    mesh.count("d", purchase.id, 100 * KB)
    mesh.renew("b", purchase, purchase.data_limit_bytes + 50 * MB)
    assert not sale.running


def test_an_offer_that_rests_on_an_offer_is_taken_back_when_our_route_leads_elsewhere() -> None:
    mesh, at, sale = moved(waits_for_money=False)
    assert at.world.sale(sale.id) is None
    assert sale.id in [said.contract for said in at.sent(Cancel)]  # type: ignore[attr-defined]


def test_shed_ends_no_contract_that_waits() -> None:
    mesh, at, sale = waits()
    assert tries(mesh, "a", "203.0.113.1")
    purchase = purchase_of(at, sale)
    purchase.data_limit_bytes //= 2
    at.world.effects = []
    basis_changed.shed(at.world, purchase.id)
    paid = at.world.sales.find(mesh["a"].identity, ip_address("203.0.113.1"))
    assert sale.running and (paid is None or not paid.running)


@pytest.mark.parametrize("owes_msat", [0, 100])
@pytest.mark.parametrize("keeps_kernel", [False, True])
def test_a_contract_that_waited_when_the_daemon_died_waits_on_and_reserves_nothing(
    keeps_kernel: bool, owes_msat: int
) -> None:
    """One that owes something gets no credit at a start; another gets some, and ends if it doesn't fit any more."""
    mesh, at, sale = waits()
    account = at.world.clients[sale.identity]
    account.charged_msat = owes_msat
    at.save(account)
    assert sale.unbought and tries(mesh, "a", "203.0.113.1")
    mesh.kill("b", keeps_kernel)
    mesh.settle()
    again, account = at.world.sale(sale.id), at.world.clients[sale.identity]
    assert at.granted[sale.id].blocked and promised(mesh, "b")
    assert (again is not None and again.unbought and again.id in account.unpaid) is bool(owes_msat)
    if again is not None:
        assert at.world.timers.at_mono_s(Due.INVOICE, sale.identity) < mesh.now.monotonic_s + 60, (
            "it is asked for money"
        )


def test_a_client_that_never_paid_gets_credit_after_a_long_reboot_and_is_asked_for_money() -> None:
    mesh = line()
    mesh.packet("a", "b")
    at, sale = mesh["b"], mesh["b"].sale("a")
    assert sale.state is State.ACCEPTED and not sale.used_bytes
    mesh.halted.clear()
    mesh.now = type(mesh.now)(mesh.now.utc_s + 100, mesh.now.monotonic_s + 100)
    mesh.kill("b")
    mesh.settle()
    sale = at.sale("a")
    assert sale.running and not sale.unbought and not at.granted[sale.id].blocked
    assert at.world.clients[sale.identity].open_credit(mesh.now.monotonic_s) is not None


@pytest.mark.parametrize("keeps_kernel", [False, True])
@pytest.mark.parametrize("has_room", [False, True])
def test_one_that_waited_for_more_money_is_looked_at_again_at_a_start(has_room: bool, keeps_kernel: bool) -> None:
    """How much was bought for it in vain is forgotten then, so its little money is enough."""
    mesh, at, _ = shared()
    account = owes(mesh, "z")
    at.save(account)
    sale = quoted(mesh, "z", "203.0.113.1")
    accepts(mesh, "z", sale)
    assert sale.unbought and sale.state is State.ACTIVE and tries(mesh, "a", "203.0.113.1")
    if has_room:
        purchase = purchase_of(at, sale)
        purchase.data_limit_bytes *= 2
        at.ledger.put(purchase.record())
    mesh.kill("b", keeps_kernel)
    mesh.settle()
    again = at.world.sale(sale.id)
    assert (again is not None and again.running and not again.unbought) is has_room
    if again is not None and has_room:  # else it would end when the time for a payment is over
        assert again.state is State.ACTIVE and again.id not in at.world.clients[sale.identity].unpaid
    assert at.granted[sale.id].blocked is not has_room
    assert at.world.sales.find(mesh["a"].identity, ip_address("203.0.113.1")).running, "it has bought"
    assert promised(mesh, "b")


def three_wait_and_one_uses() -> tuple[Mesh, Node]:
    """Return a mesh whose x, y and z wait for HOST, which was bought for a, and used by it."""
    mesh, at = three_wait_and_one_buys()
    mesh.carry("abc", 50 * KB)
    at.flush()
    assert at.sale("a").used_bytes
    return mesh, at


@pytest.mark.parametrize("keeps_kernel", [False, True])
def test_after_a_start_those_that_waited_take_nothing_from_one_that_has_bought(keeps_kernel: bool) -> None:
    mesh, at = three_wait_and_one_uses()
    mesh.kill("b", keeps_kernel)
    mesh.settle()
    for name in "xyz":
        pays(mesh, name, 1000)
    assert at.sale("a").running and not at.granted[at.sale("a").id].blocked and promised(mesh, "b")


def test_a_kernel_that_is_closed_for_all_does_not_have_a_used_contract_wait() -> None:
    """A process that is killed while it stops leaves it so."""
    mesh, at = three_wait_and_one_uses()
    sale = at.sale("a")
    at.granted = {one: grant._replace(blocked=True) for one, grant in at.granted.items()}
    mesh.kill("b", keeps_kernel=True)
    mesh.settle()
    assert at.sale("a").id == sale.id and at.sale("a").running and not at.granted[sale.id].blocked


@pytest.mark.parametrize("waits_first", [False, True])
def test_after_a_reboot_one_that_had_bought_on_credit_comes_before_one_that_waited(waits_first: bool) -> None:
    mesh = line()
    at = mesh["b"]
    for name in "xy":
        mesh.add_client(name, "b")
    waits_for_more, on_credit = ("x", "y") if waits_first else ("y", "x")
    for name in "xy":
        at.world.client(mesh[name].identity)
    account = owes(mesh, waits_for_more)
    at.save(account)
    accepts(mesh, waits_for_more, quoted(mesh, waits_for_more, HOST))
    mesh.packet(on_credit, "b")
    bought = at.sale(on_credit)
    assert at.sale(waits_for_more).unbought and bought.state is State.ACCEPTED and not bought.unbought
    mesh.kill("b")
    mesh.settle()
    assert at.sale(on_credit).id == bought.id and at.sale(on_credit).running and not at.granted[bought.id].blocked


def test_the_end_of_one_that_waited_takes_nothing_from_a_client_whose_payment_is_on_its_way() -> None:
    mesh, at, sale = waits()
    assert tries(mesh, "a", "203.0.113.1")
    at.world.streams.debtors[mesh["a"].identity] = Debtor(mesh.now.monotonic_s, 0, 1)
    cancels(mesh, "z", sale.id)
    mesh.settle()
    assert tries(mesh, "a", "203.0.113.1") and is_bought(at, sale)


def test_a_contract_on_credit_goes_on_after_a_reboot_and_fits_when_its_money_comes() -> None:
    mesh = line()
    mesh.packet("a", "b")
    mesh.carry("abc", 50 * KB)
    mesh.wait(6)
    at = mesh["b"]
    at.flush()
    mesh.kill("b")
    mesh.settle()
    sale = at.sale("a")
    assert sale.used_bytes and not sale.unbought and not at.granted[sale.id].blocked
    pays(mesh, "a", RICH_MSAT)
    assert sale.running


def test_what_was_used_needs_no_room_when_money_comes() -> None:
    mesh, at, sale = waits()
    assert tries(mesh, "a", "203.0.113.1")
    purchase = purchase_of(at, sale)
    purchase.data_limit_bytes = 2 * sale.data_limit_bytes - KB
    sale.used_to_bytes = KB
    pays(mesh, "z", RICH_MSAT)
    assert sale.running and not at.granted[sale.id].blocked


def test_the_end_of_one_contract_writes_none_of_the_others_that_wait_for_more_money(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mesh, at, _ = shared()
    owes(mesh, "z").paid_msat += 1000
    sales = [quoted(mesh, "z", f"203.0.113.{number}") for number in range(1, 11)]
    for sale in sales:
        accepts(mesh, "z", sale)
    assert all(one.running and one.unbought for one in sales)
    written = list[bytes]()
    put = at.ledger.put

    def note(record: Record) -> None:
        if isinstance(record, ContractRecord):
            written.append(record.contract)
        put(record)

    monkeypatch.setattr(at.ledger, "put", note)
    at.step(ev.MessageReceived(sales[0].identity, at.link("z"), 1, Cancel(sales[0].id), 1 << 43))
    mesh.settle()
    assert set(written) == {sales[0].id}


@pytest.mark.parametrize("parts", [[100_000_000], [3000, 100_000_000]])
def test_a_debtor_that_pays_enough_in_several_parts_ends_the_pause_of_the_others(parts: list[int]) -> None:
    mesh = line(clients="z")
    at = mesh["b"]
    for name in "az":
        mesh.packet(name, "b")
    exhaust(mesh)
    purchase = at.purchase("c")
    for _ in range(8):
        stream(mesh, 60 * KB, purchase.id)
    assert not purchase.running and at.world.streams.withheld
    at.world.client(mesh["a"].identity).unsold_bytes = 4 * GRACE
    for number, msat in enumerate(parts, 1):
        pays(mesh, "a", msat)
        mesh.wait(2)
        assert bool(at.world.streams.withheld) is (number < len(parts))
    mesh.wait(6)
    assert tries(mesh, "z", HOST)


def test_who_is_no_debtor_any_more_is_not_blamed_for_what_comes_for_nobody() -> None:
    mesh = line(clients="z")
    at, account = mesh["b"], mesh["b"].world.client(mesh["a"].identity)
    for name in "az":
        mesh.packet(name, "b")
    exhaust(mesh)
    purchase = at.purchase("c")
    for _ in range(8):
        stream(mesh, 60 * KB, purchase.id)
    account.unsold_bytes = 4 * GRACE
    pays(mesh, "a", 3000)
    mesh.wait(2)
    assert at.world.streams.withheld and not at.world.streams.debtors
    account.unsold_bytes = 0
    mesh.wait(40)
    mesh.packet("z", "b")
    purchase = at.purchase("c")
    for _ in range(8):
        stream(mesh, 60 * KB, purchase.id)
    assert not account.unsold_bytes


def owes_on_a_link_of(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, name: str, other: bytes = b"") -> bytes:
    """Let a use up its credit and fall silent, then another key speak on the same link of b. Returns that key.

    Args: other: a link address on which a spoke, too.
    """
    at, link = mesh["b"], mesh["b"].link("a")
    for client in "ya":
        mesh.packet(client, "b")
    exhaust(mesh)
    if other:
        hello = Hello("sandbox", False, True, (), "", False)
        at.step(ev.MessageReceived(mesh["a"].identity, (link[0], other), 1, hello, 1 << 42))
    at.world.peers.by_link[link].up = False
    monkeypatch.setattr(at, "link", lambda of: link if of == name else Node.link(at, of))
    mesh.add_client(name, "b")
    mesh.settle()
    return mesh[name].identity


def agrees_on_host(mesh: Mesh, name: str) -> None:
    """Let a client of b ask for HOST, and accept."""
    at = mesh["b"]
    ask = Ask(ip_network(HOST), 0, 0, b"", 1000)
    at.step(ev.MessageReceived(mesh[name].identity, at.link(name), 1, ask, 1 << 41, onward=at.onward))
    mesh.settle()
    accepts(mesh, name, at.sale(name))
    assert at.sale(name).state is State.ACCEPTED


@pytest.mark.parametrize("is_refused", [False, True])
@pytest.mark.parametrize("name", "0z")  # before and after the other key in the ledger
def test_a_start_opens_no_credit_beside_that_of_another_key_on_the_link(
    name: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = line(clients="y")
    at, link = mesh["b"], mesh["b"].link("a")
    key = owes_on_a_link_of(mesh, monkeypatch, name)
    agrees_on_host(mesh, name)
    assert at.world.clients[key].credit is None
    mesh.kill("b", keeps_kernel=True, refused=(key,) if is_refused else ())
    mesh.settle()
    assert at.sale(name).running and at.world.clients[key].credit is None
    assert at.world.clients[mesh["a"].identity].credit is not None and at.world.credit.outstanding[link] == GRACE


@pytest.mark.parametrize("keeps_kernel", [False, True])
def test_after_a_start_a_debt_counts_on_its_link_though_its_key_spoke_on_another_one_last(
    keeps_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = line(clients="y")
    at = mesh["b"]
    key = owes_on_a_link_of(mesh, monkeypatch, "z", other=b"second")
    mesh.kill("b", keeps_kernel)
    mesh.introduce("z", "b")
    mesh.settle()
    agrees_on_host(mesh, "z")
    assert at.world.clients[key].credit is None and at.world.credit.outstanding == {at.link("a"): GRACE}


def test_after_a_start_a_credit_counts_on_its_link_though_its_client_uses_contracts_on_others() -> None:
    mesh = line()
    at, who = mesh["b"], mesh["a"].identity
    second = "to-a2", b"second"
    mesh.packet("a", "b")
    credit = at.world.clients[who].credit
    assert credit is not None
    at.world.credit.change(credit, -credit.data_bytes)
    credit.link = second
    at.world.credit.change(credit, GRACE)
    at.save(at.world.clients[who])
    mesh.kill("b", keeps_kernel=True)
    assert at.sale("a").link == at.link("a") and at.world.credit.outstanding == {second: GRACE}


def test_a_debt_in_a_ledger_of_an_older_version_counts_where_its_client_is() -> None:
    mesh = line()
    at = mesh["b"]
    mesh.packet("a", "b")
    exhaust(mesh)
    at.ledger.put(replace(at.world.clients[mesh["a"].identity].record(), grace_interface="", grace_link_address=b""))
    mesh.kill("b")
    assert at.world.credit.outstanding == {at.link("a"): GRACE}
