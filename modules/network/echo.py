"""Echo requests (RFC 792, RFC 4443): a destination's answer shows that our traffic is carried there and back.

Nobody reads the answers here. The meter counts them like all that comes back, and the core looks at the count.
"""

from __future__ import annotations

import socket
import struct

from ngp.core.messages import Address
from ngp.modules.network.icmp import checksum

_V4_REQUEST, _V6_REQUEST = 8, 128
_TEXT = b"ngp: is this way paid for in vain?"


def request(version: int) -> bytes:
    """Return an echo request; the kernel adds the checksum of one for IPv6."""
    if version == 6:
        return struct.pack("!BBHHH", _V6_REQUEST, 0, 0, 0, 1) + _TEXT
    message = struct.pack("!BBHHH", _V4_REQUEST, 0, 0, 0, 1) + _TEXT
    return message[:2] + checksum(message).to_bytes(2, "big") + message[4:]


def ask(destination: Address) -> None:
    """Send one echo request. Raises OSError if it can't be sent."""
    families = {4: (socket.AF_INET, socket.IPPROTO_ICMP), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6)}
    family, protocol = families[destination.version]
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol) as way:
        way.sendto(request(destination.version), (str(destination), 0))
