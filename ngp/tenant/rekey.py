"""Rekey: changes the WireGuard key of a rental, and never loses the one that it has.

The new key is written to Config.yaml, beside the old one, before the landlord hears of it. If the answer is lost, or
this process is killed, the landlord is asked with the new key: if it doesn't know the new key, the old one still holds.
"""

from __future__ import annotations

from ngp.errors import KernelError, LandlordError
from ngp.tenant import interface
from ngp.tenant.home import Home, Tunnel
from ngp.tenant.landlord import Landlord, RefusedError


def change(home: Home, landlord: Landlord, tunnel: Tunnel) -> Tunnel:
    """Change a rental's key, or finish a change that was interrupted. Returns the tunnel with its new key.

    Raises: LandlordError: refused, or not known yet whether it was done; both keys are kept then. NgpError.
    """
    if tunnel.next_private_key and (done := _finished(home, landlord, tunnel)):
        return done
    changed = home.begin_rekey(tunnel)
    try:
        landlord.rekey(tunnel, changed)
    except RefusedError:
        home.cancel_rekey(tunnel)
        raise
    except LandlordError as error:
        if done := _finished(home, landlord, tunnel):
            return done
        raise LandlordError(f"{error}; the old key still holds: try again") from error
    return _use(home, tunnel, changed)


def present(home: Home, landlord: Landlord, tunnel: Tunnel) -> Tunnel:
    """Return a tunnel as it is now, after another process may have changed its key. Raises: NgpError."""
    home.reload()
    found = home.tunnel(tunnel.interface) or tunnel
    return (_finished(home, landlord, found) if found.next_private_key else None) or found


def _finished(home: Home, landlord: Landlord, tunnel: Tunnel) -> Tunnel | None:
    """Use the next key if the landlord knows it; None if it doesn't. Raises: LandlordError: that isn't known."""
    changed = home.begin_rekey(tunnel)
    try:
        landlord.status(changed)
    except RefusedError:
        return None
    except LandlordError as error:
        name = tunnel.shown_name
        raise LandlordError(f"{error}; both keys are kept, and ngp rent rekey {name} finishes the change") from error
    return _use(home, tunnel, changed)


def _use(home: Home, tunnel: Tunnel, changed: Tunnel) -> Tunnel:
    """Use the next key in all places. If a kill interrupts this, it is done again: the next key is removed last."""
    not_set: KernelError | None = None
    try:
        interface.change_key(changed.interface, changed.private_key)
    except KernelError as error:
        not_set = error
    done = home.end_rekey(tunnel, changed)
    if not_set is not None:
        raise not_set
    return done
