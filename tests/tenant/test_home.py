"""The tenant's files: both published layouts, damage, and who may read them."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import yaml

from ngp.core.tenant.account import Account
from ngp.errors import ConfigError, RunningError, UsageError
from ngp.tenant import files
from ngp.tenant.books import Books, BooksFile
from ngp.tenant.home import Home
from ngp.tenant.https import read_place
from ngp.tenant.keys import new_private_key, public_key

PIN = "ab" * 32
FIRST, SECOND = new_private_key(), new_private_key()
OF_2023 = {
    "Server": {"HostName": "https://192.0.2.1", "TrustedFingerprint": PIN},
    "private_key": FIRST,
    "public_key": public_key(FIRST),
    "BuyOfferTerms": {"MaxMonthlyRate": 30_000},
    "LNDhost": "lndconnect://unknown",
}
OF_2025 = {
    "DefaultRentalServer": {"Host": "198.51.100.1:444", "TrustedFingerprint": PIN.upper(), "Amount": 6000},
    "tunnels": [{"wireguard_private_key": SECOND, "wireguard_public_key": public_key(SECOND)}],
    "Theirs": {"kept": True},
}


def home_with(folder: Path, values: object) -> Home:
    folder.mkdir(exist_ok=True)
    (folder / "Config.yaml").write_text(yaml.safe_dump(values))
    (folder / "Config.yaml").chmod(0o644)
    return Home(folder)


def test_a_configuration_of_2023_is_taken_over(tmp_path: Path) -> None:
    home = home_with(tmp_path, OF_2023)
    (tunnel,) = home.tunnels()
    assert (tunnel.private_key, tunnel.public_key) == (FIRST, public_key(FIRST))
    place = home.landlord(tunnel, None, None)
    assert (place.host, place.port, place.pin) == ("192.0.2.1", 443, PIN)
    assert yaml.safe_load((tmp_path / "Config.yaml.before").read_text()) == OF_2023
    written = yaml.safe_load((tmp_path / "Config.yaml").read_text())
    assert written["LNDhost"] == OF_2023["LNDhost"] and "private_key" not in written
    assert home.limits().rent_max.value == 30_000_000
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_nobody_else_can_enter_the_folder_of_the_published_client(tmp_path: Path) -> None:
    """Its WireGuard files, which have the private key, can be read by everybody."""
    folder = tmp_path / ".StaticWire"
    folder.mkdir()
    folder.chmod(0o755)
    Home(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_root_uses_no_folder_of_another_user(tmp_path: Path) -> None:
    """It may name commands, or be a link to a folder of the system."""
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 4321, -1)
    with pytest.raises(ConfigError, match=f"{home} belongs to user 4321.*run this as its owner, or set HOME"):
        Home(home / ".StaticWire")
    assert list(home.iterdir()) == []
    system = tmp_path / "etc"
    system.mkdir()
    system.chmod(0o755)  # whatever the umask is
    (home / ".StaticWire").symlink_to(system)
    with pytest.raises(ConfigError, match="belongs to user 4321"):
        Home(home / ".StaticWire")
    assert stat.S_IMODE(system.stat().st_mode) == 0o755
    os.chown(home, 0, -1)
    os.chown(system, 4321, -1)
    with pytest.raises(ConfigError, match="StaticWire belongs to user 4321"):
        Home(home / ".StaticWire")


def test_a_configuration_of_2025_stays_as_it_is(tmp_path: Path) -> None:
    home = home_with(tmp_path, OF_2025)
    place = home.landlord(home.tunnel(None), None, None)
    assert (place.host, place.port, place.pin, home.amount_sat) == ("198.51.100.1", 444, PIN, 6000)
    assert yaml.safe_load((tmp_path / "Config.yaml").read_text()) == OF_2025
    assert not (tmp_path / "Config.yaml.before").exists()


def test_keys_of_both_layouts_in_one_file_are_two_tunnels_with_their_landlords(tmp_path: Path) -> None:
    """The published client of 2025 ignores a key of 2023 and makes another: neither rental may be lost."""
    home = home_with(tmp_path, OF_2023 | OF_2025)
    new, old = home.tunnels()
    assert (new.private_key, old.private_key) == (SECOND, FIRST)
    assert home.landlord(new, None, None).host == "198.51.100.1"
    assert home.landlord(old, None, None).host == "192.0.2.1"
    assert yaml.safe_load((tmp_path / "Config.yaml").read_text())["Theirs"] == {"kept": True}


def test_the_command_line_comes_first(tmp_path: Path) -> None:
    home = home_with(tmp_path, OF_2025)
    place = home.landlord(home.tunnel(None), "https://[2001:db8::1]:8443/", ":".join(["CD"] * 32))
    assert (place.host, place.port, place.pin) == ("2001:db8::1", 8443, "cd" * 32)
    assert str(place) == "[2001:db8::1]:8443"


@pytest.mark.parametrize("host", ["host:", "a b", "host:0", "host:65536", "[::1", "host/path", "user@host", "http://h"])
def test_a_landlord_that_is_no_place(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Home(tmp_path).landlord(None, host, PIN)


@pytest.mark.parametrize("pin", ["", "abcd", "xy" * 32, PIN + "00"])
def test_a_fingerprint_that_is_none(tmp_path: Path, pin: str) -> None:
    with pytest.raises(ConfigError, match="fingerprint"):
        Home(tmp_path).landlord(None, "192.0.2.1", pin)


def test_a_key_that_does_not_fit_is_refused_without_showing_it(tmp_path: Path) -> None:
    for entry in (
        {"wireguard_private_key": FIRST, "wireguard_public_key": public_key(SECOND)},
        {"wireguard_private_key": FIRST[:-4]},
        {"wireguard_public_key": public_key(FIRST)},
    ):
        home = home_with(tmp_path, {"tunnels": [entry]})
        with pytest.raises(ConfigError, match="tunnel 1") as caught:
            home.tunnels()
        assert FIRST[:-4] not in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "tunnels: 7", "\x00", "a: b: c", "!!python/object:os.system x"])
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "Config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"Config\.yaml"):
        Home(tmp_path).tunnels()
    assert (tmp_path / "Config.yaml").read_text() == text


def test_a_new_tunnel_is_kept_beside_what_the_file_has(tmp_path: Path) -> None:
    home = home_with(tmp_path, OF_2025)
    place = home.landlord(None, "192.0.2.9", PIN)
    made = home.add_tunnel("shop", place)
    again = Home(tmp_path)
    assert again.tunnel("shop") == again.tunnel(made.public_key[:6]) == again.tunnel(made.interface) == made
    assert again.landlord(made, None, None) == place
    assert again.tunnels()[0].private_key == SECOND


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be used"):
        Home(tmp_path / "file" / "home")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(path, b"before")
    with pytest.raises(TypeError):
        files.replace(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_half_written_goes_away_in_time(tmp_path: Path) -> None:
    old, young = tmp_path / f".Config.yaml.{'0' * 16}", tmp_path / f".Config.yaml.{'1' * 16}"
    for one in (old, young, tmp_path / ".other"):
        one.write_text("")
    os.utime(old, (1, 1))
    os.utime(tmp_path / ".other", (1, 1))
    Home(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == [young.name, ".other"]


def test_a_lock_is_for_one(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with (
        files.only_one(lock, "another", "wait"),
        pytest.raises(RunningError, match="another runs already"),
        files.only_one(lock, "another", "wait"),
    ):
        pass
    with files.only_one(lock, "another", "wait"):
        pass


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    lock, held = tmp_path / "lock", threading.Event()

    def hold() -> None:
        with files.only_one(lock, "another", "wait"):
            held.set()
            time.sleep(0.2)

    holding = threading.Thread(target=hold)
    holding.start()
    held.wait()
    with files.only_one(lock, "another", "wait", wait_s=10):
        pass
    holding.join()


def test_keys_that_another_process_has_changed_meanwhile_are_not_forgotten(tmp_path: Path) -> None:
    home = Home(tmp_path)
    tunnel = home.add_tunnel("one", read_place("192.0.2.1", PIN))
    path = home.keep_conf(tunnel, "[Interface]\n")
    other = Home(tmp_path)
    changed = other.end_rekey(tunnel, other.begin_rekey(tunnel))
    with pytest.raises(UsageError, match="has another key"):
        home.forget_tunnel(tunnel)
    assert Home(tmp_path).tunnels() == [changed] and path.exists()


def test_a_forgotten_rental_killed_at_any_step_leaves_its_books_to_no_other(tmp_path: Path) -> None:
    class Killed(BaseException):
        """The process ends here."""

    for step in ("pathlib.Path.replace", "pathlib.Path.unlink", "ngp.tenant.files.write_yaml", ""):
        home = Home(tmp_path / (step or "none"))
        old = home.add_tunnel("old", read_place("192.0.2.1", PIN))
        BooksFile(home.state_path(old)).write(Books(account=Account(started=True, paid_msat=49_000_000, payments=3)))
        home.keep_conf(old, "[Interface]\n")
        if step:
            with mock.patch(step, side_effect=Killed), pytest.raises(Killed):
                home.forget_tunnel(old)
            home = Home(home.folder)
            assert BooksFile(home.state_path(home.tunnels()[0])).read().account.payments == 3
            home.forget_tunnel(home.tunnels()[0])
        else:
            home.forget_tunnel(old)
        new = home.add_tunnel("new", read_place("192.0.2.1", PIN))
        assert BooksFile(home.state_path(new)).read() == Books() and not list(home.folder.glob("*/*.conf"))
        assert [BooksFile(one).read().account.payments for one in home.all_state_paths()] == [3], "budgets count it"
