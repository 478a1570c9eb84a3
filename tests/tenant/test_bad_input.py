"""Bad input, from the user and from the landlord: one clear error, nothing paid, nothing shown, nothing left behind."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ngp.errors import ExitCode
from tests.tenant.conftest import User
from tests.tenant.stand_in import StandIn
from tests.tenant.test_rent import Router, router

__all__ = ["router"]

Spoil = Callable[[StandIn], object]
ALL_LET = "all addresses of this offer are let: ask again later"


def refuses(text: str) -> Spoil:
    return lambda landlord: landlord.twists.update(AddCredit=lambda _: {"Error": text})


def changes(key: str, value: object) -> Spoil:
    def twist(plain: dict[str, Any]) -> dict[str, Any]:
        return plain | {"SellOfferTerms": plain["SellOfferTerms"] | {key: value}}

    return lambda landlord: landlord.twists.update(AddCredit=twist)


def garbage(verb: str) -> Spoil:
    return lambda landlord: landlord.raw.update({verb: b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"})


def unlike(**fields: object) -> Spoil:
    return lambda landlord: [setattr(landlord, name, value) for name, value in fields.items()]


def nothing(_landlord: StandIn) -> None:
    """Leave the landlord as it is."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is typed, at which landlord, and what must be said. `rented`: there is a rental `shop` before."""

    words: str
    spoil: Spoil
    code: ExitCode
    says: tuple[str, ...]
    rented: bool = False
    more: str = ""


NEW, ADD, AUTOPAY = "new example --yes", "add shop --yes --amount 700", "autopay --once"
CASES = {
    "least amount": Case(f"{NEW} --amount 999", nothing, ExitCode.OTHER, ("999",)),
    "most amount": Case(
        f"{NEW} --amount 50001", lambda landlord: setattr(landlord, "credit_max", 50_000), ExitCode.OTHER, ("50001",)
    ),
    "least renewal": Case("add shop --yes --amount 499", nothing, ExitCode.OTHER, ("499",), rented=True),
    "part of a sat": Case(f"{NEW} --amount 1000.5", nothing, ExitCode.USAGE, ("--amount", "whole number")),
    "negative amount": Case(f"{NEW} --amount -5", nothing, ExitCode.USAGE, ("--amount",)),
    "amount in words": Case(f"{NEW} --amount many", nothing, ExitCode.USAGE, ("--amount", "whole number")),
    "unknown rental": Case("add other --yes", nothing, ExitCode.USAGE, ("no rental is 'other'", "shop"), rented=True),
    "key that the landlord forgot": Case(
        "add shop --yes --amount 1000", lambda landlord: landlord.rentals.clear(), ExitCode.OTHER,
        ("has no rental for this key",), rented=True,
    ),
    "unknown key of net.conf": Case(
        AUTOPAY, nothing, ExitCode.CONFIGURATION, ("TENANT_RENT_MOST", "TENANT_RENT_MAX"), rented=True,
        more="TENANT_RENT_MOST: 5 sat\n",
    ),
    "exhausted pool": Case(NEW, refuses(ALL_LET), ExitCode.OTHER, (ALL_LET,)),
    "wrong fingerprint": Case(
        f"trust other {{host}} {'00' * 32}", nothing, ExitCode.CONFIGURATION, ("00" * 32, "nothing was sent")
    ),
    "fingerprint that is none": Case("trust other {host} abc", nothing, ExitCode.CONFIGURATION, ("64 hexadecimal",)),
    "rent beyond the limit": Case(
        AUTOPAY, nothing, ExitCode.PAYMENT, ("TENANT_RENT_MAX",), rented=True, more="TENANT_RENT_MAX: 1 sat\n"
    ),
    "clock ahead, new": Case(NEW, unlike(ahead_s=7200), ExitCode.OTHER, ("s ahead of ours", "machine's clock")),
    "clock behind, new": Case(
        NEW, unlike(ahead_s=-7200, make_invoice=None), ExitCode.OTHER, ("expired", "check this machine's clock")
    ),
    "clock ahead, more": Case(ADD, unlike(ahead_s=7200), ExitCode.OTHER, ("check this machine's clock",), rented=True),
    "clock ahead, autopay": Case(AUTOPAY, unlike(ahead_s=7200), ExitCode.PAYMENT, ("machine's clock",), rented=True),
    "rent changed": Case(NEW, changes("Rate", 1.0), ExitCode.OTHER, ("changed its terms", "ask for the offer again")),
    "fee changed": Case(NEW, changes("ActivationFee", 1), ExitCode.OTHER, ("changed its terms",)),
    "garbage for terms": Case(NEW, garbage("GetSellOfferTerms"), ExitCode.OTHER, ("JSON",)),
    "garbage for an invoice": Case(NEW, garbage("AddCredit"), ExitCode.OTHER, ("JSON",)),
    "garbage for a status": Case(AUTOPAY, garbage("getstatus"), ExitCode.OTHER, ("JSON",), rented=True),
    "no answer about terms": Case(
        NEW, lambda landlord: landlord.silent.add("GetSellOfferTerms"), ExitCode.OTHER, ("doesn't answer within",)
    ),
    "no invoice": Case(NEW, lambda landlord: landlord.silent.add("AddCredit"), ExitCode.OTHER, ("try again later",)),
    "nobody there": Case(f"trust other 127.0.0.1:1 {'00' * 32}", nothing, ExitCode.OTHER, ("can't be reached",)),
    "fewer payments than were made": Case(
        ADD,
        lambda landlord: landlord.twists.update(
            AddCredit=lambda plain: plain | {"Status": plain["Status"] | {"total_paid": 0, "NumberOfPayments": 0}}
        ),
        ExitCode.PAYMENT,
        ("counts 0 payments", "nothing is paid"),
        rented=True,
    ),
}  # fmt: skip


