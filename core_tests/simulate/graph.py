"""Graph: which nodes have a link, how good it is, and the routes that a link-state routing daemon would choose.

A file is JSON: `nodes` is their number (0 to nodes - 1); each of `links` is [node, node, quality there, quality back,
kind], with qualities from 0 to 1, the share of broadcast frames that arrive. Optional `flows` are [from, to, bytes].
A map that lacks a report of one direction has 0 there: that direction is taken to be as good as the other one. A link
with two zeros carries nothing: there is none.
"""

from __future__ import annotations

import heapq
import json
import math
from array import array
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ngp.errors import ExitCode, NgpError

MOST_NODES = 100_000
UNICAST_TRIES = 8
"""IEEE 802.11 sends a unicast frame again up to seven times until it is acknowledged; a broadcast is sent once."""
BASE_DELAY_S = {"wifi": 0.002, "vpn": 0.010, "other": 0.001}
NOWHERE = -1
Name = TypeVar("Name", bound=Hashable)


class GraphError(NgpError):
    """A graph can't be built, or lacks what a simulation needs of it."""

    exit_code = ExitCode.CONFIGURATION


@dataclass(frozen=True, slots=True)
class Edge:
    """One direction of a link.

    Attributes:
        quality: share of broadcast frames that arrive, above 0.
        loss: share of unicast frames that are lost after all tries.
        delay_s: from one node to the other, with the usual number of tries.
    """

    quality: float
    loss: float
    delay_s: float


@dataclass(frozen=True, slots=True)
class WantedFlow:
    """A flow that a graph file asks for: the bytes of both directions."""

    source: int
    target: int
    size_bytes: int


@dataclass(slots=True)
class Graph:
    """Nodes and links.

    Attributes:
        edges: by node, its links to others.
        flows: those of its file; None: it names none, so the scenario chooses.
        left_out: how many links of its file have quality 0 in both directions, and so carry nothing.
    """

    name: str
    edges: list[dict[int, Edge]]
    flows: tuple[WantedFlow, ...] | None = None
    left_out: int = 0

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self.edges)

    @property
    def links(self) -> int:
        """How many links there are, each counted once."""
        return sum(len(some) for some in self.edges) // 2

    def connect(self, one: int, other: int, there: float, back: float, kind: str) -> None:
        """Add a link; qualities are > 0."""
        self.edges[one][other] = _edge(there, kind)
        self.edges[other][one] = _edge(back, kind)

    def parts(self) -> list[list[int]]:
        """Return the connected parts, the largest first; nodes in rising order."""
        seen: set[int] = set()
        found = []
        for start in range(self.nodes):
            if start not in seen:
                part = self.distances(start)
                seen.update(part)
                found.append(sorted(part))
        return sorted(found, key=lambda part: (-len(part), part[0]))

    def cut(self, nodes: int, around: int | None = None) -> Graph:
        """Return so many nodes of the largest part: those nearest to its busiest node, or to the node `around`.

        Raises: GraphError if the largest part has fewer, or not that node.
        """
        largest = self.parts()[0]
        if not 2 <= nodes <= len(largest):
            raise GraphError(f"--nodes {nodes}: the largest connected part of {self.name} has 2 to {len(largest)}")
        if around is None:
            around = max(largest, key=lambda node: (len(self.edges[node]), -node))
        elif around not in largest:
            raise GraphError(f"--around {around}: the largest connected part of {self.name} has no such node")
        nearest = islice(self.distances(around), nodes)
        numbers = {old: new for new, old in enumerate(sorted(nearest))}
        kept = [
            {numbers[other]: edge for other, edge in self.edges[old].items() if other in numbers} for old in numbers
        ]
        return Graph(f"{self.name}, {nodes} nodes", kept, left_out=self.left_out)

    def distances(self, start: int) -> dict[int, int]:
        """Return the fewest links from a node to each that it reaches, the nearest first."""
        return distances(start, self.edges.__getitem__)


def distances(start: Name, neighbours: Callable[[Name], Iterable[Name]]) -> dict[Name, int]:
    """Return the fewest links from a node to each that it reaches, the nearest first.

    Args: neighbours: returns those that a node has a link to.
    """
    found, waiting = {start: 0}, deque([start])
    while waiting:
        node = waiting.popleft()
        for other in neighbours(node):
            if other not in found:
                found[other] = found[node] + 1
                waiting.append(other)
    return found


def _edge(quality: float, kind: str) -> Edge:
    return Edge(quality, (1 - quality) ** UNICAST_TRIES, BASE_DELAY_S[kind] * min(UNICAST_TRIES, 1 / quality))


def grid(nodes: int) -> Graph:
    """Return a square grid whose links are perfect. Raises: GraphError if no square has so many nodes."""
    side = math.isqrt(max(0, nodes))
    if side * side != nodes or side < 2 or nodes > MOST_NODES:
        nearest = f"{max(2, side) ** 2} and {(max(2, side) + 1) ** 2}"
        raise GraphError(f"--nodes {nodes}: a grid is a square of 4 to {MOST_NODES} nodes; {nearest} are such numbers")
    graph = Graph(f"grid of {side} x {side}", [{} for _ in range(nodes)])
    for node in range(nodes):
        if (node + 1) % side:
            graph.connect(node, node + 1, 1.0, 1.0, "wifi")
        if node + side < nodes:
            graph.connect(node, node + side, 1.0, 1.0, "wifi")
    return graph


def _object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a JSON file. Raises: GraphError if a key is there twice: the last one would win unseen."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise GraphError(f"{path}: the key {_shown(key)} is there twice")
        found[key] = value
    return found


