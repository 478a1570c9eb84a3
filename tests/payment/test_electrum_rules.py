"""How the module reads Electrum's answers: it never guesses an outcome, pays nothing twice, and shows no secrets."""

from __future__ import annotations

import asyncio
import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey
from fake_electrum import CHANNEL, INFO, LOGIN, NODE, PEER, FakeElectrum, Gone, Refused, with_electrum

from ngp import invoice
from ngp.core.channels import ChannelState
from ngp.core.payment_node import PaymentStatus
from ngp.errors import ConfigError, PaymentError
from ngp.modules.payment import electrum_journal
from ngp.modules.payment.electrum import POLL_S, ElectrumPayment
from ngp.modules.payment.electrum_journal import Journal
from ngp.modules.payment.electrum_rpc import Credentials
from ngp.ports.payment import ChainView, InvoiceState

PREIMAGE = bytes(range(32))
HASH = sha256(PREIMAGE).digest()
KEY = PrivateKey(bytes([7]) * 32)
PAYEE = KEY.public_key.format().hex()
UNPAID, EXPIRED, PAID, IN_FLIGHT, FAILED = 0, 1, 3, 4, 5
SENT = {
    "type": "payment", "direction": 0, "payment_hash": HASH.hex(), "preimage": PREIMAGE.hex(),
    "amount_msat": -124_000, "fee_msat": 1_000,
}  # fmt: skip
RECEIVED = {**SENT, "direction": 1, "amount_msat": 123_000, "fee_msat": None}


def bolt11(amount_msat: int = 123_000) -> str:
    return invoice.write(KEY.secret, "bcrt", amount_msat, int(time.time()), 600, HASH, bytes(32), "memo", b"")


@pytest.mark.parametrize(
    ("status", "history", "channels", "expected"),
    [
        (None, [], [CHANNEL], (PaymentStatus.FAILED, "unknown")),
        (IN_FLIGHT, [], [CHANNEL], (PaymentStatus.PENDING, "")),
        (PAID, [], [CHANNEL], (PaymentStatus.PENDING, "")),
        (FAILED, [], [CHANNEL], (PaymentStatus.FAILED, "gave up")),
        # Parts of the payment may still be on their way, though Electrum has given it up.
        (FAILED, [], [{**CHANNEL, "local_unsettled_sent": 50}], (PaymentStatus.PENDING, "")),
        # Killed at the wrong moment, Electrum forgets an HTLC that the peer has.
        (UNPAID, [], [{**CHANNEL, "peer_state": "DISCONNECTED"}], (PaymentStatus.PENDING, "")),
        (EXPIRED, [], [{**CHANNEL, "peer_state": "BAD"}], (PaymentStatus.PENDING, "")),
        (UNPAID, [], [{**CHANNEL, "state": "FORCE_CLOSING"}], (PaymentStatus.PENDING, "")),
        (UNPAID, [], [CHANNEL, {**CHANNEL, "state": "REDEEMED"}], (PaymentStatus.FAILED, "ended")),
        # The channels' history decides.
        (UNPAID, [SENT], [CHANNEL], (PaymentStatus.SUCCEEDED, "")),
        (IN_FLIGHT, [SENT], [CHANNEL], (PaymentStatus.SUCCEEDED, "")),
        (None, [SENT], [CHANNEL], (PaymentStatus.SUCCEEDED, "")),
        (None, [RECEIVED], [CHANNEL], (PaymentStatus.FAILED, "unknown")),  # others paid our invoice: not our payment
    ],
)
def test_a_payment_is_pending_as_long_as_it_may_still_be_paid(
    tmp_path: Path, status: int | None, history: list[Any], channels: list[Any], expected: tuple[PaymentStatus, str]
) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        daemon.say |= {"lightning_history": history, "list_channels": channels}
        if status is not None:
            daemon.say["get_invoice"] = {"status": status}
        found = await payment.track(HASH)
        assert found.status is expected[0] and expected[1] in found.reason
        if found.status is PaymentStatus.SUCCEEDED:
            assert (found.preimage, found.fee_msat) == (PREIMAGE, 1_000)

    with_electrum(tmp_path, test)


@pytest.mark.parametrize(("status", "history"), [(IN_FLIGHT, []), (PAID, []), (UNPAID, [SENT])])
def test_what_may_have_been_paid_is_not_paid_again(tmp_path: Path, status: int, history: list[Any]) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        daemon.say |= {"get_invoice": {"status": status}, "lightning_history": history}
        assert (await payment.pay(bolt11(), 10_000, 0.1)).status is not PaymentStatus.FAILED
        assert daemon.count("lnpay") == 0

    with_electrum(tmp_path, test)


