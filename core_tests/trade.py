"""Two real daemons that trade, and the questions that scenarios ask of both.

A scenario states its conditions in terms of both sides' listings. While it waits, it asks the daemons' control sockets.
At the end it compares the books through `ngp`, like an operator, and the bytes with an independent count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from core_tests import traffic
from core_tests.daemon import Daemon
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.shell import LabError, await_until
from core_tests.topologies import REMOTE_NETS, ThreeHosts, three_hosts
from ngp.errors import RunningError
from ngp.modules.payment.sandbox import SandboxPayment

Conf = Mapping[str, object]
Row = dict[str, Any]

# Both know each other: scenarios of something else needn't wait until top-ups have grown to PAYMENT_AMOUNT.
KNOWN: Conf = {"TRUST_AMOUNT": "200 sat"}
GATEWAY: Conf = {"MESH_INTERFACES": "mesh0", "IGNORE_INTERFACE": "wan0", **KNOWN}
CLIENT: Conf = {"MESH_INTERFACES": "mesh0", **KNOWN}
MSAT_PER_KB = 1 << 20  # one msat for 1,024 bytes, as a price per GiB
# A statement comes every five seconds while traffic runs, and at once when a contract ends. A lost statement is given
# up after 15 s and repeated with the next. So a test waits for this long only if something is wrong.
SETTLED_S = 60.0
PREPAYING = 254  # the number of a remote address that no scenario uses


class Books:
    """The books of a gateway and a client, and what both must say."""

    gateway: Daemon
    client: Daemon

    def only_with(self, other: Daemon) -> Row:
        """Return what the rows of business with one of the two have in common; here, all rows are."""
        return {}

    def sold(self, **wanted: object) -> list[Row]:
        """Return the gateway's rows of contracts that it sold, closed ones too, with these values."""
        return _rows(self.gateway, role="server", **self.only_with(self.client), **wanted)

    def bought(self, **wanted: object) -> list[Row]:
        """Return the client's rows of contracts that it bought, closed ones too, with these values."""
        return _rows(self.client, role="client", **self.only_with(self.gateway), **wanted)

    def earned(self) -> Row:
        """Return the gateway's account of the client."""
        return _account(self.gateway, role="server", **self.only_with(self.client))

    def spent(self) -> Row:
        """Return the client's account with the gateway."""
        return _account(self.client, role="client", **self.only_with(self.gateway))

    def await_closed(self, count: int = 1) -> None:
        """Wait until this many contracts are closed on both sides, and the last statement has come."""
        await_until(
            lambda: len(self.sold(state="closed")) >= count and len(self.bought(state="closed")) >= count,
            SETTLED_S,
            f"{count} closed contracts",
        )

    def await_settled(self, refused: bool = False) -> list[str]:
        """Wait until the client has the gateway's last statement, and both sides should agree.

        A difference that stays is no error here. Returns the differences that stay.
        """
        found: list[str] = []

        def agree() -> bool:
            found[:] = self.differences(refused)
            return not found

        with suppress(LabError):
            await_until(agree, SETTLED_S)
        return found

    def differences(self, refused: bool = False) -> list[str]:
        """List the differences between the two sides' books.

        Args:
            refused: the gate refused packets at the end of a contract or of the money. Only the client's meter counted
                them, and then it had less room for packets coming back.
        """
        found = []
        theirs = {row["id"]: row for row in self.bought()}
        for ours in self.sold():
            mirror = theirs.pop(ours["id"], None)
            if mirror is None:
                found.append(f"{ours['destination']}: sold, but the client has no such contract")
                continue
            for key in ("used_to_bytes", "used_from_bytes", "charged_msat"):
                taken = key == "used_from_bytes" and used(ours) <= used(mirror)
                if ours[key] != mirror[key] and not (refused and (ours[key] < mirror[key] or taken)):
                    found.append(f"{ours['destination']}: {key} {ours[key]} sold, {mirror[key]} bought")
            if used(ours) != mirror["billed_bytes"]:
                found.append(f"{ours['destination']}: {used(ours)} bytes sold, {mirror['billed_bytes']} billed")
        found += [f"{row['destination']}: bought, but the gateway has no such contract" for row in theirs.values()]
        earned, spent = self.earned(), self.spent()
        for key in ("paid_msat", "charged_msat", "refunded_msat"):
            if earned[key] != spent[key]:
                found.append(f"{key}: {earned[key]} at the gateway, {spent[key]} at the client")
        return found

    def assert_books_agree(self, refused: bool = False) -> None:
        """Assert that both sides' rows, accounts and journals agree, after the last statement.

        Args:
            refused: as for `differences`; bills and payments are compared in any case.
        """
        found = self.await_settled(refused)
        assert not found, "\n".join(found)
        for daemon in (self.gateway,) if refused else (self.gateway, self.client):
            assert_conserved_soon(daemon)


