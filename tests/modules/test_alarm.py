"""The alarm: a gate that is removed is back at once, the operator's rules stay, and nobody can keep the daemon busy."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_lab import INTERNET, desired, python, sh
from meter_lab import World, metered, received, true_wire, wait_until

from ngp.modules.network import alarm, xtables
from ngp.modules.network.alarm import TimeShare, touches_gate, touches_hook
from ngp.modules.network.xtables import NFT, Choice

FLOOD = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("ready", flush=True)
while True: s.sendto(bytes(1000), (sys.argv[1], 9))
"""
OPERATOR = """\
*filter
-A FORWARD -p tcp -m tcp --dport 25 -j DROP
COMMIT
*security
:OWN - [0:0]
-A FORWARD -o nowhere -j OWN
-A FORWARD -i elsewhere -j ACCEPT
-A OWN -p tcp -m tcp --dport 26 -j DROP
COMMIT
"""
KEPT = [line for line in OPERATOR.splitlines() if line.startswith("-A")]
WAYS = (  # to remove or bypass the gate, each with the operator's rules that remain after that
    ("nft flush ruleset", []),
    ("iptables -t security -F", KEPT[:1]),
    ("iptables -t security -D FORWARD -i m0 -j NGP_GATE", KEPT),
    ("iptables -t security -I FORWARD -j ACCEPT", [KEPT[0], "-A FORWARD -j ACCEPT", *KEPT[1:]]),
    (f"printf '{OPERATOR}' | iptables-restore", KEPT),
)
CHANGED_S = 60
GAP_S = 5.0


@pytest.fixture(autouse=True)
def nft_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xtables, "detect", lambda: Choice(NFT, "chosen by the test"))


