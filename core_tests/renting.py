"""A landlord whose daemon runs, and tenants that rent from it over HTTPS and pay with a sandbox of their own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import End, Lab
from core_tests.staticwire import Session, Tenant, wg_text
from ngp.modules.payment.sandbox import SandboxPayment

TUNNEL = f"let{secrets.token_hex(4)}"  # wireguard-go's sockets are those of the whole machine
LETS: dict[str, object] = {
    "LANDLORD": True,
    "LANDLORD_POOLS": [{"prefix": "198.51.100.0/29", "except": "198.51.100.0/32"}, "2001:db8:100::/61"],
    "LANDLORD_OUTSIDE": "wan0",
    "LANDLORD_INTERFACE": TUNNEL,
}
NET_CONF: dict[str, object] = {**LETS, "LANDLORD_HTTPS": "203.0.113.1:443"}


@dataclass
class Renting:
    """A landlord, and a host from which tenants ask it.

    Attributes: folder: of the tenants' sandbox.
    """

    daemon: Daemon
    router: Host
    outside: Host
    folder: Path

    def rent(self, sat: int = 1000) -> Tenant:
        """Rent as a new tenant, and pay."""
        with closing(Session("203.0.113.1", 443, connect=self.outside.connect)) as session:
            tenant = Tenant(session)
            pay(tenant, tenant.add_credit(sat)["Invoice"], self.folder)
        return tenant

    def rules(self) -> str:
        """Return the landlord's rules, as nft shows them."""
        return self.router.sh("nft", "list", "ruleset")

    def row(self, tenant: Tenant, *words: str) -> dict[str, Any]:
        """Return a tenant's row of `ngp rentals`, whose money adds up."""
        (found,) = [one for one in self.daemon.json("rentals", *words) if one["wireguard_key"] == wg_text(tenant.key)]
        assert found["paid_msat"] == accounted_msat(found)
        return dict(found)


def accounted_msat(row: Mapping[str, Any]) -> int:
    """Return the sum of what became of a rental's payments, msat. Args: row: of `ngp rentals`."""
    return int(sum(row[f"{part}_msat"] for part in ("activation_fee", "charged", "refunded", "credit")))


def open_renting(lab: Lab, folder: Path, name: str = "", start: bool = True, **changes: object) -> Renting:
    """Start a landlord without neighbours.

    Args:
        folder: for the tenants' sandbox.
        name: tells several landlords of a laboratory apart.
        start: False: the daemon is configured only.
        changes: keys of net.conf.
    """
    folder.mkdir(exist_ok=True)
    router, outside = lab.host(f"landlord{name}", forward=True), lab.host(f"outside{name}")
    lab.link(End(router, "wan0", "203.0.113.1/24", "2001:db8:2::1/64"), End(outside, "wan0", "203.0.113.2/24"))
    lab.await_carriers()
    return Renting(router.daemon({**NET_CONF, **changes}, start=start), router, outside, folder)


def pay(tenant: Tenant, bolt11: str, folder: Path) -> None:
    """Pay from the sandbox in a folder, and show the landlord the proof: its own sandbox knows nothing of the payment.

    Returns when the landlord has counted it.
    """
    assert tenant.status(Preimage=proof_of(bolt11, folder).hex())["unpaid_invoice"] is None


def proof_of(bolt11: str, folder: Path) -> bytes:
    """Pay from the sandbox in a folder, and return the preimage; a second payment of an invoice is the same one."""

    async def paid() -> bytes:
        node = SandboxPayment(folder)
        try:
            return (await node.pay(bolt11, 0, 30)).preimage
        finally:
            await node.close()

    return asyncio.run(paid())


def fingerprint_of(daemon: Daemon) -> str:
    """Return the fingerprint of a landlord's certificate, as `ngp check` tells the operator."""
    (line,) = [one for one in daemon.json("check", "--config", str(daemon.config)) if one["name"] == "https"]
    return str(line["found"].partition("fingerprint ")[2].partition(";")[0])


def wireguard_go_of(name: str) -> int | None:
    """Return the process id of the wireguard-go of an interface, or None."""
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if words[0].endswith(b"wireguard-go") and words[1:2] == [name.encode()]:
            return int(each.parent.name)
    return None