@dataclass(frozen=True, slots=True)
class Trade(Books):
    """A network with a daemon on its gateway and one on its client."""

    net: ThreeHosts
    gateway: Daemon
    client: Daemon

    def identity(self, daemon: Daemon) -> str:
        """Return a daemon's public key as listings show it."""
        return str(daemon.json("status")["identity"])

    def await_acquainted(self) -> None:
        """Wait until both daemons know each other."""
        await_until(lambda: all(map(_knows_somebody, (self.gateway, self.client))), what="neighbours found")

    def kernel_counter(self, name: str) -> int:
        """Return one of the counters that the gateway's kernel keeps."""
        return int(self.gateway.ask("status")["counters"]["kernel"][name])

    def prepay(self) -> None:
        """Make the client pay, by traffic to a separate destination, so that later traffic doesn't begin on credit.

        On credit a stream may use the credit up before the payment comes. The gate then refuses packets that only the
        client's meter has counted.
        """
        assert traffic.ping(self.net.client, self.net.remote(4, PREPAYING)).received == 1
        await_until(lambda: self.earned()["paid_msat"] > 0, what="the first payment")


def used(row: Row) -> int:
    """Return the used bytes of a contract's row, both directions together."""
    return int(row["used_to_bytes"] + row["used_from_bytes"])


def cost_msat(row: Row) -> int:
    """Return what a contract's row costs, rounded up once, if its price didn't change."""
    return -(-used(row) * int(row["price_msat_per_gib"]) >> 30)


def assert_conserved(daemon: Daemon, roles: Collection[str] = ("server", "client")) -> None:
    """Assert for each account that paid = charged + refunded + balance, and that contracts and journal add up to it.

    Args: roles: in which the daemon is looked at. A client's contracts say what it metered, which may be more than what
    it was charged (docs/architecture.md).
    """
    for account in [row for row in daemon.json("accounts") if row["role"] in roles]:
        role, who = account["role"], account["neighbour"]
        paid, charged, refunded = (account[key] for key in ("paid_msat", "charged_msat", "refunded_msat"))
        assert paid == charged + refunded + account["balance_msat"]
        listed = [row for row in daemon.json("contracts", "--all") if row["neighbour"] == who]
        mine = [row for row in listed if row["role"] == role]
        assert charged == sum(row["charged_msat"] for row in mine)
        # In a server's journal incoming money is positive, in a client's outgoing money is negative. If each of two
        # neighbours buys from the other, the lines of both accounts name the same neighbour.
        sign = 1 if role == "server" else -1
        lines = [row for row in daemon.json("ledger") if row["neighbour"] == who]
        assert _moved(lines, "payment", sign) == sign * paid
        assert _moved(lines, "refund", -sign) == -sign * refunded
        billed = {row["contract"]: row["amount_msat"] for row in lines if row["kind"] == "charge"}
        for row in mine:
            if row["state"] == "closed":
                assert billed[row["id"]] == -sign * row["charged_msat"]
        assert set(billed) <= {row["id"] for row in listed}


