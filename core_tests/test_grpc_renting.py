"""A tenant behind NAT rents over gRPC: it chooses an offer, proves its key, changes it, and any side may be killed."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from core_tests.lab import Lab
from core_tests.market import V4, Market, open_market
from core_tests.shell import await_until
from ngp import node_key
from ngp.errors import ExitCode
from ngp.tenant.home import Home, Tunnel

OFFERS = [
    {"name": "address", "ipv4": 32, "ipv6": "none"},
    {"name": "both", "ipv4": 32, "ipv6": 64, "activation_fee": "1000 sat"},
]


@pytest.fixture
def market(lab: Lab) -> Market:
    return open_market(lab, LANDLORD_GRPC="203.0.113.1:50051", LANDLORD_HTTPS="none", LANDLORD_OFFERS=OFFERS)


def pin_of(market: Market) -> str:
    lines = market.daemon.json("check", "--config", str(market.daemon.config))
    (line,) = [one for one in lines if one["name"] == "grpc"]
    return str(line["found"].rpartition("pin ")[2])


def trust(market: Market, pin: str = "") -> None:
    market.done("trust", "let", "203.0.113.1", pin or pin_of(market), "--face", "grpc")


def tunnel_of(market: Market) -> Tunnel:
    found = Home(market.tenant.folder / "state" / "tenant").tunnel(None)
    assert found is not None
    return found


def test_an_offer_is_rented_by_name_and_its_key_changed_while_it_is_in_use(market: Market) -> None:
    trust(market)
    assert "address" in market.done("offers") and "both" in market.done("offers")
    unknown = market.rent("new", "let", "--offer", "none", "--yes")
    assert unknown.returncode == ExitCode.OTHER and "there are address, both" in unknown.stderr
    market.done("new", "let", "--offer", "both", "--name", "shop", "--yes", "--up")
    row = market.status()
    assert (row["face"], row["offer"], row["state"]) == ("grpc", "both", "active")
    assert row["networks"] == ["198.51.100.1/32", "2001:db8:100::/64"] and row["activation_fee_msat"] == 1_000_000
    await_until(lambda: market.reached(V4), what="the rented address answers")

    before = tunnel_of(market)
    market.done("rekey", "shop")
    after = tunnel_of(market)
    assert after.public_key != before.public_key and after.interface == before.interface
    assert market.tenant.sh("wg", "show", after.interface, "public-key").strip() == after.public_key
    await_until(lambda: market.reached(V4), timeout_s=30, what="the rented address answers with the new key")
    (let,) = market.daemon.json("rentals")
    assert (let["wireguard_key"], let["face"], let["payments"]) == (after.public_key, "grpc", 1)

    once = market.rent("autopay", "--once")  # proven by an echo through the tunnel
    assert once.returncode == 0, once.stderr
    market.done("down", "shop")
    market.done("up", "shop")
    await_until(lambda: market.reached(V4), timeout_s=30, what="the rented address answers from its file")


def test_a_landlord_that_was_killed_serves_on_and_an_impostor_is_refused(market: Market) -> None:
    trust(market)
    market.done("new", "let", "--yes")
    market.daemon.kill9()
    assert market.rent("status").returncode == ExitCode.OTHER
    market.daemon.start()
    assert market.status()["payments"] == 1
    other = market.rent("trust", "other", "203.0.113.1", "ab" * 32, "--face", "grpc")
    assert other.returncode == ExitCode.CONFIGURATION and "somebody else answers" in other.stderr
    market.done("add", V4, "--amount", "500", "--yes")
    assert market.status()["payments"] == 2


def test_a_landlord_is_known_by_its_payment_nodes_key(market: Market) -> None:
    node = node_key.load_or_make(market.daemon.state_dir / "sandbox.key").public_key.format().hex()
    await_until(
        lambda: market.rent("trust", "let", "203.0.113.1", node, "--face", "grpc").returncode == 0,
        what="the node has signed the identity",
    )
    market.done("new", "let", "--yes")
    assert market.status()["payments"] == 1


@pytest.mark.first
def test_a_change_of_the_key_that_is_killed_at_either_end_loses_no_rental(
    market: Market, request: pytest.FixtureRequest
) -> None:
    """The tenant's command or the landlord's daemon is killed at some moment; run again, the command ends well."""
    rounds = request.config.getoption("--rounds") if request.config.getoption("--long") else 6
    chance = random.Random(11)
    trust(market)
    market.done("new", "let", "--name", "shop", "--yes")
    before = market.status()
    for number in range(rounds):
        process = market.tenant.popen(*market.command("rekey", "shop"), stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.2, 1.2))
        if number % 2:
            process.kill()
        else:
            market.daemon.kill9()
            market.daemon.start()
        process.wait()
        market.done("rekey", "shop")
        row, tunnel = market.status(), tunnel_of(market)
        assert (row["networks"], row["payments"]) == (before["networks"], 1)
        (let,) = market.daemon.json("rentals")
        assert let["wireguard_key"] == tunnel.public_key and not tunnel.next_private_key
        conf = Path(Home(market.tenant.folder / "state" / "tenant").conf_path(tunnel)).read_text()
        assert f"PrivateKey = {tunnel.private_key}\n" in conf
