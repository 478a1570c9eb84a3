"""A landlord with the shipped terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from let import Landlord


@pytest.fixture
def landlord(tmp_path: Path) -> Iterator[Landlord]:
    with closing(Landlord(tmp_path)) as made:
        yield made
