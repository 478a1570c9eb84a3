"""The kernel's programs: this kernel accepts them all; if one is refused, a check and a start report it alike."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from ngp.core.forgetting import MOST_NEIGHBOURS
from ngp.errors import KernelError
from ngp.modules import bpf
from ngp.modules.link import inlet
from ngp.modules.link.udp import UdpLink
from ngp.modules.network import bpf as meter_bpf
from ngp.modules.network import check as host_check
from ngp.modules.network import layout
from ngp.modules.network.meter import table_sizes
from ngp.wire import MAX_ADDRESSES
from tests.modules.kernel_lab import desired

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = sorted(bpf.compiled(source.with_name(source.name[:-6])) for source in (ROOT / "modules").rglob("*.bpf.c"))
# An index without any bound: no kernel accepts it.
REFUSED = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u64[4]);
} one SEC(".maps");
SEC("socket") int too_far(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 *words = bpf_map_lookup_elem(&one, &zero);
	return words ? words[bpf_get_prandom_u32()] : 0;
}
char _license[] SEC("license") = "GPL";
"""
SAID = [
    "libbpf: prog 'xt_unpaid_up': BPF program load failed: Permission denied",
    "libbpf: prog 'xt_unpaid_up': -- BEGIN PROG LOAD LOG --\n1071: (85) call bpf_map_lookup_elem#1\n"
    "R2 type=mem expected=fp, pkt, pkt_meta, map_key, map_value\nprocessed 2022 insns (limit 1000000)\n"
    "-- END PROG LOAD LOG --",
    "libbpf: failed to load object 'meter.bpfel.o'",
]


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    """An object that the kernel refuses."""
    path = tmp_path / "refused.o"
    include = next(Path("/usr/include").glob("*-linux-gnu"))
    words = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-idirafter", str(include), "-x", "c", "-c", "-"]
    subprocess.run([*words, "-o", str(path)], input=REFUSED, text=True, check=True)
    return path


def test_every_source_is_an_object_that_a_check_loads() -> None:
    looked_at = (inlet.object_path(), meter_bpf.object_path())
    assert [path.resolve() for path in looked_at] == OBJECTS


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: str(path.name))
def test_this_kernel_takes_every_program(path: Path) -> None:
    assert bpf.try_to_load("it", path, {}) == bpf.Check("it", True, "the kernel accepts all of its programs")


def test_an_object_of_another_version_is_named_with_what_it_lacks() -> None:
    path = meter_bpf.object_path()

    def lacks(what: str) -> str:
        return re.escape(f"{path} has no {what}: it is from another version of ngp; install ngp's wheel again")

    with pytest.raises(KernelError, match=lacks("table newer")):
        bpf.Programs(path, {"newer": 1}, {})
    programs = bpf.Programs(path, {}, {})
    with pytest.raises(KernelError, match=lacks("table newer")):
        programs.table("newer")
    with pytest.raises(KernelError, match=lacks("program newer")):
        programs.program("newer")
    programs.close()


def test_the_meter_loads_in_the_size_of_its_tables() -> None:
    assert host_check.meter(desired()).ok
    huge = host_check.meter(desired(contracts_max=2**32 - 2**16))
    assert not huge.ok and "refuses the table ngp_" in huge.found and "smaller CONTRACTS_MAX" in huge.found


@pytest.mark.parametrize("contracts_max", [1, 1000, 131072])
def test_addresses_that_neighbours_announce_leave_every_contract_its_place(contracts_max: int) -> None:
    """Keys cost nothing, and each may announce as many addresses as a hello takes."""
    announced = MOST_NEIGHBOURS * MAX_ADDRESSES
    assert all(table_sizes(contracts_max)[name] >= contracts_max + announced for name in layout.HOSTS.values())


