"""A client with two gateways between which it chooses (CHOOSE_ROUTES), and conversations while one of them fails.

    client - west0 --- mesh0 [west] wan0 --- internet (by a switch)
           - east0 --- mesh0 [east] wan0 -/
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.shell import await_until
from core_tests.topologies import REMOTE_NETS
from core_tests.trade import Conf, start_all, used

REMOTE, PORT = "198.51.100.1", 5000
OWN = "10.0.9.1"  # the client's own address, the same on both ways
NAMES = ("west", "east")
HANG_S = 20.0  # an outage that lasts longer would be a defect, however busy the machine is
CHOOSING: Conf = {"MESH_INTERFACES": ["west0", "east0"], "SELL": "no", "CHOOSE_ROUTES": "yes"}


class Conversation:
    """Datagrams to an echo and back, a hundred a second, while it is open."""

    def __init__(self, host: Host) -> None:
        self._socket = host.socket_inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.connect((REMOTE, PORT))
        self._socket.settimeout(0.01)
        self._ended = threading.Event()
        self.echoes: list[float] = []
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def _talk(self) -> None:
        while not self._ended.wait(0.01):
            try:
                self._socket.send(bytes(100))
                while self._socket.recv(200):
                    self.echoes.append(time.monotonic())
            except OSError:  # no echo yet, or an ICMP error
                continue

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def longest_pause_s(self, since: float) -> float:
        """Return the longest time without an echo, from an instant to the last echo."""
        times = [since, *(at for at in self.echoes if at >= since)]
        return max(after - before for before, after in zip(times, times[1:], strict=False))

    def await_echoes(self, count: int = 50) -> None:
        wanted = len(self.echoes) + count
        await_until(lambda: len(self.echoes) >= wanted, HANG_S, "echoes")


@dataclass(frozen=True, slots=True)
class Diamond:
    """A client, two gateways that hide it behind their own addresses, and the internet."""

    hosts: dict[str, Host]
    daemons: dict[str, Daemon]

    @property
    def client(self) -> Daemon:
        return self.daemons["client"]

    def key(self, name: str) -> str:
        return str(self.daemons[name].ask("status")["identity"])

    def leads_through(self, name: str) -> bool:
        said = self.hosts["client"].run("ip", "route", "get", REMOTE).stdout
        return f"dev {name}0" in said

    def sold(self, name: str) -> int:
        """Return the bytes that a gateway sold."""
        rows = self.daemons[name].ask("contracts", all=True, by_destination=False)
        return sum(used(row) for row in rows if row["role"] == "server")

    def cut_off(self, name: str) -> None:
        """End a gateway's daemon and its link to the client."""
        self.daemons[name].kill9()
        self.hosts[name].ip("link", "set", "mesh0", "down")

    def silence(self, name: str) -> None:
        """Let a gateway drop all that it gets, behind a link that stays up."""
        for command in ("iptables", "ip6tables"):  # messages between the daemons use both
            self.hosts[name].sh(command, "-t", "raw", "-I", "PREROUTING", "-i", "mesh0", "-j", "DROP")

    @contextmanager
    def conversation(self) -> Iterator[Conversation]:
        opened = Conversation(self.hosts["client"])
        try:
            yield opened
        finally:
            opened.close()


def gateway(price: str, **keys: object) -> Conf:
    trading = {"MESH_INTERFACES": "mesh0", "IGNORE_INTERFACE": "wan0", "BUY": "no"}
    return {**trading, "SELL_PRICE": price, "SELL_PRICE_MIN": price, **keys}


def diamond(lab: Lab, west: Conf, east: Conf, client: Conf = CHOOSING) -> Diamond:
    """Build the network and start all daemons; the client's own routes lead through west."""
    internet, user, exchange = lab.host("internet"), lab.host("client"), lab.switch("exchange")
    lab.link(End(internet, "wan0", "203.0.113.254/24"), exchange)
    internet.owns(REMOTE_NETS[0])
    hosts = {"internet": internet, "client": user}
    user.add_address("lo", f"{OWN}/32")
    for number, name in enumerate(NAMES, 1):
        router = hosts[name] = lab.host(name, forward=True)
        lab.link(End(user, f"{name}0", f"10.0.{number}.1/24"), End(router, "mesh0", f"10.0.{number}.2/24"))
        lab.link(End(router, "wan0", f"203.0.113.{number}/24"), exchange)
        router.route("default", via="203.0.113.254")
        router.masquerade("wan0")
        router.route(OWN, via=f"10.0.{number}.1")
        metric = str(100 * number)
        user.ip("route", "add", "default", "via", f"10.0.{number}.2", "metric", metric, "src", OWN)
    lab.await_carriers()
    confs = {"west": west, "east": east, "client": client}
    daemons = {name: hosts[name].daemon(conf, start=False) for name, conf in confs.items()}
    start_all(*daemons.values())
    traffic.udp_echo(internet, REMOTE, PORT)
    return Diamond(hosts, daemons)


def fail_over(net: Diamond, fail: Callable[[Diamond, str], None]) -> float:
    """Let east, which is chosen, fail during a conversation, and return how long that pauses, seconds.

    Args: fail: makes a gateway fail.
    """
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
        talk.await_echoes()
        failed_at = time.monotonic()
        fail(net, "east")
        await_until(lambda: net.leads_through("west"), HANG_S, "the other way")
        talk.await_echoes()
    return talk.longest_pause_s(failed_at)
