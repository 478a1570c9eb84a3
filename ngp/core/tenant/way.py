"""Way: traffic that need not pass the tunnel when TENANT_ALL_TRAFFIC sends all else of this machine through it."""

from __future__ import annotations

from dataclasses import dataclass

from ngp.core.messages import Prefix


@dataclass(frozen=True, slots=True)
class Way:
    """Traffic to one destination.

    Attributes:
        protocol: `tcp` or `udp`; "": every protocol, and then there is no port.
        port: of the destination; 0: all of them.
    """

    prefix: Prefix
    protocol: str = ""
    port: int = 0

    @property
    def takes_names(self) -> bool:
        """Say whether a name server at the destination can be asked this way."""
        return self.protocol in ("", "udp") and self.port in (0, 53)
