"""Routing: brings a tunnel up and down with its rules, routes and barrier.

Each call brings the host from whatever stands to what is wanted, and adds before it removes. So a call that was killed
at any step, or a tunnel that ended by itself, is put right by the next call. Under TENANT_ALL_TRAFFIC the barrier comes
first and goes last: no step lets a packet out beside the tunnel, and none that fails. At a boot nobody reads the error,
and the network comes up all the same.

One tunnel at a time carries everything. Other tunnels that are brought up meanwhile carry only packets from their own
rented networks, and the barrier lets these pass.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

from ngp.core.host_port import split_host_port
from ngp.core.messages import Prefix
from ngp.core.tenant.configuration import TunnelConfiguration
from ngp.core.tenant.way import Way
from ngp.errors import ConfigError, KernelError, MomentError, NgpError
from ngp.tenant import barrier, files, interface, policy, renting
from ngp.tenant.books import BooksFile
from ngp.tenant.home import Home, Tunnel
from ngp.tenant.landlord import HostPlace
from ngp.tenant.policy import Rule

_COMMAND_S = 20.0
_MOST_TOLD = 300
_CARRIER = "AllTraffic"
"""A file with the first public key of the tunnel that carries everything: after a boot it says which one did."""
_IPV6 = Path("/proc/sys/net/ipv6")


def bring_up(home: Home, tunnel: Tunnel, all_traffic: bool, beside: Sequence[Way]) -> Tunnel | None:
    """Bring a tunnel up; one that is up gets what it lacks.

    Args:
        all_traffic: everything uses this tunnel, unless everything uses another one already.
        beside: what may leave beside it; landlords always do.
    Returns: the tunnel that everything uses; None: all packets but those of the rented networks go as before.
    Raises: NgpError. If a landlord's name isn't known, or the interface can't be brought up, the barrier stays.
    """
    path, table = home.conf_path(tunnel), policy.table_of(tunnel.root_key)
    interface.refuse_unless_possible("up", path, ["wg-quick", "ip", *(["nft"] if all_traffic else [])])
    with _alone(home.folder):
        carrier = _carrier(_standing()) or (table if all_traffic else None)
        if carrier == table and not all_traffic:
            carrier = None
        sources = _sources(home, tunnel)
        if carrier == table:
            _remember(home, tunnel)
        _bring(home, table, carrier, policy.rules_of_sources(sources, table), beside)
        interface.bring_up(path, uses_dns=carrier == table)
        for version in sorted({one.version for one in sources}):
            _ip(version, f"route replace default dev {tunnel.interface} table {table}")
    return next((one for one in home.tunnels() if policy.table_of(one.root_key) == carrier), None)


def close(folder: Path) -> bool:
    """Let nothing leave beside a tunnel that carried everything when it was last brought up.

    This is for files that can't be used, net.conf or the tenant's own, perhaps at a boot: a mistake there must not open
    what was closed. What stands already stays as it is.

    Args: folder: of the tenant's files. Returns: whether nothing leaves beside a tunnel now. Raises: NgpError.
    """
    key = _remembered(folder)
    if os.geteuid() != 0 or not key:
        return False
    with _alone(folder):
        if _has_barrier():
            return True
        known = policy.ways_of(_standing())
        _nft(barrier.table([], [], known))
        with suppress(NgpError):  # as much as can be read is let out beside the tunnel
            home = Home(folder)
            table = policy.table_of(key)
            for tunnel in (one for one in home.tunnels() if one.root_key == key):  # none if its entry is gone
                _bring(home, table, table, policy.rules_of_sources(_sources(home, tunnel), table), known)
    return True


def bring_down(home: Home, tunnel: Tunnel, beside: Callable[[], Sequence[Way]]) -> None:
    """Bring a tunnel down, and undo all that was set for it, whatever of it stands.

    Args: beside: returns what may leave beside the tunnel; called only if everything goes on using another tunnel.
    Raises: NgpError.
    """
    table = policy.table_of(tunnel.root_key)
    if os.geteuid() != 0 and not interface.is_up(tunnel.interface) and not _has_rules(table):
        return
    interface.refuse_without_root("down", home.conf_path(tunnel))
    with _alone(home.folder):
        interface.bring_down(home.conf_path(tunnel))
        carrier = _carrier(_standing())
        other = carrier if carrier != table else None
        _bring(home, table, other, [], beside() if other is not None else ())
        for version in _versions():
            _run(["ip", f"-{version}", "route", "flush", "table", str(table)], needed=False)


def lacks(home: Home) -> str:
    """Return what is wrong with the barrier of the tunnel that everything uses; "" if nothing is, or if we aren't root.

    A firewall that is loaded anew removes the barrier (`nft flush ruleset`), and only root can look.
    """
    if os.geteuid() != 0:
        return ""
    try:
        carrier = _carrier(_standing())
    except KernelError:  # a machine without iproute2 can't have brought a tunnel up
        return ""
    if carrier is None or _has_barrier():
        return ""
    name = next((one.shown_name for one in home.tunnels() if policy.table_of(one.root_key) == carrier), "RENTAL")
    return (
        f"the nftables table {barrier.TABLE} is gone (`nft flush ruleset` removes it), so packets may leave beside the "
        f"tunnel: sudo ngp rent up {name} sets it again"
    )


def _alone(folder: Path) -> AbstractContextManager[None]:
    return files.only_one(folder / "routing.lock", "another `ngp rent up` or `down`", "try again in a moment")


def _bring(home: Home, table: int, carrier: int | None, own: Sequence[Rule], beside: Sequence[Way]) -> None:
    """Make barrier and rules as wanted: those of one tunnel, and those of the tunnel that carries everything.

    Args: table, own: the tunnel's table and rules. carrier: the table that everything uses.
    """
    wanted = list(own)
    standing, versions = _standing(), _versions()
    if carrier is not None:
        ways = _set_barrier(home, beside, policy.ways_of(standing))
        for version in versions:
            _ip(version, f"route replace {policy.REFUSING} table {carrier}")
        wanted += policy.rules_of_all(carrier, ways)
    others = [rule for rule in standing if rule.source and rule.table != table]
    wanted += map(policy.rule_behind, others)
    for rule in dict.fromkeys(wanted):
        if rule not in standing and rule.version in versions:
            _ip(rule.version, f"rule add {rule.words}")
    for rule in standing:
        if rule not in wanted and rule.table in (table, policy.MAIN):
            _ip(rule.version, f"rule del {rule.words}")
    if carrier is None:
        for version in versions:
            _run(["ip", f"-{version}", *f"route del {policy.REFUSING} table {table}".split()], needed=False)
        (home.folder / _CARRIER).unlink(missing_ok=True)
        _remove_barrier()


def _set_barrier(home: Home, beside: Sequence[Way], known: Sequence[Way]) -> list[Way]:
    """Set the barrier, or bring it up to date. Returns what may leave beside the tunnels.

    Looking up a landlord's name takes time, and may fail. Until then the barrier has the way to that landlord only if
    it is known, so that a tunnel that is up goes on. A name server that the user has just opened can be asked.

    Args: known: what our rules lead beside the tunnel already.
    """
    tunnels = [one for one in home.tunnels() if home.conf_path(one).exists()]
    interfaces = [one.interface for one in tunnels]
    networks = list(dict.fromkeys(network for one in tunnels for network in _networks(home, one)))
    ends = [end for one in tunnels for end in _landlord_ends(home, one)]
    named = [end for end in ends if not _is_address(end.host)]
    ways = [*(_way(end.host, end) for end in ends if end not in named), *beside]
    if named:
        _nft(barrier.table(interfaces, networks, [*ways, *known]))
    asks_names = any(one.takes_names for one in beside)
    ways += [_way(address, end) for end in named for address in _addresses_of(end, asks_names)]
    _nft(barrier.table(interfaces, networks, ways))
    return ways


class _End(NamedTuple):
    """Where a landlord's tunnel ends, or where it is asked."""

    host: str
    protocol: str
    port: int


