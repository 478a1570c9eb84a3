"""A client with two gateways between which it chooses (CHOOSE_ROUTES), and what it sends and receives while one of them
fails.

    client - west0 --- mesh0 [west] wan0 --- internet (by a switch)
           - east0 --- mesh0 [east] wan0 -/
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.session import Deal
from core_tests.shell import await_until
from core_tests.topologies import REMOTE_NETS
from core_tests.trade import Conf, start_all, used

REMOTES, PORT = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}, 5000
REMOTE = REMOTES[4]
OWN = {4: "10.0.9.1", 6: "2001:db8:9::1"}  # the client's own addresses, the same on both ways
DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}
MESH = {4: "10.0.{}.{}", 6: "2001:db8:1{}::{}"}  # the cable's number, the host's
WAN = {4: "203.0.113.{}", 6: "2001:db8:2::{}"}
INTERNET = 254
NAMES = ("west", "east")
HANG_S = 20.0  # an outage that lasts longer would be a defect, however busy the machine is
CHOOSING: Conf = {"MESH_INTERFACES": ["west0", "east0"], "SELL": "no", "CHOOSE_ROUTES": "yes"}


class Talk(ABC):
    """Something that the client exchanges with a host of the internet until it is closed, in a thread of its own."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    @abstractmethod
    def _talk(self) -> None:
        """Send and receive until it is to end."""

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()


class Conversation(Talk):
    """Datagrams to an echo and back, a hundred a second."""

    def __init__(self, host: Host) -> None:
        opened = host.socket_inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        opened.connect((REMOTE, PORT))
        opened.settimeout(0.01)
        self.echoes: list[float] = []
        super().__init__(opened)

    def _talk(self) -> None:
        while not self._ended.wait(0.01):
            try:
                self._socket.send(bytes(100))
                while self._socket.recv(200):
                    self.echoes.append(time.monotonic())
            except OSError:  # no echo yet, or an ICMP error
                continue

    def longest_pause_s(self, since: float) -> float:
        """Return the longest time without an echo, from an instant to the last echo."""
        times = [since, *(at for at in self.echoes if at >= since)]
        return max(after - before for before, after in zip(times, times[1:], strict=False))

    def await_echoes(self, count: int = 50) -> None:
        wanted = len(self.echoes) + count
        await_until(lambda: len(self.echoes) >= wanted, HANG_S, "echoes")


class Stream(Talk):
    """A TCP connection to an echo: what comes back is compared with what was sent.

    Attributes: echoed_bytes: came back unchanged. broken: the error that ended it; None: it goes on, or was closed.
    """

    def __init__(self, host: Host, remote: str) -> None:
        self.echoed_bytes = 0
        self.broken: OSError | None = None
        opened = host.connect((remote, PORT), HANG_S)
        super().__init__(opened)

    def _talk(self) -> None:
        try:
            while not self._ended.wait(0.005):
                sent = secrets.token_bytes(1000)
                self._socket.sendall(sent)
                received = b""
                while len(received) < len(sent) and (data := self._socket.recv(len(sent))):
                    received += data
                if received != sent:
                    raise ConnectionError("the stream ended, or something else came back than was sent")
                self.echoed_bytes += len(sent)
        except OSError as error:
            self.broken = error

    def await_bytes(self, count: int = 50_000) -> None:
        """Wait until so many bytes more came back. Raises: LabError."""
        wanted = self.echoed_bytes + count
        await_until(lambda: self.echoed_bytes >= wanted or self.broken, HANG_S, "bytes of a stream")
        assert self.broken is None


