"""The payment node is remembered, for a start while it is down, and to notice when another one takes its place."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ngp.errors import PaymentError
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment.lnd import LndPayment
from ngp.ports.payment import PaymentInfo
from ngp.remembered_node import RememberedNode, swapped

KEY = "02" * 33


class Node:
    """An LND of which only key and addresses change."""

    def __init__(self, *addresses: str) -> None:
        self.key = KEY
        self.addresses = addresses

    async def call(self, _method: object, _message: object) -> pb.GetInfoResponse:
        uris = [f"{self.key}@{address}" for address in self.addresses]
        return pb.GetInfoResponse(identity_pubkey=self.key, chains=[pb.Chain(network="regtest")], uris=uris)


def test_where_the_node_is_reached_is_kept_and_may_change(tmp_path: Path) -> None:
    for addresses in (("10.0.0.9:9735",), ("10.0.0.9:9735", "[2001:db8::9]:9735"), ()):
        payment = LndPayment(tmp_path)
        payment._client = Node(*addresses)  # type: ignore[assignment]
        assert asyncio.run(payment.info()).addresses == addresses
        kept = RememberedNode(tmp_path, "lnd").read()
        assert kept == PaymentInfo(KEY, "regtest") and kept.addresses == addresses


def test_a_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "lnd-node.json").write_text(f'{{"account_id": "{KEY}", "network": "regtest"}}')
    assert RememberedNode(tmp_path, "lnd").read() == PaymentInfo(KEY, "regtest")
    (tmp_path / "lnd-node.json").write_text("[]")
    assert RememberedNode(tmp_path, "lnd").read() is None


def test_a_node_is_used_though_nothing_can_be_kept_of_it(tmp_path: Path) -> None:
    """As on a full disk: an error that isn't a PaymentError would stop the daemon."""
    payment = LndPayment(tmp_path / "gone")
    payment._client = Node("10.0.0.9:9735")  # type: ignore[assignment]
    assert asyncio.run(payment.info()) == PaymentInfo(KEY, "regtest")


def test_another_node_in_place_of_the_one_in_use_is_refused_and_not_kept(tmp_path: Path) -> None:
    """Another node wouldn't know the payments that are on their way at the node in use.

    At a start the operator may choose another node.
    """
    file = RememberedNode(tmp_path, "electrum")
    ours, other = PaymentInfo(KEY, "regtest"), PaymentInfo("03" * 33, "signet")
    assert file.confirm(ours, "Electrum", None) == file.confirm(ours, "Electrum", ours) == ours
    with pytest.raises(PaymentError) as refused:
        file.confirm(other, "Electrum", ours)
    assert str(refused.value) == (
        f"Electrum is another node now ({'03' * 33} on signet, before {KEY} on regtest): connect the "
        "former node again; or, if you intended this and ngp accounts shows no payment on its way, restart ngp"
    )
    assert file.read() == ours
    assert file.confirm(other, "Electrum", None) == file.read() == other


def test_a_node_that_was_chosen_is_right_though_the_file_still_names_the_one_before(tmp_path: Path) -> None:
    file, other = RememberedNode(tmp_path, "lnd"), PaymentInfo("03" * 33, "regtest")
    file.keep(PaymentInfo(KEY, "regtest"))
    file.keep = lambda info: None  # type: ignore[method-assign]  # as on a full disk
    assert file.confirm(other, "LND", None) == file.confirm(other, "LND", other) == other


def test_lnd_in_use_may_not_become_another_node(tmp_path: Path) -> None:
    payment, node = LndPayment(tmp_path), Node()
    payment._client = node  # type: ignore[assignment]
    asyncio.run(payment.info())
    node.key = "03" * 33
    with pytest.raises(PaymentError, match="LND is another node now"):
        asyncio.run(payment.confirm_node())
    assert asyncio.run(payment.info()) == PaymentInfo(KEY, "regtest")


def test_a_look_at_another_node_leaves_the_remembered_one(tmp_path: Path) -> None:
    ours, other = PaymentInfo(KEY, "regtest"), PaymentInfo("03" * 33, "signet")
    remembered = RememberedNode(tmp_path, "lnd")
    with remembered.unchanged() as known:
        assert known is None
    remembered.keep(ours)
    with remembered.unchanged() as known:
        assert known == ours and not swapped(known, ours)
        said = swapped(known, remembered.confirm(other, "LND", None))
        assert said.endswith(f"now {'03' * 33} on signet, before {KEY} on regtest")
    assert remembered.read() == ours
