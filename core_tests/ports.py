"""TCP ports for programs that a test starts in its own network."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from itertools import count

_COUNT = count()


def free_ports(how_many: int) -> list[int]:
    """Return TCP ports without a listener, for programs in the network where the test runs.

    They are below the kernel's range for outgoing connections (ip_local_port_range), since a program that starts later
    could find those taken, and differ from the ports of other test processes.
    """
    found: list[int] = []
    while len(found) < how_many:
        port = 10_000 + os.getpid() % 200 * 100 + next(_COUNT) % 100
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found
