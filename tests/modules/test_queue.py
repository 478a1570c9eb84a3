"""Held packets: hostile bytes parsed without a kernel; packets held, released and refused on the real kernel."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_lab import INTERNET, QUEUE_NUMBER, Lab, desired, lab, paths, pinned_filters, python, sh

from ngp.core.kernel import HeldPacket, Verdict
from ngp.errors import KernelError
from ngp.modules.network import queue as queue_module
from ngp.modules.network.gate import Gate
from ngp.modules.network.icmp import Prohibiter, is_error, prohibited
from ngp.modules.network.queue import HeldQueue, parse_addresses, try_number

V4 = IPv4Address("192.0.2.7").packed + IPv4Address("198.51.100.9").packed
V6 = IPv6Address("2001:db8::7").packed + IPv6Address("2001:db8:1::9").packed


def v4(protocol: int = 17, fragment: int = 0, addresses: bytes = V4, payload: bytes = b"x" * 20) -> bytes:
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0) + addresses + payload


def v6(following: int = 17, addresses: bytes = V6, payload: bytes = b"x" * 20) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 64) + addresses + payload


def test_addresses_and_length_are_those_of_the_header() -> None:
    assert parse_addresses(v4()) == (ip_address("192.0.2.7"), ip_address("198.51.100.9"))
    assert parse_addresses(v6()[:40]) == (ip_address("2001:db8::7"), ip_address("2001:db8:1::9"))


@pytest.mark.parametrize("packet", [b"", b"\x45" * 19, b"\x44" + v4()[1:], v6()[:39], b"\x75" + v4()[1:]])
def test_malformed_packets_have_no_addresses(packet: bytes) -> None:
    assert parse_addresses(packet) is None


@given(st.binary(max_size=200) | st.binary(max_size=90).map(lambda tail: v6(0, payload=tail)))
def test_hostile_bytes_give_a_value_or_none(packet: bytes) -> None:
    parse_addresses(packet)
    answer = prohibited(packet)
    assert answer is None or len(answer[1]) <= 1240


def test_answer_v4_quotes_576_bytes_with_a_checksum() -> None:
    packet = v4(payload=b"y" * 1000)
    answer = prohibited(packet)
    assert answer is not None and answer[0] == ip_address("192.0.2.7")
    message = answer[1]
    assert message[:2] == bytes([3, 13]) and message[8:] == packet[:548]
    assert sum(struct.unpack(f"!{len(message) // 2}H", message)) % 0xFFFF == 0


def test_answer_v6_quotes_up_to_the_least_mtu() -> None:
    packet = v6(payload=b"y" * 1400)
    answer = prohibited(packet)
    assert answer == (ip_address("2001:db8::7"), bytes([1, 1, 0, 0, 0, 0, 0, 0]) + packet[:1232])


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(v4(1, payload=b"\x03" + b"\0" * 30), id="unreachable"),
        pytest.param(v4(1, payload=b"\x0b" + b"\0" * 30), id="time exceeded"),
        pytest.param(v4(1, payload=b""), id="cut before the type"),
        pytest.param(v4(fragment=0x2001), id="later fragment"),
        pytest.param(v4(addresses=V4[:4] + bytes([224, 0, 0, 5])), id="to multicast"),
        pytest.param(v4(addresses=V4[:4] + b"\xff" * 4), id="to broadcast"),
        pytest.param(v4(addresses=b"\0" * 4 + V4[4:]), id="from nobody"),
        pytest.param(v4(addresses=b"\xff" * 4 + V4[4:]), id="from broadcast"),
        pytest.param(v4(addresses=bytes([127, 0, 0, 1]) + V4[4:]), id="from loopback"),
        pytest.param(v6(58, payload=b"\x01" + b"\0" * 30), id="v6 unreachable"),
        pytest.param(v6(0, payload=b"\x3a" + b"\0" * 7 + b"\x02" + b"\0" * 30), id="v6 too big behind options"),
        pytest.param(v6(58, payload=b"\x89" + b"\0" * 30), id="v6 redirect"),
        pytest.param(v6(44, payload=b"\x11\0\0\x08" + b"\0" * 30), id="v6 later fragment"),
        pytest.param(v6(addresses=V6[:16] + IPv6Address("ff02::1").packed), id="v6 to multicast"),
        pytest.param(v6(0, payload=b"\0\0" * 80), id="v6 endless options"),
    ],
)
def test_no_answer_where_the_rfcs_forbid_it(packet: bytes) -> None:
    assert prohibited(packet) is None


def test_queries_and_first_fragments_are_answered() -> None:
    assert prohibited(v4(1, payload=b"\x08" + b"\0" * 30)) is not None
    assert prohibited(v4(fragment=0x2000)) is not None
    assert prohibited(v6(58, payload=b"\x80" + b"\0" * 30)) is not None
    assert prohibited(v6(44, payload=b"\x11\0\0\x01" + b"\0" * 30)) is not None


@pytest.mark.parametrize(
    ("packet", "wanted"),
    [
        (v4(1, payload=b"\x03" + b"\0" * 30), True),
        (v4(1, payload=b"\x0b" + b"\0" * 30), True),
        (v4(1, payload=b"\x08" + b"\0" * 30), False),
        (v4(1, payload=b""), False),
        (v4(1, fragment=0x0001, payload=b"\x03" + b"\0" * 30), False),
        (v4(17, payload=b"\x03" + b"\0" * 30), False),
        (v6(58, payload=b"\x01" + b"\0" * 30), True),
        (v6(0, payload=b"\x3a" + b"\0" * 7 + b"\x02" + b"\0" * 30), True),
        (v6(58, payload=b"\x80" + b"\0" * 30), False),
        (v6(58, payload=b""), False),
        (v6(0, payload=b"\0\0" * 80), False),
        (b"", False),
        (b"\x45", False),
        (b"\x60", False),
    ],
)
def test_icmp_errors_are_told_from_other_packets(packet: bytes, wanted: bool) -> None:
    assert is_error(packet) is wanted


def test_answers_are_limited_per_source_and_in_total(hosts: Lab) -> None:
    now = 100.0
    prohibiter = Prohibiter(lambda: now, source_rate=1, source_burst=3, total_rate=1, total_burst=5)

    def told(host: int, times: int) -> int:
        source = IPv4Address("10.77.1.0") + host
        return sum(prohibiter.answer(v4(addresses=source.packed + V4[4:])) for _ in range(times))

    assert [told(2, 10), told(3, 10), told(4, 10)] == [3, 2, 0]
    now += 2
    assert told(2, 10) == 2
    prohibiter.close()


@pytest.fixture(scope="module")
def filters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    with pinned_filters(tmp_path_factory.mktemp("pins")) as pinned:
        yield pinned


@pytest.fixture
def hosts() -> Iterator[Lab]:
    with lab() as built:
        yield built


class Daemon:
    """A gate where nobody pays and every packet is handed to the daemon, and a queue in the running loop."""

    def __init__(self, filters: tuple[Path, Path], **most: int) -> None:
        self.yes, self.no = filters
        Gate(paths(self.yes, self.yes, self.yes), desired()).apply()
        self.held: asyncio.Queue[HeldPacket] = asyncio.Queue()
        self.has_paid = False
        self.queue = HeldQueue(
            QUEUE_NUMBER,
            self.held.put_nowait,
            lambda name: name == "m0",
            has_paid=lambda _interface, _link_address: self.has_paid,
            **most,
        )
        self.queue.start(asyncio.get_running_loop())

    async def next(self) -> HeldPacket:
        return await asyncio.wait_for(self.held.get(), 60)

    def pay(self) -> None:
        Gate(paths(self.no, self.no, self.no), desired()).apply()


def in_loop(filters: tuple[Path, Path], body: Callable[[Daemon], Awaitable[None]], **most: int) -> None:
    async def whole() -> None:
        daemon = Daemon(filters, **most)
        try:
            await asyncio.wait_for(body(daemon), 180)
        finally:
            daemon.queue.close()
            daemon.queue.close()

    asyncio.run(whole())


SEND = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
for n in range(int(sys.argv[2])): s.sendto(b"x" * 100, (sys.argv[1], 1000 + n))
"""
# Prints what the sender of a refused packet learns: errno's name, or the received text.
ASK = """
import errno, socket, sys
v6 = ":" in sys.argv[1]
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(*((socket.IPPROTO_IPV6, 25, 1) if v6 else (socket.IPPROTO_IP, 11, 1)))
s.connect((sys.argv[1], 9)); s.settimeout(60); s.send(b"x" * 100)
try: s.recv(10)
except OSError as error: print(errno.errorcode.get(error.errno, error))
"""
# Says "unreachable" to a host about a packet that it never sent.
ERROR = """
import socket, struct, sys
v6 = ":" in sys.argv[1]
quoted = b"\\x60" + b"\\0" * 63 if v6 else b"\\x45" + b"\\0" * 27
message = struct.pack("!BBHI", 1 if v6 else 3, 4 if v6 else 3, 0, 0) + quoted
total = sum(struct.unpack(f"!{len(message) // 2}H", message))
checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
s = socket.socket(*((socket.AF_INET6, socket.SOCK_RAW, 58) if v6 else (socket.AF_INET, socket.SOCK_RAW, 1)))
s.sendto(message if v6 else message[:2] + struct.pack("!H", checksum) + message[4:], (sys.argv[1], 0))
"""
RECEIVE = """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 1000)); s.settimeout(60); print("ready", flush=True)
print(len(s.recv(1000)))
"""


