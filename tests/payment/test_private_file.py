"""Nobody else can read a payment module's SQLite file, whatever the umask is."""

from __future__ import annotations

import os
import stat
from contextlib import closing
from pathlib import Path

from ngp.modules.payment import private_file


def test_a_file_is_made_for_its_owner_alone_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "a.db"
    before = os.umask(0)
    try:
        with closing(private_file.connect(path)) as connection:
            connection.execute("CREATE TABLE kept (number INTEGER)")
            connection.execute("INSERT INTO kept VALUES (7)")
            modes = [stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()]
    finally:
        os.umask(before)
    assert len(modes) > 1 and set(modes) == {0o600}  # also the files that SQLite makes beside it
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with closing(private_file.connect(path)) as connection:
        assert connection.execute("SELECT number FROM kept").fetchall() == [(7,)]
