"""The inlet on the real kernel: which frames it lets in, with which MAC, and how many from each MAC."""

from __future__ import annotations

import asyncio
import struct

import pytest

from core_tests.hostile import checksum, ip_packet, udp
from ngp.core.values import LinkPeer
from ngp.errors import KernelError
from ngp.modules import bpf
from ngp.modules.bpf import Table
from ngp.modules.link import inlet as inlet_module
from ngp.modules.link.base import InletLink, InletPort
from ngp.modules.link.ethernet import ETHERTYPE, EthernetLink
from ngp.modules.link.inlet import Arrival, Inlet, read_arrival
from ngp.modules.link.udp import HOP_LIMIT, PORT, UdpLink
from tests.modules.test_links import IPV4_A, IPV4_B, IPV6_A, IPV6_B, MAC_A, MAC_B, connect, ends, hosts, inside, run_in

__all__ = ["hosts"]  # the fixture `hosts`

STRANGER = b"\x02\x00\x00\x00\x00\x77"
SEND_FRAMES = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("mesh0", 0))
for line in sys.stdin.read().split():
    frame, _, times = line.partition("*")
    for _ in range(int(times or 1)):
        s.send(bytes.fromhex(frame))
"""


def ethernet(packet: bytes, source: bytes = STRANGER, tag: bytes = b"") -> bytes:
    kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
    return MAC_B + source + tag + kind + packet


def datagram(payload: bytes, version: int = 4) -> bytes:
    source, destination = (IPV4_A, IPV4_B) if version == 4 else (IPV6_A, IPV6_B)
    return udp(source, destination, PORT, payload, PORT)


def changed(packet: bytes, at: int, value: bytes, mend: bool = True) -> bytes:
    """Return an IPv4 packet with other bytes somewhere, with or without a correct header checksum."""
    packet = packet[:at] + value + packet[at + len(value) :]
    if mend:
        head = packet[: (packet[0] & 15) * 4]
        head = head[:10] + struct.pack("!H", checksum(head[:10] + b"\0\0" + head[12:])) + head[12:]
        packet = head + packet[len(head) :]
    return packet


def with_options(payload: bytes) -> bytes:
    plain = datagram(payload)
    return changed(b"\x46" + plain[1:20] + b"\1\1\1\0" + plain[20:], 2, struct.pack("!H", len(plain) + 4))


def with_extension(payload: bytes) -> bytes:
    plain = datagram(payload, 6)
    return plain[:4] + struct.pack("!HB", len(plain) - 40 + 8, 60) + plain[7:40] + b"\x11\0\1\4\0\0\0\0" + plain[40:]


def fragments(payload: bytes) -> list[bytes]:
    whole = datagram(payload)[20:]
    parts = (whole[:16], 0x2000), (whole[16:], 2)
    return [changed(ip_packet(IPV4_A, IPV4_B, 17, part, HOP_LIMIT, flags), 4, b"\x12\x34") for part, flags in parts]


GOOD = {
    b"plain": [ethernet(datagram(b"plain"))],
    b"plain6": [ethernet(datagram(b"plain6", 6))],
    b"no checksum": [ethernet(changed(datagram(b"no checksum"), 26, b"\0\0"))],
    b"options": [ethernet(with_options(b"options"))],
    b"extension": [ethernet(with_extension(b"extension"))],
    b"priority tag": [ethernet(datagram(b"priority tag"), tag=b"\x81\x00\xe0\x00")],
    b"in fragments, two": [ethernet(part) for part in fragments(b"in fragments, two")],
    b"trail": [ethernet(changed(changed(datagram(b"trailer"), 24, struct.pack("!H", 13)), 26, b"\0\0"))],
    bytes(1232): [ethernet(datagram(bytes(1232)))],
}
BAD = {
    "checksum": ethernet(changed(datagram(b"x"), 26, b"\x12\x34")),
    "checksum of IPv6": ethernet(changed(datagram(b"x", 6), 46, b"\0\0", mend=False)),
    "header's checksum": ethernet(changed(datagram(b"x"), 10, b"\x12\x34", mend=False)),
    "length beyond the packet": ethernet(changed(changed(datagram(b"x"), 24, b"\x00\xff"), 26, b"\0\0")),
    "length below the header": ethernet(changed(changed(datagram(b"x"), 24, b"\x00\x07"), 26, b"\0\0")),
    "packet beyond the frame": ethernet(changed(datagram(b"x"), 2, b"\x05\x00")),
    "short header": ethernet(changed(datagram(b"x"), 0, b"\x44")),
    "cut": ethernet(ip_packet(IPV4_A, IPV4_B, 17, b"\x28\x55\x28", HOP_LIMIT)),
    "VLAN of nobody": ethernet(datagram(b"x"), tag=b"\x81\x00\x00\x05"),
    "first fragment alone": ethernet(changed(fragments(b"never to be completed")[0], 4, b"\x77\x77")),
}
REFUSED = {
    "malformed": [ethernet(datagram(b"")), ethernet(datagram(b"a group sends"), b"\x03\0\0\0\0\1")],
    "oversized": [ethernet(datagram(bytes(1233))), ethernet(datagram(bytes(1280), 6))],
    "not_from_link": [ethernet(changed(datagram(b"x"), 8, b"\xfe"))],
}


def send_frames(host: str, *lines: str) -> None:
    run_in(host, SEND_FRAMES, text="\n".join(lines))


def test_the_kernel_judges_the_packet_and_the_frame_names_the_sender(hosts: tuple[str, str]) -> None:
    connect(hosts)

    async def scene() -> None:
        async with ends(hosts, UdpLink(), UdpLink()) as (_, b):
            frames = [frame for each in (*GOOD.values(), list(BAD.values()), *REFUSED.values()) for frame in each]
            send_frames(hosts[0], *(frame.hex() for frame in frames), ethernet(datagram(b"last"), MAC_A).hex())
            heard = {}
            while True:
                peer, payload = await b.next()
                if payload == b"last":
                    break
                heard[payload] = peer
            assert heard.keys() == GOOD.keys()
            assert {peer.link_address for peer in heard.values()} == {STRANGER}
            assert heard[b"extension"].transport == f"{IPV6_A}%mesh0" and heard[b"options"].transport == IPV4_A
            assert b.link.counters() == {reason: len(each) for reason, each in REFUSED.items()}

    asyncio.run(scene())


def carried(kind: type[UdpLink | EthernetLink], payload: bytes, source: bytes) -> str:
    if kind is UdpLink:
        return ethernet(datagram(payload), source).hex()
    return (MAC_B + source + struct.pack("!HH", ETHERTYPE, len(payload)) + payload.ljust(44, b"\0")).hex()


@pytest.mark.parametrize("kind", [UdpLink, EthernetLink])
def test_a_stalled_daemon_still_hears_the_neighbours_that_it_trusts(
    hosts: tuple[str, str], kind: type[UdpLink | EthernetLink]
) -> None:
    """The daemon doesn't read while a flood and honest datagrams come. The flood fills only the share of strangers."""
    connect(hosts)

    async def scene() -> None:
        async with ends(hosts, kind(), kind()) as (_, b):
            b.link.trust(LinkPeer("mesh0", MAC_A, ""))
            rubbish = carried(kind, b"rubbish", STRANGER) + "*5000"
            honest = [carried(kind, b"honest %d" % number, MAC_A) for number in range(1000)]
            send_frames(hosts[0], rubbish, *honest[:500], rubbish, *honest[500:], rubbish)
            heard = [await b.next()]
            while heard[-1][1] != b"honest 999":
                heard.append(await b.next())
            assert [payload for peer, payload in heard if peer.link_address == MAC_A] == [
                b"honest %d" % number for number in range(1000)
            ]
            assert b.link.counters()["stranger_link_rate"] > 10_000 and "inlet_full" not in b.link.counters()

    asyncio.run(scene())


