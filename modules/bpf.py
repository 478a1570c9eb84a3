"""libbpf through ctypes: objects, tables and ring buffers; refusals of the kernel become KernelError.

iproute2 links libbpf.so.1, so every Debian has it. That spares us a compiled extension and a loader of our own.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import mmap
import os
import platform
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ngp.core.values import Check
from ngp.errors import KernelError, MomentError

KERNEL_LEAST = (6, 1)
"""The oldest Linux on which the programs were tried; they may load on an older one too."""
_log = logging.getLogger("ngp.bpf")
_MESSAGES_MAX = 40
_BATCH = 65536
_NOEXIST = 1
_FULL = "; it is full: raise CONTRACTS_MAX in net.conf, then: ngp stop and ngp start"
_AS_ROOT = "; run as root"
_REMEDIES = {errno.EPERM: _AS_ROOT, errno.EACCES: _AS_ROOT, errno.E2BIG: _FULL, errno.ENOSPC: _FULL}
_PRINTER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_RING_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]


class _Said(threading.local):
    """The last messages of libbpf in this thread; when loading fails, the error quotes them."""

    def __init__(self) -> None:
        self.lines: list[str] = []


_said = _Said()


def _keep_message(_level: int, text: bytes, arguments: int) -> int:
    buffer = ctypes.create_string_buffer(4096)
    _libc.vsnprintf(buffer, len(buffer), text, arguments)
    _said.lines.append(buffer.value.decode(errors="replace").strip())
    del _said.lines[:-_MESSAGES_MAX]
    return 0


_listen = _PRINTER(_keep_message)


@cache
def library() -> Any:
    """Load libbpf once. Raises KernelError with the package's name if it is missing or older than 1.0."""
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise KernelError(f"libbpf.so.1 can't be loaded ({error}); install it with: apt install libbpf1") from error
    pointers = ("bpf_object__open_file", "bpf_object__find_map_by_name", "bpf_object__find_program_by_name")
    for name in (*pointers, "ring_buffer__new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.bpf_map_update_elem.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64]
    library.bpf_map_lookup_elem.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    library.bpf_map_delete_elem.argtypes = [ctypes.c_int, ctypes.c_char_p]
    library.bpf_map_get_next_key.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    library.ring_buffer__new.argtypes = [ctypes.c_int, _RING_CALLBACK, ctypes.c_void_p, ctypes.c_void_p]
    library.libbpf_set_print(_listen)
    return library


def require(result: int, what: str) -> int:
    """Return the result of a libbpf call if it isn't negative.

    Raises: KernelError with the action, the system's reason and, if it is known, the remedy; MomentError if the
        interface has just vanished.
    """
    if result >= 0:
        return result
    remedy = _REMEDIES.get(-result, "")
    kind = MomentError if -result == errno.ENODEV else KernelError
    raise kind(f"{what}: {os.strerror(-result)}{remedy}")


class Table:
    """A BPF map; takes over its descriptor. Keys and values are bytes, as in the kernel."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        try:
            info = object_info(descriptor, 88)
        except KernelError:
            self.close()
            raise
        self.kind, self.number, self.key_bytes, self.value_bytes, self.entries = struct.unpack_from("=5I", info)
        self.name = info[24:40].split(b"\0")[0].decode()
        self._value = ctypes.create_string_buffer(max(1, self.value_bytes) * (_processors() if self.kind == 6 else 1))
        self._key = ctypes.create_string_buffer(max(1, self.key_bytes))

    def set(self, key: bytes, value: bytes) -> None:
        """Add or replace an entry. Raises KernelError, also if the table is full."""
        require(library().bpf_map_update_elem(self.descriptor, key, value, 0), f"writing to the table {self.name}")

    def add(self, key: bytes, value: bytes) -> bool:
        """Add an entry, or return False if it exists already. Raises KernelError, also if the table is full."""
        result = library().bpf_map_update_elem(self.descriptor, key, value, _NOEXIST)
        if result == -errno.EEXIST:
            return False
        require(result, f"writing to the table {self.name}")
        return True

    def get(self, key: bytes) -> bytes | None:
        """Return an entry's value (in a per-processor table: the values of all processors, concatenated)."""
        if library().bpf_map_lookup_elem(self.descriptor, key, self._value) < 0:
            return None
        return self._value.raw

    def delete(self, key: bytes) -> bool:
        """Remove an entry; returns False if there was none."""
        return bool(library().bpf_map_delete_elem(self.descriptor, key) == 0)

    def all_keys(self) -> list[bytes]:
        """List all keys."""
        found: list[bytes] = []
        key: bytes | None = None
        while library().bpf_map_get_next_key(self.descriptor, key, self._key) == 0:
            key = self._key.raw[: self.key_bytes]
            found.append(key)
        return found

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all present entries of a hash table, many per system call. Raises KernelError."""
        for keys, values in self.batches():
            for at in range(len(keys) // self.key_bytes):
                yield (
                    keys[at * self.key_bytes : (at + 1) * self.key_bytes],
                    values[at * self.value_bytes : (at + 1) * self.value_bytes],
                )

    def keys_of(self, value: bytes) -> Iterator[bytes]:
        """Yield the keys of a hash table's entries that have this value. Raises KernelError."""
        for keys, values in self.batches():
            at = values.find(value)
            while at >= 0:
                index, within = divmod(at, self.value_bytes)
                if not within:
                    yield keys[index * self.key_bytes : (index + 1) * self.key_bytes]
                at = values.find(value, at + 1)

    def batches(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all present entries of a hash table: for each system call the joined keys and the joined values.

        A search in them (`bytes.find`) takes a hundredth of the time that a look at each entry takes.
        Raises: KernelError.
        """
        room = min(self.entries, _BATCH)
        keys = ctypes.create_string_buffer(room * self.key_bytes)
        values = ctypes.create_string_buffer(room * self.value_bytes)
        place, began, result = ctypes.c_uint32(), False, 0
        while result == 0:
            count, start = ctypes.c_uint32(room), ctypes.byref(place) if began else None
            result = library().bpf_map_lookup_batch(
                self.descriptor, start, ctypes.byref(place), keys, values, ctypes.byref(count), None
            )
            if result != -errno.ENOENT:  # ENOENT: these were the last entries
                require(result, f"reading the table {self.name}")
            began = True
            yield keys.raw[: count.value * self.key_bytes], values.raw[: count.value * self.value_bytes]

    def set_many(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Add or replace entries in few system calls. Raises KernelError; entries before the failed one are written."""
        for start in range(0, len(keys), _BATCH):
            part = len(keys[start : start + _BATCH])
            key_bytes, value_bytes = b"".join(keys[start : start + part]), b"".join(values[start : start + part])
            done = 0
            while done < part:
                done += self._set_batch(key_bytes[done * self.key_bytes :], value_bytes[done * self.value_bytes :])

    def _set_batch(self, keys: bytes, values: bytes) -> int:
        number = ctypes.c_uint32(len(keys) // self.key_bytes)
        result = library().bpf_map_update_batch(self.descriptor, keys, values, ctypes.byref(number), None)
        if result < 0 and not (result == -errno.ENOMEM and number.value):  # ENOMEM after some: set_many sends the rest
            require(result, f"writing to the table {self.name} ({self.entries} places)")
        return number.value

    def map_memory(self) -> mmap.mmap:
        """Map an array's values into this process."""
        size = -(-self.entries * self.value_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        return mmap.mmap(self.descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def close(self) -> None:
        """Close the descriptor; the map exists as long as a program or a pin refers to it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


@cache
def _processors() -> int:
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1


def object_info(descriptor: int, size: int) -> bytes:
    """Return the first bytes of the kernel's information about a BPF object. Raises KernelError."""
    buffer, length = ctypes.create_string_buffer(size), ctypes.c_uint32(size)
    require(library().bpf_obj_get_info_by_fd(descriptor, buffer, ctypes.byref(length)), "asking about a BPF object")
    return buffer.raw


class Programs:
    """An object file loaded into the kernel.

    Args:
        path: the object file.
        sizes: numbers of entries by map, where they differ from those in the file.
        running: maps that the kernel has already, to be used instead of new ones.
    Raises: KernelError with what the kernel refused and why; the full text of libbpf and the verifier is logged.
    """

    def __init__(self, path: Path, sizes: dict[str, int], running: dict[str, Table]) -> None:
        if not path.is_file():
            raise KernelError(
                f"the kernel's part {path} is missing; install ngp's wheel, or: python setup.py build_meter -i"
            )
        _said.lines.clear()
        self._path = path
        self._object = ctypes.c_void_p(library().bpf_object__open_file(os.fsencode(path), None))
        if not self._object:
            raise KernelError(f"the kernel's part {path} can't be read: {' | '.join(_said.lines)}")
        try:
            for name, entries in sizes.items():
                require(library().bpf_map__set_max_entries(self._map(name), entries), f"sizing the table {name}")
            for name, table in running.items():
                require(library().bpf_map__reuse_fd(self._map(name), table.descriptor), f"adopting the table {name}")
            result = library().bpf_object__load(self._object)
            if result == -errno.EPERM:
                require(result, f"loading {path.name}")
            if result < 0:
                _log.debug("loading %s: %s", path, "\n".join(_said.lines))
                raise KernelError(refusal(path, _said.lines))
        except KernelError:
            self.close()
            raise

    def table(self, name: str) -> Table:
        """Open a map of the object; the caller closes it."""
        return Table(os.dup(library().bpf_map__fd(self._map(name))))

    def program(self, name: str) -> int:
        """Return a program's descriptor, which the object still owns. Raises: KernelError if there is no such one."""
        found = library().bpf_object__find_program_by_name(self._object, name.encode())
        return int(library().bpf_program__fd(self._known(found, f"program {name}")))

    def close(self) -> None:
        """Close the object; pinned or attached parts stay in the kernel."""
        library().bpf_object__close(self._object)
        self._object = ctypes.c_void_p()

    def _map(self, name: str) -> ctypes.c_void_p:
        return self._known(library().bpf_object__find_map_by_name(self._object, name.encode()), f"table {name}")

    def _known(self, found: int | None, what: str) -> ctypes.c_void_p:
        if found:
            return ctypes.c_void_p(found)
        raise KernelError(
            f"the kernel's part {self._path} has no {what}: it is from another version of ngp; install ngp's wheel "
            "again, or: python setup.py build_meter -i"
        )


def refusal(path: Path, said: Sequence[str]) -> str:
    """Return one line: which part of an object the kernel refused, why, what to do. Pure, except for the kernel's name.

    Args: said: libbpf's messages. The verifier's reason is in the line before "processed N insns".
    """
    text = "\n".join(said)
    system = f"Linux {platform.release()}"
    if table := re.search(r"map '(\w+)': failed to create: ([^(\n]+)", text):
        return f"{system} refuses the table {table[1]}: {table[2]}; a smaller CONTRACTS_MAX needs less memory"
    program = re.search(r"prog '(\w+)': BPF program load failed: (.+)", text)
    reason = re.search(r"^(.+)\nprocessed \d+ insns", text, re.MULTILINE)
    what = f"the program {program[1]} of {path.name}" if program else f"the kernel's part {path.name}"
    why = reason[1] if reason else program[2] if program else said[-1] if said else "no reason given"
    least = ".".join(map(str, KERNEL_LEAST))
    remedy = f"ngp was tried on Linux {least} and later: apt full-upgrade, then reboot"
    return f"{system} refuses {what}: {why.strip()}; {remedy}"


def try_to_load(what: str, path: Path, sizes: dict[str, int]) -> Check:
    """Check that this kernel accepts an object, by loading and removing it. See `Programs` for the arguments."""
    try:
        Programs(path, sizes, {}).close()
    except KernelError as error:  # the error has its own remedy
        return Check(what, False, str(error))
    return Check(what, True, "the kernel accepts all of its programs")


class RingReader:
    """Reads a ring buffer in the event loop.

    Args:
        on_records: receives the records, in order.
        most: records in one turn of the loop; the rest waits for the next turn, so a flood doesn't delay other work.
    Raises: KernelError.
    """

    def __init__(
        self, table: Table, loop: asyncio.AbstractEventLoop, on_records: Callable[[list[bytes]], None], most: int
    ) -> None:
        self._loop, self._on_records, self._most = loop, on_records, most
        self._arrived: list[bytes] = []
        self._callback = _RING_CALLBACK(self._take)
        ring = library().ring_buffer__new(table.descriptor, self._callback, None, None)
        if not ring:
            raise KernelError("the kernel's ring buffer can't be opened; raise the limit of locked memory (ulimit -l)")
        self._ring = ctypes.c_void_p(ring)
        self._descriptor = int(library().ring_buffer__epoll_fd(self._ring))
        loop.add_reader(self._descriptor, self._read)

    def close(self) -> None:
        """Stop reading; the remaining records stay in the ring for the next reader."""
        self._loop.remove_reader(self._descriptor)
        library().ring_buffer__free(self._ring)

    def _take(self, _context: int, data: int, size: int) -> int:
        self._arrived.append(ctypes.string_at(data, size))
        return -errno.EAGAIN if len(self._arrived) >= self._most else 0  # libbpf stops after this record

    def _read(self) -> None:
        library().ring_buffer__consume(self._ring)
        arrived, self._arrived = self._arrived, []
        if arrived:
            self._on_records(arrived)


def compiled(source: Path) -> Path:
    """Return the compiled object of a BPF source (given without suffix) for this machine's byte order."""
    return source.with_name(f"{source.name}.bpf{'el' if sys.byteorder == 'little' else 'eb'}.o")
