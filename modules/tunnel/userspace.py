"""wireguard-go: WireGuard for kernels that have none. One process an interface, driven by its socket.

The process isn't our child: it goes on when ngp is killed, and ends when its interface is deleted. systemd kills what
a service has left behind, so there the process gets a scope of its own. The private key reaches it by the socket alone,
which only root can open; it is never on a command line or in an environment. Our own environment isn't handed on.

Source: https://www.wireguard.com/xplatform/
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ngp.errors import KernelError, MomentError
from ngp.modules.commands import find_command
from ngp.modules.tunnel.device import Peer, PeerChange, Standing
from ngp.ports.letting import PeerReading

PROGRAM = "wireguard-go"
SOCKETS = Path("/var/run/wireguard")
_INSTALL = "apt install wireguard-go"
_SYSTEMD = Path("/run/systemd/system")  # exists where systemd is the first process (sd_booted(3))
_START_S, _END_S, _ANSWER_S, _POLL_S = 30.0, 2.0, 2.0, 0.01
_ANSWER_BYTES, _CHANGES_AT_ONCE = 64 << 20, 200


class UserspaceDevice:
    """WireGuard by wireguard-go."""

    implementation = PROGRAM
    kind = "tun"

    def why_not(self) -> tuple[str, str]:
        """Return why this host can't use wireguard-go, and the remedy; ("", "") if it can."""
        if find_command(PROGRAM) is None:
            return f"{PROGRAM} isn't installed", _INSTALL
        if not Path("/dev/net/tun").exists():
            return f"{PROGRAM} needs /dev/net/tun, which doesn't exist", "modprobe tun"
        return "", ""

    def make(self, name: str) -> None:
        """Make an interface: start a process for it."""
        program = find_command(PROGRAM)
        if program is None:
            raise KernelError(f"{PROGRAM} isn't installed; {_INSTALL}")
        words = [program, name]
        if _SYSTEMD.is_dir():
            words = [find_command("systemd-run") or "systemd-run", "--scope", "--quiet", "--collect", *words]
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", start_new_session=True,
                timeout=_START_S, env={"PATH": os.defpath},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise MomentError(f"{PROGRAM} {name}: didn't start within {_START_S:g} s; try again") from error
        if done.returncode:
            said = next(iter(reversed((done.stderr + done.stdout).strip().splitlines())), "") or "no message"
            raise KernelError(f"{PROGRAM} {name}: exit code {done.returncode} ({said}); try it by hand")
        self.read(name)

    def read(self, name: str) -> Standing:
        """Return what an interface has."""
        try:
            return parse(_exchange(name, "get=1\n\n"))
        except ValueError as error:
            raise KernelError(f"{PROGRAM} {name}: an answer can't be read; another program has its socket") from error

    def set(self, name: str, private_key: bytes, port: int) -> None:
        """Set key and UDP port."""
        _exchange(name, f"set=1\nprivate_key={private_key.hex()}\nlisten_port={port}\n\n")

    def change(self, name: str, changes: Sequence[PeerChange]) -> None:
        """Change peers, in this order."""
        for at in range(0, len(changes), _CHANGES_AT_ONCE):  # each new peer takes some tenths of a millisecond
            some = changes[at : at + _CHANGES_AT_ONCE]
            _exchange(name, "\n".join(["set=1", *(line for change in some for line in _lines(change)), "", ""]))

    def await_end(self, name: str) -> None:
        """Return when the process has closed its socket; its interface was deleted. Raises MomentError."""
        until = time.monotonic() + _END_S
        while _is_served(SOCKETS / f"{name}.sock"):
            if time.monotonic() > until:
                raise MomentError(f"{PROGRAM} {name}: goes on without its interface; end that process and try again")
            time.sleep(_POLL_S)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(_ANSWER_S)
        return asking.connect_ex(str(path)) == 0


def parse(text: str) -> Standing:
    """Read the answer to `get=1`. Pure. Raises ValueError if it is garbage."""
    private_key, port, said = b"", 0, dict[str, str]()
    networks: list[str] = []
    peers: dict[bytes, Peer] = {}
    for line in [*text.splitlines(), "public_key="]:  # the last line ends the last peer
        name, _, value = line.partition("=")
        if name == "private_key":
            private_key = bytes.fromhex(value)
        elif name == "listen_port":
            port = int(value)
        elif name == "allowed_ip":
            networks.append(value)
        elif name == "public_key":
            if key := bytes.fromhex(said.get("public_key", "")):
                peers[key] = Peer(_reading(key, said), tuple(networks))
            said, networks = {name: value}, []
        else:
            said[name] = value
    return Standing(private_key, port, peers)


def _reading(key: bytes, said: dict[str, str]) -> PeerReading:
    received, sent, handshake_s = (
        int(said.get(name, "0")) for name in ("rx_bytes", "tx_bytes", "last_handshake_time_sec")
    )
    return PeerReading(key, received, sent, handshake_s, said.get("endpoint", ""))


def _lines(change: PeerChange) -> Iterator[str]:
    yield f"public_key={change.wireguard_key.hex()}"
    if change.networks is None:
        yield "remove=true"
        return
    yield "replace_allowed_ips=true"
    for network in change.networks:
        yield f"allowed_ip={network}"


def _exchange(name: str, request: str) -> str:
    """Send a request to an interface's process, and return the answer without its status. Raises KernelError."""
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_ANSWER_S)
            asking.connect(str(SOCKETS / f"{name}.sock"))
            asking.sendall(request.encode())
            while not answer.endswith(b"\n\n"):
                part = asking.recv(1 << 20)
                answer += part
                if not part or len(answer) > _ANSWER_BYTES:
                    raise KernelError(f"{PROGRAM} {name}: broke off its answer; see whether the process still runs")
    except TimeoutError as error:
        raise MomentError(f"{PROGRAM} {name}: no answer within {_ANSWER_S:g} s; see whether it is stopped") from error
    except (ConnectionError, FileNotFoundError) as error:
        raise MomentError(f"{PROGRAM} {name}: doesn't run; the next set-up starts it again") from error
    body, _, status = answer.decode(errors="replace").strip().rpartition("errno=")
    if status != "0":
        number = abs(int(status)) if status.lstrip("-").isdigit() else errno.EPROTO
        raise KernelError(f"{PROGRAM} {name}: refused a change: {os.strerror(number)}; ngp check says what is missing")
    return body
