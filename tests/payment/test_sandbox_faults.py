"""The sandbox's faults come and go on request, its node outlives kill -9, and its memory stays bounded."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

import pytest
from contract_suite import first, watching

import ngp
from ngp import invoice
from ngp.core.payment_node import PaymentStatus
from ngp.errors import ConfigError, PaymentError, PeerError
from ngp.modules.payment.sandbox import FIRST_BALANCE_MSAT, SandboxPayment
from ngp.ports.payment import InvoiceState

ROOT = Path(ngp.__file__).parent.parent
SUCCEEDED, FAILED, PENDING = PaymentStatus.SUCCEEDED, PaymentStatus.FAILED, PaymentStatus.PENDING

Test = Callable[[SandboxPayment, SandboxPayment], Awaitable[None]]


def with_pair(folder: Path, test: Test, options: dict[str, str] | None = None) -> None:
    async def body() -> None:
        payer, payee = SandboxPayment(folder / "payer", options), SandboxPayment(folder / "payee")
        async with asyncio.timeout(60):
            await test(payer, payee)
        await payer.close()
        await payee.close()

    asyncio.run(body())


def test_a_sandbox_says_that_its_money_is_not_real_and_holds_no_payments(tmp_path: Path) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        assert not payer.capabilities().real_money
        assert (await payer.info()).network == "sandbox"
        assert (await payer.info()).account_id != (await payee.info()).account_id
        assert await payer.balance_msat() == FIRST_BALANCE_MSAT
        with pytest.raises(PaymentError, match="hold"):
            await payer.create_invoice(1, "", 600, hold=True)

    with_pair(tmp_path, test)


def test_slow_payments_take_their_time_and_go_on_after_the_caller_gave_up(tmp_path: Path) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        payer.set_fault("slow", "0.3")
        made = await payee.create_invoice(1000, "", 600)
        begin = time.monotonic()
        assert (await payer.pay(made.bolt11, 0, 0.05)).status is PENDING
        assert (await payer.pay(made.bolt11, 0, 10)).status is SUCCEEDED
        assert time.monotonic() - begin >= 0.29

    with_pair(tmp_path, test)


@pytest.mark.parametrize(("ending", "status"), [("off", SUCCEEDED), ("fail", FAILED)])
def test_stuck_payments_keep_the_money_until_they_are_released(
    tmp_path: Path, ending: str, status: PaymentStatus
) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        made = await payee.create_invoice(1000, "", 600)
        waiting = asyncio.create_task(payer.pay(made.bolt11, 0, 20))
        await asyncio.sleep(0)
        assert await payer.balance_msat() == FIRST_BALANCE_MSAT - 1000
        payer.set_fault("stuck", ending)
        assert (await waiting).status is status
        left_msat = FIRST_BALANCE_MSAT - (1000 if status is SUCCEEDED else 0)
        assert await payer.balance_msat() == left_msat

    with_pair(tmp_path, test, {"stuck": "on"})


def test_failed_payments_cost_nothing_and_stay_failed(tmp_path: Path) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        payer.set_fault("failed")
        made = await payee.create_invoice(1000, "", 600)
        outcome = await payer.pay(made.bolt11, 0, 5)
        assert (outcome.status, outcome.preimage) == (FAILED, b"")
        assert "no route" in outcome.reason
        payer.set_fault("failed", "off")
        assert await payer.pay(made.bolt11, 0, 5) == outcome
        assert await payer.balance_msat() == FIRST_BALANCE_MSAT
        another = await payee.create_invoice(1000, "", 600)
        assert (await payer.pay(another.bolt11, 0, 5)).status is SUCCEEDED

    with_pair(tmp_path, test)


def test_a_lost_reply_is_found_out_by_asking(tmp_path: Path) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        payer.set_fault("lost reply")
        made = await payee.create_invoice(1000, "", 600)
        assert (await payer.pay(made.bolt11, 0, 5)).status is PENDING
        found = await payer.track(made.payment_hash)
        assert (found.status, sha256(found.preimage).digest()) == (SUCCEEDED, made.payment_hash)
        assert await payer.balance_msat() == FIRST_BALANCE_MSAT - 1000

    with_pair(tmp_path, test)


def test_duplicate_settlements_have_one_cursor(tmp_path: Path) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        payee.set_fault("duplicate")
        made = await payee.create_invoice(1000, "", 600)
        await payee.settle_invoice((await payer.pay(made.bolt11, 0, 5)).preimage)
        async with watching(payee, 0) as stream:
            one, two = await anext(stream), await anext(stream)
        assert one == two
        assert await payee.balance_msat() == FIRST_BALANCE_MSAT + 1000

    with_pair(tmp_path, test)


def test_a_node_that_is_down_refuses_and_comes_back(tmp_path: Path) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        made = await payee.create_invoice(1000, "", 600)
        outcome = await payer.pay(made.bolt11, 0, 5)
        watcher = asyncio.create_task(first(payee, 0, 1))
        payee.set_fault("down")
        waiting = asyncio.create_task(payee.wait_ready())
        await asyncio.sleep(0)
        for call in (payee.settle_invoice(outcome.preimage), payee.info(), payee.track(made.payment_hash)):
            with pytest.raises(PaymentError, match="down"):
                await call
        assert not waiting.done()
        payee.set_fault("down", "off")
        await waiting
        await payee.settle_invoice(outcome.preimage)
        assert (await watcher)[0].payment_hash == made.payment_hash

    with_pair(tmp_path, test)


def test_a_settlement_is_seen_after_its_delay(tmp_path: Path) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        payee.set_fault("slow", "0.2")
        made = await payee.create_invoice(1000, "", 600)
        await payee.settle_invoice((await payer.pay(made.bolt11, 0, 5)).preimage)
        assert await payee.lookup_invoice(made.payment_hash) is InvoiceState.ACCEPTED
        await first(payee, 0, 1)
        assert await payee.lookup_invoice(made.payment_hash) is InvoiceState.SETTLED

    with_pair(tmp_path, test)


def test_a_late_payment_of_a_cancelled_invoice_counts(tmp_path: Path) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        made = await payee.create_invoice(1000, "", 600)
        outcome = await payer.pay(made.bolt11, 0, 5)
        await payee.cancel_invoice(made.payment_hash)
        await payee.settle_invoice(outcome.preimage)
        assert await payee.lookup_invoice(made.payment_hash) is InvoiceState.SETTLED

    with_pair(tmp_path, test)


def test_watchers_end_when_the_module_closes(tmp_path: Path) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        watcher = asyncio.create_task(first(payee, 0, 1))
        await asyncio.sleep(0)
        await payee.close()
        assert await watcher == []
        with pytest.raises(PaymentError, match="closed"):
            await payee.info()

    with_pair(tmp_path, test)


def foreign(**changes: object) -> str:
    values: dict[str, object] = {
        "key": b"\x07" * 32, "prefix": "bcrt", "amount_msat": 1000, "timestamp_s": int(time.time()), "expiry_s": 600,
        "payment_hash": sha256(b"x").digest(), "payment_secret": b"s" * 32, "memo": "", "metadata": b"ngp1" + b"m" * 32,
    }  # fmt: skip
    return invoice.write(**{**values, **changes})  # type: ignore[arg-type]


def test_what_can_not_be_paid_fails_with_its_reason_and_costs_nothing(tmp_path: Path) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        own = (await payer.create_invoice(1000, "", 600)).bolt11
        dear = (await payee.create_invoice(1000, "", 600)).bolt11
        for text, reason in (
            (own, "our own"),
            (dear, "fee"),
            (foreign(metadata=b"other"), "not of a sandbox"),
            (foreign(), "preimage"),  # the sandbox's mark is there, but the masked value isn't the preimage
            (foreign(metadata=b"ngp1", payment_hash=sha256(b"y").digest()), "preimage"),
        ):
            outcome = await payer.pay(text, 2 if text is dear else 5, 5)
            assert outcome.status is FAILED
            assert reason in outcome.reason
        assert await payer.balance_msat() == FIRST_BALANCE_MSAT
        assert payer.decode(foreign(metadata=b"other")).network == "regtest"
        for prefix in ("bc", "tb", "tbs"):
            with pytest.raises(PeerError, match="invoice"):
                payer.decode(foreign(prefix=prefix))

    with_pair(tmp_path, test, {"fee_msat": "3"})


@pytest.mark.parametrize(
    "arguments", [(0, "", 600), (-1, "", 600), (10**30, "", 600), (1, "m" * 640, 600), (1, "", 0), (1, "", 10**9)]
)
def test_terms_that_no_invoice_can_have_are_refused(tmp_path: Path, arguments: tuple[int, str, int]) -> None:
    async def test(payer: SandboxPayment, _: SandboxPayment) -> None:
        with pytest.raises(PaymentError):
            await payer.create_invoice(*arguments)

    with_pair(tmp_path, test)


@pytest.mark.parametrize(
    "options", [{"colour": "red"}, {"delay_s": "soon"}, {"slow": "on"}, {"fee_msat": "-1"}, {"delay_s": "nan"}]
)
def test_unknown_options_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="sandbox option"):
        SandboxPayment(tmp_path, options)


def test_a_spoilt_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "sandbox.db").write_bytes(b"no database" * 1000)
    with pytest.raises(PaymentError, match=r"sandbox\.db"):
        SandboxPayment(tmp_path)


def test_what_is_over_for_a_month_is_forgotten_and_cursors_grow_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        made = await payee.create_invoice(1000, "", 600)
        await payee.settle_invoice((await payer.pay(made.bolt11, 0, 5)).preimage)
        (before,) = await first(payee, 0, 1)
        later_s = time.time() + 40 * 86_400
        monkeypatch.setattr(time, "time", lambda: later_s)
        await payer.close()
        await payee.close()
        payer, payee = SandboxPayment(tmp_path / "payer"), SandboxPayment(tmp_path / "payee")
        with sqlite3.connect(tmp_path / "payee" / "sandbox.db") as connection:
            assert connection.execute("SELECT count(*) FROM invoices, settlements").fetchone() == (0,)
        connection.close()
        made = await payee.create_invoice(1000, "", 600)
        await payee.settle_invoice((await payer.pay(made.bolt11, 0, 5)).preimage)
        (after,) = await first(payee, before.cursor, 1)
        assert after.payment_hash == made.payment_hash
        assert await payee.balance_msat() == FIRST_BALANCE_MSAT + 2000
        await payer.close()
        await payee.close()

    with_pair(tmp_path, test)


PAYER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from ngp.modules.payment.sandbox import SandboxPayment
async def main():
    node = SandboxPayment(Path(sys.argv[1]), {"delay_s": "0.2"})
    paying = asyncio.create_task(node.pay(sys.argv[2], 0, 30))
    await asyncio.sleep(0)
    print("started", (await node.track(node.decode(sys.argv[2]).payment_hash)).status.value, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_a_payment_on_its_way_ends_although_the_daemon_was_killed(tmp_path: Path) -> None:
    def pay_and_die(bolt11: str) -> None:
        command = [sys.executable, "-c", PAYER, str(tmp_path / "payer"), bolt11, str(ROOT)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "started pending\n"
            os.kill(daemon.pid, signal.SIGKILL)

    async def test(payer: SandboxPayment, payee: SandboxPayment) -> None:
        await payer.close()
        made = await payee.create_invoice(1000, "", 600)
        pay_and_die(made.bolt11)
        again = SandboxPayment(tmp_path / "payer")
        outcome = await again.pay(made.bolt11, 0, 10)
        assert outcome.status is SUCCEEDED
        assert await again.balance_msat() == FIRST_BALANCE_MSAT - 1000
        await payee.settle_invoice(outcome.preimage)
        await again.close()

    with_pair(tmp_path, test)
