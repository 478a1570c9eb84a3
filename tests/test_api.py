"""The api: its keys stay as scripts know them, and the daemon and the ledger alone give the same rows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ngp import store
from ngp.config import parse
from ngp.core.buying.account import ServerAccount
from ngp.core.contract import State
from ngp.core.prefixes import PackedPrefix
from ngp.core.rate import Rate
from ngp.core.records import Direction, JournalRecord, PaymentKind, PaymentRecord, PaymentState
from ngp.core.selling.account import ClientAccount
from ngp.core.selling.sale import Sale
from ngp.core.values import Now
from ngp.core.world import Money, PaymentNode, World
from ngp.daemon.api import books, rentals, rows, status
from ngp.daemon.api.plain import plain
from ngp.daemon.api.reading import Reading
from ngp.ports.network import HostBytes

WHO = bytes(32)
SETTINGS = parse("MESH_INTERFACES: [eth1]\n", Path("/etc/ngp/net.conf"))
NOW_S = 1_800_000_000
SINCE = "2027-01-15T08:00:00Z"

KEYS = {
    rows.ContractRow: "id role neighbour interface link_address destination state reason price_msat_per_gib "
    "data_limit_bytes used_to_bytes used_from_bytes charged_msat opened_at expires_at closed_at "
    "real_money rests_on hops billed_bytes rate_bytes_s",
    rows.DestinationRow: "role destination contracts used_to_bytes used_from_bytes charged_msat real_money top",
    rows.AccountRow: "role neighbour balance_msat reserved_msat grace_left_bytes paid_msat charged_msat refunded_msat "
    "on_its_way_msat on_its_way_since billed_msat metered_msat contracts disputed why_not real_money networks",
    rows.JournalRow: "time kind neighbour contract amount_msat payment_hash state real_money",
    rows.NeighbourRow: "neighbour interface link_address address network same_network sells buys up blocked "
    "block_waits lane_bytes last_seen why_not_bought reputation why_unpaid offers quality chosen_for",
    rows.CheckRow: "name ok found remedy kind",
    rows.ChannelRow: "neighbour peer channel state blocks_left active private capacity_sat can_send_sat "
    "can_receive_sat least_payment_msat our_csv_delay_blocks their_csv_delay_blocks suits why_not",
    rows.WatchRow: "active unknown backups pending_backups failed_backups towers",
    rows.TowerRow: "tower addresses used sessions backups pending_backups",
    rentals.RentalRow: "id role state reason peer wireguard_key networks offer face rent_msat_per_month "
    "price_msat_per_gib activation_fee_msat paid_msat charged_msat refunded_msat credit_msat payments started_at "
    "rate_since paid_until reserved_until unpaid_invoice used_to_bytes used_from_bytes endpoint last_handshake "
    "real_money",
    rentals.OfferRow: "landlord name networks free rent_msat_per_month price_msat_per_gib activation_fee_msat "
    "initial_credit_min_msat payment_min_msat credit_max_msat reserved_s refused_by",
    rentals.LettingStatus: "active reserved off pending free tunnel faces",
    status.LightningStatus: "module node network ready why_not block synced balance_msat channels watchtowers advice",
}


@pytest.mark.parametrize("row", KEYS, ids=lambda row: row.__name__)
def test_a_rows_keys_are_those_that_scripts_know(row: Any) -> None:
    assert [field.name for field in fields(row)] == KEYS[row].split()


def node(**of_world: Any) -> Any:
    """Return a node with nothing to report, as far as the api needs one."""
    world = World(SETTINGS, PaymentNode("sandbox", False, True, 1), lambda: bytes(16), Now(1, 1.0))
    world.counters = Counter(a=1)
    for name, value in of_world.items():
        setattr(world, name, value)
    host = SimpleNamespace(mesh_interfaces=("eth1",), upstream_interfaces=(), lan_interfaces=("lan0",))
    network = SimpleNamespace(counters=lambda: {"held": 2, "lost": 3}, describe=lambda: {"hook": "tcx"})
    return SimpleNamespace(
        parts=SimpleNamespace(
            gatekeeper=SimpleNamespace(world=world),
            network=network,
            clock=SimpleNamespace(now=lambda: SimpleNamespace(monotonic_s=12.5)),
        ),
        started_mono_s=2.0,
        identity=WHO,
        settings=SimpleNamespace(payment_module="sandbox", grace_data_bytes=1000),
        host=SimpleNamespace(desired=host),
        payment=SimpleNamespace(why_not=""),
        post=SimpleNamespace(counters=lambda: {"own": 4}),
        loop=SimpleNamespace(refresh=lambda: None, ledger_why_not="it is full"),
        landlord=None,
    )


def test_a_status_is_what_scripts_know() -> None:
    account = ClientAccount(WHO, running=1, why_not="no way")
    shown = plain(
        Reading(node(clients={WHO: account}, money=Money(payments={b"h": pending()}), load_ppm=250_000)).status()
    )
    assert json.loads(json.dumps(shown)) == shown
    assert isinstance(shown.pop("version"), str)
    assert shown == {
        "uptime_s": 10,
        "identity": "00" * 32,
        "interfaces": ["eth1"],
        "upstream_interfaces": [],
        "lan_interfaces": ["lan0"],
        "upstream_load": 0.25,
        "queue": {"held": 2, "dropped": 0},
        "datapath": {"hook": "tcx"},
        "payment": {
            "module": "sandbox",
            "ready": True,
            "why_not": None,
            "network": "sandbox",
            "real_money": False,
            "on_their_way": 1,
        },
        "ledger": {"writable": False, "why_not": "it is full"},
        "contracts": 0,
        "neighbours": 0,
        "not_topped_up": [{"neighbour": "00" * 8, "role": "server", "why_not": "no way"}],
        "letting": None,
        "routes": [],
        "counters": {"messages_ignored": {"own": 4}, "core": {"a": 1}, "kernel": {"held": 2, "lost": 3}},
    }


def pending() -> PaymentRecord:
    """Return a payment of ours whose outcome isn't known."""
    return PaymentRecord(
        Direction.OUT, b"h" * 32, PaymentKind.TOP_UP, WHO, 700, 1, PaymentState.PENDING, "", b"", NOW_S, 0, ""
    )


