"""Certificates that LND may show, in real handshakes: which are accepted, and the error for each that isn't.

Also here: proxy variables of the environment aren't used, and gRPC writes nothing to standard error.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ngp.modules.payment import lnd_pb2 as pb
from ngp.modules.payment.lnd_certificate import is_at_fault, readable, why_refused
from ngp.modules.payment.lnd_client import GET_INFO, LndClient, LndError
from ngp.modules.payment.lnd_connect import Connection
from tests.cli.conftest import ROOT

KEY = "02" * 33
DAY = timedelta(days=1)
LOCAL = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Pair:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        kind = serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def made(
    common: str, names: Sequence[str] = LOCAL, by: Pair | None = None, authority: bool = False,
    begins: timedelta = -DAY, ends: timedelta = DAY, signs: bool | None = None,
) -> Pair:  # fmt: skip
    """Make a certificate. Without an issuer it is signed by itself and marked as an authority's, like LND's own.

    Args: signs: whether its key usage allows signing other certificates; None: it has no key usage.
    """
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    building = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=authority or by is None, path_length=None), critical=True)
    )
    if not authority:
        shown: list[x509.GeneralName] = []
        for name in names:
            address = name.replace(".", "").isdigit()
            shown.append(x509.IPAddress(ip_address(name)) if address else x509.DNSName(name))
        building = building.add_extension(x509.SubjectAlternativeName(shown), critical=False)
    if signs is not None:
        usage = x509.KeyUsage(True, False, False, False, False, signs, False, False, False)
        building = building.add_extension(usage, critical=True)
    return Pair(building.sign(by.key if by else key, hashes.SHA256()), key)


ROOT_CA = made("Example Root", authority=True)
BETWEEN = made("Example Intermediate", by=ROOT_CA, authority=True)
LEAF = made("lnd.example", ["lnd.example", *LOCAL], by=BETWEEN)
ELSEWHERE = made("lnd.example", ["lnd.example"], by=ROOT_CA)
OWN, OTHERS_OWN, NAMED_OTHERWISE = made("lnd"), made("lnd"), made("lnd", ["router"])
NAMELESS, NO_SIGNER = made("router", authority=True), made("router", authority=True, signs=False)
EXPIRED, COMING = made("lnd", begins=-9 * DAY, ends=-DAY), made("lnd", begins=DAY, ends=9 * DAY)
EXPIRED_LEAF = made("lnd.example", by=ROOT_CA, begins=-9 * DAY, ends=-DAY)


class Given:
    """Fixed credentials."""

    def __init__(self, target: str, certificate: bytes) -> None:
        self._connection = Connection(target, certificate, b"macaroon", "LND_CERT /etc/ngp/tls.cert")

    def read(self) -> Connection:
        return self._connection


class Node(grpc.GenericRpcHandler):
    """A node that only says who it is."""

    def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def answer(_asked: bytes, _context: Any) -> bytes:
            return pb.GetInfoResponse(identity_pubkey=KEY).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


async def ask(shows: Sequence[Pair], trusts: bytes, host: str = "127.0.0.1") -> str:
    """Ask a node that shows these certificates, beginning with its own, who it is."""
    server = grpc.aio.server(handlers=(Node(),))
    credentials = grpc.ssl_server_credentials([(shows[0].key_pem, b"".join(one.pem for one in shows))])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    client = LndClient(Given(f"{host}:{port}", trusts))  # type: ignore[arg-type]
    try:
        return (await client.call(GET_INFO, pb.GetInfoRequest(), 30)).identity_pubkey
    finally:
        await client.close()
        await server.stop(0)


def kind(value: object) -> str:
    """Return a test case's name without its certificate: each worker makes another one, but all need the same names."""
    return type(value).__name__


@pytest.mark.parametrize(
    ("shows", "trusts", "host"),
    [
        ([OWN], OWN.pem, "127.0.0.1"),
        ([NAMED_OTHERWISE], NAMED_OTHERWISE.pem, "localhost"),  # it is pinned, so its names don't matter
        ([LEAF, BETWEEN], LEAF.pem, "localhost"),
        ([LEAF, BETWEEN], LEAF.pem + BETWEEN.pem, "localhost"),
        ([LEAF, BETWEEN], LEAF.pem + BETWEEN.pem + ROOT_CA.pem, "localhost"),
        ([LEAF, BETWEEN], ROOT_CA.pem, "localhost"),
        ([LEAF], ROOT_CA.pem + BETWEEN.pem, "localhost"),
        ([LEAF, BETWEEN], ROOT_CA.pem, "127.0.0.1"),
        ([ELSEWHERE], ELSEWHERE.pem, "localhost"),
        ([NO_SIGNER], NO_SIGNER.pem, "localhost"),  # marked as an authority's, but its key usage forbids signing
    ],
    ids=kind,
)
def test_a_certificate_that_is_known_or_signed_by_a_known_authority_is_taken(
    shows: list[Pair], trusts: bytes, host: str
) -> None:
    assert asyncio.run(ask(shows, trusts, host)) == KEY


