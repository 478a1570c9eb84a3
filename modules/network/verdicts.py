"""Verdicts: what the operator's firewall rules do with a sample packet, read from iptables-save and `nft -j`. Pure.

A test of a rule may have three results: it matches, it doesn't, or this module can't tell (a mark, a set, a limit). So
a chain may have several possible verdicts, and only if no path accepts the packet, the chain drops it for certain.
Whatever isn't understood counts in the firewall's favour: no rule that lets traffic pass is taken for one that doesn't.
"""

from __future__ import annotations

import fnmatch
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

from ngp.core.messages import Address

ACCEPT, DROP, GO_ON, JUMP, GOTO, RETURN = "accept", "drop", "go on", "jump", "goto", "return"
_MOST_DEEP = 32
_NO_EFFECT = frozenset({"counter", "log", "mangle", "notrack"})
_VERSIONS_OF = {"ip": (4,), "ip6": (6,), "inet": (4, 6), "netdev": (4, 6), "bridge": ()}
_HOOKS = {"PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward"}

Truth = bool | None  # None: can't be told


@dataclass(frozen=True, slots=True)
class Packet:
    """A sample packet. A field that is "", 0 or None is unknown, so nobody can tell the result of a test of that field.

    Attributes:
        outward: the interface by which it leaves.
        state: as conntrack names it: new, established.
    """

    version: int
    inward: str
    outward: str = ""
    source: Address | None = None
    destination: Address | None = None
    protocol: str = ""
    port: int = 0
    state: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: tests, and what follows if all match; `to` is the chain of a jump."""

    tests: tuple[Callable[[Packet], Truth], ...]
    verdict: str
    to: str = ""


@dataclass(slots=True)
class Chain:
    """A chain. Attributes: table: as messages name it; hook: "" for a chain that others jump to; policy: a verdict."""

    table: str
    name: str
    versions: tuple[int, ...]
    hook: str = ""
    policy: str = ACCEPT
    devices: tuple[str, ...] = ()
    by_nft: bool = False
    rules: list[Rule] = field(default_factory=list)
    others: dict[str, Chain] = field(default_factory=dict)  # all chains of the table


def drops(chain: Chain, packet: Packet) -> bool:
    """Say whether a base chain drops a packet for certain."""
    if packet.version not in chain.versions or (chain.devices and packet.inward not in chain.devices):
        return False
    found = _walk(chain, packet, {}, 0)
    return ACCEPT not in found and not (RETURN in found and chain.policy != DROP)


def _walk(chain: Chain, packet: Packet, known: dict[str, frozenset[str]], depth: int) -> frozenset[str]:
    """Return the possible verdicts of a chain: ACCEPT, DROP, and RETURN if its end may be reached."""
    if depth > _MOST_DEEP:
        return frozenset({ACCEPT})
    found = set[str]()
    for rule in chain.rules:
        matches = _all(test(packet) for test in rule.tests)
        if matches is False or rule.verdict == GO_ON:
            continue
        results = frozenset({rule.verdict})
        if rule.verdict in (JUMP, GOTO):
            if rule.to not in known:
                there = chain.others.get(rule.to)
                known[rule.to] = _walk(there, packet, known, depth + 1) if there else frozenset({ACCEPT, RETURN})
            results = known[rule.to]
        returns_here = rule.verdict == JUMP and RETURN in results
        found |= results - {RETURN} if rule.verdict == JUMP else results
        if matches and not returns_here:
            return frozenset(found)
    return frozenset(found | {RETURN})


def _all(results: Iterable[Truth]) -> Truth:
    every = list(results)
    return False if False in every else None if None in every else True


# --- iptables-save ----------------------------------------------------------------------------------------------------


def parse_saved(lines: Iterable[str], version: int, command: str) -> list[Chain]:
    """Read `iptables-save`, but not the table `security`: there our own gate is. Returns the base chains.

    Args: command: iptables or ip6tables, for messages.
    """
    found, table, chains = list[Chain](), "", dict[str, Chain]()
    for line in map(str.strip, lines):
        if line.startswith("*"):
            table, chains = line[1:], {}
        elif line.startswith(":") and table != "security":
            name, policy = line[1:].split()[:2]
            hook = _HOOKS.get(name, "") if table != "nat" else ""
            verdict = DROP if policy == "DROP" else ACCEPT
            chain = Chain(f"{command} -t {table}", name, (version,), hook, verdict, others=chains)
            chains[name] = chain
            found += [chain] if hook else []
        elif line.startswith("-A ") and table != "security":
            words = shlex.split(line)
            if words[1] in chains:
                chains[words[1]].rules.append(_saved_rule(words[2:], chains))
    return found


def _saved_rule(words: Sequence[str], chains: dict[str, Chain]) -> Rule:
    tests, verdict, to = list[Callable[[Packet], Truth]](), GO_ON, ""
    for negated, option, values in _options(words):
        value = values[0] if values else ""
        if option in ("-j", "-g"):
            if value in ("DROP", "REJECT", "RETURN", "ACCEPT"):
                verdict = {"DROP": DROP, "REJECT": DROP, "RETURN": RETURN, "ACCEPT": ACCEPT}[value]
            elif value in ("QUEUE", "NFQUEUE"):
                verdict = ACCEPT
            elif value in chains:
                verdict, to = JUMP if option == "-j" else GOTO, value
            break  # the target's own options follow
        if option not in ("-m", "--comment"):
            tests.append(_saved_test(option, value, negated))
    return Rule(tuple(tests), verdict, to)


def _options(words: Sequence[str]) -> Iterator[tuple[bool, str, list[str]]]:
    at, negated = 0, False
    while at < len(words):
        if words[at] == "!":
            negated, at = True, at + 1
            continue
        end = at + 1
        while end < len(words) and not words[end].startswith("-") and words[end] != "!":
            end += 1
        if words[at] == "--comment":
            end = at + 2  # its text may begin with anything
        yield negated, words[at], list(words[at + 1 : end])
        at, negated = end, False


def _saved_test(option: str, value: str, negated: bool) -> Callable[[Packet], Truth]:
    def test(packet: Packet) -> Truth:
        result = _saved_match(option, value, packet)
        return result if result is None else result != negated

    return test


def _saved_match(option: str, value: str, packet: Packet) -> Truth:
    if option in ("-i", "-o"):
        name = packet.inward if option == "-i" else packet.outward
        return _is_named(name, value.replace("+", "*"))
    if option in ("-s", "-d"):
        address = packet.source if option == "-s" else packet.destination
        return _is_in(address, value)
    if option == "-p":
        return True if value == "all" else packet.protocol == value if packet.protocol else None
    if option in ("--ctstate", "--state"):
        return _any(_is_state(packet, each) for each in value.lower().split(","))
    if option in ("--dport", "--dports"):
        return _any(_is_port(packet.port, each, ":") for each in value.split(","))
    return None


# --- nft -j list ruleset ----------------------------------------------------------------------------------------------


def parse_ruleset(text: str) -> list[Chain]:
    """Read `nft -j list ruleset`. Returns the base chains of type filter; those of the tables `security` are left out.

    nft lists the rules of iptables-nft too, but not all of their tests. So such a rule has no certain result here.
    """
    entries = json.loads(text).get("nftables", []) if text.strip() else []
    tables: dict[tuple[str, str], dict[str, Chain]] = {}
    for said in (each["chain"] for each in entries if "chain" in each):
        of = (said["family"], said["table"])
        chains = tables.setdefault(of, {})
        is_base = said.get("type") == "filter" and said["table"] != "security"
        devices = said.get("dev", ())
        chains[said["name"]] = Chain(
            " ".join(of),
            said["name"],
            _VERSIONS_OF.get(said["family"], ()),
            said["hook"] if is_base else "",
            DROP if said.get("policy") == "drop" else ACCEPT,
            (devices,) if isinstance(devices, str) else tuple(devices),
            by_nft=True,
            others=chains,
        )
    for said in (each["rule"] for each in entries if "rule" in each):
        chain = tables.get((said["family"], said["table"]), {}).get(said["chain"])
        if chain is not None:
            chain.rules += _nft_rules(said.get("expr", ()))
    return [chain for chains in tables.values() for chain in chains.values() if chain.hook]


def _nft_rules(expressions: Iterable[dict[str, Any]]) -> Iterator[Rule]:
    """Return a rule, or one for each entry of a verdict map."""
    tests = list[Callable[[Packet], Truth]]()
    for expression in expressions:
        (kind, said), *_ = expression.items()
        if kind == "match":
            tests.append(_nft_test(said["left"], said["right"], said["op"]))
        elif kind == "vmap":
            for value, verdict in _entries(said.get("data")):
                yield Rule((*tests, _nft_test(said["key"], value, "==")), *_nft_verdict(verdict))
            if not _entries(said.get("data")):  # a named map
                yield Rule((*tests, lambda _packet: None), ACCEPT)
        elif kind == "reject":
            version = {"icmp": 4, "icmpv6": 6}.get((said or {}).get("type", ""))
            tests += [partial(_is_version, version)] if version else []
            yield Rule(tuple(tests), DROP)
        elif kind in (ACCEPT, DROP, RETURN, JUMP, GOTO, "queue"):
            yield Rule(tuple(tests), *_nft_verdict(expression))
        elif kind not in _NO_EFFECT:
            tests.append(lambda _packet: None)


def _entries(data: Any) -> list[Any]:
    return list(data.get("set", ())) if isinstance(data, dict) else []


def _nft_verdict(said: dict[str, Any]) -> tuple[str, str]:
    (kind, value), *_ = said.items()
    if kind == "queue":
        return ACCEPT, ""
    return (kind, value["target"]) if kind in (JUMP, GOTO) else (kind if kind != "continue" else GO_ON, "")


def _nft_test(left: Any, right: Any, operator: str) -> Callable[[Packet], Truth]:
    def test(packet: Packet) -> Truth:
        result = _nft_match(left, right, packet)
        if operator not in ("==", "in", "!="):
            return None
        return result if result is None or _is_other_kind(left, packet) else result != (operator == "!=")

    return test


def _is_other_kind(left: Any, packet: Packet) -> bool:
    """Say whether a rule tests a header that the packet doesn't have: then it never matches, whatever is compared."""
    of = left.get("payload", {}).get("protocol", "") if isinstance(left, dict) else ""
    if of in ("ip", "ip6"):
        return packet.version != (4 if of == "ip" else 6)
    return of in ("tcp", "udp", "icmp", "icmpv6", "sctp") and bool(packet.protocol) and packet.protocol != of


