"""The laboratory itself: scenarios prove nothing unless these assumptions hold."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from core_tests import traffic
from core_tests.counter import CounterError
from core_tests.daemon import Daemon
from core_tests.lab import End, Lab
from core_tests.shell import ROOT, LabError, await_until, run, sh
from core_tests.topologies import three_hosts
from ngp.modules.tunnel.userspace import SOCKETS
from ngp.tenant.renting import WIREGUARD_FOLDER

VERSIONS = pytest.mark.parametrize("version", [4, 6])
ICMP = {4: 1, 6: 58}


@VERSIONS
@pytest.mark.parametrize("masquerade", [True, False])
def test_hosts_reach_many_destinations_through_a_router(lab: Lab, version: int, masquerade: bool) -> None:
    net = three_hosts(lab, masquerade=masquerade)
    for number in (1, 2, 254):
        assert traffic.ping(net.client, net.remote(version, number), count=2) == traffic.Pings(2, 2)


@VERSIONS
def test_a_router_that_does_not_forward_shows(lab: Lab, version: int) -> None:
    net = three_hosts(lab)
    net.gateway.sysctl({"net.ipv4.ip_forward": "0", "net.ipv6.conf.all.forwarding": "0"})
    assert traffic.ping(net.client, net.remote(version), wait_s=0.2).received == 0


@VERSIONS
def test_household_and_several_clients_reach_the_internet(lab: Lab, version: int) -> None:
    net = three_hosts(lab, clients=3, households=1)
    assert net.household is not None
    for host in (*net.clients, net.household):
        assert traffic.ping(host, net.remote(version)).received == 1
    assert len({host.mac("mesh0") for host in (*net.clients, net.gateway)}) == 4


@VERSIONS
def test_counter_equals_the_datagrams_sent(lab: Lab, version: int) -> None:
    net = three_hosts(lab, masquerade=False)
    counter = net.internet.counter("wan0")
    sink = traffic.udp_sink(net.internet, net.remote(version), 5000)
    sent = traffic.udp_send(net.client, net.remote(version), 5000, count=500, payload_bytes=333, rate_pps=5000)
    await_until(lambda: sink.received() == (500, 500 * 333), what="all datagrams")
    counted = counter.total("in", net.client.address("mesh0", version), net.remote(version), 17)
    assert (sent, counted.packets) == (500, 500)
    assert counted.bytes == traffic.l3_bytes(version, 333, 500)
    assert counter.total("out", protocol=17).bytes == 0


@VERSIONS
def test_counter_tells_the_directions_apart(lab: Lab, version: int) -> None:
    net = three_hosts(lab)
    counter = net.client.counter("mesh0")
    traffic.udp_echo(net.internet, net.remote(version), 5001)
    echoed = traffic.udp_send(
        net.client, net.remote(version), 5001, count=20, payload_bytes=100, await_echoes=True
    )
    assert echoed == 20
    for direction in ("in", "out"):
        assert counter.total(direction, protocol=17).bytes == traffic.l3_bytes(version, 100, 20)


@VERSIONS
def test_bulk_tcp_arrives_whole_and_is_counted_as_the_wire_has_it(lab: Lab, version: int) -> None:
    net = three_hosts(lab)
    counter = net.internet.counter("wan0")
    traffic.tcp_sink(net.internet, net.remote(version), 5002)
    size = 3_000_000
    done = traffic.tcp_send(net.client, net.remote(version), 5002, size_bytes=size)
    assert done.intact and done.sent_bytes == done.received_bytes == size
    counted = counter.total("in", destination=net.remote(version), protocol=6)
    # Every segment of at most 1,500 bytes has 32 bytes of TCP header and the IP header.
    header = 32 + traffic.IP_HEADER_BYTES[version]
    assert counted.packets >= size / (1500 - header)
    assert counted.bytes >= size + (counted.packets - 8) * header


def test_counter_refuses_superpackets(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link(End(a, "eth0", "192.0.2.1/24"), End(b, "eth0", "192.0.2.2/24"), offloads=True)
    counter = b.counter("eth0")
    traffic.tcp_sink(b, "192.0.2.2", 5003)
    assert traffic.tcp_send(a, "192.0.2.2", 5003, size_bytes=2_000_000).intact
    with pytest.raises(CounterError, match="longer than the MTU"):
        counter.read()


def test_tcp_echo_answers(lab: Lab) -> None:
    net = three_hosts(lab)
    traffic.tcp_echo(net.internet, net.remote(4), 5004)
    talk = f"exec 3<>/dev/tcp/{net.remote(4)}/5004; echo hello >&3; head -n 1 <&3"
    assert net.client.sh("bash", "-c", talk) == "hello\n"


def test_a_small_mtu_is_reported_to_the_sender(lab: Lab) -> None:
    net = three_hosts(lab, wan_mtu=1300)
    for address in (net.remote(4), net.remote(6)):
        done = net.client.run("ping", "-n", "-c", "2", "-i", "0.2", "-M", "do", "-s", "1400", "-W", "20", address)
        assert "mtu=1300" in done.stdout + done.stderr or "mtu = 1300" in done.stdout + done.stderr


def test_nothing_is_left_of_a_laboratory(lab: Lab) -> None:
    with Lab() as other:
        net = three_hosts(other, clients=2)
        net.internet.popen("sleep", "600")
        net.internet.popen("sh", "-c", "setsid sleep 601 & sleep 601")
        counter = net.internet.counter("wan0")
        counter.read()
        folder = other.folder
        assert other.prefix in sh("ip", "netns", "list")
        await_until(lambda: len(net.internet.pids()) == 5, what="sleep, sh, its two, and the counter")
        pids = net.internet.pids()
    assert other.prefix not in sh("ip", "netns", "list")
    assert not folder.exists()
    await_until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()], what="the end of all processes")


def test_nothing_is_left_of_tunnels_in_folders_of_the_whole_machine() -> None:
    ours, theirs = (f"lab{secrets.token_hex(4)}" for _ in range(2))
    alien = WIREGUARD_FOLDER / f"{theirs}.conf"
    with Lab() as longer:
        with Lab() as other:
            for lab, name in ((longer, theirs), (other, ours)):
                lab.host("a").sh("wireguard-go", name)
                (WIREGUARD_FOLDER / f"{name}.conf").symlink_to(lab.folder / "a" / f"{name}.conf")
        assert (SOCKETS / f"{theirs}.sock").exists() and alien.is_symlink()
        assert not (SOCKETS / f"{ours}.sock").exists() and not (WIREGUARD_FOLDER / f"{ours}.conf").is_symlink()
    assert not (SOCKETS / f"{theirs}.sock").exists() and not alien.is_symlink()


def test_nothing_is_left_when_a_test_fails_half_way() -> None:
    with pytest.raises(LabError, match="named a already"), Lab() as other:
        other.host("a").popen("sleep", "602")
        other.host("a")
    assert other.prefix not in sh("ip", "netns", "list")


BUSY = """
import time
from core_tests.lab import Lab, clean_up_when_interrupted
clean_up_when_interrupted()
with Lab() as lab:
    for name in "abcde":
        lab.host(name)
    print(lab.prefix, flush=True)
    time.sleep(600)
