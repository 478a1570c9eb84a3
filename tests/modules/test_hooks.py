"""Hooks: an interface may vanish at any moment, also while our programs are taken off it."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from ngp.errors import KernelError
from ngp.modules.network import hooks


@pytest.mark.parametrize("use_tcx", [True, False])
def test_an_interface_that_vanishes_while_programs_are_detached_is_no_error(
    monkeypatch: pytest.MonkeyPatch, use_tcx: bool
) -> None:
    answer = -errno.ENODEV
    libbpf = SimpleNamespace(bpf_prog_detach2=lambda *_: answer, bpf_tc_detach=lambda *_: answer)
    monkeypatch.setattr(hooks, "library", lambda: libbpf)
    monkeypatch.setattr(hooks, "_query_tcx", lambda *_: [7] if use_tcx else None)
    monkeypatch.setattr(hooks, "_query_clsact", lambda *_: 0 if use_tcx else 7)
    monkeypatch.setattr(hooks.bpf, "program_name", lambda _: hooks.Direction.IN.program)
    monkeypatch.setattr(hooks.bpf, "program", lambda _: nullcontext(0))
    hooks.detach(5, hooks.Direction.IN)
    answer = -errno.EPERM
    with pytest.raises(KernelError, match="detaching ngp_tc_in from interface 5"):
        hooks.detach(5, hooks.Direction.IN)
