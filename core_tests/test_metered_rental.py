"""A rental that is paid by kilobyte, end to end: counted, cut at the byte while no daemon runs, and on again."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from core_tests import traffic
from core_tests.counter import Counter
from core_tests.lab import Lab
from core_tests.market import V4, V6, open_market
from core_tests.mesh_market import LANDLORD, Mesh, open_mesh
from core_tests.shell import await_until

PRICE = Fraction(1000, 1024)  # msat a byte: a sat for a kilobyte
PAYLOAD_BYTES = 1000
BY_TRAFFIC = {
    "LANDLORD_RENT": 0,
    "LANDLORD_PRICE": "1 sat",
    "LANDLORD_INITIAL_CREDIT_MIN": "100 sat",
    "LANDLORD_PAYMENT_MIN": "100 sat",
}
SINK = {V4: 7004, V6: 7006}


@pytest.fixture
def mesh(lab: Lab) -> Mesh:
    """A landlord whose offer has no rent, and a neighbour that has rented for 100 sat, with the tunnel up."""
    opened = open_mesh(lab, **BY_TRAFFIC)
    counter = opened.third.counter("wan0")
    opened.trust()
    opened.done("new", "let", "--amount", "100", "--yes", "--up")
    opened.await_reached()
    await_charged_as_counted(counter, opened.let)
    return opened


def await_charged_as_counted(counter: Counter, row: Callable[[], dict[str, Any]]) -> None:
    """Wait until a rental is charged for what the third host exchanged with it, as that host's own counter says."""

    def counted() -> tuple[int, int]:
        sent = [counter.total("out", destination=address).bytes for address in (V4, V6)]
        got = [counter.total("in", source=address).bytes for address in (V4, V6)]
        return sum(sent), sum(got)

    def charged() -> tuple[int, int]:
        found = row()
        return found["used_to_bytes"], found["used_from_bytes"]

    await_until(lambda: charged() == counted() != (0, 0), what="charged as the third host has counted")


class Sinks:
    """Counts independently what arrives at the tenant, at its address of each family."""

    def __init__(self, mesh: Mesh) -> None:
        self._third = mesh.third
        self._sinks = {address: traffic.udp_sink(mesh.tenant, address, port) for address, port in SINK.items()}

    def send(self, address: str, count: int) -> None:
        traffic.udp_send(self._third, address, SINK[address], count=count, payload_bytes=PAYLOAD_BYTES)

    def bytes(self) -> int:
        """Return the bytes of all packets that arrived, with their headers."""
        versions = {V4: 4, V6: 6}
        return sum(
            traffic.l3_bytes(versions[address], PAYLOAD_BYTES, sink.received()[0])
            for address, sink in self._sinks.items()
        )


