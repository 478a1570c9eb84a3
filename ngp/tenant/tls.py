"""TLS: connections to a landlord, bounded in time from the first packet to the last.

No certificate authority is asked: whoever connects checks the certificate, or what its owner signs.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from ngp.errors import LandlordError


class Address(Protocol):
    """Where a landlord is. As text (str) it is the landlord's name in errors."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection after its handshake. Attributes: certificate: SHA-256 of the other end's, 32 bytes."""

    socket: ssl.SSLSocket
    certificate: bytes


@contextlib.contextmanager
def connected(address: Address, most_s: float, protocol: str = "") -> Iterator[Connection]:
    """Connect, and end the connection afterwards, or as soon as the time is over.

    Args: protocol: that ALPN must choose; "": none.
    Raises: LandlordError.
    """
    try:
        with _deadline(most_s) as watched:
            plain = socket.create_connection((address.host, address.port), timeout=most_s)
            with plain, _context(protocol).wrap_socket(
                plain, server_hostname=address.host, do_handshake_on_connect=False
            ) as secured:
                watched(secured)
                secured.do_handshake()
                yield Connection(secured, sha256(secured.getpeercert(binary_form=True) or b"").digest())
    except TimeoutError as error:
        raise LandlordError(f"landlord {address} doesn't answer within {most_s:g} s: try again later") from error
    except ssl.SSLError as error:
        why = error.reason or "no TLS"
        raise LandlordError(f"landlord {address} speaks no usable TLS ({why}): check host and port") from error
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise LandlordError(f"landlord {address} can't be reached: {why}: check host, port and route") from error


def _context(protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocol:
        context.set_alpn_protocols([protocol])
    return context


@contextlib.contextmanager
def _deadline(most_s: float) -> Iterator[Callable[[socket.socket], None]]:
    """Shut a socket down when the time is over: the socket's own time-out would begin anew with each byte."""
    watched: list[socket.socket] = []
    over = threading.Event()

    def end() -> None:
        over.set()
        for one in watched:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    def watch(one: socket.socket) -> None:
        watched[:] = [one]
        if over.is_set():
            raise TimeoutError

    timer = threading.Timer(most_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    except Exception as error:
        if over.is_set():  # we ended the connection, which the reader reports as another error
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
    if over.is_set():
        raise TimeoutError
