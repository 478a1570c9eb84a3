"""Aftermath: what is in force while no daemon runs, and what the operator can do about it.

A gate outlives its daemon by design. An operator who sees "isn't running", while no new destination works, must be told
why.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ngp.cli.place import Place
from ngp.cli.show import iso
from ngp.daemon.state import gating_pid, last_sign_s, state_dir_of, was_killed
from ngp.errors import ConfigError, KernelError

if TYPE_CHECKING:
    from ngp.core.settings import Settings
    from ngp.core.values import Check
    from ngp.ports.network import KernelState

_NEXT = "`ngp start` takes over, `ngp stop` removes what is left; either charges the traffic since the daemon's end"


def told(place: Place) -> str:
    """Say in one line what is in force without a daemon; "" if nothing is."""
    found = look(place)
    return found.found if found else ""


def look(place: Place) -> Check | None:
    """Return what is in force without a daemon as a line of `ngp check`, not ok if traffic is affected.

    Returns None if nothing is.
    """
    from ngp.core.values import Check
    from ngp.daemon import offline  # late: it imports every module, and isn't needed if a daemon runs

    killed = was_killed(place.state_dir)
    try:
        kernel = offline.kernel_state(_settings(place), place.state_dir)
    except (KernelError, ConfigError) as error:
        may = f"the daemon of {place.state_dir} was killed, and what it put into the kernel may still be in force"
        return Check("daemon", False, f"{may}: {error}", "sudo ngp start") if killed else None
    last_sign = iso(last_sign_s(place.state_dir)) if killed else ""
    pid = 0 if killed else gating_pid()
    theirs = state_dir_of(pid)
    found = describe(kernel, place.state_dir, last_sign, pid, theirs)
    if not found:
        return None
    in_force = kernel.meter or kernel.closed
    remedy = "sudo ngp start" if killed or kernel.closed else f"sudo ngp check --state-dir {theirs or 'DIR'}"
    return Check("daemon", not in_force, found, remedy if in_force else "")


def _settings(place: Place) -> Settings | None:
    try:
        return place.settings()
    except ConfigError:
        return None


def describe(kernel: KernelState, state_dir: Path, last_sign: str, pid: int = 0, theirs: Path | None = None) -> str:
    """Say what is in force without a daemon; "" if nothing is. Pure.

    Args:
        last_sign: last time at which a daemon that was killed here was certainly alive; "" if none was killed.
        pid: the process that gates this network namespace with another state directory; 0 if none is visible.
        theirs: that directory; None if it isn't known.
    """
    killed = bool(last_sign)
    how = f"the daemon of {state_dir} was killed (last sign of life {last_sign})"
    if kernel.meter and not killed:
        whose = f" (of process {pid})" if pid else ""
        belongs = "the gate or meter in this network namespace belongs to another state directory"
        if theirs is not None:
            return f"{belongs}, {theirs}{whose}: name it with --state-dir {theirs}"
        return f"{belongs}{whose}: name that directory with --state-dir"
    if kernel.meter and kernel.gate:
        rest = "new destinations and renewals are refused"
        return f"{how}, and its gate is still in force: contracts run on and are charged; {rest}. {_NEXT}"
    if kernel.meter and kernel.sells:
        rest = "uploads of neighbours pass uncharged, downloads are still counted and cut"
        return f"{how}; its meter still counts, but its gate is gone from the firewall: {rest}. {_NEXT}"
    if kernel.meter:
        return f"{how}, and its meter still counts bought traffic; no traffic is refused. {_NEXT}"
    if kernel.closed:
        until = "`ngp start`, or WHEN_STOPPED: open and `ngp stop`"
        return f"traffic from and to mesh interfaces is dropped (WHEN_STOPPED: closed) until {until}"
    if killed:
        why = "the machine rebooted since, or the daemon ran in another namespace (ip netns exec)"
        return f"{how}; nothing of it is in this network namespace: {why}"
    return ""
