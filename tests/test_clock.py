"""The clock: the host's local time, by which PRICES has times of day."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ngp.daemon.clock import SystemClock


@pytest.fixture
def half_past_five_ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "XYZ-05:30")
        time.tzset()
        yield
    time.tzset()


def test_the_time_of_day_is_local(half_past_five_ahead: None) -> None:
    now = SystemClock().now()
    assert now.utc_offset_s == 19_800
    assert now.local_s == (now.utc_s + 19_800) % 86_400
