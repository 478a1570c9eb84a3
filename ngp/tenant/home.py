"""Home: the tenant's files, with the names and places of the published StaticWire client.

Config.yaml has landlords, keys and limits. Both published layouts are read: a file in the layout of 2023 is rewritten
in that of 2025, and the original is kept as Config.yaml.before. Keys that aren't known are kept as they are.

A home may have several tunnels, each with a landlord of its own; the published client uses the first one only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ngp.core.pricing import SAT_MSAT
from ngp.core.tenant.answers import MOST_SAT
from ngp.core.tenant.configuration import interface_name
from ngp.core.tenant.terms import Limit, Limits
from ngp.core.values import DAY_S
from ngp.errors import ConfigError, NgpError, UsageError
from ngp.tenant import files
from ngp.tenant.grpc import GrpcPlace, read_grpc_place
from ngp.tenant.https import LandlordPlace, read_place
from ngp.tenant.keys import new_private_key, public_key
from ngp.tenant.landlord import NeighbourPlace, read_neighbour

FOLDER = ".StaticWire"
CONFIG, STATE = "Config.yaml", "TunnelState.yaml"
CONF_FOLDER = "WireGuardConfigFiles"
DEFAULT_AMOUNT_SAT = 24_000
AnyPlace = LandlordPlace | GrpcPlace | NeighbourPlace
_SERVER, _OLD_SERVER, _TUNNELS, _LANDLORDS = "DefaultRentalServer", "Server", "tunnels", "landlords"
_PRIVATE, _PUBLIC = "wireguard_private_key", "wireguard_public_key"
_FIRST, _NEXT = "first_public_key", "next_private_key"
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,31}")
_LEAST_KEY_LETTERS = 4
_BUY_TERMS = {
    "MaxMonthlyRate": ("rent_max", 48_000, SAT_MSAT),
    "MaxRegularPaymentSize": ("payment_max", 1_500, SAT_MSAT),
    "MinRegularPaymentSize": ("payment_min", 550, SAT_MSAT),
    "MaxActivationFee": ("activation_max", 64_000, SAT_MSAT),
    "MaxInitialCredit": ("initial_max", 2_000, SAT_MSAT),
    "TargetCredit": ("target_credit", 6_000, SAT_MSAT),
    "TargetTime": ("target_time_s", 5 * DAY_S, 1),
}
"""BuyOfferTerms of Config.yaml: for each key our name, the default in sat or seconds, and the factor to our unit."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One rental's keys.

    Attributes:
        name: as the user called the tunnel; "": it has no name, and is shown by its interface.
        landlord: the name of a trusted landlord; "": only the landlord's host and pin are known.
        offer: the name of the landlord's offer; "": the first one.
        first_key: the tunnel's first public key, which names its interface and routing table; "" if the tunnel never
            had another key.
        next_private_key: the key that replaces the present one, while a change of the key is under way; else "".
    """

    private_key: str
    public_key: str
    name: str
    host: str
    pin: str
    is_first: bool
    landlord: str = ""
    offer: str = ""
    first_key: str = ""
    next_private_key: str = ""

    @property
    def interface(self) -> str:
        """The name of the tunnel's interface, and of its file for wg-quick."""
        return interface_name(self.root_key)

    @property
    def root_key(self) -> str:
        """The public key that names interface and routing table, which stay the same when the key changes."""
        return self.first_key or self.public_key

    @property
    def shown_name(self) -> str:
        """What texts for the user call the tunnel."""
        return self.name or self.interface

    def __repr__(self) -> str:
        return f"Tunnel({self.shown_name})"