"""


def test_a_second_ctrl_c_doesnt_end_the_clean_up() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    prefix = process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    assert (process.stderr.readline(), process.stderr.readline()) == ("\n", "interrupted: cleaning up\n")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 130
    assert prefix not in sh("ip", "netns", "list") and not list(Path(tempfile.gettempdir()).glob(f"{prefix}*"))


def test_a_failed_command_is_named_with_its_words(lab: Lab) -> None:
    with pytest.raises(LabError, match="ls /nowhere: exit code 2"):
        lab.host("a").sh("ls", "/nowhere")
    with pytest.raises(LabError, match="no end after"):
        run(["sleep", "60"], timeout_s=0.1)
    with pytest.raises(LabError, match="not within 0.1 s: never so; last answer: 0"):
        await_until(lambda: 0, timeout_s=0.1, what="never so")


def test_dump_shows_every_host_and_its_log(lab: Lab) -> None:
    net = three_hosts(lab)
    daemon = net.gateway.daemon({"MESH_INTERFACES": "mesh0"}, start=False)
    (daemon.folder / "log").write_text("what the daemon said\n")
    told = lab.dump()
    assert "what the daemon said" in told and "lab_masquerade" in told
    assert all(host.namespace in told for host in lab.hosts.values())


def test_a_daemon_that_dies_is_found_by_its_state_dir(lab: Lab) -> None:
    host = lab.host("a")
    daemons = [host.daemon("", start=False) for _ in range(2)]
    for daemon in daemons:
        host.popen("env", f"NGP_STATE_DIR={daemon.state_dir}", "sleep", "603")

    def found(daemon: Daemon) -> bool:
        return len(daemon.pids()) == 1

    await_until(lambda: all(map(found, daemons)), what="both processes")
    daemons[0].kill9()
    assert not daemons[0].pids() and found(daemons[1])
