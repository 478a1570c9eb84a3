"""What strangers may ask of the HTTPS face: size, time and number are bounded, and the next one is served."""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from shop import Shop
from strangers import HASTY, await_none, bytes_of_each, many_files, no_fault

from core_tests.shell import await_until
from core_tests.staticwire import LandlordRefuses, Session, Tenant, request_bytes, tls_context, wg_text
from ngp.calls.first_invoices import FirstInvoices
from ngp.core.rental.rental import RentalState
from ngp.errors import RentalError
from ngp.modules.face.door import Bounds, Door, Limits, who_is
from ngp.modules.face.staticwire import PATHS, TERMS
from ngp.modules.face.tls import TlsStream

__all__ = ["many_files", "no_fault"]  # the fixtures


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One shop for tests that leave nothing behind."""
    with closing(Shop(tmp_path_factory.mktemp("shop"))) as made:
        yield made


def connect(shop: Shop, source: str = "127.0.0.1") -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", shop.port), 30, source_address=(source, 0))
    return tls_context().wrap_socket(plain)


def said(connection: socket.socket, sent: bytes) -> bytes:
    """Send bytes and return all that comes back until the other end closes."""
    found = b""
    with suppress(OSError):
        connection.sendall(sent)
        while data := connection.recv(65536):
            found += data
    return found


def is_served(shop: Shop, source: str = "127.0.0.1") -> bool:
    with connect(shop, source) as connection:
        connection.sendall(request_bytes("x", TERMS, None))
        return connection.recv(65536).startswith(b"HTTP/1.1 200")


def await_served(shop: Shop) -> None:
    """Wait until a request is answered: bounds of some milliseconds also end honest ones on a busy machine."""

    def served() -> bool:
        with suppress(OSError):
            return is_served(shop)
        return False

    await_until(served, what="an answer")


# --- size and time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /api/getstatus/ HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000, b"431"),
        (b"POST /" + b"x" * 100_000, b"431"),
        (b"POST /api/getstatus/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000, b"413"),
        (b"POST /api/getstatus/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
         + b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n", b"413"),
        (b"POST /api/getstatus/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
         + b"1\r\nx\r\n" * 500 + b"0\r\n\r\n", b"413"),
        (b"GET /api/getstatus/ HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"HEAD /api/getstatus/ HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"POST /api/rent HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"POST / HTTP/1.0\r\n\r\n", b"404"),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST /api/getstatus/ HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /api/getstatus/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nshort", b"408"),
        (b"POST /api/getstatus/ HTTP/1.1\r\nHost:", b"408"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_served_ends_the_connection(tmp_path: Path, sent: bytes, status: bytes) -> None:
    with closing(Shop(tmp_path, limits=Limits(bounds=HASTY))) as shop, connect(shop) as connection:
        began = time.monotonic()
        answer = said(connection, sent)
        # A client that goes on sending may find the connection reset before it has read why.
        assert answer.startswith(b"HTTP/1.1 " + status) or (not answer and len(sent) > 10_000)
        assert b"onnection: close" in answer or not answer
        assert time.monotonic() - began < 30
        assert is_served(shop)


@pytest.mark.parametrize("what", ["a handshake", "a first request", "a further request", "a drop at a time"])
def test_who_is_slow_loses_the_connection(tmp_path: Path, what: str) -> None:
    with closing(Shop(tmp_path, limits=Limits(bounds=HASTY, handshake_s=0.3))) as shop:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", shop.port), 30) as plain:
            connection: socket.socket = plain
            if what == "a handshake":
                plain.sendall(b"\x16\x03\x01\x02\x00")
            else:
                connection = tls_context().wrap_socket(plain)
            with connection, suppress(OSError):
                if what == "a further request":
                    connection.sendall(request_bytes("x", TERMS, None))
                while what == "a drop at a time":
                    connection.sendall(b"P")
                    time.sleep(0.05)
                while connection.recv(65536):
                    pass
        assert time.monotonic() - began < 30
        await_none(shop.face._door)


def test_who_does_not_read_the_replies_loses_the_connection(tmp_path: Path) -> None:
    limits = Limits(bounds=HASTY, requests_s=1e6, requests_of_one_s=1e6)
    with closing(Shop(tmp_path, limits=limits)) as shop, connect(shop) as connection:
        connection.settimeout(1)
        with suppress(OSError):
            while True:
                connection.sendall(request_bytes("x", TERMS, None) * 10)
        await_none(shop.face._door)


def test_who_asks_for_new_keys_without_end_loses_the_connection(shop: Shop) -> None:
    """Python's ssl can't ask for new keys, so the client is OpenSSL itself."""
    openssl = ctypes.CDLL(ctypes.util.find_library("ssl"))
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(openssl, name).restype = ctypes.c_void_p
    context = ctypes.c_void_p(openssl.SSL_CTX_new(ctypes.c_void_p(openssl.TLS_client_method())))
    tls = ctypes.c_void_p(openssl.SSL_new(context))
    with socket.create_connection(("127.0.0.1", shop.port), 30) as plain:
        plain.setblocking(True)
        openssl.SSL_set_fd(tls, plain.fileno())
        assert openssl.SSL_connect(tls) == 1
        asked = 0
        while asked < 20_000 and openssl.SSL_key_update(tls, 1) == 1 and openssl.SSL_do_handshake(tls) == 1:
            asked += 1
    openssl.SSL_free(tls)
    openssl.SSL_CTX_free(context)
    assert 20 < asked < 20_000, "some are permitted"
    assert is_served(shop)


def test_a_record_of_data_may_be_as_long_as_tls_permits_and_come_in_any_pieces(shop: Shop) -> None:
    """A record counts as data only when its last byte has come, perhaps with bytes of the next record."""
    context = shop.face._door._context
    assert context is not None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls_context().wrap_bio(to_client, to_server)

    async def run() -> int:
        reader = asyncio.StreamReader()
        writer = mock.Mock(write=to_client.write, drain=mock.AsyncMock())
        stream = TlsStream(reader, writer, context)
        handshake = asyncio.create_task(stream.handshake())
        while not handshake.done():
            with suppress(ssl.SSLWantReadError):
                client.do_handshake()
            reader.feed_data(to_server.read())
            await asyncio.sleep(0.01)
        for _ in range(2):
            client.write(b"x" * 16384)
        sent, taken = to_server.read(), 0
        reading = asyncio.create_task(stream.read())
        for piece in (4096, 4096, 4096, 4096, 16, len(sent)):  # 6 bytes of the first record are missing before the last
            reader.feed_data(sent[:piece])
            sent = sent[piece:]
            await asyncio.sleep(0.01)
        reader.feed_eof()
        while data := await reading:
            taken += len(data)
            reading = asyncio.create_task(stream.read())
        return taken

    assert asyncio.run(run()) == 2 * 16384


def test_requests_may_come_close_together(shop: Shop) -> None:
    one, last = request_bytes("x", TERMS, None), request_bytes("x", "/api/end/", None)
    with connect(shop) as connection:
        answer = said(connection, one * 3 + last)
    assert answer.count(b"HTTP/1.1 200") == 3 and answer.count(b"HTTP/1.1 404") == 1


# --- number -----------------------------------------------------------------------------------------------------------


def test_one_address_has_a_part_of_the_connections_and_others_are_served(tmp_path: Path) -> None:
    limits = Limits(connections_of_one=3, handshakes_of_one_s=100)
    with closing(Shop(tmp_path, limits=limits)) as shop:
        held = [connect(shop) for _ in range(3)]
        with pytest.raises(OSError):
            connect(shop)
        assert is_served(shop, "127.0.0.2")
        held.pop().close()
        while len(shop.face._door._connections) > 2:
            time.sleep(0.01)
        assert is_served(shop)
        for one in held:
            one.close()
        await_none(shop.face._door)


def test_if_all_places_are_taken_the_one_without_a_request_for_longest_makes_room(tmp_path: Path) -> None:
    with closing(Shop(tmp_path, limits=Limits(connections=4, handshakes_of_one_s=100))) as shop:
        tenant = shop.tenant()
        invoice = tenant.add_credit(1100)["Invoice"]
        waits = connect(shop)
        fields = {"WireGuardPubKey": wg_text(tenant.key), "InvoiceToWaitFor": invoice}
        waits.sendall(request_bytes("x", "/api/getstatus/", fields))
        while not shop.face._requests._holding:
            time.sleep(0.01)
        idle = [connect(shop, f"127.0.0.{number}") for number in (2, 3)]
        for number in range(4, 10):
            assert is_served(shop, f"127.0.0.{number}")
        assert said(idle[0], b"") == b"", "it made room"
        assert shop.pay(invoice) and waits.recv(65536).startswith(b"HTTP/1.1 200"), "a request under way is never ended"
        for one in (waits, *idle):
            one.close()
        tenant.session.close()
        await_none(shop.face._door)


def test_all_addresses_of_an_ipv6_subnet_are_one_sender() -> None:
    assert who_is("2001:db8::1") == who_is("2001:db8::ffff:2") == who_is("2001:db8::3%eth0")
    assert len({who_is("2001:db8::1"), who_is("2001:db8:0:1::1"), who_is("192.0.2.1"), who_is("192.0.2.2")}) == 4


def test_handshakes_of_one_address_are_bounded(tmp_path: Path) -> None:
    with closing(Shop(tmp_path, limits=Limits(handshakes_of_one_s=0.4))) as shop:
        served = 0
        for _ in range(10):
            with suppress(OSError):
                served += is_served(shop)
        assert served == 4
        assert is_served(shop, "127.0.0.2")


def test_handshakes_of_all_wait_for_their_turn(tmp_path: Path) -> None:
    with closing(Shop(tmp_path, limits=Limits(handshakes_s=20, burst_s=0.2, handshakes_of_one_s=1000))) as shop:
        began = time.monotonic()
        assert all(is_served(shop) for _ in range(15))
        assert time.monotonic() - began > 0.5


def test_silent_connections_from_many_addresses_take_nobodys_turn(tmp_path: Path) -> None:
    with closing(Shop(tmp_path, limits=Limits(handshakes_s=2, burst_s=1, handshakes_of_one_s=1000))) as shop:
        place, sources = ("127.0.0.1", shop.port), [f"127.1.0.{number}" for number in range(1, 101)]
        silent = [socket.create_connection(place, 30, source_address=(source, 0)) for source in sources]
        began = time.monotonic()
        assert is_served(shop)
        assert time.monotonic() - began < 10, "their hundred handshakes would take 50 s"
        for one in silent:
            one.close()


def test_one_ipv6_site_has_a_part_of_the_handshakes(tmp_path: Path) -> None:
    door = Door("x", Limits(handshakes_of_site_s=0.5, handshakes_of_one_s=1000), conversation)
    of_one_site = [who_is(f"2001:db8:1:{number:x}::1") for number in range(100)]
    assert sum(door._admits(who, 0.0) for who in of_one_site) == 5
    assert door._admits(who_is("2001:db8:2::1"), 0.0)


async def conversation(_stream: object, _who: object) -> None:
    raise AssertionError("nobody is connected")


def test_connections_that_are_only_closed_are_bounded_too(tmp_path: Path) -> None:
    with closing(Shop(tmp_path, limits=Limits(connections_of_one=0, accepts_s=50))) as shop:
        began = time.monotonic()
        flood = [socket.create_connection(("127.0.0.1", shop.port), 30) for _ in range(40)]
        for one in flood:
            with one, suppress(OSError):
                assert one.recv(1) == b""
        assert time.monotonic() - began > 0.5


def test_requests_of_one_address_are_bounded_and_told_so(tmp_path: Path) -> None:
    limits = Limits(requests_of_one_s=0.3)
    with closing(Shop(tmp_path, limits=limits)) as shop, closing(shop.session()) as session:
        tenant = Tenant(session)
        for _ in range(3):
            tenant.terms()
        began = time.monotonic()
        with pytest.raises(LandlordRefuses, match="too many requests"):
            tenant.terms()
        assert time.monotonic() - began >= 1, "who asks and asks is answered slowly"
        assert is_served(shop, "127.0.0.2")


def test_invoices_are_bounded_harder(tmp_path: Path) -> None:
    limits = Limits(invoices_of_one_s=0.05)
    with closing(Shop(tmp_path, limits=limits)) as shop, closing(shop.session()) as session:
        tenant = Tenant(session)
        for _ in range(2):
            tenant.add_credit(1100)
        with pytest.raises(LandlordRefuses, match="too many invoices"):
            tenant.add_credit(1100)
        assert tenant.status()["unpaid_invoice"]


def test_one_address_cannot_hold_all_networks_for_nothing(tmp_path: Path) -> None:
    limits = Limits(first_invoices_of_one=2)
    with closing(Shop(tmp_path, limits=limits)) as shop, closing(shop.session()) as session:
        tenants = [Tenant(session) for _ in range(3)]
        invoices = [one.add_credit(1100)["Invoice"] for one in tenants[:2]]
        assert tenants[0].add_credit(1200)["Invoice"], "one that waits may change its mind"
        with pytest.raises(LandlordRefuses, match="2 new rentals .* wait for their payment"):
            tenants[2].add_credit(1100)
        connect = partial(socket.create_connection, source_address=("127.0.0.2", 0))
        with closing(Session("127.0.0.1", shop.port, connect=connect)) as other:
            assert Tenant(other).add_credit(1100)
        assert shop.pay(invoices[1])
        assert tenants[2].add_credit(1100) and tenants[1].add_credit(600), "paid ones don't count"
        with pytest.raises(LandlordRefuses, match="wait for their payment"):
            Tenant(session).add_credit(1100)
        shop.pass_time(700)
        assert Tenant(session).add_credit(1100), "expired ones don't count"


def test_invoices_that_are_being_made_count_and_nothing_is_remembered_for_ever() -> None:
    waiting: set[bytes] = set()
    letting = mock.Mock()
    letting.status = lambda key: SimpleNamespace(state=RentalState.PENDING if key in waiting else RentalState.RELEASED)
    counted = FirstInvoices(1, letting)
    first, again = counted.asking("a", b"1"), counted.asking("a", b"1")
    with first, again, pytest.raises(RentalError), counted.asking("a", b"2"):
        pass
    with counted.asking("a", b"2"):
        waiting.add(b"2")
    for number in range(3000):
        with counted.asking(number, b"x"):
            pass
    assert len(counted._keys) <= 1024 and not counted._asking
    with pytest.raises(RentalError), counted.asking("a", b"3"):
        pass


def test_only_some_requests_may_wait_for_a_payment(tmp_path: Path) -> None:
    limits = Limits(holding=1)
    with closing(Shop(tmp_path, limits=limits)) as shop, closing(shop.session()) as session, connect(shop) as waits:
        tenant = Tenant(session)
        invoice = tenant.add_credit(1100)["Invoice"]
        fields = {"WireGuardPubKey": wg_text(tenant.key), "InvoiceToWaitFor": invoice}
        waits.sendall(request_bytes("x", "/api/getstatus/", fields))
        while not shop.face._requests._holding:
            time.sleep(0.01)
        began = time.monotonic()
        assert tenant.status(invoice)["unpaid_invoice"] == invoice
        assert time.monotonic() - began < 15


def test_a_thousand_requests_at_once_are_all_answered(tmp_path: Path, many_files: None) -> None:
    limits = Limits(bounds=Bounds(request_s=120), handshake_s=120, handshakes_s=1000, requests_s=1000)
    with closing(Shop(tmp_path, limits=limits)) as shop:
        assert asyncio.run(ask_at_once(shop, 1000)) == 1000
        await_none(shop.face._door)


async def ask_at_once(shop: Shop, number: int) -> int:
    """Ask for the terms over many connections that are all open at a time. Returns how many were answered."""
    all_open, open_ones = asyncio.Event(), 0

    async def ask(place: int) -> bool:
        nonlocal open_ones
        source = (f"127.0.1.{place // 25 + 1}", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", shop.port, ssl=tls_context(), local_addr=source)
        open_ones += 1
        if open_ones == number:
            all_open.set()
        await all_open.wait()
        writer.write(request_bytes("x", TERMS, None))
        answer = await reader.readuntil(b"}")
        writer.close()
        return answer.startswith(b"HTTP/1.1 200")

    return sum(await asyncio.gather(*(ask(place) for place in range(number))))


HOLD = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
places = [(f"127.0.1.{place // 25 + 1}", 0) for place in range(int(sys.argv[2]))]
held = [context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1])), 30, one)) for one in places]
print(len(held), flush=True)
sys.stdin.read()
"""


