"""Starting, dying, starting again, and leaving nothing behind."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from kernel_lab import CLIENT, INTERNET, desired, dropped, lab, passes, sh
from meter_lab import GENEROUS, NEIGHBOUR, PAYER, PRICE, World, contract_id, metered

from ngp.core.kernel import AccountReading, Adopted, Grant
from ngp.core.messages import Role
from ngp.core.prefixes import PackedPrefix
from ngp.errors import ExitCode, KernelError
from ngp.modules.bpf import Programs, require
from ngp.modules.network import bpf, hooks, meter, xtables
from ngp.modules.network import datapath as datapath_module
from ngp.modules.network.datapath import Datapath
from ngp.modules.network.meter import GATE_PROGRAMS
from ngp.ports.network import KernelState

HOST = f"{INTERNET[4]}/32"

OPERATOR_DROPS = """
__attribute__((section("tc"), used)) int drops(void *packet) { return 2; }
char _license[] __attribute__((section("license"), used)) = "GPL";
"""
DAEMON = """
import os, sys
sys.path[:0] = sys.argv[3:]
from ipaddress import ip_network
from pathlib import Path
from kernel_lab import desired
from meter_lab import NEIGHBOUR, PAYER, PRICE
from ngp.core.messages import Role
from ngp.modules.network.datapath import Datapath
from ngp.core.kernel import AccountLimit, Grant, KernelNeighbour
from ngp.core.prefixes import PackedPrefix
datapath = Datapath(Path(sys.argv[1]))
datapath.set_up(desired())
datapath.set_neighbours([KernelNeighbour(NEIGHBOUR, "m0", bytes.fromhex(sys.argv[2]), (), True, False)])
datapath.limit_accounts([AccountLimit(PAYER, 10_000 * PRICE)])
grants = [Grant(bytes([n]) * 16, NEIGHBOUR, Role.SERVER, PackedPrefix.of(ip_network(p)), 10_000, 600, PAYER, PRICE)
          for n, p in ((1, "10.77.2.2/32"), (2, "fd00:77::/32"))]
datapath.grant(grants)
os._exit(9)
"""


@pytest.fixture(params=["tcx", "clsact"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with metered(tmp_path, request.param == "tcx") as built:
        yield built


def grants_of(count: int) -> list[Grant]:
    """Return the contracts of one neighbour for as many addresses."""
    places = (PackedPrefix.of(ip_network((0x0B000000 + n, 32))) for n in range(count))
    return [Grant(contract_id(), NEIGHBOUR, Role.SERVER, place, 10**6, 600, PAYER, PRICE) for place in places]


def test_an_interface_that_goes_while_ngp_starts_is_no_reason_to_give_up(tmp_path: Path) -> None:
    """Interfaces are renamed while a machine boots, and systemd wouldn't restart a service that ended with KERNEL."""
    with lab():
        datapath = Datapath(tmp_path)
        try:
            with pytest.raises(KernelError, match="m9 doesn't exist") as gone:
                datapath.set_up(desired(mesh_interfaces=("m0", "m9")))
        finally:
            datapath.close()
        assert gone.value.exit_code is ExitCode.OTHER
    with pytest.raises(KernelError) as gone:
        require(-errno.ENODEV, "attaching a program")
    assert gone.value.exit_code is ExitCode.OTHER


