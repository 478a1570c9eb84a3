"""Puts `fake_main.py` in the place of ngp.daemon.main, in every Python that has this folder on its path."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

FAKE = Path(__file__).with_name("fake_main.py")


class Finder:
    """Finds one module."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the fake for the daemon's main module."""
        return importlib.util.spec_from_file_location(name, FAKE) if name == "ngp.daemon.main" else None


sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
