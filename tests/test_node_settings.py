"""A start and a reload read net.conf and look at the host and the payment node, and refuse or warn."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ngp import store
from ngp.config import parse
from ngp.core.kernel import Router
from ngp.core.messages import Prefix, Role
from ngp.core.records import AccountRecord
from ngp.core.rental.rental import Rental, RentalState
from ngp.core.values import Check
from ngp.daemon import checkup, host_watch, main, node
from ngp.daemon.node import Node
from ngp.daemon.options import StartOptions
from ngp.errors import ConfigError, PaymentError
from ngp.ports import Store
from tests.broken_node import SETTINGS, broken_node


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Node:
    return broken_node(monkeypatch)


def test_a_start_and_a_reload_with_a_file_that_shows_its_macaroon_are_refused(broken: Node, tmp_path: Path) -> None:
    path = broken.parts.config_path = tmp_path / "net.conf"
    path.write_text("MESH_INTERFACES: [eth1]\nLND_CONNECT: lndconnect://host?macaroon=AgED\nPAYMENT_INTERFACE: lnd\n")
    path.chmod(0o640)
    before = broken.settings
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        asyncio.run(broken.reload())
    assert broken.settings is before
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        asyncio.run(main.run(StartOptions(path, tmp_path, lambda _: None)))


def test_a_reload_that_expects_another_payment_node_is_refused_whole(
    broken: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[object] = []
    broken.parts.config_path, broken.loop.tell = tmp_path / "net.conf", told.append  # type: ignore[method-assign]
    broken.parts.gatekeeper.world.node = SimpleNamespace(payee=b"\x02" * 33)  # type: ignore[assignment]
    before = broken.settings
    broken.parts.config_path.write_text(f"MESH_INTERFACES: [eth1]\nSELL: no\nACCOUNT_ID: '{'03' * 33}'\n")
    with pytest.raises(PaymentError, match=f"ACCOUNT_ID is {'03' * 33}, but the payment node is {'02' * 33}"):
        asyncio.run(broken.reload())
    assert broken.settings is before and not told
    assert "the old settings stay in force" in caplog.text


def test_a_reload_by_which_we_spend_names_what_the_payment_node_does_not_allow(
    broken: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(spends: bool) -> list[Check]:
        return [Check("LND's macaroon", not spends, "does not allow SendPaymentV2")]

    async def apply(_settings: object) -> None:
        return

    told: list[object] = []
    path = broken.parts.config_path = tmp_path / "net.conf"
    monkeypatch.setattr(broken.loop, "tell", told.append)
    monkeypatch.setattr(broken.host, "apply", apply)
    monkeypatch.setattr(broken.parts.payment, "check", check, raising=False)
    monkeypatch.setattr(broken.host, "lacks", no_lacks)
    seller = "MESH_INTERFACES: [eth1]\nBUY: no\nREFUND_WHEN_ASKED: "
    path.write_text(f"{seller}no\n")
    assert "LND" not in asyncio.run(broken.reload())
    path.write_text(f"{seller}yes\n")
    said = asyncio.run(broken.reload())
    bare = "there is no mesh interface, so nothing is gated"  # this host has no eth1
    assert said == f"applied: REFUND_WHEN_ASKED; {bare}; WARNING LND's macaroon: does not allow SendPaymentV2"


def test_a_reload_warns_of_what_is_free_here_and_bought_from_a_neighbour(
    broken: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(_spends: bool) -> list[Check]:
        return []

    async def ways() -> list[tuple[Prefix, Router]]:
        return [(ip_network("192.0.2.0/24"), Router("eth1", b"mac", ip_address("10.0.0.1")))]

    async def apply(_settings: object) -> None:
        return

    path = broken.parts.config_path = tmp_path / "net.conf"
    monkeypatch.setattr(broken.loop, "tell", lambda _: None)
    monkeypatch.setattr(broken.parts.payment, "check", check, raising=False)
    for name, instead in (("apply", apply), ("lacks", no_lacks), ("routers_to_free", ways)):
        monkeypatch.setattr(broken.host, name, instead)
    path.write_text("MESH_INTERFACES: [eth1]\nFREE_DESTINATIONS: 192.0.2.0/24\n")
    said = asyncio.run(broken.reload())
    assert "WARNING free destinations: 192.0.2.0/24: our route leads to 10.0.0.1 on eth1" in said


def test_a_reload_that_takes_away_what_is_let_is_refused_whole(
    broken: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[object] = []
    path = broken.parts.config_path = tmp_path / "net.conf"
    broken.loop.tell = told.append  # type: ignore[method-assign]
    world: Any = broken.parts.gatekeeper.world
    world.node = SimpleNamespace(payee=b"\x02" * 33)
    networks = (ip_network("203.0.113.7/32"),)
    tenant = Rental(
        id=b"\x5e" * 32, wireguard_key=bytes(32), face="https", offer="default", networks=networks,
        state=RentalState.RESERVED, rent_msat=1, activation_fee_msat=0, started_at_s=1, started_s=1,
    )  # fmt: skip
    world.letting.add(tenant)
    before = broken.settings
    lets = "LANDLORD: yes\nLANDLORD_OUTSIDE: eth0\nLANDLORD_POOLS: "
    for text, why in (
        (f"{lets}203.0.113.0/30\n", "LANDLORD_POOLS no longer has what is let"),
        ("MESH_INTERFACES: eth1\n", "LANDLORD: no would end what is let"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"{why}: 5e5e5e5e \(203.0.113.7/32\); put it back, or give .* first"):
            asyncio.run(broken.reload())
    assert broken.settings is before and not told
    assert "the old settings stay in force" in caplog.text
    assert checkup.rentals(world.letting, parse(f"{lets}203.0.113.0/24\n", path)) == []


def test_a_reload_is_refused_also_if_a_rental_is_paid_while_it_looks_at_the_host(
    broken: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = broken.parts.config_path = tmp_path / "net.conf"
    path.write_text("MESH_INTERFACES: eth1\n")
    world: Any = broken.parts.gatekeeper.world
    world.node = SimpleNamespace(payee=b"\x02" * 33)
    tenant = Rental(
        id=b"\x5e" * 32, wireguard_key=bytes(32), face="https", offer="default",
        networks=(ip_network("203.0.113.7/32"),), state=RentalState.PENDING, rent_msat=1, activation_fee_msat=0,
        started_at_s=1, started_s=1,
    )  # fmt: skip
    world.letting.add(tenant)
    monkeypatch.setattr(broken.host, "refuse", lambda *_: tenant.move(RentalState.ACTIVE))
    with pytest.raises(ConfigError, match="LANDLORD: no would end what is let: 5e5e5e5e"):
        asyncio.run(broken.reload())


def test_a_start_warns_of_tenants_whose_networks_are_no_longer_let(
    broken: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Check("rentals", False, "LANDLORD: no would end what is let: 5e5e5e5e (203.0.113.7/32)", "put it back")
    monkeypatch.setattr(broken.host, "lacks", no_lacks)
    monkeypatch.setattr(node.checkup, "rentals", lambda *_: [gone])
    assert asyncio.run(broken.warn_of_lacks()) == [f"{gone.name}: {gone.found}; {gone.remedy}"]


async def no_lacks() -> list[Check]:
    return []


def test_a_reload_that_looks_at_the_host_for_long_holds_up_no_event(
    broken: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hundreds of interfaces, and other programs to call, it takes seconds."""
    served, in_time = threading.Event(), list[bool]()

    def long(*_: object, **__: object) -> list[Check]:
        in_time.append(served.wait(60))
        served.clear()
        return []

    path = broken.parts.config_path = tmp_path / "net.conf"
    path.write_text("MESH_INTERFACES: [eth1]\nSELL: no\n")
    monkeypatch.setattr(broken.loop, "tell", lambda _event: None)
    monkeypatch.setattr(broken.host, "refuse", long)
    monkeypatch.setattr(broken.host, "refuse_open", lambda *_: None)
    monkeypatch.setattr(host_watch.checkup, "lacks", long)
    monkeypatch.setattr(broken.host, "apply", lambda _settings: no_lacks())
    broken.post.links = ()  # type: ignore[misc]
    monkeypatch.setattr(broken.payment, "warn_of_lacks", lambda _settings: no_lacks())

    async def scenario() -> str:
        reload = asyncio.create_task(broken.reload())
        while not reload.done():
            served.set()  # as an event would be queued
            await asyncio.sleep(0)
        return await reload

    assert asyncio.run(scenario()).startswith("applied: SELL")
    assert in_time == [True, True]