def test_a_connection_takes_little_memory(tmp_path: Path) -> None:
    """asyncio's own TLS takes 280 kB."""
    with closing(Shop(tmp_path, limits=Limits(handshakes_s=1e6, handshakes_of_one_s=1e6))) as shop:
        assert bytes_of_each(shop.face._door, HOLD, shop.port, 400) < 60_000
        await_none(shop.face._door)


# --- anything ---------------------------------------------------------------------------------------------------------

LINES = st.sampled_from(
    [b"POST ", b"GET ", b"/api/getstatus/", b"/api/AddCredit/", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"Host: x", b"\n",
     b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Connection: close",
     b"Transfer-Encoding: chunked", b"5\r\nabcde\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"Upgrade: websocket",
     b"Connection: upgrade", b"Expect: 100-continue", b"WireGuardPubKey=", b"&amount=1", b"%", b"=", b"\0", b"\xff"]
)  # fmt: skip


@given(st.one_of(st.binary(max_size=300), st.lists(LINES, max_size=20).map(b"".join)))
def test_any_bytes_are_answered_or_end_the_connection(hasty: Shop, sent: bytes) -> None:
    with connect(hasty) as connection:
        answer = said(connection, sent)
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    await_served(hasty)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    bounds = Bounds(request_s=0.05, idle_s=0.05, reply_s=0.5)
    limits = Limits(bounds=bounds, handshakes_s=1e6, handshakes_of_one_s=1e6, requests_of_one_s=1e6, requests_s=1e6)
    with closing(Shop(tmp_path_factory.mktemp("hasty"), limits=limits)) as made:
        yield made


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    limits = Limits(handshakes_s=1e6, handshakes_of_one_s=1e6, requests_of_one_s=1e6, requests_s=1e6)
    with closing(Shop(tmp_path_factory.mktemp("patient"), limits=limits)) as made:
        yield made


