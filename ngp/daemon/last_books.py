"""Last books: charges the traffic of a killed daemon's contracts before `ngp stop` removes them from the kernel.

The ledger is up to a minute behind the kernel's counters, and these vanish with the meter. So this does the same as a
start and a stop, without links and payments. It adopts the meter, blocks its contracts, reads their counters, and
writes what the ledger doesn't know yet, by the rules of `restore`. It may be interrupted and repeated: nothing is
counted twice.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import replace
from pathlib import Path

from ngp.config import parse
from ngp.core.effects import Persist
from ngp.core.events import Stopping, UsageRead
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.restore import restore
from ngp.core.settings import Settings
from ngp.core.world import PaymentNode, World
from ngp.daemon.clock import SystemClock
from ngp.daemon.desired import desired_network, look_at_host
from ngp.errors import KernelError, LedgerError
from ngp.ports import Ledger, Network, Store

_NOBODY = PaymentNode("", False, False, 0, b"")
_LOST = "what was carried since the ledger's last entry is lost"


def charge(network: Network, store: Store, settings: Settings | None) -> str | None:
    """Charge what a meter without a daemon counted, and block its contracts.

    Args: settings: those of net.conf; None if it can't be used: then the gate is opened too.
    Returns: what is lost and why; "" if nothing is; None if there is no meter, for example after a reboot.
    """
    try:
        if not network.kernel_state().meter:
            return None
        if not store.exists():
            return f"{_LOST}: there is no ledger {store}"
        ledger = store.open()
    except (KernelError, LedgerError) as error:
        return f"{_LOST}: {error}"
    try:
        _charge(network, ledger, settings)
    except (KernelError, LedgerError) as error:
        return f"{_LOST}: {error}"
    finally:
        ledger.close()
    return ""


def _charge(network: Network, ledger: Ledger, settings: Settings | None) -> None:
    logging.getLogger("ngp").addHandler(logging.NullHandler())  # a start's warnings are for a daemon's log
    if settings is not None:
        desired = look_at_host(settings, network)
    else:
        settings = parse("MESH_INTERFACES: all\n", Path("net.conf"))
        desired = replace(desired_network(settings, (), (), ()), sells=False, buys=False)
    adopted, now = network.set_up(desired), SystemClock().now()
    world = World(settings, _NOBODY, lambda: secrets.token_bytes(16), now)
    gatekeeper = Gatekeeper(world)
    effects = restore(gatekeeper, ledger.load(now.utc_s), adopted, now)
    # Only these: granting another one would create it again.
    known = [reading.contract for reading in network.read(list(world.contracts))]
    network.grant([world.kernel_grant(world.contracts[each], blocked=True) for each in known])
    asyncio.run(network.settled())
    effects += gatekeeper.step(UsageRead(tuple(network.read(known))), now)
    effects += gatekeeper.step(Stopping(), now)
    ledger.commit([effect.record for effect in effects if isinstance(effect, Persist)], durable=True)
