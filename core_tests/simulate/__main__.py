"""Run the real core of many nodes in one process, and report what a mesh of this size does.

Only what surrounds the core is simulated: clocks, links, routes, kernels' meters, payments. Nothing is sent, and no
root is needed. At the end all ledgers must sum to zero, to the msat; the run fails if they don't.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from core_tests.simulate.figures import Cost, figures
from core_tests.simulate.flows import Traffic
from core_tests.simulate.graph import Graph, GraphError, grid, read_graph
from core_tests.simulate.mesh import Mesh
from core_tests.simulate.pictures import draw
from core_tests.simulate.scenarios import SCENARIOS, Scenario, run
from ngp.errors import NgpError, UsageError

LIMITS = {"time": (60, 86_400), "flows": (0.01, 10_000), "liars": (0, 90)}
TOLD_EVERY_S, TOLD_TO_A_FILE_EVERY_S = 1.0, 30.0
EXAMPLES = """
examples:
  tools/simulate cold-start --nodes 49
  tools/simulate traffic --graph munich.json --time 3600 --out /tmp/munich
  tools/simulate liars --nodes 100 --liars 20 --seed 7

FOLDER gets SCENARIO.json, all figures, and pictures beside it. docs/scale.md explains them. A graph file is JSON:
  {"nodes": 3, "links": [[0, 1, 0.9, 1, "wifi"], [1, 2, 1, 1, "vpn"]], "flows": [[0, 2, 1000000]]}
links are [node, node, quality there, quality back, wifi, vpn or other]; flows, [from, to, bytes], may be left out: then
the scenario chooses them. An empty list means that there are none.

