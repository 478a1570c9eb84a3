"""TENANT_ALL_TRAFFIC: everything uses the tunnel, and nothing leaves beside it, whatever is killed or comes down.

What leaves beside the tunnel is counted by the NAT router, which stands for the tenant's internet provider.
"""

from __future__ import annotations

import os
import re
import stat

import pytest

from core_tests import traffic
from core_tests.lab import End, Lab
from core_tests.market import TENANT, V4, Market, open_market
from core_tests.renting import fingerprint_of
from core_tests.shell import await_until
from ngp.errors import ExitCode
from ngp.tenant.home import Home

THIRD4, THIRD6 = "203.0.113.3", "2001:db8:2::3"
LEAKS = """
table inet leaks {
    counter leaked {}
    chain in {
        type filter hook prerouting priority -400;
        iifname "lan0" ip daddr 203.0.113.1 udp dport 51820 accept
        iifname "lan0" ip daddr 203.0.113.1 tcp dport 443 accept
        iifname "lan0" ip6 daddr 2001:db8:2::1 udp dport 51820 accept
        iifname "lan0" ip6 daddr 2001:db8:2::1 tcp dport 50051 accept
        iifname "lan0" ip daddr 192.168.7.1 tcp dport != 53 accept
        iifname "lan0" ip daddr 192.168.7.1 meta l4proto icmp accept
        iifname "lan0" icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, 143 } accept
        iifname "lan0" counter name leaked
    }
}
"""


class Machine:
    """The tenant's machine, which has IPv6 from its provider too, and its provider."""

    def __init__(self, lab: Lab, market: Market, *trust: str) -> None:
        self.market, self.tenant, self.nat = market, market.tenant, lab.hosts["nat"]
        self.nat.add_address("lan0", "2001:db8:7::1/64")
        self.nat.add_address("wan0", "2001:db8:2::2/64")
        self.tenant.add_address("eth0", "2001:db8:7::2/64")
        self.tenant.route("::/0", via="2001:db8:7::1")
        self.tenant.sysctl({"net.ipv4.conf.all.rp_filter": "1"})  # the strictest check of answers' sources
        for host in (market.third, market.landlord):
            host.route("2001:db8:7::/64", via="2001:db8:2::2")
        self.tenant.ip("rule", "add", "from", "192.0.2.77", "lookup", "254", "priority", "10064")  # the operator's own
        self.tenant.sh("nft", "add table inet operators")
        (self.tenant.folder / "net.conf").write_text(f"{TENANT}TENANT_ALL_TRAFFIC: yes\n")
        self.nat.sh("nft", "-f", "-", text_in=LEAKS)
        market.done("trust", "let", *(trust or ("203.0.113.1", fingerprint_of(market.daemon))))
        market.done("new", "let", "--name", "shop", "--yes")
        self.before = self.stands()

    def stands(self) -> str:
        """Return all rules, routes and tables of the tenant's machine."""
        looks = [self.tenant.ip(f"-{version}", *words) for version in (4, 6) for words in (
            ("rule",), ("route", "show", "table", "all"), ("address",),
        )]  # fmt: skip
        text = "\n".join([*looks, self.tenant.sh("nft", "list", "ruleset")])
        return re.sub(r"(valid_lft|preferred_lft|expires) \S+", "", text)

    def leaked(self) -> int:
        """Return how many packets left beside the tunnel that had to stay."""
        found = re.search(r"packets (\d+)", self.nat.sh("nft", "list counter inet leaks leaked"))
        assert found is not None
        return int(found[1])

    def reaches(self, address: str, *words: str) -> bool:
        return self.tenant.run("ping", "-n", "-c", "1", "-W", "1", *words, address).returncode == 0

    @property
    def interface(self) -> str:
        return str(self.market.status()["id"])


@pytest.fixture
def machine(lab: Lab) -> Machine:
    return Machine(lab, open_market(lab))


