"""A scripted neighbour: a test tells it what to say to one simulated node, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import count
from typing import TypeVar

from playbook import Node, Sim

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.kernel import Reading
from ngp.core.messages import Accept, Ask, Cancel, Hello, Message, Propose, Reject

HELLO = Hello("sandbox", True, True, (), "", False)

Kind = TypeVar("Kind", bound=Message)


class ScriptedNeighbour:
    """A neighbour, often hostile, that says what a test wants; the node's kernel carries what the test wants."""

    def __init__(self, sim: Sim, victim: Node, identity: bytes = b"V" * 32, address: bytes = b"\2vvvv\1") -> None:
        self.sim, self.victim, self.identity, self.link = sim, victim, identity, ("eth1", address)
        self.names = count(1)
        self.carries = 0
        self.is_router = True  # what the node sends goes through this neighbour
        self.say(HELLO)

    def say(self, message: Message) -> list[fx.Effect]:
        """Send a message to the node; return its effects."""
        heard = ev.MessageReceived(self.identity, self.link, 1, message, 1 << 33)
        offered = message.destination if self.is_router and isinstance(message, Propose) else None
        return self.tell(replace(heard, sends_to=offered))

    def tell(self, event: ev.Event) -> list[fx.Effect]:
        """Step the node's core, store its records, and answer for its kernel and its payment node."""
        effects = self.victim.gatekeeper.step(event, self.sim.clock())
        for effect in list(effects):
            if isinstance(effect, fx.Persist):
                self.victim.ledger.put(effect.record)
            elif isinstance(effect, fx.HaltContract):
                reading = Reading(effect.grant.contract, self.carries, 0)
                effects += self.tell(ev.Halted(effect.grant.contract, reading))
            elif isinstance(effect, fx.MakeInvoice):
                name = b"i" * 16 + self.sim.chance.randbytes(16)
                effects += self.tell(ev.InvoiceMade(effect.identity, effect.kind, "lnx", name, effect.amount_msat, 600))
            elif isinstance(effect, fx.CancelInvoice):
                effects += self.tell(ev.InvoiceCancelled(effect.payment_hash))
        return effects

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.sim.now += seconds
        self.tell(ev.Tick())
        self.say(HELLO)

    def buy(self, destination: str) -> bytes | None:
        """Buy a contract from the node. Returns its id, or None if it is refused."""
        for quote in messages(self.say(Ask(ip_network(destination), 0, 0)), Propose):
            done = self.say(Accept(quote.contract, quote.price_msat_per_gib, quote.data_limit_bytes))
            if not messages(done, Reject) and not messages(done, Cancel):
                return quote.contract
        return None

    def sell(self, destination: str, lifetime_s: int = 3600) -> bytes | None:
        """Sell a contract to the node. Returns its id, or None if it is refused."""
        name = next(self.names).to_bytes(16, "big")
        done = self.say(Propose(name, ip_network(destination), 5 << 20, 1 << 20, lifetime_s, 10, 0, 1))
        return name if messages(done, Accept) else None

    def use(self, contract: bytes, to_bytes: int, from_bytes: int = 0) -> None:
        """Set a contract's cumulative counters."""
        self.tell(ev.UsageRead((Reading(contract, to_bytes, from_bytes),)))


def messages(effects: Iterable[fx.Effect], kind: type[Kind]) -> list[Kind]:
    return [effect.message for effect in effects if isinstance(effect, fx.Send) and isinstance(effect.message, kind)]


def host(number: int) -> str:
    return f"{ip_address(0x0B000000 + number)}/32"
