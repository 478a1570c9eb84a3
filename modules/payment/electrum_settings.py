"""Settings of the module electrum: where the daemon is, its login, and the wallet."""

from __future__ import annotations

from ngp.module_keys import (
    KeyText,
    ModuleKey,
    ModuleSettings,
    host_and_port,
    one_word,
    password_file,
    path_as_written,
)
from ngp.modules.payment import node_account


def _host(written: KeyText) -> str:
    return path_as_written(written) if written.text.startswith(("/", "~")) else host_and_port(written)


SETTINGS = ModuleSettings(
    (
        ModuleKey(
            "ELECTRUM_HOST",
            "host:port, or a folder",
            _host,
            "where Electrum's daemon serves JSON-RPC, or the folder of its data; none = find it on this machine",
        ),
        ModuleKey(
            "ELECTRUM_USER",
            "text",
            one_word,
            "Electrum's rpcuser; none = as in the config in its folder",
        ),
        ModuleKey(
            "ELECTRUM_PASSWORD_FILE",
            "file",
            password_file,
            "Electrum's rpcpassword, in a file of mode 0600; none = as in the config in its folder",
        ),
        ModuleKey(
            "ELECTRUM_WALLET",
            "file",
            path_as_written,
            "the wallet's file, on the machine of the daemon; none = Electrum's default wallet",
        ),
    ),
    node_account.check("electrum"),
)