def test_bytes_are_charged_as_counted_and_cut_without_a_daemon_and_a_payment_turns_it_on_again(mesh: Mesh) -> None:
    sinks = Sinks(mesh)
    before = mesh.let()["used_to_bytes"]
    for address in (V4, V6):
        sinks.send(address, 10)
    await_until(lambda: sinks.bytes() == 20 * (PAYLOAD_BYTES + 8) + 10 * 20 + 10 * 40, what="all arrive")
    await_until(lambda: mesh.let()["used_to_bytes"] - before == sinks.bytes(), what="all are counted")
    row, ours = mesh.let(), mesh.status()
    used = row["used_to_bytes"] + row["used_from_bytes"]
    assert (row["price_msat_per_gib"], row["rent_msat_per_month"]) == (1000 << 20, 0)
    assert row["charged_msat"] == int(used * PRICE)
    assert {key: ours[key] for key in ("used_to_bytes", "price_msat_per_gib", "charged_msat", "credit_msat")} == {
        key: row[key] for key in ("used_to_bytes", "price_msat_per_gib", "charged_msat", "credit_msat")
    }
    assert row["paid_until"] is None

    mesh.lets.kill9()
    for _ in range(3):
        for address in (V4, V6):
            sinks.send(address, 30)
    most = int(row["credit_msat"] / (traffic.l3_bytes(4, PAYLOAD_BYTES) * PRICE)) + 20
    await_until(lambda: not mesh.reached(V4), what="the kernel has cut the tenant off by itself")
    arrived = sinks.bytes()
    assert arrived // traffic.l3_bytes(4, PAYLOAD_BYTES) <= most
    mesh.lets.start()
    row = mesh.let()
    used = row["used_to_bytes"] + row["used_from_bytes"]
    assert row["used_to_bytes"] - before >= arrived, "pings to the tenant besides"
    assert row["charged_msat"] == int(used * PRICE)
    assert row["state"] == "reserved" and 0 <= row["credit_msat"] < 1500 * PRICE

    mesh.done("add", V4, "--amount", "100", "--yes")
    await_until(lambda: mesh.reached(V4), what="the tenant is reached again")
    row = mesh.let()
    assert (row["state"], row["networks"]) == ("active", [f"{V4}/32", "2001:db8:100::/64"])
    lines = [one for one in mesh.lets.json("ledger") if one["kind"] == "charge"]
    assert -sum(one["amount_msat"] for one in lines) == int(used * PRICE)
    (books,) = [one for one in mesh.lets.json("check", "--config", str(mesh.lets.config)) if one["name"] == "books"]
    assert books["ok"], books
    assert mesh.traffic_contracts() == [], "the tunnel is no traffic of the mesh"


def test_what_was_carried_after_a_kill_is_charged_by_a_stop(mesh: Mesh) -> None:
    sinks = Sinks(mesh)
    before = mesh.let()["used_to_bytes"]
    mesh.lets.kill9()
    sinks.send(V6, 10)
    await_until(lambda: sinks.bytes() == traffic.l3_bytes(6, PAYLOAD_BYTES, 10), what="all arrive")
    assert mesh.lets.cli("stop").returncode == 0
    (row,) = mesh.lets.json("rentals")
    assert row["used_to_bytes"] - before == sinks.bytes()
    mesh.lets.start()
    row = mesh.let()
    assert row["used_to_bytes"] - before == sinks.bytes()
    assert row["charged_msat"] == int((row["used_to_bytes"] + row["used_from_bytes"]) * PRICE)


def test_autopay_pays_what_this_machine_has_counted_too_and_no_more(mesh: Mesh) -> None:
    once = mesh.rent("autopay", "--once")
    assert once.returncode and "asks 1000 msat/kB for traffic, above TENANT_PRICE_MAX (0 msat/kB)" in once.stderr
    assert mesh.let()["payments"] == 1
    with mesh.rents.config.open("a") as file:
        file.write("TENANT_PRICE_MAX: 1 sat\nTENANT_PAYMENT_MIN: 100 sat\nTENANT_TARGET_CREDIT: 600 sat\n")
    mesh.done("autopay", "--once")
    row = mesh.let()
    assert row["payments"] > 1 and row["credit_msat"] > 500_000, "up to the target, in one payment or more"
    sinks = Sinks(mesh)
    for _ in range(3):  # 120 kB each, most of which must be paid again
        sinks.send(V4, 120)
        await_until(lambda: mesh.let()["credit_msat"] < 500_000, what="the traffic is charged")
        mesh.done("autopay", "--once")
        assert mesh.let()["credit_msat"] > 500_000

    tunnel = mesh.status()["id"]
    mesh.done("down", tunnel)  # the landlord goes on sending, and charging
    sinks.send(V4, 250)
    await_until(lambda: mesh.let()["credit_msat"] < 400_000, what="what nobody receives is charged")
    payments = mesh.let()["payments"]
    once = mesh.rent("autopay", "--once")
    assert once.returncode and "for traffic, but the tunnel's interface on this machine counted" in once.stderr
    assert "if the tunnel was down meanwhile" in once.stderr and mesh.let()["payments"] == payments
    mesh.done("add", V4, "--amount", "100", "--yes")
    mesh.done("up", tunnel)
    mesh.await_reached()
    mesh.done("autopay", "--once")
    assert mesh.let()["credit_msat"] > 500_000, "what was paid by hand is accepted"


