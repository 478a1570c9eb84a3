"""Unbought: a contract that waits for money lets nothing pass before what it rests on is bought."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from mesh import HOST, Mesh, Node, promised
from test_losses_newcomers import accepts, lost_too_much, quoted, shared, tries
from test_unsold import GRACE, KB, cancels, exhaust, line, stream

from ngp.core import basis_changed, unsold
from ngp.core import events as ev
from ngp.core.contract import State
from ngp.core.kernel import HeldPacket, Hint, HintKind
from ngp.core.messages import Accept, Ask, Reject, RejectReason
from ngp.core.money import Order
from ngp.core.payment_node import PaymentOutcome, PaymentStatus
from ngp.core.records import Direction, PaymentKind, PaymentRecord, PaymentState
from ngp.core.selling import metering
from ngp.core.selling.account import ClientAccount
from ngp.core.selling.sale import Sale
from ngp.core.timers import Due

RICH_MSAT = 1_000_000_000


def waits(paid_msat: int = 0) -> tuple[Mesh, Node, Sale]:
    """Return a line whose b has agreed on a contract with z, which has no credit: its link's is used by others.

    Args: paid_msat: what z has paid, all of which it gets back just now.
    """
    mesh, at, _ = shared()
    z = mesh["z"].identity
    cancels(mesh, "z", at.sale("z").id)
    mesh.settle()
    at.world.credit.outstanding[at.link("z")] = GRACE
    account, what = at.world.clients[z], (Direction.OUT, bytes(32), PaymentKind.REFUND, z)
    account.paid_msat = account.refund.promised_msat = paid_msat
    at.world.money.payments[bytes(32)] = PaymentRecord(*what, paid_msat, 0, PaymentState.PENDING, "", b"", 0)
    sale = quoted(mesh, "z", "203.0.113.1")
    accepts(mesh, "z", sale)
    assert sale.state is State.ACCEPTED and at.granted[sale.id].blocked and not is_bought(at, sale)
    return mesh, at, sale


def three_wait_and_one_buys() -> tuple[Mesh, Node]:
    """Return a line whose b has agreed on HOST with x, y and z, which wait for money, then with a, which is rich."""
    mesh = line()
    at, account = mesh["b"], mesh["b"].world.client(mesh["a"].identity)
    account.paid_msat = RICH_MSAT
    at.save(account)
    for name in "xyz":
        mesh.add_client(name, "b")
        at.world.credit.outstanding[at.link(name)] = GRACE
        accepts(mesh, name, quoted(mesh, name, HOST))
    mesh.packet("a", "b")
    return mesh, at


def is_bought(at: Node, sale: Sale) -> bool:
    return at.world.running_purchase(sale.rests_on) is not None


def pays(mesh: Mesh, client: str, msat: int) -> None:
    """Let b get a payment."""
    at, account = mesh["b"], mesh["b"].world.clients[mesh[client].identity]
    account.paid_msat += msat
    at.world.effects = []
    metering.paid_for(at.world, account)
    at.carry_out(at.world.effects)
    mesh.settle()


@pytest.mark.parametrize("is_valid", [True, False])
@pytest.mark.parametrize("how", ["exhausted", "another contract", "money"])
def test_when_it_has_means_what_it_rests_on_is_bought_before_its_packets_pass_or_it_ends(
    how: str, is_valid: bool
) -> None:
    mesh, at, sale = waits()
    at.world.credit.outstanding.pop(at.link("z"))
    other = quoted(mesh, "z", "203.0.113.2")
    if not is_valid:
        del at.world.buying.quotes[sale.seller, sale.destination.prefix]
    if how == "exhausted":
        at.step(ev.Hinted((Hint(HintKind.ACCOUNT_EXHAUSTED, mesh["z"].identity),)))
        mesh.settle()
    elif how == "another contract":
        accepts(mesh, "z", other)
    else:
        pays(mesh, "z", 1_000_000)
    assert sale.running is is_bought(at, sale) is is_valid
    assert at.granted[sale.id].blocked is not is_valid


@pytest.mark.parametrize("how", ["payment", "count", "due"])
def test_money_that_comes_back_without_a_payment_is_used(how: str) -> None:
    mesh, at, sale = waits(paid_msat=1_000_000)
    account = at.world.clients[sale.identity]
    if how == "payment":
        at.step(PaymentOutcome(bytes(32), PaymentStatus.FAILED))
    elif how == "count":  # the refund that was asked for is more than there is
        account.refund.pending = Order("", bytes(32), 1_000_000, 0)
        account.kernel.counting, account.charged_msat = 1, 100_000
        at.save(account)
        at.step(ev.AccountCounted(sale.identity, 0, ()))
    else:
        account.refund.promised_msat = 0
        mesh.wait(6)
        assert at.granted[sale.id].blocked
        at.world.timers.set(Due.UNPAID, sale.identity, mesh.now.monotonic_s)
        mesh.wait(0.1)
    mesh.settle()
    assert account.funds_msat > 0 and sale.state is State.ACTIVE
    assert is_bought(at, sale) and not at.granted[sale.id].blocked


def test_a_charge_on_credit_is_not_lost_when_a_refund_fails_and_the_daemon_is_killed_then() -> None:
    mesh = line()
    at, who = mesh["b"], mesh["a"].identity
    mesh.packet("a", "b")
    account, what = at.world.clients[who], (Direction.OUT, bytes(32), PaymentKind.REFUND, who)
    account.paid_msat = account.refund.promised_msat = RICH_MSAT
    at.world.money.payments[bytes(32)] = PaymentRecord(*what, RICH_MSAT, 0, PaymentState.PENDING, "", b"", 0)
    mesh.carry("abc", 50 * KB)
    charged_msat = account.charged_msat
    assert charged_msat and at.sale("a").state is State.ACCEPTED
    at.step(PaymentOutcome(bytes(32), PaymentStatus.FAILED))
    assert at.sale("a").state is State.ACTIVE
    mesh.kill("b", keeps_kernel=True)
    assert at.world.clients[who].charged_msat == charged_msat


def test_nothing_is_bought_for_contracts_that_are_about_to_end() -> None:
    mesh, at, sale = waits()
    at.world.credit.outstanding.pop(at.link("z"))
    other = quoted(mesh, "z", "203.0.113.2")
    cancels(mesh, "z", sale.id)  # the kernel's last count is still missing
    accept = Accept(other.id, other.price_msat_per_gib, other.data_limit_bytes)
    at.step(ev.MessageReceived(sale.identity, at.link("z"), 1, accept, 1 << 41))
    assert is_bought(at, other) and not is_bought(at, sale)
    mesh.settle()
    assert not is_bought(at, sale)


def test_what_the_kernel_still_has_of_a_credit_that_is_used_up_by_the_books_lets_nothing_pass() -> None:
    mesh = line()
    mesh.add_client("z", "b")
    at = mesh["b"]
    sale = quoted(mesh, "z", "203.0.113.1")
    assert tries(mesh, "z", "198.18.0.1")
    used = at.world.sales.find(mesh["z"].identity, ip_address("198.18.0.1"))
    credit = at.world.clients[mesh["z"].identity].credit
    assert used is not None and credit is not None
    for one in (used.rests_on, used.id):
        mesh.count("b", one, credit.data_bytes - 100)
    accepts(mesh, "z", sale)
    assert sale.running and not is_bought(at, sale) and at.granted[sale.id].blocked


def test_what_another_client_bought_meanwhile_passes_when_money_comes() -> None:
    mesh, at, sale = waits()
    assert tries(mesh, "a", "203.0.113.1") and is_bought(at, sale)
    assert at.granted[sale.id].blocked and sale.state is State.ACCEPTED
    purchase = at.world.running_purchase(sale.rests_on)
    assert purchase is not None
    purchase.data_limit_bytes *= 2
    pays(mesh, "z", 1_000_000)
    assert sale.state is State.ACTIVE and not at.granted[sale.id].blocked


def test_what_is_withheld_meanwhile_is_not_bought_when_money_comes() -> None:
    mesh, at, sale = waits()
    lost_too_much(mesh)
    at.world.streams.of_client(sale.identity, mesh["c"].identity, mesh.now.monotonic_s).counted_bytes = 100 * GRACE
    pays(mesh, "z", 1_000_000)
    assert not sale.running and not is_bought(at, sale)


def test_a_contract_that_waits_is_not_renewed() -> None:
    mesh, at, sale = waits()
    mesh.lost.add(Reject)  # its daemon hasn't asked
    for seconds in (0, 7):  # in the last seconds of the server's offer we know no cost any more
        mesh.wait(seconds)
        ask = Ask(sale.destination.prefix, 0, 0, sale.id)
        at.step(ev.MessageReceived(sale.identity, at.link("z"), 1, ask, 1 << 42, onward=at.onward))
        assert sale.running and sale.renewal_offer is None and sale.wanted is None
    (said,) = {said.reason for said in at.sent(Reject)}  # type: ignore[attr-defined]
    assert said is RejectReason.BUSY


def test_contracts_that_wait_take_no_room_from_one_that_is_paid_for() -> None:
    mesh, at = three_wait_and_one_buys()
    paid = at.sale("a")
    for _ in range(3):
        mesh.carry("abc", 100 * KB)
        mesh.wait(1)
    assert paid.running and promised(mesh, "b")


def test_a_contract_that_waits_is_over_after_a_start() -> None:
    mesh, at, sale = waits()
    mesh.kill("b")
    mesh.settle()
    assert at.world.sale(sale.id) is None


def test_a_part_of_a_debt_that_is_paid_ends_no_contract_on_what_others_have_bought() -> None:
    mesh = line(clients="y")
    mesh.add_client("x", "b")
    at, x = mesh["b"], mesh["x"].identity
    hosts = [f"203.0.113.{number}" for number in range(1, 6)]
    for host in hosts:
        for client in "yx":
            at.step(HeldPacket(9, at.link(client), ip_address(host), at.onward))
            mesh.settle()
    sales = [at.world.sales.find(x, ip_address(host)) for host in hosts]
    assert sales[0] is not None
    exhaust(mesh, "x", hosts[0])
    for _ in range(6):
        stream(mesh, 60 * KB, sales[0].rests_on)
    assert at.world.clients[x].unsold_bytes > GRACE and not sales[0].running
    pays(mesh, "x", 1000)
    assert all(one is not None and one.running for one in sales[1:])


def owes(mesh: Mesh, client: str) -> ClientAccount:
    """Let b have bought four times the grace in vain for a client that has little money now."""
    account = mesh["b"].world.clients[mesh[client].identity]
    account.unsold_bytes, account.unsold_mono_s = 4 * GRACE, mesh.now.monotonic_s
    account.credit, account.paid_msat = None, account.charged_msat + 10
    return account


def test_who_has_less_money_than_was_bought_for_it_in_vain_is_asked_for_more_and_is_served_when_it_pays() -> None:
    mesh, at, _ = shared()
    account = owes(mesh, "z")
    at.world.effects = []
    sale = quoted(mesh, "z", "203.0.113.1")
    accepts(mesh, "z", sale)
    assert sale.running and at.granted[sale.id].blocked and not is_bought(at, sale)
    assert account.invoice.asked, "it is asked for money"
    pays(mesh, "z", 1)
    assert sale.running and at.granted[sale.id].blocked and not is_bought(at, sale), "still too little"
    pays(mesh, "z", 1_000_000_000)
    assert sale.running and not at.granted[sale.id].blocked and is_bought(at, sale)


def test_who_does_not_pay_what_was_bought_for_it_in_vain_loses_its_contract_after_the_time_of_the_grace() -> None:
    mesh, at, _ = shared()
    owes(mesh, "z")
    sale = quoted(mesh, "z", "203.0.113.1")
    accepts(mesh, "z", sale)
    mesh.wait(9)
    assert sale.running
    mesh.wait(2)
    assert not sale.running and not is_bought(at, sale)


def test_half_of_what_was_bought_in_vain_is_forgotten_each_hour() -> None:
    mesh, at, _ = shared()
    account = owes(mesh, "z")
    price = at.purchase("c").price_msat_per_gib
    account.paid_msat += 1000
    for hours, may in ((0, False), (0.99, False), (0.02, False), (1, True), (100, True)):
        mesh.now = type(mesh.now)(mesh.now.utc_s, mesh.now.monotonic_s + hours * 3600)
        at.world.now = mesh.now
        assert unsold.may_buy_for(at.world, account, price) is may
    assert account.unsold_bytes == 0


def test_the_time_within_which_more_money_must_come_is_not_prolonged_and_is_the_same_for_the_next_contract() -> None:
    mesh, at, _ = shared()
    owes(mesh, "z")
    for number in (1, 2):
        sale = quoted(mesh, "z", f"203.0.113.{number}")
        accepts(mesh, "z", sale)
        mesh.wait(5)
        other = quoted(mesh, "z", f"203.0.113.{10 + number}")
        accepts(mesh, "z", other)
        cancels(mesh, "z", other.id)
        mesh.settle()
        mesh.wait(4)
        assert sale.running
        mesh.wait(2)
        assert not sale.running


def test_contracts_that_wait_with_a_little_money_take_no_room_from_one_that_is_paid_for() -> None:
    mesh, at, _ = shared()
    for name in "xyw":
        mesh.add_client(name, "b")
        at.world.client(mesh[name].identity)
        owes(mesh, name)
        accepts(mesh, name, quoted(mesh, name, "203.0.113.1"))
    assert tries(mesh, "a", "203.0.113.1")
    paid = at.world.sales.find(mesh["a"].identity, ip_address("203.0.113.1"))
    assert paid is not None
    for _ in range(3):
        for one in (paid.rests_on, paid.id):
            mesh.count("b", one, 100 * KB)
        mesh.wait(1)
    assert paid.running


def test_a_little_money_does_not_end_the_pause_of_what_others_have_bought() -> None:
    mesh = line(clients="z")
    at, a = mesh["b"], mesh["a"].identity
    ended = 0
    for _ in range(6):
        if tries(mesh, "z") and tries(mesh, "a"):
            exhaust(mesh)
            purchase = at.purchase("c")
            for _ in range(20):
                stream(mesh, 100 * KB, purchase.id)
            ended += not purchase.running
        pays(mesh, "a", at.world.clients[a].debt_msat + 500)
        mesh.wait(2)
    assert ended == 1


@pytest.mark.parametrize("state", [State.ACCEPTED, State.RENEWING])
def test_of_contracts_on_credit_the_latest_ends_first_whatever_the_state_of_the_others(state: State) -> None:
    mesh = line()
    at = mesh["b"]
    for name in "xz":
        mesh.add_client(name, "b")
        mesh.packet(name, "b")
    first, latest, purchase = at.sale("x"), at.sale("z"), at.purchase("c")
    if state is State.RENEWING:
        at.world.move(first, State.RENEWING)
    purchase.data_limit_bytes = first.data_limit_bytes + latest.data_limit_bytes - 1
    at.world.effects = []
    basis_changed.shed(at.world, purchase.id)
    assert first.running and not latest.running
