"""Signed messages agree with those of lnd and others; the key file is private and never replaced without a word."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from coincurve import PrivateKey

from ngp import node_key
from ngp.errors import PaymentError


def test_a_signature_of_a_real_node_is_read() -> None:
    # Published by an lnd user, who asked for exactly this in Core Lightning; rust-lightning tests the same message.
    signature = (
        "rbgfioj114mh48d8egqx8o9qxqw4fmhe8jbeeabdioxnjk8z3t1ma1hu1fiswpakgucwwzwo6ofycffbsqusqdimugbh41n1g698hr9t"
    )
    payee = "02b80cabdf82638aac86948e4c06e82064f547768dcef977677b9ea931ea75bab5"
    assert node_key.signer(b"is this compatible?", signature) == payee
    assert node_key.signer(b"is this compatible", signature) != payee


def test_own_signatures_are_read_back_and_bound_to_the_message() -> None:
    key = PrivateKey()
    signature = node_key.sign(key, b"message")
    assert len(signature) == 104
    assert node_key.signer(b"message", signature) == key.public_key.format().hex()
    assert node_key.signer(b"messagf", signature) != key.public_key.format().hex()


@pytest.mark.parametrize("signature", ["", "y" * 104, "9" * 104, "\u0661" * 104, "d" * 103, "l" * 104])
def test_what_is_no_signature_is_nobodys(signature: str) -> None:
    assert node_key.signer(b"message", signature) is None


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "sandbox.key"
    key = node_key.load_or_make(path)
    assert node_key.load_or_make(path).secret == key.secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert node_key.load_or_make(tmp_path / "other").secret != key.secret


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 32, b"\xff" * 32, b"k" * 33])
def test_a_spoilt_key_file_is_named_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sandbox.key"
    path.write_bytes(content)
    with pytest.raises(PaymentError, match=r"sandbox\.key"):
        node_key.load_or_make(path)
    assert path.read_bytes() == content


def test_a_folder_in_the_keys_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(PaymentError, match=tmp_path.name):
        node_key.load_or_make(tmp_path)
