"""ngp under systemd, from a boot to a stop, in a machine of its own:

    sudo tools/stock-kernel --kernel 6.1,6.12 --systemd --before-boot 'python3 -m core_tests.under_systemd install' \\
        python3 -m core_tests.under_systemd look

`install` installs the wheel as the README says, and enables the units with WHEN_STOPPED: closed. `look` runs in the
booted system, where a gateway's interfaces came up with the network. Both change the whole machine: never run them
elsewhere.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

UNITS = Path("/etc/systemd/system")
CONFIG = Path("/etc/ngp/net.conf")
GATEWAY = "MESH_INTERFACES: mesh0\nIGNORE_INTERFACE: up0\nBUY: no\nWHEN_STOPPED: {}\n"
CLIENT = "MESH_INTERFACES: mesh0\nSELL: no\nSTATE_DIR: /var/lib/ngp-client\n"
PORT = 10325
DESTINATION = "198.51.100.1"
WAIT_S = 300.0
NETWORK = """
ip netns add client; ip netns add internet
ip link add mesh0 type veth peer name mesh0 netns client; ip link add up0 type veth peer name up0 netns internet
ip addr add 192.0.2.1/24 dev mesh0; ip addr add 203.0.113.1/24 dev up0; ip link set mesh0 up; ip link set up0 up
ip route add default via 203.0.113.2
ip -n client addr add 192.0.2.2/24 dev mesh0; ip -n client link set mesh0 up; ip -n client link set lo up
ip -n client route add default via 192.0.2.1
ip -n internet addr add 203.0.113.2/24 dev up0; ip -n internet link set up0 up; ip -n internet link set lo up
ip -n internet addr add 198.51.100.1/32 dev lo; ip -n internet route add default via 203.0.113.1
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
"""
NETWORK_UNIT = """[Unit]
DefaultDependencies=no
After=network-pre.target sysinit.target
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/bash -e /etc/ngp/network
[Install]
WantedBy=multi-user.target
"""


class Failed(Exception):
    """A condition that was checked doesn't hold."""


def sh(command: str) -> str:
    """Run a shell command to its end and return its output. Raises Failed with its error output."""
    done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def tries(command: str) -> bool:
    """Say whether a shell command succeeds."""
    return subprocess.run(["bash", "-c", command], capture_output=True, check=False).returncode == 0


def expect(what: str, found: object) -> None:
    """Print a line for a condition that holds. Raises Failed if it doesn't."""
    if not found:
        raise Failed(what)
    print(f"ok  {what}", flush=True)


def wait_for(what: str, is_so: Callable[[], object]) -> None:
    """Wait until a condition holds. Raises Failed if it never does."""
    end = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > end:
            raise Failed(f"not within {WAIT_S:g} s: {what}")
        time.sleep(0.5)
    print(f"ok  {what}", flush=True)


def shown(name: str, unit: str = "ngp") -> str:
    """Return a property of a unit."""
    return sh(f"systemctl show -P {name} {unit}")


def pings(count: int = 2) -> bool:
    """Say whether a packet of the client reaches a host behind the gateway, and the answer reaches the client."""
    return tries(f"ip netns exec client ping -nq -i 0.3 -W 5 -c {count} {DESTINATION}")


def configure(when_stopped: str) -> None:
    """Write the gateway's net.conf."""
    CONFIG.write_text(GATEWAY.format(when_stopped))
    CONFIG.chmod(0o644)


def install() -> None:
    """Install the wheel and enable the units, as before a shutdown."""
    if not tries("ls /srv/wheels/ngp-*.whl"):  # the host had no wheel; building is slow in an emulated machine
        sh(".venv/bin/python -m pip wheel -q --no-deps --no-build-isolation . -w /srv/wheels")
    sh("python3 -m venv /opt/ngp && /opt/ngp/bin/pip install -q --no-index --find-links /srv/wheels ngp")
    sh("ln -s /opt/ngp/bin/ngp /usr/local/bin/ngp && mkdir -p /etc/ngp")
    sh(f"cp /opt/ngp/share/doc/ngp/*.service {UNITS}")
    configure("closed")
    (CONFIG.parent / "network").write_text(NETWORK)
    (UNITS / "lab-network.service").write_text(NETWORK_UNIT)
    sh("systemctl enable lab-network ngp-closed ngp")
    expect("the wheel is installed, the units are enabled", True)


