"""The identity key: made once, complete and private, and refused if it isn't."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ngp import identity
from ngp.errors import ConfigError, UsageError


def key_file(folder: Path) -> Path:
    return folder / identity.KEY_FILE


def test_a_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        first = identity.load_or_create(tmp_path)
    finally:
        os.umask(old)
    assert identity.public_key(identity.load_or_create(tmp_path)) == identity.public_key(first)
    assert stat.S_IMODE(key_file(tmp_path).stat().st_mode) == 0o600
    assert key_file(tmp_path).stat().st_size == 32
    assert os.listdir(tmp_path) == [identity.KEY_FILE]


def test_two_processes_that_start_together_use_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process's key appears after we looked and before we link: ours must give way."""
    theirs = bytes(range(32))
    link = os.link

    def late(source: Path, target: Path) -> None:
        key_file(tmp_path).write_bytes(theirs)
        key_file(tmp_path).chmod(0o600)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert identity.load_or_create(tmp_path).private_bytes_raw() == theirs
    assert os.listdir(tmp_path) == [identity.KEY_FILE]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602, 0o660])
def test_refuses_a_key_that_others_can_reach(tmp_path: Path, mode: int) -> None:
    identity.load_or_create(tmp_path)
    key_file(tmp_path).chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}.*chmod 600"):
        identity.load_or_create(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_refuses_a_key_of_another_size_and_leaves_it(tmp_path: Path, content: bytes) -> None:
    key_file(tmp_path).write_bytes(content)
    key_file(tmp_path).chmod(0o600)
    with pytest.raises(ConfigError, match=f"{len(content)} bytes"):
        identity.load_or_create(tmp_path)
    assert key_file(tmp_path).read_bytes() == content


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(key_file(tmp_path), 0o600)
    with pytest.raises(ConfigError, match="regular"):
        identity.load_or_create(tmp_path)
    key_file(tmp_path).unlink()
    key_file(tmp_path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="symbolic"):
        identity.load_or_create(tmp_path)


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="STATE_DIR"):
        identity.load_or_create(tmp_path / "absent")


def test_a_key_is_found_by_its_first_letters_if_no_other_has_them() -> None:
    one, two, three = bytes.fromhex("aa" * 32), bytes.fromhex("aab" + "0" * 61), bytes.fromhex("c0" * 32)
    known = [one, two, three]
    assert identity.short_text(one) == "a" * 16
    assert identity.match(identity.text(two), known) == two
    assert identity.match("C", known) == three
    assert identity.match(" aab ", known) == two
    for written, message in [("aa", "fits 2"), ("d", "no neighbour's key"), ("", "nor a key"), ("x", "nor a key")]:
        with pytest.raises(UsageError, match=message):
            identity.match(written, known)
