"""The watcher of `tools/demo`: it reads the daemons' logs and listings a few times a second, and prints the events.

It asks through the control socket, as `ngp top` does: starting `ngp` several times a second would take more processor
time than the traffic that is shown. The final totals come from the verbs themselves.
"""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from typing import Any

from core_tests.daemon import Daemon
from core_tests.demo_view import View, data, host_of, per_kb, sat
from core_tests.shell import await_until
from ngp.cli import client as control
from ngp.errors import NgpError

Row = dict[str, Any]
EVERY_S = 0.25
RATE_OVER_S = 1.0
_CONTRACT = re.compile(r"contract (\w+) server \w+ (\S+) (.*)")
_PAYMENT = re.compile(r"payment of (\d+) msat received")
_NEIGHBOUR = re.compile(r"neighbour (\w+) found on (\S+)")


class Watch:
    """Both daemons, watched from a thread of its own until `stop`.

    Attributes:
        prices: each contract's schedule of (from this byte on, msat per GiB), recorded while it grew.
        renewals: their number.
        lowest_msat: the lowest balance of the client that was seen, below zero while grace is used.
        paid_msat: the sum that the gateway has received.
    """

    def __init__(self, view: View, gateway: Daemon, client: Daemon) -> None:
        self.prices: dict[str, list[tuple[int, int]]] = {}
        self.renewals = 0
        self.lowest_msat = 0
        self.paid_msat = 0
        self._view = view
        self._daemons = {"gateway": gateway, "client": client}
        self._rows: dict[str, Row] = {}
        self._read: dict[str, int] = {}
        self._samples: dict[str, tuple[float, int, float]] = {}
        self._states: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to watch; daemons that aren't there yet are waited for."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; safe to call twice, or before `start`."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def wait(self, seconds: float) -> None:
        """Let time pass while the traffic runs."""
        self._over.wait(seconds)

    def contract(self, address: str) -> Row:
        """Return the gateway's row for a destination, waiting until there is one."""
        await_until(lambda: self._find(address) is not None, what=f"a contract for {address}")
        row = self._find(address)
        assert row is not None  # rows are only ever replaced
        return row

    def closed(self, address: str) -> str:
        """Return the reason why a destination's contract was closed; empty while it runs."""
        row = self._find(address)
        return str(row["reason"]) if row is not None and row["state"] == "closed" else ""

    def _find(self, address: str) -> Row | None:
        found = [row for row in list(self._rows.values()) if host_of(row["destination"]) == address]
        return found[0] if found else None

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            with suppress(NgpError):  # a daemon isn't there yet, or is stopping
                self._look()
            self._tell_logs()
            self._view.refresh()

    def _look(self) -> None:
        sold = self._account("gateway", "server")
        bought = self._account("client", "client")
        rows = list(control.Daemon(self._daemons["gateway"].state_dir).rows("contracts", all=True))
        for row in rows:
            self._note(row)
        scene = self._view.scene
        scene.sold, scene.bought = sold, bought
        scene.contracts = sorted(rows, key=lambda row: (row["state"] == "closed", row["opened_at"], row["id"]))
        if sold is not None:
            self.lowest_msat = min(self.lowest_msat, sold["balance_msat"])
            self.paid_msat = sold["paid_msat"]

    def _account(self, name: str, role: str) -> Row | None:
        rows = control.Daemon(self._daemons[name].state_dir).rows("accounts")
        return next((row for row in rows if row["role"] == role), None)

    def _note(self, row: Row) -> None:
        """Remember a contract's row, its rate, and from which byte on a new price holds."""
        before = self._rows.get(row["id"])
        schedule = self.prices.setdefault(row["id"], [(0, row["price_msat_per_gib"])])
        if before is not None and row["price_msat_per_gib"] != schedule[-1][1]:
            schedule.append((before["data_limit_bytes"], row["price_msat_per_gib"]))
        now, used = time.monotonic(), row["used_to_bytes"] + row["used_from_bytes"]
        since, then, rate = self._samples.get(row["id"], (now, used, 0.0))
        if now - since >= RATE_OVER_S or row["id"] not in self._samples:
            rate = (used - then) / max(now - since, 0.001)
            self._samples[row["id"]] = (now, used, rate)
        row["rate"] = 0.0 if row["state"] == "closed" else rate
        self._rows[row["id"]] = row

    def _tell_logs(self) -> None:
        for name, daemon in self._daemons.items():
            lines = daemon.log().split("\n")[:-1]  # text after the last line end is still being written
            for line in lines[self._read.get(name, 0) :]:
                self._tell_line(name, line)
            self._read[name] = len(lines)

    def _tell_line(self, name: str, line: str) -> None:
        """Print one line of a daemon's log, in words for a reader who is new to ngp."""
        if found := _NEIGHBOUR.search(line):
            self._view.tell(f"{name}: neighbour {found[1]} found on {found[2]}")
        elif (found := _PAYMENT.search(line)) and name == "gateway":
            self._view.tell(f"gateway: payment received, {sat(int(found[1]))} sat (not real)")
        elif (found := _CONTRACT.search(line)) and name == "gateway":
            text = self._contract_story(found[1], host_of(found[2]), found[3])
            if text:
                self._view.tell(f"gateway: {text}")

    def _contract_story(self, short: str, destination: str, change: str) -> str:
        state, before = change.split()[0], self._states.get(short, "")
        self._states[short] = state
        row = next((row for key, row in self._rows.items() if key.startswith(short)), None)
        if state == "rejected" and "price" in change:
            return f"{destination}: too expensive, the client makes a counter-offer"
        if state == "rejected":
            return f"{destination}: refused by the client {change.partition(' ')[2]}"
        if state == "quoted":
            return f"{destination}: proposes that price {change.partition(' ')[2]}"
        if state in ("active", "accepted") and before == "renewing":
            self.renewals += 1
            price = per_kb(row["price_msat_per_gib"]) if row else "?"
            limit = data(row["data_limit_bytes"]) if row else "?"
            return f"{destination}: renewed, now {limit}, more at {price} msat/kB"
        if state == "accepted":
            return f"{destination}: agreed, runs on grace; an invoice goes out"
        if state == "active":
            return f"{destination}: paid for, active"
        if state == "closed":
            return f"{destination}: closed {change.partition(' ')[2]}"
        return ""
