"""`ngp rent` with a node's sandbox: landlords, offers, rentals, automatic payments."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ngp import cli
from ngp.cli.place import Place
from ngp.cli.tenant_service import proof_of
from ngp.core.tenant.account import Account, Order
from ngp.core.tenant.answers import Status, read_status
from ngp.core.tenant.configuration import read_configuration
from ngp.errors import ExitCode, KernelError, LandlordError, RunningError
from ngp.tenant import autopay, interface, policy, renting
from ngp.tenant.autopay import Kept
from ngp.tenant.books import Books, BooksFile
from ngp.tenant.home import Home, Tunnel
from ngp.tenant.https import LandlordPlace
from ngp.tenant.rows import rental_row, why_not_served
from tests.tenant.keeper import FIRST_SAT, Told
from tests.tenant.stand_in import StandIn


@dataclass
class Router:
    """A router whose operator types `ngp rent`."""

    folder: Path
    landlord: StandIn

    def rent(self, *words: str) -> subprocess.CompletedProcess[str]:
        said, complaint = io.StringIO(), io.StringIO()
        place = ["--config", str(self.folder / "net.conf"), "--state-dir", str(self.folder / "node")]
        typed = ["rent", *words, *place]
        with redirect_stdout(said), redirect_stderr(complaint), mock.patch("sys.stdin", io.StringIO()):
            code = cli.run(typed)
        return subprocess.CompletedProcess(words, code, said.getvalue(), complaint.getvalue())

    def trust(self, name: str = "example") -> subprocess.CompletedProcess[str]:
        return self.rent("trust", name, self.landlord.host, self.landlord.pin)

    @property
    def tenant(self) -> Path:
        return self.folder / "node" / "tenant"


@pytest.fixture
def router(keeper: Any, quiet_log: None, tmp_path: Path) -> Iterator[Router]:
    """The landlord takes the payments of the sandbox node in the folder `node` (see `keeper`)."""
    (tmp_path / "net.conf").write_text("BUDGET_HOUR: 110000 sat\n")  # a machine that only rents has no mesh
    with mock.patch("ngp.cli.tenant_service.proof_of", lambda *_: Told()):
        yield Router(tmp_path, keeper.landlord)


def test_a_landlord_is_tried_before_it_is_trusted(router: Router) -> None:
    assert router.trust().returncode == 0
    (row,) = json.loads(router.rent("landlords", "--json").stdout)
    assert (row["name"], row["host"], row["pin"]) == ("example", router.landlord.host, router.landlord.pin)
    router.landlord.pin = "00" * 32
    refused = router.trust("other")
    assert refused.returncode == ExitCode.CONFIGURATION and "say --face grpc" in refused.stderr
    assert len(json.loads(router.rent("landlords", "--json").stdout)) == 1
    assert router.rent("distrust", "other").returncode == ExitCode.USAGE
    assert router.rent("distrust", "example").returncode == 0
    assert json.loads(router.rent("landlords", "--json").stdout) == []


def test_offers_say_which_limit_refuses_them(router: Router) -> None:
    router.trust()
    (row,) = json.loads(router.rent("offers", "--json").stdout)
    assert row["rent_msat_per_month"] == 24_000_000 and row["refused_by"] == []
    with (router.folder / "net.conf").open("a") as file:
        file.write("TENANT_RENT_MAX: 23999 sat\n")
    (row,) = json.loads(router.rent("offers", "example", "--json").stdout)
    assert "TENANT_RENT_MAX" in row["refused_by"][0]
    assert "TENANT_RENT_MAX" in router.rent("offers").stdout


def test_rents_pays_and_shows(router: Router) -> None:
    router.trust()
    done = router.rent("new", "example", "--name", "shop", "--yes")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.count("open to the whole internet") == 1
    assert "regtest: not real money" in done.stdout and "All amounts are not real money" in done.stdout
    assert "All amounts are not real money" in router.rent("offers").stdout
    assert "All amounts are not real money" in router.rent("status").stdout
    (row,) = json.loads(router.rent("status", "--json").stdout)
    assert (row["name"], row["state"], row["peer"]) == ("shop", "active", "example")
    assert row["paid_msat"] == FIRST_SAT * 1000 and row["proven"] is True
    assert router.rent("add", "shop", "--amount", "700", "--yes").returncode == 0
    (books,) = (BooksFile(one).read() for one in router.tenant.glob("TunnelState*.yaml"))
    assert books.bought_msat == 0 < books.bought_since_s, "what was paid by hand doesn't count against AutoPay"
    for name in ("shop", row["id"], row["wireguard_key"][:5], "192.0.2.7", "2001:db8:7::abc"):
        (again,) = json.loads(router.rent("status", name, "--json").stdout)
        assert again["payments"] == 2, name
    assert router.rent("status", "192.0.2.8").returncode == ExitCode.USAGE


def test_nothing_is_paid_unless_somebody_agrees(router: Router) -> None:
    router.trust()
    done = router.rent("new", "example")
    assert done.returncode == ExitCode.USAGE and "--yes" in done.stderr and "49000 sat" in done.stdout
    assert json.loads(router.rent("status", "--json").stdout) == []


def test_an_invoice_for_another_wallet(router: Router) -> None:
    router.trust()
    router.landlord.is_paid = lambda _hash: True
    done = router.rent("new", "example", "--no-pay")
    assert done.returncode == 0 and "lnbcrt" in done.stdout and "█" in done.stdout
    (row,) = json.loads(router.rent("status", "192.0.2.7", "--json").stdout)
    assert row["payments"] == 1


def test_the_file_keeps_the_hosts_own_route(router: Router) -> None:
    router.trust()
    assert router.rent("new", "example", "--yes").returncode == 0
    (conf,) = (router.tenant / "WireGuardConfigFiles").iterdir()
    lines = conf.read_text().splitlines()
    assert "Table = off" in lines
    rules = [line.partition("rule add ")[2] for line in lines if line.startswith("PostUp = ip") and "rule add" in line]
    for word in ("from 192.0.2.7/32", "from 2001:db8:7::/64", "to 192.0.2.7/32", "to 2001:db8:7::/64"):
        assert sum(word in rule for rule in rules) == 1, word
    undone = [line.partition("rule del ")[2] for line in lines if line.startswith("PreDown")]
    assert [f"{line} 2>/dev/null || :" for line in rules] == undone
    subprocess.run(["wg-quick", "strip", str(conf)], capture_output=True, check=True)


def test_a_landlord_that_lets_this_hosts_own_network_gets_none_of_its_packets(router: Router) -> None:
    assert ip_address("127.0.0.1") in interface.own_addresses(but="none")
    router.trust()
    with mock.patch("ngp.tenant.interface.own_addresses", lambda but: [ip_address("2001:db8:7::9")]):
        done = router.rent("new", "example", "--yes")
    assert done.returncode == ExitCode.OTHER and "this host's already" in done.stderr
    assert not (router.tenant / "WireGuardConfigFiles").exists()


def test_a_limit_does_not_bind_the_user_but_the_budget_does(router: Router) -> None:
    router.trust()
    with (router.folder / "net.conf").open("a") as file:
        file.write("TENANT_ACTIVATION_MAX: 1 sat\nBUDGET_DAY: 60000 sat\n")
    assert router.rent("new", "example", "--yes").returncode == 0
    done = router.rent("add", "192.0.2.7", "--yes", "--amount", "20000")
    assert done.returncode == ExitCode.PAYMENT and "raise BUDGET_DAY in net.conf, or pay later" in done.stderr


def test_nothing_is_asked_of_the_landlord_that_cannot_be_paid(router: Router) -> None:
    """Not over the budget, not with a net.conf that is refused, not without a node; the advice is for `ngp rent`."""
    router.trust()
    net_conf = router.folder / "net.conf"
    for text, code, said in (
        ("MESH_INTERFACES: mesh0\nBUDGET_HOUR: 40000 sat\n", ExitCode.PAYMENT, "BUDGET_HOUR"),
        ("MESH_INTERFACES: mesh0\nBUDGET_HOUR: much\n", ExitCode.CONFIGURATION, "BUDGET_HOUR"),
        (None, ExitCode.CONFIGURATION, "LND_MACAROON, or give the node's URI to `sudo ngp lightning connect`"),
        (None, ExitCode.CONFIGURATION, "another wallet pay (--no-pay)"),
    ):
        net_conf.unlink(missing_ok=True) if text is None else net_conf.write_text(text)
        with mock.patch.object(Place, "has_config", text is not None):
            done = router.rent("new", "example", "--name", "shop", "--yes")
        assert done.returncode == code and said in done.stderr and "Config.yaml" not in done.stderr, done.stderr
    assert not router.landlord.rentals, "no invoice was asked for"
    net_conf.write_text("MESH_INTERFACES: mesh0\nBUDGET_HOUR: 110000 sat\n")
    assert router.rent("new", "example", "--name", "shop", "--yes").returncode == 0, "the name is free"
    net_conf.write_text("MESH_INTERFACES: mesh0\nBUDGET_HOUR: 49500 sat\n")
    asked = len(router.landlord.calls)
    assert router.rent("add", "shop", "--amount", "1000", "--yes").returncode == ExitCode.PAYMENT
    assert "AddCredit" not in [verb for verb, _ in router.landlord.calls[asked:]]


def test_a_landlords_name_servers_are_used_only_by_the_tunnel_of_all_traffic(router: Router) -> None:
    router.trust()
    router.landlord.twists["getconf"] = lambda plain: plain | {"dns": ["192.0.2.53"]}
    used = []

    def wg_quick(deed: str, path: Path) -> None:
        used.append((deed, "\nDNS = 192.0.2.53\n" in path.read_text()))

    with mock.patch("ngp.tenant.interface.can_set_dns", lambda: True):
        router.rent("new", "example", "--name", "one", "--yes")
        (conf,) = (router.tenant / "WireGuardConfigFiles").iterdir()
        assert "\nDNS" not in conf.read_text() and "# DNS = 192.0.2.53" in conf.read_text()
        with mock.patch("ngp.tenant.interface._wg_quick", wg_quick):
            interface.bring_up(conf, uses_dns=False)
            interface.bring_up(conf, uses_dns=True)
            router.rent("conf", "one")
            with mock.patch("ngp.tenant.interface.is_up", lambda _: True):
                interface.bring_up(conf, uses_dns=False)
    assert used == [("up", False), ("up", True), ("down", True), ("up", False)]


@pytest.mark.parametrize("host", ["127.0.0.1", "192.168.1.1", "169.254.1.1", "::1", "fe80::1", "100.64.0.1", "ff02::1"])
def test_a_landlord_elsewhere_has_no_end_of_a_tunnel_in_our_surroundings(
    router: Router, tmp_path: Path, host: str
) -> None:
    home = Home(tmp_path / "elsewhere")
    tunnel = home.add_tunnel("one", LandlordPlace("9.9.9.9", 443, "00" * 32))
    peer = {"public_key": tunnel.public_key, "endpoint_host": host, "endpoint_port": 1, "allowed_ips": ["::/0"]}
    answer = {"addresses": ["2606:4700::9"], "peers": [peer]}
    landlord = mock.Mock(place=home.landlord(tunnel), configuration=lambda _: read_configuration(answer))
    with pytest.raises(LandlordError, match="tunnel ends at .* surroundings"):
        renting.keep_configuration(home, landlord, tunnel, None)
    assert not home.conf_path(tunnel).exists()
    landlord.place = LandlordPlace("192.168.1.1", 443, "00" * 32)
    assert renting.keep_configuration(home, landlord, tunnel, None).path.exists()


@pytest.mark.parametrize("network", ["192.168.0.0/16", "10.0.0.0/16", "100.64.0.0/16", "fdab:cdef::/32"])
def test_a_landlord_elsewhere_lets_no_networks_of_our_surroundings(
    router: Router, tmp_path: Path, network: str
) -> None:
    """This machine's next address may be in them, and what it sends from a rented network goes to the landlord."""
    home = Home(tmp_path / "elsewhere")
    tunnel = home.add_tunnel("one", LandlordPlace("9.9.9.9", 443, "00" * 32))
    peer = {"public_key": tunnel.public_key, "endpoint_host": "9.9.9.9", "endpoint_port": 1, "allowed_ips": ["::/0"]}
    answer = {"addresses": ["8.8.1.9"], "peers": [peer]}
    landlord = mock.Mock(place=home.landlord(tunnel), configuration=lambda _: read_configuration(answer))
    said = dict.fromkeys(("start_time", "current_time", "TimeRemaining", "Credit", "CurrentRate"), 0)
    said |= dict.fromkeys(("total_paid", "NumberOfPayments", "ActivationFee"), 0)
    status = read_status({**said, "Networks": ["8.8.1.9/32", network]})
    with pytest.raises(LandlordError, match="surroundings"):
        renting.keep_configuration(home, landlord, tunnel, status)
    assert not home.conf_path(tunnel).exists()
    books = BooksFile(home.state_path(tunnel))
    books.write(Books(Account(started=True, networks=status.networks)))
    with pytest.raises(LandlordError, match="surroundings"):  # it says otherwise now, but the books lead packets
        renting.keep_configuration(home, landlord, tunnel, replace(status, networks=status.networks[:1]), True)
    assert not home.conf_path(tunnel).exists()
    landlord.place = LandlordPlace("192.168.1.1", 443, "00" * 32)
    assert renting.keep_configuration(home, landlord, tunnel, status).path.exists()


