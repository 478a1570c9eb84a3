"""Calls to an LND node: one gRPC channel, replaced when credentials change, and errors that say what to do.

Methods are called by their paths, so of `lnd.proto` only the messages are compiled, not the services.
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
    # A name server that doesn't answer must be reported before `ngp check` gives up (5 s); gRPC's own limit is minutes.
    ("grpc.dns_ares_query_timeout", 4_000),
    # LND's answer with a few hundred invoices can be larger than gRPC's default.
    ("grpc.max_receive_message_length", 64 << 20),
    # http_proxy is for the web: a proxy can't reach a node on localhost, and must not see macaroons.
    ("grpc.enable_http_proxy", 0),
)


# gRPC's codes for a broken stream; LND itself answers with other codes.
_UNKNOWN_END = frozenset({
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED, grpc.StatusCode.DATA_LOSS,
})  # fmt: skip

# LND's error texts when it refuses a macaroon: its own have the word "macaroon"; those of the library that reads and
# verifies it (gopkg.in/macaroon.v2) don't. They are for a macaroon of another node, and for a damaged one.
_MACAROON_REFUSED = ("macaroon", "signature mismatch after caveat verification", "unmarshal v1:", "unmarshal v2:")


class _Message(Protocol):
    """The methods of every generated message."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802

    @classmethod
    def FromString(cls, data: bytes) -> Self: ...  # noqa: N802


Question = TypeVar("Question", bound=_Message, contravariant=True)
Answer = TypeVar("Answer", bound=_Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Question, Answer]):
    """One remote procedure: its path, its request and answer messages, and the rights that LND requires for it."""

    path: str
    question: type[Question]
    answer: type[Answer]
    rights: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


