"""The `security` tables of this host: read as text, changed in one piece, through whichever iptables the host uses.

Two families of commands share the name iptables. Where `iptables` is the nf_tables variant, rules written to the legacy
tables would be in force but invisible to the operator's tools; where it is legacy, the other way round. So the gate
goes where the operator looks: `iptables-nft-restore --noflush` (one nf_tables transaction), or python-iptables (one
SO_SET_REPLACE of the legacy table). Either way no packet ever meets half a change, which is what makes it safe to
rewrite a gate under traffic: an attacker who floods during `ngp reload` finds neither an open nor a shut moment.

Never the kernel's own nft `queue` and `meta` here: the meter is a BPF program, and only xtables' `bpf` match calls one.
python-iptables has three habits that are contained in `LegacyTables`: it takes no xtables lock, it keeps a table's
socket for ever (wrong network namespace, stale rules), and naming a chain as a target makes it load every legacy table,
nat included, which switches connection tracking on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ngp.errors import KernelError

OWN_PREFIX = "NGP_"
FORWARD, INPUT = "FORWARD", "INPUT"
_HOOKS = (FORWARD, INPUT)  # those where a jump of ours may stand
# An empty chain of this name says that the nft table was not there before us, so that clean-up may remove the table.
TABLE_MARK = "NGP_TABLE"
NFT, LEGACY = "nft", "legacy"
_JUMP = re.compile(rf"(?:-i (?P<inward>\S+) )?-j (?P<target>{OWN_PREFIX}\S+)")
_COMMAND_TIMEOUT_S = 10
_LOCK_WAIT_S = 2.0
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a chain of ours; the fields that are "" are not matched.

    Attributes:
        target: RETURN, DROP, NFQUEUE or a chain of ours. goto: `-g`: its RETURN goes to our caller.
        program: path of a pinned socket filter; the rule matches when it returns other than 0.
        queue_number: for NFQUEUE.
    """

    target: str
    in_interface: str = ""
    out_interface: str = ""
    program: str = ""
    goto: bool = False
    queue_number: int | None = None

    def text(self) -> str:
        """Return the rule as iptables-save prints it, without `-A chain`."""
        words = [f"-i {self.in_interface}"] if self.in_interface else []
        words += [f"-o {self.out_interface}"] if self.out_interface else []
        words += [f"-m bpf --object-pinned {self.program}"] if self.program else []
        words.append(f"-{'g' if self.goto else 'j'} {self.target}")
        words += [f"--queue-num {self.queue_number}"] if self.queue_number is not None else []
        return " ".join(words)


Chains = Mapping[str, Sequence[Rule]]
Jumps = Mapping[str, Sequence[Rule]]  # by the hook where they stand


@dataclass(frozen=True, slots=True)
class Standing:
    """What one security table holds: `chains` are ours only, as saved text; `hooks` all of FORWARD and INPUT.

    `foreign` is True when anything that isn't ours is in the table besides policies of ACCEPT.
    """

    exists: bool
    chains: dict[str, tuple[str, ...]]
    hooks: dict[str, tuple[str, ...]]
    foreign: bool

    @property
    def jumps(self) -> dict[str, tuple[Rule, ...]]:
        """Our jumps out of each hook that has any, in order."""
        found = {hook: [_JUMP.fullmatch(rule) for rule in rules] for hook, rules in self.hooks.items()}
        jumps = {
            hook: tuple(Rule(match["target"], match["inward"] or "") for match in matches if match)
            for hook, matches in found.items()
        }
        return {hook: rules for hook, rules in jumps.items() if rules}


@dataclass(frozen=True, slots=True)
class Change:
    """One atomic change: jumps out and chains emptied, then chains written, then the jumps as their hook's first rules.

    Attributes:
        drop_jumps: one entry a rule to delete. delete: chains to remove. chains: made or rewritten whole.
        jumps: what shall stand at each hook's head.
    """

    drop_jumps: Jumps = field(default_factory=dict)
    delete: tuple[str, ...] = ()
    chains: Chains = field(default_factory=dict)
    jumps: Jumps = field(default_factory=dict)


class Tables(Protocol):
    """One family's security table under one variant of iptables."""

    variant: str
    family: int

    def read(self) -> Standing:
        """Read the table. Raises KernelError."""

    def commit(self, standing: Standing, change: Change) -> None:
        """Carry out a change of what was read, all of it or nothing. Raises KernelError."""


def find_command(name: str) -> str | None:
    """Return the path of a command, looking in the sbin folders too, which sudo and systemd may leave out."""
    return shutil.which(name, path=_SEARCH_PATH)


def run(words: Sequence[str], text: str = "") -> str:
    """Run a command and return what it prints. Raises KernelError with the command and its complaint."""
    try:
        done = subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(
            f"{words[0]} can't be run: {error}; check that iptables is installed and not blocked"
        ) from error
    if done.returncode:
        complaint = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise KernelError(f"`{' '.join(words)}` was refused: {complaint}; run `ngp check` to see what the kernel lacks")
    return done.stdout


