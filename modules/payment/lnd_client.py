"""Calls to an LND node: one gRPC channel that is made anew when credentials change, and errors that say what to do.

The methods are called by their paths, so that the messages of `lnd.proto` are all that is compiled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc

from ngp.errors import ConfigError, PaymentError
from ngp.modules.payment import lnd_certificate
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment.lnd_connect import Connection, Credentials

CALL_TIMEOUT_S = 15.0
_OPTIONS = (
    # A dead connection is noticed within this time; LND permits pings from 5 s on.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A name server that is away is told as such before `ngp check` loses patience (5 s); gRPC's own limit is minutes.
    ("grpc.dns_ares_query_timeout", 4_000),
    # LND's answer with some hundred invoices can be larger than gRPC's default.
    ("grpc.max_receive_message_length", 64 << 20),
    # http_proxy and the like are for the web: a proxy reaches no node on localhost, and has no business with macaroons.
    ("grpc.enable_http_proxy", 0),
)


# How gRPC names a stream that broke; LND itself answers with other codes.
_UNKNOWN_END = frozenset({
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED, grpc.StatusCode.DATA_LOSS,
})  # fmt: skip

# How LND names a macaroon that it doesn't take: by the word, or in the words of the library that reads and verifies it
# (gopkg.in/macaroon.v2, for another node's and for a damaged one).
_MACAROON_REFUSED = ("macaroon", "signature mismatch after caveat verification", "unmarshal v1:", "unmarshal v2:")


class _Message(Protocol):
    """What every generated message can do."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802

    @classmethod
    def FromString(cls, data: bytes) -> Self: ...  # noqa: N802


Question = TypeVar("Question", bound=_Message, contravariant=True)
Answer = TypeVar("Answer", bound=_Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Question, Answer]):
    """One remote procedure: its path, the messages that it takes and gives, and the rights that LND wants for it."""

    path: str
    question: type[Question]
    answer: type[Answer]
    rights: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


GET_STATE = Method("/lnrpc.State/GetState", pb.GetStateRequest, pb.GetStateResponse)
GET_INFO = Method("/lnrpc.Lightning/GetInfo", pb.GetInfoRequest, pb.GetInfoResponse, ("info:read",))
SIGN_MESSAGE = Method(
    "/lnrpc.Lightning/SignMessage", pb.SignMessageRequest, pb.SignMessageResponse, ("message:write",)
)
CHANNEL_BALANCE = Method(
    "/lnrpc.Lightning/ChannelBalance", pb.ChannelBalanceRequest, pb.ChannelBalanceResponse, ("offchain:read",)
)
LIST_CHANNELS = Method(
    "/lnrpc.Lightning/ListChannels", pb.ListChannelsRequest, pb.ListChannelsResponse, ("offchain:read",)
)
ADD_INVOICE = Method("/lnrpc.Lightning/AddInvoice", pb.Invoice, pb.AddInvoiceResponse, ("invoices:write",))
LOOKUP_INVOICE = Method("/lnrpc.Lightning/LookupInvoice", pb.PaymentHash, pb.Invoice, ("invoices:read",))
LIST_INVOICES = Method(
    "/lnrpc.Lightning/ListInvoices", pb.ListInvoiceRequest, pb.ListInvoiceResponse, ("invoices:read",)
)
SUBSCRIBE_INVOICES = Method(
    "/lnrpc.Lightning/SubscribeInvoices", pb.InvoiceSubscription, pb.Invoice, ("invoices:read",)
)
ADD_HOLD_INVOICE = Method(
    "/invoicesrpc.Invoices/AddHoldInvoice", pb.AddHoldInvoiceRequest, pb.AddHoldInvoiceResp, ("invoices:write",)
)
SETTLE_INVOICE = Method(
    "/invoicesrpc.Invoices/SettleInvoice", pb.SettleInvoiceMsg, pb.SettleInvoiceResp, ("invoices:write",)
)
CANCEL_INVOICE = Method(
    "/invoicesrpc.Invoices/CancelInvoice", pb.CancelInvoiceMsg, pb.CancelInvoiceResp, ("invoices:write",)
)
SEND_PAYMENT = Method("/routerrpc.Router/SendPaymentV2", pb.SendPaymentRequest, pb.Payment, ("offchain:write",))
TRACK_PAYMENT = Method("/routerrpc.Router/TrackPaymentV2", pb.TrackPaymentRequest, pb.Payment, ("offchain:read",))
CONNECT_PEER = Method("/lnrpc.Lightning/ConnectPeer", pb.ConnectPeerRequest, pb.ConnectPeerResponse, ("peers:write",))
OPEN_CHANNEL = Method(
    "/lnrpc.Lightning/OpenChannelSync", pb.OpenChannelRequest, pb.ChannelPoint, ("onchain:write", "offchain:write")
)
PENDING_CHANNELS = Method(
    "/lnrpc.Lightning/PendingChannels", pb.PendingChannelsRequest, pb.PendingChannelsResponse, ("offchain:read",)
)
CHANNEL_INFO = Method("/lnrpc.Lightning/GetChanInfo", pb.ChanInfoRequest, pb.ChannelEdge, ("info:read",))
LIST_TOWERS = Method(
    "/wtclientrpc.WatchtowerClient/ListTowers", pb.ListTowersRequest, pb.ListTowersResponse, ("offchain:read",)
)
TOWER_STATS = Method("/wtclientrpc.WatchtowerClient/Stats", pb.StatsRequest, pb.StatsResponse, ("offchain:read",))
ADD_TOWER = Method(
    "/wtclientrpc.WatchtowerClient/AddTower", pb.AddTowerRequest, pb.AddTowerResponse, ("offchain:write",)
)
REMOVE_TOWER = Method(
    "/wtclientrpc.WatchtowerClient/RemoveTower", pb.RemoveTowerRequest, pb.RemoveTowerResponse, ("offchain:write",)
)

