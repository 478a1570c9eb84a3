"""CHOOSE_ROUTES: a client with two gateways pays the better one, and goes on through the other one when that fails."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.shell import await_until
from core_tests.topologies import REMOTE_NETS
from core_tests.trade import MSAT_PER_KB, Conf, start_all

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
        return sum(row["used_to_bytes"] + row["used_from_bytes"] for row in rows if row["role"] == "server")

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


def shown(host: Host) -> str:
    """Return the host's rules and routes, as `ip` shows them."""
    words = (("-4", "rule"), ("-6", "rule"), ("-4", "route", "show", "table", "all"))
    return "".join(host.run("ip", *each).stdout for each in words)


def test_the_cheaper_gateway_is_chosen_and_left_when_it_renews_at_a_higher_price(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat", CONTRACT_DATA="100 kB"))
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
        talk.await_echoes()
        assert net.client.json("status")["routes"] == [
            {"destination": "0.0.0.0/0", "interface": "east0", "router": "10.0.2.2", "neighbour": net.key("east")}
        ]
        rows = {row["neighbour"]: row for row in net.client.json("neighbours")}
        east, west = rows[net.key("east")], rows[net.key("west")]
        assert (east["chosen_for"], west["chosen_for"]) == (["0.0.0.0/0"], [])
        offer = {"destination": f"{REMOTE}/32", "price_msat_per_gib": 2 * MSAT_PER_KB}
        assert east["offers"] == [offer] and 0.5 < east["quality"] <= 1.0
        assert net.daemons["east"].reload(gateway("9 msat", CONTRACT_DATA="100 kB")).returncode == 0
        await_until(lambda: net.leads_through("west"), HANG_S, "the way that is cheaper now")
        talk.await_echoes()
        assert net.daemons["east"].reload(gateway("20 msat")).returncode == 0  # above what the client pays
        assert net.daemons["west"].reload(gateway("8 msat")).returncode == 0
        talk.await_echoes()
    assert net.leads_through("west")
    assert talk.longest_pause_s(talk.echoes[0]) < HANG_S


def test_a_gateway_whose_link_fails_is_left(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat"))
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
        talk.await_echoes()
        failed_at = time.monotonic()
        net.daemons["east"].kill9()
        net.hosts["east"].ip("link", "set", "mesh0", "down")
        await_until(lambda: net.leads_through("west"), HANG_S, "the other way")
        talk.await_echoes()
    assert talk.longest_pause_s(failed_at) < HANG_S
    print(f"pause {talk.longest_pause_s(failed_at):.2f} s")


def test_a_gateway_that_vanishes_behind_a_link_that_stays_up_is_left(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat"))
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
        talk.await_echoes()
        failed_at = time.monotonic()
        for command in ("iptables", "ip6tables"):  # messages between the daemons use both
            net.hosts["east"].sh(command, "-t", "raw", "-I", "PREROUTING", "-i", "mesh0", "-j", "DROP")
        await_until(lambda: net.leads_through("west"), HANG_S, "the other way")
        talk.await_echoes()
    assert talk.longest_pause_s(failed_at) < HANG_S
    print(f"pause {talk.longest_pause_s(failed_at):.2f} s")


def test_a_gateway_without_its_daemon_carries_on_until_its_contract_must_be_renewed(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat", CONTRACT_DATA="200 kB"))
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
        talk.await_echoes()
        failed_at = time.monotonic()
        net.daemons["east"].kill9()
        talk.await_echoes()
        went_on = net.leads_through("east")
        await_until(lambda: net.leads_through("west"), HANG_S, "the other way")
        talk.await_echoes()
    assert went_on
    assert talk.longest_pause_s(failed_at) < HANG_S
    print(f"pause {talk.longest_pause_s(failed_at):.2f} s")


def test_a_gateway_that_sells_cheaply_and_drops_is_left_and_gets_less_than_grace(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("1 msat"))
    east = net.hosts["east"]
    east.sh("iptables", "-t", "mangle", "-A", "POSTROUTING", "-o", "wan0", "-j", "DROP")
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheap way")
        await_until(lambda: net.leads_through("west"), HANG_S, "the way that carries")
        talk.await_echoes(300)
        assert net.leads_through("west")
    assert 0 < net.sold("east") < 256 << 10
    (row,) = [row for row in net.client.json("neighbours") if row["neighbour"] == net.key("east")]
    assert row["quality"] < 0.2


def test_equal_offers_never_alternate(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("5 msat"))
    with net.conversation() as talk:
        await_until(lambda: "proto 225" in shown(net.hosts["client"]), HANG_S, "a choice")
        talk.await_echoes(700)
    assert net.leads_through("west")
    assert "no longer through" not in net.client.log()


def test_a_killed_daemons_choice_goes_on_and_a_stop_leaves_the_operators_routes(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat"), {"MESH_INTERFACES": ["west0", "east0"], "SELL": "no"})
    user = net.hosts["client"]
    before = shown(user)
    assert net.client.reload(CHOOSING).returncode == 0
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
        chosen = shown(user)
        net.client.kill9()
        logged = len(net.client.log())
        talk.await_echoes()
        assert shown(user) == chosen
        net.client.start()
        talk.await_echoes(500)
        assert shown(user) == chosen
        assert "no longer through" not in net.client.log()[logged:]
    assert net.client.reload({**CHOOSING, "ROUTE_TABLE": 300, "ROUTE_PRIORITY": 1000}).returncode == 0
    assert net.leads_through("east") and "lookup 300" in shown(user) and "10325" not in shown(user)
    net.client.kill9()
    net.client.stop()
    assert shown(user) == before
