"""Hooks: where the meter's programs meet the packets of an interface.

If the kernel has tcx (Linux 6.6), our program is the first one there, so the operator's programs decide after ours. It
is attached without a BPF link. So it stays attached when the daemon, its pins, or the mount namespace of an `ip netns
exec` are gone. On older kernels our program is a classifier on clsact, also the first. It is replaced in one step: if
two of our programs were attached at the same time, they would charge twice. Our programs are recognised by name; all
others are left alone.

libbpf has no calls for tcx yet. But its general calls for attaching and listing programs fill the same structure that
newer kernels expect for tcx; the interface's index is passed to them in the place of a file descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from enum import Enum

from ngp.errors import KernelError
from ngp.modules import netlink
from ngp.modules.bpf import library, require
from ngp.modules.network import bpf

OUT_PROGRAM, IN_PROGRAM = "ngp_tc_out", "ngp_tc_in"
_BEFORE, _REPLACE = 1 << 3, 1 << 2
_PROGRAMS_MAX = 64
_HANDLE, _PRIORITY = 0x4E47, 1
_RTM_GETTFILTER, _RTM_GETQDISC, _TCA_KIND = 46, 38, 1
_TRAFFIC_CONTROL = struct.Struct("=BxxxiIII")  # struct tcmsg
_CLSACT_PARENT = {1: 0xFFFFFFF2, 2: 0xFFFFFFF3}


class Direction(Enum):
    """A side of an interface: (libbpf's attach point for clsact, the kernel's attach type for tcx, our program)."""

    IN = (1, 46, IN_PROGRAM)
    OUT = (2, 47, OUT_PROGRAM)

    @property
    def point(self) -> int:
        """The attach point of clsact."""
        return self.value[0]

    @property
    def tcx_type(self) -> int:
        """The attach type of tcx."""
        return self.value[1]

    @property
    def program(self) -> str:
        """The name of our program on this side."""
        return self.value[2]


class _Hook(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    ]


class _Options(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    ]


class _AttachOptions(ctypes.Structure):
    _fields_ = [("sz", ctypes.c_size_t), ("flags", ctypes.c_uint), ("replace_prog_fd", ctypes.c_int)]


def has_tcx() -> bool:
    """Say whether the kernel has tcx."""
    return _query_tcx(1, Direction.IN) is not None


def attached(ifindex: int, direction: Direction) -> list[int]:
    """List the ids of our programs on one side of an interface, however they are attached."""
    found = [each for each in _query_tcx(ifindex, direction) or () if bpf.program_name(each) == direction.program]
    number = _query_clsact(ifindex, direction)
    return [*found, number] if number else found


def attach(ifindex: int, direction: Direction, descriptor: int, use_tcx: bool) -> bool:
    """Attach a program, or replace the one of ours that is there.

    Returns: True if a clsact qdisc had to be made for it.
    Raises: KernelError.
    """
    if use_tcx:
        _attach_tcx(ifindex, direction, descriptor)
        _detach_clsact(ifindex, direction)
        return False
    hook = _Hook(ctypes.sizeof(_Hook), ifindex, direction.point, 0)
    made = library().bpf_tc_hook_create(ctypes.byref(hook))
    if made != -errno.EEXIST:
        require(made, f"adding a clsact qdisc to interface {ifindex}")
    elif not _has_clsact(ifindex):
        name = socket.if_indextoname(ifindex)
        raise KernelError(
            f"{name} has an ingress qdisc in the place of clsact, which would run our egress program at ingress; "
            f"replace it: tc qdisc del dev {name} ingress; tc qdisc add dev {name} clsact (and its filters anew)"
        )
    standing = _query_clsact(ifindex, direction)
    if standing != bpf.program_id(descriptor):  # to replace a program by itself would cause one alarm after another
        options = _Options(ctypes.sizeof(_Options), descriptor, 1 if standing else 0, 0, _HANDLE, _PRIORITY)
        require(
            library().bpf_tc_attach(ctypes.byref(hook), ctypes.byref(options)),
            f"attaching {direction.program} to interface {ifindex}",
        )
    _detach_tcx(ifindex, direction)
    return bool(made == 0)


def detach(ifindex: int, direction: Direction) -> None:
    """Detach our programs from one side of an interface; does nothing if there are none."""
    _detach_tcx(ifindex, direction)
    _detach_clsact(ifindex, direction)


def remove_clsact(ifindex: int) -> None:
    """Remove the clsact qdisc, unless it has anybody's filters."""
    if any(_filters(ifindex, direction) for direction in Direction):
        return
    hook = _Hook(ctypes.sizeof(_Hook), ifindex, Direction.IN.point | Direction.OUT.point, 0)
    result = library().bpf_tc_hook_destroy(ctypes.byref(hook))
    if result not in (-errno.ENOENT, -errno.EINVAL, -errno.ENODEV):
        require(result, f"removing the clsact qdisc of interface {ifindex}")