def _nft_match(left: Any, right: Any, packet: Packet) -> Truth:
    if not isinstance(left, dict):
        return None
    if _is_other_kind(left, packet):
        return False
    (kind, said), *_ = left.items()
    if not isinstance(said, dict):
        return None
    key = said.get("key") or said.get("field")
    if kind == "meta" and key in ("iifname", "iif", "oifname", "oif"):
        name = packet.inward if key.startswith("iif") else packet.outward
        return _compare(right, lambda value: _is_named(name, str(value)))
    if kind == "meta" and key == "nfproto":
        return _compare(right, lambda value: value == f"ipv{packet.version}")
    if key in ("l4proto", "protocol", "nexthdr") and (kind, key) != ("meta", "protocol"):
        return _compare(right, lambda value: value == packet.protocol if packet.protocol else None)
    if kind == "ct" and key == "state":
        return _compare(right, lambda value: _is_state(packet, str(value)))
    if kind == "ct" and key == "status":
        return _compare(right, lambda value: _is_state(packet, str(value)) if value in ("snat", "dnat") else None)
    if kind == "payload" and key in ("saddr", "daddr"):
        address = packet.source if key == "saddr" else packet.destination
        return _compare(right, lambda value: _is_in(address, value))
    if kind == "payload" and key == "dport":
        return _compare(right, lambda value: _is_port(packet.port, str(value), "-"))
    return None


