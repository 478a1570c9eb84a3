"""Browser: both ends of a page's many connections; each is a process in a host, controlled by lines of JSON.

    python -m core_tests.bench.browser serve | visit

`serve` answers on every address of its host with the number of bytes that a client asks for; `visit` opens many hosts
at once, as a browser does, and reports how long the slowest took. Input is one JSON list a line, output one JSON value
a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

PORT = 8080
PATIENCE_S = 30.0  # after this time a browser gives a connection up
_CHUNK_BYTES = 1 << 16


async def serve() -> None:
    """Send each client as many bytes as its first line asks for, until standard input ends."""
    async with await asyncio.start_server(_answer, "0.0.0.0", PORT, backlog=4096):
        _say("ready")
        await asyncio.to_thread(sys.stdin.read)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        left = int(await reader.readline() or 0)
        while left:
            size = min(left, _CHUNK_BYTES)
            writer.write(bytes(size))
            await writer.drain()
            left -= size
        writer.close()
        await writer.wait_closed()
    except OSError:
        writer.close()  # the visitor gave up, and reports that


async def visit() -> None:
    """Open all hosts that a line names at once, and report the result."""
    _say("ready")
    while words := await asyncio.to_thread(sys.stdin.readline):
        _, hosts, size_bytes = json.loads(words)
        _say(await _open_all(hosts, size_bytes))


async def _open_all(hosts: Sequence[str], size_bytes: int) -> dict[str, Any]:
    began = time.monotonic()
    found = await asyncio.gather(*(_open(host, size_bytes) for host in hosts))
    return {"seconds": time.monotonic() - began, "failed": [why for why in found if why]}


async def _open(host: str, size_bytes: int) -> str:
    """Fetch a number of bytes from a host; returns the reason of a failure, empty if all of them came."""
    came = 0
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(host, PORT)
            writer.write(f"{size_bytes}\n".encode())
            while data := await reader.read(_CHUNK_BYTES):
                came += len(data)
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        return f"{host}: {came} of {size_bytes} bytes, then {str(error) or type(error).__name__}"
    return "" if came == size_bytes else f"{host}: {came} of {size_bytes} bytes"


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    asyncio.run({"serve": serve, "visit": visit}[sys.argv[1]]())
