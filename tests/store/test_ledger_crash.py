"""kill -9 at any instant: everything that was committed is in the ledger, and nothing is there by halves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from adapters import ADAPTERS
from ledger_records import NOW

import ngp

ROOT = Path(ngp.__file__).parent.parent
KILLS = 20

WRITER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from ledger_records import NOW, account, contract, journal, payment
from ngp.core.records import CursorRecord, PaymentState
from adapters import ADAPTERS
ledger = ADAPTERS[sys.argv[4]](Path(sys.argv[1])).store.open()
boot = ledger.next_boot()
done = ledger.load(NOW).cursor
print("boot", boot, flush=True)
while True:
    done += 1
    paid = payment(done, state=PaymentState.SETTLED, amount_msat=1000, settled_at_s=NOW)
    ledger.commit([
        payment(done, amount_msat=1000), paid, contract(done, charged_msat=10, closed_at_s=NOW - 90 * 86400),
        account(paid_msat=1000 * done, charged_msat=10 * done), CursorRecord(done),
        journal("payment", amount_msat=1000, payment_hash=paid.payment_hash, state="settled"),
    ], durable=done % 3 == 0)
    if done % 7 == 0:
        ledger.prune(NOW + 86400)
    if done % 50 == 0:
        ledger.backup(Path(sys.argv[1]) / "copy")
    print("done", done, flush=True)
"""


def write_until_killed(folder: Path, name: str, after_s: float) -> tuple[int, int]:
    """Return the boot counter, and the last transaction that the writer reported as committed."""
    command = [sys.executable, "-c", WRITER, str(folder), str(ROOT), str(Path(__file__).parent), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline().split()
        timer = threading.Timer(after_s, os.kill, (writer.pid, signal.SIGKILL))
        timer.start()
        lines = [line.split() for line in writer.stdout if line.endswith("\n")]
        timer.join()
        assert writer.wait() == -signal.SIGKILL, writer.stderr
    return int(first[1]), int(lines[-1][1]) if lines else 0


@pytest.mark.parametrize("name", ADAPTERS)
def test_kill_at_random_instants_loses_and_halves_nothing(tmp_path: Path, name: str) -> None:
    adapter = ADAPTERS[name](tmp_path)
    chance = random.Random(20)
    last = 0
    for kill in range(KILLS):
        boot, seen = write_until_killed(tmp_path, name, chance.uniform(0.0, 0.15))
        assert boot == 2 * kill + 1  # the writer's start, and ours below
        ledger = adapter.store.open()
        snapshot = ledger.load(NOW)
        done = snapshot.cursor
        # the writer may have committed one more than it could report
        assert max(last, seen) <= done, "a committed transaction is gone"
        assert done <= max(last, seen) + 1
        if done:
            (only,) = snapshot.accounts
            assert (only.paid_msat, only.charged_msat) == (1000 * done, 10 * done)
            assert len(snapshot.payments) == done
        assert adapter.store.audit(60.0) == ([], "")
        assert ledger.next_boot() == boot + 1
        ledger.close()
        last = done
    assert last > KILLS, "the writer wrote too little, so the test shows nothing"
    copy = tmp_path / "copy"
    if copy.exists():
        assert adapter.restored(copy).audit(60.0) == ([], "")