def _compare(right: Any, is_it: Callable[[str | int], Truth]) -> Truth:
    """Compare with a value, or with each of a list or set. A prefix or range is handed on as text."""
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    if isinstance(right, list):
        return _any(_compare(each, is_it) for each in right)
    if isinstance(right, dict) and "prefix" in right:
        right = f"{right['prefix']['addr']}/{right['prefix']['len']}"
    if isinstance(right, dict) and "range" in right:
        right = "-".join(map(str, right["range"]))
    if not isinstance(right, str | int) or str(right).startswith("@"):
        return None
    return is_it(right)


# --- comparisons ------------------------------------------------------------------------------------------------------


def _is_version(version: int, packet: Packet) -> Truth:
    return packet.version == version


def _any(results: Iterable[Truth]) -> Truth:
    every = list(results)
    return True if True in every else None if None in every else False


def _is_named(name: str, pattern: str) -> Truth:
    return fnmatch.fnmatchcase(name, pattern) if name else None


def _is_in(address: Address | None, text: str | int) -> Truth:
    if address is None:
        return None
    try:
        first, dash, last = str(text).partition("-")
        if dash:
            return int(ip_address(first)) <= int(address) <= int(ip_address(last))
        network = ip_network(first, strict=False)
        return network.version == address.version and address in network
    except ValueError:
        return None


def _is_state(packet: Packet, state: str) -> Truth:
    """Compare the packet's state with a state in a rule.

    iptables also has the virtual states snat and dnat, for connections whose source or destination is translated. The
    destination of a sample's connection never is. Its source may be if the sample is an answer: that can't be told.
    """
    if not packet.state or (state == "snat" and packet.state != "new"):
        return None
    return packet.state == state


def _is_port(port: int, text: str, between: str) -> Truth:
    first, dash, last = text.partition(between)
    if not port or not first.isdigit() or (dash and not last.isdigit()):
        return None
    return int(first) <= port <= int(last or first)