@pytest.mark.parametrize("family", [4, 6])
def test_a_released_packet_passes_the_gate_again(hosts: Lab, filters: tuple[Path, Path], family: int) -> None:
    mac = bytes.fromhex(sh("cat /sys/class/net/c0/address", hosts.client).strip().replace(":", ""))

    async def body(daemon: Daemon) -> None:
        receiver = await asyncio.create_subprocess_exec(
            *python(hosts.internet, RECEIVE, INTERNET[family]), stdout=asyncio.subprocess.PIPE
        )
        assert receiver.stdout is not None
        await receiver.stdout.readline()
        subprocess.run(python(hosts.client, SEND, INTERNET[family], "1"), check=True)
        held = await daemon.next()
        assert (held.link, held.destination) == (("m0", mac), ip_address(INTERNET[family]))
        daemon.queue.verdict(held.handle, Verdict.REPEAT)
        again = await daemon.next()
        assert again.handle != held.handle, "nothing was paid: the gate asks again instead of letting it pass"
        daemon.pay()
        daemon.queue.verdict(again.handle, Verdict.REPEAT)
        daemon.queue.verdict(again.handle, Verdict.DROP)
        assert await receiver.stdout.readline() == b"100\n"
        await receiver.wait()
        counters = daemon.queue.counters()
        assert (counters["held"], counters["released"], counters["dropped"]) == (0, 2, 0)

    in_loop(filters, body)


