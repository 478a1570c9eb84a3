"""Next layout: a made-up later version of ngp, whose kernel tables differ from ours, to try an upgrade with.

In that version contracts count in other places, a table has another name, and LAYOUT is the next number. `make`
compiles its kernel part. `pretend` makes a running process that version; PYTHONPATH=`import_path` does so from its
start on.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

from core_tests.shell import ROOT
from ngp.modules.network import bpf, contracts, layout

OBJECT = "meter.bpf.o"
LABELS = "ngp_notes"
_DIES = "dies"
_SOURCES = ROOT / "modules" / "network"
_EDITS = (
    (f"#define LAYOUT {layout.LAYOUT}\n", f"#define LAYOUT {layout.LAYOUT + 1}\n"),
    ("__u64 used, used_to, mark;", "__u64 used_to, used, mark;"),
)
_BEGIN = """from pathlib import Path
from core_tests import next_layout
next_layout.pretend(setattr, Path(__file__).parent)
"""


def make(folder: Path) -> Path:
    """Compile that version's programs into a folder, and return it: Python with it in PYTHONPATH is that version."""
    sources = folder / _SOURCES.name
    for shared in _SOURCES.parent.glob("*.h"):
        shutil.copy(shared, folder)
    shutil.copytree(_SOURCES, sources, ignore=shutil.ignore_patterns("*.py", "*.o", "__pycache__"))
    header = sources / "meter.h"
    text = header.read_text()
    for old, new in _EDITS:
        assert text.count(old) == 1, f"meter.h has no {old!r} (any more)"
        text = text.replace(old, new)
    header.write_text(text)
    include = ["-idirafter", f"/usr/include/{sysconfig.get_config_var('MULTIARCH') or ''}"]
    renamed = f"-D{layout.LABELS}={LABELS}"
    command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", *include, renamed, "-c", "meter.bpf.c", "-o"]
    subprocess.run([*command, str(folder / OBJECT)], cwd=sources, check=True, timeout=300)
    (folder / "sitecustomize.py").write_text(_BEGIN)
    return folder


def import_path(folder: Path) -> str:
    """Return the PYTHONPATH of that version. Args: folder: what `make` returned."""
    return f"{folder}{os.pathsep}{ROOT}"


def die_in(folder: Path, function: str) -> None:
    """Let each process of that version die where it calls a function (`module:name`); "" ends this."""
    (folder / _DIES).write_text(function)


def pretend(put: Callable[[object, str, object], object], folder: Path) -> None:
    """Make this process that version. Args: put: like `setattr`, perhaps to be undone. folder: what `make` returned."""
    put(layout, "LAYOUT", layout.LAYOUT + 1)
    put(layout, "TABLES", tuple(LABELS if name == layout.LABELS else name for name in layout.TABLES))
    put(layout, "LABELS", LABELS)
    put(contracts, "USED", layout.USED_TO)
    put(contracts, "USED_TO", layout.USED)
    put(bpf, "object_path", lambda: folder / OBJECT)
    if (folder / _DIES).exists() and (function := (folder / _DIES).read_text()):
        module, _, name = function.partition(":")
        put(importlib.import_module(module), name, lambda *_words, **_more: os.kill(os.getpid(), signal.SIGKILL))
