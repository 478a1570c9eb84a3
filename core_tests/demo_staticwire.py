"""`tools/demo --staticwire`: a machine behind NAT rents addresses of its own, and anyone on the internet reaches it.

Landlord, NAT router, tenant and a third party are network namespaces. The tenant rents, pays, and brings its tunnel up;
the third party opens TCP connections to the rented addresses. The rental costs rent by the second and a price for each
byte, both so high that a stream uses the first credit up: then nothing passes, until the tenant pays again and has the
same addresses. At the end the books of landlord and tenant are compared with each other and with an independent count.

Bytes are counted by packet sockets: towards the tenant where they enter the landlord's tunnel, from it where they reach
the third party.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from shlex import quote
from typing import Any

from core_tests import traffic
from core_tests.daemon import ngp_command
from core_tests.demo_books import Line
from core_tests.demo_flows import Flow
from core_tests.demo_view import View, ngp_line, sat
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.renting import NET_CONF
from core_tests.shell import LabError, await_until
from core_tests.topologies import tenant_behind_nat
from core_tests.traffic import TrafficError
from ngp.core.rental.terms import MONTH_S
from ngp.tenant.books import BooksFile

PARTIES = "landlord", "tenant"
SERVICE_PORT, ECHO_PORT, SERVICE_BYTES = 8080, 8081, 100_000
STREAM_BYTES_S = 200_000  # slow enough for wireguard-go on a busy machine, which would drop packets that were charged
OFF_S, ON_AGAIN_S, USED_UP_S, SETTLED_S = 3.0, 60.0, 90.0, 30.0
SAT = 1000
Row = dict[str, Any]
RENT_SAT_S, BYTE_MSAT, FEE_SAT, FIRST_SAT, LATER_SAT = 1, 1, 48_000, 1_000, 4_000
LANDLORD = {
    **NET_CONF,
    "LANDLORD_HTTPS": "none",
    "LANDLORD_GRPC": "203.0.113.1:50051",
    "LANDLORD_RENT": f"{RENT_SAT_S * MONTH_S} sat",
    "LANDLORD_PRICE": f"{BYTE_MSAT * 1024} msat",
    "LANDLORD_ACTIVATION_FEE": f"{FEE_SAT} sat",
    "LANDLORD_INITIAL_CREDIT_MIN": f"{FIRST_SAT} sat",
}
TENANT = "MESH_INTERFACES: mesh0\nBUDGET_HOUR: 100000 sat\n"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a stopwatch showed before and after something happened, seconds."""

    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Reckoned:
    """What we know without either party's books.

    Attributes:
        invoices: the sums of the invoices that were paid, msat.
        to, back: bytes that passed towards the tenant and from it.
        service: the least and the most that rent can have run, by a stopwatch.
    """

    invoices: tuple[int, ...]
    to: int
    back: int
    service: Reading


