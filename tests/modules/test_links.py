"""Both links on the real kernel: two hosts on a veth pair, or on a tun (a layer-3 interface), in own namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest

from core_tests.namespaces import inside
from ngp.core.values import Check, LinkPeer
from ngp.errors import KernelError
from ngp.modules.link.ethernet import ETHERTYPE, EthernetLink
from ngp.modules.link.udp import PORT, UdpLink
from ngp.ports import Link

MAC_A, MAC_B = b"\x02\x00\x00\x00\x00\x0a", b"\x02\x00\x00\x00\x00\x0b"
IPV4_A, IPV4_B = "192.0.2.1", "192.0.2.2"
IPV6_A, IPV6_B = "fe80::a", "fe80::b"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=60)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two empty namespaces."""
    stem = f"ngpt-{secrets.token_hex(4)}"
    names = f"{stem}-a", f"{stem}-b"
    try:
        for name in names:
            ip("netns", "add", name)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=10, check=False)


def connect(hosts: tuple[str, str], name: str = "mesh0") -> None:
    """Join them by a veth pair with fixed MACs and addresses."""
    a, b = hosts
    ip("-n", a, "link", "add", name, "type", "veth", "peer", "name", name, "netns", b)
    for host, mac, ipv4, ipv6 in ((a, MAC_A, IPV4_A, IPV6_A), (b, MAC_B, IPV4_B, IPV6_B)):
        ip("-n", host, "link", "set", name, "addrgenmode", "none", "address", mac.hex(":"), "up")
        ip("-n", host, "address", "add", f"{ipv4}/24", "brd", "+", "dev", name)
        ip("-n", host, "address", "add", f"{ipv6}/64", "dev", name, "nodad")


@pytest.fixture
def wired(hosts: tuple[str, str]) -> tuple[str, str]:
    connect(hosts)
    return hosts


@dataclass
class End:
    """One daemon's end of a link, and what it heard."""

    link: Link
    host: str
    heard: asyncio.Queue[tuple[LinkPeer, bytes]] = field(default_factory=asyncio.Queue)

    def take(self, peer: LinkPeer, datagram: bytes) -> None:
        self.heard.put_nowait((peer, datagram))

    async def next(self) -> tuple[LinkPeer, bytes]:
        return await asyncio.wait_for(self.heard.get(), 60)

    async def update(self, *interfaces: str) -> None:
        with inside(self.host):
            await self.link.update(interfaces)

    def broadcast(self, interface: str, datagram: bytes) -> None:
        with inside(self.host):
            self.link.broadcast(interface, datagram)


@contextlib.asynccontextmanager
async def ends(hosts: tuple[str, str], one: Link, other: Link, *interfaces: str) -> AsyncIterator[tuple[End, End]]:
    both = End(one, hosts[0]), End(other, hosts[1])
    try:
        for end in both:
            with inside(end.host):
                await end.link.open(interfaces or ("mesh0",), end.take)
        yield both
    finally:
        for end in both:
            await end.link.close()
            await end.link.close()


def run_in(host: str, code: str, *arguments: str, text: str = "") -> None:
    command = ["ip", "netns", "exec", host, sys.executable, "-c", code, *arguments]
    subprocess.run(command, input=text, text=True, check=True, timeout=60)


