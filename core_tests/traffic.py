"""Traffic of exact size: UDP with counts and rates, TCP with checksums, echoes and pings, over IPv4 and IPv6.

The functions run in the test and start `traffic_ends.py` inside a host. That program answers with lines of JSON, so
each end reports by itself what it sent and received.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from core_tests import traffic_ends
from core_tests.traffic_ends import CHUNK_BYTES, family

if TYPE_CHECKING:
    from core_tests.host import Host

PROGRAM = traffic_ends.__file__
UDP_HEADER_BYTES = 8
IP_HEADER_BYTES = {4: 20, 6: 40}
PING_BYTES = {4: 84, 6: 104}  # an echo request of `ping` as it is, or its answer, by IP version
# The protocol, and the type of a request.
ECHO = {socket.AF_INET: (socket.IPPROTO_ICMP, 8), socket.AF_INET6: (socket.IPPROTO_ICMPV6, 128)}
PATIENCE_S = 20.0  # for packets that come at once unless the machine is busy


class TrafficError(AssertionError):
    """An end of the traffic couldn't do its work (dropped packets are no such error)."""


@dataclass(frozen=True, slots=True)
class Pings:
    """The counts of a `ping`."""

    sent: int
    received: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """A TCP transfer as both ends saw it; `intact` if all of it arrived unchanged."""

    sent_bytes: int
    received_bytes: int
    intact: bool
    seconds: float


class Server:
    """A receiver or echo server running in a host until it is stopped or the laboratory ends."""

    def __init__(self, host: Host, kind: str, address: str, port: int) -> None:
        self.address, self.port = address, port
        command = (sys.executable, "-I", "-S", PROGRAM, kind, address, str(port))
        self._process = host.popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answer()

    def received(self) -> tuple[int, int]:
        """Return packets (UDP) or connections (TCP), and payload bytes, received until now."""
        _pipe(self._process.stdin).write("\n")
        _pipe(self._process.stdin).flush()
        said = self._answer()
        return int(said["count"]), int(said["bytes"])

    def sha256(self) -> str:
        """Return the checksum of all payload received until now (`tcp-sink` only)."""
        _pipe(self._process.stdin).write("\n")
        _pipe(self._process.stdin).flush()
        return str(self._answer()["sha256"])

    def stop(self) -> None:
        """End the server."""
        _pipe(self._process.stdin).close()
        _pipe(self._process.stdout).close()
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise TrafficError(f"the server on {self.address} port {self.port} ended by itself")
        answer: dict[str, Any] = json.loads(line)
        return answer


def udp_sink(host: Host, address: str, port: int) -> Server:
    """Receive and count datagrams."""
    return Server(host, "udp-sink", address, port)


def udp_echo(host: Host, address: str, port: int) -> Server:
    """Send every datagram back to its sender."""
    return Server(host, "udp-echo", address, port)


def tcp_sink(host: Host, address: str, port: int) -> Server:
    """Receive and count streams; each sender gets the number of bytes that arrived and their checksum."""
    return Server(host, "tcp-sink", address, port)


def tcp_echo(host: Host, address: str, port: int) -> Server:
    """Send every stream back to its sender."""
    return Server(host, "tcp-echo", address, port)


def tcp_source(host: Host, address: str, port: int) -> Server:
    """Send every client as many bytes as it asks for."""
    return Server(host, "tcp-source", address, port)


def tcp_fetch(host: Host, address: str, port: int, *, size_bytes: int, timeout_s: float = 60.0) -> int:
    """Ask a `tcp_source` for a number of bytes and return how many came before its end. Raises: TrafficError."""
    return int(_run(host, timeout_s + 5, "tcp-fetch", address, port, size_bytes, timeout_s)["received"])


def l3_bytes(version: int, payload_bytes: int, count: int = 1) -> int:
    """Return the size of `count` datagrams on the wire: payload, UDP header and IP header."""
    return count * (payload_bytes + UDP_HEADER_BYTES + IP_HEADER_BYTES[version])


