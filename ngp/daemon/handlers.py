"""Handlers: what each verb asks of the running daemon. Arguments come from the control socket and are checked here."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ngp import __version__, identity
from ngp.config import parse
from ngp.core import refunds
from ngp.core.channels import Channel, Watch
from ngp.core.events import AskRefund, BlockNeighbour, ChannelsSeen, InvoiceMade, RefundNeighbour
from ngp.core.messages import Role
from ngp.core.networks import is_same
from ngp.core.pricing import SAT_MSAT, show_money
from ngp.core.records import PaymentKind, PaymentState
from ngp.core.settings import Settings
from ngp.core.values import Check
from ngp.core.world import Neighbour
from ngp.daemon import checkup, lightning, reports
from ngp.daemon.node import Node
from ngp.errors import ConfigError, LedgerError, PaymentError, UsageError
from ngp.ports import ChannelManager, Network, TowerManager

MANUAL_EXPIRY_S = 60
BOOKS_S = 5.0


def verbs(node: Node) -> Mapping[str, Callable[[dict[str, Any]], Any]]:
    """Return the handler of every verb."""
    return Handlers(node).table()


class Handlers:
    """Answers for one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._world = node.parts.gatekeeper.world

    def table(self) -> Mapping[str, Callable[[dict[str, Any]], Any]]:
        """Return verbs with their functions."""
        return {
            "test": self.test,
            "stop": self.stop,
            "status": self.status,
            "check": self.check,
            "contracts": self.contracts,
            "accounts": self.accounts,
            "neighbours": self.neighbours,
            "ledger": self.ledger,
            "reload": self.reload,
            "block": self.block,
            "unblock": self.unblock,
            "refund": self.refund,
            "payment": self.payment,
            "fault": self.fault,
            "backup": self.backup,
            "lightning": self.lightning,
            "lightning open": self.lightning_open,
            "lightning towers": self.lightning_towers,
            "lightning tower add": self.lightning_tower_add,
            "lightning tower remove": self.lightning_tower_remove,
        }

    async def test(self, _arguments: dict[str, Any]) -> str:
        """Show that the loop turns."""
        return "Test OK"

    async def stop(self, _arguments: dict[str, Any]) -> str:
        """Begin to stop; the caller waits for the process. Returns what is lost by it, or nothing."""
        lost = ""
        try:
            self._node.write_totals()
        except LedgerError as error:
            lost = f"what was carried, and asked for, since the ledger could be written is lost: {error}"
        self._node.stopping.set()
        return lost

    async def status(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        """Describe the running daemon."""
        node, parts, world = self._node, self._node.parts, self._world
        counters = parts.network.counters()
        datapath: dict[str, Any] = dict(parts.network.describe())
        return {
            "version": __version__,
            "uptime_s": int(parts.clock.now().monotonic_s - node.started_mono_s),
            "identity": identity.text(node.identity),
            "interfaces": list(node.host.desired.mesh_interfaces),
            "upstream_interfaces": list(node.host.desired.upstream_interfaces),
            "lan_interfaces": list(node.host.desired.lan_interfaces),
            "queue": {"held": counters.get("held", 0), "dropped": counters.get("dropped", 0)},
            "datapath": datapath,
            "payment": {
                "module": node.settings.payment_module,
                "ready": not node.payment.why_not,
                "why_not": node.payment.why_not or None,
                "network": world.means.network,
                "real_money": world.means.real_money,
                "on_their_way": sum(one.state is PaymentState.PENDING for one in world.payments.values()),
            },
            "ledger": {"writable": not node.ledger_why_not, "why_not": node.ledger_why_not or None},
            "contracts": len(world.contracts),
            "neighbours": len(world.by_link),
            "not_topped_up": [
                {
                    "neighbour": identity.short_text(account.identity),
                    "role": account.role.value,
                    "why_not": account.why_not,
                }
                for account in world.accounts.values()
                if account.why_not and account.running
            ],
            "counters": {
                "messages_ignored": node.post.counters(),
                "core": dict(world.counters),
                "kernel": counters,
            },
        }

    async def check(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """Look at the host from where the daemon stands; as a file would have it, whose text and path are given."""
        node, text = self._node, arguments.get("text")
        wanted = node.settings
        if isinstance(text, str):  # in a thread: a long file would hold up the loop
            wanted = await asyncio.to_thread(parse, text, Path(str(arguments.get("path"))))
        checks = await node.host.aside(lambda network: self._host_as(wanted, network))
        payment = await checkup.payment(node.settings, wanted, node.parts.payment, node.payment.why_not)
        checks += [*payment, *checkup.neighbours(self._world), *checkup.accounts(self._world)]
        checks.append(checkup.health("ledger", node.ledger_why_not, "can be written"))
        if not node.ledger_why_not:  # in a thread: the loop doesn't wait for sums of years
            checks.append(await asyncio.to_thread(checkup.books, node.parts.store, BOOKS_S))
        checks.append(checkup.effect(node.settings, wanted))
        kinds = {**{one.name: "payment" for one in payment}, "ledger": "ledger", "books": "ledger"}
        return [
            {
                "name": one.name,
                "ok": one.ok,
                "found": one.found,
                "remedy": one.remedy,
                "kind": one.kind or kinds.get(one.name, "kernel"),
            }
            for one in checks
        ]

    def _host_as(self, wanted: Settings, network: Network) -> list[Check]:
        """Look at the host as a file would have it. Args: network: stands beside ours, which has the queue."""
        node = self._node
        checks = checkup.network(wanted, network, node.parts.make_links(wanted), node.host.node_addresses)
        return checks + network.taken(replace(node.host.desired, queue_number=wanted.queue_number))

    def contracts(self, arguments: dict[str, Any]) -> Any:
        """List contracts."""
        self._node.refresh()
        rows = self._contract_rows(bool(arguments.get("all")))
        return _stream(reports.by_destination(rows) if arguments.get("by_destination") else rows)

    def _contract_rows(self, include_closed: bool) -> Iterator[dict[str, Any]]:
        real = self._world.means.real_money
        live = [contract for contract in self._world.contracts.values() if contract.opened_at_s]
        for contract in live:
            yield reports.live_contract_row(contract, real)
        if include_closed:
            known = {contract.contract for contract in live}
            for record in self._node.parts.ledger.contracts(include_closed=True):
                if record.contract not in known:
                    yield reports.contract_row(record, real)

    def accounts(self, _arguments: dict[str, Any]) -> Any:
        """List accounts."""
        self._node.refresh()
        settings, means = self._node.settings, self._world.means
        under_way = reports.on_their_way(self._world.payments.values())
        return _stream(
            [
                reports.account_row(account, settings.grace_data_bytes, means.real_money, under_way.get(key, ()))
                for key, account in self._world.accounts.items()
            ]
        )

    def neighbours(self, _arguments: dict[str, Any]) -> Any:
        """List neighbours, and who is blocked, on a link or not."""
        world = self._world
        gone = sorted(world.blocked - world.by_identity.keys())
        return _stream(
            [
                *(self._neighbour_row(neighbour) for neighbour in world.neighbours.values()),
                *(reports.blocked_row(who) for who in gone),
            ]
        )

    def _neighbour_row(self, neighbour: Neighbour) -> dict[str, Any]:
        world = self._world
        return {
            "neighbour": identity.text(neighbour.identity),
            "interface": neighbour.link[0],
            "link_address": neighbour.link[1].hex(":"),
            "address": self._node.post.transport(neighbour.link),
            "network": neighbour.network,
            "same_network": is_same(neighbour.network, world.means.network),
            "sells": neighbour.sells,
            "buys": neighbour.buys,
            "up": neighbour.up and world.by_link.get(neighbour.link) is neighbour,
            "blocked": neighbour.blocked,
            "lane_bytes": self._node.parts.network.lane_bytes(neighbour.number),
            "last_seen": reports.iso(neighbour.last_seen_s),
        }

    def ledger(self, arguments: dict[str, Any]) -> Any:
        """List the journal."""
        since = arguments.get("since")
        if since is not None and not isinstance(since, int):
            raise UsageError(f"since is {since!r}: it must be UTC seconds")
        real = self._world.means.real_money
        return _stream(reports.journal_row(record, real) for record in self._node.parts.ledger.journal(since))

    async def reload(self, _arguments: dict[str, Any]) -> str:
        """Apply a changed net.conf."""
        return await self._node.reload()

    async def block(self, arguments: dict[str, Any]) -> str:
        """Have nothing more to do with a neighbour."""
        return self._block(arguments, True)

    async def unblock(self, arguments: dict[str, Any]) -> str:
        """Undo `block`, and let a disputed bill rest."""
        return self._block(arguments, False)

    def _block(self, arguments: dict[str, Any], blocked: bool) -> str:
        who = self._who(arguments)
        self._node.obey(BlockNeighbour(who, blocked))
        return f"{identity.short_text(who)} {'is blocked' if blocked else 'may trade again'}"

    async def refund(self, arguments: dict[str, Any]) -> str:
        """Offer a neighbour its balance back; or ask it for ours."""
        who = self._who(arguments)
        if arguments.get("ask"):
            return self._ask_refund(who)
        if why_not := refunds.why_no_refund(self._world, who):
            raise PaymentError(why_not)
        account = self._world.accounts[who, Role.SERVER]
        amount_msat = refunds.offerable_msat(self._world, account)
        await self._must_be_able_to_spend()
        unanswered_msat = account.refund_offered_msat
        self._node.obey(RefundNeighbour(who))
        said = f"refund of {amount_msat // SAT_MSAT} sat offered to {identity.short_text(who)}"
        if unanswered_msat:
            said += (
                f" once more: it sent no invoice for the {unanswered_msat // SAT_MSAT} sat offered before; what you "
                "credited by hand isn't in its books, so it won't ask for that"
            )
        return f"{said}; it asks for no more than it has by its own books, and ngp ledger shows what is paid"

    async def _must_be_able_to_spend(self) -> None:
        payment = self._node.parts.payment
        without = await payment.check(spends=False)  # what hinders selling as well is told by `ngp check`
        for one in await payment.check(spends=True):
            if not one.ok and one not in without:
                raise PaymentError(f"no refund can be paid: {one.name} {one.found}; {one.remedy}")

    def _ask_refund(self, who: bytes) -> str:
        if why_not := refunds.why_not_ask(self._world, who):
            raise PaymentError(why_not)
        if away := self._node.payment.why_not:
            raise PaymentError(f"no refund can be asked for while our payment node can't make its invoice: {away}")
        account = self._world.accounts[who, Role.CLIENT]
        self._node.obey(AskRefund(who))
        balance = f"{account.balance_msat // SAT_MSAT} sat"
        held = ", but for what running contracts hold (ngp block ends them)" if account.running else ""
        return (
            f"{identity.short_text(who)} asked for our {balance}{held}; ngp ledger shows what "
            "comes back, the log what it says"
        )

    async def payment(self, arguments: dict[str, Any]) -> str:
        """Credit a neighbour by hand; sandbox only."""
        means = self._world.means
        if means.real_money:
            raise PaymentError("payments by hand are for the sandbox only; with real money neighbours pay invoices")
        amount = arguments.get("amount_msat")
        if not isinstance(amount, int) or isinstance(amount, bool) or not 0 < amount < 10**15:
            raise UsageError(f"amount {amount!r}: it must be a positive number of msat")
        who = self._who(arguments)
        payment, preimage = self._node.parts.payment, secrets.token_bytes(32)
        made = await payment.create_invoice(amount, "payment by hand", MANUAL_EXPIRY_S, preimage=preimage)
        self._node.obey(
            InvoiceMade(who, PaymentKind.MANUAL, made.bolt11, made.payment_hash, made.amount_msat, made.expires_in_s)
        )
        await payment.settle_invoice(preimage)
        return f"{show_money(amount)} (not real money) credited to {identity.short_text(who)}"

    async def fault(self, arguments: dict[str, Any]) -> str:
        """Have the sandbox's payment node behave badly, or well again, so that operators see what ngp does then."""
        set_fault = getattr(self._node.parts.payment, "set_fault", None)
        if self._world.means.real_money or set_fault is None:
            raise PaymentError("faults on request are for the sandbox only: PAYMENT_INTERFACE: sandbox has them")
        name, value = arguments.get("name"), arguments.get("value")
        if not isinstance(name, str) or not isinstance(value, str):
            raise UsageError(f"fault {name!r} {value!r}: give a name and a value, for example slow 2, or slow off")
        try:
            set_fault(name, value)
        except ConfigError as error:
            raise UsageError(str(error)) from error  # a word of the command, not of net.conf
        return f"fault {name}: {value}"

    async def lightning(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        """Describe our node, its channels and its watchtowers, and what to do about those with neighbours."""
        node, world, manager = self._node, self._world, self._channel_manager()
        in_use, chain = await manager.channels(), await manager.chain()
        node.tell(ChannelsSeen(tuple(in_use)))  # what the operator sees, the daemon trades by
        channels = in_use + await manager.pending_channels()
        watch = await lightning.watch_of(node.parts.payment)
        by_key = {one.payee.hex(): one for one in world.by_link.values() if one.payee}
        return {
            "module": node.settings.payment_module,
            "node": world.means.payee.hex(),
            "network": world.means.network,
            "ready": not node.payment.why_not,
            "why_not": node.payment.why_not or None,
            "block": chain.height,
            "synced": chain.synced,
            "balance_msat": await node.parts.payment.balance_msat(),
            "channels": [self._channel_row(one, by_key.get(one.peer), watch) for one in channels],
            "watchtowers": reports.watch_row(watch),
            "advice": lightning.advice(channels, by_key.values(), world, watch, chain),
        }

    def _channel_row(self, channel: Channel, neighbour: Neighbour | None, watch: Watch) -> dict[str, Any]:
        why_not = [lack.why for lack in lightning.lacks(channel, neighbour, self._world)] if neighbour else []
        if not lightning.is_safe(channel, watch, self._world.settings):
            why_not.append("short CSV delay, and no watchtower")
        return reports.channel_row(channel, neighbour.identity if neighbour else None, why_not)

    async def lightning_open(self, arguments: dict[str, Any]) -> str:
        """Open a private channel with a neighbour's node."""
        manager, who = self._channel_manager(), self._who(arguments)
        neighbour = self._world.any_link(who)
        if neighbour is None or not neighbour.payee:
            raise PaymentError(
                f"{identity.short_text(who)} has not said which Lightning node it has: it must be up, "
                "with PAYMENT_INTERFACE: lnd or electrum on the same network"
            )
        amount, push = arguments.get("amount_sat"), arguments.get("push_sat")
        if not (isinstance(amount, int) and isinstance(push, int) and 0 <= push <= amount):
            raise UsageError(f"amount {amount!r} and push {push!r}: they must be numbers of sat, push the smaller one")
        said, delay = arguments.get("host"), arguments.get("csv_delay")
        host = lightning.host_port(str(said), lightning.PEER_PORT) if said else lightning.peer_host(neighbour)
        if not isinstance(delay, int):
            delay = self._node.settings.csv_delay_blocks if manager.takes_csv_delay else None
        peer = neighbour.payee.hex()
        await manager.connect(peer, host)
        point = await manager.open_channel(peer, amount, push, delay)
        return (
            f"channel {point} with {peer} is being opened; it can be used when its transaction is confirmed: "
            "ngp lightning status"
        )

    async def lightning_towers(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        """Describe the node's watchtowers."""
        return reports.watch_row(await self._tower_manager().watch())

    async def lightning_tower_add(self, arguments: dict[str, Any]) -> str:
        """Have a watchtower watch our channels."""
        key, address = lightning.tower_place(str(arguments.get("tower")))
        await self._tower_manager().add_tower(key, address)
        return f"watchtower {key} at {address} is asked for a session; ngp lightning tower list shows what it agrees to"

    async def lightning_tower_remove(self, arguments: dict[str, Any]) -> str:
        """Send a watchtower nothing more."""
        key = lightning.tower_key(str(arguments.get("tower")))
        await self._tower_manager().remove_tower(key)
        return f"watchtower {key} gets no more backups; what it has it keeps"

    def _tower_manager(self) -> TowerManager:
        payment = self._node.parts.payment
        if not isinstance(payment, TowerManager):
            raise PaymentError(f"{self._node.settings.payment_module} has no watchtowers that ngp could manage")
        return payment

    def _channel_manager(self) -> ChannelManager:
        payment = self._node.parts.payment
        if not isinstance(payment, ChannelManager):
            raise PaymentError(f"{self._node.settings.payment_module} has no channels that ngp could manage")
        return payment

    async def backup(self, arguments: dict[str, Any]) -> str:
        """Copy the ledger."""
        file = arguments.get("file")
        if not isinstance(file, str) or not file.startswith("/"):
            raise UsageError(f"backup file {file!r}: it must be an absolute path")
        if not self._node.ledger_why_not:  # else what it holds is what can be saved
            self._node.write_totals()
        self._node.parts.ledger.backup(Path(file))
        return f"ledger copied to {file}"

    def _who(self, arguments: dict[str, Any]) -> bytes:
        written = arguments.get("neighbour")
        if not isinstance(written, str) or not written:
            raise UsageError("name a neighbour: its key, the first letters of it, or its address")
        by_address = {
            one.identity
            for one in self._world.by_link.values()
            if written in (*self._node.post.transports(one.link), one.link[1].hex(":"))
        }
        if len(by_address) > 1:  # one of them may only say that it is there
            keys = ", ".join(map(identity.short_text, sorted(by_address)))
            raise UsageError(f"{written} is the address of several neighbours ({keys}): write the key of one")
        if by_address:
            return by_address.pop()
        known = {neighbour.identity for neighbour in self._world.neighbours.values()}
        known |= {who for who, _ in self._world.accounts} | self._world.blocked
        return identity.match(written, known)


async def _stream(rows: Any) -> AsyncIterator[dict[str, Any]]:
    for row in rows:
        yield row
