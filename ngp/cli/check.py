"""`ngp check`: lists what is missing, each with the command that mends it.

The command always reads net.conf itself: a running daemon may have read another file, or this one before it was edited.
If a daemon runs, the command sends it the text of the file, and the daemon checks the kernel, payments and the ledger
with these settings.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from ngp.cli import aftermath
from ngp.cli.client import Absent, Daemon
from ngp.cli.place import Place
from ngp.cli.show import Row, clean, print_json_rows
from ngp.cli.verbs import verb_command
from ngp.core.values import Check
from ngp.daemon.api.plain import plain
from ngp.daemon.api.rows import check_row
from ngp.errors import ConfigError, ExitCode, RunningError

if TYPE_CHECKING:
    from ngp.core.settings import Settings

_MOST_ASKED_BYTES = 60_000  # a question to the daemon has at most 64 kB
_KINDS = {
    "configuration": ExitCode.CONFIGURATION,
    "kernel": ExitCode.KERNEL,
    "payment": ExitCode.PAYMENT,
    "ledger": ExitCode.LEDGER,
}


@verb_command("check")
def command(place: Place, as_json: bool) -> int:
    """Check and print the result."""
    configuration, settings, text = _check_configuration(place)
    rows = [configuration, *_advice(settings), *_rest(place, settings, text)]
    if as_json:
        print_json_rows(rows)
    else:
        _print(rows)
    failed = {_kind(row) for row in rows if row.get("ok") is not True}
    return next((int(code) for kind, code in _KINDS.items() if kind in failed), int(ExitCode.DONE))


def _check_configuration(place: Place) -> tuple[Row, Settings | None, str]:
    from ngp.config import parse, read_text, refuse_shown_secret

    try:
        text = read_text(place.config_path, trusted_only=True)
        settings = parse(text, place.config_path)
    except ConfigError as error:
        how = "correct the file" if _has_file(place) else "do what the message says"
        bad = Check("configuration", False, str(error), f"{how}, then run ngp check again")
        return _row(bad, "configuration"), None, ""
    try:
        refuse_shown_secret(settings, place.config_path)
    except ConfigError as error:  # the checks go on without it
        return _row(Check("configuration", False, str(error)), "configuration"), settings, text
    return _row(Check("configuration", True, str(place.config_path)), "configuration"), settings, text


def _advice(settings: Settings | None) -> list[Row]:
    from ngp.config import unwise

    return [] if settings is None else [_row(each, "configuration") for each in unwise(settings)]


def _has_file(place: Place) -> bool:
    try:
        return os.path.lexists(place.config_path)
    except ConfigError:  # no file is given, and the default places have none
        return False


def _rest(place: Place, settings: Settings | None, text: str) -> list[Row]:
    asked: dict[str, object] = {} if settings is None else {"text": text, "path": str(place.config_path)}
    unread = ""
    if settings is None:
        unread = "the following lines are about the settings that the daemon runs with, not about this file"
    elif len(json.dumps(asked)) > _MOST_ASKED_BYTES:
        unread = "the file is too long for the daemon: the following lines are about the settings that it runs with"
    try:
        found = [row for row in Daemon(place.state_dir).rows("check", **({} if unread else asked))]
        noted = [_row(Check("daemon", True, unread), "configuration")] if unread else []
        return noted + [row for row in found if row.get("name") != "configuration"] + _directory(place)
    except Absent:
        standing = _standing(place)
    except (RunningError, ConfigError):  # the daemon is just starting or stopping, or its state directory is unknown
        standing = []
    if settings is None:
        return standing
    from ngp.daemon import offline  # late: it imports every module

    rows = [_row(each, "kernel") for each in offline.check_network(settings, place.state_dir)]
    payment = [_row(each, "payment") for each in offline.check_payment(settings, place.state_dir)]
    state = [_row(each, "ledger") for each in offline.check_state(place.state_dir, settings)]
    return [*standing, *rows, *payment, *state]


def _directory(place: Place) -> list[Row]:
    """Return what the next start would refuse about the state directory that a running daemon has open."""
    from ngp.daemon.belongings import look_at_directory

    return [_row(look_at_directory(place.state_dir), "kernel")]


def _standing(place: Place) -> list[Row]:
    """Return the line on what is in force without a daemon, not ok if traffic is affected; empty if nothing is."""
    found = aftermath.look(place)
    return [_row(found, "kernel")] if found else []


def _row(check: Check, kind: str) -> Row:
    row: Row = plain(check_row(check, kind))
    return row


def _kind(row: Row) -> str:
    """Return the kind of a row, which decides the exit code. If a row has no kind, its name may be one."""
    for said in (row.get("kind"), row.get("name")):
        if said in _KINDS:
            return str(said)
    return "kernel"


def _is_warning(row: Row) -> bool:
    return row.get("ok") is True and bool(row.get("remedy"))


def _print(rows: list[Row]) -> None:
    width = max(len(clean(row.get("name"))) for row in rows)
    for row in rows:
        mark = "MISSING" if row.get("ok") is not True else "WARNING" if _is_warning(row) else "ok     "
        first, *more = str(row.get("found", "")).splitlines() or [""]
        print(f"{mark}  {clean(row.get('name')):{width}}  {clean(first)}")
        for line in more:
            print(f"{'':7}  {'':{width}}  {clean(line)}")
        if row.get("remedy"):
            print(f"{'':7}  {'':{width}}  mend: {clean(row['remedy'])}")
    missing = sum(row.get("ok") is not True for row in rows)
    warnings = sum(map(_is_warning, rows))
    told = f"{missing} of {len(rows)} must be mended" if missing else f"all {len(rows)} are well"
    print(f"\n{told}{f', {warnings} with a warning' if warnings else ''}")
