"""Traffic that the gateway carries free but the client counts: it is never billed, and causes no dispute.

A contract for a wide prefix may include one of the gateway's FREE_DESTINATIONS, or one port there. The client doesn't
know that, so its own meter counts traffic that no bill will ever contain.
"""

from __future__ import annotations

from playbook import Sim, settings

from ngp.core.messages import Ask, Role

HOST = "198.51.100.1"
LIMIT_BYTES = 1 << 20


def send_free(sim: Sim, packets: int, seconds: float) -> None:
    """Send packets that the gateway's kernel doesn't count, but the client's meter does."""
    for _ in range(packets):
        sim.client.kernel.carry(sim.number(sim.client), Role.CLIENT, HOST, 1000, True, sim.now)
        sim._hints(sim.client)
        sim.run(seconds / packets)


def test_free_traffic_on_the_gateway_alone_costs_nothing_and_is_no_dispute() -> None:
    small = settings(contract_data_bytes=LIMIT_BYTES)
    sim = Sim(small, settings(sells=False, contract_data_bytes=LIMIT_BYTES))
    sim.flow(HOST, 50_000, 4)
    asked_before = len(sim.sent(sim.client, Ask))
    send_free(sim, packets=5 * LIMIT_BYTES // 1000, seconds=20)
    sim.flow(HOST, 50_000, 4)
    sim.run(6)  # a statement comes every 5 s
    theirs = sim.gateway.world.clients[sim.client.identity]
    ours = sim.client.world.servers[sim.gateway.identity]
    (contract,) = sim.client.world.contracts.values()
    assert not ours.disputed and ours.metered_msat > ours.billed_msat == theirs.charged_msat
    assert ours.charged_msat == ours.billed_msat, "the client owes what is billed, not what it metered"
    assert contract.closed_at_s == 0 and contract.billed_bytes == sim.passed < contract.used_to_bytes
    assert theirs.paid_msat == ours.paid_msat <= ours.charged_msat + 2 * sim.client.world.settings.payment_amount_msat
    assert len(sim.sent(sim.client, Ask)) - asked_before <= 12, "renewals for nothing become few"