def test_everything_uses_the_tunnel_and_nothing_leaves_beside_it(machine: Machine) -> None:
    market, tenant = machine.market, machine.tenant
    assert machine.reaches(THIRD4) and machine.reaches(THIRD6) and machine.leaked() > 0, "before, and this is counted"
    said = market.done("up", "shop")
    assert "all traffic of this machine uses shop" in said
    base = machine.leaked()
    await_until(lambda: machine.reaches(THIRD4) and machine.reaches(THIRD6), what="the third host, by the tunnel")
    await_until(lambda: market.reached(V4), what="the rented address answers")
    assert machine.reaches("192.168.7.1"), "the LAN"
    up = machine.stands()
    assert "src 198.51.100.1" in tenant.ip("route", "get", THIRD4)

    # Ways round rules and routes: a socket that is bound to the interface, a narrower route, a name server in the LAN.
    assert not machine.reaches(THIRD4, "-I", "eth0") and not machine.reaches(THIRD6, "-I", "eth0")
    for version, to, via in ((4, f"{THIRD4}/32", "192.168.7.1"), (6, f"{THIRD6}/128", "2001:db8:7::1")):
        tenant.ip(f"-{version}", "route", "add", to, "via", via)
        assert not machine.reaches(to.partition("/")[0])
        tenant.ip(f"-{version}", "route", "del", to)
    for port in (53, 80):
        ask = f"import socket; s = socket.socket(2, 2); s.sendto(b'?', ('192.168.7.1', {port}))"
        asked = tenant.run("python3", "-c", ask)
        assert ("PermissionError" in asked.stderr) is (port == 53), asked.stderr
    base += 1  # the one to port 80, in the LAN
    assert machine.leaked() == base

    market.done("autopay", "--once")
    assert market.status()["payments"] == 3 and market.status()["proven"]
    market.done("up", "shop")
    assert machine.stands() == up, "up again changes nothing"

    tenant.ip("link", "del", machine.interface)  # it is down, but nobody said `rent down`
    assert not machine.reaches(THIRD4) and not machine.reaches(THIRD6)
    assert machine.reaches("192.168.7.1")
    market.done("add", "shop", "--amount", "500", "--yes")  # the landlord is reached all the same
    assert market.status()["payments"] == 4
    assert machine.leaked() == base
    market.done("up", "shop")
    await_until(lambda: machine.reaches(THIRD4) and machine.reaches(THIRD6), what="the third host, by the tunnel again")
    assert machine.leaked() == base

    tenant.ip("link", "del", machine.interface)
    market.done("down", "shop")
    assert machine.stands() == machine.before, "exactly what was there before"
    assert machine.reaches(THIRD4) and machine.reaches(THIRD6)


def test_what_may_leave_beside_the_tunnel(machine: Machine) -> None:
    """The mesh link has addresses that aren't private."""
    machine.nat.add_address("lan0", "192.0.2.1/24")
    machine.tenant.add_address("eth0", "192.0.2.2/24")
    machine.market.done("up", "shop")

    def leaves(port: int, hop_limit: int, to: str = "192.0.2.1") -> bool:
        send = f"s.bind(('', {port})); s.setsockopt(0, 2, {hop_limit}); s.sendto(b'?', ('{to}', {port}))"
        done = machine.tenant.run("python3", "-c", f"import socket; s = socket.socket(2, 2); {send}")
        assert done.returncode == 0 or "PermissionError" in done.stderr, done.stderr
        return done.returncode == 0

    assert leaves(10325, 255), "ngp's messages"
    assert not leaves(10325, 64) and not leaves(10326, 255) and not machine.reaches("192.0.2.1")
    conf, more = machine.tenant.folder / "net.conf", f"192.0.2.1 udp 10326, {THIRD4}, 192.168.7.1 udp 53"
    conf.write_text(f"{TENANT}TENANT_ALL_TRAFFIC: yes\nTENANT_BESIDE: [{more}]\n")
    machine.market.done("up", "shop")
    assert leaves(10326, 64) and leaves(53, 64, "192.168.7.1") and not machine.reaches("192.0.2.1")
    assert "192.168.7.1" in machine.tenant.ip("route", "get", THIRD4) and machine.reaches(THIRD4)
    assert not machine.reaches(THIRD6, "-I", "eth0")
    machine.nat.sh("ping", "-n", "-c", "1", "192.168.7.2")  # asked from the LAN, it answers
    conf.write_text("TENANT_BESIDE: what\n")  # the net.conf of a hasty operator
    machine.market.done("down", "shop")  # also with a net.conf that can't be used
    assert "ngp_rent" not in machine.stands() and machine.reaches(THIRD4, "-I", "eth0")


@pytest.mark.parametrize(
    ("beside", "code", "says"),
    [
        ("", ExitCode.CONFIGURATION, "TENANT_BESIDE"),
        ("TENANT_BESIDE: 192.168.7.1 udp 53\n", ExitCode.OTHER, "can't be resolved"),
    ],
)
def test_nothing_leaves_while_a_landlords_name_is_not_known(
    machine: Machine, beside: str, code: ExitCode, says: str
) -> None:
    """As at each boot, where `ngp rent up` runs before the network is up, and nobody is there to read an error."""
    (machine.tenant.folder / "net.conf").write_text(f"{TENANT}TENANT_ALL_TRAFFIC: yes\n{beside}")
    (file,) = (machine.tenant.folder / "state" / "tenant" / "WireGuardConfigFiles").iterdir()
    by_address = file.read_text()
    file.write_text(by_address.replace("203.0.113.1:51820", "landlord.invalid:51820"))
    assert machine.reaches(THIRD4) and machine.reaches(THIRD6)
    refused = machine.market.rent("up", "shop")
    assert refused.returncode == code and says in refused.stderr and "ngp rent down" in refused.stderr
    base = machine.leaked()
    assert not machine.reaches(THIRD4) and not machine.reaches(THIRD6) and machine.leaked() == base
    assert machine.reaches("192.168.7.1"), "the LAN"
    machine.market.done("down", "shop")
    assert machine.stands() == machine.before and machine.reaches(THIRD4)

    machine.market.rent("up", "shop")
    file.write_text(by_address)
    machine.market.done("up", "shop")
    await_until(lambda: machine.reaches(THIRD4), what="the third host, by the tunnel")


