"""Where an LND node is and how to prove that we may use it: an lndconnect URI, three settings, or the usual places.

A macaroon is a bearer secret: whoever holds it has the node's rights. So it is read from a file that only its owner may
read, kept in memory as bytes, and never shown; errors name the file or the setting, not what is in it.

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
HOW = (
    "set LND_CONNECT to an lndconnect:// URI, or paste one by `ngp lightning connect`, "
    "or set LND_HOST, LND_CERT and LND_MACAROON"
)


class NoMacaroonError(ConfigError):
    """There is none yet: the next step is to bake one."""


@dataclass(frozen=True, slots=True)
class Connection:
    """An LND node's address and credentials as they are now.

    Attributes:
        target: `host:port` of its gRPC server.
        certificate: PEM to be trusted, and no other; empty: those of the system.
        macaroon: what it allows us, serialized; secret.
        certificate_from, macaroon_from, target_from: the settings or files that they were read from, for errors.
    """

    target: str
    certificate: bytes
    macaroon: bytes = field(repr=False)
    certificate_from: str = field(default="", compare=False)
    macaroon_from: str = field(default="", compare=False)
    target_from: str = field(default="LND_HOST", compare=False)

    def certificate_name(self) -> str | None:
        """Return a name that the pinned certificate bears; None where what we know is an authority's.

        A node's certificate is pinned, so the name that we reached it by proves nothing more and need not be in it. An
        authority's, which has no host's name, may have signed others too: then the name is all that tells them apart.
        """
        known = x509.load_pem_x509_certificates(self.certificate) if self.certificate else []
        for certificate in known:
            if found := names_in(certificate):
                return found[0]
        if not known or _is_authority(known[0]):
            return None
        return common_name(known[0])


def common_name(certificate: x509.Certificate) -> str | None:
    """Return the name of a certificate's subject, which stands for the host's in one without names of hosts."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else None


def names_in(certificate: x509.Certificate) -> list[str]:
    """Return the hosts, and then the addresses, that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    hosts = names.get_values_for_type(x509.DNSName)
    return [*map(str, hosts), *map(str, names.get_values_for_type(x509.IPAddress))]


def _is_authority(certificate: x509.Certificate) -> bool:
    """Say whether it may have signed others (RFC 5280, 4.2.1.3 and 4.2.1.9)."""
    extensions = certificate.extensions
    try:
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as lacking:
        return lacking.oid == ExtensionOID.KEY_USAGE  # it is marked as one, and nothing is said against it
    except ValueError:
        return False


class Credentials:
    """Says where the node is, each time anew: its certificate is renewed from time to time, and macaroons are baked.

    Args:
        options: LND_CONNECT, or LND_HOST, LND_CERT and LND_MACAROON, as in net.conf; all may be missing.
        state_dir: holds the URI that was pasted.
        uri_from: what LND_CONNECT is called in an error.
    """

    def __init__(self, options: Mapping[str, str], state_dir: Path, uri_from: str = "LND_CONNECT") -> None:
        self._options = {key: value for key, value in options.items() if value}
        self._stored = state_dir / STORED_URI
        self._uri_from = uri_from

    def read(self) -> Connection:
        """Return the connection. Raises ConfigError naming the setting or file and the remedy."""
        if uri := self._options.get("LND_CONNECT"):
            return parse_uri(uri, self._uri_from)
        if "LND_MACAROON" not in self._options and self._stored.exists():
            stored = str(self._stored)
            return parse_uri(secret_file.read(self._stored, stored).decode(errors="replace"), stored)
        target = _target(self._options.get("LND_HOST", "localhost"), "LND_HOST")
        macaroon = self._options.get("LND_MACAROON")
        if macaroon is None:
            if "LND_CERT" in self._options:  # the node is known: its macaroon alone is lacking
                raise NoMacaroonError(f"no macaroon to use LND at {target} with: set LND_MACAROON to its file")
            where = self._usual_certificate()
            found = f"an LND node's certificate is at {where}" if where else "no LND node is in its usual place"
            raise NoMacaroonError(f"no macaroon to use LND with ({found}): {HOW}")
        path = Path(macaroon).expanduser()
        certificate, known_from = self._certificate()
        return Connection(target, certificate, _macaroon_file(path), known_from, f"LND_MACAROON {path}")

    def _certificate(self) -> tuple[bytes, str]:
        """Return what to trust, and where that is known from."""
        named = self._options.get("LND_CERT")
        if named is None:
            usual = self._usual_certificate()
            if usual is None:
                raise ConfigError(f"LND_CERT is not set, and no tls.cert is in {', '.join(USUAL_FOLDERS)}: {HOW}")
            found = secret_file.read_any(usual, str(usual))
            return _checked_pem(found, str(usual)), str(usual)  # LND may be writing it anew just now
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


def parse_uri(text: str, where: str) -> Connection:
    """Read an lndconnect URI.

    Args:
        text: `lndconnect://host:port?cert=...&macaroon=...`, both base64url of bytes; `cert` may be missing.
        where: what it is called in an error.

    Raises: ConfigError; the text itself is never in it.
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
        raise ConfigError(f"{where}: the URI has no macaroon; make one with it") from None
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
    except OSError:  # whoever reads it is told why not
        return False
    return False


def _macaroon_file(path: Path) -> bytes:
    if _is_gone(path):
        raise NoMacaroonError(f"LND_MACAROON {path} is not there: bake one, or correct the path")
    content = secret_file.read(path, f"LND_MACAROON {path}")
    if not content:
        raise NoMacaroonError(f"LND_MACAROON {path} is empty: bake one anew")
    try:
        return bytes.fromhex(content.decode("ascii").strip())  # some hand it out in hexadecimal
    except ValueError:
        return content


def _checked_pem(pem: bytes, what: str) -> bytes:
    try:
        x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ConfigError(f"{what} holds no certificate: give the node's tls.cert") from None
    return pem
