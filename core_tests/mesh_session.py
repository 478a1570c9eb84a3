"""A session of CORE from a graph: each node is a router with ngp as shipped, each link a cable; a daemon finds routes.

    python -m core_tests.mesh_session FILE.json babeld --nodes 12 --around 20 > core_tests/scenarios/NAME.xml

The same graph gives the same file. Each link has a cost of its own, so that only one way between two nodes is the
cheapest: answers come back the way that the questions went, and routes don't depend on which daemon spoke first. What
the traffic there must come to is in `core_tests/mesh_traffic.py`.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from core_tests.simulate.graph import Graph, read_graph
from ngp.errors import NgpError

CANVAS_PX = 900, 650
EDGE_PX = 40
AXES = 0, 1
ROUNDS = 300
COST, MOST_MORE = 3000, 350
Positions = list[tuple[float, float]]


def session(graph: Graph, name: str, routing: str) -> Iterator[str]:
    """Yield the lines of a session's file. Args: routing: a service that has a configuration here."""
    links = [(one, other) for one, edges in enumerate(graph.edges) for other in sorted(edges) if one < other]
    cables = [
        {node: f"10.64.{number}.{host}" for host, node in enumerate(ends, 1)} for number, ends in enumerate(links, 1)
    ]
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield f'<scenario name="{name}">'
    yield "  <networks/>"
    yield "  <devices>"
    for node, place in enumerate(arrange(graph)):
        yield from _device(node, place, routing)
    yield "  </devices>"
    yield "  <links>"
    yield from _links(cables)
    yield "  </links>"
    yield "  <service_configurations>"
    for node in range(graph.nodes):
        address = next((addresses[node] for addresses in cables if node in addresses), "")
        yield from _service(node, routing, ROUTING[routing](graph, node, address))
        yield from _service(node, "ngp", {"net.conf": [f'MESH_INTERFACES: "{towards("*")}"']})
    yield "  </service_configurations>"
    yield "</scenario>"


def _device(node: int, place: tuple[float, float], routing: str) -> Iterator[str]:
    x, y = place
    yield f'    <device id="{node + 1}" name="{named(node)}" type="router" class="" image="">'
    yield f'      <position x="{x:.1f}" y="{y:.1f}"/>'
    services = "".join(f'<service name="{each}"/>' for each in ("IPForward", routing, "ngp"))
    yield f"      <services>{services}</services>"
    yield "    </device>"


def _links(cables: Sequence[Mapping[int, str]]) -> Iterator[str]:
    """Yield the links. Args: cables: of each, the addresses of the two nodes there."""
    ports: Counter[int] = Counter()
    for addresses in cables:
        one, other = addresses
        yield f'    <link node1="{one + 1}" node2="{other + 1}">'
        for host, (near, far) in enumerate(((one, other), (other, one)), 1):
            own = f'id="{ports[near]}" name="{towards(far)}" ip4="{addresses[near]}" ip4_mask="24"'
            yield f"      <iface{host} {own}/>"
            ports[near] += 1
        yield "    </link>"


def named(node: int) -> str:
    """Return the name of a node's device."""
    return f"n{node:02}"


def towards(node: int | str) -> str:
    """Return the name that the interface to a node has at each of its neighbours."""
    return f"to{node:02}" if isinstance(node, int) else f"to{node}"


def cost(one: str, other: str) -> int:
    """Return what the link between two nodes costs, in both directions: COST, and up to MOST_MORE of its own.

    So of two ways of up to COST / MOST_MORE links the one with fewer links is cheaper, and among those with as many one
    is the cheapest; that there is only one, a test asserts of the graphs that we have. Babel has room for 19 links.
    Args: names of the nodes.
    """
    return COST + zlib.crc32("-".join(sorted((one, other))).encode()) % MOST_MORE


def _costs(graph: Graph, node: int) -> Iterator[tuple[str, int]]:
    """Yield the interfaces of a node with the costs of their links."""
    return ((towards(other), cost(named(node), named(other))) for other in sorted(graph.edges[node]))


