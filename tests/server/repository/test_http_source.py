"""Archives from a real web server: whose addresses were checked, whose redirects too, and whose answers are whole. Names are
resolved by the test."""

import datetime
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ringserve.protocol.errors import ModelNotFound
from ringserve.server.repository.incoming import DownloadLimits
from tests.server.repository.fetching import ANY, BODY, failure, fetch, refused
from tests.server.repository.file_server import FileServer, answer, redirect


def test_a_body_without_a_length_arrives_too(source: FileServer, store: Path) -> None:
    source.acts["/x.mar"] = answer(200, BODY, length=None)
    assert fetch(f"{source.url}/x.mar", store).path.read_bytes() == BODY


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_an_allowed_url_is_followed(source: FileServer, store: Path, status: int) -> None:
    source.acts["/old/y.mar"] = redirect("../x.mar", status)
    named = f"http://127\\.0\\.0\\.1:{source.port}/.*"
    assert fetch(f"{source.url}/old/y.mar", store, (named,)).path == store / "y.mar"
    assert (store / "y.mar").read_bytes() == BODY


def test_the_environments_proxies_are_not_used(
    source: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch(f"{source.url}/x.mar", store).downloaded


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "127.0.0.2", "[::ffff:127.0.0.1]", "0"])
def test_odd_spellings_of_this_machine_are_refused(source: FileServer, store: Path, host: str) -> None:
    message = refused(ModelNotFound, f"http://{host}:{source.port}/x.mar", store)
    assert "does not match any allowed URL(s) (" in message
    assert "is not a public address" in message
    assert source.requests == []


def test_link_local_is_refused_by_its_address(store: Path) -> None:
    message = refused(ModelNotFound, "http://169.254.169.254/x.mar", store)
    assert message.endswith("(169.254.169.254 is a link-local or metadata address, which allowed_urls has to name)")


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """`resolver(addresses)`: what every name means from now on; returns the list of names that were looked up."""

    def means(*addresses: str) -> list[str]:
        asked: list[str] = []

        def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
            asked.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return means


def test_a_name_that_means_this_machine_is_refused_unless_a_pattern_names_it(
    source: FileServer, store: Path, resolver: Callable[..., list[str]]
) -> None:
    url = f"http://models.example:{source.port}/x.mar"
    asked = resolver("127.0.0.1")
    assert "models.example (127.0.0.1) is not a public address" in refused(ModelNotFound, url, store)
    assert source.requests == []
    assert fetch(url, store, (r"http://models\.example:\d+/.*",)).downloaded
    assert asked == ["models.example"] * 2  # what was checked is what was connected to
    assert source.requests[0][1]["Host"] == f"models.example:{source.port}"


def test_a_pattern_names_a_host_in_the_url_as_it_was_given(
    source: FileServer, store: Path, resolver: Callable[..., list[str]]
) -> None:
    resolver("127.0.0.1")
    source.acts["/gr%C3%BCn.mar"] = answer(200, BODY)
    pattern = f"http://models\\.example:{source.port}/grün\\.mar"
    fetched = fetch(f"http://MODELS.example:{source.port}/grün.mar#part", store, (pattern + "#part",))
    assert fetched.path.name == "grün.mar"


def test_every_address_of_a_name_is_checked(
    source: FileServer, store: Path, resolver: Callable[..., list[str]]
) -> None:
    resolver("8.8.8.8", "127.0.0.1")
    assert "(127.0.0.1)" in refused(ModelNotFound, f"http://models.example:{source.port}/x.mar", store)


def test_the_next_address_is_tried_when_one_does_not_answer(
    source: FileServer, store: Path, resolver: Callable[..., list[str]]
) -> None:
    resolver("127.0.0.9", "127.0.0.1")
    assert fetch(f"http://models.example:{source.port}/x.mar", store, ("http://models.example:.*",)).downloaded


def test_a_name_without_address_says_so(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert failure("http://none.example/x.mar", store) == "none.example has no address: Name or service not known"


def test_a_resolver_that_hangs_is_not_waited_for(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60))
    cause = failure("http://slow.example/x.mar", store, ANY, DownloadLimits(stall_s=0.05))
    assert cause == "the address of slow.example was not found within 0.05 s"
    over.set()


# ---- redirects


