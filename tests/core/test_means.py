"""Means: a node in the middle that can't pay its server sells nothing that the server would drop."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mesh import PLENTY, Mesh
from playbook import settings

from ngp.core import events as ev
from ngp.core.buying.account import Backoff
from ngp.core.buying.service import MOST_UNSEEN
from ngp.core.kernel import Verdict
from ngp.core.messages import Cancel, Reject, RejectReason
from ngp.core.money import Order
from ngp.core.orders import pay
from ngp.core.payment_node import PaymentOutcome, PaymentStatus
from ngp.core.records import PaymentKind

GRACE, KB = 256 << 10, 1 << 10
USUAL = settings(**{**PLENTY, "grace_data_bytes": GRACE})


def selling() -> Mesh:
    """Return a line whose b sells to a, which has paid."""
    mesh = Mesh("abc", b=USUAL)
    mesh["b"].world.client(mesh["a"].identity).paid_msat = 1_000_000_000
    mesh.packet("a", "b")
    return mesh


def hinder(mesh: Mesh, how: str) -> None:
    """Let something keep b from paying c, or no longer ("")."""
    world, who = mesh["b"].world, mesh["c"].identity
    account = world.server(who)
    account.backoff = Backoff(mesh.now.monotonic_s + 30, 1) if how == "failed" else Backoff()
    account.disputed = how == "disputed"
    account.seen.unseen = MOST_UNSEEN if how == "unseen" else 0
    account.seen.try_again_mono_s = mesh.now.monotonic_s + 100
    hour_msat = 0 if how == "budget" else USUAL.budgets.hour_msat
    mesh["b"].step(ev.SettingsChanged(replace(USUAL, budgets=replace(USUAL.budgets, hour_msat=hour_msat))))


@pytest.mark.parametrize("how", ["failed", "disputed", "unseen", "budget"])
def test_what_rests_on_a_server_that_cannot_be_paid_ends_when_money_and_credit_there_are_used_up(how: str) -> None:
    mesh = selling()
    sale, at = mesh["b"].sale("a"), mesh["b"]
    mesh.carry("abc", 150 * KB)
    hinder(mesh, how)
    mesh.carry("abc", 40 * KB)
    assert sale.running, "on the server's credit"
    mesh.carry("abc", 10 * KB)
    assert not sale.running and Cancel(sale.id, "upstream") in at.sent(Cancel)
    assert [one.reason for one in at.sent(Reject)] == [RejectReason.UPSTREAM], "a has asked for another contract"  # type: ignore[attr-defined]
    mesh.packet("a", "b")
    assert at.verdicts[-1] is Verdict.PROHIBIT, "its sender is told"
    mesh.wait(6)  # a asks each second, which mustn't prolong the refusal
    hinder(mesh, "")
    mesh.packet("a", "b")
    assert at.verdicts[-1] is Verdict.REPEAT and at.sale("a").running


def test_a_payment_on_its_way_ends_nothing_unless_it_takes_longer_than_the_grace() -> None:
    mesh = selling()
    sale, at = mesh["b"].sale("a"), mesh["b"]
    hinder(mesh, "failed")
    pay(at.world, mesh["c"].identity, PaymentKind.TOP_UP, Order("lnbc1", b"h" * 32, 100_000, 1000))
    mesh.carry("abc", 400 * KB)
    mesh.wait(5)
    assert sale.running
    changed = settings(**{**PLENTY, "grace_data_bytes": GRACE, "grace_time_s": 10})
    at.step(ev.SettingsChanged(changed))
    mesh.wait(6)
    mesh.carry("abc", KB)
    assert not sale.running


def test_a_payment_that_fails_ends_at_once_what_is_sold_beyond_the_credit_and_one_that_succeeds_nothing() -> None:
    for status in (PaymentStatus.SUCCEEDED, PaymentStatus.FAILED):
        mesh = selling()
        sale, at = mesh["b"].sale("a"), mesh["b"]
        at.world.server(mesh["c"].identity).sent = True
        pay(at.world, mesh["c"].identity, PaymentKind.TOP_UP, Order("lnbc1", b"h" * 32, 100_000, 1000))
        mesh.carry("abc", 400 * KB)
        at.step(PaymentOutcome(b"h" * 32, status, b"p" * 32 if status is PaymentStatus.SUCCEEDED else b""))
        mesh.settle()
        assert sale.running is (status is PaymentStatus.SUCCEEDED)


def test_what_is_lost_on_the_way_to_the_server_uses_up_no_money_there() -> None:
    mesh = selling()
    sale, at = mesh["b"].sale("a"), mesh["b"]
    at.world.server(mesh["c"].identity).paid_msat = 300 * 5  # kB and msat
    for _ in range(20):  # half of it is lost
        mesh.count("b", at.purchase("c").id, 20 * KB)
        mesh.count("c", mesh["c"].sale("b").id, 10 * KB)
        mesh.wait(6)
    hinder(mesh, "failed")
    mesh.count("b", at.purchase("c").id, 100 * KB)
    assert sale.running


def test_what_the_server_drops_is_noticed_though_it_bills_nothing_more() -> None:
    mesh = selling()
    sale, at = mesh["b"].sale("a"), mesh["b"]
    mesh.carry("abc", 255 * KB)
    mesh.wait(6)
    hinder(mesh, "failed")
    mesh.count("b", at.purchase("c").id, KB)
    assert not sale.running
