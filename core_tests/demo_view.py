"""The output of `tools/demo`: the story as lines with their time and, below it on a terminal, both daemons' listings.

The story scrolls and the tables stay, so everything fits 80 x 24 and can still be read after the demonstration. Without
a terminal there is a line every few seconds instead of the tables.
"""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from core_tests.daemon import ngp_command
from core_tests.demo_books import Line
from core_tests.shell import ROOT

Row = dict[str, Any]
LINE_EVERY_S = 3.0
MOST_ROWS = 6
MSAT_PER_KB = 1 << 20
SIDES = "gateway", "client"
SANDBOX, PRIVATE = "sandbox money: it is not real", "coins of a private chain"
_STYLES = {"quoted": "yellow", "accepted": "yellow", "active": "green", "renewing": "cyan", "closed": "red"}


@dataclass(slots=True)
class Scene:
    """The content of the tables: contracts as the gateway lists them, with rates, and both sides' accounts."""

    title: str = ""
    contracts: list[Row] = field(default_factory=list)
    sold: Row | None = None
    bought: Row | None = None


def data(amount: float) -> str:
    """Write bytes briefly, 1 kB = 1,024 bytes."""
    for unit in ("B", "kB", "MB"):
        if abs(amount) < 1000 or unit == "MB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"


def sat(msat: int) -> str:
    """Write msat as sat."""
    return f"{msat / 1000:,.3f}"


def per_kb(price_msat_per_gib: int) -> str:
    """Write a price as net.conf does, without its unit."""
    return f"{price_msat_per_gib / MSAT_PER_KB:g}"


def host_of(destination: str) -> str:
    """Write an address without the length of its own prefix."""
    network = ip_network(destination)
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else destination


class View:
    """The screen; use it as a context manager. `tell` may be called from any thread.

    Args:
        tables: show the scene below the story, if there is a terminal.
    """

    def __init__(self, plain: bool, money: str = SANDBOX, *, tables: bool = True) -> None:
        self.money = money
        self.scene = Scene()
        self._plain = plain
        self._has_tables = tables and not plain
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._last_line = 0.0
        self._console = Console(highlight=False, soft_wrap=plain, no_color=plain or None)
        self._live: Live | None = None

    def __enter__(self) -> View:
        if self._has_tables:
            self._live = Live(self._picture(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close_tables()

    def close_tables(self) -> None:
        """Take the tables off the screen; the story stays."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    @property
    def seconds(self) -> float:
        """Return how long the demonstration has run."""
        return time.monotonic() - self._began

    def tell(self, text: str, style: str = "") -> None:
        """Add a line to the story."""
        with self._lock:
            stamp = f"[{self.seconds:5.1f} s] "
            if self._plain:
                print(stamp + text, flush=True)
                return
            for piece in Text(text).wrap(self._console, max(20, self._console.width - len(stamp))):
                piece.rstrip()
                self._console.print(Text.assemble((stamp, "dim"), Text(piece.plain, style)))
                stamp = " " * len(stamp)

    def title(self, text: str) -> None:
        """Begin a part of the story."""
        self.scene.title = text
        self.tell(text, "bold")
        self.refresh()

    def refresh(self) -> None:
        """Show the present scene; without a terminal, a line of it every few seconds."""
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
        elif self._plain and self.scene.sold and self.seconds - self._last_line >= LINE_EVERY_S:
            self._last_line = self.seconds
            self.tell(self._line())

    def _line(self) -> str:
        live = [row for row in self.scene.contracts if row["state"] != "closed"]
        rate = sum(row["rate"] for row in live)
        sold = self.scene.sold or {}
        return (
            f"  contracts {len(live)}, {data(rate)}/s, charged {sat(sold['charged_msat'])} sat, "
            f"paid {sat(sold['paid_msat'])} sat, balance {sat(sold['balance_msat'])} sat ({self.money})"
        )

    def _picture(self) -> Group:
        scene = self.scene
        title = Text.assemble((f" {scene.title or 'ngp'} ", "bold"), (f"{self.seconds:.0f} s ", "dim"))
        head = Rule(title, style="dim")
        foot = Text(f"client --- mesh0 [gateway] wan0 --- internet   {self.money}", style="dim", no_wrap=True)
        return Group(head, _contracts(scene.contracts), _accounts(scene), foot)


def _contracts(rows: list[Row]) -> Table:
    titles = ("contract", "state", "msat/kB", "to", "from", "limit", "rate", "msat")
    return _table(titles, 2, [_contract_cells(row) for row in rows[:MOST_ROWS]])


def _contract_cells(row: Row) -> list[Text]:
    state = row["reason"] if row["state"] == "closed" and row["reason"] else row["state"]
    figures = [
        per_kb(row["price_msat_per_gib"]),
        data(row["used_to_bytes"]),
        data(row["used_from_bytes"]),
        data(row["data_limit_bytes"]),
        f"{data(row['rate'])}/s",
        f"{row['charged_msat']:,}",
    ]
    return [Text(host_of(row["destination"])), Text(state, _STYLES.get(row["state"], "")), *map(Text, figures)]


def _accounts(scene: Scene) -> Table:
    titles = ("account, sat", "paid", "charged", "balance", "reserved", "grace left")
    rows = []
    for name, account in (("gateway sells", scene.sold), ("client buys", scene.bought)):
        if account is None:
            continue
        owed = "red" if account["balance_msat"] < 0 else ""
        grace = data(account["grace_left_bytes"]) if account["role"] == "server" else ""
        rows.append(
            [
                Text(name),
                Text(sat(account["paid_msat"])),
                Text(sat(account["charged_msat"])),
                Text(sat(account["balance_msat"]), owed),
                Text(sat(account["reserved_msat"])),
                Text(grace),
            ]
        )
    return _table(titles, 1, rows)


def _table(titles: Sequence[str], left: int, rows: Sequence[Sequence[Text]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=True, header_style="dim")
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def ngp_line(said: str, state_dir: Path) -> str:
    """Return a command of `ngp` as it can be typed in the namespace of its host. Args: said: verb and options."""
    words = shlex.split(said)
    return shlex.join(["env", f"PYTHONPATH={ROOT}", *ngp_command(), *words, "--state-dir", str(state_dir)])


def print_lines(lines: Sequence[Line], sides: tuple[str, str] = SIDES, out: Callable[[str], object] = print) -> None:
    """Print the comparison, figures under each other; lines that differ are marked and show the difference.

    Args: sides: the names of the daemons, in the order of a line.
    """
    rows = [("", "counted", *sides, "")]
    for line in lines:
        said = [line.gateway, line.client]
        verdict = "equal" if line.agrees else "DIFFERS " + _off(line, sides)
        gateway, client = ("-" if one is None else f"{one:,}" for one in said)
        rows.append((line.what, f"{line.truth:,}", gateway, client, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        figures = "  ".join(f"{row[column]:>{widths[column]}}" for column in (1, 2, 3))
        out(f"{row[0]:<{widths[0]}}  {figures}  {row[4]}".rstrip())


def _off(line: Line, sides: tuple[str, str]) -> str:
    said = zip(sides, (line.gateway, line.client), strict=True)
    return ", ".join(f"{who} {one - line.truth:+,}" for who, one in said if one is not None and one != line.truth)


def is_terminal() -> bool:
    """Say whether tables can be drawn."""
    return sys.stdout.isatty()
