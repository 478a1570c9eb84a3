"""What `ngp rentals` says and does, over the simulated landlord: true rows, and orders that are carried out."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from let import FEE, MONTH_S, RENT, SAT, Landlord, key, letting, offer

from core_tests.simulate.simulation import UTC_AT_START_S
from ngp.core.rental.events import ReleaseRental, SwitchRental
from ngp.core.rental.landlord import who_would_lose
from ngp.core.rental.status import status
from ngp.daemon import checkup
from ngp.daemon.api import books
from ngp.daemon.api.plain import plain
from ngp.daemon.api.reading import Reading
from ngp.daemon.handlers import Handlers
from ngp.errors import KernelError, UsageError
from ngp.ports.letting import PeerReading

HOUR = 3600


class Tunnel:
    """Has read one tenant's counters."""

    def __init__(self, *readings: PeerReading, broken: bool = False) -> None:
        self.readings, self.broken = readings, broken

    def read(self) -> tuple[PeerReading, ...]:
        if self.broken:
            raise KernelError("the tunnel is gone")
        return self.readings

    def describe(self) -> dict[str, str]:
        return {"tunnel": "of the test"}


def node_of(landlord: Landlord, tunnel: Tunnel | None = None) -> Any:
    """Return the daemon around the core, as far as the api needs one."""
    settings = landlord.world.settings
    parts = SimpleNamespace(
        gatekeeper=landlord.gatekeeper, ledger=landlord.ledger, clock=SimpleNamespace(now=landlord.clock),
        network=SimpleNamespace(counters=dict, describe=dict),
    )  # fmt: skip
    desired = SimpleNamespace(mesh_interfaces=(), upstream_interfaces=(), lan_interfaces=())
    return SimpleNamespace(
        parts=parts, settings=settings, identity=b"\x11" * 32, landlord=tunnel and SimpleNamespace(tunnel=tunnel),
        loop=SimpleNamespace(obey=landlord.happen, refresh=lambda: None, ledger_why_not=""), started_mono_s=0.0,
        host=SimpleNamespace(desired=desired), payment=SimpleNamespace(why_not=""),
        post=SimpleNamespace(counters=dict, transports=lambda link: []),
    )  # fmt: skip


def ask(landlord: Landlord, verb: str, tunnel: Tunnel | None = None, **arguments: object) -> Any:
    """Ask as the control socket does, and return what a command would read."""

    async def answered() -> Any:
        outcome = Handlers(node_of(landlord, tunnel)).table()[verb](arguments)
        if isinstance(outcome, AsyncIterable):
            return [row async for row in outcome]
        return await outcome

    return json.loads(json.dumps(asyncio.run(answered())))


