"""Calls to an Electrum daemon: JSON-RPC over HTTP, on the socket or port that its lock file names.

While a daemon runs, its folder has two files: `daemon`, the lock file, says where it listens, and `config` has user and
password. So a daemon on the same machine needs no settings. ngp reads the files anew for each call, as a restarted
daemon may listen elsewhere. Anyone who can make these calls can spend all that the wallet has, and the traffic isn't
encrypted.

Source: electrum/daemon.py, electrum/commands.py (4.3.4, 4.5.8)
"""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ngp.core.host_port import join_host_port, split_host_port
from ngp.errors import ConfigError, PaymentError
from ngp.modules.payment import rpc_address, secret_file

CALL_TIMEOUT_S = 15.0
USUAL_FOLDERS = ("~/.electrum", "/home/electrum/.electrum", "/var/lib/electrum/.electrum", "/var/lib/electrum")
_NETWORKS = ("", "testnet", "testnet4", "signet", "mutinynet", "regtest", "simnet")
_LOCK, _CONFIG = "daemon", "config"
_ANSWER_BYTES_MAX = 64 << 20
# A payment's call may stay open for hours; if the daemon's machine is gone, keepalive ends the call within minutes.
_KEEPALIVE = (
    ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 30),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 10),
)
START = "start it by `electrum daemon -d`"
_REFUSED = (401, 403)
_NOT_HTTP = "what came back isn't a whole HTTP answer"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where Electrum listens, and its login.

    Attributes:
        where: a socket's path, or `host:port`.
        user, password: the login of its JSON-RPC; secret.
    """

    where: str
    user: str = field(repr=False)
    password: str = field(repr=False)

    @property
    def leaves_unencrypted(self) -> bool:
        """Say whether calls, and the password in them, leave this machine unencrypted."""
        if self.where.startswith("/"):
            return False
        host, _ = split_host_port(self.where)
        try:
            return not ip_address(host).is_loopback
        except ValueError:
            return host != "localhost"


class Credentials:
    """Finds the daemon's endpoint, again for each call.

    Args:
        options: ELECTRUM_HOST (`host:port`, or Electrum's folder), ELECTRUM_USER and ELECTRUM_PASSWORD_FILE, as in
            net.conf; all are optional.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = {key: value for key, value in options.items() if value}

    def read(self) -> Endpoint:
        """Return the endpoint. Raises ConfigError with the setting or file and the remedy."""
        told = self._options.get("ELECTRUM_HOST", "")
        if told and not told.startswith("/"):
            return self._with_login(_target(told), {})
        folder = self._folder(told)
        return self._with_login(_lock_file(folder / _LOCK), _config_file(folder / _CONFIG))

    def _with_login(self, where: str, config: Mapping[str, Any]) -> Endpoint:
        user = self._options.get("ELECTRUM_USER") or config.get("rpcuser")
        file = self._options.get("ELECTRUM_PASSWORD_FILE")
        password = _password_file(Path(file)) if file else config.get("rpcpassword")
        if not isinstance(user, str) or not isinstance(password, str):
            raise ConfigError(
                f"no user and password for Electrum at {where}: set ELECTRUM_USER and ELECTRUM_PASSWORD_FILE as shown "
                "by `electrum getconfig rpcuser` and `electrum getconfig rpcpassword`"
            )
        return Endpoint(where, user, password)

    @staticmethod
    def _folder(told: str) -> Path:
        """Return the only folder with a running daemon's lock file."""
        bases = [Path(told)] if told else [Path(folder).expanduser() for folder in USUAL_FOLDERS]
        found = [base / network for base in bases for network in _NETWORKS if _is_there(base / network / _LOCK)]
        if not found:
            looked = ", ".join(map(str, bases))
            raise ConfigError(f"no Electrum daemon runs in {looked}: {START}, or set ELECTRUM_HOST")
        if len(found) > 1:
            raise ConfigError(f"more than one Electrum daemon runs here: set ELECTRUM_HOST to one of "
                              f"{', '.join(map(str, found))}")  # fmt: skip
        return found[0]


class ElectrumError(PaymentError):
    """Electrum refused, or could not be asked.

    Attributes:
        answered: True if Electrum answered; if False, nobody knows whether Electrum carried the call out.
        detail: Electrum's own text.
    """

    def __init__(self, text: str, detail: str = "", answered: bool = True) -> None:
        super().__init__(text)
        self.detail = detail
        self.answered = answered


class ElectrumRpc:
    """Calls an Electrum daemon; for one event loop. Each call opens a connection, as calls are local and few."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def endpoint(self) -> Endpoint:
        """Return where the daemon listens now. Raises ConfigError."""
        return self._credentials.read()

    async def call(self, method: str, words: Mapping[str, Any], timeout_s: float | None = CALL_TIMEOUT_S) -> Any:
        """Call a command once, and return the result.

        Args:
            method: a command of Electrum.
            words: its arguments, by name.
            timeout_s: how long to wait for the answer; None: as long as the daemon lives.

        Raises: ElectrumError.
        """
        try:
            endpoint = self.endpoint()
        except ConfigError as error:
            raise ElectrumError(str(error), answered=False) from error
        body = json.dumps({"id": 1, "method": method, "params": dict(words)}).encode()
        try:
            async with asyncio.timeout(timeout_s):
                status, answer = await _post(endpoint, body)
        except TimeoutError:
            raise ElectrumError(
                f"Electrum at {endpoint.where} took too long to answer {method}; ngp asks again", answered=False
            ) from None
        except (OSError, EOFError, ValueError) as error:
            raise ElectrumError(
                f"Electrum at {endpoint.where} doesn't answer ({error}): {START}, or set ELECTRUM_HOST", answered=False
            ) from None
        return _result(endpoint, method, status, answer)


async def _post(endpoint: Endpoint, body: bytes) -> tuple[int, bytes]:
    """Send one request on a connection of its own; returns the status and the body."""
    if endpoint.where.startswith("/"):
        reader, writer = await asyncio.open_unix_connection(endpoint.where)
    else:
        host, port = split_host_port(endpoint.where)
        reader, writer = await asyncio.open_connection(host, int(port))
        for option, on in _KEEPALIVE:
            writer.get_extra_info("socket").setsockopt(*option, on)
    try:
        login = base64.b64encode(f"{endpoint.user}:{endpoint.password}".encode()).decode()
        head = (
            "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Authorization: Basic {login}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        status = await reader.readline()
        length = None
        while line := (await reader.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if length is None or not 0 <= length <= _ANSWER_BYTES_MAX:
            raise ValueError
        return int(status.split()[1]), await reader.readexactly(length)
    except (IndexError, ValueError):
        raise ValueError(_NOT_HTTP) from None
    finally:
        writer.close()


def _result(endpoint: Endpoint, method: str, status: int, answer: bytes) -> Any:
    if status in _REFUSED:
        raise ElectrumError(
            f"Electrum at {endpoint.where} refuses user and password: set ELECTRUM_USER and ELECTRUM_PASSWORD_FILE as "
            "shown by `electrum getconfig rpcuser` and `electrum getconfig rpcpassword`"
        )
    try:
        told = json.loads(answer)
        error = told.get("error")
        if error is None:
            return told["result"]
        detail = _words(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ElectrumError(
            f"Electrum at {endpoint.where} can't carry out {method} (HTTP {status}): is it Electrum 4.3 or later?"
        ) from None
    raise ElectrumError(f"Electrum at {endpoint.where} refuses {method}: {detail or 'it gives no reason'}", detail)


def _words(error: Mapping[str, Any]) -> str:
    """Return an error's text. In Electrum 4.5 the message is the same for all errors, and `data` has the details."""
    data = error.get("data")
    told = data.get("exception") if isinstance(data, dict) else None
    return str(told or error["message"])


def _target(text: str) -> str:
    found = ""
    with suppress(ValueError):
        found = rpc_address.read(text)
    if not found:
        raise ConfigError(f"ELECTRUM_HOST: {text} is neither host:port nor Electrum's folder")
    return found


def _lock_file(path: Path) -> str:
    """Read where a daemon listens: `('unix', path, time)` or `('tcp', (host, port), time)`."""
    try:
        kind, address, _ = ast.literal_eval(secret_file.read_any(path, str(path)).decode())
        if kind == "unix":
            return str(address)
        host, port = address[:2]
        return join_host_port(host, int(port))
    except (ValueError, TypeError, SyntaxError):
        raise ConfigError(f"{path} doesn't say where Electrum listens: set ELECTRUM_HOST") from None


def _config_file(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(secret_file.read(path, f"Electrum's configuration {path}", of_another=True))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is no configuration of Electrum: set ELECTRUM_USER and ELECTRUM_PASSWORD_FILE")
    return found


def _password_file(path: Path) -> str:
    what = f"ELECTRUM_PASSWORD_FILE {path}"
    password = secret_file.read(path, what).decode(errors="replace").strip()
    if not password:
        raise ConfigError(f"{what} is empty: write the output of `electrum getconfig rpcpassword` into it")
    return password


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError:
        return False
