"""Proofs of a tunnel: a command, and an echo."""

from __future__ import annotations

import asyncio
import time
from unittest import mock

from ngp.tenant import interface
from ngp.tenant.proof import CommandProof, EchoProof


def test_a_command_proves_by_its_exit_code() -> None:
    assert asyncio.run(CommandProof("true").why_not()) == ""
    assert asyncio.run(CommandProof("exit 3").why_not()) == "the probe 'exit 3' ended with 3"


def test_a_command_that_never_ends_is_ended_with_its_children() -> None:
    began = time.monotonic()
    with mock.patch("ngp.tenant.proof.PROBE_S", 0.3):
        assert "nothing within 0.3 s" in asyncio.run(CommandProof("cat /dev/zero | cat > /dev/null; true").why_not())
    assert time.monotonic() - began < 30


def test_without_the_interface_nothing_is_proven() -> None:
    why_not = asyncio.run(EchoProof("sw_none", "192.0.2.1:51820", [], "sudo wg-quick up x").why_not())
    assert "isn't up" in why_not and "sudo wg-quick up x" in why_not
    assert not interface.is_up("sw_none") and interface.is_up("lo")


def test_an_echo_that_is_answered_proves() -> None:
    assert asyncio.run(EchoProof("lo", "127.0.0.1:51820", [], "").why_not()) == ""
    assert asyncio.run(EchoProof("lo", "[::1]:51820", [], "").why_not()) == ""


def test_without_ping_it_says_so() -> None:
    with mock.patch.dict("os.environ", {"PATH": "/nonexistent"}):
        assert "ping" in asyncio.run(EchoProof("lo", "127.0.0.1:51820", [], "").why_not())