def test_one_call_pays_however_many_ask_and_however_long_it_takes(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        may_end = asyncio.Event()

        async def lnpay(**_: Any) -> dict[str, Any]:
            await may_end.wait()
            daemon.say["lightning_history"] = [SENT]
            return {"success": True, "log": []}

        daemon.say["lnpay"] = lnpay
        for _ in range(2):
            assert (await payment.pay(bolt11(), 10_000, 0.1)).status is PaymentStatus.PENDING
        assert (await payment.track(HASH)).status is PaymentStatus.PENDING  # though Electrum doesn't know it yet
        may_end.set()
        paid = await asyncio.gather(*(payment.pay(bolt11(), 10_000, 5) for _ in range(3)))
        assert {one.status for one in paid} == {PaymentStatus.SUCCEEDED}
        assert daemon.count("lnpay") == 1

    with_electrum(tmp_path, test)


def test_a_daemon_that_dies_while_it_pays_leaves_it_pending(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        async def lnpay(**_: Any) -> Any:
            raise Gone

        def away(**_: Any) -> Any:
            raise Refused("wallet not loaded")  # as after its next start

        daemon.say |= {"lnpay": lnpay, "load_wallet": False}
        paying = asyncio.create_task(payment.pay(bolt11(), 10_000, 2 * POLL_S))
        while not daemon.count("lnpay"):
            await asyncio.sleep(0)
        daemon.say["get_invoice"] = away
        assert (await paying).status is PaymentStatus.PENDING

    with_electrum(tmp_path, test)


def test_a_refusal_of_electrums_is_the_reason(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        def expired(**_: Any) -> Any:
            raise Refused("This invoice has expired")

        daemon.say["lnpay"] = expired
        assert "expired" in (await payment.pay(bolt11(), 10_000, 5)).reason
        daemon.say["lnpay"] = {"success": False, "log": [["1", "443x2x0", "TEMPORARY_CHANNEL_FAILURE"]]}
        assert "TEMPORARY_CHANNEL_FAILURE" in (await payment.pay(bolt11(), 10_000, 5)).reason

    with_electrum(tmp_path, test)


@pytest.mark.parametrize(
    ("peer", "local_sat", "fee_limit_msat", "reason"),
    [
        (PAYEE, 4_000_000, 0, ""),  # a direct channel costs nothing
        (PEER, 4_000_000, 5_000, ""),
        (PEER, 4_000_000, 4_999, "above the limit of 4999 msat"),
        (PAYEE, 122, 10_000, "does not cover it"),
    ],
)
def test_electrum_is_not_asked_where_its_fees_could_be_above_the_limit(
    tmp_path: Path, peer: str, local_sat: int, fee_limit_msat: int, reason: str
) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        daemon.say["list_channels"] = [{**CHANNEL, "remote_pubkey": peer, "local_balance": local_sat}]
        daemon.say["lnpay"] = {"success": False, "log": []}
        assert reason in (await payment.pay(bolt11(), fee_limit_msat, 5)).reason
        assert daemon.count("lnpay") == (not reason)

    with_electrum(tmp_path, test)


def test_a_request_is_settled_once_its_preimage_is_out(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        daemon.say["get_request"] = {"status": PAID, "amount_msat": 123_000}
        assert await payment.lookup_invoice(HASH) is InvoiceState.ACCEPTED
        watch = payment.watch_settlements(0)
        told = asyncio.ensure_future(anext(watch))
        done, _ = await asyncio.wait([told], timeout=1.0)
        assert not done
        daemon.say |= {"lightning_history": [RECEIVED], "list_channels": [{**CHANNEL, "local_balance": 4_000_123}]}
        assert ((await told).payment_hash, (await told).amount_msat) == (HASH, 123_000)
        assert await payment.lookup_invoice(HASH) is InvoiceState.SETTLED

    with_electrum(tmp_path, test)


def test_a_settlement_that_grows_is_reported_again_with_the_whole_amount(tmp_path: Path) -> None:
    """The parts of a payment are separate lines in the history, and Electrum lets an invoice be paid twice."""

    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        cursor = 0
        for amount_msat in (60_000, 123_000, 246_000):
            daemon.say["lightning_history"] = [{**RECEIVED, "amount_msat": amount_msat}]
            told = await anext(payment.watch_settlements(cursor))
            assert (told.payment_hash, told.amount_msat) == (HASH, amount_msat) and told.cursor > cursor
            cursor = told.cursor

    with_electrum(tmp_path, test)


def test_an_invoice_that_is_paid_while_it_is_cancelled_is_not_cancelled(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        def delete_request(**_: Any) -> Any:
            daemon.say["get_request"] = {"status": PAID, "amount_msat": 123_000}
            raise Refused("")  # its answer when an assertion of its own fails

        daemon.say |= {"get_request": {"status": UNPAID}, "delete_request": delete_request}
        with pytest.raises(PaymentError):
            await payment.cancel_invoice(HASH)
        assert await payment.lookup_invoice(HASH) is InvoiceState.ACCEPTED
        daemon.say["get_request"] = FakeElectrum.not_found
        with pytest.raises(PaymentError):
            await payment.lookup_invoice(HASH)

    with_electrum(tmp_path, test)


def test_a_daemon_on_a_port_is_found_as_one_on_a_socket(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        await payment.wait_ready()
        assert (await payment.info()).account_id == NODE
        (line,) = await payment.check(spends=True)
        assert line.ok and "127.0.0.1:" in line.found
        os.chown(daemon.folder / "config", 4321, -1)  # Electrum's own user
        (line,) = await payment.check(spends=True)
        assert line.ok
        for mode in (0o644, 0o640):
            (daemon.folder / "config").chmod(mode)
            (line,) = await payment.check(spends=True)
            assert not line.ok and "chmod 600" in line.found

    with_electrum(tmp_path, test, by_tcp=True)


def test_a_cancellation_without_an_answer_is_known_once_it_is_seen_that_the_invoice_is_gone(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        async def delete_request(**_: Any) -> Any:
            daemon.say["get_request"] = FakeElectrum.not_found
            raise Gone

        daemon.say |= {"get_request": {"status": UNPAID}, "delete_request": delete_request}
        with pytest.raises(PaymentError):
            await payment.cancel_invoice(HASH)
        assert await payment.lookup_invoice(HASH) is InvoiceState.CANCELLED

    with_electrum(tmp_path, test)


def test_whole_sat_only(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        for amount_msat in (1_500, 999, 0):
            with pytest.raises(PaymentError, match="whole sat"):
                await payment.create_invoice(amount_msat, "", 60)
        with pytest.raises(PaymentError, match="hold"):
            await payment.create_invoice(1_000, "", 60, hold=True)
        daemon.say["add_request"] = {"lightning_invoice": "lnbcrt1", "rhash": HASH.hex()}
        made = await payment.create_invoice(2_100_000_001_000, "", 60)
        assert (made.payment_hash, made.amount_msat) == (HASH, 2_100_000_001_000)
        assert daemon.asked[-1][1]["amount"] == "21.00000001"

    with_electrum(tmp_path, test)


def test_a_wallet_in_use_may_not_become_another_node(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        await payment.wait_ready()
        daemon.say["nodeid"] = "03" * 33
        with pytest.raises(PaymentError, match="Electrum is another node now"):
            await payment.wait_ready()
        assert (await payment.info()).account_id == NODE

    with_electrum(tmp_path, test)


@pytest.mark.parametrize(
    ("said", "remedy"), [("Insufficient funds", "electrum getunusedaddress"), ("funding_sat too low", "--amount")]
)
def test_a_channel_that_can_not_be_opened_is_refused_with_a_remedy(tmp_path: Path, said: str, remedy: str) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        def refuse(**_: object) -> None:
            raise Refused(said)

        peers = [{"node_id": PEER, "initialized": True}]
        daemon.say |= {"add_peer": None, "list_peers": peers, "open_channel": refuse}
        await payment.connect(PEER, "192.0.2.7:9735")
        with pytest.raises(PaymentError, match=remedy) as caught:
            await payment.open_channel(PEER, 500_000, 0, None)
        assert said in str(caught.value)

    with_electrum(tmp_path, test)


def test_the_node_is_known_while_it_is_away(tmp_path: Path) -> None:
    async def known(_: FakeElectrum, payment: ElectrumPayment) -> None:
        assert (await payment.info()).network == "regtest"

    with_electrum(tmp_path, known)

    async def away() -> None:
        payment = ElectrumPayment(tmp_path, {"ELECTRUM_HOST": str(tmp_path)})
        assert (await payment.info()).account_id == NODE
        for asked in (payment.wait_ready(), payment.track(HASH), payment.create_invoice(1_000, "", 60)):
            with pytest.raises(PaymentError, match="electrum daemon -d"):
                await asked
        await payment.close()

    asyncio.run(away())


def test_a_wrong_password_is_named_and_not_shown(tmp_path: Path) -> None:
    async def test(_: FakeElectrum, __: ElectrumPayment) -> None:
        secret = tmp_path / "password"
        secret.write_text("an0ther-s3cret\n")
        secret.chmod(0o600)
        options = {"ELECTRUM_HOST": str(tmp_path), "ELECTRUM_PASSWORD_FILE": str(secret)}
        wrong = ElectrumPayment(tmp_path, options)
        with pytest.raises(PaymentError, match="refuses user and password") as caught:
            await wrong.wait_ready()
        assert "s3cret" not in str(caught.value) + repr(Credentials(options).read())
        secret.chmod(0o644)
        (line,) = await wrong.check(spends=True)
        assert not line.ok and "chmod 600" in line.found

    with_electrum(tmp_path, test)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 fine\r\nContent-Length: 0\r\n\r\n",
        b"\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_http_answer_is_named(tmp_path: Path, said: bytes) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            writer.close()

        other = tmp_path / "other"
        (tmp_path / "daemon").write_text(repr(("unix", str(other), 1.5)))
        async with await asyncio.start_unix_server(answer, other):
            with pytest.raises(PaymentError, match=r"doesn't answer \(what came back isn't a whole HTTP answer\)"):
                await payment.info()

    with_electrum(tmp_path, test)


def test_electrum_is_found_by_the_files_in_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="electrum daemon -d"):
        Credentials({"ELECTRUM_HOST": str(tmp_path)}).read()
    (tmp_path / "config").touch(0o600)
    (tmp_path / "config").write_text('{"rpcuser": "user", "rpcpassword": "s3cret"}')
    (tmp_path / "daemon").write_text("('tcp', ('127.0.0.1', 7777), 1.5)")
    found = Credentials({"ELECTRUM_HOST": str(tmp_path)}).read()
    assert (found.where, found.user, found.password, found.leaves_unencrypted) == (
        "127.0.0.1:7777", "user", "s3cret", False,
    )  # fmt: skip
    (tmp_path / "regtest").mkdir()
    (tmp_path / "regtest" / "daemon").write_text("('tcp', ('127.0.0.1', 7778), 1.5)")
    with pytest.raises(ConfigError, match="more than one"):
        Credentials({"ELECTRUM_HOST": str(tmp_path)}).read()
    for text in ("", "garbage", "('unix',)", "__import__('os')", "('tcp', 5, 1)"):
        (tmp_path / "regtest" / "daemon").unlink(missing_ok=True)
        (tmp_path / "daemon").write_text(text)
        with pytest.raises(ConfigError, match="where Electrum listens"):
            Credentials({"ELECTRUM_HOST": str(tmp_path)}).read()


@pytest.mark.parametrize("chain", ["testnet", "testnet4", "signet", "mutinynet", "regtest", "simnet"])
def test_electrum_on_a_test_chain_is_found_in_its_folder(tmp_path: Path, chain: str) -> None:
    folder = tmp_path / chain
    folder.mkdir()
    (folder / "config").touch(0o600)
    (folder / "config").write_text('{"rpcuser": "user", "rpcpassword": "s3cret"}')
    (folder / "daemon").write_text("('tcp', ('127.0.0.1', 7777), 1.5)")
    assert Credentials({"ELECTRUM_HOST": str(tmp_path)}).read().where == "127.0.0.1:7777"


def test_a_host_needs_user_and_password_and_is_warned_about(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ELECTRUM_PASSWORD_FILE"):
        Credentials({"ELECTRUM_HOST": "192.0.2.1:7777"}).read()
    secret = tmp_path / "password"
    secret.write_text(LOGIN.partition(":")[2])
    secret.chmod(0o600)
    options = {"ELECTRUM_USER": "user", "ELECTRUM_PASSWORD_FILE": str(secret)}
    assert Credentials({**options, "ELECTRUM_HOST": "192.0.2.1:7777"}).read().leaves_unencrypted
    assert Credentials({**options, "ELECTRUM_HOST": "[2001:db8::1]:7777"}).read().leaves_unencrypted
    assert not Credentials({**options, "ELECTRUM_HOST": "[::1]:7777"}).read().leaves_unencrypted
    assert not Credentials({**options, "ELECTRUM_HOST": "localhost:7777"}).read().leaves_unencrypted
    with pytest.raises(ConfigError, match="neither host:port"):
        Credentials({**options, "ELECTRUM_HOST": "192.0.2.1"}).read()
    with pytest.raises(ConfigError, match="neither host:port"):  # the closing bracket is missing
        Credentials({**options, "ELECTRUM_HOST": "[2001:db8::1:7777"}).read()
    (line,) = asyncio.run(ElectrumPayment(tmp_path, {**options, "ELECTRUM_HOST": "192.0.2.1:7"}).check(spends=True))
    assert not line.ok and "unencrypted" in line.found


def test_numbers_of_settlements_are_given_once_and_a_lost_journal_loses_nothing(tmp_path: Path) -> None:
    one, other, third = (bytes([number]) * 32 for number in range(3))
    journal = Journal(tmp_path / "a.db")
    for payment_hash in (one, other, one):
        journal.add(payment_hash, 1_000, 0)
    assert [(told.cursor, told.payment_hash) for told in journal.after(0)] == [(1, one), (2, other)]
    journal.close()
    assert [told.cursor for told in Journal(tmp_path / "a.db").after(1)] == [2]
    fresh = Journal(tmp_path / "b.db")
    for payment_hash in (one, other, one, third):  # the ledger has seen two of them, and counts them as replayed
        fresh.add(payment_hash, 1_000, 2)
    assert [told.payment_hash for told in fresh.after(2)] == [one, other, third]


def test_pending_channels_and_the_chain_are_told(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        states = ("OPENING", "FUNDED", "OPEN", "FORCE_CLOSING", "CLOSED", "REDEEMED")
        daemon.say["list_channels"] = [{**CHANNEL, "state": state} for state in states]
        opening, closing = ChannelState.OPENING, ChannelState.CLOSING
        found = await payment.pending_channels()
        assert [one.state for one in found] == [opening, opening, closing, closing]
        assert not any(one.active or one.can_send_sat for one in found) and len(await payment.channels()) == 1
        for height, seen, synced in ((450, 450, True), (451, 450, False), (0, 450, False)):
            daemon.say["getinfo"] = INFO | {"server_height": height, "blockchain_height": seen}
            assert await payment.chain() == ChainView(seen, synced)

    with_electrum(tmp_path, test)


def test_invoices_that_nobody_pays_leave_no_more_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(electrum_journal, "MOST_CANCELLED", 3)
    journal = Journal(tmp_path / "a.db")
    invoices = [bytes([number]) * 32 for number in range(9)]
    for payment_hash in (*invoices, invoices[-1]):
        journal.cancel(payment_hash)
    assert [journal.cancelled(payment_hash) for payment_hash in invoices] == [False] * 6 + [True] * 3


def test_another_wallet_in_place_of_the_one_in_use_is_told_apart(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        await payment.wait_ready()
        await payment.confirm_node()
        daemon.say["nodeid"] = "02" * 33
        with pytest.raises(PaymentError, match="Electrum is another node now"):
            await payment.confirm_node()
        daemon.say["nodeid"] = f"{NODE}@127.0.0.1:9735"
        await payment.confirm_node()

    with_electrum(tmp_path, test)


def test_an_invoice_that_the_wallet_has_no_more_counts_as_cancelled_unless_it_was_paid(tmp_path: Path) -> None:
    """LND is treated the same way. As long as an invoice can't be cancelled, its neighbour gets no other invoice."""

    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        await payment.cancel_invoice(HASH)
        daemon.say["lightning_history"] = [RECEIVED]
        with pytest.raises(PaymentError, match="paid already.*`ngp refund NEIGHBOUR`"):
            await payment.cancel_invoice(HASH)

        def away(**_: Any) -> Any:
            raise Refused("wallet not loaded")

        daemon.say |= {"get_request": away, "load_wallet": False}
        with pytest.raises(PaymentError):
            await payment.cancel_invoice(HASH)

    with_electrum(tmp_path, test)


def test_what_was_cancelled_stays_so_when_the_journal_is_lost(tmp_path: Path) -> None:
    async def test(daemon: FakeElectrum, payment: ElectrumPayment) -> None:
        daemon.say["get_request"] = {"status": UNPAID}
        await payment.cancel_invoice(HASH)
        daemon.say["get_request"] = FakeElectrum.not_found
        await payment.close()
        for file in tmp_path.glob("electrum.db*"):
            file.unlink()
        await payment.cancel_invoice(HASH)

    with_electrum(tmp_path, test)


def test_a_damaged_journal_may_be_moved_away(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"x" * 8192)
    with pytest.raises(PaymentError, match="damaged.*move this file and a.db-wal away.*numbers the settlements"):
        Journal(tmp_path / "a.db")
    with pytest.raises(PaymentError, match="free some space, or correct its mode"):
        Journal(tmp_path)
