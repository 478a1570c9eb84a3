"""Verbs in forked processes, started from several threads at once, as a scenario starts its daemons."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from core_tests import forked

THREADS = 12
VERBS = 300


def test_verbs_of_several_threads_end_with_their_own_codes() -> None:
    def run(number: int) -> int:
        words = ["--version"] if number % 2 else ["no-such-verb"]
        return forked.Verb(words, dict(os.environ)).run(timeout_s=60.0).returncode

    with ThreadPoolExecutor(THREADS) as pool:
        codes = list(pool.map(run, range(VERBS)))

    assert codes == [0 if number % 2 else 2 for number in range(VERBS)]
