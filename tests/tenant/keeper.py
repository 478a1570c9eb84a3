"""A tenant whose AutoPay pays a stand-in landlord by a sandbox node."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ngp.core.settings import Budgets, FeeLimit
from ngp.core.tenant.terms import Limits
from ngp.modules.payment.sandbox import SandboxPayment
from ngp.tenant import autopay
from ngp.tenant.autopay import Kept
from ngp.tenant.books import Books, BooksFile
from ngp.tenant.home import Home, Tunnel
from ngp.tenant.https import HttpsLandlord
from ngp.tenant.payer import Payer
from tests.tenant.stand_in import StandIn

FIRST_SAT = 49_000  # 48,000 and the landlord's least credit
TARGET_SAT = 3_943  # 5 days of 24,000 sat a month, rounded up, is below the target of 6,000


@dataclass
class Told:
    """A proof that says what the test says."""

    why: str = ""

    async def why_not(self) -> str:
        return self.why


@dataclass
class Keeper:
    """A tenant with a sandbox node, whose AutoPay may be started as often as one likes."""

    folder: Path
    landlord: StandIn
    proof: Told = field(default_factory=Told)
    budgets: Budgets | None = None
    options: dict[str, str] = field(default_factory=dict)
    limits: Limits | None = None
    warn_s: int = 0

    def __post_init__(self) -> None:
        self.home = Home(self.folder / "home")
        place = self.home.landlord(None, self.landlord.host, self.landlord.pin)
        self.tunnel: Tunnel = self.home.add_tunnel(None, place)
        self.books = BooksFile(self.home.state_path(self.tunnel))
        self.https = HttpsLandlord(place)

    def all_books(self) -> list[Books]:
        return [BooksFile(path).read() for path in self.home.all_state_paths()]

    def run(self, once: bool = True) -> None:
        asyncio.run(self.keep(once))

    async def keep(self, once: bool = True, alone: bool = True) -> None:
        payment = SandboxPayment(self.folder / "node", self.options)
        payer = Payer(payment, self.books, FeeLimit(0, 1000), self.budgets, self.all_books)
        limits = lambda: self.limits or self.home.limits()  # noqa: E731
        proof, warn_s = lambda: self.proof, lambda: self.warn_s
        kept = Kept(self.home, self.tunnel, self.https, self.books, payer, proof, limits, warn_s)
        try:
            await autopay.keep(kept, once, lambda: False, alone)
        finally:
            await payment.close()

    def payments(self) -> list[tuple[int, str]]:
        """Return what the node paid: sat, and the state."""
        with sqlite3.connect(self.folder / "node" / "sandbox.db") as connection:
            rows = connection.execute("SELECT amount_msat, status FROM payments ORDER BY due_at_s").fetchall()
        return [(row[0] // 1000, row[1]) for row in rows]


def set_limits(keeper: Keeper, **sat: int) -> None:
    """Change limits of BuyOfferTerms, in sat or seconds."""
    limits: dict[str, Any] = {}
    for name, value in sat.items():
        factor = 1 if name == "target_time_s" else 1000
        limits[name] = replace(getattr(keeper.home.limits(), name), value=value * factor)
    keeper.limits = replace(keeper.home.limits(), **limits)
