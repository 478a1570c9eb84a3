"""Many rentals in a moment: copies of one paid rental are written into the ledger of a landlord whose daemon is dead.

A landlord takes only some new rentals a second over HTTPS, so that a stranger can't fill its books. To see it with
thousands of tenants, the ledger gets what as many rentals would have left in it; the next start doesn't know better.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_network
from itertools import islice
from pathlib import Path

from ngp import store
from ngp.core.records import AccountRecord, ContractRecord, JournalRecord, PaymentRecord, Record
from ngp.core.rental.records import RentalRecord


def multiply(state_dir: Path, count: int, pools: tuple[str, str]) -> None:
    """Write copies of the one rental in a ledger, with keys and networks of their own.

    Args:
        state_dir: of a landlord whose daemon doesn't run.
        pools: an IPv4 and an IPv6 prefix, from which nothing is let; each copy gets a /32 and a /64.
    """
    with closing(store.at(state_dir).open()) as ledger:
        ((rental, account),) = ledger.rentals()
        found = ledger.load(int(time.time()))
        of_rental: list[Record] = [
            *(one for one in ledger.contracts(include_closed=True) if one.identity == rental.rental),
            *(one for one in found.payments if one.identity == rental.rental),
            *(one for one in ledger.journal() if one.identity == rental.rental),
        ]
        for networks in islice(_networks(pools), count):
            ledger.commit(list(_copied([rental, account, *of_rental], rental, networks)))


def _networks(pools: tuple[str, str]) -> Iterator[str]:
    v4, v6 = (ip_network(one) for one in pools)
    return (f"{one} {two}" for one, two in zip(v4.subnets(new_prefix=32), v6.subnets(new_prefix=64), strict=False))


def _copied(records: list[Record], rental: RentalRecord, networks: str) -> Iterator[Record]:
    identity, key = secrets.token_bytes(32), secrets.token_bytes(32)
    names: dict[bytes, bytes] = {b"": b"", rental.period: secrets.token_bytes(16)}  # contracts and payments, old -> new

    def new(name: bytes) -> bytes:
        return names.setdefault(name, secrets.token_bytes(len(name)))

    for record in records:
        match record:
            case RentalRecord():
                period = new(record.period)
                yield replace(record, rental=identity, wireguard_key=key, networks=networks, period=period)
            case AccountRecord():
                yield replace(record, identity=identity)
            case ContractRecord():
                destination = networks.partition(" ")[0]
                yield record._replace(
                    contract=new(record.contract), identity=identity, link_address=key, destination=destination
                )
            case PaymentRecord():
                yield replace(record, payment_hash=new(record.payment_hash), identity=identity)
            case JournalRecord():
                contract, payment_hash = new(record.contract), new(record.payment_hash)
                yield replace(record, identity=identity, contract=contract, payment_hash=payment_hash)