class StaticWire:
    """The story in parts; each part needs those before it."""

    def __init__(self, lab: Lab, view: View) -> None:
        self.view = view
        self.net = tenant_behind_nat(lab)
        self.landlord = self.net.landlord.daemon(LANDLORD, start=False)
        self.folder = self.net.tenant.folder / "state"
        self.config = self.net.tenant.folder / "net.conf"
        self.config.write_text(TENANT)
        self.config.chmod(0o600)
        self.invoices_msat: list[int] = []

    def play(self) -> list[Line]:
        """Play all of it, and return the comparison."""
        self.network()
        self.let()
        self.rent()
        self.reach("4/6 The third party connects to the rented addresses")
        self.credit_ends()
        self.pay_again()
        return self.totals()

    def network(self) -> None:
        """Show that nobody reaches the tenant."""
        self.view.title("1/6 The network, without ngp")
        if traffic.ping(self.net.tenant, self.net.third.address("wan0", 4)).received != 1:
            raise LabError("the tenant doesn't reach the third party through its NAT")
        self.view.tell("the tenant's only address is 192.168.7.2, behind a router with NAT")
        self.view.tell("it reaches the internet, but nobody on the internet can begin a connection to it")

    def let(self) -> None:
        """Start the landlord."""
        self.view.title("2/6 The landlord lets 198.51.100.0/29 and 2001:db8:100::/61: LANDLORD: yes, `ngp start`")
        self.landlord.start()
        (offer,) = self.landlord.json("rentals", "offers", in_process=False)
        sizes = " and an ".join(offer["networks"])
        self.view.tell(f"its offer: an {sizes}; activation fee {FEE_SAT:,} sat, least first credit {FIRST_SAT:,} sat")
        self.view.tell(f"rent {RENT_SAT_S} sat a second, and {BYTE_MSAT} msat a byte: dear, so that this is short")

    def rent(self) -> None:
        """Let the tenant rent, pay, and bring its tunnel up."""
        self.view.title("3/6 The tenant rents")
        where, key = self.net.landlord.address("wan0", 4), self.landlord.json("status", in_process=False)["identity"]
        self._rent("trust", "home", where, key, "--face", "grpc")
        self.view.tell("the landlord is known by its key: no authority, no account")
        began = time.monotonic()
        self._pays("new", "home", "--name", "shop")
        self.paid = Reading(began, time.monotonic())
        self.networks: list[str] = self.status()["networks"]
        self.addresses = self.networks[0].partition("/")[0], f"{self.networks[1].partition('/')[0]}1"
        self.view.tell(f"paid {sat(self.invoices_msat[0])} sat (not real): fee and first credit", "green")
        self.view.tell(f"{' and '.join(self.networks)} are the tenant's", "green")
        tunnel = str(NET_CONF["LANDLORD_INTERFACE"])
        self.counters = self.net.landlord.counter(tunnel, "out"), self.net.third.counter("wan0", "in")
        self._rent("up", "shop")
        for address in self.addresses:
            traffic.tcp_echo(self.net.tenant, address, ECHO_PORT)
            traffic.tcp_sink(self.net.tenant, address, SERVICE_PORT)
        self.view.tell(f"a service of the tenant listens on both addresses, TCP port {SERVICE_PORT}")

    def reach(self, title: str) -> None:
        """Connect to the tenant's service from outside, in both families."""
        self.view.title(title)
        for address in self.addresses:
            await_until(lambda one=address: self.answers(one), ON_AGAIN_S, f"{address} answers")  # type: ignore[misc]
            done = traffic.tcp_send(self.net.third, address, SERVICE_PORT, size_bytes=SERVICE_BYTES)
            if not done.intact:
                raise LabError(f"{address}: {done.received_bytes:,} of {done.sent_bytes:,} bytes arrived unchanged")
            self.view.tell(f"{address}: connected; all of {done.received_bytes:,} bytes arrived unchanged", "green")

    def credit_ends(self) -> None:
        """Let a stream use the credit up, and show that nothing passes any more."""
        self.view.title("5/6 A stream uses the credit up")
        stream = Flow(self.net.third, "tcp", self.addresses[0], ECHO_PORT, STREAM_BYTES_S, OFF_S)
        await_until(lambda: self.landlord_row()["state"] == "reserved", USED_UP_S, "the end of the credit")
        stream.end()
        passed_msat = sum(self.count()) * BYTE_MSAT
        if passed_msat > FIRST_SAT * SAT:
            raise LabError(f"bytes for {sat(passed_msat)} sat passed, but only {FIRST_SAT} sat of credit were paid")
        self.view.tell(
            f"the kernel cut it at the byte: traffic for {sat(passed_msat)} of {FIRST_SAT:,} sat passed", "green"
        )
        self.view.tell("the rest of the credit pays rent")
        for address in self.addresses:
            try:
                traffic.tcp_send(self.net.third, address, SERVICE_PORT, size_bytes=1, timeout_s=OFF_S)
            except TrafficError:
                self.view.tell(f"{address}: the third party can't connect any more", "green")
            else:
                raise LabError(f"{address} still answers, although the credit is used up")
        self.view.tell("the addresses are kept for two months, and nobody else gets them; rent goes on")

    def pay_again(self) -> None:
        """Let the tenant pay; it has the same addresses again."""
        self.view.title("6/6 The tenant pays again")
        began = time.monotonic()
        self._pays("add", "shop", "--amount", str(LATER_SAT))
        if self.status()["networks"] != self.networks:
            raise LabError(f"after the payment the networks are {self.status()['networks']}, not {self.networks}")
        self.view.tell(f"paid {sat(self.invoices_msat[1])} sat (not real): what is owed, and new credit", "green")
        self.reach("the same addresses, from outside:")
        self.view.tell(f"{time.monotonic() - began:.1f} s after the tenant began to pay")

    def totals(self) -> list[Line]:
        """Switch the rental off, so that the books stand still, and compare them."""
        self._await_last_reading()
        began = time.monotonic()
        done = self.landlord.cli("rentals", "off", self.addresses[0], "--yes")
        if done.returncode:
            raise LabError(f"ngp rentals off: {done.stderr}")
        ended = Reading(began, time.monotonic())
        self.view.tell("the landlord switches the rental off, so that the books stand still: `ngp rentals off`")
        service = Reading(ended.before - self.paid.after, ended.after - self.paid.before)
        self.view.tell(f"by a stopwatch, rent ran for {service.before:.1f} to {service.after:.1f} s")
        self._await_last_reading()  # a packet may have passed while it was switched off
        reckoned = Reckoned(tuple(self.invoices_msat), *self.count(), service)
        journal = self.landlord.json("ledger", in_process=False)
        return compare(self.landlord_row(), self.status(), journal, self.tenants_payments(), reckoned)

    def _await_last_reading(self) -> None:
        with suppress(LabError):  # what still differs is told by the comparison
            await_until(lambda: self.count() == _used(self.landlord_row()), SETTLED_S, "the last reading of the meter")

    def count(self) -> tuple[int, int]:
        """Return the bytes that passed towards the tenant and from it."""
        ours = {self.net.third.address("wan0", version) for version in (4, 6)}
        into, out = (counter.read().items() for counter in self.counters)
        return (
            sum(tally.bytes for flow, tally in into if flow.source in ours and flow.destination in self.addresses),
            sum(tally.bytes for flow, tally in out if flow.source in self.addresses),
        )

    def stop(self) -> None:
        """Take the tenant's tunnel down, and stop the landlord: afterwards the network is as before."""
        for counter in self.counters:
            counter.stop()
        self._rent("down", "shop")
        self.landlord.stop()
        self.view.tell("`ngp rent down` and `ngp stop`: nothing of ngp is left on either machine")

    def looks(self) -> list[tuple[Host, str]]:
        """Return commands that show more, with the hosts to which they belong."""
        landlord = [(self.net.landlord, ngp_line(verb, self.landlord.state_dir)) for verb in ("rentals", "ledger")]
        return [*landlord, (self.net.tenant, ngp_line(f"rent status --config {quote(str(self.config))}", self.folder))]

    def answers(self, address: str) -> bool:
        """Say whether the third party reaches an address."""
        return traffic.ping(self.net.third, address, wait_s=1).received == 1

    def landlord_row(self) -> Row:
        """Return the rental as the landlord lists it."""
        (row,) = self.landlord.json("rentals", in_process=False)
        return dict(row)

    def status(self) -> Row:
        """Return the rental as the tenant lists it."""
        (row,) = json.loads(self._run("status", "--json"))
        return dict(row)

    def tenants_payments(self) -> list[int]:
        """Return the payments in the tenant's own books, msat."""
        books = BooksFile(self.folder / "tenant" / "TunnelState.yaml").read()
        return [one.amount_msat for one in books.sent if one.state == "paid"]

    def _pays(self, *words: str) -> None:
        """Rent or add credit, and remember for how much the invoice was."""
        said = self._rent(*words, quietly=("--yes", "--json"))
        self.invoices_msat.append(int(json.loads(said.partition("\n")[0])["amount_msat"]))

    def _rent(self, *words: str, quietly: tuple[str, ...] = ()) -> str:
        """Run `ngp rent` and tell it. Args: quietly: options that the reader needn't see."""
        self.view.tell(f"tenant# ngp rent {' '.join(words)}", "cyan")
        return self._run(*words, *quietly)

    def _run(self, *words: str) -> str:
        place = ("--config", str(self.config), "--state-dir", str(self.folder))
        return self.net.tenant.sh(*ngp_command(), "rent", *words, *place)