def test_traffic_goes_on_and_is_adopted_after_a_crash(world: World) -> None:
    contract = world.grant(HOST, limit_bytes=84 * 6, low_water_bytes=84)
    client = world.grant("fd00:77::/32", role=Role.CLIENT, used_to_base_bytes=70, used_from_base_bytes=30)
    assert passes(world.lab.client, INTERNET[4])
    world.datapath.close()
    assert passes(world.lab.client, INTERNET[4]), "nobody is there, and the contract holds"
    adopted = world.datapath.set_up(desired())
    (account,) = adopted.accounts
    assert account.reading == AccountReading(PAYER, 4 * 84 * PRICE)
    found = {each.grant.contract: each for each in adopted.contracts}
    assert set(found) == {contract, client}
    grant, reading = found[contract].grant, found[contract].reading
    assert (grant.neighbour, grant.role, grant.destination.prefix) == (NEIGHBOUR, Role.SERVER, ip_network(HOST))
    assert (grant.limit_bytes, grant.low_water_bytes) == (84 * 6, 84) and 300 < grant.expires_in_s <= 600
    assert (grant.account, grant.price_msat_per_gib) == (PAYER, PRICE)
    assert (reading.used_to_bytes, reading.used_from_bytes) == (168, 168)
    assert (
        found[client].grant.destination.prefix == ip_network("fd00:77::/32") and found[client].grant.role is Role.CLIENT
    )
    assert (found[client].reading.used_to_bytes, found[client].reading.used_from_bytes) == (70, 30)
    assert passes(world.lab.client, INTERNET[4]) and dropped(world.lab.client, INTERNET[4])
    world.datapath.revoke([contract])
    fresh = world.grant(HOST)
    assert passes(world.lab.client, INTERNET[4]) and world.used(fresh) == (84, 84)


def test_charged_once_however_often_it_was_set_up(world: World) -> None:
    contract = world.grant(HOST)
    for _ in range(3):
        world.datapath.apply(desired())
        world.datapath.close()
        world.datapath.set_up(desired())
    assert passes(world.lab.client, INTERNET[4])
    assert world.used(contract) == (84, 84)
    assert len(hooks.attached(_index("m0"), hooks.Direction.OUT)) == 1


def _index(name: str) -> int:
    return socket.if_nametoindex(name)


@pytest.mark.parametrize("mounts", ["same", "gone"])
def test_adopted_from_a_killed_process(tmp_path: Path, mounts: str) -> None:
    """`gone` stands for `ip netns exec`: the mount with the pins ends together with the process that made it."""
    with lab() as built:
        mac = sh("cat /sys/class/net/c0/address", built.client).strip().replace(":", "")
        folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
        words = ["unshare", "-m"] * (mounts == "gone") + [sys.executable, "-c", DAEMON, str(tmp_path), mac, *folders]
        datapath = Datapath(tmp_path)
        try:
            assert subprocess.run(words, timeout=60).returncode == 9
            assert (tmp_path / "bpf").is_mount() == (mounts == "same")
            assert passes(built.client, INTERNET[4])
            assert Datapath(tmp_path).kernel_state() == KernelState(meter=True, sells=True, gate=True)
            adopted = datapath.set_up(desired())
            found = {each.grant.contract: each.reading for each in adopted.contracts}
            assert [each.reading.spent_units for each in adopted.accounts] == [168 * PRICE]
            assert (found[b"\1" * 16].used_to_bytes, found[b"\1" * 16].used_from_bytes) == (84, 84)
            assert (tmp_path / "bpf" / "xt_unpaid_up").exists()
            assert passes(built.client, INTERNET[6])
            (reading,) = datapath.read([b"\2" * 16])
            assert (reading.used_to_bytes, reading.used_from_bytes) == (104, 104)
        finally:
            datapath.clean_up(leave_closed=False)


@pytest.mark.parametrize("mounts", ["same", "gone"])
def test_cleaned_up_without_memory(tmp_path: Path, mounts: str) -> None:
    with lab() as built:
        before = _state()
        mac = sh("cat /sys/class/net/c0/address", built.client).strip().replace(":", "")
        folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
        words = ["unshare", "-m"] * (mounts == "gone") + [sys.executable, "-c", DAEMON, str(tmp_path), mac, *folders]
        assert subprocess.run(words, timeout=60).returncode == 9
        assert _state() != before
        with pytest.raises(KernelError, match="has a meter"):
            Datapath(tmp_path).shut(("m0",), (), {4})
        Datapath(tmp_path).clean_up(leave_closed=True)
        Datapath(tmp_path).clean_up(leave_closed=True)
        assert dropped(built.client, INTERNET[4]), "closed"
        with pytest.raises(KernelError):
            Datapath(tmp_path).set_up(desired(mesh_interfaces=("m0", "absent0")))
        assert Datapath(tmp_path).kernel_state() == KernelState(closed=True), "a failed start opens nothing"
        Datapath(tmp_path).clean_up(leave_closed=False)
        Datapath(tmp_path).clean_up(leave_closed=False)
        assert passes(built.client, INTERNET[4]), "open"
        assert _state() == before and list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind_and_the_operators_filter_stays(tmp_path: Path) -> None:
    (tmp_path / "drops.c").write_text(OPERATOR_DROPS)
    sh(f"clang -O2 -target bpf -c {tmp_path}/drops.c -o {tmp_path}/drops.o")
    for use_tcx in (True, False):
        with metered(tmp_path, use_tcx) as world:
            world.grant(HOST)
            assert passes(world.lab.client, INTERNET[4])
            if use_tcx:
                sh("tc qdisc add dev m0 clsact")
            sh(f"tc filter add dev m0 egress prio 50 bpf da obj {tmp_path}/drops.o sec tc")
            assert dropped(world.lab.client, INTERNET[4]), "the operator's filter is still asked"
            world.datapath.clean_up(leave_closed=False)
            shown = sh("tc filter show dev m0 egress")
            assert "drops.o" in shown and "ngp" not in shown
            sh("tc filter del dev m0 egress")
            assert passes(world.lab.client, INTERNET[4])


