"""Shares: what one client leaves unused keeps neither others nor us from buying at a server."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from mesh import PLENTY, Mesh
from playbook import settings
from test_endings import buys

from ngp.core import events as ev
from ngp.core import openings
from ngp.core.buying.purchase import Purchase
from ngp.core.kernel import HeldPacket
from ngp.core.messages import Ask, Reject, RejectReason, Role
from ngp.core.openings import Openings, pools_of, share_of


def packets(mesh: Mesh, client: str, server: str, numbers: range) -> None:
    """Let a client, which doesn't count what it opens, send to many destinations."""
    at = mesh[server]
    for number in numbers:
        mesh[client].world.openings = Openings()
        at.step(HeldPacket(1 << 20 | number, at.link(client), ip_address(0x0B000000 + number), at.onward))
        mesh.settle()


def trade(mesh: Mesh, client: str, server: str) -> None:
    """Let money have passed between two nodes."""
    mesh[client].world.server(mesh[server].identity).paid_msat = 1_000_000
    mesh[server].world.client(mesh[client].identity).paid_msat = 1_000_000


def purchases(mesh: Mesh, name: str) -> list[Purchase]:
    return [one for one in mesh[name].world.contracts.values() if isinstance(one, Purchase) and one.running]


def with_clients(names: str, clients: str, **confs: object) -> Mesh:
    """Return a line in which all trade, with clients of its first node."""
    mesh = Mesh(names, **confs)  # type: ignore[arg-type]
    for near, far in zip(names, names[1:], strict=False):
        trade(mesh, near, far)
    for name in clients:
        mesh.add(name, names[0])
        mesh[name].route = names[0]
        trade(mesh, name, names[0])
    return mesh


def level(mesh: Mesh) -> float:
    """Return the count of what b leaves unused at c."""
    (pool,) = pools_of(Role.CLIENT, mesh["c"].identity, mesh["b"].link("c"), trades=True)
    return mesh["b"].world.openings.level(pool, mesh.now.monotonic_s)


def told(mesh: Mesh, whom: str) -> int:
    """Return how often b's log says that nothing is bought at c for a client any more."""
    return sum(f"none is bought there for {whom}" in line for line in mesh["b"].logged)


def test_clients_that_never_paid_and_use_nothing_do_not_keep_one_that_paid_from_buying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What we buy for them and nobody uses counts against our server, and there against us."""
    monkeypatch.setattr(openings, "MOST_OF_TRADER", most := 40)
    mesh = with_clients("bc", "vwxyz")
    b = mesh["b"]
    for name in "vwxy":
        b.world.client(mesh[name].identity).paid_msat = 0
    for number in range(2 * most):
        packets(mesh, "vwxy"[number % 4], "b", range(number, number + 1))
    assert len(purchases(mesh, "b")) == most // openings.SHARES
    sale = b.world.sold_to(mesh["v"].identity)[0]
    renewal = Ask(sale.destination.prefix, 2 * sale.data_limit_bytes, 3600, sale.id)
    b.step(ev.MessageReceived(sale.identity, sale.link, 1, renewal, 1 << 40))
    assert b.said[-1] == Reject(sale.id, RejectReason.UPSTREAM), "nor is it renewed there for them"
    assert told(mesh, "clients that never paid") == 1
    mesh.packet("z", "b")
    assert b.sale("z").running and b.purchase("c").running


@pytest.mark.parametrize("paid", [True, False])
def test_one_client_that_uses_nothing_does_not_keep_others_or_us_from_buying(
    paid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that paid one sat may leave as many contracts unused as we may leave at our server."""
    monkeypatch.setattr(openings, "MOST_OF_TRADER", most := 40)
    mesh = with_clients("bc", "xz")
    b = mesh["b"]
    for name, paid_msat in (("x", 1_000 * paid), ("z", 1_000)):
        b.world.client(mesh[name].identity).paid_msat = paid_msat
    packets(mesh, "x", "b", range(2 * most))
    assert len(purchases(mesh, "b")) == most // openings.SHARES
    assert told(mesh, f"client {mesh['x'].identity.hex()[:8]}" if paid else "clients that never paid") == 1
    mesh.packet("z", "b")
    assert b.sale("z").running and b.purchase("c").running


