"""First payments of rentals over two real LND nodes: held until the tunnel serves the tenant, and else given back."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from core_tests.daemon import ngp_command
from core_tests.lab import Lab
from core_tests.lightning.build import programs
from core_tests.lightning.network import LightningNetwork
from core_tests.lightning.nodes import Lnd
from core_tests.lightning.trade import backbone, node_settings
from core_tests.renting import NET_CONF, TUNNEL, Renting, accounted_msat, open_renting, wireguard_go_of
from core_tests.shell import await_until
from core_tests.staticwire import HeldToTheRules, Session, Tenant, wg_text
from ngp.modules.payment.lnd_client import TO_HOLD

pytestmark = pytest.mark.first
FIRST_SAT = 49_000
PORT, GRPC_PORT = 51820, 10326
OTHER_POOLS = ["198.51.100.8/29", "2001:db8:200::/61"]
_TAKE_PORT = f"""
import socket, time
while True:
    try:
        taken = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET6, socket.AF_INET)]
        taken[0].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for one in taken:
            one.bind(("", {PORT}))
        break
    except OSError:
        time.sleep(0.001)
print("taken", flush=True)
time.sleep(600)
"""


@dataclass
class Payment:
    """A payment on its way. Attributes: bolt11: its invoice."""

    bolt11: str
    command: Future[subprocess.CompletedProcess[str]]

    def outcome(self) -> str:
        """Wait for the end; returns SUCCEEDED, or what the payer's node says."""
        said = self.command.result(120).stdout
        return "SUCCEEDED" if '"SUCCEEDED"' in said else said


@dataclass
class Paying:
    """A landlord and its tenants' node. Attributes: earning: the landlord's node."""

    renting: Renting
    earning: Lnd
    spending: Lnd
    conf: dict[str, object]
    payers: ThreadPoolExecutor

    @contextmanager
    def tenant(self) -> Iterator[Tenant]:
        """Give a new tenant, that holds the landlord to the published client's rules."""
        session = Session("203.0.113.1", 443, connect=self.renting.outside.connect)
        yield HeldToTheRules(session)
        session.close()

    def pay(self, bolt11: str) -> Payment:
        words = ("payinvoice", "--force", "--json", "--timeout", "60s", bolt11)
        return Payment(bolt11, self.payers.submit(self.spending.control, *words, timeout_s=120))

    def state(self, bolt11: str) -> str:
        """Return the state of an invoice at the landlord's node."""
        (found,) = [one for one in self.earning.invoices() if one["payment_request"] == bolt11]
        return str(found["state"])

    def await_state(self, bolt11: str, state: str) -> None:
        await_until(lambda: self.state(bolt11) == state, 60, f"an invoice that is {state}")

    def peers(self) -> str:
        return self.renting.router.sh("wg", "show", TUNNEL, "allowed-ips")

    def check_counted_once(self, tenant: Tenant, received_msat: int) -> dict[str, Any]:
        """Assert that the first payment arrived at node and ledger once. Args: received_msat: the node's sum before."""
        row = self.renting.row(tenant)
        assert (row["state"], row["payments"], row["paid_msat"]) == ("active", 1, FIRST_SAT * 1000)
        assert self.earning.received_msat() == received_msat + FIRST_SAT * 1000
        assert wg_text(tenant.key) in self.peers()
        return row


@pytest.fixture
def paying(lab: Lab) -> Iterator[Paying]:
    renting = open_renting(lab, lab.folder / "sandbox", start=False)
    hosts = {"tenant": renting.outside, "landlord": renting.router}
    places, chain = backbone(lab, hosts)
    with LightningNetwork(programs(), lab.folder / "lightning", places, chain) as network:
        network.open("tenant", "landlord")
        network.await_payable("tenant", "landlord")
        earning, spending = network.node("landlord"), network.node("tenant")
        conf = {**NET_CONF, **node_settings(earning, besides=TO_HOLD), "LANDLORD_HOLD": "yes"}
        renting.daemon.configure(conf)
        renting.daemon.start()
        with ThreadPoolExecutor() as payers:
            yield Paying(renting, earning, spending, conf, payers)


