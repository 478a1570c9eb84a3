"""UNPAID_RATE: a packet for which nobody pays goes back to the kernel, which slows it, where it needn't be bought."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from mesh import HOST, Mesh
from playbook import MSAT_PER_KB, settings

from ngp.core import events as ev
from ngp.core.contract import State
from ngp.core.kernel import HeldPacket, Verdict

SLOWED = {"grace_data_bytes": 1 << 30, "grace_time_s": 3600, "unpaid_bytes_s": 1000}
POOR = settings(buy_msat_per_gib=0, buy_max_msat_per_gib=MSAT_PER_KB)


@pytest.mark.parametrize(("rate", "verdict"), [(1000, Verdict.REPEAT), (0, Verdict.PROHIBIT)])
def test_packets_of_a_client_that_declines_go_back_while_its_refusal_stands(rate: int, verdict: Verdict) -> None:
    mesh = Mesh("ab", a=POOR, b=settings(**{**SLOWED, "unpaid_bytes_s": rate}))
    mesh.packet("a", "b")
    assert mesh["b"].verdicts == [verdict]
    assert mesh["b"].sale("a").state is State.REJECTED


def test_what_would_go_on_to_another_neighbour_is_refused_as_ever() -> None:
    mesh = Mesh("abc", a=POOR, b=settings(**SLOWED, buy_max_msat_per_gib=1 << 40))
    mesh.packet("a", "b")
    assert mesh["b"].verdicts == [Verdict.PROHIBIT]


def test_a_blocked_neighbour_is_refused_as_ever_and_one_that_does_not_buy_is_slowed() -> None:
    mesh = Mesh("ab", b=settings(**SLOWED))
    mesh["b"].step(ev.BlockNeighbour(mesh["a"].identity, True))
    mesh.packet("a", "b")
    assert mesh["b"].verdicts == [Verdict.PROHIBIT]
    mesh = Mesh("ab", a=settings(buys=False), b=settings(**SLOWED))
    mesh.packet("a", "b")
    assert mesh["b"].verdicts == [Verdict.REPEAT]


@pytest.mark.parametrize(("rate", "verdict"), [(1000, Verdict.REPEAT), (0, Verdict.DROP)])
def test_a_strangers_packet_goes_back_when_no_hello_came(rate: int, verdict: Verdict) -> None:
    mesh = Mesh("b", b=settings(**{**SLOWED, "unpaid_bytes_s": rate}))
    mesh["b"].step(HeldPacket(1, ("mesh0", b"\x02stran"), ip_address(HOST)))
    assert mesh["b"].verdicts == []
    mesh.wait(3.1)
    assert mesh["b"].verdicts == [verdict]
