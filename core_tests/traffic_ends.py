"""The ends of `core_tests.traffic`: a program that runs inside a host and answers with lines of JSON.

It uses only the standard library, and little of that: hundreds of these are started, and each takes longer to start
than to do its work.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

TYPE_CHECKING = False  # that of `typing` takes as long to import as half of the rest
if TYPE_CHECKING:
    import hashlib

CHUNK_BYTES = 65536
RECEIVE_BUFFER_BYTES = 64 * 1024 * 1024
SO_RCVBUFFORCE = 33
MOST_BEHIND_S = 0.02  # a longer delay of a busy machine isn't made up for by a burst
SHORTEST_SLEEP_S = 0.001  # at 20,000 packets a second there is no time to sleep before each


def family(address: str) -> socket.AddressFamily:
    """Return the family of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def sha256(data: bytes = b"") -> hashlib._Hash:
    """Begin a checksum. Imported here, since only TCP's ends need it and OpenSSL comes with it."""
    import hashlib

    return hashlib.sha256(data)


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def serve_udp(address: str, port: int, echo: bool) -> None:
    """Receive datagrams until standard input ends; each line of input asks for the count."""
    sock = socket.socket(family(address), socket.SOCK_DGRAM)
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
        self.listener = socket.create_server((address, port), family=family(address), backlog=128)
        self.echo = echo
        self.streams: dict[socket.socket, hashlib._Hash] = {}
        self.sizes: dict[socket.socket, int] = {}
        self.count = self.size = 0
        self.all = sha256()

    def serve(self) -> None:
        """Serve until standard input ends; each line of input asks for the count."""
        _say(count=0, bytes=0, sha256="")
        while True:
            ready: list[object] = select.select([self.listener, sys.stdin, *self.streams], [], [])[0]
            for stream in [stream for stream in self.streams if stream in ready]:
                self.take(stream)
            if self.listener in ready:
                stream, _address = self.listener.accept()
                self.streams[stream], self.sizes[stream] = sha256(), 0
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
    sock = socket.socket(family(address), socket.SOCK_DGRAM)
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
    sent, checksum = 0, sha256()
    while sent < size:
        seed = sha256(sent.to_bytes(8, "big")).digest()
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
    listener = socket.create_server((address, port), family=family(address))
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
