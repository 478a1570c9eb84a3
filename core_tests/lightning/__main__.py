"""A Lightning network for experiments: `tools/lightning-lab up`, `cli NODE WORDS...`, `down`.

btcd and three LND nodes (alice, bob, carol), each in a network namespace of its own, with channels alice-bob and
bob-carol. Each node is also a watchtower, and has the watchtower client switched on (none knows a tower yet). A keeper
process keeps all of it running; `down` ends the keeper, and with it everything that `up` made. Nothing can be reached
from outside the namespaces, and the coins are worth nothing.

Each user of the machine has one network, whichever checkout started it: another checkout's `up` finds it running, and
its `down` ends it. State and log are in ngp-lightning-lab-UID in the folder for temporary files, and the previous log
is log.old.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from core_tests.lab import End, Lab
from core_tests.lightning.build import prepare, programs
from core_tests.lightning.network import LightningNetwork, Place
from core_tests.lightning.nodes import NETWORK, Ports
from core_tests.shell import LabError

NODES = ("alice", "bob", "carol")
CHANNELS = (("alice", "bob"), ("bob", "carol"))
V4 = "10.98.0.{}/24"
UP_S = 180.0
DOWN_S = 30.0
FOLDER = Path(tempfile.gettempdir()) / f"ngp-lightning-lab-{os.geteuid()}"
STATE, LOCK, LOG = FOLDER / "state.json", FOLDER / "lock", FOLDER / "log"


def main() -> int:
    """Run one verb; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools/lightning-lab", description=__doc__.split("\n\n", 1)[1])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="start the network, unless it runs (some 30 s; the first time it builds for minutes)")
    verbs.add_parser("down", help="end the network and remove all that `up` made")
    verbs.add_parser("status", help="print where the nodes are")
    cli = verbs.add_parser("cli", help="run lncli at a node: cli alice getinfo")
    cli.add_argument("node", choices=NODES)
    cli.add_argument("words", nargs=argparse.REMAINDER)
    mine = verbs.add_parser("mine", help="mine blocks")
    mine.add_argument("blocks", type=_blocks)
    verbs.add_parser("build", help="build the nodes, if they aren't built yet; only this command needs the internet")
    verbs.add_parser("keep", help="keep the network running, in the foreground; `up` runs this in the background")
    chosen = parser.parse_args()
    if chosen.verb != "keep":  # the keeper must clean up, not die of SIGPIPE
        # A reader that closes the pipe early (`| head`) is no error.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        match chosen.verb:
            case "build":
                prepare(lambda text: print(text, flush=True))
                return 0
            case "up":
                return up()
            case "down":
                return down()
            case "status":
                return status()
            case "cli":
                return subprocess.run([*_state()["cli"][chosen.node], *chosen.words], check=False).returncode
            case "mine":
                return subprocess.run([*_state()["mine"], str(chosen.blocks)], check=False).returncode
            case _:
                return keep()
    except LabError as error:
        print(f"lightning-lab: {error}", file=sys.stderr)
        return 1


def up() -> int:
    """Start the keeper and wait until the network can pay."""
    if os.geteuid() != 0:
        raise LabError("needs root for network namespaces: sudo tools/lightning-lab up")
    prepare(lambda text: print(text, flush=True))
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    if _running():
        print("runs already")
        return status()
    STATE.unlink(missing_ok=True)
    if LOG.exists():
        LOG.replace(LOG.with_suffix(".old"))  # the reason why the last keeper ended may not have been read yet
    with LOG.open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "core_tests.lightning", "keep"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    print("starting btcd and three LND nodes, opening channels", flush=True)
    deadline = time.monotonic() + UP_S
    while not STATE.exists():
        if keeper.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"did not come up\n{LOG.read_text(errors='replace')}")
        time.sleep(0.2)
    return status()


def down() -> int:
    """End the keeper; no error if none runs."""
    if not _running():
        print("the network does not run")
        return 0
    keeper = int(_state()["keeper"]) if STATE.exists() else 0
    if not keeper:
        raise LabError("the network is still starting; try again in a moment")
    os.kill(keeper, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_S
    while _running():
        if time.monotonic() > deadline:
            raise LabError(f"process {keeper} does not end\n{LOG.read_text(errors='replace')}")
        time.sleep(0.05)
    print("down")
    return 0


def status() -> int:
    """Print where the nodes are; returns 1 if none run."""
    if not _running() or not STATE.exists():
        print("the network does not run; start it by: tools/lightning-lab up")
        return 1
    for name, where in _state()["nodes"].items():
        print(f"{name}: namespace {where['namespace']}, lnddir {where['lnddir']}, gRPC {where['rpc']} (inside)")
    print("to use one: ip netns exec NAMESPACE ngp ...; its certificate is LNDDIR/tls.cert, the macaroon you bake by")
    print("tools/lightning-lab cli NODE bakemacaroon --save_to FILE uri:..., with the rights that `ngp check` names")
    return 0


def _blocks(text: str) -> int:
    """Read a number of blocks to mine, 1 or more."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of blocks: write 1 or more")
    return int(text)


def keep() -> int:
    """Hold the network until SIGTERM."""
    with LOCK.open("w") as lock, Lab() as lab:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for ending in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ending, _end)
        switch = lab.switch("chain")
        switch.host.ip("address", "add", V4.format(1), "dev", "br0")
        places = []
        for number, name in enumerate(NODES, 2):
            host = lab.host(name)
            lab.link(End(host, "eth0", V4.format(number)), switch)
            address = V4.format(number).partition("/")[0]
            places.append(Place(name, host.inside(), address, Ports(), ["--wtclient.active", "--watchtower.active"]))
        lab.await_carriers()
        chain = Place("chain", switch.host.inside(), V4.format(1).partition("/")[0])
        with LightningNetwork(programs(), lab.folder / "lightning", places, chain) as network:
            for a, b in CHANNELS:
                network.open(a, b)
                network.await_payable(a, b)
            network.mine(6)  # BOLT 7: channels are announced, and so found on the way to others, after six
            network.await_payable(NODES[0], NODES[-1])
            try:
                _tell(lab, network)
                signal.pause()
            finally:
                STATE.unlink(missing_ok=True)
    return 0


def _end(*_: object) -> None:
    raise SystemExit(0)


def _tell(lab: Lab, network: LightningNetwork) -> None:
    """Write what the other verbs need, whole or not at all."""
    nodes = network.nodes
    state = {
        "keeper": os.getpid(),
        "nodes": {
            name: {"namespace": lab.hosts[name].namespace, "lnddir": str(node.lnddir), "rpc": node.rpc_host}
            for name, node in nodes.items()
        },
        "cli": {
            name: [
                *(*node.prefix, str(node.programs / "lncli"), f"--lnddir={node.lnddir}"),
                *(f"--network={NETWORK}", f"--rpcserver={node.rpc_host}"),
            ]
            for name, node in nodes.items()
        },
        "mine": network.chain.command("generate"),
    }
    fresh = STATE.with_suffix(".new")
    fresh.write_text(json.dumps(state))
    fresh.replace(STATE)


def _state() -> dict[str, Any]:
    if not STATE.exists():
        raise LabError("the network does not run; start it by: tools/lightning-lab up")
    found: dict[str, Any] = json.loads(STATE.read_text())
    return found


def _running() -> bool:
    """Say whether a keeper runs: it holds the lock from its start to its end."""
    if not LOCK.exists():
        return False
    with LOCK.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
