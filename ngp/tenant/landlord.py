"""Landlord: what a tenant can ask a landlord, the same over every face (HTTPS, gRPC, mesh)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Protocol

from ngp import identity
from ngp.core.host_port import join_host_port
from ngp.core.tenant.answers import Asked, Status
from ngp.core.tenant.configuration import TunnelConfiguration
from ngp.core.tenant.terms import OnSale, SaleTerms
from ngp.errors import ConfigError, LandlordError

_MOST_TOLD = 300
_HOST_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[0-9A-Za-z_.-]{1,253})(:(?P<port>[0-9]{1,5}))?")


class RefusedError(LandlordError):
    """The landlord answers with an error; the text has the landlord's words."""


class FingerprintError(ConfigError):
    """Somebody else answers than the landlord that is trusted."""


class Keys(Protocol):
    """A tunnel's WireGuard keys, base64. The private one is used for proofs here, and never sent."""

    @property
    def private_key(self) -> str: ...

    @property
    def public_key(self) -> str: ...


class Place(Protocol):
    """Where a landlord is, and by what it is recognized. As text (str) it names the landlord in errors and lists."""

    @property
    def face(self) -> str:
        """The face by which the landlord is asked: https, grpc or mesh."""

    @property
    def host(self) -> str:
        """The landlord's host; "" for a neighbour."""

    @property
    def pin(self) -> str:
        """What the landlord is recognized by, hexadecimal: the SHA-256 of its certificate, its identity, or the key of
        its Lightning node."""

    def entry(self) -> dict[str, str]:
        """Return this landlord's entry in Config.yaml."""


class Landlord(Protocol):
    """A landlord. Every method raises LandlordError or ConfigError."""

    @property
    def place(self) -> Place: ...

    def offers(self) -> tuple[OnSale, ...]:
        """Return what tenants may rent; at least one offer."""

    def terms(self, offer: str = "") -> SaleTerms:
        """Return the terms of an offer. Args: offer: "": the first one."""

    def ask(self, keys: Keys, amount_sat: int, offer: str = "") -> Asked:
        """Return an invoice for credit; for a new rental if this key has none. Args: offer: used for a new rental."""

    def cancel(self, keys: Keys) -> None:
        """Say that a rental that isn't paid yet isn't wanted: the landlord may let its networks to others at once."""

    def status(self, keys: Keys, wait_for: str = "", preimage: bytes = b"") -> Status:
        """Return a rental's status.

        Args:
            wait_for: an invoice: the answer comes when it is paid, or when the landlord waits no longer.
            preimage: proves that an invoice was paid.
        """

    def configuration(self, keys: Keys) -> TunnelConfiguration:
        """Return what the tunnel needs."""

    def refund(self, keys: Keys, bolt11: str) -> Status:
        """Have an invoice of ours paid from what is left of a rental that is over; returns when that is ordered.

        Args: bolt11: for at most `Status.fetchable_msat`; asking twice for the same one pays it once.
        """

    def rekey(self, keys: Keys, new: Keys) -> None:
        """Give a rental another key. The caller has stored both keys before.

        If this fails, asking for the status with the new key shows whether the rental has it.
        """


@dataclass(frozen=True, slots=True)
class HostPlace:
    """Where a landlord is that is asked over the network.

    Attributes:
        usual_port: the face's port, which a landlord's name leaves out.
        pin_key: what Config.yaml calls the pin.
    """

    face: ClassVar[str]
    usual_port: ClassVar[int]
    pin_key: ClassVar[str]
    host: str
    port: int
    pin: str

    def __str__(self) -> str:
        """Write what `read_host_port` reads."""
        if self.port != self.usual_port:
            return join_host_port(self.host, self.port)
        return f"[{self.host}]" if ":" in self.host else self.host

    def entry(self) -> dict[str, str]:
        """Return this landlord's entry in Config.yaml."""
        return {"Host": str(self), self.pin_key: self.pin}


@dataclass(frozen=True, slots=True)
class NeighbourPlace:
    """A neighbour as a landlord. Attributes: pin: its identity, 64 small hex digits."""

    face: ClassVar[str] = "mesh"
    host: ClassVar[str] = ""
    pin: str

    def __str__(self) -> str:
        return f"{identity.short_text(bytes.fromhex(self.pin))} in the mesh"

    def entry(self) -> dict[str, str]:
        """Return this landlord's entry in Config.yaml."""
        return {"Neighbour": self.pin}


def read_neighbour(written: str) -> NeighbourPlace:
    """Read a neighbour's whole key. Raises ConfigError."""
    digits = written.strip().lower()
    if re.fullmatch(r"[0-9a-f]{64}", digits) is None:
        raise ConfigError(f"the neighbour {written[:80]!r} is no key of 64 hexadecimal digits: see `ngp neighbours`")
    return NeighbourPlace(digits)


def read_host_port(written: str, usual_port: int) -> tuple[str, int]:
    """Read HOST[:PORT]; returns the host without brackets. Raises ConfigError."""
    found = _HOST_PORT.fullmatch(written.strip())
    port = int(found["port"] or usual_port) if found else 0
    if found is None or not 0 < port < 65536:
        raise ConfigError(f"the landlord {written!r} is not HOST:PORT: write 192.0.2.1 or landlord.example:443")
    return found["host"].strip("[]"), port


def no_refunds(place: Place) -> LandlordError:
    """Return why a landlord gives nothing back over HTTPS."""
    return LandlordError(
        f"landlord {place} can't give money back over HTTPS, where nobody proves whose rental it is: ask the landlord"
    )


def printable(value: object) -> str:
    """Return a landlord's text without control characters, which could rewrite a terminal."""
    text = str(value)[:_MOST_TOLD]
    return "".join(letter if letter.isprintable() else " " for letter in text).strip() or "without a reason"
