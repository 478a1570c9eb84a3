"""`ngp unblock`: allow trade with a blocked neighbour again."""

from __future__ import annotations

import click

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import print_result
from ngp.cli.verbs import verb_command


@verb_command("unblock", click.Argument(["neighbour"]))
def command(place: Place, neighbour: str) -> int:
    """Unblock a neighbour."""
    print_result(Daemon(place.state_dir).ask("unblock", neighbour=neighbour), "it may trade again")
    return 0