def test_a_redirect_is_checked_like_a_url_of_its_own(source: FileServer, store: Path) -> None:
    named = (f"http://127\\.0\\.0\\.1:{source.port}/.*",)
    any_http = (*named, "http://.*")
    url = f"{source.url}/r.mar"
    with FileServer() as other:
        other.acts["/x.mar"] = answer(200, BODY)
        source.acts["/r.mar"] = redirect(f"{other.url}/x.mar?secret")
        expected = f"redirected to {other.url}/x.mar?***, which does not match any allowed URL(s)"
        assert failure(url, store, named) == expected
        assert other.requests == []
    source.acts["/r.mar"] = redirect("http://169.254.169.254/latest/meta-data/x.mar")
    assert failure(url, store, any_http).startswith("redirected, and 169.254.169.254 is a link-local or metadata")
    source.acts["/r.mar"] = redirect("http://127.1/x.mar")
    assert failure(url, store, any_http).startswith("redirected, and 127.1 (127.0.0.1) is not a public address")
    source.acts["/r.mar"] = redirect("file:///etc/passwd")
    assert failure(url, store, (*any_http, "file://.*")).endswith("expected http or https, got 'file'")
    source.acts["/r.mar"] = redirect("/r.mar")
    source.requests.clear()
    assert (
        failure(url, store) == "redirected, and 127.0.0.1 is not a public address, and no entry of allowed_urls that "
        "matches names this host"
    )
    assert failure(url, store, named) == "more than 5 redirects"
    assert len(source.requests) == 1 + 6
    source.acts["/r.mar"] = answer(302)
    assert failure(url, store) == "status 302 without a location"


@pytest.mark.parametrize(
    ("act", "cause"),
    [
        (answer(404), "status 404 Not Found"),
        (answer(500, b"secret"), "status 500 Internal Server Error"),
        (answer(204), "status 204 No Content"),
        (answer(206, BODY), "status 206 Partial Content"),
        (answer(304), "status 304 Not Modified"),
        (answer(200, BODY, Content_Encoding="gzip"), "expected the file as it is, got content-encoding gzip"),
        (answer(200, b"", length=1_000_001), "1,000,001 bytes, and max_model_download_bytes is 1,000,000"),
        (answer(200, BODY * 4, length=None), "at least 1,0"),
        (
            answer(200, b"short", length=10),
            "peer closed connection without sending complete message body (received 5 bytes",
        ),
        (answer(200, Transfer_Encoding="chunked", length=None), "peer closed connection without"),
        (lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "illegal status line"),
        (
            lambda handler: handler.connection.shutdown(socket.SHUT_RDWR),
            "Server disconnected without sending a response.",
        ),
    ],
)
def test_an_answer_that_is_not_the_file_says_why(source: FileServer, store: Path, act: Any, cause: str) -> None:
    source.acts["/x.mar"] = act
    assert failure(f"{source.url}/x.mar", store).startswith(cause)


def test_a_refused_connection_says_so(source: FileServer, store: Path) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        assert failure(f"http://127.0.0.1:{taken.getsockname()[1]}/x.mar", store) == "connection refused"


def test_a_source_that_hangs_ends_with_the_stall_or_with_the_whole_time(source: FileServer, store: Path) -> None:
    url = f"{source.url}/x.mar"
    source.acts["/x.mar"] = source.hang(b"start")
    assert failure(url, store, ANY, DownloadLimits(stall_s=0.05)) == "nothing more came within the time"
    whole = DownloadLimits(total_s=0.1)
    assert failure(url, store, ANY, whole) in (
        "not complete after model_download_timeout, 0.1 s",
        "nothing more came within the time",
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.mar"
        assert failure(url, store, ANY, DownloadLimits(stall_s=0.05)) == "nothing more came within the time"


def test_a_source_that_drips_ends_with_the_whole_time(source: FileServer, store: Path) -> None:
    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not source.released.wait(0.01):
            handler.wfile.write(b"x")

    source.acts["/x.mar"] = drip
    cause = failure(f"{source.url}/x.mar", store, ANY, DownloadLimits(total_s=0.2))
    assert cause == "not complete after model_download_timeout, 0.2 s"


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody but a test trusts, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)
    return path


def test_https_needs_a_certificate_that_is_trusted(
    certificate: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileServer(certificate) as source:
        source.acts["/x.mar"] = answer(200, BODY)
        assert failure(f"{source.url}/x.mar", store).startswith(
            "its certificate is not trusted: self-signed certificate"
        )
        assert source.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(f"{source.url}/x.mar", store).path.read_bytes() == BODY


def test_https_never_becomes_http(
    certificate: Path, store: Path, source: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with FileServer(certificate) as secure:
        secure.acts["/x.mar"] = redirect(f"{source.url}/x.mar")
        cause = failure(f"{secure.url}/x.mar", store)
        assert cause == f"redirected to {source.url}/x.mar: a redirect from https to http"
    assert source.requests == []
