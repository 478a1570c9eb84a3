"""Grace that was used just before it ended, and that the daemon reads only afterwards, counts like any other."""

from __future__ import annotations

from ipaddress import ip_network

from playbook import Sim, account, settings, tell

from ngp.core.messages import Ask, Invoice, Paid
from ngp.core.selling.grace import CREDIT_UNUSED_S

HOST = "198.51.100.1"
GRACE = 256 << 10
LATE_S = 0.0005  # a hint takes longer


def use_at(sim: Sim, when: float, data_bytes: int) -> None:
    """Receive this many bytes just before an instant, too late for the last reading before it."""
    sim.run(when - LATE_S - sim.now)
    for _ in range(data_bytes // 1024):
        sim.down(HOST, 1024)


def begun(**changes: object) -> Sim:
    """Return a client that has grace and doesn't use it; its invoices don't reach it."""
    sim = Sim(settings(**changes), settings(sells=False, **changes))
    sim.silenced = {Invoice}
    sim.run(0.35)  # so that readings and the ends of grace don't coincide
    tell(sim, sim.gateway, Ask(ip_network(HOST), 0, 0))
    while sim.client.identity not in sim.gateway.world.clients or account(sim).credit is None:
        sim.run(0.001)
    return sim


def owed(sim: Sim) -> int:
    return sim.gateway.world.credit.outstanding.get(sim.client.link, 0)


def test_grace_used_just_before_it_is_taken_back_is_owed() -> None:
    sim = begun()
    credit = account(sim).credit
    assert credit is not None
    opened_at = credit.until_mono_s - sim.gateway.settings.grace_time_s
    use_at(sim, opened_at + CREDIT_UNUSED_S, GRACE)
    sim.run(30)
    assert sim.passed == GRACE == owed(sim)
    sim.run(80)
    sim.client.identity = b"D" * 32
    sim.run(21)
    for number in range(30):
        sim.up(HOST if number else "198.51.100.9", 512)
        sim.run(0.1)
    assert sim.passed == GRACE


def test_grace_used_just_before_its_time_is_over_is_owed() -> None:
    sim = begun()
    sim.down(HOST, 1024)
    sim.run(0.6)
    credit = account(sim).credit
    assert credit is not None and account(sim).debt_msat
    use_at(sim, credit.until_mono_s, GRACE - 1024)
    sim.run(30)
    assert sim.passed == GRACE == owed(sim)


def test_grace_used_just_before_a_small_payment_is_owed() -> None:
    sim = begun(payment_amount_msat=1000)
    sim.down(HOST, 1024)
    sim.run(1)
    books = account(sim)
    payment_hash = books.invoice.payment_hash
    use_at(sim, sim.now, GRACE - 1024)
    sim.payments.settle("client", payment_hash)
    tell(sim, sim.gateway, Paid(payment_hash, sim.payments.preimages[payment_hash]))
    sim.run(30)
    assert sim.passed == GRACE and books.paid_msat == 1000
    assert books.debt_msat == 280 and owed(sim) == 280 // 5 << 10
