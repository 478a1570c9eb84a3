"""Proof: whether a rental works, before more is paid for it.

A fresh handshake proves little: users of other landlords saw tunnels with handshakes and without traffic. So an echo
request is sent through the tunnel to the landlord, or a command asks somebody outside whether the rented address can be
reached.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Protocol

from ngp.core.host_port import split_host_port
from ngp.tenant import interface

PROBE_S = 20.0
_PINGS, _PING_WAIT_S = "3", "2"


class Proof(Protocol):
    """Says whether a tunnel works."""

    async def why_not(self) -> str:
        """Return why the tunnel isn't proven to work, with a remedy; "" if it is."""


class EchoProof:
    """Sends echo requests through the tunnel to the landlord, which answers through it.

    Args:
        name: the tunnel's interface.
        endpoint: `host:port` of the landlord's end.
        bring_up: the command that brings the tunnel up, for the text.
    """

    def __init__(self, name: str, endpoint: str, bring_up: str) -> None:
        self._interface, self._host = name, split_host_port(endpoint)[0]
        self._bring_up = bring_up

    async def why_not(self) -> str:
        """Return why the tunnel isn't proven to work; "" if it is."""
        if not interface.is_up(self._interface):
            return f"the tunnel {self._interface} isn't up on this machine: {self._bring_up}"
        words = ("ping", "-n", "-q", "-c", _PINGS, "-W", _PING_WAIT_S, "-I", self._interface, self._host)
        code = await _run(words)
        if code == 0:
            return ""
        return f"{self._host} doesn't answer through the tunnel {self._interface} (ping ended with {code})"


class CommandProof:
    """Runs a command, which ends with 0 if the rented address can be reached from outside."""

    def __init__(self, command: str) -> None:
        self._command = command

    async def why_not(self) -> str:
        """Return why the tunnel isn't proven to work; "" if it is."""
        code = await _run(("sh", "-c", self._command))
        return "" if code == 0 else f"the probe {self._command!r} ended with {code}"


async def _run(words: Sequence[str]) -> int | str:
    """Run a command for a bounded time; returns its exit code, or why there is none."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return f"{words[0]}: {error.strerror}"
    try:
        return await asyncio.wait_for(process.wait(), PROBE_S)
    except TimeoutError:
        return f"nothing within {PROBE_S:g} s"
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 9)
            await process.wait()
