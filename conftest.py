"""What every test shares: `--long`, which adds what the usual run has no time for, who begins first, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# The machine is busy, so nothing hangs on how long an example takes. A failure prints the line that repeats it. Tests
# whose examples take long ask for a part of `settings.default.max_examples`, so that --long reaches them as well.
settings.register_profile(
    "usual", max_examples=100, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", settings.get_profile("usual"), max_examples=1000)


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a test process, before it imports any test.

    SIGINT is taken back: a shell starts what runs in its background with it ignored, and children inherit that. The
    lock of iptables-legacy is the process's own: its tests have networks of their own, and others hold the machine's.
    """
    descriptor, lock = tempfile.mkstemp(prefix="ngpt-xtables-")
    os.close(descriptor)
    config.add_cleanup(lambda: os.unlink(lock))
    os.environ["XTABLES_LOCKFILE"] = lock
    os.environ["GRPC_VERBOSITY"] = "NONE"  # as the payment modules have it, whichever a test imports first
    os.environ["GOGC"] = "400"  # Lightning nodes: memory is there, and a tenth of their time went to collecting it
    settings.load_profile("long" if config.getoption("--long") else "usual")
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer `--long` and how long that is."""
    text = "run the tests marked `long` as well, and try ten times the examples"
    parser.addoption("--long", action="store_true", help=text)
    text = "try every kind of interface, also those that this kernel lacks: they fail"
    parser.addoption("--all-kinds", action="store_true", help=text)
    text = "how often --long kills each daemon and node at each step of a payment"
    parser.addoption("--rounds", type=int, default=50, help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the tests and their order; where several processes run them, what takes longest begins first."""
    if not config.getoption("--long"):
        _deselect_long(config, items)
    if hasattr(config, "workerinput"):
        items.sort(key=_begins)


def _begins(item: pytest.Item) -> int:
    """Say in which rank a test begins: were a long one the last, other processors would have nothing left to do."""
    if item.get_closest_marker("xdist_group"):  # a laboratory of real nodes, and all the tests on it
        return 0
    if item.get_closest_marker("first"):
        return 1
    folders = ("core_tests", "tests/modules", "tests/cli")  # daemons, the kernel, processes; then what has none
    return 2 + next((rank for rank, name in enumerate(folders) if item.nodeid.startswith(name)), len(folders))


def _deselect_long(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out the long tests; a deselection is counted in the summary, and nothing is skipped."""
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]