class Home:
    """The files of a tenant.

    Args: folder: exists or is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files.make_folder(folder)
        self._config = folder / CONFIG
        self._values: dict[str, Any] = {}
        self.reload()

    def reload(self) -> None:
        """Read Config.yaml, and take over a layout of 2023. Raises ConfigError."""
        values = files.read_yaml(self._config)
        if _is_old(values):
            files.replace(self.folder / f"{CONFIG}.before", self._config.read_bytes())
            values = _taken_over(values, str(self._config))
            files.write_yaml(self._config, values)
        self._values = values

    # --- landlord -----------------------------------------------------------------------------------------------------

    def landlords(self) -> dict[str, AnyPlace]:
        """Return the trusted landlords by name. Raises ConfigError."""
        return {name: _place(self._trusted(name)) for name in self._section(_LANDLORDS)}

    def trusted(self, name: str) -> AnyPlace:
        """Return a trusted landlord. Raises UsageError."""
        known = self.landlords()
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there is none yet"
            how = "ngp rent trust NAME HOST[:PORT] PIN, or NAME KEY"
            raise UsageError(f"no landlord {name!r} is trusted ({there}): {how}")
        return known[name]

    def trust(self, name: str, place: AnyPlace) -> None:
        """Keep a landlord, or its new place and fingerprint. Raises UsageError, NgpError."""
        _refuse_bad_name(name, "landlord")
        with self._changing():
            self._values[_LANDLORDS] = {**self._section(_LANDLORDS), name: place.entry()}

    def distrust(self, name: str) -> None:
        """Forget a landlord that nothing is rented from. Raises UsageError, NgpError."""
        self.trusted(name)
        if rented := [one.shown_name for one in self.tunnels() if one.landlord == name]:
            raise UsageError(f"{', '.join(rented)} is rented from {name}: ngp rent forget it first")
        with self._changing():
            self._values[_LANDLORDS] = {key: one for key, one in self._section(_LANDLORDS).items() if key != name}

    def _trusted(self, name: str) -> dict[str, Any]:
        found = self._section(_LANDLORDS)[name]
        if not isinstance(found, dict):
            right = "no Host with TrustedFingerprint or TrustedKey, and no Neighbour"
            raise ConfigError(f"{self._config}: {_LANDLORDS}.{name} has {right}: correct it")
        return found

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the present file, and write it, while no other process does."""
        with files.only_one(self.folder / "lock", "another change", "try again in a moment", files.WAIT_S):
            self.reload()
            yield
            files.write_yaml(self._config, self._values)

    def landlord(self, tunnel: Tunnel | None, host: str | None = None, pin: str | None = None) -> AnyPlace:
        """Return the landlord: of the command line, else of the tunnel, else the default. Raises ConfigError."""
        if tunnel is not None and tunnel.landlord and not host:
            return self.trusted(tunnel.landlord)
        default = self._section(_SERVER)
        named = tunnel.host if tunnel is not None else ""
        chosen = host or named or _word(default, "Host")
        known_pin = tunnel.pin if tunnel is not None and chosen == named else _word(default, "TrustedFingerprint")
        if not chosen:
            raise ConfigError(
                "no landlord is named: give --rental_server_host and --rental_server_fingerprint, or write "
                f"{_SERVER} with Host and TrustedFingerprint into {self._config}"
            )
        if not (pin or known_pin):
            raise ConfigError(f"no fingerprint of {chosen} is known: ask for it, and give --rental_server_fingerprint")
        return read_place(chosen, pin or known_pin)

    @property
    def amount_sat(self) -> int:
        """The credit to add if the command line names none. Raises ConfigError."""
        found = self._section(_SERVER).get("Amount")
        return DEFAULT_AMOUNT_SAT if found is None else _whole(found, f"{self._config}: {_SERVER}.Amount")

    # --- tunnels ------------------------------------------------------------------------------------------------------

    def tunnels(self) -> list[Tunnel]:
        """Return all tunnels. Raises ConfigError."""
        found = self._values.get(_TUNNELS)
        if found is None:
            return []
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise ConfigError(f"{self._config}: tunnels is not a list of keys: restore it from {CONFIG}.before")
        return [self._tunnel(number, one) for number, one in enumerate(found)]

    def tunnel(self, name: str | None) -> Tunnel | None:
        """Find a tunnel by its name, its interface, or the first letters of its key; the first one without a name.

        Returns: None if there is none. Raises: UsageError: several fit.
        """
        known = self.tunnels()
        if name is None:
            return known[0] if known else None
        for one in known:
            if name in (one.name, one.interface, one.public_key):
                return one
        fit = [one for one in known if len(name) >= _LEAST_KEY_LETTERS and one.public_key.startswith(name)]
        if len(fit) > 1:
            raise UsageError(f"{name!r} fits {len(fit)} tunnels: write more of the key")
        return fit[0] if fit else None

    def add_tunnel(self, name: str | None, place: AnyPlace, landlord: str = "", offer: str = "") -> Tunnel:
        """Make keys for a new tunnel, and keep them before anything is paid for them. Raises UsageError, NgpError.

        Args: landlord: the name of a trusted one. offer: the name of its offer; "": the first one.
        """
        if name is not None:
            _refuse_bad_name(name, "tunnel")
            if self.tunnel(name) is not None:
                raise UsageError(f"there is a tunnel {name!r} already: add credit to it, or choose another name")
        private_key = new_private_key()
        entry = {_PRIVATE: private_key, _PUBLIC: public_key(private_key)}
        entry |= {"landlord": landlord} if landlord else place.entry()
        entry |= {"offer": offer} if offer else {}
        entry |= {"name": name} if name else {}
        with self._changing():
            self._values[_TUNNELS] = [*(self._values.get(_TUNNELS) or []), entry]
        return self._tunnel(len(self._values[_TUNNELS]) - 1, entry)

    def begin_rekey(self, tunnel: Tunnel) -> Tunnel:
        """Make the next key, unless it is made already. Returns the tunnel as it will be. Raises NgpError."""
        with self._changing():
            entry = self._entry(tunnel)
            if not _word(entry, _NEXT):
                entry[_NEXT] = new_private_key()
        private_key = _word(entry, _NEXT)
        public = public_key(private_key)
        return replace(tunnel, private_key=private_key, public_key=public, first_key=tunnel.root_key)

    def cancel_rekey(self, tunnel: Tunnel) -> None:
        """Drop the next key, which the landlord refuses. Raises NgpError."""
        with self._changing():
            self._entry(tunnel).pop(_NEXT, None)

    def end_rekey(self, tunnel: Tunnel, changed: Tunnel) -> Tunnel:
        """Use the next key from now on, and drop the old one. Returns the tunnel with its new key. Raises NgpError."""
        path = self.conf_path(tunnel)
        if path.exists():
            files.replace(path, path.read_bytes().replace(tunnel.private_key.encode(), changed.private_key.encode()))
        with self._changing():
            entry = self._entry(tunnel)
            entry |= {_PRIVATE: changed.private_key, _PUBLIC: changed.public_key, _FIRST: changed.root_key}
            entry.pop(_NEXT, None)
        return replace(changed, next_private_key="")

    def _entry(self, tunnel: Tunnel) -> dict[str, Any]:
        for one in self._values.get(_TUNNELS) or []:
            if one.get(_PRIVATE) == tunnel.private_key:
                found: dict[str, Any] = one
                return found
        raise UsageError(f"{tunnel.shown_name} is in {self._config} no longer, or has another key: try again")

    def refuse_changed(self, tunnel: Tunnel) -> None:
        """Raise UsageError if a tunnel is gone, or another process has given it another key meanwhile. NgpError."""
        self.reload()
        self._entry(tunnel)

    def forget_tunnel(self, tunnel: Tunnel) -> None:
        """Drop a tunnel's keys and its files: they can't be had again. Its books stay, as budgets count them.

        Its entry goes last: killed before, this can be done again, and no other tunnel gets its books.

        Raises: UsageError: it is gone, or has another key meanwhile. NgpError.
        """
        with self._changing():
            self._entry(tunnel)
            books = self.state_path(tunnel)
            if books.exists():
                books.replace(self._own_state_path(tunnel))
            self.conf_path(tunnel).unlink(missing_ok=True)
            self.lock_path(tunnel).unlink(missing_ok=True)
            kept = [one for one in self._values.get(_TUNNELS) or [] if one.get(_PRIVATE) != tunnel.private_key]
            self._values |= {_TUNNELS: kept}
            if not kept:
                del self._values[_TUNNELS]

    def take_back(self, tunnel: Tunnel) -> None:
        """Forget a new tunnel after an error, which is the one to report: if this fails too, nothing is raised."""
        with suppress(NgpError):
            self.forget_tunnel(tunnel)

    def _tunnel(self, number: int, entry: dict[str, Any]) -> Tunnel:
        where = f"{self._config}: tunnel {number + 1}"
        private_key = _word(entry, _PRIVATE)
        if not private_key:
            raise ConfigError(f"{where} has no {_PRIVATE}: restore it from a backup, or remove the tunnel")
        try:
            public = public_key(private_key)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if _word(entry, _PUBLIC) not in ("", public):
            raise ConfigError(f"{where}: {_PUBLIC} isn't that of the private key, which has {public}: correct it")
        name, host, pin = _word(entry, "name"), _word(entry, "Host"), _word(entry, "TrustedFingerprint")
        landlord, offer = _word(entry, "landlord"), _word(entry, "offer")
        first, next_one = _word(entry, _FIRST), _word(entry, _NEXT)
        return Tunnel(private_key, public, name, host, pin, number == 0, landlord, offer, first, next_one)

    # --- files of a tunnel --------------------------------------------------------------------------------------------

    def conf_path(self, tunnel: Tunnel) -> Path:
        """Return where the file for wg-quick is."""
        return self.folder / CONF_FOLDER / f"{tunnel.interface}.conf"

    def keep_conf(self, tunnel: Tunnel, text: str) -> Path:
        """Write the file for wg-quick. Raises NgpError."""
        path = self.conf_path(tunnel)
        files.make_folder(path.parent)
        files.replace(path, text.encode())
        return path

    def state_path(self, tunnel: Tunnel) -> Path:
        """Return the file of a tunnel's books. The first tunnel's file has the published client's name.

        If the first tunnel is forgotten, the next one becomes the first, but keeps the file that it has.
        """
        own = self._own_state_path(tunnel)
        return self.folder / STATE if tunnel.is_first and not own.exists() else own

    def lock_path(self, tunnel: Tunnel) -> Path:
        """Return the file that a process locks while it pays for a tunnel."""
        return self.folder / f"{tunnel.interface}.lock"

    def all_state_paths(self) -> list[Path]:
        """Return the books of all tunnels, forgotten ones too."""
        return sorted(self.folder.glob("TunnelState*.yaml"))

    def _own_state_path(self, tunnel: Tunnel) -> Path:
        return self.folder / f"TunnelState-{tunnel.interface}.yaml"

    # --- automatic payments -------------------------------------------------------------------------------------------

    def limits(self) -> Limits:
        """Return BuyOfferTerms, with the published defaults. Raises ConfigError."""
        terms, found = self._section("BuyOfferTerms"), {}
        for key, (field, usual, factor) in _BUY_TERMS.items():
            written = terms.get(key)
            where = f"{self._config}: BuyOfferTerms.{key}"
            found[field] = Limit((usual if written is None else _whole(written, where)) * factor, key)
        found["price_max"] = Limit(0, "TENANT_PRICE_MAX")  # the published client isn't told of a price
        return Limits(**found)

    @property
    def probe(self) -> str:
        """TunnelProbe: `auto`, or a command that ends with 0 if the rented address is reached from outside."""
        return _word(self._values, "TunnelProbe") or "auto"

    @property
    def lnd_uri(self) -> str:
        """LNDhost: an lndconnect URI; "" if there is none. A secret."""
        return _word(self._values, "LNDhost")

    def keep_lnd_uri(self, uri: str) -> None:
        """Keep an lndconnect URI that was tried. Raises NgpError."""
        with self._changing():
            self._values["LNDhost"] = uri

    def _section(self, name: str) -> dict[str, Any]:
        found = self._values.get(name)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise ConfigError(f"{self._config}: {name} has no keys with values: correct it")
        return found


