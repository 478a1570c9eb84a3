"""HTTPS: the face for the published StaticWire client, and for all who speak its API.

Anyone on the internet may connect, and the daemon that gates traffic has only one loop. So each step has its bound
before it costs anything: connections and TLS handshakes, in all and of one address, before the handshake; then the size
and time of each request, requests, and invoices. What one address has used up hinders no other. If all places are
taken, the connection that has been without a request for longest makes room.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ngp.core.allowance import Allowance, SharedAllowance
from ngp.core.host_port import join_host_port
from ngp.core.rental.terms import LettingSettings
from ngp.core.values import Check
from ngp.errors import ConfigError, LedgerError, RentalError, refused
from ngp.modules.face.certificate import CertificateFiles
from ngp.modules.face.http import BadRequest, Bounds, HttpConnection, Request
from ngp.modules.face.staticwire import ADD_CREDIT, PATHS, StaticWireApi, read_form
from ngp.modules.face.tls import TlsStream
from ngp.ports import LettingService

SHOWS = "it shows status and configuration of a rental to whoever knows the tenant's public key"
_MOST_ADDRESSES = 4096
_NO_LIMIT = 1e9
_BACKLOG = 1024
_PAUSE_S = 1.0

_log = logging.getLogger("ngp")

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the world may ask of us at a time. `of_one`: of one IPv4 address, or one IPv6 /64.

    Attributes:
        accepts_s: connections taken from the kernel, most of them perhaps only to be closed.
        handshakes_s, requests_s, invoices_s: a second; what was saved up in the last burst_s (for invoices,
            invoices_burst_s) may come at once.
        first_invoices_of_one: new rentals that may wait for their first payment at a time.
        holding: requests that may wait for a payment at a time; hold_s: how long.
    """

    connections: int = 1024
    connections_of_one: int = 32
    accepts_s: float = 500
    handshakes_s: float = 50
    handshakes_of_one_s: float = 5
    requests_s: float = 200
    requests_of_one_s: float = 20
    invoices_s: float = 5
    invoices_of_one_s: float = 0.5
    first_invoices_of_one: int = 5
    burst_s: float = 10
    invoices_burst_s: float = 40
    holding: int = 512
    hold_s: float = 20
    handshake_s: float = 10
    bounds: Bounds = field(default_factory=Bounds)


