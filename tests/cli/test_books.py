"""What listings say about money while no daemon runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ngp.cli import books
from ngp.cli.place import Place


@pytest.mark.parametrize(
    ("module", "kept", "is_real"),
    [
        ("lnd", {"account_id": "02aa", "network": "mainnet"}, True),
        ("lnd", {"account_id": "02aa", "network": "regtest"}, False),
        ("lnd", {}, False),
        ("electrum", {"account_id": "02aa", "network": "mainnet"}, True),
        ("electrum", {"account_id": "02aa", "network": "testnet"}, False),
        ("sandbox", {"account_id": "02aa", "network": "sandbox"}, False),
    ],
)
def test_money_is_real_where_the_node_was_on_mainnet(
    tmp_path: Path, module: str, kept: dict[str, str], is_real: bool
) -> None:
    config = tmp_path / "net.conf"
    config.write_text(f"MESH_INTERFACES: eth1\nPAYMENT_INTERFACE: {module}\n")
    place = Place(str(tmp_path), str(config))
    assert not books.money_is_real(place)  # no node of this module was used here
    (tmp_path / f"{module}-node.json").write_text(json.dumps(kept))
    assert books.money_is_real(place) is is_real
