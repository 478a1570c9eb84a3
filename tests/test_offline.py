"""Offline: what a check says about the payment node while no daemon runs; it changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ngp import node_key, store
from ngp.config import parse
from ngp.config.values import ALL_INTERFACES
from ngp.core.rental.records import RentalRecord
from ngp.core.rental.terms import Pool
from ngp.core.settings import Settings
from ngp.core.values import Check
from ngp.daemon import offline
from ngp.daemon.desired import named_interfaces
from ngp.errors import ConfigError
from ngp.ports.letting import DesiredTunnel
from ngp.ports.payment import PaymentInfo

SETTINGS = parse("MESH_INTERFACES: eth1\n", Path("/etc/ngp/net.conf"))


def test_before_the_first_start_the_sandboxs_node_has_no_name_and_gets_none(tmp_path: Path) -> None:
    for state_dir in (tmp_path / "none yet", tmp_path):
        (check, *_) = offline.check_payment(SETTINGS, state_dir)
        assert check.ok and "node not made yet (the first start makes it); not real money" in check.found
    assert list(tmp_path.iterdir()) == []


class Swapped:
    """An LND that is another node than last time, and writes itself down as the node for the next time."""

    def __init__(self, kept: Path) -> None:
        self.kept = kept

    async def wait_ready(self) -> None:
        self.kept.write_text(json.dumps({"account_id": "02bb", "network": "regtest"}))

    async def info(self) -> PaymentInfo:
        return PaymentInfo("02bb", "regtest")

    def capabilities(self) -> SimpleNamespace:
        return SimpleNamespace(real_money=False)

    async def check(self, _spends: bool) -> list[Check]:
        return []

    async def close(self) -> None: ...


def test_another_node_than_last_time_is_a_warning_and_a_look_does_not_make_it_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look(*_: object) -> list[Check]:
        return []

    kept = tmp_path / "lnd-node.json"
    kept.write_text('{"account_id": "02aa", "network": "mainnet"}')
    monkeypatch.setattr(offline.main, "make_payment", lambda *_: Swapped(kept))
    monkeypatch.setattr(offline.lightning, "look", look)
    for _ in range(2):
        (check,) = offline.check_payment(replace(SETTINGS, payment_module="lnd"), tmp_path)
        assert check.ok and "if you intended this" in check.remedy
        assert check.found.endswith("now 02bb on regtest, before 02aa on mainnet")
        assert "02aa" in kept.read_text() and list(tmp_path.iterdir()) == [kept]


def test_keys_of_a_module_that_is_not_in_use_are_a_warning(tmp_path: Path) -> None:
    text = "MESH_INTERFACES: eth1\nLND_HOST: foo:10009\nLND_CERT: system\nACCOUNT_ID: none\n"
    *_, warned = offline.check_payment(parse(text, tmp_path / "net.conf"), tmp_path)
    assert warned.ok and "PAYMENT_INTERFACE: lnd" in warned.remedy
    assert warned.found == "LND_HOST, LND_CERT: without effect, as PAYMENT_INTERFACE is sandbox"
    asked = offline.check_payment(parse(f"{text}PAYMENT_INTERFACE: lnd\n", tmp_path / "net.conf"), tmp_path)
    assert all("PAYMENT_INTERFACE" not in one.remedy for one in asked)


def test_the_sandboxs_node_is_named_by_its_key(tmp_path: Path) -> None:
    key = node_key.load_or_make(tmp_path / "sandbox.key")
    (check, *_) = offline.check_payment(SETTINGS, tmp_path)
    assert check.ok and f"node {key.public_key.format().hex()}; not real money" in check.found


def test_another_node_than_the_expected_one_is_missing_as_the_start_would_refuse_it(tmp_path: Path) -> None:
    key = node_key.load_or_make(tmp_path / "sandbox.key").public_key.format().hex()
    for expected, is_well in ((f"02{'11' * 32}", False), (key, True)):
        (check, *_) = offline.check_payment(replace(SETTINGS, account_id=expected), tmp_path)
        assert check.ok is is_well and key in check.found
        assert is_well or (expected in check.found and "ACCOUNT_ID" in check.remedy)


@pytest.mark.parametrize(
    ("macaroon", "says", "bakes"),
    [
        ("none", "set LND_MACAROON", True),
        ("shown", "chmod 600", False),
        ("gone", "doesn't exist: bake one", True),
        ("folder", "can't be read", False),
        ("empty", "bake a new one", True),
    ],
)
def test_what_an_error_says_of_its_remedy_is_not_contradicted(
    tmp_path: Path, macaroon: str, says: str, bakes: bool
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch(0o600)
    (tmp_path / "shown").write_bytes(b"x")
    (tmp_path / "shown").chmod(0o644)
    text = f"MESH_INTERFACES: eth1\nPAYMENT_INTERFACE: lnd\nLND_CERT: system\nLND_MACAROON: {macaroon}\n"
    (check,) = offline.check_payment(parse(text, tmp_path / "net.conf"), tmp_path)
    assert not check.ok and says in check.found and "LND_HOST" not in check.found
    assert check.remedy.startswith("lncli bakemacaroon --save_to ngp.macaroon uri:") is bakes
    assert bakes or not check.remedy


def test_a_node_that_does_not_answer_in_time_is_named_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        async def wait_ready(self) -> None:
            raise TimeoutError

        async def close(self) -> None: ...

    monkeypatch.setattr(offline.main, "make_payment", lambda *_: Silent())
    text = "MESH_INTERFACES: eth1\nPAYMENT_INTERFACE: lnd\nLND_HOST: foo:10009\n"
    (check,) = offline.check_payment(parse(text, tmp_path / "net.conf"), tmp_path)
    assert "at foo:10009 (LND_HOST)" in check.found and check.remedy


FREE = Check("queue", True, "NFQUEUE number 1 is free")


def a_host_with_a_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    network = SimpleNamespace(
        check=lambda _: [Check("meter", True, "runs")], taken=lambda _: [FREE], close=lambda: None
    )
    monkeypatch.setattr(offline.main.NamespaceLock, "is_held", lambda: False)
    monkeypatch.setattr(offline.main, "make_network", lambda *_: network)
    for where in (offline.checkup, offline.main):
        monkeypatch.setattr(where, "look_at_host", lambda *_: SimpleNamespace(mesh_interfaces=()))
    monkeypatch.setattr(offline.checkup, "named_interfaces", lambda *_: [])


def test_a_check_asks_every_link_and_tells_once_what_two_say_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Check("inlet", False, "Linux 5.10 refuses the program udp_bare of inlet.bpfel.o: ...")
    a_host_with_a_meter(monkeypatch)
    link = SimpleNamespace(check=lambda _: [refused], taken=lambda _: [])
    monkeypatch.setattr(offline.main, "make_links", lambda _: [link] * 2)
    assert offline.check_network(SETTINGS, tmp_path) == [Check("meter", True, "runs"), refused, FREE]


@pytest.mark.parametrize("runs", [True, False], ids=["beside a daemon", "alone"])
def test_a_check_tries_port_and_queue_where_no_daemon_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    has_it = Check("link", False, "UDP port 10325 on eth1: Address already in use")
    a_host_with_a_meter(monkeypatch)
    link = SimpleNamespace(check=lambda _: [], taken=lambda _: [has_it])
    monkeypatch.setattr(offline.main, "make_links", lambda _: [link])
    monkeypatch.setattr(offline.main.NamespaceLock, "is_held", lambda: runs)
    tried = [] if runs else [FREE, has_it]
    assert offline.check_network(SETTINGS, tmp_path) == [Check("meter", True, "runs"), *tried]


def test_a_link_module_that_cannot_be_made_is_missing_and_hides_no_other_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_links(_: object) -> list[object]:
        raise ConfigError("no module 'grpc' for ngp.link is installed")

    a_host_with_a_meter(monkeypatch)
    monkeypatch.setattr(offline.main, "make_links", make_links)
    meter, _, link = offline.check_network(SETTINGS, tmp_path)
    assert meter.ok and link == Check("link", False, "no module 'grpc' for ngp.link is installed")


LANDLORD = parse("LANDLORD: yes\nLANDLORD_POOLS: 203.0.113.0/29\nLANDLORD_OUTSIDE: eth7\n", Path("/etc/ngp/net.conf"))


def test_a_check_has_the_landlords_lines_where_something_is_let(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    line, pin = Check("tunnel", False, "no interface eth7", "correct LANDLORD_OUTSIDE"), Check("https", True, "pin ab")

    def look(desired: DesiredTunnel) -> list[Check]:
        asked.append((desired.outside, desired.pools, desired.port))
        return [line]

    tunnel = SimpleNamespace(check=look, close=lambda: asked.append("closed"))
    face = SimpleNamespace(check=lambda settings: [pin])
    a_host_with_a_meter(monkeypatch)
    monkeypatch.setattr(offline.main, "make_links", lambda _: [])
    monkeypatch.setattr(offline.main, "make_tunnel", lambda: tunnel)
    monkeypatch.setattr(offline.main, "make_faces", lambda _: [face])
    assert offline.check_network(SETTINGS, tmp_path) == [Check("meter", True, "runs"), FREE], "nothing is let"
    assert offline.check_network(LANDLORD, tmp_path) == [Check("meter", True, "runs"), FREE, line, pin]
    assert asked == [("eth7", (ip_network("203.0.113.0/29"),), 51820), "closed"]
    assert not list(tmp_path.iterdir()), "a look makes no key"


def test_a_tunnel_that_cannot_be_looked_at_hides_no_other_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_tunnel() -> object:
        raise ConfigError("no module 'wireguard' for ngp.tunnel is installed")

    a_host_with_a_meter(monkeypatch)
    monkeypatch.setattr(offline.main, "make_links", lambda _: [])
    monkeypatch.setattr(offline.main, "make_tunnel", make_tunnel)
    *_, letting = offline.check_network(LANDLORD, tmp_path)
    assert letting == Check("letting", False, "no module 'wireguard' for ngp.tunnel is installed")


def test_a_landlord_without_mesh_lacks_no_mesh_interface() -> None:
    network: Any = SimpleNamespace(
        mesh_interfaces=lambda wanted, _: ("eth7",) if wanted == (ALL_INTERFACES,) else (), left_out=lambda *_: {}
    )
    assert named_interfaces(LANDLORD, network, ()) == []
    (line,) = named_interfaces(LANDLORD, network, ("eth7", "eth8"))
    assert line.ok and line.name == "interface eth7" and "LANDLORD_OUTSIDE" in line.found and line.remedy
    pattern = parse("MESH_INTERFACES: 'eth*'\n", Path("/etc/ngp/net.conf"))
    assert [line.name for line in named_interfaces(pattern, network, ()) if not line.ok] == ["mesh interfaces"]


def test_a_check_without_a_daemon_names_tenants_that_the_next_start_would_cut_off(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir(mode=0o700)
    kept = RentalRecord(
        rental=b"R" * 16, wireguard_key=b"W" * 32, face="https", offer="default", networks="203.0.113.1/32",
        state="active", reason="", rent_msat=1, activation_fee_msat=0, rate_since_s=0, owed_msat=0,
        reserved_since_s=0, asked_msat=0, asked_rent_msat=0, period=b"", period_charged_msat=0, period_opened_at_s=0,
        started_at_s=1, started_s=0, payments=1,
    )  # fmt: skip
    asked = replace(kept, rental=b"S" * 16, wireguard_key=b"V" * 32, networks="198.51.100.1/32", state="pending")
    ledger = store.at(state_dir, None, b"").open()
    ledger.commit([kept, asked])
    ledger.close()

    def told(settings: Settings | None) -> list[Check]:
        return [line for line in offline.check_state(state_dir, settings) if line.name == "rentals"]

    before = (state_dir / "ledger.db").read_bytes()
    assert told(LANDLORD) == [] and told(None) == []
    letting = LANDLORD.letting
    assert letting is not None
    pools = (Pool(ip_network("198.51.100.0/24")),)
    (line,) = told(replace(LANDLORD, letting=replace(letting, pools=pools)))
    assert not line.ok and line.kind == "configuration" and "LANDLORD_POOLS no longer has" in line.found
    assert (b"R" * 16).hex()[:8] in line.found
    (line,) = told(SETTINGS)
    assert not line.ok and "LANDLORD: no" in line.found and "ngp rentals release" in line.remedy
    assert (state_dir / "ledger.db").read_bytes() == before
