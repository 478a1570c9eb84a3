"""Fixtures that several files use: charges without packets, and the landlord's tunnel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from charge_lab import ChargeLab, build, charge_lab
from tunnel_lab import Built, tunnel_lab

from core_tests import interface_kinds


@pytest.fixture(scope="session")
def charge_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's programs, compiled once."""
    return build(tmp_path_factory.mktemp("charge"))


@pytest.fixture
def lab(charge_object: Path) -> Iterator[ChargeLab]:
    """Fresh tables, and the programs that use them."""
    with charge_lab(charge_object) as loaded:
        yield loaded


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try the tunnel with wireguard-go, and with the kernel's WireGuard where there is one.

    With `--all-kinds`, as on a distribution's own kernel, both are tried, and one that is missing fails.
    """
    if "tunnel_kind" in metafunc.fixturenames:
        has_kernel = metafunc.config.getoption("--all-kinds") or interface_kinds.has("wireguard")
        metafunc.parametrize("tunnel_kind", ["userspace", *["kernel"] * has_kernel])


@pytest.fixture
def built(tunnel_kind: str) -> Iterator[Built]:
    """The laboratory of the tunnel, whose pools are routed to the landlord, and the tunnel."""
    with tunnel_lab(tunnel_kind) as made:
        made[0].route_pools()
        yield made
