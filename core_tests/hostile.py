"""A hostile neighbour: any number of keys and hardware addresses at one host. Each can send any message, legal or not,
and any frame.

It uses ngp's own wire and courier, so its messages are correctly signed, numbered and answered, and the receiver must
judge their content. Its sockets are inside the host's namespace; everything else runs in the test's process.
"""

from __future__ import annotations

import secrets
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_address, ip_network

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from core_tests.host import Host
from ngp import invoice
from ngp.core.messages import Accept, Declined, Hello, Invoice, Message, Paid, Propose
from ngp.courier import Courier
from ngp.delivery import Received
from ngp.errors import PeerError

PORT = 10325
HOP_LIMIT = 255
WAY = ("mesh0", b"hostile")  # our couriers' name for the only link
SANDBOX_MARK = b"ngp1"  # in an invoice of the sandbox, before the masked preimage


def _raw(interface: str) -> socket.socket:
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    one.bind((interface, 0))
    return one


def _udp(interface: str) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    one.bind(("", PORT))
    one.setblocking(False)
    return one


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip_packet(source: str, destination: str, protocol: int, payload: bytes, hops: int = 64, flags: int = 0) -> bytes:
    """Build an IPv4 or IPv6 packet. Args: flags: IPv4's flags and fragment offset."""
    src, dst = ip_address(source).packed, ip_address(destination).packed
    if len(src) == 16:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + src + dst + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), secrets.randbelow(65536), flags, hops, protocol, 0)
    head += src + dst
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(source: str, destination: str, port: int, payload: bytes, from_port: int = 4000) -> bytes:
    """Build a whole UDP packet."""
    src, dst = ip_address(source).packed, ip_address(destination).packed
    length = 8 + len(payload)
    pseudo = src + dst + struct.pack("!HH", 17, length)
    head = struct.pack("!HHH", from_port, port, length)
    total = checksum(pseudo + head + b"\0\0" + payload) or 0xFFFF
    hops = HOP_LIMIT if port == PORT else 64
    return ip_packet(source, destination, 17, head + struct.pack("!H", total) + payload, hops)


def random_mac() -> bytes:
    """Make up a hardware address, locally administered."""
    return b"\x02" + secrets.token_bytes(5)


def genuine_invoice(amount_msat: int, expiry_s: int = 600) -> Message:
    """Make an invoice that the sandbox would pay."""
    preimage = secrets.token_bytes(32)
    payment_hash = sha256(preimage).digest()
    text = invoice.write(
        key=secrets.token_bytes(32), prefix="bcrt", amount_msat=amount_msat, timestamp_s=int(time.time()),
        expiry_s=expiry_s, payment_hash=payment_hash, payment_secret=secrets.token_bytes(32), memo="pay me",
        metadata=SANDBOX_MARK + _masked(preimage, payment_hash),
    )  # fmt: skip
    return Invoice(text, amount_msat)


def proof_of(asked: Invoice) -> Paid:
    """Pay an invoice of the sandbox, whose money isn't real, and return the proof."""
    parsed = invoice.read(asked.bolt11)
    return Paid(parsed.payment_hash, _masked(parsed.metadata.removeprefix(SANDBOX_MARK), parsed.payment_hash))


def _masked(preimage: bytes, payment_hash: bytes) -> bytes:
    """Mask a preimage as the sandbox does, or unmask it."""
    mask = sha256(b"ngp sandbox: this money is not real" + payment_hash).digest()
    return bytes(a ^ b for a, b in zip(preimage, mask, strict=True))


def offer(destination: str, price: int = 1000, limit_bytes: int = 1 << 20) -> Propose:
    """Make a proposal for a destination. Args: price in msat per GiB."""
    return Propose(secrets.token_bytes(16), ip_network(destination), price, limit_bytes, 300, 10, 0, 1)


