"""Module keys: what a module brings to net.conf, so that one with settings of its own needs no change in ngp.

A module names its `ModuleSettings` by an entry point of the group `ngp.payment.settings` (`ngp.link.settings`,
`ngp.network.settings`), under its own name. They stand apart from its class, since a verb that only reads net.conf must
not load what the class needs. Every key begins with the module's name in capitals, so that no two modules' keys are the
same. All need a restart, since a module is made once, at the start; its class then gets those that aren't None as
`options`, a mapping by key.

What follows reads values that several modules have: hosts and files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ngp.errors import ConfigError, UnseenError

ACCOUNT_ID = "ACCOUNT_ID"
"""The one key of ngp's own that a payment module's check is given."""

_MOST_PATH_BYTES = 1024
_TRUTH_VALUES = ("yes", "no", "true", "false", "on", "off")  # of YAML 1.1


@dataclass(frozen=True, slots=True)
class KeyText:
    """A value as the operator wrote it.

    Attributes:
        is_text: False where YAML takes it for a number, a truth value or a date.
        folder: net.conf's, where relative paths start.
    """

    text: str
    is_text: bool = True
    folder: str = "/"


@dataclass(frozen=True, slots=True)
class ModuleKey:
    """One key that a module brings.

    Attributes:
        name: as in the file; begins with the module's name in capitals and an underscore.
        kind: what its value looks like, for the guide.
        parse: reads its value. Raises ConfigError, whose text follows the value ("is not ...: write ..."), or
            UnseenError where the value itself may be a secret.
        help: one line.
        default: as it would be written. The word `none` is None in this key, and never parsed.
        secret: what secret the value holds ("the macaroon"), if it does: then nothing ever shows it, and net.conf must
            be readable for its owner alone.
        instead: what else the operator can do than to write the secret there.
    """

    name: str
    kind: str
    parse: Callable[[KeyText], Any]
    help: str
    default: str = "none"
    secret: str = ""
    instead: str = ""


def _fine(_values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Find nothing wrong."""
    return ()


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """All that a module brings.

    Attributes:
        keys: in the order of the guide.
        check: says of values that are possible by themselves which don't go together: (key, what is wrong and what is
            right). It is given those of this module that aren't None, and of a payment module ACCOUNT_ID, and asked
            where the module is in use and all of them could be read.
    """

    keys: tuple[ModuleKey, ...] = ()
    check: Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]] = _fine


def host_and_port(written: KeyText) -> str:
    """Read `host` or `host:port`, an IPv6 address in brackets. Raises ConfigError."""
    if re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(:[0-9]{1,5})?", written.text) is None:
        raise ConfigError("is not host:port: write for example localhost:10009 or [2001:db8::1]:10009")
    return written.text


def one_word(written: KeyText) -> str:
    """Read up to 128 characters without spaces. Raises ConfigError."""
    is_truth_value = not written.is_text and written.text.lower() in _TRUTH_VALUES
    if is_truth_value or re.fullmatch(r"[!-~]{1,128}", written.text) is None:
        raise ConfigError("is not an account: write up to 128 letters and digits without spaces, or none")
    return written.text


def path_as_written(written: KeyText) -> str:
    """Read the path of a file, perhaps on another machine. Raises ConfigError."""
    text = written.text
    if not written.is_text or not text.isprintable() or len(text.encode()) > _MOST_PATH_BYTES:
        raise ConfigError("is not a file's name: write its whole path, in quotes if it looks odd")
    if text.startswith("~"):
        raise ConfigError("begins with ~, which only a shell knows: write the whole path")
    return text


def file_path(written: KeyText) -> str:
    """Read the path of a file here; a relative one starts at net.conf's folder. Raises ConfigError."""
    return os.path.normpath(os.path.join(written.folder, path_as_written(written)))


def secret_file(written: KeyText) -> str:
    """Read the path of a file that holds a secret; the secret itself is refused unseen. Raises ConfigError."""
    if re.fullmatch(r"0201[0-9A-Fa-f]+|[0-9A-Fa-f]{40,}|[0-9A-Za-z+/_=-]{100,}", written.text):
        raise UnseenError("is the secret itself: save it in a file of mode 0600 and write that file's name")
    return file_path(written)


def password_file(written: KeyText) -> str:
    """Read the path of a file that holds a password; what has no slash may be one, and is refused unseen."""
    if "/" not in written.text:
        raise UnseenError("is no path: save the password in a file of mode 0600 and write its whole path")
    return file_path(written)
