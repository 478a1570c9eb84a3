"""What a macaroon allows is read from the macaroon itself: enough, too little, too much, damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngp.errors import ConfigError
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment import macaroon
from ngp.modules.payment.lnd_client import (
    ALWAYS,
    GET_INFO,
    SEND_PAYMENT,
    TO_CHANGE_TOWERS,
    TO_HOLD,
    TO_OPEN_CHANNELS,
    TO_SPEND,
    TO_TELL,
)

ROOT = Path(__file__).resolve().parents[2]


def field(kind: int, content: bytes) -> bytes:
    length = len(content)
    assert length < 1 << 14
    return bytes([kind, length & 0x7F | 0x80, length >> 7]) + content


def baked(*rights: str, caveats: int = 0) -> bytes:
    """A macaroon like LND's, with an invalid signature."""
    ops = [pb.Op(entity=right.partition(":")[0], actions=[right.partition(":")[2]]) for right in rights]
    identifier = b"\x03" + pb.MacaroonId(nonce=b"n" * 16, storageId=b"0", ops=ops).SerializeToString()
    conditions = b"".join(field(2, b"time-before 2030-01-01T00:00:00Z") + b"\0" for _ in range(caveats))
    return b"\x02" + field(1, b"lnd") + field(2, identifier) + b"\0" + conditions + b"\0" + field(6, b"s" * 32)


ADMIN = tuple(
    f"{entity}:{action}"
    for entity in ("address", "info", "invoices", "macaroon", "message", "offchain", "onchain", "peers", "signer")
    for action in ("read", "write")
)


def test_the_line_that_check_prints_bakes_what_is_needed_and_no_more() -> None:
    for spends in (False, True):
        methods = macaroon.needed(spends)
        words = macaroon.bake_line(methods).split()
        assert words[:3] == ["lncli", "bakemacaroon", "--save_to"]
        rights = macaroon.read(baked(*words[4:]))
        assert (rights.missing(methods), rights.beyond(methods)) == ([], [])


def test_a_seller_is_not_given_the_right_to_spend() -> None:
    rights = macaroon.read(baked(*macaroon.bake_line(macaroon.needed(spends=False)).split()[4:]))
    assert not rights.allows(SEND_PAYMENT)
    assert rights.missing(macaroon.needed(spends=True)) == ["SendPaymentV2", "TrackPaymentV2"]


def test_admin_is_warned_about_and_reading_is_not() -> None:
    rights = macaroon.read(baked(*ADMIN, caveats=2))
    assert rights.missing(macaroon.needed(spends=True)) == [] and rights.caveats == 2
    beyond = rights.beyond(macaroon.needed(spends=True))
    assert {"onchain:write", "macaroon:write"} <= set(beyond)
    assert not any(right.endswith(":read") for right in beyond)
    assert rights.allows(GET_INFO)


@given(st.binary(max_size=200))
def test_any_bytes_are_rights_or_an_error_without_them(data: bytes) -> None:
    for text in (data, b"\x02" + data, baked("info:read")[: len(data)]):
        try:
            macaroon.read(text)
        except ConfigError as error:
            assert len(text) < 8 or text.hex() not in str(error)


def test_what_is_no_macaroon_is_refused_by_name() -> None:
    for text in (b"", b"\x01abc", b"-----BEGIN CERTIFICATE-----", baked("info:read")[:40]):
        with pytest.raises(ConfigError, match="bake"):
            macaroon.read(text)


@pytest.mark.parametrize("spends", [True, False])
def test_the_guide_has_the_line_that_check_prints(spends: bool) -> None:
    guide = " ".join((ROOT / "docs/operators-guide.md").read_text().replace("\\\n", " ").split())
    assert f" {macaroon.bake_line([*macaroon.needed(spends), *TO_TELL])} " in guide


def test_the_guide_says_what_each_right_is_for() -> None:
    guide = (ROOT / "docs/operators-guide.md").read_text()
    for methods in (ALWAYS, TO_SPEND, TO_HOLD, TO_TELL, TO_OPEN_CHANNELS, TO_CHANGE_TOWERS):
        assert f"\n| {', '.join(method.name for method in methods)} |" in guide