def _refuse_bad_name(name: str, whose: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"the {whose}'s name {name!r} isn't usable: write up to 32 letters and digits")


def _place(entry: dict[str, Any]) -> AnyPlace:
    """Return a trusted landlord's place. Raises ConfigError."""
    if neighbour := _word(entry, "Neighbour"):
        return read_neighbour(neighbour)
    if key := _word(entry, "TrustedKey"):
        return read_grpc_place(_word(entry, "Host"), key)
    return read_place(_word(entry, "Host"), _word(entry, "TrustedFingerprint"))


def _is_old(values: dict[str, Any]) -> bool:
    return _OLD_SERVER in values or "private_key" in values


def _taken_over(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a configuration of 2023 in the layout of 2025. A key of 2023 is kept beside keys of 2025."""
    fresh = {key: value for key, value in values.items() if key not in (_OLD_SERVER, "private_key", "public_key")}
    server = values.get(_OLD_SERVER) or {}
    if not isinstance(server, dict):
        raise ConfigError(f"{where}: {_OLD_SERVER} has no keys with values: correct it")
    old = {"Host": _word(server, "HostName").removeprefix("https://").rstrip("/")}
    old["TrustedFingerprint"] = _word(server, "TrustedFingerprint")
    old = {key: value for key, value in old.items() if value}
    if old and not fresh.get(_SERVER):
        fresh = {_SERVER: old} | fresh
    if "private_key" in values:
        entry = {_PRIVATE: values["private_key"], _PUBLIC: values.get("public_key"), **old}
        present = fresh.get(_TUNNELS) or []
        if not isinstance(present, list) or not all(isinstance(one, dict) for one in present):
            raise ConfigError(f"{where}: tunnels is not a list of keys: correct it")
        if all(one.get(_PRIVATE) != entry[_PRIVATE] for one in present):
            fresh[_TUNNELS] = [*present, {key: value for key, value in entry.items() if value}]
    return fresh


def _word(values: dict[str, Any], key: str) -> str:
    found = values.get(key)
    return "" if found is None else str(found)


def _whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_SAT:
        raise ConfigError(f"{where}: {value!r} isn't a whole number of sat or seconds: correct it")
    return value
