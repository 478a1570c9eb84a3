"""A server of Electrum's protocol for the laboratory, over btcd: only the methods that Electrum 4.3 uses.

It keeps a small chain in memory as a whole, and looks for new blocks and transactions several times a second. The
laboratory's chain never reorganises; if it did, the server would end with an error.
Source: https://electrumx.readthedocs.io/en/latest/protocol-methods.html (version 1.4)

    python -m core_tests.lightning.electrum_server LISTEN_HOST:PORT BTCD_HOST:PORT RPC_CERTIFICATE
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from core_tests.lightning.nodes import RPC_PASSWORD, RPC_USER

POLL_S = 0.1
BATCH = 100
COIN = 100_000_000
PROTOCOL = "1.4"
FEE_BTC_PER_KB = 0.0001
Json = Any


class Refused(Exception):
    """A client's request can't be done; the message to the client says why."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction, with the scripts of its outputs and of its known inputs."""

    txid: str
    raw: str
    fee_sat: int
    scripts: frozenset[str]


@dataclass(slots=True)
class Chain:
    """The chain and the transactions that wait for a block, indexed by script."""

    btcd: Btcd
    headers: list[str] = field(default_factory=list)
    blocks: list[list[str]] = field(default_factory=list)
    waiting: dict[str, None] = field(default_factory=dict)
    transactions: dict[str, Transaction] = field(default_factory=dict)
    outputs: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    confirmed: dict[str, list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def height(self) -> int:
        return len(self.headers) - 1

    def look(self) -> tuple[bool, set[str]]:
        """Ask btcd for news; returns whether there is a new block, and the scripts whose history changed."""
        before, touched = self.height, set[str]()
        (tip,) = self.btcd.ask([("getblockcount", [])])
        for first in range(before + 1, tip + 1, BATCH):
            touched |= self._add_blocks(range(first, min(first + BATCH, tip + 1)))
        (now_waiting,) = self.btcd.ask([("getrawmempool", [])])
        fresh = [txid for txid in now_waiting if txid not in self.waiting]
        told = self.btcd.ask([("getrawtransaction", [txid, 1]) for txid in fresh])
        known = {one["txid"]: one for one in told if one is not None}  # None: it was mined meanwhile
        for txid in _parents_first(known):
            touched |= self._add(known[txid]).scripts
        self.waiting = {txid: None for txid in now_waiting if txid in self.transactions}
        return self.height > before, touched

    def _add_blocks(self, heights: Iterable[int]) -> set[str]:
        touched = set[str]()
        hashes = self.btcd.ask([("getblockhash", [height]) for height in heights])
        headers = self.btcd.ask([("getblockheader", [name, False]) for name in hashes])
        for header, block in zip(headers, self.btcd.ask([("getblock", [name, 2]) for name in hashes]), strict=True):
            if self.headers and header[8:72] != _double_sha256(bytes.fromhex(self.headers[-1])).hex():
                raise RuntimeError(f"the chain was reorganised at block {self.height + 1}")
            self.headers.append(header)
            self.blocks.append([one["txid"] for one in block["rawtx"]])
            for one in block["rawtx"]:
                added = self._add(one)
                self.waiting.pop(added.txid, None)
                for script in added.scripts:
                    self.confirmed[script].append((added.txid, self.height))
                touched |= added.scripts
        return touched

    def _add(self, told: Json) -> Transaction:
        txid, spent, paid, scripts = told["txid"], 0, 0, set[str]()
        for number, out in enumerate(told["vout"]):
            output = _script_hash(bytes.fromhex(out["scriptPubKey"]["hex"])), round(out["value"] * COIN)
            self.outputs[txid, number] = output
            scripts.add(output[0])
            paid += output[1]
        for one in told["vin"]:
            script, value = self.outputs.get((one.get("txid", ""), one.get("vout", 0)), ("", 0))
            spent += value
            scripts.add(script)
        self.transactions[txid] = Transaction(txid, told["hex"], max(0, spent - paid), frozenset(scripts - {""}))
        return self.transactions[txid]

    def history(self, script: str) -> list[dict[str, Json]]:
        """List the transactions that touch a script, mined ones first."""
        found = [{"tx_hash": txid, "height": height} for txid, height in self.confirmed.get(script, [])]
        for txid in self.waiting:
            known = self.transactions[txid]
            if script in known.scripts:
                found.append({"tx_hash": txid, "height": 0, "fee": known.fee_sat})
        return found

    def status(self, script: str) -> str | None:
        """Sum up a script's history, as the protocol has it."""
        text = "".join(f"{one['tx_hash']}:{one['height']}:" for one in self.history(script))
        return sha256(text.encode()).hexdigest() if text else None

    def branch(self, height: int, position: int) -> list[str]:
        """Return the Merkle branch of a block's transaction."""
        level, found = [bytes.fromhex(txid)[::-1] for txid in self.blocks[height]], []
        while len(level) > 1:
            level += level[-1:] * (len(level) % 2)
            found.append(level[position ^ 1][::-1].hex())
            level = [_double_sha256(level[at] + level[at + 1]) for at in range(0, len(level), 2)]
            position >>= 1
        return found


class Btcd:
    """btcd's JSON-RPC, asked in batches: it closes the connection after each."""

    def __init__(self, address: str, certificate: Path) -> None:
        self._url = f"https://{address}"
        self._context = ssl.create_default_context(cafile=str(certificate))
        self._context.check_hostname = False
        self._authorization = "Basic " + base64.b64encode(f"{RPC_USER}:{RPC_PASSWORD}".encode()).decode()

    def ask(self, calls: list[tuple[str, list[Json]]]) -> list[Json]:
        """Return the results in order, None for a request that btcd refused."""
        if not calls:
            return []
        asked = [
            {"jsonrpc": "2.0", "id": number, "method": method, "params": words}
            for number, (method, words) in enumerate(calls)
        ]
        head = {"Authorization": self._authorization, "Content-Type": "application/json"}
        request = urllib.request.Request(self._url, json.dumps(asked).encode(), head)
        with urllib.request.urlopen(request, context=self._context, timeout=60) as answer:
            told = {one["id"]: one["result"] for one in json.load(answer)}
        return [told[number] for number in range(len(calls))]

    def broadcast(self, raw: str) -> str:
        """Broadcast a transaction. Raises: Refused."""
        (txid,) = self.ask([("sendrawtransaction", [raw])])
        if txid is None:
            raise Refused("the transaction was rejected")
        return str(txid)


class Client:
    """One connection of an Electrum."""

    def __init__(self, server: Server, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._writer = writer
        self.scripts: set[str] = set()
        self.follows_headers = False

    def tell(self, message: Json) -> None:
        """Send a line; no error if the other side has closed the connection."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def answer(self, line: bytes) -> None:
        """Carry out one request."""
        asked = json.loads(line)
        told: dict[str, Json] = {"jsonrpc": "2.0", "id": asked.get("id")}
        try:
            told["result"] = await self._server.carry_out(self, asked["method"], asked.get("params", []))
        except Refused as error:
            told["error"] = {"code": 1, "message": str(error)}
        self.tell(told)


class Server:
    """Answers clients and notifies them of news."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._clients: set[Client] = set()
        self._methods: dict[str, Callable[..., Json]] = {
            "server.version": lambda *_: ["ngp lab", PROTOCOL],
            "server.banner": lambda: "",
            "server.donation_address": lambda: "",
            "server.ping": lambda: None,
            "server.peers.subscribe": list,
            "mempool.get_fee_histogram": list,
            "blockchain.relayfee": lambda: 0.00001,
            "blockchain.estimatefee": lambda _: FEE_BTC_PER_KB,
            "blockchain.block.header": self._header,
            "blockchain.block.headers": self._headers,
            "blockchain.scripthash.get_history": chain.history,
            "blockchain.transaction.get": self._transaction,
            "blockchain.transaction.get_merkle": self._merkle,
            "blockchain.transaction.id_from_pos": self._from_position,
        }

    async def serve(self, host: str, port: int) -> None:
        """Serve for ever."""
        await asyncio.to_thread(self._chain.look)
        async with await asyncio.start_server(self._client, host, port):
            while True:
                await asyncio.sleep(POLL_S)
                with contextlib.suppress(OSError):  # btcd is restarting
                    self._tell(*await asyncio.to_thread(self._chain.look))

    def _tell(self, block: bool, touched: set[str]) -> None:
        for client in self._clients:
            if block and client.follows_headers:
                client.tell({"method": "blockchain.headers.subscribe", "params": [self._tip()]})
            for script in client.scripts & touched:
                words = [script, self._chain.status(script)]
                client.tell({"method": "blockchain.scripthash.subscribe", "params": words})

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(self, writer)
        self._clients.add(client)
        try:
            with contextlib.suppress(ConnectionError):
                while line := await reader.readline():
                    await client.answer(line)
        finally:
            self._clients.discard(client)
            writer.close()

    async def carry_out(self, client: Client, method: str, words: list[Json]) -> Json:
        """Carry out the method of one request. Raises: Refused."""
        match method:
            case "blockchain.headers.subscribe":
                client.follows_headers = True
                return self._tip()
            case "blockchain.scripthash.subscribe":
                client.scripts.add(words[0])
                return self._chain.status(words[0])
            case "blockchain.transaction.broadcast":
                return await asyncio.to_thread(self._chain.btcd.broadcast, words[0])
            case _ if method in self._methods:
                return self._methods[method](*words)
            case _:
                raise Refused(f"unknown method {method}")

    def _tip(self) -> Json:
        return {"hex": self._chain.headers[-1], "height": self._chain.height}

    def _header(self, height: int) -> str:
        if not 0 <= height <= self._chain.height:
            raise Refused(f"no block {height}")
        return self._chain.headers[height]

    def _headers(self, first: int, count: int) -> Json:
        found = self._chain.headers[first : first + count]
        return {"count": len(found), "hex": "".join(found), "max": 2016}

    def _transaction(self, txid: str) -> str:
        if txid not in self._chain.transactions:
            raise Refused(f"no transaction {txid}")
        return self._chain.transactions[txid].raw

    def _merkle(self, txid: str, height: int) -> Json:
        if height > self._chain.height or txid not in self._chain.blocks[height]:
            raise Refused(f"no transaction {txid} in block {height}")
        position = self._chain.blocks[height].index(txid)
        return {"block_height": height, "merkle": self._chain.branch(height, position), "pos": position}

    def _from_position(self, height: int, position: int, merkle: bool = False) -> Json:
        if height > self._chain.height or position >= len(self._chain.blocks[height]):
            raise Refused(f"no transaction {position} in block {height}")
        txid = self._chain.blocks[height][position]
        return {"tx_hash": txid, "merkle": self._chain.branch(height, position)} if merkle else txid


def _parents_first(known: dict[str, Json]) -> list[str]:
    """Order transactions so that one comes after those whose outputs it spends."""
    ordered: dict[str, None] = {}

    def visit(txid: str) -> None:
        for one in known[txid]["vin"]:
            if one["txid"] in known and one["txid"] not in ordered:
                visit(one["txid"])
        ordered[txid] = None

    for txid in known:
        visit(txid)
    return list(ordered)


def _script_hash(script: bytes) -> str:
    return sha256(script).digest()[::-1].hex()


def _double_sha256(data: bytes) -> bytes:
    return sha256(sha256(data).digest()).digest()


def main() -> None:
    """Serve until killed."""
    listen, btcd, certificate = sys.argv[1:]
    host, _, port = listen.rpartition(":")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Server(Chain(Btcd(btcd, Path(certificate)))).serve(host, int(port)))


if __name__ == "__main__":
    main()
