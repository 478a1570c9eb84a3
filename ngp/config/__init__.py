"""net.conf: its keys, their units, and how the file becomes `ngp.core.settings.Settings`."""

from ngp.config.advice import unwise
from ngp.config.destinations import PROTOCOL_NUMBERS, is_forwarded_to
from ngp.config.document import read_text
from ngp.config.key import Key
from ngp.config.keys import KEYS
from ngp.config.loader import default_path, load, parse, refuse_shown_secret, shipped_keys
from ngp.config.modules import FACE, LINK, NETWORK, PAYMENT, TUNNEL, installed_modules, module_class, module_settings
from ngp.config.reload import Changes, changes, keep_until_restart

__all__ = [
    "FACE",
    "KEYS",
    "LINK",
    "NETWORK",
    "PAYMENT",
    "PROTOCOL_NUMBERS",
    "TUNNEL",
    "Changes",
    "Key",
    "changes",
    "default_path",
    "installed_modules",
    "is_forwarded_to",
    "keep_until_restart",
    "load",
    "module_class",
    "module_settings",
    "parse",
    "read_text",
    "refuse_shown_secret",
    "shipped_keys",
    "unwise",
]