def test_the_first_error_is_told_although_the_new_keys_cannot_be_dropped(router: Router) -> None:
    router.trust()
    router.landlord.raw["AddCredit"] = b"HTTP/1.1 500 Broken\r\n\r\n"
    with mock.patch.object(Home, "forget_tunnel", side_effect=RunningError("another change")):
        done = router.rent("new", "example", "--name", "one", "--yes")
    assert done.returncode == ExitCode.OTHER and "another change" not in done.stderr and "landlord" in done.stderr


def test_autopay_once_fills_the_credit(router: Router) -> None:
    router.trust()
    assert router.rent("autopay", "--once").returncode == ExitCode.USAGE
    assert router.rent("new", "example", "--name", "one", "--yes").returncode == 0
    done = router.rent("autopay", "--once")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(router.rent("status", "--json").stdout)
    assert row["payments"] == 3


def test_autopay_says_which_limit_refuses_and_ends_with_5(router: Router) -> None:
    router.trust()
    router.rent("new", "example", "--yes")
    with (router.folder / "net.conf").open("a") as file:
        file.write("TENANT_RENT_MAX: 1 sat\n")
    for words in (("autopay", "--once"), ("autopay",)):
        done = router.rent(*words)
        assert done.returncode == ExitCode.PAYMENT and "TENANT_RENT_MAX" in done.stderr