def test_clsact_that_we_made_goes_and_one_that_we_found_stays(tmp_path: Path) -> None:
    with lab():
        sh("tc qdisc add dev m1 clsact")
        before = _state()
        datapath = Datapath(tmp_path, use_tcx=False)
        datapath.set_up(desired(buys=True))
        assert sh("tc qdisc show dev m0 clsact") != ""
        datapath.clean_up(leave_closed=False)
        assert _state() == before


def test_an_interface_that_is_no_longer_mesh_is_let_go(world: World) -> None:
    world.grant(HOST, limit_bytes=0)
    assert dropped(world.lab.client, INTERNET[4])
    world.datapath.apply(desired(mesh_interfaces=("m1",)))
    assert passes(world.lab.client, INTERNET[4])
    assert sh("tc qdisc show dev m0 clsact") == ""
    world.datapath.apply(desired())
    assert dropped(world.lab.client, INTERNET[4])


def test_contracts_follow_an_interface_that_is_made_again(world: World) -> None:
    contract = world.grant(HOST)
    wide = world.grant("fd00:77::/32")
    mac = world.mac.hex(":")
    sh("ip link del m0")
    sh(f"ip link add m0 type veth peer name c0 netns {world.lab.client}")
    sh("sysctl -qw net.ipv6.conf.m0.accept_dad=0 && ip addr add 10.77.1.1/24 dev m0")
    sh("ip addr add fd00:77:1::1/64 dev m0 nodad && ip link set m0 up")
    sh(
        f"sysctl -qw net.ipv6.conf.c0.accept_dad=0 && ip link set c0 address {mac} && "
        f"ip addr add {CLIENT[4]}/24 dev c0 && ip addr add {CLIENT[6]}/64 dev c0 nodad && ip link set c0 up && "
        "ip route add default via 10.77.1.1 && ip -6 route add default via fd00:77:1::1",
        world.lab.client,
    )
    world.datapath.apply(desired())
    assert passes(world.lab.client, INTERNET[4]) and world.used(contract) == (84, 84)
    assert passes(world.lab.client, INTERNET[6]) and world.used(wide) == (104, 104)


def test_contracts_wait_for_an_interface_that_is_not_there_yet(world: World) -> None:
    world.datapath.set_neighbours([world.neighbour(neighbour=99, interface="late0")])
    granted = [
        Grant(bytes([number]) * 16, number, Role.SERVER, PackedPrefix.of(ip_network(place)), GENEROUS, 600)
        for number, place in ((99, HOST), (NEIGHBOUR, "fd00:77::/32"))
    ]
    world.datapath.grant(granted)
    assert passes(world.lab.client, INTERNET[6]), "the other neighbour's is carried"
    sh("ip link set m0 down && ip link set m0 name late0 && ip link set late0 up")
    world.datapath.apply(desired(mesh_interfaces=("late0",)))
    assert passes(world.lab.client, INTERNET[4])
    assert world.used(granted[0].contract) == (84, 84)


