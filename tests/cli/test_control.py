"""The control socket: bounds, rights, hostile questions to the server and hostile answers to the client."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ngp.cli.client import BrokenOff, Daemon
from ngp.daemon import control
from ngp.daemon.control import MOST_CONNECTIONS, MOST_REQUEST_BYTES, ControlServer
from ngp.errors import ExitCode, KernelError, NgpError, RunningError
from tests.cli.conftest import ROOT

NOBODY = 65534


async def echo(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments


async def half(_arguments: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    for number in range(control.ROWS_A_CHUNK):
        yield {"number": number}
    raise NgpError("the disk failed in the middle")


async def unwritable(_arguments: dict[str, Any]) -> object:
    return {1, 2}


HANDLERS: dict[str, control.Handler] = {"echo": echo, "half": half, "unwritable": unwritable}


def ask_raw(path: Path, question: bytes) -> dict[str, Any]:
    """Send bytes and read one line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        with suppress(BrokenPipeError):  # the server has read enough
            connection.sendall(question)
        with connection.makefile("rb") as answer:
            return dict(json.loads(answer.readline()))


async def in_thread(function: Callable[..., Any], *words: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *words)


def serve(folder: Path, test: Callable[[ControlServer, Path], Any], **more: Any) -> None:
    """Run a coroutine function beside a server."""

    async def run() -> None:
        path = folder / "control.sock"
        server = ControlServer(path, HANDLERS, **more)
        await server.start()
        try:
            await test(server, path)
        finally:
            await server.close()
        assert not path.exists()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (b"garbage\n", "not a question"),
        (b"\xff\xfe\n", "not a question"),
        (b"[]\n", "not a question"),
        (b"{}\n", "not a question"),
        (b'{"verb": 7}\n', "not a question"),
        (b'{"verb": "echo", "arguments": []}\n', "not a question"),
        (b"[" * 30000 + b"\n", "not a question"),
        (b'{"verb": "dance"}\n', "no verb 'dance'"),
        (b"x" * (2 * MOST_REQUEST_BYTES), "longer than"),
    ],
    ids=lambda value: repr(value[:40]),  # the name of a test travels between processes
)
def test_hostile_questions_get_one_error(tmp_path: Path, question: bytes, said: str) -> None:
    async def test(_server: ControlServer, path: Path) -> None:
        answer = await in_thread(ask_raw, path, question)
        assert answer["ok"] is False
        assert said in answer["error"]
        assert answer["exit_code"] == 1
        assert await in_thread(lambda: Daemon(tmp_path).ask("echo", still="there")) == {"still": "there"}

    serve(tmp_path, test)


def test_a_slow_question_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_S", 0.05)

    async def test(_server: ControlServer, path: Path) -> None:
        assert "no question within" in (await in_thread(ask_raw, path, b'{"verb"'))["error"]

    serve(tmp_path, test)


def test_too_many_connections_are_told_and_the_others_go_on(tmp_path: Path) -> None:
    async def test(_server: ControlServer, path: Path) -> None:
        waiting = [await asyncio.open_unix_connection(path) for _ in range(MOST_CONNECTIONS)]
        reader, writer = await asyncio.open_unix_connection(path)
        assert "others are asking" in json.loads(await reader.readline())["error"]
        writer.close()
        waiting[0][1].write(b'{"verb": "echo"}\n')
        assert json.loads(await waiting[0][0].readline()) == {"ok": True, "result": {}}
        for _, each in waiting:
            each.close()

    serve(tmp_path, test)


def test_a_caller_that_does_not_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REPLY_S", 0.05)
    ended = asyncio.Event()

    async def endless(_arguments: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        try:
            while True:
                yield {"filler": "x" * 10_000}
        finally:
            ended.set()

    monkeypatch.setitem(HANDLERS, "endless", endless)

    async def test(_server: ControlServer, path: Path) -> None:
        _reader, writer = await asyncio.open_unix_connection(path, limit=1024)
        writer.write(b'{"verb": "endless"}\n')
        await asyncio.wait_for(ended.wait(), 30)
        writer.close()

    serve(tmp_path, test)


def test_a_long_list_lets_the_loop_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def many(_arguments: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"number": number, "filler": "x" * 300} for number in range(20_000)]

    monkeypatch.setitem(HANDLERS, "many", many)
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def test(_server: ControlServer, _path: Path) -> None:
        ticking = asyncio.create_task(tick())
        rows = await in_thread(lambda: list(Daemon(tmp_path).rows("many")))
        ticking.cancel()
        assert [row["number"] for row in rows] == list(range(20_000))
        assert turns > 20_000 / control.ROWS_A_CHUNK

    serve(tmp_path, test)


def test_an_error_in_the_middle_of_a_list_is_an_error(tmp_path: Path) -> None:
    async def test(_server: ControlServer, _path: Path) -> None:
        with pytest.raises(NgpError, match="in the middle"):
            await in_thread(lambda: list(Daemon(tmp_path).rows("half")))
        with pytest.raises(NgpError, match="see its log"):
            await in_thread(lambda: Daemon(tmp_path).ask("unwritable"))

    serve(tmp_path, test)


def test_a_path_longer_than_the_kernel_takes(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()

    async def test(_server: ControlServer, _path: Path) -> None:
        assert await in_thread(lambda: Daemon(folder).ask("echo", a=1)) == {"a": 1}

    serve(folder, test)


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "control.sock"))
    with pytest.raises(RunningError):
        Daemon(tmp_path).ask("echo")

    async def test(_server: ControlServer, _path: Path) -> None:
        assert await in_thread(lambda: Daemon(tmp_path).ask("echo")) == {}

    serve(tmp_path, test)


