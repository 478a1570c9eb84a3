"""Interface: brings a tunnel's interface up and down, by wg-quick."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from pathlib import Path
from typing import Any

from ngp.core.messages import Address
from ngp.core.tenant.configuration import with_dns
from ngp.errors import ConfigError, KernelError
from ngp.tenant import files

WG_QUICK_S = 60.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MOST_TOLD = 300
_PACKAGES = {"wg-quick": "wireguard-tools", "ip": "iproute2", "nft": "nftables"}


def is_up(interface: str) -> bool:
    """Say whether the tunnel's interface exists in this network namespace."""
    try:
        return socket.if_nametoindex(interface) > 0
    except OSError:
        return False


def counted(interface: str) -> tuple[str, int] | None:
    """Return what tells a tunnel's interface from all others, earlier ones too, and its bytes in both directions.

    None if it doesn't exist here. Raises KernelError.
    """
    if not is_up(interface):
        return None
    try:
        (found,) = _ip("-s", "link", "show", "dev", interface)
        bytes_both = found["stats64"]["rx"]["bytes"] + found["stats64"]["tx"]["bytes"]
        return f"{_BOOT.read_text().strip()}/{found['ifindex']}", int(bytes_both)
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        raise KernelError(
            f"the bytes of {interface} can't be read ({type(error).__name__}): ip -s link show dev {interface}"
        ) from error


def own_addresses(but: str) -> list[Address]:
    """Return this host's addresses on all interfaces except one; empty if they can't be found."""
    try:
        found = _ip("address")
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return [ip_address(one["local"]) for each in found if each["ifname"] != but for one in each["addr_info"]]


def addresses_in(path: Path) -> list[IPv4Interface | IPv6Interface]:
    """Return the tunnel's own addresses, from its file; empty if there is no file."""
    return [ip_interface(one) for line in _values(path, "Address") for one in line.split(", ")]


def endpoints_in(path: Path) -> list[str]:
    """Return the landlord's ends of the tunnel as `host:port`, from its file; empty if there is no file."""
    return _values(path, "Endpoint")


def _values(path: Path, key: str) -> list[str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition(" = ")[2] for line in lines if line.startswith(f"{key} = ")]


def refuse_unless_possible(deed: str, path: Path, programs: Sequence[str]) -> None:
    """Refuse to bring a tunnel up or down where that can't work, before anything is changed.

    Args: deed: `up` or `down`. programs: what is needed. Raises: ConfigError, KernelError.
    """
    if not path.exists():
        raise ConfigError(f"{path} doesn't exist: get it again with `ngp rent conf`")
    refuse_without_root(deed, path)
    for program in programs:
        if shutil.which(program) is None:
            raise KernelError(f"{program} isn't installed: apt install {_PACKAGES[program]}; then try again")


def refuse_without_root(deed: str, path: Path) -> None:
    """Raise KernelError unless this process is root's."""
    if os.geteuid() != 0:
        raise KernelError(f"to bring {path.stem} {deed} needs root: run this with sudo")


def can_set_dns() -> bool:
    """Say whether wg-quick can set name servers."""
    return shutil.which("resolvconf") is not None


def sets_dns(path: Path) -> bool:
    """Say whether a tunnel's file sets name servers. While the tunnel is up, they are taken back by that file."""
    return bool(_values(path, "DNS"))


def bring_up(path: Path, uses_dns: bool) -> None:
    """Bring the interface of a file up; one that is whole stays as it is. Raises ConfigError, KernelError.

    An interface without addresses is what a wg-quick that was killed leaves; it is made anew.

    Args: uses_dns: the landlord's name servers are to be asked for all names.
    """
    text = path.read_text()
    wanted = with_dns(text, uses_dns and can_set_dns())
    if text != wanted:
        bring_down(path)  # with the file as it was: by it wg-quick takes the name servers back
        files.replace(path, wanted.encode())
    if is_up(path.stem):
        if _is_whole(path):
            return
        subprocess.run(("ip", "link", "delete", "dev", path.stem), capture_output=True, timeout=WG_QUICK_S, check=False)
    _wg_quick("up", path)


def _is_whole(path: Path) -> bool:
    """Say whether an interface is up with all its addresses, which wg-quick gives it after keys and peers."""
    try:
        (found,) = _ip("address", "show", "dev", path.stem)
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    has = {ip_address(one["local"]) for one in found["addr_info"]}
    return "UP" in found["flags"] and has.issuperset(one.ip for one in addresses_in(path))


def bring_down(path: Path) -> None:
    """Bring the interface of a file down; one that is down stays so. Raises ConfigError, KernelError."""
    if is_up(path.stem):
        _wg_quick("down", path)


def change_key(interface: str, private_key: str) -> None:
    """Give a tunnel that is up another private key; one that is down needs nothing. Raises KernelError."""
    if not is_up(interface):
        return
    again = f"the tunnel still has its old key: sudo ngp rent down {interface}; sudo ngp rent up {interface}"
    words = ["wg", "set", interface, "private-key", "/dev/stdin"]
    try:
        done = subprocess.run(words, input=private_key, capture_output=True, text=True, timeout=WG_QUICK_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"wg set {interface} failed ({type(error).__name__}): {again}") from error
    if done.returncode:
        raise KernelError(f"wg set {interface} failed ({' '.join(done.stderr.split())[-_MOST_TOLD:]}): {again}")


def _ip(*words: str) -> Any:
    """Return what iproute2 shows, read from its JSON. Raises: OSError, ValueError, subprocess.SubprocessError."""
    return json.loads(subprocess.run(("ip", "-j", *words), capture_output=True, timeout=WG_QUICK_S, check=True).stdout)


def _wg_quick(deed: str, path: Path) -> None:
    refuse_unless_possible(deed, path, ["wg-quick"])
    try:
        words = ["wg-quick", deed, str(path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=WG_QUICK_S, check=False)
    except subprocess.TimeoutExpired:
        raise KernelError(
            f"wg-quick {deed} {path} doesn't end within {WG_QUICK_S:g} s: it was ended; try again"
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.split())[-_MOST_TOLD:]
        raise KernelError(f"wg-quick {deed} failed ({said}); if this kernel has no WireGuard: apt install wireguard-go")
