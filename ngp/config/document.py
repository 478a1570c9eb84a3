"""Document: turns net.conf's bytes into text, lists and mappings with line numbers, or into a ConfigError.

Only YAML's structure is used, never its types. A value stays the text that the operator wrote until the key's own
parser reads it: so `0123` can't become 83, nor `10:30` 630, and nothing in the file can construct an object. Anchors,
aliases and tags are refused (a hundred bytes of aliases can mean gigabytes). Nesting and size are bounded. The file is
opened without waiting, so that a FIFO in its place can't hang the daemon.
"""

from __future__ import annotations

import os
import re
import stat
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from ngp.errors import ConfigError

MOST_FILE_BYTES = 256 * 1024
_MOST_DEPTH = 5
NOT_SHOWN = "(value not shown)"
_SHOWN_CHARACTERS = 60
# An lndconnect URI has a macaroon, which gives access to the node's money, and messages end in logs.
# The URL of a database may have a password.
_SECRET_VALUE = re.compile("lndconnect|macaroon=|postgres(ql)?:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A value or a key as it was written. `kind` is its YAML type: str, bool, int, float, null, ..."""

    text: str
    line: int
    kind: str = "str"


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Entries:
    """A mapping; a key that was written twice is in it twice."""

    pairs: tuple[tuple[Scalar, Node], ...]
    line: int


Node = Scalar | Items | Entries


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake in the file: its line (0 if it has none), its key, and what would be right."""

    line: int
    key: str
    value: str
    message: str

    def text(self, file: str) -> str:
        """Return the finding as one line that begins with file and line number."""
        place = f"{file}:{self.line}" if self.line else file
        value = NOT_SHOWN if _SECRET_VALUE.search(self.value) else self.value
        return ": ".join(part for part in (place, self.key, f"{value} {self.message}".strip()) if part)


class Refused(ConfigError):
    """Values that can't be used; has the findings, so that all problems of a file are reported together.

    Attributes:
        readable: the part of the value that could be read, in which checks may find more problems; None if it has none.
    """

    def __init__(self, *findings: Finding, readable: object = None) -> None:
        super().__init__("; ".join(finding.text("net.conf") for finding in findings))
        self.findings = findings
        self.readable = readable


def refuse(node: Node, message: str, key: str = "") -> Refused:
    """Return the exception that says what is wrong with a value."""
    return Refused(Finding(node.line, key, show(node), message))


def refuse_unseen(node: Node, message: str) -> Refused:
    """Return the exception that says what is wrong with a secret, without the secret."""
    return Refused(Finding(node.line, "", NOT_SHOWN, message))


def show(node: Node) -> str:
    """Return a value for a message: escaped and shortened, since the file may have any content."""
    if isinstance(node, Items):
        return "[]" if not node.items else "the list"
    if isinstance(node, Entries):
        return "{}" if not node.pairs else "the entry"
    return show_text(node.text) if node.text else ""


def show_text(text: str) -> str:
    """Quote, escape and shorten a text for a message."""
    shown = ascii(text[:_SHOWN_CHARACTERS])
    return shown if len(text) <= _SHOWN_CHARACTERS else f"{shown}..."


T = TypeVar("T")
N = TypeVar("N")


def each(nodes: Iterable[N], parse: Callable[[N], T]) -> tuple[T, ...]:
    """Parse every node. Raises Refused after the last one, with all findings."""
    values, findings = try_each(nodes, parse)
    if findings:
        raise Refused(*findings)
    return tuple(values)


def try_each(nodes: Iterable[N], parse: Callable[[N], T]) -> tuple[list[T], list[Finding]]:
    """Parse every node. Returns the values that could be read, and the findings of all others."""
    values: list[T] = []
    findings: list[Finding] = []
    for node in nodes:
        try:
            values.append(parse(node))
        except Refused as refused:
            findings.extend(refused.findings)
    return values, findings


# --- the file ---------------------------------------------------------------------------------------------------------


def read_text(path: Path, trusted_only: bool = False) -> str:
    """Read a whole configuration file.

    Args:
        path: a regular file or a link to one, at most 256 kB of UTF-8.
        trusted_only: also call `refuse_untrusted`, on the same open file that is then read.

    Raises:
        ConfigError: says which file, and what to do.
    """
    try:
        # O_NONBLOCK: opening a FIFO without a writer would wait for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise ConfigError(_cannot_open(path, error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: is not a regular file: give the path of net.conf itself")
        if trusted_only:
            refuse_untrusted(path, status)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(_cannot_open(path, error)) from error
    finally:
        os.close(descriptor)
    if len(data) > MOST_FILE_BYTES:
        raise ConfigError(f"{path}: is larger than 256 kB: this isn't a net.conf, or it must be shortened")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8 text"
        ) from error


def refuse_untrusted(path: Path, status: os.stat_result) -> None:
    """Refuse a file that users other than root and the caller can write: net.conf decides what is spent.

    Raises:
        ConfigError: with the command that mends it.
    """
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"{path}: belongs to user {status.st_uid}, who could change prices and budgets: "
            f"check its content, then chown root {path}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{path}: can be written by others (mode {stat.S_IMODE(status.st_mode):04o}), who could change prices and "
            f"budgets: check its content, then chmod go-w {path}"
        )


def refuse_readable(path: Path, status: os.stat_result, key: str, secret: str, instead: str = "") -> None:
    """Refuse a file that holds a secret and that others can read.

    Args: key: whose value is the secret. secret, instead: as in `ModuleKey`.

    Raises:
        ConfigError: with the command that mends it.
    """
    if status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
        otherwise = f"; or {key}: none, and {instead}" if instead else ""
        raise ConfigError(
            f"{path}: holds {secret} of {key}, which gives access to money, and others can read it (mode "
            f"{stat.S_IMODE(status.st_mode):04o}): chmod 600 {path}{otherwise}"
        )


def shipped(name: str) -> str:
    """Return the path of a file that comes with ngp: as a wheel installs it (setup.cfg), or in a checkout."""
    installed = Path(sysconfig.get_path("data"), "share", "doc", "ngp", os.path.basename(name))
    return str(installed if installed.is_file() else Path(__file__).resolve().parents[2] / name)


def _cannot_open(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: doesn't exist: copy {shipped('net.conf')} there, or name another with --config"
    if isinstance(error, IsADirectoryError):
        return f"{path}: is a directory: give the path of net.conf itself"
    if isinstance(error, PermissionError):
        return f"{path}: can't be read by this user: run ngp as root, or correct the file's mode"
    reason = error.strerror if isinstance(error, OSError) else "not a usable file name"
    return f"{show_text(str(path))}: can't be read: {reason}"


# --- YAML -------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Composes plain nodes only: refuses anchors, aliases, tags and deep nesting, and constructs no objects."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias (*) isn't used in net.conf: put a pattern that begins with * in quotes, '*'",
                problem_mark=mark,
            )
        if event.anchor is not None:
            raise yaml.MarkedYAMLError(
                problem="an anchor (&) isn't used in net.conf: write the value itself", problem_mark=mark
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="a tag (!) isn't used in net.conf: put text that begins with ! in quotes", problem_mark=mark
            )
        if self.depth >= _MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply: no key of net.conf needs this", problem_mark=mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_document(text: str) -> Entries:
    """Read net.conf's text into keys and values with their lines.

    Raises:
        Refused: the text isn't YAML, or has other lines than `KEY: value`. A syntax error ends the parsing, so it is
            reported alone.
    """
    try:
        root = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise Refused(_syntax_finding(error, text)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"has the character U+{int(error.character):04X}, which isn't allowed in a text file: remove it"
        raise Refused(Finding(line, "", "", message)) from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # PyYAML lets errors of chr() and int() through, for impossible escapes and %YAML versions
        raise Refused(Finding(0, "", "", f"is not YAML: {show_text(str(error))}")) from error
    if root is None or (isinstance(root, yaml.ScalarNode) and not root.value):
        return Entries((), 0)
    document = _convert(root)
    if not isinstance(document, Entries):
        raise Refused(Finding(document.line, "", show(document), "is not a setting: write lines `KEY: value`"))
    return document


def _convert(node: yaml.Node) -> Node:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return Items(tuple(_convert(item) for item in node.value), line)
    if isinstance(node, yaml.MappingNode):
        pairs: list[tuple[Scalar, Node]] = []
        for key_node, value_node in node.value:
            key = _convert(key_node)
            if not isinstance(key, Scalar):
                raise Refused(Finding(key.line, "", show(key), "is not a key: write `KEY: value`"))
            pairs.append((key, _convert(value_node)))
        return Entries(tuple(pairs), line)
    return Scalar(str(node.value), line, node.tag.rpartition(":")[2])


def _syntax_finding(error: yaml.MarkedYAMLError, text: str) -> Finding:
    mark = error.problem_mark or error.context_mark
    if error.context == "while scanning a simple key":  # the missing colon is noticed in a later line
        mark = error.context_mark
    line = mark.line + 1 if mark else 0
    written = text.split("\n")[line - 1] if 0 < line <= text.count("\n") + 1 else ""
    problem = error.problem or "unreadable"
    if written[: mark.column + 1 if mark else 0].strip(" ").startswith("\t") or "'\\t'" in problem:
        return Finding(line, "", "", "has a tab where YAML needs spaces: replace it with spaces")
    if problem.startswith(("an ", "a ", "nested ")) and "net.conf" in problem:
        return Finding(line, "", "", problem)
    if error.context == "expected a single document in the stream":
        return Finding(line, "", "", "begins a second document (---), but net.conf is only one: remove the line")
    return Finding(
        line, "", show_text(written.strip()), f"is not YAML ({problem}): write `KEY: value`, a list as [a, b]"
    )
