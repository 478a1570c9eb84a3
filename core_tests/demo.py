"""`tools/demo`: a demonstration of ngp's main job, with two real daemons, real packets and an independent count.

A client, a gateway and the internet are three network namespaces. The story: neighbours find each other; a first packet
is held until a price is agreed, and released; grace carries traffic until a (delayed) payment arrives; contracts are
metered and renewed while traffic runs; a contract that may not be renewed is cut. Then both daemons' totals are
compared with the bytes that arrived. If they differ by one byte or msat, the exit code is 1.

The money is the sandbox's: it is not real. With `--lightning` three LND nodes on a private chain pay instead.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.demo_books import Books, Count, Line, compare, count_arrived, packets
from core_tests.demo_flows import DRAIN_S, Flow, probe
from core_tests.demo_lightning import Nodes, nodes
from core_tests.demo_staticwire import PARTIES, StaticWire
from core_tests.demo_view import PRIVATE, SANDBOX, SIDES, View, is_terminal, ngp_line, per_kb, print_lines, sat
from core_tests.demo_watch import Watch
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.shell import LabError, await_until
from core_tests.topologies import REMOTE_NETS, ThreeHosts, three_hosts
from core_tests.traffic import ping

DONE, DIFFERS, USAGE, INTERRUPTED = 0, 1, 2, 130
PAY_DELAY_S = 3
SECONDS = 20.0
PICTURE = Path("ngp-mesh.png")
SETTLED_S = 90.0  # bounds that catch a hang: on a busy machine everything takes longer
CUT_S = 120.0
OTHER_STORIES = {
    "staticwire": "rent a static address behind NAT, and be reached there",
    "mesh": "fifty nodes of a real network; who earns, who pays (some minutes, 5 GiB of memory)",
}
LOSSY_DRAIN_S = 2.0  # if packets may be dropped, or must be
PORT = 7000
UDP_BYTES_S, TCP_BYTES_S, CUT_BYTES_S = 60_000, 100_000, 250_000
PLAIN, STREAM, CUT = 1, 2, 3  # which of the internet's many addresses

SHARED = {"MESH_INTERFACES": "mesh0", "CONTRACT_DATA": "1 MB", "PAYMENT_AMOUNT": "60 sat"}
GATEWAY = {
    **SHARED,
    "IGNORE_INTERFACE": "wan0",
    "BUY": False,
    "SELL_PRICE": "6 msat",
    "SELL_PRICE_MIN": "4 msat",
    "GRACE_DATA": "4 MB",
    "GRACE_TIME": "10 s",
}
CLIENT = {**SHARED, "SELL": False, "BUY_PRICE": "4 msat", "BUY_PRICE_MAX": "6 msat"}
ONCE = {"DATA_RENEWAL": 0, "TIME_RENEWAL": 0}


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line. Attributes: story: one of OTHER_STORIES; "": that of the main job."""

    plain: bool
    seconds: float
    keep: bool
    lightning: bool
    story: str
    picture: Path


