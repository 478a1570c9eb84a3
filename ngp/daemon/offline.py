"""Offline: what commands do without a daemon: check kernel and payment node, and clean up.

By design, gating goes on when the daemon is killed; so it must be possible to end it without a daemon. No record is
needed for that: the network module finds in the kernel what ngp made.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from ngp.config import PAYMENT, module_class
from ngp.core.rental.letting import Letting
from ngp.core.rental.rental import Rental
from ngp.core.settings import Settings
from ngp.core.values import Check
from ngp.daemon import belongings, checkup, last_books, lightning, main, payment_keys
from ngp.daemon.desired import FAMILIES
from ngp.daemon.state import NamespaceLock, StateLock, forget_killed, keep_last_sign, running_pid
from ngp.errors import ConfigError, KernelError, LedgerError, NgpError, RunningError
from ngp.ports import Store
from ngp.ports.network import KernelState
from ngp.ports.payment import PaymentInfo
from ngp.remembered_node import RememberedNode, swapped

_READY_S = 5.0
_BOOKS_S = 60.0
_IF_SWAPPED = "nothing to do if you intended this; otherwise connect the earlier node"
_SANDBOX_KEY = "sandbox.key"  # as modules/payment/sandbox.py has it


def clean_up(state_dir: Path, settings: Settings | None) -> str | None:
    """Remove from kernel and state directory what a killed daemon left, and charge what its contracts carried.

    Holds the lock, so that no daemon starts meanwhile. Without settings the mesh interfaces are left open: ending a
    gate must not need a good net.conf.

    Returns:
        What is lost and why; "" if nothing is; None if there was no meter.

    Raises:
        RunningError: a daemon has been started meanwhile. KernelError: no rights, or the kernel refuses.
    """
    lock = StateLock.take(state_dir)
    try:
        namespace = NamespaceLock.take()
    except RunningError:
        lock.abandon()
        raise
    try:
        network = main.make_network(settings, state_dir)
        main.remove_tunnel()  # first: without a meter the tunnel would let tenants' traffic pass uncharged
        lost = last_books.charge(network, lambda: belongings.ledger_place(state_dir, settings), settings)
        network.clean_up(settings is not None and settings.closed_when_stopped)
        forget_killed(state_dir)
    except BaseException:
        lock.abandon()
        raise
    finally:
        namespace.release()
    lock.release()
    return lost


def shut(settings: Settings, state_dir: Path) -> None:
    """Drop what is forwarded from or to mesh interfaces until a daemon starts; needs no state directory.

    Raises:
        RunningError: a daemon gates this network namespace. KernelError: no rights, or the kernel refuses.
    """
    try:
        namespace = NamespaceLock.take()
    except RunningError as error:
        pid = running_pid(state_dir)
        if pid is None:
            raise
        raise RunningError(
            f"ngp runs on {state_dir} (process {pid}) and gates the traffic; nothing was closed: ngp stop ends it"
        ) from error
    network = main.make_network(settings, state_dir)
    try:
        network.shut(settings.mesh_interfaces, settings.never_mesh, FAMILIES[settings.network_module])
    finally:
        network.close()
        namespace.release()


def reopen(settings: Settings, state_dir: Path) -> bool:
    """Remove what WHEN_STOPPED: closed left in the firewall. Returns whether there was anything; False without rights.

    Where a meter stands nothing is removed: its daemon runs or was killed, and its own `ngp stop` is needed.

    Raises: KernelError: the kernel refuses.
    """
    try:
        namespace = NamespaceLock.take()
    except RunningError:
        return False
    network = main.make_network(settings, state_dir)
    try:
        try:
            found = network.kernel_state()
        except KernelError:
            return False
        if found.meter or not found.closed:
            return False
        network.clean_up(leave_closed=False)
        return True
    finally:
        network.close()
        namespace.release()


def kernel_state(settings: Settings | None, state_dir: Path) -> KernelState:
    """Ask the network module which parts of ngp are in the kernel. If `settings` is None, ask the default module.

    Raises: KernelError, for example if we aren't root.
    """
    network = main.make_network(settings, state_dir)
    try:
        return network.kernel_state()
    finally:
        network.close()


def check_network(settings: Settings, state_dir: Path) -> list[Check]:
    """Ask the network module what is missing on this host; changes nothing."""
    try:
        return asyncio.run(main.check(settings, state_dir))
    except NgpError as error:
        return [Check("network module", False, str(error), "sudo ngp check")]


def check_payment(settings: Settings, state_dir: Path) -> list[Check]:
    """Check whether the payment node can be used; a sandbox without files here gets a temporary folder."""
    why_unknown = _why_node_unknown(state_dir) if settings.payment_module == "sandbox" else ""
    with tempfile.TemporaryDirectory() as scratch:
        usable = not why_unknown and state_dir.is_dir() and os.access(state_dir, os.W_OK)
        try:
            with RememberedNode(state_dir, settings.payment_module).unchanged() as known:
                asked = asyncio.run(_ask_payment(settings, state_dir if usable else Path(scratch), why_unknown, known))
            return [*asked, *payment_keys.without_effect(settings)]
        except TimeoutError:
            where = payment_keys.place(settings)
            found = f"{settings.payment_module}: not ready within {_READY_S:g} s{where and f' at {where}'}"
            return [Check("payment", False, found, "start the payment node, or correct its address in net.conf")]
        except (NgpError, OSError) as error:  # the error has its own remedy
            return [Check("payment", False, f"{settings.payment_module}: {error}")]


def try_lnd_uri(uri: str, state_dir: Path) -> str:
    """Ask the node of a pasted lndconnect URI for its identity; keeps nothing. Raises ConfigError, PaymentError."""
    answered: str = asyncio.run(module_class(PAYMENT, "lnd").try_uri(uri, state_dir))
    return answered


def keep_lnd_uri(uri: str, state_dir: Path) -> tuple[str, Path | None]:
    """Keep a pasted lndconnect URI for the next start. Raises ConfigError, OSError.

    Returns: the node's address, and the file that keeps the previous URI, if there was one.
    """
    kept: tuple[str, Path | None] = module_class(PAYMENT, "lnd").keep_uri(uri, state_dir)
    return kept


def check_state(state_dir: Path, settings: Settings | None = None) -> list[Check]:
    """Check whether a start would accept the state directory, its identity and its ledger."""
    return [*belongings.look(state_dir), *_check_ledger(state_dir, settings)]


def _check_ledger(state_dir: Path, settings: Settings | None) -> list[Check]:
    """Check whether the ledger is intact and its sums add up; before the first start there is no ledger."""
    try:
        place = belongings.ledger_place(state_dir, settings)
        belongings.refuse_lost_ledger(state_dir, place)
        if not place.exists():
            return [Check("ledger", True, f"{place}: doesn't exist yet, the first start makes it")]
        keep_last_sign(state_dir)
        place.look()
        whole = [Check("ledger", True, f"{place}: whole"), checkup.books(place, _BOOKS_S)]
        return [*whole, *(_rentals(place, settings) if settings is not None else [])]
    except (ConfigError, LedgerError, OSError) as error:
        return [Check("ledger", False, str(error), "see Backup and restore in the operator's guide")]


def _rentals(place: Store, settings: Settings) -> list[Check]:
    """Warn of tenants that a start with these settings would cut off, as a running daemon's check does."""
    letting = Letting()
    for record in place.rentals():
        letting.add(Rental.of(record))
    return checkup.rentals(letting, settings)


