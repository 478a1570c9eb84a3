"""Calls about renting: the core hands them over, without a rule about their content, and writes nothing for them."""

from __future__ import annotations

import pytest
from playbook import Sim
from scripted_neighbour import ScriptedNeighbour

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.messages import Answer, Call

CALL, ANSWER = Call(1, 0, 1, b"?"), Answer(1, 0, 1, b"!")


@pytest.mark.parametrize("message", [CALL, ANSWER])
def test_it_is_handed_over_and_acknowledged_and_leaves_nothing(message: Call | Answer) -> None:
    sim = Sim()
    neighbour = ScriptedNeighbour(sim, sim.gateway)
    accounts = dict(sim.gateway.world.clients)
    handed = fx.HandOver(neighbour.identity, neighbour.link, message)
    assert neighbour.say(message) == [handed, fx.Acknowledge(neighbour.identity, 1 << 33)]
    assert sim.gateway.world.clients == accounts


def test_of_a_neighbour_that_said_no_hello_nothing_is_handed_over() -> None:
    sim = Sim()
    link = ("eth1", b"\2ssss\1")
    effects = sim.gateway.gatekeeper.step(ev.MessageReceived(b"S" * 32, link, 1, CALL, 1 << 33), sim.clock())
    assert effects == [fx.Greet("eth1", b"S" * 32, link)]
