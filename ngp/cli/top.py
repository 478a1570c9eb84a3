"""`ngp top`: shows contracts and accounts with their rates, live; without a terminal one line per refresh."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count as count_up
from typing import TYPE_CHECKING

import click

from ngp.cli import accounts
from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import NOT_REAL, Column, Row, about, clean, console, field, key, make_narrow_table, money
from ngp.cli.verbs import verb_command

if TYPE_CHECKING:
    from rich.console import Console, Group

_USED = ("used_to_bytes", "used_from_bytes")


def _rate(name: str) -> Column:
    title = "to/s" if name == "used_to_bytes" else "from/s"
    return Column(title, lambda row: about(row[f"{name}_per_s"]), right=True)


_CONTRACTS = (
    Column("role", field("role")),  # what is sold and what is bought look alike otherwise
    Column("neighbour", field("neighbour", key), spare=2),
    Column("destination", field("destination")),
    Column("state", field("state"), spare=4),
    *map(_rate, _USED),
    Column("used, bytes", lambda row: f"{sum(int(row.get(name) or 0) for name in _USED):,}", right=True, spare=1),
    Column("of", lambda row: f"{int(row.get('data_limit_bytes') or 0):,}", right=True, spare=5),
    Column("charged", field("charged_msat", money), right=True),
)
_SPARE = {"on its way": 7, "reserved": 6, "money": 5, "our meter": 4, "billed": 3, "disputed": 2, "paid": 1}
_ACCOUNTS = tuple(
    replace(each, spare=_SPARE.get(each.title, 0))
    for each in accounts.COLUMNS
    if each.title not in ("grace left", "refunded")
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Contracts and accounts at one moment; contracts have their rates since the previous sample, busiest first."""

    monotonic_s: float
    contracts: list[Row]
    accounts: list[Row]

    @property
    def rates(self) -> tuple[float, float]:
        """Bytes per second of all contracts, towards and from their destinations."""
        to, back = (sum(float(row[f"{name}_per_s"]) for row in self.contracts) for name in _USED)
        return to, back

    @property
    def real_money(self) -> bool:
        """Say whether all amounts are real money."""
        return all(row.get("real_money") is True for row in self.accounts)


@verb_command(
    "top",
    click.Option(["--interval"], metavar="S", type=click.FloatRange(0.1, 3600), default=1.0, help="seconds [1]"),
    click.Option(["--count"], metavar="N", type=click.IntRange(1), help="end after this many refreshes [never]"),
)
def command(place: Place, interval: float, count: int | None) -> int:
    """Watch."""
    if math.isnan(interval):  # click's range check lets it pass
        raise click.UsageError("--interval nan is no number of seconds.")
    samples = _samples(Daemon(place.state_dir), interval, count)
    if sys.stdout.isatty():
        _watch(samples)
        return 0
    for sample in samples:
        print(_line(sample), flush=True)
    return 0


def _samples(daemon: Daemon, interval_s: float, count: int | None) -> Iterator[Sample]:
    before: Sample | None = None
    for number in count_up(1):
        before = take_sample(daemon, before)
        yield before
        if number == count:
            return
        time.sleep(max(0.0, interval_s - (time.monotonic() - before.monotonic_s)))


def take_sample(daemon: Daemon, before: Sample | None) -> Sample:
    """Ask for contracts and accounts, and calculate the rates since the previous sample."""
    now_s = time.monotonic()
    contracts = list(daemon.rows("contracts", all=False))
    known = {row["id"]: row for row in before.contracts if "id" in row} if before else {}
    passed_s = max(now_s - before.monotonic_s, 0.001) if before else 1.0
    for row in contracts:
        earlier = known.get(row.get("id"), row)
        for name in _USED:
            row[f"{name}_per_s"] = max(0, int(row.get(name) or 0) - int(earlier.get(name) or 0)) / passed_s
    contracts.sort(key=lambda row: -sum(float(row[f"{name}_per_s"]) for name in _USED))
    return Sample(now_s, contracts, list(daemon.rows("accounts")))


def _watch(samples: Iterator[Sample]) -> None:
    from rich.live import Live

    out = console()
    with Live(console=out, screen=True, auto_refresh=False) as live:
        for sample in samples:
            live.update(_picture(sample, out), refresh=True)


def _picture(sample: Sample, out: Console) -> Group:
    from rich.console import Group
    from rich.text import Text

    accounts_shown = sample.accounts[: out.height // 3]
    room = max(1, out.height - len(accounts_shown) - 6)
    return Group(
        Text(_line(sample)),
        Text(),
        make_narrow_table(accounts_shown, _ACCOUNTS, out),
        Text(),
        make_narrow_table(sample.contracts[:room], _CONTRACTS, out),
    )


def _line(sample: Sample) -> str:
    to, back = sample.rates
    charged = sum(int(row.get("charged_msat") or 0) for row in sample.accounts)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    real = "" if sample.real_money else f" ({NOT_REAL})"
    return (
        f"{now} contracts {len(sample.contracts)} accounts {len(sample.accounts)} "
        f"to {about(to)}/s from {about(back)}/s charged {clean(money(charged))}{real}"
    )
