"""Policy: routes of a rented address, so that the host's own default route stays as it is.

Packets from the rented networks look their route up in a table of their own, whose default route is the tunnel; all
other packets go where they went before. The lines are wg-quick's, which undoes them when it brings the tunnel down.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from ngp.core.messages import Prefix
from ngp.core.tenant.configuration import TunnelConfiguration

RULE_PRIORITY = 10326
_FIRST_TABLE, _TABLES = 1_032_600_000, 1_000_000


def table_of(public_key: str) -> int:
    """Return the number of a tunnel's routing table: always the same one."""
    return _FIRST_TABLE + int.from_bytes(sha256(public_key.encode()).digest()[:4]) % _TABLES


def lines(configuration: TunnelConfiguration, networks: Sequence[Prefix], public_key: str) -> list[str]:
    """Return lines of the section Interface for wg-quick.

    Args: networks: all that is rented; where a family has none, the tunnel's own address counts.
    """
    table, made = table_of(public_key), ["Table = off"]
    versions = {one.version for one in configuration.addresses}
    sources: list[Prefix] = [one for one in networks if one.version in versions]
    known = {one.version for one in sources}
    sources += [one.network for one in configuration.addresses if one.version not in known]
    for version in sorted({one.version for one in sources}):
        route = f"ip -{version} route replace default dev %i table {table}"
        made.append(f"PostUp = {route}")
    for source in sources:
        rule = f"from {source} lookup {table} priority {RULE_PRIORITY}"
        made.append(f"PostUp = ip -{source.version} rule add {rule}")
        made.append(f"PreDown = ip -{source.version} rule del {rule}")
    return made
