"""Pasted URI: checks an lndconnect URI that the operator enters, tries it at its node, and keeps it for the next start.

The new URI replaces the one that the daemon would have used. So a URI that can't work is refused, and the previous URI
stays in a second file, in case the new URI works, but for another node than the operator meant.
"""

from __future__ import annotations

from pathlib import Path

import grpc

from ngp import durable_file
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
    """Keep a pasted URI where `Credentials` finds it, in a file that only we can read.

    Returns: `host:port`, and the file with the URI that was replaced; None if there was none, or the same one.
    Raises: ConfigError, OSError; then the previous URI stays in use.
    """
    connection = _usable(text)
    path, former = state_dir / STORED_URI, None
    fresh = text.strip().encode() + b"\n"
    if path.exists() and (before := path.read_bytes()) != fresh:
        former = state_dir / FORMER_URI
        durable_file.replace(former, before)
    durable_file.replace(path, fresh)
    return connection.target, former


async def attempt(text: str, state_dir: Path) -> str:
    """Ask the node of a URI once for its identity; keeps nothing.

    Returns: the node that answered, as a text for the operator. Raises: ConfigError, PaymentError.
    """
    target = _usable(text).target
    asked = LndClient(Credentials({"LND_CONNECT": text}, state_dir, _PASTED))
    try:
        info = await asked.call(client.GET_INFO, pb.GetInfoRequest(), TRY_S)
    except LndError as error:
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise PaymentError(f"LND at {target} doesn't answer within {TRY_S:g} s: is LND running there?") from error
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
            f"{_PASTED}: its macaroon is not of LND, or damaged: paste the whole URI, or make a new URI"
        ) from None
    return connection
