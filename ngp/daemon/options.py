"""Options: what `ngp start` hands to the daemon, and the names of the files in the state directory.

The names are defined here because both sides of the control socket need them: the daemon makes the files, every verb
looks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DEFAULT_STATE_DIR = Path("/var/lib/ngp")
CONTROL_SOCKET = "control.sock"
PID_FILE = "ngp.pid"
LOG_FILE = "ngp.log"
GROUP = "ngp"
"""If the system has this group, its members may use the control socket."""


def _quiet(_what: str) -> None:
    """Ignore progress."""


@dataclass(frozen=True, slots=True)
class StartOptions:
    """How the daemon was asked to start.

    Attributes:
        config_path: net.conf; loaded again at every reload.
        state_dir: where ledger, keys and socket live, already decided (--state-dir, NGP_STATE_DIR, STATE_DIR); it
            exists, and this process holds its lock.
        ready: to be called once when gate and link are ready, with whether an interface is gated; it notifies
            `ngp start` and systemd.
        progress: to be called, as often as is useful, with a few words about what a slow start waits for.
    """

    config_path: Path
    state_dir: Path
    ready: Callable[[bool], None]
    progress: Callable[[str], None] = _quiet
