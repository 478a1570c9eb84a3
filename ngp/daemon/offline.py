"""Offline: what can be done about the kernel and the payment node while no daemon runs: look, and clean up.

Gating goes on when the daemon is killed, by design; so somebody must be able to end it without a daemon. Nothing is
remembered for that: the network module finds in the kernel what ngp made.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from ngp import store
from ngp.config import PAYMENT, module_class
from ngp.core.settings import Settings
from ngp.core.values import Check, PaymentInfo, Standing
from ngp.daemon import belongings, checkup, last_books, lightning, main, payment_keys
from ngp.daemon.desired import FAMILIES
from ngp.daemon.state import NamespaceLock, StateLock, forget_killed, keep_last_sign, running_pid
from ngp.errors import LedgerError, NgpError, RunningError
from ngp.remembered_node import RememberedNode, swapped

_READY_S = 5.0
_BOOKS_S = 60.0
_IF_SWAPPED = "none, if that is meant; else connect the former one"
_SANDBOX_KEY = "sandbox.key"  # as modules/payment/sandbox.py has it


def clean_up(state_dir: Path, settings: Settings | None) -> str | None:
    """Remove from kernel and state directory what a killed daemon left, and charge what its contracts carried.

    It holds the lock, so that none starts meanwhile. Without settings the mesh interfaces are left open: a gate that
    stands must not need a good net.conf to be ended.

    Returns:
        What is lost, and why; "" if nothing is; None where no meter stood.

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
        lost = last_books.charge(network, store.at(state_dir), settings)
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
            f"ngp runs on {state_dir} (process {pid}) and gates by itself; nothing is closed: ngp stop ends it"
        ) from error
    network = main.make_network(settings, state_dir)
    try:
        network.shut(settings.mesh_interfaces, settings.never_mesh, FAMILIES[settings.network_module])
    finally:
        network.close()
        namespace.release()


def standing(settings: Settings | None, state_dir: Path) -> Standing:
    """Ask the network module what of ours is in the kernel; without settings the usual one.

    Raises: KernelError, without rights too.
    """
    network = main.make_network(settings, state_dir)
    try:
        return network.standing()
    finally:
        network.close()


def check_network(settings: Settings, state_dir: Path) -> list[Check]:
    """Ask the network module what is missing on this host; changes nothing."""
    try:
        return asyncio.run(main.check(settings, state_dir))
    except NgpError as error:
        return [Check("network module", False, str(error), "sudo ngp check")]


def check_payment(settings: Settings, state_dir: Path) -> list[Check]:
    """Ask the payment node whether it serves; one that was never used here gets a folder to throw away."""
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
            return [Check("payment", False, found, "start the payment node, or correct its place in net.conf")]
        except (NgpError, OSError) as error:  # it says itself what mends it; another remedy would contradict it
            return [Check("payment", False, f"{settings.payment_module}: {error}")]


def try_lnd_uri(uri: str, state_dir: Path) -> str:
    """Ask the node of a pasted lndconnect URI who it is; keeps nothing. Raises ConfigError, PaymentError."""
    answered: str = asyncio.run(module_class(PAYMENT, "lnd").try_uri(uri, state_dir))
    return answered


def keep_lnd_uri(uri: str, state_dir: Path) -> tuple[str, Path | None]:
    """Keep a pasted lndconnect URI for the next start. Raises ConfigError, OSError.

    Returns: where the node is, and where the URI before is kept, if there was another.
    """
    kept: tuple[str, Path | None] = module_class(PAYMENT, "lnd").keep_uri(uri, state_dir)
    return kept


def check_state(state_dir: Path) -> list[Check]:
    """Look whether a start would take the state directory, its identity and its ledger."""
    return [*belongings.look(state_dir), *_check_ledger(state_dir)]


def _check_ledger(state_dir: Path) -> list[Check]:
    """Look whether the ledger is whole, and whether its books add up; there is none before the first start."""
    place = store.at(state_dir)
    try:
        belongings.refuse_lost_ledger(state_dir)
        if not place.exists():
            return [Check("ledger", True, f"{place}: none yet, the first start makes it")]
        keep_last_sign(state_dir)
        place.look()
        return [Check("ledger", True, f"{place}: whole"), checkup.books(place, _BOOKS_S)]
    except (LedgerError, OSError) as error:
        return [Check("ledger", False, str(error), "as it says; see Backup and restore in the operator's guide")]


def _why_node_unknown(state_dir: Path) -> str:
    """Tell why the sandbox's node has no name to show: one that is tried out in its place would have another."""
    try:
        (state_dir / _SANDBOX_KEY).stat()
    except FileNotFoundError:
        return "made at the first start"
    except OSError:
        return "for root to see"
    return "" if os.access(state_dir / _SANDBOX_KEY, os.R_OK) else "for root to see"


async def _ask_payment(
    settings: Settings, state_dir: Path, why_unknown: str, known: PaymentInfo | None
) -> list[Check]:
    payment = main.make_payment(settings, state_dir)
    try:
        try:
            async with asyncio.timeout(_READY_S):
                await payment.wait_ready()
                info = await payment.info()
        except NgpError as error:  # where the login is at fault, its own row tells the same, and what mends it
            rights = [one for one in await payment.check(settings.spends) if one.found == str(error)]
            if rights:
                return rights
            raise
        money = "real money" if payment.capabilities().real_money else "not real money: who sells for it gives it away"
        found = f"{settings.payment_module} on {info.network}, node {why_unknown or info.account_id}; {money}"
        swap = swapped(known, info)
        node = Check("payment", True, "; ".join(filter(None, (found, swap))), _IF_SWAPPED if swap else "")
        if not why_unknown:
            expected = checkup.expected_node(settings, info.account_id, "but the payment node is")
            node = node if expected.ok else expected
        rights = await payment.check(settings.spends)
        return [node, *rights, *await lightning.look(payment, settings)]
    finally:
        with suppress(NgpError):
            await payment.close()
