"""A hostile neighbour asks our landlord: junk, floods, others' keys, invoices that it never pays. Others rent on."""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

import ngp.calls.landlord_pb2 as pb
from core_tests.hostile import Crowd, Persona, random_mac
from core_tests.lab import End, Lab
from core_tests.mesh_market import Mesh, open_mesh
from core_tests.renting import proof_of
from core_tests.shell import await_until
from ngp.core.messages import Answer, Call
from ngp.errors import LandlordError, NgpError
from ngp.modules.payment.sandbox import SandboxPayment
from ngp.tenant import keys
from ngp.tenant.calls import CallingLandlord
from ngp.tenant.landlord import NeighbourPlace, RefusedError
from ngp.tenant.mesh import mesh_landlord
from ngp.wire import MAX_CONTENT_BYTES

OFFERS = pb.Carried(method="GetOffers").SerializeToString()


@dataclass(frozen=True)
class Pair:
    private_key: str
    public_key: str

    @classmethod
    def new(cls) -> Pair:
        private_key = keys.new_private_key()
        return cls(private_key, keys.public_key(private_key))


@dataclass
class Attacker:
    """A persona that calls the landlord as it likes."""

    crowd: Crowd
    persona: Persona
    numbers: Iterator[int]

    def say(self, content: bytes, only_part: int | None = None) -> int:
        """Send a call, or one part of it. Returns its number."""
        number = next(self.numbers)
        pieces = [content[at : at + MAX_CONTENT_BYTES] for at in range(0, len(content), MAX_CONTENT_BYTES)]
        for part, piece in enumerate(pieces):
            if only_part in (None, part):
                self.persona.say(Call(number, part, len(pieces), piece))
        return number

    def ask(self, _neighbour: str, content: bytes) -> bytes:
        """Send a call and wait for its answer. Raises: NgpError."""
        number = self.say(content)
        found: dict[int, Answer] = {}

        def complete() -> bool:
            for received in self.persona.heard(Answer):
                if isinstance(received.message, Answer) and received.message.number == number:
                    found[received.message.part] = received.message
            return bool(found) and len(found) == next(iter(found.values())).parts

        if not self.crowd.pump(20, complete):
            raise NgpError("no answer")
        return b"".join(found[part].content for part in sorted(found))

    def landlord(self, mesh: Mesh) -> CallingLandlord:
        return mesh_landlord(NeighbourPlace(mesh.key()), self.ask)


@pytest.fixture
def mesh(lab: Lab) -> Mesh:
    return open_mesh(lab)


@pytest.fixture
def crowd(lab: Lab, mesh: Mesh) -> Iterator[Crowd]:
    host = lab.host("attacker")
    lab.link(End(host, "mesh0", "192.0.2.66/24", "2001:db8:1::66/64"), mesh.medium)
    lab.await_carriers()
    with closing(Crowd(host, mesh.landlord)) as made:
        yield made


def attacker(crowd: Crowd) -> Attacker:
    made = Attacker(crowd, crowd.persona(random_mac()), itertools.count(1))
    assert crowd.meet(made.persona)
    return made


