"""`ngp stop`: end the daemon, or clean up after one that was killed. Returns when nothing of it is left."""

from __future__ import annotations

import time
from contextlib import suppress

from ngp.cli.client import BrokenOff, Daemon
from ngp.cli.place import Place
from ngp.cli.show import Progress
from ngp.cli.verbs import verb_command
from ngp.daemon.state import left_behind, running_pid
from ngp.errors import NgpError, RunningError

_MOST_S = 120.0
_PAUSE_S = 0.05


@verb_command("stop")
def command(place: Place) -> int:
    """Stop the daemon."""
    return stop(place)


def stop(place: Place) -> int:
    """Stop the daemon of a place and say what was done. Raises RunningError if there was nothing to stop."""
    progress = Progress("ngp is stopping")
    try:
        with suppress(BrokenOff):  # it has ended, which is what was asked
            Daemon(place.state_dir, _MOST_S, progress).ask("stop")
        _await_end(place, progress)
    except RunningError:
        progress.end()
        if running_pid(place.state_dir) is not None or not left_behind(place.state_dir):
            raise
        _clean_up(place)
        return 0
    finally:
        progress.end()
    if left_behind(place.state_dir):
        _clean_up(place)
    else:
        print("ngp has stopped")
    return 0


def _await_end(place: Place, progress: Progress) -> None:
    began = time.monotonic()
    while (pid := running_pid(place.state_dir)) is not None:
        if (waited_s := time.monotonic() - began) > _MOST_S:
            raise NgpError(f"process {pid} hasn't ended within {_MOST_S:g} s: kill -9 {pid}; ngp stop")
        progress(waited_s)
        time.sleep(_PAUSE_S)


def _clean_up(place: Place) -> None:
    from ngp.daemon import offline  # late: it imports every module, and a daemon that runs cleans up by itself

    offline.clean_up(place.state_dir, place.settings())
    print("ngp wasn't running any more; what it had left in the kernel is removed")
