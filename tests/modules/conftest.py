"""Fixtures of the tests that charge without packets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from charge_lab import ChargeLab, build, charge_lab


@pytest.fixture(scope="session")
def charge_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's programs, compiled once."""
    return build(tmp_path_factory.mktemp("charge"))


@pytest.fixture
def lab(charge_object: Path) -> Iterator[ChargeLab]:
    """Fresh tables, and the programs that use them."""
    with charge_lab(charge_object) as loaded:
        yield loaded
