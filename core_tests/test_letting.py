"""A tenant that rents over HTTPS, with wg-quick at its end of the tunnel, as the published client sets it up.

tenant --- 192.0.2.0/24 --- [landlord] --- 203.0.113.0/24 --- third (anyone on the internet)
"""

from __future__ import annotations

import secrets
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.renting import NET_CONF, pay
from core_tests.shell import await_until
from core_tests.staticwire import HeldToTheRules, Session

MONTH_S = 2_629_800
POOLS = ["198.51.100.0/28", "2001:db8:100::/56"]


@dataclass
class Letting:
    """A landlord, a tenant, and somebody else; the tenant asks at an address on its own link."""

    landlord: Host
    tenant: Host
    third: Host
    daemon: Daemon
    key: X25519PrivateKey
    asks: HeldToTheRules

    def rent(self, sat: int) -> None:
        """Pay for so much credit, from a sandbox of the tenant's own."""
        pay(self.asks, self.asks.add_credit(sat)["Invoice"], self.tenant.folder)

    def bring_up(self) -> None:
        """Write the configuration as the published client does, and bring it up with wg-quick."""
        file = self.tenant.folder / f"sw_{secrets.token_hex(4)}.conf"
        file.touch(0o600)
        file.write_text(wg_quick_text(self.asks.configuration(), self.key))
        self.tenant.sh("wg-quick", "up", str(file))

    def is_reached(self, address: str) -> bool:
        return traffic.ping(self.third, address, wait_s=1).received == 1


def wg_quick_text(found: dict[str, Any], key: X25519PrivateKey) -> str:
    """Return a configuration as text, like the client's library."""
    lines = ["[Interface]", f"PrivateKey = {b64encode(key.private_bytes_raw()).decode()}", f"MTU = {found['mtu']}"]
    lines += [f"Address = {one}" for one in found["addresses"]]
    for peer in found["peers"]:
        lines += ["[Peer]", f"PublicKey = {peer['public_key']}"]
        lines += [f"Endpoint = {peer['endpoint_host']}:{peer['endpoint_port']}"]
        lines += [f"PersistentKeepalive = {peer['persistent_keepalive']}"]
        lines += [f"AllowedIPs = {one}" for one in peer["allowed_ips"]]
    return "\n".join((*lines, ""))


@pytest.fixture
def letting(lab: Lab) -> Iterator[Letting]:
    landlord, tenant, third = lab.host("landlord", forward=True), lab.host("tenant"), lab.host("third")
    lab.link(End(landlord, "near0", "192.0.2.1/24"), End(tenant, "near0", "192.0.2.2/24"))
    wan = "203.0.113.{}/24", "2001:db8:2::{}/64"
    lab.link(
        End(landlord, "wan0", *(one.format(1) for one in wan)), End(third, "wan0", *(one.format(2) for one in wan))
    )
    tenant.route("default", via="192.0.2.1")
    for pool, version in zip(POOLS, (4, 6), strict=True):
        third.route(pool, via=landlord.address("wan0", version))
    lab.await_carriers()
    rent = f"{1000 * MONTH_S // 25} sat"  # 40 sat a second
    own = {"LANDLORD_POOLS": POOLS, "LANDLORD_HTTPS": "192.0.2.1:443", "LANDLORD_RENT": rent}
    daemon = landlord.daemon({**NET_CONF, **own})
    key = X25519PrivateKey.generate()
    with closing(Session("192.0.2.1", 443, connect=tenant.connect)) as session:
        asks = HeldToTheRules(session, key.public_key().public_bytes_raw())
        yield Letting(landlord, tenant, third, daemon, key, asks)


def test_a_tenant_is_reached_as_long_as_it_has_paid(letting: Letting) -> None:
    """Rented, reached from outside in both families, off when the credit ends, on again with the same addresses."""
    letting.rent(1000)
    letting.bring_up()
    networks = letting.asks.status()["Networks"]
    v4, v6 = (one.partition("/")[0] for one in letting.asks.configuration()["addresses"])
    await_until(lambda: letting.is_reached(v4) and letting.is_reached(v6), what="the tenant's answers")
    time.sleep(letting.asks.status()["TimeRemaining"] + 1)
    assert not letting.is_reached(v4) and not letting.is_reached(v6)
    owed = -letting.asks.status()["Credit"]
    assert owed > 0
    letting.rent(int(owed) + 6000)
    status = letting.asks.status()
    assert status["Networks"] == networks and 3000 < status["Credit"] <= 6001
    await_until(lambda: letting.is_reached(v4) and letting.is_reached(v6), what="the tenant's answers")
    (row,) = letting.daemon.json("rentals")
    assert row["paid_msat"] == row["activation_fee_msat"] + row["charged_msat"] + row["credit_msat"]
    assert row["state"] == "active" and row["payments"] == 2 and row["used_from_bytes"] > 0


def test_a_killed_landlord_serves_on_and_its_certificate_and_rentals_are_there_again(letting: Letting) -> None:
    letting.rent(6000)
    letting.bring_up()
    before = letting.asks.status()
    (v4,) = (one.partition("/")[0] for one in letting.asks.configuration()["addresses"] if "." in one)
    await_until(lambda: letting.is_reached(v4), what="the tenant's answers")
    letting.daemon.kill9()
    assert letting.is_reached(v4), "the tunnel goes on without the daemon"
    letting.daemon.start()
    letting.asks.session.close()
    after = letting.asks.status()
    assert letting.is_reached(v4)
    for name in ("Networks", "start_time", "total_paid", "NumberOfPayments", "CurrentRate", "ActivationFee"):
        assert after[name] == before[name]
    spent_s = after["current_time"] - before["current_time"]
    assert before["Credit"] - after["Credit"] == pytest.approx(spent_s * after["CurrentRate"], abs=101)
