"""What strangers may ask of the gRPC face: size, time and number are bounded, and the next one is served."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from shop import GENEROUS, Shop, terms_by_grpc
from strangers import HASTY, await_none, bytes_of_each, many_files, no_fault

import ngp.calls.landlord_pb2 as pb
from ngp.modules.face.door import Bounds, Limits

__all__ = ["many_files", "no_fault"]  # the fixtures
OFFERS = pb.GetOffersRequest(ctx=pb.Ctx(nonce=1)).SerializeToString()
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def open_shop(folder: Path, limits: Limits | None = None) -> closing[Shop]:
    return closing(Shop(folder, terms_by_grpc(), limits))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One shop for tests that leave nothing behind."""
    limits = replace(GENEROUS, bounds=replace(HASTY, idle_s=30), handshakes_of_one_s=1000, handshakes_s=1000)
    with open_shop(tmp_path_factory.mktemp("shop"), limits) as made:
        yield made


_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_CONTEXT.check_hostname, _CONTEXT.verify_mode = False, ssl.CERT_NONE
_CONTEXT.set_alpn_protocols(["h2"])


class Client:
    """A client that speaks HTTP/2 by hand, and can do what no proper one would."""

    def __init__(self, shop: Shop, source: str = "127.0.0.1", window: int | None = None) -> None:
        plain = socket.create_connection(shop.terms.grpc[0], 60, source_address=(source, 0))
        self.socket = _CONTEXT.wrap_socket(plain)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        if window is not None:
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.flush()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def begin(self, path: str = "/ngp.Landlord/GetOffers", more: tuple[tuple[str, str], ...] = ()) -> int:
        number = self.h2.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "x")]
        self.h2.send_headers(number, [*headers, ("content-type", "application/grpc"), *more])
        return number

    def call(self, message: bytes = OFFERS, path: str = "/ngp.Landlord/GetOffers") -> int:
        number = self.begin(path)
        self.h2.send_data(number, b"\0" + len(message).to_bytes(4) + message, end_stream=True)
        self.flush()
        return number

    def reply(self, number: int) -> dict[str, str]:
        """Return the trailers of a reply; empty if the connection ended before."""
        while data := self.socket.recv(65536):
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.TrailersReceived | h2.events.ResponseReceived):
                    headers = {str(name): str(value) for name, value in event.headers}
                    if event.stream_id == number and "grpc-status" in headers:
                        return headers
            self.flush()
        return {}

    def ends(self) -> bool:
        """Read until the other end closes the connection; False if it hasn't within 5 s."""
        self.socket.settimeout(5)
        try:
            while self.socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True


def is_served(shop: Shop, source: str = "127.0.0.1") -> bool:
    with Client(shop, source) as client:
        return client.reply(client.call()).get("grpc-status") == "0"


def flood_pings(client: Client) -> None:
    for _ in range(200):
        client.h2.ping(b"12345678")
        client.flush()


def flood_resets(client: Client) -> None:
    for _ in range(200):
        client.h2.reset_stream(client.begin())
        client.flush()


def flood_whole_calls_that_are_reset(client: Client) -> None:
    for _ in range(400):
        number = client.begin()
        client.h2.send_data(number, b"\0\0\0\0\0", end_stream=True)
        client.h2.reset_stream(number)
        client.flush()


def flood_unknown_methods(client: Client) -> None:
    while client.reply(client.call(path="/ngp.Landlord/Nothing")):
        pass


def flood_settings(client: Client) -> None:
    for size in range(200):
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 65_535 + size})
        client.flush()


def long_message(client: Client) -> None:
    number = client.begin()
    client.h2.send_data(number, b"x" * 513)
    client.flush()


def long_headers(client: Client) -> None:
    client.begin(more=(("x", "y" * 2000),))
    client.flush()


def endless_headers(client: Client) -> None:
    client.socket.sendall(b"\0\0\1\1\0\0\0\0\1\x88")  # HEADERS that never end
    for _ in range(100):
        client.socket.sendall(b"\0\1\0\x09\0\0\0\0\1" + b"\0" * 256)


def too_many_calls(client: Client) -> None:
    for _ in range(10):
        client.begin()
    client.flush()


def garbage(client: Client) -> None:
    client.socket.sendall(b"\xff" * 3000)


@pytest.mark.parametrize(
    "deed",
    [
        flood_pings, flood_resets, flood_whole_calls_that_are_reset, flood_unknown_methods, flood_settings,
        long_message, long_headers, endless_headers, too_many_calls, garbage,
    ],
)  # fmt: skip
def test_who_takes_more_than_calls_need_loses_the_connection(shop: Shop, deed: Callable[[Client], None]) -> None:
    with Client(shop) as client:
        with suppress(OSError):
            deed(client)
        assert client.ends()
    assert is_served(shop)


@pytest.mark.parametrize("what", ["nothing", "a part of a request", "a drop at a time", "a pause after a reply"])
def test_who_is_slow_loses_the_connection(tmp_path: Path, what: str) -> None:
    with open_shop(tmp_path, Limits(bounds=HASTY)) as shop:
        began = time.monotonic()
        with Client(shop) as client, suppress(OSError):
            if what == "a pause after a reply":
                assert client.reply(client.call())["grpc-status"] == "0"
            if what in ("a part of a request", "a drop at a time"):
                number = client.begin()
                client.flush()
            while what == "a drop at a time":
                client.h2.send_data(number, b"x")
                client.flush()
                time.sleep(0.05)
            assert client.ends()
        assert time.monotonic() - began < 30
        await_none(shop.grpc._door)


