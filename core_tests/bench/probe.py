"""Probe: the time of a packet from the client's socket to the internet's, for one new destination after another."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from core_tests.bench import report
from core_tests.host import Host
from core_tests.namespaces import inside
from core_tests.shell import LabError
from ngp.daemon.desired import NEIGHBOUR_BURST, NEIGHBOUR_RATE

PROBE_PORT, CROWD_PORT = 7200, 7201
UNDER_WAY = 64
EVERY_S = 0.005
AGAIN_S = 1.5  # the gate holds a few packets of a destination in a second
PAUSE_S = 1 / NEIGHBOUR_RATE  # between new destinations: the gate drops what is above that rate
SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 64 << 20
_NUMBER, _TICKET = struct.Struct("=Q"), struct.Struct("=II")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The results of packets sent one after another: seconds of those that arrived in time, and the number sent."""

    sent: int
    seconds: tuple[float, ...]

    def text(self) -> str:
        """Return median and p99 in ms, and the number of lost packets, as text."""
        if not self.seconds:
            return f"none of {self.sent} arrived"
        median, p99 = (1000 * report.percentile(self.seconds, share) for share in (0.5, 0.99))
        missing = self.sent - len(self.seconds)
        return f"{median:.2f} / {p99:.2f} ms, " + (f"{missing} of {self.sent} lost" if missing else f"all {self.sent}")


class Probe:
    """One sender in the client and one receiver for all addresses of the internet's host, both IPv4."""

    def __init__(self, client: Host, internet: Host) -> None:
        with inside(client.namespace):
            self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with inside(internet.namespace):
            self._receiver = _receiver(PROBE_PORT)
        self._count = 0

    def one(self, address: str, timeout_s: float) -> float | None:
        """Send a packet and return the seconds until it arrived; None if it didn't."""
        self._count += 1
        number = _NUMBER.pack(self._count)
        began = time.perf_counter()
        self._sender.sendto(number, (address, PROBE_PORT))
        while (left := began + timeout_s - time.perf_counter()) > 0:
            if select.select([self._receiver], [], [], left)[0] and self._receiver.recv(64) == number:
                return time.perf_counter() - began
        return None

    def until_one(self, address: str, timeout_s: float) -> float | None:
        """Send a packet every few ms until one arrives; returns the seconds until then, None if none did."""
        began = time.perf_counter()
        while time.perf_counter() - began < timeout_s:
            if self.one(address, EVERY_S) is not None:
                return time.perf_counter() - began
        return None

    def each(self, addresses: Sequence[str], timeout_s: float = 2.0, pause_s: float = 0.0) -> Arrivals:
        """Send one packet to each address; the next is sent when the last has arrived."""
        found = []
        for address in addresses:
            found.append(self.one(address, timeout_s))
            time.sleep(pause_s)
        return Arrivals(len(found), tuple(seconds for seconds in found if seconds is not None))

    def close(self) -> None:
        """Close both sockets."""
        self._sender.close()
        self._receiver.close()


class Crowd:
    """Several clients that ask for many destinations at once, each with a bounded number under way.

    Args: payload_bytes: of each packet.
    """

    def __init__(self, clients: Sequence[Host], internet: Host, payload_bytes: int = _TICKET.size) -> None:
        self._padding = bytes(payload_bytes - _TICKET.size)
        self._senders = []
        for client in clients:
            with inside(client.namespace):
                self._senders.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with inside(internet.namespace):
            self._receiver = _receiver(CROWD_PORT)

    def open(self, shares: Sequence[Sequence[str]], patience_s: float = 20.0) -> float:
        """Send to each client's addresses until a packet of each has arrived; returns the seconds it took.

        Raises: LabError when nothing arrives for a while.
        """
        began = time.monotonic()
        waiting = [deque(enumerate(share)) for share in shares]
        under_way: list[OrderedDict[int, float]] = [OrderedDict() for _ in shares]
        last = time.monotonic()
        while any(waiting) or any(under_way):
            now = time.monotonic()
            for client, share in enumerate(shares):
                mine = under_way[client]
                most = NEIGHBOUR_BURST / 2 + (now - began) * NEIGHBOUR_RATE  # sent by now: the gate drops what is above
                while waiting[client] and len(mine) < UNDER_WAY and len(share) - len(waiting[client]) < most:
                    number, _ = waiting[client].popleft()
                    self._send(client, number, share[number])
                    mine[number] = now
                while mine and (oldest := next(iter(mine))) is not None and now - mine[oldest] > AGAIN_S:
                    self._send(client, oldest, share[oldest])
                    mine.move_to_end(oldest)
                    mine[oldest] = now
            if select.select([self._receiver], [], [], 0.01)[0]:
                self._take(under_way)
                last = now
            elif now - last > patience_s:
                missing = sum(map(len, waiting)) + sum(map(len, under_way))
                raise LabError(f"no contract was opened for {patience_s} s; {missing} are missing")
        return time.monotonic() - began

    def close(self) -> None:
        """Close all sockets."""
        for one in (*self._senders, self._receiver):
            one.close()

    def _send(self, client: int, number: int, address: str) -> None:
        self._senders[client].sendto(_TICKET.pack(client, number) + self._padding, (address, CROWD_PORT))

    def _take(self, under_way: Sequence[OrderedDict[int, float]]) -> None:
        while True:
            try:
                client, number = _TICKET.unpack(self._receiver.recv(_TICKET.size))
            except BlockingIOError:
                return
            if client < len(under_way):
                under_way[client].pop(number, None)


def addresses(first: str, start: int, count: int) -> list[str]:
    """Return `count` addresses, from the one `start` after the first."""
    base = int(ip_address(first)) + start
    return [str(ip_address(base + number)) for number in range(count)]


def _receiver(port: int) -> socket.socket:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
    receiver.bind(("0.0.0.0", port))
    receiver.setblocking(False)
    return receiver