def test_trusted_addresses_are_bounded(hosts: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Identities cost nothing, so the table must not grow with them: the one that was silent for longest is removed."""
    monkeypatch.setattr(inlet_module, "MOST_TRUSTED", 2)

    async def scene() -> None:
        with inside(hosts[0]):
            inlet = Inlet(lambda arrival: None)
        try:
            for mac in (b"first.", b"second", b"first.", b"third."):
                inlet.trust(7, mac)
            assert {key[4:10] for key in inlet._buckets.all_keys()} == {b"first.", b"third."}
        finally:
            inlet.close()

    asyncio.run(scene())


@pytest.mark.parametrize("step", [(Table, "set"), (bpf, "RingReader")])
def test_filters_that_the_kernel_refuses_leave_nothing_open(
    monkeypatch: pytest.MonkeyPatch, step: tuple[object, str]
) -> None:
    """Anything that stays open fails the test (tests/conftest.py)."""

    def refuse(*_words: object) -> None:
        raise KernelError("refused")

    async def scene() -> None:
        monkeypatch.setattr(*step, refuse)
        with pytest.raises(KernelError, match="refused"):
            Inlet(lambda arrival: None)

    asyncio.run(scene())


# --- without a kernel -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "source"), [(4, b"\xc0\0\2\1"), (6, bytes(range(16))), (0, b"")])
def test_a_record_says_whence_it_came(version: int, source: bytes) -> None:
    record = struct.pack("=I6s2xHBx16s", 7, MAC_A, 3, version, source) + b"abc" + bytes(1277)
    assert read_arrival(record) == Arrival(7, MAC_A, source, b"abc")


class FakePort(InletPort):
    def __init__(self, index: int) -> None:
        self.index = index
        self.open, self.works, self.sent = True, True, list[bytes]()

    def peer(self, arrival: Arrival) -> LinkPeer:
        return LinkPeer(f"mesh{self.index}", arrival.mac, "")

    def send(self, peer: LinkPeer, datagram: bytes) -> bool:
        return self.broadcast(datagram)

    def broadcast(self, datagram: bytes) -> bool:
        self.sent.append(datagram)
        return self.works

    def close(self) -> None:
        self.open = False


class FakeInlet:
    def __init__(self, on_arrival: object) -> None:
        self.trusted: list[tuple[int, bytes]] = []

    def trust(self, index: int, mac: bytes) -> None:
        self.trusted.append((index, mac))

    def counters(self) -> dict[str, int]:
        return {"oversized": 2}

    def close(self) -> None:
        pass


class FakeLink(InletLink):
    max_datagram_bytes = 100

    def __init__(self) -> None:
        super().__init__()
        self.made: list[FakePort] = []

    def open_port(self, interface: str, on_trial: bool) -> FakePort | None:
        if interface == "going0":
            return None
        self.made.append(FakePort(int(interface[-1])))
        return self.made[-1]


def test_ports_follow_the_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    present = [(1, "mesh1"), (2, "mesh2"), (3, "going0")]
    monkeypatch.setattr("ngp.modules.link.base.socket.if_nameindex", lambda: present)
    monkeypatch.setattr("ngp.modules.link.base.Inlet", FakeInlet)
    heard: list[tuple[LinkPeer, bytes]] = []

    async def scene() -> None:
        link = FakeLink()
        await link.open(["mesh1", "mesh2", "going0", "absent0"], lambda peer, datagram: heard.append((peer, datagram)))
        one, two = link.made
        for index in (1, 2, 3):
            link._arrived(Arrival(index, MAC_A, b"", b"to %d" % index))
        assert heard == [(LinkPeer("mesh1", MAC_A, ""), b"to 1"), (LinkPeer("mesh2", MAC_A, ""), b"to 2")]
        one.works = False
        link.send(LinkPeer("mesh1", MAC_A, ""), b"refused")
        link.broadcast("absent0", b"nowhere")
        link.trust(LinkPeer("mesh2", MAC_A, ""))
        link.trust(LinkPeer("absent0", MAC_A, ""))
        inlet = link._inlet
        assert isinstance(inlet, FakeInlet) and inlet.trusted == [(2, MAC_A)]
        await link.update(["mesh2"])
        link._arrived(Arrival(1, MAC_A, b"", b"late, from what was open before"))
        assert (one.open, two.open, len(heard)) == (False, True, 2)
        await link.close()
        await link.close()
        assert not two.open and link.counters() == {"unsent": 2, "oversized": 2}

    asyncio.run(scene())
