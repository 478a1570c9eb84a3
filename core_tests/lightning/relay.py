"""A relay between a daemon and its LND node. It can stop at a named call, so that a test kills a process just then.

It has the node's own certificate, so that the daemon notices nothing, and forwards the bytes of any method. A call can
be stopped before it reaches the node (`asked`) or before its answer reaches the daemon (`answered`). Invoices can be
turned into hold invoices, whose payments stay on their way until the test settles or cancels them.

It runs in a process of its own, in the host's network: commands are lines of JSON on standard input, events are
reported on standard output.
"""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Literal

import grpc

from core_tests.lightning.nodes import Lnd
from core_tests.shell import ROOT, LabError
from ngp.modules.payment import lnd_pb2 as pb

When = Literal["asked", "answered"]
PORT = 10011
# LND avoids a channel that has just failed, even its own, for about a minute; and ngp waits longer after each failure.
STOP_S = 180.0
POLL_S = 0.02
INVOICES, LIGHTNING = "/invoicesrpc.Invoices/", "/lnrpc.Lightning/"
# lnrpc.ChangePasswordRequest with its second field alone: the new password, after the one of --noseedbackup.
CHANGE_PASSWORD, NEW_PASSWORD = "/lnrpc.WalletUnlocker/ChangePassword", b"\x12\x0dcorrect horse"


