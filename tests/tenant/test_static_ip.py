"""`staticIP` by hand: an invoice, its payment, status and configuration, against a landlord that may misbehave."""

from __future__ import annotations

import json
import stat
import subprocess
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from ngp.errors import ExitCode
from ngp.tenant.books import BooksFile
from tests.tenant.conftest import User
from tests.tenant.stand_in import NETWORKS, TUNNEL_KEY, StandIn


def rent(user: User, *words: str) -> subprocess.CompletedProcess[str]:
    user.landlord.is_paid = lambda _hash: True
    return user.static_ip(*words, "AddCredit")


def test_rents_and_keeps_the_configuration(user: User) -> None:
    done = rent(user, "--amount", "2000")
    assert (done.returncode, done.stderr) == (0, "")
    assert "lnbcrt" in done.stdout and "50000 sat" in done.stdout and "█" in done.stdout
    (conf,) = (user.folder / "WireGuardConfigFiles").iterdir()
    key = yaml.safe_load((user.folder / "Config.yaml").read_text())["tunnels"][0]["wireguard_public_key"]
    assert conf.name == f"sw_{key.replace('+', '-').replace('/', '_')[:12]}.conf"
    assert "Address = 192.0.2.7/32, 2001:db8:7::1/128\n" in conf.read_text()
    for file in user.folder.rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600), file


def test_the_file_is_valid_for_wireguard(user: User) -> None:
    assert rent(user).returncode == 0
    (conf,) = (user.folder / "WireGuardConfigFiles").iterdir()
    stripped = subprocess.run(["wg-quick", "strip", str(conf)], capture_output=True, text=True, check=True).stdout
    assert f"PublicKey = {TUNNEL_KEY}" in stripped and "Endpoint = 198.51.100.1:51820" in stripped


def test_more_credit_and_status_go_to_the_landlord_that_let_the_tunnel(user: User) -> None:
    assert rent(user, "--amount", "2000").returncode == 0
    assert user.static_ip("--amount", "700", "Renew", named=False).returncode == 0
    (row,) = json.loads(user.static_ip("--json", "GetRentalStatus", named=False).stdout)
    assert (row["state"], row["payments"], row["paid_msat"]) == ("active", 2, 50_700_000)
    assert row["networks"] == NETWORKS
    assert row["activation_fee_msat"] + row["charged_msat"] + row["credit_msat"] == row["paid_msat"]
    books = BooksFile(user.folder / "TunnelState.yaml").read()
    assert books.account.payments == 2 and books.account.paid_msat == 50_700_000, "AutoPay may go on with it"


def test_the_default_amount_is_that_of_the_file_else_as_published(user: User) -> None:
    user.folder.mkdir(parents=True)
    (user.folder / "Config.yaml").write_text("DefaultRentalServer: {Amount: 3000}\n")
    assert rent(user).returncode == 0
    assert user.landlord.calls[-3][1]["amount"] == "3000"


def test_json_has_the_invoice_before_it_is_paid(user: User) -> None:
    first, _, rest = rent(user, "--json", "--amount", "1000").stdout.partition("\n")
    shown = json.loads(first)
    assert shown["amount_msat"] == 49_000_000 and shown["activation_fee_msat"] == 48_000_000
    assert shown["invoice"].startswith("lnbcrt") and json.loads(rest)[0]["state"] == "active"


def test_the_configuration_comes_again_and_only_its_place_is_printed_in_json(user: User) -> None:
    assert rent(user).returncode == 0
    (conf,) = (user.folder / "WireGuardConfigFiles").iterdir()
    text = conf.read_text()
    conf.unlink()
    done = user.static_ip("--json", "GetConf")
    assert json.loads(done.stdout)["file"] == str(conf) and conf.read_text() == text
    secret = yaml.safe_load((user.folder / "Config.yaml").read_text())["tunnels"][0]["wireguard_private_key"]
    assert secret not in done.stdout


