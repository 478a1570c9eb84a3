"""`ngp lightning`: output for people, errors for incomplete commands, and what happens to a pasted lndconnect URI."""

from __future__ import annotations

import base64
import io
import json
import subprocess

import click
import pytest

from ngp.cli import lightning
from ngp.cli.place import Place
from tests.cli.conftest import LONGEST_S, ROOT, Host
from tests.cli.fake_daemon import fake_main
from tests.payment.test_macaroon import baked

MACAROON = base64.urlsafe_b64encode(baked("info:read")).decode().rstrip("=")


def test_lightning_for_people(running: Host) -> None:
    shown = running.ngp("lightning", "status")
    assert (shown.returncode, shown.stderr) == (0, "")
    for said in ("block 450, synced", "1,234.567 sat", "opening, 2 blocks left", "no: the channel is opening",
                 "3 backups, 1 pending, 0 failed", "192.0.2.9:9911", "Next: wait?[2J"):  # fmt: skip
        assert said in shown.stdout
    assert json.loads(running.ngp("lightning", "status", "--json").stdout) == fake_main.LIGHTNING


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("open", "open NEIGHBOUR --amount SAT"), ("open 7f3a 7f3b", "one NEIGHBOUR, not '7f3a 7f3b'"),
        ("tower", "tower add PUBKEY@HOST:PORT, tower list"), ("tower add", "tower add takes one PUBKEY@HOST:PORT"),
        ("tower remove a b", "tower remove takes one PUBKEY"), ("status now", "no more words, not 'now'"),
        ("dance", "known are status, open NEIGHBOUR"),
    ],
)  # fmt: skip
def test_a_lightning_command_that_lacks_a_word_is_told_which(words: str, says: str) -> None:
    assert says in lightning._unknown(tuple(words.split()))


@pytest.mark.parametrize(
    ("option", "said", "says"),
    [
        ("--amount", "0.5", "isn't a whole number: write the amount in sat with digits only, for example 500000"),
        ("--amount", "500k", "isn't a whole number: write the amount in sat with digits only, for example 500000"),
        ("--amount", "0", "is out of range: write the amount in sat, 1 or more"),
        ("--amount", "-5", "is out of range: write the amount in sat, 1 or more"),
        ("--push", "-1", "is out of range: write the amount in sat, 0 or more"),
        ("--csv-delay", "1.5", "isn't a whole number: write the number of blocks with digits only, for example 1008"),
        ("--csv-delay", "20000", "is out of range: write the number of blocks, a number from 1 to 10000"),
    ],
)
def test_a_number_that_is_refused_is_shown_with_the_remedy_that_fits_it(option: str, said: str, says: str) -> None:
    with pytest.raises(click.BadParameter) as error:
        lightning.command.make_context("lightning", ["open", "7f3a", option, said])
    assert error.value.message == f"'{said}' {says}"


@pytest.mark.parametrize("active", [True, False])
def test_how_to_get_a_watchtower_is_not_repeated_beside_the_advice(
    capsys: pytest.CaptureFixture[str], active: bool
) -> None:
    none = fake_main.TOWERS | {"active": active, "towers": []}
    remedy = "tower add" if active else "wtclient.active=1"
    lightning._print_towers(none)
    assert remedy in capsys.readouterr().out
    lightning._print_towers(none, advised=True)
    assert remedy not in capsys.readouterr().out


def test_the_lightning_verb_tells_what_its_options_are_when_left_out() -> None:
    told = {one.name: getattr(one, "help", "") for one in lightning.command.params}
    assert "else CSV_DELAY of net.conf" in told["csv_delay"] and "port 9735" in told["host"]


@pytest.mark.parametrize(
    ("piped", "code", "says"),
    [
        ("", 2, "no URI was given"),
        ("https://192.0.2.1:10009?macaroon=c2VjcmV0\n", 3, "not an lndconnect:// URI"),
        ("lndconnect://192.0.2.1:10009?macaroon=c2Vj!cmV0\n", 3, "damaged"),
        ("lndconnect://192.0.2.1:99999?macaroon=c2VjcmV0\n", 3, "no usable port"),
        ("lndconnect://192.0.2.1:10009?cert=AAAA&macaroon=c2VjcmV0\n", 3, "not a certificate"),
        ("lndconnect://192.0.2.1:10009?macaroon=c2VjcmV0\n", 3, "is not of LND, or damaged"),
        (f"lndconnect://127.0.0.1:1?macaroon={MACAROON}\n", 5, "the URI was not kept (--untried keeps it"),
    ],
)
def test_a_pasted_uri_that_can_not_be_used_is_not_kept_and_not_shown(
    host: Host, piped: str, code: int, says: str
) -> None:
    host.state_dir.mkdir(exist_ok=True)
    done = subprocess.run(
        host.command("lightning", "connect"), input=piped, cwd=host.folder,
        env=host.variables(PYTHONPATH=str(ROOT)), text=True,
        capture_output=True, timeout=LONGEST_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "") and says in done.stderr
    assert "c2Vj" not in done.stderr and MACAROON not in done.stderr and not (host.state_dir / "lnd-connect").exists()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "it isn't used yet: {path} has PAYMENT_INTERFACE: sandbox; write PAYMENT_INTERFACE: lnd"),
        ("PAYMENT_INTERFACE: lnd\n", "to use it: sudo ngp start -v"),
        ("PAYMENT_INTERFACE: lnd\nLND_MACAROON: /etc/ngp/m\n", "it isn't used: {path} sets LND_MACAROON"),
    ],
)
def test_a_pasted_uri_that_net_conf_does_not_use_is_kept_and_said_so(host: Host, lines: str, says: str) -> None:
    host.state_dir.mkdir(exist_ok=True)
    host.config.write_text(host.config.read_text() + lines)
    done = subprocess.run(
        host.command("lightning", "connect", "--untried", "--config", str(host.config)),
        input=f"lndconnect://192.0.2.1:10009?macaroon={MACAROON}\n", cwd=host.folder,
        env=host.variables(PYTHONPATH=str(ROOT)), text=True, capture_output=True, timeout=LONGEST_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("kept for LND at 192.0.2.1:10009; not tried yet: the next start tries it; ")
    assert says.format(path=host.config) in done.stdout and (host.state_dir / "lnd-connect").exists()


def test_a_uri_that_replaces_another_says_so_and_the_restart_is_said_beside_a_daemon_only(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.state_dir.mkdir(exist_ok=True)
    host.config.write_text(host.config.read_text() + "PAYMENT_INTERFACE: lnd\n")
    place = Place(str(host.state_dir), str(host.config))
    before = host.state_dir / "lnd-connect.before"
    monkeypatch.setattr(lightning, "running_pid", lambda _state_dir: 7)
    for last_byte, replaced in (("1", ""), ("2", f"the previous URI is kept as {before}; ")):
        uri = f"lndconnect://192.0.2.{last_byte}:10009?macaroon={MACAROON}\n"
        monkeypatch.setattr("sys.stdin", io.StringIO(uri))
        assert lightning._connect(place, untried=True) == 0
        said = capsys.readouterr().out
        assert f"10009; {replaced}not tried yet" in said and "restart ngp to use it: sudo ngp stop; sudo" in said
    assert "192.0.2.1:" in before.read_text()
