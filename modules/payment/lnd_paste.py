"""Pasted URI: an lndconnect URI that is typed in once is looked at, tried at its node, and kept for the next start.

What is kept replaces what a daemon would have started with. So nothing is kept that can't work, and the one before
stays as a copy, for who pasted the wrong one of two that both work.
"""

from __future__ import annotations

import os
from pathlib import Path

import grpc

from ngp.errors import ConfigError, PaymentError
from ngp.modules.payment import lnd_client as client
from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment import macaroon
from ngp.modules.payment.lnd_client import LndClient, LndError
from ngp.modules.payment.lnd_connect import STORED_URI, Connection, Credentials, parse_uri

TRY_S = 5.0
FORMER_URI = f"{STORED_URI}.before"
_PASTED = "the URI"


def keep(text: str, state_dir: Path) -> tuple[str, Path | None]:
    """Keep a pasted URI where `Credentials` finds it, readable for us alone.

    Returns: `host:port`, and where the one that it replaces is kept; None if there was none, or the same.
    Raises: ConfigError, OSError; the one before stands then.
    """
    connection = _usable(text)
    path, former = state_dir / STORED_URI, None
    fresh = text.strip().encode() + b"\n"
    if path.exists() and (before := path.read_bytes()) != fresh:
        former = state_dir / FORMER_URI
        _write(former, before)
    _write(path, fresh)
    return connection.target, former


async def attempt(text: str, state_dir: Path) -> str:
    """Ask the node of a URI who it is, once; keeps nothing.

    Returns: who answered, for the operator. Raises: ConfigError, PaymentError.
    """
    target = _usable(text).target
    asked = LndClient(Credentials({"LND_CONNECT": text}, state_dir, _PASTED))
    try:
        info = await asked.call(client.GET_INFO, pb.GetInfoRequest(), TRY_S)
    except LndError as error:
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise PaymentError(f"LND at {target} doesn't answer within {TRY_S:g} s: is it running, and up?") from error
        raise
    finally:
        await asked.close()
    network = info.chains[0].network if info.chains else "an unknown network"
    return f"node {info.identity_pubkey} on {network} answers there"


def _usable(text: str) -> Connection:
    connection = parse_uri(text, _PASTED)
    try:
        macaroon.read(connection.macaroon)
    except ConfigError:
        raise ConfigError(
            f"{_PASTED}: what it has as macaroon is none of LND's, or damaged: paste the whole of it, or make one anew"
        ) from None
    return connection


def _write(path: Path, content: bytes) -> None:
    """Write a secret, whole or not at all."""
    fresh = path.with_name(f"{path.name}.new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
