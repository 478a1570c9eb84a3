"""Payment watch: passes our payment node's settlements to the core whenever the node can be reached.

While the node is away, contracts with credit go on and listings show the reason (`why_not`). When the node is back, the
stream continues after the last settlement in the ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from ngp.core.events import Event
from ngp.core.payment_node import DecodedInvoice
from ngp.core.settings import Settings
from ngp.core.world import World
from ngp.daemon.post import Post
from ngp.errors import PaymentError
from ngp.identity import payee_statement
from ngp.ports import Ledger, Payment

_log = logging.getLogger("ngp")


def decoder(payment: Payment, ledger: Ledger) -> Callable[[str], DecodedInvoice]:
    """Return what decodes another node's invoice, and asks the ledger whether we ordered its payment before.

    It raises PeerError if the text is no valid invoice, and LedgerError if the ledger can't be read.
    """

    def decode(bolt11: str) -> DecodedInvoice:
        decoded = payment.decode(bolt11)
        return replace(decoded, was_ordered=ledger.was_ordered(decoded.payment_hash))

    return decode


class PaymentWatch:
    """Follows the payment node.

    Args:
        world: has the payment network, and the last settlement that was booked.
        post: its hellos carry the node's signature.
        identity: our own, which the node signs.
        tell: receives settlements, as events.

    Attributes:
        why_not: why the node can't be used at the moment; "" if it can.
    """

    def __init__(
        self, payment: Payment, world: World, post: Post, identity: bytes, tell: Callable[[Event], None]
    ) -> None:
        self.why_not = "not asked yet"
        self._payment = payment
        self._world = world
        self._post = post
        self._identity = identity
        self._tell = tell
        self._warned_of: list[str] = []

    async def follow(self) -> None:
        """Report each settlement when the node does. Raises PaymentError when the node goes away; then call again."""
        try:
            self.why_not = "waiting for the payment node"
            await self._payment.wait_ready()
            self.why_not = ""
            await self.warn_of_lacks(self._world.settings)
            await self._prove_payee()
            async for settled in self._payment.watch_settlements(self._world.money.cursor):
                self._tell(settled)
            raise PaymentError("the payment node ended the list of what was settled")
        except PaymentError as error:
            self.why_not = str(error)
            raise

    async def warn_of_lacks(self, settings: Settings) -> list[str]:
        """Log once which rights we lack at the node: otherwise only the first payment would show it, days later.

        Args:
            settings: say whether we spend.

        Returns:
            All that is lacking, logged now or before.
        """
        lacks = [one for one in await self._payment.check(settings.spends) if not one.ok]
        found = ["; ".join(filter(None, (f"{one.name}: {one.found}", one.remedy))) for one in lacks]
        for line in found:
            if line not in self._warned_of:
                _log.warning("%s", line)
        self._warned_of = found
        return found

    async def _prove_payee(self) -> None:
        """Let the node sign once that it is ours. Without the signature neighbours have only our word."""
        if self._post.ourselves.payee_proof:
            return
        statement = payee_statement(self._identity, self._world.node.network)
        try:
            proof = await self._payment.sign(statement)
        except PaymentError as error:
            _log.info("can't prove to neighbours that the payment node is ours: %s", error)
            return
        self._post.ourselves = replace(self._post.ourselves, payee_proof=proof)
