"""The HTTPS face as net.conf says: addresses, certificate, and what `ngp check` tells."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from shop import Shop, terms_of_shop

from core_tests.ports import free_ports
from core_tests.staticwire import tls_context
from ngp.core.rental.terms import LettingSettings
from ngp.errors import ConfigError, KernelError
from ngp.modules.face.certificate import FILE, CertificateFiles
from ngp.modules.face.grpc import GrpcFace
from ngp.modules.face.https import HttpsFace
from ngp.ports import Face


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "state").mkdir(mode=0o700)
    with closing(Shop(tmp_path / "state")) as made:
        yield made


def pin_at(port: int, host: str = "127.0.0.1") -> str:
    """Return the fingerprint that a client is shown."""
    with socket.create_connection((host, port), 30) as plain, tls_context().wrap_socket(plain) as tls:
        return hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()


def own_files(folder: Path) -> tuple[str, str]:
    """Make a certificate as an operator has it: two files. Returns their paths."""
    folder.mkdir(exist_ok=True)
    CertificateFiles.of(terms_of_shop(), folder).make_if_missing()
    key, middle, certificate = (folder / FILE).read_bytes().partition(b"-----END PRIVATE KEY-----\n")
    (folder / "cert.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(key + middle)
    (folder / "key.pem").chmod(0o600)
    return str(folder / "cert.pem"), str(folder / "key.pem")


def apply(shop: Shop, **changes: object) -> LettingSettings:
    terms = replace(shop.terms, **changes)  # type: ignore[arg-type]
    shop.run(shop.face.open(shop.landlord.letting, terms))
    return terms


# --- certificate ------------------------------------------------------------------------------------------------------


def test_the_certificate_is_made_once_for_ever_and_only_its_owner_can_read_the_key(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "state" / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    pin = pin_at(shop.port)
    shop.run(shop.face.close())
    again = HttpsFace(tmp_path / "state")
    shop.run(again.open(shop.landlord.letting, shop.terms))
    assert pin_at(shop.port) == pin
    shop.run(again.close())


def test_a_certificate_of_our_own_that_others_can_read_is_refused(tmp_path: Path) -> None:
    face, terms = HttpsFace(tmp_path), terms_of_shop()
    files = CertificateFiles.of(terms, tmp_path)
    files.make_if_missing()
    (tmp_path / FILE).chmod(0o640)
    (line,) = face.check(terms)
    assert not line.ok and "chmod 600" in line.found
    with pytest.raises(ConfigError, match="chmod 600"):
        files.make_if_missing()


def test_the_operators_certificate_is_shown_and_may_be_renewed(shop: Shop, tmp_path: Path) -> None:
    ours = pin_at(shop.port)
    certificate, key = own_files(tmp_path / "first")
    terms = apply(shop, https_certificate=certificate, https_key=key)
    first = pin_at(shop.port)
    assert first != ours and first in shop.face.check(terms)[0].found
    shop.run(shop.outside.apply(terms))
    for name in own_files(tmp_path / "second"):
        os.replace(name, tmp_path / "first" / Path(name).name)
    assert pin_at(shop.port) == first
    shop.run(shop.outside.apply(terms))
    assert pin_at(shop.port) not in (ours, first), "a reload reads the files, also if net.conf is as it was"


def test_one_file_may_have_both(shop: Shop, tmp_path: Path) -> None:
    own_files(tmp_path / "own")
    apply(shop, https_certificate=str(tmp_path / "own" / FILE))
    assert pin_at(shop.port)


@pytest.mark.parametrize("fault", ["missing", "no key", "not its key", "shown", "with a password", "no PEM", "empty"])
def test_a_certificate_that_cannot_be_used_is_named_and_the_former_stays(
    shop: Shop, tmp_path: Path, fault: str
) -> None:
    before = pin_at(shop.port)
    certificate, key = own_files(tmp_path / "own")
    match fault:
        case "missing":
            os.unlink(certificate)
        case "no key":
            os.unlink(key)
        case "not its key":
            os.replace(own_files(tmp_path / "other")[1], key)
        case "shown":
            os.chmod(key, 0o644)
        case "with a password":
            secret = load_pem_private_key(Path(key).read_bytes(), None)
            pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            Path(key).write_bytes(secret.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"x")))
        case "no PEM":
            Path(certificate).write_bytes(os.urandom(100))
        case "empty":
            Path(certificate).write_bytes(b"")
    with pytest.raises(ConfigError, match="own/.*pem"):
        apply(shop, https_certificate=certificate, https_key=key)
    line = shop.face.check(replace(shop.terms, https_certificate=certificate, https_key=key))[0]
    assert not line.ok and line.kind == "configuration"
    assert pin_at(shop.port) == before


# --- addresses --------------------------------------------------------------------------------------------------------


def test_a_reload_adds_and_removes_addresses_and_disturbs_no_tenant(shop: Shop) -> None:
    with closing(shop.session()) as session:
        assert session.post("/api/GetSellOfferTerms/")[0] == 200
        (other,) = free_ports(1)
        apply(shop, https=(("::1", other), ("127.0.0.1", other)))
        assert pin_at(other) == pin_at(other, "::1")
        with pytest.raises(ConnectionRefusedError):
            pin_at(shop.port)
        assert session.post("/api/GetSellOfferTerms/")[0] == 200, "the connection goes on"
    apply(shop, https=(("0.0.0.0", other),))
    assert pin_at(other, "127.0.0.3")
    apply(shop, https=())
    with pytest.raises(ConnectionRefusedError):
        pin_at(other)


@pytest.mark.parametrize(("host", "says"), [("192.0.2.77", "address of this host"), ("127.0.0.1", "ss -ltnp")])
def test_an_address_that_cannot_be_used_is_named_and_the_former_stay(shop: Shop, host: str, says: str) -> None:
    (free,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(KernelError, match=f"LANDLORD_HTTPS {host}:{port}.*{says}"):
            apply(shop, https=(("127.0.0.1", free), (host, port)))
    assert pin_at(shop.port)
    with pytest.raises(ConnectionRefusedError):
        pin_at(free)


def test_closing_ends_all_connections_and_may_be_repeated(shop: Shop) -> None:
    with closing(shop.session()) as session:
        session.post("/api/GetSellOfferTerms/")
        shop.run(shop.face.close())
        shop.run(shop.face.close())
        with pytest.raises((OSError, ValueError)):
            session.post("/api/GetSellOfferTerms/")
    assert not shop.face._door._connections


@pytest.mark.parametrize("key", ["https", "grpc"])
def test_a_check_says_of_a_face_that_it_cannot_start(tmp_path: Path, key: str) -> None:
    face: Face = HttpsFace(tmp_path) if key == "https" else GrpcFace(tmp_path)

    def failing(*places: tuple[str, int]) -> list[str]:
        return [line.found for line in face.check(replace(terms_of_shop(), **{key: places})) if not line.ok]

    good = ("127.0.0.1", free_ports(1)[0])
    assert failing(good) == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = taken.getsockname()
        (said,) = failing(good, other)
        assert f"LANDLORD_{key.upper()} 127.0.0.1:{other[1]}: Address already in use" in said and "ss -ltnp" in said
    assert failing(good, other) == []
    (said,) = failing(("2001:db8::77", 443))
    assert f"LANDLORD_{key.upper()} [2001:db8::77]:443" in said and "an address of this host" in said


def test_our_own_daemon_is_no_obstacle_for_a_check(shop: Shop, tmp_path: Path) -> None:
    with closing(shop.session()) as session:
        assert all(line.ok for line in HttpsFace(tmp_path).check(shop.terms)), "as `ngp check` asks, beside the daemon"
        session.post("/api/GetSellOfferTerms/")
    assert pin_at(shop.port)


# --- what the operator is told ----------------------------------------------------------------------------------------


def test_the_log_has_the_fingerprint_and_what_is_given_away(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (other,) = free_ports(1)
    apply(shop, https=(("127.0.0.1", other),))
    assert pin_at(other) in caplog.text and "whoever knows the tenant's public key" in caplog.text
    caplog.clear()
    apply(shop, https=(("127.0.0.1", other),))
    assert not caplog.text, "nothing changed"


def test_check_says_before_the_first_start_that_the_certificate_is_made_then(tmp_path: Path) -> None:
    face = HttpsFace(tmp_path)
    (line,) = face.check(terms_of_shop())
    assert line.ok and "made at the start" in line.found
    assert not os.listdir(tmp_path), "a check changes nothing"
    assert face.check(replace(terms_of_shop(), https=())) == []
