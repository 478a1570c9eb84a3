"""`tools/demo --staticwire`: a machine behind NAT rents addresses of its own, and anyone on the internet reaches it.

Landlord, NAT router, tenant and a third party are network namespaces. The tenant rents over HTTPS, pays, and brings its
tunnel up; the third party opens TCP connections to the rented addresses. The rent is so high that the first credit
lasts some seconds: the tunnel is off at the end of it, and on again, with the same addresses, when the tenant pays.
Then the books of landlord and tenant are compared with each other and with this program's own reckoning.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from core_tests import traffic
from core_tests.daemon import ngp_command
from core_tests.demo_books import Line
from core_tests.demo_view import View, ngp_line, sat
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.renting import NET_CONF, fingerprint_of
from core_tests.shell import LabError, await_until
from core_tests.topologies import tenant_behind_nat
from core_tests.traffic import TrafficError
from ngp.core.rental.terms import MONTH_S
from ngp.tenant.books import BooksFile

PARTIES = "landlord", "tenant"
SERVICE_PORT, SERVICE_BYTES = 8080, 100_000
OFF_S, ON_AGAIN_S = 3.0, 60.0
SAT = 1000
Row = dict[str, Any]
RENT_SAT_S, FEE_SAT, FIRST_SAT, LATER_SAT = 50, 48_000, 1_000, 4_000
LANDLORD = {
    **NET_CONF,
    "LANDLORD_RENT": f"{RENT_SAT_S * MONTH_S} sat",
    "LANDLORD_ACTIVATION_FEE": f"{FEE_SAT} sat",
    "LANDLORD_INITIAL_CREDIT_MIN": f"{FIRST_SAT} sat",
}
TENANT = f"MESH_INTERFACES: mesh0\nBUDGET_HOUR: 100000 sat\nTENANT_RENT_MAX: {RENT_SAT_S * MONTH_S} sat\n"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a stopwatch showed before and after something happened, seconds."""

    before: float
    after: float


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
        self.view.tell(f"its offer: an {sizes}; {RENT_SAT_S} sat a second, so that this demonstration is short")
        self.view.tell(f"activation fee {FEE_SAT:,} sat, once; least first credit {FIRST_SAT:,} sat, which last "
                       f"{FIRST_SAT // RENT_SAT_S} s")  # fmt: skip

    def rent(self) -> None:
        """Let the tenant rent, pay, and bring its tunnel up."""
        self.view.title("3/6 The tenant rents")
        self._rent("trust", "home", self.net.landlord.address("wan0", 4), fingerprint_of(self.landlord))
        self.view.tell("the landlord's certificate is known by its fingerprint: no authority, no account")
        began = time.monotonic()
        self._pays("new", "home", "--name", "shop")
        self.paid = Reading(began, time.monotonic())
        self.networks: list[str] = self.status()["networks"]
        self.addresses = self.networks[0].partition("/")[0], f"{self.networks[1].partition('/')[0]}1"
        self.view.tell(f"paid {sat(self.invoices_msat[0])} sat (not real): fee and first credit", "green")
        self.view.tell(f"{' and '.join(self.networks)} are the tenant's", "green")
        self._rent("up", "shop")
        for address in self.addresses:
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
        """Wait until the credit is used up, and show that nothing passes any more."""
        self.view.title("5/6 The credit ends")
        await_until(lambda: self.landlord_row()["state"] == "reserved", what="the end of the credit")
        service_s = time.monotonic() - self.paid.after
        self.view.tell(
            f"after {service_s:.1f} s the credit is used up, and the landlord's tunnel is off for this tenant"
        )
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
        began = time.monotonic()
        done = self.landlord.cli("rentals", "off", self.addresses[0], "--yes")
        if done.returncode:
            raise LabError(f"ngp rentals off: {done.stderr}")
        ended = Reading(began, time.monotonic())
        self.view.tell("the landlord switches the rental off, so that the books stand still: `ngp rentals off`")
        journal = self.landlord.json("ledger", in_process=False)
        service = Reading(ended.before - self.paid.after, ended.after - self.paid.before)
        self.view.tell(f"by a stopwatch, rent ran for {service.before:.1f} to {service.after:.1f} s")
        journal = self.landlord.json("ledger", in_process=False)
        return compare(
            self.landlord_row(), self.status(), journal, self.tenants_payments(), self.invoices_msat, service
        )

    def stop(self) -> None:
        """Take the tenant's tunnel down, and stop the landlord: afterwards the network is as before."""
        self._rent("down", "shop")
        self.landlord.stop()
        self.view.tell("`ngp rent down` and `ngp stop`: nothing of ngp is left on either machine")

    def looks(self) -> list[tuple[Host, str]]:
        """Return commands that show more, with the hosts to which they belong."""
        mine = [(self.net.landlord, verb, self.landlord.state_dir) for verb in ("rentals", "ledger", "accounts")]
        return [
            (host, ngp_line(verb, where))
            for host, verb, where in (*mine, (self.net.tenant, "rent status", self.folder))
        ]

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


def compare(
    let: Row, rented: Row, journal: Iterable[Row], payments: Sequence[int], invoices: Sequence[int], service: Reading
) -> list[Line]:
    """Compare the books of both parties with our own reckoning; what isn't in a party's books is None.

    Args:
        let, rented: the rental as the landlord and as the tenant list it, at one time.
        journal: the landlord's ledger.
        payments: what the tenant has paid by its own books, msat.
        invoices: the sums of the invoices that were paid, msat.
        service: the least and the most that the service can have lasted, by a stopwatch.
    """
    booked = dict.fromkeys(("payment", "activation", "rent"), 0)
    for row in journal:
        if row["kind"] in booked:
            booked[row["kind"]] += row["amount_msat"]
    paid, fee, rent = sum(invoices), FEE_SAT * SAT, rent_due_msat(let["charged_msat"], service)
    return [
        Line("msat paid = the invoices", paid, let["paid_msat"], rented["paid_msat"]),
        Line("msat paid, by each one's ledger", paid, booked["payment"], sum(payments)),
        Line("msat activation fee", fee, let["activation_fee_msat"], rented["activation_fee_msat"]),
        Line("  by the ledger", fee, -booked["activation"], None),
        Line(
            f"msat rent = {RENT_SAT_S} sat x {rent // RENT_SAT_S // SAT} s",
            rent,
            let["charged_msat"],
            rented["charged_msat"],
        ),
        Line("  by the ledger", rent, -booked["rent"], None),
        Line("msat left = paid - fee - rent", paid - fee - rent, let["credit_msat"], rented["credit_msat"]),
    ]


def rent_due_msat(charged_msat: int, service: Reading) -> int:
    """Return what the service costs by a stopwatch: whole seconds, so the stopwatch leaves some sums to choose from.

    Args: charged_msat: what the landlord says; the sum next to it is returned.
    """
    least_s, most_s = math.ceil(service.before - 1), math.floor(service.after + 1)
    return min(max(round(charged_msat / SAT / RENT_SAT_S), least_s), most_s) * RENT_SAT_S * SAT