def _babeld(graph: Graph, node: int, _address: str) -> dict[str, list[str]]:
    return {"babeld.conf": [f"interface {name} type wired rxcost {much}" for name, much in _costs(graph, node)]}


def _bird(graph: Graph, node: int, address: str) -> dict[str, list[str]]:
    """Announce the node's first address by itself, as babeld does with all: its neighbours sell it at no cost."""
    lines = [
        f"router id 10.64.0.{node + 1};",
        "protocol device {}",
        "protocol kernel { ipv4 { export where source = RTS_OSPF; }; }",
        "protocol ospf v2 mesh {",
        "  ipv4 { export none; };",
        "  area 0 {",
        f"    stubnet {address}/32;",
        *(
            f'    interface "{name}" {{ type ptp; cost {much}; hello 2; dead count 10; }};'
            for name, much in _costs(graph, node)
        ),
        "  };",
        "}",
    ]
    return {"bird.conf": lines}


ROUTING = {"babeld": _babeld, "bird": _bird}


def _service(node: int, name: str, files: Mapping[str, Iterable[str]]) -> Iterator[str]:
    yield f'    <service name="{name}" node="{node + 1}">'
    for file, lines in files.items():
        yield f'      <templates><template name="{file}"><![CDATA['
        yield from (f"        {line}" for line in lines)
        yield "      ]]></template></templates>"
    yield "    </service>"


def arrange(graph: Graph) -> Positions:
    """Place the nodes on the canvas: links pull their ends together, and all nodes push each other away.

    (T. Fruchterman and E. Reingold, 1991.) Only what each machine computes alike is used: sums, products, roots.
    """
    chance = random.Random(1)
    places = [[chance.random(), chance.random()] for _ in range(graph.nodes)]
    usual = math.sqrt(1 / graph.nodes)
    for round_ in range(ROUNDS):
        moves = [[0.0, 0.0] for _ in range(graph.nodes)]
        for one, other in combinations(range(graph.nodes), 2):
            apart = [places[one][axis] - places[other][axis] for axis in AXES]
            far = _length(apart)
            force = usual * usual / far - (far * far / usual if other in graph.edges[one] else 0.0)
            for axis in AXES:
                moves[one][axis] += apart[axis] / far * force
                moves[other][axis] -= apart[axis] / far * force
        most = 0.1 * (1 - round_ / ROUNDS)
        for node, move in enumerate(moves):
            far = _length(move)
            for axis in AXES:
                places[node][axis] += move[axis] / far * min(far, most)
    x, y = (_stretched([place[axis] for place in places], CANVAS_PX[axis]) for axis in AXES)
    return list(zip(x, y, strict=True))


def _length(move: list[float]) -> float:
    return max(1e-6, math.sqrt(sum(part * part for part in move)))


def _stretched(values: list[float], size_px: int) -> list[float]:
    """Spread values over one side of the canvas."""
    least, most = min(values), max(values)
    return [float(round(EDGE_PX + (one - least) / (most - least) * (size_px - 2 * EDGE_PX))) for one in values]


def main(words: list[str]) -> int:
    """Write a session's file to the output; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m core_tests.mesh_session", description=__doc__)
    parser.add_argument("graph", type=Path, metavar="FILE", help="a graph as JSON, as for tools/simulate")
    parser.add_argument("routing", choices=ROUTING, help="the routing daemon")
    parser.add_argument("--nodes", type=int, metavar="N", help="only so many, those nearest to --around")
    parser.add_argument("--around", type=int, metavar="NODE", help="the node in the middle of these (the busiest one)")
    parser.add_argument("--name", default="mesh", help="the session's name (mesh)")
    chosen = parser.parse_args(words)
    try:
        graph = read_graph(chosen.graph)
        if chosen.nodes is not None:
            graph = graph.cut(chosen.nodes, chosen.around)
    except NgpError as error:
        parser.error(str(error))
    print("\n".join(session(graph, chosen.name, chosen.routing)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
