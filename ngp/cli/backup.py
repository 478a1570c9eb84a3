"""`ngp backup`: copy the ledger. A running daemon does it itself, so that no other process opens its file."""

from __future__ import annotations

from pathlib import Path

import click

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import Progress
from ngp.cli.streams import say
from ngp.cli.verbs import verb_command
from ngp.errors import RunningError

_COPY_S = 600.0


@verb_command("backup", click.Argument(["file"], type=click.Path(path_type=Path)))
def command(place: Place, file: Path) -> int:
    """Back the ledger up."""
    target = file.absolute()
    progress = Progress("copying the ledger")
    try:
        Daemon(place.state_dir, _COPY_S, progress).ask("backup", file=str(target))
    except RunningError as absent:
        from ngp.cli import books

        with books.opened(place, absent) as ledger:
            ledger.backup(target)
    finally:
        progress.end()
    say(f"the ledger is copied to {target}")
    return 0