def test_what_is_forwarded_stays_too(lab: Lab, machine: Machine) -> None:
    behind = lab.host("behind")
    lab.link(End(machine.tenant, "lan1", "10.5.5.1/24"), End(behind, "eth0", "10.5.5.2/24"))
    lab.await_carriers()
    behind.route("default", via="10.5.5.1")
    machine.tenant.forward()
    machine.tenant.masquerade("eth0")
    assert traffic.ping(behind, THIRD4, wait_s=1).received == 1
    machine.market.done("up", "shop")
    base = machine.leaked()
    machine.tenant.ip("route", "add", f"{THIRD4}/32", "via", "192.168.7.1")
    assert traffic.ping(behind, THIRD4, wait_s=1).received == 0 and machine.leaked() == base
    machine.tenant.ip("route", "del", f"{THIRD4}/32")
    assert traffic.ping(behind, THIRD4, wait_s=1).received == 0, "the landlord drops what isn't of rented addresses"
    machine.tenant.sh("nft", f'add rule ip lab_masquerade out oifname "{machine.interface}" masquerade')
    await_until(lambda: traffic.ping(behind, THIRD4, wait_s=1).received == 1, what="the third host, by the tunnel")
    assert machine.leaked() == base


def test_the_tunnel_is_found_again_with_another_key(machine: Machine) -> None:
    """A rental's interface and table stay those of its first key."""
    market = machine.market
    market.done("up", "shop")
    stood, home = machine.stands(), Home(machine.tenant.folder / "state" / "tenant")
    (tunnel,) = home.tunnels()
    home.end_rekey(tunnel, home.begin_rekey(tunnel))
    market.done("up", "shop")
    assert machine.stands() == stood
    market.done("down", "shop")
    assert machine.stands() == machine.before


def test_a_tenant_with_ipv6_alone_reaches_its_landlord_by_it(lab: Lab) -> None:
    faces = {"LANDLORD_HTTPS": "none", "LANDLORD_GRPC": "[2001:db8:2::1]:50051"}
    market = open_market(lab, LANDLORD_ENDPOINT="2001:db8:2::1", **faces)
    market.tenant.ip("route", "del", "default")
    identity = market.daemon.json("status")["identity"]
    machine = Machine(lab, market, "[2001:db8:2::1]", identity, "--face", "grpc")
    market.done("up", "shop")
    (conf,) = (machine.tenant.folder / "state" / "tenant" / "WireGuardConfigFiles").iterdir()
    assert "Endpoint = [2001:db8:2::1]:51820" in conf.read_text()
    await_until(lambda: machine.reaches(THIRD4) and machine.reaches(THIRD6), what="the third host, by the tunnel")
    await_until(lambda: market.reached(V4), what="the rented IPv4 address answers")
    base = machine.leaked()
    market.done("autopay", "--once")
    machine.tenant.ip("link", "del", machine.interface)
    assert not machine.reaches(THIRD6) and market.status()["payments"] == 3
    market.done("down", "shop")
    assert machine.leaked() == base and machine.stands() == machine.before


def test_a_second_tunnel_carries_its_own_packets_and_the_first_one_everything(machine: Machine) -> None:
    market = machine.market
    market.done("up", "shop")
    market.done("new", "let", "--name", "second", "--yes")
    assert "all traffic of this machine uses shop" in market.done("up", "second")
    await_until(lambda: market.reached(V4) and market.reached("198.51.100.2"), what="both rented addresses answer")
    market.done("down", "second")
    assert machine.reaches(THIRD4) and not machine.reaches(THIRD4, "-I", "eth0")
    market.done("up", "second")
    market.done("down", "shop")
    await_until(lambda: market.reached("198.51.100.2"), what="the second one goes on")
    assert machine.reaches(THIRD4, "-I", "eth0"), "nothing carries everything any more"
    market.done("down", "second")
    assert machine.stands() == machine.before


