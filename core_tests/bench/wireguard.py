"""WireGuard by hand, with `wg` and `ip`: tenants' ends, and the tunnel that a landlord's is compared with."""

from __future__ import annotations

import secrets
import subprocess
from dataclasses import dataclass

from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.shell import await_until
from ngp.modules.tunnel.kernel import KernelDevice
from ngp.modules.tunnel.userspace import SOCKETS
from ngp.tenant.keys import new_private_key, public_key

MTU = 1420


@dataclass(frozen=True, slots=True)
class Key:
    """The keys of one end, as `wg` writes them."""

    private_key: str
    public_key: str

    @classmethod
    def new(cls) -> Key:
        """Make a key."""
        private_key = new_private_key()
        return cls(private_key, public_key(private_key))


def kind() -> str:
    """Return which WireGuard can be used here, in the words of LANDLORD_TUNNEL."""
    return "userspace" if KernelDevice().why_not()[0] else "kernel"


def make(lab: Lab, host: Host, key: Key, *words: str) -> str:
    """Make an interface, and return its name. Args: words: more of `wg set`."""
    name = f"hand{secrets.token_hex(4)}"
    if kind() == "kernel":
        host.ip("link", "add", name, "type", "wireguard")
    else:
        # In a session of its own, as the landlord's is: the scheduler divides the processors among sessions.
        quiet = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
        host.popen("wireguard-go", "--foreground", name, **quiet)
        await_until(lambda: (SOCKETS / f"{name}.sock").exists(), what=f"wireguard-go's {name}")
    lab.on_exit(lambda: host.ip("link", "del", name))  # so that wireguard-go removes its socket
    file = host.folder / f"{name}.key"
    file.touch(0o600)
    file.write_text(key.private_key)
    host.sh("wg", "set", name, "private-key", str(file), *words)
    host.ip("link", "set", name, "mtu", str(MTU), "up")
    return name
