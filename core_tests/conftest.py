"""A laboratory for each test. A failure is printed with the logs and the network state of all hosts."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from core_tests import forked, interface_kinds
from core_tests.daemon import Daemon
from core_tests.lab import Lab

# So that what differs is shown, as in tests.
pytest.register_assert_rewrite("core_tests.scenarios", "core_tests.market", "core_tests.session", "core_tests.trade")

LAB = pytest.StashKey[Lab]()


@pytest.fixture(scope="session", autouse=True)
def forking() -> None:
    """Fork verbs of `ngp` (`core_tests.forked`); start what they are forked from, so that no test leaves it behind."""
    Daemon.forks = True
    forked.prepare()


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give the test an empty laboratory, and undo all of it afterwards."""
    with Lab() as made:
        request.node.stash[LAB] = made
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of all nodes to a failed test's report, while the nodes still exist."""
    report = yield
    made = item.stash.get(LAB, None)
    if made is not None and report.failed and report.when != "teardown":
        report.sections.append(("the laboratory", made.dump()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the kinds of interfaces that weren't tried, so that no kind is left out silently."""
    lacking = [kind for kind in interface_kinds.KINDS if kind not in interface_kinds.present()]
    if lacking and not config.getoption("--all-kinds"):
        terminalreporter.write_line(f"interface kinds not tried, as this kernel lacks them: {', '.join(lacking)}")
