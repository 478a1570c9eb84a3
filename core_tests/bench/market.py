"""Market: the real daemons of one gateway and of one or more clients, with many destinations behind the gateway.

The gateway has only a default route, so each destination is a contract of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from core_tests.bench.stage import MANY_NET
from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.topologies import REMOTE_NETS, ThreeHosts, three_hosts
from core_tests.trade import Conf, start_all

_KIB = 1024
Equip = Callable[[ThreeHosts], Mapping[str, Conf]]


@dataclass(frozen=True, slots=True)
class Market:
    """The daemons that trade; `clients` (hosts) and `buyers` (daemons) have the same order."""

    internet: Host
    gateway: Host
    seller: Daemon
    clients: tuple[Host, ...]
    buyers: tuple[Daemon, ...]
    households: tuple[Host, ...] = ()

    def contracts(self) -> int:
        """Return how many contracts the gateway has now."""
        return int(self.seller.json("status")["contracts"])

    def start(self) -> None:
        """Start all daemons, and wait until they know each other."""
        start_all(self.seller, *self.buyers)
        self.await_acquainted()

    def start_anew(self) -> None:
        """Start the stopped daemons as if they had never run: with new keys, and without payments or debts."""
        for daemon in (self.seller, *self.buyers):
            shutil.rmtree(daemon.state_dir)
            daemon.state_dir.mkdir(mode=0o700)
        self.start()

    def stop(self) -> None:
        """Stop all daemons: traffic is then forwarded as if ngp weren't there."""
        for daemon in (self.seller, *self.buyers):
            daemon.stop()

    def await_acquainted(self) -> None:
        """Wait until all daemons know each other."""
        await_until(lambda: len(_known(self.seller)) == len(self.buyers), what="the gateway knows all clients")
        await_until(lambda: all(map(_known, self.buyers)), what="all clients know the gateway")


def open_market(
    lab: Lab,
    clients: int = 1,
    traders: int | None = None,
    keys: Conf | None = None,
    equip: Equip = lambda _: {},
) -> Market:
    """Build the network and start the daemons; arguments as for `build_market`."""
    made = build_market(lab, clients, traders, keys, equip)
    made.start()
    return made


def build_market(
    lab: Lab,
    clients: int = 1,
    traders: int | None = None,
    keys: Conf | None = None,
    equip: Equip = lambda _: {},
    *,
    households: int = 0,
    masquerade: bool = False,
) -> Market:
    """Build the network; no daemon runs yet.

    Args:
        clients: hosts beside the gateway, the first `traders` of them with a daemon (None: all).
        keys: of net.conf.
        equip: called when the hosts exist; returns further keys of net.conf by the host's name.
        households, masquerade: as for `three_hosts`.
    """
    net = three_hosts(lab, clients=clients, households=households, masquerade=masquerade)
    for remote in REMOTE_NETS:
        net.gateway.ip("-6" if ":" in remote else "-4", "route", "del", remote)
    net.internet.owns(MANY_NET)
    own = equip(net)

    def daemon(host: Host, role: Conf) -> Daemon:
        common: Conf = {"MESH_INTERFACES": "mesh0", **(keys or {})}
        return host.daemon({**common, **role, **own.get(host.name, {})}, start=False)

    seller = daemon(net.gateway, {"IGNORE_INTERFACE": "wan0", "BUY": False})
    buyers = tuple(daemon(host, {"SELL": False}) for host in net.clients[:traders])
    return Market(net.internet, net.gateway, seller, net.clients, buyers, net.households)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    for text in Path(f"/proc/{pid}/status").read_text().splitlines():
        if text.startswith("VmRSS:"):
            return int(text.split()[1]) * _KIB
    return 0


def pss_bytes(pid: int) -> int:
    """Return a process's proportional resident memory: memory that others have mapped too counts in part."""
    for text in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if text.startswith("Pss:"):
            return int(text.split()[1]) * _KIB
    return 0


def _known(daemon: Daemon) -> list[object]:
    return [row for row in daemon.ask("neighbours") if row["up"]]