def clock(after_s: int) -> str:
    """Return the time some seconds after the landlord's start, as rows have it."""
    return datetime.fromtimestamp(UTC_AT_START_S + after_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def row_of(landlord: Landlord, tenant: int, tunnel: Tunnel | None = None) -> dict[str, Any]:
    wanted = b64encode(key(tenant)).decode()
    (found,) = [row for row in ask(landlord, "rentals", tunnel, all=True) if row["wireguard_key"] == wanted]
    assert found["paid_msat"] == sum(
        found[f"{part}_msat"] for part in ("activation_fee", "charged", "refunded", "credit")
    ), "in every state"
    return dict(found)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_an_active_rental_is_shown_with_its_money_times_and_traffic(landlord: Landlord) -> None:
    rental = landlord.rent(1, 24_000)
    landlord.at(HOUR)
    reading = PeerReading(key(1), 700, 1900, landlord.clock().utc_s - 5, "192.0.2.9:4711")
    row = row_of(landlord, 1, Tunnel(reading))
    assert (row["id"], row["role"], row["state"], row["peer"]) == (rental.id.hex(), "landlord", "active", None)
    assert row["networks"] == [str(one) for one in rental.networks]
    assert (row["offer"], row["face"], row["payments"], row["real_money"]) == ("default", "https", 1, False)
    assert (row["rent_msat_per_month"], row["activation_fee_msat"]) == (RENT, FEE)
    assert row["charged_msat"] == RENT * HOUR // MONTH_S
    assert (row["used_to_bytes"], row["used_from_bytes"], row["endpoint"]) == (1900, 700, "192.0.2.9:4711")
    assert row["started_at"] == row["rate_since"] == clock(0)
    assert row["paid_until"] == clock(MONTH_S)
    assert row["last_handshake"] == clock(HOUR - 5)
    assert row["reserved_until"] is None and row["unpaid_invoice"] is None


def test_times_are_the_clocks_also_after_a_night_without_power(landlord: Landlord) -> None:
    """Nobody pays for the night: the credit ends later by it."""
    landlord.rent(1, 24_000)
    landlord.crash(reboot=True, for_s=8 * HOUR)
    assert row_of(landlord, 1)["paid_until"] == clock(MONTH_S + 8 * HOUR)


def test_a_rental_that_waits_for_its_payment_has_charged_nothing(landlord: Landlord) -> None:
    answer = landlord.ask(1, 1000)
    assert answer is not None
    row = row_of(landlord, 1)
    assert (row["state"], row["unpaid_invoice"], row["activation_fee_msat"]) == ("pending", answer.bolt11, 0)
    assert row["paid_until"] is None and row["rate_since"] is None


def test_a_rental_without_credit_says_how_long_its_addresses_are_kept(landlord: Landlord) -> None:
    landlord.rent(1, 24_000)
    landlord.at(MONTH_S + HOUR)
    row = row_of(landlord, 1)
    assert (row["state"], row["reason"]) == ("reserved", "no credit")
    assert row["credit_msat"] == -(RENT * (MONTH_S + HOUR) // MONTH_S - RENT)
    assert row["paid_until"] == clock(MONTH_S)
    assert row["reserved_until"] == clock(3 * MONTH_S)


def test_a_tunnel_that_is_gone_hides_no_rental(landlord: Landlord) -> None:
    landlord.rent(1)
    assert row_of(landlord, 1, Tunnel(broken=True))["used_to_bytes"] == 0


def test_released_rentals_are_listed_only_if_wanted_and_once(landlord: Landlord) -> None:
    rental = landlord.rent(1, 24_000)
    landlord.happen(ReleaseRental(rental.id))
    landlord.rent(2)
    assert [row["state"] for row in ask(landlord, "rentals")] == ["active"]
    assert sorted(row["state"] for row in ask(landlord, "rentals", all=True)) == ["active", "released"]
    row = row_of(landlord, 1)
    assert (row["reason"], row["credit_msat"]) == ("released by the operator", 24_000 * SAT)


def test_a_payment_that_came_too_late_was_charged_no_fee(tmp_path: Path) -> None:
    with closing(Landlord(tmp_path, letting(pools=("203.0.113.0/32", "2001:db8::/64")))) as landlord:
        rental = landlord.pay_late(1)
        landlord.ask(2, 1000)
        landlord.hear()
        found = status(landlord.world, rental, landlord.clock())
        assert (found.paid_msat, found.charged_msat, found.credit_msat) == (FEE + 1000 * SAT, 0, FEE + 1000 * SAT)
        assert row_of(landlord, 1)["activation_fee_msat"] == 0


def test_without_a_daemon_the_ledger_has_the_same_rentals(landlord: Landlord) -> None:
    landlord.rent(1, 24_000)
    landlord.happen(ReleaseRental(landlord.rent(2).id))
    landlord.ask(3, 1000)
    from_ledger = {row["id"]: row for row in map(plain, books.rentals(landlord.ledger, True, False))}
    for row in ask(landlord, "rentals", all=True):
        unknown = ("unpaid_invoice", "paid_until", "reserved_until")
        assert from_ledger[row["id"]] | dict.fromkeys(unknown) == row | dict.fromkeys(unknown)
    assert len(from_ledger) == 3
    assert len(list(books.rentals(landlord.ledger, False, False))) == 2


def test_a_tenants_account_says_what_it_rents_and_has_no_grace(landlord: Landlord) -> None:
    rental = landlord.rent(1)
    (row,) = ask(landlord, "accounts")
    networks = [str(one) for one in rental.networks]
    assert (row["neighbour"], row["networks"], row["grace_left_bytes"]) == (rental.id.hex(), networks, 0)
    (stored,) = map(plain, books.accounts(landlord.ledger, landlord.clock().utc_s, False))
    assert stored["networks"] == networks


def test_fee_and_rent_are_in_the_ledger_under_their_own_kinds(landlord: Landlord) -> None:
    rental = landlord.rent(1, 24_000)
    landlord.at(2 * MONTH_S)
    lines = [row for row in ask(landlord, "ledger") if row["kind"] in ("activation", "rent")]
    assert [(row["kind"], row["amount_msat"]) for row in lines] == [("activation", -FEE), ("rent", -RENT)]
    networks = " ".join(map(str, rental.networks))
    assert {(row["neighbour"], row["state"]) for row in lines} == {(rental.id.hex(), networks)}


def test_periods_of_rentals_are_among_the_contracts_of_the_ledger(landlord: Landlord) -> None:
    landlord.happen(ReleaseRental(landlord.rent(1).id))
    (row,) = map(plain, books.contracts(landlord.ledger, True, False))
    assert (row["price_msat_per_gib"], row["charged_msat"], row["reason"]) == (0, FEE, "released")


# --- offers and status ------------------------------------------------------------------------------------------------


def test_offers_say_how_many_more_there_is_room_for(landlord: Landlord) -> None:
    landlord.rent(1)
    (row,) = ask(landlord, "rentals offers")
    assert (row["landlord"], row["name"], row["networks"]) == ("11" * 32, "default", ["IPv4 /32", "IPv6 /64"])
    assert (row["free"], row["refused_by"], row["reserved_s"]) == (7, None, 2 * MONTH_S)
    assert (row["rent_msat_per_month"], row["activation_fee_msat"], row["credit_max_msat"]) == (RENT, FEE, 72_000_000)


def test_status_counts_rentals_by_state(landlord: Landlord) -> None:
    landlord.happen(SwitchRental(landlord.rent(1).id, False))
    landlord.rent(2, 1000)
    landlord.at(MONTH_S)
    landlord.rent(3)
    landlord.ask(4, 1000)
    shown = ask(landlord, "status", Tunnel())["letting"]
    assert {name: shown[name] for name in ("active", "reserved", "off", "pending", "free")} == {
        "active": 1, "reserved": 1, "off": 1, "pending": 1, "free": 4,
    }  # fmt: skip
    assert shown["tunnel"] == {"tunnel": "of the test"} and shown["faces"] == ["mesh"]


# --- orders -----------------------------------------------------------------------------------------------------------


def test_a_rental_is_named_by_id_key_or_address(landlord: Landlord) -> None:
    rental = landlord.rent(1)
    landlord.rent(2)
    wireguard_key = b64encode(key(1)).decode()
    ipv4, ipv6 = rental.networks
    for name in (rental.id.hex(), rental.id.hex()[:6].upper(), wireguard_key, str(ipv4), str(ipv6[7]), str(ipv6)):
        assert ask(landlord, "rentals off", rental=name).endswith("is off")
        assert ask(landlord, "rentals on", rental=name).endswith("is active")
    with pytest.raises(UsageError, match=r"'AAAA' fits 2 rentals .*write more letters"):
        ask(landlord, "rentals off", rental="AAAA")
    for nobody in ("zz", "192.0.2.1", "203.0.113.0/24"):
        with pytest.raises(UsageError, match=f"'{nobody}': `ngp rentals` lists them"):
            ask(landlord, "rentals off", rental=nobody)
    with pytest.raises(UsageError, match="name a rental"):
        ask(landlord, "rentals off")


def test_switching_off_and_on_changes_the_tunnel_and_says_what_came_of_it(landlord: Landlord) -> None:
    rental = landlord.rent(1, 1000)
    name = rental.id.hex()
    ask(landlord, "rentals off", rental=name)
    assert key(1) not in landlord.peers
    with pytest.raises(UsageError, match="is off; only a rental that is active or reserved"):
        ask(landlord, "rentals off", rental=name)
    ask(landlord, "rentals on", rental=name)
    assert landlord.peers[key(1)] == rental.networks
    landlord.at(MONTH_S)
    ask(landlord, "rentals off", rental=name)
    assert "has no credit: it is reserved" in ask(landlord, "rentals on", rental=name)
    landlord.ask(2, 1000)
    with pytest.raises(UsageError, match="is pending; only a rental that is active or reserved"):
        ask(landlord, "rentals off", rental=landlord.rental(2).id.hex())


def test_a_released_rental_is_over_and_its_credit_is_told(landlord: Landlord) -> None:
    rental = landlord.rent(1, 24_000)
    said = ask(landlord, "rentals release", rental=rental.id.hex())
    assert said.endswith("networks may be let again; the tenant still has 24000 sat with us (ngp rent refund)")
    assert key(1) not in landlord.peers
    with pytest.raises(UsageError, match="is released already"):
        ask(landlord, "rentals release", rental=rental.id.hex())
    assert landlord.rent(2).networks == rental.networks
    assert "is off" in ask(landlord, "rentals off", rental=str(rental.networks[0])), "the tenant that has it now"


def test_a_tenants_account_is_no_neighbour(landlord: Landlord) -> None:
    rental = landlord.rent(1)
    with pytest.raises(UsageError, match="no neighbour's key begins with"):
        ask(landlord, "refund", neighbour=rental.id.hex())


# --- pools that are taken away ----------------------------------------------------------------------------------------


def test_who_would_lose_networks_by_other_pools(landlord: Landlord) -> None:
    rental = landlord.rent(1)
    landlord.ask(2, 1000)
    kept = landlord.terms
    fewer = letting(pools=("203.0.113.0/29",))
    assert who_would_lose(landlord.world.letting, kept) == ""
    said = who_would_lose(landlord.world.letting, fewer)
    assert said.startswith("LANDLORD_POOLS no longer has what is let: ") and rental.id.hex()[:8] in said
    assert said.count("(") == 1, "who hasn't paid yet holds nothing up"
    assert who_would_lose(landlord.world.letting, None).startswith("LANDLORD: no would end what is let: ")
    (excepted,) = [replace(kept, pools=(replace(kept.pools[0], excluded=(rental.networks[0],)), kept.pools[1]))]
    assert rental.id.hex()[:8] in who_would_lose(landlord.world.letting, excepted)
    landlord.happen(ReleaseRental(rental.id))
    assert who_would_lose(landlord.world.letting, None) == ""


def test_many_losers_are_counted(landlord: Landlord) -> None:
    for tenant in range(1, 6):
        landlord.rent(tenant)
    assert who_would_lose(landlord.world.letting, None).endswith(" and 2 more")
    lines = checkup.rentals(landlord.world.letting, replace(landlord.world.settings, letting=None))
    assert [(line.ok, line.kind) for line in lines] == [(False, "configuration")]
    assert "ngp rentals release RENTAL" in lines[0].remedy
    assert checkup.rentals(landlord.world.letting, landlord.world.settings) == []


def test_tenants_whose_offer_has_ended_are_named(landlord: Landlord) -> None:
    rental = landlord.rent(1)
    landlord.ask(2, 1000)
    other = replace(landlord.world.settings, letting=letting(offer(name="new")))
    (line,) = checkup.rentals(landlord.world.letting, other)
    assert line.ok and line.remedy.startswith("put the offer back")
    assert line.found.startswith(f"the offer default has ended, so no credit can be added to {rental.id.hex()[:8]} (")
    assert line.found.count("(") == 1, "the one that waits for its payment isn't named"


def test_a_rental_that_is_forgotten_while_the_listing_is_read_leaves_nothing(landlord: Landlord) -> None:
    landlord.rent(1)
    landlord.ask(2, 1000)
    rows = Reading(node_of(landlord)).rentals(False)
    next(rows)
    gone = landlord.rental(2).id
    landlord.happen(ReleaseRental(gone))
    assert list(rows) == [] and gone not in landlord.world.clients


def test_an_offer_of_one_family_counts_that_family_only(tmp_path: Path) -> None:
    terms = letting(offer(name="six", ipv4_bits=None), pools=("203.0.113.0/32", "2001:db8::/61"))
    with closing(Landlord(tmp_path, terms)) as landlord:
        (row,) = ask(landlord, "rentals offers")
        assert (row["networks"], row["free"]) == (["IPv6 /64"], 8)
