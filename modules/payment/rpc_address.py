"""RPC address: where a payment node listens for us, as a setting or a URI says it."""

from __future__ import annotations

from urllib.parse import urlsplit

from ngp.core.host_port import join_host_port


def read(text: str, usual_port: int = 0) -> str:
    """Read `host:port`, an IPv6 address in brackets; returns it so.

    Args:
        usual_port: for a host alone; 0: it must say a port.

    Returns:
        "" where it is something else: it has no host or port, or more than these.

    Raises:
        ValueError: brackets or port are damaged.
    """
    parts = urlsplit(f"//{text}")
    port = parts.port or usual_port
    if not parts.hostname or not port or parts.username or parts.path:
        return ""
    return join_host_port(parts.hostname, port)