@pytest.mark.parametrize("names", ["abc", "abcd"])
def test_a_client_does_not_keep_others_from_buying_several_hops_away(
    names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openings, "MOST_OF_TRADER", most := 64)
    mesh = with_clients(names, "xz")
    packets(mesh, "x", "a", range(2 * most))
    mesh.packet("z", "a")
    assert mesh["a"].sale("z").running
    assert all(buys(mesh, near, far) for near, far in zip(names, names[1:], strict=False))


def test_a_client_that_uses_almost_nothing_of_what_is_renewed_for_it_does_not_keep_others_from_buying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openings, "MOST_OF_TRADER", most := 80)
    brief = settings(**PLENTY, contract_time_s=60)
    mesh = with_clients("bc", "xz", b=brief, c=brief)
    levels = []
    for number in range(60):
        packets(mesh, "x", "b", range(number, number + 1))
        for name in "xbc":  # what was used isn't counted any more
            for one in list(mesh[name].world.contracts)[-2:]:
                mesh.count(name, one, 100)
    for _ in range(30):
        for name in "xbc":
            for one in list(mesh[name].world.contracts):
                mesh.count(name, one, 100)
        mesh.wait(10)
        levels.append(level(mesh))
    assert 1 < max(levels) <= most // openings.SHARES
    mesh.packet("z", "b")
    assert mesh["b"].sale("z").running and buys(mesh, "b", "c")


def test_renewals_that_are_asked_for_at_once_exceed_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet that x doesn't take comes by each of its purchases: each is renewed to have room for it."""
    monkeypatch.setattr(openings, "MOST_OF_TRADER", most := 40)
    mesh, readings = with_clients("bc", "xz"), []
    at = mesh["b"]
    for number in range(4 * most):
        packets(mesh, "x", "b", range(number, number + 1))
        for name in "xbc":  # what was used isn't counted any more
            latest = list(mesh[name].world.contracts)[-2:]
            mesh[name].counts.update({one: [60, 0] for one in latest})
            mesh[name].step(ev.UsageRead(tuple(map(mesh[name].reading, latest))))
        mesh.settle()
    for one in purchases(mesh, "b"):
        at.counts[one.id][1] += 60
        readings.append(at.reading(one.id))
    assert len(readings) > 2 * most
    at.step(ev.UsageRead(tuple(readings)))
    mesh.settle()
    assert 1 < level(mesh) <= most // openings.SHARES
    mesh.packet("z", "b")
    assert at.sale("z").running and buys(mesh, "b", "c")


def test_a_clients_share_is_the_same_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "MOST_OF_TRADER", most := 40)
    mesh = with_clients("bc", "x")
    at = mesh["b"]
    for start in range(0, 8 * most, 2 * most):
        packets(mesh, "x", "b", range(start, start + 2 * most))
        assert len(purchases(mesh, "b")) <= most // openings.SHARES + 1
        at.save(at.world.client(mesh["x"].identity), at.world.server(mesh["c"].identity))
        at.reboot()
        for name in "xc":
            mesh.introduce("b", name)
        mesh.settle()
        mesh.wait(1)


def test_a_client_and_all_that_never_paid_together_leave_half_of_a_servers_count_for_ever() -> None:
    counts, (pool,) = Openings(), pools_of(Role.CLIENT, b"S", ("eth1", b"s"), True)
    shares = [share_of(pool, b"x"), share_of(pool, b"")]
    for now in range(4 * 3600):
        for share in shares:
            while counts.full((pool, share), float(now)) is None:
                counts.count((pool, share), float(now))
    assert counts.level(pool, 4 * 3600.0) <= pool.most // 2


def test_all_that_a_client_leaves_unused_at_any_distance_is_a_quarter() -> None:
    counts, (pool,) = Openings(), pools_of(Role.CLIENT, b"S", ("eth1", b"s"), True)
    pools, opened = (pool, share_of(pool, b"x")), []
    for sellers in (3, 2, 1, 2, 3):
        while counts.full(pools, 0.0, sellers) is None:
            counts.count(pools, 0.0)
        opened.append(counts.level(pool, 0.0))
    assert opened == [pool.most / 16, pool.most / 8, pool.most / 4, pool.most / 4, pool.most / 4]