def udp_send(
    host: Host,
    address: str,
    port: int,
    *,
    count: int,
    payload_bytes: int = 100,
    rate_pps: float = 0.0,
    await_echoes: bool = False,
    echo_wait_s: float = PATIENCE_S,
    timeout_s: float = 60.0,
) -> int:
    """Send datagrams and return how many were sent, or with `await_echoes` how many came back.

    Args: rate_pps in packets a second, 0 for as fast as one process can; await_echoes: wait for the echo of each, or
    for its refusal, before sending the next; echo_wait_s: how long to wait if some echoes won't come.
    """
    words = ("udp-send", address, port, count, payload_bytes, rate_pps, echo_wait_s if await_echoes else 0)
    return int(_run(host, timeout_s, *words)["count"])


def tcp_send(host: Host, address: str, port: int, *, size_bytes: int, timeout_s: float = 60.0) -> Transfer:
    """Send a stream to a `tcp_sink`, wait for its receipt, and compare length and checksum.

    Raises: TrafficError when there is no connection, or no end within `timeout_s`.
    """
    said = _run(host, timeout_s + 5, "tcp-send", address, port, size_bytes, timeout_s)
    return Transfer(said["sent"], said["received"], said["intact"], said["seconds"])


def ping(
    host: Host,
    address: str,
    *,
    count: int = 1,
    payload_bytes: int = 56,
    interval_s: float = 0.05,
    wait_s: float = PATIENCE_S,
) -> Pings:
    """Send `count` echo requests from a host and return how many were answered, as soon as all are answered or refused.

    The first answer is awaited before the other requests are sent: if a gateway tracks connections and holds several
    packets of a flow, Linux lets only one of them go (docs/architecture.md, Known limits).

    Args:
        interval_s: seconds from one request to the next.
        wait_s: how long to wait for the first and the last answers. They come late on a busy machine, so the bound is
            generous; a caller that expects no answer sets it.
    """
    with host.socket_inside(lambda: _echo_socket(address)) as sock:
        answered: set[bytes] = set()
        refused = 0
        for number in range(1, count + 1):
            _request_echo(sock, address, number, payload_bytes)
            awaited = number in (1, count)
            deadline = time.monotonic() + (wait_s if awaited else interval_s)
            while (left := deadline - time.monotonic()) > 0 and not (awaited and len(answered) + refused >= number):
                sock.settimeout(left)
                try:
                    answered.add(sock.recv(CHUNK_BYTES)[6:8])
                except TimeoutError:
                    break
                except OSError:  # an ICMP error: that request was refused
                    refused += 1
        return Pings(count, len(answered))


def _echo_socket(address: str) -> socket.socket:
    kind = family(address)
    sock = socket.socket(kind, socket.SOCK_DGRAM, ECHO[kind][0])
    sock.connect((address, 0))
    return sock


def _request_echo(sock: socket.socket, address: str, number: int, payload_bytes: int) -> None:
    """Send one request; the kernel writes its identifier and checksum."""
    request = struct.pack("!BBHHH", ECHO[family(address)][1], 0, 0, 0, number) + bytes(payload_bytes)
    try:
        sock.send(request)
    except OSError:
        sock.send(request)  # the socket reported an earlier request's ICMP error instead of sending


def start(host: Host, *words: object) -> subprocess.Popen[str]:
    """Start one end in a host; it ends with the laboratory at the latest."""
    return host.popen(sys.executable, "-I", "-S", PROGRAM, *map(str, words), stdout=subprocess.DEVNULL)


def _run(host: Host, timeout_s: float, *words: object) -> dict[str, Any]:
    done = host.run(sys.executable, "-I", "-S", PROGRAM, *map(str, words), timeout_s=timeout_s)
    if done.returncode:
        raise TrafficError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
