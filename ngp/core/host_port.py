"""Host and port: join and split `host:port`, with an IPv6 address in brackets.

Source: RFC 3986, 3.2.2
"""

from __future__ import annotations


def join_host_port(host: str, port: int) -> str:
    """Join a host (a name or an address, without brackets) and a port (1 to 65535)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(text: str) -> tuple[str, str]:
    """Split `host:port`. Returns the host, without brackets, and the text of the port; neither is checked."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), port
