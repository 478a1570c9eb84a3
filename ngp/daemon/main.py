"""Main: find the modules that net.conf names, open everything, run until told to stop, clean up."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ngp import identity, store
from ngp.config import (
    FACE,
    LINK,
    NETWORK,
    PAYMENT,
    TUNNEL,
    installed_modules,
    load,
    module_class,
    module_settings,
    refuse_shown_secret,
)
from ngp.core.events import Event
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.messages import Hello
from ngp.core.payment_node import PaymentNode
from ngp.core.peers import Peers
from ngp.core.rental.landlord import served
from ngp.core.rental.terms import LettingSettings
from ngp.core.settings import Settings
from ngp.core.values import Check
from ngp.core.world import World
from ngp.courier import Courier
from ngp.daemon import checkup, handlers
from ngp.daemon.api.reading import BOOKS_S
from ngp.daemon.belongings import refuse_lost_ledger
from ngp.daemon.clock import SystemClock, boot_number
from ngp.daemon.control import ControlServer
from ngp.daemon.desired import LINK_PORT, look_at_host
from ngp.daemon.landlord import Landlord, endpoints_of, look, tunnel_key
from ngp.daemon.letting import Letting
from ngp.daemon.node import Node
from ngp.daemon.options import CONTROL_SOCKET, StartOptions
from ngp.daemon.parts import Parts
from ngp.daemon.payment_watch import decoder
from ngp.daemon.post import Post
from ngp.daemon.state import NamespaceLock
from ngp.errors import ExitCode, LedgerError, NgpError
from ngp.ports import Face, Ledger, Link, Network, Payment, Store, Tunnel
from ngp.remembered_node import RememberedNode, swapped
from ngp.wire import MAX_BOOT

_log = logging.getLogger("ngp")

BOOT_EPOCH_S = 1_577_836_800
"""2020-01-01 UTC. A boot counter is at least the number of seconds since then, or MAX_BOOT / 2 if that is less:
see `Ledger.next_boot`."""

BOOKS_WAIT_S = 1.0
"""How long a start waits for the audit of the ledger; a later result is only logged."""


def make_network(settings: Settings | None, state_dir: Path) -> Network:
    """Return the network module that net.conf names, or the default one if there is no net.conf."""
    name = "ip" if settings is None or settings.network_module in ("ip4", "ip6") else settings.network_module
    options = _options(settings, NETWORK, name) if settings else {}
    network: Network = module_class(NETWORK, name)(state_dir, **options)
    return network


def make_payment(settings: Settings, state_dir: Path) -> Payment:
    """Return the payment module that net.conf names."""
    name = settings.payment_module
    payment: Payment = module_class(PAYMENT, name)(state_dir, **_options(settings, PAYMENT, name))
    return payment


def make_links(settings: Settings) -> list[Link]:
    """Return the link modules that net.conf names."""
    links: list[Link] = []
    for name in settings.link_modules:
        own = {"port": LINK_PORT, "neighbours": settings.ngp_addresses} if name in ("udp", "grpc") else {}
        links.append(module_class(LINK, name)(**own, **_options(settings, LINK, name)))
    return links


def _options(settings: Settings, group: str, name: str) -> dict[str, Any]:
    """Return the extra argument for a module's class if the module has keys of its own in net.conf."""
    return {"options": settings.of_module(group, name)} if module_settings(group, name).keys else {}


async def check(settings: Settings, state_dir: Path) -> list[Check]:
    """Check this host, with or without a running daemon; changes nothing."""
    network, links, lacking = make_network(settings, state_dir), list[Link](), list[Check]()
    try:
        links = make_links(settings)
    except NgpError as error:
        lacking = [Check("link", False, str(error))]
    try:
        taken = [] if NamespaceLock.is_held() else checkup.taken(settings, network, links)
        letting = [] if settings.letting is None else check_letting(settings.letting, state_dir)
        free = checkup.free_beyond(checkup.routers_to_free(settings, network, look_at_host(settings, network)))
        return [*checkup.network(settings, network, links), *taken, *lacking, *free, *letting]
    finally:
        network.close()


