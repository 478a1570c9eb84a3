"""Tenant service: what AutoPay and `ngp rent` need around renting: log, lock, signals, settings, payment node."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import getpass
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from ipaddress import ip_address
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from ngp import identity
from ngp.cli import client, streams
from ngp.cli.place import Place
from ngp.cli.show import clean
from ngp.config import load
from ngp.core.settings import FeeLimit, Settings
from ngp.core.tenant.answers import Status
from ngp.core.tenant.terms import Limits, TenantSettings, stricter
from ngp.daemon import main, state
from ngp.errors import ExitCode, NgpError, PaymentError, RunningError, UsageError
from ngp.ports import Payment
from ngp.remembered_node import RememberedNode
from ngp.tenant import autopay, barrier, files, interface, money_back, routing, wallet
from ngp.tenant.autopay import Kept
from ngp.tenant.books import Books, BooksFile
from ngp.tenant.grpc import GrpcPlace, grpc_landlord
from ngp.tenant.home import CONFIG, AnyPlace, Home, Tunnel
from ngp.tenant.https import HttpsLandlord
from ngp.tenant.landlord import Landlord, NeighbourPlace, read_neighbour
from ngp.tenant.mesh import mesh_landlord
from ngp.tenant.payer import Payer
from ngp.tenant.proof import CommandProof, EchoProof, Proof
from ngp.tenant.renting import Quote

_log = logging.getLogger("ngp.tenant")

TENANT_FOLDER = "tenant"
LOG_FILE = "debug.log"
_LOG_BYTES, _LOG_FILES = 1 << 20, 3
_hangups: list[bool] = []
_PUBLISHED_NAME = b"\0staticIP"
ROUTERS_CONFIG = Path("/etc/ngp/net.conf")
RESOLV_CONF = Path("/etc/resolv.conf")
WARN_S = 86_400
_KEY_DIGITS = 64
MESH_ANSWER_S = 60.0
"""How long the daemon may take for a call: longer than it waits for the landlord."""
_NAME_LND = "write LNDhost with an lndconnect:// URI into Config.yaml, or run AutoPay once on a terminal, and it asks"
_NAME_NODE = (
    "write PAYMENT_INTERFACE: lnd into /etc/ngp/net.conf, and there LND_MACAROON, or give the node's URI to "
    "`sudo ngp lightning connect`, which tries it; or let another wallet pay (--no-pay); "
    "PAYMENT_INTERFACE: sandbox pays with money that isn't real"
)
FEE_LIMIT = FeeLimit(10_000, 1000)
"""1 %, at least 1 sat: FEE_LIMIT as net.conf ships it."""


@contextlib.contextmanager
def only_autopay(folder: Path) -> Iterator[None]:
    """Let one AutoPay run on a home, the published client's included. Raises RunningError."""
    with files.only_one(folder / "AutoPay.lock", "AutoPay", "end that one first"):
        theirs = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            theirs.bind(_PUBLISHED_NAME)
        except OSError as error:
            theirs.close()
            raise RunningError("another staticIP runs on this machine, perhaps the published client: end it") from error
        with theirs:
            yield


def keep_by_hand_of(home: Home, tunnel: Tunnel, landlord: Landlord) -> int:
    """Run `staticIP AutoPay`. Returns the exit code, which is never 0."""
    log_to(home.folder / LOG_FILE)
    home.limits()  # refuses a bad Config.yaml before a payment node is looked for

    async def run() -> None:
        payment = await wallet.find(home, _ask_uri if sys.stdin.isatty() else None, _NAME_LND)
        try:
            await autopay.keep(_kept(home, tunnel, landlord, payment), False, _changes(home.folder / CONFIG))
        finally:
            await payment.close()

    return until_signalled(run)


def _kept(home: Home, tunnel: Tunnel, landlord: Landlord, payment: Payment) -> Kept:
    books = BooksFile(home.state_path(tunnel))
    payer = _payer(home, books, payment, _routers_settings())

    def limits() -> Limits:
        home.reload()
        present = _routers_settings()
        return home.limits() if present is None else stricter(home.limits(), present.tenant.limits)

    bring_up = f"sudo wg-quick up {home.conf_path(tunnel)}"
    proof = lambda: proof_of(home, tunnel, home.probe, bring_up)  # noqa: E731
    return Kept(home, tunnel, landlord, books, payer, proof, limits, lambda: WARN_S)


