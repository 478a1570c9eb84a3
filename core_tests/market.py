"""A market: a landlord, a tenant behind NAT that rents by `ngp rent`, and somebody else on the internet.

tenant --- 192.168.7.0/24 --- [nat] --- 203.0.113.0/24 --- landlord, third
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from core_tests import traffic
from core_tests.daemon import Daemon, ngp_command
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.renting import NET_CONF
from core_tests.topologies import tenant_behind_nat

V4, V6 = "198.51.100.1", "2001:db8:100::1"
TENANT = "MESH_INTERFACES: mesh0\nBUDGET_HOUR: 200000 sat\n"


@dataclass
class Market:
    """A landlord, a tenant behind NAT, and somebody else on the internet."""

    daemon: Daemon
    landlord: Host
    tenant: Host
    third: Host

    def rent(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `ngp rent` on the tenant's machine."""
        return self.tenant.run(*self.command(*words))

    def command(self, *words: str) -> list[str]:
        place = ["--config", str(self.tenant.folder / "net.conf"), "--state-dir", str(self.tenant.folder / "state")]
        return [*ngp_command(), "rent", *words, *place]

    def done(self, *words: str) -> str:
        result = self.rent(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def status(self) -> dict[str, Any]:
        (row,) = json.loads(self.done("status", "--json"))
        return dict(row)

    def reached(self, address: str) -> bool:
        """Say whether the third host reaches the tenant at an address of the landlord's."""
        return traffic.ping(self.third, address, wait_s=2).received == 1


def open_market(lab: Lab, **changes: object) -> Market:
    """Start a landlord, a tenant behind a NAT router, and a third host on the internet.

    Args: changes: keys of the landlord's net.conf.
    """
    net = tenant_behind_nat(lab)
    (net.tenant.folder / "net.conf").write_text(TENANT)
    (net.tenant.folder / "net.conf").chmod(0o644)
    return Market(net.landlord.daemon({**NET_CONF, **changes}), net.landlord, net.tenant, net.third)
