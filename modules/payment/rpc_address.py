"""RPC address: the address of a payment node, from a setting or a URI."""

from __future__ import annotations

from urllib.parse import urlsplit

from ngp.core.host_port import join_host_port


def read(text: str, usual_port: int = 0) -> str:
    """Read `host:port`, with an IPv6 address in brackets.

    Args:
        usual_port: used if the text has only a host; 0: the text must have a port.

    Returns:
        `host:port`, or "" if the text has another form.

    Raises:
        ValueError: brackets or port are invalid.
    """
    parts = urlsplit(f"//{text}")
    port = parts.port or usual_port
    if not parts.hostname or not port or parts.username or parts.path:
        return ""
    return join_host_port(parts.hostname, port)
