"""Host and port: joined and split again."""

from __future__ import annotations

import pytest

from ngp.core.host_port import join_host_port, split_host_port


@pytest.mark.parametrize(
    ("host", "written"),
    [("192.0.2.1", "192.0.2.1:9735"), ("2001:db8::1", "[2001:db8::1]:9735"), ("node.example", "node.example:9735")],
)
def test_an_address_of_ipv6_is_in_brackets(host: str, written: str) -> None:
    assert join_host_port(host, 9735) == written
    assert split_host_port(written) == (host, "9735")


@pytest.mark.parametrize(("text", "found"), [("", ("", "")), ("node", ("", "node")), ("a:b", ("a", "b"))])
def test_text_that_is_no_host_and_port_is_split_unchecked(text: str, found: tuple[str, str]) -> None:
    assert split_host_port(text) == found
