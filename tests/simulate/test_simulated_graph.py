"""Graphs of the simulator: a file with holes is refused by name, and routes follow the links' quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core_tests.simulate.graph import GraphError, Routes, grid, read_graph

LINE = [[0, 1, 1, 1, "wifi"], [1, 2, 0.5, 1, "vpn"]]


def written(folder: Path, content: Any) -> Path:
    file = folder / "graph.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "no JSON: "),
        ("[" * 100_000, "no JSON: "),
        ('{"nodes": 3, "links": [], "nodes": 2}', "the key 'nodes' is there twice"),
        ([], "must be an object with `nodes` and `links`"),
        ({"nodes": 3, "links": []}, "links: none of them carries anything"),
        ({"links": []}, "the key 'nodes' is missing"),
        ({"nodes": True, "links": []}, "nodes: True is no number"),
        ({"nodes": 10**9, "links": []}, "nodes: 1000000000 is no number from 2 to 100000"),
        ({"nodes": 3}, "the key 'links' is missing"),
        ({"nodes": 3, "links": None}, "links: None is no list"),
        ({"nodes": 3, "links": LINE, "flows": None}, "flows: None is no list"),
        ({"nodes": 3, "links": LINE, "flow": []}, "unknown key 'flow'; there are nodes, links and flows"),
        ({"nodes": 3, "links": [[0, 1, 1]]}, "links[0]: [0, 1, 1] is not [node, node, quality there, quality back, "),
        ({"nodes": 3, "links": [*LINE, [2, 3, 1, 1, "wifi"]]}, "links[2]: node 3 is missing; nodes are 0 to 2"),
        ({"nodes": 3, "links": [[-1, 2, 1, 1, "wifi"]]}, "links[0]: node -1 is missing"),
        ({"nodes": 3, "links": [["0", 2, 1, 1, "wifi"]]}, "links[0]: node '0' is missing"),
        ({"nodes": 3, "links": [[1, 1, 1, 1, "wifi"]]}, "links[0]: node 1 has a link to itself"),
        ({"nodes": 3, "links": [*LINE, [1, 0, 1, 1, "vpn"]]}, "links[2]: there is another link between nodes 1 and 0"),
        ({"nodes": 3, "links": [[0, 1, 1, -0.1, "wifi"]]}, "links[0]: quality -0.1 is not from 0 to 1"),
        ({"nodes": 3, "links": [[0, 1, 1.5, 1, "wifi"]]}, "links[0]: quality 1.5 is not from 0 to 1"),
        ('{"nodes": 3, "links": [[0, 1, NaN, 1, "wifi"]]}', "links[0]: quality nan is not from 0 to 1"),
        ({"nodes": 3, "links": [[0, 1, 1, 1, ["x"]]]}, "links[0]: kind ['x'] is none of wifi, vpn, other"),
        ({"nodes": 4, "links": LINE, "flows": [[0, 3, 9]]}, "flows[0]: nodes 0 and 3 are in parts of the graph that "),
        ({"nodes": 3, "links": LINE, "flows": [[0, 0, 9]]}, "flows[0]: node 0 would send to itself"),
        ({"nodes": 3, "links": LINE, "flows": [[0, 2, 0]]}, "flows[0]: 0 bytes: must be a number above 0"),
        ({"nodes": 3, "links": LINE, "flows": [[0, 7, 9]]}, "flows[0]: node 7 is missing"),
        ({"nodes": 3, "links": LINE, "flows": [0]}, "flows[0]: 0 is not [from, to, bytes]"),
    ],
)
def test_a_file_with_holes_is_refused_by_name(tmp_path: Path, content: Any, why: str) -> None:
    with pytest.raises(GraphError) as refused:
        read_graph(written(tmp_path, content))
    assert str(refused.value).startswith(f"{tmp_path}/graph.json: ") and why in str(refused.value)
    assert len(str(refused.value)) < len(str(tmp_path)) + 200


@pytest.mark.parametrize("nodes", [-4, 0, 1, 3, 50, 10**8])
def test_a_grid_is_a_square(nodes: int) -> None:
    with pytest.raises(GraphError, match=f"--nodes {nodes}: a grid is a square of 4 to 100000 nodes"):
        grid(nodes)


def test_a_grid_has_its_nodes_and_links() -> None:
    graph = grid(25)
    assert (graph.nodes, graph.links) == (25, 40)
    assert sorted(graph.edges[12]) == [7, 11, 13, 17] and sorted(graph.edges[0]) == [1, 5]


def test_routes_take_the_better_links_and_go_around_nodes_that_are_away(tmp_path: Path) -> None:
    links = [[0, 1, 0.4, 1, "wifi"], [0, 2, 1, 1, "wifi"], [2, 1, 0.9, 1, "wifi"]]
    graph = read_graph(written(tmp_path, {"nodes": 4, "links": links}))
    routes = Routes(graph)
    assert routes.path(0, 1) == [0, 2, 1] and routes.path(1, 0) == [1, 2, 0]
    routes.changed({2})
    assert routes.path(0, 1) == [0, 1] and routes.path(0, 2) is None
    routes.changed(())
    assert routes.path(0, 1) == [0, 2, 1] and routes.path(0, 3) is None
    assert [len(part) for part in graph.parts()] == [3, 1]


def test_a_direction_without_a_report_is_as_good_as_the_other_and_two_make_no_link(tmp_path: Path) -> None:
    links = [[0, 1, 0.5, 0, "wifi"], [1, 2, 0, 0, "wifi"]]
    graph = read_graph(written(tmp_path, {"nodes": 3, "links": links}))
    assert graph.edges[0][1] == graph.edges[1][0] and graph.edges[0][1].quality == 0.5
    assert graph.edges[2] == {}
    assert (graph.links, graph.left_out, graph.cut(2).left_out) == (1, 1, 1)


def test_a_part_of_a_graph_is_connected_and_around_the_busiest_node(tmp_path: Path) -> None:
    links = [[0, 1, 1, 1, "wifi"], *([5, other, 1, 1, "wifi"] for other in (2, 3, 4, 6)), [6, 7, 1, 1, "wifi"]]
    graph = read_graph(written(tmp_path, {"nodes": 8, "links": links}))
    part = graph.cut(5)
    assert (part.nodes, part.links, len(part.parts())) == (5, 4, 1)
    with pytest.raises(GraphError, match="--nodes 7: the largest connected part of graph.json has 2 to 6"):
        graph.cut(7)
