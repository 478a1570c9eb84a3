"""A tenant whose traffic is metered gets its networks in the tunnel only while the kernel has its contracts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest
from broken_node import broken_node
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from let import letting
from shop import TUNNEL, TunnelOnPaper

from ngp.core.events import Event
from ngp.core.rental.effects import SetTunnelPeer
from ngp.core.rental.events import TunnelPeerSet, TunnelPeerUnmetered
from ngp.core.rental.tunnel import TunnelPeer
from ngp.daemon import landlord as outside
from ngp.daemon import offline
from ngp.errors import KernelError
from ngp.ports.network import KernelState

V4, V6 = b"4" * 16, b"6" * 16
NETWORKS = (ip_network("203.0.113.1/32"), ip_network("2001:db8::/64"))
METERED = TunnelPeer(b"m" * 32, NETWORKS, None, (V4, V6))
BY_TIME = TunnelPeer(b"t" * 32, (ip_network("203.0.113.2/32"),))
TERMS = replace(letting(), tunnel=TUNNEL)


class Landlord:
    """The outside of letting, with a kernel that has some contracts."""

    def __init__(self, *wanted: TunnelPeer) -> None:
        self.granted: set[bytes] = set()
        self.events: list[Event] = []
        self.tunnel = TunnelOnPaper()
        unused: Any = SimpleNamespace(changed=lambda: None)
        key = X25519PrivateKey.generate()
        self.outside = outside.Landlord(
            self.tunnel, [], unused, key, lambda: wanted, self.granted.issuperset, self.events.append
        )
        asyncio.run(self.outside.apply(TERMS))

    def networks(self, peer: TunnelPeer) -> tuple[Any, ...]:
        return self.tunnel.peers[peer.wireguard_key].networks


@pytest.mark.parametrize("lacking", [{V4}, {V6}, {V4, V6}])
def test_without_all_of_its_contracts_it_gets_no_networks_and_the_core_is_told(lacking: set[bytes]) -> None:
    landlord = Landlord()
    landlord.granted |= {V4, V6} - lacking
    landlord.outside.carry_out([SetTunnelPeer(METERED), SetTunnelPeer(BY_TIME)])
    assert landlord.networks(METERED) == () and landlord.networks(BY_TIME) == BY_TIME.networks
    assert landlord.events == [TunnelPeerUnmetered(METERED.wireguard_key)]
    landlord.granted |= lacking
    landlord.outside.carry_out([SetTunnelPeer(METERED)])
    assert landlord.networks(METERED) == NETWORKS and len(landlord.events) == 1


def test_networks_that_it_has_go_when_a_contract_is_refused() -> None:
    """A tenant that paid by time alone gets a price with a payment."""
    landlord = Landlord()
    landlord.outside.carry_out([SetTunnelPeer(replace(METERED, contracts=()))])
    assert landlord.networks(METERED) == NETWORKS
    landlord.outside.carry_out([SetTunnelPeer(METERED)])
    assert landlord.networks(METERED) == ()


def test_the_same_holds_at_a_start_and_when_the_tunnel_is_made_anew() -> None:
    landlord = Landlord(METERED, BY_TIME)
    assert landlord.networks(METERED) == () and landlord.networks(BY_TIME) == BY_TIME.networks
    assert landlord.events == [TunnelPeerUnmetered(METERED.wireguard_key)]
    landlord.tunnel.stands = lambda: False  # type: ignore[method-assign]
    landlord.outside.catch_up()
    assert landlord.networks(METERED) == ()
    landlord.granted |= {V4, V6}
    landlord.outside.catch_up()
    assert landlord.networks(METERED) == NETWORKS


def test_a_payment_that_waits_for_the_tunnel_goes_back() -> None:
    landlord = Landlord()
    landlord.outside.carry_out([SetTunnelPeer(METERED, b"h" * 32)])
    assert landlord.events == [TunnelPeerSet(b"h" * 32, "the kernel refused to meter it")]
    assert METERED.wireguard_key not in landlord.tunnel.peers


@pytest.mark.parametrize(("former", "meter", "goes"), [(None, False, True), (3, True, True), (None, True, False)])
def test_a_start_removes_a_tunnel_that_nothing_meters_before_it_sets_up_the_gate(
    monkeypatch: pytest.MonkeyPatch, former: int | None, meter: bool, goes: bool
) -> None:
    """A killed daemon left it, and its meter is gone or of another version."""
    done: list[str] = []

    def set_up(_desired: object) -> None:
        done.append("gate")
        raise KernelError("no further")

    node = broken_node(monkeypatch)
    node.parts.network.set_up = set_up  # type: ignore[method-assign, assignment]
    node.parts.network.kernel_state = lambda: KernelState(meter, False, False, False)  # type: ignore[method-assign]
    monkeypatch.setattr("ngp.daemon.node.charge_former", lambda *_: former)
    tunnel = SimpleNamespace(clean_up=lambda: done.append("tunnel"))
    node._make_landlord = lambda _node: SimpleNamespace(tunnel=tunnel)  # type: ignore[assignment, return-value]
    node.settings = replace(node.settings, letting=TERMS)
    for price, state, is_metered in ((5, "active", True), (0, "active", False), (5, "released", False)):
        done.clear()
        rental = SimpleNamespace(price_msat_per_gib=price, state=state)
        node.parts.ledger.rentals = lambda rental=rental: [(rental, None)]  # type: ignore
        with pytest.raises(KernelError, match="no further"):
            asyncio.run(node.start())
        assert done == (["tunnel", "gate"] if goes and is_metered else ["gate"]), "rent alone: undisturbed"


def test_after_a_kill_a_stop_removes_the_tunnel_first(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    network = SimpleNamespace(clean_up=lambda _closed: done.append("gate"))
    monkeypatch.setattr(offline.main, "make_network", lambda *_: network)
    monkeypatch.setattr(offline.main, "remove_tunnel", lambda: done.append("tunnel"))
    monkeypatch.setattr(offline.last_books, "charge", lambda *_: done.append("charge"))
    offline.clean_up(tmp_path, None)
    assert done == ["tunnel", "charge", "gate"]