def read_graph(path: Path) -> Graph:
    """Read a graph file. Raises: GraphError, which names the entry and what is wrong with it."""
    try:
        content = json.loads(path.read_text(), object_pairs_hook=partial(_object, path))
    except (OSError, UnicodeDecodeError) as error:
        raise GraphError(f"{path}: can't be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise GraphError(f"{path}: no JSON: {error}") from error
    if not isinstance(content, dict):
        raise GraphError(f"{path}: must be an object with `nodes` and `links`")
    unknown = sorted(content.keys() - {"nodes", "links", "flows"})
    if unknown:
        raise GraphError(f"{path}: unknown key {unknown[0]!r}; there are nodes, links and flows")
    for key in ("nodes", "links"):
        if key not in content:
            raise GraphError(f"{path}: the key {key!r} is missing")
    nodes = content["nodes"]
    if type(nodes) is not int or not 2 <= nodes <= MOST_NODES:
        raise GraphError(f"{path}: nodes: {_shown(nodes)} is no number from 2 to {MOST_NODES}")
    graph = Graph(path.name, [{} for _ in range(nodes)])
    for number, link in enumerate(_list(path, "links", content["links"])):
        _read_link(graph, f"{path}: links[{number}]", link)
    if not graph.links:
        raise GraphError(f"{path}: links: none of them carries anything, so no node reaches another one")
    if "flows" in content:
        wanted = enumerate(_list(path, "flows", content["flows"]))
        graph.flows = tuple(_read_flow(graph, f"{path}: flows[{number}]", flow) for number, flow in wanted)
        _refuse_unreachable(graph, path, graph.flows)
    return graph


def _list(path: Path, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise GraphError(f"{path}: {key}: {_shown(value)} is no list")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _node(graph: Graph, where: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < graph.nodes:
        raise GraphError(f"{where}: node {_shown(value)} is missing; nodes are 0 to {graph.nodes - 1}")
    return value


def _read_link(graph: Graph, where: str, link: Any) -> None:
    if not isinstance(link, list) or len(link) != 5:
        raise GraphError(f"{where}: {_shown(link)} is not [node, node, quality there, quality back, kind]")
    one, other = (_node(graph, where, value) for value in link[:2])
    if one == other:
        raise GraphError(f"{where}: node {one} has a link to itself")
    if other in graph.edges[one]:
        raise GraphError(f"{where}: there is another link between nodes {one} and {other}")
    for quality in link[2:4]:
        if type(quality) not in (int, float) or not 0 <= quality <= 1:
            raise GraphError(f"{where}: quality {_shown(quality)} is not from 0 to 1")
    there, back, kind = link[2:]
    if not isinstance(kind, str) or kind not in BASE_DELAY_S:
        raise GraphError(f"{where}: kind {_shown(kind)} is none of {', '.join(BASE_DELAY_S)}")
    if not (there or back):
        graph.left_out += 1
    else:
        graph.connect(one, other, float(there or back), float(back or there), kind)


def _read_flow(graph: Graph, where: str, flow: Any) -> WantedFlow:
    if not isinstance(flow, list) or len(flow) != 3:
        raise GraphError(f"{where}: {_shown(flow)} is not [from, to, bytes]")
    source, target = (_node(graph, where, value) for value in flow[:2])
    if source == target:
        raise GraphError(f"{where}: node {source} would send to itself")
    if type(flow[2]) is not int or flow[2] < 1:
        raise GraphError(f"{where}: {_shown(flow[2])} bytes: must be a number above 0")
    return WantedFlow(source, target, flow[2])


def _refuse_unreachable(graph: Graph, path: Path, flows: tuple[WantedFlow, ...]) -> None:
    part_of = {node: number for number, part in enumerate(graph.parts()) for node in part}
    for number, flow in enumerate(flows):
        if part_of[flow.source] != part_of[flow.target]:
            ends = f"nodes {flow.source} and {flow.target}"
            raise GraphError(f"{path}: flows[{number}]: {ends} are in parts of the graph that no link joins")


@dataclass(slots=True)
class Routes:
    """Shortest paths by link quality (ETX: how often a frame and its acknowledgement are sent), as babel has them.

    Attributes:
        away: nodes that are switched off, through which no route leads.
    """

    graph: Graph
    away: Collection[int] = ()
    _towards: dict[int, array[int]] = field(default_factory=dict)

    def changed(self, away: Collection[int]) -> None:
        """Compute all routes anew when they are asked for, around the nodes that are away."""
        self.away = frozenset(away)
        self._towards.clear()

    def next_hop(self, node: int, target: int) -> int:
        """Return the next node on the way to a target; NOWHERE if there is no way."""
        tree = self._towards.get(target)
        if tree is None:
            tree = self._towards[target] = self._tree(target)
        return tree[node]

    def path(self, source: int, target: int) -> list[int] | None:
        """Return the nodes from source to target, both included; None if there is no way."""
        found = [source]
        while found[-1] != target:
            hop = self.next_hop(found[-1], target)
            if hop == NOWHERE:
                return None
            found.append(hop)
        return found

    def _tree(self, target: int) -> array[int]:
        edges, away = self.graph.edges, self.away
        hops = array("i", [NOWHERE]) * len(edges)
        costs = [math.inf] * len(edges)
        costs[target], hops[target] = 0.0, target
        waiting = [(0.0, target)]
        while waiting:
            cost, node = heapq.heappop(waiting)
            if cost > costs[node] or node in away:
                continue
            for other, back in edges[node].items():
                more = cost + 1 / (back.quality * edges[other][node].quality)
                if more < costs[other]:
                    costs[other], hops[other] = more, node
                    heapq.heappush(waiting, (more, other))
        return hops
