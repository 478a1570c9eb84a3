"""Show: turns rows into lines for people and scripts.

Neighbours' texts (software, addresses) reach an operator's terminal, so nothing is interpreted as markup and control
characters are never printed. On a terminal that is too narrow for a table each row is a block of lines. Without a
terminal each row is one line, however long, so that grep works. --json prints the daemon's rows as they are.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ngp.cli import streams
from ngp.core.pricing import about_price

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = dict[str, Any]

NOT_REAL = "not real money"
_NO_TERMINAL_WIDTH = 240
_KEY_LETTERS = 16
_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its title, and the function that shows a row's value.

    Attributes:
        right: aligned to the right, as numbers are.
        spare: a live view on a narrow terminal leaves out the columns with the highest number first; 0: never.
    """

    title: str
    show: Callable[[Row], str]
    right: bool = False
    spare: int = 0


# --- values -----------------------------------------------------------------------------------------------------------


def clean(value: object) -> str:
    """Make any value printable on a terminal; None is a dash, a bool is yes or no."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(clean, value)) or "-"
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def money(value: object) -> str:
    """Write msat as sat with all three decimals: 1234567 is `1,234.567 sat`."""
    if not isinstance(value, int):
        return clean(value)
    whole, msat = divmod(abs(value), 1000)
    return f"{'-' if value < 0 else ''}{whole:,}.{msat:03d} sat"


def data(value: object) -> str:
    """Write bytes exactly, and rounded for people; units as in net.conf, 1 kB = 1,024 bytes."""
    if not isinstance(value, int):
        return clean(value)
    return f"{about(value)} ({value:,})" if abs(value) >= 1024 else f"{value:,} B"


def about(amount: float) -> str:
    """Write bytes to three figures."""
    for unit in _UNITS:
        if abs(amount) < 1000 or unit == _UNITS[-1]:
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"


def price(value: object) -> str:
    """Write a price, msat per GiB, as `about_price` does."""
    return about_price(value) if isinstance(value, int) else clean(value)


def duration(value: object) -> str:
    """Write seconds as days, hours, minutes and seconds."""
    if not isinstance(value, int | float):
        return clean(value)
    minutes, seconds = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


def key(value: object) -> str:
    """Write the first letters of an identity, hash or id."""
    return clean(value)[:_KEY_LETTERS]


def iso(time_s: int) -> str:
    """Write UTC seconds as ISO 8601; "" for 0, which means never."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if time_s else ""


def field(name: str, form: Callable[[object], str] = clean) -> Callable[[Row], str]:
    """Return a column's `show` for a key. Args: form: formats the value."""
    return lambda row: form(row.get(name))


def state(row: Row) -> str:
    """Show a row's state, with the reason if there is one."""
    return f"{clean(row.get('state'))} ({clean(row['reason'])})" if row.get("reason") else clean(row.get("state"))


# --- output -----------------------------------------------------------------------------------------------------------


def print_json(value: object) -> None:
    """Print one value."""
    print(json.dumps(value, indent=2))


def print_json_rows(rows: Iterable[Row]) -> None:
    """Print a list, one row per line, as the rows come: a long list is never held as one text."""
    separator = "["
    for row in rows:
        print(f"{separator}\n{json.dumps(row)}", end="")
        separator = ","
    print("[]" if separator == "[" else "\n]")


def print_rows(
    rows: Iterable[Row],
    columns: Sequence[Column],
    empty: str,
    as_json: bool,
    below: Callable[[Sequence[Row]], None] | None = None,
) -> None:
    """Print a listing, as JSON or as a table.

    Args:
        empty: printed instead of an empty table.
        below: prints what belongs below the table.
    """
    if as_json:
        print_json_rows(rows)
        return
    found = list(rows)
    print_table(found, columns, empty)
    if below is not None:
        below(found)


def print_table(rows: Sequence[Row], columns: Sequence[Column], empty: str) -> None:
    """Print a table, or blocks of lines if the terminal is too narrow for it.

    Args:
        empty: printed instead of an empty table.
    """
    out = console()
    if not rows:
        print(empty)
        return
    table = make_table(rows, columns)
    if _width(table, out) <= out.width:
        out.print(table)
        return
    for row in rows:
        print_fields([(column.title, column.show(row)) for column in columns])
        print()


def make_table(rows: Iterable[Row], columns: Sequence[Column]) -> Table:
    """Make a plain table without frames."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(column.show(row)) for column in columns))
    return table


def make_narrow_table(rows: Sequence[Row], columns: Sequence[Column], out: Console) -> Table:
    """Make a table that leaves out spare columns until it fits: a number that is cut short would be a wrong one."""
    shown = list(columns)
    while _width(table := make_table(rows, shown), out) > out.width and any(each.spare for each in shown):
        shown.remove(max(shown, key=lambda each: each.spare))
    return table


def _width(table: Table, out: Console) -> int:
    return table.__rich_measure__(out, out.options.update(max_width=10_000)).maximum


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one per line."""
    for line in lines_of(fields):
        print(line)


def lines_of(fields: Sequence[tuple[str, str]]) -> list[str]:
    """Return names and values, one per line."""
    width = max((len(name) for name, _ in fields), default=0)
    return [f"{name:{width}}  {value}" for name, value in fields]


def print_unless_real(rows: Sequence[Row]) -> None:
    """Print below a listing that its money is the sandbox's or a test chain's, unless all of it is known to be real."""
    if any(row.get("real_money") is not True for row in rows):
        print_not_real()


def print_not_real() -> None:
    """Print below a listing that its money is the sandbox's or a test chain's."""
    print(f"\nAll amounts are {NOT_REAL}: the sandbox's, or a test network's.")


def console() -> Console:
    """Open the terminal, or a very wide one if there is none."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _NO_TERMINAL_WIDTH
    return Console(file=sys.stdout, width=wide, highlight=False, markup=False, emoji=False)


class Progress:
    """Reports on stderr that something takes time, beginning after one second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = False
        self._next_s = 1.0

    def __call__(self, so_far_s: float, stage: str = "") -> None:
        """Show the time so far; on a terminal in place, elsewhere as a line at intervals."""
        if so_far_s < self._next_s:
            return
        text = f"{self._what}: {so_far_s:.0f} s{', ' if stage else ''}{clean(stage) if stage else ''}"
        if sys.stderr.isatty():
            self._next_s = so_far_s + 0.9
            streams.note(f"\r{text}\033[K", end="")
            self._shown = True
        else:
            self._next_s = so_far_s * 2 + 1
            streams.note(text)

    def end(self) -> None:
        """Remove the line."""
        if self._shown:
            streams.note("\r\033[K", end="")
            self._shown = False


def print_result(result: object, otherwise: str) -> None:
    """Print the answer to a verb: a sentence, or names and values. Args: otherwise: printed if there is neither."""
    if isinstance(result, dict) and result:
        streams.say(*lines_of([(name.replace("_", " "), clean(value)) for name, value in result.items()]))
    else:
        streams.say(clean(result) if isinstance(result, str) and result else otherwise)
