"""The tenant's keys of net.conf."""

from __future__ import annotations

from pathlib import Path

import pytest

from ngp.config import parse
from ngp.core.tenant.terms import TenantSettings
from ngp.errors import ConfigError

FILE = Path("/etc/ngp/net.conf")


def tenant(*lines: str) -> TenantSettings:
    return parse("\n".join(("MESH_INTERFACES: mesh0", *lines)), FILE).tenant


@pytest.mark.parametrize(
    ("written", "right"),
    [("198.51.100.7:9735", "198.51.100.7 tcp 9735"), ("'[2001:db8::7]:9735'", "2001:db8::7 tcp 9735")],
)
def test_a_port_behind_a_colon_is_told_with_what_is_right(written: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"write {right}"):
        parse(f"MESH_INTERFACES: mesh0\nTENANT_BESIDE: {written}\n", Path("net.conf"))


def test_the_defaults_are_those_of_the_settings() -> None:
    assert tenant() == TenantSettings()


def test_values() -> None:
    got = tenant("TENANT_RENT_MAX: 30000 sat", "TENANT_TARGET_TIME: 2 days", "TENANT_PROBE: curl -sf http://192.0.2.1")
    assert (got.rent_max_msat, got.target_time_s) == (30_000_000, 172_800)
    assert got.probe == "curl -sf http://192.0.2.1"
    assert (got.limits.rent_max.value, got.limits.rent_max.name) == (30_000_000, "TENANT_RENT_MAX")


def test_what_may_leave_beside_the_tunnel() -> None:
    got = tenant("TENANT_ALL_TRAFFIC: yes", "TENANT_BESIDE: [192.0.2.0/24, 2001:db8::7 udp, 192.0.2.7 tcp 9735]")
    assert got.all_traffic
    assert [(str(one.prefix), one.protocol, one.port) for one in got.beside] == [
        ("192.0.2.0/24", "", 0), ("2001:db8::7/128", "udp", 0), ("192.0.2.7/32", "tcp", 9735),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("TENANT_PAYMENT_MIN: 1501 sat", "is above TENANT_PAYMENT_MAX"),
        ("TENANT_RENT_MAX: much", "TENANT_RENT_MAX"),
        ("TENANT_TARGET_TIME: -1", "TENANT_TARGET_TIME"),
        ("TENANT_PROBE: [a, b]", "auto, or a command"),
        ('TENANT_PROBE: "a\\nb"', "in one line"),
        ("TENANT_ALL_TRAFFIC: perhaps", "yes or no"),
        ("TENANT_BESIDE: 192.0.2.7 icmp", "write tcp, udp, or none"),
        ("TENANT_BESIDE: somewhere", "is not a prefix"),
    ],
)
def test_what_is_wrong_is_told(line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tenant(line)
