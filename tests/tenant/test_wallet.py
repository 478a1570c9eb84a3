"""The payment node of a tenant without net.conf: the named one, else one on this machine, else the user is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from ngp.errors import ConfigError, NgpError, PaymentError
from ngp.modules.payment.lnd import LndPayment
from ngp.tenant import wallet
from ngp.tenant.home import Home

MACAROON = "AgEDbG5k"
NOBODY = f"lndconnect://127.0.0.1:1?macaroon={MACAROON}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home on a machine without nodes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("ngp.modules.payment.lnd_connect.USUAL_FOLDERS", (str(tmp_path / "lnd"),))
    yield Home(tmp_path / "home")


def find(home: Home, ask: object = None) -> None:
    asyncio.run(wallet.find(home, ask, "write LNDhost"))  # type: ignore[arg-type]


def test_without_a_node_and_without_a_user_the_error_says_how_to_name_one(home: Home) -> None:
    with pytest.raises(ConfigError, match="LNDhost"):
        find(home)


def test_a_uri_whose_node_does_not_answer_is_not_kept(home: Home) -> None:
    with pytest.raises(NgpError) as caught:
        find(home, lambda: NOBODY)
    assert MACAROON not in str(caught.value)
    assert home.lnd_uri == "" and not (home.folder / "Config.yaml").exists()


def test_a_node_that_is_found_here_but_does_not_answer_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LndPayment, "find_local", staticmethod(lambda: NOBODY))
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1") as caught:
        find(home)
    assert MACAROON not in str(caught.value)


def test_a_node_that_is_named_is_the_only_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.keep_lnd_uri(NOBODY)
    monkeypatch.setattr(LndPayment, "find_local", staticmethod(lambda: pytest.fail("another node is looked for")))
    with pytest.raises((PaymentError, ConfigError)):
        find(home, lambda: pytest.fail("the user is asked"))
