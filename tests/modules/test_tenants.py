"""Tenants that pay by kilobyte: the gate charges what passes the tunnel, in both directions, over real packets.

The tunnel is wireguard-go's, or with `--all-kinds` the kernel's too. Bytes are counted independently, on the wire
outside (`core_tests.counter`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from kernel_lab import desired
from tunnel_lab import LANDLORD, ONE, OUTSIDE, TWO, Tenant, TunnelLab, tunnel_lab

from core_tests import interface_kinds, traffic
from core_tests.lab import End
from core_tests.shell import await_until, sh
from ngp.core.kernel import TENANTS, UNITS_PER_MSAT, AccountLimit, Grant, KernelNeighbour, Reading
from ngp.core.messages import Role
from ngp.core.prefixes import PackedPrefix
from ngp.modules.network.datapath import Datapath
from ngp.modules.tunnel.wireguard import WireGuard
from ngp.ports.network import DesiredNetwork

PRICE = 5 << 20  # msat per GiB: 5 for a kilobyte
PLENTY_BYTES = 1 << 30
VERSIONS = (4, 6)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try each implementation that there should be."""
    if "kind" in metafunc.fixturenames:
        has_kernel = metafunc.config.getoption("--all-kinds") or interface_kinds.has("wireguard")
        metafunc.parametrize("kind", ["userspace", *["kernel"] * has_kernel])


@dataclass(slots=True)
class Shop:
    """A landlord with the meter, and no mesh interface unless a test adds one."""

    lab: TunnelLab
    tunnel: WireGuard
    datapath: Datapath

    def let(self, *tenants: Tenant) -> None:
        """Set the tunnel up with these tenants, and wait until it carries their packets."""
        self.tunnel.set_up(self.lab.desired(), [tenant.peer for tenant in tenants])
        self.lab.await_tunnel(*tenants)

    def meter(self, tenant: Tenant, pays_for_bytes: int = PLENTY_BYTES) -> None:
        """Meter a tenant from now on, with money for so many bytes more."""
        account = tenant.peer.wireguard_key
        spent_units = sum(one.spent_units for one in self.datapath.read_accounts([account]))
        self.datapath.limit_accounts([AccountLimit(account, spent_units + pays_for_bytes * PRICE)])
        self.datapath.grant(
            [
                Grant(
                    contract_of(tenant, network.version),
                    TENANTS,
                    Role.SERVER,
                    PackedPrefix.of(network),
                    1 << 62,
                    1e9,
                    account,
                    PRICE,
                )
                for network in tenant.peer.networks
            ]
        )

    def used(self, tenant: Tenant, version: int) -> tuple[int, int]:
        """Return the bytes to a tenant, and from it, over an IP version."""
        (found,) = self.datapath.read([contract_of(tenant, version)])
        assert isinstance(found, Reading)
        return found.used_to_bytes, found.used_from_bytes

    def used_bytes(self, tenant: Tenant) -> int:
        """Return all bytes that were charged to a tenant by its contracts."""
        return sum(sum(self.used(tenant, version)) for version in VERSIONS)

    def spent_units(self, tenant: Tenant) -> int:
        """Return what a tenant's account has spent."""
        (found,) = self.datapath.read_accounts([tenant.peer.wireguard_key])
        return found.spent_units


def contract_of(tenant: Tenant, version: int) -> bytes:
    return tenant.peer.wireguard_key[:15] + bytes([version])


def alone(lab: TunnelLab) -> DesiredNetwork:
    """Return what a landlord without neighbours wants."""
    return desired(mesh_interfaces=(), upstream_interfaces=("wan0",), tunnel=lab.name)


@contextmanager
def open_shop(kind: str, folder: Path) -> Iterator[Shop]:
    with tunnel_lab(kind) as (lab, tunnel):
        lab.route_pools()
        lab.outside.offloads("wan0", gro=False, tso=False)
        lab.landlord.offloads("wan0", tso=False)
        opened = Shop(lab, tunnel, Datapath(folder))
        try:
            opened.datapath.set_up(alone(lab))
            yield opened
        finally:
            opened.datapath.clean_up(leave_closed=False)


@pytest.fixture
def shop(kind: str, tmp_path: Path) -> Iterator[Shop]:
    with open_shop(kind, tmp_path) as opened:
        yield opened


# --- counting ---------------------------------------------------------------------------------------------------------


