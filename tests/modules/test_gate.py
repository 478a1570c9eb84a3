"""The gate as text, and on the real kernel, under both variants of iptables."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from kernel_lab import (
    CLIENT,
    GATEWAY_TO_CLIENT,
    GATEWAY_TO_INTERNET,
    INTERNET,
    Lab,
    desired,
    dropped,
    lab,
    passes,
    paths,
    pinned_filters,
    python,
    sh,
)

from ngp.errors import ExitCode, KernelError
from ngp.modules.network import gate, xtables
from ngp.modules.network.gate import Gate, GatePaths, clean_up, render
from ngp.modules.network.xtables import LEGACY, NFT, Choice
from ngp.ports.network import FreeRule

PROGRAMS = ("up", "mesh", "lan", "unknown", "unknown_mesh", "over_rate", "forged", "from", "to", "slowed")
ON_PAPER = GatePaths(*(Path("/var/lib/ngp/bpf", name) for name in PROGRAMS))
OWN_SERVICES = (FreeRule(ip_network(GATEWAY_TO_CLIENT[4]), 6, 9735),)

GOLDEN = """\
*security
:NGP_GATE - [0:0]
:NGP_TO_UP - [0:0]
:NGP_TO_MESH - [0:0]
:NGP_TO_LAN - [0:0]
:NGP_UNPAID - [0:0]
:NGP_UNPAID_MESH - [0:0]
-A NGP_GATE -o up0 -g NGP_TO_UP
-A NGP_GATE -o up1 -g NGP_TO_UP
-A NGP_GATE -o m0 -g NGP_TO_MESH
-A NGP_GATE -o m1 -g NGP_TO_MESH
-A NGP_GATE -o lan0 -g NGP_TO_LAN
-A NGP_GATE -m bpf --object-pinned /var/lib/ngp/bpf/up -g NGP_UNPAID
-A NGP_TO_UP -m bpf --object-pinned /var/lib/ngp/bpf/up -g NGP_UNPAID
-A NGP_TO_MESH -m bpf --object-pinned /var/lib/ngp/bpf/mesh -g NGP_UNPAID_MESH
-A NGP_TO_LAN -m bpf --object-pinned /var/lib/ngp/bpf/lan -g NGP_UNPAID
-A NGP_UNPAID -m bpf --object-pinned /var/lib/ngp/bpf/unknown -j NFQUEUE --queue-num 7
-A NGP_UNPAID -j DROP
-A NGP_UNPAID_MESH -m bpf --object-pinned /var/lib/ngp/bpf/unknown_mesh -j NFQUEUE --queue-num 7
-A NGP_UNPAID_MESH -j DROP
-I FORWARD 1 -i m0 -j NGP_GATE
-I FORWARD 2 -i m1 -j NGP_GATE
COMMIT
"""


def golden_with(chain: str, program: str, *jumps: str) -> str:
    """Return the same rules with one more chain, which drops what a program matches, and the jumps to it."""
    more = f"-A {chain} -m bpf --object-pinned /var/lib/ngp/bpf/{program} -j DROP\n"
    return (
        GOLDEN.replace(":NGP_UNPAID_MESH - [0:0]\n", f":NGP_UNPAID_MESH - [0:0]\n:{chain} - [0:0]\n")
        .replace("-A NGP_UNPAID_MESH -j DROP\n", f"-A NGP_UNPAID_MESH -j DROP\n{more}")
        .replace("COMMIT\n", "".join(f"-I {jump} -j {chain}\n" for jump in jumps) + "COMMIT\n")
    )


GOLDEN_WITH_OWN_SERVICES = golden_with("NGP_OWN", "over_rate", "INPUT 1 -i m0", "INPUT 2 -i m1")
SLOW = GOLDEN.replace(":NGP_UNPAID_MESH - [0:0]\n", ":NGP_UNPAID_MESH - [0:0]\n:NGP_SLOW - [0:0]\n").replace(
    "-A NGP_UNPAID_MESH -j DROP\n",
    """-A NGP_UNPAID_MESH -j DROP
