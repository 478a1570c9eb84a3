"""Lightning: which channel suits, what watches the channels, and what an operator is told to do next."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ngp.config import parse
from ngp.core.channels import Channel, ChannelEnd, ChannelState
from ngp.core.events import ChannelsSeen
from ngp.core.peers import Neighbour
from ngp.core.settings import Settings
from ngp.core.values import Now
from ngp.core.world import PaymentNode, World
from ngp.daemon import lightning
from ngp.daemon.api.plain import plain
from ngp.daemon.api.rows import channel_row
from ngp.daemon.handlers import Handlers
from ngp.errors import PaymentError, UsageError
from ngp.ports import ChannelManager
from ngp.ports.payment import ChainView, Tower, Watch

PAYEE = b"\x02" + bytes(32)
NEIGHBOUR = Neighbour(bytes(32), ("eth1", b""), 1, sells=True, buys=True, payee=PAYEE, up=True)
GOOD = Channel(
    peer=PAYEE.hex(), point="00:0", active=True, private=True, capacity_sat=500_000,
    least_htlc_msat=1_000, our_wait_blocks=144, their_wait_blocks=1_008,
    our_end=ChannelEnd(300_000_000, 5_000_000), their_end=ChannelEnd(200_000_000, 5_000_000),
)  # fmt: skip
POOR = ChannelEnd(5_099_000, 5_000_000)
TOWER = Tower(PAYEE.hex(), ("192.0.2.1:9911",), used=True, sessions=1, backups=3, pending_backups=0)
OFF, ON, WATCHED = Watch(), Watch(active=True), Watch(active=True, towers=(TOWER,), backups=3)
SYNCED = ChainView(450, True)


def settings(**changes: object) -> Settings:
    return replace(parse("MESH_INTERFACES: [eth1]\n", Path("/etc/ngp/net.conf")), **changes)  # type: ignore[arg-type]


def world(**changes: object) -> Any:
    return SimpleNamespace(settings=settings(**changes))


def why(channel: Channel, **changes: object) -> str:
    return "; ".join(lack.why for lack in lightning.lacks(channel, NEIGHBOUR, world(**changes)))


def test_a_good_channel_lacks_nothing() -> None:
    assert why(GOOD) == ""
    assert lightning.advice([GOOD], [NEIGHBOUR], world(), OFF, SYNCED) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"least_htlc_msat": 100_001}, "no payment below 101 sat"),
        ({"active": False}, "isn't connected"),
        ({"state": ChannelState.OPENING, "active": False}, "the channel is opening"),
        ({"state": ChannelState.CLOSING, "active": False}, "the channel is closing"),
    ],
)
def test_what_a_channel_lacks_is_named_with_the_next_command(changes: dict[str, Any], says: str) -> None:
    bad = replace(GOOD, **changes)
    assert says in why(bad)
    (line,) = lightning.advice([bad], [NEIGHBOUR], world(), OFF, SYNCED)
    assert says in line and ". Next: " in line
    assert lightning.advice([bad, GOOD], [NEIGHBOUR], world(), OFF, SYNCED) == []  # one that suits is enough


def test_the_balance_must_allow_what_is_traded() -> None:
    """The reserve can't be sent.

    A node that buys and sells needs one direction only, since money can come back the same way.
    """
    poor, rich = replace(GOOD, our_end=POOR), replace(GOOD, their_end=POOR)
    for channel in (poor, rich):
        assert why(channel) == ""
    assert why(poor, buys=False) == why(rich, sells=False) == ""
    assert why(poor, sells=False) == "99 sat can be sent, less than PAYMENT_AMOUNT (100 sat)"
    assert why(rich, buys=False) == "99 sat can be received, less than PAYMENT_AMOUNT (100 sat)"
    assert len(lightning.lacks(replace(poor, their_end=POOR), NEIGHBOUR, world())) == 2
    (line,) = lightning.advice([poor], [NEIGHBOUR], world(sells=False), OFF, SYNCED)
    assert line.endswith("Next: ngp lightning open 0000000000000000 --amount 200000")


def test_no_channel_and_a_node_behind_the_chain_are_told() -> None:
    (none,) = lightning.advice([], [NEIGHBOUR], world(), OFF, SYNCED)
    assert none.endswith("ngp lightning open 0000000000000000 --amount 200000")  # Electrum's least amount
    for height, said in ((7, "behind the chain, at block 7"), (-1, "has heard of no block yet")):
        behind, none = lightning.advice([], [NEIGHBOUR], world(), OFF, ChainView(height, False))
        assert said in behind and behind.endswith(f"Next: {lightning.WAIT_FOR_SYNC}")
        assert none.endswith("Next: open one when the node is synced")  # now it would be refused


def test_it_is_the_peers_delay_that_protects_us() -> None:
    """Our own delay is what the peer demanded; it doesn't say for how long we can answer the peer's old state."""
    ours_long = replace(GOOD, our_wait_blocks=2_016, their_wait_blocks=144)
    assert not lightning.is_safe(ours_long, ON, settings())
    assert lightning.is_safe(replace(GOOD, our_wait_blocks=1), ON, settings())
    found = lightning.safety([ours_long, GOOD], ON, settings())
    assert "1 of 2 open channels have a CSV delay below 1008 blocks (about 7 days)" in found.found
    assert "144 blocks (about 24 h)" in found.found


@pytest.mark.parametrize(
    ("watch", "state", "remedy"),
    [
        (OFF, "watchtower client is off", "wtclient.active=1"),
        (ON, "no tower is known", lightning.ADD_A_TOWER),
        (replace(ON, towers=(replace(TOWER, sessions=0),)), "no tower has agreed on a session", "tower list"),
        (replace(WATCHED, towers=(replace(TOWER, used=False),)), "no tower has agreed", "tower list"),
        (Watch(unknown="does not allow ListTowers"), "does not allow ListTowers", "bake"),
    ],
)
def test_a_short_delay_and_no_tower_is_a_warning(watch: Watch, state: str, remedy: str) -> None:
    short = replace(GOOD, their_wait_blocks=144)
    found = lightning.safety([short], watch, settings())
    assert found.ok and state in found.found and remedy in found.remedy  # ok with a remedy: a warning
    assert "CSV_DELAY: 144" in found.remedy
    (line,) = lightning.advice([short], [NEIGHBOUR], world(), watch, SYNCED)
    assert line.startswith("watchtower: ") and remedy in line


def test_a_tower_or_a_long_delay_or_nothing_to_lose_is_well() -> None:
    short = replace(GOOD, their_wait_blocks=144)
    assert lightning.safety([short], WATCHED, settings()).found == "1 in use, 3 backups; 0 wait to be sent"
    assert "1008 blocks (about 7 days)" in lightning.safety([GOOD], OFF, settings()).found
    opening = replace(short, state=ChannelState.OPENING)
    for channels, watch in (([short], WATCHED), ([GOOD], OFF), ([], OFF), ([opening], OFF)):
        found = lightning.safety(channels, watch, settings())
        assert found.ok and not found.remedy
    assert not lightning.safety([short], OFF, settings(csv_delay_blocks=144)).remedy


def test_a_node_that_tells_no_delays_is_not_warned_about() -> None:
    silent = replace(GOOD, their_wait_blocks=0)
    assert lightning.is_safe(silent, OFF, settings())
    found = lightning.safety([silent], Watch(unknown="knows of none"), settings())
    assert found.found.startswith("not known") and not found.remedy


class Node:
    """A payment node with one channel, or one that is away."""

    takes_csv_delay = True

    def __init__(self, away: str = "", chain: ChainView = SYNCED) -> None:
        self.away = away
        self._chain = chain
        self.opened: tuple[Any, ...] = ()

    async def chain(self) -> ChainView:
        return self._chain

    async def channels(self) -> list[Channel]:
        if self.away:
            raise PaymentError(self.away)
        return [GOOD]

    async def pending_channels(self) -> list[Channel]:
        return []

    async def balance_msat(self) -> int:
        return 300_000_000

    async def connect(self, peer: str, host: str) -> None:
        self.connected = (peer, host)

    async def open_channel(self, *terms: object) -> str:
        self.opened = terms
        return "00:0"


def test_check_asks_the_node_unless_it_has_no_channels_or_is_away() -> None:
    assert isinstance(Node(), ChannelManager)
    (found,) = asyncio.run(lightning.look(Node(), settings()))  # type: ignore[arg-type]
    assert found.name == "watchtower" and found.ok
    assert asyncio.run(lightning.look(Node("away"), settings())) == []  # type: ignore[arg-type]
    assert asyncio.run(lightning.look(object(), settings())) == []  # type: ignore[arg-type]


def test_check_warns_of_a_node_that_does_not_follow_the_chain() -> None:
    behind, watch = asyncio.run(lightning.look(Node(chain=ChainView(-1, False)), settings()))  # type: ignore[arg-type]
    assert (behind.name, behind.ok, behind.remedy) == ("chain", True, lightning.WAIT_FOR_SYNC)
    assert "heard of no block" in behind.found and watch.name == "watchtower"


# --- what is typed ----------------------------------------------------------------------------------------------------


def test_a_tower_is_a_key_and_a_place() -> None:
    key = "03" + "Ab" * 32
    assert lightning.tower_place(f"{key}@192.0.2.1") == (key.lower(), "192.0.2.1:9911")
    assert lightning.tower_place(f"{key}@[2001:db8::1]:99") == (key.lower(), "[2001:db8::1]:99")
    assert lightning.tower_place(f"{key}@tower.example:9911")[1] == "tower.example:9911"


@pytest.mark.parametrize(
    "text",
    [
        "", "192.0.2.1:9911", "@192.0.2.1", f"{'02' * 32}@192.0.2.1", f"04{'ab' * 32}@192.0.2.1",
        f"{'02' * 33}@", f"{'02' * 33}@192.0.2.1:", f"{'02' * 33}@192.0.2.1:0", f"{'02' * 33}@192.0.2.1:65536",
        f"{'02' * 33}@2001:db8::1", f"{'02' * 33}@a@b", f"{'02' * 33}@[::1", f"{'02' * 33}@x:http", "02\x1b@y",
    ],
)  # fmt: skip
def test_a_malformed_watchtower_address_is_refused_and_the_error_shows_the_form(text: str) -> None:
    with pytest.raises(UsageError, match=r"PUBKEY@HOST:PORT|66 hexadecimal digits|write 192\.0\.2\.1:9911"):
        lightning.tower_place(text)


def handlers(payment: Any, neighbour: Neighbour | None = None, told: list[object] | None = None) -> Handlers:
    """Handlers of a daemon with this payment node and perhaps one neighbour; its events go into `told`."""
    shown = World(settings(), PaymentNode("regtest", True, False, 1000, PAYEE), lambda: bytes(16), Now(1, 1.0))
    if neighbour is not None:
        shown.peers.add(neighbour)
        shown.peers.by_link[neighbour.link] = neighbour
    parts = SimpleNamespace(gatekeeper=SimpleNamespace(world=shown), payment=payment)
    post = SimpleNamespace(transport=lambda link: "192.0.2.7", transports=lambda link: ["192.0.2.7"])
    tell = [].append if told is None else told.append
    ready = SimpleNamespace(why_not="")
    loop = SimpleNamespace(tell=tell)
    node: Any = SimpleNamespace(parts=parts, settings=settings(), post=post, payment=ready, loop=loop)
    return Handlers(node)


OPEN = {"neighbour": "192.0.2.7", "amount_sat": 500_000, "push_sat": 0, "csv_delay": None, "host": "192.0.2.7"}


def test_a_channel_is_opened_with_the_delay_of_net_conf() -> None:
    node = Node()
    asyncio.run(handlers(node, NEIGHBOUR).lightning_open(OPEN))
    assert node.connected == (PAYEE.hex(), "192.0.2.7:9735")
    assert node.opened == (PAYEE.hex(), 500_000, 0, 1_008)
    near = replace(NEIGHBOUR, addresses=(ip_address("fe80::1"), ip_address("2001:db8::7")))
    asyncio.run(handlers(node, near).lightning_open({**OPEN, "csv_delay": 288, "host": None}))
    assert node.connected[1] == "[2001:db8::7]:9735" and node.opened[3] == 288
    node.takes_csv_delay = False  # Electrum has the delay in its own settings
    asyncio.run(handlers(node, NEIGHBOUR).lightning_open(OPEN))
    assert node.opened[3] is None


@pytest.mark.parametrize(
    ("change", "neighbour", "error", "says"),
    [
        ({"push_sat": 500_001}, NEIGHBOUR, UsageError, "push at most amount"),
        ({"host": "a b"}, NEIGHBOUR, UsageError, "is not HOST:PORT"),
        ({"host": None}, NEIGHBOUR, UsageError, "--host HOST:PORT"),
        ({}, replace(NEIGHBOUR, payee=b""), PaymentError, "has not announced a Lightning node"),
        ({"neighbour": "ffff"}, NEIGHBOUR, UsageError, "ffff"),
    ],
)
def test_what_can_not_be_opened_is_refused_before_the_node_is_asked(
    change: dict[str, Any], neighbour: Neighbour, error: type[Exception], says: str
) -> None:
    node = Node()
    with pytest.raises(error, match=says):
        asyncio.run(handlers(node, neighbour).lightning_open({**OPEN, **change}))
    assert node.opened == ()


def test_status_tells_channels_towers_and_the_next_command() -> None:
    seen: list[object] = []
    told = asyncio.run(handlers(Node(), NEIGHBOUR, seen).lightning({}))
    assert seen == [ChannelsSeen((GOOD,))]  # the daemon trades by what the operator was shown
    (row,) = told["channels"]
    assert (row["suits"], row["why_not"], row["state"]) == (True, None, "open")
    assert (row["can_send_sat"], row["can_receive_sat"]) == (295_000, 195_000)
    assert (row["our_csv_delay_blocks"], row["their_csv_delay_blocks"]) == (144, 1_008)
    assert (told["block"], told["synced"], told["advice"]) == (450, True, [])
    assert "no watchtowers" in told["watchtowers"]["unknown"]


def test_what_is_not_known_of_a_channel_is_not_a_number() -> None:
    closing = replace(
        GOOD, state=ChannelState.CLOSING, active=False, least_htlc_msat=0, our_wait_blocks=0, their_wait_blocks=0
    )
    row = plain(channel_row(closing, None, []))
    unknown = ("neighbour", "least_payment_msat", "our_csv_delay_blocks", "their_csv_delay_blocks", "suits", "why_not")
    assert [row[key] for key in unknown] == [None] * 6
    assert channel_row(GOOD, None, ["short CSV delay"]).suits is False
    assert channel_row(GOOD, bytes(32), []).suits is True


def test_a_module_without_channels_or_towers_says_so() -> None:
    for verb in ("lightning", "lightning_towers"):
        with pytest.raises(PaymentError, match="sandbox has no"):
            asyncio.run(getattr(handlers(object(), NEIGHBOUR), verb)({}))
    with pytest.raises(PaymentError, match="sandbox has no watchtowers"):
        asyncio.run(handlers(Node(), NEIGHBOUR).lightning_tower_add({"tower": f"{'02' * 33}@192.0.2.1"}))