@pytest.mark.parametrize("family", [4, 6])
def test_an_icmp_error_alone_is_dropped(hosts: Lab, filters: tuple[Path, Path], family: int) -> None:
    """Else a router that refuses forged packets would buy a contract for each source, with its own ICMP answers."""

    async def body(daemon: Daemon) -> None:
        subprocess.run(python(hosts.client, ERROR, INTERNET[family]), check=True)
        subprocess.run(python(hosts.client, SEND, INTERNET[family], "1"), check=True)
        assert len((await daemon.next()).link) == 2
        counters = daemon.queue.counters()
        assert (counters["held"], counters["dropped"]) == (1, 1) and daemon.held.empty()

    in_loop(filters, body)


@pytest.mark.parametrize(("family", "error"), [(4, b"EHOSTUNREACH"), (6, b"EACCES")])
def test_the_sender_of_a_refused_packet_is_told(
    hosts: Lab, filters: tuple[Path, Path], family: int, error: bytes
) -> None:
    async def body(daemon: Daemon) -> None:
        sender = await asyncio.create_subprocess_exec(
            *python(hosts.client, ASK, INTERNET[family]), stdout=asyncio.subprocess.PIPE
        )
        held = await daemon.next()
        daemon.queue.verdict(held.handle, Verdict.PROHIBIT)
        out, _ = await sender.communicate()
        assert out.strip() == error
        counters = daemon.queue.counters()
        assert (counters["dropped"], counters["prohibited"]) == (1, 1)

    in_loop(filters, body)


