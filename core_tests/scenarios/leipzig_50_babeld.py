"""Fifty nodes of a real network whose routes babeld finds, with random traffic over up to eight links: each node pays
its next one and is paid by others, and at the end all ledgers come to zero."""

from __future__ import annotations

from core_tests import mesh_traffic
from core_tests.session import Session

LONG = True
FLOWS = 100


def expect(session: Session) -> None:
    mesh_traffic.expect(session, FLOWS)
