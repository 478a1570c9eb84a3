"""Books: the ledger read without a daemon, as the same rows that the daemon gives.

Only where none runs: what a daemon holds in memory is newer than its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ngp.cli import aftermath, streams
from ngp.cli.place import Place
from ngp.cli.show import clean
from ngp.daemon.state import keep_last_sign
from ngp.errors import ConfigError, RunningError
from ngp.ports import Ledger
from ngp.remembered_node import RememberedNode


@contextmanager
def opened(place: Place, absent: RunningError) -> Iterator[Ledger]:
    """Open the ledger of a daemon that doesn't run.

    What a daemon that was killed left in force is told on stderr.

    Args:
        absent: raised where there is no ledger either.

    Raises:
        RunningError: as given. LedgerError: it can't be read.
    """
    if not place.store.exists():
        raise absent
    said = aftermath.told(place)
    if said:
        streams.note(f"ngp: {clean(said)}")
    keep_last_sign(place.state_dir)
    ledger = place.store.open()
    try:
        yield ledger
    finally:
        ledger.close()


def money_is_real(place: Place) -> bool:
    """Say whether amounts are real money: the node that net.conf means was on mainnet when it was last used.

    What isn't known to be isn't: a test chain's amounts must not be taken for money.
    """
    try:
        module = place.settings().payment_module
    except ConfigError:
        return False
    known = RememberedNode(place.state_dir, module).read()
    return known is not None and known.network == "mainnet"
