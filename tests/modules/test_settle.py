"""Waiting until all running programs have ended: the wait is as long as needed, and one wait serves many callers."""

from __future__ import annotations

import asyncio
import threading

from charge_lab import ChargeLab, run

from ngp.errors import KernelError
from ngp.modules.network import settle


def test_waiting_ends_when_the_programs_that_ran_have_ended(lab: ChargeLab) -> None:
    """A program runs on another processor for two tenths of a second, and the wait begins while it runs."""
    table = lab.programs.table("lab_progress")
    memory = table.map_memory()
    wait = settle.ProgramsWait()
    runs = threading.Thread(target=run, args=(lab.programs.program("slow"),))
    try:
        runs.start()
        while memory[0] == 0:
            pass
        wait.wait()
        assert memory[0] == 2
    finally:
        runs.join()
        wait.close()
        wait.wait()  # closed: nothing to wait for
        memory.close()
        table.close()


def test_all_that_wait_share_one_wait_and_a_later_caller_gets_the_next() -> None:
    async def scenario() -> None:
        begun, go_on = [threading.Event() for _ in range(3)], [threading.Event() for _ in range(3)]
        calls: list[int] = []

        def wait() -> None:
            calls.append(len(calls))
            begun[calls[-1]].set()
            assert go_on[calls[-1]].wait(60)

        settling = settle.Settling(wait)
        first = [asyncio.create_task(settling.settled()) for _ in range(5)]
        await asyncio.to_thread(begun[0].wait, 60)
        later = [asyncio.create_task(settling.settled()) for _ in range(5)]
        await asyncio.sleep(0)
        go_on[0].set()
        await asyncio.gather(*first)
        await asyncio.to_thread(begun[1].wait, 60)
        assert not any(task.done() for task in later), "theirs has just begun"
        later[0].cancel()
        go_on[1].set()
        await asyncio.gather(*later[1:])
        go_on[2].set()
        await settling.settled()
        assert calls == [0, 1, 2]

    asyncio.run(scenario())


def test_a_wait_that_fails_tells_all_and_the_next_is_tried() -> None:
    async def scenario() -> None:
        answers: list[KernelError | None] = [KernelError("refused"), None]

        def wait() -> None:
            if answer := answers.pop(0):
                raise answer

        settling = settle.Settling(wait)
        found = await asyncio.gather(*(settling.settled() for _ in range(3)), return_exceptions=True)
        assert [str(each) for each in found] == ["refused"] * 3
        await settling.settled()

    asyncio.run(scenario())
