"""The control socket's handlers over a world that really traded: answers are true, and commands are carried out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from playbook import Node, Sim, account, settings

from ngp.core.messages import Role
from ngp.daemon.handlers import Handlers
from ngp.errors import PaymentError, UsageError

HOST, OTHER = "198.51.100.1", "198.51.100.2"


async def _nothing_amiss(spends: bool) -> list[object]:
    return []


def face(sim: Sim, node: Node) -> Handlers:
    """Return the handlers of a node that has only core and ledger."""
    kernel: Any = SimpleNamespace(counters=dict, describe=dict, lane_bytes=lambda number: 0, inside=lambda most: {})
    stored = SimpleNamespace(
        contracts=lambda include_closed: list(node.ledger.contracts.values()), journal=lambda since: node.ledger.journal
    )
    parts = SimpleNamespace(
        gatekeeper=node.gatekeeper, network=kernel, ledger=stored, payment=SimpleNamespace(check=_nothing_amiss),
        clock=SimpleNamespace(now=sim.clock),
    )  # fmt: skip
    desired = SimpleNamespace(mesh_interfaces=("eth1",), upstream_interfaces=(), lan_interfaces=())
    loop = SimpleNamespace(
        obey=lambda event: sim.happen(node, event), refresh=lambda: None, ledger_why_not="",
        blocked=node.world.peers.blocked,
    )  # fmt: skip
    daemon: Any = SimpleNamespace(
        parts=parts, settings=node.settings, identity=node.identity, started_mono_s=0.0, landlord=None, loop=loop,
        host=SimpleNamespace(desired=desired), payment=SimpleNamespace(why_not=""),
        post=SimpleNamespace(transport=lambda link: "192.0.2.7", transports=lambda link: ["192.0.2.7"], counters=dict),
    )  # fmt: skip
    return Handlers(daemon)


def ask(handlers: Handlers, verb: str, **arguments: object) -> Any:
    """Ask as the control socket does, and return what a command would read."""

    async def answered() -> Any:
        outcome = handlers.table()[verb](arguments)
        if isinstance(outcome, AsyncIterable):
            return [row async for row in outcome]
        return await outcome

    return json.loads(json.dumps(asyncio.run(answered())))


@pytest.fixture
def sim() -> Sim:
    """Two destinations are bought, paid for and used."""
    sim = Sim()
    for host in (HOST, OTHER):
        sim.flow(host, 20_000, 2)
    return sim


def test_both_sides_list_the_same_trade_and_what_accounts_say_adds_up(sim: Sim) -> None:
    for node, role in ((sim.gateway, Role.SERVER), (sim.client, Role.CLIENT)):
        handlers = face(sim, node)
        (row,) = ask(handlers, "accounts")
        assert (row["role"], row["neighbour"]) == (role, sim.peer(node).identity.hex())
        assert row["paid_msat"] == node.world.accounts[0].paid_msat > 0
        assert row["paid_msat"] == row["charged_msat"] + row["refunded_msat"] + row["balance_msat"]
        contracts = ask(handlers, "contracts")
        assert {each["destination"] for each in contracts} == {f"{HOST}/32", f"{OTHER}/32"}
        assert all(("billed_bytes" in each) is (role is Role.CLIENT) for each in contracts)
        sums = ask(handlers, "contracts", by_destination=True)
        for key in ("used_to_bytes", "used_from_bytes", "charged_msat"):
            assert sum(each[key] for each in sums) == sum(each[key] for each in contracts)
        shown = ask(handlers, "status")
        assert (shown["contracts"], shown["neighbours"], shown["payment"]["on_their_way"]) == (2, 1, 0)
        assert {line["kind"] for line in ask(handlers, "ledger")} >= {"contract", "payment"}


def test_contracts_that_memory_forgot_are_read_from_the_ledger_once(sim: Sim) -> None:
    handlers = face(sim, sim.gateway)
    bought = {each["id"] for each in ask(handlers, "contracts")}
    ask(handlers, "block", neighbour="192.0.2.7")
    sim.run(4000)
    assert ask(handlers, "contracts") == []
    closed = ask(handlers, "contracts", all=True)
    assert {each["id"] for each in closed} >= bought and len(closed) == len({each["id"] for each in closed})
    assert all(each["closed_at"] for each in closed)


def test_a_block_ends_the_trade_until_it_is_undone(sim: Sim) -> None:
    handlers, key = face(sim, sim.gateway), sim.client.identity.hex()
    assert ask(handlers, "block", neighbour=key[:8]).endswith("is blocked")
    (row,) = ask(handlers, "neighbours")
    assert (row["neighbour"], row["blocked"], row["up"]) == (key, True, True)
    sim.run(2)
    assert not account(sim).running
    delivered, refused = sim.delivered_up, len(sim.refusals)
    sim.up(OTHER)
    sim.run(4)
    assert sim.delivered_up == delivered and len(sim.refusals) == refused + 1
    assert ask(handlers, "unblock", neighbour="192.0.2.7").endswith("may trade again")
    assert ask(handlers, "neighbours")[0]["blocked"] is False


def test_a_refund_is_offered_paid_and_listed_and_refused_when_nothing_is_left() -> None:
    sim = Sim(settings(contract_time_s=5))
    sim.flow(HOST, 20_000, 2)
    sim.run(60)
    gateway, client = face(sim, sim.gateway), face(sim, sim.client)
    (before,) = ask(gateway, "accounts")
    assert "offered to" in ask(gateway, "refund", neighbour="192.0.2.7")
    sim.run(5)
    (after,) = ask(gateway, "accounts")
    assert after["refunded_msat"] == before["balance_msat"] // 1000 * 1000 > 0
    assert any(line["kind"] == "refund" for line in ask(gateway, "ledger"))
    with pytest.raises(PaymentError):
        ask(client, "refund", neighbour="192.0.2.7", ask=True)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("block", {}), ("block", {"neighbour": ""}), ("block", {"neighbour": 7}), ("unblock", {"neighbour": "ffff"}),
        ("refund", {"neighbour": "192.0.2.9"}), ("ledger", {"since": "yesterday"}), ("payment", {"amount_msat": True}),
        ("payment", {"amount_msat": 10**15, "neighbour": "192.0.2.7"}), ("fault", {"name": "slow"}),
        ("backup", {"file": "here.db"}), ("lightning open", {"neighbour": "192.0.2.7", "amount_sat": 1, "push_sat": 2}),
    ],
)  # fmt: skip
def test_requests_that_make_no_sense_are_bad_usage_and_change_nothing(
    sim: Sim, verb: str, arguments: dict[str, object]
) -> None:
    handlers, steps = face(sim, sim.gateway), len(sim.gateway.log)
    with pytest.raises(UsageError):
        ask(handlers, verb, **arguments)
    assert len(sim.gateway.log) == steps


def test_a_payment_by_hand_is_for_the_sandbox_not_for_a_test_chain(sim: Sim) -> None:
    sim.gateway.world.node = replace(sim.gateway.world.node, settles_by_proof=False)
    with pytest.raises(PaymentError, match="for the sandbox only; over Lightning invoices are paid"):
        ask(face(sim, sim.gateway), "payment", neighbour=sim.client.identity.hex(), amount_msat=1000)
