"""The token bucket of the kernel's programs: never too many tokens, and full at first, however late after a boot."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

HEADER = Path(__file__).resolve().parents[2] / "modules" / "token.h"
SOURCE = f"""
#include "{HEADER}"
int take(__u64 *word, __u64 interval_ns, __u64 burst_ns, __u64 now)
{{
	return take_token(word, interval_ns, burst_ns, now);
}}
"""
HOUR_NS = 3600 * 10**9
Take = Callable[[ctypes.c_uint64, int, int, int], bool]


@pytest.fixture(scope="module")
def take(tmp_path_factory: pytest.TempPathFactory) -> Take:
    library = tmp_path_factory.mktemp("token") / "token.so"
    words = ["gcc", "-O2", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(words, input=SOURCE, text=True, check=True)
    function = ctypes.CDLL(str(library)).take
    function.argtypes = [ctypes.POINTER(ctypes.c_uint64), *[ctypes.c_uint64] * 3]
    return lambda word, *times: bool(function(ctypes.byref(word), *times))


@pytest.mark.parametrize("now", [1, 10**9, 5 * HOUR_NS])
def test_a_new_bucket_is_full_however_long_ago_the_machine_was_booted(take: Take, now: int) -> None:
    word = ctypes.c_uint64()
    assert [take(word, HOUR_NS // 3, HOUR_NS, now) for _ in range(5)] == [True] * 3 + [False] * 2
    assert not take(word, HOUR_NS // 3, HOUR_NS, now + HOUR_NS // 3 - 1)
    assert take(word, HOUR_NS // 3, HOUR_NS, now + HOUR_NS // 3)


@example(5, 5, 2, [0, 0, 0])  # after the first token the word would be 0
@given(
    st.integers(1, 10**18),
    st.integers(1, 10**12),
    st.integers(1, 50),
    st.lists(st.integers(0, 10**13), min_size=1, max_size=60),
)
def test_no_more_tokens_than_a_full_bucket_and_those_that_came_since(
    take: Take, now: int, interval_ns: int, most: int, pauses: list[int]
) -> None:
    word, began, taken = ctypes.c_uint64(), now, 0
    for pause in pauses:
        now += pause
        taken += take(word, interval_ns, most * interval_ns, now)
        assert taken <= most + (now - began) // interval_ns
    assert take(word, interval_ns, most * interval_ns, now + most * interval_ns)
