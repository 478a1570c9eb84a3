"""`ngp status`: one page about the running daemon."""

from __future__ import annotations

from typing import Any

from ngp.cli.client import Daemon
from ngp.cli.place import Place
from ngp.cli.show import NOT_REAL, clean, duration, print_fields, print_json
from ngp.cli.verbs import verb_command
from ngp.errors import NgpError


@verb_command("status")
def command(place: Place, as_json: bool) -> int:
    """Show the daemon's state."""
    status = ask_status(place)
    if as_json:
        print_json(status)
    else:
        print_fields([line for name, value in status.items() for line in _lines(name, value)])
    return 0


def ask_status(place: Place) -> dict[str, Any]:
    """Ask the daemon for its status. Raises NgpError as `Daemon.ask`."""
    status = Daemon(place.state_dir).ask("status")
    if not isinstance(status, dict):
        raise NgpError("the daemon's status makes no sense: another version of ngp? ngp stop; ngp start")
    return status


def money_is_real(status: dict[str, Any]) -> bool:
    """Say whether the daemon's money is known to be real."""
    payment = status.get("payment")
    if not isinstance(payment, dict):
        return False
    return bool(payment.get("real_money", payment.get("module") != "sandbox"))


def _lines(name: str, value: Any) -> list[tuple[str, str]]:
    """Turn one key into lines; a nested value gets a line for each of its keys."""
    if name == "uptime_s":
        return [("uptime", duration(value))]
    if name == "payment" and isinstance(value, dict):
        return [("payment", _payment(value))]
    if isinstance(value, dict):
        found = [line for key, inner in value.items() for line in _lines(f"{name} {key}", inner)]
        return found or [(_words(name), "-")]
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return [(_words(name), "; ".join(f"{_words(k)} {clean(v)}" for k, v in each.items())) for each in value]
    return [(_words(name), clean(value))]


def _words(name: str) -> str:
    return clean(name.replace("_", " "))


def _payment(payment: dict[str, Any]) -> str:
    ready = "ready" if payment.get("ready") else f"not ready: {clean(payment.get('why_not'))}"
    known = ("module", "ready", "why_not", "real_money")
    more = "".join(f", {_words(key)} {clean(value)}" for key, value in payment.items() if key not in known)
    real = "" if money_is_real({"payment": payment}) else f" ({NOT_REAL})"
    return f"{clean(payment.get('module'))}{real}, {ready}{more}"