SEND_UDP = """
import socket, sys
kind, target, port, ttl, payload = sys.argv[1:]
s = socket.socket(socket.AF_INET if kind == "4" else socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(*((socket.IPPROTO_IP, socket.IP_TTL) if kind == "4" else (41, 16)), int(ttl))
s.sendto(payload.encode(), (target, int(port)) if kind == "4" else (target, int(port), 0,
         socket.if_nametoindex("mesh0")))
"""
SEND_FRAME = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("mesh0", 0))
s.send(bytes.fromhex(sys.argv[1]))
"""


async def counted(end: End, reason: str) -> None:
    """Wait until a drop was counted."""
    async with asyncio.timeout(60):
        while not end.link.counters().get(reason):
            await asyncio.sleep(0)  # one turn of the loop, in which its readers run


# --- UDP --------------------------------------------------------------------------------------------------------------


def test_udp_finds_and_answers_in_both_families(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with ends(wired, UdpLink(), UdpLink()) as (a, b):
            a.broadcast("mesh0", b"who is there")
            heard = [await b.next(), await b.next()]
            assert {datagram for _, datagram in heard} == {b"who is there"}
            assert {peer.transport for peer, _ in heard} == {IPV4_A, f"{IPV6_A}%mesh0"}
            for peer, _ in heard:
                assert (peer.interface, peer.link_address) == ("mesh0", MAC_A)
                b.link.send(peer, b"me at " + peer.transport.encode())
                answerer, answer = await a.next()
                assert answer == b"me at " + peer.transport.encode()
                assert answerer.link_address == MAC_B
            await counted(a, "own")
            assert a.heard.empty()  # its own broadcast isn't a neighbour

    asyncio.run(scene())


@pytest.mark.parametrize(("family", "target"), [("4", IPV4_B), ("6", IPV6_B)])
def test_udp_refuses_what_could_come_from_beyond_the_link(wired: tuple[str, str], family: str, target: str) -> None:
    async def scene() -> None:
        async with ends(wired, UdpLink(), UdpLink()) as (_, b):
            run_in(wired[0], SEND_UDP, family, target, str(PORT), "254", "routed")
            await counted(b, "not_from_link")
            run_in(wired[0], SEND_UDP, family, target, str(PORT), "255", "direct")
            peer, datagram = await b.next()
            assert datagram == b"direct" and peer.link_address == MAC_A

    asyncio.run(scene())


def frame(payload: bytes, source_mac: bytes) -> str:
    """Build an Ethernet frame with IPv4 and UDP (checksum 0: none) from A's address."""
    udp = struct.pack("!HHHH", PORT, PORT, 8 + len(payload), 0) + payload
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 255, 17, 0, socket.inet_aton(IPV4_A), socket.inet_aton(IPV4_B)
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return (MAC_B + source_mac + b"\x08\x00" + head + udp).hex()


def test_udp_tells_the_mac_of_the_very_frame(wired: tuple[str, str]) -> None:
    """The neighbour table has a forged entry for A's address. The link still reports the MAC in the frame."""

    async def scene() -> None:
        async with ends(wired, UdpLink(), UdpLink()) as (_, b):
            ip("-n", wired[1], "neigh", "replace", IPV4_A, "lladdr", "02:00:00:00:00:66", "dev", "mesh0")
            run_in(wired[0], SEND_FRAME, frame(b"from another MAC", b"\x02\x00\x00\x00\x00\x77"))
            peer, _ = await b.next()
            assert peer.link_address == b"\x02\x00\x00\x00\x00\x77"

    asyncio.run(scene())