def look_at_boot() -> None:
    """The gate is closed before there is a network, and ngp runs."""
    wait_for("the units came up with the boot", lambda: shown("ActiveState") in ("active", "failed"))
    expect("ngp runs after the boot", shown("ActiveState") == "active")
    expect("ngp-closed ran", shown("ActiveState", "ngp-closed") == "active")
    stamps = [int(shown("ActiveEnterTimestampMonotonic", unit)) for unit in ("ngp-closed", "lab-network", "ngp")]
    expect("closed before there was a network, ngp after it", stamps == sorted(stamps))
    units = [unit.replace("@.", "@shop.") for unit in map(str, sorted(UNITS.glob("ngp*.service")))]
    said = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    expect(f"systemd has no complaint about the units {said.stderr}", not said.returncode and not said.stderr)


def look_at_trade() -> None:
    """A client buys, and what it bought outlives the daemon."""
    Path("/etc/ngp/client.conf").write_text(CLIENT)
    sh("ip netns exec client ngp start --config /etc/ngp/client.conf --state-dir /var/lib/ngp-client")
    wait_for("the client buys a contract, and its packets pass", pings)
    process = shown("MainPID")
    sh(f"kill -9 {process}")
    expect("paid traffic passes while no daemon runs", pings())
    wait_for("systemd starts the daemon again", lambda: shown("MainPID") not in ("0", process))
    wait_for("it is ready", lambda: shown("ActiveState") == "active")
    expect("it was started again once", shown("NRestarts") == "1")
    expect("packets pass", pings())
    sh("systemctl reload ngp")
    expect("a reload keeps the process", shown("MainPID") not in ("0", process) and pings())


def standing() -> str:
    """Return everything of ngp that is in the kernel."""
    looks = (
        "nft list ruleset 2>/dev/null | grep -o 'chain NGP_[A-Z_]*' | sort -u",
        "bpftool prog show | grep -oE 'name (xt_|ngp_|udp_framed|udp_bare)[a-z_]*' | sort -u",
        "bpftool map show | grep -oE 'name (ngp_|inlet_)[a-z_0-9]*' | sort -u",
        "findmnt -rno TARGET -t bpf | grep ngp",
        "tc filter show dev mesh0 egress; tc filter show dev mesh0 ingress",
    )
    return "\n".join(filter(None, (sh(f"{look} || true") for look in looks)))


def look_at_stop() -> None:
    """A stop leaves nothing, or with WHEN_STOPPED: closed the closed gate."""
    sh("ip netns exec client ngp stop --state-dir /var/lib/ngp-client")
    expect("gate and meter exist while ngp runs", "NGP_GATE" in standing() and "ngp_contracts" in standing())
    sh("systemctl stop ngp")
    left = standing().splitlines()  # NGP_TABLE marks a table that ngp made and may remove
    expect(f"a stop leaves only the closed gate {left}", left == ["chain NGP_CLOSED", "chain NGP_TABLE"])
    expect("nothing passes", not pings(1))
    configure("open")
    sh("systemctl start ngp && systemctl stop ngp")
    expect(f"a stop with WHEN_STOPPED: open leaves nothing {standing()}", standing() == "")
    expect("everything passes", pings(1))


def look_at_failures() -> None:
    """A start whose cause another attempt doesn't mend isn't tried again."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", PORT))
        refused("the kernel refuses (its UDP port is taken)", "4")
    CONFIG.write_text("MESH_INTERFACE: mesh0\n")
    refused("net.conf is wrong", "3")
    configure("open")
    sh("systemctl reset-failed ngp; systemctl start ngp")
    expect("once it is mended it starts", shown("ActiveState") == "active")


def refused(why: str, code: str) -> None:
    """Start ngp, and check that it ends and isn't started again."""
    expect(f"{why}: the start fails", not tries("systemctl start ngp"))
    found = [shown(name) for name in ("ExecMainStatus", "SubState", "NRestarts")]
    expect(f"it ended with {code} and isn't started again {found}", found == [code, "failed", "0"])


def look() -> None:
    """Make all checks in the booted system."""
    for part in (look_at_boot, look_at_trade, look_at_stop, look_at_failures):
        part()


if __name__ == "__main__":
    try:
        {"install": install, "look": look}[sys.argv[1]]()
    except Failed as error:
        print(f"FAILED: {error}\n", flush=True)
        print(subprocess.run("journalctl -b -u ngp -u ngp-closed -n 60 --no-pager; ngp status", shell=True,
                             capture_output=True, text=True, check=False).stdout)  # fmt: skip
        sys.exit(1)
