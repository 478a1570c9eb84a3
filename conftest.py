"""What every test shares: `--long`, which adds the tests that take longer than the usual run allows, and Ctrl-C."""

from __future__ import annotations

import signal

import pytest


def pytest_configure() -> None:
    """Take SIGINT back: a shell starts what runs in its background with it ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer `--long`."""
    parser.addoption("--long", action="store_true", help="run the tests marked `long` as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the long tests unless asked for; a deselection is counted in the summary, and nothing is skipped."""
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]
