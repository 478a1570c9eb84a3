"""Rules: an nftables table of our own, which clamps the MSS and limits tenants' rates.

The table's rules see only what the tunnel's interface carries. Nothing else is in it: the operator's tables are never
touched, and removing ours needs no record. A set-up writes it anew, in one transaction. `limits.py` makes the later
changes.

Rates are limited by nft because its limits work alike for every kind of interface and in both directions, and leave
the queues of the outside interface to the operator. What exceeds a limit is dropped, before anybody is charged for it;
TCP adapts. What this host itself sends to a tenant isn't limited.
"""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Iterable, Iterator

from ngp.core.messages import Prefix
from ngp.core.rental.tunnel import TunnelPeer
from ngp.errors import KernelError, MomentError
from ngp.modules import netlink
from ngp.modules.commands import find_command
from ngp.modules.netlink import Asker, text_attribute

TABLE = "inet ngp_let"
INSTALL = "apt install nftables"
_TIMEOUT_S = 20.0  # for one run of nft, which takes seconds with ten thousand limits
# What the kernel answers if the table doesn't exist (ENOENT), or if it has no nf_tables (the other three).
_NO_TABLE = {errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT}
# Numbers of the kernel's interface (linux/netfilter/nf_tables.h, nfnetlink.h).
NFTABLES, _GET_TABLE = 10, 1
HEADER = struct.pack("!BBH", 1, 0, 0)  # struct nfgenmsg: inet
TABLE_NAME = text_attribute(1, TABLE.split()[1])  # in messages about tables, objects and elements
BURST_BYTES = 128 << 10  # may come at once: else a slow limit would pass no packet that segmentation offload has joined
_HEADERS_BYTES = {4: 40, 6: 60}  # of IP and TCP
WAYS = {"up": "saddr", "down": "daddr"}
_FAMILY = {4: "ip", 6: "ip6"}


def table(interface: str, mtu: int, peers: Iterable[TunnelPeer]) -> str:
    """Write the whole table, in place of the one that there is. Pure.

    Args: interface: exists when the text is carried out: nft looks its number up, which changes when the interface is
        made anew.
    """
    limited = [peer for peer in peers if peer.rate_bytes_s is not None]
    lines = [f"table {TABLE}", f"delete table {TABLE}", f"table {TABLE} {{"]
    for way in WAYS:
        lines += [f"limit {limit_name(peer, way)} {{ {_limit(peer)}; }}" for peer in limited]
        for version in _FAMILY:
            named = [(peer, each) for peer in limited for each in peer.networks if each.version == version]
            elements = ", ".join(_element(peer, way, each) for peer, each in named)
            filled = f" elements = {{ {elements} }};" if elements else ""
            lines.append(f"map {way}{version} {{ type ipv{version}_addr : limit; flags interval;{filled} }}")
    lines.append("chain clamp {")
    for version, headers in _HEADERS_BYTES.items():
        lines.append(f"meta nfproto ipv{version} tcp option maxseg size set {mtu - headers}")
    lines.append("}")
    lines += _chain("from_tenants", "prerouting", f'iif "{interface}"', "up")
    lines += _chain("to_tenants", "forward", f'oif "{interface}"', "down")
    return "\n".join([*lines, "}", ""])


def _chain(name: str, hook: str, match: str, way: str) -> Iterator[str]:
    # Behind one comparison of the interface's number, which takes much less than that of its name, and the clamps
    # behind the flags: each packet meets few expressions.
    yield f"chain {way} {{"
    yield "tcp flags & (syn | rst) == syn jump clamp"
    for version, family in _FAMILY.items():
        yield f"limit name {family} {WAYS[way]} map @{way}{version} drop"
    yield "}"
    yield f"chain {name} {{ type filter hook {hook} priority mangle; {match} jump {way}; }}"


def _limit(peer: TunnelPeer) -> str:
    return f"rate over {peer.rate_bytes_s} bytes/second burst {BURST_BYTES} bytes"


def _element(peer: TunnelPeer, way: str, network: Prefix) -> str:
    return f'{network} : "{limit_name(peer, way)}"'


def limit_name(peer: TunnelPeer, way: str) -> str:
    """Return the name of a tenant's limit in one direction. Pure."""
    return f"{way}_{peer.wireguard_key.hex()}"


def commit(text: str) -> None:
    """Carry out a text, completely or not at all. Raises KernelError with nft's complaint."""
    nft = find_command("nft")
    if nft is None:
        raise KernelError(f"nft isn't installed, and the tunnel needs it; {INSTALL}")
    try:
        done = subprocess.run(
            [nft, "-f", "-"], input=text, capture_output=True, text=True, timeout=_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MomentError(f"nft took longer than {_TIMEOUT_S:g} s; try again") from error
    if done.returncode:
        complaint = " ".join(done.stderr.split())[:300] or f"exit code {done.returncode}"
        raise KernelError(f"nft refused the tunnel's rules: {complaint}; ngp check says what is missing")


def stand() -> bool:
    """Say whether the table exists. The kernel is asked without nft, as that is done often. Raises OSError."""
    try:
        with Asker(netlink.NETFILTER) as kernel:
            kernel.ask(NFTABLES << 8 | _GET_TABLE, HEADER + TABLE_NAME)
    except OSError as error:
        if error.errno not in _NO_TABLE:
            raise
        return False
    return True


def clean_up() -> None:
    """Remove the table; safe to call twice. Raises KernelError, OSError."""
    if stand():
        commit(f"table {TABLE}\ndelete table {TABLE}\n")
