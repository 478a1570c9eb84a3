"""A laboratory for each test; when a test fails, what all of its hosts know is printed with the failure."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from core_tests.lab import Lab

LAB = pytest.StashKey[Lab]()


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
    """Add the logs of all nodes to a failed test's report, while the nodes still stand."""
    report = yield
    made = item.stash.get(LAB, None)
    if made is not None and report.failed and report.when != "teardown":
        report.sections.append(("the laboratory", made.dump()))
    return report