class HttpsFace:
    """Serves the StaticWire API; implements `ngp.ports.Face`.

    Args:
        state_dir: has the certificate that is made if net.conf names none.
    """

    def __init__(self, state_dir: Path, limits: Limits | None = None) -> None:
        self._state_dir = state_dir
        self._limits = limits = limits or Limits()
        self._listeners: dict[Place, tuple[socket.socket, asyncio.Task[None]]] = {}
        self._context: ssl.SSLContext | None = None
        self._pin = ""
        self._api: StaticWireApi | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._of_one: Counter[Hashable] = Counter()
        self._waiting: dict[asyncio.Task[Any], None] = {}
        """Connections without a complete request, the longest first."""
        self._holding = 0
        self._accepts = Allowance(limits.accepts_s, limits.accepts_s / 10)
        self._handshakes = Allowance(limits.handshakes_s, limits.handshakes_s * limits.burst_s)
        self._handshakes_of_one, self._requests, self._invoices = (
            SharedAllowance(rate, of_one, _MOST_ADDRESSES, rate * burst_s, of_one * burst_s)
            for rate, of_one, burst_s in (
                (_NO_LIMIT, limits.handshakes_of_one_s, limits.burst_s),
                (limits.requests_s, limits.requests_of_one_s, limits.burst_s),
                (limits.invoices_s, limits.invoices_of_one_s, limits.invoices_burst_s),
            )
        )

    # --- the port -----------------------------------------------------------------------------------------------------

    async def open(self, letting: LettingService, settings: LettingSettings) -> None:
        """Serve as net.conf says. Raises: ConfigError, KernelError; then everything stays as it was."""
        if not settings.https:
            await self.close()
            return
        files = CertificateFiles.of(settings, self._state_dir)
        files.make_if_missing()
        context, pin = files.context(), files.pin()
        added: dict[Place, socket.socket] = {}
        try:
            for place in settings.https:
                if place not in self._listeners and place not in added:
                    added[place] = _listen(place)
        except BaseException:
            for one in added.values():
                one.close()
            raise
        is_news = bool(added) or pin != self._pin
        self._context, self._pin = context, pin
        self._api = self._api or StaticWireApi(letting, self._limits.first_invoices_of_one)
        await self._stop_listening([one for one in self._listeners if one not in settings.https])
        for place, listener in added.items():
            self._listeners[place] = listener, asyncio.create_task(self._accept(listener))
        if is_news:
            where = _shown(settings.https)
            _log.info("tenants may rent over HTTPS at %s, fingerprint %s; %s", where, pin, SHOWS)

    def check(self, settings: LettingSettings) -> list[Check]:
        """Return the fingerprint that tenants need, and what the API gives away."""
        if not settings.https:
            return []
        files = CertificateFiles.of(settings, self._state_dir)
        where = _shown(settings.https)
        if files.is_ours and not files.certificate.exists():
            return [Check("https", True, f"{where}; the certificate is made at the start; {SHOWS}")]
        try:
            files.context()
            return [Check("https", True, f"{where}; fingerprint {files.pin()}; {SHOWS}")]
        except ConfigError as error:
            return [Check("https", False, str(error), kind="configuration")]

    async def close(self) -> None:
        """Stop serving, and end all connections; safe to call twice."""
        await self._stop_listening(list(self._listeners))
        connections = list(self._connections)
        for one in connections:
            one.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    # --- connections --------------------------------------------------------------------------------------------------

    async def _stop_listening(self, places: list[Place]) -> None:
        for place in places:
            listener, task = self._listeners.pop(place)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        """Accept connections as long as they are within the limits. Those that come faster wait in the kernel."""
        loop = asyncio.get_running_loop()
        while True:
            await self._turn(self._accepts, 1 / self._limits.accepts_s)
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as error:
                _log.warning("HTTPS: %s", refused("no connection can be accepted", error, "it is tried again"))
                await asyncio.sleep(_PAUSE_S)
                continue
            who = _who(address[0])
            if not self._admits(who, loop.time()):
                accepted.close()
                continue
            task = asyncio.create_task(self._serve(accepted, who))
            self._connections.add(task)
            self._of_one[who] += 1
            self._waiting[task] = None
            task.add_done_callback(partial(self._ended, who))
            await self._turn(self._handshakes, 1 / self._limits.handshakes_s)

    async def _turn(self, allowance: Allowance, pause_s: float) -> None:
        while not allowance.take(asyncio.get_running_loop().time()):
            await asyncio.sleep(pause_s)

    def _admits(self, who: Hashable, now: float) -> bool:
        limits = self._limits
        if self._of_one[who] >= limits.connections_of_one or not self._handshakes_of_one.take(who, now):
            return False
        if len(self._connections) < limits.connections:
            return True
        longest = next(iter(self._waiting), None)
        if longest is None:
            return False
        del self._waiting[longest]
        longest.cancel()
        return True

    def _ended(self, who: Hashable, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._waiting.pop(task, None)
        self._of_one[who] -= 1
        if not self._of_one[who]:
            del self._of_one[who]
        if not task.cancelled() and (error := task.exception()):
            _log.error("HTTPS: a request ended with a fault of ngp: %r", error, exc_info=error)

    async def _serve(self, accepted: socket.socket, who: Hashable) -> None:
        bounds = self._limits.bounds
        assert self._context is not None
        stream = await TlsStream.over(accepted, self._context)
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                await stream.handshake()
            await self._converse(HttpConnection(stream, bounds), who)
            async with asyncio.timeout(bounds.reply_s):
                await stream.close()
        except OSError:
            pass  # of the network, of TLS, or a time-out: the other end may come again
        finally:
            stream.abort()

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _converse(self, connection: HttpConnection, who: Hashable) -> None:
        task = asyncio.current_task()
        assert task is not None
        goes_on = True
        while goes_on:
            self._waiting[task] = None
            try:
                request = await connection.next_request()
            except BadRequest as error:
                await connection.reply(error.status, {"Error": str(error)}, is_last=True)
                return
            if request is None:
                return
            self._waiting.pop(task, None)
            status, content = await self._answer(request, who)
            goes_on = await connection.reply(status, content, is_last=status != 200)

    async def _answer(self, request: Request, who: Hashable) -> tuple[int, dict[str, object]]:
        if request.path not in PATHS:
            return 404, {"Error": f"there is no {request.path[:60]!r} here; there are {', '.join(PATHS)}"}
        if request.method != "POST":
            return 405, {"Error": "requests are sent with POST"}
        try:
            return 200, await self._ask(request, who)
        except RentalError as error:
            return 200, {"Error": str(error)}
        except LedgerError:  # its text is for the operator, who has it in the log
            return 200, {"Error": "the landlord can't write its books now: ask again in a minute"}

    async def _ask(self, request: Request, who: Hashable) -> dict[str, object]:
        now = asyncio.get_running_loop().time()
        if not self._requests.take(who, now):
            await asyncio.sleep(_PAUSE_S)  # a connection that asks and asks gets one such answer a second
            raise RentalError("too many requests: ask again in some seconds")
        if request.path == ADD_CREDIT and not self._invoices.take(who, now):
            raise RentalError("too many invoices were asked for: ask again in some seconds")
        assert self._api is not None
        form = read_form(request.body)
        hold_s = self._limits.hold_s if self._holding < self._limits.holding else 0.0
        self._holding += 1
        try:
            return await self._api.answer(request.path, form, who, hold_s)
        finally:
            self._holding -= 1


def _who(address: str) -> Hashable:
    """Return by what senders are told apart: anyone has a /64 full of IPv6 addresses."""
    packed = ip_address(address.partition("%")[0]).packed
    return packed[:8] if len(packed) == 16 else packed


def _shown(places: Iterable[Place]) -> str:
    return ", ".join(join_host_port(*place) for place in places)


def _listen(place: Place) -> socket.socket:
    host, port = place
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # 0.0.0.0 may give way to one of its addresses
        if ":" in host:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # an IPv4 address may be in the list, too
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise refused(
            f"LANDLORD_HTTPS {join_host_port(host, port)}",
            error,
            "give an address of this host and a free port (`ss -ltnp` shows who listens)",
        ) from error
    return listener