-A NGP_SLOW -m bpf --object-pinned /var/lib/ngp/bpf/unknown -j NFQUEUE --queue-num 7
-A NGP_SLOW -m bpf --object-pinned /var/lib/ngp/bpf/slowed -j RETURN
-A NGP_SLOW -j DROP
""",
)
GOLDEN_WITH_UNPAID_RATE = SLOW.replace("bpf/up -g NGP_UNPAID", "bpf/up -g NGP_SLOW").replace(
    "bpf/lan -g NGP_UNPAID", "bpf/lan -g NGP_SLOW"
)
GOLDEN_WITH_REWRITES = golden_with("NGP_FORGED", "forged", "FORWARD 3 -o m0", "FORWARD 4 -o m1")

OPERATOR = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:own - [0:0]
-A FORWARD -p tcp -m tcp --dport 25 -j DROP
-A own -j RETURN
COMMIT
*mangle
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*security
:NGPLIKE - [0:0]
-A INPUT -p tcp -m tcp --dport 27 -j ACCEPT
-A FORWARD -o nowhere -j NGPLIKE
-A NGPLIKE -p tcp -m tcp --dport 26 -j DROP
COMMIT
"""

COMMANDS = ("iptables", "ip6tables")


@pytest.fixture(scope="module")
def filters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    with pinned_filters(tmp_path_factory.mktemp("pins")) as pinned:
        yield pinned


@pytest.fixture
def hosts() -> Iterator[Lab]:
    with lab() as built:
        yield built


@pytest.fixture(params=[NFT, LEGACY])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the module see an `iptables` of this variant on the host."""
    monkeypatch.setattr(xtables, "detect", lambda: Choice(request.param, "chosen by the test"))
    return str(request.param)


def with_operators_rules(variant: str) -> list[str]:
    """Load an operator's rules in both families; returns them as saved."""
    for command in COMMANDS:
        subprocess.run([f"{command}-{variant}-restore"], input=OPERATOR, text=True, check=True)
    return saved(variant)


def saved(variant: str) -> list[str]:
    """Return rules and policies of both families, without dates, versions and counters (legacy resets these)."""
    texts = [sh(f"{command}-{variant}-save") for command in COMMANDS]
    return [line.partition(" [")[0] for text in texts for line in text.splitlines() if not line.startswith("#")]


def test_the_gates_rules_are_exactly_these() -> None:
    lan, up = ("lan0", "what iptables can't take"), ("up0", "up1", "up+")
    wanted = desired(lan_interfaces=lan, upstream_interfaces=up, queue_number=7)
    for family in (4, 6):
        assert render(wanted, ON_PAPER, family) == GOLDEN
        assert render(replace(wanted, buys=True), ON_PAPER, family) == GOLDEN, "the payer may differ"
        assert render(replace(wanted, own_services=OWN_SERVICES), ON_PAPER, family) == GOLDEN_WITH_OWN_SERVICES
        assert render(wanted, ON_PAPER, family, rewrites=True) == GOLDEN_WITH_REWRITES
        assert render(replace(wanted, unpaid_bytes_s=1024), ON_PAPER, family) == GOLDEN_WITH_UNPAID_RATE
    usual = render(desired(mesh_interfaces=("m0",)), ON_PAPER, 4).splitlines()
    ways = [line for line in usual if line.startswith("-A NGP_GATE")]
    assert ways[0].startswith("-A NGP_GATE -o m0") and len(ways) == 2, "one comparison for what goes upstream"


def test_no_gate_where_none_is_wanted() -> None:
    assert render(desired(sells=False), ON_PAPER, 4) == ""
    assert render(desired(families=frozenset({4})), ON_PAPER, 6) == ""


@pytest.mark.parametrize("name", ["wlan+", "a b", 'a"b', "a\n-P FORWARD ACCEPT", "", "!x", "x" * 16])
def test_an_interface_name_that_iptables_misreads_is_refused(name: str) -> None:
    with pytest.raises(KernelError, match="interface name"):
        render(desired(mesh_interfaces=(name,)), ON_PAPER, 4)


def test_a_path_that_iptables_misreads_is_refused() -> None:
    with pytest.raises(KernelError, match="STATE_DIR"):
        render(desired(), replace(ON_PAPER, unpaid_lan=Path("/a b")), 4)


def test_apply_twice_changes_nothing_and_clean_up_restores(
    hosts: Lab, filters: tuple[Path, Path], variant: str
) -> None:
    yes, no = filters
    before = with_operators_rules(variant)
    held = Gate(paths(no, no, no), desired())
    assert held.apply() is True
    with_gate = saved(variant)
    assert [line for line in with_gate if "NGP_" not in line] == before
    assert held.apply() is False and Gate(paths(no, no, no), desired()).apply() is False
    assert held.standing() and saved(variant) == with_gate
    assert held.apply(programs_changed=True) is True and saved(variant) == with_gate
    slowing = desired(unpaid_bytes_s=1024)
    assert held.apply(slowing) is True and held.apply(slowing) is False and held.standing()
    assert [line for line in saved(variant) if "NGP_" not in line] == before
    clean_up(False, ("m0", "m1"))
    assert saved(variant) == before and not held.standing()
    clean_up(False, ("m0", "m1"))
    assert saved(variant) == before