def variant_of(command: str) -> str:
    """Say which variant an iptables command is, from `-V`: nft, or legacy (which before 1.8 said nothing)."""
    return NFT if "nf_tables" in run([command, "-V"]) else LEGACY


def restore_text(change: Change, create_mark: bool = False) -> str:
    """Render a change for `iptables-restore --noflush`. Pure."""
    lines = ["*security"]
    lines += [f":{name} - [0:0]" for name in [*([TABLE_MARK] if create_mark else []), *change.chains]]
    lines += [f"-D {hook} {jump.text()}" for hook, jumps in change.drop_jumps.items() for jump in jumps]
    lines += [f"-F {name}" for name in change.delete]
    lines += [f"-A {name} {rule.text()}" for name, rules in change.chains.items() for rule in rules]
    for hook, jumps in change.jumps.items():
        lines += [f"-I {hook} {place} {jump.text()}" for place, jump in enumerate(jumps, 1)]
    lines += [f"-X {name}" for name in change.delete]
    return "\n".join([*lines, "COMMIT", ""])


def parse_save(text: str) -> Standing:
    """Take the output of `iptables-save -t security` apart. Pure."""
    chains: dict[str, list[str]] = {}
    hooks: dict[str, list[str]] = {}
    foreign = False
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        name = word[1:] if word.startswith(":") else ""
        if name.startswith(OWN_PREFIX):
            chains[name] = []
        elif name:
            foreign |= not (name in ("INPUT", "FORWARD", "OUTPUT") and rest.startswith("ACCEPT"))
        elif word == "-A":
            chain, _, rule = rest.partition(" ")
            if chain.startswith(OWN_PREFIX):
                chains.setdefault(chain, []).append(rule)
                continue
            if chain in _HOOKS:
                hooks.setdefault(chain, []).append(rule)
            foreign |= not _JUMP.fullmatch(rule)
    own, hooked = ({name: tuple(rules) for name, rules in found.items()} for found in (chains, hooks))
    return Standing("*security" in text, own, hooked, foreign)


class NftTables:
    """The security table that `iptables-nft` shows: one nf_tables transaction a change."""

    variant = NFT

    def __init__(self, family: int, save: str, restore: str) -> None:
        self.family = family
        self._save = save
        self._restore = restore

    def read(self) -> Standing:
        """Read the table; one that doesn't exist isn't made by looking."""
        standing = parse_save(run([self._save, "-t", "security"]))
        if standing.chains or standing.foreign:
            return standing
        # With -t an absent table is printed like an empty one; without it only those that exist are.
        return replace(standing, exists="*security" in run([self._save]).splitlines())

    def commit(self, standing: Standing, change: Change) -> None:
        """Carry out the change, and take the whole table away again when we made it and nothing is left in it."""
        run([self._restore, "--noflush"], restore_text(change, create_mark=bool(change.chains) and not standing.exists))
        if not change.chains and TABLE_MARK in change.delete and not standing.foreign:
            nft = find_command("nft")
            if nft:  # else an empty table stays, which does nothing
                run([nft, "delete", "table", "ip" if self.family == 4 else "ip6", "security"])


class LegacyTables:
    """The legacy security table, through python-iptables: one SO_SET_REPLACE a change, under the xtables lock."""

    variant = LEGACY

    def __init__(self, family: int, save: str) -> None:
        self.family = family
        self._save = save

    def read(self) -> Standing:
        """Read the table; the kernel isn't made to load it by looking."""
        return parse_save(run([self._save, "-t", "security"]) if "security" in legacy_tables(self.family) else "")

    def commit(self, standing: Standing, change: Change) -> None:
        """Carry out the change in one replacement of the table."""
        with _xtables_lock(), _iptc_table(self.family) as (iptc, table, rule_class):
            try:
                self._carry_out(iptc, table, rule_class, change)
                table.commit()
            except (iptc.IPTCError, iptc.XTablesError, ValueError, AttributeError) as error:
                raise KernelError(
                    f"the legacy security table for IPv{self.family} can't be changed ({error}); "
                    "check that the pinned programs exist and that the kernel has xt_bpf and xt_NFQUEUE: ngp check"
                ) from error

    def _carry_out(self, iptc: Any, table: Any, rule_class: Any, change: Change) -> None:
        for hook, jumps in change.drop_jumps.items():
            for jump in jumps:
                iptc.Chain(table, hook).delete_rule(_iptc_rule(iptc, rule_class, jump))
        for name in [*change.delete, *change.chains]:
            if table.is_chain(name):
                table.flush_entries(name)
        for name in change.delete:
            table.delete_chain(name)
        for name in change.chains:
            if not table.is_chain(name):
                table.create_chain(name)
        for name, rules in change.chains.items():
            chain = iptc.Chain(table, name)
            for rule in rules:
                chain.append_rule(_iptc_rule(iptc, rule_class, rule))
        for hook, jumps in change.jumps.items():
            for place, jump in enumerate(jumps):
                iptc.Chain(table, hook).insert_rule(_iptc_rule(iptc, rule_class, jump), place)


