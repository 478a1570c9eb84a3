"""Aftermath: what is in force where no daemon runs, and what the operator can do about it.

A gate that outlives its daemon is meant to; but an operator who sees "isn't running" and no new destination that
works must not have to guess it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ngp.cli.place import Place
from ngp.cli.show import iso
from ngp.core.values import Check, Standing
from ngp.daemon.state import last_sign_s, was_killed
from ngp.errors import ConfigError, KernelError

if TYPE_CHECKING:
    from ngp.core.settings import Settings

_NEXT = "`ngp start` takes over, `ngp stop` takes it away; both charge what was missed"


def told(place: Place) -> str:
    """Say in one line what stands without a daemon; "" where nothing does."""
    found = look(place)
    return found.found if found else ""


def look(place: Place) -> Check | None:
    """Say what stands without a daemon, for `ngp check`: not ok where traffic is in its hands. None: nothing does."""
    from ngp.daemon import offline  # late: it imports every module

    killed = was_killed(place.state_dir)
    try:
        standing = offline.standing(_settings(place), place.state_dir)
    except (KernelError, ConfigError) as error:
        may = f"the daemon of {place.state_dir} was killed, and what it put into the kernel may still be in force"
        return Check("daemon", False, f"{may}: {error}", "sudo ngp start") if killed else None
    found = describe(standing, place.state_dir, iso(last_sign_s(place.state_dir)) if killed else "")
    if not found:
        return None
    in_force = standing.meter or standing.closed
    remedy = "sudo ngp start" if killed or standing.closed else "sudo ngp check --state-dir DIR"
    return Check("daemon", not in_force, found, remedy if in_force else "")


def _settings(place: Place) -> Settings | None:
    try:
        return place.settings()
    except ConfigError:
        return None


def describe(standing: Standing, state_dir: Path, last_sign: str) -> str:
    """Say what stands without a daemon; "" where nothing does. Pure.

    Args: last_sign: when a daemon that was killed here was certainly alive; "" if none was killed.
    """
    killed = bool(last_sign)
    how = f"the daemon of {state_dir} was killed (last sign of life {last_sign})"
    if standing.meter and not killed:
        return "what stands in this network namespace is of a daemon with another state directory: name it, --state-dir"
    if standing.meter and standing.gate:
        rest = "new destinations and renewals are refused"
        return f"{how}, and its gate still stands: contracts go on to their limits, counted; {rest}. {_NEXT}"
    if standing.meter and standing.sells:
        rest = "uploads of neighbours pass uncharged, downloads are still counted and cut"
        return f"{how}, its meter still stands, but its gate is gone from the firewall: {rest}. {_NEXT}"
    if standing.meter:
        return f"{how}, and its meter still counts what is bought; it refuses nothing. {_NEXT}"
    if standing.closed:
        return "what is forwarded from or to mesh interfaces is dropped (WHEN_STOPPED: closed) until `ngp start`"
    if killed:
        return f"{how}, and nothing of it is in this network namespace: booted since, or name another: ip netns"
    return ""
