"""How LND is reached: each way to configure it, and one clear error for each mistake, never with a secret in it."""

from __future__ import annotations

import asyncio
import base64
import datetime
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ngp.errors import ConfigError, PaymentError
from ngp.modules.payment import lnd_paste
from ngp.modules.payment.lnd import LndPayment
from ngp.modules.payment.lnd_connect import Credentials, parse_uri
from tests.payment.test_macaroon import baked

SECRET = b"\x02\x01\x03lnd-secret-macaroon"


def certificate(name: str = "localhost") -> bytes:
    """A self-signed certificate as LND makes it, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime(2030, 1, 1)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=400))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def uri(pem: bytes | None = None, macaroon: bytes = SECRET, host: str = "192.0.2.1:10009") -> str:
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER) if pem else b""
    cert = f"cert={base64url(der)}&" if pem else ""
    return f"lndconnect://{host}?{cert}macaroon={base64url(macaroon)}"


def secret_file(folder: Path, content: bytes = SECRET, mode: int = 0o600) -> str:
    path = folder / "ngp.macaroon"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_a_uri_holds_all_of_it() -> None:
    pem = certificate("node.example")
    found = parse_uri(uri(pem), "LND_CONNECT")
    assert (found.target, found.macaroon, found.certificate_name()) == ("192.0.2.1:10009", SECRET, "node.example")
    assert x509.load_pem_x509_certificate(found.certificate) == x509.load_pem_x509_certificate(pem)
    assert parse_uri(uri(), "LND_CONNECT").certificate == b""
    assert parse_uri(uri(host="[2001:db8::1]"), "LND_CONNECT").target == "[2001:db8::1]:10009"


def test_three_settings_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "tls.cert").write_bytes(certificate())
    options = {"LND_HOST": "node.example", "LND_CERT": str(tmp_path / "tls.cert"), "LND_MACAROON": ""}
    for content in (SECRET, SECRET.hex().encode() + b"\n"):
        options["LND_MACAROON"] = secret_file(tmp_path, content)
        found = Credentials(options, tmp_path).read()
        assert (found.target, found.macaroon) == ("node.example:10009", SECRET)


def test_a_certificate_that_was_renewed_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "tls.cert").write_bytes(certificate())
    credentials = Credentials({"LND_CERT": str(tmp_path / "tls.cert"), "LND_MACAROON": secret_file(tmp_path)}, tmp_path)
    before = credentials.read()
    assert credentials.read() == before
    (tmp_path / "tls.cert").write_bytes(certificate())
    assert credentials.read().certificate != before.certificate


def test_a_pasted_uri_is_kept_for_us_alone_and_found(tmp_path: Path) -> None:
    one, other = baked("info:read"), baked("info:write")
    pasted = uri(certificate(), one)
    assert lnd_paste.keep(pasted + "\n", tmp_path) == ("192.0.2.1:10009", None)
    (kept,) = tmp_path.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert Credentials({}, tmp_path).read().macaroon == one
    cut = uri(macaroon=one)[:-20]
    for bad in ("lndconnect://nonsense", uri(macaroon=b"\0\0\0"), cut):
        with pytest.raises(ConfigError) as refused:
            lnd_paste.keep(bad, tmp_path)
        assert "the URI" in str(refused.value)
    assert lnd_paste.keep(pasted, tmp_path) == ("192.0.2.1:10009", None)
    assert list(tmp_path.iterdir()) == [kept]

    _, former = lnd_paste.keep(uri(certificate(), other), tmp_path)
    assert Credentials({}, tmp_path).read().macaroon == other
    assert former is not None and former.read_text() == pasted + "\n"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert sorted(tmp_path.iterdir()) == [kept, former]


def test_a_pasted_uri_is_tried_at_its_node_and_blamed_by_its_name(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(PaymentError, match=f"{host} doesn't answer: is it running, and is the URI right"):
        asyncio.run(lnd_paste.attempt(uri(certificate(), baked("info:read"), host), tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://192.0.2.1:10009", "not an lndconnect"),
        ("lndconnect://192.0.2.1:10009?cert=AAAA", "no macaroon"),
        ("lndconnect://192.0.2.1:10009?macaroon=!!", "damaged"),
        ("lndconnect://192.0.2.1:10009?macaroon=", "no macaroon"),
        (uri(host="192.0.2.1:port"), "port"),
        (uri(host=""), "'' is not host:port; write"),
        (uri(host="[2001:db8::1:10009"), "damaged"),
        (uri() + "&cert=AAAA", "not a certificate"),
    ],
)
def test_a_bad_uri_is_refused_without_what_it_holds(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        parse_uri(text, "LND_CONNECT")
    assert "LND_CONNECT" in str(refused.value)
    assert base64url(SECRET) not in str(refused.value)


def test_files_that_can_not_be_used_are_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "tls.cert").write_bytes(certificate())
    good = {"LND_CERT": str(tmp_path / "tls.cert"), "LND_MACAROON": secret_file(tmp_path)}
    Credentials(good, tmp_path).read()
    (tmp_path / "empty").touch(0o600)
    bad = [
        ({"LND_MACAROON": str(tmp_path / "none")}, "none doesn't exist: bake one"),
        ({"LND_MACAROON": str(tmp_path / "empty")}, "empty"),
        ({"LND_CERT": str(tmp_path / "none")}, "none can't be read"),
        ({"LND_CERT": str(tmp_path / "empty")}, "is not a certificate"),
    ]
    for change, says in bad:
        with pytest.raises(ConfigError, match=says):
            Credentials({**good, **change}, tmp_path).read()
    for mode in (0o644, 0o640, 0o620, 0o604):
        secret_file(tmp_path, mode=mode)
        with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
            Credentials(good, tmp_path).read()
    os.chown(secret_file(tmp_path), 4321, -1)
    with pytest.raises(ConfigError, match="belongs to user 4321.*chown root"):
        Credentials(good, tmp_path).read()


def test_nothing_said_names_every_way_to_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"LND_CONNECT.*LND_MACAROON"):
        Credentials({}, tmp_path).read()
    (tmp_path / ".lnd").mkdir()
    (tmp_path / ".lnd" / "tls.cert").write_bytes(certificate())
    with pytest.raises(ConfigError, match=r"certificate is at .*tls\.cert"):
        Credentials({}, tmp_path).read()
    found = Credentials({"LND_MACAROON": secret_file(tmp_path)}, tmp_path).read()
    assert (found.target, bool(found.certificate)) == ("localhost:10009", True)
    (tmp_path / ".lnd" / "tls.cert").write_bytes(certificate()[:100])  # LND is just renewing it
    with pytest.raises(ConfigError, match="is not a certificate"):
        Credentials({"LND_MACAROON": secret_file(tmp_path)}, tmp_path).read()


def test_a_connection_is_shown_without_its_macaroon() -> None:
    assert SECRET.hex() not in repr(parse_uri(uri(), "x")) and repr(SECRET)[2:-1] not in repr(parse_uri(uri(), "x"))


def test_each_error_of_a_macaroon_is_mended_by_its_own_remedy(tmp_path: Path) -> None:
    (tmp_path / "tls.cert").write_bytes(certificate())
    options = {"LND_CERT": str(tmp_path / "tls.cert"), "LND_MACAROON": str(tmp_path / "ngp.macaroon")}
    payment = LndPayment(tmp_path, options)
    for content, mode, says, bakes in ((SECRET, 0o644, "chmod 600", False), (b"", 0o600, "is empty", True)):
        secret_file(tmp_path, content, mode)
        (found,) = asyncio.run(payment.check(spends=True))
        assert not found.ok and says in found.found and found.remedy.startswith("lncli bakemacaroon") is bakes
        assert found.remedy.endswith("; chmod 600 ngp.macaroon") is bakes  # ngp refuses the mode that lncli gives


# --- a node on this machine -------------------------------------------------------------------------------------------


def test_a_node_in_a_usual_place_is_found_with_the_mode_that_lnd_gives_its_macaroon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ngp.modules.payment.lnd_connect.USUAL_FOLDERS", (str(tmp_path / "none"), str(tmp_path)))
    assert LndPayment.find_local() == ""
    pem = certificate()
    (tmp_path / "tls.cert").write_bytes(pem)
    folder = tmp_path / "data" / "chain" / "bitcoin" / "testnet4"
    folder.mkdir(parents=True)
    assert LndPayment.find_local() == ""
    (folder / "admin.macaroon").write_bytes(SECRET)
    (folder / "admin.macaroon").chmod(0o640)
    found = parse_uri(LndPayment.find_local(), "it")
    assert (found.target, found.macaroon) == ("localhost:10009", SECRET)
    assert x509.load_pem_x509_certificate(found.certificate) == x509.load_pem_x509_certificate(pem)
