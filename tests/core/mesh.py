"""Mesh: cores of several nodes that are connected as a test says, without kernels. Messages arrive at once, in order.

Nobody pays here: all traffic runs on grace, which is large.
"""

from __future__ import annotations

import random
from collections import deque
from ipaddress import ip_address, ip_network

from playbook import MSAT_PER_KB, settings

from core_tests.simulate.simulation import UTC_AT_START_S
from core_tests.simulate.stand_ins import Ledger
from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.buying.account import ServerAccount
from ngp.core.buying.purchase import Purchase
from ngp.core.buying.renewal import ask_renewal
from ngp.core.contract import CloseReason
from ngp.core.gatekeeper import Gatekeeper
from ngp.core.kernel import (
    AccountLimit,
    AccountReading,
    Adopted,
    AdoptedAccount,
    AdoptedContract,
    Grant,
    HeldPacket,
    MeshRoutes,
    Onward,
    Reading,
    Verdict,
)
from ngp.core.kernel import Router as NextRouter
from ngp.core.messages import Ask, Hello, Message, Prefix, Propose
from ngp.core.parts import sold_whole
from ngp.core.payment_node import PaymentNode
from ngp.core.prefixes import covers, host_prefix, sample
from ngp.core.restore import restore
from ngp.core.selling.account import ClientAccount
from ngp.core.selling.sale import Sale
from ngp.core.settings import Settings
from ngp.core.upstream import free
from ngp.core.values import Now
from ngp.core.world import World

HOST = "198.51.100.1"
DEFAULT = ip_network("0.0.0.0/0")
PLENTY = {"grace_data_bytes": 1 << 30, "grace_time_s": 3600, "buy_max_msat_per_gib": 1 << 40}
MB = 1 << 20


def asks(msat_per_kb: int) -> Settings:
    """Return the settings of a node that sells at this price and not below it."""
    price = msat_per_kb * MSAT_PER_KB
    return settings(**PLENTY, sell_msat_per_gib=price, sell_min_msat_per_gib=price)