@pytest.fixture(params=[None, False], ids=["best hook", "clsact"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with metered(tmp_path, use_tcx=request.param) as built:
        yield built


def nft_message(kind: int, table: bytes) -> bytes:
    body = struct.pack("=BBH", 2, 0, 0) + struct.pack("=HH", 4 + len(table), 1) + table
    body += bytes(-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def tc_message(kind: int, parent: int) -> bytes:
    return struct.pack("=IHHII", 36, kind, 0, 0, 0) + struct.pack("=BxxxiIII", 0, 2, 0, parent, 0)


def test_which_announcements_concern_us() -> None:
    others = nft_message(0xA06, b"filter\0") + nft_message(0xA08, b"security2\0") + nft_message(0xA0F, bytes(4))
    assert not touches_gate(others) and not touches_gate(nft_message(0x106, b"security\0"))
    assert touches_gate(others + nft_message(0xA08, b"security\0"))
    assert touches_hook(tc_message(36, 0xFFFFFFFF) + tc_message(45, 0xFFFFFFF3)) and touches_hook(
        tc_message(37, 0xFFFFFFF1)
    )
    assert not touches_hook(tc_message(36, 0xFFFFFFFF)) and not touches_hook(tc_message(100, 0xFFFFFFF3))
    for whole in (nft_message(0xA08, b"security\0"), tc_message(45, 0xFFFFFFF3), bytes(64)):
        for length in range(len(whole)):
            touches_gate(whole[:length]), touches_hook(whole[:length])


def test_a_lost_announcement_is_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Overrun:
        def __init__(self) -> None:
            self.errors = [errno.ENOBUFS, errno.EAGAIN]

        def recv(self, _size: int) -> bytes:
            raise OSError(self.errors.pop(0), "")

    assert alarm._any_touches(Overrun(), touches_gate)  # type: ignore[arg-type]


def test_a_script_that_changes_rules_all_day_gets_a_tenth_of_the_time() -> None:
    share, now_s, spent_s = TimeShare(burst_s=0.25, share=0.1), 1000.0, 0.0
    for _ in range(500):
        now_s += share.wait_s(now_s) + 0.03
        share.spend(0.03, now_s)
        spent_s += 0.03
    assert spent_s <= 0.25 + 0.1 * (now_s - 1000.0) + 0.03
    assert share.wait_s(now_s + 60) == 0, "a quiet minute later it is quick again"


def test_a_gate_that_is_removed_is_back_at_once_and_the_operators_rules_stay(tmp_path: Path) -> None:
    """An unpaid flood shows when the gate is missing. Nothing checks the gate here but the alarm."""
    with metered(tmp_path) as world:
        true_wire(world)
        words = python(world.lab.client, FLOOD, INTERNET[4])
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as flood:
            try:
                assert flood.stdout is not None and flood.stdout.readline() == "ready\n"
                for command, kept in WAYS:
                    asyncio.run(take_away(world, command))
                    saved = sh("iptables-save -t filter; iptables-save -t security").splitlines()
                    assert [line for line in saved if line.startswith("-A") and "NGP" not in line] == kept, command
                assert world.datapath.counters()["gate_restored"] == 2 * len(WAYS)
            finally:
                flood.kill()


async def take_away(world: World, command: str) -> None:
    """Run a command that removes the gate, and wait until the gate is back and nothing passes."""
    restored: asyncio.Queue[float] = asyncio.Queue()

    def look() -> None:
        meet_gap(world)
        if world.datapath.apply(desired()):
            restored.put_nowait(time.monotonic())

    sh(f"printf '{OPERATOR}' | iptables-restore")
    world.datapath.apply(desired())
    wait_until(lambda: passed_since_last_asked(world) == 0, "the gate's closing")
    world.datapath.watch(asyncio.get_running_loop(), lambda: None, look)
    began = time.monotonic()
    changing = await asyncio.create_subprocess_shell(command)
    ended = await asyncio.wait_for(restored.get(), CHANGED_S)
    await changing.wait()
    passed = passed_since_last_asked(world)
    print(f"{command.splitlines()[0]}: {(ended - began) * 1000:.0f} ms with the command; {passed} bytes passed")
    assert passed > 0, "nothing passed while the gate was missing, so the test shows nothing"
    assert passed_since_last_asked(world) == 0, "and it holds"
    world.datapath.stop_watching()


def meet_gap(world: World) -> None:
    """Wait until a packet of the flood has passed while the gate is missing.

    Without this, on a busy machine, the gate may be back before the flood gets a turn of a processor.
    """
    until = time.monotonic() + GAP_S
    while not received(world.lab.internet, 4)[1] and time.monotonic() < until:
        pass


def passed_since_last_asked(world: World) -> int:
    passed = received(world.lab.internet, 4)[1]
    sh("iptables -t raw -Z", world.lab.internet)
    return passed


def test_a_classifier_that_is_taken_off_comes_back(tmp_path: Path) -> None:
    async def body(world: World, command: str) -> None:
        back = asyncio.Event()

        def look() -> None:
            world.datapath.apply(desired())
            if "ngp_tc_out" in sh("tc filter show dev m0 egress"):
                back.set()

        world.datapath.watch(asyncio.get_running_loop(), lambda: None, look)
        sh(command)
        await asyncio.wait_for(back.wait(), CHANGED_S)
        world.datapath.stop_watching()

    with metered(tmp_path, use_tcx=False) as world:
        for command in ("tc filter del dev m0 egress", "tc qdisc del dev m0 clsact"):
            asyncio.run(body(world, command))


def test_a_look_that_finds_all_in_place_announces_nothing(world: World) -> None:
    """If a look changed something, its own announcement would cause the next look, without end."""
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as nft,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as tc,
    ):
        nft.bind((0, 1 << 6))
        tc.bind((0, 1 << 3))
        world.datapath.apply(desired())
        for silent in (nft, tc):
            with pytest.raises(BlockingIOError):
                silent.recv(1 << 16, socket.MSG_DONTWAIT)


def test_the_operators_own_rules_cause_no_look(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        looked: asyncio.Queue[None] = asyncio.Queue()
        world.datapath.watch(asyncio.get_running_loop(), lambda: None, lambda: looked.put_nowait(None))
        rules = "\n".join(f"add rule inet own forward udp dport {port} drop" for port in range(1, 500))
        script = f"add table inet own\nadd chain inet own forward {{ type filter hook forward priority 0; }}\n{rules}\n"
        loading = await asyncio.create_subprocess_exec("nft", "-f", "-", stdin=subprocess.PIPE)
        await loading.communicate(script.encode())
        flushing = await asyncio.create_subprocess_shell("nft delete table inet own; tc qdisc add dev m0 root pfifo")
        await flushing.wait()
        assert looked.empty()
        sh("iptables -t security -A OUTPUT -j ACCEPT")
        await asyncio.wait_for(looked.get(), CHANGED_S)
        assert looked.empty()
        world.datapath.stop_watching()

    with metered(tmp_path) as world:
        asyncio.run(body(world))