def _query_tcx(ifindex: int, direction: Direction) -> list[int] | None:
    numbers, flags = (ctypes.c_uint32 * _PROGRAMS_MAX)(), ctypes.c_uint32()
    count = ctypes.c_uint32(_PROGRAMS_MAX)
    result = library().bpf_prog_query(ifindex, direction.tcx_type, 0, ctypes.byref(flags), numbers, ctypes.byref(count))
    if result in (-errno.EINVAL, -errno.EBADF):  # a kernel without tcx takes the index for a file descriptor
        return None
    return list(numbers[: count.value]) if result == 0 else []


def _attach_tcx(ifindex: int, direction: Direction, descriptor: int) -> None:
    old = [each for each in _query_tcx(ifindex, direction) or () if bpf.program_name(each) == direction.program]
    what = f"attaching {direction.program} to interface {ifindex}"
    if not old:
        require(library().bpf_prog_attach(descriptor, ifindex, direction.tcx_type, _BEFORE), what)
        return
    with bpf.program(old[0]) as standing:
        options = _AttachOptions(ctypes.sizeof(_AttachOptions), _REPLACE, standing)
        result = library().bpf_prog_attach_opts(descriptor, ifindex, direction.tcx_type, ctypes.byref(options))
    if result != -errno.EEXIST:  # EEXIST: this very program is attached already
        require(result, what)


def _detach_tcx(ifindex: int, direction: Direction) -> None:
    for number in _query_tcx(ifindex, direction) or ():
        if bpf.program_name(number) == direction.program:
            with bpf.program(number) as descriptor:
                result = library().bpf_prog_detach2(descriptor, ifindex, direction.tcx_type)
            if result not in (-errno.ENOENT, -errno.ENODEV):  # ENODEV: the interface has just vanished
                require(result, f"detaching {direction.program} from interface {ifindex}")


def _query_clsact(ifindex: int, direction: Direction) -> int:
    """Return the id of our program on clsact, or 0."""
    hook = _Hook(ctypes.sizeof(_Hook), ifindex, direction.point, 0)
    options = _Options(ctypes.sizeof(_Options), 0, 0, 0, _HANDLE, _PRIORITY)
    if not _filters(ifindex, direction) or library().bpf_tc_query(ctypes.byref(hook), ctypes.byref(options)) < 0:
        return 0
    return options.prog_id if bpf.program_name(options.prog_id) == direction.program else 0


def _detach_clsact(ifindex: int, direction: Direction) -> None:
    if not _query_clsact(ifindex, direction):
        return
    hook = _Hook(ctypes.sizeof(_Hook), ifindex, direction.point, 0)
    options = _Options(ctypes.sizeof(_Options), 0, 0, 0, _HANDLE, _PRIORITY)
    result = library().bpf_tc_detach(ctypes.byref(hook), ctypes.byref(options))
    if result != -errno.ENODEV:
        require(result, f"detaching {direction.program} from interface {ifindex}")


def _filters(ifindex: int, direction: Direction) -> int:
    """Count the filters on one side of an interface's clsact qdisc; 0 if it has none."""
    return len(_list(_RTM_GETTFILTER, ifindex, _CLSACT_PARENT[direction.point]))


def _has_clsact(ifindex: int) -> bool:
    """Say whether an interface has a clsact qdisc, and not an old ingress one in the same place."""
    for body in _list(_RTM_GETQDISC, ifindex, 0):
        kind = dict(netlink.attributes(body[_TRAFFIC_CONTROL.size :])).get(_TCA_KIND, b"")
        if struct.unpack_from("=i", body, 4)[0] == ifindex and netlink.text(kind) == "clsact":
            return True
    return False


def _list(request: int, ifindex: int, parent: int) -> list[bytes]:
    """List what traffic control has on an interface (struct tcmsg and attributes); empty if there is nothing."""
    with netlink.Asker() as kernel:
        try:
            return list(kernel.dump(request, _TRAFFIC_CONTROL.pack(0, ifindex, 0, parent, 0)))
        except TimeoutError as error:
            raise KernelError(f"the kernel doesn't list its traffic control filters: {error}") from error
        except OSError:  # no such qdisc or interface
            return []
