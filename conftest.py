"""What every test shares: `--long`, which adds tests and examples that the usual run has no time for, and Ctrl-C."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings

# The machine is busy, so nothing hangs on how long an example takes. A failure prints the line that repeats it. Tests
# whose examples take long ask for a part of `settings.default.max_examples`, so that --long reaches them as well.
settings.register_profile(
    "usual", max_examples=100, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", settings.get_profile("usual"), max_examples=1000)


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples a property is tried with, before tests are imported.

    Take SIGINT back: a shell starts what runs in its background with it ignored, and children inherit that.
    """
    settings.load_profile("long" if config.getoption("--long") else "usual")
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer `--long`."""
    text = "run the tests marked `long` as well, and try ten times the examples"
    parser.addoption("--long", action="store_true", help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the long tests unless asked for; a deselection is counted in the summary, and nothing is skipped."""
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]
