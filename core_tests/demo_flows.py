"""The traffic of `tools/demo`: paced flows that are echoed, in processes of their own inside a host.

A flow keeps its rate until it is told to end, and waits for packets that are still on their way. Then it reports what
it sent, what came back and how long the slowest answer took, which shows a packet that was lost or late at a renewal. A
flow that is cut goes on sending: those packets must not arrive. Like `core_tests.traffic`, the lower half runs as a
program that uses only the standard library.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core_tests.host import Host

PAYLOAD_BYTES = 1000
TICK_S = 0.02
DRAIN_S = 30.0  # a flow ends when all echoes are back; if not all can come, it is given a shorter time
PROBE_S = 30.0
PROBE_BYTES = 56  # as `ping` sends
MOST_WAITING_BYTES = 65536


@dataclass(frozen=True, slots=True)
class FlowReport:
    """A flow's report at its end: bytes of payload, and the slowest answer (UDP only), milliseconds."""

    sent_bytes: int
    echoed_bytes: int
    slowest_ms: float


class Flow:
    """A flow that runs until `end`.

    Args:
        protocol: udp or tcp.
        bytes_per_s: payload in one direction.
        drain_s: how long the end waits for packets that are still on their way.
    """

    def __init__(
        self, host: Host, protocol: str, address: str, port: int, bytes_per_s: int, drain_s: float = DRAIN_S
    ) -> None:
        self.protocol, self.address = protocol, address
        words = (protocol, address, str(port), str(bytes_per_s), str(drain_s))
        self._process = host.popen(
            *(sys.executable, "-I", "-S", __file__, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def end(self) -> FlowReport:
        """End the flow and return its report. Raises: AssertionError when it ended by itself."""
        said, _ = self._process.communicate("", timeout=120)
        if not said:
            raise AssertionError(f"the {self.protocol} flow to {self.address} ended by itself: see above")
        answer: dict[str, Any] = json.loads(said)
        return FlowReport(answer["sent"], answer["echoed"], answer["slowest_ms"])


def probe(host: Host, address: str, port: int, count: int) -> list[float]:
    """Send datagrams one after the other to an echo, and return how long each answer took, milliseconds.

    Raises: AssertionError when an answer didn't come.
    """
    answer = json.loads(host.sh(sys.executable, "-I", "-S", __file__, "probe", address, str(port), str(count)))
    times: list[float] = answer["ms"]
    if len(times) != count:
        raise AssertionError(f"{address}: {len(times)} of {count} packets came back")
    return times


# --- the program that runs inside a host ---


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _told_to_end(timeout_s: float, *others: socket.socket) -> bool:
    ready, _, _ = select.select([sys.stdin, *others], [], [], max(0.0, timeout_s))
    return sys.stdin in ready


def run_probe(address: str, port: int, count: int) -> None:
    """Send and wait, `count` times."""
    sock = socket.socket(_family(address), socket.SOCK_DGRAM)
    sock.connect((address, port))
    sock.settimeout(PROBE_S)
    times = []
    for number in range(count):
        began = time.monotonic()
        sock.send(number.to_bytes(8, "big").ljust(PROBE_BYTES, b"."))
        try:
            sock.recv(65536)
        except OSError:
            break
        times.append((time.monotonic() - began) * 1000)
    print(json.dumps({"ms": times}))


def run_udp(address: str, port: int, bytes_per_s: int, drain_s: float) -> None:
    """Send datagrams on a schedule that doesn't drift; each carries the time it was sent."""
    sock = socket.socket(_family(address), socket.SOCK_DGRAM)
    sock.connect((address, port))
    sock.setblocking(False)
    sent = echoed = 0
    slowest_s = 0.0
    began = time.monotonic()

    def take() -> None:
        nonlocal echoed, slowest_s
        while True:
            try:
                data = sock.recv(65536)
            except OSError:  # nothing more, or the ICMP error for a packet that was cut
                return
            echoed += len(data)
            slowest_s = max(slowest_s, time.monotonic() - struct.unpack_from("d", data)[0])

    while True:
        due = began + sent / bytes_per_s
        if _told_to_end(due - time.monotonic(), sock):
            break
        take()
        if time.monotonic() >= due:
            try:
                sock.send(struct.pack("d", time.monotonic()).ljust(PAYLOAD_BYTES, b"."))
                sent += PAYLOAD_BYTES
            except OSError:  # an earlier packet's ICMP error came instead
                continue
    until = time.monotonic() + drain_s
    while echoed < sent and time.monotonic() < until:
        select.select([sock], [], [], until - time.monotonic())
        take()
    print(json.dumps({"sent": sent, "echoed": echoed, "slowest_ms": slowest_s * 1000}))


def run_tcp(address: str, port: int, bytes_per_s: int, drain_s: float) -> None:
    """Send a stream piece by piece and read its echo; a stream that hangs at the end is closed."""
    sock = socket.create_connection((address, port), timeout=PROBE_S)
    sock.setblocking(False)
    sent = echoed = 0
    ended = False
    began = time.monotonic()
    until = float("inf")
    while time.monotonic() < until:
        if not ended and _told_to_end(TICK_S):
            ended, until = True, time.monotonic() + drain_s
        wanted = int((time.monotonic() - began) * bytes_per_s)
        if not ended and wanted > sent:
            with suppress(BlockingIOError):
                sent += sock.send(bytes(min(wanted - sent, MOST_WAITING_BYTES)))
        if ended:
            if echoed == sent:
                break
            select.select([sock], [], [], TICK_S)
        with suppress(OSError):
            while data := sock.recv(65536):
                echoed += len(data)
    if echoed == sent:
        sock.shutdown(socket.SHUT_WR)
        select.select([sock], [], [], drain_s)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    print(json.dumps({"sent": sent, "echoed": echoed, "slowest_ms": 0.0}))


if __name__ == "__main__":
    kind, where, number, amount = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if kind == "probe":
        run_probe(where, number, amount)
    else:
        {"udp": run_udp, "tcp": run_tcp}[kind](where, number, amount, float(sys.argv[5]))
