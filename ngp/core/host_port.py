"""Host and port: `host:port` as one word, an IPv6 address in brackets.

Source: RFC 3986, 3.2.2
"""

from __future__ import annotations


def joined(host: str, port: int) -> str:
    """Write `host:port`. Args: host: a name or an address, without brackets. port: 1 to 65535."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parted(text: str) -> tuple[str, str]:
    """Return the host, without brackets, and what stands for its port; both as they are written, and not checked."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), port
