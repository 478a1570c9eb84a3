"""What the gateway carries for nothing and the client, who wasn't told, counts: nobody pays it, nobody quarrels.

A contract may cover a destination of the gateway's FREE_DESTINATIONS, or one port there: a prefix sold whole, a
default route asked for. The client's own meter then counts what no bill will ever name.
"""

from __future__ import annotations

from playbook import Sim, settings

from ngp.core.messages import Ask, Role

HOST = "198.51.100.1"
LIMIT_BYTES = 1 << 20


def send_free(sim: Sim, packets: int, seconds: float) -> None:
    """Have packets pass that the gateway's kernel lets by uncounted, while the client's meter counts them."""
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