def parse(words: Sequence[str] | None) -> Options:
    """Read the command line; exits with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        "tools/demo",
        description="Show ngp at work: three hosts in network namespaces, two real daemons, real traffic, and an "
        "independent count of bytes. The money is the sandbox's: it is not real.",
        epilog="Exit codes: 0 nothing differs, 1 something differs or failed, 2 usage or rights, 130 interrupted.",
    )
    parser.add_argument("--plain", action="store_true", help="lines with their time instead of live tables")
    parser.add_argument("--seconds", type=float, metavar="N", help=f"metered traffic, 3 to 3600 [{SECONDS:g}]")
    parser.add_argument("--keep", action="store_true", help="at the end keep everything up until Enter, to look around")
    parser.add_argument(
        "--lightning", action="store_true", help="pay with real LND nodes (built the first time: some minutes)"
    )
    stories = parser.add_mutually_exclusive_group()
    for name, text in OTHER_STORIES.items():
        stories.add_argument(
            f"--{name}", dest="story", action="store_const", const=name, default="", help=f"another story: {text}"
        )
    text = f"where --mesh draws who earned and who paid, as PNG [{PICTURE}]"
    parser.add_argument("--picture", type=Path, metavar="FILE", help=text)
    given = parser.parse_args(words)
    if given.story and (given.lightning or given.seconds is not None):
        parser.error(f"--{given.story} is a story of its own: leave out --lightning and --seconds")
    if given.picture and given.story != "mesh":
        parser.error("--picture belongs to --mesh: only that story has one")
    picture = given.picture or PICTURE
    if not picture.absolute().parent.is_dir():
        parser.error(f"--picture {picture}: there is no such folder")
    if picture.is_dir():
        parser.error(f"--picture {picture}: this is a folder; name a file in it")
    seconds = SECONDS if given.seconds is None else given.seconds
    if not 3 <= seconds <= 3600:
        parser.error(f"--seconds {seconds:g}: it must be 3 to 3600")
    plain = given.plain or not is_terminal()
    return Options(plain, seconds, given.keep, given.lightning, given.story, picture)


class Demo:
    """The story in parts; each part needs those before it."""

    def __init__(self, net: ThreeHosts, view: View, seconds: float, nodes: Nodes | None = None) -> None:
        self.view = view
        self.seconds = seconds
        self.net = net
        self.nodes = nodes
        for remote in REMOTE_NETS:  # by the default route alone, so that each address is a contract of its own
            self.net.gateway.ip("-6" if ":" in remote else "-4", "route", "del", remote)
        self.settings: dict[str, object] = {**CLIENT, **(nodes.settings("client") if nodes else {})}
        sells = {**GATEWAY, **(nodes.settings("gateway") if nodes else {})}
        if nodes:
            sells["IGNORE_INTERFACE"] = ["wan0", "chain0"]
        self.gateway = self.net.gateway.daemon(sells, start=False)
        self.client = self.net.client.daemon(self.settings, start=False)
        self.watch = Watch(view, self.gateway, self.client)

    def remotes(self, number: int) -> tuple[str, str]:
        """Return one of the internet's addresses in both families."""
        return self.net.remote(4, number), self.net.remote(6, number)

    def plain_forwarding(self) -> None:
        """Check that the client reaches the internet without ngp, then start the counters and the echo servers."""
        self.view.title("1/7 The network, without ngp")
        for address in self.remotes(250):
            if ping(self.net.client, address).received != 1:
                raise LabError(f"plain forwarding to {address} doesn't work")
        self.view.tell("IPv4 (NAT) and IPv6 get through the gateway, unmetered")
        self.at_internet = self.net.internet.counter("wan0")
        self.at_client = self.net.client.counter("mesh0")
        for number in (PLAIN, CUT):
            for address in self.remotes(number):
                traffic.udp_echo(self.net.internet, address, PORT)
        for number in (STREAM, CUT):
            for address in self.remotes(number):
                traffic.tcp_echo(self.net.internet, address, PORT)

    def neighbours(self) -> None:
        """Start both daemons, and wait until they know each other."""
        self.view.title("2/7 `ngp start` on gateway and client")
        self.view.tell("gateway: asks 6 msat/kB, takes 4 at the least; grace 4 MB, 10 s")
        self.view.tell("client: offers 4 msat/kB, pays 6 at the most; prepays 60 sat")
        self.watch.start()
        for daemon in (self.gateway, self.client):
            daemon.start()
        await_until(lambda: all(d.ask("neighbours") for d in (self.gateway, self.client)), what="neighbours found")
        if self.nodes is None:
            self._slow(f"{PAY_DELAY_S}")

    def _slow(self, value: str) -> None:
        done = self.client.cli("server", f"fault slow {value}")
        if done.returncode:
            raise LabError(f"the sandbox could not be slowed: {done.stderr}")

    def first_packets(self) -> None:
        """Send to destinations without a contract: packets are held until a price is agreed, and released."""
        self.view.title("3/7 First packets: held, proposed, released")
        for version, address in zip((4, 6), self.remotes(PLAIN), strict=True):
            first, second = probe(self.net.client, address, PORT, 2)
            row = self.watch.contract(address)
            price = per_kb(row["price_msat_per_gib"])
            self.view.tell(f"IPv{version}: first packet answered after {first:.1f} ms, the next {second:.1f} ms")
            self.view.tell(f"agreed at {price} msat/kB, by a counter-offer", "green")

    def grace(self) -> None:
        """Run traffic on credit until the first payment is through."""
        slow = f"the payment is made slow, {PAY_DELAY_S} s" if self.nodes is None else "until LND has paid"
        self.view.title(f"4/7 Grace: {slow}")
        flows = self._flows(LOSSY_DRAIN_S)
        self.view.tell("UDP and TCP, IPv4 and IPv6, run on credit: see the balance below zero")
        await_until(lambda: self.watch.paid_msat, what="the first payment")
        owed = sat(-self.watch.lowest_msat)
        self.view.tell(f"paid; the client owed up to {owed} sat of grace, charged like other traffic", "green")
        if self.nodes is None:
            self._slow("off")
        for flow in flows:
            flow.end()
        self.lost_before = self.lost()
        if dropped := sum(self.lost_before.values()):
            self.view.tell(f"{dropped} packets were dropped, since the credit ended before the payment came", "yellow")

    def metering(self) -> None:
        """Let traffic run while contracts are renewed, then end it and check that no packet was lost."""
        self.view.title("5/7 Metering, and renewal under traffic")
        before = self.watch.renewals
        flows = self._flows()
        self.watch.wait(self.seconds)
        await_until(lambda: self.watch.renewals > before, what="a renewal")
        for flow in flows:
            said = flow.end()
            slowest = f", slowest {said.slowest_ms:.1f} ms" if flow.protocol == "udp" else ""
            text = f"{flow.protocol} {flow.address}: {said.sent_bytes:,} bytes, {said.echoed_bytes:,} back{slowest}"
            self.view.tell(text)
        lost = sum(self.lost().values()) - sum(self.lost_before.values())
        if lost:
            raise LabError(f"{lost} packets were lost under running contracts that were renewed")
        self.view.tell(f"{self.watch.renewals - before} renewals under traffic, not one packet lost", "green")

    def _flows(self, udp_drain_s: float = DRAIN_S) -> list[Flow]:
        client = self.net.client
        udp = [Flow(client, "udp", address, PORT, UDP_BYTES_S, udp_drain_s) for address in self.remotes(PLAIN)]
        return udp + [Flow(client, "tcp", address, PORT, TCP_BYTES_S) for address in self.remotes(STREAM)]

    def lost(self) -> dict[str, int]:
        """Count the packets that didn't arrive, when nothing is on its way, for destinations that were never cut."""
        at_client, at_internet = self.at_client.read(), self.at_internet.read()
        return {
            address: sum(sent - arrived for sent, arrived in packets(at_internet, at_client, address).values())
            for address in (*self.remotes(PLAIN), *self.remotes(STREAM))
        }

    def cut(self) -> None:
        """Let flows use up contracts that may not be renewed, and check that nothing more passes."""
        self.view.title("6/7 Cut: DATA_RENEWAL 0 and TIME_RENEWAL 0, `ngp reload`")
        done = self.client.reload({**self.settings, **ONCE})
        if done.returncode:
            raise LabError(f"ngp reload: {done.stderr}")
        v4, v6 = self.remotes(CUT)
        client = self.net.client
        flows = [Flow(client, kind, one, PORT, CUT_BYTES_S, LOSSY_DRAIN_S) for kind, one in (("udp", v4), ("tcp", v6))]
        await_until(lambda: all(self.watch.closed(one) == "exhausted" for one in (v4, v6)), CUT_S, "both contracts cut")
        before = self.count()
        self.watch.wait(2.0)
        after = self.count()
        sent = [flow.end() for flow in flows]
        for address, said in zip((v4, v6), sent, strict=True):
            self._judge_cut(address, said.sent_bytes, before, after)

    def _judge_cut(self, address: str, sent_bytes: int, before: Count, after: Count) -> None:
        limit = int(self.watch.contract(address)["data_limit_bytes"])
        arrived = sum(after.arrived[address].values())
        if before.arrived[address] != after.arrived[address]:
            raise LabError(f"{address}: {before.arrived[address]} bytes at the cut, {after.arrived[address]} later")
        if arrived > limit:
            raise LabError(f"{address}: {arrived} bytes arrived under a contract of {limit}")
        self.view.tell(f"{address}: {arrived:,} of {limit:,} bytes arrived, both ways", "green")
        self.view.tell(f"its sender went on, to {sent_bytes:,} bytes of payload: 0 arrived in 2 s", "green")

    def count(self) -> Count:
        """Read what has arrived until now."""
        destinations = [address for number in (PLAIN, STREAM, CUT) for address in self.remotes(number)]
        return count_arrived(self.at_internet.read(), self.at_client.read(), destinations)

    def totals(self) -> list[Line]:
        """Wait for the last statement, then compare: a difference that remains is a fault."""
        self.view.title("7/7 Totals, after the gateway's last statement")
        self.view.tell("each contract is due its bytes times its price for 1,024 bytes, rounded up to a msat")
        until = self.view.seconds + SETTLED_S
        while True:
            lines = self.lines()
            if all(line.agrees for line in lines) or self.view.seconds > until:
                return lines
            self.watch.wait(1.0)

    def lines(self) -> list[Line]:
        """Ask both daemons through `ngp --json`, and compare."""
        gateway, client = books(self.gateway, "server"), books(self.client, "client")
        met_an_end = [*self.remotes(CUT), *(address for address, lost in self.lost_before.items() if lost)]
        return compare(self.count(), gateway, client, self.watch.prices, met_an_end)

    def stop(self) -> None:
        """Stop both daemons as an operator does; afterwards the network is as before."""
        self.watch.stop()
        for daemon in (self.client, self.gateway):
            daemon.stop()
        for address in self.remotes(250):
            if ping(self.net.client, address).received != 1:
                raise LabError(f"after `ngp stop` {address} can't be reached any more")
        self.view.tell("`ngp stop` on both: packets pass as if ngp had never been there")


