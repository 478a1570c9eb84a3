"""A module made by others brings keys of its own to net.conf, and nothing in ngp knows them."""

from __future__ import annotations

import os
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ngp.config import changes, installed_modules, keep_until_restart, load, parse, refuse_shown_secret
from ngp.config.modules import SHIPPED
from ngp.daemon import main, offline, payment_keys
from ngp.errors import ConfigError

SOURCE = """
from ngp.errors import ConfigError
from ngp.module_keys import ModuleKey, ModuleSettings, file_path

MADE = []

class ClamPayment:
    def __init__(self, state_dir=None, *, options):
        MADE.append((state_dir, dict(options)))

    async def wait_ready(self):
        raise TimeoutError

    async def close(self):
        pass

def depth(written):
    if not written.text.isdecimal():
        raise ConfigError("is not a depth: write for example 3")
    return int(written.text) if written.text != "7" else 1 // 0

def check(values):
    if values["CLAM_DEPTH"] == 8:
        raise KeyError("white")
    if values["CLAM_DEPTH"] > 9 and "CLAM_HOST" not in values:
        yield "CLAM_DEPTH", "needs CLAM_HOST above 9: write it, or less"
    if "ACCOUNT_ID" in values:
        yield "ACCOUNT_ID", "isn't used by clam: remove it"

SETTINGS = ModuleSettings(
    (
        ModuleKey("CLAM_DEPTH", "a number", depth, "how deep clams are dug", default="3"),
        ModuleKey("CLAM_HOST", "text", lambda written: written.text, "where they are dug"),
        ModuleKey("CLAM_FILE", "file", file_path, "where they are noted"),
        ModuleKey("CLAM_PEARL", "text", depth, "what is inside", secret="the pearl"),
    ),
    check,
)
"""
ENTRY_POINTS = """
[ngp.payment]
clam = clam_module:ClamPayment
[ngp.payment.settings]
clam = clam_module:SETTINGS
"""
FILE = Path("/etc/ngp/net.conf")
CLAM = ("ngp.payment", "clam")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str = SOURCE, points: str = ENTRY_POINTS) -> None:
    """Install a module as pip would, into a folder of the test."""
    monkeypatch.delitem(sys.modules, "clam_module", raising=False)
    monkeypatch.syspath_prepend(folder)
    write(folder, source, points)


def write(folder: Path, source: str = SOURCE, points: str = ENTRY_POINTS) -> None:
    (folder / "clam_module.py").write_text(source)
    info = folder / "clam-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clam\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def clam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    install(tmp_path, monkeypatch)
    return import_module("clam_module")


def read(*lines: str) -> Any:
    return parse("\n".join(("MESH_INTERFACES: eth1", *lines)), FILE)


def problem(*lines: str) -> str:
    with pytest.raises(ConfigError) as refused:
        read(*lines)
    return str(refused.value)


def test_its_keys_are_read_and_given_to_it(clam: Any, tmp_path: Path) -> None:
    settings = read("PAYMENT_INTERFACE: clam", "CLAM_HOST: none", "CLAM_FILE: notes")
    assert settings.modules == {CLAM: {"CLAM_DEPTH": 3, "CLAM_FILE": "/etc/ngp/notes"}}
    main.make_payment(settings, tmp_path)
    assert [(tmp_path, {"CLAM_DEPTH": 3, "CLAM_FILE": "/etc/ngp/notes"})] == clam.MADE
    (line,) = offline.check_payment(read("PAYMENT_INTERFACE: clam", "CLAM_HOST: reef"), tmp_path)
    assert line.found == "clam: not ready within 5 s at reef (CLAM_HOST)"


