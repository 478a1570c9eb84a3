"""Books: reads the ledger without a daemon, into the same rows that a daemon gives.

Don't use it while a daemon runs: the daemon has newer data in memory than in the file.
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

    Prints on stderr what a killed daemon left in force.

    Args:
        absent: raised if there is no ledger either.

    Raises:
        RunningError: as given. LedgerError: it can't be read.
    """
    store = place.store
    if not store.exists():
        raise absent
    said = aftermath.told(place)
    if said:
        streams.note(f"ngp: {clean(said)}")
    keep_last_sign(place.state_dir)
    ledger = store.open()
    try:
        yield ledger
    finally:
        ledger.close()


def money_is_real(place: Place) -> bool:
    """Say whether amounts are real money: whether net.conf's payment node was on mainnet when it was last used.

    False if unknown: nobody must take a test chain's amounts for money.
    """
    try:
        module = place.settings().payment_module
    except ConfigError:
        return False
    known = RememberedNode(place.state_dir, module).read()
    return known is not None and known.network == "mainnet"
