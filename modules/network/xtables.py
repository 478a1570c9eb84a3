"""The `security` tables of this host: read as text, and changed in one piece by the iptables that the host uses.

There are two variants of the iptables commands: nft and legacy. If the operator's `iptables` is the nft variant, rules
in the legacy tables are in force, but the operator's tools don't show them; and the other way round. So we make the
gate with the variant that the operator uses, by its `iptables-restore --noflush`. In the nft variant that is one
nf_tables transaction; in the legacy variant, one SO_SET_REPLACE under the xtables lock. Either way no packet ever meets
half a change. So the gate can be rewritten under traffic: during `ngp reload` there is no moment at which the gate is
open, nor one at which it refuses paid traffic.

Other ways wouldn't work. A library in our own process: for the legacy table it would use iptables' extension for `bpf`,
which keeps programs open as long as the process lives, and whose options have other names in other versions. Rules of
nft itself: the meter is a BPF program, and only the `bpf` match of xtables calls one.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ngp.errors import KernelError, MomentError
from ngp.modules.commands import find_command

OWN_PREFIX = "NGP_"
FORWARD, INPUT = "FORWARD", "INPUT"
_HOOKS = (FORWARD, INPUT)  # where our jumps may be
# An empty chain of this name says that the nft table didn't exist before us, so clean-up may remove it.
TABLE_MARK = "NGP_TABLE"
COMMAND = {4: "iptables", 6: "ip6tables"}
NFT, LEGACY = "nft", "legacy"
_JUMP = re.compile(rf"(?:-i (?P<inward>\S+) )?(?:-o (?P<outward>\S+) )?-j (?P<target>{OWN_PREFIX}\S+)")
_COMMAND_TIMEOUT_S = 10
_LOCK_WAIT_S, _LOCK = 2, "xtables lock"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a chain of ours; fields that are "" aren't tested.

    Attributes:
        target: RETURN, DROP, NFQUEUE or a chain of ours.
        goto: use `-g`: a RETURN in the target goes to the chain that called ours.
        program: path of a pinned socket filter; the rule matches if it returns anything but 0.
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
Jumps = Mapping[str, Sequence[Rule]]  # by hook


@dataclass(frozen=True, slots=True)
class Standing:
    """What one security table has now.

    Attributes:
        exists: whether there is such a table.
        chains: our chains only; their rules as iptables-save prints them.
        hooks: all rules of FORWARD and INPUT, also those that aren't ours.
        foreign: whether the table has anything that isn't ours, except policies of ACCEPT.
    """

    exists: bool
    chains: dict[str, tuple[str, ...]]
    hooks: dict[str, tuple[str, ...]]
    foreign: bool

    @property
    def jumps(self) -> dict[str, tuple[Rule, ...]]:
        """Our jumps, for each hook that has any, in order."""
        found = {hook: [_JUMP.fullmatch(rule) for rule in rules] for hook, rules in self.hooks.items()}
        jumps = {
            hook: tuple(
                Rule(match["target"], match["inward"] or "", match["outward"] or "") for match in matches if match
            )
            for hook, matches in found.items()
        }
        return {hook: rules for hook, rules in jumps.items() if rules}


@dataclass(frozen=True, slots=True)
class Change:
    """One atomic change: remove jumps, empty chains, write chains, and put jumps at the beginning of their hooks.

    Attributes:
        drop_jumps: the rules to delete.
        delete: chains to remove.
        chains: chains to make or write anew.
        jumps: the jumps that must be a hook's first rules, by hook.
    """

    drop_jumps: Jumps = field(default_factory=dict)
    delete: tuple[str, ...] = ()
    chains: Chains = field(default_factory=dict)
    jumps: Jumps = field(default_factory=dict)


class Tables(Protocol):
    """The security table of one IP version (family) in one variant of iptables."""

    variant: str
    family: int

    def read(self) -> Standing:
        """Read the table. Raises KernelError."""

    def commit(self, standing: Standing, change: Change) -> None:
        """Carry out a change of a table that was just read, completely or not at all. Raises KernelError."""


def run(words: Sequence[str], text: str = "") -> str:
    """Run a command and return what it prints. Raises KernelError with the command and its error text."""
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
    """Run a command that may fail if there is nothing to list; return what it prints, or "" if it fails."""
    try:
        return run(words)
    except KernelError:
        return ""


def saved_rules(*families: int) -> list[str]:
    """Return all iptables rules of both variants. Legacy tables are read only if they are loaded."""
    commands = []
    for family in families:
        command = COMMAND[family]
        commands += [f"{command}-nft-save", *[f"{command}-legacy-save"] * bool(legacy_tables(family))]
    paths = [path for path in map(find_command, commands) if path]
    return [line for path in paths for line in run_or_nothing([path]).splitlines()]


def variant_of(version: str) -> str:
    """Return the variant of an iptables command from the output of its `-V`: legacy, unless that names nft."""
    return NFT if "nf_tables" in version else LEGACY


def restore_text(change: Change, create_mark: bool = False) -> str:
    """Write a change for `iptables-restore --noflush`. Pure."""
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
    """Parse the output of `iptables-save -t security`. Pure."""
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
    """The security table of `iptables-nft`; each change is one nf_tables transaction."""

    variant = NFT

    def __init__(self, family: int, save: str, restore: Sequence[str]) -> None:
        self.family = family
        self._save = save
        self._restore = restore

    def read(self) -> Standing:
        """Read the table; reading doesn't create it."""
        standing = parse_save(run([self._save, "-t", "security"]))
        if standing.chains or standing.foreign:
            return standing
        # With -t, the command prints a missing table like an empty one; without -t it prints only existing tables.
        return replace(standing, exists="*security" in run([self._save]).splitlines())

    def commit(self, standing: Standing, change: Change) -> None:
        """Carry out the change. If we made the table and nothing is left in it, remove it."""
        run(self._restore, restore_text(change, create_mark=bool(change.chains) and not standing.exists))
        if not change.chains and TABLE_MARK in change.delete and not standing.foreign:
            nft = find_command("nft")
            if nft:  # without nft an empty table stays; it does no harm
                run([nft, "delete", "table", "ip" if self.family == 4 else "ip6", "security"])


