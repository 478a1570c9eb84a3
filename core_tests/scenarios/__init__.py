"""Scenarios: networks in which daemons run, and what must come of it.

Each is two files of one name: NAME.xml, a session of the CORE emulator, which core-gui opens too; and NAME.py, with a
function `expect(session)`, which sends traffic and asserts. `core_tests/run` plays them, and so does tools/test. One
with LONG = True takes minutes: it is played if it is named, and by `tools/test --long`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from core_tests import session_xml
from core_tests.lab import Lab
from core_tests.session import Backend, Session
from core_tests.session_xml import SessionError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """List the scenarios."""
    return sorted(path.stem for path in FOLDER.glob("*.xml"))


def is_long(name: str) -> bool:
    """Say whether a scenario is played only if it is asked for; one that can't be played isn't, so it is refused."""
    return bool(getattr(_module(name), "LONG", False))


def play(name: str, lab: Lab, backend: Backend) -> None:
    """Play a scenario in a laboratory.

    Raises: SessionError when it can't be played; AssertionError when something isn't as it must be.
    """
    module = _module(name)
    if module is None:
        raise SessionError(f"{name}.xml: {name}.py is missing, with a function `expect(session)`")
    if not hasattr(module, "expect"):
        raise SessionError(f"{name}.py: the function `expect(session)` is missing")
    expect: Callable[[Session], None] = module.expect
    expect(backend(lab, session_xml.read(FOLDER / f"{name}.xml")))


def _module(name: str) -> ModuleType | None:
    """Return the part of a scenario that is Python; None: there is no such file."""
    return import_module(f"{__name__}.{name}") if (FOLDER / f"{name}.py").is_file() else None
