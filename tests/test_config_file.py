"""net.conf as a file: content that is no document, where it is looked for, and who must own it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ngp.config import default_path, load, parse, refuse_shown_secret
from ngp.config.document import shipped
from ngp.errors import ConfigError

FILE = Path("/etc/ngp/net.conf")


# --- bad documents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("MESH_INTERFACES: *eth", 1, "put a pattern that begins with * in quotes"),
        ("MESH_INTERFACES: &a eth1", 1, "an anchor (&)"),
        ("MESH_INTERFACES: !!python/object/apply:os.system [id]", 1, "a tag (!)"),
        ("A: &a [x]\nB: [*a, *a]", 1, "an anchor (&)"),
        ("MESH_INTERFACES: eth1\n\tSELL: no", 2, "a tab where YAML needs spaces"),
        ("MESH_INTERFACES:\n\t- eth1", 2, "a tab where YAML needs spaces"),
        ("MESH_INTERFACES: eth1\n---\nSELL: no", 2, "a second document"),
        ("MESH_INTERFACES: [eth1", 1, "is not YAML"),
        ("MESH_INTERFACES eth1", 1, "write lines `KEY: value`"),
        ("- MESH_INTERFACES: eth1", 1, "write lines `KEY: value`"),
        ("SELL: yes\n? [a]\n: b", 2, "is not a key"),
        ("SELL: yes\nBUY: [[[[[[[[[[x]]]]]]]]]]", 2, "nested too deeply"),
        ("SELL: yes\nBUY: a\x00b", 2, "U+0000"),
        ("SELL: yes\nBUY no", 2, "is not YAML"),
        ("SELL: yes\nBUY no\n", 2, "'BUY no' is not YAML"),
        ("SELL: yes\nBUY no\n\n# the end\n", 2, "'BUY no' is not YAML"),
    ],
)
def test_what_is_not_a_configuration_is_refused_at_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text, FILE)
    assert str(refused.value).startswith(f"{FILE}:{line}: ")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text", ['A: "\\UFFFFFFFF"', "%YAML 9999999999999999999.1\n---\nA: 1", 'A: "\\uD800"', "<<: {A: 1}"]
)
def test_what_makes_the_yaml_library_itself_fail_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text, FILE)


@pytest.mark.parametrize(
    "unit", ["[", "{a: ", "- ", "? ", "a: [", "'", '"', "a: 1\n", "*", "&a ", "!a ", "-", "#", ":", "\n"]
)
def test_a_large_hostile_file_is_refused_quickly(unit: str) -> None:
    text = unit * (60_000 // len(unit))
    begun = time.process_time()
    with pytest.raises(ConfigError):
        parse(text, FILE)
    assert time.process_time() - begun < 20, "far above what any of these takes, far below quadratic"


def test_what_is_not_a_readable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes(b"SELL: yes\nACCOUNT_ID: caf\xe9\n")
    (tmp_path / "huge").write_text("#" * (256 * 1024 + 1))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, said in {
        "absent": "doesn't exist",
        ".": "not a regular file",
        "fifo": "not a regular file",
        "latin": "latin:2: byte 0xe9 is not UTF-8",
        "huge": "larger than 256 kB",
        "loop": "can't be read",
        "absent\0": "can't be read",
    }.items():
        with pytest.raises(ConfigError, match=said):
            load(tmp_path / name)
    with pytest.raises(ConfigError, match="not a regular file"):
        load("/dev/zero")


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    text = "MESH_INTERFACES: eth1\n"
    (tmp_path / "net.conf").write_text(text + "#" * (256 * 1024 - len(text)))
    assert load(tmp_path / "net.conf").mesh_interfaces == ("eth1",)


# --- where the file is, and whose -------------------------------------------------------------------------------------


def test_the_first_file_that_is_there_is_taken(tmp_path: Path) -> None:
    first, second = tmp_path / "etc", tmp_path / "here"
    with pytest.raises(ConfigError, match=f"{first} nor {second}"):
        default_path((first, second))
    second.write_text("")
    assert default_path((first, second)) == second
    first.symlink_to(tmp_path / "dangling")  # a broken link isn't a missing file: it must be reported, not skipped
    assert default_path((first, second)) == first


def test_the_shipped_files_are_named_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"copy {shipped('net.conf')} there"):
        load(tmp_path / "absent")
    assert Path(shipped("net.conf")).is_file() and Path(shipped("docs/operators-guide.md")).is_file()
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    guide = tmp_path / "share" / "doc" / "ngp" / "operators-guide.md"
    guide.parent.mkdir(parents=True)
    guide.write_text("")
    assert shipped("docs/operators-guide.md") == str(guide)


@pytest.mark.parametrize(
    ("mode", "trusted"), [(0o644, True), (0o600, True), (0o664, False), (0o646, False), (0o666, False)]
)
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int, trusted: bool) -> None:
    path = tmp_path / "net.conf"
    path.write_text("MESH_INTERFACES: eth1\n")
    path.chmod(mode)
    if trusted:
        load(path, trusted_only=True)
        return
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod go-w {path}"):
        load(path, trusted_only=True)
    load(path)


def test_a_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.conf"
    path.write_text("MESH_INTERFACES: eth1\n")
    os.chown(path, 4321, -1)
    with pytest.raises(ConfigError, match=f"belongs to user 4321.*chown root {path}"):
        load(path, trusted_only=True)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    load(path, trusted_only=True)
    os.chown(path, 0, -1)
    load(path, trusted_only=True)


@pytest.mark.parametrize(
    ("mode", "uri", "well"),
    [(0o644, "none", True), (0o600, "lndconnect://[::1]:1?macaroon=AgED", True)]
    + [(mode, "lndconnect://[::1]:1?macaroon=AgED", False) for mode in (0o644, 0o640, 0o604)],
)
def test_a_file_that_holds_a_macaroon_is_for_its_owner_alone(tmp_path: Path, mode: int, uri: str, well: bool) -> None:
    path = tmp_path / "net.conf"
    path.write_text(f"MESH_INTERFACES: eth1\nPAYMENT_INTERFACE: lnd\nLND_CONNECT: '{uri}'\n")
    path.chmod(mode)
    settings = load(path, trusted_only=True)
    if well:
        refuse_shown_secret(settings, path)
        return
    with pytest.raises(ConfigError, match=f"LND_CONNECT.*mode {mode:04o}.*chmod 600 {path}") as refused:
        refuse_shown_secret(settings, path)
    assert "AgED" not in str(refused.value)
