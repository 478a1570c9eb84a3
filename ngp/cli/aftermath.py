"""Aftermath: what is in force where no daemon runs, and what the operator can do about it.

A gate that outlives its daemon is meant to; but an operator who sees "isn't running" and no new destination that
works must not have to guess it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ngp.cli.place import Place
from ngp.cli.show import iso
from ngp.core.values import Standing
from ngp.daemon.state import last_sign_s, was_killed
from ngp.errors import ConfigError, KernelError

if TYPE_CHECKING:
    from ngp.core.settings import Settings

_NEXT = "`ngp start` takes over and charges what it missed, `ngp stop` takes it away"


def told(place: Place) -> str:
    """Say in one line what stands without a daemon; "" where nothing does."""
    from ngp.daemon import offline  # late: it imports every module

    killed = was_killed(place.state_dir)
    try:
        standing = offline.standing(_settings(place), place.state_dir)
    except (KernelError, ConfigError) as error:
        return f"it was killed, and what it put into the kernel may still be in force: {error}" if killed else ""
    return describe(standing, killed, iso(last_sign_s(place.state_dir)) if killed else "")


def _settings(place: Place) -> Settings | None:
    try:
        return place.settings()
    except ConfigError:
        return None


def describe(standing: Standing, killed: bool, last_sign: str) -> str:
    """Say what stands without a daemon. Pure.

    Args: killed: one ended here without cleaning up. last_sign: when that one was certainly alive.
    """
    how = f"it was killed (last sign of life {last_sign})"
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
