"""Contracts: how many a gateway's daemon opens a second, their memory, and the time to resume them.

Clients ask for new destinations as fast as they are served, each with a bounded number under way. All daemons share the
machine's cores here, so the gateway's own processor time is given as well: a router has a core for itself. The gate
hands the daemon no more than NEIGHBOUR_RATE first packets of one neighbour in a second, so one client isn't faster.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from core_tests.bench import report
from core_tests.bench.market import Market, cpu_s, open_market, rss_bytes
from core_tests.bench.probe import PAUSE_S, Crowd, Probe, addresses
from core_tests.bench.stage import MANY_FIRST
from core_tests.lab import Lab
from core_tests.shell import await_until

CLIENTS = 4
MOST = 262144
# Prepaid in few payments, so that contracts are measured and not payments; long enough that none ends meanwhile.
KEYS = {"CONTRACTS_MAX": MOST, "CONTRACT_TIME": "1 day", "PAYMENT_AMOUNT": "10000 sat"}
MIB = 1 << 20
GOAL_RESUME_S, GOAL_CONTRACTS = 4, 100_000
# Copies of a running contract, for destinations that no client has asked for (10.160.0.0 and on).
MULTIPLY = """
    WITH RECURSIVE numbers(number) AS (
        SELECT count(*) FROM contracts WHERE closed_at_s = 0 UNION ALL
        SELECT number + 1 FROM numbers WHERE number + 1 < :count),
    one AS (SELECT * FROM contracts WHERE closed_at_s = 0 LIMIT 1)
    INSERT INTO contracts (contract, role, identity, interface, link_address, destination, state, reason, prices,
        data_limit_bytes, lifetime_s, used_to_bytes, used_from_bytes, charged_msat, billed_bytes, opened_at_s,
        expires_at_s, closed_at_s)
    SELECT randomblob(16), role, identity, interface, link_address,
        printf('10.%d.%d.%d/32', 160 + (number >> 16), number >> 8 & 255, number & 255), state, '', prices,
        data_limit_bytes, lifetime_s, 0, 0, 0, 0, opened_at_s, expires_at_s, 0 FROM numbers, one
"""


def run(quick: bool) -> None:
    """Measure and print."""
    few, all_of_them = (1000, 4000) if quick else (4000, 100_000)
    most = 100_000 if quick else 1_000_000
    with Lab() as lab:
        market = open_market(lab, CLIENTS, keys=KEYS)
        report.head("Contracts of one gateway daemon")
        fresh_s = _start_again(market)
        (pid,) = market.seller.pids()
        empty_bytes = rss_bytes(pid)
        crowd = Crowd(market.clients, market.internet)
        crowd.open([addresses(MANY_FIRST, 0, 50)] * CLIENTS)
        _opened(market, pid, "opened, 1 client", crowd, [addresses(MANY_FIRST, 100, few)])
        shares = [addresses(MANY_FIRST, 100 + few, all_of_them // CLIENTS) for _ in range(CLIENTS)]
        _opened(market, pid, f"opened, {CLIENTS} clients", crowd, shares)
        _weight_and_resume(market, pid, empty_bytes, fresh_s)
        crowd.close()
        _stop_with(market, most)


def _opened(market: Market, pid: int, title: str, crowd: Crowd, shares: Sequence[Sequence[str]]) -> None:
    count = sum(map(len, shares))
    cpu = cpu_s(pid)
    wall_s = crowd.open(shares)
    used_s = cpu_s(pid) - cpu
    value = f"{count / wall_s:,.0f} a second; {count / used_s:,.0f} a second of the gateway's core"
    report.line(f"{title}, {count:,} in {wall_s:.0f} s", value)


def _start_again(market: Market) -> float:
    """Kill the gateway's daemon without a warning and return the seconds until `ngp start` reports that it is ready."""
    market.seller.kill9()
    return _seconds(market.seller.start)


def _seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def _weight_and_resume(market: Market, pid: int, empty_bytes: int, fresh_s: float) -> None:
    count = market.contracts()
    grown = rss_bytes(pid) - empty_bytes
    value = f"{grown / MIB:.0f} MiB more than {empty_bytes / MIB:.0f} ({grown / count:,.0f} bytes each)"
    report.line(f"memory of {count:,} contracts", value)
    ledger = sum(file.stat().st_size for file in market.seller.state_dir.glob("ledger.db*"))
    report.line("    their ledger on disk", f"{ledger / MIB:.0f} MiB")
    resumed_s = _start_again(market)
    (pid,) = market.seller.pids()
    started_cpu_s = cpu_s(pid)
    found = await_until(market.contracts, what="the daemon's answer")
    title = f"`ngp start` after kill -9, {found:,} of {count:,} resumed"
    value = f"{resumed_s:.1f} s, {started_cpu_s:.1f} s of a core (with none: {fresh_s:.1f} s)"
    goal = (f"< {GOAL_RESUME_S} s", resumed_s < GOAL_RESUME_S and found == count) if count >= GOAL_CONTRACTS else ()
    report.line(title, value, *goal)
    probe = Probe(market.clients[0], market.internet)
    old = probe.each(addresses(MANY_FIRST, 100, 100), pause_s=0.001)
    new = probe.each(addresses(MANY_FIRST, 5_000_000, 1000), pause_s=PAUSE_S)
    report.line("    then: packets of old contracts, median / p99", old.text())
    report.line("    then: first packets of new ones, median / p99", new.text())
    probe.close()


def _stop_with(market: Market, count: int) -> None:
    """Time `ngp start` and `ngp stop` with very many contracts.

    To open them all would take a quarter of an hour, so most are written into the stopped daemons' ledger."""
    market.stop()
    seller = market.seller
    seller.configure(seller.config.read_text().replace(f"CONTRACTS_MAX: {MOST}", f"CONTRACTS_MAX: {1 << 20}"))
    with closing(sqlite3.connect(seller.state_dir / "ledger.db")) as ledger, ledger:
        ledger.execute(MULTIPLY, {"count": count})
    started_s = _seconds(seller.start)
    count = await_until(market.contracts, what="the daemon's answer")
    (pid,) = seller.pids()
    report.line(f"`ngp start` with {count:,} in the ledger", f"{started_s:.1f} s; {rss_bytes(pid) / MIB:,.0f} MiB")
    report.line(f"`ngp stop` with {count:,}", f"{_seconds(seller.stop):.1f} s")
