"""First invoices: how many new rentals one address may have waiting for their first payment.

Asking for an invoice costs nothing, but keeps a network of the pools from others, and counts towards
LANDLORD_INVOICES_MAX. Without a limit for each sender's address, one stranger could keep all others from renting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress

from ngp.core.rental.rental import RentalState
from ngp.errors import RentalError
from ngp.ports import LettingService

_MOST_REMEMBERED = 1024
_UNPAID = (None, RentalState.PENDING, RentalState.RELEASED)


class FirstInvoices:
    """Remembers for whom each address asked.

    Args:
        most: rentals of one address that may wait at a time.
        letting: says which rental a WireGuard key has.
    """

    def __init__(self, most: int, letting: LettingService) -> None:
        self._most = most
        self._letting = letting
        self._keys: dict[Hashable, set[bytes]] = {}
        self._asking: Counter[bytes] = Counter()

    @contextmanager
    def asking(self, who: Hashable, key: bytes) -> Iterator[None]:
        """Count an invoice while it is made, and afterwards as long as it waits. One for a paid rental doesn't count.

        Raises: RentalError: too many.
        """
        if self._state(key) not in _UNPAID:
            yield
            return
        keys = self._still_waiting(who)
        if key not in keys and len(keys) >= self._most:
            raise RentalError(
                f"{self._most} new rentals that were asked for from your address wait for their payment: pay one, or "
                "ask again when their invoices have expired"
            )
        self._forget_who_has_none()
        self._keys[who] = keys | {key}
        self._asking[key] += 1
        try:
            yield
        finally:
            self._asking[key] -= 1
            if not self._asking[key]:
                del self._asking[key]

    def _still_waiting(self, who: Hashable) -> set[bytes]:
        kept = self._keys.get(who, ())
        return {key for key in kept if key in self._asking or self._state(key) is RentalState.PENDING}

    def _state(self, key: bytes) -> RentalState | None:
        with suppress(RentalError):
            return self._letting.status(key).state
        return None

    def _forget_who_has_none(self) -> None:
        """Bound the memory: at most LANDLORD_INVOICES_MAX addresses have a rental that waits."""
        if len(self._keys) >= _MOST_REMEMBERED:
            self._keys = {who: keys for who in self._keys if (keys := self._still_waiting(who))}