def test_a_full_socket_loses_packets_and_says_so(
    hosts: Lab, filters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports ENOBUFS at the next read. That must not end the reading, nor the daemon."""
    monkeypatch.setattr(queue_module, "_SOCKET_BUFFER_BYTES", 4096)

    async def body(daemon: Daemon) -> None:
        subprocess.run(python(hosts.client, SEND, INTERNET[4], "300"), check=True)  # nobody reads meanwhile
        daemon.queue.verdict((await daemon.next()).handle, Verdict.DROP)
        assert daemon.queue.counters()["queue_overflow"] > 0
        await asyncio.sleep(0)
        while daemon.queue.expire(0) or not daemon.held.empty():
            while not daemon.held.empty():
                daemon.held.get_nowait()
            await asyncio.sleep(0.01)
        subprocess.run(python(hosts.client, SEND, INTERNET[4], "1"), check=True)
        assert await daemon.next()

    in_loop(filters, body)


def test_one_neighbour_holds_no_more_than_its_bound(hosts: Lab, filters: tuple[Path, Path]) -> None:
    async def body(daemon: Daemon) -> None:
        subprocess.run(python(hosts.client, SEND, INTERNET[4], "200"), check=True)
        for _ in range(20):
            await daemon.next()
        while daemon.queue.counters()["dropped"] < 180:
            await asyncio.sleep(0)
        counters = daemon.queue.counters()
        assert (counters["held"], counters["over_limit"]) == (20, 180)
        assert daemon.queue.expire(1000) == [] and len(daemon.queue.expire(0)) == 20
        counters = daemon.queue.counters()
        assert (counters["held"], counters["dropped"]) == (0, 200)

    in_loop(filters, body, per_neighbour_max=20)


def test_neighbours_that_never_paid_leave_half_of_the_places(hosts: Lab, filters: tuple[Path, Path]) -> None:
    """Keys and link addresses cost nothing, so a bound for each neighbour alone doesn't keep places for others."""

    async def body(daemon: Daemon) -> None:
        turns = ((False, 20), (True, 40), (False, 40), (False, 20))
        for turn, (has_paid, held) in enumerate(turns, start=1):
            daemon.has_paid = has_paid
            if turn == len(turns):
                daemon.queue.expire(0)
            subprocess.run(python(hosts.client, SEND, INTERNET[4], "50"), check=True)
            while sum(daemon.queue.counters()[name] for name in ("held", "dropped")) < 50 * turn:
                await asyncio.sleep(0)
            assert daemon.queue.counters()["held"] == held

    in_loop(filters, body, held_max=40)


def test_a_flood_leaves_the_loop_time_between_bursts(hosts: Lab, filters: tuple[Path, Path]) -> None:
    async def body(daemon: Daemon) -> None:
        subprocess.run(python(hosts.client, SEND, INTERNET[4], "640"), check=True)
        turns = 0
        while daemon.held.qsize() < 512:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 2, "512 packets came in fewer turns of the loop than bursts of 256 allow"

    in_loop(filters, body)


def test_the_kernels_overflow_is_counted(hosts: Lab, filters: tuple[Path, Path]) -> None:
    async def body(daemon: Daemon) -> None:
        # The loop gets no turn, so nothing is read until the socket or the queue is full.
        subprocess.run(python(hosts.client, SEND, INTERNET[4], "12000"), check=True)
        assert daemon.queue.counters()["queue_overflow"] > 0

    in_loop(filters, body)


def test_a_number_in_use_is_a_clear_error(hosts: Lab, filters: tuple[Path, Path]) -> None:
    async def body(daemon: Daemon) -> None:
        second = HeldQueue(QUEUE_NUMBER, daemon.held.put_nowait, lambda name: True)
        with pytest.raises(KernelError, match=f"{QUEUE_NUMBER} is in use.*QUEUE_NUMBER"):
            second.start(asyncio.get_running_loop())
        assert (taken := try_number(QUEUE_NUMBER)).ok is False and "is in use by another program" in taken.found

    in_loop(filters, body)


CHILD = """
import asyncio, sys
from ngp.modules.network.queue import HeldQueue
async def main():
    queue = HeldQueue(int(sys.argv[1]), lambda held: print("held", flush=True), lambda name: True)
    queue.start(asyncio.get_running_loop())
    print("ready", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
COUNT = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 1000)); print("ready", flush=True); sys.stdin.readline()
s.settimeout(0.3); n = 0
try:
    while s.recv(1000): n += 1
except TimeoutError: print(n)
"""


def test_kill_drops_what_was_held_and_what_follows(hosts: Lab, filters: tuple[Path, Path]) -> None:
    Gate(paths(filters[0], filters[0], filters[0]), desired()).apply()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(QUEUE_NUMBER)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    receiver = subprocess.Popen(
        python(hosts.internet, COUNT, INTERNET[4]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child, receiver:
        try:
            assert child.stdout and receiver.stdout
            assert child.stdout.readline() == "ready\n" and receiver.stdout.readline() == "ready\n"
            subprocess.run(python(hosts.client, SEND, INTERNET[4], "1"), check=True)
            assert child.stdout.readline() == "held\n"
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        subprocess.run(python(hosts.client, SEND, INTERNET[4], "3"), check=True)
        assert receiver.communicate("\n")[0] == "0\n"
    Gate(paths(filters[1], filters[1], filters[1]), desired()).apply()
    with subprocess.Popen(
        python(hosts.internet, COUNT, INTERNET[4]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as control:
        assert control.stdout and control.stdout.readline() == "ready\n"
        subprocess.run(python(hosts.client, SEND, INTERNET[4], "1"), check=True)
        assert control.communicate("\n")[0] == "1\n", "the way itself is open, so 0 above meant dropped"


def test_a_queue_without_rights_is_refused_and_no_defect() -> None:
    """`ngp check` tries it without root too, and reports the result."""
    child = os.fork()
    if not child:
        os.setresuid(65534, 65534, 65534)
        tried = try_number(QUEUE_NUMBER)
        os._exit(0 if not tried.ok and "run as root" in tried.found else 1)
    assert os.waitpid(child, 0)[1] == 0