def test_both_directions_are_charged_as_counted_outside_and_each_tenant_for_its_own(shop: Shop) -> None:
    one, two = shop.lab.tenant(*ONE), shop.lab.tenant(*TWO)
    shop.let(one, two)
    counter = shop.lab.outside.counter("wan0")
    shop.meter(one)
    shop.meter(two)
    for version in VERSIONS:
        traffic.tcp_sink(shop.lab.outside, OUTSIDE[version], 7000)
        assert traffic.tcp_send(one.host, OUTSIDE[version], 7000, size_bytes=1_000_000).intact
        traffic.tcp_sink(one.host, one.address(version), 7001)
        assert traffic.tcp_send(shop.lab.outside, one.address(version), 7001, size_bytes=300_000).intact
        traffic.udp_echo(two.host, two.address(version), 7002)
        assert traffic.udp_send(shop.lab.outside, two.address(version), 7002, count=20, await_echoes=True) == 20
    for tenant, least in ((one, 1_300_000), (two, 4000)):
        for version in VERSIONS:
            own = tenant.address(version)

            def counted(own: str = own) -> tuple[int, int]:
                return counter.total("out", destination=own).bytes, counter.total("in", source=own).bytes

            await_until(
                lambda tenant=tenant, version=version: shop.used(tenant, version) == counted(),  # type: ignore[misc]
                what=f"{shop.used(tenant, version)} charged, {counted()} counted outside",
            )
            assert sum(counted()) > least
        assert shop.spent_units(tenant) == shop.used_bytes(tenant) * PRICE


def test_every_address_of_a_network_is_charged_to_its_tenant(shop: Shop) -> None:
    """A tenant may route its networks on; TWO has a /29 and a /64."""
    tenant = shop.lab.tenant(*TWO, more=("198.51.100.22/32", "2001:db8:ffff:8::beef/128"))
    shop.let(tenant)
    shop.meter(tenant)
    for address, version in (("198.51.100.22", 4), ("2001:db8:ffff:8::beef", 6)):
        assert traffic.ping(shop.lab.outside, address, payload_bytes=72).received == 1
        size = 72 + 8 + (20 if version == 4 else 40)
        assert shop.used(tenant, version) == (size, size)


def test_what_a_tenant_exchanges_with_the_landlord_itself_is_free(shop: Shop) -> None:
    tenant = shop.lab.tenant(*ONE)
    shop.let(tenant)
    shop.meter(tenant, pays_for_bytes=0)
    for version in VERSIONS:
        assert traffic.ping(tenant.host, LANDLORD[version]).received == 1
    assert shop.used_bytes(tenant) == 0 and shop.spent_units(tenant) == 0


def test_between_two_tenants_each_pays_its_own_side(shop: Shop) -> None:
    one, two = shop.lab.tenant(*ONE), shop.lab.tenant(*TWO)
    shop.let(one, two)
    shop.meter(one)
    shop.meter(two)
    traffic.udp_sink(two.host, two.address(4), 7000)
    assert traffic.udp_send(one.host, two.address(4), 7000, count=10, payload_bytes=500) == 10
    size = traffic.l3_bytes(4, 500, 10)
    await_until(lambda: shop.used(two, 4) == (size, 0), what="the receiver's side")
    assert shop.used(one, 4) == (0, size)


def test_a_tenant_without_a_price_is_neither_charged_nor_stopped(shop: Shop) -> None:
    one, two = shop.lab.tenant(*ONE), shop.lab.tenant(*TWO)
    shop.let(one, two)
    shop.meter(two, pays_for_bytes=0)
    for version in VERSIONS:
        assert traffic.ping(one.host, OUTSIDE[version]).received == 1
        assert traffic.ping(shop.lab.outside, two.address(version), wait_s=0.5).received == 0
    assert shop.used_bytes(two) == 0


def test_a_spoofed_source_is_charged_to_nobody(shop: Shop) -> None:
    """The tunnel drops what a tenant sends under another's address, before the gate could charge the other."""
    one, two = shop.lab.tenant(*ONE), shop.lab.tenant(*TWO, more=(f"{first_address_of(ONE)}/32",))
    shop.let(one, two)
    shop.meter(one)
    shop.meter(two)
    two.host.ip("route", "replace", OUTSIDE[4], "dev", two.interface, "src", first_address_of(ONE))
    assert traffic.udp_send(two.host, OUTSIDE[4], 7000, count=10) == 10
    two.host.ip("route", "replace", OUTSIDE[4], "dev", two.interface, "src", two.address(4))
    traffic.udp_echo(shop.lab.outside, OUTSIDE[4], 7001)
    assert traffic.udp_send(two.host, OUTSIDE[4], 7001, count=1, await_echoes=True) == 1, "what came before is done"
    size = traffic.l3_bytes(4, 100)
    assert shop.used(one, 4) == (0, 0) and shop.used(two, 4) == (size, size)


def first_address_of(texts: tuple[str, ...]) -> str:
    return texts[0].partition("/")[0]


# --- the end of the money ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_kernel_cuts_at_the_byte_in_both_directions(shop: Shop, version: int) -> None:
    tenant = shop.lab.tenant(*ONE)
    shop.let(tenant)
    size = traffic.l3_bytes(version, 100)
    sink = traffic.udp_sink(tenant.host, tenant.address(version), 7000)
    shop.meter(tenant, pays_for_bytes=10 * size + size - 1)
    traffic.udp_send(shop.lab.outside, tenant.address(version), 7000, count=30)
    await_until(lambda: sink.received()[0] == 10, what="what is paid for")
    assert sum(shop.used(tenant, version)) == 10 * size
    shop.meter(tenant, pays_for_bytes=size)
    traffic.udp_send(shop.lab.outside, tenant.address(version), 7000, count=1)
    await_until(lambda: sink.received()[0] == 11, what="one more, to the last byte")
    far = traffic.udp_sink(shop.lab.outside, OUTSIDE[version], 7001)
    traffic.udp_send(tenant.host, OUTSIDE[version], 7001, count=10)
    shop.meter(tenant, pays_for_bytes=3 * size)
    for _ in range(10):  # one by one: later versions of wireguard-go join packets, and all that are joined pass or none
        traffic.udp_send(tenant.host, OUTSIDE[version], 7001, count=1)
    await_until(lambda: far.received()[0] == 3, what="what is paid for")
    assert shop.used(tenant, version) == (11 * size, 3 * size)
    assert shop.spent_units(tenant) == 14 * size * PRICE


