"""If LND refuses an operator's wish, the error has the remedy. That LND says these words is checked in its source."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc
import pytest

from core_tests.lightning.build import lnd_source
from ngp.errors import PaymentError
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment import lnd_upkeep
from ngp.modules.payment.lnd_client import LIST_CHANNELS, LndError, Method
from ngp.modules.payment.lnd_upkeep import LndUpkeep

KEY = "02" + "ab" * 32
SAID_IN = (
    "rpcserver.go", "server.go", "funding/manager.go", "lnwallet/errors.go", "lnwallet/chanfunding/coin_select.go",
    "lnwire/error.go", "lnrpc/wtclientrpc/wtclient.go", "watchtower/wtdb/client_db.go",
)  # fmt: skip


class Refusing:
    """An LND that refuses every call with the same words."""

    def __init__(self, detail: str, code: grpc.StatusCode = grpc.StatusCode.UNKNOWN) -> None:
        self.error = LndError(code, detail, f"LND at 127.0.0.1:10009 refuses: {detail}")

    async def call(self, *_: object) -> Any:
        raise self.error


def upkeep(detail: str, code: grpc.StatusCode = grpc.StatusCode.UNKNOWN) -> LndUpkeep:
    return LndUpkeep(Refusing(detail, code))  # type: ignore[arg-type]


def refusal(asked: Any) -> str:
    with pytest.raises(PaymentError) as refused:
        asyncio.run(asked)
    return str(refused.value)


class OneChannel:
    """An LND with one channel, and what its graph contains about it."""

    def __init__(self, *edges: pb.ChannelEdge | LndError) -> None:
        self.edges = list(edges)
        self.asked = 0

    async def call(self, method: Method[Any, Any], _question: object) -> Any:
        if method is LIST_CHANNELS:
            return pb.ListChannelsResponse(channels=[pb.Channel(chan_id=7)])
        self.asked += 1
        edge = self.edges.pop(0) if len(self.edges) > 1 else self.edges[0]
        if isinstance(edge, LndError):
            raise edge
        return edge


YOUNG = LndError(grpc.StatusCode.NOT_FOUND, "edge not found", "")
FORBIDDEN = LndError(grpc.StatusCode.UNKNOWN, "permission denied", "")
HALF = pb.ChannelEdge(node1_policy=pb.RoutingPolicy(min_htlc=2_000))
WHOLE = pb.ChannelEdge(node1_policy=HALF.node1_policy, node2_policy=pb.RoutingPolicy(min_htlc=3_000))


@pytest.mark.parametrize(
    ("edges", "least_msat", "asked"),
    [((YOUNG, HALF, WHOLE), [1_000, 2_000, 3_000, 3_000], 3), ((FORBIDDEN,), [1_000] * 4, 1)],
)
def test_policies_are_asked_for_until_they_are_known_and_not_after_each_payment(
    edges: tuple[Any, ...], least_msat: list[int], asked: int
) -> None:
    node = OneChannel(*edges)
    upkeep = LndUpkeep(node)  # type: ignore[arg-type]
    assert [asyncio.run(upkeep.channels())[0].least_htlc_msat for _ in least_msat] == least_msat
    assert node.asked == asked


@pytest.mark.parametrize(("words", "remedy"), lnd_upkeep._OPEN_REMEDIES.items())
def test_each_refusal_of_a_channel_is_said_with_its_remedy(words: str, remedy: str) -> None:
    said = refusal(upkeep(f"received funding error: {words.upper()} now").open_channel(KEY, 100_000, 0, 1_008))
    assert said.startswith("no channel of 100000 sat: received funding error: ") and said.endswith(remedy)


def test_every_word_that_is_looked_for_is_one_that_lnd_says() -> None:
    source = "".join((lnd_source() / name).read_text() for name in SAID_IN)
    lines = re.sub(r'"\s*\+\s*"', "", source).lower()  # string literals that continue on the next line
    towers = (lnd_upkeep._NOT_ACTIVE, "invalid address", "tower not found", "tower has unacked updates")
    for words in (*lnd_upkeep._OPEN_REMEDIES, *towers):
        assert words in lines, words


def test_an_opening_without_an_answer_is_not_called_a_failure() -> None:
    said = refusal(upkeep("", grpc.StatusCode.DEADLINE_EXCEEDED).open_channel(KEY, 100_000, 0, 1_008))
    assert "look at `ngp lightning status` before another try" in said


@pytest.mark.parametrize(
    ("detail", "code", "says"),
    [
        ("", grpc.StatusCode.DEADLINE_EXCEEDED, "no answer within 15 s"),
        ("dial tcp: connection refused", grpc.StatusCode.UNKNOWN, "connection refused"),
    ],
)
def test_a_peer_that_does_not_answer_is_named_with_its_place(detail: str, code: grpc.StatusCode, says: str) -> None:
    said = refusal(upkeep(detail, code).connect(KEY, "192.0.2.1:9735"))
    assert f"{KEY}@192.0.2.1:9735" in said and says in said and "--host HOST:PORT" in said


def test_an_lnd_that_is_away_is_no_peer_s_fault() -> None:
    said = refusal(upkeep("connect: refused", grpc.StatusCode.UNAVAILABLE).connect(KEY, "192.0.2.1:9735"))
    assert said.startswith("LND at 127.0.0.1:10009")


@pytest.mark.parametrize(
    "detail", ["permission denied", "this RPC call is not supported with restricted account macaroons"]
)
def test_what_may_not_be_seen_leaves_a_gap_and_no_error(detail: str) -> None:
    assert detail in asyncio.run(upkeep(detail).watch()).unknown
    assert asyncio.run(upkeep(detail).pending_channels()) == []


@pytest.mark.parametrize(
    ("detail", "says"),
    [
        ("watchtower client not active", "wtclient.active=1"),
        ("invalid address x:1: lookup x: no such host", "write PUBKEY@HOST:PORT"),
        ("invalid public key: x >= field prime", "lncli tower info"),
        ("tower not found", "ngp lightning tower list"),
        ("tower has unacked updates", "add another"),
        ("disk full", "refuses: disk full"),
    ],
)
def test_each_refusal_of_a_tower_is_said_with_its_remedy(detail: str, says: str) -> None:
    assert says in refusal(upkeep(detail).add_tower(KEY, "192.0.2.1:9911"))
    assert says in refusal(upkeep(detail).remove_tower(KEY))
