"""Alarm: reports at once that somebody changed the firewall table that has the gate, or the clsact of an interface.

While the gate is missing, uploads pass uncharged. So when the operator's firewall flushes its rules, the gate must not
stay away until the next regular check, which comes every few seconds. nf_tables announces every change of a rule set,
and traffic control every change of a filter. Legacy iptables announces nothing, so only the regular check finds changes
of its tables.

An alarm says only "check the gate". When a check puts the gate back, that change is announced as well, and causes one
more check, which finds everything in its place and changes nothing more. Changes of other tables are read and ignored:
a firewall that adds a thousand addresses to its sets causes no check. A script may change the gate's table all day, so
`TimeShare` limits the time that reading and checking may take. Notifications that were lost (ENOBUFS) may have been
about the gate, so they are an alarm too.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from ngp.modules.netlink import messages, open_socket

_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES, _RTNLGRP_TC = 7, 4  # linux/netfilter/nfnetlink.h, linux/rtnetlink.h
_NFNL_SUBSYS_NFTABLES = 10
_NFTA_TABLE = 1  # the table's name is attribute 1 of every message about a table, chain, rule or set
_TC_MESSAGES = frozenset({36, 37, 44, 45})  # RTM_NEWQDISC, RTM_DELQDISC, RTM_NEWTFILTER, RTM_DELTFILTER
_CLSACT_PARENTS = frozenset({0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3})  # the qdisc, its ingress and its egress
_NFGENMSG_BYTES = 4
_GATE_TABLE = b"security\0"
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_BUFFER_BYTES = 2 << 20  # of the socket: room for the notifications about ten thousand rules that are loaded at once
_RECEIVE_BYTES = 64 << 10
_DATAGRAMS_AT_ONCE = 32

_log = logging.getLogger("ngp")


def touches_gate(datagram: bytes) -> bool:
    """Say whether nf_tables announces a change of the table that has the gate, for IPv4 or IPv6. Pure."""
    for kind, body in messages(datagram):
        length, attribute = struct.unpack_from("=HH", body.ljust(_NFGENMSG_BYTES + 4, b"\0"), _NFGENMSG_BYTES)
        name = body[_NFGENMSG_BYTES + 4 : _NFGENMSG_BYTES + length]
        if kind >> 8 == _NFNL_SUBSYS_NFTABLES and attribute == _NFTA_TABLE and name == _GATE_TABLE:
            return True
    return False


def touches_hook(datagram: bytes) -> bool:
    """Say whether traffic control announces a change of a clsact qdisc or its filters, on any interface. Pure."""
    for kind, body in messages(datagram):
        if kind in _TC_MESSAGES and len(body) >= 16 and struct.unpack_from("=I", body, 12)[0] in _CLSACT_PARENTS:
            return True
    return False


class TimeShare:
    """Limits how much of the loop's time something may take: on average a tenth, with short bursts.

    Args:
        burst_s: seconds that may be spent in one go before anything must wait.
        share: the part of the loop's time that may be spent on average, below 1.
    """

    def __init__(self, burst_s: float = 0.25, share: float = 0.1) -> None:
        self._burst_s, self._share = burst_s, share
        self._debt_s = 0.0
        self._at_s = 0.0

    def spend(self, spent_s: float, now_s: float) -> None:
        """Count seconds that were just spent. Args: now_s: when they ended, by a clock that never goes back."""
        self._debt_s = max(0.0, self._debt_s - (now_s - self._at_s) * self._share) + spent_s
        self._at_s = now_s

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until more time may be spent."""
        debt_s = self._debt_s - (now_s - self._at_s) * self._share
        return max(0.0, (debt_s - self._burst_s) / self._share)


class Alarm:
    """Calls on_alarm in the loop when anybody changed the gate's table or a clsact hook.

    A kernel that lacks one of the two kinds of notification is no error: the regular check remains.

    Args:
        pause_s: seconds from a change to its alarm: a firewall that is loaded anew makes many changes in a row.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_alarm: Callable[[], None], pause_s: float = 0.01) -> None:
        self._loop, self._on_alarm, self._pause_s = loop, on_alarm, pause_s
        self._reading, self._looking = TimeShare(), TimeShare()
        self._timer: asyncio.TimerHandle | None = None
        self._open: dict[socket.socket, asyncio.TimerHandle | None] = {}
        self._listen(_NETLINK_NETFILTER, _NFNLGRP_NFTABLES, touches_gate)
        self._listen(socket.NETLINK_ROUTE, _RTNLGRP_TC, touches_hook)

    def close(self) -> None:
        """End the alarms; safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
        for connection, resuming in self._open.items():
            if resuming is not None:
                resuming.cancel()
            self._loop.remove_reader(connection.fileno())
            connection.close()
        self._open = {}

    def _listen(self, protocol: int, group: int, touches: Callable[[bytes], bool]) -> None:
        try:
            made = open_socket(protocol, 1 << (group - 1))
        except OSError as error:
            _log.info("netlink %d announces no changes (%s): the gate is only checked now and then", protocol, error)
            return
        with suppress(OSError):  # a smaller buffer overflows sooner, which only causes needless alarms
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        made.setblocking(False)
        self._open[made] = None
        self._resume(made, touches)

    def _resume(self, connection: socket.socket, touches: Callable[[bytes], bool]) -> None:
        self._open[connection] = None
        self._loop.add_reader(connection.fileno(), self._heard, connection, touches)

    def _heard(self, connection: socket.socket, touches: Callable[[bytes], bool]) -> None:
        began_s = self._loop.time()
        if _any_touches(connection, touches) and self._timer is None:
            self._timer = self._loop.call_later(max(self._pause_s, self._looking.wait_s(began_s)), self._ring)
        now_s = self._loop.time()
        self._reading.spend(now_s - began_s, now_s)
        wait_s = self._reading.wait_s(now_s)
        if wait_s:
            self._loop.remove_reader(connection.fileno())
            self._open[connection] = self._loop.call_later(wait_s, self._resume, connection, touches)

    def _ring(self) -> None:
        self._timer = None
        began_s = self._loop.time()
        try:
            self._on_alarm()
        finally:
            now_s = self._loop.time()
            self._looking.spend(now_s - began_s, now_s)


def _any_touches(connection: socket.socket, touches: Callable[[bytes], bool]) -> bool:
    """Read up to _DATAGRAMS_AT_ONCE notifications that have come; say whether one of them concerns us."""
    found = False
    for _ in range(_DATAGRAMS_AT_ONCE):
        try:
            datagram = connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found = True
        else:
            found = found or touches(datagram)
    return found
