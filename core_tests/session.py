"""A session of CORE that runs: its hosts and daemons, and what a scenario asks of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.session_xml import SessionFile
from core_tests.shell import LabError, await_until
from core_tests.trade import Books, Row, assert_conserved_soon

Position = tuple[float, float]


class MissingError(LabError):
    """A backend isn't there; the message says what is missing, and what to do."""


class Backend(Protocol):
    """Something that runs a session's file until the laboratory ends."""

    def __call__(self, lab: Lab, file: SessionFile) -> Session: ...


@dataclass(frozen=True, slots=True)
class Deal(Books):
    """The business of one gateway with one client, among others that both may have.

    Attributes: keys: public keys by the daemon's name, as listings show them.
    """

    gateway: Daemon
    client: Daemon
    keys: Mapping[str, str]

    def only_with(self, other: Daemon) -> Row:
        """Return what rows of business with one of the two have in common."""
        return {"neighbour": self.keys[other.name]}

    def acquainted(self) -> bool:
        """Say whether each of the two sees the other on a link."""
        return all(
            any(row["up"] and row["neighbour"] == self.keys[other.name] for row in one.ask("neighbours"))
            for one, other in ((self.gateway, self.client), (self.client, self.gateway))
        )


@dataclass(frozen=True, slots=True)
class Session:
    """A running session.

    Attributes:
        hosts, daemons, keys (of the daemons): by the device's name.
        move: takes a device to another place on the canvas; that changes whom it hears in a wireless network.
    """

    hosts: Mapping[str, Host]
    daemons: Mapping[str, Daemon]
    keys: Mapping[str, str]
    move: Callable[[str, Position], None]

    def deal(self, gateway: str, client: str) -> Deal:
        """Return the business of two neighbours, when both know each other."""
        found = Deal(self.daemons[gateway], self.daemons[client], self.keys)
        await_until(found.acquainted, what=f"{gateway} and {client} know each other")
        return found

    def assert_conserved(self) -> None:
        """Assert that the money of every daemon adds up, as its own books tell it."""
        for daemon in self.daemons.values():
            assert_conserved_soon(daemon)
