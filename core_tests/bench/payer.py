"""Pays invoices between LND nodes, controlled by lines of JSON: by ngp's modules, and by bare calls of the nodes.

    python -m core_tests.bench.payer STATE_DIR NODES

NODES is a JSON list of the nodes' settings, as in net.conf: first an LND that earns, then those that pay. Input is one
JSON list a line, output one JSON value a line. All modules share one process here; daemons have one each.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from ngp.core.payment_node import PaymentStatus
from ngp.modules.payment import lnd_client as client
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment.electrum import ElectrumPayment
from ngp.modules.payment.electrum_rpc import Credentials, ElectrumRpc
from ngp.modules.payment.lnd import LndPayment

AMOUNT_MSAT = 5_000
EXPIRY_S, PATIENCE_S = 600, 60
TOLD_S = 10.0


@dataclass(frozen=True, slots=True)
class Round:
    """The times of a round of payments: of the whole, of each payment, and until the earning node reported each."""

    wall_s: float
    seconds: list[float]
    told_s: list[float]


class RawLnd:
    """An LND that is called by bare gRPC."""

    def __init__(self, options: Mapping[str, str]) -> None:
        certificate = Path(options["LND_CERT"]).read_bytes()
        self._channel = grpc.aio.secure_channel(options["LND_HOST"], grpc.ssl_channel_credentials(certificate))
        self._metadata = (("macaroon", Path(options["LND_MACAROON"]).read_bytes().hex()),)

    async def invoice(self) -> str:
        """Make an invoice with the same call as ngp."""
        ask = pb.Invoice(value_msat=AMOUNT_MSAT, expiry=EXPIRY_S, private=True, memo="ngp top-up")
        method = client.ADD_INVOICE
        call = self._channel.unary_unary(
            method.path, request_serializer=_serialized, response_deserializer=method.answer.FromString
        )
        return str((await call(ask, metadata=self._metadata)).payment_request)

    async def pay(self, bolt11: str) -> None:
        """Pay it, over any channel. Raises: RuntimeError when the node doesn't."""
        ask = pb.SendPaymentRequest(payment_request=bolt11, timeout_seconds=PATIENCE_S, no_inflight_updates=True)
        method = client.SEND_PAYMENT
        call = self._channel.unary_stream(
            method.path, request_serializer=_serialized, response_deserializer=method.answer.FromString
        )
        async for told in call(ask, metadata=self._metadata):
            if told.status == pb.Payment.SUCCEEDED:
                return
        raise RuntimeError("LND did not pay")

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


class RawElectrum:
    """An Electrum that is called by bare JSON-RPC."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._rpc = ElectrumRpc(Credentials(options))

    async def pay(self, bolt11: str) -> None:
        """Pay it, over any channel. Raises: RuntimeError when the node doesn't."""
        if not (await self._rpc.call("lnpay", {"invoice": bolt11}, None))["success"]:
            raise RuntimeError("Electrum did not pay")

    async def close(self) -> None:
        """Do nothing: each call has a connection of its own."""


class Payer:
    """The nodes, by ngp's modules and by bare calls."""

    def __init__(self, state_dir: Path, nodes: Sequence[Mapping[str, str]]) -> None:
        self._modules: list[LndPayment | ElectrumPayment] = []
        self._raw: list[RawLnd | RawElectrum] = []
        for number, options in enumerate(nodes):
            folder = state_dir / str(number)
            folder.mkdir(parents=True)
            is_lnd = options["PAYMENT_INTERFACE"] == "lnd"
            self._modules.append((LndPayment if is_lnd else ElectrumPayment)(folder, options))
            self._raw.append((RawLnd if is_lnd else RawElectrum)(options))
        self._told_at: dict[bytes, float] = {}
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, and watch the earning node's reports of settlements."""
        for module in self._modules:
            await module.wait_ready()
        self._keys = [(await module.info()).account_id for module in self._modules]
        self._watch = asyncio.create_task(self._watch_settlements())

    async def _watch_settlements(self) -> None:
        async for settled in self._modules[0].watch_settlements(0):
            self._told_at[settled.payment_hash] = time.perf_counter()

    async def ours(self, payers: Sequence[int], count: int, at_once: int) -> Round:
        """Pay as the daemons do: an invoice, read by the payer, paid to the neighbour's node; the preimage is proof."""
        paid_at: dict[bytes, float] = {}

        async def one(number: int) -> None:
            earning, paying = self._modules[0], self._modules[payers[number % len(payers)]]
            made = await earning.create_invoice(AMOUNT_MSAT, "ngp top-up", EXPIRY_S)
            paying.decode(made.bolt11)
            outcome = await paying.pay(made.bolt11, 0, PATIENCE_S, self._keys[0])
            if outcome.status is not PaymentStatus.SUCCEEDED:
                raise RuntimeError(f"not paid: {outcome.status.value} {outcome.reason}")
            paid_at[made.payment_hash] = time.perf_counter()

        wall_s, seconds = await _timed(one, count, at_once)
        async with asyncio.timeout(TOLD_S):
            while not paid_at.keys() <= self._told_at.keys():
                await asyncio.sleep(0.01)
        return Round(wall_s, seconds, [self._told_at[paid] - at for paid, at in paid_at.items()])

    async def raw(self, payers: Sequence[int], count: int, at_once: int) -> Round:
        """Pay with nothing but AddInvoice and SendPaymentV2, or lnpay."""
        earning = self._raw[0]
        assert isinstance(earning, RawLnd)

        async def one(number: int) -> None:
            await self._raw[payers[number % len(payers)]].pay(await earning.invoice())

        return Round(*await _timed(one, count, at_once), [])

    async def close(self) -> None:
        """Close all connections."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        for module in self._modules:
            await module.close()
        for node in self._raw:
            await node.close()


async def _timed(one: Callable[[int], Awaitable[None]], count: int, at_once: int) -> tuple[float, list[float]]:
    """Do something `count` times, a number of them at once; returns seconds of the whole and of each."""
    seconds: list[float] = []
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            began = time.perf_counter()
            await one(number)
            seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return time.perf_counter() - began, seconds


def _serialized(question: Any) -> bytes:
    data: bytes = question.SerializeToString()
    return data


async def main(state_dir: str, nodes: str) -> None:
    """Serve until standard input ends."""
    payer = Payer(Path(state_dir), json.loads(nodes))
    try:
        await payer.start()
        print(json.dumps("ready"), flush=True)
        while words := await asyncio.to_thread(sys.stdin.readline):
            verb, *arguments = json.loads(words)
            done = await (payer.ours if verb == "ours" else payer.raw)(*arguments)
            print(json.dumps(asdict(done)), flush=True)
    finally:
        await payer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
