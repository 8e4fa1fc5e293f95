"""The certificate of the listeners whose addresses begin with https://, and its private key.

From two PEM files, from a PKCS12 keystore, or made here when neither is named (contract section 7.5). Everything that can be wrong with
them is found before anything starts, and named by its key; no message holds the password or the private key.
"""

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import load_key_and_certificates

from ringserve.server.repository.files import open_regular
from ringserve.server.security.tls import Tls, server_context
from ringserve.server.settings import ConfigError, Settings

logger = logging.getLogger("ringserve.tls")

FILE_BYTES_MAX = 1 << 20
SELF_SIGNED_DAYS = 3650
JKS_MAGICS = (b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")  # JKS, JCEKS
KEYSTORE_TYPES = ("PKCS12", "JKS")  # Java reads a PKCS12 file under either name


@dataclass(frozen=True, slots=True)
class Certificate:
    """`pem` holds the private key and the chain: it is not shown, and leaves this process by a descriptor only."""

    subject: str
    valid_until: datetime.datetime
    pem: bytes = field(repr=False)
    warnings: tuple[str, ...] = ()


def certificate_files(settings: Settings) -> tuple[Path, ...]:
    """What is read, and read again when it changes; nothing when the certificate is made here."""
    if settings.keystore is not None:
        return (settings.keystore,)
    named = (settings.certificate_file, settings.private_key_file)
    return tuple(path for path in named if path is not None)


def load_certificate(settings: Settings) -> Certificate:
    """By what the settings name. Raises `ConfigError`."""
    if settings.keystore is not None:
        return _from_keystore(settings, settings.keystore)
    if settings.certificate_file is None and settings.private_key_file is None:
        return _self_signed(settings)
    for here, other in (("certificate_file", "private_key_file"), ("private_key_file", "certificate_file")):
        if getattr(settings, here) is None:
            raise ConfigError(f"{here}: expected a PEM file, since {other} is given; got nothing")
    assert settings.certificate_file is not None
    assert settings.private_key_file is not None
    return _from_pem(settings.certificate_file, settings.private_key_file)


def _read(key: str, path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror or error}") from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{key}: expected a file of at most {FILE_BYTES_MAX} bytes, got more: {path}")
    return data