class Node:
    """One node. `route` names the next router towards the destinations in `prefix`; "" is the internet."""

    def __init__(self, name: str, mesh: Mesh, conf: Settings) -> None:
        self.name, self.route, self.prefix, self.mesh = name, "", DEFAULT, mesh
        self.identity = name.encode().ljust(32, b"-")
        self.verdicts: list[Verdict] = []
        self.said: list[Message] = []
        self.logged: list[str] = []
        self.counts: dict[bytes, list[int]] = {}
        self.granted: dict[bytes, Grant] = {}
        self.routes: dict[Prefix, NextRouter] = {}
        self.others: dict[Prefix, str] = {}  # the next routers of routes to parts of the default route
        self.is_whole = True
        self.elsewhere: set[Prefix] = set()
        self.ledger = Ledger()
        self.gatekeeper = self._begin(conf)

    def _begin(self, conf: Settings) -> Gatekeeper:
        node, chance = PaymentNode("sandbox", False, True, 1000), self.mesh.chance
        return Gatekeeper(World(conf, node, lambda: chance.randbytes(16), self.mesh.now, identity=self.identity))

    @property
    def world(self) -> World:
        return self.gatekeeper.world

    def reboot(self, keeps_kernel: bool = False, refused: tuple[bytes, ...] = ()) -> None:
        """Begin again from the ledger; the kernel has forgotten everything, or at least all accounts but the refused.

        Args: refused: clients without money in the kernel, which refused a packet of each.
        """
        accounts = tuple(AdoptedAccount(AccountLimit(one, 0), AccountReading(one, 0, True)) for one in refused)
        running = [one for one in self.world.contracts if one in self.granted] if keeps_kernel else []
        found = tuple(AdoptedContract(self.granted[one], self.reading(one)) for one in running)
        self.gatekeeper = self._begin(self.world.settings)
        snapshot, adopted = self.ledger.load(self.mesh.now.utc_s), Adopted(accounts, found, self.mesh.now.monotonic_s)
        self.carry_out(restore(self.gatekeeper, snapshot, adopted, self.mesh.now, self.mesh_routes))

    def link(self, other: str) -> tuple[str, bytes]:
        """Return the link on which this node sees another one."""
        return (f"to-{other}", other.encode().ljust(6, b"-"))

    @property
    def onward(self) -> Onward:
        return Onward(self.prefix, NextRouter(*self.link(self.route)) if self.route else None)

    def onward_to(self, destination: Prefix) -> Onward:
        """Return where packets to a prefix's first address go on, and those to parts of the prefix."""
        routes = {self.prefix: self.route, **self.others}
        routers = {one: NextRouter(*self.link(name)) for one, name in routes.items() if name}
        covering = [one for one in routes if covers(one, host_prefix(sample(destination)))]
        if not covering:
            return Onward()
        route = max(covering, key=lambda one: one.prefixlen)
        narrower = [one for one in routers if one.prefixlen > destination.prefixlen and covers(destination, one)]
        return Onward(route, routers.get(route), tuple(dict.fromkeys(routers[one] for one in narrower)))

    @property
    def mesh_routes(self) -> tuple[MeshRoutes, ...]:
        """What a daemon reads of this node's routes."""
        others = tuple((prefix, NextRouter(*self.link(name))) for prefix, name in self.others.items())
        return (MeshRoutes(4, self.onward.router, others, self.is_whole),)

    def lead(self, route: str, others: dict[Prefix, str] | None = None) -> None:
        """Change where the routes lead; the daemon sees it."""
        self.route, self.others = route, others or {}
        self.step(ev.RoutesLookedUp(tuple((one, self.onward_to(prefix)) for one, prefix in sold_whole(self.world))))
        self.step(ev.RoutesSeen(self.mesh_routes))
        self.mesh.settle()

    def step(self, event: ev.Event) -> None:
        self.carry_out(self.gatekeeper.step(event, self.mesh.now))

    def save(self, *accounts: ClientAccount | ServerAccount) -> None:
        """Write accounts to the ledger as a test set them, whatever their contracts have charged."""
        self.world.effects = []
        for account in accounts:
            self.world.save_account(account)
        for effect in self.world.effects:
            assert isinstance(effect, fx.Persist)
            self.ledger.put(effect.record)

    def flush(self) -> None:
        """Write all totals to the ledger."""
        self.world.effects = []
        self.gatekeeper.flush()
        self.carry_out(self.world.effects)

    def end(self, client: str) -> None:
        """End what is sold to a client, as when the way upstream is over."""
        self.world.effects = []
        self.world.halt(self.sale(client), CloseReason.UPSTREAM)
        self.carry_out(self.world.effects)
        self.mesh.settle()

    def carry_out(self, effects: list[fx.Effect]) -> None:
        """Carry out what the core decided."""
        self.ledger.put_all(effect.record for effect in effects if isinstance(effect, fx.Persist))
        for effect in effects:
            match effect:
                case fx.Log():
                    self.logged.append(effect.text)
                case fx.Send():
                    self.said.append(effect.message)
                    self.mesh.post.append((self, effect))
                case fx.Decide():
                    self.verdicts.append(effect.verdict)
                case fx.Greet(wants_reply=True):
                    self.mesh.greeted(self, effect)
                case fx.ReadMeters():
                    self.mesh.asked_meters.append((self, ev.UsageRead(tuple(map(self.reading, effect.contracts)))))
                case fx.LookUpRoutes():
                    onward = tuple((contract, self.onward_to(prefix)) for contract, prefix in effect.contracts)
                    self.mesh.looked_up.append((self, ev.RoutesLookedUp(onward)))
                case fx.SetElsewhere():
                    self.elsewhere = set(effect.prefixes)
                case fx.SetRoutes():
                    self.routes = dict(effect.routes)
                case fx.GrantContract():
                    self.granted[effect.grant.contract] = effect.grant
                case fx.HaltContract():
                    contract = effect.grant.contract
                    self.mesh.halted.append((self, ev.Halted(contract, self.reading(contract))))

    def reading(self, contract: bytes) -> Reading:
        to_bytes, from_bytes = self.counts.setdefault(contract, [0, 0])
        return Reading(contract, to_bytes, from_bytes, False)

    def sale(self, client: str) -> Sale:
        """Return the contract by which a client buys HOST."""
        found = self.world.sales.find(self.mesh[client].identity, ip_address(HOST))
        assert found is not None, f"{self.name} sells nothing to {client}"
        return found

    def purchase(self, server: str) -> Purchase:
        """Return the contract by which HOST is bought from a server."""
        found = self.world.purchases.find(self.mesh[server].identity, ip_address(HOST))
        assert found is not None, f"{self.name} buys nothing from {server}"
        return found

    def sent(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.said if isinstance(message, kind)]