class LegacyTables:
    """The legacy security table; each change is one SO_SET_REPLACE."""

    variant = LEGACY

    def __init__(self, family: int, save: str, restore: Sequence[str]) -> None:
        self.family = family
        self._save = save
        self._restore = restore

    def read(self) -> Standing:
        """Read the table; reading doesn't make the kernel load it."""
        return parse_save(run([self._save, "-t", "security"]) if "security" in legacy_tables(self.family) else "")

    def commit(self, standing: Standing, change: Change) -> None:
        """Carry out the change, by one replacement of the table. The kernel keeps a table once it has loaded it."""
        run(self._restore, restore_text(change))


def legacy_tables(family: int) -> list[str]:
    """Return the names of the legacy tables in this network namespace, without making the kernel load any."""
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
    """Find out which iptables this host uses. Raises KernelError if there is none.

    The variant of `iptables` decides, since that is the command that the operator uses. If it is nft, rules in legacy
    tables may be in force as well. That is mentioned, but doesn't change the choice: packets go through both variants'
    tables.
    """
    command = find_command("iptables")
    if command:
        said = " ".join(run([command, "-V"]).split())
        variant = variant_of(said)
        legacy = legacy_tables(4) + legacy_tables(6)
        also = "; legacy tables are loaded as well" if legacy and variant == NFT else ""
        return Choice(variant, f"{command} is {said}{also}")
    for variant in (NFT, LEGACY):
        command = find_command(f"iptables-{variant}")
        if command:
            return Choice(variant, f"there is no plain iptables, but {command}")
    raise KernelError("no iptables command was found; install it with: apt install iptables")


def command_of(variant: str, family: int, action: str) -> str:
    """Return the path of a variant's `save` or `restore` command. Raises KernelError if there is none."""
    stem = COMMAND[family]
    command = find_command(f"{stem}-{variant}-{action}")
    plain = find_command(f"{stem}-{action}")
    if command is None and plain and variant_of(run([plain, "-V"])) == variant:
        command = plain
    if command is None:
        raise KernelError(f"{stem}-{variant}-{action} was not found; install it with: apt install iptables")
    return command


def restore_command(variant: str, family: int) -> list[str]:
    """Return the command that changes a table in one piece. Raises KernelError if it is missing.

    The legacy variant waits up to 2 s for its lock, which another iptables command may hold.
    """
    wait = ["-w", str(_LOCK_WAIT_S)] if variant == LEGACY else []
    return [command_of(variant, family, "restore"), "--noflush", *wait]


def tables(variant: str, family: int) -> Tables:
    """Return a family's security table under a variant. Raises KernelError if its commands are missing."""
    kind = NftTables if variant == NFT else LegacyTables
    return kind(family, command_of(variant, family, "save"), restore_command(variant, family))
