"""tools/setup installs every command that tests and tools call, since a fresh machine has nothing else.

The commands are read from the sources: the first word of each argument of a function that runs commands, and of lists
and tuples of such words. Commands of every base system are listed here; tools/setup must install the others.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_tests.host import Host
from core_tests.shell import LabError

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("core_tests", "modules", "ngp", "tests")
OF_A_MACHINE = ROOT / "core_tests" / "under_systemd.py"  # runs where tools/stock-kernel has installed its commands
RUNNERS = {
    "sh", "run", "popen", "Popen", "check_output", "check_call", "create_subprocess_exec", "create_subprocess_shell",
    "find_command", "which", "_start", "callback",
}  # fmt: skip
HOLDERS = {"words", "command", "commands", "tool", "looks", "look"}  # names of variables that hold a command's words
# Commands in every Debian and Ubuntu (packages marked essential or required), and those of a shell itself.
BASE = {
    "awk", "bash", "cat", "cp", "echo", "env", "grep", "kill", "ls", "mkdir", "mount", "mv", "nsenter", "printf", "rm",
    "sed", "sh", "sleep", "taskset", "touch", "true", "umount",
}  # fmt: skip
# Called only where systemd is the first process.
SYSTEMD = {"systemd-run"}
# core_tests/lightning/build.py installs these if the system has none.
BUILT = {"go"}
# Found by the same rules, but not commands of a system: words of our own programs, and words of the shell.
NO_PROGRAMS = {
    "liars", "lightning", "lladdr", "mesh0", "meta", "no-such-tool", "payinvoice", "protoc", "rent", "s", "sendcoins",
    "set_up", "source", "tcp", "udp-send",
    "python3",  # tools/setup itself looks for it
    "resolvconf",  # looked for: without it name servers are left to the user
}  # fmt: skip
IN_A_NAMESPACE = re.compile(r"^ip netns exec \S+ ")
COMMAND_NAME = re.compile(r"[a-z][a-z0-9_.-]*")


def installed() -> set[str]:
    """Return the commands that tools/setup installs, from its lists."""
    text = (ROOT / "tools" / "setup").read_text()
    lists = re.findall(r"^NEEDS(?:_OF_TESTS)?=\((.*?)\)$", text, re.MULTILINE | re.DOTALL)
    found = {word.split()[0] for each in lists for word in re.findall(r'"([^"]+)"', each)}
    variants = {f"{stem}-{kind}" for stem in ("iptables", "ip6tables") for kind in ("nft", "legacy", "save", "restore")}
    of_variants = {f"{name}-{deed}" for name in variants for deed in ("save", "restore")}
    return found | {"ip6tables"} | variants | of_variants  # the package iptables contains all of them


def text_of(node: ast.expr) -> str | None:
    """Return a literal string; the parts that a format inserts become {}."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def words_of(nodes: list[ast.expr]) -> str:
    """Return a command's list of words as one line, up to the first word that isn't a literal."""
    words = []
    for node in nodes:
        text = text_of(node)
        if text is None:
            break
        words.append(text)
    return " ".join(words)


def lines_of(tree: ast.AST) -> Iterator[str]:
    """Yield each command line in a source file, as far as it is literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in RUNNERS:
            yield words_of(node.args)
            lists = node.args[:1]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in HOLDERS:
            lists = [node.value, *getattr(node.value, "elts", [])]
        else:
            continue
        yield from (words_of(each.elts) for each in lists if isinstance(each, ast.List | ast.Tuple))


def commands_of(path: Path) -> set[str]:
    """Return the names of the commands that a source file calls."""
    found = set()
    for line in lines_of(ast.parse(path.read_text())):
        for part in re.split(r"&&|\|\||[|;\n]", re.sub(r"'{[^']*}'", "", line)):  # a chain of nft has semicolons
            words = IN_A_NAMESPACE.sub("", part.strip()).split()
            if words and COMMAND_NAME.fullmatch(words[0]):
                found.add(words[0])
    return found


def test_every_command_that_is_called_is_installed_by_the_set_up() -> None:
    called: dict[str, str] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path == OF_A_MACHINE:
                continue
            called |= dict.fromkeys(commands_of(path), str(path.relative_to(ROOT)))
    assert {"bpftool", "ethtool", "iptables-save", "electrum", "ping"} <= called.keys(), "the sources are read"
    known = installed() | BASE | SYSTEMD | BUILT | NO_PROGRAMS
    missing = {name: where for name, where in called.items() if name not in known}
    assert missing == {}, "add them to NEEDS of tools/setup"


def test_a_command_that_a_host_lacks_is_named(tmp_path: Path) -> None:
    host = Host("alone", "ngpt-alone", tmp_path / "alone")
    host.set_up()
    try:
        with pytest.raises(LabError, match="no-such-tool: not found; tools/setup installs"):
            host.run("no-such-tool", "list")
    finally:
        host.clean_up()
