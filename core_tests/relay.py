"""A cable with delay and loss: a program that passes frames between two interfaces of a host of its own.

The kernel's netem does this too, but not every kernel has it, so both ends of such a cable look the same everywhere. It
uses only the standard library. Loss and delay are those of each direction. The ends of the cable must write checksums
themselves, since what an interface would add later is missing in a frame that is read from a socket.
"""

from __future__ import annotations

import random
import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_IGNORE_OUTGOING = 23  # linux/if_packet.h, since Linux 4.20
SO_RCVBUFFORCE = 33
BUFFER_BYTES = 64 * 1024 * 1024
FRAME_BYTES = 65536


def opened(interface: str) -> socket.socket:
    """Open an interface for whole frames that arrive there."""
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    one.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    one.bind((interface, ETH_P_ALL))
    one.setblocking(False)
    return one


def main(one: str, two: str, delay_us: float, loss_percent: float) -> None:
    """Pass frames between two interfaces until the process is killed."""
    ends = opened(one), opened(two)
    delay_s = delay_us / 1e6
    dice = random.Random(f"{one} {two}")
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()  # the delay is constant: in the order of departure
    print("ready", flush=True)
    while True:
        patience_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for source in select.select(ends, [], [], patience_s)[0]:
            due = time.monotonic() + delay_s
            frame = source.recv(FRAME_BYTES)
            if dice.random() * 100 >= loss_percent:
                waiting.append((due, ends[1] if source is ends[0] else ends[0], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, out, frame = waiting.popleft()
            with suppress(OSError):  # the interface is down, or its queue is full: the frame is lost
                out.send(frame)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