def test_a_first_payment_is_taken_only_when_the_tenant_is_served(paying: Paying) -> None:
    """One tenant is served. The next one's payment goes back, as wireguard-go is gone and can't be started."""
    before_msat, daemon = paying.earning.received_msat(), paying.renting.daemon
    with paying.tenant() as tenant:
        asked = tenant.add_credit(1000)["Invoice"]
        payment = paying.pay(asked)
        assert tenant.status(asked)["unpaid_invoice"] is None, "the published client waits like this"
        assert payment.outcome() == "SUCCEEDED"
        paying.check_counted_once(tenant, before_msat)
        assert tenant.configuration()["addresses"]

    with paying.tenant() as tenant:
        asked = tenant.add_credit(1000)["Invoice"]
        _without_tunnel(paying, asked)
        assert paying.state(asked) == "CANCELED" and wg_text(tenant.key) not in paying.peers()
        daemon.await_logged("49000 sat are given back")


def _without_tunnel(paying: Paying, asked: str) -> None:
    """Pay while wireguard-go is killed and another program has its port, then give the port back."""
    router, process = paying.renting.router, wireguard_go_of(TUNNEL)
    assert process is not None
    paying.renting.daemon.suspend()  # else a daemon that is quicker than the other program has the port again
    taker = router.popen("python3", "-c", _TAKE_PORT, stdout=subprocess.PIPE)
    router.sh("kill", "-9", str(process))
    assert taker.stdout is not None and taker.stdout.readline() == "taken\n"
    paying.renting.daemon.resume()
    assert "SUCCEEDED" not in paying.pay(asked).outcome()
    taker.kill()
    taker.wait()
    paying.renting.daemon.await_logged("the tunnel has all changes now")


def test_a_landlord_killed_while_it_holds_a_payment_takes_it_once(paying: Paying) -> None:
    daemon = paying.renting.daemon
    before_msat = paying.earning.received_msat()
    with paying.tenant() as tenant:
        asked = tenant.add_credit(1000)["Invoice"]
        daemon.kill9()
        payment = paying.pay(asked)
        paying.await_state(asked, "ACCEPTED")
        assert wg_text(tenant.key) not in paying.peers()
        daemon.start()
        assert payment.outcome() == "SUCCEEDED"
        await_until(lambda: paying.renting.row(tenant)["payments"] == 1, 30, "a payment that counts")
        paying.check_counted_once(tenant, before_msat)
    kill_while_paying(paying, rounds=3)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_landlord_killed_many_times_while_it_is_paid(paying: Paying, pytestconfig: pytest.Config) -> None:
    kill_while_paying(paying, int(pytestconfig.getoption("--rounds")))


def kill_while_paying(paying: Paying, rounds: int) -> None:
    """Kill the daemon some time after each first payment has begun, and once more when it is over."""
    daemon, chance = paying.renting.daemon, random.Random(1)
    for number in range(rounds):
        before_msat = paying.earning.received_msat()
        with paying.tenant() as tenant:
            asked = tenant.add_credit(1000)["Invoice"]
            payment = paying.pay(asked)
            time.sleep(chance.uniform(0, 0.6))
            daemon.kill9()
            daemon.start()
            assert payment.outcome() == "SUCCEEDED", number
            await_until(lambda tenant=tenant: paying.renting.row(tenant)["payments"], 30, "a payment that counts")  # type: ignore[misc]
            daemon.kill9()
            daemon.start()
            rental = paying.check_counted_once(tenant, before_msat)["id"]
        daemon.ask("rentals release", rental=rental)


