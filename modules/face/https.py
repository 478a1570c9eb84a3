"""HTTPS: the face for the published StaticWire client, and for all who speak its API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable
from pathlib import Path

from ngp.core.rental.terms import LettingSettings
from ngp.core.values import Check
from ngp.errors import ConfigError, LedgerError, RentalError
from ngp.modules.face.certificate import CertificateFiles
from ngp.modules.face.door import Door, Limits, Requests, shown
from ngp.modules.face.http import BadRequest, HttpConnection, Request
from ngp.modules.face.staticwire import ADD_CREDIT, PATHS, StaticWireApi, read_form
from ngp.modules.face.tls import TlsStream
from ngp.ports import LettingService

SHOWS = "it shows status and configuration of a rental to whoever knows the tenant's public key"

_log = logging.getLogger("ngp")


class HttpsFace:
    """Serves the StaticWire API; implements `ngp.ports.Face`.

    Args:
        state_dir: has the certificate that is made if net.conf names none.
    """

    def __init__(self, state_dir: Path, limits: Limits | None = None) -> None:
        self._state_dir = state_dir
        self._limits = limits = limits or Limits()
        self._door = Door("LANDLORD_HTTPS", limits, self._converse)
        self._requests = Requests(limits)
        self._pin = ""
        self._api: StaticWireApi | None = None

    async def open(self, letting: LettingService, settings: LettingSettings) -> None:
        """Serve as net.conf says. Raises: ConfigError, KernelError; then everything stays as it was."""
        if not settings.https:
            await self.close()
            return
        files = CertificateFiles.of(settings, self._state_dir)
        files.make_if_missing()
        context, pin = files.context(), files.pin()
        self._api = self._api or StaticWireApi(letting, self._limits.first_invoices_of_one)
        is_news = await self._door.open(settings.https, context) or pin != self._pin
        self._pin = pin
        if is_news:
            where = shown(settings.https)
            _log.info("tenants may rent over HTTPS at %s, fingerprint %s; %s", where, pin, SHOWS)

    def check(self, settings: LettingSettings) -> list[Check]:
        """Return the fingerprint that tenants need, what the API gives away, and what keeps the face from listening."""
        if not settings.https:
            return []
        why_not = self._door.check(settings.https)
        return [self._fingerprint(settings), *([Check("https", False, why_not, kind="kernel")] if why_not else [])]

    def _fingerprint(self, settings: LettingSettings) -> Check:
        files = CertificateFiles.of(settings, self._state_dir)
        where = shown(settings.https)
        if files.is_ours and not files.certificate.exists():
            return Check("https", True, f"{where}; the certificate is made at the start; {SHOWS}")
        try:
            files.context()
            return Check("https", True, f"{where}; fingerprint {files.pin()}; {SHOWS}")
        except ConfigError as error:
            return Check("https", False, str(error), kind="configuration")

    async def close(self) -> None:
        """Stop serving, and end all connections; safe to call twice."""
        await self._door.close()

    async def _converse(self, stream: TlsStream, who: Hashable) -> None:
        connection = HttpConnection(stream, self._limits.bounds)
        task = asyncio.current_task()
        assert task is not None
        goes_on = True
        while goes_on:
            self._door.waits(task)
            try:
                request = await connection.next_request()
            except BadRequest as error:
                await connection.reply(error.status, {"Error": str(error)}, is_last=True)
                return
            if request is None:
                return
            self._door.is_served(task)
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
        if why_not := await self._requests.refusal(who, request.path == ADD_CREDIT):
            raise RentalError(why_not)
        assert self._api is not None
        form = read_form(request.body)
        with self._requests.holding() as hold_s:
            return await self._api.answer(request.path, form, who, hold_s)
