"""What a running daemon says about a file that isn't in force yet."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ngp import store
from ngp.config import parse
from ngp.core.messages import Role
from ngp.core.values import Check
from ngp.core.world import Neighbour
from ngp.daemon import checkup

RUNNING = parse("MESH_INTERFACES: [eth1]\n", Path("/etc/ngp/net.conf"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "the whole file: the daemon runs with these settings"),
        ({"sells": False}, "`ngp reload` applies SELL"),
        ({"queue_number": 7}, "a restart applies QUEUE_NUMBER"),
        ({"sells": False, "queue_number": 7}, "`ngp reload` applies SELL; a restart applies QUEUE_NUMBER"),
    ],
)
def test_what_would_change_and_how(changed: dict[str, Any], said: str) -> None:
    assert checkup.effect(RUNNING, replace(RUNNING, **changed)).found == said


@pytest.mark.parametrize(
    ("changed", "why_not", "is_well", "said"),
    [
        ({}, "", True, "sandbox is ready"),
        ({}, "asleep", False, "asleep"),
        ({"payment_module": "lnd"}, "", True, "lnd: not checked"),
        ({"account_id": "02aa"}, "", True, "the payment node is 02aa"),
        ({"account_id": "02bb"}, "", False, "ACCOUNT_ID is 02bb, the payment node is 02aa"),
    ],
)
def test_the_payment_node_as_far_as_it_can_be_seen(
    changed: dict[str, Any], why_not: str, is_well: bool, said: str
) -> None:
    class Node:
        async def info(self) -> SimpleNamespace:
            return SimpleNamespace(account_id="02aa")

        async def check(self, buys: bool) -> list[Check]:
            assert buys
            return []

    (found,) = asyncio.run(checkup.payment(RUNNING, replace(RUNNING, **changed), Node(), why_not))  # type: ignore[arg-type]
    assert found.ok is is_well and said in found.found
    assert not is_well or not found.remedy  # otherwise it would be shown as a warning


def test_neighbours_on_another_payment_network_are_a_warning() -> None:
    def found(*networks: str, up: bool = True) -> list[Check]:
        known = {
            ("eth1", bytes([number])): Neighbour(bytes([number]) * 32, ("eth1", b""), 1, network=network, up=up)
            for number, network in enumerate(networks)
        }
        world: Any = SimpleNamespace(node=SimpleNamespace(network="regtest"), peers=SimpleNamespace(by_link=known))
        return checkup.neighbours(world)

    assert found("regtest", "") == found("sandbox", up=False) == []
    (warned,) = found("regtest", "sandbox")
    assert warned.ok and "PAYMENT_INTERFACE" in warned.remedy
    assert warned.found == "no trade with 0101010101010101 on 'sandbox': we pay on 'regtest'"
    (many,) = found(*["sandbox"] * 200)
    assert many.found.count("sandbox") == 3 and "and 197 more" in many.found


def test_accounts_that_are_not_topped_up_are_a_warning() -> None:
    def found(why_not: str, count: int = 1, up: bool = True) -> list[Check]:
        everybody = [bytes([number]) * 32 for number in range(count)]
        known = {("eth1", who): Neighbour(who, ("eth1", who), 1, up=up) for who in everybody}
        books = {who: SimpleNamespace(identity=who, role=Role.CLIENT, why_not=why_not) for who in everybody}
        world: Any = SimpleNamespace(peers=SimpleNamespace(by_link=known), accounts=list(books.values()))
        return checkup.accounts(world)

    assert found("") == found("a budget is used up", up=False) == []
    (warned,) = found("a budget is used up")
    assert warned.ok and warned.remedy
    assert warned.found == "our account with 0000000000000000 is not topped up: a budget is used up"
    (many,) = found("a budget is used up", 200)
    assert many.found.count("budget") == 3 and "and 197 more" in many.found


def test_books_that_cant_be_read_are_a_line_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database" * 100)
    line = checkup.books(store.at(tmp_path), 60.0)
    assert (line.name, line.ok) == ("books", False)
    assert "is not a database" in line.found