def test_root_finds_it_in_the_folder_of_wireguard(user: User, tmp_path: Path) -> None:
    (tmp_path / "wireguard").mkdir()
    with mock.patch("os.geteuid", return_value=0):
        said = rent(user).stdout
        assert "wg-quick up sw_" in said and "regtest: not real money" in said
        (link,) = (tmp_path / "wireguard").iterdir()
        assert link.is_symlink() and link.resolve().parent == user.folder / "WireGuardConfigFiles"
        assert user.static_ip("GetConf").returncode == 0  # again
        link.unlink()
        link.write_text("another's")
        assert "exists already" in user.static_ip("GetConf").stdout
        assert link.read_text() == "another's"


def test_without_the_folder_of_wireguard_a_paid_rental_is_served_all_the_same(user: User) -> None:
    with mock.patch("os.geteuid", return_value=0):
        done = rent(user)
    assert done.returncode == 0 and f"wg-quick up {user.folder}" in done.stdout


def test_several_tunnels(user: User) -> None:
    assert rent(user).returncode == 0
    assert rent(user, "--tunnel", "shop").returncode == 0
    assert len(user.landlord.rentals) == 2
    (row,) = json.loads(user.static_ip("--json", "--tunnel", "shop", "GetRentalStatus").stdout)
    assert row["wireguard_key"] == list(user.landlord.rentals)[1]
    other = user.static_ip("--tunnel", "office", "GetRentalStatus")
    assert other.returncode == ExitCode.USAGE and "shop" in other.stderr


def test_a_new_rental_where_there_is_one_and_a_renewal_where_there_is_none(user: User) -> None:
    assert user.static_ip("Renew").returncode == ExitCode.USAGE
    assert not (user.folder / "Config.yaml").exists()
    user.landlord.is_paid = lambda _hash: True
    assert user.static_ip("RentNewIP").returncode == 0
    assert user.static_ip("RentNewIP").returncode == ExitCode.USAGE


def test_nothing_is_rented_yet(user: User) -> None:
    for verb in ("GetRentalStatus", "GetConf"):
        done = user.static_ip(verb)
        assert done.returncode == ExitCode.USAGE and "AddCredit" in done.stderr


# --- a landlord that misbehaves ---------------------------------------------------------------------------------------


def test_another_certificate_gets_nothing(user: User) -> None:
    user.landlord.pin = "00" * 32
    done = user.static_ip("AddCredit")
    assert done.returncode == ExitCode.CONFIGURATION and "00" * 32 in done.stderr
    assert not user.landlord.calls and not (user.folder / "Config.yaml").exists()


def test_a_landlord_that_is_not_there(user: User) -> None:
    user.landlord.port = 1
    done = user.static_ip("AddCredit")
    assert done.returncode == ExitCode.OTHER and "can't be reached" in done.stderr
    assert not (user.folder / "Config.yaml").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("AddedCredit", 900, "asked for"),
        ("AddedCredit", "1000", "AddedCredit"),
        ("InitialInvoice", False, "over 49000 sat, but the credit is 1000 sat"),
        ("InitialInvoice", 1, "true or false"),
        ("Invoice", "lnbcrt1nonsense", "can't be read"),
        ("Invoice", "", "Invoice"),
        ("Status", None, "Status"),
        ("SellOfferTerms", {"Rate": 1}, "lacks"),
    ],
)
def test_an_invoice_for_something_else(user: User, key: str, value: object, said: str) -> None:
    user.landlord.twists["AddCredit"] = lambda plain: plain | {key: value}
    done = user.static_ip("--amount", "1000", "AddCredit")
    assert (done.returncode, done.stdout) == (ExitCode.OTHER, "") and said in done.stderr


def test_an_invoice_over_another_sum(user: User) -> None:
    landlord = user.landlord
    landlord.make_invoice = lambda amount_msat, expiry_s: landlord.plain_invoice(amount_msat + 1000, expiry_s)
    done = user.static_ip("--amount", "1000", "AddCredit")
    assert (done.returncode, done.stdout) == (ExitCode.OTHER, "") and "49001 sat" in done.stderr


def test_an_invoice_that_has_expired(user: User) -> None:
    user.landlord.ahead_s = -3600
    done = user.static_ip("AddCredit")
    assert done.returncode == ExitCode.OTHER and "expired" in done.stderr and "clock" in done.stderr


def test_an_invoice_that_nobody_pays(user: User) -> None:
    user.landlord.expiry_s = 3
    with mock.patch("ngp.tenant.renting.POLL_S", 0.2):
        done = user.static_ip("AddCredit")
    assert done.returncode == ExitCode.PAYMENT and "before it was paid" in done.stderr
    assert not (user.folder / "WireGuardConfigFiles").exists()


