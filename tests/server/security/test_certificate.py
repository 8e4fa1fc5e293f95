"""Where the certificate comes from, and what every mistake is called."""

import asyncio
import datetime
import logging
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, PrivateFormat

from ringserve.server.security.certificate import CertificateKeeper, load_certificate
from ringserve.server.security.tls import from_memory, in_memory, open_certificate, server_context
from ringserve.server.settings import Address, ConfigError, Settings
from tests.authority import Authority, Issued

PASSWORD = "5ecret-of-the-keystore"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue()


@pytest.fixture(scope="module")
def rsa_issued(authority: Authority) -> Issued:
    return authority.issue(key=rsa.generate_private_key(65537, 2048))


def files(paths: tuple[Path, Path]) -> Settings:
    return Settings(certificate_file=paths[0], private_key_file=paths[1])


def complaint(settings: Settings) -> str:
    with pytest.raises(ConfigError) as caught:
        load_certificate(settings)
    return str(caught.value)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("kind", ["issued", "rsa_issued"])
def test_pem_files_of_every_usual_form_are_taken(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, form: PrivateFormat
) -> None:
    made = load_certificate(files(request.getfixturevalue(kind).write(tmp_path, form)))
    assert made.subject == "CN=server"
    assert made.warnings == ()
    server_context(made.pem)


def test_a_keystore_gives_the_same(tmp_path: Path, rsa_issued: Issued) -> None:
    path = rsa_issued.write_keystore(tmp_path / "k.p12", PASSWORD)
    for word in ("PKCS12", "pkcs12", "JKS"):  # Java reads this file under either name
        made = load_certificate(Settings(keystore=path, keystore_pass=PASSWORD, keystore_type=word))
        assert made.subject == "CN=server"
        server_context(made.pem)


def test_a_keystore_comes_before_the_files_and_says_so(tmp_path: Path, issued: Issued) -> None:
    path = issued.write_keystore(tmp_path / "k.p12", "changeit")
    made = load_certificate(replace(files((tmp_path / "no", tmp_path / "no")), keystore=path))
    assert [note.split(" is not used")[0] for note in made.warnings] == ["certificate_file", "private_key_file"]


def test_without_any_a_certificate_is_made_with_a_warning() -> None:
    made = load_certificate(Settings(inference_address=Address("10.1.2.3", 8443, "https")))
    assert "self-signed" in made.warnings[0]
    parsed = x509.load_pem_x509_certificates(made.pem)[0]
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert {"127.0.0.1", "::1", "10.1.2.3"} <= set(map(str, names.get_values_for_type(x509.IPAddress)))
    server_context(made.pem)


@pytest.mark.parametrize(
    ("key", "other"), [("certificate_file", "private_key_file"), ("private_key_file", "certificate_file")]
)
def test_one_file_without_the_other_is_a_mistake(tmp_path: Path, key: str, other: str) -> None:
    named: dict[str, Any] = {other: tmp_path / "x"}
    assert complaint(replace(Settings(), **named)) == f"{key}: expected a PEM file, since {other} is given; got nothing"


def test_a_file_that_is_not_there_is_named_with_its_key(tmp_path: Path, issued: Issued) -> None:
    certificate, key = issued.write(tmp_path)
    gone = tmp_path / "gone.pem"
    assert complaint(files((gone, key))) == f"certificate_file: {gone} cannot be read: No such file or directory"
    assert (
        complaint(files((certificate, gone))) == f"private_key_file: {gone} cannot be read: No such file or directory"
    )
    assert complaint(Settings(keystore=gone)) == f"keystore: {gone} cannot be read: No such file or directory"


def test_a_file_of_something_else_is_named_with_what_was_expected(tmp_path: Path, issued: Issued) -> None:
    certificate, key = issued.write(tmp_path)
    torn = tmp_path / "torn.pem"
    torn.write_bytes(key.read_bytes()[:60])
    assert "certificate_file: expected a PEM file of certificates, got none" in complaint(files((key, key)))
    assert "(PKCS#8, PKCS#1 or EC), got none" in complaint(files((certificate, certificate)))
    assert "(PKCS#8, PKCS#1 or EC), got one that does not parse" in complaint(files((certificate, torn)))


def test_a_key_of_another_certificate_is_found(tmp_path: Path, authority: Authority, issued: Issued) -> None:
    certificate, _ = issued.write(tmp_path / "one")
    _, key = authority.issue().write(tmp_path / "other")
    assert complaint(files((certificate, key))).startswith(
        f"private_key_file: expected the key of the certificate in {certificate}, got another's"
    )