def assert_conserved_soon(daemon: Daemon) -> None:
    """Assert the same of a daemon whose books still move: a statement or a payment may be on its way."""
    failed: list[AssertionError] = []

    def is_conserved() -> bool:
        try:
            assert_conserved(daemon)
        except AssertionError as error:
            failed[:] = [error]
            return False
        failed.clear()
        return True

    with suppress(LabError):
        await_until(is_conserved, SETTLED_S)
    if failed:
        raise failed[0]


def _moved(lines: Sequence[Row], kind: str, sign: int) -> int:
    """Return the sum of a journal's lines of a kind whose amounts have this sign; msat."""
    return sum(row["amount_msat"] for row in lines if row["kind"] == kind and row["amount_msat"] * sign > 0)


def open_trade(
    lab: Lab,
    gateway: Conf | None = None,
    client: Conf | None = None,
    *,
    both: Conf | None = None,
    whole_routes: bool = False,
    penniless: bool = False,
    **topology: Any,
) -> Trade:
    """Build client, gateway and internet, and start both daemons.

    Args:
        gateway, client, both: keys of net.conf, which replace those that the scenarios have in common.
        whole_routes: leave the gateway its routes to the internet's prefixes, so that it sells these whole. Otherwise
            it has only a default route, and each address is a contract of its own.
        penniless: the client's node has no money, so that no payment succeeds.
        topology: as for `three_hosts`.
    """
    net = three_hosts(lab, **topology)
    if not whole_routes:
        for remote in REMOTE_NETS:
            net.gateway.ip("-6" if ":" in remote else "-4", "route", "del", remote)
    made = Trade(
        net,
        net.gateway.daemon({**GATEWAY, **(both or {}), **(gateway or {})}, start=False),
        net.client.daemon({**CLIENT, **(both or {}), **(client or {})}, start=False),
    )
    if penniless:  # the money of its node is set once, before its first start
        asyncio.run(SandboxPayment(made.client.state_dir, {"balance_msat": "0"}).close())
    start_all(made.gateway, made.client)
    made.await_acquainted()
    return made


def start_all(*daemons: Daemon) -> None:
    """Start daemons side by side. Raises: LabError of the first that is refused."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(Daemon.start, daemons))


def restart(daemon: Daemon) -> None:
    """Kill a daemon without a warning, and start it again with the state that it left."""
    daemon.kill9()
    daemon.start()


def speak_as(internet: Host, source: str, client: str, gateway: str) -> None:
    """Let the host `internet` send to the client from one of its many addresses, through a gateway."""
    if ":" in source:
        internet.ip("address", "replace", f"{source}/128", "dev", "lo", "nodad")  # a whole prefix is no IPv6 source
    family = "-6" if ":" in source else "-4"
    internet.ip(family, "route", "replace", client, "via", gateway, "dev", "wan0", "src", source)


def _knows_somebody(daemon: Daemon) -> bool:
    return any(row["up"] for row in daemon.ask("neighbours"))


def _rows(daemon: Daemon, **wanted: object) -> list[Row]:
    rows = _listing(daemon, "contracts", all=True, by_destination=False)
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _account(daemon: Daemon, **wanted: object) -> Row:
    found = [row for row in _listing(daemon, "accounts") if wanted.items() <= row.items()]
    if len(found) != 1:
        raise LabError(f"{daemon.name}: {len(found)} accounts with {wanted}, expected one")
    return found[0]


def _listing(daemon: Daemon, verb: str, **arguments: bool) -> list[Row]:
    """Ask the daemon; if none runs, let `ngp` read its ledger."""
    try:
        rows: list[Row] = daemon.ask(verb, **arguments)
    except RunningError:
        rows = daemon.json(verb, *(f"--{name}" for name, wanted in arguments.items() if wanted))
    return rows
