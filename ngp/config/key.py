"""Key: what is known of one key of net.conf. `ngp.config.keys` has the table of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ngp.config.document import Node, Scalar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Key(Generic[T]):
    """One key of net.conf.

    Attributes:
        name: as in the file.
        kind: the form of its value, for the guide.
        parse: reads its value; raises Refused.
        default: as it would be written; "" if the key is required.
        help: one line.
        fields: the fields of Settings that it sets; those of Budgets begin with `budgets.`.
        needs_restart: `ngp reload` can't change it.
        secret: what in the value is secret; such a value is never shown, and gives the file mode 0600.
    """

    name: str
    kind: str
    parse: Callable[[Node], T]
    default: str
    help: str
    fields: tuple[str, ...]
    needs_restart: bool = False
    secret: str = ""

    def default_value(self) -> T:
        """Parse the default; only for keys that aren't required."""
        return self.parse(Scalar(self.default, 0))
