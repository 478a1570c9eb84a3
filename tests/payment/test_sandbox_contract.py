"""The sandbox passes the suite for all payment modules."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from contract_suite import Nodes, PaymentContract

from ngp.modules.payment.sandbox import SandboxPayment


@asynccontextmanager
async def sandboxes(options: dict[str, str]) -> AsyncIterator[Nodes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        payers = [SandboxPayment(folder / "payer", options)]
        payees = [SandboxPayment(folder / "payee", options)]

        async def restart_payer() -> SandboxPayment:
            await payers[-1].close()
            payers.append(SandboxPayment(folder / "payer", options))
            return payers[-1]

        async def restart_payee() -> SandboxPayment:
            await payees[-1].close()
            payees.append(SandboxPayment(folder / "payee", options))
            return payees[-1]

        yield Nodes(
            payer=payers[-1],
            payee=payees[-1],
            restart_payer=restart_payer,
            restart_payee=restart_payee,
            hold_next_payment=lambda: payers[-1].set_fault("stuck"),
            release=lambda: payers[-1].set_fault("stuck", "off"),
            has_order=lambda _: True,  # the sandbox's node is a part of the module
        )
        for module in (payers[-1], payees[-1]):
            await module.close()


class TestSandbox(PaymentContract):
    """As shipped."""

    def nodes(self) -> AbstractAsyncContextManager[Nodes]:
        return sandboxes({})


class TestSlowSandboxWithFeesAndDuplicates(PaymentContract):
    """On a bad day the promises are still kept."""

    def nodes(self) -> AbstractAsyncContextManager[Nodes]:
        return sandboxes({"delay_s": "0.02", "settle_delay_s": "0.01", "fee_msat": "1500", "duplicate": "on"})
