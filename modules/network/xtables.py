"""The `security` tables of this host: read as text, changed in one piece, through whichever iptables the host uses.

Two families of commands share the name iptables. Where `iptables` is the nf_tables variant, rules written to the legacy
tables would be in force but invisible to the operator's tools; where it is legacy, the other way round. So the gate
goes where the operator looks, by that variant's `iptables-restore --noflush`: one nf_tables transaction, or one
SO_SET_REPLACE of the legacy table under the xtables lock. Either way no packet ever meets half a change, which is what
makes it safe to rewrite a gate under traffic: an attacker who floods during `ngp reload` finds neither an open nor a
shut moment. A library in our own process wouldn't do for the legacy table: iptables' own extension for `bpf` keeps the
programs open that it looked at, as long as the process lives, and the names of its options change with its version.

Never the kernel's own nft `queue` and `meta` here: the meter is a BPF program, and only xtables' `bpf` match calls one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ngp.errors import KernelError, MomentError

OWN_PREFIX = "NGP_"
FORWARD, INPUT = "FORWARD", "INPUT"
_HOOKS = (FORWARD, INPUT)  # those where a jump of ours may stand
# An empty chain of this name says that the nft table was not there before us, so that clean-up may remove the table.
TABLE_MARK = "NGP_TABLE"
NFT, LEGACY = "nft", "legacy"
_JUMP = re.compile(rf"(?:-i (?P<inward>\S+) )?-j (?P<target>{OWN_PREFIX}\S+)")
_COMMAND_TIMEOUT_S = 10
_LOCK_WAIT_S, _LOCK = 2, "xtables lock"
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
    except subprocess.TimeoutExpired as error:
        raise MomentError(f"`{' '.join(words)}` took longer than {_COMMAND_TIMEOUT_S} s") from error
    except OSError as error:
        raise KernelError(f"{words[0]} can't be run: {error}; check that iptables is installed") from error
    if done.returncode:
        complaint = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        if _LOCK in complaint:
            lock = os.environ.get("XTABLES_LOCKFILE", "/run/xtables.lock")
            raise MomentError(f"`{' '.join(words)}`: {complaint}; find that program with: fuser -v {lock}")
        raise KernelError(f"`{' '.join(words)}` was refused: {complaint}; run `ngp check` to see what the kernel lacks")
    return done.stdout


def run_or_nothing(words: Sequence[str]) -> str:
    """Run a command that may fail where there is nothing to be told, and return what it prints then, too."""
    try:
        return run(words)
    except KernelError:
        return ""


def saved_rules(*families: int) -> list[str]:
    """Return all iptables rules of both variants; legacy tables are only read where they are loaded."""
    commands = []
    for family in families:
        command = "iptables" if family == 4 else "ip6tables"
        commands += [f"{command}-nft-save", *[f"{command}-legacy-save"] * bool(legacy_tables(family))]
    paths = [path for path in map(find_command, commands) if path]
    return [line for path in paths for line in run_or_nothing([path]).splitlines()]


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

    def __init__(self, family: int, save: str, restore: Sequence[str]) -> None:
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
        run(self._restore, restore_text(change, create_mark=bool(change.chains) and not standing.exists))
        if not change.chains and TABLE_MARK in change.delete and not standing.foreign:
            nft = find_command("nft")
            if nft:  # else an empty table stays, which does nothing
                run([nft, "delete", "table", "ip" if self.family == 4 else "ip6", "security"])


class LegacyTables:
    """The legacy security table: one SO_SET_REPLACE a change."""

    variant = LEGACY

    def __init__(self, family: int, save: str, restore: Sequence[str]) -> None:
        self.family = family
        self._save = save
        self._restore = restore

    def read(self) -> Standing:
        """Read the table; the kernel isn't made to load it by looking."""
        return parse_save(run([self._save, "-t", "security"]) if "security" in legacy_tables(self.family) else "")

    def commit(self, standing: Standing, change: Change) -> None:
        """Carry out the change in one replacement of the table; the kernel keeps a table that it has loaded."""
        run(self._restore, restore_text(change))


def legacy_tables(family: int) -> list[str]:
    """Name the legacy tables that exist in this network namespace, without making the kernel load any."""
    try:
        # thread-self, since a thread may be in another network namespace than its process.
        return Path(f"/proc/thread-self/net/ip{'6' if family == 6 else ''}_tables_names").read_text().split()
    except OSError:
        return []


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


def restore_command(variant: str, family: int) -> list[str]:
    """Return the words that change a table in one piece. Raises KernelError when the command is missing.

    The legacy variant waits a while for its lock, which an operator's own iptables may hold.
    """
    wait = ["-w", str(_LOCK_WAIT_S)] if variant == LEGACY else []
    return [command_of(variant, family, "restore"), "--noflush", *wait]


def tables(variant: str, family: int) -> Tables:
    """Return the security table of a family under a variant. Raises KernelError when its commands are missing."""
    kind = NftTables if variant == NFT else LegacyTables
    return kind(family, command_of(variant, family, "save"), restore_command(variant, family))
