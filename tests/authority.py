"""Certificates for tests: an authority that signs them, in the forms that users have."""

import datetime
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

DAY = datetime.timedelta(days=1)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    key: Key
    certificate: x509.Certificate

    def private(self, form: PrivateFormat, encryption: KeySerializationEncryption | None = None) -> bytes:
        return self.key.private_bytes(Encoding.PEM, form, encryption or NoEncryption())

    def write(self, folder: Path, form: PrivateFormat = PrivateFormat.PKCS8) -> tuple[Path, Path]:
        """`cert.pem` and `key.pem`."""
        folder.mkdir(parents=True, exist_ok=True)
        certificate, key = folder / "cert.pem", folder / "key.pem"
        certificate.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        key.write_bytes(self.private(form))
        return certificate, key

    def write_keystore(self, path: Path, password: str) -> Path:
        encryption = BestAvailableEncryption(password.encode())
        path.write_bytes(serialize_key_and_certificates(b"own", self.key, self.certificate, None, encryption))
        return path


class Authority:
    """Signs certificates for this machine."""

    def __init__(self, name: str = "an authority") -> None:
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.BasicConstraints(ca=True, path_length=None)
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = self._builder(name, self._key, DAY).add_extension(authority, critical=True)
        self._own = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())

    def _builder(self, subject: str, key: Key, valid_for: datetime.timedelta) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        names = (_name(self._name), _name(subject))
        made = x509.CertificateBuilder(*names, key.public_key(), x509.random_serial_number())
        return made.not_valid_before(now - 10 * DAY).not_valid_after(now + valid_for)

    def issue(self, subject: str = "server", *, key: Key | None = None, valid_for: datetime.timedelta = DAY) -> Issued:
        key = key or ec.generate_private_key(ec.SECP256R1())
        places = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        builder = self._builder(subject, key, valid_for).add_extension(x509.SubjectAlternativeName(places), False)
        return Issued(key, builder.sign(self._key, hashes.SHA256()))

    @property
    def pem(self) -> bytes:
        """What a client trusts."""
        return self._own.public_bytes(Encoding.PEM)

    def client_context(self) -> ssl.SSLContext:
        """Of a client that trusts this authority and nobody else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.pem.decode())
        return context
