"""Calls that LND refuses for lack of rights never began: such a payment isn't pending, unless LND knows it already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest

from ngp.core.payment_node import DecodedInvoice, PaymentOutcome, PaymentStatus
from ngp.errors import PaymentError
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment.lnd import LndPayment
from ngp.modules.payment.lnd_client import SEND_PAYMENT, TRACK_PAYMENT, LndError, Method

PREIMAGE = b"p" * 32
HASH = sha256(PREIMAGE).digest()
PERMISSION = LndError(grpc.StatusCode.UNKNOWN, "permission denied", "the macaroon does not allow it: bake one")
NEVER_HEARD = LndError(grpc.StatusCode.NOT_FOUND, "payment isn't initiated", "refuses")
AWAY = LndError(grpc.StatusCode.UNAVAILABLE, "connection refused", "is it running?")


class Strict:
    """An LND that answers each procedure with an error, or with a payment that succeeded."""

    def __init__(self, **errors: LndError) -> None:
        self._errors = errors

    async def call(self, method: Method[Any, Any], _question: object) -> object:
        if error := self._errors.get(method.name):
            raise error
        return pb.ListChannelsResponse()

    async def stream(self, method: Method[Any, Any], _question: object) -> AsyncIterator[pb.Payment]:
        assert method in (SEND_PAYMENT, TRACK_PAYMENT)
        if error := self._errors.get(method.name):
            raise error
        yield pb.Payment(status=pb.Payment.SUCCEEDED, payment_preimage=PREIMAGE.hex())


def pay(state: Path, monkeypatch: pytest.MonkeyPatch, **errors: LndError) -> PaymentOutcome:
    payment = LndPayment(state)
    payment._client = Strict(**errors)  # type: ignore[assignment]
    decoded = DecodedInvoice(HASH, 1_000, 600, "02" * 33, "regtest", "")
    monkeypatch.setattr(payment, "decode", lambda _bolt11: decoded)
    return asyncio.run(payment.pay("lnbcrt1", 0, 1.0, "02" * 33))


@pytest.mark.parametrize(
    "refused",
    [
        {"SendPaymentV2": PERMISSION, "TrackPaymentV2": PERMISSION},
        {"SendPaymentV2": PERMISSION, "TrackPaymentV2": NEVER_HEARD},
        {"ListChannels": PERMISSION, "TrackPaymentV2": PERMISSION},
    ],
)
def test_a_payment_without_the_right_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: dict[str, LndError]
) -> None:
    failed = pay(tmp_path, monkeypatch, **refused)
    assert (failed.status, failed.reason) == (PaymentStatus.FAILED, str(PERMISSION))


def test_a_payment_that_lnd_knows_is_what_lnd_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pay(tmp_path, monkeypatch, SendPaymentV2=PERMISSION).status is PaymentStatus.SUCCEEDED


@pytest.mark.parametrize("doubt", [AWAY, LndError(grpc.StatusCode.UNKNOWN, "who knows", "refuses")])
def test_a_payment_that_lnd_may_know_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubt: LndError
) -> None:
    with pytest.raises(PaymentError):
        pay(tmp_path, monkeypatch, SendPaymentV2=PERMISSION, TrackPaymentV2=doubt)
    assert pay(tmp_path, monkeypatch, SendPaymentV2=AWAY).status is PaymentStatus.PENDING
