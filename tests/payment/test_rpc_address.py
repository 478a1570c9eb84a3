"""The address of a payment node's RPC, in the forms that people write."""

from __future__ import annotations

import pytest

from ngp.modules.payment import rpc_address


@pytest.mark.parametrize(
    ("text", "usual_port", "found"),
    [
        ("192.0.2.1:7777", 0, "192.0.2.1:7777"),
        ("[2001:db8::1]:7777", 0, "[2001:db8::1]:7777"),
        ("Node.example", 10009, "node.example:10009"),
        ("[2001:db8::1]", 10009, "[2001:db8::1]:10009"),
        ("node.example", 0, ""),
        ("node.example:0", 0, ""),
        ("", 10009, ""),
        (":10009", 0, ""),
        ("user@node.example:1", 0, ""),
        ("node.example:1/path", 0, ""),
    ],
)
def test_an_address_is_read_as_host_and_port_or_as_nothing(text: str, usual_port: int, found: str) -> None:
    assert rpc_address.read(text, usual_port) == found


@pytest.mark.parametrize("text", ["node.example:port", "node.example:65536", "[2001:db8::1:7777", "2001:db8::1]:7777"])
def test_a_damaged_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  urllib's words, which differ between versions of Python
        rpc_address.read(text, 10009)