def test_the_meter_goes_on_without_a_daemon_and_the_next_one_finds_its_counts(shop: Shop, tmp_path: Path) -> None:
    tenant = shop.lab.tenant(*ONE)
    shop.let(tenant)
    shop.meter(tenant, pays_for_bytes=1000)
    shop.datapath.close()
    assert traffic.ping(shop.lab.outside, tenant.address(4), payload_bytes=72).received == 1
    assert traffic.ping(shop.lab.outside, tenant.address(4), payload_bytes=1000, wait_s=0.5).received == 0
    shop.datapath = Datapath(tmp_path)
    adopted = shop.datapath.set_up(alone(shop.lab))
    assert {one.grant.contract for one in adopted.contracts} == {contract_of(tenant, one) for one in VERSIONS}
    assert all(one.grant.neighbour == TENANTS for one in adopted.contracts)
    (account,) = adopted.accounts
    assert account.reading.spent_units == 200 * PRICE and shop.used(tenant, 4) == (100, 100)
    assert account.limit.limit_units == 1000 * PRICE and 1000 * PRICE > UNITS_PER_MSAT
    shop.datapath.revoke([contract_of(tenant, one) for one in VERSIONS])
    assert traffic.ping(shop.lab.outside, tenant.address(4)).received == 1, "without its contracts it isn't metered"


def test_a_tunnel_that_is_made_anew_is_metered_on(shop: Shop) -> None:
    tenant = shop.lab.tenant(*ONE)
    shop.let(tenant)
    shop.meter(tenant)
    shop.tunnel.clean_up()
    shop.let(tenant)
    before = shop.used_bytes(tenant)
    assert traffic.ping(tenant.host, OUTSIDE[6], payload_bytes=52).received == 1
    assert shop.used_bytes(tenant) - before == 200


# --- beside a mesh ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sells", [True, False], ids=["sells", "sells nothing"])
def test_beside_a_mesh_neighbour_and_tenant_pay_their_own_sides(kind: str, sells: bool, tmp_path: Path) -> None:
    """A neighbour that visits a tenant pays for its upload and download, and the tenant pays for the same packets."""
    with tunnel_lab(kind) as (lab, tunnel):
        lab.route_pools()
        neighbour = lab.lab.host("neighbour")
        lab.lab.link(End(lab.landlord, "mesh0", "10.77.1.1/24"), End(neighbour, "c0", "10.77.1.2/24"))
        neighbour.route("default", via="10.77.1.1")
        datapath = Datapath(tmp_path)
        wanted = desired(mesh_interfaces=("mesh0",), upstream_interfaces=("wan0",), tunnel=lab.name, sells=sells)
        try:
            datapath.set_up(wanted)
            shop = Shop(lab, tunnel, datapath)
            tenant = lab.tenant(*ONE)
            shop.let(tenant)
            shop.meter(tenant)
            contract = b"neighbours" + bytes(6)
            if sells:
                mac = bytes.fromhex(neighbour.mac("c0").replace(":", ""))
                datapath.set_neighbours([KernelNeighbour(7, "mesh0", mac, (), True, False)])
                datapath.limit_accounts([AccountLimit(b"n" * 32, 1 << 50)])
                host = tenant.peer.networks[0]
                datapath.grant(
                    [Grant(contract, 7, Role.SERVER, PackedPrefix.of(host), 1 << 40, 600.0, b"n" * 32, PRICE)]
                )
            before = shop.used_bytes(tenant)
            assert traffic.ping(neighbour, tenant.address(4), payload_bytes=72).received == 1
            assert shop.used_bytes(tenant) - before == 200
            if sells:
                (reading,) = datapath.read([contract])
                assert (reading.used_to_bytes, reading.used_from_bytes) == (100, 100)
            datapath.apply(desired(mesh_interfaces=("mesh0",), upstream_interfaces=("wan0",), sells=sells))
            assert "TENANT" not in sh("iptables-save", "-t", "security"), "nothing is let any more"
            assert ("NGP_GATE" in sh("iptables-save", "-t", "security")) is sells
        finally:
            datapath.clean_up(leave_closed=False)


def test_a_flushed_gate_is_missed(shop: Shop) -> None:
    sh("iptables", "-t", "security", "-F")
    assert shop.datapath.apply(alone(shop.lab))
    assert not shop.datapath.apply(alone(shop.lab))
