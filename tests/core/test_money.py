"""Properties of two nodes under random traffic, lost, late and doubled messages, failing payments and crashes.

At any moment, no money appears or vanishes, and nothing is credited twice. A client that doesn't pay costs the grace
and not a byte more. Each contract is charged for what the kernel let through.
"""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from playbook import Node, Sim, settings, tell

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.kernel import UNITS_PER_MSAT
from ngp.core.messages import Ask, Invoice, Paid, Role
from ngp.core.payment_node import PaymentStatus, Settlement
from ngp.core.pricing import amount_due_msat
from ngp.core.records import Direction, PaymentState
from ngp.core.values import Now

HOSTS = ("198.51.100.1", "198.51.100.2", "203.0.113.1", "203.0.113.2", "203.0.113.3")
GRACE = 64 << 10
OFTEN = effort(
    max_examples=effort.default.max_examples // 2,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

actions = st.one_of(
    st.tuples(st.just("up"), st.sampled_from(HOSTS), st.integers(40, 1500), st.integers(1, 40)),
    st.tuples(st.just("down"), st.sampled_from(HOSTS), st.integers(40, 1500), st.integers(1, 80)),
    st.tuples(st.just("run"), st.sampled_from((0.01, 0.3, 1.0, 3.0, 12.0))),
    st.tuples(st.just("run"), st.sampled_from((0.01, 0.3, 1.0, 3.0, 12.0))),
    st.tuples(st.just("crash"), st.booleans(), st.integers(0, 12)),
    st.tuples(st.just("replay"), st.integers(0, 3)),
)


def due(node: Node, contract: bytes, used_bytes: int) -> int:
    return amount_due_msat(used_bytes, node.ledger.contracts[contract].prices)


def spare_units(sim: Sim) -> int:
    """Return how much more than the client's money the kernel would let it spend, not counting credit."""
    gateway = sim.gateway
    entry = gateway.kernel.accounts.get(sim.client.identity)
    if entry is None:
        return 0
    ours = gateway.world.clients[sim.client.identity]
    unread = sum(
        amount_due_msat(slot.used, contract.prices) - contract.charged_msat
        for slot in gateway.kernel.slots.values()
        if (contract := gateway.world.contracts.get(slot.grant.contract)) and contract.role is Role.SERVER
    )
    money_msat = ours.balance_msat - ours.refund.promised_msat - unread
    return entry.limit.limit_units - entry.spent - money_msat * UNITS_PER_MSAT


def check(sim: Sim) -> None:
    """Assert the properties that hold at any moment."""
    gateway, client = sim.gateway, sim.client
    ours = gateway.world.clients.get(client.identity)
    theirs = client.world.servers.get(gateway.identity)
    if ours is not None:
        settled = [p for p in gateway.world.money.invoices.values() if p.state is PaymentState.SETTLED]
        assert ours.paid_msat == sum(p.amount_msat for p in settled)
        assert ours.paid_msat <= sum(sim.payments.paid.values())
        assert ours.paid_msat == ours.charged_msat + ours.refunded_msat + ours.balance_msat
        assert ours.unsaved_msat >= 0 and ours.priced >= 0 and 0 <= ours.grace_left_bytes(GRACE) <= GRACE
        outstanding = sum(gateway.world.credit.outstanding.values())
        assert outstanding == (ours.credit.data_bytes if ours.credit is not None else 0)
        assert spare_units(sim) <= 0
        kernel = gateway.kernel
        covered = ours.paid_msat - ours.refunded_msat
        passed = sum(due(gateway, c, used) for c, used in kernel.passed.items() if c in gateway.ledger.contracts)
        assert passed <= covered + amount_due_msat(GRACE, [(0, 5 << 20)]) + len(kernel.passed)
    if theirs is not None:
        succeeded = [p for p in client.world.money.payments.values() if p.state is PaymentState.SUCCEEDED]
        assert theirs.paid_msat == sum(p.amount_msat for p in succeeded)
        assert client.world.money.spending.total_msat >= theirs.paid_msat


def finish(sim: Sim) -> None:
    """Wait until everything has ended, then compare both sides and the payment network."""
    sim.loss = sim.late_s = sim.doubles = 0.0
    sim.gateway.crash_after = sim.client.crash_after = -1
    sim.payments.outcomes.clear()
    sim.run(200)
    check(sim)
    gateway, client = sim.gateway, sim.client
    assert not gateway.held, "a held packet was forgotten"
    assert not gateway.world.contracts and not client.world.contracts
    assert not gateway.kernel.slots and not client.kernel.slots
    ours = gateway.world.clients.get(client.identity)
    sent = sum(sim.payments.sent.get("client", {}).values())
    if ours is None or ours.empty:
        assert not sent
        return
    theirs = client.world.servers[gateway.identity]
    assert ours.paid_msat == theirs.paid_msat == sent
    closed = gateway.ledger.contracts.values()
    assert ours.charged_msat == sum(c.charged_msat for c in closed)
    assert ours.running == theirs.running == ours.priced == ours.reserved_msat == ours.kernel.counting == 0
    assert not ours.unpaid and not gateway.kernel.accounts
    for contract in closed:
        assert contract.used_to_bytes + contract.used_from_bytes == gateway.kernel.passed.get(contract.contract, 0)
        assert contract.charged_msat == amount_due_msat(
            contract.used_to_bytes + contract.used_from_bytes, contract.prices
        )
    out = [p for p in client.ledger.payments.values() if p.direction is Direction.OUT]
    assert all(p.state in (PaymentState.SUCCEEDED, PaymentState.FAILED) for p in out)


def play(sim: Sim, plan: list[tuple[object, ...]]) -> None:
    for action, *details in plan:
        if action == "run":
            sim.run(details[0])  # type: ignore[arg-type]
        elif action == "crash":
            node = sim.gateway if details[0] else sim.client
            node.crash_after = details[1]  # type: ignore[assignment]
        elif action == "replay":
            proofs = sim.sent(sim.client, Paid)
            for proof in proofs[: details[0]]:  # type: ignore[misc]
                message = ev.MessageReceived(sim.client.identity, sim.client.link, 1, proof, 1 << 33)
                sim.happen(sim.gateway, message)
            for cursor, payment_hash, amount in sim.payments.stream.get("gateway", []):
                sim.happen(sim.gateway, Settlement(cursor, payment_hash, amount))
        else:
            host, size, times = details
            for _ in range(times):  # type: ignore[call-overload]
                (sim.up if action == "up" else sim.down)(host, size)  # type: ignore[arg-type]
                sim.run(0.002)
        check(sim)


outcomes = st.lists(st.sampled_from(tuple(PaymentStatus)), max_size=6)


@OFTEN
@given(st.lists(actions, max_size=25), outcomes, st.integers(0, 1 << 30), st.booleans(), st.booleans())
def test_money_is_conserved(
    plan: list[tuple[object, ...]], pays: list[PaymentStatus], seed: int, rough: bool, whole: bool
) -> None:
    small = {
        "contract_data_bytes": 200_000,
        "contract_time_s": 40,
        "payment_amount_msat": 1000,
        "grace_data_bytes": GRACE,
    }
    troubles = {"loss": 0.1, "doubles": 0.1, "late_s": 0.5} if rough else {}
    client = settings(sells=False, buys_default_route=whole, **small)
    sim = Sim(settings(**small), client, seed, **troubles)  # type: ignore[arg-type]
    sim.payments.outcomes = list(pays)
    play(sim, plan)
    finish(sim)


@OFTEN
@given(st.lists(actions, max_size=25), st.integers(0, 1 << 30))
def test_a_client_that_does_not_pay_costs_the_grace_once(plan: list[tuple[object, ...]], seed: int) -> None:
    small = {"contract_data_bytes": 200_000, "contract_time_s": 40, "grace_data_bytes": GRACE}
    sim = Sim(settings(**small), settings(sells=False, **small), seed)
    sim.payments.outcomes = [PaymentStatus.FAILED] * 1000
    play(sim, plan)
    assert sim.passed <= GRACE
    assert not any(isinstance(effect, fx.ProveSettlement) for effect in sim.gateway.log)


@effort(OFTEN, max_examples=effort.default.max_examples // 5)
@given(st.lists(st.tuples(st.sampled_from(HOSTS), st.integers(40, 1500)), min_size=1, max_size=60))
def test_both_sides_compute_the_same_charge(packets: list[tuple[str, int]]) -> None:
    sim = Sim()
    for host in HOSTS:
        tell(sim, sim.gateway, Ask(ip_network(host), 0, 0))
    sim.run(0.1)
    for host, size in packets:
        sim.up(host, size)
        sim.down(host, size)
        sim.run(0.05)
    sim.run(3700)
    assert sim.passed == 2 * sum(size for _, size in packets)
    ours, theirs = sim.gateway.ledger.contracts, sim.client.ledger.contracts
    assert {c: r.charged_msat for c, r in ours.items()} == {c: r.charged_msat for c, r in theirs.items()}
    assert sim.gateway.world.clients[sim.client.identity].charged_msat == (
        sim.client.world.servers[sim.gateway.identity].metered_msat
    )


def test_a_clock_that_was_set_back_makes_grace_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router without a battery-backed clock starts in the past."""
    sim = Sim(client=settings(sells=False, buys=True))
    sim.silenced.add(Invoice)
    sim.up("198.51.100.1", 1000)
    sim.run(0.5)
    sim.gateway.gatekeeper.flush()
    sim.happen(sim.gateway, ev.UsageRead(()))
    monkeypatch.setattr(sim, "clock", lambda: Now(1, sim.now))
    sim.crash(sim.gateway)
    ours = sim.gateway.world.clients[sim.client.identity]
    assert ours.credit is not None
    assert ours.credit.until_mono_s - sim.now <= sim.gateway.settings.grace_time_s
