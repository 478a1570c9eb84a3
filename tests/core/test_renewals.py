"""How often a client renews: no renewal makes another one due at once, and none comes too late for a packet."""

from __future__ import annotations

import pytest
from mesh import MB, Mesh, Node
from playbook import Sim, settings, tell

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.buying.renewal import ask_renewal
from ngp.core.contract import State
from ngp.core.kernel import FULL_PACKET_BYTES
from ngp.core.messages import Accept, Ask, Message, Propose, Reject


def renewals(gateway: dict[str, object], client: dict[str, object], size: int = 1500) -> tuple[int, int]:
    """Return how often a client renewed in a minute at 10 kB/s, and how many bytes passed."""
    sim = Sim(settings(**gateway), settings(sells=False, **client))
    sim.flow("198.51.100.1", 10_000, 60.0, size=size)
    return len(sim.accepts), sim.passed


@pytest.mark.parametrize("renewal_s", [None, 10, 30])
@pytest.mark.parametrize("lifetime_s", [1, 10])
def test_a_lifetime_that_is_shorter_than_the_clients_renewal_is_not_renewed_without_end(
    lifetime_s: int, renewal_s: int | None
) -> None:
    accepts, passed = renewals({"contract_time_s": lifetime_s}, {"time_renewal_s": renewal_s})
    assert accepts <= 3 * 60 / lifetime_s, "one for each half of a lifetime, and a few"
    assert passed == 600_000


def test_a_client_of_small_contracts_does_not_buy_hundreds_ahead() -> None:
    accepts, passed = renewals({"contract_data_bytes": 20_000}, {"contract_data_bytes": 100 << 20})
    assert accepts <= 60
    assert passed == 600_000


@pytest.mark.parametrize("data_bytes", [FULL_PACKET_BYTES + 1, 4096, 4 * FULL_PACKET_BYTES, 100_000])
def test_what_is_left_at_a_renewal_is_enough_for_a_full_packet(data_bytes: int) -> None:
    small = settings(contract_data_bytes=data_bytes)
    sim = Sim(small, settings(sells=False, contract_data_bytes=data_bytes))
    sim.up("198.51.100.1")
    sim.run(1)
    (contract,) = sim.client.world.contracts.values()
    assert FULL_PACKET_BYTES <= contract.renewal_bytes(small) <= max(data_bytes // 4, FULL_PACKET_BYTES)


@pytest.mark.parametrize(("lifetime_s", "takes"), [(32 * 86_400, True), (32 * 86_400 + 1, False)])
def test_a_renewal_lasts_no_longer_than_a_new_contract_may(lifetime_s: int, takes: bool) -> None:
    sim = Sim(settings(), settings(sells=False))
    sim.up("198.51.100.1")
    sim.run(1)
    (contract,) = sim.client.world.contracts.values()
    contract.move(State.RENEWING)
    limit = contract.data_limit_bytes
    offered = Propose(
        contract.id, contract.destination.prefix, contract.price_msat_per_gib, 2 * limit, lifetime_s, 10, limit, 1
    )
    answers = [one.message for one in tell(sim, sim.client, offered) if isinstance(one, fx.Send)]
    assert isinstance(answers[0], Accept if takes else Reject)
    assert (contract.lifetime_s == lifetime_s) == takes


def test_a_proposal_that_is_late_and_repeated_does_not_end_the_contract() -> None:
    mesh = Mesh("bc")
    mesh.packet("b", "c")
    b, c = mesh["b"], mesh["c"]
    purchase, sale = b.purchase("c"), c.sale("b")
    mesh.carry("bc", MB)

    def ask() -> Ask:
        b.world.effects = []
        assert ask_renewal(b.world, purchase, purchase.data_limit_bytes + 10 * MB)
        b.carry_out(b.world.effects)
        (question,) = (effect.message for _, effect in mesh.post if isinstance(effect.message, Ask))
        mesh.post.clear()
        return question

    def hears(receiver: Node, sender: Node, message: Message) -> Message | None:
        number = (1 << 43) + len(b.said) + len(c.said)
        link = receiver.link(sender.name)
        receiver.step(ev.MessageReceived(sender.identity, link, 1, message, number, onward=receiver.onward))
        said = [effect.message for who, effect in mesh.post if who is receiver]
        mesh.post.clear()
        return said[-1] if said else None

    proposal = hears(c, b, ask())
    accept = hears(b, c, proposal)
    question = ask()  # it used that up at once
    again = hears(b, c, proposal)  # it was sent once more, since the accept took long
    assert again == accept
    assert hears(c, b, accept) is None
    second = hears(c, b, question)
    assert hears(c, b, again) is None and sale.renewal_offer is not None
    assert hears(c, b, hears(b, c, second)) is None
    assert purchase.running and sale.running and purchase.data_limit_bytes == sale.data_limit_bytes
    assert sale.data_limit_bytes == second.data_limit_bytes
