"""Rewrites: whether rules of this host may change a packet's destination (DNAT, REDIRECT) before it is routed.

If they may, the meter remembers where each packet was sent; if not, the meter is spared that work. The question is
asked every few seconds, so it must be cheap: one message to nf_tables, and one call for each legacy table. It is no
harm if a rule is counted that changes no destination. So every rule counts that is in a chain of type nat at the
prerouting hook.

Source: linux/netfilter/nf_tables.h, linux/netfilter_ipv4/ip_tables.h
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress

from ngp.modules.netlink import Asker, attributes, text
from ngp.modules.network import xtables

_NETFILTER = 12
_GETCHAIN = 10 << 8 | 4  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
_NFGENMSG = struct.Struct("=BBH")
_HOOK, _USE, _TYPE = 4, 6, 7  # NFTA_CHAIN_
_HOOK_NUMBER = 1  # NFTA_HOOK_HOOKNUM
_PREROUTING = 0
_FAMILIES = {4: (socket.AF_INET, 1), 6: (socket.AF_INET6, 1)}  # 1: NFPROTO_INET
_GET_INFO = 64  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO
_INFO = struct.Struct("=32sI5I5III")  # struct ipt_getinfo


def may_happen(versions: Iterable[int]) -> bool:
    """Say whether this host has rules that may change destinations, for any of these IP versions.

    A table that can't be read (no nf_tables, no rights) counts as empty.
    """
    return any(_in_nftables(version) or _in_legacy(version) for version in versions)


def _in_nftables(version: int) -> bool:
    with suppress(OSError), Asker(_NETFILTER) as asker:
        for body in asker.dump(_GETCHAIN, _NFGENMSG.pack(0, 0, 0)):
            if body[0] in _FAMILIES[version] and _rewrites(body[_NFGENMSG.size :]):
                return True
    return False


def _rewrites(chain: bytes) -> bool:
    """Say whether a chain has type nat, is at prerouting, and has rules."""
    said = dict(attributes(chain))
    hook = dict(attributes(said.get(_HOOK, b"")))
    at_prerouting = hook.get(_HOOK_NUMBER) == _PREROUTING.to_bytes(4, "big")
    return at_prerouting and text(said.get(_TYPE, b"")) == "nat" and any(said.get(_USE, b""))


def _in_legacy(version: int) -> bool:
    if "nat" not in xtables.legacy_tables(version):
        return False
    family, level = (socket.AF_INET, socket.IPPROTO_IP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
    with suppress(OSError), socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as asking:
        said = _INFO.unpack(_get_info(asking, level))
        first_rule, policy = said[2 + _PREROUTING], said[7 + _PREROUTING]
        return bool(first_rule != policy)
    return False


def _get_info(asking: socket.socket, level: int) -> bytes:
    """Ask about the legacy table `nat`. The kernel reads the name in the buffer, and writes its answer over it."""
    buffer = ctypes.create_string_buffer(b"nat", _INFO.size)
    size = ctypes.c_uint32(_INFO.size)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(asking.fileno(), level, _GET_INFO, buffer, ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), "getsockopt")
    return buffer.raw