def _landlord_ends(home: Home, tunnel: Tunnel) -> Iterator[_End]:
    """Yield what a tunnel and its payments need beside it: the landlord's end of it, and the landlord itself."""
    for endpoint in interface.endpoints_in(home.conf_path(tunnel)):
        host, port = split_host_port(endpoint)
        yield _End(host, "udp", int(port))
    place = home.landlord(tunnel)
    if isinstance(place, HostPlace):  # a neighbour is asked by ngp's messages
        yield _End(place.host, "tcp", place.port)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _way(address: str, end: _End) -> Way:
    return Way(ip_network(ip_address(address)), end.protocol, end.port)


def _addresses_of(end: _End, asks_names: bool) -> list[str]:
    """Look a landlord's name up. Args: asks_names: name servers are asked beside the tunnel."""
    if not asks_names:  # a name server may answer now, but not when the tunnel must come up again
        raise ConfigError(
            f"nobody can be asked for the landlord's name {end.host} while everything uses the tunnel: trust the "
            f"landlord by its address, or write your name server into TENANT_BESIDE (for example 192.168.7.1 udp 53)"
        )
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(end.host, end.port, type=socket.SOCK_STREAM)}
    except OSError as error:
        why = error.strerror
        raise MomentError(f"the landlord's name {end.host} can't be resolved ({why}): try again") from error
    return sorted(found)