def test_a_refused_rental_is_named_and_the_others_are_paid_for(router: Router) -> None:
    router.trust()
    for name in ("one", "two"):
        router.rent("new", "example", "--name", name, "--yes")
    first, second = router.landlord.rentals.values()
    first.rate *= 3  # what our books say is less
    done = router.rent("autopay", "--once")
    assert done.returncode == ExitCode.PAYMENT, done.stderr
    assert "ngp: one: landlord" in done.stderr and "the rent rose" in done.stderr and "two: " not in done.stderr
    assert (first.payments, second.payments) == (1, 3)


def test_a_defect_at_one_rental_is_named_and_the_others_are_paid_for(router: Router) -> None:
    router.trust()
    for name in ("one", "two"):
        router.rent("new", "example", "--name", name, "--yes")
    real = autopay.look

    async def look(kept: Kept) -> float:
        if kept.tunnel.name == "one":
            raise OverflowError("a number")
        return await real(kept)

    with mock.patch("ngp.tenant.autopay.look", look):
        done = router.rent("autopay", "--once")
    assert done.returncode == ExitCode.OTHER and "one: a defect of ngp (OverflowError: a number)" in done.stderr
    assert [one.payments for one in router.landlord.rentals.values()] == [1, 3]


def test_a_look_at_the_barrier_that_fails_is_told_and_the_next_one_follows(router: Router) -> None:
    router.trust()
    router.rent("new", "example", "--name", "one", "--yes")
    looks = [KernelError("nft doesn't end"), OverflowError("a number"), "the table is gone"]

    async def look(_kept: Kept) -> float:
        until_s = time.monotonic() + 5
        while looks and time.monotonic() < until_s:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        return 1.0

    def lacks(_home: Home) -> str:
        found = looks.pop(0) if looks else ""
        if isinstance(found, Exception):
            raise found
        return found

    with (
        mock.patch("ngp.tenant.autopay.look", look),
        mock.patch("ngp.tenant.routing.lacks", lacks),
        mock.patch.multiple("ngp.tenant.autopay", LOOK_AGAIN_S=0.01, WARN_AGAIN_S=0.01),
    ):
        assert router.rent("autopay", "--once").returncode == 0
    log = (router.tenant / "debug.log").read_text()
    assert log.count("whether the barrier stands isn't known") == 2 and "nft doesn't end" in log
    assert "the table is gone" in log


