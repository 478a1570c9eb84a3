"""Settings of the module lnd: where the node is, and what lets ngp use it."""

from __future__ import annotations

import re

from ngp.errors import ConfigError
from ngp.module_keys import KeyText, ModuleKey, ModuleSettings, file_path, host_and_port, secret_file
from ngp.modules.payment import node_account

_SYSTEM = "system"


def _connect_uri(written: KeyText) -> str:
    if re.fullmatch(r"lndconnect://[!-~]+[?&]macaroon=[!-~]+", written.text) is None:
        raise ConfigError("is not an lndconnect:// URI with a macaroon: write the whole of it, in quotes")
    return written.text


def _certificate(written: KeyText) -> str:
    return _SYSTEM if written.text == _SYSTEM else file_path(written)


SETTINGS = ModuleSettings(
    (
        ModuleKey(
            "LND_CONNECT",
            "lndconnect:// URI",
            _connect_uri,
            "the LND node and its macaroon in one; a secret: this file must have mode 0600",
            secret="the macaroon",
            instead="`ngp lightning connect`",
        ),
        ModuleKey(
            "LND_HOST",
            "host:port",
            host_and_port,
            "where LND serves gRPC, unless LND_CONNECT says so; none = localhost:10009",
        ),
        ModuleKey(
            "LND_CERT",
            "file, or system",
            _certificate,
            "LND's tls.cert, read again when it changes; none = in its usual place; system = the system's authorities",
        ),
        ModuleKey(
            "LND_MACAROON",
            "file",
            secret_file,
            "the macaroon with the rights that ngp check names; mode 0600",
        ),
    ),
    node_account.check("lnd"),
)
