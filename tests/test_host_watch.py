"""Interfaces and addresses of the host change while the daemon runs."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from ngp.config import parse
from ngp.core.messages import Address, Hello
from ngp.daemon.desired import named_interfaces
from ngp.daemon.host_watch import HostWatch
from ngp.errors import KernelError
from ngp.ports.network import DesiredNetwork, FreeRule

NET_CONF = Path("/etc/ngp/net.conf")
SETTINGS = parse("MESH_INTERFACES: [mesh*]\n", NET_CONF)


class Network:
    """A network whose host has one interface at first."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ("mesh0",)
        self.addresses: list[Address] = []
        self.ports: dict[str, tuple[str, str]] = {}
        self.applied: list[tuple[str, ...]] = []
        self.changed_gate = False
        self.refuses = False

    def beside(self) -> Network:
        return Beside()

    def close(self) -> None: ...

    def mesh_interfaces(self, _wanted: Sequence[str], _ignored: Sequence[str]) -> tuple[str, ...]:
        return self.names

    def left_out(self, _wanted: Sequence[str], _ignored: Sequence[str]) -> dict[str, tuple[str, str]]:
        return self.ports

    def other_interfaces(
        self, _mesh: Sequence[str], _lan: Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (), ()

    def local_addresses(self) -> list[Address]:
        return self.addresses

    def apply(self, desired: DesiredNetwork) -> bool:
        if self.refuses:
            raise KernelError("no")
        self.applied.append(desired.mesh_interfaces)
        return self.changed_gate


class Beside(Network):
    """What another thread uses."""

    closed: list[int] = []  # noqa: RUF012

    def close(self) -> None:
        self.closed.append(threading.get_ident())


class Post:
    """Notes its calls; the payment node's signature arrives while its links are updated."""

    def __init__(self) -> None:
        self.ourselves = Hello("regtest", True, True, (), "ngp", False)
        self.greeted: list[str] = []
        self.updated = asyncio.Event()

    async def update(self, _interfaces: Sequence[str], addresses: Sequence[str]) -> None:
        self.addresses = tuple(addresses)
        self.ourselves = replace(self.ourselves, payee_proof="signature")
        self.updated.set()

    def broadcast(self, interface: str) -> None:
        self.greeted.append(interface)


def test_neighbours_that_a_reload_names_are_greeted_at_once() -> None:
    network, post = Network(), Post()
    watch = HostWatch(SETTINGS, network, post)  # type: ignore[arg-type]

    async def scenario() -> None:
        await watch.apply(SETTINGS)
        post.greeted.clear()
        await watch.apply(SETTINGS)
        assert (post.greeted, post.addresses) == ([], ())
        await watch.apply(replace(SETTINGS, ngp_addresses=("192.0.2.1",)))
        assert (post.greeted, post.addresses) == (["mesh0"], ("192.0.2.1",))

    asyncio.run(scenario())


def test_an_interface_that_comes_is_gated_and_greeted_and_nothing_of_our_hello_is_lost() -> None:
    network, post = Network(), Post()
    watch = HostWatch(SETTINGS, network, post)  # type: ignore[arg-type]

    async def scenario() -> None:
        following = asyncio.create_task(watch.follow())
        network.names, network.addresses = ("mesh0", "mesh1"), [IPv4Address("10.0.0.1")]
        watch.changed()
        await asyncio.wait_for(post.updated.wait(), 60)
        await asyncio.sleep(0)
        following.cancel()

    asyncio.run(scenario())
    assert network.applied == [("mesh0", "mesh1")] and watch.desired.mesh_interfaces == ("mesh0", "mesh1")
    assert post.greeted == ["mesh0", "mesh1"]
    assert post.ourselves == Hello("regtest", True, True, (IPv4Address("10.0.0.1"),), "ngp", False, b"", "signature")


def test_a_long_look_at_the_host_is_a_threads_and_one_at_a_time() -> None:
    """`ngp check` and a reload examine the host, which takes seconds with hundreds of interfaces."""
    network: Any = Network()
    post: Any = Post()
    watch = HostWatch(SETTINGS, network, post)
    Beside.closed.clear()
    looking, went_on, most = list[int](), threading.Event(), 0

    def look(asked: Any) -> str:
        nonlocal most
        assert isinstance(asked, Beside), "a network is for one thread"
        looking.append(0)
        assert went_on.wait(60), "the loop goes on"
        most = max(most, len(looking))
        looking.pop()
        return "seen"

    async def scenario() -> list[str]:
        looks = [asyncio.create_task(watch.aside(look)) for _ in range(2)]
        while not looking:
            await asyncio.sleep(0.001)
        for _ in range(50):  # otherwise another thread would have begun too
            await asyncio.sleep(0.001)
        went_on.set()
        return await asyncio.gather(*looks)

    assert asyncio.run(scenario()) == ["seen", "seen"]
    assert most == 1 and len(Beside.closed) == 2 and threading.get_ident() not in Beside.closed


def test_names_of_hundreds_of_interfaces_cost_a_few_questions() -> None:
    names = [f"mesh{number}" for number in range(256)]

    class Counting(Network):
        asked = 0

        def mesh_interfaces(self, _wanted: Sequence[str], _ignored: Sequence[str]) -> tuple[str, ...]:
            self.asked += 1
            return ("mesh0",)

        def left_out(self, _wanted: Sequence[str], _ignored: Sequence[str]) -> dict[str, tuple[str, str]]:
            self.asked += 1
            return {"mesh1": ("is a port", "")}

    network: Any = Counting()
    lines = named_interfaces(parse(f"MESH_INTERFACES: {names}\n", NET_CONF), network, ("mesh0",))
    missing = {line.name for line in lines if not line.ok and "no interface has this name" in line.found}
    assert missing == {f"interface {name}" for name in names[2:]}
    assert network.asked < 10


def test_a_payment_node_is_a_payment_service_here_or_on_another_host() -> None:
    """Not if it is announced by name.

    A node on this host is a service of our own, limited to a rate, as long as its address is ours.
    """
    network: Any = Network()
    post: Any = Post()
    network.addresses = [IPv4Address("10.0.0.1")]
    reached = ("10.0.0.1:9735", "10.0.0.9:9735", "[2001:db8::9]:9736", "127.0.0.1:9735", "a.onion:9735", "10.0.0.2:")
    settings = parse("MESH_INTERFACES: mesh0\nPAYMENT_SERVICES: 10.0.0.9 9735\n", NET_CONF)
    watch = HostWatch(settings, network, post, reached)
    tcp = socket.IPPROTO_TCP
    services = (FreeRule(ip_network("10.0.0.9"), tcp, 9735), FreeRule(ip_network("2001:db8::9"), tcp, 9736))
    own = FreeRule(ip_network("10.0.0.1"), tcp, 9735)
    assert (watch.desired.services, watch.desired.own_services) == (services, (own,))
    network.addresses = []
    asyncio.run(watch.apply(SETTINGS))
    assert (watch.desired.services, watch.desired.own_services) == ((own, *services), ())


def test_a_host_that_refuses_is_followed_at_the_next_change(caplog: pytest.LogCaptureFixture) -> None:
    network: Any = Network()
    post: Any = Post()
    watch = HostWatch(SETTINGS, network, post)
    network.names, network.refuses = ("mesh1",), True
    asyncio.run(watch.apply(SETTINGS))
    watch.look_at_gate()
    assert watch.desired.mesh_interfaces == ("mesh0",)
    assert "following a change" in caplog.text and "can't be verified" in caplog.text
    network.refuses, network.changed_gate = False, True
    asyncio.run(watch.apply(SETTINGS))
    watch.look_at_gate()
    assert watch.desired.mesh_interfaces == ("mesh1",) and "it is restored" in caplog.text


def test_each_mesh_interface_that_goes_or_comes_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    network: Any = Network()
    post: Any = Post()
    network.mesh_interfaces = lambda wanted, _ignored: tuple(n for n in network.names if wanted != (n,))
    watch = HostWatch(SETTINGS, network, post)
    caplog.set_level("INFO")
    told = []
    port = {"mesh0": ("is a port of the bridge br0", "ip link set dev mesh0 nomaster")}
    for names, ports in (((), {}), ((), {}), (("mesh0",), {}), ((), port), ((), port), (("mesh0", "mesh1"), {})):
        network.names, network.ports = names, ports
        asyncio.run(watch.apply(SETTINGS))
        told.append(caplog.messages)
        caplog.clear()
    assert [len(each) for each in told] == [1, 0, 1, 1, 0, 2]
    assert "mesh0 is gone" in told[0][0] and "is there" in told[2][0]
    said = "isn't gated any more: it is a port of the bridge br0; ip link set dev mesh0 nomaster. Traffic of"
    assert said in told[3][0]


def test_an_interface_is_said_to_be_gated_once_the_kernel_has_the_gate(caplog: pytest.LogCaptureFixture) -> None:
    network: Any = Network()
    post: Any = Post()
    settings = parse("MESH_INTERFACES: [mesh0]\n", NET_CONF)
    network.names, apply = (), network.apply
    watch = HostWatch(settings, network, post)
    caplog.set_level("INFO")
    network.names = ("mesh0",)

    def gate(desired: DesiredNetwork) -> bool:
        assert not caplog.messages
        return bool(apply(desired))

    network.apply = gate
    asyncio.run(watch.apply(settings))
    assert caplog.messages == ["mesh interface mesh0 is there, and gated"]


def test_what_is_gated_in_place_of_a_named_interface_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A port is replaced by its upper interface.

    An interface that shares its MAC with another stays itself, and is reported all the same.
    """
    network: Any = Network()
    post: Any = Post()
    settings = parse("MESH_INTERFACES: [mesh0]\n", NET_CONF)
    watch = HostWatch(settings, network, post)
    caplog.set_level("INFO")
    told = []
    port = {"mesh0": ("is a port of the bridge br0", "ip link set dev mesh0 nomaster")}
    shared = {"mesh0": ("also sends the frames of the ipvlan v0", "take it out")}
    for names, ports in ((("br0",), port), (("br0",), port), (("mesh0",), {}), (("mesh0",), shared), (("mesh0",), {})):
        network.names, network.ports = names, ports
        asyncio.run(watch.apply(settings))
        told.append(list(caplog.messages))
        caplog.clear()
    gated = "Until then br0 is gated in its place"
    first = f"mesh interface mesh0 is a port of the bridge br0; ip link set dev mesh0 nomaster. {gated}"
    assert told[0] == [first, "mesh interface br0 is there, and gated"]
    assert [len(each) for each in told] == [2, 0, 2, 1, 0]
    assert "ipvlan v0; take it out. Until then mesh0 is gated" in told[3][0]