def test_the_jump_is_the_one_that_iptables_itself_would_write(
    hosts: Lab, filters: tuple[Path, Path], variant: str
) -> None:
    """The masks of interface names are compared too: listings don't show them, and a short one matches other names."""
    Gate(paths(filters[1], filters[1], filters[1]), desired()).apply()
    for command in COMMANDS:
        for mesh in ("m0", "m1"):
            sh(f"{command}-{variant} -t security -C FORWARD -i {mesh} -j NGP_GATE")


def test_legacy_loads_no_table_but_its_own(hosts: Lab, filters: tuple[Path, Path], variant: str) -> None:
    Gate(paths(filters[1], filters[1], filters[1]), desired()).apply()
    loaded = ["security"] if variant == LEGACY else []
    assert xtables.legacy_tables(4) == loaded and xtables.legacy_tables(6) == loaded


def test_clean_up_takes_away_the_nft_tables_that_the_gate_made(
    hosts: Lab, filters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xtables, "detect", lambda: Choice(NFT, "chosen by the test"))
    Gate(paths(filters[1], filters[1], filters[1]), desired()).apply()
    clean_up(True, ("m0",))
    clean_up(False, ())
    assert sh("nft list ruleset") == ""


def test_fewer_interfaces_or_families_leave_no_old_rule(hosts: Lab, filters: tuple[Path, Path], variant: str) -> None:
    held = Gate(paths(filters[1], filters[1], filters[1]), desired())
    held.apply()
    held.apply(desired(mesh_interfaces=("m0",), families=frozenset({4})))
    assert not [line for line in saved(variant) if "m1" in line]
    assert "NGP" not in sh(f"ip6tables-{variant}-save")
    held.apply(desired(sells=False))
    assert not [line for line in saved(variant) if "NGP" in line]


def test_the_jump_is_moved_back_before_an_operators_accept(
    hosts: Lab, filters: tuple[Path, Path], variant: str
) -> None:
    held = Gate(paths(filters[0], filters[0], filters[1]), desired())
    held.apply()
    for command in COMMANDS:
        sh(f"{command}-{variant} -t security -I FORWARD 1 -j ACCEPT")
        sh(f"{command}-{variant} -t security -A FORWARD -j NGP_GATE")
        sh(f"{command}-{variant} -t security -A FORWARD -i m9 -j NGP_GATE")
    assert passes(hosts.client, INTERNET[4]) and not held.standing()
    assert held.apply() is True
    for command in COMMANDS:
        rules = sh(f"{command}-{variant} -t security -S FORWARD").splitlines()
        jumps = ["-A FORWARD -i m0 -j NGP_GATE", "-A FORWARD -i m1 -j NGP_GATE"]
        assert rules == ["-P FORWARD ACCEPT", *jumps, "-A FORWARD -j ACCEPT"]
    assert dropped(hosts.client, INTERNET[4]) and dropped(hosts.client, INTERNET[6])


@pytest.mark.parametrize("family", [4, 6])
def test_each_packet_is_judged_by_the_program_for_its_way(
    hosts: Lab, filters: tuple[Path, Path], variant: str, family: int
) -> None:
    yes, no = filters
    up, inward = paths(no, yes, no), paths(yes, no, no)
    wanted = desired()
    Gate(up, wanted).apply()
    assert passes(hosts.client, INTERNET[family])
    Gate(inward, wanted).apply()
    assert dropped(hosts.client, INTERNET[family]), "what another program would pass doesn't count"
    for changes in ({"lan_interfaces": ("up0",)}, {"mesh_interfaces": ("m0", "up0")}):
        near = desired(**{"upstream_interfaces": (), **changes})
        Gate(inward, near).apply()
        assert passes(hosts.client, INTERNET[family]), "towards mesh and LAN"
        Gate(up, near).apply()
        assert dropped(hosts.client, INTERNET[family])
    Gate(up, desired(upstream_interfaces=())).apply()
    assert passes(hosts.client, INTERNET[family]), "an interface that nothing is known of is upstream"


