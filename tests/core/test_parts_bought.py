"""Parts bought: a network, and a part of it, are bought by themselves, so there are two purchases for one packet."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from mesh import MB, PLENTY, Mesh, asks
from playbook import settings

from ngp.core import events as ev
from ngp.core.buying.purchase import Purchase
from ngp.core.kernel import HeldPacket, Hint, HintKind
from ngp.core.messages import Ask, Prefix
from ngp.core.selling.sale import Sale
from ngp.core.settings import Settings

NETWORK, FIRST, HALF = (ip_network(f"198.51.100.0/{bits}") for bits in (24, 32, 25))
GRACE = 256 << 10
STRICT = settings(**{**PLENTY, "grace_data_bytes": GRACE, "grace_time_s": 10})


def star(d_asks: int, **confs: Settings) -> Mesh:
    """Return a mesh in which b's route for a network leads to c; d sells to b, too, and a and z are b's clients."""
    mesh = Mesh("abc", **confs)
    for name in "dz":
        mesh.add(name, "b")
    mesh["d"].step(ev.SettingsChanged(asks(d_asks)))
    mesh["z"].route = "b"
    mesh["b"].prefix = NETWORK
    return mesh


def ask(mesh: Mesh, client: str, prefix: Prefix) -> None:
    """Let a client ask b for exactly this prefix."""
    b = mesh["b"]
    question = Ask(prefix, 0, 0)
    number = (1 << 41) + len(b.said)
    b.step(ev.MessageReceived(mesh[client].identity, b.link(client), 1, question, number, onward=b.onward))
    mesh.settle()


def send(mesh: Mesh, client: str, address: str) -> None:
    """Let b hold a packet of a client."""
    b = mesh["b"]
    b.step(HeldPacket(len(b.said) + 10, b.link(client), ip_address(address), b.onward))
    mesh.settle()


def sold(mesh: Mesh, client: str, prefix: Prefix = NETWORK) -> Sale:
    found = mesh["b"].world.sales.exact(mesh[client].identity, prefix)
    assert found is not None
    return found


def bought(mesh: Mesh, server: str, prefix: Prefix) -> Purchase:
    found = mesh["b"].world.purchases.exact(mesh[server].identity, prefix)
    assert found is not None and found.running
    return found


@pytest.mark.parametrize("part", [None, FIRST, HALF])
def test_a_stream_for_a_client_without_money_ends_whatever_is_bought_within_its_network(part: Prefix | None) -> None:
    mesh = star(4, b=STRICT)
    b, a = mesh["b"], mesh["a"]
    for name in "az":
        b.world.client(mesh[name].identity).paid_msat = 1000
    if part is not None:
        ask(mesh, "z", part)
    send(mesh, "a", "198.51.100.7")
    sale, account = sold(mesh, "a"), b.world.clients[a.identity]
    whole = b.world.running_purchase(sale.rests_on)
    assert whole is not None and whole.destination.prefix == NETWORK
    while account.balance_msat > -1270:
        mesh.count("b", whole.id, 2048)
        mesh.count("b", sale.id, 2048)
    for _ in range(10):
        b.counts.setdefault(whole.id, [0, 0])[1] += MB
        b.step(ev.UsageRead((b.reading(whole.id),)))
        b.step(ev.Hinted((Hint(HintKind.ACCOUNT_EXHAUSTED, a.identity),)))
        mesh.wait(1)
        if not whole.running:
            break
    assert not whole.running and not sale.running and whole.used_from_bytes <= 3 * MB


@pytest.mark.parametrize("part", [None, FIRST])
@pytest.mark.parametrize("d_asks", [4, 20])
def test_a_contract_for_a_network_ends_when_a_dearer_part_is_bought_elsewhere(part: Prefix | None, d_asks: int) -> None:
    """Also if its client has bought the network's first address, too."""
    mesh = star(d_asks)
    send(mesh, "a", "198.51.100.7")
    if part is not None:
        ask(mesh, "a", part)
    sale = sold(mesh, "a")
    mesh["b"].prefix, mesh["b"].route = HALF, "d"
    send(mesh, "z", "198.51.100.9")
    assert bought(mesh, "d", HALF) and sale.running == (d_asks == 4)
