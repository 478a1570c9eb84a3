"""Written: the values of a file, before they are checked together and become Settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, TypeVar

from ngp.config import keys
from ngp.config.document import Finding, Node, show
from ngp.config.key import Key
from ngp.config.modules import LINK, NETWORK, PAYMENT
from ngp.core.settings import ModuleId
from ngp.module_keys import ModuleSettings

T = TypeVar("T")

FAMILIES = ("ip4", "ip6")
"""Names of the module ip for one family alone."""

_CHOICES: tuple[tuple[Key[Any], str], ...] = (
    (keys.LINK_INTERFACE, LINK), (keys.NETWORK_INTERFACE, NETWORK), (keys.PAYMENT_INTERFACE, PAYMENT),
)  # fmt: skip

Modules = Callable[[str], Collection[str]]


@dataclass(frozen=True, slots=True)
class Written:
    """Values by key: the parsed values, their nodes (for line numbers), and the keys that could not be read.

    Attributes:
        parsed: of a key that could not be read, the part that could be, if there is one.
        modules: names of the installed modules, by group.
        brought: each module's own keys (ModuleSettings), by module: of the modules that the file chooses; if the file
            has a key that isn't ngp's own, of all installed modules that can be loaded.
        folder: of the file; relative paths start there.
    """

    parsed: Mapping[str, Any]
    nodes: Mapping[str, Node]
    failed: Set[str]
    modules: Modules
    brought: Mapping[ModuleId, ModuleSettings]
    folder: str

    def __getitem__(self, key: Key[T]) -> T:
        """Return a key's value, or its default."""
        value: T = self.parsed[key.name] if key.name in self.parsed else key.default_value()
        return value

    def has_failed(self, *needed: Key[Any]) -> bool:
        """Say whether one of these keys could not be read."""
        return any(key.name in self.failed for key in needed)

    def chosen(self) -> Iterator[tuple[Key[Any], ModuleId]]:
        """Yield the modules that the file names, each with the key that names it; unreadable keys are skipped."""
        for key, group in _CHOICES:
            if key.name not in self.failed:
                named = self[key]
                for name in (named,) if isinstance(named, str) else named:
                    yield key, (group, "ip" if group == NETWORK and name in FAMILIES else name)

    def of_module(self, module: ModuleId) -> dict[str, Any]:
        """Return the values of a module's keys, without those that are None; with defaults if the module is in use."""
        in_use = module in (one for _, one in self.chosen())
        brought = [keys.of_module(key, self.folder) for key in self.brought[module].keys]
        found = {key.name: self[key] for key in brought if in_use or key.name in self.nodes}
        return {name: value for name, value in found.items() if value is not None}

    def finding(self, key: Key[Any], message: str, node: Node | None = None) -> Finding:
        """Return a finding about a key, with its line or with the line of a part of its value."""
        at = node or self.nodes.get(key.name)
        if at is None:
            return Finding(0, key.name, f"{key.default} (the default)", message)
        return Finding(at.line, key.name, show(at), message)


Check = Callable[[Written], Iterator[Finding]]
"""Finds contradictions between values that are valid by themselves."""