exit codes: 0 done, 1 the ledgers don't sum to zero or FOLDER can't be written, 2 wrong command line, 3 wrong graph
"""


def main(words: list[str]) -> int:
    """Run a scenario; returns the exit code."""
    chosen = _parser().parse_args(words)
    try:
        scenario = _scenario(chosen)
        graph = _graph(chosen)
        chosen.out.mkdir(parents=True, exist_ok=True)
        found = _run(scenario, chosen.scenario, graph, chosen.seed, chosen.out)
    except NgpError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return int(error.exit_code)
    except OSError as error:
        print(f"simulate: --out {chosen.out}: {error}", file=sys.stderr)
        return 1
    _tell(found, chosen.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    scenarios = "\n".join(f"  {name:<11} {one.about}" for name, one in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="tools/simulate", description=__doc__, epilog=f"scenarios:\n{scenarios}\n{EXAMPLES}", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("scenario", metavar="SCENARIO", choices=SCENARIOS, help="one of those below")
    parser.add_argument(
        "--nodes", type=int, metavar="N",
        help="a square grid of N nodes (25); with --graph: the N nodes of its largest part around the busiest one",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="the same seed gives the same result (1)")
    parser.add_argument("--graph", type=Path, metavar="FILE", help="a graph as JSON, instead of a grid")
    parser.add_argument(
        "--out", type=Path, default=Path("simulated"), metavar="FOLDER", help="for the report (./simulated)"
    )
    for word, unit, meaning, usual in (
        ("time", "SECONDS", "mesh time with traffic", "the scenario's own"),
        ("flows", "N", "flows that each node begins in an hour", "12"),
        ("liars", "PERCENT", "share of nodes that lie", "in `liars`: 10"),
    ):
        least, most = LIMITS[word]
        about = f"{meaning}, {least} to {most} ({usual})"
        parser.add_argument(f"--{word}", type=float, metavar=unit, help=about)
    return parser


def _scenario(chosen: argparse.Namespace) -> Scenario:
    """Return the scenario with what the command line changes. Raises: UsageError."""
    scenario = SCENARIOS[chosen.scenario]
    for word, (least, most) in LIMITS.items():
        value = getattr(chosen, word)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{word} {value:g}: must be from {least} to {most}")
    if scenario.pings and chosen.flows is not None:
        raise UsageError(f"--flows {chosen.flows:g}: {chosen.scenario} has none, each pair is pinged; leave it out")
    changes: dict[str, Any] = {"time_s": chosen.time, "flows_an_hour": chosen.flows}
    changes["liars"] = chosen.liars / 100 if chosen.liars is not None else None
    return replace(scenario, **{key: value for key, value in changes.items() if value is not None})


def _graph(chosen: argparse.Namespace) -> Graph:
    if chosen.graph is None:
        return grid(25 if chosen.nodes is None else chosen.nodes)
    graph = read_graph(chosen.graph)
    if graph.flows is not None and chosen.flows is not None:
        raise GraphError(f"--flows {chosen.flows:g}: {chosen.graph} names its flows; leave one of both out")
    if chosen.nodes is None:
        return graph
    if graph.flows is not None:
        raise GraphError(f"--nodes {chosen.nodes}: {chosen.graph} names flows, so it is simulated whole")
    return graph.cut(chosen.nodes)


def _run(scenario: Scenario, name: str, graph: Graph, seed: int, out: Path) -> dict[str, Any]:
    wall_s, cpu_s = time.monotonic(), time.process_time()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # most objects of a run live to its end
    done = run(scenario, graph, seed, _Progress(scenario.time_s))
    cost = Cost(time.monotonic() - wall_s, time.process_time() - cpu_s)
    found = {"scenario": name, **figures(done, seed, cost)}
    (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(done, out, name)
    return found


class _Progress:
    """Says now and then how far a run is: on a terminal in one line, in a file seldom."""

    def __init__(self, time_s: float) -> None:
        self._time_s = time_s
        self._shown = sys.stderr.isatty()
        self._every_s = TOLD_EVERY_S if self._shown else TOLD_TO_A_FILE_EVERY_S
        self._began = self._told = time.monotonic()

    def __call__(self, mesh: Mesh, traffic: Traffic) -> None:
        now = time.monotonic()
        if now < self._told + self._every_s:
            return
        self._told = now
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        rest = "" if mesh.elapsed_s <= self._time_s else ", settling"
        print(
            f"[{now - self._began:4.0f} s] mesh time {mesh.elapsed_s:.0f} of {self._time_s:.0f} s{rest}, "
            f"{traffic.active} of {len(traffic.flows)} flows under way, {mesh.steps:,} steps, {memory} MiB",
            end="\r" if self._shown else "\n", file=sys.stderr, flush=True,
        )  # fmt: skip


def _tell(found: dict[str, Any], out: Path) -> None:
    """Print the main figures."""
    graph, served, cost, books = found["graph"], found["served"], found["machine"], found["books"]
    print(f"{graph['name']}: {graph['nodes']} nodes, {graph['links']} links, {found['mesh_time_s']:.0f} s of mesh time")
    if left_out := graph["links_left_out"]:
        print(f"  left out: {left_out} of the file's links, whose quality is 0 in both directions")
    if "cold_start" in found:
        cold = found["cold_start"]
        print(f"  cold start: of {cold['pairs']} pairs half after {cold['half_s']} s, 99 % after {cold['p99_s']} s")
    print(f"  flows: {served['answered']} of {served['flows']} answered, {served['complete']} complete", end="")
    print(f", {served['share']:.2%} of the bytes" if served["share"] is not None else "")
    for hops, row in found["first_packet"]["by_hops"].items():
        print(f"  first packet, {hops:>2} hops: {row['median_ms']} ms median (links alone {row['links_alone_ms']} ms)")
    if (price := found["price"])["above_cheapest"] is not None:
        print(f"  price: {price['mean_msat_per_kb']} msat/kB, {price['above_cheapest']:.2f} times the cheapest")
    payments, load = found["settlement"]["payments"], found["settlement"]["payments_an_hour_of_a_node"]
    print(f"  payments: {payments}; of a node in an hour {load['median']} median, {load['most']} most")
    for kind, row in found.get("liars", {}).items():
        if isinstance(row, dict):
            print(f"  {row['nodes']} nodes: {kind}: cost {row['cost_honest_msat']:,} msat, at most "
                  f"{row['most_between_two_msat']:,} between two")  # fmt: skip
    print(f"  books: {books['accounts']} accounts, {books['paid_msat']:,} msat paid and received; all sum to zero")
    took = f"{cost['wall_s']} s ({cost['cpu_s']} s of processor)"
    print(f"  took {took}, {found['steps']:,} steps, {cost['memory_mib']} MiB")
    print(f"  {out / found['scenario']}.json, and pictures beside it")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nsimulate: interrupted", file=sys.stderr)
        sys.exit(130)