def test_contracts_follow_a_new_number_of_their_link(world: World) -> None:
    contract, wide = world.grant(HOST), world.grant("fd00:77::/32")
    world.datapath.close()
    world.datapath.set_up(desired())
    world.datapath.set_neighbours([world.neighbour(neighbour=99)])
    assert passes(world.lab.client, INTERNET[4]) and passes(world.lab.client, INTERNET[6])
    assert world.used(contract) == (84, 84) and world.used(wide) == (104, 104)


def test_a_failed_set_up_leaves_nothing(tmp_path: Path) -> None:
    with lab():
        before = _state()
        with pytest.raises(KernelError, match="nowhere0"):
            Datapath(tmp_path).set_up(desired(mesh_interfaces=("m0", "nowhere0")))
        assert _state() == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "step",
    [
        *((bpf, "mount_bpffs"), (bpf, "pin"), (datapath_module, "ProgramsWait")),
        *((meter, "NeighbourTable"), (meter, "AccountTable"), (meter, "ContractTable")),
    ],
)
def test_a_set_up_that_the_kernel_refuses_at_any_step_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[object, str]
) -> None:
    """Anything that stays open fails the test (tests/conftest.py).

    It is also tried with a running meter: then set_up has opened the meter's tables before it is refused.
    """

    def refuse(*_words: object, **_more: object) -> None:
        raise KernelError("refused")

    with metered(tmp_path) as world:
        world.datapath.close()
        with monkeypatch.context() as broken, pytest.raises(KernelError, match="refused"):
            broken.setattr(*step, refuse)
            world.datapath.set_up(desired())
        assert world.datapath.kernel_state().meter, "it goes on"


@pytest.mark.parametrize("use_tcx", [True, False])
def test_foreign_qdiscs_stay_and_one_in_the_way_is_named(tmp_path: Path, use_tcx: bool) -> None:
    with lab() as built:
        sh("tc qdisc add dev m0 root handle 7: pfifo limit 50 && tc qdisc add dev m0 ingress")
        before = _state()
        datapath = Datapath(tmp_path, use_tcx)
        if use_tcx:
            datapath.set_up(desired(buys=True))
            assert dropped(built.client, INTERNET[4])
            datapath.clean_up(leave_closed=False)
        else:
            with pytest.raises(KernelError, match="tc qdisc del dev m0 ingress"):
                datapath.set_up(desired(buys=True))
        assert _state() == before and list(tmp_path.iterdir()) == []


def test_a_changed_size_counts_after_a_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with metered(tmp_path) as world:
        contract = world.grant(HOST)
        world.datapath.close()
        bigger = desired(contracts_max=2000)
        (line,) = [each for each in world.datapath.check(bigger) if each.name == "contracts"]
        assert "1000" in line.found and "2000" in line.found and "ngp stop" in line.remedy
        assert [each.grant.contract for each in world.datapath.set_up(bigger).contracts] == [contract]
        assert "CONTRACTS_MAX 2000" in caplog.text
        assert "CONTRACTS_MAX 2000" in world.datapath.describe()["contracts_max"]
        world.datapath.clean_up(leave_closed=False)
        assert not [each for each in world.datapath.check(bigger) if each.name == "contracts"]
        assert world.datapath.set_up(bigger) == Adopted()
        assert (
            world.datapath.describe()["contracts"] == "0 of 2000" and "contracts_max" not in world.datapath.describe()
        )


def test_a_full_table_is_named_and_half_a_batch_is_not_granted(tmp_path: Path) -> None:
    with metered(tmp_path, contracts_max=2) as world:
        grants = grants_of(3)
        with pytest.raises(KernelError, match="CONTRACTS_MAX"):
            world.datapath.grant(grants)
        assert world.datapath.describe()["contracts"] == "0 of 2"
        world.datapath.grant(grants[:2])


def test_the_verifier_has_little_to_do() -> None:
    """Each start waits for the verifier. That took a second when the verifier checked functions anew at each call."""
    programs = Programs(bpf.object_path(), {}, {})
    try:
        for name in (*GATE_PROGRAMS, *(direction.program for direction in hooks.Direction)):
            told = Path(f"/proc/self/fdinfo/{programs.program(name)}").read_text()
            looked_at = int(told.partition("verified_insns:")[2].split()[0])
            assert 0 < looked_at < 60_000, f"{name}: {looked_at} instructions"  # a second is a million
    finally:
        programs.close()


