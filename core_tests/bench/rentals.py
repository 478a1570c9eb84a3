"""Rentals: how many a landlord opens a second, the time from a payment to the first packet, memory, and a start.

Tenants rent over HTTPS, each from an address of its own, as the landlord takes few invoices of one address. Payments
are made between two measurements, in the sandbox: `lightning` measures Lightning's part. A tenant that has paid shows
the proof, fetches its configuration, sets its end of the tunnel up, and sends a packet. What ten thousand rentals leave
in the ledger is written there directly.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from core_tests import traffic
from core_tests.bench import report
from core_tests.bench.letting import CREDIT_SAT, POOLS, RENTED, Side
from core_tests.bench.market import cpu_s, rss_bytes
from core_tests.bench.wireguard import Key, make
from core_tests.daemon import Daemon
from core_tests.demo_flows import PAYLOAD_BYTES, Flow
from core_tests.lab import Lab
from core_tests.many_rentals import multiply
from core_tests.renting import wireguard_go_of
from core_tests.shell import LabError, await_until
from core_tests.staticwire import Session, Tenant
from core_tests.traffic import ping
from ngp.modules.payment.sandbox import SandboxPayment

TENANTS_NET, TENANTS_FROM = "10.77.0.0/16", "10.77.{}.{}"
MANY_POOLS = "10.64.0.0/12", "2001:db8:1000::/36"
AT_ONCE = 8
MIB = 1 << 20
GOAL_PACKET_S = 0.2
AGAIN_S = 60.0
FLOW_PORT, FLOW_BYTES_S = 7000, 200_000
STEPS = "the proof", "the configuration", "the tenant's `wg` and `ip`", "handshake, packet and answer"


@dataclass(slots=True)
class Renter:
    """A tenant with its key, that has asked for an invoice.

    Attributes: preimage: the proof of its payment; b"" before it.
    """

    key: Key
    tenant: Tenant
    invoice: str = ""
    preimage: bytes = b""

    def ask(self) -> None:
        """Ask for the first invoice."""
        self.invoice = self.tenant.add_credit(CREDIT_SAT)["Invoice"]

    def prove(self) -> None:
        """Show the landlord the proof of the payment; it counts it before it answers."""
        if self.tenant.status(Preimage=self.preimage.hex())["unpaid_invoice"] is not None:
            raise LabError("the landlord didn't count a payment whose proof it was shown")


class Renters:
    """Tenants of one landlord, each with an address of its own."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._count = 0
        side.tenant.owns(TENANTS_NET)
        side.landlord.route(TENANTS_NET, via=side.tenant.address("near0", 4))

    def new(self) -> Renter:
        """Return a tenant that has done nothing yet."""
        self._count += 1
        source = TENANTS_FROM.format(*divmod(self._count, 250))
        host = self._side.tenant

        def connect(place: tuple[str, int], timeout_s: float) -> socket.socket:
            return host.socket_inside(lambda: socket.create_connection(place, timeout_s, (source, 0)))

        key = Key.new()
        return Renter(key, Tenant(Session("192.0.2.1", 443, connect=connect), b64decode(key.public_key)))

    def pay(self, renters: Sequence[Renter]) -> None:
        """Pay the invoices of all, in the sandbox."""

        async def paid() -> None:
            node = SandboxPayment(self._side.tenant.folder)
            try:
                for renter in renters:
                    renter.preimage = (await node.pay(renter.invoice, 0, 30)).preimage
            finally:
                await node.close()

        asyncio.run(paid())


def run(quick: bool) -> None:
    """Measure and print."""
    opened, packets, again, many = (40, 8, 2, 1_000) if quick else (160, 30, 5, 10_000)
    with Lab() as lab:
        side = Side(lab)
        daemon = side.start_landlord(LANDLORD_HTTPS="192.0.2.1:443", LANDLORD_INVOICES_MAX=1000)
        renters = Renters(side)
        report.head("Rentals of one landlord, over HTTPS")
        _opened(renters, daemon.pids()[0], opened)
        rented = _first_packets(side, renters, packets)
        _on_again(side, daemon, rented, again)
    with Lab() as lab:
        _many(Side(lab), many)


def _opened(renters: Renters, pid: int, count: int) -> None:
    """Time invoices and proofs; payments come between them."""
    some = [renters.new() for _ in range(count)]
    asked_s, asked_cpu_s = _for_each(some, Renter.ask, pid)
    renters.pay(some)
    proven_s, proven_cpu_s = _for_each(some, Renter.prove, pid)
    for one in some:
        one.tenant.session.close()
    rate, of_core = count / (asked_s + proven_s), count / (asked_cpu_s + proven_cpu_s)
    title = f"opened, {AT_ONCE} tenants at once, {count}"
    report.line(title, f"{rate:,.0f} a second; {of_core:,.0f} a second of the landlord's core")


