"""Whole: a whole number on the command line, with an error that says what to write."""

from __future__ import annotations

import re
from typing import Any

import click


class Whole(click.IntRange):
    """A whole number, with a clear error for a fraction, a unit or a separator, and for a number out of its range.

    Args:
        what: the number and its unit, for the error.
        example: a usual value.
    """

    def __init__(self, least: int, most: int | None = None, what: str = "the amount in sat", example: int = 500_000):
        super().__init__(least, most)
        self._what, self._example = what, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the number; see `click.ParamType.convert`."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} {self._fault(str(value))}", param, ctx)

    def _fault(self, text: str) -> str:
        """Return what is wrong with a value that was refused, and what would be right."""
        if re.fullmatch(r"[+-]?\d+", text.strip()) is None:
            return f"isn't a whole number: write {self._what} with digits only, for example {self._example}"
        bounds = f"{self.min} or more" if self.max is None else f"a number from {self.min} to {self.max}"
        return f"is out of range: write {self._what}, {bounds}"