def test_what_is_over_the_rate_is_dropped_at_input_and_all_else_left_to_the_operator(
    hosts: Lab, filters: tuple[Path, Path], variant: str
) -> None:
    yes, no = filters
    before = with_operators_rules(variant)
    Gate(paths(no, no, no, yes), desired()).apply()
    assert not [line for line in saved(variant) if "NGP_OWN" in line], "no service on this host: nothing is asked there"
    Gate(paths(no, no, no, no), desired(own_services=OWN_SERVICES)).apply()
    assert passes(hosts.client, GATEWAY_TO_CLIENT[4]) and passes(hosts.client, GATEWAY_TO_CLIENT[6])
    sh(f"iptables-{variant} -A INPUT -i m0 -j DROP")
    assert dropped(hosts.client, GATEWAY_TO_CLIENT[4]), "the operator's rules are the judge"
    sh(f"iptables-{variant} -D INPUT -i m0 -j DROP")
    held = Gate(paths(no, no, no, yes), desired(own_services=OWN_SERVICES))
    assert held.apply() is True and held.apply() is False
    for command in COMMANDS:
        sh(f"{command}-{variant} -t security -C INPUT -i m0 -j NGP_OWN")
    for family in (4, 6):
        assert dropped(hosts.client, GATEWAY_TO_CLIENT[family]), "dropped when the program says so"
        assert passes(hosts.internet, GATEWAY_TO_INTERNET[family]), "packets from no mesh interface aren't tested"
    for command in COMMANDS:
        sh(f"{command}-{variant} -t security -I INPUT 1 -j ACCEPT")
    assert passes(hosts.client, GATEWAY_TO_CLIENT[4]) and not held.standing()
    assert held.apply() is True and dropped(hosts.client, GATEWAY_TO_CLIENT[4])
    for command in COMMANDS:
        sh(f"{command}-{variant} -t security -D INPUT -j ACCEPT")
    clean_up(True, ("m0", "m1"))
    assert [line for line in saved(variant) if "INPUT" in line] == [line for line in before if "INPUT" in line]
    clean_up(False, ())
    assert saved(variant) == before


@pytest.mark.parametrize("table", ["filter", "security"])
def test_an_operators_drop_stays_in_force(hosts: Lab, filters: tuple[Path, Path], variant: str, table: str) -> None:
    Gate(paths(filters[1], filters[1], filters[1]), desired()).apply()
    assert passes(hosts.client, INTERNET[4])
    sh(f"iptables-{variant} -t {table} -A FORWARD -p icmp -j DROP")
    assert dropped(hosts.client, INTERNET[4])


def test_closed_drops_both_ways_until_the_gate_is_set_up(hosts: Lab, filters: tuple[Path, Path], variant: str) -> None:
    held = Gate(paths(filters[1], filters[1], filters[1]), desired())
    held.apply()
    clean_up(True, ("m0", "m1"))
    assert not [line for line in saved(variant) if "NGP_GATE" in line or "NGP_UNPAID" in line]
    for family in (4, 6):
        assert dropped(hosts.client, INTERNET[family])
        assert dropped(hosts.internet, CLIENT[family])
    assert held.apply() is True
    assert not [line for line in saved(variant) if "NGP_CLOSED" in line]
    assert passes(hosts.client, INTERNET[4]) and passes(hosts.client, INTERNET[6])
    clean_up(False, ())


@pytest.mark.parametrize(
    ("mesh", "ignored", "rules"),
    [
        (("m0",), (), {"NGP_CLOSED": ["-i m0 -j DROP", "-o m0 -j DROP"]}),
        (("wl[01]*", "m0"), ("up0",), {
            "NGP_CLOSED": ["-i up0 -g NGP_CLOSED_OUT", "-i wl+ -j DROP", "-i m0 -j DROP", "-g NGP_CLOSED_OUT"],
            "NGP_CLOSED_OUT": ["-o up0 -j RETURN", "-o wl+ -j DROP", "-o m0 -j DROP"],
        }),
        (("all",), ("eth*",), {
            "NGP_CLOSED": ["-i eth+ -g NGP_CLOSED_OUT", "-j DROP", "-g NGP_CLOSED_OUT"],
            "NGP_CLOSED_OUT": ["-o eth+ -j RETURN", "-j DROP"],
        }),
    ],
)  # fmt: skip
def test_a_closed_gate_has_exactly_these_rules(
    mesh: tuple[str, ...], ignored: tuple[str, ...], rules: dict[str, list[str]]
) -> None:
    found = gate.closed_chains(mesh, ignored)
    assert {name: [rule.text() for rule in chain] for name, chain in found.items()} == rules


