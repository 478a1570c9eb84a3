"""A landlord that lets its last address again and again, until it is killed: one side of the fight for it.

    fighting_landlord.py URL FOLDER NUMBER

The payment node's books are a file in the folder: like a real node, it doesn't forget a payment when the landlord dies.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from let import Landlord, PaymentNodeOfLandlord, letting

from ngp import store
from ngp.core.messages import Prefix
from ngp.core.records import Record
from ngp.core.rental.effects import HoldNetworks
from ngp.core.rental.events import ReleaseRental
from ngp.core.rental.rental import RentalState
from ngp.errors import LedgerMomentError
from ngp.ports import Store

T = TypeVar("T")


def identity(number: int) -> bytes:
    return sha256(b"landlord %d" % number).digest()


def place(url: str, folder: Path, number: int) -> Store:
    return store.at(folder, url, identity(number))


class LastingNode(PaymentNodeOfLandlord):
    """What is paid is in the file before the landlord hears of it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
        for line in path.read_text().splitlines():
            payment_hash, amount_msat = line.split()
            self.paid.append((bytes.fromhex(payment_hash), int(amount_msat)))

    def pay(self, payment_hash: bytes) -> bool:
        taken = super().pay(payment_hash)
        if taken:
            os.write(self._file, f"{payment_hash.hex()} {self.amounts[payment_hash]}\n".encode())
        return taken

    def close(self) -> None:
        os.close(self._file)


class FightingLandlord(Landlord):
    """Waits, like the daemon, while the ledger can't be written; what it did before isn't done again."""

    def __init__(self, url: str, folder: Path, number: int) -> None:
        node = LastingNode(folder / f"node-{number}")
        terms = letting(pools=("203.0.113.0/32", "2001:db8::/64"))
        super().__init__(folder, terms, random.SystemRandom().getrandbits(64), place(url, folder, number), node)

    def _start(self) -> None:
        while True:
            try:
                super()._start()
                return
            except LedgerMomentError:
                time.sleep(0.05)

    def _store(self, records: Sequence[Record]) -> None:
        while True:
            try:
                self.ledger.commit(records, durable=True)
                return
            except LedgerMomentError:
                time.sleep(0.05)

    def _hold(self, effect: HoldNetworks) -> tuple[Prefix, ...]:
        while True:
            try:
                return self.ledger.hold_networks(effect.rental, effect.networks)
            except LedgerMomentError:
                time.sleep(0.05)


def fight(url: str, folder: Path, number: int) -> None:
    landlord, chance = FightingLandlord(url, folder, number), random.Random()
    while True:
        tenant = 10 * number + chance.randrange(3)
        answer = landlord.ask(tenant, 1000)
        if answer is not None and answer.bolt11 and chance.random() < 0.8:
            landlord.pay(answer.bolt11)
            if landlord.rental(tenant).state is RentalState.ACTIVE:
                print("let", flush=True)
        elif answer is not None and "are let" in answer.why_not:
            print("full", flush=True)
            time.sleep(0.01)
        for rental in list(landlord.world.letting.rentals.values()):
            if rental.state is not RentalState.RELEASED and chance.random() < 0.5:
                landlord.happen(ReleaseRental(rental.id))


if __name__ == "__main__":
    fight(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
