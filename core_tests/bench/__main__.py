"""Measure ngp beside plain kernel forwarding, in network namespaces of its own, and print the figures.

Every figure comes from this run; none is kept from an earlier one. If parts are named, the others are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from core_tests.bench import (
    billing,
    contracts,
    flood,
    forwarding,
    latency,
    lightning,
    mesh,
    pages,
    rentals,
    report,
    tunnel,
)
from core_tests.counter import CounterError
from core_tests.lab import clean_up_when_interrupted
from core_tests.shell import LabError

PARTS: dict[str, Callable[[bool], None]] = {
    "forwarding": forwarding.run,
    "billing": billing.run,
    "latency": latency.run,
    "mesh": mesh.run,
    "contracts": contracts.run,
    "flood": flood.run,
    "pages": pages.run,
    "lightning": lightning.run,
    "tunnel": tunnel.run,
    "rentals": rentals.run,
}


def main(words: list[str]) -> int:
    """Run the named parts, or all; returns the exit code: 1 when something could not be measured."""
    parser = argparse.ArgumentParser(
        prog="tools/bench", description=__doc__, epilog=_parts_text(), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("parts", nargs="*", metavar="PART", help="one of those below; none: all, one after another")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, smaller numbers: rough figures")
    chosen = parser.parse_args(words)
    unknown = [part for part in chosen.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part is named {', '.join(unknown)}; there are {', '.join(PARTS)}")
    clean_up_when_interrupted()
    began = time.monotonic()
    report.head("The machine")
    for text in report.describe_machine():
        print(f"  {text}")
    failed = [part for part in PARTS if part in (chosen.parts or PARTS) and not _measure(part, chosen.quick)]
    print(f"\neverything took {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def _parts_text() -> str:
    """Return what each part measures: the first line of its module."""
    said = {part: (sys.modules[run.__module__].__doc__ or "").partition(": ")[2] for part, run in PARTS.items()}
    lines = [f"  {part:<11} {text.splitlines()[0].rstrip(',')}" for part, text in said.items()]
    return "\n".join(["parts:", *lines, "", "docs/performance.md explains the figures."])


def _measure(part: str, quick: bool) -> bool:
    """Run one part; if it fails, the others still run."""
    try:
        PARTS[part](quick)
    except (LabError, CounterError) as error:
        print(f"bench: {part}: {error}", file=sys.stderr, flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
