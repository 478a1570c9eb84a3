"""Policy: which of a machine's packets use a rented tunnel, as rules and routes. Pure.

Packets from the rented networks look their route up in a table of the tunnel's own; all other packets go where they
went before. Packets to the rented networks first look for a route in the main table that isn't a default route, since
parts of the networks may be routed on to machines behind this one, or let to others. The file for wg-quick does this
much.

With TENANT_ALL_TRAFFIC every packet uses that table, except for three kinds:

- what goes to the landlord (the tunnel's own packets, requests for status and invoices) or to a destination in
  TENANT_BESIDE uses the main table;
- packets for which the main table has a route that isn't a default route use that route: the networks on the link;
- rules of other programs with a smaller priority number come first.

The tunnel's table ends with a route that refuses everything, so nothing falls through to the main table's default
route while the tunnel's interface doesn't exist. `ngp.tenant.barrier` drops what rules and routes can't catch.

Our rules have a protocol number and priorities of their own. So they are found without a record, after a kill too, and
the operator's own are never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_network

from ngp.core.messages import Prefix
from ngp.core.tenant.configuration import TunnelConfiguration
from ngp.core.tenant.way import Way

BESIDE_PRIORITY, SOURCE_PRIORITY, LINK_PRIORITY, ALL_PRIORITY = PRIORITIES = 10061, 10062, 10063, 10064
"""Before the rules of CHOOSE_ROUTES (ROUTE_PRIORITY as shipped, and 257 numbers below): what is rented has no other way
than the tunnel, whichever neighbour carries the rest."""
FORMER_PRIORITIES = 10326, 10327, 10328, 10329
"""Of versions whose rules came after those of CHOOSE_ROUTES; an `up` or `down` of this version removes them."""
PROTOCOL = 110
"""Of our rules: above those that rt_protos names, below those of routing daemons."""
MAIN = 254
REFUSING = "unreachable default metric 4294967295"
"""The last route of the tunnel's table while the tunnel carries everything; the kernel prefers any other one."""
_FIRST_TABLE, _TABLES = 1_032_600_000, 1_000_000
_IP_PROTOCOLS = {"": 0, "tcp": 6, "udp": 17}
_ALL = {4: "0.0.0.0/0", 6: "::/0"}
"""By IP version: what a rule without a destination has; the kernel names none when it shows such a rule."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of ours.

    Attributes:
        source, destination: prefixes as text; "": all.
        ip_protocol: its number; 0: all.
        not_default: the table's default routes don't count.
    """

    version: int
    priority: int
    table: int
    source: str = ""
    destination: str = ""
    ip_protocol: int = 0
    port: int = 0
    not_default: bool = False

    @property
    def words(self) -> str:
        """The rule in iproute2's words, behind `ip rule add`."""
        parts = [f"from {self.source or 'all'}"]
        parts += [f"to {self.destination}"] if self.destination else []
        parts += [f"ipproto {self.ip_protocol}"] if self.ip_protocol else []
        parts += [f"dport {self.port}"] if self.port else []
        parts += [f"lookup {self.table}"]
        parts += ["suppress_prefixlength 0"] if self.not_default else []
        return " ".join([*parts, f"priority {self.priority} protocol {PROTOCOL}"])


def table_of(first_key: str) -> int:
    """Return the number of a tunnel's routing table: always the same one. Args: first_key: its first public key."""
    return _FIRST_TABLE + int.from_bytes(sha256(first_key.encode()).digest()[:4]) % _TABLES


def sources_of(configuration: TunnelConfiguration, networks: Sequence[Prefix]) -> list[Prefix]:
    """Return the networks whose packets use a tunnel.

    Args: networks: all that are rented. For an IP version without any, the tunnel's own address takes their place.
    """
    versions = {one.version for one in configuration.addresses}
    sources: list[Prefix] = [one for one in networks if one.version in versions]
    known = {one.version for one in sources}
    return sources + [one.network for one in configuration.addresses if one.version not in known]


def rules_of_sources(sources: Sequence[Prefix], table: int) -> list[Rule]:
    """Return the rules that lead packets from the rented networks into the tunnel."""
    led = [Rule(one.version, SOURCE_PRIORITY, table, source=str(one)) for one in sources]
    return [*map(rule_behind, led), *led]


def rule_behind(led: Rule) -> Rule:
    """Return the rule by which packets to a rented network use the main table's routes, if it has one for them.

    Args: led: the rule that leads packets from this network into the tunnel.
    """
    return Rule(led.version, BESIDE_PRIORITY, MAIN, destination=led.source, not_default=True)


def rules_of_all(table: int, beside: Sequence[Way]) -> list[Rule]:
    """Return the rules that lead all packets into a tunnel.

    Args: table: of the tunnel. beside: what goes beside it.
    """
    return [
        *(
            Rule(
                one.prefix.version, BESIDE_PRIORITY, MAIN, destination=str(one.prefix) if one.prefix.prefixlen else "",
                ip_protocol=_IP_PROTOCOLS[one.protocol], port=one.port,
            )
            for one in beside
        ),
        *(Rule(version, LINK_PRIORITY, MAIN, not_default=True) for version in (4, 6)),
        *(Rule(version, ALL_PRIORITY, table) for version in (4, 6)),
    ]  # fmt: skip


def ways_of(standing: Iterable[Rule]) -> list[Way]:
    """Return what rules of ours lead beside the tunnel that carries everything: what `rules_of_all` was told."""
    names = {number: name for name, number in _IP_PROTOCOLS.items()}
    leading = BESIDE_PRIORITY, FORMER_PRIORITIES[0]
    led = [one for one in standing if one.priority in leading and not one.not_default]
    return [Way(ip_network(one.destination or _ALL[one.version]), names[one.ip_protocol], one.port) for one in led]


def lines(configuration: TunnelConfiguration, networks: Sequence[Prefix], first_key: str) -> list[str]:
    """Return lines of the section Interface for wg-quick, which undoes them when it brings the tunnel down.

    A rule that is left from a tunnel that ended by itself doesn't stop them.
    """
    table, sources = table_of(first_key), sources_of(configuration, networks)
    made = ["Table = off"]
    for version in sorted({one.version for one in sources}):
        made.append(f"PostUp = ip -{version} route replace default dev %i table {table}")
    for rule in rules_of_sources(sources, table):
        removed = f"ip -{rule.version} rule del {rule.words} 2>/dev/null || :"
        made.append(f"PostUp = {removed}; ip -{rule.version} rule add {rule.words}")
        made.append(f"PreDown = {removed}")
    return made
