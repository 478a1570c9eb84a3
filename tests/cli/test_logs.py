"""The log: modes, rotation, terminals that block, and the rate limit."""

from __future__ import annotations

import io
import logging
import os
import stat
import threading
from pathlib import Path

import pytest

from ngp.daemon import logs
from ngp.daemon.logs import LOG_FILES, LogFile, RateLimit, Terminal, WhileItLasts


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("ngp", logging.INFO, "", 0, text, None, None)


def test_rotated_files_are_few_small_and_closed_to_others(tmp_path: Path, monkeypatch: object) -> None:
    file = LogFile(tmp_path / "ngp.log")
    file.maxBytes = 200
    for number in range(100):
        file.emit(record(f"line {number} {'x' * 50}"))
    file.close()
    found = sorted(tmp_path.iterdir())
    assert [each.name for each in found] == ["ngp.log", *(f"ngp.log.{number}" for number in range(1, LOG_FILES))]
    assert {stat.S_IMODE(each.stat().st_mode) for each in found} == {0o640}
    assert max(each.stat().st_size for each in found) <= 200
    assert "line 99" in found[0].read_text()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.parametrize("put_there", [False, True], ids=["nocreate", "create"])
def test_a_log_that_is_moved_away_goes_on_under_its_name(tmp_path: Path, put_there: bool) -> None:
    log, moved = tmp_path / "ngp.log", tmp_path / "ngp.log-20300101"
    file = LogFile(log)
    file.emit(record("before"))
    log.rename(moved)
    if put_there:
        log.touch(0o666)
    file.emit(record("behind"))
    file.emit(record("last"))
    file.close()
    assert (lines(moved), lines(log)) == (["before"], ["behind", "last"])
    assert stat.S_IMODE(log.stat().st_mode) == 0o640


def test_a_log_that_is_deleted_or_cut_goes_on_with_its_whole_room(tmp_path: Path) -> None:
    log = tmp_path / "ngp.log"
    file = LogFile(log)
    file.maxBytes = 200
    file.emit(record("x" * 150))
    os.truncate(log, 0)  # copytruncate
    file.emit(record("y" * 150))
    assert lines(log) == ["y" * 150]
    log.unlink()
    file.emit(record("z" * 150))
    file.close()
    assert lines(log) == ["z" * 150]
    assert [each.name for each in tmp_path.iterdir()] == ["ngp.log"]


def test_a_log_that_cant_be_opened_anew_goes_on_in_the_old_file(tmp_path: Path) -> None:
    log, moved, precious = tmp_path / "ngp.log", tmp_path / "moved", tmp_path / "precious"
    precious.write_text("mine")
    file = LogFile(log)
    log.rename(moved)
    log.symlink_to(precious)
    file.emit(record("in the old one"))
    log.unlink()
    file.emit(record("in the new one"))
    file.close()
    assert (lines(moved), lines(log), precious.read_text()) == (["in the old one"], ["in the new one"], "mine")


def test_neither_a_folder_nor_a_pipe_in_the_place_of_the_log_holds_up_the_daemon(tmp_path: Path) -> None:
    log, moved = tmp_path / "ngp.log", tmp_path / "moved"
    file = LogFile(log)
    log.rename(moved)
    os.mkfifo(log)
    file.emit(record("beside the pipe"))
    log.unlink()
    log.mkdir()
    file.emit(record("beside the folder"))
    log.rmdir()
    file.emit(record("in the new one"))
    file.close()
    assert (lines(moved), lines(log)) == (["beside the pipe", "beside the folder"], ["in the new one"])


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "ngp.log").symlink_to(tmp_path / "precious")
    try:
        logs.open_log(tmp_path / "ngp.log")
    except OSError:
        assert (tmp_path / "precious").read_text() == "mine"
    else:
        raise AssertionError("it was opened")


class Stuck(io.StringIO):
    """A terminal that was stopped with Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.reached = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.go_on.wait(30)
        return super().write(text)


def test_a_stopped_terminal_blocks_nobody_and_loses_lines_with_a_word() -> None:
    stream = Stuck()
    terminal = Terminal(stream)
    terminal.emit(record("first"))
    assert stream.reached.wait(30)
    for number in range(2000):
        terminal.emit(record(f"line {number}"))
    stream.go_on.set()
    while terminal._lines.qsize():
        stream.reached.clear()
        stream.reached.wait(0.01)
    terminal.emit(record("last"))
    terminal.close()
    text = stream.getvalue()
    assert "(1000 lines left out" in text
    assert text.endswith("last\n")


class Counting(io.StringIO):
    """Counts how often it is written to, and says when the first line is there."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.reached = threading.Event()

    def write(self, text: str) -> int:
        self.writes += 1
        self.reached.set()
        return super().write(text)


def test_a_line_is_written_at_once_and_those_of_the_next_ms_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = threading.Event()
    monkeypatch.setattr("ngp.daemon.logs.time.sleep", lambda _: pause.wait(30))
    stream = Counting()
    terminal = Terminal(stream)
    terminal.emit(record("first"))
    assert stream.reached.wait(30), "no other line must come before it is written"
    for number in range(100):
        terminal.emit(record(f"line {number}"))
    pause.set()
    terminal.close()
    assert stream.getvalue().split() == ["first", *(word for n in range(100) for word in ("line", str(n)))]
    assert stream.writes == 2


def test_a_vanished_terminal_is_forgotten() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream)
    stream.close()
    for _ in range(5000):
        terminal.emit(record("into the void"))
    terminal.close()


def test_rate_limit_lets_a_burst_through_and_counts_the_rest() -> None:
    now = [0.0]
    limit = RateLimit(burst=2, every_s=60, clock=lambda: now[0])
    assert [limit.take("malformed") for _ in range(5)] == [0, 0, None, None, None]
    assert limit.take("replayed") == 0, "kinds don't share"
    now[0] = 60.0
    assert [limit.take("malformed") for _ in range(2)] == [3, None]


def test_rate_limit_remembers_a_bounded_number_of_kinds() -> None:
    limit = RateLimit(burst=1, kinds_most=10)
    for number in range(1000):
        limit.take(str(number))
    assert len(limit._kinds) == 10


def test_a_condition_is_told_when_it_begins_now_and_then_while_it_lasts_and_when_it_comes_back() -> None:
    now = [0.0]
    conditions = WhileItLasts(over_s=60, every_s=3600, clock=lambda: now[0])
    told = []
    for now[0] in range(0, 7201, 5):
        if conditions.is_news("locked"):
            told.append(now[0])
    assert told == [0, 3600, 7200]
    assert conditions.is_news("away"), "another one"
    now[0] += 60
    assert conditions.is_news("locked"), "it was over"
    assert not conditions.is_news("locked")


def test_conditions_remembered_are_bounded() -> None:
    conditions = WhileItLasts(kinds_most=10)
    for number in range(1000):
        conditions.is_news(str(number))
    assert len(conditions._kinds) == 10