def test_a_full_table_says_what_helps() -> None:
    programs = bpf.Programs(meter_bpf.object_path(), {layout.HOSTS[4]: 1}, {})
    table = programs.table(layout.HOSTS[4])
    try:
        keys = [bytes([n]) * table.key_bytes for n in range(2)]
        with pytest.raises(KernelError, match=r"ngp_hosts4.*it is full: raise CONTRACTS_MAX in net\.conf, then"):
            table.set_many(keys, [bytes(table.value_bytes)] * 2)
        with pytest.raises(KernelError, match="it is full"):
            table.set(keys[1], bytes(table.value_bytes))
    finally:
        table.close()
        programs.close()


def test_a_check_leaves_nothing_open(refused: Path) -> None:
    for path in (inlet.object_path(), refused):  # the library itself opens some files the first time
        bpf.try_to_load("it", path, {})
    before = os.listdir("/proc/self/fd")
    for path in (*OBJECTS, refused):
        bpf.try_to_load("it", path, table_sizes(1024) if "meter" in path.name else {})
    assert os.listdir("/proc/self/fd") == before


def test_check_and_start_refuse_with_the_same_words(refused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match=r"the program too_far of refused\.o: .+; ngp was tried on Linux") as start:
        bpf.Programs(refused, {}, {})
    monkeypatch.setattr(inlet, "object_path", lambda: refused)
    monkeypatch.setattr(meter_bpf, "object_path", lambda: refused)
    monkeypatch.setattr(host_check, "table_sizes", lambda _: {})
    assert UdpLink().check(()) == [bpf.Check("inlet", False, str(start.value))]
    assert host_check.meter(desired()) == bpf.Check("meter", False, str(start.value))


def test_a_refusal_names_the_program_the_reason_and_what_to_do() -> None:
    line = bpf.refusal(Path("/opt/meter.bpfel.o"), SAID)
    assert "refuses the program xt_unpaid_up of meter.bpfel.o: R2 type=mem expected=fp, pkt," in line
    assert "\n" not in line and line.endswith("apt full-upgrade, then reboot")
    assert "refuses the kernel's part x.o: no memory;" in bpf.refusal(Path("x.o"), ["no memory"])
    assert "refuses the kernel's part x.o: no reason given;" in bpf.refusal(Path("x.o"), [])


def test_calls_fit_together_into_the_stack_that_linux_6_1_allows(tmp_path: Path) -> None:
    """Linux 6.1 limits the stack of a whole chain of calls. Later kernels accept more, so they wouldn't show it."""
    for path in OBJECTS:
        pins = tmp_path / "bpf"
        pins.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "bpf", "bpf", str(pins)], check=True)
        try:
            load = subprocess.run(
                ["bpftool", "-d", "prog", "loadall", str(path), str(pins / "pins")], capture_output=True, text=True
            )
            assert load.returncode == 0, load.stderr[-2000:]
            said = re.findall(r"prog '(\w+)': -- BEGIN PROG LOAD LOG --.*?stack depth ([\d+]+)", load.stderr, re.DOTALL)
            depths = {name: [int(one) for one in text.split("+")] for name, text in said}
            for program in sorted((pins / "pins").iterdir()):
                shown = ["bpftool", "prog", "dump", "xlated", "pinned", str(program)]
                text = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
                assert _deepest(text, depths[program.name]) <= 512, program.name
        finally:
            subprocess.run(["umount", str(pins)], check=True)


def _deepest(text: str, depths: list[int]) -> int:
    """Add up the stack of the deepest chain of calls. Args: depths: of each function, in order."""
    calls: dict[str, set[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"[a-z_].*?(\w+)\(.*\):\s*$", line):
            name = match[1]
            calls[name] = set()
        elif match := re.search(r"call pc[+-]\d+#bpf_prog_[0-9a-f]{16}_(\w+)", line):
            calls[name].add(match[1])
    frames = dict(zip(calls, depths, strict=True))

    def below(function: str) -> int:
        """Return the stack from this function down. (The kernel shortens the names of called functions.)"""
        called = (next(one for one in frames if one.startswith(short)) for short in calls[function])
        return max(32, -(-frames[function] // 32) * 32) + max(map(below, called), default=0)

    return below(next(iter(calls)))
