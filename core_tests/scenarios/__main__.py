"""`core_tests/run`: play scenarios, one after the other."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from core_tests.lab import Lab, clean_up_when_interrupted
from core_tests.scenarios import FOLDER, is_long, names, play
from core_tests.session import Backend, MissingError
from core_tests.session_core import in_core
from core_tests.session_namespaces import in_namespaces
from core_tests.session_xml import SessionError

DONE, FAILED, MISSING = 0, 1, 4
BACKENDS: dict[str, Backend] = {"namespaces": in_namespaces, "core": in_core}


def main(words: list[str]) -> int:
    """Play the named scenarios, or all that aren't long; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="core_tests/run",
        description="Play scenarios: sessions of the CORE emulator in which daemons of ngp run, with real traffic that "
        "is counted and compared with the bills.",
        epilog=f"Scenarios: {', '.join(names())}. Their files are in {FOLDER.parent.name}/{FOLDER.name}. "
        "Exit codes: 0 all is as it must be, 1 something isn't, 2 usage or rights, 4 the backend isn't there, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="none: all that take less than minutes")
    text = "what builds the network [%(default)s]"
    parser.add_argument("--backend", choices=BACKENDS, default="namespaces", help=text)
    chosen = parser.parse_args(words)
    if unknown := [name for name in chosen.scenarios if name not in names()]:
        parser.error(f"no scenario is named {', '.join(unknown)}; there are {', '.join(names())}")
    wanted = chosen.scenarios or [name for name in names() if not is_long(name)]
    try:
        failed = [name for name in wanted if not played(name, BACKENDS[chosen.backend])]
    except MissingError as error:
        print(f"\ncore_tests/run: --backend {chosen.backend}: {error}", file=sys.stderr)
        return MISSING
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return FAILED if failed else DONE


def played(name: str, backend: Backend) -> bool:
    """Play a scenario; what fails is printed, with what all hosts knew at that time."""
    print(f"{name}: ", end="", flush=True)
    began = time.monotonic()
    with Lab() as lab:
        try:
            play(name, lab, backend)
        except MissingError:
            raise
        except SessionError as error:
            print(f"FAILED: {error}", flush=True)
            return False
        except Exception:
            print(f"FAILED after {time.monotonic() - began:.1f} s", flush=True)
            print(lab.dump(), file=sys.stderr)
            traceback.print_exc()
            return False
    print(f"as expected ({time.monotonic() - began:.1f} s)", flush=True)
    return True


if __name__ == "__main__":
    clean_up_when_interrupted()
    sys.exit(main(sys.argv[1:]))