def books(daemon: Daemon, role: str) -> Books:
    """Return a daemon's contracts and its one account in a role."""
    contracts = [row for row in daemon.json("contracts", "--all", in_process=False) if row["role"] == role]
    (account,) = [row for row in daemon.json("accounts", in_process=False) if row["role"] == role]
    return Books(contracts, account)


def verdict(lines: Sequence[Line], money: str = SANDBOX, sides: tuple[str, str] = SIDES) -> int:
    """Print the comparison and return the exit code; `money` names the kind of money."""
    print()
    print_lines(lines, sides)
    different = sum(not line.agrees for line in lines)
    print()
    if different:
        print(f"DIFFERENT: {different} lines differ from the independent count or from each other.")
        return DIFFERS
    print(f"Equal to the byte and the msat. ({money})")
    return DONE


def play(options: Options, lab: Lab) -> int:
    """Play the whole story and return the exit code."""
    with View(options.plain, PRIVATE if options.lightning else SANDBOX) as view, ExitStack() as beside:
        net = three_hosts(lab)
        lightning = beside.enter_context(nodes(lab, net, view)) if options.lightning else None
        demo = Demo(net, view, options.seconds, lightning)
        try:
            demo.plain_forwarding()
            demo.neighbours()
            demo.first_packets()
            demo.grace()
            demo.metering()
            demo.cut()
            lines = demo.totals()
            if lightning is not None:
                lightning.judge(view, books(demo.gateway, "server").account["paid_msat"])
            view.close_tables()
            code = verdict(lines, view.money)
            if options.keep:
                keep(looks(demo))
            demo.stop()
        finally:
            demo.watch.stop()
    return code


