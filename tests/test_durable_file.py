"""A durable file: complete and private, whatever happens while it is written."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ngp import durable_file

Write = Callable[[Path, bytes], None]
BOTH = pytest.mark.parametrize("write", [durable_file.create, durable_file.replace])


@BOTH
def test_a_new_file_is_its_owners_alone_and_nothing_is_left_beside_it(write: Write, tmp_path: Path) -> None:
    path, before = tmp_path / "secret", os.umask(0)
    try:
        write(path, b"content")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_is_replaced_or_kept(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    durable_file.create(path, b"first")
    durable_file.create(path, b"second")
    assert path.read_bytes() == b"first"
    durable_file.replace(path, b"third")
    assert path.read_bytes() == b"third"
    assert list(tmp_path.iterdir()) == [path]


@BOTH
def test_a_failure_leaves_the_folder_as_it_was(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    durable_file.create(path, b"before")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