def test_an_account_has_one_row_whether_a_daemon_holds_it_or_the_ledger(tmp_path: Path) -> None:
    account = ServerAccount(WHO, paid_msat=1000, charged_msat=300, refunded_msat=100, metered_msat=310)
    account.billed_msat = 320
    ledger = store.at(tmp_path).open()
    ledger.commit([account.record(), pending()])
    (stored,) = books.accounts(ledger, NOW_S, real_money=False)
    ledger.close()
    (held,) = Reading(node(servers={WHO: account}, money=Money(payments={b"h": pending()}))).accounts()
    assert stored == held
    assert (held.balance_msat, held.billed_msat, held.metered_msat) == (600, 320, 310)
    assert (held.on_its_way_msat, plain(held)["on_its_way_since"]) == (700, SINCE)


def test_a_running_daemon_tells_what_its_meter_counted_since_the_ledger_was_written() -> None:
    account = ServerAccount(WHO, paid_msat=1000, charged_msat=300, metered_msat=310, unsaved_msat=60)
    (held,) = Reading(node(servers={WHO: account})).accounts()
    assert held.metered_msat == 310


def test_a_contracts_rate_falls_when_nothing_is_carried_any_more() -> None:
    sale = Sale(
        id=bytes(16), identity=WHO, link=("eth1", b""), link_number=2, destination=PackedPrefix(4, 32, bytes(4)),
        prices=((0, 1),), data_limit_bytes=1 << 20, lifetime_s=3600, state=State.ACTIVE, opened_at_s=NOW_S,
        rate=Rate(2_500_000.0, 12.25),
    )  # fmt: skip
    (just_now,) = Reading(node(contracts={sale.id: sale})).contracts(False)  # it is 12.5 s
    assert just_now.rate_bytes_s == 1_875_000
    sale.rate.at_mono_s = 11.0
    (later,) = Reading(node(contracts={sale.id: sale})).contracts(False)
    assert later.rate_bytes_s == 0
    assert rows.contract_row(sale.record(), False).rate_bytes_s is None