def _used(row: Row) -> tuple[int, int]:
    return row["used_to_bytes"], row["used_from_bytes"]


def compare(let: Row, rented: Row, journal: Iterable[Row], payments: Sequence[int], reckoned: Reckoned) -> list[Line]:
    """Compare the books of both parties with our own reckoning; what isn't in a party's books is None.

    Args:
        let, rented: the rental as the landlord and as the tenant list it, at one time.
        journal: the landlord's ledger.
        payments: what the tenant has paid by its own books, msat.
    """
    booked = dict.fromkeys(("payment", "activation", "rent", "charge"), 0)
    for row in journal:
        if row["kind"] in booked:
            booked[row["kind"]] += row["amount_msat"]
    paid, fee, traffic_msat = sum(reckoned.invoices), FEE_SAT * SAT, (reckoned.to + reckoned.back) * BYTE_MSAT
    rent = rent_due_msat(let["charged_msat"] - traffic_msat, reckoned.service)
    due = f"{rent // RENT_SAT_S // SAT} s x {RENT_SAT_S} sat + bytes x {BYTE_MSAT} msat"
    return [
        Line("bytes towards the tenant", reckoned.to, let["used_to_bytes"], rented["used_to_bytes"]),
        Line("bytes from the tenant", reckoned.back, let["used_from_bytes"], rented["used_from_bytes"]),
        Line("msat paid = the invoices", paid, let["paid_msat"], rented["paid_msat"]),
        Line("  by each one's ledger", paid, booked["payment"], sum(payments)),
        Line("msat activation fee", fee, let["activation_fee_msat"], rented["activation_fee_msat"]),
        Line(f"msat for {due}", rent + traffic_msat, let["charged_msat"], rented["charged_msat"]),
        Line(
            "  by the ledger, with the fee", fee + rent + traffic_msat, -sum(booked.values()) + booked["payment"], None
        ),
        Line("msat left", paid - fee - rent - traffic_msat, let["credit_msat"], rented["credit_msat"]),
    ]


def rent_due_msat(charged_msat: int, service: Reading) -> int:
    """Return what the service costs by a stopwatch: whole seconds, so the stopwatch leaves some sums to choose from.

    Args: charged_msat: what the landlord asks for; the sum next to it is returned.
    """
    least_s, most_s = math.ceil(service.before - 1), math.floor(service.after + 1)
    return min(max(round(charged_msat / SAT / RENT_SAT_S), least_s), most_s) * RENT_SAT_S * SAT