def kept(router: Router) -> dict[str, str]:
    """Return all files of the tenant, without locks and logs, which have no meaning."""
    files = [one for one in router.tenant.rglob("*") if one.is_file() and one.suffix not in (".lock", ".log", ".db")]
    return {str(one): hashlib.sha256(one.read_bytes()).hexdigest() for one in files if one.name != "lock"}


def paid(folder: Path) -> int:
    """Return how many payments the node made."""
    with sqlite3.connect(folder / "node" / "sandbox.db") as connection:
        (row,) = connection.execute("SELECT count(*) FROM payments").fetchall()
    return int(row[0])


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error_and_nothing_else(router: Router, name: str) -> None:
    case, landlord = CASES[name], router.landlord
    assert router.trust().returncode == 0
    host = landlord.host
    if case.rented:
        assert router.rent("new", "example", "--name", "shop", "--yes").returncode == 0
    with (router.folder / "net.conf").open("a") as file:
        file.write(case.more)
    before = kept(router), paid(router.folder) if case.rented else 0
    case.spoil(landlord)
    with mock.patch("ngp.tenant.https.ANSWER_S", 1.0):
        done = router.rent(*case.words.format(host=host).split())
    assert done.returncode == case.code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("ngp: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr
    for part in case.says:
        assert part in errors[0]
    assert (kept(router), paid(router.folder) if case.rented else 0) == before
    assert not (router.folder / "node" / "sandbox.db").exists() or paid(router.folder) == before[1]
    config = router.tenant / "Config.yaml"
    secrets = [line.split()[-1] for line in config.read_text().splitlines() if "private_key" in line]
    told = f"{done.stdout}{done.stderr}{landlord.calls}"
    assert not any(secret in told for secret in secrets)


@pytest.mark.parametrize("verb", ["AddCredit", "RentNewIP"])
def test_static_ip_leaves_no_key_of_a_rental_that_was_refused(user: User, verb: str) -> None:
    refuses(ALL_LET)(user.landlord)
    done = user.static_ip("--amount", "1000", verb)
    assert done.returncode == ExitCode.OTHER and ALL_LET in done.stderr and len(done.stderr.splitlines()) == 1
    assert "private_key" not in (user.folder / "Config.yaml").read_text()
    user.landlord.twists.clear()
    user.landlord.expiry_s = 1
    assert user.static_ip("--amount", "1000", verb).returncode == ExitCode.PAYMENT
    assert "private_key" in (user.folder / "Config.yaml").read_text(), "an invoice was shown: somebody may have paid it"


def test_autopay_leaves_no_key_of_a_landlord_whose_terms_are_refused(user: User, quiet_log: None) -> None:
    user.landlord.rent = 99_000
    with mock.patch("ngp.tenant.wallet.find") as node:
        node.return_value = mock.AsyncMock()
        done = user.static_ip("AutoPay")
    assert done.returncode == ExitCode.PAYMENT and "MaxMonthlyRate" in done.stderr
    assert "private_key" not in (user.folder / "Config.yaml").read_text()