def test_a_rental_is_forgotten_with_its_keys_and_nothing_else(router: Router) -> None:
    router.trust()
    for name in ("one", "two"):
        assert router.rent("new", "example", "--name", name, "--yes").returncode == 0
    assert router.rent("distrust", "example").returncode == ExitCode.USAGE
    assert router.rent("forget", "one").returncode == ExitCode.USAGE
    (router.folder / "wireguard").mkdir()
    assert router.rent("conf", "one").returncode == 0
    assert len(list((router.folder / "wireguard").iterdir())) == 1, "root's files are linked"
    assert router.rent("forget", "one", "--yes").returncode == 0
    assert not list((router.folder / "wireguard").iterdir()) and len(list(router.tenant.glob("sw_*.lock"))) == 1
    (row,) = json.loads(router.rent("status", "--json").stdout)
    assert row["name"] == "two"
    assert router.rent("autopay", "--once").returncode == 0  # its books are still known, and agree
    assert len(list((router.tenant / "WireGuardConfigFiles").iterdir())) == 1
    done = router.rent("new", "example", "--yes")
    assert done.returncode == ExitCode.PAYMENT and "BUDGET_HOUR" in done.stderr  # what was forgotten counts


def test_a_payment_that_begins_while_the_user_is_asked_keeps_the_keys(router: Router) -> None:
    router.trust()
    router.rent("new", "example", "--name", "one", "--yes")
    home = Home(router.tenant)
    (tunnel,) = home.tunnels()
    books = BooksFile(home.state_path(tunnel))
    order = Order(bytes(32), 1000, 1000, False, 0.01, 0, "node", 0, 0)

    def pays_meanwhile(*_: object) -> None:
        books.write(replace(books.read(), pending=order))

    with mock.patch("ngp.cli.rent._agreed", pays_meanwhile):
        refused = router.rent("forget", "one")
    assert refused.returncode == ExitCode.USAGE and "on its way" in refused.stderr
    assert home.tunnels() == [tunnel] and books.read().pending == order and home.conf_path(tunnel).exists()


