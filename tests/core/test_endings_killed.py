"""Endings at a kill: a node is killed while a contract ends, and its neighbours learn of the end all the same."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from mesh import HOST, MB, PLENTY, Mesh
from playbook import settings
from test_endings import buys

from ngp.core import events as ev
from ngp.core.buying import bills
from ngp.core.messages import Ask, Cancel, Hello, Statement
from ngp.core.selling.account import MOST_UNTOLD
from ngp.core.selling.sale import Sale

SMALL_GRACE = settings(**{**PLENTY, "grace_data_bytes": MB})


def killed_at_the_end_of_its_purchase(mesh: Mesh, closed: bool = False) -> None:
    """Let c end what b buys, and b die when it has stored that. Args: closed: it also had its meter's last reading."""
    at, old = mesh["b"], mesh["b"].purchase("c")
    mesh.lost = {Ask, Cancel}  # b's clients hear nothing
    mesh["c"].end("b")
    at.step(ev.MessageReceived(mesh["c"].identity, at.link("c"), 1, Cancel(old.id, "upstream"), 1 << 40))
    for _, halted in list(mesh.halted) if closed else ():
        at.step(halted)
    mesh.kill("b")
    mesh.lost = set()
    mesh.introduce("b", "c")
    mesh.settle()


def test_a_client_hears_of_the_end_of_a_sale_that_a_node_in_the_middle_closed_at_its_start() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    mesh.carry("abc", 10_000)
    at, sale = mesh["b"], mesh["b"].sale("a")
    mesh.lost = {Cancel}
    mesh["c"].end("b")
    mesh.lost = set()
    ended = Cancel(sale.rests_on, "upstream")
    at.step(ev.MessageReceived(mesh["c"].identity, at.link("c"), 1, ended, 1 << 40))
    closed = next(event for _, event in mesh.halted if event.contract == sale.rests_on)
    at.step(closed)  # the purchase is closed in the ledger, the sale on it isn't yet
    mesh.kill("b")
    mesh.settle()
    assert not at.sent(Cancel)
    mesh.introduce("a", "b")
    mesh.introduce("b", "c")
    mesh.settle()
    mesh.wait(2)
    assert Cancel(sale.id, "upstream") in at.sent(Cancel)
    assert buys(mesh, "a", "b") and buys(mesh, "b", "c")


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("ours", [True, False])
def test_after_a_kill_a_download_that_was_sold_too_goes_on_as_long_as_the_household_answers(
    ours: bool, closed: bool
) -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    mesh.carry("abc", 2000)
    at, old = mesh["b"], mesh["b"].purchase("c")
    if ours:
        mesh.count("b", old.id, 5000)
    mesh.wait(61)  # a keeps its contract, which is idle
    killed_at_the_end_of_its_purchase(mesh, closed)
    mesh.wait(2)
    new = mesh["b"].purchase("c")
    assert new.running
    for _ in range(5):  # it brings much, for nobody if the household doesn't answer
        if ours:
            mesh.count("b", new.id, 100)
        counts = at.counts.setdefault(new.id, [0, 0])
        counts[1] += at.world.settings.grace_data_bytes
        at.step(ev.UsageRead((at.reading(new.id),)))
        mesh.wait(1)
    assert new.running is ours


def brought_for_nobody(mesh: Mesh) -> int:
    """Let bytes come by what b buys while b sends nothing. Returns how many came until all of it ended."""
    came, at = 0, mesh["b"]
    while came < 50 * MB and (running := [one for one in at.world.contracts.values() if one.running]):
        came += MB
        for one in running:
            at.counts.setdefault(one.id, [0, 0])[1] += MB
            at.step(ev.UsageRead((at.reading(one.id),)))
        mesh.wait(1)
    return came


def test_what_a_client_used_a_moment_ago_does_not_bring_much_for_nobody_after_a_kill() -> None:
    """The ledger doesn't say yet that the client used it."""
    mesh = Mesh("abc", b=SMALL_GRACE)
    mesh.packet("a", "b")
    mesh.carry("abc", 10_000)
    killed_at_the_end_of_its_purchase(mesh)
    mesh.wait(2)
    assert 0 < brought_for_nobody(mesh) <= 2 * MB


def test_what_outlived_its_client_does_not_bring_much_for_nobody_after_a_kill() -> None:
    mesh = Mesh("abc", b=SMALL_GRACE)
    mesh.packet("a", "b")
    at, old, sale = mesh["b"], mesh["b"].purchase("c"), mesh["b"].sale("a")
    mesh.carry("abc", 10_000)
    mesh.count("b", old.id, 5000)  # the household used it once
    mesh.wait(1)
    at.step(ev.MessageReceived(mesh["a"].identity, at.link("a"), 1, Cancel(sale.id), 1 << 40))
    mesh.settle()
    mesh.wait(61)
    assert old.running
    mesh["c"].end("b")
    at.reboot()
    mesh.introduce("b", "c")
    mesh.settle()
    mesh.wait(2)
    assert 0 < brought_for_nobody(mesh) <= 2 * MB