def test_a_barrier_that_a_firewall_removed_is_told(machine: Machine) -> None:
    market = machine.market
    market.done("up", "shop")
    assert "ngp_rent" not in market.rent("status").stderr
    machine.tenant.sh("nft", "flush", "ruleset")
    told = "the nftables table inet ngp_rent is gone"
    for words in (("status",), ("autopay", "--once")):
        done = market.rent(*words)
        assert told in done.stderr and "sudo ngp rent up shop sets it again" in done.stderr, words
    market.done("up", "shop")
    assert told not in market.rent("status").stderr
    market.done("down", "shop")
    machine.tenant.sh("nft", "flush", "ruleset")
    assert told not in market.rent("status").stderr, "nothing has to be kept"


def test_the_setting_that_is_taken_back_is_undone_by_the_next_up(machine: Machine) -> None:
    market = machine.market
    market.done("up", "shop")
    (machine.tenant.folder / "net.conf").write_text(TENANT)
    assert "all traffic" not in market.done("up", "shop")
    assert machine.reaches(THIRD4, "-I", "eth0")
    assert "192.168.7.1" in machine.tenant.ip("route", "get", THIRD4), "the host's own route is used again"
    await_until(lambda: market.reached(V4), what="the rented address answers")
    market.done("down", "shop")
    assert machine.stands() == machine.before


def test_a_net_conf_that_is_spoiled_before_a_boot_opens_nothing(machine: Machine) -> None:
    market, tenant = machine.market, machine.tenant
    market.done("up", "shop")
    conf = tenant.folder / "net.conf"
    good = conf.read_text()
    tenant.ip("link", "delete", "dev", machine.interface)
    tenant.sh("nft", "delete", "table", "inet", "ngp_rent")
    for version in ("-4", "-6"):
        tenant.ip(version, "rule", "flush", "protocol", "110")
    assert machine.reaches(THIRD4), "as after a boot"
    conf.write_text(f"{good}TENANT_ALL_TRAFIC: yes\n")
    refused, base = market.rent("up", "shop"), machine.leaked()
    assert refused.returncode == ExitCode.CONFIGURATION
    assert "TENANT_ALL_TRAFIC" in refused.stderr and "nothing leaves beside the tunnel" in refused.stderr
    for words in ((), ("-I", "eth0")):
        assert not machine.reaches(THIRD4, *words) and not machine.reaches(THIRD6, *words)
    assert machine.leaked() == base
    market.done("down", "shop")
    assert machine.reaches(THIRD4), "the user opens it"
    conf.write_text(good)
    market.done("up", "shop")
    await_until(lambda: machine.reaches(THIRD4), what="the tunnel")
    conf.write_text(f"{good}TENANT_ALL_TRAFIC: yes\n")
    assert market.rent("up", "shop").returncode == ExitCode.CONFIGURATION
    assert machine.reaches(THIRD4), "a tunnel that is up goes on"
    market.done("down", "shop")
    assert machine.stands() == machine.before


SHIM = """#!/bin/sh
n=$(($(cat "{count}") + 1)); echo $n > "{count}"
if [ $n = "$(cat "{stop}")" ]; then {deed} kill -9 $PPID; sleep 1; exit 1; fi
exec {program} "$@"
"""


@pytest.mark.parametrize("done_first", [False, True])
def test_killed_between_any_two_steps(machine: Machine, request: pytest.FixtureRequest, done_first: bool) -> None:
    """The commands that `rent up`, `rent down` and wg-quick run kill them, before or after they did their work."""
    market, folder = machine.market, machine.tenant.folder / "shims"
    folder.mkdir()
    count, stop = folder / "count", folder / "stop"
    for name, place in (("ip", "/usr/sbin/ip"), ("nft", "/usr/sbin/nft"), ("wg-quick", "/usr/bin/wg-quick")):
        deed = f'{place} "$@" >/dev/null;' if done_first else ""
        shim = folder / name
        shim.write_text(SHIM.format(count=count, stop=stop, program=place, deed=deed))
        shim.chmod(shim.stat().st_mode | stat.S_IXUSR)

    def killed_at(step: int, verb: str) -> bool:
        count.write_text("0\n")
        stop.write_text(f"{step}\n")
        done = machine.tenant.run("env", f"PATH={folder}:{os.environ['PATH']}", *market.command(verb, "shop"))
        assert done.returncode in (0, -9, 137) or "wg-quick" in done.stderr, done.stderr  # which may be killed too
        return done.returncode != 0

    every = 1 if request.config.getoption("--long") else 7
    for step in range(1, 100, every):
        killed = killed_at(step, "up")
        stood = "ngp_rent" in machine.stands()
        base = machine.leaked()
        assert machine.reaches(THIRD4, "-I", "eth0") is not stood
        market.done("up", "shop")
        await_until(lambda: machine.reaches(THIRD4), what=f"the tunnel after a kill at step {step}")
        assert not machine.reaches(THIRD4, "-I", "eth0") and (machine.leaked() == base or not stood)
        killed_at(step, "down")
        market.done("down", "shop")
        assert machine.stands() == machine.before, f"step {step}"
        if not killed:
            break
    assert step > 10
