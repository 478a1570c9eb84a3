"""Handlers: the verbs of the control socket. They check the arguments from the socket; the api does the rest."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ngp.core.rental.rental import Rental
from ngp.daemon.api.acting import Acting
from ngp.daemon.api.plain import plain
from ngp.daemon.api.reading import Reading
from ngp.daemon.api.rows import by_destination
from ngp.daemon.link_calls import MOST_CALL_BYTES
from ngp.daemon.node import Node
from ngp.errors import UsageError

Arguments = dict[str, Any]

MOST_BY_HAND_MSAT = 10**15


def verbs(node: Node) -> Mapping[str, Callable[[Arguments], Any]]:
    """Return the handler of every verb."""
    return Handlers(node).table()


class Handlers:
    """Answers the questions of the control socket through the api."""

    def __init__(self, node: Node) -> None:
        self._reading = Reading(node)
        self._acting = Acting(node)

    def table(self) -> Mapping[str, Callable[[Arguments], Any]]:
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
            "rent call": self.rent_call,
            "rentals": self.rentals,
            "rentals offers": self.rental_offers,
            "rentals off": self.rental_off,
            "rentals on": self.rental_on,
            "rentals release": self.rental_release,
            "lightning": self.lightning,
            "lightning open": self.lightning_open,
            "lightning towers": self.lightning_towers,
            "lightning tower add": self.lightning_tower_add,
            "lightning tower remove": self.lightning_tower_remove,
        }

    async def test(self, _arguments: Arguments) -> str:
        """Show that the event loop runs."""
        return "Test OK"

    # --- reading ------------------------------------------------------------------------------------------------------

    async def status(self, _arguments: Arguments) -> Any:
        """Describe the running daemon."""
        return plain(self._reading.status())

    async def check(self, arguments: Arguments) -> Any:
        """Check the host for the settings in force, or for those of a file whose text and path are given."""
        text = arguments.get("text")
        found = await self._reading.check(text if isinstance(text, str) else None, Path(str(arguments.get("path"))))
        return plain(found)

    def contracts(self, arguments: Arguments) -> AsyncIterator[Any]:
        """List contracts, or their sums by destination."""
        rows = self._reading.contracts(bool(arguments.get("all")))
        return _stream(by_destination(rows, self._reading.inside()) if arguments.get("by_destination") else rows)

    def accounts(self, _arguments: Arguments) -> AsyncIterator[Any]:
        """List accounts."""
        return _stream(self._reading.accounts())

    def neighbours(self, _arguments: Arguments) -> AsyncIterator[Any]:
        """List neighbours, also blocked ones that are on no link."""
        return _stream(self._reading.neighbours())

    def ledger(self, arguments: Arguments) -> AsyncIterator[Any]:
        """List the journal."""
        since = arguments.get("since")
        if since is not None and not isinstance(since, int):
            raise UsageError(f"since is {since!r}: it must be UTC seconds")
        return _stream(self._reading.journal(since))

    def rentals(self, arguments: Arguments) -> AsyncIterator[Any]:
        """List rentals."""
        return _stream(self._reading.rentals(bool(arguments.get("all"))))

    def rental_offers(self, _arguments: Arguments) -> AsyncIterator[Any]:
        """List what tenants may rent."""
        return _stream(self._reading.offers())

    async def lightning(self, _arguments: Arguments) -> Any:
        """Describe our Lightning node."""
        return plain(await self._reading.lightning())

    async def lightning_towers(self, _arguments: Arguments) -> Any:
        """Describe the node's watchtowers."""
        return plain(await self._reading.watchtowers())

    # --- acting -------------------------------------------------------------------------------------------------------

    async def stop(self, _arguments: Arguments) -> str:
        """Start to stop."""
        return self._acting.stop()

    async def reload(self, _arguments: Arguments) -> str:
        """Apply a changed net.conf."""
        return await self._acting.reload()

    async def block(self, arguments: Arguments) -> str:
        """Stop all trade with a neighbour."""
        return self._acting.block(self._neighbour(arguments), True)

    async def unblock(self, arguments: Arguments) -> str:
        """Undo `block`."""
        return self._acting.block(self._neighbour(arguments), False)

    async def refund(self, arguments: Arguments) -> str:
        """Offer a neighbour its balance back, or ask it for ours."""
        neighbour = self._neighbour(arguments)
        return self._acting.ask_refund(neighbour) if arguments.get("ask") else await self._acting.refund(neighbour)

    async def payment(self, arguments: Arguments) -> str:
        """Credit a neighbour or a rental by hand."""
        amount = arguments.get("amount_msat")
        if not isinstance(amount, int) or isinstance(amount, bool) or not 0 < amount < MOST_BY_HAND_MSAT:
            raise UsageError(f"amount {amount!r}: it must be a positive number of msat")
        return await self._acting.credit(self._written(arguments), amount)

    async def fault(self, arguments: Arguments) -> str:
        """Make the sandbox's payment node misbehave, or behave well again."""
        name, value = arguments.get("name"), arguments.get("value")
        if not isinstance(name, str) or not isinstance(value, str):
            raise UsageError(f"fault {name!r} {value!r}: give a name and a value, for example slow 2, or slow off")
        return self._acting.fault(name, value)

    async def backup(self, arguments: Arguments) -> str:
        """Copy the ledger."""
        file = arguments.get("file")
        if not isinstance(file, str) or not file.startswith("/"):
            raise UsageError(f"backup file {file!r}: it must be an absolute path")
        return self._acting.backup(Path(file))

    async def rent_call(self, arguments: Arguments) -> str:
        """Carry a tenant's call to a landlord in the mesh, and its answer back; both as base64."""
        written = arguments.get("content")
        try:
            content = b64decode(written, validate=True) if isinstance(written, str) else b""
        except ValueError:
            content = b""
        if not 0 < len(content) <= MOST_CALL_BYTES:
            raise UsageError(f"the call {str(written)[:40]!r} isn't 1 to {MOST_CALL_BYTES} bytes in base64")
        return b64encode(await self._acting.call(self._neighbour(arguments), content)).decode()

    async def rental_off(self, arguments: Arguments) -> str:
        """Switch a rental off."""
        return self._acting.switch_rental(self._rental(arguments), False)

    async def rental_on(self, arguments: Arguments) -> str:
        """Switch a rental on again."""
        return self._acting.switch_rental(self._rental(arguments), True)

    async def rental_release(self, arguments: Arguments) -> str:
        """Give a rental's networks back."""
        return self._acting.release_rental(self._rental(arguments))

    async def lightning_open(self, arguments: Arguments) -> str:
        """Open a private channel with a neighbour's node."""
        neighbour, amount, push = self._neighbour(arguments), arguments.get("amount_sat"), arguments.get("push_sat")
        if not (isinstance(amount, int) and isinstance(push, int) and 0 <= push <= amount):
            raise UsageError(f"amount {amount!r} and push {push!r}: both must be whole sat, and push at most amount")
        host, delay = arguments.get("host"), arguments.get("csv_delay")
        return await self._acting.open_channel(
            neighbour, amount, push, str(host) if host else None, delay if isinstance(delay, int) else None
        )

    async def lightning_tower_add(self, arguments: Arguments) -> str:
        """Let a watchtower watch our channels."""
        return await self._acting.add_tower(str(arguments.get("tower")))

    async def lightning_tower_remove(self, arguments: Arguments) -> str:
        """Stop sending backups to a watchtower."""
        return await self._acting.remove_tower(str(arguments.get("tower")))

    def _neighbour(self, arguments: Arguments) -> bytes:
        return self._acting.find(self._written(arguments))

    def _written(self, arguments: Arguments) -> str:
        written = arguments.get("neighbour")
        if not isinstance(written, str) or not written.strip():
            raise UsageError("name a neighbour: its key, the first letters of it, or its address")
        return written.strip()

    def _rental(self, arguments: Arguments) -> Rental:
        return self._acting.find_rental(str(arguments.get("rental", "")))


async def _stream(rows: Iterable[Any]) -> AsyncIterator[Any]:
    for row in rows:
        yield plain(row)
