"""Modules: finds the installed modules (entry points) and their own keys of net.conf.

Modules' keys are checked here: no two may have the same key. A module that can't be loaded does no harm unless it is in
use.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, distributions
from typing import Any

from ngp.config import keys
from ngp.core.settings import ModuleId
from ngp.errors import ConfigError
from ngp.module_keys import ModuleSettings

LINK, NETWORK, PAYMENT = "ngp.link", "ngp.network", "ngp.payment"
TUNNEL, FACE = "ngp.tunnel", "ngp.face"
GROUPS = (LINK, NETWORK, PAYMENT)

SHIPPED: Mapping[str, Mapping[str, str]] = {
    LINK: {
        "udp": "ngp.modules.link.udp:UdpLink",
        "ethernet": "ngp.modules.link.ethernet:EthernetLink",
        "grpc": "ngp.modules.link.grpc:GrpcLink",
    },
    NETWORK: {
        "ip": "ngp.modules.network.datapath:Datapath",
    },
    PAYMENT: {
        "sandbox": "ngp.modules.payment.sandbox:SandboxPayment",
        "lnd": "ngp.modules.payment.lnd:LndPayment",
        "electrum": "ngp.modules.payment.electrum:ElectrumPayment",
    },
    TUNNEL: {
        "wireguard": "ngp.modules.tunnel.wireguard:WireGuard",
    },
    FACE: {
        "https": "ngp.modules.face.https:HttpsFace",
        "grpc": "ngp.modules.face.grpc:GrpcFace",
        "mesh": "ngp.modules.face.mesh:MeshFace",
    },
    f"{PAYMENT}.settings": {
        "lnd": "ngp.modules.payment.lnd_settings:SETTINGS",
        "electrum": "ngp.modules.payment.electrum_settings:SETTINGS",
    },
}
"""The modules that ngp ships, as in setup.cfg: for a checkout that isn't installed, or an older installation of it."""


def installed_modules(group: str) -> Collection[str]:
    """Return the names of a port's installed modules, and ngp's own when it runs from a checkout."""
    return frozenset(point.name for point in _installed(group)) or frozenset(SHIPPED.get(group, ()))


def module_class(group: str, name: str) -> Any:
    """Load the class behind an entry point. Raises ConfigError."""
    found = _load(group, name)
    if found is None:
        raise ConfigError(f"no module {name!r} for {group} is installed: install it, or choose another one in net.conf")
    return found


def module_settings(group: str, name: str) -> ModuleSettings:
    """Return a module's own keys of net.conf, possibly none. Raises ConfigError."""
    try:
        found = _load(f"{group}.settings", name)
    except Exception as error:  # of a third party's code
        raise ConfigError(f"the settings of the module {name} can't be loaded ({error}): reinstall it") from error
    if found is None:
        return ModuleSettings()
    if not isinstance(found, ModuleSettings):
        raise ConfigError(f"the settings of the module {name} don't fit this version of ngp: update it")
    prefix = f"{re.sub('[^A-Z0-9]', '_', name.upper())}_"
    for key in found.keys:
        if not key.name.startswith(prefix) or any(key.name == own.name for own in keys.KEYS):
            raise ConfigError(f"the module {name} defines the key {key.name}: its keys must begin with {prefix}")
        try:
            keys.of_module(key, "/").default_value()
        except ConfigError as error:
            raise ConfigError(f"the module {name} refuses its own default of {key.name}: update it") from error
    return found


def usable_settings(modules: Mapping[str, Collection[str]]) -> Iterator[tuple[ModuleId, ModuleSettings]]:
    """Yield the settings of all modules that can be loaded. Args: modules: names by group."""
    for group, names in modules.items():
        for name in sorted(names):
            try:
                yield (group, name), module_settings(group, name)
            except ConfigError:
                continue


def _installed(group: str) -> Iterator[EntryPoint]:
    """Yield a group's entry points. Reading takes milliseconds, so they are cached until a package is installed."""
    points = _read_points(tuple((folder, _changed_ns(folder)) for folder in sys.path))
    return (point for point in points if point.group == group)


@lru_cache(maxsize=1)
def _read_points(_folders: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(point for one in distributions() for point in one.entry_points if point.group.startswith("ngp."))


def _changed_ns(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def _load(group: str, name: str) -> Any:
    for point in _installed(group):
        if point.name == name:
            return point.load()
    shipped = SHIPPED.get(group, {}).get(name)
    if shipped is None:
        return None
    where, _, attribute = shipped.partition(":")
    return getattr(import_module(where), attribute)