def test_keys_that_change_while_the_user_is_asked_leave_the_tunnel_up(router: Router) -> None:
    router.trust()
    router.rent("new", "example", "--name", "one", "--yes")
    home = Home(router.tenant)
    (tunnel,) = home.tunnels()

    def changes_meanwhile(*_: object) -> None:
        home.end_rekey(tunnel, home.begin_rekey(tunnel))

    with (
        mock.patch("ngp.cli.rent._agreed", changes_meanwhile),
        mock.patch("ngp.cli.tenant_service.bring_down") as bring_down,
    ):
        refused = router.rent("forget", "one")
    assert refused.returncode == ExitCode.USAGE and "another key" in refused.stderr and not bring_down.called
    assert len(Home(router.tenant).tunnels()) == 1 and home.conf_path(tunnel).exists()


def test_a_new_fingerprint_is_trusted_for_the_rentals_too(router: Router, tmp_path: Path) -> None:
    router.trust()
    router.rent("new", "example", "--name", "one", "--yes")
    right, router.landlord.pin = router.landlord.pin, "00" * 32
    config = router.tenant / "Config.yaml"
    config.write_text(config.read_text().replace(right, "11" * 32))
    assert router.rent("status").returncode == ExitCode.CONFIGURATION
    router.landlord.pin = right
    assert router.trust().returncode == 0
    assert router.rent("status").returncode == 0


