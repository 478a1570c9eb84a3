"""Flood: an attacker on the honest neighbour's own interface sends as many unknown packets as the gateway can take in.

The attacker is a stranger, which never says hello, or a customer, whose daemon accepts and pays for what its flood
orders. The customer is the harder case, since the gateway is paid for the work of each contract. Meanwhile an honest
neighbour asks for new destinations, one after another, with a single packet each. A packet that isn't held and released
is lost, and counts as lost.

The stranger's port of the switch learns no addresses: made-up ones would make the switch slow, and its speed would be
measured instead of the gateway's.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from core_tests.bench import report
from core_tests.bench.market import Market, cpu_s, open_market
from core_tests.bench.probe import Arrivals, Probe, addresses
from core_tests.bench.stage import MANY_FIRST, compile_blast
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.shell import LabError

# Enough for all contracts that are opened here: the kernel refuses a customer without money, which ends its flood.
PREPAID = {"PAYMENT_AMOUNT": "5000 sat"}
PPS = 150_000
LEAST_PPS = 100_000
FLOOD_FIRST, FLOOD_DESTINATIONS = "10.192.0.1", 4_000_000
FRAME_BYTES = 60
CUSTOMERS = 3
STRANGER_PORT = f"port{CUSTOMERS + 3}"  # after those of gateway, honest client and customers


@dataclass(frozen=True, slots=True)
class Flood:
    """One kind of flood: by a number of customers at once, or (0) by a stranger."""

    title: str
    customers: int
    random_mac: bool
    destinations: int


FLOODS = (
    Flood("stranger, one destination", 0, False, 1),
    Flood("stranger, random destinations", 0, False, FLOOD_DESTINATIONS),
    Flood("stranger, random MACs and destinations", 0, True, FLOOD_DESTINATIONS),
    Flood("customer, one destination", 1, False, 1),
    Flood("customer, random destinations", 1, False, FLOOD_DESTINATIONS),
    Flood(f"{CUSTOMERS} customers, random destinations", CUSTOMERS, False, FLOOD_DESTINATIONS),
)


def run(quick: bool) -> None:
    """Measure and print."""
    seconds = 3.0 if quick else 10.0
    with Lab() as lab:
        market = open_market(lab, CUSTOMERS + 2, traders=CUSTOMERS + 1, keys=PREPAID)
        blast = str(compile_blast(lab.folder))
        lab.hosts["switch"].sh("bridge", "link", "set", "dev", STRANGER_PORT, "learning", "off")
        probe = Probe(market.clients[0], market.internet)
        report.head("Flood: an honest neighbour's first packets meanwhile, median / p99 (2 s at most)")
        probe.each(addresses(MANY_FIRST, 0, 20))
        shares = _Shares(market)
        quiet = _ask(probe, 1, time.monotonic() + seconds)
        report.line("no flood", quiet.text(), "all", _whole(quiet))
        report.line("    processor time", shares.text())
        for number, flood in enumerate(FLOODS, 2):
            _under(market, blast, flood, seconds, probe, number)
        probe.close()


def _under(market: Market, blast: str, flood: Flood, seconds: float, probe: Probe, number: int) -> None:
    hosts = market.clients[1 : 1 + flood.customers] or market.clients[-1:]
    before, shares = _arrived(market.gateway), _Shares(market)
    processes = [_start(host, market.gateway, blast, flood, seconds, PPS // len(hosts)) for host in hosts]
    time.sleep(0.5)  # until the flood runs at full speed
    found = _ask(probe, number, time.monotonic() + seconds - 1.0)
    used = shares.text()
    longest_s = 0.0
    for process in processes:
        said, _ = process.communicate(timeout=seconds + 30)
        if process.returncode:
            raise LabError(f"the flood ended with {process.returncode}: {said}")
        longest_s = max(longest_s, float(json.loads(said)["seconds"]))
    pps = (_arrived(market.gateway) - before) / longest_s
    report.line(f"{flood.title}, {pps / 1000:.0f} kpps", found.text(), "all", _whole(found) and pps >= LEAST_PPS)
    report.line("    processor time", used)


class _Shares:
    """The share of a core that each daemon takes; the rest is the flood's sender and the kernel."""

    def __init__(self, market: Market) -> None:
        self._daemons = {"gateway": market.seller, "honest": market.buyers[0]}
        self._daemons |= {f"customer {number}": one for number, one in enumerate(market.buyers[1:], 1)}
        self._began, self._before, self._busy = time.monotonic(), self._used(), _busy_s()

    def text(self) -> str:
        """Return the shares since this was made, in percent of one core."""
        took_s, used, busy_s = time.monotonic() - self._began, self._used(), _busy_s() - self._busy
        daemons_s = {name: used[name] - self._before[name] for name in used}
        parts = {
            "gateway": daemons_s.pop("gateway"),
            "honest": daemons_s.pop("honest"),
            "customers": sum(daemons_s.values()),
        }
        parts["rest"] = busy_s - sum(parts.values())
        return ", ".join(f"{name} {100 * part_s / took_s:.0f} %" for name, part_s in parts.items())

    def _used(self) -> dict[str, float]:
        return {name: sum(map(cpu_s, daemon.pids())) for name, daemon in self._daemons.items()}


def _busy_s() -> float:
    """Return the time that all cores have worked so far, in all modes except idle and waiting."""
    user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(others)) / 100


def _ask(probe: Probe, number: int, until: float) -> Arrivals:
    """Ask for one new destination after another."""
    sent, seconds = 0, []
    for address in addresses(MANY_FIRST, number * 10_000, 10_000):
        if time.monotonic() > until:
            break
        took = probe.one(address, 2.0)
        sent += 1
        seconds += [took] if took is not None else []
        time.sleep(0.01)
    return Arrivals(sent, tuple(seconds))


def _start(host: Host, gateway: Host, blast: str, flood: Flood, seconds: float, pps: int) -> subprocess.Popen[str]:
    source_mac = "random" if flood.random_mac else host.mac("mesh0")
    source = (host.address("mesh0", 4), "1")
    destination = (FLOOD_FIRST, str(flood.destinations))
    words = ("mesh0", gateway.mac("mesh0"), source_mac, *source, *destination, str(FRAME_BYTES), str(pps), str(seconds))
    return host.popen(blast, "frames", *words, stdout=subprocess.PIPE)


def _whole(found: Arrivals) -> bool:
    return found.sent > 0 and len(found.seconds) == found.sent


def _arrived(gateway: Host) -> int:
    return int(gateway.sh("cat", "/sys/class/net/mesh0/statistics/rx_packets"))