def test_a_payment_that_waits_for_networks_which_are_let_no_longer_goes_back(paying: Paying) -> None:
    daemon = paying.renting.daemon
    before_msat = paying.earning.received_msat()
    with paying.tenant() as tenant:
        asked = tenant.add_credit(1000)["Invoice"]
        daemon.suspend()
        payment = paying.pay(asked)
        paying.await_state(asked, "ACCEPTED")
        daemon.kill9()
        daemon.configure({**paying.conf, "LANDLORD_POOLS": OTHER_POOLS})
        daemon.start()
        assert "SUCCEEDED" not in payment.outcome()
        assert paying.state(asked) == "CANCELED" and paying.earning.received_msat() == before_msat
        daemon.await_logged("no longer lets its networks")
        tenant.session.close()
        again = tenant.add_credit(1000)["Invoice"]
        assert paying.pay(again).outcome() == "SUCCEEDED"
        paying.check_counted_once(tenant, before_msat)


def test_what_is_left_of_a_rental_that_the_operator_ended_comes_back_over_lightning(paying: Paying) -> None:
    """Rented by gRPC with a held payment from a landlord that is known by its node's key; released; the credit is
    fetched to the tenant's node, once."""
    daemon, tenant = paying.renting.daemon, paying.renting.outside
    daemon.stop()
    daemon.configure({**paying.conf, "LANDLORD_GRPC": f"203.0.113.1:{GRPC_PORT}"})
    daemon.start()
    own = {"MESH_INTERFACES": "mesh0", "BUDGET_HOUR": "200000 sat", **node_settings(paying.spending)}
    (tenant.folder / "net.conf").write_text(yaml.safe_dump(own))
    place = ["--config", str(tenant.folder / "net.conf"), "--state-dir", str(tenant.folder / "tenant")]

    def rent(*words: str) -> str:
        done = tenant.run(*ngp_command(), "rent", *words, *place, timeout_s=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    trust = ("trust", "landlord", f"203.0.113.1:{GRPC_PORT}", paying.earning.key(), "--face", "grpc")
    words = (*ngp_command(), "rent", *trust, *place)
    await_until(lambda: tenant.run(*words).returncode == 0, 30, "the landlord's node has signed for its identity")
    rent("new", "landlord", "--name", "shop", "--yes")
    (row,) = daemon.json("rentals")
    assert (row["state"], row["face"], row["payments"]) == ("active", "grpc", 1)
    assert daemon.cli("rentals", "release", row["id"], "--yes").returncode == 0
    (told,) = json.loads(rent("status", "--json"))
    left_sat = told["fetchable_msat"] // 1000
    assert told["state"] == "released" and 990 <= left_sat <= 1000
    before_msat = paying.spending.received_msat()
    assert f"{left_sat} sat have arrived" in rent("refund", "shop")
    assert paying.spending.received_msat() == before_msat + left_sat * 1000
    (row,) = daemon.json("rentals", "--all")
    assert row["refunded_msat"] == left_sat * 1000
    assert row["paid_msat"] == accounted_msat(row)
    again = tenant.run(*ngp_command(), "rent", "refund", "shop", *place)
    assert again.returncode == 2 and "nothing of shop can be fetched" in again.stderr


def test_a_node_that_holds_none_is_refused_by_name(paying: Paying) -> None:
    daemon = paying.renting.daemon
    daemon.stop()
    daemon.configure({**paying.conf, **node_settings(paying.earning)})
    done = daemon.try_start()
    assert done.returncode == 5 and "LANDLORD_HOLD is yes" in done.stderr and "AddHoldInvoice" in done.stderr
    checked = daemon.cli("check", "--json", "--config", str(daemon.config))
    (line,) = [one for one in json.loads(checked.stdout) if "LANDLORD_HOLD" in one["found"]]
    assert checked.returncode == 5 and not line["ok"] and "LANDLORD_HOLD: auto, or no" in line["remedy"]
    daemon.configure({**paying.conf, **node_settings(paying.earning), "LANDLORD_HOLD": "auto"})
    daemon.start()
    with paying.tenant() as tenant:
        asked = tenant.add_credit(1000)["Invoice"]
        assert paying.pay(asked).outcome() == "SUCCEEDED"
        assert tenant.status(asked)["unpaid_invoice"] is None