def test_that_there_is_none_is_said_only_if_there_is_none(router: Router) -> None:
    assert "no landlord is trusted" in router.rent("offers").stdout
    assert "nothing is rented" in router.rent("status").stdout
    router.trust()
    router.rent("new", "example", "--name", "one", "--yes")
    router.landlord.silent |= {"getstatus", "GetSellOfferTerms"}
    with mock.patch("ngp.tenant.https.ANSWER_S", 0.2):
        for verb, whom in (("offers", "example"), ("status", "one")):
            done = router.rent(verb)
            assert done.returncode == ExitCode.OTHER and done.stdout == "" and f"ngp: {whom}: " in done.stderr


def test_words(router: Router) -> None:
    for words in (("rental",), ("trust", "a"), ("new",), ("status", "a", "b"), ("new", "nobody")):
        done = router.rent(*words)
        assert done.returncode == ExitCode.USAGE, words
        assert len(done.stderr.splitlines()) == 1


def test_up_needs_root_and_says_what_is_left_to_do(router: Router) -> None:
    router.trust()
    router.rent("new", "example", "--name", "one", "--yes")
    with mock.patch("os.geteuid", return_value=1000), mock.patch("ngp.daemon.state.prepare"):
        done = router.rent("up", "one")
    assert done.returncode == ExitCode.KERNEL and "run this with sudo" in done.stderr


def test_the_end_of_the_credit_is_that_of_the_answer_however_long_the_proof_takes(router: Router) -> None:
    """Of a landlord whose clock lags behind, as it counts the seconds that it has run, too."""
    router.landlord.lags_s = 3600
    router.trust()
    router.rent("new", "example", "--name", "one", "--yes")
    (rental,) = router.landlord.rentals.values()
    ends_s = time.time() + rental.credit_now(router.landlord.now()) / rental.rate

    async def slow(*_: object) -> str:
        time.sleep(8)
        return ""

    with mock.patch("ngp.cli.tenant_service.why_not", slow):
        (row,) = json.loads(router.rent("status", "--json").stdout)
    assert abs(datetime.fromisoformat(row["paid_until"]).timestamp() - ends_s) <= 6


@pytest.mark.parametrize(
    ("twist", "until"),
    [({"payments": 0}, None), ({"rate_sat_s": 0.0}, None), ({"state": "released"}, None), ({"state": "off"}, None),
     ({}, "1970-01-12T13:49:40Z"), ({"state": "reserved", "left_s": -100}, "1970-01-12T13:45:00Z"),
     ({"state": "reserved"}, None)],
)  # fmt: skip
def test_where_no_rent_accrues_there_is_no_end(twist: dict[str, Any], until: str | None) -> None:
    status = Status((), 1, 500, 180, 1000, 0.5, 2000, 1, 0, "", reserved_until_s=600)
    tunnel = Tunnel("", "", "shop", "", "", False, first_key="first")
    row = rental_row(tunnel, "let", "grpc", replace(status, **twist), 1_000_000.0, None)
    assert row["paid_until"] == until and row["reserved_until"] == "1970-01-12T13:48:20Z"


@pytest.mark.parametrize(
    ("state", "said"),
    [("pending", "waits for its first payment: sudo ngp rent add shop"), ("active", ""),
     ("reserved", "credit is used up: sudo ngp rent add shop"), ("off", "the landlord has switched it off"),
     ("released", "it is over: moved away")],
)  # fmt: skip
def test_what_the_landlord_does_not_serve_is_said_before_the_tunnel_is_tried(state: str, said: str) -> None:
    told = why_not_served({"state": state, "reason": "moved away"}, "shop")
    assert said in told and bool(said) == bool(told)