def test_a_state_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with lab():
        before = _state()
        sh(f"mount -t tmpfs -o size=64k none {tmp_path} && mount -o remount,ro {tmp_path}")
        try:
            with pytest.raises(KernelError, match="STATE_DIR"):
                Datapath(tmp_path).set_up(desired())
            assert _state() == before
            sh(f"mount -o remount,rw,noexec,nosuid,nodev {tmp_path}")
            datapath = Datapath(tmp_path)
            datapath.set_up(desired())
            datapath.clean_up(leave_closed=False)
            assert _state() == before
        finally:
            sh(f"umount -R {tmp_path}")


def test_legacy_tables_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate's rules in the legacy tables call the real programs: charge, cut, hold, refuse, and leave nothing."""
    monkeypatch.setattr(xtables, "detect", lambda: xtables.Choice(xtables.LEGACY, "chosen by the test"))
    with metered(tmp_path) as world:
        assert "NGP_GATE" in sh("ip6tables-legacy-save") and "NGP" not in sh("iptables-nft-save")
        contracts = [world.grant(f"{INTERNET[6]}/128", limit_bytes=104 * 3), world.grant(HOST, limit_bytes=84 * 3)]
        for family, contract in ((6, contracts[0]), (4, contracts[1])):
            each = {4: 84, 6: 104}[family]
            assert passes(world.lab.client, INTERNET[family])
            assert dropped(world.lab.client, INTERNET[family])
            assert world.used(contract) == (2 * each, each)
        world.datapath.revoke(contracts)
        assert dropped(world.lab.client, INTERNET[6])
        assert world.datapath.counters()["passed_to_queue"] == 1
        world.datapath.clean_up(leave_closed=False)
        assert "NGP" not in sh("iptables-legacy-save; ip6tables-legacy-save")
        assert passes(world.lab.client, INTERNET[6])


def test_one_that_is_not_set_up_knows_the_host(tmp_path: Path) -> None:
    with lab():
        datapath = Datapath(tmp_path)
        for _ in range(2):
            assert datapath.mesh_interfaces(("m*",), ("m1*",)) == ("m0",)
            sh("ip route add default via 10.77.2.2 && ip link add m3 type veth peer name m3x")
            assert datapath.other_interfaces(("m0",), None)[1] == ("up0",)
            assert datapath.mesh_interfaces(("m*",), ()) == ("m0", "m1", "m1x", "m3", "m3x"), "as they are now"
            assert ip_address("10.77.1.1") in datapath.local_addresses()
            sh("ip route del default && ip link del m3")
            datapath.stop_watching()
            datapath.close()


def test_a_hundred_thousand_contracts(tmp_path: Path) -> None:
    with metered(tmp_path, contracts_max=100_000) as world:
        grants = grants_of(99_999)
        start = time.process_time()  # counts the kernel's work for this process, and no other process's
        world.datapath.grant(grants)
        mine = world.grant(HOST)
        granted = time.process_time()
        world.datapath.close()
        assert len(world.datapath.set_up(desired(contracts_max=100_000)).contracts) == 100_000
        adopted = time.process_time()
        assert passes(world.lab.client, INTERNET[4])
        assert [each.contract for each in world.datapath.read()] == [mine] and world.datapath.read() == []
        assert world.used(mine) == (84, 84)
        assert granted - start < 10 and adopted - granted < 15
        world.datapath.revoke([each.contract for each in grants])
        assert world.datapath.describe()["contracts"] == "1 of 100000"


def _state() -> str:
    """Return all parts of the host that ngp may change."""
    index = {name: _index(name) for name in ("m0", "m1", "up0")}
    ours = [hooks.attached(each, side) for each in index.values() for side in hooks.Direction]
    rules = sh("iptables-save -t security; ip6tables-save -t security")
    kept = [line.partition(" [")[0] for line in rules.splitlines() if not line.startswith("#")]  # without counters
    return f"{ours} {kept} {sh('tc qdisc show')} {[sh(f'tc filter show dev {name} egress') for name in index]}"