def resident_kb(mesh: Mesh) -> int:
    lines = [line for pid in mesh.lets.pids() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_a_neighbour_that_asks_whatever_it_likes_gets_nothing_and_others_are_served(mesh: Mesh, crowd: Crowd) -> None:
    mesh.trust()
    mesh.done("new", "let", "--yes", "--up")
    mesh.await_reached()
    rented, chance = mesh.let(), random.Random(5)
    flooder, before_kb = attacker(crowd), resident_kb(mesh)
    for _ in range(40):
        for _ in range(25):
            flooder.say(chance.randbytes(chance.randrange(1, 1500)))
            flooder.say(OFFERS)
            flooder.say(bytes(MAX_CONTENT_BYTES + 1), only_part=chance.randrange(2))
        crowd.pump(0.02)
    assert mesh.status()["payments"] == 1, "an honest neighbour is answered meanwhile"
    mesh.done("add", rented["networks"][0].partition("/")[0], "--amount", "500", "--yes")
    assert mesh.lets.ask("status")["counters"]["core"]["calls_dropped"] > 0

    thief = attacker(crowd)
    landlord, own = thief.landlord(mesh), Pair.new()
    stolen = Pair(own.private_key, rented["wireguard_key"])  # the public key is no secret
    for attack in (
        lambda: landlord.status(stolen),
        lambda: landlord.configuration(stolen),
        lambda: landlord.ask(stolen, 2000),
        lambda: landlord.refund(stolen, "lnbc1"),
    ):
        with pytest.raises(LandlordError, match="proof of the WireGuard key doesn't fit"):
            attack()
    refused = 0
    for _ in range(12):
        try:
            landlord.ask(Pair.new(), 1000)
        except RefusedError as error:
            assert "wait for their payment" in str(error)
            refused += 1
        except LandlordError as error:  # one invoice in two seconds
            assert "too many invoices" in str(error)
            crowd.pump(2.1)
    assert refused
    rows = mesh.lets.json("rentals")
    assert sum(row["state"] == "pending" for row in rows) <= 5
    (still,) = [row for row in rows if row["state"] == "active"]
    same = ("id", "wireguard_key", "networks", "peer")
    assert [still[name] for name in same] == [rented[name] for name in same] and still["payments"] == 2
    await_until(lambda: mesh.reached(rented["networks"][0].partition("/")[0]), what="the tenant is reached as before")
    assert resident_kb(mesh) - before_kb < 30_000
    assert "Traceback" not in mesh.lets.log() and "fault of ngp" not in mesh.lets.log()
    accounts = {row["neighbour"] for row in mesh.lets.json("accounts")}
    personas = {one.courier.identity.hex() for one in crowd.personas}
    assert not accounts & personas, "who never paid has no account"


def _invoice_of_one_hash(folder: Path, sat: int) -> str:
    """Make an invoice with the same hash each time, as only a tenant can that wants two of them paid."""
    folder.mkdir()

    async def make() -> str:
        node = SandboxPayment(folder)
        try:
            return (await node.create_invoice(sat * 1000, "refund", 600, bytes([7]) * 32)).bolt11
        finally:
            await node.close()

    return asyncio.run(make())


def _age_payments(ledger: Path, days: int) -> None:
    with closing(sqlite3.connect(ledger)) as connection, connection:
        names = ("created_at_s", "settled_at_s", "touched_s")
        changes = ", ".join(f"{name} = max(0, {name} - {days * 86_400})" for name in names)
        assert connection.execute(f"UPDATE payments SET {changes} WHERE direction = 'out'").rowcount == 1


def test_a_refund_to_the_hash_of_a_refund_of_days_ago_is_refused_and_ends_nothing(
    mesh: Mesh, crowd: Crowd, tmp_path: Path
) -> None:
    wallet, own, tenant = tmp_path / "wallet", Pair.new(), attacker(crowd)
    wallet.mkdir()
    landlord = tenant.landlord(mesh)
    landlord.status(own, preimage=proof_of(landlord.ask(own, 2000).bolt11, wallet))
    (row,) = mesh.lets.json("rentals")
    assert mesh.lets.cli("rentals", "release", row["id"], "--yes").returncode == 0
    landlord.refund(own, _invoice_of_one_hash(tmp_path / "first", 500))
    await_until(lambda: mesh.lets.json("rentals", "--all")[0]["refunded_msat"] == 500_000, 20, "the refund is paid")
    assert mesh.lets.cli("stop").returncode == 0
    _age_payments(mesh.lets.state_dir / "ledger.db", days=2)
    mesh.lets.start()
    landlord = attacker(crowd).landlord(mesh)
    with pytest.raises(RefusedError, match="was sent before"):
        landlord.refund(own, _invoice_of_one_hash(tmp_path / "second", 500))
    assert mesh.lets.pids(), "it goes on"