@pytest.mark.parametrize("by_node", [True, False])
def test_a_price_that_ends_leaves_no_charge_in_dispute(mesh: Mesh, by_node: bool) -> None:
    sinks = Sinks(mesh)
    sinks.send(V4, 30)
    await_until(lambda: mesh.let()["charged_msat"] > 30_000, what="the traffic is charged")
    by_time = {"LANDLORD_INITIAL_CREDIT_MIN": "100 sat", "LANDLORD_PAYMENT_MIN": "100 sat"}
    assert mesh.lets.reload({**LANDLORD, **by_time}).returncode == 0
    if by_node:
        mesh.done("add", V4, "--amount", "200", "--yes")
    else:
        added = mesh.tenant.popen(*mesh.command("add", V4, "--amount", "200", "--no-pay"))
        await_until(lambda: mesh.let()["unpaid_invoice"], what="the invoice")
        assert mesh.lets.cli("server", f"payment {V4} 200 sat").returncode == 0
        assert added.wait(60) == 0
    row = mesh.let()
    assert (row["payments"], row["price_msat_per_gib"]) == (2, 0)
    mesh.done("add", V4, "--amount", "200", "--yes")
    mesh.done("autopay", "--once")
    assert mesh.let()["payments"] > 3, "both go on, although the books alone would have more credit"


def test_an_offer_names_the_limit_that_refuses_its_price(mesh: Mesh) -> None:
    (offer,) = json.loads(mesh.done("offers", "--json"))
    assert offer["price_msat_per_gib"] == 1000 << 20 and "for traffic" in offer["refused_by"][0]


def test_a_landlord_without_neighbours_charges_rent_and_traffic_of_a_tenant_behind_nat(lab: Lab) -> None:
    both = {"name": "both", "price": "1 sat", "rent": "24000 sat", "rate": "1 MB"}
    market = open_market(
        lab, LANDLORD_GRPC="203.0.113.1:50051", LANDLORD_HTTPS="none", LANDLORD_OFFERS=[{"name": "time"}, both]
    )
    counter = market.third.counter("wan0")
    market.done("trust", "let", "203.0.113.1", str(market.daemon.json("status")["identity"]), "--face", "grpc")
    market.done("new", "let", "--offer", "both", "--yes", "--up")
    for address in (V4, V6):
        await_until(lambda address=address: market.reached(address), what=f"{address} answers")  # type: ignore[misc]

    def row() -> dict[str, Any]:
        (found,) = market.daemon.json("rentals")
        return dict(found)

    await_charged_as_counted(counter, row)
    found = row()
    used = found["used_to_bytes"] + found["used_from_bytes"]
    assert found["price_msat_per_gib"] == 1000 << 20 and found["rent_msat_per_month"] == 24_000_000
    rent_msat = found["charged_msat"] - int(used * PRICE)
    assert 0 < rent_msat < 600 * 24_000_000 / 2_629_800, "some seconds or minutes of rent"
    assert found["paid_msat"] == found["activation_fee_msat"] + found["charged_msat"] + found["credit_msat"]
    assert "NGP_GATE" not in market.landlord.sh("iptables", "-t", "security", "-S", "FORWARD"), "there is no mesh"
    for command in ("iptables", "ip6tables"):
        market.landlord.sh(command, "-t", "security", "-F", "FORWARD")
        await_until(
            lambda command=command: "NGP_TO_TENANT" in market.landlord.sh(command, "-t", "security", "-S", "FORWARD"),  # type: ignore[misc]
            what="the gate is back",
        )