def play_static_wire(options: Options, lab: Lab) -> int:
    """Play the story of `--staticwire` and return the exit code."""
    with View(options.plain, tables=False) as view:
        story = StaticWire(lab, view)
        code = verdict(story.play(), sides=PARTIES)
        if options.keep:
            keep(story.looks())
        story.stop()
    return code


def play_mesh(options: Options, lab: Lab) -> int:
    """Play the story of `--mesh` and return the exit code."""
    from core_tests.demo_mesh import Mesh  # late: it loads what draws

    with View(options.plain, tables=False) as view:
        story = Mesh(lab, view, options.picture)
        story.play()
        if options.keep:
            keep(story.looks())
    return DONE


STORIES = {"": play, "staticwire": play_static_wire, "mesh": play_mesh}


def looks(demo: Demo) -> list[tuple[Host, str]]:
    """Return commands that show more, with the hosts to which they belong."""
    sides = ((demo.net.gateway, demo.gateway), (demo.net.client, demo.client))
    verbs = ("top", "contracts --all", "accounts", "ledger")
    shown = [(host, ngp_line(verb, daemon.state_dir)) for host, daemon in sides for verb in verbs]
    return [*shown, (demo.net.client, f"ping {demo.net.remote(4, 77)}")]


def keep(commands: Sequence[tuple[Host, str]]) -> None:
    """Print how to look around, and wait."""
    print("\nEverything is still up. In another terminal, for example:")
    for host, command in commands:
        print(f"  sudo ip netns exec {host.namespace} {command}")
    print("Enter or Ctrl-C ends it and cleans up.", flush=True)
    try:
        if not sys.stdin.readline():
            signal.pause()  # no terminal to press Enter at: until a signal comes
    except KeyboardInterrupt:
        print()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> int:
    """Run the demonstration and return its exit code; whatever happens, nothing is left behind."""
    options = parse(words)
    if os.geteuid() != 0:
        print("tools/demo makes network namespaces: run it as root (sudo tools/demo)", file=sys.stderr)
        return USAGE
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with Lab() as lab:
        # Registered last, so undone first: a second Ctrl-C must not end the clean-up half-way.
        try:
            return STORIES[options.story](options, lab)
        except KeyboardInterrupt:
            print("\ninterrupted: cleaning up", file=sys.stderr)
            return INTERRUPTED
        except (AssertionError, subprocess.SubprocessError) as error:
            print(f"\nthe demonstration failed: {error}\n\n{_logs(lab)}", file=sys.stderr)
            return DIFFERS
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)


def _logs(lab: Lab) -> str:
    """Return the ends of both daemons' logs."""
    parts = []
    for host in lab.hosts.values():
        for daemon in host.daemons:
            parts += [f"--- the end of ngp's log on {host.name}", *daemon.log().splitlines()[-20:]]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
