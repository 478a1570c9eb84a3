"""gRPC: how calls are written over HTTP/2; for tenant and landlord, and for the gRPC link between neighbours. Pure.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from struct import Struct

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

CONTENT_TYPE = "application/grpc"
FRAME_HEAD = Struct("!BI")
"""What stands before each message: whether it is compressed (0 or 1), and its length in bytes."""


def connection(*, is_client: bool, calls: int, headers_bytes: int) -> H2Connection:
    """Return one end of a connection, whose other end is bound from its first byte on.

    Args:
        calls: how many the other end may have open at a time.
        headers_bytes: the most bytes of the headers of a request or a reply.
    """
    made = H2Connection(H2Configuration(client_side=is_client, header_encoding=None))
    values = {SettingCodes.MAX_CONCURRENT_STREAMS: calls, SettingCodes.MAX_HEADER_LIST_SIZE: headers_bytes}
    if is_client:
        values[SettingCodes.ENABLE_PUSH] = 0
    made.local_settings = Settings(client=is_client, initial_values=values)
    made.decoder.max_header_list_size = headers_bytes  # now, not when the other end has agreed
    return made


def framed(message: bytes) -> bytes:
    """Return a message as it is sent."""
    return FRAME_HEAD.pack(0, len(message)) + message


def unframed(body: bytes) -> bytes | None:
    """Return the only message of a whole body; None if the body has another form, or the message is compressed."""
    message = body[FRAME_HEAD.size :]
    return message if body == framed(message) else None


def binary_text(value: bytes) -> str:
    """Return bytes as the value of a header whose name ends with `-bin`."""
    return b64encode(value).decode().rstrip("=")


def read_binary(text: bytes) -> bytes:
    """Return the bytes of a `-bin` header (base64, the padding may be left out); b"" if it isn't base64."""
    try:
        return b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        return b""