def test_a_journal_line_has_none_for_what_does_not_apply(tmp_path: Path) -> None:
    ledger = store.at(tmp_path).open()
    ledger.commit([JournalRecord(NOW_S, "charge", WHO, b"", 5, b"", "active")])
    (line,) = map(plain, books.journal(ledger, None, real_money=True))
    ledger.close()
    assert line == {
        "time": SINCE, "kind": "charge", "neighbour": "00" * 32, "contract": None, "amount_msat": 5,
        "payment_hash": None, "state": "active", "real_money": True,
    }  # fmt: skip


def test_sums_by_destination_are_for_each_role() -> None:
    def row(role: str, destination: str, used: int) -> rows.ContractRow:
        values: dict[str, Any] = dict.fromkeys(KEYS[rows.ContractRow].split())
        sums = {"used_to_bytes": used, "used_from_bytes": 1, "charged_msat": 2, "real_money": True}
        return rows.ContractRow(**{**values, **sums, "role": role, "destination": destination})

    found = rows.by_destination([row("server", "a", 1), row("client", "a", 10), row("server", "a", 100)])
    assert [tuple(plain(each).values()) for each in found] == [
        ("server", "a", 2, 101, 2, 4, True, []), ("client", "a", 1, 10, 1, 2, True, []),
    ]  # fmt: skip


def test_sums_by_destination_name_the_addresses_that_were_used_most() -> None:
    def row(number: int) -> rows.ContractRow:
        values: dict[str, Any] = dict.fromkeys(KEYS[rows.ContractRow].split())
        sums = {"used_to_bytes": 1, "used_from_bytes": 1, "charged_msat": 2, "real_money": True}
        return rows.ContractRow(**{**values, **sums, "id": f"{number:02}" * 16, "role": "server", "destination": "a"})

    one, other, least = (ip_address(f"192.0.2.{number}") for number in (1, 2, 3))
    crowd = [HostBytes(ip_address(f"192.0.2.{number}"), 0, 1) for number in range(100, 200)]
    inside = {
        bytes([1] * 16): [HostBytes(one, 5, 10), HostBytes(least, 1, 1)],
        bytes([2] * 16): [HostBytes(other, 20, 0), HostBytes(one, 5, 10), *crowd],
        bytes([9] * 16): [HostBytes(least, 1000, 1000)],
    }
    (found,) = rows.by_destination([row(1), row(2)], inside)
    assert len(found.top) == rows.MOST_TOP
    assert plain(found)["top"][:3] == [
        {"address": "192.0.2.1", "used_to_bytes": 10, "used_from_bytes": 20},
        {"address": "192.0.2.2", "used_to_bytes": 20, "used_from_bytes": 0},
        {"address": "192.0.2.3", "used_to_bytes": 1, "used_from_bytes": 1},
    ]


def test_what_only_some_rows_have_is_left_out_and_the_rest_is_null() -> None:
    values: dict[str, Any] = dict.fromkeys(KEYS[rows.ContractRow].split())
    bare = plain(rows.ContractRow(**{**values, "expires_at": datetime(2027, 1, 15, 8, tzinfo=UTC)}))
    assert bare["expires_at"] == SINCE and bare["closed_at"] is None
    assert not {"billed_bytes", "rate_bytes_s"} & bare.keys()
    assert plain(rows.ContractRow(**{**values, "billed_bytes": 0}))["billed_bytes"] == 0