# What a daemon calls, whatever its role; what a buyer calls besides; what it can do without, but tells people with.
ALWAYS: tuple[Method[Any, Any], ...] = (
    GET_INFO, SIGN_MESSAGE, CHANNEL_BALANCE, LIST_CHANNELS, ADD_INVOICE, LOOKUP_INVOICE, LIST_INVOICES,
    SUBSCRIBE_INVOICES, CANCEL_INVOICE,
)  # fmt: skip
TO_SPEND: tuple[Method[Any, Any], ...] = (SEND_PAYMENT, TRACK_PAYMENT)
TO_TELL: tuple[Method[Any, Any], ...] = (PENDING_CHANNELS, CHANNEL_INFO, LIST_TOWERS, TOWER_STATS)
# What only people ask for: rights to be given for a while, or not at all.
TO_OPEN_CHANNELS: tuple[Method[Any, Any], ...] = (CONNECT_PEER, OPEN_CHANNEL)
TO_CHANGE_TOWERS: tuple[Method[Any, Any], ...] = (ADD_TOWER, REMOVE_TOWER)
_BY_HAND = {
    **{method.name: ("lncli openchannel", TO_OPEN_CHANNELS) for method in TO_OPEN_CHANNELS},
    **{method.name: ("lncli wtclient", TO_CHANGE_TOWERS) for method in TO_CHANGE_TOWERS},
}


