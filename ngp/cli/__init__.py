"""The command line: parse words, ask the daemon, print, exit code. One file per verb; `verbs.py` is their table.

Every error gives one line that begins with `ngp:` and an exit code from docs/operators-guide.md, never a traceback. A
pipe that closes early (`ngp ledger | head`) and Ctrl-C are ordinary ends.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from ngp import __version__
from ngp.cli import streams
from ngp.cli.show import clean
from ngp.cli.verbs import VerbGroup
from ngp.errors import ExitCode, NgpError

_INTERRUPTED = 128 + signal.SIGINT

_HELP = """Network Gatekeeper: routers of a mesh pay each other for forwarding, per kilobyte.

\b
First on the router that sells, then on the router that buys:
  sudo ngp check       what is missing, and how to mend it
  sudo ngp start -v    gate, meter and settle
  ngp top              watch

`ngp VERB --help` explains a verb, with examples.
"""


@click.group(cls=VerbGroup, help=_HELP, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ngp", message="%(prog)s %(version)s")
def ngp() -> None:
    """Network Gatekeeper."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command `ngp` and exit."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code; every error becomes a line on stderr."""
    streams.fill()
    try:
        code = ngp.main(args=arguments, prog_name="ngp", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "ngp"
        return _complain(f"{error.format_message()} See: {path} --help", ExitCode.USAGE)
    except NgpError as error:
        return _complain(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        streams.forget_stdout()
        return ExitCode.OTHER
    except OSError as error:
        streams.forget_stdout()
        return _complain(f"{error.filename or 'output'}: {error.strerror}", ExitCode.OTHER)
    except Exception as error:
        return _complain(f"a defect of ngp ({type(error).__name__}: {error}): please report it", ExitCode.OTHER)
    return int(code or ExitCode.DONE)


def _complain(text: str, exit_code: int) -> int:
    for line in text.splitlines() or ["failed"]:
        streams.note(f"ngp: {clean(line)}")
    return int(exit_code)
