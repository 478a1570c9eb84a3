"""Pictures: what the figures show, drawn by matplotlib beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only; no display is looked for
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from core_tests.simulate.figures import (  # noqa: E402
    answered_after,
    by_hops,
    earned_msat,
    latency_ms,
    losses_msat,
    payments_an_hour,
    share,
)
from core_tests.simulate.lies import Lie  # noqa: E402
from core_tests.simulate.scenarios import Run  # noqa: E402

SIZE_INCHES, DOTS_AN_INCH = (8, 5), 100


def draw(run: Run, out: Path, name: str) -> list[Path]:
    """Draw what a run shows, as OUT/NAME-WHAT.png. Returns the files."""
    files = [
        _picture(out / f"{name}-first-packet.png", lambda axes: _first_packets(axes, run)),
        _picture(out / f"{name}-payments.png", lambda axes: _histogram(
            axes, payments_an_hour(run.mesh), "payments of a node in an hour, made and received")),
        _picture(out / f"{name}-earned.png", lambda axes: _earned(axes, run)),
    ]  # fmt: skip
    if run.scenario.pings:
        files.append(_picture(out / f"{name}-served.png", lambda axes: _served(axes, run)))
    if any(node.lie for node in run.mesh.nodes):
        files.append(_picture(out / f"{name}-losses.png", lambda axes: _losses(axes, run)))
    return files


def _picture(file: Path, paint: Callable[[Axes], None]) -> Path:
    figure, axes = pyplot.subplots(figsize=SIZE_INCHES, dpi=DOTS_AN_INCH)
    paint(axes)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
    return file


def _first_packets(axes: Axes, run: Run) -> None:
    rows = by_hops(run.traffic.flows)
    hops = list(rows)
    for part, label in ((0.5, "median"), (0.95, "95 of 100")):
        axes.plot(hops, [share([latency_ms(flow) for flow in some], part) for some in rows.values()], "o-", label=label)
    alone = [share([flow.round_trip_s * 1000 for flow in some], 0.5) for some in rows.values()]
    axes.plot(hops, alone, "--", label="the links' round trip alone")
    axes.set(xlabel="hops", ylabel="first packet and answer, ms", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for each in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        each("{x:g}")
    axes.legend()


def _histogram(axes: Axes, values: Sequence[float], label: str) -> None:
    axes.hist(values, bins=40)
    axes.set(xlabel=label, ylabel="nodes")


def _earned(axes: Axes, run: Run) -> None:
    for nodes, label in (
        ([node for node in run.mesh.nodes if node.lie is None], "honest"),
        ([node for node in run.mesh.nodes if node.lie is not None], "liars"),
    ):
        if nodes:
            axes.plot(sorted(earned_msat(node) / 1000 for node in nodes), label=label)
    axes.set(xlabel="nodes, by what they earned", ylabel="sold less bought, sat")
    axes.legend()


def _served(axes: Axes, run: Run) -> None:
    times = answered_after(run.mesh, run.traffic.flows)
    pairs = len(run.traffic.flows)
    axes.step([0.0, *times], [100 * number / pairs for number in range(len(times) + 1)], where="post")
    axes.axhline(99, linestyle="--")
    axes.set(xlabel="seconds from the start of all nodes", ylabel="pairs served, %")


def _losses(axes: Axes, run: Run) -> None:
    losses = [[loss / 1000 for loss in losses_msat(run.mesh, lie).values()] or [0.0] for lie in Lie]
    axes.boxplot(losses, tick_labels=[lie.value for lie in Lie], whis=(0, 100))
    axes.set(ylabel="cost an honest neighbour, sat")