@pytest.mark.parametrize(
    ("wanted", "there", "refused"),
    [
        (["mesh7"], ("mesh0",), True),
        (["mesh1"], ("mesh1",), False),
        (["eth1"], (), False),  # unchanged: the interface is gone for now
    ],
)
def test_a_reload_that_would_end_gating_by_a_typo_is_refused(
    broken: Node, tmp_path: Path, wanted: list[str], there: tuple[str, ...], refused: bool
) -> None:
    broken.host.desired = replace(broken.host.desired, mesh_interfaces=("eth1",))
    network: Any = SimpleNamespace(mesh_interfaces=lambda names, _ignored: tuple(set(names) & set(there)))
    path = tmp_path / "net.conf"
    settings = parse(f"MESH_INTERFACES: {wanted}\n", path)
    if refused:
        with pytest.raises(ConfigError, match="MESH_INTERFACES mesh7: no interface.*eth1.*would no longer be gated"):
            broken.host.refuse_open(settings, network)
    else:
        broken.host.refuse_open(settings, network)


def odd_books(folder: Path) -> Store:
    """Make a ledger with an account that has money without a payment."""
    place = store.at(folder)
    ledger = place.open()
    ledger.commit([AccountRecord(b"\x7f" * 32, Role.SERVER, 5000, 0, 0, 0, 0)])
    ledger.close()
    return place


