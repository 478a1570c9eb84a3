"""Certificate: what a face shows to tenants. Over HTTPS they pin its SHA-256 fingerprint, and ask no authority.

So a new certificate now and then would gain nothing, and each new one would lock out all tenants. If the operator has
none, ngp makes one that never expires.
"""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ngp import key_file
from ngp.core.rental.terms import LettingSettings
from ngp.errors import ConfigError

FILE = "https.pem"
_NAME = "ngp landlord"
# The dates of our certificate. A router's clock without a battery may be decades wrong; the second date means "no end"
# (RFC 5280, 4.1.2.5).
_FROM, _TO = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The PEM files of the certificate and of its private key, perhaps the same.

    Attributes: what: names the certificate in errors. anew: what tenants need if another one is made.
    """

    certificate: Path
    key: Path
    is_ours: bool
    what: str = "HTTPS certificate"
    anew: str = ", whose fingerprint every tenant must be told"

    @classmethod
    def of(cls, settings: LettingSettings, state_dir: Path) -> CertificateFiles:
        """Return the operator's files, or ours."""
        if settings.https_certificate:
            certificate = Path(settings.https_certificate)
            return cls(certificate, Path(settings.https_key) if settings.https_key else certificate, is_ours=False)
        return cls(state_dir / FILE, state_dir / FILE, is_ours=True)

    def make_if_missing(self) -> None:
        """Make our own certificate, once. Raises ConfigError, MomentError."""
        if self.is_ours:
            key_file.load_or_create(self.certificate, self.what, f"certificate{self.anew}", _make, size=None)

    def context(self, protocol: str = "http/1.1") -> ssl.SSLContext:
        """Return the TLS settings of a server with this certificate. Raises ConfigError.

        Args: protocol: the name in ALPN of the protocol that the server speaks.
        """
        self._refuse_shown_key()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION  # a client could have us calculate for nothing
        context.set_alpn_protocols([protocol])
        try:
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")  # never asks on a terminal
        except ssl.SSLError as error:
            raise ConfigError(
                f"{self._named()} can't be used ({error.reason or 'no PEM'}): give a certificate and its private key, "
                "PEM without a password"
            ) from error
        except OSError as error:
            raise ConfigError(f"{self._named()}: {error.strerror}; check the paths and their owner") from error
        return context

    def pin(self) -> str:
        """Return the SHA-256 of the leaf certificate's DER: 64 hex digits. Raises ConfigError."""
        try:
            content = self.certificate.read_bytes()
            return x509.load_pem_x509_certificate(content).fingerprint(hashes.SHA256()).hex()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it has no certificate in PEM"
            raise ConfigError(f"{self._named()}: {why}; {self._remedy('CERT')}") from error

    def _named(self) -> str:
        files = {str(self.certificate): None, str(self.key): None}
        return f"the {self.what} {' with '.join(files)}"

    def _remedy(self, key: str) -> str:
        if self.is_ours:
            return f"move it away, and the next start makes a new one{self.anew}"
        return f"check LANDLORD_HTTPS_{key}"

    def _refuse_shown_key(self) -> None:
        try:
            mode = stat.S_IMODE(os.stat(self.key).st_mode)
        except OSError as error:
            raise ConfigError(f"{self._named()}: {error.strerror}; {self._remedy('KEY')}") from error
        if mode & 0o077:
            raise ConfigError(
                f"{self.key} has mode {mode:04o}, so others can read the private key: chmod 600 {self.key}"
            )


def _make() -> bytes:
    """Make a key and a self-signed certificate, both as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_TO)
        .sign(key, hashes.SHA256())
    )
    pkcs8, pem = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
    return key.private_bytes(pem, pkcs8, serialization.NoEncryption()) + certificate.public_bytes(pem)
