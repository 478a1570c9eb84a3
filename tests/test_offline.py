"""Offline: what a check says of the payment node while no daemon runs, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path

from ngp.config import parse
from ngp.daemon import offline
from ngp.modules.payment import node_key

SETTINGS = parse("MESH_INTERFACES: eth1\n", Path("/etc/ngp/net.conf"))


def test_before_the_first_start_the_sandboxs_node_has_no_name_and_gets_none(tmp_path: Path) -> None:
    for state_dir in (tmp_path / "none yet", tmp_path):
        (check, *_) = offline.check_payment(SETTINGS, state_dir)
        assert check.ok and "node made at the first start; not real money" in check.found
    assert list(tmp_path.iterdir()) == []


def test_the_sandboxs_node_is_named_by_its_key(tmp_path: Path) -> None:
    key = node_key.load_or_make(tmp_path / "sandbox.key")
    (check, *_) = offline.check_payment(SETTINGS, tmp_path)
    assert check.ok and f"node {key.public_key.format().hex()}; not real money" in check.found