def _remember(home: Home, tunnel: Tunnel) -> None:
    """Note that a tunnel carries everything; a full disk is no reason not to go on."""
    if _remembered(home.folder) != tunnel.root_key:
        with suppress(NgpError):
            files.replace(home.folder / _CARRIER, tunnel.root_key.encode())


def _remembered(folder: Path) -> str:
    path = folder / _CARRIER
    return path.read_text(errors="replace") if path.exists() else ""


def _sources(home: Home, tunnel: Tunnel) -> list[Prefix]:
    addresses = tuple(interface.addresses_in(home.conf_path(tunnel)))
    return policy.sources_of(TunnelConfiguration(addresses, (), None, ()), _networks(home, tunnel))


def _networks(home: Home, tunnel: Tunnel) -> list[Prefix]:
    """Return what is rented by our books, which took the landlord's word: it may name our surroundings at any time."""
    host = home.landlord(tunnel).host
    networks = BooksFile(home.state_path(tunnel)).read().account.networks
    return [one for one in networks if renting.may_be_rented(host, one)]


# --- what stands ------------------------------------------------------------------------------------------------------


def _carrier(standing: Iterable[Rule]) -> int | None:
    carrying = policy.ALL_PRIORITY, policy.FORMER_PRIORITIES[-1]
    return next((rule.table for rule in standing if rule.priority in carrying), None)


def _has_rules(table: int) -> bool:
    return any(rule.table == table for rule in _standing())


def _standing() -> list[Rule]:
    """Return our rules. Raises KernelError."""
    found = []
    for version in _versions():
        rows = json.loads(_run(["ip", "-N", "-j", f"-{version}", "rule"]))
        ours = [row for row in rows if row.get("protocol") == str(policy.PROTOCOL)]
        known = {*policy.PRIORITIES, *policy.FORMER_PRIORITIES}
        found += [_rule(version, row) for row in ours if row["priority"] in known]
    return found


def _versions() -> list[int]:
    """Return the IP versions that the kernel knows: IPv6 may be switched off."""
    return [version for version in (4, 6) if version == 4 or _IPV6.exists()]


def _rule(version: int, row: dict[str, Any]) -> Rule:
    def prefix(name: str) -> str:
        if row.get(name, "all") == "all":
            return ""
        length = f"/{row[f'{name}len']}" if f"{name}len" in row else ""  # the length of one address isn't named
        return str(ip_network(row[name] + length))

    return Rule(
        version=version,
        priority=row["priority"],
        table=int(row["table"]),
        source=prefix("src"),
        destination=prefix("dst"),
        ip_protocol=int(str(row.get("ipproto", "0")).removeprefix("ipproto-")),
        port=int(row.get("dport", 0)),
        not_default="suppress_prefixlen" in row,
    )


# --- commands ---------------------------------------------------------------------------------------------------------


def _ip(version: int, words: str) -> None:
    _run(["ip", f"-{version}", *words.split()])


def _nft(text: str) -> None:
    _run(["nft", "-f", "-"], text)


def _has_barrier() -> bool:
    return bool(_run(["nft", "list", "table", *barrier.TABLE.split()], needed=False))


def _remove_barrier() -> None:
    if _has_barrier():
        _run(["nft", "delete", "table", *barrier.TABLE.split()])


def _run(words: Sequence[str], text_in: str = "", needed: bool = True) -> str:
    """Run a command. Returns its output; "" if it failed and isn't needed. Raises KernelError."""
    try:
        done = subprocess.run(words, input=text_in, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    except FileNotFoundError:
        if not needed:
            return ""
        raise KernelError(f"{words[0]} isn't installed, and a tunnel needs it: apt install iproute2 nftables") from None
    except subprocess.TimeoutExpired:
        raise KernelError(f"{words[0]} doesn't end within {_COMMAND_S:g} s: try again") from None
    if done.returncode and needed:
        said = " ".join(done.stderr.split())[:_MOST_TOLD]
        raise KernelError(f"{' '.join(words)}: {said}; IPv4 and IPv6 policy routing and nf_tables are needed")
    return "" if done.returncode else done.stdout
