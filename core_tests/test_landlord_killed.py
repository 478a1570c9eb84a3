"""The landlord's tunnel through the deaths of daemon and wireguard-go, and its end."""

from __future__ import annotations

import os
import secrets
import signal

import pytest

from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.renting import wireguard_go_of
from core_tests.shell import await_until
from core_tests.topologies import three_hosts


@pytest.fixture
def landlord(lab: Lab) -> tuple[Host, Daemon, str]:
    """A gateway that lets a pool, not started yet, and its tunnel's name."""
    host, name = three_hosts(lab).gateway, f"let{secrets.token_hex(4)}"
    conf = {
        "MESH_INTERFACES": "mesh0",
        "IGNORE_INTERFACE": "wan0",
        "LANDLORD": True,
        "LANDLORD_POOLS": [{"prefix": "10.99.0.0/24", "except": ["10.99.0.1"]}],
        "LANDLORD_OUTSIDE": "wan0",
        "LANDLORD_INTERFACE": name,
        "LANDLORD_TUNNEL": "userspace",
    }
    return host, host.daemon(conf, start=False), name


def parts_of(host: Host, name: str) -> dict[str, bool]:
    """Say which parts of the tunnel are in a host's kernel."""
    return {
        "interface": name in host.ip("-br", "link"),
        "route": "10.99.0.128/25" in host.ip("route"),
        "rules": "ngp_let" in host.sh("nft", "list", "tables"),
    }


def test_a_killed_daemons_tunnel_goes_on_and_the_next_one_takes_it_over(landlord: tuple[Host, Daemon, str]) -> None:
    host, daemon, name = landlord
    daemon.start()
    assert all(parts_of(host, name).values())
    assert "unreachable 10.99.0.1 " not in host.ip("route"), "what is excluded isn't refused"
    key, process = host.sh("wg", "show", name, "public-key"), wireguard_go_of(name)
    daemon.kill9()
    assert wireguard_go_of(name) == process and all(parts_of(host, name).values())
    daemon.start()
    assert wireguard_go_of(name) == process and host.sh("wg", "show", name, "public-key") == key
    assert process is not None
    os.kill(process, signal.SIGKILL)
    daemon.await_logged("the tunnel has all changes now")
    assert host.sh("wg", "show", name, "public-key") == key
    daemon.stop()
    assert not any(parts_of(host, name).values())
    await_until(lambda: wireguard_go_of(name) is None, what="wireguard-go ended")


@pytest.mark.parametrize("by", ["ngp stop", "a start that lets nothing"])
def test_a_killed_daemons_tunnel_ends_with(landlord: tuple[Host, Daemon, str], by: str) -> None:
    host, daemon, name = landlord
    daemon.start()
    daemon.kill9()
    if by == "ngp stop":
        assert daemon.cli("stop").returncode == 0
    else:
        daemon.configure({"MESH_INTERFACES": "mesh0", "IGNORE_INTERFACE": "wan0"})
        daemon.start()
    assert not any(parts_of(host, name).values())
