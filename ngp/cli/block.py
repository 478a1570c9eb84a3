"""`ngp block`: stop all trade with a neighbour."""

from __future__ import annotations

import click

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import print_result
from ngp.cli.verbs import verb_command


@verb_command("block", click.Argument(["neighbour"]))
def command(place: Place, neighbour: str) -> int:
    """Block a neighbour."""
    print_result(Daemon(place.state_dir).ask("block", neighbour=neighbour), "blocked")
    return 0
