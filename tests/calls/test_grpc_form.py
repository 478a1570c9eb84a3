"""How gRPC writes messages and binary headers: only the one form is taken in."""

from __future__ import annotations

import pytest

from ngp.calls.grpc import binary_text, framed, read_binary, unframed


def test_a_message_is_written_as_grpc_says() -> None:
    assert framed(b"") == b"\0\0\0\0\0"
    assert framed(b"ab" * 200) == b"\0\0\0\x01\x90" + b"ab" * 200


@pytest.mark.parametrize("message", [b"", b"a", bytes(70_000)])
def test_a_message_is_read_as_it_was_written(message: bytes) -> None:
    assert unframed(framed(message)) == message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0\0",
        b"\0\0\0\0\x02a",
        b"\0\0\0\0\x01ab",
        b"\x01\0\0\0\x01a",
        b"\x02\0\0\0\x01a",
        framed(b"a") + framed(b"b"),
        b"\0\xff\xff\xff\xffa",
    ],
    ids=["nothing", "half a head", "cut", "longer", "compressed", "unknown flag", "two messages", "4 GiB"],
)
def test_a_body_of_another_form_has_no_message(body: bytes) -> None:
    assert unframed(body) is None


@pytest.mark.parametrize("value", [b"", b"a", b"ab", b"abc", bytes(range(256))])
def test_a_binary_header_is_read_with_padding_and_without(value: bytes) -> None:
    text = binary_text(value)
    assert "=" not in text
    assert read_binary(text.encode()) == value
    assert read_binary(text.encode() + b"=" * (-len(text) % 4)) == value


@pytest.mark.parametrize("text", [b"a", b"ab cd", b"ab\ncd", b"====", "äöü".encode(), b"ab-_", b"\xff\xff\xff"])
def test_what_is_no_base64_is_no_bytes(text: bytes) -> None:
    assert read_binary(text) == b""
