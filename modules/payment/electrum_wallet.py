"""The wallet of an Electrum daemon that ngp uses: calls its commands, and loads it first if that needs no password."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ngp.modules.payment import electrum_rpc as rpc
from ngp.modules.payment.electrum_rpc import ElectrumError, ElectrumRpc

NOT_LOADED = "wallet not loaded"
COIN_SAT = 100_000_000
_CANT_LOAD = ("InvalidPassword", "FileNotFoundError", "could not load wallet")


class ElectrumWallet:
    """Calls commands; for one event loop.

    Args:
        options: ELECTRUM_HOST, ELECTRUM_USER, ELECTRUM_PASSWORD_FILE and ELECTRUM_WALLET; all are optional.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        self._rpc = ElectrumRpc(rpc.Credentials(options))
        self._path = options.get("ELECTRUM_WALLET")
        self._expiry = "expiry"

    def endpoint(self) -> rpc.Endpoint:
        """Return where the daemon listens now. Raises ConfigError."""
        return self._rpc.endpoint()

    async def ask_daemon(self, method: str, **words: Any) -> Any:
        """Call a command that concerns no wallet. Raises ElectrumError."""
        return await self._rpc.call(method, words)

    async def ask(self, method: str, timeout_s: float | None = rpc.CALL_TIMEOUT_S, **words: Any) -> Any:
        """Call a command of the wallet.

        Args:
            timeout_s: how long to wait for the answer; None: as long as the daemon lives.

        Raises: ElectrumError; `detail` is NOT_LOADED if somebody must enter a password first.
        """
        if self._path:
            words["wallet"] = self._path
        try:
            return await self._rpc.call(method, words, timeout_s)
        except ElectrumError as error:
            if error.detail != NOT_LOADED:
                raise
        await self._load()
        return await self._rpc.call(method, words, timeout_s)

    async def add_request(self, amount: str, memo: str, expiry_s: int) -> Mapping[str, Any]:
        """Make a payment request; empty if the wallet has no Lightning. Raises ElectrumError.

        The argument for the lifetime has another name in newer versions. If Electrum refuses the name, it makes no
        request, so we try the other name.
        """
        try:
            return await self._add_request(amount, memo, expiry_s)
        except ElectrumError as error:
            if "unexpected keyword argument" not in error.detail:
                raise
            self._expiry = {"expiry": "expiration", "expiration": "expiry"}[self._expiry]
        return await self._add_request(amount, memo, expiry_s)

    async def _add_request(self, amount: str, memo: str, expiry_s: int) -> Mapping[str, Any]:
        # force: Electrum puts an address into each request, and if all addresses are in use, it makes a new one only by
        # force.
        words: dict[str, Any] = {"amount": amount, "memo": memo, self._expiry: expiry_s, "force": True}
        return await self.ask("add_request", **words) or {}

    async def _load(self) -> None:
        """Load the wallet. Electrum 4.3 returns whether that worked; 4.5 returns nothing, or an error's class name."""
        try:
            done = await self._rpc.call("load_wallet", {"wallet_path": self._path} if self._path else {})
        except ElectrumError as error:
            if not any(name in error.detail for name in _CANT_LOAD):
                raise
            done = False
        if done is False:
            raise ElectrumError(
                "Electrum's wallet is locked, or there is none: `electrum load_wallet` asks for its password, "
                "`electrum create` makes one",
                NOT_LOADED,
            )

    async def channels(self) -> list[dict[str, Any]]:
        """Return the wallet's channels as Electrum lists them, without channel backups."""
        return [one for one in await self.ask("list_channels") if one["type"] == "CHANNEL"]

    async def history(self) -> list[dict[str, Any]]:
        """Return the payments whose preimage was revealed, oldest first."""
        return [one for one in await self.ask("lightning_history") if one["type"] == "payment"]


def btc(amount_sat: int) -> str:
    """Write an amount in the form of Electrum's commands."""
    return f"{amount_sat // COIN_SAT}.{amount_sat % COIN_SAT:08d}"
