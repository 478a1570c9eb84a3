"""Wallet: the payment node of a tenant that has no net.conf: LNDhost of Config.yaml, else a node on this machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ngp.config import PAYMENT, module_class
from ngp.errors import ConfigError, NgpError, PaymentError
from ngp.ports import Payment
from ngp.tenant.home import Home

_log = logging.getLogger("ngp.tenant")

READY_S = 10.0


async def find(home: Home, ask: Callable[[], str] | None, how: str) -> Payment:
    """Return the payment node, ready.

    Args: ask: asks the user for an lndconnect URI; None: nobody is there to ask. how: a node is named, for the error.
    Raises: PaymentError, ConfigError.
    """
    lnd: Any = module_class(PAYMENT, "lnd")
    if home.lnd_uri:
        return await _ready(lnd(home.folder, {"LND_CONNECT": home.lnd_uri}), "LND at LNDhost of Config.yaml")
    tried = []
    if uri := lnd.find_local():
        try:
            return await _ready(lnd(home.folder, {"LND_CONNECT": uri}), "LND on this machine")
        except NgpError as error:
            tried.append(str(error))
    try:
        return await _ready(module_class(PAYMENT, "electrum")(home.folder, {}), "Electrum on this machine")
    except NgpError as error:
        tried.append(str(error))
    if ask is None:
        raise ConfigError(f"no payment node was found ({'; '.join(tried)}): {how}")
    uri = ask()
    answered = await lnd.try_uri(uri, home.folder)
    home.keep_lnd_uri(uri.strip())
    _log.info("%s; the URI is kept in Config.yaml", answered)
    return await _ready(lnd(home.folder, {"LND_CONNECT": uri.strip()}), "LND")


async def _ready(payment: Payment, what: str) -> Payment:
    try:
        async with asyncio.timeout(READY_S):
            await payment.wait_ready()
            info = await payment.info()
    except TimeoutError:
        await payment.close()
        raise PaymentError(f"{what} isn't ready within {READY_S:g} s: is it running and unlocked?") from None
    except BaseException:
        await payment.close()
        raise
    _log.info("payments are made by %s (node %s on %s)", what, info.account_id[:16], info.network)
    return payment
