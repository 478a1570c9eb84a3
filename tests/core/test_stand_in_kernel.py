"""The stand-in kernel of the core's tests passes the suite that the real kernel passes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from core_tests.simulate.stand_ins import Kernel
from ngp.core.kernel import AccountLimit, AccountReading, Adopted, Grant, Hint, Reading
from ngp.core.messages import Role
from tests.network_suite import BOUGHT, NEIGHBOUR, Bench, NetworkContract


class StandInBench(Bench):
    """A kernel without a clock of its own: nothing takes time here."""

    def __init__(self) -> None:
        self._kernel, self._now = Kernel(), 1000.0

    def limit_accounts(self, limits: Sequence[AccountLimit]) -> None:
        for limit in limits:
            self._kernel.limit(limit, self._now)

    def forget_accounts(self, accounts: Sequence[bytes]) -> None:
        for account in accounts:
            self._kernel.forget(account)

    def grant(self, grants: Sequence[Grant]) -> None:
        self._kernel.grant(grants, self._now)

    def revoke(self, contracts: Sequence[bytes]) -> None:
        for contract in contracts:
            self._kernel.revoke(contract)

    def read(self, contracts: Sequence[bytes] | None = None) -> Sequence[Reading]:
        return list(self._kernel.changed() if contracts is None else self._kernel.read(contracts))

    def read_accounts(self, accounts: Sequence[bytes] | None = None) -> Sequence[AccountReading]:
        if accounts is None:
            return list(self._kernel.changed_accounts(self._now))
        return list(self._kernel.read_accounts(accounts, self._now))

    def settled(self) -> None:
        pass

    def upload(self, address: str, size_bytes: int, number: int = 1) -> int:
        return sum(self._carry(Role.SERVER, address, size_bytes, True) for _ in range(number))

    def download(self, address: str, size_bytes: int, number: int = 1) -> int:
        return sum(self._carry(Role.SERVER, address, size_bytes, False) for _ in range(number))

    def upload_ours(self, size_bytes: int, number: int = 1) -> int:
        return sum(self._carry(Role.CLIENT, BOUGHT, size_bytes, True) for _ in range(number))

    def _carry(self, role: Role, address: str, size_bytes: int, towards: bool) -> bool:
        return bool(self._kernel.carry(NEIGHBOUR, role, address, size_bytes, towards, self._now))

    def hints(self) -> list[Hint]:
        told, self._kernel.hints = self._kernel.hints, []
        return told

    def restart(self) -> Adopted:
        return self._kernel.adopted(self._now)


class TestStandIn(NetworkContract):
    """The playbook's kernel."""

    @pytest.fixture
    def bench(self) -> Bench:
        return StandInBench()