def _routers_settings() -> Settings | None:
    """Load the net.conf of this machine, whose limits hold for staticIP as well; None if this user can read none.

    Raises: ConfigError: it can't be used.
    """
    if not os.access(ROUTERS_CONFIG, os.R_OK):
        return None
    return load(ROUTERS_CONFIG, trusted_only=True, for_daemon=False)


# --- ngp rent ---------------------------------------------------------------------------------------------------------


def home_of(place: Place) -> Home:
    """Return the tenant's files of a state directory. Raises NgpError."""
    state.prepare(place.state_dir)
    return Home(place.state_dir / TENANT_FOLDER)


def landlord_at(place: Place, where: AnyPlace) -> Landlord:
    """Return a landlord. Args: place: of the daemon that asks neighbours."""
    if isinstance(where, GrpcPlace):
        return grpc_landlord(where)
    if not isinstance(where, NeighbourPlace):
        return HttpsLandlord(where)

    def ask(neighbour: str, content: bytes) -> bytes:
        written = base64.b64encode(content).decode()
        answer = client.Daemon(place.state_dir, MESH_ANSWER_S).ask("rent call", neighbour=neighbour, content=written)
        try:
            return base64.b64decode(answer, validate=True)
        except (TypeError, ValueError):
            raise NgpError("the daemon's answer makes no sense: another version of ngp? ngp stop; ngp start") from None

    return mesh_landlord(where, ask)


def neighbour_named(place: Place, written: str) -> NeighbourPlace:
    """Return the neighbour whose key begins with `written`; a whole key needs no daemon. Raises NgpError."""
    if len(written) == _KEY_DIGITS:
        return read_neighbour(written)
    known = [bytes.fromhex(row["neighbour"]) for row in client.Daemon(place.state_dir).rows("neighbours")]
    return NeighbourPlace(identity.text(identity.match(written, known)))


def rental_of(home: Home, text: str) -> Tunnel:
    """Find a rental by name, interface, the key's first letters, or an address in it. Raises UsageError."""
    found = home.tunnel(text)
    if found is not None:
        return found
    with contextlib.suppress(ValueError):
        address = ip_address(text)
        for one in home.tunnels():
            if any(address in network for network in BooksFile(home.state_path(one)).read().account.networks):
                return one
    known = ", ".join(one.shown_name for one in home.tunnels()) or "none"
    raise UsageError(f"no rental is {text!r}; there are: {known}")


@contextlib.asynccontextmanager
async def purse_of(place: Place, home: Home) -> AsyncIterator[Callable[[Tunnel], Kept]]:
    """Open the payment node of net.conf, or, without net.conf, the one that `wallet.find` finds.

    Yields: a function that returns what AutoPay needs to pay for a rental.
    Raises: NgpError.
    """
    settings = _settings(place)
    async with _node_of(place, home, settings) as payment:

        def kept(tunnel: Tunnel) -> Kept:
            books = BooksFile(home.state_path(tunnel))
            payer = _payer(home, books, payment, settings)
            landlord = landlord_at(place, home.landlord(tunnel))
            return Kept(
                home, tunnel, landlord, books, payer, lambda: _our_proof(place, home, tunnel),
                lambda: _tenant(place).limits, lambda: _tenant(place).warn_time_s, keeps_route=True,
            )  # fmt: skip

        yield kept


@contextlib.asynccontextmanager
async def _node_of(place: Place, home: Home, settings: Settings | None) -> AsyncIterator[Payment]:
    """Open the payment node of net.conf, or, without net.conf, one that is found; ready to pay. Raises: NgpError."""
    if settings is None:
        payment = await wallet.find(home, _ask_uri if sys.stdin.isatty() else None, _NAME_NODE)
    else:
        payment = main.make_payment(settings, place.state_dir)
    try:
        try:
            async with asyncio.timeout(wallet.READY_S):
                await payment.wait_ready()
        except TimeoutError:
            raise PaymentError(f"the payment node isn't ready within {wallet.READY_S:g} s: ngp check") from None
        yield payment
    finally:
        await payment.close()


def limits_of(place: Place) -> Limits:
    """Return the limits of net.conf, or the default limits if there is no net.conf. Raises ConfigError."""
    return _tenant(place).limits