def test_a_key_with_a_password_is_refused_with_the_way_out(tmp_path: Path, issued: Issued) -> None:
    certificate, key = issued.write(tmp_path)
    key.write_bytes(issued.private(PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    said = complaint(files((certificate, key)))
    assert "expected a private key without a password" in said
    assert "openssl pkey" in said


def test_a_wrong_password_is_named_by_its_key_and_never_shown(tmp_path: Path, issued: Issued) -> None:
    path = issued.write_keystore(tmp_path / "k.p12", PASSWORD)
    said = complaint(Settings(keystore=path, keystore_pass="n0t-this-one"))
    assert "keystore_pass" in said
    assert "n0t-this-one" not in said


def test_a_java_keystore_is_refused_with_how_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "keystore.jks"
    path.write_bytes(b"\xfe\xed\xfe\xed" + bytes(100))
    said = complaint(Settings(keystore=path, keystore_type="JKS"))
    assert "keytool -importkeystore -srckeystore keystore.jks -destkeystore keystore.p12 -deststoretype PKCS12" in said


def test_an_unknown_type_of_keystore_is_refused(tmp_path: Path) -> None:
    said = complaint(Settings(keystore=tmp_path / "x", keystore_type="BKS"))
    assert said == "keystore_type: expected PKCS12, got 'BKS'"


def test_a_key_that_openssl_finds_too_weak_is_refused(tmp_path: Path, authority: Authority) -> None:
    weak = authority.issue(key=rsa.generate_private_key(65537, 1024))
    assert "what OpenSSL refuses: EE_KEY_TOO_SMALL" in complaint(files(weak.write(tmp_path)))


def test_an_expired_certificate_is_served_with_a_warning_that_names_the_day(
    tmp_path: Path, authority: Authority
) -> None:
    old = authority.issue(valid_for=-datetime.timedelta(days=2))
    made = load_certificate(files(old.write(tmp_path)))
    assert made.warnings[0].startswith(f"certificate_file: the certificate has expired on {made.valid_until:%Y-%m-%d}")


def test_the_private_key_is_in_no_text_and_in_no_file_that_others_can_open(issued: Issued, tmp_path: Path) -> None:
    made = load_certificate(files(issued.write(tmp_path)))
    assert "PRIVATE" not in repr(made)
    fd = in_memory(made.pem)
    with open(fd, "rb"):
        assert from_memory(fd) == made.pem
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600


def test_a_renewed_certificate_is_taken_once_both_files_stand_still(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    authority.issue("first").write(tmp_path)
    settings = files((tmp_path / "cert.pem", tmp_path / "key.pem"))
    keeper = CertificateKeeper(settings)
    given: list[bytes] = []
    keeper.on_renewed = given.append
    first = keeper.tls.context
    (made := authority.issue("second")).write(tmp_path)
    asyncio.run(keeper.look())
    assert given == []  # it has changed since the last look
    asyncio.run(keeper.look())
    assert given == [load_certificate(files(made.write(tmp_path / "copy"))).pem]
    assert keeper.tls.context is not first
    asyncio.run(keeper.look())
    assert len(given) == 1


def test_a_broken_renewal_is_reported_once_and_changes_nothing(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, _ = authority.issue().write(tmp_path)
    keeper = CertificateKeeper(files((certificate, tmp_path / "key.pem")))
    before = keeper.tls.context
    authority.issue().write(tmp_path / "other")
    certificate.write_bytes((tmp_path / "other" / "cert.pem").read_bytes())
    with caplog.at_level(logging.ERROR, "ringserve.tls"):
        for _ in range(4):
            asyncio.run(keeper.look())
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["the TLS certificate stays as it is"]
    assert keeper.tls.context is before


def test_without_an_https_address_nothing_is_opened_and_the_keys_are_named(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(certificate_file=Path("/nowhere"), private_key_file=Path("/nowhere"))
    assert asyncio.run(open_certificate(settings)) is None
    assert [record.getMessage().split(" is not used")[0] for record in caplog.records] == [
        "certificate_file",
        "private_key_file",
    ]


def test_with_one_it_is(tmp_path: Path, issued: Issued) -> None:
    settings = replace(files(issued.write(tmp_path)), metrics_address=Address("127.0.0.1", 8445, "https"))
    keeper = asyncio.run(open_certificate(settings))
    assert keeper is not None
    assert isinstance(issued.key, ec.EllipticCurvePrivateKey)
    assert keeper.pem.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_a_pipe_is_refused_at_once(tmp_path: Path, issued: Issued) -> None:
    certificate, _ = issued.write(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "cannot be read: expected a regular file, got a named pipe" in complaint(
        files((certificate, tmp_path / "pipe"))
    )
