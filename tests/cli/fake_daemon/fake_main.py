"""A daemon without kernel, link and money; gives canned answers. NGP_FAKE says how it behaves."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from ngp.core.values import Check
from ngp.daemon.control import ControlServer
from ngp.daemon.options import CONTROL_SOCKET, StartOptions
from ngp.errors import ConfigError, KernelError, PaymentError
from ngp.ports.network import KernelState

KEY = "7f3a" + "0" * 60
CONTRACT = {
    "id": "ab" * 16, "role": "client", "neighbour": KEY, "interface": "eth1", "destination": "198.51.100.0/24",
    "state": "active", "reason": "", "price_msat_per_gib": 5242880, "data_limit_bytes": 104857600,
    "used_to_bytes": 1234567, "used_from_bytes": 7, "charged_msat": 1234567, "expires_at": "2030-01-01T00:00:00Z",
    "billed_bytes": 1234574, "real_money": False,
}  # fmt: skip
ACCOUNT = {
    "role": "server", "neighbour": KEY, "balance_msat": -1500, "reserved_msat": 0, "grace_left_bytes": 262144,
    "paid_msat": 0, "charged_msat": 1500, "refunded_msat": 0, "why_not": "the channel is empty\x1b[2J",
    "real_money": False,
}  # fmt: skip
ENTRY = {
    "time": "2030-01-01T00:00:00Z", "kind": "payment", "neighbour": KEY, "contract": None, "amount_msat": 1000,
    "payment_hash": "cd" * 32, "state": "settled", "real_money": False,
}  # fmt: skip
NEIGHBOUR = {
    "neighbour": KEY, "interface": "eth1", "link_address": "02:00:00:00:00:01", "address": "192.0.2.1\x1b[2J",
    "network": "regtest", "same_network": False, "sells": True, "buys": False, "up": True, "blocked": False,
    "lane_bytes": 2048, "last_seen": "2030-01-01T00:00:00Z",
}  # fmt: skip
STATUS = {
    "version": "0", "uptime_s": 93784, "identity": KEY, "interfaces": ["eth1"], "queue": {"held": 1, "dropped": 0},
    "datapath": {"hook": "tcx"}, "payment": {"module": "sandbox", "ready": False, "why_not": "asleep"},
    "counters": {"messages_ignored": {"replayed": 3}},
}  # fmt: skip
RENTAL = {
    "id": "5e" * 32, "role": "landlord", "state": "reserved", "reason": "no credit", "peer": None,
    "wireguard_key": "c" * 43 + "=", "networks": ["203.0.113.7/32", "2001:db8::/64"], "offer": "default",
    "face": "https", "rent_msat_per_month": 24000000, "price_msat_per_gib": 0, "activation_fee_msat": 48000000,
    "paid_msat": 49000000, "charged_msat": 1000500, "refunded_msat": 0, "credit_msat": -500, "payments": 1,
    "started_at": "2030-01-01T00:00:00Z", "rate_since": "2030-01-01T00:00:00Z", "paid_until": "2030-01-02T06:26:15Z",
    "reserved_until": "2030-03-03T23:26:15Z", "unpaid_invoice": None, "used_to_bytes": 1234567, "used_from_bytes": 7,
    "endpoint": "192.0.2.9:4711\x1b[2J", "last_handshake": None, "real_money": False,
}  # fmt: skip
OFFER = {
    "landlord": KEY, "name": "default", "networks": ["IPv4 /32", "IPv6 /64"], "free": 6,
    "rent_msat_per_month": 24000000, "price_msat_per_gib": 0, "activation_fee_msat": 48000000,
    "initial_credit_min_msat": 1000000, "payment_min_msat": 500000, "credit_max_msat": 72000000,
    "reserved_s": 5259600, "refused_by": None,
}  # fmt: skip
CHANNEL = {
    "neighbour": KEY, "peer": "02" * 33, "channel": "00:0", "state": "opening", "blocks_left": 2, "active": False,
    "private": True, "capacity_sat": 500000, "can_send_sat": 0, "can_receive_sat": 0, "least_payment_msat": 0,
    "our_csv_delay_blocks": 0, "their_csv_delay_blocks": 0, "suits": False, "why_not": "the channel is opening",
}  # fmt: skip
TOWERS = {
    "active": True, "unknown": None, "backups": 3, "pending_backups": 1, "failed_backups": 0,
    "towers": [{"tower": "03" * 33, "addresses": ["192.0.2.9:9911"], "used": True, "sessions": 4, "backups": 7,
                "pending_backups": 1}],
}  # fmt: skip
LIGHTNING = {
    "module": "lnd", "node": "02" * 33, "network": "regtest", "ready": True, "why_not": None, "block": 450,
    "synced": True, "balance_msat": 1234567, "channels": [CHANNEL], "watchtowers": TOWERS,
    "advice": ["7f3a: the channel is opening. Next: wait\x1b[2J"],
}  # fmt: skip


async def _many(rows: int) -> AsyncIterator[dict[str, Any]]:
    for number in range(rows):
        yield CONTRACT | {"id": f"{number:032x}", "state": "closed"}


class Handlers:
    """The fake daemon's answers."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self.stopping = stopping

    async def test(self, _arguments: dict[str, Any]) -> str:
        return "Test OK"

    async def stop(self, _arguments: dict[str, Any]) -> str:
        self.stopping.set()
        return ""

    async def status(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        return STATUS

    def contracts(self, arguments: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        return _many(100_000) if arguments["all"] else _many(1)

    async def accounts(self, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
        return [ACCOUNT]

    async def neighbours(self, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
        return [NEIGHBOUR]

    async def ledger(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        return [ENTRY] if not arguments["since"] else []

    async def check(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        found = f"looked, asked about {json.dumps(arguments)[:400]}"
        return [{"name": name, "ok": True, "found": found, "remedy": ""} for name in ("hook", "payment")]

    async def lightning(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        return LIGHTNING

    async def rentals(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        return [RENTAL] * (2 if arguments["all"] else 1)

    async def rentals_offers(self, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
        return [OFFER]

    async def rentals_release(self, arguments: dict[str, Any]) -> str:
        return f"rental {arguments['rental']} is released"

    async def rentals_on(self, arguments: dict[str, Any]) -> str:
        return f"rental {arguments['rental']} is on"

    async def reload(self, _arguments: dict[str, Any]) -> str:
        raise ConfigError("net.conf:1: bad\nnet.conf:2: worse")

    async def block(self, arguments: dict[str, Any]) -> str:
        return f"{arguments['neighbour']} is blocked"

    async def refund(self, _arguments: dict[str, Any]) -> str:
        raise PaymentError("no route\x1b[31m: wait")

    async def payment(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments

    async def backup(self, _arguments: dict[str, Any]) -> None:
        raise RuntimeError("a defect with details for the log only")

    async def unblock(self, _arguments: dict[str, Any]) -> str:
        os._exit(9)


async def run(options: StartOptions) -> int:
    """Be the fake daemon."""
    fate = os.environ.get("NGP_FAKE", "")
    if fate == "refuse":
        raise KernelError("no such interface eth9: correct MESH_INTERFACES")
    if fate == "die":
        os._exit(5)
    if fate == "bug":
        raise RuntimeError("unforeseen")
    if fate == "slow":
        options.progress("waiting for the snow to melt")
        while not (options.state_dir / "melted").exists():
            await asyncio.sleep(0.02)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: logging.getLogger("ngp").info("reloaded"))
    handlers = Handlers(stopping)
    names = [name for name in dir(handlers) if not name.startswith("_") and name != "stopping"]
    server = ControlServer(
        options.state_dir / CONTROL_SOCKET,
        {name.replace("rentals_", "rentals "): getattr(handlers, name) for name in names},
    )
    await server.start()
    (options.state_dir / "options.json").write_text(json.dumps(str(options.config_path)))
    logging.getLogger("ngp").info("ready: \x1b[2J")
    if fate in ("warns", "warns without end"):
        for number in range(3 if fate == "warns" else 9000):
            logging.getLogger("ngp.post").warning("no interface has the name wlan%d\x1b[2J", number)
        logging.getLogger("library").warning("of no use to an operator")
    options.ready(fate != "warns")
    logging.getLogger("ngp").warning("after it was ready")
    await stopping.wait()
    await server.close()
    logging.getLogger("ngp").info("stopped")
    return 0


class Network:
    """Notes in a file that it cleaned up; NGP_FAKE_STANDS says what is in the kernel."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def kernel_state(self) -> KernelState:
        stands = os.environ.get("NGP_FAKE_STANDS", "")
        if stands == "closed":
            return KernelState(closed=True)
        return KernelState(meter=bool(stands), sells=bool(stands), gate=bool(stands))

    def close(self) -> None:
        pass

    def shut(self, mesh: object, ignored: object, families: Iterable[int]) -> None:
        print(mesh, ignored, sorted(families))

    def clean_up(self, leave_closed: bool) -> None:
        if os.environ.get("NGP_FAKE") == "refuse":
            raise KernelError("no rights: sudo ngp stop")
        (self._state_dir / "cleaned").write_text(str(leave_closed))


def make_network(_settings: object, state_dir: Path) -> Network:
    """Return the fake."""
    return Network(state_dir)


def remove_tunnel() -> None:
    """Find none."""


def make_payment(_settings: object, _state_dir: Path) -> Any:
    """Refuse: the node is away."""
    raise PaymentError("the node is away")


async def check(_settings: object, _state_dir: Path) -> list[Check]:
    """Make the check named by NGP_FAKE_MISSING fail, with the kind of fault in NGP_FAKE_KIND."""
    is_well, kind = os.environ.get("NGP_FAKE_MISSING") != "hook", os.environ.get("NGP_FAKE_KIND", "")
    return [Check("hook", is_well, "looked", "mend it", kind)]
