"""LND's connection is replaced while calls still run on the old one: their errors name the calls; nothing is lost."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from ngp.modules.payment import lnd_client, lnd_paste
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment.lnd_client import GET_INFO, SUBSCRIBE_INVOICES, LndClient, LndError
from ngp.modules.payment.lnd_connect import Connection
from tests.payment.test_macaroon import baked

OLD, NEW = b"old macaroon", b"new macaroon"
KEY = "02" + "ab" * 32


@dataclass
class Given:
    """Credentials that change when the test wants it."""

    target: str
    macaroon: bytes = OLD

    def read(self) -> Connection:
        return Connection(self.target, b"", self.macaroon, "LND_CERT: system", "LND_MACAROON /etc/ngp/m")


class Node(grpc.GenericRpcHandler):
    """A node that lets any macaroon follow its invoices, but accepts all other calls with the new macaroon only."""

    def __init__(self, refusal: str) -> None:
        self._refusal = refusal

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def answer(_asked: bytes, context: Any) -> AsyncIterator[bytes]:
            if handler_call_details.method == SUBSCRIBE_INVOICES.path:
                yield pb.Invoice(state=pb.Invoice.SETTLED).SerializeToString()
                await asyncio.sleep(3600)
            if ("macaroon", OLD.hex()) in context.invocation_metadata():
                await context.abort(grpc.StatusCode.UNKNOWN, self._refusal)
            yield pb.GetInfoResponse(identity_pubkey=KEY, chains=[pb.Chain(network="regtest")]).SerializeToString()

        return grpc.unary_stream_rpc_method_handler(answer)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use connections without TLS."""
    monkeypatch.setattr(lnd_client, "_channel", lambda connection: grpc.aio.insecure_channel(connection.target))
    yield


@asynccontextmanager
async def node(refusal: str = "verification failed: macaroon revoked") -> AsyncIterator[Given]:
    server = grpc.aio.server(handlers=(Node(refusal),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Given(f"127.0.0.1:{port}")
    await server.stop(0)


@pytest.mark.usefixtures("plain")
def test_a_stream_ends_as_if_the_node_had_gone_away_when_the_credentials_change() -> None:
    async def follow(client: LndClient, began: asyncio.Event) -> None:
        async for _told in client.stream(SUBSCRIBE_INVOICES, pb.InvoiceSubscription()):
            began.set()

    async def scenario() -> None:
        async with node() as given:
            client, began = LndClient(given), asyncio.Event()  # type: ignore[arg-type]
            following = asyncio.create_task(follow(client, began))
            await began.wait()
            with pytest.raises(LndError, match="refuses the macaroon of LND_MACAROON"):
                await client.call(GET_INFO, pb.GetInfoRequest())
            given.macaroon = NEW
            await client.call(GET_INFO, pb.GetInfoRequest())
            with pytest.raises(LndError) as ended:
                await following
            assert ended.value.unreachable
            following = asyncio.create_task(follow(client, began))
            await asyncio.sleep(0)
            following.cancel()  # cancelled by the waiting task itself, so it is no error of the node
            with pytest.raises(asyncio.CancelledError):
                await following
            await client.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("plain")
def test_the_node_of_a_pasted_uri_says_who_it_is_before_the_uri_is_kept(tmp_path: Path) -> None:
    async def scenario() -> str:
        async with node() as given:
            macaroon = base64.urlsafe_b64encode(baked("info:read")).decode()
            return await lnd_paste.attempt(f"lndconnect://{given.target}?macaroon={macaroon}", tmp_path)

    assert asyncio.run(scenario()) == f"node {KEY} on regtest answers there"
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("plain")
def test_a_macaroon_that_was_baked_anew_in_place_is_used_from_the_next_call_on() -> None:
    async def scenario() -> None:
        async with node("permission denied") as given:
            client = LndClient(given)  # type: ignore[arg-type]
            for _ in range(2):
                with pytest.raises(LndError, match="does not allow GetInfo"):
                    await client.call(GET_INFO, pb.GetInfoRequest())
            given.macaroon = NEW
            await client.call(GET_INFO, pb.GetInfoRequest())
            await client.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("plain")
def test_a_macaroon_that_was_looked_at_is_the_one_in_use() -> None:
    async def scenario() -> None:
        async with node("permission denied") as given:
            given.macaroon = NEW
            client = LndClient(given)  # type: ignore[arg-type]
            await client.call(GET_INFO, pb.GetInfoRequest())
            given.macaroon = OLD
            assert client.macaroon() == OLD
            with pytest.raises(LndError, match="does not allow GetInfo"):
                await client.call(GET_INFO, pb.GetInfoRequest())
            await client.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("pinned", "detail", "says"),
    [
        (b"pem", "Handshake read failed (Socket closed)", "is the port that of rpclisten"),
        (b"pem", "Tls handshake failed: WRONG_VERSION_NUMBER", "is the port that of rpclisten"),
        (b"pem", "errors resolving foo:1: DNS query cancelled", "DNS has no address for its name"),
        (b"pem", "Connection refused", "doesn't answer: is it running"),
    ],
)
def test_a_connection_that_does_not_come_about_is_told_by_its_cause(pinned: bytes, detail: str, says: str) -> None:
    given = Connection("foo:1", pinned, OLD, "from", "from")
    assert says in lnd_client._explained(grpc.StatusCode.UNAVAILABLE, detail, given, "GetInfo")


@pytest.mark.parametrize(
    "refusal",
    [
        "verification failed: signature mismatch after caveat verification",
        "unmarshal v2: field data extends past end of buffer",
    ],
)
@pytest.mark.usefixtures("plain")
def test_another_nodes_macaroon_and_a_damaged_one_are_named_by_their_place_and_read_again(refusal: str) -> None:
    async def scenario() -> None:
        async with node(refusal) as given:
            client = LndClient(given)  # type: ignore[arg-type]
            with pytest.raises(LndError, match="refuses the macaroon of LND_MACAROON /etc/ngp/m .*; bake one"):
                await client.call(GET_INFO, pb.GetInfoRequest())
            given.macaroon = NEW
            await client.call(GET_INFO, pb.GetInfoRequest())
            await client.close()

    asyncio.run(scenario())


def test_a_port_without_tls_and_a_name_without_address_are_told_apart() -> None:
    async def scenario() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for place, says in ((f"127.0.0.1:{port}", "rpclisten"), ("nowhere.invalid:10009", "no address")):
            client = LndClient(Given(place))  # type: ignore[arg-type]
            with pytest.raises(LndError, match=says):
                await client.call(GET_INFO, pb.GetInfoRequest())
            await client.close()
        server.close()

    asyncio.run(scenario())


def test_a_stream_that_begins_again_with_another_macaroon_is_not_reported_as_trouble() -> None:
    async def ended() -> BaseException:
        return lnd_client._ended("SubscribeInvoices")

    assert "macaroon or certificate was replaced, and ngp now uses the new one" in str(asyncio.run(ended()))