class Mesh:
    """Nodes by name; `Mesh("abc")` is a line: a's route leads to b, b's to c, c's to the internet."""

    def __init__(self, names: str, ring: bool = False, **confs: Settings) -> None:
        self.chance = random.Random(1)
        self.now = Now(UTC_AT_START_S, 1000.0)
        self.post: deque[tuple[Node, fx.Send]] = deque()
        self.halted: deque[tuple[Node, ev.Halted]] = deque()
        self.asked_meters: deque[tuple[Node, ev.UsageRead]] = deque()
        self.looked_up: deque[tuple[Node, ev.RoutesLookedUp]] = deque()
        self.lost: set[type[Message]] = set()
        self.mute: set[str] = set()  # nodes that answer no hello
        self._handles, self._ids = 0, 1 << 32
        self.usual = usual = settings(**PLENTY)
        self.routers = {name: Node(name, self, confs.get(name, usual)) for name in names}
        for near, far in zip(names, names[1:] + names[0] if ring else names[1:], strict=False):
            self[near].route = far
            self.introduce(near, far)

    def __getitem__(self, name: str) -> Node:
        return self.routers[name]

    def add(self, name: str, neighbour: str) -> None:
        """Add a node beside another one; its route leads to the internet."""
        self.routers[name] = Node(name, self, self.usual)
        self.introduce(name, neighbour)

    def add_client(self, name: str, server: str) -> None:
        """Add a node beside another one, to which its route leads."""
        self.add(name, server)
        self[name].route = server

    def kill(self, name: str, keeps_kernel: bool = False, refused: tuple[bytes, ...] = ()) -> None:
        """Kill a node and start it again: what is on its way dies with it, and no last reading comes."""
        self.halted.clear()
        self.post.clear()
        self[name].reboot(keeps_kernel, refused)

    def introduce(self, one: str, other: str) -> None:
        """Let two nodes hear each other."""
        self._hello(self[one], self[other])
        self._hello(self[other], self[one])

    def _hello(self, hearer: Node, speaker: Node) -> None:
        conf = speaker.world.settings
        hello = Hello("sandbox", conf.sells, conf.buys, (), "ngp", False)
        hearer.step(ev.MessageReceived(speaker.identity, hearer.link(speaker.name), 1, hello, self._next_id()))

    def greeted(self, asker: Node, greet: fx.Greet) -> None:
        """Have a node answer a hello, unless it is mute."""
        asked = next(one for one in self.routers.values() if one.identity == greet.identity)
        if asked.name not in self.mute:
            self._hello(asker, asked)

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids

    def settle(self) -> None:
        """Deliver all messages, and close what is halting, until nothing happens any more."""
        while self.post or self.halted or self.asked_meters or self.looked_up:
            if self.looked_up:
                looker, seen = self.looked_up.popleft()
                looker.step(seen)
                continue
            if self.asked_meters:
                reader, reading = self.asked_meters.popleft()
                reader.step(reading)
                continue
            if not self.post:
                router, halted = self.halted.popleft()
                router.step(halted)
                continue
            sender, effect = self.post.popleft()
            receiver = next(one for one in self.routers.values() if one.identity == effect.identity)
            if type(effect.message) not in self.lost:
                self._deliver(sender, receiver, effect.message)

    def _deliver(self, sender: Node, receiver: Node, message: Message) -> None:
        leads = receiver.route == sender.name and isinstance(message, Propose)
        heard = ev.MessageReceived(
            sender.identity,
            receiver.link(sender.name),
            1,
            message,
            self._next_id(),
            None,
            message.destination if leads and isinstance(message, Propose) else None,
            receiver.onward,
            leads and receiver.world.settings.buys_default_route,
            receiver.mesh_routes if isinstance(message, Ask) else (),
        )
        receiver.step(heard)

    def packet(self, client: str, server: str) -> None:
        """Have a node hold a packet of a neighbour to HOST."""
        self._handles += 1
        at = self[server]
        at.step(HeldPacket(self._handles, at.link(client), ip_address(HOST), at.onward))
        self.settle()

    def carry(self, names: str, size: int) -> None:
        """Have the meters on both sides of each link of a path count bytes to HOST."""
        for client, server in zip(names, names[1:], strict=False):
            self.count(client, self[client].purchase(server).id, size)
            self.count(server, self[server].sale(client).id, size)
        self.settle()

    def count(self, name: str, contract: bytes, size: int) -> None:
        """Have one meter count bytes."""
        router = self[name]
        router.counts.setdefault(contract, [0, 0])[0] += size
        router.step(ev.UsageRead((router.reading(contract),)))

    def renew(self, name: str, purchase: Purchase, limit_bytes: int) -> bool:
        """Have a node ask for a renewal of what it buys. Returns whether it asked."""
        router = self[name]
        router.world.effects = []
        asked = ask_renewal(router.world, purchase, limit_bytes)
        router.carry_out(router.world.effects)
        self.settle()
        return asked

    def wait(self, seconds: float) -> None:
        """Let time pass, in small steps."""
        until = self.now.monotonic_s + seconds
        while self.now.monotonic_s < until:
            later = min(until, self.now.monotonic_s + 0.05)
            self.now = Now(UTC_AT_START_S + int(later - 1000), later)
            for router in self.routers.values():
                router.step(ev.Tick())
            self.settle()


def promised(mesh: Mesh, name: str) -> bool:
    """Say whether a node's sales fit into the purchases that they rest on, with their lifetimes."""
    world = mesh[name].world
    return all(
        free(world, purchase) >= 0
        and all(sale.expires_mono_s <= purchase.expires_mono_s for sale in sales.values() if sale.running)
        for contract, sales in world.resting.items()
        if (purchase := world.running_purchase(contract)) is not None
    )