def _why_node_unknown(state_dir: Path) -> str:
    """Say why the key of the sandbox's node can't be shown, "" if it can.

    Without the sandbox's files this check uses a temporary sandbox, which has another key: that one isn't shown.
    """
    try:
        (state_dir / _SANDBOX_KEY).stat()
    except FileNotFoundError:
        return "not made yet (the first start makes it)"
    except OSError:
        return "not shown (only root may see it)"
    return "" if os.access(state_dir / _SANDBOX_KEY, os.R_OK) else "not shown (only root may see it)"


async def _ask_payment(settings: Settings, state_dir: Path, why_unknown: str, known: PaymentInfo | None) -> list[Check]:
    payment = main.make_payment(settings, state_dir)
    try:
        try:
            async with asyncio.timeout(_READY_S):
                await payment.wait_ready()
                info = await payment.info()
        except NgpError as error:  # the module's check may report the same error (a wrong login) with a remedy
            rights = [one for one in await payment.check(settings.spends) if one.found == str(error)]
            if rights:
                return rights
            raise
        money = "real money" if payment.capabilities().real_money else "not real money: its sellers give service away"
        found = f"{settings.payment_module} on {info.network}, node {why_unknown or info.account_id}; {money}"
        swap = swapped(known, info)
        node = Check("payment", True, "; ".join(filter(None, (found, swap))), _IF_SWAPPED if swap else "")
        if not why_unknown:
            expected = checkup.expected_node(settings, info.account_id, "but the payment node is")
            node = node if expected.ok else expected
        rights = [*await payment.check(settings.spends), *checkup.holding(settings, payment)]
        return [node, *rights, *await lightning.look(payment, settings)]
    finally:
        with suppress(NgpError):
            await payment.close()
