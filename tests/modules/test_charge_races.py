"""Two processors charge as fast as they can: never a unit or a byte too much, and all sums agree at the end."""

from __future__ import annotations

import contextlib
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from charge_lab import ChargeLab, run

from ngp.core.kernel import MOST_UNITS_AHEAD
from ngp.modules.network import settle
from ngp.modules.network.layout import Counter


class Storm:
    """Two processors that charge as fast as they can while the block runs; counts what passed."""

    def __init__(self, lab: ChargeLab, contracts: int, bytes_mask: int) -> None:
        self._request = struct.pack("=QQII", bytes_mask, 0, contracts - 1, 0)
        self._program, self._table = lab.programs.program("storm"), lab.programs.table("lab_passed")
        self._memory = self._table.map_memory()
        self._going = threading.Event()
        self._threads = [threading.Thread(target=self._blow) for _ in range(2)]

    def _blow(self) -> None:
        while self._going.is_set():
            run(self._program, self._request, times=100_000)

    def __enter__(self) -> Storm:
        self._going.set()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going.clear()
        for thread in self._threads:
            thread.join()

    def passed(self, number: int) -> int:
        """Return how many bytes of a contract passed."""
        return int.from_bytes(self._memory[8 * number : 8 * number + 8], sys.byteorder)

    def close(self) -> None:
        """Release the mapped memory."""
        self._memory.close()
        self._table.close()


@pytest.fixture
def storm(lab: ChargeLab) -> Iterator[Storm]:
    """Eight contracts and packets of up to 64 bytes: several packets fit into each top-up, and the last one doesn't."""
    built = Storm(lab, contracts=8, bytes_mask=63)
    yield built
    built.close()


@pytest.fixture
def drizzle(lab: ChargeLab) -> Iterator[Storm]:
    """One contract and packets of one byte: the two processors race for each unit of a top-up."""
    built = Storm(lab, contracts=1, bytes_mask=0)
    yield built
    built.close()


def meets(exhausted: Callable[[], bool]) -> None:
    """Wait until a packet was refused at the present limit."""
    end = time.monotonic() + 60
    while not exhausted():
        assert time.monotonic() < end, "the limit is never met"
        time.sleep(0)


def test_never_a_packet_too_much_of_an_account_from_two_processors(lab: ChargeLab, storm: Storm) -> None:
    """Thousands of small top-ups, refunds and ends of credit; each is a race for the last unit."""
    limit = most = 0
    lab.limit(limit)
    prices = [1 + number for number in range(8)]
    contracts = [lab.grant(price_msat_per_gib=price) for price in prices]
    with contextlib.closing(settle.ProgramsWait()) as wait, storm:
        for number in range(2_000):
            limit += 40
            credit = 30 * (number % 3)
            lab.limit(limit, credit_units=credit, credit_ends_in_s=600)
            most = max(most, limit + credit)
            meets(lambda: lab.account().exhausted)
            assert limit + credit - 8 < lab.spent() + 8 * 64 and lab.spent() <= most
            if number % 100 == 99:  # a refund of more than is left, and the end of the credit
                limit -= 3_000
                lab.limit(limit)
                wait.wait()
                spent = lab.spent()
                assert spent > limit, "there was nothing to stop, so the test shows nothing"
                assert all(lab.spent() == spent for _ in range(50))
                limit = most = spent
    used = [lab.used(number) for number in contracts]
    assert [storm.passed(number) for number in contracts] == used and min(used) > 0
    assert lab.spent() == sum(price * number for price, number in zip(prices, used, strict=True))
    assert lab.counter(Counter.CONTENDED) == 0


def test_never_a_unit_too_much_where_each_is_raced_for(lab: ChargeLab, drizzle: Storm) -> None:
    lab.limit(0)
    contract = lab.grant()
    with drizzle:
        for limit in range(1, 5_000):
            lab.limit(limit)
            meets(lambda: lab.account().exhausted)
            assert lab.spent() == limit
    assert drizzle.passed(contract) == lab.used(contract) == limit


def test_never_a_packet_too_much_of_a_contract_and_its_cost_is_given_back(lab: ChargeLab, storm: Storm) -> None:
    """The account has enough money, so the race is for the contracts' limits."""
    lab.limit(MOST_UNITS_AHEAD)
    limits = dict.fromkeys((lab.grant(limit_bytes=0, price_msat_per_gib=3) for _ in range(8)), 0)
    with storm:
        for number in (number for _ in range(500) for number in limits):
            limits[number] += 40
            lab.grant(number, limit_bytes=limits[number], price_msat_per_gib=3)
            meets(lambda number=number: lab.read(number).exhausted)  # type: ignore[misc]
            assert lab.used(number) <= limits[number]
    used = [lab.used(number) for number in limits]
    assert [storm.passed(number) for number in limits] == used and min(used) > 0
    assert lab.spent() == 3 * sum(used)