class Relay:
    """The test's side of a relay.

    Args:
        popen: starts a program on the node's host (`Host.popen`).
        node: the node behind the relay; it may be killed and started again.
    """

    def __init__(self, popen: Callable[..., subprocess.Popen[str]], node: Lnd) -> None:
        self.address = f"127.0.0.1:{PORT}"
        self._popen = popen
        self._node = node
        self.start()

    def start(self) -> None:
        """Start the relay, with the node's present certificate."""
        node, self._told = self._node, queue.Queue[dict[str, Any]]()
        with (node.folder / "relay.log").open("a") as log:
            self._process = self._popen(
                *(sys.executable, "-m", "core_tests.lightning.relay", str(node.lnddir), node.rpc_host),
                *(f"0.0.0.0:{PORT}", str(node.admin_macaroon)),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT,
            )  # fmt: skip
        threading.Thread(target=self._listen, args=(self._process.stdout, self._told), daemon=True).start()
        self._await(lambda told: "ready" in told, "the relay")

    def kill9(self) -> None:
        """Kill the relay, which looks to the daemon like the death of the node."""
        self._process.kill()
        self._process.wait()

    def stop_at(self, method: str, when: When) -> None:
        """Stop the calls of a method from now on."""
        self._do(do="stop", method=method, when=when)

    def await_stop(self, method: str, when: When) -> bytes:
        """Wait until such a call is stopped; returns its payment hash, if it has one."""
        told = self._await(lambda told: (told.get("method"), told.get("when")) == (method, when), f"{method} {when}")
        return bytes.fromhex(told["hash"])

    def go(self) -> None:
        """Let every stopped call go on, and stop no more calls."""
        self._do(do="go")
        self._await(lambda told: "gone" in told, "the relay's calls going on")
        while not self._told.empty():
            self._told.get()

    def hold_invoices(self, wanted: bool, memo: str = "") -> None:
        """Turn invoices into hold invoices, or no longer. Args: memo: only those that contain this text."""
        self._do(do="hold", wanted=wanted, memo=memo)

    def await_accepted(self) -> bytes:
        """Wait until the payment of a hold invoice has come; returns its hash."""
        return bytes.fromhex(self._await(lambda told: "accepted" in told, "a held payment")["accepted"])

    def settle(self, payment_hash: bytes) -> None:
        """Settle a held payment."""
        self._do(do="settle", hash=payment_hash.hex())
        self._await(lambda told: told.get("settled") == payment_hash.hex(), "the held payment settled")

    def cancel(self, payment_hash: bytes) -> None:
        """Send a held payment back."""
        self._do(do="cancel", hash=payment_hash.hex())
        self._await(lambda told: told.get("cancelled") == payment_hash.hex(), "the held payment cancelled")

    def unlock(self) -> None:
        """Unlock the node's wallet, which has had no password of its own; it gets one."""
        self._do(do="unlock")
        self._await(lambda told: "unlocked" in told, "the wallet unlocked")

    def _do(self, **command: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def _await(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        deadline = time.monotonic() + STOP_S
        while True:
            try:
                told = self._told.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise LabError(f"not within {STOP_S} s: {what}") from None
            if "error" in told:
                raise LabError(f"relay: {told['error']}")
            if wanted(told):
                return told

    @staticmethod
    def _listen(pipe: IO[str] | None, told: queue.Queue[dict[str, Any]]) -> None:
        assert pipe is not None
        for line in pipe:
            told.put(json.loads(line))
        told.put({"error": "the relay has ended; see relay.log beside the node's data"})


class _RelayedCalls(grpc.GenericRpcHandler):
    """The relay itself: it forwards every call as bytes."""

    def __init__(self, node: grpc.aio.Channel, macaroon: Path) -> None:
        self._node = node
        self._macaroon = macaroon
        self._stops: set[tuple[str, str]] = set()
        self._free = asyncio.Event()
        self._hold: str | None = None
        self._preimages: dict[str, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        path = handler_call_details.method

        async def relay(questions: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for answer in self._relay(path, questions, context):
                yield answer

        return grpc.stream_stream_rpc_method_handler(relay)

    async def _relay(self, path: str, questions: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        name = path.rpartition("/")[2]
        question = b"".join([part async for part in questions])  # LND's methods that ngp calls take one message
        await self._stop(name, "asked", b"")
        if name == "AddInvoice" and self._hold is not None:
            path, question = self._held(path, question)
        metadata = [(key, value) for key, value in context.invocation_metadata() if key == "macaroon"]
        if path.endswith("AddHoldInvoice"):  # by the relay's own macaroon: the daemon's doesn't allow it
            metadata = self._rights()
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._node.unary_stream(path)
        call = method(question, metadata=metadata)
        try:
            async for answer in call:
                if path.endswith("AddHoldInvoice"):
                    answer = self._as_added(question, answer)
                await self._stop(name, "answered", answer)
                yield answer
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        finally:
            call.cancel()

    async def _stop(self, name: str, when: When, answer: bytes) -> None:
        if (name, when) not in self._stops:
            return
        payment_hash = _hash_of(name, answer) if when == "answered" else ""
        if payment_hash is not None:
            _tell(method=name, when=when, hash=payment_hash)
            await self._free.wait()

    def _held(self, path: str, question: bytes) -> tuple[str, bytes]:
        asked = pb.Invoice.FromString(question)
        if self._hold is None or self._hold not in asked.memo:
            return path, question
        held = pb.AddHoldInvoiceRequest(
            memo=asked.memo, hash=sha256(asked.r_preimage).digest(), value_msat=asked.value_msat,
            expiry=asked.expiry, private=asked.private,
        )  # fmt: skip
        self._preimages[held.hash.hex()] = asked.r_preimage
        return f"{INVOICES}AddHoldInvoice", held.SerializeToString()

    def _as_added(self, question: bytes, answer: bytes) -> bytes:
        payment_hash = pb.AddHoldInvoiceRequest.FromString(question).hash
        self._spawn(self._watch(payment_hash))
        bolt11 = pb.AddHoldInvoiceResp.FromString(answer).payment_request
        return pb.AddInvoiceResponse(r_hash=payment_hash, payment_request=bolt11).SerializeToString()

    async def _watch(self, payment_hash: bytes) -> None:
        """Report when the payment of a hold invoice has come; ask again if the node is down."""
        state = pb.Invoice.OPEN
        while state == pb.Invoice.OPEN:
            await asyncio.sleep(POLL_S)
            try:
                asked = pb.PaymentHash(r_hash=payment_hash).SerializeToString()
                state = pb.Invoice.FromString(await self._call(f"{LIGHTNING}LookupInvoice", asked)).state
            except grpc.aio.AioRpcError:
                continue
        if state == pb.Invoice.ACCEPTED:
            _tell(accepted=payment_hash.hex())

    async def obey(self, command: dict[str, Any]) -> None:
        """Carry out the test's commands."""
        match command["do"]:
            case "stop":
                self._free.clear()
                self._stops.add((command["method"], command["when"]))
            case "go":
                self._stops.clear()
                self._free.set()
                _tell(gone=True)
            case "hold":
                self._hold = command["memo"] if command["wanted"] else None
            case "settle":
                await self._end("SettleInvoice", command["hash"], "settled")
            case "cancel":
                await self._end("CancelInvoice", command["hash"], "cancelled")
            case "unlock":
                await self._call(CHANGE_PASSWORD, NEW_PASSWORD)
                _tell(unlocked=True)

    async def _end(self, method: str, payment_hash: str, done: str) -> None:
        """Settle or cancel; if the node was just killed, repeat until it serves."""
        if method == "SettleInvoice":
            message = pb.SettleInvoiceMsg(preimage=self._preimages[payment_hash]).SerializeToString()
        else:
            message = pb.CancelInvoiceMsg(payment_hash=bytes.fromhex(payment_hash)).SerializeToString()
        while True:
            try:
                await self._call(INVOICES + method, message)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    _tell(error=f"{method}: {error.details()}")
                    return
                await asyncio.sleep(POLL_S)
            else:
                _tell(**{done: payment_hash})
                return

    async def _call(self, path: str, message: bytes) -> bytes:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._node.unary_unary(path)
        return await method(message, metadata=self._rights())

    def _rights(self) -> list[tuple[str, str]]:
        return [("macaroon", self._macaroon.read_bytes().hex())]

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _hash_of(name: str, answer: bytes) -> str | None:
    """Return the payment hash of an answer; None: don't stop it, since nothing was settled."""
    if name == "SubscribeInvoices":
        told = pb.Invoice.FromString(answer)
        return told.r_hash.hex() if told.state == pb.Invoice.SETTLED else None
    if name == "SendPaymentV2":
        payment = pb.Payment.FromString(answer)
        return str(payment.payment_hash) if payment.status == pb.Payment.SUCCEEDED else None
    if name == "AddInvoice":
        return pb.AddInvoiceResponse.FromString(answer).r_hash.hex()
    return ""


def _tell(**happened: object) -> None:
    print(json.dumps(happened), flush=True)


async def main(lnddir: str, node: str, address: str, macaroon: str) -> None:
    """Relay until standard input ends."""
    certificate, key = (Path(lnddir, name).read_bytes() for name in ("tls.cert", "tls.key"))
    quick = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
    channel = grpc.aio.secure_channel(node, grpc.ssl_channel_credentials(certificate), options=quick)
    relayed = _RelayedCalls(channel, Path(macaroon))
    server = grpc.aio.server(handlers=(relayed,))
    server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    _tell(ready=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        relayed._spawn(relayed.obey(json.loads(line)))
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
