"""What a contract for several addresses carried to and from each of them: to be looked at, nothing is charged by it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from crafted import send
from kernel_lab import CLIENT, INTERNET, desired
from meter_lab import World, drop_datagrams, metered, wait_until

from core_tests.hostile import udp
from ngp.modules.network.datapath import Datapath
from ngp.ports.network import HostBytes

WIDE = {4: str(ip_network(f"{INTERNET[4]}/24", strict=False)), 6: str(ip_network(f"{INTERNET[6]}/64", strict=False))}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with metered(tmp_path) as built:
        drop_datagrams(built.lab.client)
        yield built


def other(family: int) -> str:
    return str(ip_address(INTERNET[family]) + 40)


def sum_of(one: HostBytes) -> int:
    return one.used_to_bytes + one.used_from_bytes


@pytest.mark.parametrize("family", [4, 6])
def test_each_address_is_counted_in_both_directions_and_adds_up_to_the_contract(world: World, family: int) -> None:
    client, far = CLIENT[family], INTERNET[family]
    contract = world.grant(WIDE[family])
    up, elsewhere = udp(client, far, 9, bytes(100)), udp(client, other(family), 9, bytes(500))
    down = udp(far, client, 9, bytes(200))
    send(world, [up], times=3)
    send(world, [elsewhere], times=2)
    send(world, [down], False, times=4)
    used = 3 * len(up) + 2 * len(elsewhere), 4 * len(down)
    wait_until(lambda: world.used(contract) == used, "all is charged")
    found = {one.address: one for one in world.datapath.inside(20)[contract]}
    assert found == {
        ip_address(far): HostBytes(ip_address(far), 3 * len(up), 4 * len(down)),
        ip_address(other(family)): HostBytes(ip_address(other(family)), 2 * len(elsewhere), 0),
    }
    assert [one.address for one in world.datapath.inside(1)[contract]] == [
        max(found, key=lambda one: sum_of(found[one]))
    ]
    world.datapath.close()
    again = world.datapath = Datapath(world.state, None)
    again.set_up(desired())
    assert {one.address: one for one in again.inside(20)[contract]} == found, "a restart keeps the counts"
    again.revoke([contract])
    assert again.inside(20) == {}


def test_a_contract_for_one_address_and_what_is_refused_take_no_room(world: World) -> None:
    packet = udp(CLIENT[4], INTERNET[4], 9, bytes(100))
    single = world.grant(f"{INTERNET[4]}/32")
    send(world, [packet], times=3)
    wait_until(lambda: world.used(single)[0] == 3 * len(packet), "all is charged")
    world.datapath.revoke([single])
    world.grant(WIDE[4], limit_bytes=0)
    send(world, [packet], times=3)
    wait_until(lambda: world.refused() == 3, "all is refused")
    assert world.datapath.inside(20) == {}
