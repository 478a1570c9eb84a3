"""Traffic of exact size: UDP with counts and rates, TCP with checksums, echoes and pings, over IPv4 and IPv6.

The functions at the top run in the test and start this same file inside a host as a program (standard library only).
The program answers with lines of JSON, so each end reports by itself what it sent and received.
"""

from __future__ import annotations

import hashlib
import json
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core_tests.host import Host

UDP_HEADER_BYTES = 8
IP_HEADER_BYTES = {4: 20, 6: 40}
CHUNK_BYTES = 65536
RECEIVE_BUFFER_BYTES = 64 * 1024 * 1024
SO_RCVBUFFORCE = 33
# The protocol, and the type of a request.
ECHO = {socket.AF_INET: (socket.IPPROTO_ICMP, 8), socket.AF_INET6: (socket.IPPROTO_ICMPV6, 128)}
PATIENCE_S = 20.0  # for packets that come at once unless the machine is busy
MOST_BEHIND_S = 0.02  # a longer delay of a busy machine isn't made up for by a burst
SHORTEST_SLEEP_S = 0.001  # at 20,000 packets a second there is no time to sleep before each


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
        command = (sys.executable, "-I", "-S", __file__, kind, address, str(port))
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
    family = _family(address)
    sock = socket.socket(family, socket.SOCK_DGRAM, ECHO[family][0])
    sock.connect((address, 0))
    return sock


def _request_echo(sock: socket.socket, address: str, number: int, payload_bytes: int) -> None:
    """Send one request; the kernel writes its identifier and checksum."""
    request = struct.pack("!BBHHH", ECHO[_family(address)][1], 0, 0, 0, number) + bytes(payload_bytes)
    try:
        sock.send(request)
    except OSError:
        sock.send(request)  # the socket reported an earlier request's ICMP error instead of sending


def start(host: Host, *words: object) -> subprocess.Popen[str]:
    """Start one of this file's programs in a host; it ends with the laboratory at the latest."""
    return host.popen(sys.executable, "-I", "-S", __file__, *map(str, words), stdout=subprocess.DEVNULL)


def _run(host: Host, timeout_s: float, *words: object) -> dict[str, Any]:
    done = host.run(sys.executable, "-I", "-S", __file__, *map(str, words), timeout_s=timeout_s)
    if done.returncode:
        raise TrafficError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