def check_letting(settings: LettingSettings, state_dir: Path) -> list[Check]:
    """Check what the landlord needs on this host, with or without a running daemon; changes nothing."""
    try:
        with closing(make_tunnel()) as tunnel:
            return look(settings, tunnel, make_faces(state_dir))
    except NgpError as error:
        return [Check("letting", False, str(error))]


async def open_parts(options: StartOptions, settings: Settings) -> tuple[Parts, Courier, list[Link]]:
    """Open ledger, keys and modules. Raises NgpError; nothing in the kernel is touched yet."""
    fresh = identity.load(options.state_dir) or Ed25519PrivateKey.generate()
    place = store.at(options.state_dir, settings.ledger, identity.public_key(fresh))
    ledger = open_ledger(options.state_dir, place)
    try:
        private_key = identity.load_or_create(options.state_dir, fresh)
        boot = _next_boot(ledger)
        payment = make_payment(settings, options.state_dir)
        known = RememberedNode(options.state_dir, settings.payment_module).read()
        node = await _payment_node(payment, settings)
        if swap := swapped(known, await payment.info()):
            _log.warning("%s; if you didn't intend this: ngp stop, connect the earlier node, ngp start", swap)
        links = make_links(settings)
        courier = Courier(private_key, boot, min(link.max_datagram_bytes for link in links))
        clock = SystemClock()
        peers = Peers(first_number=(boot & 0x7FFF) << 16)
        world = World(settings, node, lambda: secrets.token_bytes(16), clock.now(), peers)
        world.identity = identity.public_key(private_key)
        world.letting.clock.boot = boot_number()
        network = make_network(settings, options.state_dir)
        gatekeeper = Gatekeeper(world)
        addresses = (await payment.info()).addresses
        parts = Parts(
            options.config_path,
            settings,
            clock,
            place,
            ledger,
            network,
            payment,
            gatekeeper,
            courier.identity,
            addresses,
            make_links,
            lambda letting: check_letting(letting, options.state_dir),
        )
    except NgpError:
        ledger.close()
        raise
    return parts, courier, links


