"""A few names are all listed; of many, the first three."""

from __future__ import annotations

import pytest

from ngp.core.listing import listed


@pytest.mark.parametrize(
    ("names", "commas", "semicolons"),
    [
        ("", "", ""),
        ("a", "a", "a"),
        ("abc", "a, b, c", "a; b; c"),
        ("abcd", "a, b, c and 1 more", "a; b; c; and 1 more"),
        ("abcdefghijklm", "a, b, c and 10 more", "a; b; c; and 10 more"),
    ],
)
def test_the_first_three_are_named_and_the_others_counted(names: str, commas: str, semicolons: str) -> None:
    assert listed(iter(names)) == commas
    assert listed(names, "; ") == semicolons