@dataclass(eq=False)
class Persona:
    """One key behind one hardware address."""

    crowd: Crowd
    mac: bytes
    key: Ed25519PrivateKey
    boot: int = 1
    sells: bool = True
    buys: bool = True
    network: str = "sandbox"
    payee: bytes = b""
    peer: bytes = b""
    inbox: list[Received] = field(default_factory=list)
    react: Callable[[Persona, Received], None] | None = None

    def __post_init__(self) -> None:
        self.courier = Courier(self.key, self.boot)

    @property
    def identity(self) -> str:
        """Our public key, as listings show it."""
        return self.courier.identity.hex()

    @property
    def proven(self) -> bool:
        """Say whether the victim and we are proven to each other."""
        return bool(self.peer) and self.courier.is_proven(self.peer, WAY)

    def hello(self, wants_reply: bool = True) -> Hello:
        """Build our hello."""
        return Hello(self.network, self.sells, self.buys, (), "ngp hostile", wants_reply, self.payee)

    def greet(self) -> None:
        """Say hello to everybody."""
        for outgoing in self.courier.send(None, None, self.hello(), time.monotonic()):
            self.crowd.send(self, outgoing.datagram)

    def say(self, message: Message, reply_to: int = 0) -> None:
        """Send any message to the victim."""
        for outgoing in self.courier.send(self.peer, WAY, message, time.monotonic(), reply_to):
            self.crowd.send(self, outgoing.datagram)

    def say_due(self) -> None:
        """Send acks, and messages that waited for one; needed only if several messages are sent."""
        for outgoing in self.courier.due(time.monotonic()):
            self.crowd.send(self, outgoing.datagram)

    def heard(self, kind: type[Message]) -> list[Received]:
        """Return the messages of a kind that came."""
        return [received for received in self.inbox if type(received.message) is kind]

    def take(self, datagram: bytes) -> None:
        """Receive a datagram, if it is ours."""
        try:
            received = self.courier.receive(datagram, WAY, time.monotonic())
        except PeerError:
            return
        if received is None:
            return
        if isinstance(received.message, Hello):
            self.peer = received.sender
            if received.message.wants_reply or not received.proven:
                self.say(self.hello(wants_reply=not received.proven), received.message_id)
            return
        self.courier.acknowledge(received.sender, received.message_id, time.monotonic())
        self.inbox.append(received)
        if self.react is not None:
            self.react(self, received)


class Crowd:
    """All the personas at one host, with the sockets that they share."""

    def __init__(self, host: Host, victim: Host, interface: str = "mesh0") -> None:
        self.address = host.address(interface, 4)
        self.address6 = host.address(interface, 6)
        self.victim_address = victim.address(interface, 4)
        self.victim_mac = bytes.fromhex(victim.mac(interface).replace(":", ""))
        self.mac = bytes.fromhex(host.mac(interface).replace(":", ""))
        self.raw = host.socket_inside(lambda: _raw(interface))
        self.udp = host.socket_inside(lambda: _udp(interface))
        self.personas: list[Persona] = []
        self.captured: list[bytes] = []

    def persona(self, mac: bytes | None = None, key: Ed25519PrivateKey | None = None, **traits: object) -> Persona:
        """Add a persona; without a MAC it has the host's own."""
        one = Persona(self, mac or self.mac, key or Ed25519PrivateKey.generate(), **traits)  # type: ignore[arg-type]
        self.personas.append(one)
        return one

    def send(self, persona: Persona, datagram: bytes) -> None:
        """Send a message of ngp's under a persona's hardware address."""
        self.captured.append(datagram)
        self.frame(persona.mac, udp(self.address, self.victim_address, PORT, datagram, PORT))

    def frame(self, mac: bytes, packet: bytes) -> None:
        """Send a packet in a frame from any hardware address."""
        kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
        try:
            self.raw.send(self.victim_mac + mac + kind + packet)
        except OSError:  # no buffer space: the medium is full
            time.sleep(0.001)

    def pump(self, seconds: float = 0.0, until: Callable[[], bool] | None = None) -> bool:
        """Receive and answer for a while, or until a condition holds. Returns whether it holds."""
        deadline = time.monotonic() + seconds
        while True:
            self._receive()
            for persona in self.personas:
                for outgoing in persona.courier.due(time.monotonic()):
                    self.send(persona, outgoing.datagram)
            if until is not None and until():
                return True
            if time.monotonic() >= deadline:
                return False
            select.select([self.udp], [], [], 0.005)

    def _receive(self) -> None:
        while True:
            try:
                datagram, (address, _) = self.udp.recvfrom(2048)
            except BlockingIOError:
                return
            if address != self.victim_address:
                continue  # another daemon's hello; it must not be taken for the victim's
            for persona in self.personas:
                persona.take(datagram)

    def meet(self, *personas: Persona, seconds: float = 60.0) -> bool:
        """Have personas and victim prove themselves to each other."""
        for persona in personas:
            persona.greet()
        return self.pump(seconds, lambda: all(persona.proven for persona in personas))

    def close(self) -> None:
        """Go away."""
        self.raw.close()
        self.udp.close()


def accept_all(persona: Persona, received: Received) -> None:
    """React by accepting every proposal; nothing else is answered, invoices neither."""
    if isinstance(received.message, Propose):
        offer = received.message
        persona.say(Accept(offer.contract, offer.price_msat_per_gib, offer.data_limit_bytes), received.message_id)


def ask_for_money(crowd: Crowd, persona: Persona, usual_msat: int, times: int = 4) -> None:
    """Ask the victim for far too much, then for the sum that it names. Args: usual_msat: asked if it names none."""
    amount_msat = 10**9
    for _ in range(times):
        before = len(persona.inbox)
        persona.say(genuine_invoice(amount_msat))
        crowd.pump(1.0, lambda before=before: len(persona.inbox) > before)  # type: ignore[misc]
        named = [one.message.amount_msat for one in persona.inbox if isinstance(one.message, Declined)]
        amount_msat = (named[-1] if named else 0) or usual_msat
