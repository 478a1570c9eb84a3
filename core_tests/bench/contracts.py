"""Contracts: how many a gateway's daemon opens a second, what they weigh, and how long it takes to resume them.

Clients ask for new destinations as fast as they are served, each with a bounded number under way; all daemons share the
machine's cores here, so the gateway's own processor time is given as well: a router has its core for itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from core_tests.bench import report
from core_tests.bench.market import Market, cpu_s, open_market, rss_bytes
from core_tests.bench.probe import Crowd, Probe, addresses
from core_tests.bench.stage import MANY_FIRST
from core_tests.lab import Lab
from core_tests.shell import await_until

CLIENTS = 4
# Prepaid in few payments, so that contracts are what is measured, and long enough that none ends meanwhile.
KEYS = {"CONTRACTS_MAX": 262144, "CONTRACT_TIME": "1 day", "PAYMENT_AMOUNT": "10000 sat"}
MIB = 1 << 20


def run(quick: bool) -> None:
    """Measure and print."""
    few, all_of_them = (1000, 4000) if quick else (4000, 100_000)
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


def _opened(market: Market, pid: int, title: str, crowd: Crowd, shares: Sequence[Sequence[str]]) -> None:
    count = sum(map(len, shares))
    cpu = cpu_s(pid)
    wall_s = crowd.open(shares)
    used_s = cpu_s(pid) - cpu
    value = f"{count / wall_s:,.0f} a second; {count / used_s:,.0f} a second of the gateway's core"
    report.line(f"{title}, {count:,} in {wall_s:.0f} s", value)


def _start_again(market: Market) -> float:
    """Kill the gateway's daemon without a warning and return the seconds until `ngp start` says that it is ready."""
    market.seller.kill9()
    began = time.monotonic()
    market.seller.start()
    return time.monotonic() - began


def _weight_and_resume(market: Market, pid: int, empty_bytes: int, fresh_s: float) -> None:
    count = market.contracts()
    grown = rss_bytes(pid) - empty_bytes
    value = f"{grown / MIB:.0f} MiB more than {empty_bytes / MIB:.0f} ({grown / count:,.0f} bytes each)"
    report.line(f"memory of {count:,} contracts", value)
    ledger = sum(file.stat().st_size for file in market.seller.state_dir.glob("ledger.db*"))
    report.line("    their ledger on disk", f"{ledger / MIB:.0f} MiB")
    resumed_s = _start_again(market)
    found = await_until(market.contracts, what="the daemon's answer")
    report.line(
        f"`ngp start` after kill -9, {found:,} of {count:,} resumed", f"{resumed_s:.1f} s (with none: {fresh_s:.1f} s)"
    )
    probe = Probe(market.clients[0], market.internet)
    old = probe.each(addresses(MANY_FIRST, 100, 100), pause_s=0.001)
    new = probe.each(addresses(MANY_FIRST, 5_000_000, 100))
    report.line("    then: packets of old contracts, median / p99", old.text())
    report.line("    then: first packets of new ones, median / p99", new.text())
    probe.close()
