"""Helper: a Python process of the benchmark's own that runs in a host and is controlled by lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from core_tests.host import Host
from core_tests.shell import LabError


class Helper:
    """A helper process: input is one JSON list a line, output one JSON value a line, the first when it is ready.

    Args:
        module: run by `python -m`, with these arguments.
    """

    def __init__(self, host: Host, module: str, *words: str) -> None:
        self._module = module
        self._process = host.popen(sys.executable, "-m", module, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answer()

    def ask(self, verb: str, *arguments: object) -> Any:
        """Send a command and return the answer. Raises: LabError when the process has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Let the process clean up, and end it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            raise LabError(f"{self._module} ended by itself; its output is above")
        return json.loads(text)