def test_who_does_not_take_the_reply_loses_the_connection(tmp_path: Path) -> None:
    with open_shop(tmp_path, Limits(bounds=HASTY)) as shop, Client(shop, window=0) as client:
        client.call()
        began = time.monotonic()
        assert client.ends()
        assert time.monotonic() - began < 30
        await_none(shop.grpc._door)


def test_a_reply_is_taken_in_parts(shop: Shop) -> None:
    with Client(shop, window=1) as client:
        number = client.call()
        for _ in range(30):
            events = client.h2.receive_data(client.socket.recv(65536))
            if any(isinstance(one, h2.events.TrailersReceived) for one in events):
                return
            if any(isinstance(one, h2.events.DataReceived) for one in events):
                client.h2.increment_flow_control_window(100, number)
            client.flush()
        raise AssertionError("the reply doesn't end")


def test_a_reply_does_not_wait_for_the_clients_acknowledgement(shop: Shop) -> None:
    """With Nagle's algorithm each call would take 40 ms longer."""
    with Client(shop) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        took = []
        for _ in range(20):
            began = time.monotonic()
            assert client.reply(client.call())["grpc-status"] == "0"
            took.append(time.monotonic() - began)
        assert min(took) < 0.03
    accepted = shop.do(lambda: next(iter(shop.grpc._door._listeners.values()))[0])
    assert accepted.proto == socket.IPPROTO_TCP


def test_calls_of_one_connection_are_served_side_by_side(shop: Shop) -> None:
    with Client(shop) as client:
        numbers = [client.call() for _ in range(3)]
        assert client.reply(numbers[0])["grpc-status"] == "0"
    assert is_served(shop)


def test_requests_of_one_address_are_bounded_and_told_so_with_a_signature(tmp_path: Path) -> None:
    with open_shop(tmp_path, Limits(requests_of_one_s=0.3)) as shop, Client(shop) as client:
        for _ in range(3):
            assert client.reply(client.call())["grpc-status"] == "0"
        began = time.monotonic()
        trailers = client.reply(client.call())
        assert trailers["grpc-status"] == "0" and "sig-bin" in trailers
        assert time.monotonic() - began > 0.9, "a refusal costs the sender nothing"
        assert is_served(shop, "127.0.0.2")


def test_one_address_has_a_part_of_the_connections(tmp_path: Path) -> None:
    with open_shop(tmp_path, Limits(connections_of_one=2, handshakes_of_one_s=100)) as shop:
        with Client(shop), Client(shop):
            with pytest.raises(OSError):
                Client(shop)
            assert is_served(shop, "127.0.0.2")
        await_none(shop.grpc._door)
        assert is_served(shop)


def test_who_is_cut_off_is_no_fault_of_ours(shop: Shop) -> None:
    """The connection is reset while we read, and while we answer; `no_fault` looks at the log."""
    for asks in (False, True):
        client = Client(shop)
        if asks:
            client.call()
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.socket.close()
    assert is_served(shop)
    await_none(shop.grpc._door)


@effort(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 7), st.binary(max_size=60)), max_size=20
    )
)
def test_no_frames_harm_the_face(shop: Shop, frames: list[tuple[int, int, int, bytes]]) -> None:
    with Client(shop) as client, suppress(OSError):
        for kind, flags, stream, content in frames:
            head = len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4)
            client.socket.sendall(head + content)
        client.socket.settimeout(0.01)
        client.socket.recv(65536)
    assert is_served(shop)


@effort(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["GetOffers", "AddCredit", "GetStatus", "Rekey", "GetRefund", "Cancel"]), st.binary(max_size=120)
)
def test_no_message_harms_the_face(shop: Shop, method: str, message: bytes) -> None:
    with Client(shop) as client:
        assert client.reply(client.call(message, f"/ngp.Landlord/{method}"))["grpc-status"] == "0"


def test_a_thousand_calls_at_once_are_all_answered(tmp_path: Path, many_files: None) -> None:
    limits = Limits(handshakes_s=1000, requests_s=1000, bounds=Bounds(request_s=100))  # the connections take a while
    with open_shop(tmp_path, limits) as shop:
        clients = [Client(shop, f"127.0.1.{place // 25 + 1}") for place in range(1000)]
        numbers = [one.call() for one in clients]
        answers = [one.reply(number) for one, number in zip(clients, numbers, strict=True)]
        assert all(one.get("grpc-status") == "0" and "sig-bin" in one for one in answers)
        for one in clients:
            one.socket.close()
        await_none(shop.grpc._door)


HOLD = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
held = []
for place in range(int(sys.argv[2])):
    plain = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 30, (f"127.0.1.{place // 25 + 1}", 0))
    held.append(context.wrap_socket(plain))
    held[-1].sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    held[-1].recv(100)
print(len(held), flush=True)
sys.stdin.read()
"""


def test_a_connection_takes_little_memory(tmp_path: Path) -> None:
    limits = Limits(handshakes_s=1e6, handshakes_of_one_s=1e6, bounds=Bounds(request_s=100))
    with open_shop(tmp_path, limits) as shop:
        assert bytes_of_each(shop.grpc._door, HOLD, shop.terms.grpc[0][1], 400) < 70_000
        await_none(shop.grpc._door)