@pytest.mark.parametrize("kind", ["link", "network"])
def test_so_are_those_of_a_link_or_network_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    install(tmp_path, monkeypatch, points=ENTRY_POINTS.replace("payment", kind))
    settings = read(f"{kind.upper()}_INTERFACE: clam", "CLAM_HOST: reef")
    (main.make_links if kind == "link" else lambda wanted: main.make_network(wanted, tmp_path))(settings)
    assert [options for _, options in import_module("clam_module").MADE] == [{"CLAM_DEPTH": 3, "CLAM_HOST": "reef"}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("CLAM_DEPTH: deep", "net.conf:3: CLAM_DEPTH: 'deep' is not a depth: write for example 3"),
        ("CLAM_DEPTH: [3]", "net.conf:3: CLAM_DEPTH: the list is not a single value: write a number"),
        ("CLAM_DEPHT: 3", "did you mean CLAM_DEPTH?"),
        ("CLAM_PEARLS: white", "CLAM_PEARLS: (value not shown) is for a key that net.conf doesn't have: did you mean"),
        ("CLAM_DEPTH: 7", "net.conf:3: CLAM_DEPTH: (value not shown) makes its module fail (ZeroDivisionError)"),
        ("CLAM_DEPTH: 8", "net.conf:2: PAYMENT_INTERFACE: 'clam' names a module that fails (KeyError): reinstall it"),
        ("CLAM_DEPTH: 10", "net.conf:3: CLAM_DEPTH: '10' needs CLAM_HOST above 9: write it, or less"),
        ("CLAM_DEPTH: 3\nCLAM_DEPTH: 4", "net.conf:4: CLAM_DEPTH: (value not shown) is given twice, first in line 3"),
        ("ACCOUNT_ID: mine", "net.conf:3: ACCOUNT_ID: 'mine' isn't used by clam: remove it"),
        ("CLAM_PEARL: white", "net.conf:3: CLAM_PEARL: (value not shown) is not a depth"),
    ],
)
def test_what_is_wrong_with_them_is_told_as_of_ngps_own(clam: Any, line: str, said: str) -> None:
    told = problem("PAYMENT_INTERFACE: clam", line)
    assert said in told
    assert "\n" not in told and "white" not in told


def test_without_the_module_they_do_not_exist() -> None:
    assert "CLAM_DEPTH: '3' is for a key that net.conf doesn't have" in problem("CLAM_DEPTH: 3")


def test_a_module_that_is_installed_meanwhile_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    os.utime(tmp_path, (1, 1))
    assert "clam" not in installed_modules("ngp.payment")
    write(tmp_path)
    assert "clam" in installed_modules("ngp.payment")


def test_where_another_module_is_in_use_they_are_idle_and_nothing_is_checked(clam: Any) -> None:
    settings = read("CLAM_DEPTH: 10", "ACCOUNT_ID: mine")
    (line,) = payment_keys.without_effect(settings)
    assert line.found == "CLAM_DEPTH: without effect, as PAYMENT_INTERFACE is sandbox"
    assert line.remedy.startswith("PAYMENT_INTERFACE: clam, to use")
    assert not payment_keys.without_effect(read())


def test_a_reload_names_them_for_a_restart_and_keeps_them(clam: Any) -> None:
    old = read("PAYMENT_INTERFACE: clam")
    new = read("PAYMENT_INTERFACE: clam", "CLAM_DEPTH: 4", "CLAM_HOST: reef", "GRACE_TIME: 5")
    found = changes(old, new)
    assert (found.applied, set(found.needs_restart)) == (("GRACE_TIME",), {"CLAM_DEPTH", "CLAM_HOST"})
    assert keep_until_restart(old, new).modules == old.modules


def test_a_file_with_its_secret_is_for_its_owner_alone(clam: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.conf"
    path.write_text("MESH_INTERFACES: eth1\nPAYMENT_INTERFACE: clam\nCLAM_PEARL: 1234567\n")
    for mode in (0o600, 0o640):
        path.chmod(mode)
        settings = load(path)
        assert "1234567" not in repr(settings)
        if mode == 0o600:
            refuse_shown_secret(settings, path)
    with pytest.raises(ConfigError, match=f"holds the pearl of CLAM_PEARL, .*: chmod 600 {path}$"):
        refuse_shown_secret(settings, path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (SOURCE.replace('"CLAM_HOST"', '"CLUMSY_HOST"'), "defines the key CLUMSY_HOST: its keys must begin with CLAM_"),
        (SOURCE.replace('"CLAM_HOST"', '"SELL"'), "defines the key SELL"),
        (SOURCE.replace('default="3"', 'default="deep"'), "refuses its own default of CLAM_DEPTH: update it"),
        (SOURCE.replace("ModuleSettings(\n", "tuple, (\n"), "don't fit this version of ngp: update it"),
        ("import pearls_of_no_package", "can't be loaded (No module named 'pearls_of_no_package')"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_where_it_is_used_and_hinders_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    install(tmp_path, monkeypatch, source)
    told = problem("PAYMENT_INTERFACE: clam")
    assert told.startswith(f"{FILE}:2: PAYMENT_INTERFACE: 'clam' can't be used: ") and said in told
    assert read("LND_HOST: reef").modules == {("ngp.payment", "lnd"): {"LND_HOST": "reef"}}


def test_what_ngp_ships_is_what_setup_cfg_installs() -> None:
    setup = ConfigParser()
    setup.read(Path(__file__).resolve().parent.parent / "setup.cfg")
    points = setup["options.entry_points"]
    assert {group for group in points if group.startswith("ngp.")} == set(SHIPPED)
    for group, modules in SHIPPED.items():
        lines = [line.split(" = ") for line in points[group].strip().splitlines()]
        assert {name: where for name, where in lines} == modules