def _next_boot(ledger: Ledger) -> int:
    """Count this start. Raises LedgerError if the count has become too large for messages.

    A clock that is decades ahead must not use up the numbers of all later starts.
    """
    boot = ledger.next_boot(min(max(1, int(time.time()) - BOOT_EPOCH_S), MAX_BOOT // 2))
    if boot > MAX_BOOT:
        raise LedgerError(
            f"the ledger has counted {boot} starts, and neighbours take no number above {MAX_BOOT}: restore the backup "
            "made by `ngp backup`"
        )
    return boot


def open_ledger(state_dir: Path, place: Store) -> Ledger:
    """Open the ledger, or make the first one. Raises LedgerError, also if an identity exists but its ledger doesn't."""
    refuse_lost_ledger(state_dir, place)
    return place.open()


async def _payment_node(payment: Payment, settings: Settings) -> PaymentNode:
    """Ask the payment node for its identity.

    Raises: PaymentError: net.conf names another node, or wants payments to be held, which this node can't.
    """
    info = await payment.info()
    checkup.refuse_other_node(settings, info.account_id)
    capabilities = payment.capabilities()
    checkup.refuse_without_holding(settings, payment)
    return PaymentNode(
        info.network,
        capabilities.real_money,
        capabilities.settles_by_proof,
        capabilities.least_amount_msat,
        bytes.fromhex(info.account_id),
        holds=not capabilities.why_no_holding,
    )


async def run(options: StartOptions) -> int:
    """Be the daemon until SIGTERM, SIGINT or `ngp stop`.

    Returns:
        The exit code.

    Raises:
        NgpError: it could not start.
    """
    settings = load(options.config_path, trusted_only=True)
    refuse_shown_secret(settings, options.config_path)
    namespace = NamespaceLock.take()
    try:
        return await _run(options, settings)
    finally:
        namespace.release()


async def _run(options: StartOptions, settings: Settings) -> int:
    parts, courier, links = await open_parts(options, settings)

    def make_post(ourselves: Hello, tell: Callable[[Event], None]) -> Post:
        return Post(courier, links, parts.payment, decoder(parts.payment, parts.ledger), ourselves, tell)

    node = Node(parts, make_post, lambda node: make_landlord(node, options.state_dir))
    control = ControlServer(options.state_dir / CONTROL_SOCKET, handlers.verbs(node), root_only=("backup",))
    options.progress("setting up the kernel's gate and meter")
    books = asyncio.create_task(_warn_of_books(parts.store))
    try:
        if settings.letting is None:  # a daemon that let, and was killed, may have left its tunnel
            remove_tunnel()
        await control.start()
        await node.start()
    except NgpError:
        books.cancel()
        await control.close()
        if node.began_blank:
            await node.stop()  # what the ledger's contracts carried since they were granted is charged before they go
        else:
            await node.post.close()
            node.let_go()  # what ran without us goes on running: it isn't charged yet
        raise
    _follow_signals(node)
    if not parts.gatekeeper.world.node.real_money:
        _log.warning("%s: its money is not real; its sellers give service away", settings.payment_module)
    await _warn_of_lacks(node, books)
    interfaces = node.host.desired.mesh_interfaces
    none = "no interface yet" if settings.mesh_interfaces else "no mesh interface, as net.conf says"
    _log.info("ready: %s on %s", identity.short_text(courier.identity), ", ".join(interfaces) or none)
    options.ready(bool(interfaces) or not settings.mesh_interfaces)
    await node.loop.stopping.wait()
    books.cancel()
    await control.close()
    if node.loop.crashed:
        node.let_go()
        return ExitCode.OTHER
    await node.stop()
    _log.info("stopped")
    return ExitCode.DONE


def make_landlord(node: Node, state_dir: Path) -> Landlord:
    """Return the landlord: tunnel and faces, not set up yet. Raises ConfigError, MomentError."""
    world, clock, private_key = node.parts.gatekeeper.world, node.parts.clock, tunnel_key(state_dir)
    tunnel = make_tunnel()

    def endpoints() -> tuple[str, ...]:
        settings = node.settings.letting
        if settings is None or settings.tunnel is None:
            return ()
        return endpoints_of(settings, tunnel.addresses(settings.tunnel.outside))

    decode, post = decoder(node.parts.payment, node.parts.ledger), node.post
    letting = Letting(
        world, clock, node.loop.obey, node.identity, private_key, endpoints, decode, lambda: post.ourselves.payee_proof
    )

    def are_granted(contracts: Sequence[bytes]) -> bool:
        return len(node.parts.network.read(contracts)) == len(contracts)

    faces = make_faces(state_dir)
    return Landlord(tunnel, faces, letting, private_key, lambda: served(world), are_granted, node.loop.tell)


def make_tunnel() -> Tunnel:
    """Return the module of the landlord's tunnel. Raises ConfigError."""
    tunnel: Tunnel = module_class(TUNNEL, "wireguard")()
    return tunnel


def remove_tunnel() -> None:
    """Remove the landlord's tunnel that a killed daemon left. Raises ConfigError, KernelError."""
    with closing(make_tunnel()) as tunnel:
        tunnel.clean_up()


def make_faces(state_dir: Path) -> list[Face]:
    """Return the modules of all faces, not open. Raises ConfigError."""
    return [module_class(FACE, name)(state_dir) for name in sorted(installed_modules(FACE))]


async def _warn_of_lacks(node: Node, books: asyncio.Task[None]) -> None:
    """Log the findings of `ngp check`: the start goes on, but must not look as if all were well.

    Args: books: the audit of the ledger, which began before the kernel was set up, and may go on after the start.
    """
    await node.warn_of_lacks()
    await asyncio.wait({books}, timeout=BOOKS_WAIT_S)


async def _warn_of_books(place: Store) -> None:
    """Log sums of the ledger that don't add up; in a thread, with a time limit, so as not to block loop or stop."""
    line = await asyncio.to_thread(checkup.books, place, BOOKS_S)
    if not line.ok:
        _log.warning("%s: %s; %s", line.name, line.found, line.remedy)


def _follow_signals(node: Node) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.loop.stopping.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(_reload_quietly(node)))


async def _reload_quietly(node: Node) -> None:
    with suppress(NgpError):  # it is logged; the old settings stay in force
        await node.reload()