def test_udp_respects_the_input_firewall(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with ends(wired, UdpLink(), UdpLink()) as (a, b):
            rule = ["INPUT", "-p", "udp", "--dport", str(PORT), "-s", IPV4_A, "-j", "DROP"]
            subprocess.run(["ip", "netns", "exec", wired[1], "iptables", "-A", *rule], check=True, timeout=60)
            a.broadcast("mesh0", b"hello")
            peer, _ = await b.next()
            assert peer.transport == f"{IPV6_A}%mesh0"
            a.link.send(LinkPeer("mesh0", MAC_B, f"{IPV6_B}%mesh0"), b"last")
            assert (await b.next())[1] == b"last"
            assert b.heard.empty()

    asyncio.run(scene())


def test_udp_asks_only_the_named_neighbours(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with ends(wired, UdpLink(neighbours=(IPV4_B,)), UdpLink()) as (a, b):
            a.broadcast("mesh0", b"hello")
            a.link.send(LinkPeer("mesh0", MAC_B, f"{IPV6_B}%mesh0"), b"last")
            assert [(await b.next())[0].transport for _ in range(2)] == [IPV4_A, f"{IPV6_A}%mesh0"]

    asyncio.run(scene())


def test_udp_asks_others_when_they_are_named_while_it_is_open(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with ends(wired, UdpLink(neighbours=("192.0.2.77",)), UdpLink()) as (a, b):
            a.broadcast("mesh0", b"to nobody")
            a.link.name_neighbours((IPV4_B,))
            a.broadcast("mesh0", b"by its name")
            assert (await b.next())[1] == b"by its name"
            a.link.name_neighbours(())
            a.broadcast("mesh0", b"to all")
            assert [(await b.next())[1] for _ in range(2)] == [b"to all"] * 2  # in both families

    asyncio.run(scene())


@pytest.mark.parametrize("link", [UdpLink, EthernetLink])
def test_interfaces_come_and_go(hosts: tuple[str, str], link: type[UdpLink | EthernetLink]) -> None:
    async def scene() -> None:
        async with ends(hosts, link(), link()) as (a, b):
            a.broadcast("mesh0", b"into the void")
            assert a.link.counters() == {"unsent": 1}
            for number in range(2):  # the second time the pair is made anew: another interface of the same name
                connect(hosts)
                await a.update("mesh0")
                await b.update("mesh0", "absent0")
                a.broadcast("mesh0", b"round %d" % number)
                for _ in range(2 if link is UdpLink else 1):  # UDP speaks both families
                    peer, datagram = await b.next()
                    assert (peer.link_address, datagram) == (MAC_A, b"round %d" % number)
                if number == 0:
                    ip("-n", hosts[0], "link", "set", "mesh0", "down")
                    a.link.send(LinkPeer("mesh0", MAC_B, IPV4_B), b"down")
                    ip("-n", hosts[0], "link", "del", "mesh0")
                    a.broadcast("mesh0", b"gone")
                    assert a.link.counters()["unsent"] == 3
                    await a.update("mesh0")
            await a.update()
            a.broadcast("mesh0", b"no longer ours")
            assert a.link.counters()["unsent"] == 4

    asyncio.run(scene())


def test_two_daemons_on_one_machine_and_the_port_taken(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with ends(wired, UdpLink(), UdpLink()):
            with inside(wired[0]):
                second = UdpLink()
                with pytest.raises(KernelError, match="ss -ulpn") as refused:
                    await second.open(("mesh0",), lambda peer, datagram: None)
                assert UdpLink().taken(("gone0", "mesh0")) == [Check("link", False, str(refused.value))]

    asyncio.run(scene())


@pytest.mark.parametrize("address", [IPV4_A, "0.0.0.0", "::"])
def test_a_port_that_another_program_has_is_found_before_the_start(wired: tuple[str, str], address: str) -> None:
    with inside(wired[0]):
        assert UdpLink().taken(("mesh0",)) == []
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as other:  # the attempt before this left no socket behind
            other.bind((address, PORT))
            (line,) = UdpLink().taken(("mesh0",))
        assert not line.ok and "ss -ulpn" in line.found
        assert UdpLink().taken(("mesh0",)) == EthernetLink().taken(("mesh0",)) == []


def test_an_interface_without_frames_is_found_before_the_start(wired: tuple[str, str]) -> None:
    with inside(wired[0]):
        ip("tuntap", "add", "dev", "tun0", "mode", "tun")
        (line,) = EthernetLink().taken(("mesh0", "tun0"))
    assert not line.ok and "tun0 carries no Ethernet frames" in line.found


@pytest.mark.parametrize("link", [UdpLink(), EthernetLink()], ids=["udp", "ethernet"])
def test_too_large_is_an_error_of_the_caller(link: Link) -> None:
    with pytest.raises(ValueError, match="at most"):
        link.send(LinkPeer("mesh0", MAC_B, IPV4_B), bytes(link.max_datagram_bytes + 1))
    with pytest.raises(ValueError, match="at most"):
        link.broadcast("mesh0", bytes(link.max_datagram_bytes + 1))


# --- layer 3 ----------------------------------------------------------------------------------------------------------


def make_tun(host: str, address: str, peer: str, ipv6: str) -> int:
    """Make tun0 in a namespace; returns its file descriptor."""
    with inside(host):
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))  # TUNSETIFF, IFF_TUN | IFF_NO_PI
    ip("-n", host, "link", "set", "tun0", "addrgenmode", "none", "up")
    ip("-n", host, "address", "add", address, "peer", peer, "dev", "tun0")
    ip("-n", host, "address", "add", f"{ipv6}/64", "dev", "tun0", "nodad")
    return device


@contextlib.asynccontextmanager
async def tunnel(hosts: tuple[str, str]) -> AsyncIterator[None]:
    """Connect both namespaces by tun0, an interface without link addresses."""
    devices = [make_tun(hosts[0], IPV4_A, IPV4_B, IPV6_A), make_tun(hosts[1], IPV4_B, IPV4_A, IPV6_B)]
    loop = asyncio.get_running_loop()
    loop.add_reader(devices[0], _pump, devices[0], devices[1])
    loop.add_reader(devices[1], _pump, devices[1], devices[0])
    try:
        yield
    finally:
        for device in devices:
            loop.remove_reader(device)
            os.close(device)


def _pump(source: int, target: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(target, os.read(source, 2048))


def test_udp_on_a_layer_3_interface(hosts: tuple[str, str]) -> None:
    async def scene() -> None:
        async with tunnel(hosts), ends(hosts, UdpLink(), UdpLink(), "tun0") as (a, b):
            a.broadcast("tun0", b"hello")
            heard = [await b.next(), await b.next()]
            assert {peer.transport for peer, _ in heard} == {IPV4_A, f"{IPV6_A}%tun0"}
            for peer, _ in heard:
                assert peer.link_address == b""
                b.link.send(peer, b"answer")
                assert (await a.next())[1] == b"answer"

    asyncio.run(scene())


def test_ethernet_needs_frames(hosts: tuple[str, str]) -> None:
    async def scene() -> None:
        device = make_tun(hosts[0], IPV4_A, IPV4_B, IPV6_A)
        try:
            with inside(hosts[0]), pytest.raises(KernelError, match="tun0 carries no Ethernet"):
                await EthernetLink().open(("tun0",), lambda peer, datagram: None)
        finally:
            os.close(device)

    asyncio.run(scene())


# --- Ethernet ---------------------------------------------------------------------------------------------------------


def test_ethernet_needs_no_addresses(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        for host in wired:
            ip("-n", host, "address", "flush", "dev", "mesh0")
        async with ends(wired, EthernetLink(), EthernetLink()) as (a, b):
            a.broadcast("mesh0", b"x")
            peer, datagram = await b.next()
            assert (peer, peer.transport, datagram) == (LinkPeer("mesh0", MAC_A), MAC_A.hex(":"), b"x")
            b.link.send(peer, bytes(range(256)) * 5)
            answerer, answer = await a.next()
            assert answerer.link_address == MAC_B and answer == bytes(range(256)) * 5
            assert a.heard.empty()

    asyncio.run(scene())


def test_ethernet_strips_padding_and_refuses_bad_lengths(wired: tuple[str, str]) -> None:
    async def scene() -> None:
        async with ends(wired, EthernetLink(), EthernetLink()) as (_, b):
            head = MAC_B + MAC_A + struct.pack("!H", ETHERTYPE)
            for body in (b"\xff\xff" + bytes(44), b"\x00\x30" + bytes(44), bytes(46), b"\x01"):
                run_in(wired[0], SEND_FRAME, (head + body).hex())
            run_in(wired[0], SEND_FRAME, (b"\x02\x00\x00\x00\x00\x99" + head[6:] + b"\x00\x01!").hex())  # for another
            run_in(wired[0], SEND_FRAME, (head + b"\x00\x03abc" + bytes(41)).hex())
            assert (await b.next())[1] == b"abc"
            assert b.link.counters() == {"oversized": 1, "malformed": 3}
            assert b.heard.empty()

    asyncio.run(scene())


def test_scapy_is_not_imported_for_udp() -> None:
    code = "import sys, ngp.modules.link.udp, ngp.modules.link.ethernet; sys.exit('scapy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
