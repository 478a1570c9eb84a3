"""Parts: what a node is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ngp.core.gatekeeper import Gatekeeper
from ngp.core.rental.terms import LettingSettings
from ngp.core.settings import Settings
from ngp.core.values import Check
from ngp.ports import Clock, Ledger, Link, Network, Payment, Store


@dataclass(slots=True)
class Parts:
    """The parts that main() found and opened for the node; `ledger` is the open ledger of `store`.

    `make_links` returns the links for other settings, not opened. `check_letting` looks at the host for the landlord's
    settings, in any thread.
    """

    config_path: Path
    settings: Settings
    clock: Clock
    store: Store
    ledger: Ledger
    network: Network
    payment: Payment
    gatekeeper: Gatekeeper
    identity: bytes
    node_addresses: tuple[str, ...] = ()
    make_links: Callable[[Settings], Sequence[Link]] = lambda _settings: ()
    check_letting: Callable[[LettingSettings], list[Check]] = lambda _settings: []
