"""Books: what was counted and charged for traffic outlives the process."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ngp.core.kernel import UNITS_PER_MSAT
from ngp.core.tenant.account import Account, Order, disagreements
from ngp.core.tenant.answers import Status
from ngp.core.tenant.terms import TenantSettings
from ngp.core.tenant.traffic import Traffic
from ngp.errors import ConfigError, PaymentError
from ngp.tenant import autopay
from ngp.tenant.autopay import Kept
from ngp.tenant.books import Books, BooksFile
from ngp.tenant.home import Home
from ngp.tenant.https import read_place

TRAFFIC = Traffic("4f1c/12", 5000, 700, 700 << 30, 5 << 20, 4321)


@pytest.mark.parametrize("traffic", [None, TRAFFIC])
def test_the_next_process_goes_on_from_there(tmp_path: Path, traffic: Traffic | None) -> None:
    BooksFile(tmp_path / "books").write(Books(traffic=TRAFFIC))
    BooksFile(tmp_path / "books").write(Books(traffic=traffic))
    assert BooksFile(tmp_path / "books").read().traffic == traffic


@pytest.mark.parametrize("carried_msat", [None, 0, 4321])
def test_the_charge_that_a_payment_by_hand_accepts_outlives_a_kill(tmp_path: Path, carried_msat: int | None) -> None:
    order = Order(bytes(32), 1000, 1000, False, 0.5, 7, "node", 10, 8, carried_msat)
    BooksFile(tmp_path / "books").write(Books(pending=order))
    assert BooksFile(tmp_path / "books").read().pending == order


def test_what_is_charged_while_a_payment_by_hand_is_on_its_way_is_not_in_dispute_when_the_price_ends(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path)
    tunnel = home.add_tunnel("one", read_place("192.0.2.1", "00" * 32))
    home.keep_conf(tunnel, "[Interface]\n")
    file, now_s = BooksFile(home.state_path(tunnel)), int(time.time())
    file.write(Books(Account(True, (), now_s, now_s, 1_000_000, 0, 0.0, 1_000_000, 1)))
    before = Status((), now_s, now_s, 0, 700_000, 0.0, 1_000_000, 1, 0, "", price_msat_per_gib=1 << 30)
    after = replace(before, credit_msat=870_000, paid_msat=1_200_000, payments=2, price_msat_per_gib=0)

    async def pay(_: Any, carried_msat: int | None) -> Books:
        pending = Order(bytes(32), 200_000, 200_000, False, 0.0, now_s, "node", 0, now_s, carried_msat)
        return replace(file.read(), pending=pending).succeeded(0, b"")

    payer = mock.Mock(finish=mock.AsyncMock(side_effect=file.read), pay=pay)
    landlord = mock.Mock(status=lambda *_: after)
    kept = Kept(home, tunnel, landlord, file, payer, mock.Mock(), mock.Mock(), lambda: 0)
    quote = mock.Mock(asked=mock.Mock(status=before), amount_msat=200_000)
    assert asyncio.run(autopay.pay_by_hand(kept, quote)) == after
    account = file.read().account
    assert account.credit_msat(now_s) == 870_000 and not disagreements(account, after, now_s)
    assert disagreements(account, replace(after, credit_msat=868_999), now_s), "from now on no charge is accepted"


def test_what_is_charged_until_another_wallet_has_paid_is_not_in_dispute_when_the_price_ends(tmp_path: Path) -> None:
    """That may take minutes, and cost more than the payment adds."""
    home = Home(tmp_path)
    tunnel = home.add_tunnel("one", read_place("192.0.2.1", "00" * 32))
    file, now_s = BooksFile(home.state_path(tunnel)), int(time.time())
    file.write(Books(Account(True, (), now_s, now_s, 1_000_000, 0, 0.0, 1_000_000, 1)))
    before = Status((), now_s, now_s, 0, 700_000, 0.0, 1_000_000, 1, 0, "", price_msat_per_gib=1 << 30)
    after = replace(before, credit_msat=300_000, paid_msat=1_200_000, payments=2, price_msat_per_gib=0)
    autopay.take_over(home, tunnel, mock.Mock(asked=mock.Mock(status=before)), after)
    account = file.read().account
    assert account.payments == 2 and not disagreements(account, after, now_s)
    assert disagreements(account, replace(after, credit_msat=298_999), now_s), "from now on no charge is accepted"


@pytest.mark.parametrize("written", ["Traffic: 7", "Traffic: {source: a}", "Traffic: []"])
def test_a_damaged_file_is_named(tmp_path: Path, written: str) -> None:
    file = BooksFile(tmp_path / "books")
    file.path.write_text(f"{written}\n")
    file.path.chmod(0o600)
    with pytest.raises(ConfigError, match="is damaged"):
        file.read()


def test_traffic_that_was_counted_here_may_be_bought_besides_what_clock_and_limits_allow() -> None:
    limits = TenantSettings(price_max_msat_per_gib=5 << 20).limits
    books = Books(bought_msat=20_000_000, bought_since_s=int(time.time()))
    counted = Traffic("4f1c/12", cost_units=18_000_000 * UNITS_PER_MSAT)
    with pytest.raises(PaymentError, match="traffic counted here included"):
        autopay._refuse_above_ceiling(books, 1_000_000, limits, is_proven=True)
    autopay._refuse_above_ceiling(replace(books, traffic=counted), 1_000_000, limits, is_proven=True)
    with pytest.raises(PaymentError, match="traffic counted here included"):
        autopay._refuse_above_ceiling(replace(books, traffic=counted), 9_000_000, limits, is_proven=True)
