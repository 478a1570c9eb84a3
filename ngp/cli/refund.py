"""`ngp refund`: pay a neighbour's remaining balance back, or ask for ours."""

from __future__ import annotations

import click

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import Progress, print_result
from ngp.cli.verbs import verb_command

_REFUND_S = 120.0


@verb_command(
    "refund",
    click.Argument(["neighbour"]),
    click.Option(["--ask"], is_flag=True, help="Ask the neighbour for our remaining balance."),
)
def command(place: Place, neighbour: str, ask: bool) -> int:
    """Refund a neighbour, or ask it to refund us; the payment may take a while."""
    progress = Progress("waiting for the refund")
    try:
        result = Daemon(place.state_dir, _REFUND_S, progress).ask("refund", neighbour=neighbour, ask=ask)
    finally:
        progress.end()
    print_result(result, "refunded")
    return 0
