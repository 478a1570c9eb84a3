"""`ngp start`: start the daemon, or with --foreground run it in this process."""

from __future__ import annotations

import click

from ngp.cli.place import Place
from ngp.cli.show import Progress, clean
from ngp.cli.streams import note, say
from ngp.cli.verbs import verb_command
from ngp.daemon import spawn
from ngp.daemon.options import LOG_FILE


@verb_command(
    "start",
    click.Option(["-v", "--verbose"], is_flag=True, help="show the daemon's messages on this terminal too"),
    click.Option(["--foreground"], is_flag=True, help="stay in the foreground, for systemd and containers"),
)
def command(place: Place, verbose: bool, foreground: bool) -> int:
    """Start the daemon."""
    if foreground:
        return _stay(place, verbose)
    place.settings(trusted_only=True, for_daemon=True)  # a bad file is refused here, before anything is made
    progress = Progress("ngp is starting")
    try:
        started = spawn.start_detached(place.config_path, place.state_dir, verbose, progress)
    finally:
        progress.end()
    for warning in started.warnings:
        note(clean(warning))
    where = "" if started.gates else ", without a mesh interface yet: nothing is gated"
    say(f"ngp runs (process {started.pid}){where}; its log is {place.state_dir / LOG_FILE}")
    return 0


def _stay(place: Place, verbose: bool) -> int:
    reporter = spawn.Reporter()
    with reporter.telling_errors():
        place.settings(trusted_only=True, for_daemon=True)
        return spawn.run_here(place.config_path, place.state_dir, verbose, reporter)
