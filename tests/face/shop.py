"""A shop: the simulated landlord with its HTTPS face open on loopback, in a thread of its own.

The core, the ledger, the service behind the faces, and the face are the real ones. Payment node and tunnel are made up,
and so are the clocks.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from let import Landlord, PaymentNodeOfLandlord, letting

from core_tests.ports import free_ports
from core_tests.staticwire import HeldToTheRules, Session, Tenant
from ngp import identity, invoice
from ngp.calls.proof import Proofs
from ngp.core import effects as fx
from ngp.core.messages import Address
from ngp.core.payment_node import DecodedInvoice
from ngp.core.rental import calls
from ngp.core.rental.landlord import served
from ngp.core.rental.terms import LettingSettings, TunnelSettings
from ngp.core.rental.tunnel import TunnelPeer
from ngp.core.values import Check, Now
from ngp.daemon import landlord as outside
from ngp.daemon.letting import Letting
from ngp.modules.face.door import Limits
from ngp.modules.face.grpc import GrpcFace
from ngp.modules.face.https import HttpsFace
from ngp.modules.face.mesh import MeshFace
from ngp.ports import Face
from ngp.ports.letting import DesiredTunnel, PeerReading
from ngp.tenant import keys

T = TypeVar("T")
ENDPOINTS = ("[2001:db8::9]:51820", "192.0.2.9:51820")
GENEROUS = Limits(  # months pass in seconds here
    invoices_s=1000, invoices_of_one_s=1000, requests_of_one_s=1000, first_invoices_of_one=100
)
TUNNEL = TunnelSettings("ngp-let", 51820, "eth0", "routed", "auto", 1420)


class TunnelOnPaper:
    """A tunnel that only remembers its peers."""

    def __init__(self) -> None:
        self.peers: dict[bytes, TunnelPeer] = {}

    def check(self, desired: DesiredTunnel) -> list[Check]:
        return []

    def set_up(self, desired: DesiredTunnel, peers: Sequence[TunnelPeer]) -> None:
        self.peers = {one.wireguard_key: one for one in peers}

    def set_peers(self, peers: Sequence[TunnelPeer]) -> None:
        self.peers |= {one.wireguard_key: one for one in peers}

    def remove_peers(self, wireguard_keys: Sequence[bytes]) -> None:
        for one in wireguard_keys:
            self.peers.pop(one, None)

    def stands(self) -> bool:
        return True

    def read(self) -> list[PeerReading]:
        return []

    def addresses(self, interface: str) -> tuple[Address, ...]:
        return ()

    def describe(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass

    def clean_up(self) -> None:
        self.peers.clear()


class LiveProofs(Proofs):
    """Proofs by the real clock: the shop's goes on only when a test says so, but tenants count on."""

    def __init__(self, ours: bytes, private_key: X25519PrivateKey) -> None:
        super().__init__(ours, private_key, time.monotonic())

    def session(self, now_s: float) -> calls.Session:
        return super().session(time.monotonic())

    def check(self, call: calls.Call, nonce: int, proofs: Sequence[tuple[bytes, bytes]], now_s: float) -> None:
        super().check(call, nonce, proofs, time.monotonic())


class LandlordWithFaces(Landlord):
    """The simulated landlord, whose effects reach tunnel and faces as the daemon's do."""

    def __init__(
        self,
        folder: Path,
        terms: LettingSettings,
        faces: Sequence[Face],
        key: X25519PrivateKey,
        node: PaymentNodeOfLandlord | None,
    ) -> None:
        self.outside: outside.Landlord | None = None
        super().__init__(folder, terms, node=node)
        self.public_key = key.public_key().public_bytes_raw()
        ours = identity.public_key(identity.load_or_create(folder))
        self.letting = Letting(
            self.world, Clock(self), self.happen, ours, key, lambda: ENDPOINTS, self._decode, lambda: ""
        )
        self.letting._proofs = LiveProofs(ours, key)
        self.outside = outside.Landlord(
            TunnelOnPaper(), faces, self.letting, key, lambda: served(self.world), lambda _: True, lambda _: None
        )

    def _decode(self, bolt11: str) -> DecodedInvoice:
        return invoice.read(bolt11).decoded(int(self.utc_s), "sandbox")

    def _carry_out(self, effects: list[fx.Effect]) -> None:
        super()._carry_out(effects)
        if self.outside is not None:
            self.outside.carry_out(effects)


@dataclass(frozen=True)
class WireGuardKeys:
    """A new tenant's keys."""

    private_key: str = field(default_factory=keys.new_private_key)

    @property
    def public_key(self) -> str:
        return keys.public_key(self.private_key)


class Clock:
    """The landlord's clock."""

    def __init__(self, landlord: Landlord) -> None:
        self._landlord = landlord

    def now(self) -> Now:
        return self._landlord.clock()


class Shop:
    """The landlord, in an event loop in a thread of its own; `do` runs something there.

    Attributes: terms: as net.conf has them, with a free port of loopback.
    """

    def __init__(self, folder: Path, terms: LettingSettings | None = None, limits: Limits | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.folder = folder
        self.terms = terms or terms_of_shop()
        self._limits = limits or GENEROUS
        self._key = X25519PrivateKey.generate()
        self._open(None)

    def _open(self, node: PaymentNodeOfLandlord | None) -> None:
        self.face, self.grpc = HttpsFace(self.folder, self._limits), GrpcFace(self.folder, self._limits)
        faces = (self.face, self.grpc, MeshFace(self.folder, self._limits))
        self.landlord = self.do(lambda: LandlordWithFaces(self.folder, self.terms, faces, self._key, node))
        self.run(self.outside.apply(self.terms))

    def restart(self) -> None:
        """Kill the daemon and start it again."""
        node = self.landlord.node
        self._close()
        self._open(node)

    def do(self, deed: Callable[[], T]) -> T:
        """Run a function in the landlord's loop."""

        async def there() -> T:
            return deed()

        return self.run(there())

    def run(self, deed: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the landlord's loop."""
        return asyncio.run_coroutine_threadsafe(deed, self._loop).result(60)

    @property
    def port(self) -> int:
        return self.terms.https[0][1]

    @property
    def outside(self) -> outside.Landlord:
        assert self.landlord.outside is not None
        return self.landlord.outside

    @property
    def identity(self) -> bytes:
        """The landlord's key, as its tenants trust it."""
        found = identity.load(self.folder)
        assert found is not None
        return identity.public_key(found)

    def session(self, pin: str = "") -> Session:
        return Session("127.0.0.1", self.port, pin)

    def tenant(self) -> Tenant:
        return HeldToTheRules(self.session())

    def pay(self, invoice: str) -> bool:
        return self.do(lambda: self.landlord.pay(invoice))

    def pass_time(self, seconds: float) -> None:
        self.do(lambda: self.landlord.at(seconds))

    def _close(self) -> None:
        for face in (self.face, self.grpc):
            self.run(face.close())
        self.do(self.landlord.close)

    def close(self) -> None:
        self._close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def terms_of_shop(*offers: Any, **changes: Any) -> LettingSettings:
    """Return the shipped terms, sold over HTTPS on a free port."""
    return replace(letting(*offers), https=(("127.0.0.1", free_ports(1)[0]),), tunnel=TUNNEL, **changes)


def terms_by_grpc(*offers: Any) -> LettingSettings:
    """Return the same terms, sold over gRPC too."""
    return terms_of_shop(*offers, grpc=(("127.0.0.1", free_ports(1)[0]),))
