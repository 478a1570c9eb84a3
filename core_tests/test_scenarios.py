"""Every scenario of core_tests/scenarios, in network namespaces."""

from __future__ import annotations

import re

import pytest

from core_tests import scenarios
from core_tests.lab import Lab
from core_tests.session_namespaces import in_namespaces
from core_tests.shell import ROOT


@pytest.mark.parametrize("name", scenarios.names())
def test_scenario(lab: Lab, name: str) -> None:
    scenarios.play(name, lab, in_namespaces)


def test_every_scenario_has_both_files_and_a_row_in_the_docs() -> None:
    names = scenarios.names()
    assert names == sorted(path.stem for path in scenarios.FOLDER.glob("*.py") if not path.stem.startswith("__"))
    rows = [line for line in (ROOT / "docs" / "scenarios.md").read_text().splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])} >= set(names)