def test_an_answer_under_way_is_finished_at_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def late(_arguments: dict[str, Any]) -> str:
        asked.set()
        await answer.wait()
        return "late"

    monkeypatch.setitem(HANDLERS, "late", late)

    async def test(server: ControlServer, _path: Path) -> None:
        question = asyncio.create_task(in_thread(lambda: Daemon(tmp_path).ask("late")))
        await asked.wait()
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        answer.set()
        await closing
        assert await question == "late"

    serve(tmp_path, test)


# --- rights -----------------------------------------------------------------------------------------------------------


def ask_as(uid: int, folder: Path, groups: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Ask as another user, in a process that drops root's rights after its imports, which may be root's alone."""
    program = (
        "import os, sys; from ngp.cli import run, server; "
        f"os.setgroups({list(groups)}); os.setgid({uid}); os.setuid({uid}); "
        f"sys.exit(run(['server', 'test', '--state-dir', {str(folder)!r}]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder that other users can reach. pytest's own folders can become closed when its next run begins."""
    with tempfile.TemporaryDirectory(prefix="ngpt-") as made:
        os.chmod(made, 0o711)
        yield Path(made)


def test_mode_is_for_the_owner_alone_without_a_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "operators_group", lambda: None)

    async def test(_server: ControlServer, path: Path) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        refused = await in_thread(ask_as, NOBODY, folder)
        assert refused.returncode == 4
        assert "no rights to ask the daemon on" in refused.stderr and "sudo" in refused.stderr
        path.chmod(0o666)  # a mode changed by mistake doesn't open the daemon to others
        refused = await in_thread(ask_as, NOBODY, folder)
        assert refused.returncode == 4
        assert "only root" in refused.stderr

    serve(folder, test)


def test_a_user_without_rights_is_not_told_whether_a_daemon_runs(folder: Path) -> None:
    closed = folder / "state"
    closed.mkdir(mode=0o700)
    refused = ask_as(NOBODY, closed)
    assert refused.returncode == 4
    assert f"no rights to see whether a daemon runs on {closed}: use sudo" in refused.stderr


def test_members_of_the_group_may_ask_but_not_what_is_for_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "operators_group", lambda: 54321)
    monkeypatch.setitem(HANDLERS, "test", echo)

    async def members(_server: ControlServer, path: Path) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == 54321
        assert (await in_thread(ask_as, NOBODY, folder, (54321,))).stdout == "Test OK\n"
        assert (await in_thread(ask_as, NOBODY, folder)).returncode == 4

    async def rooted(_server: ControlServer, _path: Path) -> None:
        refused = await in_thread(ask_as, NOBODY, folder, (54321,))
        assert refused.returncode == 4
        assert "needs root" in refused.stderr
        assert (await in_thread(ask_as, os.geteuid(), folder)).stdout == "Test OK\n"

    serve(folder, members)
    serve(folder, rooted, root_only=("test",))


# --- hostile answers --------------------------------------------------------------------------------------------------


@contextmanager
def answering(folder: Path, answer: bytes) -> Iterator[None]:
    """Let another program listen on the socket and answer one question with these bytes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "control.sock"))
        listener.listen()

        def one() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                with suppress(BrokenPipeError, ConnectionResetError):  # the client has read enough
                    connection.sendall(answer)

        thread = threading.Thread(target=one)
        thread.start()
        yield
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\n", b"7\n", b"[]\n", b"{}\n", b"\xff\n", b'{"ok": true}\n', b"[" * 100_000 + b"\n",
        b'{"ok": true, "rows": true}\n[7]\n', b'{"ok": true, "rows": true}\n[]\n{"ok": true, "count": 5}\n',
        b'{"ok": false}\n', b"x" * (1 << 25), b"", b'{"ok": true, "resu', b'{"ok": true, "rows": true}\n[{"a": 1}]\n',
    ],
    ids=lambda answer: repr(answer[:40]),  # the name of a test travels between processes
)  # fmt: skip
def test_senseless_answers_are_an_error(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path, answer), pytest.raises(NgpError) as caught:
        Daemon(tmp_path).ask("status")
    assert caught.value.exit_code == ExitCode.OTHER
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("said", "code"), [(4, 4), (7, 7), (0, 1), (99, 1), (True, 1), ("4", 1), (None, 1)])
def test_only_known_exit_codes_are_taken_over(tmp_path: Path, said: object, code: int) -> None:
    answer = json.dumps({"ok": False, "error": "no", "exit_code": said}).encode() + b"\n"
    with answering(tmp_path, answer), pytest.raises(NgpError, match="no") as caught:
        Daemon(tmp_path).ask("status")
    assert caught.value.exit_code == code


def test_silence_is_an_error_after_a_while(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()
        with pytest.raises(NgpError, match="no answer within"):
            Daemon(tmp_path, answer_s=0.05).ask("status")


def test_an_answer_that_breaks_off_is_told_apart(tmp_path: Path) -> None:
    with answering(tmp_path, b'{"ok": true, "rows": true}\n'), pytest.raises(BrokenOff):
        Daemon(tmp_path).ask("contracts")


def test_a_folder_that_cannot_hold_the_socket_is_a_kernel_error(tmp_path: Path) -> None:
    with pytest.raises(KernelError):
        asyncio.run(ControlServer(tmp_path / "absent" / "control.sock", {}).start())
