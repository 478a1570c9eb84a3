"""The cost of a step must not depend on how many contracts and neighbours there are."""

from __future__ import annotations

from ipaddress import ip_address
from time import process_time

from playbook import Sim, account

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.gatekeeper import FLUSH_INTERVAL_S, FLUSHED_AT_ONCE
from ngp.core.kernel import HeldPacket, Reading
from ngp.core.messages import Accept, Hello, Propose, Statement
from ngp.core.records import ContractRecord
from ngp.core.selling.statements import LINES_AT_ONCE, STATEMENT_INTERVAL_S


def open_contracts(sim: Sim, first: int, many: int) -> float:
    """Open contracts as fast as the core can; returns seconds for each."""
    step, client = sim.gateway.gatekeeper.step, sim.client
    began = process_time()
    for number in range(first, first + many):
        held = HeldPacket(number, client.link, ip_address(0x0B000000 + number))
        (propose,) = [
            e.message for e in step(held, sim.clock()) if isinstance(e, fx.Send) and isinstance(e.message, Propose)
        ]
        accept = Accept(propose.contract, propose.price_msat_per_gib, propose.data_limit_bytes)
        step(ev.MessageReceived(client.identity, client.link, 1, accept, 1 << 33), sim.clock())
        used = ev.UsageRead((Reading(propose.contract, 60, 0),))
        step(used, sim.clock())
    return (process_time() - began) / many


def test_a_new_contract_costs_the_same_among_many() -> None:
    sim = Sim()
    hello = Hello("sandbox", True, True, (), "", False)
    for number in range(2000):
        who = ev.MessageReceived(number.to_bytes(32, "big"), ("eth1", bytes([*divmod(number, 256)])), 1, hello, 1 << 33)
        sim.gateway.gatekeeper.step(who, sim.clock())
    sim.up("198.51.100.1")
    sim.run(1)
    account(sim).paid_msat += 10**12
    few = min(open_contracts(sim, 1000 + 300 * turn, 300) for turn in range(3))
    open_contracts(sim, 10_000, 20_000)
    many = min(open_contracts(sim, 50_000 + 300 * turn, 300) for turn in range(3))
    assert many < 3 * few, f"{few * 1e6:.0f} us each at first, {many * 1e6:.0f} us among 20,000"


def test_totals_of_many_contracts_are_written_in_parts_and_all_of_them() -> None:
    """A first packet may have to wait for a part: a thousand totals at once took 50 ms.

    They are written in the order of the ledger's rows. Else each would take a page of its own, and the disk much time.
    """
    sim = Sim()
    sim.up("198.51.100.1")
    sim.run(1)
    account(sim).paid_msat += 10**12
    open_contracts(sim, 1000, 250)
    sim.now += FLUSH_INTERVAL_S
    opened = [one for one in sim.gateway.world.contracts if one in sim.gateway.world.unflushed]
    parts: list[list[bytes]] = []
    while sim.gateway.world.unflushed:
        effects = sim.gateway.gatekeeper.step(ev.Tick(), sim.clock())
        records = [effect.record for effect in effects if isinstance(effect, fx.Persist)]
        parts.append([record.contract for record in records if isinstance(record, ContractRecord)])
        sim.now += 1
    assert max(map(len, parts)) <= FLUSHED_AT_ONCE <= 100
    assert [contract for part in parts for contract in part] == opened
    assert len(opened) >= 250


def test_a_bill_with_many_lines_is_sent_in_parts_and_whole() -> None:
    """A first packet may have to wait for a part: after a start with 100,000 contracts it waited for half a second."""
    sim = Sim()
    sim.up("198.51.100.1")
    sim.run(1)
    account(sim).paid_msat += 10**12
    open_contracts(sim, 1000, 3 * LINES_AT_ONCE)
    unstated, parts = set(account(sim).unstated), list[list[bytes]]()
    assert len(unstated) >= 3 * LINES_AT_ONCE
    sim.now += STATEMENT_INTERVAL_S
    while account(sim).unstated:
        effects = sim.gateway.gatekeeper.step(ev.Tick(), sim.clock())
        bills = [e.message for e in effects if isinstance(e, fx.Send) and isinstance(e.message, Statement)]
        parts.append([line.contract for bill in bills for line in bill.lines])
        sim.now += 0.05
    assert max(map(len, parts)) <= LINES_AT_ONCE
    assert {contract for part in parts for contract in part} == unstated
    assert sum(map(len, parts)) == len(unstated)