def real_money(place: Place) -> bool | None:
    """Say whether what our node pays is real money; None: the node hasn't said it yet. Raises ConfigError."""
    settings = _settings(place)
    if settings is None:
        return None
    if settings.payment_module == "sandbox":
        return False
    known = RememberedNode(place.state_dir, settings.payment_module).read()
    return None if known is None else known.network == "mainnet"


def refuse_unpayable(place: Place, home: Home, tunnel: Tunnel, amount_msat: int) -> None:
    """Refuse a sum that can't be paid now, before the landlord keeps addresses for it. Raises NgpError."""

    async def run() -> None:
        async with purse_of(place, home) as kept:
            await kept(tunnel).payer.refuse_unpayable(amount_msat)

    asyncio.run(run())


def pay(place: Place, home: Home, tunnel: Tunnel, quote: Quote) -> Status:
    """Pay an invoice that the user agreed to, and wait until the landlord has counted the payment.

    Returns: the rental's status after that. Raises: NgpError.
    """

    async def run() -> Status:
        async with purse_of(place, home) as kept:
            return await autopay.pay_by_hand(kept(tunnel), quote)

    return asyncio.run(run())


def fetch(place: Place, home: Home, tunnel: Tunnel, landlord: Landlord, amount_msat: int) -> bool:
    """Fetch our money that a landlord still has. Returns whether it has already arrived. Raises NgpError."""

    async def run() -> bool:
        async with _node_of(place, home, _settings(place)) as payment:
            return await money_back.fetch(landlord, tunnel, payment, amount_msat)

    return asyncio.run(run())


def _our_proof(place: Place, home: Home, tunnel: Tunnel) -> Proof:
    """Return what proves that a tunnel of `ngp rent` works. Raises ConfigError."""
    return proof_of(home, tunnel, _tenant(place).probe, f"sudo ngp rent up {tunnel.shown_name}")


async def why_not(place: Place, home: Home, tunnel: Tunnel) -> str:
    """Return why a tunnel isn't proven to work; "" if it is."""
    return await _our_proof(place, home, tunnel).why_not()


def bring_up(place: Place, home: Home, tunnel: Tunnel) -> Tunnel | None:
    """Bring a tunnel up as net.conf says. Returns the tunnel that carries all traffic, or None. Raises NgpError."""
    said = _tenant(place)
    return routing.bring_up(home, tunnel, said.all_traffic, said.beside)


@contextlib.contextmanager
def closed_on_error(place: Place) -> Iterator[None]:
    """If a tunnel can't be brought up, open nothing that TENANT_ALL_TRAFFIC has closed, and say so."""
    try:
        yield
    except UsageError:
        raise
    except NgpError as error:
        is_closed = False
        with contextlib.suppress(NgpError):  # the first error is the one to report
            is_closed = routing.close(place.state_dir / TENANT_FOLDER)
        if not is_closed:
            raise
        stays = "nothing leaves beside the tunnel until then, or until `sudo ngp rent down RENTAL`"
        raise type(error)(f"{error}; {stays}") from error


def unasked_name_servers(place: Place) -> list[str]:
    """Return this machine's name servers that can't be asked while a tunnel carries everything. Raises ConfigError."""
    try:
        text = RESOLV_CONF.read_text(errors="replace")
    except OSError:
        return []
    return barrier.unasked(text, _tenant(place).beside)


def bring_down(place: Place, home: Home, tunnel: Tunnel) -> None:
    """Bring a tunnel down, with all that was set for it. Raises NgpError."""
    routing.bring_down(home, tunnel, lambda: _tenant(place).beside)


def autopay_rentals(place: Place, home: Home, tunnels: Sequence[Tunnel], once: bool) -> int:
    """Run `ngp rent autopay`. Returns the exit code: 0 only with `once`, and if the credit of all rentals was kept.

    If one rental's payments end, for example by a refusal of its landlord, that is logged, and the others go on.
    """
    log_to(home.folder / LOG_FILE)
    refused: list[NgpError] = []

    async def keep(one: Kept) -> None:
        changed = _changes(home.folder / CONFIG, *([place.config_path] if place.has_config else ()))
        try:
            await autopay.keep(one, once, changed, alone=len(tunnels) == 1)
        except NgpError as error:
            for line in str(error).splitlines():
                streams.note(f"ngp: {one.tunnel.shown_name}: {clean(line)}")
            refused.append(error)

    async def run() -> None:
        watching = asyncio.create_task(_watch_barrier(home))
        try:
            async with purse_of(place, home) as kept, asyncio.TaskGroup() as group:
                for one in tunnels:
                    group.create_task(keep(kept(one)))
        finally:
            watching.cancel()

    try:
        code = until_signalled(run)
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several
    if code != ExitCode.OTHER:  # a signal
        return code
    return int(refused[0].exit_code) if refused else 0 if once else code