def test_closed_before_the_interfaces_exist(hosts: Lab, filters: tuple[Path, Path], variant: str) -> None:
    """As at a boot: ignored interfaces stay open, later ones are closed too, and a failed start leaves all closed."""
    gate.shut(("m*",), ("m1",), {4, 6})
    shut = saved(variant)
    for family in (4, 6):
        assert dropped(hosts.client, INTERNET[family])
    sh("ip link add m7 type veth peer name m8")
    for command, where in (("iptables", "-i m7"), ("ip6tables", "-o m7")):
        sh(f"{command}-{variant} -t security -S | grep -- '{where.replace('m7', 'm+')} -j DROP'")
    assert gate.entered() == {gate.CLOSED}
    clean_up(True, ())
    assert saved(variant) == shut
    gate.shut(("m*",), ("m0", "up0"), {4, 6})
    assert passes(hosts.client, INTERNET[4]) and passes(hosts.client, INTERNET[6])
    Gate(paths(filters[0], filters[0], filters[1]), desired()).apply()
    assert gate.entered() == {gate.GATE} and not [line for line in saved(variant) if "NGP_CLOSED" in line]


def test_the_gate_left_in_the_other_variant_goes(
    hosts: Lab, filters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variant in (LEGACY, NFT):
        monkeypatch.setattr(xtables, "detect", lambda chosen=variant: Choice(chosen, "chosen by the test"))
        Gate(paths(filters[1], filters[1], filters[1]), desired()).apply()
    assert not [line for line in saved(LEGACY) if "NGP" in line]
    assert [line for line in saved(NFT) if "NGP" in line]


SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("ready", flush=True)
n = 0
import select
while not select.select([0], [], [], 0.0005)[0]:
    s.sendto(b"x", (sys.argv[1], 9)); n += 1
print(n)
"""
# Its socket's buffer is larger than the host's limit, so this receiver loses no packet.
RECEIVE = """
import select, socket, sys
SO_RCVBUFFORCE = 33
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
s.bind((sys.argv[1], 9)); print("ready", flush=True)
n = 0
while 0 not in select.select([0, s], [], [])[0]:
    s.recv(10); n += 1
s.settimeout(0.3)
try:
    while s.recv(10): n += 1
except TimeoutError: print(n)
"""


@pytest.mark.parametrize("paid", [True, False])
def test_no_packet_meets_half_a_change(hosts: Lab, filters: tuple[Path, Path], variant: str, paid: bool) -> None:
    yes, no = filters
    says = no if paid else yes
    held = Gate(paths(says, says, no), desired())
    held.apply()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(python(hosts.internet, RECEIVE, INTERNET[4]), **pipes) as receiver:  # type: ignore[call-overload]
        receiver.stdout.readline()
        sender = subprocess.Popen(python(hosts.client, SEND, INTERNET[4]), **pipes)  # type: ignore[call-overload]
        sender.stdout.readline()
        for mesh in [("m0",), ("m0", "m1")] * 10:
            held.apply(desired(mesh_interfaces=mesh))
        sent = int(sender.communicate("\n")[0])
        received = int(receiver.communicate("\n")[0])
    assert sent > 50
    assert received == (sent if paid else 0)


def test_a_missing_pin_is_a_clear_error_and_leaves_the_gate(
    hosts: Lab, filters: tuple[Path, Path], variant: str
) -> None:
    Gate(paths(filters[1], filters[1], filters[1]), desired()).apply()
    before = saved(variant)
    with pytest.raises(KernelError, match="bpf|security"):
        Gate(paths(filters[1], filters[1].parent / "absent", filters[1]), desired()).apply()
    assert saved(variant) == before
    assert gate.GATE in "".join(before)


def test_the_legacy_lock_is_waited_for_and_then_named(
    hosts: Lab, filters: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xtables, "detect", lambda: Choice(LEGACY, "chosen by the test"))
    monkeypatch.setattr(xtables, "_LOCK_WAIT_S", 1)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    held = Gate(paths(filters[1], filters[1], filters[1]), desired())
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(KernelError, match="fuser -v") as busy:
            held.apply()
        assert busy.value.exit_code is ExitCode.OTHER  # systemd tries a MomentError again
        assert "NGP" not in sh("iptables-legacy-save")
    assert held.apply() is True


def test_detection_follows_what_iptables_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(text: str) -> str:
        monkeypatch.setattr(xtables, "run", lambda words, text_in="": text)
        return xtables.detect().variant

    assert answer("iptables v1.8.9 (nf_tables)\n") == NFT
    assert answer("iptables v1.8.9 (legacy)\n") == LEGACY
    assert answer("iptables v1.6.1\n") == LEGACY
    monkeypatch.setattr(xtables, "find_command", lambda name: None)
    with pytest.raises(KernelError, match="apt install iptables"):
        xtables.detect()
