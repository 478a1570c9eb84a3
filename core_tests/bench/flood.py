"""Flood: somebody on the honest neighbour's own interface sends as many unknown packets as the gateway can take in.

A stranger never says hello; a customer has a daemon that accepts and pays what its flood orders, which is the harder
case: each contract is work that the gateway is paid for. An honest neighbour meanwhile asks for new destinations, one
after another, with a single packet each: what isn't held and released is lost and counts.

The stranger's port of the switch learns no addresses: made-up ones would only measure the switch.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass

from core_tests.bench import report
from core_tests.bench.market import Market, open_market
from core_tests.bench.probe import Arrivals, Probe, addresses
from core_tests.bench.stage import MANY_FIRST, compile_blast
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.shell import LabError

# Enough for all that is opened here: a customer without money is refused in the kernel and floods nobody.
PREPAID = {"PAYMENT_AMOUNT": "5000 sat"}
PPS = 150_000
LEAST_PPS = 100_000
FLOOD_FIRST, FLOOD_DESTINATIONS = "10.192.0.1", 4_000_000
FRAME_BYTES = 60
STRANGER_PORT = "port4"  # of the switch: behind those of the gateway, the honest client and the customer


@dataclass(frozen=True, slots=True)
class Flood:
    """One way to flood."""

    title: str
    by_customer: bool
    random_mac: bool
    destinations: int


FLOODS = (
    Flood("stranger, one destination", False, False, 1),
    Flood("stranger, random destinations", False, False, FLOOD_DESTINATIONS),
    Flood("stranger, random MACs and destinations", False, True, FLOOD_DESTINATIONS),
    Flood("customer, one destination", True, False, 1),
    Flood("customer, random destinations", True, False, FLOOD_DESTINATIONS),
)


def run(quick: bool) -> None:
    """Measure and print."""
    seconds = 3.0 if quick else 10.0
    with Lab() as lab:
        market = open_market(lab, 3, traders=2, keys=PREPAID)
        blast = str(compile_blast(lab.folder))
        lab.hosts["switch"].sh("bridge", "link", "set", "dev", STRANGER_PORT, "learning", "off")
        probe = Probe(market.clients[0], market.internet)
        report.head("Flood: an honest neighbour's first packets meanwhile, median / p99 (2 s at most)")
        probe.each(addresses(MANY_FIRST, 0, 20))
        quiet = _ask(probe, 1, time.monotonic() + seconds)
        report.line("no flood", quiet.text(), "all", _whole(quiet))
        for number, flood in enumerate(FLOODS, 2):
            _under(market, blast, flood, seconds, probe, number)
        probe.close()


def _under(market: Market, blast: str, flood: Flood, seconds: float, probe: Probe, number: int) -> None:
    host = market.clients[1 if flood.by_customer else 2]
    before = _arrived(market.gateway)
    process = _start(host, market.gateway, blast, flood, seconds)
    time.sleep(0.5)  # in full swing; what is asked before would see no flood
    found = _ask(probe, number, time.monotonic() + seconds - 1.0)
    said, _ = process.communicate(timeout=seconds + 30)
    if process.returncode:
        raise LabError(f"the flood ended with {process.returncode}: {said}")
    pps = (_arrived(market.gateway) - before) / float(json.loads(said)["seconds"])
    report.line(f"{flood.title}, {pps / 1000:.0f} kpps", found.text(), "all", _whole(found) and pps >= LEAST_PPS)


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


def _start(host: Host, gateway: Host, blast: str, flood: Flood, seconds: float) -> subprocess.Popen[str]:
    source_mac = "random" if flood.random_mac else host.mac("mesh0")
    source = (host.address("mesh0", 4), "1")
    destination = (FLOOD_FIRST, str(flood.destinations))
    words = ("mesh0", gateway.mac("mesh0"), source_mac, *source, *destination, str(FRAME_BYTES), str(PPS), str(seconds))
    return host.popen(blast, "frames", *words, stdout=subprocess.PIPE)


def _whole(found: Arrivals) -> bool:
    return found.sent > 0 and len(found.seconds) == found.sent


def _arrived(gateway: Host) -> int:
    return int(gateway.sh("cat", "/sys/class/net/mesh0/statistics/rx_packets"))