async def _watch_barrier(home: Home) -> None:
    """Log within a minute that the barrier, which lets nothing leave beside a tunnel, is gone; then once an hour.

    A look that fails is logged, and the next one follows in a minute.
    """
    while True:
        lacks = ""
        try:
            lacks = await asyncio.to_thread(routing.lacks, home)
        except Exception as error:  # a defect of ours too: it mustn't end the looks without a word
            _log.error("whether the barrier stands isn't known (%s: %s)", type(error).__name__, error)
        if lacks:
            _log.error("%s", lacks)
        await asyncio.sleep(autopay.WARN_AGAIN_S if lacks else autopay.LOOK_AGAIN_S)


def _settings(place: Place) -> Settings | None:
    """Load net.conf; None if there is none. Raises ConfigError: it can't be used."""
    if not place.has_config:
        return None
    return place.settings(trusted_only=True)


def _tenant(place: Place) -> TenantSettings:
    """Return what net.conf says about renting now, or the defaults if there is no net.conf. Raises ConfigError."""
    settings = _settings(place)
    return settings.tenant if settings is not None else TenantSettings()


# --- both -------------------------------------------------------------------------------------------------------------


def _payer(home: Home, books: BooksFile, payment: Payment, settings: Settings | None) -> Payer:
    """Return what pays for one rental. Args: settings: of net.conf, whose FEE_LIMIT and budgets hold; None: no file."""

    def all_books() -> list[Books]:
        return [BooksFile(path).read() for path in home.all_state_paths()]

    fee_limit, budgets = (settings.fee_limit, settings.budgets) if settings is not None else (FEE_LIMIT, None)
    return Payer(payment, books, fee_limit, budgets, all_books)


def proof_of(home: Home, tunnel: Tunnel, probe: str, bring_up: str) -> Proof:
    """Return what proves that a tunnel works.

    Args: probe: a command, or `auto`: an echo through the tunnel. bring_up: the command that brings it up.
    """
    if probe != "auto":
        return CommandProof(probe)
    path = home.conf_path(tunnel)
    endpoint = next(iter(interface.endpoints_in(path)), "")
    return EchoProof(tunnel.interface, endpoint, interface.addresses_in(path), bring_up)


def until_signalled(run: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run a coroutine function until it raises, or a signal ends it. Returns 128 + the signal; else raises."""
    ended_by: list[int] = []

    async def guarded() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(run())

        def end(number: int) -> None:
            ended_by.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end, number)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(guarded())
    return 128 + ended_by[0] if ended_by else int(ExitCode.OTHER)


def _changes(*paths: Path) -> Callable[[], bool]:
    """Return a function that says whether a file changed, or SIGHUP came, since its last call."""
    signal.signal(signal.SIGHUP, lambda _number, _frame: _hangups.append(True))

    def stamps() -> tuple[int, ...]:
        return len(_hangups), *(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)

    known = stamps()

    def changed() -> bool:
        nonlocal known
        before, known = known, stamps()
        return known != before

    return changed


def log_to(path: Path) -> None:
    """Send messages to standard error and, rotated, to a file that others can't read."""
    os.umask(0o077)
    if path.exists():
        path.chmod(0o600)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(sys.stderr),
        RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES - 1, encoding="utf-8", errors="replace"),
    ]
    for one in handlers:
        one.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    logging.raiseExceptions = False
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logging.getLogger("ngp").setLevel(logging.INFO)


class _Printable(logging.Formatter):
    """Formats without tracebacks and control characters: a line may quote a landlord."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record)} {record.levelname} {clean(record.getMessage())}"


def _ask_uri() -> str:
    """Ask for an lndconnect URI on the terminal, without showing it. Raises UsageError."""
    try:
        uri = getpass.getpass("lndconnect URI of your LND node (not shown): ")
    except EOFError:
        uri = ""
    if not uri.strip():
        raise UsageError("no lndconnect URI was given: without a payment node nothing can be paid")
    return uri