@dataclass(frozen=True, slots=True)
class Diamond:
    """A client, two gateways, and the internet."""

    hosts: dict[str, Host]
    daemons: dict[str, Daemon]

    @property
    def client(self) -> Daemon:
        return self.daemons["client"]

    def key(self, name: str) -> str:
        return str(self.daemons[name].ask("status")["identity"])

    def leads_through(self, name: str, version: int = 4) -> bool:
        said = self.hosts["client"].run("ip", "route", "get", REMOTES[version]).stdout
        return f"dev {name}0" in said

    def answer_through(self, name: str) -> None:
        """Let the internet reach the client's own addresses through a gateway."""
        for version, own in OWN.items():
            self.hosts["internet"].route(own, via=self.hosts[name].address("wan0", version))

    def deal(self, name: str) -> Deal:
        """Return the business of the client with a gateway."""
        return Deal(self.daemons[name], self.client, {one: self.key(one) for one in self.daemons})

    def sold(self, name: str) -> int:
        """Return the bytes that a gateway sold."""
        rows = self.daemons[name].ask("contracts", all=True, by_destination=False)
        return sum(used(row) for row in rows if row["role"] == "server")

    def paid_msat(self, name: str) -> int:
        """Return what a gateway was paid."""
        return sum(row["paid_msat"] for row in self.daemons[name].ask("accounts") if row["role"] == "server")

    def cut_off(self, name: str) -> None:
        """End a gateway's daemon and its link to the client."""
        self.daemons[name].kill9()
        self.hosts[name].ip("link", "set", "mesh0", "down")

    def silence(self, name: str, verb: str = "-I") -> None:
        """Let a gateway drop all that it gets, behind links that stay up. Args: verb: -D: let it pass again."""
        for command in ("iptables", "ip6tables"):  # messages between the daemons use both
            for interface in ("mesh0", "wan0"):
                self.hosts[name].sh(command, "-t", "raw", verb, "PREROUTING", "-i", interface, "-j", "DROP")

    def conversation(self) -> AbstractContextManager[Conversation]:
        return closing(Conversation(self.hosts["client"]))

    def stream(self, version: int = 4) -> AbstractContextManager[Stream]:
        return closing(Stream(self.hosts["client"], REMOTES[version]))


def gateway(price: str, **keys: object) -> Conf:
    trading = {"MESH_INTERFACES": "mesh0", "IGNORE_INTERFACE": "wan0", "BUY": "no"}
    return {**trading, "SELL_PRICE": price, "SELL_PRICE_MIN": price, **keys}


def diamond(lab: Lab, west: Conf, east: Conf, client: Conf = CHOOSING, *, hides: bool = True) -> Diamond:
    """Build the network and start all daemons; the client's own routes lead through west.

    Args: hides: each gateway hides the client's IPv4 address behind its own. IPv6 is routed; answers come through west.
    """
    internet, user, exchange = lab.host("internet"), lab.host("client"), lab.switch("exchange")
    lab.link(End(internet, "wan0", f"{WAN[4].format(INTERNET)}/24", f"{WAN[6].format(INTERNET)}/64"), exchange)
    hosts = {"internet": internet, "client": user}
    for own, bits in zip(OWN.values(), (32, 128), strict=True):
        user.add_address("lo", f"{own}/{bits}")
    for number, name in enumerate(NAMES, 1):
        router = hosts[name] = lab.host(name, forward=True)
        near, far = ((f"{MESH[4].format(number, host)}/24", f"{MESH[6].format(number, host)}/64") for host in (1, 2))
        lab.link(End(user, f"{name}0", *near), End(router, "mesh0", *far))
        lab.link(End(router, "wan0", f"{WAN[4].format(number)}/24", f"{WAN[6].format(number)}/64"), exchange)
        if hides:
            router.masquerade("wan0")
        for version, own in OWN.items():
            router.route(DEFAULT[version], via=WAN[version].format(INTERNET))
            router.route(own, via=MESH[version].format(number, 1))
            way = ("via", MESH[version].format(number, 2), "metric", str(100 * number), "src", own)
            user.ip(f"-{version}", "route", "add", "default", *way)
    lab.await_carriers()
    daemons = {
        name: hosts[name].daemon(conf, start=False)
        for name, conf in {"west": west, "east": east, "client": client}.items()
    }
    made = Diamond(hosts, daemons)
    made.answer_through("west")
    for network in REMOTE_NETS:
        internet.owns(network)
    start_all(*daemons.values())
    traffic.udp_echo(internet, REMOTE, PORT)
    for remote in REMOTES.values():
        traffic.tcp_echo(internet, remote, PORT)
    return made


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