class LndError(PaymentError):
    """LND refused, or could not be asked.

    Attributes:
        code: gRPC's.
        detail: LND's own words.
    """

    def __init__(self, code: grpc.StatusCode, detail: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.detail = detail

    @property
    def unreachable(self) -> bool:
        """Whether nobody knows if the call was carried out."""
        return self.code in _UNKNOWN_END

    @property
    def forbidden(self) -> bool:
        """Whether the macaroon lacks the right, or litd doesn't give it to the holder of an account."""
        return any(words in self.detail.lower() for words in ("permission denied", "restricted account macaroon"))

    @property
    def refuses_macaroon(self) -> bool:
        """Whether LND doesn't take the macaroon at all, whatever it is asked."""
        return _refuses_macaroon(self.code, self.detail)


class LndClient:
    """Calls LND; used within one event loop.

    Args:
        credentials: read again before a call, when a call failed to connect or was not permitted.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._connection: Connection | None = None
        self._channel: grpc.aio.Channel | None = None
        self._doubted = True

    async def call(
        self, method: Method[Question, Answer], question: Question, timeout_s: float = CALL_TIMEOUT_S
    ) -> Answer:
        """Ask once. Raises LndError, or PaymentError where credentials can't be read."""
        channel, metadata = await self._open()
        stub = channel.unary_unary(
            method.path, request_serializer=_serialized, response_deserializer=method.answer.FromString
        )
        try:
            answer: Answer = await stub(question, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise await self._translated(error, method.name) from None
        except asyncio.CancelledError:
            raise _ended(method.name) from None
        return answer

    async def stream(
        self, method: Method[Question, Answer], question: Question, timeout_s: float | None = None
    ) -> AsyncIterator[Answer]:
        """Ask, and yield answers until LND ends the stream or the time is over. Raises as `call`."""
        channel, metadata = await self._open()
        stub = channel.unary_stream(
            method.path, request_serializer=_serialized, response_deserializer=method.answer.FromString
        )
        call = stub(question, timeout=timeout_s, metadata=metadata)
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise await self._translated(error, method.name) from None
        except asyncio.CancelledError:
            raise _ended(method.name) from None
        finally:
            call.cancel()

    def macaroon(self) -> bytes:
        """Return the macaroon as it is now, which the next call uses too. Raises ConfigError."""
        found = self._credentials.read()
        self._doubted = self._doubted or found != self._connection
        return found.macaroon

    async def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _open(self) -> tuple[grpc.aio.Channel, tuple[tuple[str, str], ...]]:
        """Return the channel, made anew if the credentials have changed since a call failed by them."""
        if self._doubted or self._channel is None:
            fresh = self._read()
            if fresh != self._connection or self._channel is None:
                await self.close()
                self._connection, self._channel = fresh, _channel(fresh)
            self._doubted = False
        assert self._connection is not None and self._channel is not None
        return self._channel, (("macaroon", self._connection.macaroon.hex()),)

    def _read(self) -> Connection:
        try:
            return self._credentials.read()
        except ConfigError as error:  # also of a file that went away while we run
            raise PaymentError(str(error)) from error

    async def _translated(self, error: grpc.aio.AioRpcError, name: str) -> LndError:
        code, detail, connection = error.code(), error.details() or "", self._connection
        assert connection is not None  # it was called
        text = _explained(code, detail, connection, name)
        if code is grpc.StatusCode.UNAVAILABLE and lnd_certificate.is_at_fault(detail):
            shown = await lnd_certificate.shown_at(connection.target)
            text = lnd_certificate.why_refused(connection, shown, detail, datetime.now(UTC))
        told = LndError(code, detail, text)
        if code is grpc.StatusCode.UNAVAILABLE:
            self._doubted = True
        if told.refuses_macaroon or told.forbidden:  # it may have been baked anew in place
            self._doubted = True
        return told


def _ended(name: str) -> BaseException:
    """Say who ended a call: whoever waits for it, or we, by letting go of the connection under it.

    gRPC raises the same for both. Taken for the former, the latter would silently end the task that waits.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        return asyncio.CancelledError()
    text = f"LND is used with the macaroon or certificate that was exchanged meanwhile: all is well, {name} begins anew"
    return LndError(grpc.StatusCode.CANCELLED, text, text)


def _channel(connection: Connection) -> grpc.aio.Channel:
    options: list[tuple[str, Any]] = list(_OPTIONS)
    name = connection.certificate_name()
    if name is not None:
        options.append(("grpc.ssl_target_name_override", name))
    credentials = grpc.ssl_channel_credentials(root_certificates=connection.certificate or None)
    return grpc.aio.secure_channel(connection.target, credentials, options=options)


def _serialized(question: _Message) -> bytes:
    return question.SerializeToString()


def _explained(code: grpc.StatusCode, detail: str, connection: Connection, name: str) -> str:
    """Say what is wrong at which node, and what to do."""
    lower, target = detail.lower(), connection.target
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(lower, connection) or (
            f"LND at {target} doesn't answer: is it running, and is {connection.target_from} right? ({detail})"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"LND at {target} took too long to answer {name}; it is asked again"
    if "wallet locked" in lower or (code is grpc.StatusCode.UNIMPLEMENTED and "unknown service" in lower):
        return f"LND at {target} is locked or still starting: lncli unlock"
    if "permission denied" in lower:
        return f"the macaroon does not allow {name} at LND {target}: {_rights_remedy(name)}"
    if _refuses_macaroon(code, detail):
        return (
            f"LND at {target} refuses the macaroon of {connection.macaroon_from} ({detail}): it is another node's, is "
            "damaged, was revoked or has run out; bake one at this node (operator's guide, Real money), and give it "
            "there"
        )
    return f"LND at {target} refuses {name}: {detail or code.name}"


def _refuses_macaroon(code: grpc.StatusCode, detail: str) -> bool:
    return code is grpc.StatusCode.UNAUTHENTICATED or any(words in detail.lower() for words in _MACAROON_REFUSED)


def _unavailable(lower: str, connection: Connection) -> str:
    """Say why a connection didn't come about, as far as gRPC's words (BoringSSL's, c-ares') tell; "" if they don't."""
    target = connection.target
    if "handshake" in lower or "ssl" in lower:
        return (
            f"what listens at {target} doesn't answer as LND's gRPC does: is the port that of rpclisten in lnd.conf "
            "(10009 if it says nothing; 9735 is for peers, 8080 for REST)?"
        )
    if "errors resolving" in lower or "dns resolution failed" in lower:
        return (
            f"LND at {target} isn't found, as its name has no address here: is {connection.target_from} right, and "
            "does DNS answer?"
        )
    return ""


def _rights_remedy(name: str) -> str:
    """Say which rights are to be baked: those of a daemon, or those of a verb that can do without ngp."""
    if name not in _BY_HAND:
        return "bake one with the rights that `ngp check` names"
    command, methods = _BY_HAND[name]
    rights = " ".join(f"uri:{method.path}" for method in methods)
    return f"bake one that has these rights besides: {rights}; or use `{command}` at the node"