@pytest.mark.parametrize("books_are", ["short", "long"])
def test_a_start_warns_of_what_check_would_and_waits_for_no_long_books(
    broken: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, books_are: str
) -> None:
    parts: Any = broken.parts
    parts.store = odd_books(tmp_path)
    lack = Check("interface wlan7", False, "MESH_INTERFACES: no interface has this name", "correct MESH_INTERFACES")

    async def lacks() -> list[Check]:
        return [lack]

    monkeypatch.setattr(broken.host, "lacks", lacks)
    long, look = threading.Event(), checkup.books
    monkeypatch.setattr(main, "BOOKS_WAIT_S", 60.0 if books_are == "short" else 0.0)
    monkeypatch.setattr(main.checkup, "books", lambda *asked: (long.wait(60), look(*asked))[1])

    async def scenario() -> None:
        if books_are == "short":
            long.set()
        books = asyncio.create_task(main._warn_of_books(parts.store))
        await main._warn_of_lacks(broken, books)
        assert books.done() is (books_are == "short")
        assert ("books: " in caplog.text) is books.done()
        long.set()
        await books

    asyncio.run(scenario())
    first, last = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert first == f"{lack.name}: {lack.found}; {lack.remedy}"
    assert last.startswith("books: account 7f7f") and "settled payments add up to 0 msat; another program" in last


def test_a_start_with_another_payment_node_than_last_time_names_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def open_and_close() -> str:
        parts, *_ = await main.open_parts(StartOptions(tmp_path / "net.conf", tmp_path, print), SETTINGS)
        await parts.payment.close()
        parts.ledger.close()
        return parts.gatekeeper.world.node.payee.hex()

    ours = asyncio.run(open_and_close())
    kept = tmp_path / "sandbox-node.json"
    for before in (ours, "02aa"):
        assert not [one for one in caplog.records if "another payment node" in one.getMessage()]
        kept.write_text(f'{{"account_id": "{before}", "network": "regtest"}}')
        asyncio.run(open_and_close())
    (warned,) = [one for one in caplog.records if "another payment node" in one.getMessage()]
    assert warned.levelname == "WARNING" and ours in warned.getMessage() and "02aa on regtest" in warned.getMessage()
