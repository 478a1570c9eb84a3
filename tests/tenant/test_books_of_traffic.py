"""Books: what was counted and charged for traffic outlives the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from ngp.core.tenant.traffic import Traffic
from ngp.errors import ConfigError
from ngp.tenant.books import Books, BooksFile

TRAFFIC = Traffic("4f1c/12", 5000, 700, 700 << 30, 5 << 20, 4321)


@pytest.mark.parametrize("traffic", [None, TRAFFIC])
def test_the_next_process_goes_on_from_there(tmp_path: Path, traffic: Traffic | None) -> None:
    BooksFile(tmp_path / "books").write(Books(traffic=TRAFFIC))
    BooksFile(tmp_path / "books").write(Books(traffic=traffic))
    assert BooksFile(tmp_path / "books").read().traffic == traffic


@pytest.mark.parametrize("written", ["Traffic: 7", "Traffic: {source: a}", "Traffic: []"])
def test_a_damaged_file_is_named(tmp_path: Path, written: str) -> None:
    file = BooksFile(tmp_path / "books")
    file.path.write_text(f"{written}\n")
    file.path.chmod(0o600)
    with pytest.raises(ConfigError, match="is damaged"):
        file.read()
