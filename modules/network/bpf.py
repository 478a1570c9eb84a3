"""What the datapath needs of libbpf besides objects and tables: running programs, pins and their file system."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from ngp.errors import KernelError
from ngp.modules.bpf import Table, compiled, library, object_info, require

_libc = ctypes.CDLL(None, use_errno=True)


def program_id(descriptor: int) -> int:
    """Return the id of a loaded program."""
    return int(struct.unpack_from("=I", object_info(descriptor, 80), 4)[0])


def program_name(number: int) -> str:
    """Return the name of the loaded program with this id; "" if the program is gone."""
    with program(number) as descriptor:
        return object_info(descriptor, 80)[64:80].split(b"\0")[0].decode() if descriptor >= 0 else ""


def program_tables(number: int) -> dict[str, Table]:
    """Open the maps that a loaded program uses or is bound to, by name."""
    with program(number) as descriptor:
        if descriptor < 0:
            return {}
        count = struct.unpack_from("=I", object_info(descriptor, 80), 52)[0]
        numbers = (ctypes.c_uint32 * count)()
        # The first answer had the number of maps. The second fills the list whose address we pass.
        buffer = ctypes.create_string_buffer(80)
        struct.pack_into("=IQ", buffer, 52, count, ctypes.addressof(numbers))
        length = ctypes.c_uint32(80)
        require(library().bpf_obj_get_info_by_fd(descriptor, buffer, ctypes.byref(length)), "listing a program's maps")
    with contextlib.ExitStack() as undo:
        opened: dict[str, Table] = {}
        for each in numbers:
            table = Table(require(library().bpf_map_get_fd_by_id(each), "opening a map"))
            undo.callback(table.close)
            opened[table.name] = table
        undo.pop_all()
    return opened


@contextlib.contextmanager
def program(number: int) -> Iterator[int]:
    """Open a loaded program by its id, for the time of a `with`; the descriptor is negative if the program is gone."""
    descriptor = library().bpf_prog_get_fd_by_id(number)
    try:
        yield descriptor
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def open_pin(path: Path) -> Table | None:
    """Open a pinned map; None if nothing is there."""
    descriptor = library().bpf_obj_get(os.fsencode(path))
    return Table(descriptor) if descriptor >= 0 else None


def pin(descriptor: int, path: Path) -> None:
    """Pin a map or program at a path, and replace what was pinned there in one step. Raises KernelError."""
    fresh = path.with_name(f"{path.name}_new")  # a BPF file system takes no dots
    try:
        fresh.unlink(missing_ok=True)
        require(library().bpf_obj_pin(descriptor, os.fsencode(fresh)), f"pinning {path}")
        fresh.rename(path)
    except OSError as error:
        raise KernelError(f"pinning {path}: {error.strerror}; look what is there: ls -l {path.parent}") from error


def object_path() -> Path:
    """Return the meter's object file for this machine's byte order."""
    return compiled(Path(__file__).with_name("meter"))


def mount_bpffs(folder: Path) -> None:
    """Mount a BPF file system of our own. Raises KernelError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError(
            f"the folder {folder} can't be made: {error.strerror}; put STATE_DIR on a file system that is writable"
        ) from error
    if os.path.ismount(folder):
        return
    if _libc.mount(b"ngp", os.fsencode(folder), b"bpf", 0, b"mode=0700") < 0:
        require(-ctypes.get_errno(), f"mounting a BPF file system on {folder}")


def pins(folder: Path, begin: str) -> list[Path]:
    """List the pins in a folder whose names begin with `begin`; none if there is no such folder."""
    return [path for path in folder.glob(f"{begin}*") if path.is_file()]


def unmount_bpffs(folder: Path, ours: Sequence[str]) -> None:
    """Remove our pins, then the mount; does nothing if there is none.

    iproute2 pins into the first BPF file system that it finds, which may be ours. If pins of such tools are left, the
    mount stays.

    Args: ours: how the names of our pins begin. Raises: KernelError.
    """
    while os.path.ismount(folder):
        for path in itertools.chain.from_iterable(pins(folder, begin) for begin in ours):
            path.unlink(missing_ok=True)  # a copy of the mount in another namespace shows the same pins
        if any(path.is_file() and path.suffix != ".debug" for path in folder.rglob("*")):
            return
        if _libc.umount2(os.fsencode(folder), 2) < 0:  # MNT_DETACH
            require(-ctypes.get_errno(), f"unmounting {folder}")
    with contextlib.suppress(OSError):  # the folder is gone already, holds the operator's files, or can't be removed
        folder.rmdir()
