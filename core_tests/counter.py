"""An independent count of L3 bytes at an interface, by source, destination, protocol and direction.

Bills are checked against this count, so it shares no code with the product. It is a packet socket in a process of its
own, which uses only the standard library and adds up the lengths in the IP headers. It doesn't expand superpackets, so
the interface must see frames as they are on the wire (GRO off there, and TSO off at the edge of the sender). A packet
longer than the interface's MTU is a superpacket, and a full socket buffer loses packets. Either makes the count
worthless, and then the next reading fails instead of giving a wrong number.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

PROGRAM = Path(__file__).with_name("sniffer.py")

Direction = Literal["in", "out"]


@dataclass(frozen=True, slots=True)
class Flow:
    """The key of one line of the count; `protocol` is IANA's number (6 TCP, 17 UDP, 1 and 58 ICMP)."""

    direction: Direction
    source: str
    destination: str
    protocol: int


@dataclass(frozen=True, slots=True)
class Tally:
    """How much one flow has carried: packets, and L3 bytes with the IP header."""

    packets: int
    bytes: int


class CounterError(AssertionError):
    """The count can't be trusted: frames were lost, or weren't as they are on the wire."""


class Counter:
    """A running count at one interface; made by `Host.counter`."""

    def __init__(
        self, popen: Callable[..., subprocess.Popen[str]], interface: str, only: Direction | None = None
    ) -> None:
        self.interface = interface
        self._process = popen(
            *(sys.executable, "-I", "-S", str(PROGRAM), interface, only or ""),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._answer("the socket")

    def read(self) -> dict[Flow, Tally]:
        """Return all flows counted so far, with every frame that has arrived before this call.

        Raises: CounterError when frames were lost or superpackets were seen.
        """
        _pipe(self._process.stdin).write("\n")
        _pipe(self._process.stdin).flush()
        said = self._answer("a reading")
        if said["dropped"] or said["too_long"]:
            raise CounterError(
                f"{self.interface}: the count is worthless: {said['dropped']} frames lost, {said['too_long']} longer "
                "than the MTU; switch GRO off here and TSO off at the sender, or send slower"
            )
        return {Flow(*flow): Tally(*tally) for flow, tally in said["flows"]}

    def total(
        self,
        direction: Direction | None = None,
        source: str | None = None,
        destination: str | None = None,
        protocol: int | None = None,
    ) -> Tally:
        """Add up the flows that match all given values. Raises: CounterError as `read`."""
        wanted = (direction, source, destination, protocol)
        packets = size = 0
        for flow, tally in self.read().items():
            found = (flow.direction, flow.source, flow.destination, flow.protocol)
            if all(want is None or want == is_ for want, is_ in zip(wanted, found, strict=True)):
                packets += tally.packets
                size += tally.bytes
        return Tally(packets, size)

    def bytes_of(self, address: str) -> int:
        """Return the bytes of all packets from or to an address. Raises: CounterError as `read`."""
        return sum(tally.bytes for flow, tally in self.read().items() if address in (flow.source, flow.destination))

    def stop(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            _pipe(pipe).close()
        self._process.kill()
        self._process.wait()

    def _answer(self, what: str) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise CounterError(f"{self.interface}: the counting process ended before {what}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
