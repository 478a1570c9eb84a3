"""A neighbour rents over the mesh link, by `ngp rent`, and uses its addresses while the gates of both are on."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time

import pytest

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.lab import Lab
from core_tests.market import V4, V6
from core_tests.mesh_market import LANDLORD, TENANT, THIRD, Mesh, open_mesh
from core_tests.renting import accounted_msat
from core_tests.shell import await_until
from ngp.errors import ExitCode
from ngp.tenant.books import BooksFile
from ngp.tenant.home import Home


@pytest.fixture
def mesh(lab: Lab) -> Mesh:
    return open_mesh(lab)


@pytest.fixture
def rounds(pytestconfig: pytest.Config) -> int:
    """Say how often something is killed."""
    return int(pytestconfig.getoption("--rounds")) if pytestconfig.getoption("--long") else 3


def test_a_neighbour_rents_and_its_tunnel_is_no_traffic_of_the_mesh(mesh: Mesh) -> None:
    """What goes through the tunnel is paid by the rent alone; what goes beside it is bought as always, once."""
    mesh.trust()
    (offer,) = json.loads(mesh.done("offers", "--json"))
    assert (offer["name"], offer["networks"], offer["free"]) == ("default", ["IPv4 /32", "IPv6 /64"], 7)
    declined = mesh.rent("new", "let")
    assert declined.returncode == ExitCode.USAGE and "nothing was done" in declined.stderr
    await_until(lambda: mesh.lets.json("rentals", "--all") == [], timeout_s=5, what="the addresses are free at once")
    mesh.done("new", "let", "--name", "shop", "--yes", "--up")
    row = mesh.status()
    assert row["networks"] == [f"{V4}/32", "2001:db8:100::/64"]
    assert (row["state"], row["face"], row["offer"], row["peer"]) == ("active", "mesh", "default", "let")
    (us,) = [one["neighbour"] for one in mesh.lets.json("neighbours")]
    assert (mesh.let()["peer"], mesh.let()["face"]) == (us, "mesh")
    mesh.await_reached()
    for source in (V4, V6):
        destination = THIRD if source == V4 else "2001:db8:2::3"
        mesh.tenant.sh("ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", "-I", source, destination)
    assert mesh.traffic_contracts() == [], "neither gate saw anything that is for sale"

    assert traffic.ping(mesh.tenant, THIRD, count=3, wait_s=3).received
    sold, bought = (
        [one for one in mesh.traffic_contracts() if one["role"] == role and one["destination"] == f"{THIRD}/32"]
        for role in ("server", "client")
    )
    assert len(sold) == len(bought) == 1
    before = mesh.let()
    mesh.tenant.sh("ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", "-I", V4, THIRD)
    after = mesh.let()  # rent is charged as time goes by, so each sum is from one reading
    sums = [row["charged_msat"] + row["credit_msat"] for row in (before, after)]
    assert sums[0] == sums[1], "the rental pays by time alone"
    used = [one["used_to_bytes"] + one["used_from_bytes"] for one in mesh.traffic_contracts()]
    assert max(used) <= 2 * 3 * 84, "the contract carried the pings beside the tunnel and no others"

    once = mesh.rent("autopay", "--once")  # proven by an echo through the tunnel
    assert once.returncode == 0, once.stderr
    row, let = mesh.status(), mesh.let()
    assert row["proven"] is True and row["payments"] == let["payments"] == 3
    assert (row["paid_msat"], row["activation_fee_msat"]) == (let["paid_msat"], let["activation_fee_msat"])
    mesh.done("down", "shop")
    assert not mesh.reached(V4)
    mesh.done("conf", "shop")
    mesh.done("up", "shop")
    mesh.await_reached()


def test_either_side_may_be_killed_at_any_time(mesh: Mesh) -> None:
    mesh.trust()
    mesh.done("new", "let", "--yes", "--up")
    mesh.await_reached()
    mesh.lets.kill9()
    assert mesh.reached(V4), "the tunnel goes on without the daemon"
    mesh.lets.start()
    await_until(lambda: mesh.rent("status").returncode == 0, what="the landlord is asked again")
    assert (mesh.status()["payments"], mesh.let()["payments"]) == (1, 1)
    mesh.rents.kill9()
    alone = mesh.rent("status")
    assert alone.returncode == ExitCode.OTHER and "can't be asked: ngp isn't running" in alone.stderr
    assert mesh.reached(V4)
    mesh.rents.start()
    await_until(lambda: mesh.rent("status").returncode == 0, what="our own daemon asks again")
    mesh.done("add", V4, "--amount", "500", "--yes")
    assert (mesh.status()["payments"], mesh.let()["payments"]) == (2, 2)
    before = mesh.let()
    mesh.done("rekey", V4)
    after, row = mesh.let(), mesh.status()
    assert before["wireguard_key"] != after["wireguard_key"] == row["wireguard_key"]
    assert (after["id"], after["networks"], row["payments"]) == (before["id"], before["networks"], 2)


def test_who_lets_nothing_to_us_says_so_and_nothing_is_left_behind(mesh: Mesh) -> None:
    mesh.trust()
    mesh.lets.reload(LANDLORD | {"LANDLORD_MESH": False})
    for words in (("offers",), ("new", "let", "--yes"), ("trust", "again", mesh.key())):
        refused = mesh.rent(*words)
        assert refused.returncode == ExitCode.OTHER and "lets nothing to this router over the mesh" in refused.stderr
    mesh.lets.reload(LANDLORD)
    (us,) = [one["neighbour"] for one in mesh.lets.json("neighbours")]
    mesh.lets.cli("block", us)
    assert "lets nothing to this router" in mesh.rent("new", "let", "--yes").stderr
    mesh.lets.cli("unblock", us)
    assert mesh.rent("trust", "nobody", "ab" * 32).returncode == ExitCode.OTHER
    assert mesh.rent("trust", "nobody", "xyz").returncode == ExitCode.USAGE
    assert json.loads(mesh.done("status", "--json")) == [] == mesh.lets.json("rentals", "--all")
    assert [one["name"] for one in json.loads(mesh.done("landlords", "--json"))] == ["let"]
    mesh.lets.kill9()
    silent = mesh.rent("offers")
    assert silent.returncode == ExitCode.OTHER and "went away before it answered" in silent.stderr


@pytest.mark.first
@pytest.mark.timeout(3600)
def test_a_payment_is_made_and_counted_once_whoever_is_killed_meanwhile(mesh: Mesh, rounds: int) -> None:
    """Each round lets the target rise by one payment; at some moment of it a daemon or AutoPay is killed."""
    chance = random.Random(11)
    mesh.trust()
    mesh.done("new", "let", "--yes", "--up")
    mesh.await_reached()
    target_sat = 1000
    for number in range(rounds):
        target_sat += 1000
        limits = {"TENANT_TARGET_CREDIT": f"{target_sat} sat", "TENANT_TARGET_TIME": "3 months"}
        mesh.rents.configure(TENANT | limits | {"BUDGET_DAY": "300000 sat", "TENANT_PAYMENT_MIN": "500 sat"})
        keeps = mesh.tenant.popen(*mesh.command("autopay"), stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.5, 2.5))
        _kill((mesh.lets, mesh.rents, keeps)[number % 3], chance)
        keeps.send_signal(signal.SIGTERM)
        keeps.wait()
        await_until(lambda: mesh.rent("autopay", "--once").returncode == 0, timeout_s=90, what="what is due is paid")
        row = mesh.assert_paid_once(mesh.let(), f"round {number}")
        assert -1000 < target_sat * 1000 - row["credit_msat"] < 501_000, f"round {number}"


@pytest.mark.first
@pytest.mark.timeout(3600)
def test_nothing_is_let_or_paid_twice_whoever_is_killed_while_a_neighbour_rents(mesh: Mesh, rounds: int) -> None:
    """In each round a daemon or `ngp rent new` is killed; what was begun is finished, and then given back."""
    chance = random.Random(12)
    mesh.lets.reload(LANDLORD | {"LANDLORD_ACTIVATION_FEE": "100 sat"})
    budgets = {f"BUDGET_{time}": "300000 sat" for time in ("HOUR", "DAY", "TOTAL")}
    mesh.rents.configure(TENANT | budgets | {"TENANT_TARGET_CREDIT": "1000 sat"})
    mesh.trust()
    rented = 0
    for number in range(rounds):
        name = f"r{number}"
        renting = mesh.tenant.popen(*mesh.command("new", "let", "--name", name, "--yes"), stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.2, 2.5))
        _kill((mesh.lets, mesh.rents, renting)[number % 3], chance)
        renting.wait()
        await_until(lambda: mesh.rent("offers").returncode == 0, what="the landlord is asked again")
        kept = [one.name for one in Home(mesh.rents.state_dir / "tenant").tunnels()]
        assert kept in ([], [name])
        if kept:
            await_until(lambda: mesh.rent("autopay", "--once").returncode == 0, timeout_s=90, what="it is paid")
        rented += len(kept)
        let = [one for one in mesh.lets.json("rentals") if one["state"] != "pending"]
        assert [one["payments"] for one in let] == [1] * len(kept), f"round {number}"
        networks = [network for one in mesh.lets.json("rentals") for network in one["networks"]]
        assert len(networks) == len(set(networks)), f"round {number}"
        books = [BooksFile(path).read() for path in (mesh.rents.state_dir / "tenant").glob("TunnelState*.yaml")]
        spent = sum(order.amount_msat for one in books for order in one.sent if order.state == "paid")
        every = [one for one in mesh.lets.json("rentals", "--all") if one["payments"]]
        assert spent == sum(map(accounted_msat, every)) == sum(one["paid_msat"] for one in every), f"round {number}"
        assert len(every) == rented
        if kept:
            assert mesh.lets.cli("rentals", "release", let[0]["id"], "--yes").returncode == 0
            mesh.done("forget", name, "--yes")


def _kill(victim: Daemon | subprocess.Popen[str], chance: random.Random) -> None:
    """Kill a daemon, and start it again, or a command."""
    if not isinstance(victim, Daemon):
        victim.kill()
        return
    victim.kill9()
    time.sleep(chance.uniform(0, 0.5))
    victim.start()