def legacy_tables(family: int) -> list[str]:
    """Name the legacy tables that exist in this network namespace, without making the kernel load any."""
    try:
        # thread-self, since a thread may be in another network namespace than its process.
        return Path(f"/proc/thread-self/net/ip{'6' if family == 6 else ''}_tables_names").read_text().split()
    except OSError:
        return []


def _iptc_rule(iptc: Any, rule_class: Any, rule: Rule) -> Any:
    made = rule_class()
    # Its own setter compares one bit of each letter under IPv6: "m0" would match "m2" as well.
    entry = made.entry.ipv6 if hasattr(made.entry, "ipv6") else made.entry.ip
    if rule.in_interface:
        entry.iniface, entry.iniface_mask = _interface_match(rule.in_interface)
    if rule.out_interface:
        entry.outiface, entry.outiface_mask = _interface_match(rule.out_interface)
    if rule.program:
        made.create_match("bpf").object_pinned = rule.program
    target = made.create_target(rule.target, goto=rule.goto)
    if rule.queue_number is not None:
        target.queue_num = str(rule.queue_number)
    return made


def _interface_match(name: str) -> tuple[bytes, bytes]:
    """Return an interface's name and its mask as iptables writes them: with the closing zero, or up to the +."""
    if name.endswith("+"):
        return name.encode(), b"\xff" * (len(name) - 1)
    return name.encode(), b"\xff" * (len(name) + 1)


@contextlib.contextmanager
def _iptc_table(family: int) -> Iterator[tuple[Any, Any, Any]]:
    """Open the security table afresh, and close it: a kept one belongs to whatever namespace it was opened in."""
    try:
        import iptc  # not at the top: the import alone runs modprobe, which no host without legacy tables needs

        table_class, rule_base = (iptc.Table, iptc.Rule) if family == 4 else (iptc.Table6, iptc.Rule6)
        table_class._cache.pop("security", None)
        table = table_class("security", autocommit=False)
    except Exception as error:  # the library raises bare Exceptions where a shared object is missing
        raise KernelError(
            f"python-iptables can't open the legacy security table for IPv{family} ({error}); "
            "load it with: modprobe iptable_security ip6table_security, or use iptables-nft"
        ) from error
    rule_class = type("OwnTableRule", (rule_base,), {"tables": property(lambda _rule: [table])})
    try:
        yield iptc, table, rule_class
    finally:
        table_class._cache.pop("security", None)
        table.close()


@contextlib.contextmanager
def _xtables_lock() -> Iterator[None]:
    """Hold the lock that `iptables-legacy` takes: a change between our read and our write would be lost."""
    path = os.environ.get("XTABLES_LOCKFILE", "/run/xtables.lock")
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelError(f"the lock {path} can't be opened: {error}; check the folder and its rights") from error
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise KernelError(
                        f"another program has held {path} for {_LOCK_WAIT_S:.0f} s; find it with: fuser -v {path}"
                    ) from error
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which variant this host uses, and why, for `ngp check` and status."""

    variant: str
    why: str


def detect() -> Choice:
    """Say which iptables this host uses. Raises KernelError when there is none.

    `iptables -V` decides, since that is what the operator types. Legacy rules under an nft `iptables` are still in
    force; they are named, and don't change the choice, as both kinds of table see every packet.
    """
    command = find_command("iptables")
    if command:
        variant = variant_of(command)
        said = " ".join(run([command, "-V"]).split())
        legacy = legacy_tables(4) + legacy_tables(6)
        also = "; legacy tables are loaded as well" if legacy and variant == NFT else ""
        return Choice(variant, f"{command} is {said}{also}")
    for variant in (NFT, LEGACY):
        command = find_command(f"iptables-{variant}")
        if command:
            return Choice(variant, f"there is no plain iptables, but {command}")
    raise KernelError("no iptables command was found; install it with: apt install iptables")


def command_of(variant: str, family: int, action: str) -> str:
    """Return the path of a variant's `save` or `restore`. Raises KernelError when there is none."""
    stem = "iptables" if family == 4 else "ip6tables"
    command = find_command(f"{stem}-{variant}-{action}")
    plain = find_command(f"{stem}-{action}")
    if command is None and plain and variant_of(plain) == variant:
        command = plain
    if command is None:
        raise KernelError(f"{stem}-{variant}-{action} was not found; install it with: apt install iptables")
    return command


def tables(variant: str, family: int) -> Tables:
    """Return the security table of a family under a variant. Raises KernelError when its commands are missing."""
    save = command_of(variant, family, "save")
    return (
        NftTables(family, save, command_of(variant, family, "restore"))
        if variant == NFT
        else LegacyTables(family, save)
    )
