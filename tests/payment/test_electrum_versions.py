"""Differences between Electrum's versions: each gets its own form of a call, and one that is too old is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_electrum import INFO, NODE, FakeElectrum, Internal, Refused, with_electrum

from ngp.errors import PaymentError
from ngp.modules.payment.electrum import ElectrumPayment

HASH = bytes(range(32))


class Wallet:
    """A wallet that isn't loaded at first.

    Args: answer: of load_wallet; True and None load it, other values are raised.
    """

    def __init__(self, daemon: FakeElectrum, answer: bool | Internal | None) -> None:
        self.answer, self._is_loaded = answer, False
        daemon.say |= {"nodeid": self._nodeid, "load_wallet": self._load_wallet}

    def _nodeid(self, **_: Any) -> str:
        if not self._is_loaded:
            raise Refused("wallet not loaded")
        return NODE

    def _load_wallet(self, **_: Any) -> bool | None:
        if isinstance(self.answer, Internal):
            raise self.answer
        self._is_loaded = self.answer is not False
        return self.answer


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (False, "electrum load_wallet"),
        (Internal("InvalidPassword('No password given')"), "electrum load_wallet"),
        (Internal("OSError(5, 'EIO')"), r"load_wallet: OSError\(5, 'EIO'\)"),
    ],
)
@pytest.mark.parametrize("then", [True, None])
def test_a_wallet_is_loaded_or_the_remedy_is_named(
    tmp_path: Path, answer: bool | Internal, says: str, then: bool | None
) -> None:
    """Electrum 4.3 answers whether it loaded the wallet.

    Electrum 4.5 answers nothing if it loaded it, and else names an exception.
    """

    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        wallet = Wallet(daemon, answer)
        with pytest.raises(PaymentError, match=says):
            await payment.wait_ready()
        wallet.answer = then
        await payment.wait_ready()
        assert (await payment.info()).account_id == NODE

    with_electrum(tmp_path, test)


@pytest.mark.parametrize(("word", "refusal"), [("expiration", Refused), ("expiry", Internal)])
def test_a_request_is_made_in_the_words_of_either_version(
    tmp_path: Path, word: str, refusal: type[Refused] | type[Internal]
) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        def add_request(**words: Any) -> dict[str, str]:
            if words.pop(word, None) != 60:
                raise refusal("Commands.add_request() got an unexpected keyword argument")
            assert words == {"amount": "0.00000005", "memo": "m", "force": True}
            return {"lightning_invoice": "lnbcrt1", "rhash": HASH.hex()}

        daemon.say["add_request"] = add_request
        for _ in range(2):
            assert (await payment.create_invoice(5000, "m", 60)).bolt11 == "lnbcrt1"
        assert daemon.count("add_request") == (2 if word == "expiry" else 3), "remembered"

    with_electrum(tmp_path, test)


def test_an_electrum_that_is_too_old_is_named(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        daemon.say["getinfo"] = INFO | {"version": "4.2.1"}
        with pytest.raises(PaymentError, match=r"Electrum 4\.2\.1 is too old: ngp needs 4\.3 or later"):
            await payment.wait_ready()

    with_electrum(tmp_path, test)
