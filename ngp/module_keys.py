"""Module keys: a module's own keys of net.conf, so that a module with settings needs no change in ngp.

A module provides `ModuleSettings` through an entry point of the group `ngp.payment.settings` (`ngp.link.settings`,
`ngp.network.settings`) with the module's name. These settings are separate from the module's class, since a verb that
only reads net.conf must not load the libraries of the class. Every key begins with the module's name in capitals, so
that no two modules have the same key. A module is made once, at the start, so a change of any of its keys needs a
restart. The class then gets the values that aren't None as `options`, a mapping by key.

The functions below read values that several modules need: hosts and files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ngp.errors import ConfigError, UnseenError

ACCOUNT_ID = "ACCOUNT_ID"
"""The only one of ngp's own keys of net.conf whose value a payment module's check gets."""

_MOST_PATH_BYTES = 1024
_TRUTH_VALUES = ("yes", "no", "true", "false", "on", "off")  # of YAML 1.1


@dataclass(frozen=True, slots=True)
class KeyText:
    """A value as the operator wrote it.

    Attributes:
        is_text: False if YAML reads it as a number, a boolean or a date.
        folder: the folder of net.conf, where relative paths start.
    """

    text: str
    is_text: bool = True
    folder: str = "/"


@dataclass(frozen=True, slots=True)
class ModuleKey:
    """One of a module's own keys.

    Attributes:
        name: as in net.conf; begins with the module's name in capitals and an underscore.
        kind: the form of the value, for the guide.
        parse: reads the value. Raises ConfigError, whose text is shown after the value ("is not ...: write ..."), or
            UnseenError if the value may be a secret.
        help: one line.
        default: the value as net.conf would have it. The word `none` means None, and is never parsed.
        secret: what in the value is secret ("the macaroon"); empty if nothing is. A secret value is never shown, and
            net.conf is refused if others than its owner can read it.
        instead: what the operator can do instead of writing the secret into net.conf.
    """

    name: str
    kind: str
    parse: Callable[[KeyText], Any]
    help: str
    default: str = "none"
    secret: str = ""
    instead: str = ""


def _fine(_values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Report no contradictions."""
    return ()


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """A module's own keys of net.conf.

    Attributes:
        keys: in the order of the guide.
        check: returns contradictions between valid values: (key, what is wrong and what would be right). It gets the
            module's values that aren't None; a payment module's check also gets ACCOUNT_ID. It is called only if the
            module is in use and all its values could be read.
    """

    keys: tuple[ModuleKey, ...] = ()
    check: Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]] = _fine


def host_and_port(written: KeyText) -> str:
    """Read `host` or `host:port`, with an IPv6 address in brackets. Raises ConfigError."""
    if re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(:[0-9]{1,5})?", written.text) is None:
        raise ConfigError("is not host:port: write for example localhost:10009 or [2001:db8::1]:10009")
    return written.text


def one_word(written: KeyText) -> str:
    """Read up to 128 characters without spaces. Raises ConfigError."""
    if not written.is_text and written.text.lower() in _TRUTH_VALUES:
        raise ConfigError(
            f"is read by YAML as bool, not as an account's name: if the payment node has no accounts, write the word "
            f"none; if an account has this name, write it with quotes: '{written.text}'"
        )
    if re.fullmatch(r"[!-~]{1,128}", written.text) is None:
        raise ConfigError("is not an account: write up to 128 letters and digits without spaces, or none")
    return written.text


def path_as_written(written: KeyText) -> str:
    """Read the path of a file, perhaps on another machine. Raises ConfigError."""
    text = written.text
    if not written.is_text or not text.isprintable() or len(text.encode()) > _MOST_PATH_BYTES:
        raise ConfigError("is not a file's name: write its whole path, in quotes if it looks like a number")
    if text.startswith("~"):
        raise ConfigError("begins with ~, which only a shell knows: write the whole path")
    return text


def file_path(written: KeyText) -> str:
    """Read the path of a file on this host; a relative one starts at net.conf's folder. Raises ConfigError."""
    return os.path.normpath(os.path.join(written.folder, path_as_written(written)))


def secret_file(written: KeyText) -> str:
    """Read the path of a file with a secret; the secret itself is refused, and not shown. Raises ConfigError."""
    if re.fullmatch(r"0201[0-9A-Fa-f]+|[0-9A-Fa-f]{40,}|[0-9A-Za-z+/_=-]{100,}", written.text):
        raise UnseenError("is the secret itself: save it in a file of mode 0600 and write that file's name")
    return file_path(written)


def password_file(written: KeyText) -> str:
    """Read the path of a password file; a value without a slash may be the password, so it is refused and not shown."""
    if "/" not in written.text:
        raise UnseenError("is not a path: save the password in a file of mode 0600 and write its whole path")
    return file_path(written)
