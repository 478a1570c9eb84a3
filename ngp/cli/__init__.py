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

\b
Static addresses from a landlord, and letting your own (docs/staticwire.md):
  sudo ngp rent        rent them, and pay for them; no daemon is needed
  ngp rentals          who rents from this router, with LANDLORD: yes

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
    """Run a verb of `ngp` and return the exit code; every error becomes a line on stderr."""
    return run_command(ngp, "ngp", arguments)


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; every error becomes a line on stderr that begins with its name."""
    streams.fill()
    try:
        code = command.main(args=arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else name
        return _complain(name, f"{error.format_message()} See: {path} --help", ExitCode.USAGE)
    except NgpError as error:
        return _complain(name, str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        streams.forget_stdout()
        return ExitCode.OTHER
    except OSError as error:
        streams.forget_stdout()
        return _complain(name, f"{error.filename or 'output'}: {error.strerror}", ExitCode.OTHER)
    except Exception as error:
        text = f"a defect of {name} ({type(error).__name__}: {error}): please report it"
        return _complain(name, text, ExitCode.OTHER)
    return int(code or ExitCode.DONE)


def _complain(name: str, text: str, exit_code: int) -> int:
    for line in text.splitlines() or ["failed"]:
        streams.note(f"{name}: {clean(line)}")
    return int(exit_code)