def _from_pem(certificate_file: Path, private_key_file: Path) -> Certificate:
    text = _read("certificate_file", certificate_file)
    try:
        chain = x509.load_pem_x509_certificates(text)
        public = _public_bytes(chain[0].public_key())
    except (ValueError, UnsupportedAlgorithm):
        what = "one that does not parse" if b"-----BEGIN CERTIFICATE-----" in text else "none"
        raise ConfigError(
            f"certificate_file: expected a PEM file of certificates, got {what}: {certificate_file}"
        ) from None
    text = _read("private_key_file", private_key_file)
    try:
        private = load_pem_private_key(text, None)
    except TypeError:
        raise ConfigError(
            f"private_key_file: expected a private key without a password, got one with: {private_key_file}."
            " `openssl pkey -in OLD -out NEW` writes it without, a keystore may have one."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        what = "one that does not parse" if b"PRIVATE KEY-----" in text else "none"
        raise ConfigError(
            f"private_key_file: expected a PEM file with a private key (PKCS#8, PKCS#1 or EC), got {what}: {private_key_file}"
        ) from None
    if _public_bytes(private.public_key()) != public:
        raise ConfigError(
            f"private_key_file: expected the key of the certificate in {certificate_file}, got another's: {private_key_file}"
        )
    return _checked("certificate_file", private, chain)


def _from_keystore(settings: Settings, path: Path) -> Certificate:
    if settings.keystore_type.upper() not in KEYSTORE_TYPES:
        raise ConfigError(f"keystore_type: expected PKCS12, got {settings.keystore_type!r}")
    data = _read("keystore", path)
    if data.startswith(JKS_MAGICS):
        raise ConfigError(
            f"keystore: expected a PKCS12 file, got a Java keystore (JKS): {path}."
            f" `keytool -importkeystore -srckeystore {path.name} -destkeystore {path.stem}.p12 -deststoretype PKCS12` converts it;"
            " name the new file, and keystore_type=PKCS12."
        )
    try:
        private, own, more = load_key_and_certificates(data, settings.keystore_pass.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            f"keystore: expected a PKCS12 file that keystore_pass opens, got {path}, which it does not"
        ) from None
    if private is None or own is None:
        raise ConfigError(f"keystore: expected a private key and its certificate in {path}, got none")
    made = _checked("keystore", private, [own, *more])
    unused = [key for key in ("certificate_file", "private_key_file") if getattr(settings, key) is not None]
    notes = tuple(f"{key} is not used: keystore is given as well, and comes first, as in TorchServe" for key in unused)
    return Certificate(made.subject, made.valid_until, made.pem, (*made.warnings, *notes))


def _self_signed(settings: Settings) -> Certificate:
    """For trying out: no client has a reason to trust it."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    addresses = (settings.inference_address, settings.management_address, settings.metrics_address)
    hosts = dict.fromkeys(("localhost", "127.0.0.1", "::1", socket.gethostname(), *(each.host for each in addresses)))
    names = [_general_name(host) for host in hosts if host]
    alternatives = x509.SubjectAlternativeName([each for each in names if each is not None])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=SELF_SIGNED_DAYS))
    builder = builder.add_extension(alternatives, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    own = builder.sign(private, hashes.SHA256())
    made = _checked("certificate_file", private, [own])
    note = (
        "certificate_file and private_key_file, or keystore, are not given: a self-signed certificate was made for this start,"
        " which clients have no reason to trust"
    )
    return Certificate(made.subject, made.valid_until, made.pem, (*made.warnings, note))


def _general_name(host: str) -> x509.GeneralName | None:
    """None for a name that no certificate can hold."""
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    with contextlib.suppress(UnicodeError):
        return x509.DNSName(host.encode("idna").decode("ascii"))
    return None


def _public_bytes(key: object) -> bytes:
    found: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return found


def _checked(key: str, private: object, chain: Sequence[x509.Certificate]) -> Certificate:
    """As PEM that OpenSSL takes for a server. Raises `ConfigError`."""
    own = chain[0]
    pem: bytes = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined]
    pem += b"".join(each.public_bytes(Encoding.PEM) for each in chain)
    try:
        server_context(pem)
    except OSError as error:
        said = getattr(error, "reason", None) or error
        raise ConfigError(
            f"{key}: expected a certificate and key for a TLS server, got what OpenSSL refuses: {said}"
        ) from None
    now = datetime.datetime.now(datetime.UTC)
    warnings: tuple[str, ...] = ()
    if own.not_valid_after_utc < now:
        warnings = (
            f"{key}: the certificate has expired on {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; clients refuse it",
        )
    elif own.not_valid_before_utc > now:
        warnings = (f"{key}: the certificate is not valid before {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",)
    return Certificate(own.subject.rfc4514_string(), own.not_valid_after_utc, pem, warnings)


def fingerprint(paths: Sequence[Path]) -> tuple[object, ...]:
    """Changes with the files. A secret of Kubernetes is a link whose target is exchanged, so links are followed."""
    seen: list[object] = []
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            seen.append(None)
        else:
            seen.append((found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(seen)


class CertificateKeeper:
    """The certificate of a running server. Raises `ConfigError` when there is none to begin with; later, a file that cannot
    be taken is reported and the certificate stays as it is."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paths = certificate_files(settings)
        self._taken = self._seen = fingerprint(self._paths)
        self._current = load_certificate(settings)
        self.tls = Tls(server_context(self._current.pem), settings.header_timeout_s)
        self.on_renewed: Callable[[bytes], None] = lambda pem: None
        self._say()

    @property
    def pem(self) -> bytes:
        return self._current.pem

    async def look(self) -> None:
        """Take what has changed, once it has stopped changing: a certificate and its key are two files."""
        before, self._seen = self._seen, await asyncio.to_thread(fingerprint, self._paths)
        if self._seen == self._taken or self._seen != before:
            return
        self._taken = self._seen
        try:
            self._current = await asyncio.to_thread(load_certificate, self._settings)
        except ConfigError as error:
            logger.error("the TLS certificate stays as it is: %s", error)
            return
        self.tls.context = server_context(self.pem)
        self._say()
        self.on_renewed(self.pem)

    def _say(self) -> None:
        logger.info(
            "TLS certificate: %s, valid until %s", self._current.subject, f"{self._current.valid_until:%Y-%m-%d}"
        )
        for warning in self._current.warnings:
            logger.warning("%s", warning)