GET_STATE = Method("/lnrpc.State/GetState", pb.GetStateRequest, pb.GetStateResponse)
GET_INFO = Method("/lnrpc.Lightning/GetInfo", pb.GetInfoRequest, pb.GetInfoResponse, ("info:read",))
SIGN_MESSAGE = Method("/lnrpc.Lightning/SignMessage", pb.SignMessageRequest, pb.SignMessageResponse, ("message:write",))
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
WATCH_INVOICE = Method(
    "/invoicesrpc.Invoices/SubscribeSingleInvoice", pb.SubscribeSingleInvoiceRequest, pb.Invoice, ("invoices:read",)
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

# ALWAYS: procedures that every daemon needs. TO_SPEND: those that only a daemon that pays needs. TO_TELL: those that
# ngp needs only to show more to its operator. TO_HOLD: those that a landlord needs to hold first payments.
ALWAYS: tuple[Method[Any, Any], ...] = (
    GET_INFO, SIGN_MESSAGE, CHANNEL_BALANCE, LIST_CHANNELS, ADD_INVOICE, LOOKUP_INVOICE, LIST_INVOICES,
    SUBSCRIBE_INVOICES, CANCEL_INVOICE,
)  # fmt: skip
TO_SPEND: tuple[Method[Any, Any], ...] = (SEND_PAYMENT, TRACK_PAYMENT)
TO_TELL: tuple[Method[Any, Any], ...] = (PENDING_CHANNELS, CHANNEL_INFO, LIST_TOWERS, TOWER_STATS)
TO_HOLD: tuple[Method[Any, Any], ...] = (ADD_HOLD_INVOICE, WATCH_INVOICE, SETTLE_INVOICE)
# Procedures that ngp calls only on an operator's order: their rights may be given for a while, or not at all.
TO_OPEN_CHANNELS: tuple[Method[Any, Any], ...] = (CONNECT_PEER, OPEN_CHANNEL)
TO_CHANGE_TOWERS: tuple[Method[Any, Any], ...] = (ADD_TOWER, REMOVE_TOWER)
_BY_HAND = {
    **{method.name: ("lncli openchannel", TO_OPEN_CHANNELS) for method in TO_OPEN_CHANNELS},
    **{method.name: ("lncli wtclient", TO_CHANGE_TOWERS) for method in TO_CHANGE_TOWERS},
}


class LndError(PaymentError):
    """LND refused, or could not be asked.

    Attributes:
        code: gRPC's status code.
        detail: LND's own text.
    """

    def __init__(self, code: grpc.StatusCode, detail: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.detail = detail

    @property
    def unreachable(self) -> bool:
        """Say whether the connection failed, so that it isn't known if the call was carried out."""
        return self.code in _UNKNOWN_END

    @property
    def forbidden(self) -> bool:
        """Say whether the macaroon lacks the right, or litd refuses it to the holder of an account."""
        return any(words in self.detail.lower() for words in ("permission denied", "restricted account macaroon"))

    @property
    def refuses_macaroon(self) -> bool:
        """Say whether LND refuses the macaroon itself, for any call."""
        return _refuses_macaroon(self.code, self.detail)


class LndClient:
    """Calls LND; for one event loop.

    Args:
        credentials: after a call that failed to connect or wasn't permitted, they are read again before the next call.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._connection: Connection | None = None
        self._channel: grpc.aio.Channel | None = None
        self._doubted = True

    async def call(
        self, method: Method[Question, Answer], question: Question, timeout_s: float = CALL_TIMEOUT_S
    ) -> Answer:
        """Call a method once (a failed call isn't repeated), and return its answer.

        Raises: LndError, or PaymentError if the credentials can't be read.
        """
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
        """Call, and yield answers until LND ends the stream or the time is over. Raises as `call`."""
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
        """Read the macaroon and return it; the next call uses the same one. Raises ConfigError."""
        found = self._credentials.read()
        self._doubted = self._doubted or found != self._connection
        return found.macaroon

    async def close(self) -> None:
        """Close the connection; safe to call twice."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _open(self) -> tuple[grpc.aio.Channel, tuple[tuple[str, str], ...]]:
        """Return the channel; make a new one if a call has failed and the credentials have changed since."""
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
        except ConfigError as error:  # also if a file has vanished while we run
            raise PaymentError(str(error)) from error

    async def _translated(self, error: grpc.aio.AioRpcError, name: str) -> LndError:
        code, detail, connection = error.code(), error.details() or "", self._connection
        assert connection is not None  # a call was made with it
        text = _explained(code, detail, connection, name)
        if code is grpc.StatusCode.UNAVAILABLE and lnd_certificate.is_at_fault(detail):
            shown = await lnd_certificate.shown_at(connection.target)
            text = lnd_certificate.why_refused(connection, shown, detail, datetime.now(UTC))
        told = LndError(code, detail, text)
        if code is grpc.StatusCode.UNAVAILABLE:
            self._doubted = True
        if told.refuses_macaroon or told.forbidden:  # a new one may have been baked into the same file
            self._doubted = True
        return told


def _ended(name: str) -> BaseException:
    """Return the exception for a call that gRPC reports as cancelled.

    gRPC raises CancelledError in two cases: the calling task was cancelled, or we closed the connection that the call
    uses. In the second case CancelledError would silently end the calling task, so an LndError is returned instead.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        return asyncio.CancelledError()
    text = f"LND's macaroon or certificate was replaced, and ngp now uses the new one: all is well, {name} starts again"
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
    """Return what is wrong, at which node, and what to do."""
    lower, target = detail.lower(), connection.target
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(lower, connection) or (
            f"LND at {target} doesn't answer: is it running, and is {connection.target_from} right? ({detail})"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"LND at {target} took too long to answer {name}; ngp asks again"
    if "wallet locked" in lower or (code is grpc.StatusCode.UNIMPLEMENTED and "unknown service" in lower):
        return f"LND at {target} is locked or still starting: lncli unlock"
    if "permission denied" in lower:
        return f"the macaroon does not allow {name} at LND {target}: {_rights_remedy(name)}"
    if _refuses_macaroon(code, detail):
        return (
            f"LND at {target} refuses the macaroon of {connection.macaroon_from} ({detail}): it is another node's, "
            "damaged, revoked or expired; bake one at this node (operator's guide, Real money), and put it in the "
            "place of the refused one"
        )
    return f"LND at {target} refuses {name}: {detail or code.name}"


def _refuses_macaroon(code: grpc.StatusCode, detail: str) -> bool:
    return code is grpc.StatusCode.UNAUTHENTICATED or any(words in detail.lower() for words in _MACAROON_REFUSED)


def _unavailable(lower: str, connection: Connection) -> str:
    """Return why a connection failed, if gRPC's text (from BoringSSL or c-ares) shows it; else ""."""
    target = connection.target
    if "handshake" in lower or "ssl" in lower:
        return (
            f"the server at {target} doesn't answer like LND's gRPC: is the port that of rpclisten in lnd.conf (10009 "
            "by default; 9735 is for peers, 8080 for REST)?"
        )
    if "errors resolving" in lower or "dns resolution failed" in lower:
        return (
            f"LND at {target} isn't found, as DNS has no address for its name: is {connection.target_from} right, and "
            "does DNS answer?"
        )
    return ""


def _rights_remedy(name: str) -> str:
    """Return which macaroon to bake: with a daemon's rights, or with those of a verb that `lncli` can replace."""
    if name not in _BY_HAND:
        return "bake one with the rights that `ngp check` names"
    command, methods = _BY_HAND[name]
    rights = " ".join(f"uri:{method.path}" for method in methods)
    return f"bake one that also has these rights: {rights}; or use `{command}` at the node"
