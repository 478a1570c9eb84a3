"""Every scenario of core_tests/scenarios, in network namespaces."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from core_tests import mesh_session, mesh_traffic, scenarios
from core_tests.lab import Lab
from core_tests.scenarios.__main__ import FAILED, MISSING, main
from core_tests.session_namespaces import in_namespaces
from core_tests.session_xml import SessionError
from core_tests.shell import ROOT
from core_tests.simulate.graph import distances, read_graph

LEIPZIG = read_graph(ROOT / "core_tests" / "graphs" / "leipzig-50.json")
LONG = [pytest.mark.long, pytest.mark.first]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=LONG if scenarios.is_long(name) else ()) for name in scenarios.names()]
)
def test_scenario(lab: Lab, name: str) -> None:
    scenarios.play(name, lab, in_namespaces)


def test_a_backend_that_is_missing_is_named_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--backend", "core", "pings_cut"]) == MISSING
    said = capsys.readouterr().err
    assert "--backend core: CORE at localhost:50051, OpenXml: UNAVAILABLE: " in said
    assert "Install CORE 9 (coreemu.github.io/core/install.html)" in said
    assert f"custom_services_dir = {ROOT}/core_tests/core_services" in said


def test_a_session_that_cannot_be_built_is_named_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise SessionError("ring.xml: <device id=1>: it has no name")

    monkeypatch.setattr("core_tests.scenarios.__main__.play", refuse)
    assert main(["ring"]) == FAILED
    said = capsys.readouterr()
    assert "ring.xml: <device id=1>: it has no name" in said.out and "Traceback" not in said.err


@pytest.mark.parametrize(
    ("name", "python", "said"),
    [
        ("alone", None, "alone: FAILED: alone.xml: alone.py is missing, with a function `expect(session)`"),
        ("idle", "LONG = False\n", "idle: FAILED: idle.py: the function `expect(session)` is missing"),
    ],
)
def test_a_scenario_without_its_second_file_is_named_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    python: str | None,
    said: str,
) -> None:
    (tmp_path / f"{name}.xml").write_text("<scenario/>")
    if python is not None:
        (tmp_path / f"{name}.py").write_text(python)
    monkeypatch.setattr(scenarios, "FOLDER", tmp_path)
    monkeypatch.setattr(scenarios, "__path__", [str(tmp_path)])
    assert main([]) == FAILED
    told = capsys.readouterr()
    assert told.out.splitlines() == [said, f"FAILED: {name}"] and "Traceback" not in told.err


def test_every_scenario_has_both_files_and_a_row_in_the_docs() -> None:
    names = scenarios.names()
    assert names == sorted(path.stem for path in scenarios.FOLDER.glob("*.py") if not path.stem.startswith("__"))
    rows = [line for line in (ROOT / "docs" / "scenarios.md").read_text().splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])} >= set(names)


@pytest.mark.parametrize("routing", ["babeld", "bird"])
@pytest.mark.parametrize(("nodes", "around"), [(12, 20), (50, None)])
def test_the_sessions_of_the_real_graph_are_made_from_its_file(routing: str, nodes: int, around: int | None) -> None:
    name = f"leipzig_{nodes}_{routing}"
    graph = LEIPZIG.cut(nodes, around)
    made = "\n".join([*mesh_session.session(graph, name, routing), ""])
    assert (scenarios.FOLDER / f"{name}.xml").read_text() == made


@pytest.mark.parametrize(("nodes", "around"), [(12, 20), (50, None)])
def test_one_way_alone_is_the_cheapest_and_none_has_fewer_links(nodes: int, around: int | None) -> None:
    graph = LEIPZIG.cut(nodes, around)
    named = mesh_session.named
    mesh = {named(node): [named(other) for other in edges] for node, edges in enumerate(graph.edges)}
    for target in mesh:
        costs, links = mesh_traffic.costs_to(target, mesh), distances(target, mesh.__getitem__)
        for name in mesh.keys() - {target}:
            best, *others = sorted((costs[other] + mesh_session.cost(name, other), other) for other in mesh[name])
            assert links[best[1]] == links[name] - 1 or links[name] > mesh_traffic.MOST_LINKS
            assert all(best[0] < cost for cost, _ in others)
