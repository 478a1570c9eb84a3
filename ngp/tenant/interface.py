"""Interface: brings a tunnel up and down, by wg-quick."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from ipaddress import ip_address
from pathlib import Path

from ngp.core.messages import Address
from ngp.errors import ConfigError, KernelError

WG_QUICK_S = 60.0
_MOST_TOLD = 300


def is_up(interface: str) -> bool:
    """Say whether the tunnel's interface exists in this network namespace."""
    try:
        return socket.if_nametoindex(interface) > 0
    except OSError:
        return False


def own_addresses(but: str) -> list[Address]:
    """Return this host's addresses on all interfaces except one; empty if they can't be found."""
    try:
        done = subprocess.run(("ip", "-j", "address"), capture_output=True, timeout=WG_QUICK_S, check=True)
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return [ip_address(one["local"]) for each in found if each["ifname"] != but for one in each["addr_info"]]


def bring_up(path: Path) -> None:
    """Bring the tunnel of a file up; one that is up stays as it is. Raises ConfigError, KernelError."""
    if not is_up(path.stem):
        _wg_quick("up", path)


def bring_down(path: Path) -> None:
    """Bring the tunnel of a file down; one that is down stays so. Raises ConfigError, KernelError."""
    if is_up(path.stem):
        _wg_quick("down", path)


def _wg_quick(deed: str, path: Path) -> None:
    by_hand = f"sudo wg-quick {deed} {path}"
    if not path.exists():
        raise ConfigError(f"{path} doesn't exist: get it again with `ngp rent conf`")
    if os.geteuid() != 0:
        raise KernelError(f"a tunnel needs root: {by_hand}")
    if shutil.which("wg-quick") is None:
        raise KernelError(f"wg-quick isn't installed: apt install wireguard-tools; then {by_hand}")
    try:
        words = ["wg-quick", deed, str(path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=WG_QUICK_S, check=False)
    except subprocess.TimeoutExpired:
        raise KernelError(f"wg-quick {deed} doesn't end within {WG_QUICK_S:g} s: try {by_hand}") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[-_MOST_TOLD:]
        raise KernelError(f"wg-quick {deed} failed ({said}); WireGuard of the kernel, or wireguard-go, is needed")
