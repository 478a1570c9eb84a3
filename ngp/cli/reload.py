"""`ngp reload`: apply a changed net.conf."""

from __future__ import annotations

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import print_result
from ngp.cli.verbs import verb_command


@verb_command("reload")
def command(place: Place) -> int:
    """Make the daemon read its file again."""
    print_result(Daemon(place.state_dir).ask("reload"), "net.conf is read again")
    return 0
