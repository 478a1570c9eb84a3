"""Every test that uses `adapter` or `store` runs with each kind of ledger."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapters import ADAPTERS, Adapter

from ngp.ports import Store


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Adapter:
    made: Adapter = ADAPTERS[request.param](tmp_path)
    return made


@pytest.fixture
def store(adapter: Adapter) -> Store:
    return adapter.store
