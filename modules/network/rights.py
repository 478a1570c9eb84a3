"""Rights: which capabilities this thread has in force, and what `ngp check` says if one is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ngp.core.values import Check

NET_ADMIN, _NET_RAW, SYS_ADMIN, _BPF = 12, 13, 21, 39  # capability(7), as bits in include/uapi/linux/capability.h
_NEEDED = {
    "CAP_NET_ADMIN": (NET_ADMIN,),
    "CAP_NET_RAW": (_NET_RAW,),
    "CAP_BPF or CAP_SYS_ADMIN": (_BPF, SYS_ADMIN),
}
_AS_ROOT = "sudo ngp check"


def check() -> Iterator[Check]:
    """Name the capabilities that are missing."""
    missing = [name for name, bits in _NEEDED.items() if not any(map(holds, bits))]
    found = f"missing: {', '.join(missing)}" if missing else "all that is needed"
    yield Check("rights", not missing, found, _AS_ROOT if missing else "")


def not_tried(name: str) -> Check:
    """Say that a check was left out because it needs root."""
    return Check(name, False, "not tried: needs root", _AS_ROOT)


def holds(capability: int) -> bool:
    """Say whether this thread has a capability in force (proc_pid_status(5))."""
    status = Path("/proc/thread-self/status").read_text()
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return bool(match and int(match[1], 16) >> capability & 1)
