"""NAT: finds out from the operator's rules which networks' source addresses are translated on an interface.

The kernel can't be asked for this, so the rules are read as text, and nothing is changed. A rule may also test
something that this module doesn't understand (a mark, a set, a jump from another chain). Such a rule is reported as
translating under conditions.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from ngp.core.messages import Prefix

_TARGETS = ("MASQUERADE", "SNAT", "NETMAP")
_NFT_VERDICT = re.compile(r"\b(masquerade|snat)\b")
_NFT_OUT = re.compile(r"\boif(?:name)?\s+(!=\s+)?(\{[^}]*\}|\S+)")
_NFT_SOURCE = re.compile(r"\bip6?\s+saddr\s+(!=\s+)?(\{[^}]*\}|\S+)")
_NFT_PLAIN = re.compile(r"\s*(counter packets \d+ bytes \d+|comment \"[^\"]*\")\s*")
_NFT_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}


@dataclass(frozen=True, slots=True)
class Translation:
    """A rule that changes source addresses.

    Attributes:
        versions: the IP versions that the rule applies to.
        out: patterns of the interfaces that the rule applies to, or excludes if out_not; empty: all interfaces.
        source: the source networks that the rule applies to, or excludes if source_not; empty: all.
        is_certain: the rule tests nothing else of a packet.
        text: the rule as it was listed.
    """

    versions: tuple[int, ...]
    out: tuple[str, ...]
    out_not: bool
    source: tuple[Prefix, ...]
    source_not: bool
    is_certain: bool
    text: str

    def leads_out(self, interface: str) -> bool:
        """Say whether the rule applies to packets that leave by an interface."""
        return not self.out or any(fnmatch.fnmatchcase(interface, each) for each in self.out) != self.out_not

    def covers(self, network: Prefix) -> bool | None:
        """Say whether the rule applies to all of a network's addresses; None: to some of them."""
        if network.version not in self.versions:
            return False
        if not self.source:
            return True
        same = [each for each in self.source if each.version == network.version]
        whole = any(each.prefixlen <= network.prefixlen and network.network_address in each for each in same)
        part = whole or any(each.network_address in network for each in same)
        if self.source_not:
            return False if whole else None if part else True
        return True if whole else None if part else False


def of_network(rules: Sequence[Translation], network: Prefix, interface: str) -> str:
    """Say what happens to a network's addresses on an interface, by the first rule that applies; "" if none does.

    Pure.
    """
    perhaps = ""
    for rule in rules:
        covers = rule.covers(network) if rule.leads_out(interface) else False
        if covers and rule.is_certain:
            return f"translated: {rule.text}"
        if covers is not False and not perhaps:
            perhaps = f"translated in part or under conditions: {rule.text}"
    return perhaps


def parse_saved(lines: Iterable[str], version: int) -> list[Translation]:
    """Read `iptables-save` (4) or `ip6tables-save` (6). Pure."""
    return [rule for line in lines if line.startswith("-A ") for rule in _saved_rule(line.strip(), version)]


def _saved_rule(line: str, version: int) -> Iterator[Translation]:
    words = shlex.split(line)
    if not any(target in words for target in _TARGETS):
        return
    out: tuple[str, ...] = ()
    source: tuple[Prefix, ...] = ()
    out_not = source_not = negated = False
    certain = words[1] == "POSTROUTING"
    at = 2
    while at < len(words) and words[at] not in ("-j", "-g"):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        if word == "!":
            negated, at = True, at + 1
            continue
        if word == "-o":
            out, out_not = (_pattern(value),), negated
        elif word == "-s":
            source, source_not = (ip_network(value, strict=False),), negated
        elif (word, value) not in (("-m", "comment"),) and word != "--comment":
            certain = False
        negated, at = False, at + 2
    yield Translation((version,), out, out_not, source, source_not, certain, line)


def parse_ruleset(text: str) -> list[Translation]:
    """Read `nft list ruleset`, but not the rules of iptables-nft in it, which `parse_saved` reads. Pure."""
    found = []
    versions: tuple[int, ...] = ()
    is_base = False
    for line in map(str.strip, text.splitlines()):
        words = line.split()
        if line.startswith("table ") and len(words) > 2:
            versions = _NFT_FAMILIES.get(words[1], ())
        elif line.startswith("chain "):
            is_base = False
        elif line.startswith("type nat hook postrouting"):
            is_base = True
        elif versions and _NFT_VERDICT.search(line) and "xt target" not in line and not line.startswith("type "):
            found.append(_nft_rule(line, versions, is_base))
    return found


def _nft_rule(line: str, versions: tuple[int, ...], is_base: bool) -> Translation:
    before = line[: next(_NFT_VERDICT.finditer(line)).start()]
    out, source = _NFT_OUT.search(before), _NFT_SOURCE.search(before)
    networks: list[Prefix] = []
    certain = is_base
    for value in _values(source):
        try:
            networks.append(ip_network(value, strict=False))
        except ValueError:  # a range or a named set
            certain = False
    rest = _NFT_PLAIN.sub(" ", _NFT_SOURCE.sub(" ", _NFT_OUT.sub(" ", before, count=1), count=1))
    rest = re.sub(r"meta nfproto ipv[46]", "", rest)
    if "nfproto ipv4" in before:
        versions = (4,)
    elif "nfproto ipv6" in before:
        versions = (6,)
    return Translation(
        versions,
        tuple(map(_pattern, _values(out))),
        bool(out and out[1]),
        tuple(networks),
        bool(source and source[1]),
        certain and not rest.strip(),
        line,
    )


def _values(match: re.Match[str] | None) -> list[str]:
    return [value.strip().strip('"') for value in match[2].strip("{}").split(",")] if match else []


def _pattern(name: str) -> str:
    """Turn an interface's name in the form of iptables (`eth+`) or nft (`eth*`) into a pattern."""
    return name[:-1] + "*" if name.endswith("+") else name
