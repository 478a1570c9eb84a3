"""Scenarios: what happens to a mesh. All have the same parts; a scenario is a set of values for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core_tests.simulate.flows import AGAIN_AFTER_S, Flow, Traffic
from core_tests.simulate.graph import Graph
from core_tests.simulate.lies import Lie
from core_tests.simulate.mesh import Mesh, MeshNode
from ngp import config
from ngp.core.settings import Settings

NET_CONF = "MESH_INTERFACES: mesh0\n"
"""What an operator must write; all else is as shipped."""
SETTLED_WITHIN_S = 90.0  # after the last flow, for payments, bills and messages on their way
MOST_PINGS = 2_000
PING_AGAIN_S = 1.0
ROUTES_MOVE_S = 5.0  # from a node's end or start until the routing daemons have found other ways
Progress = Callable[[Mesh, Traffic], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Values that make a run.

    Attributes:
        about: one line for the help. time_s: mesh time with traffic.
        flows_an_hour: how many each node begins, with a random other node. flow_bytes: of each, both directions.
        pings: instead of flows, each pair (of at most MOST_PINGS) is pinged every second until it has answered.
        liars: share of nodes that lie, each kind of lie in turn.
        outages_an_hour: how often each node is switched off, for `outage_s`.
        channel_msat: size of the channels between neighbours' payment nodes; None: payments aren't bounded.
    """

    about: str
    time_s: float = 600.0
    flows_an_hour: float = 12.0
    flow_bytes: int = 1_000_000
    pings: bool = False
    liars: float = 0.0
    outages_an_hour: float = 0.0
    outage_s: float = 120.0
    channel_msat: int | None = None


SCENARIOS = {
    "cold-start": Scenario("all nodes start at once; how long until 99 % of the pairs are served", 120.0, pings=True),
    "traffic": Scenario("random pairs exchange 1 MB each: latency, share served, settlement, cost of the run"),
    "liars": Scenario("the same with 10 % liars (--liars): what honest nodes earn and lose", liars=0.10),
    "churn": Scenario("the same while each node is off for 2 minutes, four times an hour", outages_an_hour=4.0),
    "liquidity": Scenario(
        "five times as much over channels of 300 sat, which run dry and are refilled", flows_an_hour=60.0,
        channel_msat=300_000,
    ),
}


def shipped_settings() -> Settings:
    """Return the settings that ngp has as shipped."""
    return config.parse(NET_CONF, Path("/etc/ngp/net.conf"))


@dataclass(slots=True)
class Run:
    """A scenario that was run: the mesh after it, its flows, and the time that it went on after the scenario's own."""

    scenario: Scenario
    mesh: Mesh
    traffic: Traffic


def run(scenario: Scenario, graph: Graph, seed: int, progress: Progress = lambda mesh, traffic: None) -> Run:
    """Run a scenario on a graph, until all is settled.

    Args: seed: the same one gives the same result. progress: is called about once in a mesh second.
    """
    chance = random.Random(seed)
    mesh = Mesh(graph, shipped_settings(), seed, scenario.channel_msat, restarts=scenario.outages_an_hour > 0)
    traffic = Traffic(mesh)
    _choose_liars(mesh, scenario.liars, chance)
    mesh.switch_on()
    if scenario.pings:
        _plan_pings(mesh, traffic, chance)
    else:
        _plan_flows(mesh, traffic, scenario, chance)
    _plan_outages(mesh, scenario, chance)

    def tell(elapsed_s: float) -> None:
        progress(mesh, traffic)

    mesh.run(scenario.time_s, tell)
    mesh.run(SETTLED_WITHIN_S, tell)
    mesh.stop()
    return Run(scenario, mesh, traffic)


def _choose_liars(mesh: Mesh, share: float, chance: random.Random) -> None:
    kinds = list(Lie)
    for position, node in enumerate(chance.sample(mesh.nodes, round(len(mesh.nodes) * share))):
        node.lie = kinds[position % len(kinds)]


def _pair(parts: list[list[int]], weights: list[int], chance: random.Random) -> tuple[int, int]:
    """Return two nodes of one connected part, each node as likely as any other."""
    source, target = chance.sample(chance.choices(parts, weights)[0], 2)
    return source, target


def _plan_pings(mesh: Mesh, traffic: Traffic, chance: random.Random) -> None:
    parts = [part for part in mesh.graph.parts() if len(part) > 1]
    weights = [len(part) for part in parts]
    if sum(size * (size - 1) for size in weights) <= MOST_PINGS:
        pairs = [(one, other) for part in parts for one in part for other in part if one != other]
    else:
        pairs = [_pair(parts, weights, chance) for _ in range(MOST_PINGS)]
    for source, target in pairs:
        _later(mesh, traffic, mesh.nodes[source], mesh.nodes[target], 0, 0.0)


def _plan_flows(mesh: Mesh, traffic: Traffic, scenario: Scenario, chance: random.Random) -> None:
    """Plan the flows of the graph's file, or random ones; the first nodes are on by then."""
    if mesh.graph.flows is not None:
        wanted = [(one.source, one.target, one.size_bytes) for one in mesh.graph.flows]
    else:
        parts = [part for part in mesh.graph.parts() if len(part) > 1]
        weights = [len(part) for part in parts]
        number = max(1, round(sum(weights) * scenario.flows_an_hour * scenario.time_s / 3600))
        wanted = [(*_pair(parts, weights, chance), scenario.flow_bytes) for _ in range(number)]
    for source, target, size_bytes in wanted:
        starts_s = chance.uniform(0.0, scenario.time_s * 0.9)
        _later(mesh, traffic, mesh.nodes[source], mesh.nodes[target], size_bytes, starts_s)


def _later(
    mesh: Mesh, traffic: Traffic, source: MeshNode, target: MeshNode, size_bytes: int, starts_s: float
) -> None:
    pauses = AGAIN_AFTER_S if size_bytes else (PING_AGAIN_S,) * 120
    mesh.at(mesh.now + starts_s, lambda: traffic.begin(Flow(source, target, size_bytes), pauses))


def _plan_outages(mesh: Mesh, scenario: Scenario, chance: random.Random) -> None:
    """Plan when nodes are off; all of them are on again at the end."""
    number = round(len(mesh.nodes) * scenario.outages_an_hour * scenario.time_s / 3600)
    latest = scenario.time_s - scenario.outage_s - ROUTES_MOVE_S
    off: set[int] = set()

    def routes_move() -> None:
        mesh.routes.changed(off)

    def end(node: MeshNode) -> None:
        if node.awake:
            mesh.switch_off(node)
            off.add(node.number)
            mesh.at(mesh.now + ROUTES_MOVE_S, routes_move)
            mesh.at(mesh.now + scenario.outage_s, lambda: begin(node))

    def begin(node: MeshNode) -> None:
        mesh.switch_on_again(node)
        off.discard(node.number)
        mesh.at(mesh.now + ROUTES_MOVE_S, routes_move)

    for node in chance.choices(mesh.nodes, k=number):
        mesh.at(mesh.now + chance.uniform(10.0, max(10.0, latest)), lambda node=node: end(node))  # type: ignore[misc]
