"""A market: a landlord, a tenant behind NAT that rents by `ngp rent`, and somebody else on the internet.

tenant --- 192.168.7.0/24 --- [nat] --- 203.0.113.0/24 --- landlord, third
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from core_tests import traffic
from core_tests.daemon import Daemon, ngp_command
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.renting import NET_CONF
from core_tests.topologies import tenant_behind_nat
from ngp.tenant.books import BooksFile

V4, V6 = "198.51.100.1", "2001:db8:100::1"
TENANT = "MESH_INTERFACES: mesh0\nBUDGET_HOUR: 200000 sat\n"


@dataclass
class Renter:
    """A machine that rents. Attributes: config, state_dir: those of `ngp rent` there."""

    tenant: Host
    config: Path
    state_dir: Path
    timeout_s: ClassVar[float] = 60.0

    def rent(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `ngp rent` on the tenant's machine."""
        return self.tenant.run(*self.command(*words), timeout_s=self.timeout_s)

    def command(self, *words: str) -> list[str]:
        place = ["--config", str(self.config), "--state-dir", str(self.state_dir)]
        return [*ngp_command(), "rent", *words, *place]

    def done(self, *words: str) -> str:
        result = self.rent(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def status(self) -> dict[str, Any]:
        (row,) = json.loads(self.done("status", "--json"))
        return dict(row)

    def assert_paid_once(self, let: Mapping[str, Any], when: str = "") -> dict[str, Any]:
        """Assert that the tenant's books, its listing and the landlord's have the same payments; returns its row.

        Args: let: the landlord's row of the rental.
        """
        row, books = self.status(), BooksFile(self.state_dir / "tenant" / "TunnelState.yaml").read()
        spent = [one.amount_msat for one in books.sent if one.state == "paid"]
        assert books.pending is None and sum(spent) == row["paid_msat"] == let["paid_msat"], when
        assert books.account.payments == len(spent) == row["payments"] == let["payments"], when
        return row


@dataclass
class Market(Renter):
    """A landlord, a tenant behind NAT, and somebody else on the internet."""

    daemon: Daemon
    landlord: Host
    third: Host

    def reached(self, address: str) -> bool:
        """Say whether the third host reaches the tenant at an address of the landlord's."""
        return traffic.ping(self.third, address, wait_s=2).received == 1


def place_of(tenant: Host) -> tuple[Path, Path]:
    """Give a machine that rents its net.conf. Returns its path and that of the state directory."""
    config = tenant.folder / "net.conf"
    config.write_text(TENANT)
    config.chmod(0o644)
    return config, tenant.folder / "state"


def open_market(lab: Lab, **changes: object) -> Market:
    """Start a landlord, a tenant behind a NAT router, and a third host on the internet.

    Args: changes: keys of the landlord's net.conf.
    """
    net = tenant_behind_nat(lab)
    config, state_dir = place_of(net.tenant)
    daemon = net.landlord.daemon({**NET_CONF, **changes})
    return Market(net.tenant, config, state_dir, daemon, net.landlord, net.third)