def test_a_rental_that_waits_for_its_payment_says_so(router: Router) -> None:
    router.trust()
    with mock.patch("ngp.tenant.renting.wait_until_paid", side_effect=KeyboardInterrupt):
        router.rent("new", "example", "--name", "one", "--no-pay")
    with mock.patch("ngp.cli.tenant_service.why_not", side_effect=AssertionError("the tunnel can't work")):
        (row,) = json.loads(router.rent("status", "--json").stdout)
    assert not row["proven"] and row["why_not"].endswith("sudo ngp rent add one")


def test_more_credit_for_a_tunnel_that_is_up_asks_for_no_firewall(router: Router) -> None:
    router.trust()
    router.rent("new", "example", "--name", "one", "--yes")
    assert "rent up one" in router.rent("add", "one", "--amount", "600", "--yes").stdout
    with mock.patch("ngp.tenant.interface.is_up", return_value=True):
        assert "rent up one" not in router.rent("add", "one", "--amount", "600", "--yes").stdout


def test_up_of_a_rental_that_is_not_paid_for_says_so(router: Router) -> None:
    router.trust()
    with mock.patch("ngp.tenant.renting.wait_until_paid", side_effect=KeyboardInterrupt):
        router.rent("new", "example", "--name", "one", "--no-pay")
    done = router.rent("up", "one")
    assert done.returncode == ExitCode.USAGE and "one isn't paid for yet: ngp rent add one" in done.stderr


def test_the_firewall_is_asked_for_once(router: Router) -> None:
    router.trust()
    with mock.patch("ngp.cli.tenant_service.bring_up", lambda *_: None):
        done = router.rent("new", "example", "--name", "one", "--yes", "--up")
    assert done.returncode == 0 and done.stdout.count("open to the whole internet") == 1
    assert "sudo ngp rent autopay one keeps the credit" in done.stdout and "rent up one" not in done.stdout


def test_a_tunnel_that_is_down_is_brought_up_by_ngp_as_wg_quick_knows_nothing_of_all_traffic(router: Router) -> None:
    router.trust()
    router.rent("new", "example", "--name", "one", "--yes")
    with mock.patch("ngp.cli.tenant_service.proof_of", proof_of):
        (row,) = json.loads(router.rent("status", "--json").stdout)
    assert row["why_not"].endswith("isn't up on this machine: sudo ngp rent up one")


def test_a_table_is_a_number_that_the_kernel_takes_and_always_the_same() -> None:
    tables = {policy.table_of(f"key {number}") for number in range(100)}
    assert len(tables) > 95 and all(0 < table < 1 << 32 for table in tables)


def test_without_networks_the_tunnels_own_addresses_are_the_sources(landlord: StandIn) -> None:
    landlord.is_paid = lambda _hash: True
    landlord.add_credit({"WireGuardPubKey": "k", "amount": "1000"})
    read_status(landlord.get_status({"WireGuardPubKey": "k"}))
    configuration = read_configuration(landlord.get_conf({"WireGuardPubKey": "k"}))
    text = "\n".join(policy.lines(configuration, (), "k"))
    assert "from 192.0.2.7/32" in text and "from 2001:db8:7::1/128" in text


def test_a_key_is_not_changed_over_https_and_an_interrupted_change_is_told(router: Router) -> None:
    router.trust()
    assert router.rent("new", "example", "--name", "shop", "--yes").returncode == 0
    refused = router.rent("rekey", "shop")
    assert refused.returncode == ExitCode.OTHER and "--face grpc" in refused.stderr
    assert "interrupted" not in router.rent("status").stderr
    home = Home(router.tenant)
    home.begin_rekey(home.tunnels()[0])
    told = router.rent("status")
    assert told.returncode == 0 and "ngp rent rekey shop finishes it" in told.stderr
