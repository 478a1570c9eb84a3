"""Proof: whether a rental works, before more is paid for it.

A fresh handshake proves little: users of other landlords saw tunnels with handshakes and without traffic. So an echo
request is sent through the tunnel to the landlord, or a command asks somebody outside whether the rented address can be
reached.

The landlord's end of the tunnel may have an address of another IP version than what is rented. Then an echo request
with a hop limit of 1 is sent to an address outside: the landlord can't forward it, and answers "time exceeded".
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import Protocol

from ngp.core.host_port import split_host_port
from ngp.tenant import interface

PROBE_S = 20.0
_PINGS, _PING_WAIT_S = "3", "2"
_SAID_BYTES = 1 << 16
# Addresses of a root name server, which everybody routes; nothing arrives there.
_SOMEWHERE = {4: "198.41.0.4", 6: "2001:503:ba3e::2:30"}
_ERROR_FROM = re.compile(r"^From (\S+?):? icmp_seq", re.MULTILINE)


class Proof(Protocol):
    """Says whether a tunnel works."""

    async def why_not(self) -> str:
        """Return why the tunnel isn't proven to work, with a remedy; "" if it is."""


class EchoProof:
    """Sends echo requests through the tunnel to the landlord, which answers through it.

    Args:
        name: the tunnel's interface.
        endpoint: `host:port` of the landlord's end.
        addresses: of our end; empty: not known.
        bring_up: the command that brings the tunnel up, for the text.
    """

    def __init__(
        self, name: str, endpoint: str, addresses: Sequence[IPv4Interface | IPv6Interface], bring_up: str
    ) -> None:
        self._interface, self._host = name, split_host_port(endpoint)[0]
        self._addresses = addresses
        self._bring_up = bring_up

    async def why_not(self) -> str:
        """Return why the tunnel isn't proven to work; "" if it is."""
        if not interface.is_up(self._interface):
            return f"the tunnel {self._interface} isn't up on this machine: {self._bring_up}"
        own = {one.version: str(one.ip) for one in reversed(self._addresses)}
        reached = not own or _version(self._host) in own
        version = _version(self._host) if reached else next(iter(own))
        # The interface alone finds no IPv6 route: the tunnel's routing table is for packets from its own addresses.
        source = ("-I", own[version]) if version in own else ()
        words = ("ping", "-n", "-c", _PINGS, "-W", _PING_WAIT_S, "-I", self._interface, *source)
        if reached:
            code, _ = await _run((*words, self._host))
            works, whom = code == 0, self._host
        else:
            code, said = await _run((*words, "-t", "1", _SOMEWHERE[version]), keeps_output=True)
            ours = {str(one.ip) for one in self._addresses}
            works, whom = bool(set(_ERROR_FROM.findall(said)) - ours), "the landlord"
        return "" if works else f"{whom} doesn't answer through the tunnel {self._interface} (ping ended with {code})"


def _version(host: str) -> int:
    """Return the IP version of an address; of a name, 4, as landlords give names for IPv4."""
    try:
        return ip_address(host).version
    except ValueError:
        return 4


class CommandProof:
    """Runs a command, which ends with 0 if the rented address can be reached from outside."""

    def __init__(self, command: str) -> None:
        self._command = command

    async def why_not(self) -> str:
        """Return why the tunnel isn't proven to work; "" if it is."""
        code, _ = await _run(("sh", "-c", self._command))
        return "" if code == 0 else f"the probe {self._command!r} ended with {code}"


async def _run(words: Sequence[str], keeps_output: bool = False) -> tuple[int | str, str]:
    """Run a command for a bounded time; returns its exit code, or why there is none, and the first part of its output.

    The command and what it started are ended at the end of the time.
    """
    output = asyncio.subprocess.PIPE if keeps_output else asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return f"{words[0]}: {error.strerror}", ""
    said = b""
    try:
        async with asyncio.timeout(PROBE_S):
            if process.stdout is not None:
                said = await process.stdout.read(_SAID_BYTES)
            return await process.wait(), said.decode(errors="replace")
    except TimeoutError:
        return f"nothing within {PROBE_S:g} s", ""
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 9)
            await process.wait()
