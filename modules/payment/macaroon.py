"""Macaroon: reads the rights in an LND macaroon, to warn of needless rights and to list missing ones.

A macaroon's identifier lists its rights in plain text. Its signature, which only LND can check, protects that list from
changes. So for every macaroon that LND accepts, the rights read here are true.

Source: github.com/rescrv/libmacaroons, doc/format.txt (version 2); gopkg.in/macaroon-bakery.v2, internal/macaroonpb.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from ngp.errors import ConfigError
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment.lnd_client import ALWAYS, TO_SPEND, Method

_VERSION = 2
_BAKERY_VERSION = 3
_END, _IDENTIFIER, _SIGNATURE = 0, 2, 6
_DAMAGED = "the macaroon is damaged: bake a new one, and copy it as a file"


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights in a macaroon.

    Attributes:
        operations: each is `entity:action`, or `uri:/path` for a single procedure.
        caveats: number of further conditions (a time, an address, an account of litd).
    """

    operations: frozenset[str]
    caveats: int

    def allows(self, method: Method[Any, Any]) -> bool:
        """Say whether the macaroon allows calling a procedure."""
        return f"uri:{method.path}" in self.operations or all(right in self.operations for right in method.rights)

    def missing(self, methods: Iterable[Method[Any, Any]]) -> list[str]:
        """Return which of these procedures the macaroon doesn't allow."""
        return [method.name for method in methods if not self.allows(method)]

    def beyond(self, methods: Iterable[Method[Any, Any]]) -> list[str]:
        """Return the rights that none of these procedures needs, except rights to read."""
        needed = {f"uri:{method.path}" for method in methods} | {right for method in methods for right in method.rights}
        return sorted(right for right in self.operations - needed if not right.endswith(":read"))


def needed(spends: bool) -> list[Method[Any, Any]]:
    """Return the procedures that a node calls. Args: spends: whether it pays; a refund is a payment too."""
    return [*ALWAYS, *(TO_SPEND if spends else ())]


def bake_line(methods: Iterable[Method[Any, Any]], save_to: str = "ngp.macaroon") -> str:
    """Return the command that makes a macaroon for these procedures only."""
    return f"lncli bakemacaroon --save_to {save_to} " + " ".join(f"uri:{method.path}" for method in methods)


def read(macaroon: bytes) -> Rights:
    """Read the rights in a serialized macaroon. Raises ConfigError, without the macaroon in its text."""
    if not macaroon or macaroon[0] != _VERSION:
        raise ConfigError("this is no macaroon of LND (version 2): give the file that `lncli bakemacaroon` wrote")
    fields = list(_fields(macaroon[1:]))
    identifier = next((value for kind, value in fields if kind == _IDENTIFIER), b"")
    if identifier[:1] != bytes([_BAKERY_VERSION]) or not any(kind == _SIGNATURE for kind, _ in fields):
        raise ConfigError(_DAMAGED)
    try:
        known = pb.MacaroonId.FromString(identifier[1:])
    except DecodeError:
        raise ConfigError(_DAMAGED) from None
    operations = {f"{op.entity}:{action}" for op in known.ops for action in op.actions}
    return Rights(frozenset(operations), sum(kind == _IDENTIFIER for kind, _ in fields) - 1)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each field; an end-of-section mark has no content."""
    at = 0
    while at < len(data):
        kind, at = _number(data, at)
        if kind == _END:
            continue
        length, at = _number(data, at)
        if at + length > len(data):
            raise ConfigError(_DAMAGED)
        yield kind, data[at : at + length]
        at += length


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Read a base-128 number (protobuf's varint); returns the number and the offset after it."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ConfigError(_DAMAGED)