# --- the program that runs inside a host ---


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def serve_udp(address: str, port: int, echo: bool) -> None:
    """Receive datagrams until standard input ends; each line of input asks for the count."""
    sock = socket.socket(_family(address), socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    sock.bind((address, port))
    sock.setblocking(False)
    count = size = 0
    _say(count=0, bytes=0)
    while True:
        ready, _, _ = select.select([sock, sys.stdin], [], [])
        while True:
            try:
                data, sender = sock.recvfrom(CHUNK_BYTES)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error for an echo that we sent; the next datagram may pass
            count, size = count + 1, size + len(data)
            if echo:
                sock.sendto(data, sender)
        if sys.stdin in ready:
            if not sys.stdin.readline():
                return
            _say(count=count, bytes=size)


class TcpServer:
    """A server for many streams at once: it counts each and answers with an echo or, at its end, with a receipt."""

    def __init__(self, address: str, port: int, echo: bool) -> None:
        self.listener = socket.create_server((address, port), family=_family(address), backlog=128)
        self.echo = echo
        self.streams: dict[socket.socket, Any] = {}
        self.sizes: dict[socket.socket, int] = {}
        self.count = self.size = 0
        self.all = hashlib.sha256()

    def serve(self) -> None:
        """Serve until standard input ends; each line of input asks for the count."""
        _say(count=0, bytes=0, sha256="")
        while True:
            ready: list[object] = select.select([self.listener, sys.stdin, *self.streams], [], [])[0]
            for stream in [stream for stream in self.streams if stream in ready]:
                self.take(stream)
            if self.listener in ready:
                stream, _address = self.listener.accept()
                self.streams[stream], self.sizes[stream] = hashlib.sha256(), 0
                self.count += 1
            if sys.stdin in ready:
                if not sys.stdin.readline():
                    return
                _say(count=self.count, bytes=self.size, sha256=self.all.hexdigest())

    def take(self, stream: socket.socket) -> None:
        """Read a stream's data; a stream that breaks is dropped."""
        try:
            data = stream.recv(CHUNK_BYTES)
            if data:
                self.size += len(data)
                self.sizes[stream] += len(data)
                self.streams[stream].update(data)
                self.all.update(data)
                if self.echo:
                    stream.sendall(data)
                return
            if not self.echo:
                stream.sendall(f"{self.sizes[stream]} {self.streams[stream].hexdigest()}\n".encode())
        except OSError:
            pass  # broken by a cut: bytes that arrived are counted, and the sender sees its own error
        stream.close()
        del self.streams[stream], self.sizes[stream]


def send_udp(address: str, port: int, count: int, size: int, rate_pps: float, echo_wait_s: float) -> None:
    """Send datagrams, each with its number in its first bytes, on a schedule that doesn't drift.

    Args: echo_wait_s: how long to wait for the echo of each before the next is sent, 0 for not at all.
    """
    sock = socket.socket(_family(address), socket.SOCK_DGRAM)
    sock.connect((address, port))
    done = 0
    began = time.monotonic()
    for number in range(count):
        ahead_s = began + number / rate_pps - time.monotonic() if rate_pps else 0.0
        if ahead_s > SHORTEST_SLEEP_S:
            time.sleep(ahead_s)
        elif ahead_s < -MOST_BEHIND_S:
            began -= ahead_s
        data = number.to_bytes(8, "big").ljust(size, b".")[:size]
        try:
            sock.send(data)
        except OSError:
            sock.send(data)  # the socket reported an earlier datagram's ICMP error instead of sending
        done += not echo_wait_s or _echoed(sock, data, echo_wait_s)
    _say(count=done)


def _echoed(sock: socket.socket, data: bytes, wait_s: float) -> bool:
    """Wait for the echo of one datagram; late echoes of earlier ones don't count."""
    deadline = time.monotonic() + wait_s
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            if sock.recv(CHUNK_BYTES) == data:
                return True
        except OSError:
            return False
    return False


def send_tcp(address: str, port: int, size: int, timeout_s: float) -> None:
    """Send a stream that doesn't compress or repeat within a chunk, and compare the receiver's receipt."""
    began = time.monotonic()
    stream = socket.create_connection((address, port), timeout=timeout_s)
    sent, checksum = 0, hashlib.sha256()
    while sent < size:
        seed = hashlib.sha256(sent.to_bytes(8, "big")).digest()
        chunk = (seed * (CHUNK_BYTES // len(seed)))[: size - sent]
        stream.sendall(chunk)
        checksum.update(chunk)
        sent += len(chunk)
    stream.shutdown(socket.SHUT_WR)
    receipt = stream.makefile().readline().split() or ["0", ""]
    _say(
        sent=sent,
        received=int(receipt[0]),
        intact=receipt == [str(sent), checksum.hexdigest()],
        seconds=time.monotonic() - began,
    )


def serve_source(address: str, port: int) -> None:
    """Serve one client after the other until standard input ends: each sends a number, and gets that many bytes."""
    listener = socket.create_server((address, port), family=_family(address))
    _say(count=0, bytes=0)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        stream, _address = listener.accept()
        with stream:
            try:
                left = int(stream.makefile().readline())
                while left:
                    left -= stream.send(bytes(min(left, CHUNK_BYTES)))
            except (OSError, ValueError):
                continue  # cut, or gone: the client counts the bytes that it got


def fetch(address: str, port: int, size: int, timeout_s: float) -> None:
    """Ask for a number of bytes and count those that come."""
    stream = socket.create_connection((address, port), timeout=timeout_s)
    stream.sendall(f"{size}\n".encode())
    received = 0
    while data := stream.recv(CHUNK_BYTES):
        received += len(data)
    _say(received=received)


def main(words: list[str]) -> None:
    """Run the program that the first word names."""
    kind, address, port = words[0], words[1], int(words[2])
    if kind == "udp-send":
        send_udp(address, port, int(words[3]), int(words[4]), float(words[5]), float(words[6]))
    elif kind == "tcp-send":
        send_tcp(address, port, int(words[3]), float(words[4]))
    elif kind == "tcp-fetch":
        fetch(address, port, int(words[3]), float(words[4]))
    elif kind == "tcp-source":
        serve_source(address, port)
    elif kind in ("udp-sink", "udp-echo"):
        serve_udp(address, port, echo=kind == "udp-echo")
    else:
        TcpServer(address, port, echo=kind == "tcp-echo").serve()


if __name__ == "__main__":
    main(sys.argv[1:])
