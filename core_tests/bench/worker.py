"""The gateway's real datapath in a process of its own in the gateway's namespace, controlled by lines of JSON.

    python -m core_tests.bench.worker STATE_DIR CLIENT_MAC

Input is one JSON list a line, output one JSON value a line. The kernel's work is measured without a daemon: `grant`
does the same as a daemon at an accept.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from ngp.core.kernel import MOST_UNITS_AHEAD, AccountLimit, Grant, KernelNeighbour
from ngp.core.messages import Role
from ngp.core.prefixes import PackedPrefix
from ngp.modules.network.datapath import Datapath
from ngp.ports.network import DesiredNetwork

NEIGHBOUR = 1
CONTRACTS_MAX = 1 << 20
BATCH = 10_000
LIFETIME_S = 86400.0
GENEROUS_BYTES = 1 << 60
CLIENT = b"client" + bytes(26)
PRICE_MSAT_PER_GIB = 1 << 20  # the most that an account can have at once pays for 4 TB


def desired(buys: bool = False) -> DesiredNetwork:
    """Return a gateway that sells on mesh0 and leads to the internet by wan0. Args: buys: it buys as well."""
    return DesiredNetwork(
        mesh_interfaces=("mesh0",),
        lan_interfaces=(),
        upstream_interfaces=("wan0",),
        families=frozenset({4, 6}),
        sells=True,
        buys=buys,
        free=(),
        services=(),
        own_services=(),
        lane_bytes_s=32 << 10,
        lane_burst_bytes=1 << 20,
        queue_number=10325,
        link_port=10325,
        contracts_max=CONTRACTS_MAX,
        stranger_rate=200,
        stranger_burst=50,
        neighbour_rate=2000,
        neighbour_burst=500,
    )


class Worker:
    """The datapath with one client."""

    def __init__(self, state_dir: Path, mac: bytes) -> None:
        self.datapath = Datapath(state_dir)
        self.datapath.set_up(desired())
        self.datapath.set_neighbours([KernelNeighbour(NEIGHBOUR, "mesh0", mac, (), True, False)])
        self.datapath.limit_accounts([AccountLimit(CLIENT, MOST_UNITS_AHEAD)])
        self.granted = 0

    def many(self, first: str, count: int) -> float:
        """Make sure that `count` addresses from `first` on have contracts; returns seconds for the missing ones."""
        began = time.monotonic()
        start = int(ip_address(first))
        while self.granted < count:
            until = min(count, self.granted + BATCH)
            addresses = ((number, ip_address(start + number)) for number in range(self.granted, until))
            self.datapath.grant([self._grant(number.to_bytes(16, "big"), address) for number, address in addresses])
            self.granted = until
        return time.monotonic() - began

    def one(self, name: int, address: str, limit_bytes: int) -> None:
        """Open or top up one contract with the number `name`."""
        self.datapath.grant([self._grant((1 << 64 | name).to_bytes(16, "big"), ip_address(address), limit_bytes)])

    def read(self, name: int) -> dict[str, Any]:
        """Return the counters of a contract opened by `one`."""
        (found,) = self.datapath.read([(1 << 64 | name).to_bytes(16, "big")])
        return {key: value for key, value in found._asdict().items() if key != "contract"}

    def metered(self, buys: bool = False) -> None:
        """Gate and meter traffic."""
        self.datapath.apply(desired(buys))

    def describe(self) -> dict[str, str]:
        """Return the kernel features that the datapath uses."""
        return self.datapath.describe()

    def _grant(self, contract: bytes, to: IPv4Address | IPv6Address, limit_bytes: int = GENEROUS_BYTES) -> Grant:
        return Grant(
            *(contract, NEIGHBOUR, Role.SERVER, PackedPrefix.of(ip_network(to)), limit_bytes, LIFETIME_S),
            CLIENT,
            PRICE_MSAT_PER_GIB,
        )


def main(state_dir: str, mac: str) -> None:
    """Serve until standard input ends, then leave nothing behind."""
    worker = Worker(Path(state_dir), bytes.fromhex(mac.replace(":", "")))
    verbs: tuple[Callable[..., Any], ...] = (
        worker.many, worker.one, worker.read, worker.metered, worker.describe,
    )  # fmt: skip
    table = {verb.__name__: verb for verb in verbs}
    try:
        print(json.dumps("ready"), flush=True)
        for words in sys.stdin:
            verb, *arguments = json.loads(words)
            print(json.dumps(table[verb](*arguments)), flush=True)
    finally:
        worker.datapath.clean_up(leave_closed=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