def test_what_expired_as_nobody_used_it_is_not_asked_for_anew_after_a_kill() -> None:
    mesh = Mesh("bc", b=settings(**PLENTY, contract_time_s=60), c=settings(**PLENTY, contract_time_s=60))
    mesh.packet("b", "c")
    at, old = mesh["b"], mesh["b"].purchase("c")
    mesh.count("b", old.id, 5000)
    while old.running:
        mesh.wait(1)
    assert old.reason == "expired"
    at.said.clear()
    at.reboot()
    mesh.introduce("b", "c")
    mesh.settle()
    mesh.wait(2)
    assert not at.sent(Ask) and not at.world.contracts


def test_a_server_hears_after_a_kill_that_we_ended_its_contract() -> None:
    """We are killed after the end is in the ledger, before anything left us."""
    mesh = Mesh("bc")
    mesh.packet("b", "c")
    at, purchase = mesh["b"], mesh["b"].purchase("c")
    mesh.count("b", purchase.id, 10_000)
    at.world.effects = []
    bills.end(at.world, purchase)
    at.carry_out(at.world.effects)
    mesh.kill("b")
    mesh.settle()
    mesh.introduce("b", "c")
    mesh.settle()
    assert Cancel(purchase.id) in at.sent(Cancel)
    assert mesh["c"].world.sales.find(at.identity, ip_address(HOST)) is None


def test_a_client_whose_last_bill_was_acknowledged_is_told_of_the_end_after_a_kill() -> None:
    """The acknowledged line is that of the running contract, and nothing came after it; then the client was away."""
    mesh = Mesh("ab")
    mesh.packet("a", "b")
    mesh.carry("ab", 10_000)
    mesh.wait(6)
    at, sale = mesh["b"], mesh["b"].sale("a")
    (line,) = [one for said in at.sent(Statement) for one in said.lines if one.contract == sale.id][-1:]
    assert line.used_bytes == sale.used_bytes
    mesh.lost = {Cancel, Statement, Ask}
    mesh["b"].end("a")
    at.step(ev.Delivered(mesh["a"].identity, at.link("a"), Statement(0, line.charged_msat, 0, (line,))))
    mesh.wait(200)
    at.said.clear()
    at.reboot()
    mesh.lost = set()
    mesh.introduce("a", "b")
    mesh.settle()
    mesh.wait(1)
    assert Cancel(sale.id, "upstream") in at.sent(Cancel)


@pytest.mark.parametrize("bytes_a_second", [MB // 4, MB, 4 * MB])
def test_a_fast_stream_for_nobody_does_not_make_us_buy_again_and_again_after_a_kill(bytes_a_second: int) -> None:
    mesh = Mesh("abc", b=SMALL_GRACE)
    mesh.packet("a", "b")
    at = mesh["b"]
    mesh.carry("abc", 10_000)
    killed_at_the_end_of_its_purchase(mesh)
    came = 0
    for _ in range(1300):  # longer than it is asked for; the kernel is read ten times a second
        for one in [one for one in at.world.contracts.values() if one.running]:
            came += bytes_a_second // 10
            at.counts.setdefault(one.id, [0, 0])[1] += bytes_a_second // 10
            at.step(ev.UsageRead((at.reading(one.id),)))
        mesh.wait(0.1)
    assert 0 < came <= 2 * MB + bytes_a_second


def bill_comes_before_the_end(mesh: Mesh) -> tuple[Sale, Statement]:
    """Let a sale of b's end, and a acknowledge its last bill, but not that it is over."""
    mesh.packet("a", "b")
    mesh.carry("ab", 10_000)
    at, sale = mesh["b"], mesh["b"].sale("a")
    mesh.lost = {Cancel, Statement, Ask}
    at.end("a")
    mesh.wait(1)
    bill = [one for one in at.sent(Statement) if any(line.contract == sale.id for line in one.lines)][-1]
    at.step(ev.Delivered(sale.identity, sale.link, bill))
    return sale, bill


def test_a_bill_that_a_client_lost_by_a_power_cut_is_sent_again() -> None:
    """It had acknowledged the bill, and stores the end only after its next start."""
    mesh = Mesh("ab")
    sale, bill = bill_comes_before_the_end(mesh)
    at = mesh["b"]
    at.step(
        ev.MessageReceived(sale.identity, sale.link, 2, Hello("sandbox", True, True, (), "ngp", False), 1 << 42)
    )
    at.step(ev.Delivered(sale.identity, sale.link, Cancel(sale.id, "upstream")))
    mesh.wait(1)
    at.said.clear()
    lines = tuple(line for line in bill.lines if line.contract == sale.id)
    at.step(ev.BillsRecalled(sale.identity, lines, None))
    assert [one.lines for one in at.sent(Statement)] == [lines]


def test_a_bill_is_acknowledged_though_many_later_ends_came_before_the_client_stored_its_end() -> None:
    mesh = Mesh("ab")
    sale, _ = bill_comes_before_the_end(mesh)
    at = mesh["b"]
    for number in range(MOST_UNTOLD):
        at.world.client(sale.identity).untold.note(number.to_bytes(16, "big"), "upstream")
    at.step(ev.Delivered(sale.identity, sale.link, Cancel(sale.id, "upstream")))
    for _ in range(60):
        mesh.wait(5)
    (record,) = [one for one in at.ledger.contracts.values() if one.contract == sale.id]
    assert record.billed_bytes == record.used_bytes == 10_000
