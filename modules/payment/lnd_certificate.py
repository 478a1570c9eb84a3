"""Certificate: finds out why LND's certificate was refused, and what to do.

gRPC only reports that the certificate was refused. There are several causes: LND's own certificate expires after 14
months; a clock may be wrong; and a certificate signed by an authority may be for another name than that in LND_HOST.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from cryptography import x509

from ngp.core.host_port import split_host_port
from ngp.modules.payment.lnd_connect import Connection, common_name, names_in

LOOK_S = 3.0
_GIVE = "set LND_CERT to its tls.cert, or paste a new URI"


def is_at_fault(detail: str) -> bool:
    """Say whether gRPC's text (from BoringSSL) means that the certificate was refused."""
    lower = detail.lower()
    return "certificate_verify_failed" in lower or "hostname verification" in lower


async def shown_at(target: str) -> x509.Certificate | None:
    """Return the certificate shown at `host:port`, valid or not; None if there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # safe: we send nothing to it, and trust nothing
    context.set_alpn_protocols(["h2"])
    with suppress(OSError, TimeoutError, ValueError):
        host, port = split_host_port(target)
        async with asyncio.timeout(LOOK_S):
            _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            return readable(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        finally:
            writer.close()
    return None


def readable(der: bytes) -> x509.Certificate | None:
    """Return a certificate if all fields that we need can be read, else None.

    Any program may have sent it. The library parses a field only when it is asked for, so each is asked for here.
    """
    try:
        found = x509.load_der_x509_certificate(der)
        names_in(found), found.subject, found.issuer, found.not_valid_before_utc, found.not_valid_after_utc
    except Exception:  # ValueError, and several types of the library
        return None
    return found


def why_refused(connection: Connection, shown: x509.Certificate | None, detail: str, now: datetime) -> str:
    """Say what is wrong with a certificate, and what to do.

    Args:
        shown: the node's certificate; None if it couldn't be read again.
        detail: gRPC's text.
        now: UTC.
    """
    trusted = x509.load_pem_x509_certificates(connection.certificate) if connection.certificate else []
    known_from, begins = connection.certificate_from, f"LND at {connection.target} shows a certificate"
    if untimely := _untimely(shown, trusted, detail, now):
        whose, said = untimely
        return f"{begins} that {said}" if whose is shown else f"the certificate of {known_from} {said}"
    if "hostname verification" in detail.lower() and shown is not None and shown in trusted:
        name = _printable(common_name(shown) or "")
        instead = f"write the name in it, {name}, in {connection.target_from}, or " if name else ""
        return (
            f"{begins} that names no host and is marked as an authority's, so other nodes may have certificates "
            f"signed by it: {instead}let LND make one of its own (move its tls.cert and tls.key away, restart LND), "
            f"then {_GIVE}"
        )
    if "hostname verification" in detail.lower():
        names = _printable(", ".join(names_in(shown))) if shown else ""
        instead = "one of these names" if names else "a name that is in the certificate"
        return (
            f"{begins} for {names or 'other names'}, but ngp reaches it by another name: write {instead} in "
            f"{connection.target_from}, or set LND_CERT to the node's own certificate instead of its authority's"
        )
    if shown is not None and shown.issuer != shown.subject and shown not in trusted:
        return (
            f"{begins} that is signed by {_printable(shown.issuer.rfc4514_string())}, which isn't in {known_from}: "
            "set LND_CERT to the certificate of that authority (with the intermediate ones, if the node doesn't send "
            "them), or to the node's own"
        )
    if trusted:
        return (
            f"LND at {connection.target} shows another certificate than the one in {known_from}: if LND has made a new "
            f"one, {_GIVE}"
        )
    return (
        f"{begins} that this system doesn't trust, and {known_from} has none: set LND_CERT to its tls.cert, or "
        "paste a URI that has it"
    )


def _untimely(
    shown: x509.Certificate | None, trusted: Sequence[x509.Certificate], detail: str, now: datetime
) -> tuple[x509.Certificate, str] | None:
    """Return the certificate that isn't valid now, and the text about it; None if the dates aren't the problem."""
    for one in (*([shown] if shown else []), *trusted):
        if one.not_valid_after_utc < now and "expired" in detail.lower():
            own = one.issuer == one.subject
            how = f"restart LND, which makes a new one, then {_GIVE}" if own else "have its authority renew it"
            return one, f"expired on {_day(one.not_valid_after_utc)} (by our clock it is {_day(now)}): {how}"
        if one.not_valid_before_utc > now and "not yet valid" in detail.lower():
            begins = _day(one.not_valid_before_utc)
            clocks = "set the clock that is wrong; if it was the node's, let LND make a new certificate"
            return one, f"is valid from {begins} only (by our clock it is {_day(now)}): {clocks}"
    return None


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
