"""An LND node's address and credentials: from an lndconnect URI, from three settings, or from the usual places.

A macaroon is a bearer secret: anyone who has it has its rights at the node. So it is read from a file that only its
owner may read, kept in memory as bytes, and never shown; errors name the file or the setting, not its content.

Source of the URI: https://github.com/LN-Zap/lndconnect/blob/master/lnd_connect_uri.md
"""

from __future__ import annotations

import base64
import binascii
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from ngp.errors import ConfigError
from ngp.modules.payment import rpc_address, secret_file

RPC_PORT = 10009
STORED_URI = "lnd-connect"
USUAL_FOLDERS = ("~/.lnd", "/var/lib/lnd", "/home/lnd/.lnd", "/mnt/hdd/lnd", "/etc/lnd")
_NETWORKS = ("mainnet", "testnet4", "testnet", "signet", "regtest", "simnet")
HOW = (
    "set LND_CONNECT to an lndconnect:// URI, or paste one by `ngp lightning connect`, "
    "or set LND_HOST, LND_CERT and LND_MACAROON"
)


class NoMacaroonError(ConfigError):
    """There is no macaroon yet: the next step is to bake one."""


@dataclass(frozen=True, slots=True)
class Connection:
    """An LND node's present address and credentials.

    Attributes:
        target: `host:port` of its gRPC server.
        certificate: the only certificates to trust, PEM; if empty, those that the system trusts.
        macaroon: serialized; secret.
        certificate_from, macaroon_from, target_from: the settings or files that have these values, for errors.
    """

    target: str
    certificate: bytes
    macaroon: bytes = field(repr=False)
    certificate_from: str = field(default="", compare=False)
    macaroon_from: str = field(default="", compare=False)
    target_from: str = field(default="LND_HOST", compare=False)

    def certificate_name(self) -> str | None:
        """Return the name for which the node's certificate is checked; None if that is the name in LND_HOST.

        If we trust only the node's own certificate, the name proves nothing more, and LND_HOST may use another name. So
        we return a name that is in the certificate. If we have an authority's certificate (it has no host name), the
        authority may have signed other nodes' certificates too. Only the name tells those nodes apart, so we return
        None, and the name in LND_HOST is checked.
        """
        known = x509.load_pem_x509_certificates(self.certificate) if self.certificate else []
        for certificate in known:
            if found := names_in(certificate):
                return found[0]
        if not known or _is_authority(known[0]):
            return None
        return common_name(known[0])


def common_name(certificate: x509.Certificate) -> str | None:
    """Return the common name of a certificate's subject, which is used as its host name if it has no others."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else None


def names_in(certificate: x509.Certificate) -> list[str]:
    """Return the host names and then the addresses in a certificate."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    hosts = names.get_values_for_type(x509.DNSName)
    return [*map(str, hosts), *map(str, names.get_values_for_type(x509.IPAddress))]


def _is_authority(certificate: x509.Certificate) -> bool:
    """Say whether a certificate may have signed others (RFC 5280, 4.2.1.3 and 4.2.1.9)."""
    extensions = certificate.extensions
    try:
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as lacking:
        return lacking.oid == ExtensionOID.KEY_USAGE  # marked as an authority's, without a key usage that excludes it
    except ValueError:
        return False


class Credentials:
    """Reads the node's address and credentials, anew each time, as certificates are renewed and macaroons replaced.

    Args:
        options: LND_CONNECT, or LND_HOST, LND_CERT and LND_MACAROON, as in net.conf; all are optional.
        state_dir: has the URI that was pasted.
        uri_from: what errors call the URI in LND_CONNECT.
    """

    def __init__(self, options: Mapping[str, str], state_dir: Path, uri_from: str = "LND_CONNECT") -> None:
        self._options = {key: value for key, value in options.items() if value}
        self._stored = state_dir / STORED_URI
        self._uri_from = uri_from

    def read(self) -> Connection:
        """Return the connection. Raises ConfigError with the setting or file and the remedy."""
        if uri := self._options.get("LND_CONNECT"):
            return parse_uri(uri, self._uri_from)
        if "LND_MACAROON" not in self._options and self._stored.exists():
            stored = str(self._stored)
            return parse_uri(secret_file.read(self._stored, stored).decode(errors="replace"), stored)
        target = _target(self._options.get("LND_HOST", "localhost"), "LND_HOST")
        macaroon = self._options.get("LND_MACAROON")
        if macaroon is None:
            if "LND_CERT" in self._options:  # the node is known: only its macaroon is missing
                raise NoMacaroonError(f"no macaroon to use LND at {target} with: set LND_MACAROON to its file")
            where = self._usual_certificate()
            found = f"an LND node's certificate is at {where}" if where else "no LND node is in its usual place"
            raise NoMacaroonError(f"no macaroon to use LND with ({found}): {HOW}")
        path = Path(macaroon).expanduser()
        certificate, known_from = self._certificate()
        return Connection(target, certificate, _macaroon_file(path), known_from, f"LND_MACAROON {path}")

    def _certificate(self) -> tuple[bytes, str]:
        """Return the certificates to trust, and the setting or file that has them."""
        named = self._options.get("LND_CERT")
        if named is None:
            usual = self._usual_certificate()
            if usual is None:
                raise ConfigError(f"LND_CERT is not set, and no tls.cert is in {', '.join(USUAL_FOLDERS)}: {HOW}")
            found = secret_file.read_any(usual, str(usual))
            return _checked_pem(found, str(usual)), str(usual)  # LND may just be rewriting it
        if named == "system":
            return b"", "LND_CERT: system"
        path = Path(named).expanduser()
        known_from = f"LND_CERT {path}"
        return _checked_pem(secret_file.read_any(path, known_from), known_from), known_from

    @staticmethod
    def _usual_certificate() -> Path | None:
        for folder in USUAL_FOLDERS:
            path = Path(folder).expanduser() / "tls.cert"
            try:
                if path.is_file():
                    return path
            except PermissionError:
                continue
        return None


