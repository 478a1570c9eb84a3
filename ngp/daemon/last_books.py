"""Last books: charges the traffic that contracts carried without a daemon, before they are removed from the kernel.

The ledger is up to a minute behind the kernel's counters, which are lost when the meter is removed. Two things remove
it while no daemon runs: `ngp stop` after the daemon was killed, and the first start of a version of ngp whose meter has
tables of another form. In both cases this module first does the same as a start and a stop, without links and payments.
It stops the contracts, reads their counters, and writes what the ledger doesn't know yet, by the rules of `restore`. It
may be interrupted and repeated: nothing is counted twice.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ngp.config import parse
from ngp.core.effects import Persist
from ngp.core.events import Stopping, UsageRead
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.kernel import Adopted, Reading
from ngp.core.payment_node import PaymentNode
from ngp.core.restore import restore
from ngp.core.settings import Settings
from ngp.core.values import Now
from ngp.core.world import World
from ngp.daemon.clock import SystemClock
from ngp.daemon.desired import desired_network, look_at_host
from ngp.errors import ConfigError, KernelError, LedgerError
from ngp.ports import Ledger, Network, Store
from ngp.ports.network import DesiredNetwork

_NOBODY = PaymentNode("", False, False, 0, b"")
_LOST = "what was carried since the ledger's last entry is lost"


def charge(network: Network, place: Callable[[], Store], settings: Settings | None) -> str | None:
    """Charge what a meter without a daemon counted, and block its contracts.

    Args:
        place: returns where the ledger is.
        settings: those of net.conf; None if net.conf can't be used: then the gate is removed too.
    Returns: what is lost and why; "" if nothing is lost; None if there is no meter, for example after a reboot.
    """
    try:
        if not network.kernel_state().meter:
            return None
        store = place()
        if not store.exists():
            return f"{_LOST}: there is no ledger {store}"
        ledger = store.open()
    except (ConfigError, KernelError, LedgerError) as error:
        return f"{_LOST}: {error}"
    try:
        _charge(network, ledger, settings)
    except (KernelError, LedgerError) as error:
        return f"{_LOST}: {error}"
    finally:
        ledger.close()
    return ""


def charge_former(network: Network, ledger: Ledger, settings: Settings, desired: DesiredNetwork) -> int | None:
    """Charge what a meter of another version of ngp counted; its contracts let nothing more pass afterwards.

    Args: desired: what will be set up afterwards. If that can't succeed, the other version's meter isn't stopped.
    Returns: how many contracts the other version's meter had; None if no meter of another version runs.
    Raises: KernelError, LedgerError.
    """
    readings = network.end_former(desired)
    if readings is not None:
        _book(ledger, settings, SystemClock().now(), Adopted(), lambda _gatekeeper: readings)
    return None if readings is None else len(readings)


def _charge(network: Network, ledger: Ledger, settings: Settings | None) -> None:
    logging.getLogger("ngp").addHandler(logging.NullHandler())  # warnings of `restore` belong in a daemon's log
    former = network.end_former(None)
    adopted = Adopted() if former is not None else network.set_up(_as_before(network, settings))

    def last_readings(gatekeeper: Gatekeeper) -> list[Reading]:
        return _stop(network, gatekeeper.world) if former is None else former

    _book(ledger, settings or _any_settings(), SystemClock().now(), adopted, last_readings)


def _any_settings() -> Settings:
    return parse("MESH_INTERFACES: all\n", Path("net.conf"))


def _as_before(network: Network, settings: Settings | None) -> DesiredNetwork:
    """Return what the kernel should have while traffic is charged: as before, or no gate if there is no net.conf."""
    if settings is not None:
        return look_at_host(settings, network)
    return replace(desired_network(_any_settings(), (), (), ()), sells=False, buys=False)


def _stop(network: Network, world: World) -> list[Reading]:
    """Stop our contracts in the kernel and return what each has used since it was granted."""
    network.block_all()
    asyncio.run(network.settled())
    return network.read([*world.contracts, *world.letting.metered])


def _book(
    ledger: Ledger,
    settings: Settings,
    now: Now,
    adopted: Adopted,
    last_readings: Callable[[Gatekeeper], Sequence[Reading]],
) -> None:
    gatekeeper = Gatekeeper(World(settings, _NOBODY, lambda: secrets.token_bytes(16), now))
    effects = restore(gatekeeper, ledger.load(now.utc_s), adopted, now)
    effects += gatekeeper.step(UsageRead(tuple(last_readings(gatekeeper))), now)
    effects += gatekeeper.step(Stopping(), now)
    ledger.commit([effect.record for effect in effects if isinstance(effect, Persist)], durable=True)
