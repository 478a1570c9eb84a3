"""Renting: asks a landlord for credit and configuration, and accepts only what was asked for.

Nothing here pays. An invoice is shown, or paid by `ngp.tenant.payer`, only after it passed these checks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ngp import invoice
from ngp.core.host_port import split_host_port
from ngp.core.messages import Prefix
from ngp.core.payment_node import DecodedInvoice
from ngp.core.pricing import SAT_MSAT, show_money
from ngp.core.tenant.account import Account, disagreements, faults_of_invoice
from ngp.core.tenant.answers import Asked, Status
from ngp.core.tenant.configuration import TunnelConfiguration, wg_quick_text
from ngp.core.tenant.terms import SaleTerms
from ngp.errors import LandlordError, PaymentError, PeerError, UsageError
from ngp.tenant import interface, policy
from ngp.tenant.books import BooksFile
from ngp.tenant.home import Home, Tunnel
from ngp.tenant.landlord import FingerprintError, Landlord, RefusedError
from ngp.tenant.rows import iso

WIREGUARD_FOLDER = Path("/etc/wireguard")
POLL_S = 1.25
_SLOWEST_POLL_S = 20.0


@dataclass(frozen=True, slots=True)
class Quote:
    """An invoice that is for what was asked.

    Attributes:
        made_at_s: when it was made, by the clock in the landlord's status; the invoice's own time may be later.
        expires_at_s: UTC.
    """

    asked: Asked
    decoded: DecodedInvoice
    made_at_s: int
    expires_at_s: int

    @property
    def amount_msat(self) -> int:
        """The whole sum."""
        return self.decoded.amount_msat or 0

    @property
    def real_money(self) -> bool:
        """Say whether the sum is real money: not the sandbox's, or a test network's."""
        return self.decoded.network == "mainnet"


@dataclass(frozen=True, slots=True)
class KeptConfiguration:
    """A configuration that was written to a file.

    Attributes: linked: the link by which wg-quick finds the file by its name; "" if there is none.
    """

    configuration: TunnelConfiguration
    text: str
    path: Path
    linked: str
    why_not_linked: str


def ask(landlord: Landlord, tunnel: Tunnel, amount_sat: int, offered: SaleTerms | None, is_first: bool | None) -> Quote:
    """Ask for an invoice. Raises LandlordError, if it isn't for what was asked; nothing is paid then.

    Args:
        offered: the terms to which the user agreed before; None: the user was shown none.
        is_first: whether the invoice must be for a new rental; None: it may be for a new or a running one.
    """
    asked = landlord.ask(tunnel, amount_sat, tunnel.offer)
    now_s = int(time.time())
    try:
        parsed = invoice.read(asked.bolt11)
    except PeerError as error:
        raise LandlordError(f"the landlord's invoice can't be read ({error}): nothing was paid") from error
    decoded = parsed.decoded(now_s)
    faults = faults_of_invoice(asked, decoded, amount_sat * SAT_MSAT, offered, is_first)
    faults += disagreements(Account(), asked.status, time.time())  # of the landlord's clock and ours
    if faults:
        raise LandlordError(f"landlord {landlord.place}: {'; '.join(faults)}; nothing was paid")
    return Quote(asked, decoded, asked.status.now_s, parsed.timestamp_s + parsed.expiry_s)


def refuse_wrong_start(landlord: Landlord, tunnel: Tunnel | None, wants_new: bool) -> None:
    """Refuse a new rental where there is one, and a renewal where there is none. Raises UsageError, LandlordError."""
    has_rental = tunnel is not None and running(landlord, tunnel) is not None
    if wants_new and has_rental and tunnel is not None:
        raise UsageError(
            f"the tunnel {tunnel.shown_name} is rented already: `staticIP AddCredit` adds credit to it, "
            "`staticIP --tunnel NAME RentNewIP` rents another one"
        )
    if not wants_new and not has_rental:
        raise UsageError("nothing is rented yet: `staticIP AddCredit` or `staticIP RentNewIP` rents")


def running(landlord: Landlord, tunnel: Tunnel) -> Status | None:
    """Return the status of a rental that was paid for; None if there is none. Raises LandlordError."""
    try:
        status = landlord.status(tunnel)
    except RefusedError:
        return None
    return status if status.payments else None


def wait_until_paid(landlord: Landlord, tunnel: Tunnel, quote: Quote, tell: Callable[[str], None]) -> Status:
    """Wait until an invoice is paid. Returns the status then. Raises PaymentError: it expired, or was withdrawn."""
    before, said = quote.asked.status, ""
    pause_s = POLL_S
    while time.time() < quote.expires_at_s:
        began_s = time.monotonic()
        try:
            status = landlord.status(tunnel, quote.asked.bolt11)
        except FingerprintError:
            raise
        except LandlordError as error:
            if str(error) != said:
                said = str(error)
                tell(f"{said}; still waiting for the payment")
            pause_s = min(pause_s * 2, _SLOWEST_POLL_S)
        else:
            pause_s = POLL_S
            if status.payments > before.payments and status.paid_msat >= before.paid_msat + quote.amount_msat:
                return status
            if not status.unpaid_invoice and time.time() + POLL_S < quote.expires_at_s:
                raise PaymentError(
                    "the landlord withdrew the invoice: it was not paid; if you paid it nevertheless, "
                    "`ngp rent status` (or `staticIP GetRentalStatus`) shows whether it arrived"
                )
        time.sleep(max(0.0, min(began_s + pause_s - time.monotonic(), quote.expires_at_s - time.time())))
    raise PaymentError("the invoice expired before it was paid: ask for a new one")


def keep_configuration(
    home: Home, landlord: Landlord, tunnel: Tunnel, status: Status | None, keeps_route: bool = False
) -> KeptConfiguration:
    """Get the configuration and write the file for wg-quick.

    Args:
        status: of the rental; the addresses must be in its networks. None: that isn't compared.
        keeps_route: only packets from the rented networks use the tunnel; otherwise, as published, all of them do.
    Raises: LandlordError, NgpError.
    """
    configuration = landlord.configuration(tunnel)
    if status is not None:
        for one in configuration.addresses:
            if not any(one.ip in network for network in status.networks):
                raise LandlordError(
                    f"the landlord's configuration has the address {one}, which isn't of the rented networks "
                    f"{', '.join(map(str, status.networks)) or '(none)'}: no file was written; ask the landlord"
                )
    networks = status.networks if status is not None else ()
    said = (*networks, *(one.network for one in configuration.addresses))
    if keeps_route:  # our books, which lead packets, took the landlord's word at the payment; it may say otherwise now
        said += BooksFile(home.state_path(tunnel)).read().account.networks
    _refuse_surroundings(landlord, configuration, said)
    ours = interface.own_addresses(but=tunnel.interface)
    for network in said:
        if taken := next((one for one in ours if one in network), None):
            raise LandlordError(
                f"the landlord says that {network} is rented, but {taken} is this host's already: no file was "
                "written, as the host's own packets would go to the landlord; ask the landlord"
            )
    more = policy.lines(configuration, networks, tunnel.root_key) if keeps_route else ()
    uses_dns = interface.can_set_dns() and (not keeps_route or interface.sets_dns(home.conf_path(tunnel)))
    text = wg_quick_text(configuration, tunnel.private_key, uses_dns, more)
    path = home.keep_conf(tunnel, text)
    linked, why_not = _link(path)
    return KeptConfiguration(configuration, text, path, linked, why_not)


def _refuse_surroundings(landlord: Landlord, configuration: TunnelConfiguration, networks: Sequence[Prefix]) -> None:
    """Refuse a tunnel that ends at a local address (private, multicast, ...), or whose networks have local addresses.

    This machine may be in such a network later, and then all that it sends would go into the tunnel. A landlord that is
    trusted at a local address may do both.

    Args: networks: all that the landlord says, or said, are rented.
    """
    trusted_at = landlord.place.host
    if _is_trusted_locally(trusted_at):
        return
    for end in configuration.ends:
        host, _ = split_host_port(end.endpoint)
        if _is_local(host):
            raise LandlordError(
                f"landlord {landlord.place} says that the tunnel ends at {host}, an address of this machine or of its "
                "surroundings: no file was written; ask the landlord, or, if that is right, trust it by such an address"
            )
    for network in networks:
        if not may_be_rented(trusted_at, network):
            raise LandlordError(
                f"landlord {landlord.place} says that {network} is rented, which has addresses of this machine's "
                "surroundings: no file was written; ask the landlord, or, if that is right, trust it by such an address"
            )


def may_be_rented(landlord_host: str, network: Prefix) -> bool:
    """Say whether a landlord's word that a network is rented may be believed: not if it has local addresses.

    Args: landlord_host: where the landlord is trusted; "": it is a neighbour.
    """
    is_local = _is_local(str(network[0])) or _is_local(str(network[-1]))
    return not is_local or _is_trusted_locally(landlord_host)


def _is_trusted_locally(landlord_host: str) -> bool:
    return not landlord_host or _is_local(landlord_host)


def _is_local(host: str) -> bool:
    with contextlib.suppress(ValueError):
        address = ip_address(host)
        return address.is_multicast or not address.is_global
    return False


def _link(path: Path) -> tuple[str, str]:
    """Let wg-quick find the file by its name. Returns the link, or why there is none: the file alone suffices."""
    link = WIREGUARD_FOLDER / path.name
    if os.geteuid() != 0:
        return "", f"only root may link it into {WIREGUARD_FOLDER}"
    try:
        if link.is_symlink() and link.readlink() == path:
            return str(link), ""
        link.symlink_to(path)
    except FileExistsError:
        return "", f"{link} exists already, and isn't a link to this file"
    except OSError as error:
        return "", f"{WIREGUARD_FOLDER}: {error.strerror}"
    return str(link), ""


def unlink(path: Path) -> None:
    """Remove the link by which wg-quick finds a file; anything else of that name stays."""
    link = WIREGUARD_FOLDER / path.name
    with contextlib.suppress(OSError):
        if link.is_symlink() and link.readlink() == path:
            link.unlink()


def describe_invoice(quote: Quote) -> list[tuple[str, str]]:
    """Return what an invoice is for, as names and values."""
    asked, fee_msat = quote.asked, quote.asked.terms.activation_fee_msat
    rows = [("invoice", show_money(quote.amount_msat))]
    if asked.is_first:
        rows.append(("activation fee", f"{show_money(fee_msat)}, once"))
    rows.append(("credit added", show_money(asked.added_msat)))
    rows.append(("rent", asked.terms.asked))
    if not quote.real_money:
        rows.append(("network", f"{quote.decoded.network}: not real money"))
    rows.append(("expires", iso(quote.expires_at_s)))
    return rows