def find_local() -> str:
    """Return an lndconnect URI of an LND node in a usual place whose files we may read; "" if there is none. A secret.

    LND's own macaroon may have any mode: it is LND's file, in LND's folder.
    """
    for folder in USUAL_FOLDERS:
        home = Path(folder).expanduser()
        for network in _NETWORKS:
            try:
                macaroon = (home / "data/chain/bitcoin" / network / "admin.macaroon").read_bytes()
                certificate = ssl.PEM_cert_to_DER_cert((home / "tls.cert").read_text())
            except (OSError, ValueError):
                continue
            cert, given = (base64.urlsafe_b64encode(one).decode() for one in (certificate, macaroon))
            return f"lndconnect://localhost:{RPC_PORT}?cert={cert}&macaroon={given}"
    return ""


def parse_uri(text: str, where: str) -> Connection:
    """Read an lndconnect URI.

    Args:
        text: `lndconnect://host:port?cert=...&macaroon=...`, both base64url of bytes; `cert` may be missing.
        where: what errors call it.

    Raises: ConfigError, without the text itself, as it has a secret.
    """
    try:
        uri = urlsplit(text.strip())
    except ValueError:
        raise ConfigError(f"{where}: the URI is damaged (its host); paste the whole of it") from None
    if uri.scheme != "lndconnect":
        raise ConfigError(f"{where}: not an lndconnect:// URI; your wallet's or LND's `lndconnect` command makes one")
    query = parse_qs(uri.query)
    try:
        target = _target(uri.netloc, where)
        macaroon = _base64url(query["macaroon"][0])
        certificate = _base64url(query["cert"][0]) if "cert" in query else b""
        pem = ssl.DER_cert_to_PEM_cert(certificate).encode() if certificate else b""
    except KeyError:
        raise ConfigError(f"{where}: the URI has no macaroon; make a URI that has one") from None
    except (binascii.Error, ValueError):
        raise ConfigError(f"{where}: the URI is damaged (not base64url); paste the whole of it") from None
    if not macaroon:
        raise ConfigError(f"{where}: the URI's macaroon is empty")
    return Connection(target, _checked_pem(pem, where) if pem else b"", macaroon, where, where, where)


def _target(text: str, where: str) -> str:
    try:
        found = rpc_address.read(text, RPC_PORT)
    except ValueError:
        raise ConfigError(f"{where}: {text!r} has no usable port; write host:port") from None
    if not found:
        raise ConfigError(f"{where}: {text!r} is not host:port; write for example localhost:10009")
    return found


def _base64url(text: str) -> bytes:
    return base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:  # the attempt to read it reports why
        return False
    return False


def _macaroon_file(path: Path) -> bytes:
    if _is_gone(path):
        raise NoMacaroonError(f"LND_MACAROON {path} doesn't exist: bake one, or correct the path")
    content = secret_file.read(path, f"LND_MACAROON {path}")
    if not content:
        raise NoMacaroonError(f"LND_MACAROON {path} is empty: bake a new one")
    try:
        return bytes.fromhex(content.decode("ascii").strip())  # some programs export it in hexadecimal
    except ValueError:
        return content


def _checked_pem(pem: bytes, what: str) -> bytes:
    try:
        x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ConfigError(f"{what} is not a certificate: use the node's tls.cert") from None
    return pem
