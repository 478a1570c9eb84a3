"""The direction of imports: cli -> daemon -> core <- modules.

Imports are read from the syntax trees, so those inside functions or under TYPE_CHECKING count as well. If the core
could reach a socket, it would sooner or later decide by what it finds there, and its transcripts would prove nothing.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Time, randomness and everything else from outside enter the core as arguments. Logging is allowed, as it returns
# nothing.
NO_BUSINESS_IN_CORE = {
    *("asyncio", "builtins", "concurrent", "ctypes", "datetime", "fcntl", "http", "importlib", "io"),
    *("mmap", "multiprocessing", "os", "pathlib", "random", "secrets", "select", "selectors", "shutil"),
    *("signal", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys", "syslog", "tempfile"),
    *("threading", "time", "urllib", "uuid", "zoneinfo"),
}
BETWEEN = tuple(
    f"ngp.{name}"
    for name in (
        *("ports", "errors", "calls", "durable_file", "identity", "invoice", "key_file", "module_keys"),
        *("node_key", "remembered_node"),
    )
)
BY_ALL_MODULES = tuple(f"ngp.modules.{name}" for name in ("bpf", "commands", "netlink", "routing_rules", "rtnetlink"))
SHARED_WITH_MODULES = (*BETWEEN, "ngp.core", *BY_ALL_MODULES)


def modules_of_project() -> dict[str, Path]:
    """Map every module's name, as it is imported once installed, to its file."""
    found = {}
    for folder, package in ((ROOT / "ngp", "ngp"), (ROOT / "modules", "ngp.modules")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if parts[0] == "modules" and package == "ngp":
                continue  # the link to ../modules, whose files are found there
            name = ".".join((package, *parts))
            found[name.removesuffix(".__init__")] = file
    return found


def imports_of(name: str, source: str, *, is_package: bool = False) -> Iterator[str]:
    """Yield the full name of every import in a source text, wherever it is."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            # `from ngp import cli` names a module too. If it names a value instead, that does no harm here.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(imported: str, *packages: str) -> bool:
    """Say whether an import is one of the packages, or something in one of them."""
    return any(imported == package or imported.startswith(f"{package}.") for package in packages)


def fault(name: str, imported: str) -> str | None:
    """Return why a module may not import this, or None."""
    top = imported.partition(".")[0]
    ours = top in ("ngp", "modules", "tests", "core_tests")
    if within(imported, "modules", "tests", "core_tests"):
        return "the product imports ngp only"
    if within(imported, "ngp.cli") and not within(name, "ngp.cli", "ngp.__main__"):
        return "nothing imports the command line"
    if within(name, "ngp.core"):
        if ours:
            sides = ("ngp.core.selling", "ngp.core.buying")
            if any(within(name, one) and within(imported, other) for one, other in (sides, sides[::-1])):
                return "neither side of a trade knows the other"
            return None if within(imported, "ngp.core") else "the core knows only itself"
        if top not in sys.stdlib_module_names:
            return "the core uses the standard library only"
        return "the core does no input or output, and has no clock or chance" if top in NO_BUSINESS_IN_CORE else None
    if within(name, "ngp.modules"):
        group = ".".join(name.split(".")[:3])
        allowed = within(imported, *SHARED_WITH_MODULES) or (group != "ngp.modules" and within(imported, group))
        why = "a module knows ports, errors, core values, libbpf, commands, netlink and its own group"
        return why if ours and not allowed else None
    if within(name, *BETWEEN) and ours:
        allowed = within(imported, "ngp.core", *BETWEEN)
        return None if allowed else "ports and errors know core values only"
    if within(imported, "ngp.modules"):
        return "modules are found by entry points, so that anybody can add one"
    if within(imported, "ngp.store.sqlite", "ngp.store.postgresql") and not within(name, "ngp.store"):
        return "ledgers are known by their port; ngp.store alone chooses one"
    if within(imported, "ngp.daemon") and not within(name, "ngp.daemon", "ngp.cli", "ngp.__main__"):
        return "only the command line knows the daemon"
    return None


def faults_in(name: str, source: str, *, is_package: bool = False) -> list[str]:
    """List the imports of a module that point the wrong way."""
    imports = sorted(set(imports_of(name, source, is_package=is_package)))
    return [f"{name} imports {imported}: {why}" for imported in imports if (why := fault(name, imported))]


def test_imports_point_one_way() -> None:
    modules = modules_of_project()
    assert {"ngp.core.pricing", "ngp.ports", "ngp.modules.network"} <= modules.keys()
    faults = [
        line
        for name, file in modules.items()
        for line in faults_in(name, file.read_text(), is_package=file.name == "__init__.py")
    ]
    assert not faults, "\n".join(faults)


def test_every_folder_of_the_product_is_installed() -> None:
    """A folder that setup.cfg doesn't name works in a checkout, and is missing on a router."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {
        name if file.name == "__init__.py" else name.rpartition(".")[0] for name, file in modules_of_project().items()
    }
    assert set(setup["options"]["packages"].split()) == folders


def test_no_modules_of_the_core_import_each_other() -> None:
    core = {name: file for name, file in modules_of_project().items() if name.startswith("ngp.core.")}
    imported = {
        name: {other for one in imports_of(name, file.read_text()) for other in core if within(one, other)}
        for name, file in core.items()
    }
    try:
        tuple(TopologicalSorter(imported).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ngp.core.policy", "import time"),
        ("ngp.core.policy", "def late():\n    from os import path"),
        ("ngp.core.policy", "import msgpack"),
        ("ngp.core.policy", "from ngp.ports import Link"),
        ("ngp.core.policy", "from .. import wire"),
        ("ngp.core.policy", "from ..store import ledger"),
        ("ngp.modules.link.udp", "from ngp.modules.network import gate"),
        ("ngp.modules.link.udp", "from ngp import daemon"),
        ("ngp.modules.link.udp", "from ..payment import sandbox"),
        ("ngp.modules.link.udp", "import modules.link.ethernet"),
        ("ngp.modules.link.udp", "import ngp.wire"),
        ("ngp.modules.bpf", "from ngp.modules.network import gate"),
        ("ngp.daemon.loop", "from ngp.cli import main"),
        ("ngp.daemon.loop", "from ngp.modules.link import udp"),
        ("ngp.store.sqlite.ledger", "from ngp.daemon import loop"),
        ("ngp.daemon.loop", "from ngp.store.sqlite.ledger import SqliteLedger"),
        ("ngp.daemon.loop", "from ngp.store.postgresql import PostgresStore"),
        ("ngp.ports", "from ngp.daemon import loop"),
        ("ngp.daemon.loop", "from core_tests.lab import Lab"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_found(name: str, source: str) -> None:
    assert faults_in(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ngp.core.policy", "import enum\nfrom ngp.core.records import ContractRecord\nfrom .pricing import price"),
        ("ngp.modules.link.udp", "import socket\nfrom ngp.ports import Link\nfrom ngp.modules.link import frames"),
        ("ngp.modules.link.udp", "from .frames import Frame"),
        ("ngp.modules.link.inlet", "from ngp.modules.bpf import Table"),
        ("ngp.cli.stop", "from ngp.daemon import control\nfrom ngp.cli import words"),
        ("ngp.daemon.loop", "from ngp.core import policy\nfrom ngp.store import at\nimport asyncio"),
    ],
)
def test_an_import_that_points_the_right_way_passes(name: str, source: str) -> None:
    assert not faults_in(name, source)