@given(st.binary(min_size=1, max_size=200))
@effort(max_examples=effort.default.max_examples // 2)
def test_any_bytes_instead_of_a_handshake_do_no_harm(hasty: Shop, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), 30) as plain, suppress(OSError):
        plain.sendall(sent)
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(65536):
            pass
    await_served(hasty)


WORDS = st.one_of(st.text(max_size=60), st.binary(max_size=40).map(lambda one: one.hex()), st.integers().map(str))
NAMES = st.one_of(st.sampled_from(["WireGuardPubKey", "amount", "InvoiceToWaitFor", "Preimage"]), st.text(max_size=20))


@given(st.sampled_from(PATHS), st.dictionaries(NAMES, WORDS, max_size=12))
def test_any_form_is_answered_with_200_and_json(patient: Shop, path: str, fields: dict[str, str]) -> None:
    with closing(Session("127.0.0.1", patient.port)) as session:
        status, content = session.post(path, fields)
    assert status == 200 and (path == TERMS or list(content) == ["Error"])


@given(st.sampled_from(PATHS[1:]), st.binary(max_size=600))
def test_any_body_is_answered_with_200_and_json(patient: Shop, path: str, body: bytes) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with connect(patient) as connection:
        answer = said(connection, head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 200") and b'{"Error": ' in answer