@pytest.mark.parametrize(
    ("shows", "trusts", "says"),
    [
        ([OWN], OTHERS_OWN.pem, r"shows another certificate than the one in LND_CERT /etc/ngp/tls\.cert"),
        ([EXPIRED], EXPIRED.pem, r"that expired on \d{4}-.*: restart LND, which makes a new one, then set LND_CERT"),
        ([COMING], COMING.pem, r"that is valid from \d{4}-.* only \(by our clock it is \d{4}-.*set the clock"),
        ([EXPIRED_LEAF], ROOT_CA.pem, r"that expired on .*: have its authority renew it"),
        ([LEAF], ROOT_CA.pem, "signed by CN=Example Intermediate, which isn't in LND_CERT .*: set LND_CERT to the"),
        ([LEAF, BETWEEN], OWN.pem, "signed by CN=Example Intermediate, which isn't in LND_CERT"),
        ([ELSEWHERE], ROOT_CA.pem, "for lnd.example, but ngp reaches it by another name: write one of these"),
        ([NAMELESS], NAMELESS.pem, "names no host .*: write the name in it, router, in LND_HOST, or"),
        ([OWN], b"", "that this system doesn't trust, and LND_CERT .* has none"),
    ],
    ids=kind,
)
def test_what_is_wrong_with_a_certificate_is_said(shows: list[Pair], trusts: bytes, says: str) -> None:
    with pytest.raises(LndError, match=says) as refused:
        asyncio.run(ask(shows, trusts, "localhost"))
    assert refused.value.unreachable


@pytest.mark.parametrize(
    ("trusts", "detail", "says"),
    [
        (OWN.pem, "CERTIFICATE_VERIFY_FAILED: self signed certificate", "shows another certificate than the one in"),
        (EXPIRED.pem, "CERTIFICATE_VERIFY_FAILED: certificate has expired", "the certificate of LND_CERT expired on"),
        (b"", "CERTIFICATE_VERIFY_FAILED: self signed certificate", "that this system doesn't trust"),
        (ROOT_CA.pem, "Hostname Verification Check failed.", "name: write a name that is in the certificate"),
    ],
    ids=kind,
)
def test_a_certificate_that_cant_be_had_again_is_told_of_as_far_as_it_is_known(
    trusts: bytes, detail: str, says: str
) -> None:
    assert is_at_fault(detail)
    known = Connection("lnd.example:1", trusts, b"macaroon", "LND_CERT")
    assert says in why_refused(known, None, detail, datetime.now(UTC))


@pytest.mark.parametrize(
    ("there", "instead"),
    [(b"\x0c\x03xyz", b"\x0c\x03\xff\xfe\xff"), (b"\x06\x03\x55\x1d\x11", b"\x06\x03\x55\x1d\x13"), (b"\x30", b"\x31")],
    ids=["a name that is no text", "an extension twice", "no certificate"],
)
def test_a_certificate_that_a_stranger_made_up_ends_nothing(there: bytes, instead: bytes) -> None:
    """The library parses a field only when it is read: an invalid field must not stop the daemon."""
    der = made("xyz").certificate.public_bytes(serialization.Encoding.DER)
    assert there in der and readable(der) is not None
    assert readable(der.replace(there, instead)) is None


def test_names_in_a_certificate_write_no_lines_of_their_own_into_the_log() -> None:
    shown = made("lnd", ["a\nb"], by=ROOT_CA).certificate
    known = Connection("lnd.example:1", ROOT_CA.pem, b"macaroon", "LND_CERT")
    assert "for a?b," in why_refused(known, shown, "Hostname Verification Check failed.", datetime.now(UTC))


@pytest.mark.parametrize("value", ["http://127.0.0.1:1", "nonsense"])
def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.upper(), value)
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert asyncio.run(ask([OWN], OWN.pem)) == KEY


_ASK_IN_VAIN = """
import asyncio
from tests.payment.test_lnd_certificate import OTHERS_OWN, OWN, ask
try:
    asyncio.run(ask([OWN], OTHERS_OWN.pem))
except Exception as error:
    print(error)
"""


def test_grpc_itself_says_nothing_on_standard_error(tmp_path: Path) -> None:
    program = f"import ngp.modules.payment\n{_ASK_IN_VAIN}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "GRPC_VERBOSITY": "DEBUG"},
    )  # fmt: skip
    assert "shows another certificate" in done.stdout
    assert done.stderr == ""