def _for_each(renters: Sequence[Renter], act: Callable[[Renter], None], pid: int) -> tuple[float, float]:
    """Do something for all of them, some at once; returns the seconds, and those of a process's processor time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        began, cpu = time.perf_counter(), cpu_s(pid)
        list(pool.map(act, renters))
        return time.perf_counter() - began, cpu_s(pid) - cpu


def _first_packets(side: Side, renters: Renters, count: int) -> str:
    """Time each step from the proof of a payment to the answer to the first packet. Returns the last one's address."""
    steps: list[list[float]] = []
    name, addresses = "", list[str]()
    for _ in range(count):
        if name:
            side.tenant.ip("link", "set", name, "down")  # the ways to the third party are the next one's
        renter = renters.new()
        name = make(side.lab, side.tenant, renter.key)
        renter.ask()
        renters.pay([renter])
        times = [time.perf_counter()]
        renter.prove()
        times.append(time.perf_counter())
        found = renter.tenant.configuration()
        times.append(time.perf_counter())
        addresses = [one.partition("/")[0] for one in found["addresses"]]
        side.tenant.sh("sh", "-ec", side.join_text(name, found["peers"][0]["public_key"], addresses))
        times.append(time.perf_counter())
        if ping(side.tenant, side.third.address("wan0", 4)).received != 1:
            raise LabError(f"the first packet of {addresses[0]} wasn't answered")
        times.append(time.perf_counter())
        renter.tenant.session.close()
        steps.append([after - before for before, after in pairwise(times)])
    wholes = [sum(one) for one in steps]
    median = statistics.median(wholes)
    value = f"{median * 1000:.0f} ms, slowest of {count} {max(wholes) * 1000:.0f} ms"
    report.line("from a paid invoice to the first packet's answer, median", value, "< 200 ms", median < GOAL_PACKET_S)
    for what, each in zip(STEPS, zip(*steps, strict=True), strict=True):
        report.line(f"    of that {what}", f"{statistics.median(each) * 1000:.0f} ms")
    return addresses[0]


def _on_again(side: Side, daemon: Daemon, address: str, count: int) -> None:
    """Time from the order to serve a tenant again until the third party reaches it."""
    took = []
    for _ in range(count):
        daemon.ask("rentals off", rental=address)
        await_until(lambda: not side.is_reached(address), what=f"{address} is off")
        began = time.perf_counter()
        daemon.ask("rentals on", rental=address)
        await_until(lambda: side.is_reached(address), AGAIN_S, f"{address} is on again")
        took.append(time.perf_counter() - began)
    value = f"{statistics.median(took) * 1000:.0f} ms, slowest of {count} {max(took) * 1000:.0f} ms"
    report.line("off and on again: until the tenant is reached, median", value)


def _many(side: Side, count: int) -> None:
    """Measure a landlord with many rentals; one of them is real, and its traffic goes on meanwhile."""
    side.let_by_ngp(LANDLORD_POOLS=[*POOLS, *MANY_POOLS])
    (daemon,) = side.landlord.daemons
    fresh = _start_again(daemon)
    empty_bytes = rss_bytes(daemon.pids()[0])
    daemon.kill9()
    multiply(daemon.state_dir, count, MANY_POOLS)
    first = _start_again(daemon)
    count += 1
    (pid,) = daemon.pids()
    grown = rss_bytes(pid) - empty_bytes
    value = f"{grown / MIB:.0f} MiB more than {empty_bytes / MIB:.0f} ({grown / count:,.0f} bytes each)"
    report.line(f"memory of {count:,} rentals", value)
    ledger = sum(file.stat().st_size for file in daemon.state_dir.glob("ledger.db*"))
    report.line("    their ledger on disk", f"{ledger / MIB:.0f} MiB")
    report.line(f"first start with {count:,}, which makes their peers", first)
    traffic.udp_echo(side.tenant, RENTED[0], FLOW_PORT)
    flow = Flow(side.third, "udp", RENTED[0], FLOW_PORT, FLOW_BYTES_S)
    again = _start_again(daemon)
    said = flow.end()
    active = daemon.json("status")["letting"]["active"]
    report.line(f"`ngp start` after kill -9, {active:,} of {count:,} active", f"{again} (with none: {fresh})")
    lost = (said.sent_bytes - said.echoed_bytes) // PAYLOAD_BYTES
    report.line("    packets of a tenant meanwhile", f"{lost} of {said.sent_bytes // PAYLOAD_BYTES:,} lost")
    ours = wireguard_go_of(str(daemon.json("status")["letting"]["tunnel"]["interface"]))
    if ours is not None:
        report.line("    memory of its wireguard-go", f"{rss_bytes(ours) / MIB:.0f} MiB")
    report.line("`ngp stop`", f"{_seconds(daemon.stop):.1f} s")


def _start_again(daemon: Daemon) -> str:
    """Kill the daemon, if it runs; return the seconds until `ngp start` reports that it is ready, as text."""
    daemon.kill9()
    took_s = _seconds(daemon.start)
    return f"{took_s:.1f} s, {cpu_s(daemon.pids()[0]):.1f} s of a core"


def _seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began
