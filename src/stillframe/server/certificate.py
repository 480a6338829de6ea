"""A certificate that the server makes for itself, so that browsers elsewhere lend it a camera.

Browsers give a camera only to pages that come over TLS (or from the computer itself). The key and
the certificate are kept in the configuration folder, so that a browser that was told once to trust
it finds the same again. Needs the package cryptography, which aiortc brings.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stillframe.errors import StillframeError

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["Certificate", "check_certificate", "own_address", "own_certificate"]

_DAYS, _LEFT_DAYS = 397, 30
_NAME = "stillframe"


class Certificate(NamedTuple):
    """What a server shows who it is with.

    Attributes:
        path, key: files, PEM.
        fingerprint: SHA-256 of the certificate, as browsers show it.
        is_own: whether nobody but the server itself vouches for it.
    """

    path: Path
    key: Path
    fingerprint: str
    is_own: bool = False


def own_address() -> str | None:
    """This computer's address in its network, None if it has none; nothing is sent for that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as place:
        try:
            place.connect(("192.0.2.1", 9))  # of nobody (RFC 5737)
            return str(place.getsockname()[0])
        except OSError:
            return None


def check_certificate(path: Path, key: Path) -> Certificate:
    """A certificate of somebody's files.

    Raises:
        StillframeError: they cannot be read, or do not fit together.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, key)
        text = path.read_text(encoding="ascii", errors="replace")
    except ssl.SSLError as error:
        reason = (error.reason or "not PEM").replace("_", " ").lower()
        raise StillframeError(
            f"{path} and {key} are no certificate with its key: {reason}"
        ) from error
    except OSError as error:
        raise StillframeError(f"{path} or {key} cannot be read: {error.strerror}") from error
    return Certificate(path, key, _fingerprint(text))


def own_certificate(names: Sequence[str] = (), folder: Path | None = None) -> Certificate:
    """The server's own certificate, made if there is none, or it ends soon, or for other names.

    Args:
        names: by which the server is called, beside the computer's own names and addresses.
        folder: where it is kept; by default ``$XDG_CONFIG_HOME/stillframe``, else
            ``~/.config/stillframe``.

    Raises:
        StillframeError: cryptography is not installed, or the folder cannot be written.
    """
    if importlib.util.find_spec("cryptography") is None:
        raise StillframeError(
            "a certificate of one's own needs the package cryptography: "
            "pip install 'stillframe[webrtc]'"
        )
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    folder = Path(base).expanduser() / _NAME if folder is None else folder
    path, key = folder / "tls-certificate.pem", folder / "tls-key.pem"
    wanted = _names(names)
    try:
        if not _is_good(path, key, wanted):
            folder.mkdir(parents=True, exist_ok=True)
            _make(path, key, wanted)
    except OSError as error:
        raise StillframeError(
            f"the certificate cannot be kept in {folder}: {error.strerror}"
        ) from error
    return check_certificate(path, key)._replace(is_own=True)


def _fingerprint(text: str) -> str:
    first = text[text.index("-----BEGIN CERTIFICATE-----") :].partition("-----END CERTIFICATE")[0]
    data = ssl.PEM_cert_to_DER_cert(f"{first}-----END CERTIFICATE-----\n")
    digest = hashlib.sha256(data).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def _names(more: Sequence[str]) -> frozenset[str]:
    own = socket.gethostname().lower().rstrip(".")
    short = own.partition(".")[0]
    address = own_address()
    found = {"localhost", "127.0.0.1", "::1", own, short, f"{short}.local", *more}
    return frozenset(found | ({address} if address else set())) - {"", "0.0.0.0", "::"}


def _is_good(path: Path, key: Path, wanted: frozenset[str]) -> bool:
    """Whether the files are a certificate that still holds for a while, and for these names."""
    from cryptography import x509

    if not path.is_file() or not key.is_file():
        return False
    try:
        check_certificate(path, key)
        made = x509.load_pem_x509_certificate(path.read_bytes())
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (StillframeError, ValueError, x509.ExtensionNotFound):
        return False
    known = set(names.get_values_for_type(x509.DNSName))
    known |= {str(each) for each in names.get_values_for_type(x509.IPAddress)}
    left = made.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return wanted <= known and left > datetime.timedelta(days=_LEFT_DAYS)


def _make(path: Path, key_path: Path, names: frozenset[str]) -> None:
    """Make both files; the key is for its owner alone."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{_NAME} on this computer")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName(list(map(_general, sorted(names)))), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(key_path, private, 0o600)
    _write(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _general(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, data: bytes, mode: int) -> None:
    """A file that nobody else sees half-written, nor with other rights."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(part, path)