def test_an_invoice_that_the_landlord_withdraws_is_not_taken_for_paid(user: User) -> None:
    user.landlord.twists["getstatus"] = lambda plain: plain | {"unpaid_invoice": None}
    done = user.static_ip("AddCredit")
    assert done.returncode == ExitCode.PAYMENT and "withdrew" in done.stderr


def test_amounts(user: User) -> None:
    for amount in ("0", "-5", "1.5", "1e3", "many"):
        done = user.static_ip("--amount", amount, "AddCredit")
        assert done.returncode == ExitCode.USAGE and "--amount" in done.stderr, amount
    assert not user.landlord.calls
    done = user.static_ip("--amount", "999", "AddCredit")
    assert done.returncode == ExitCode.OTHER and "amount 999 is out of range" in done.stderr


def test_commands_in_a_configuration_are_left_out(user: User, tmp_path: Path) -> None:
    def spoil(plain: dict[str, Any]) -> dict[str, Any]:
        command = f"touch {tmp_path}/ran"
        plain["peers"][0] |= {"postup": command, "PostUp": command}
        return plain | {"postup": [command], "PreUp": command, "table": "off\nPostUp = x", "private_key": TUNNEL_KEY}

    user.landlord.twists["getconf"] = spoil
    assert rent(user).returncode == 0
    (conf,) = (user.folder / "WireGuardConfigFiles").iterdir()
    keys = {line.partition(" = ")[0] for line in conf.read_text().splitlines()}
    known = {"[Interface]", "PrivateKey", "Address", "MTU", "", "[Peer]", "PublicKey", "Endpoint", "AllowedIPs"}
    assert keys == known | {"PersistentKeepalive"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"addresses": ["192.0.2.7/32\nPostUp = reboot"]}, "addresses"),
        ({"addresses": ["203.0.113.9/32"]}, "isn't of the rented networks"),
        ({"addresses": []}, "addresses"),
        ({"mtu": "1420\nPostUp = reboot"}, "mtu"),
        ({"mtu": 100}, "mtu"),
        ({"dns": ["name\nPostUp = reboot"]}, "dns"),
        ({"peers": [{}]}, "public_key"),
        ({"peers": "all"}, "peers"),
    ],
)
def test_a_configuration_that_is_none(user: User, change: dict[str, Any], said: str) -> None:
    user.landlord.twists["getconf"] = lambda plain: plain | change
    done = rent(user)
    assert done.returncode == ExitCode.OTHER and said in done.stderr
    assert not (user.folder / "WireGuardConfigFiles").exists()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "HTTP"),
        (b"\x00" * 50, "HTTP"),
        (b"HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n", "500"),
        (b"HTTP/1.1 301 no\r\nLocation: https://192.0.2.1/\r\nContent-Length: 0\r\n\r\n", "301"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull", "JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"Rate\": NaN}", "JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60000, "JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b" " * 70000, "more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n{}", "HTTP"),
    ],
)  # fmt: skip
def test_garbage(user: User, raw: bytes, said: str) -> None:
    user.landlord.raw["GetSellOfferTerms"] = raw
    done = user.static_ip("AddCredit")
    assert done.returncode == ExitCode.OTHER and said in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (user.folder / "Config.yaml").exists()


def test_a_refusal_is_shown_without_control_characters(user: User) -> None:
    user.landlord.twists["GetSellOfferTerms"] = lambda _: {"Error": "closed\x1b[2Jfor today\n" + "x" * 9999}
    done = user.static_ip("AddCredit")
    assert done.returncode == ExitCode.OTHER and "closed" in done.stderr
    assert "\x1b" not in done.stderr and len(done.stderr) < 500


def test_a_landlord_that_never_answers(user: User, landlord: StandIn) -> None:
    landlord.silent.add("GetSellOfferTerms")
    began = time.monotonic()
    with mock.patch("ngp.tenant.https.ANSWER_S", 1.0):
        done = user.static_ip("AddCredit")
    assert done.returncode == ExitCode.OTHER and "doesn't answer within 1 s" in done.stderr
    assert time.monotonic() - began < 30
