"""Listeners that speak TLS, and one that has a path: every way that bodies take, and what clients do wrong."""

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, free_port, wait_until
from tests.authority import Authority, Issued

BODY = bytes(range(256)) * 4096
HTTPS_ONLY = {"status": "This TorchServe instance only accepts HTTPS requests"}
WAIT_S_MAX = 30.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Path:
    """With the store and what the certificate is in."""
    folder = tmp_path_factory.mktemp("tls")
    archive(folder / "store", "echo", "echo.py:Echo")
    archive(folder / "store", "stream", "stream.py:Stream")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, issued: Issued) -> Iterator[ServerProcess]:
    certificate, key = issued.write(folder / "own")
    config = {
        "inference_address": f"https://127.0.0.1:{free_port()}",
        "management_address": f"https://127.0.0.1:{free_port()}",
        "metrics_address": f"unix:{folder}/metrics.sock",
        "certificate_file": certificate,
        "private_key_file": key,
        "frontends": 2,
        "default_workers_per_model": 1,
    }
    with ServerProcess(folder / "store", config=config, folder=folder / "server") as server:
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []
    assert not (folder / "metrics.sock").exists()
    assert [words for words in ("Traceback", "Exception in callback", "PRIVATE KEY") if words in server.log] == []


@pytest.fixture(scope="module")
def client(server: ServerProcess, authority: Authority) -> Iterator[httpx.Client]:
    with _client(server.inference_url, authority) as client:
        wait_until(lambda: client.get("/ping").status_code == 200, WAIT_S_MAX, f"healthy models\n{server.log}")
        yield client


def _client(url: str, authority: Authority, **more: Any) -> httpx.Client:
    return httpx.Client(base_url=url, verify=authority.client_context(), timeout=WAIT_S_MAX, trust_env=False, **more)


def _port(server: ServerProcess) -> int:
    return int(server.inference_url.rpartition(":")[2])


def _connected(server: ServerProcess, authority: Authority) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", _port(server)), WAIT_S_MAX)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    return authority.client_context().wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize("size", [0, 10, 20_000, len(BODY), 6_000_000])
def test_a_body_of_any_size_comes_back_as_it_was(client: httpx.Client, size: int) -> None:
    body = (BODY * 6)[:size]
    for _ in range(3):  # on one connection
        answer = client.post("/predictions/echo", content=body)
        assert (answer.status_code, answer.content == body) == (200, True)


def test_a_body_in_chunks_comes_back_as_it_was(client: httpx.Client) -> None:
    pieces = [BODY[:10], BODY[:70_000], BODY[:1], BODY]
    answer = client.post("/predictions/echo", content=iter(pieces))
    assert answer.content == b"".join(pieces)


def test_an_answer_is_streamed(client: httpx.Client) -> None:
    order = {"name": "a", "parts": 20, "size": 30_000}
    answer = client.post("/predictions/stream", json=order)
    assert answer.text == "".join(f"a.{number};".ljust(30_000) for number in range(20))


def test_errors_have_their_shape(client: httpx.Client) -> None:
    answer = client.post("/predictions/nobody", content=BODY)
    assert (answer.status_code, answer.json()["type"]) == (404, "ModelNotFoundException")
    assert client.post("/predictions/echo", content=bytes(7_000_000)).status_code == 413


def test_many_connections_at_once_are_served_by_both_front_ends(server: ServerProcess, authority: Authority) -> None:
    clients = [_client(server.inference_url, authority) for _ in range(12)]
    assert {each.post("/predictions/echo", content=b"x").content for each in clients} == {b"x"}
    for each in clients:
        each.close()
    assert len(server.front_ends()) == 2


def test_a_client_that_reads_slowly_gets_everything(
    server: ServerProcess, client: httpx.Client, authority: Authority
) -> None:
    with _connected(server, authority) as sock:
        head = f"POST /predictions/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(BODY)}\r\n\r\n"
        sock.sendall(head.encode() + BODY)
        heard = bytearray()
        while piece := sock.recv(20_000):
            heard += piece
    assert heard.partition(b"\r\n\r\n")[2] == BODY


def test_a_client_that_goes_away_in_the_middle_disturbs_nobody(
    server: ServerProcess, client: httpx.Client, authority: Authority
) -> None:
    for _ in range(2):
        with _connected(server, authority) as sock:
            sock.sendall(
                b"POST /predictions/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + BODY[:300_000]
            )
    socket.create_connection(("127.0.0.1", _port(server))).close()
    assert client.post("/predictions/echo", content=BODY).content == BODY


@pytest.mark.parametrize("which", ["inference_url", "management_url"])
def test_plain_http_is_told_to_use_https(server: ServerProcess, which: str) -> None:
    url = getattr(server, which).replace("https:", "http:")
    for answer in (httpx.get(f"{url}/ping", trust_env=False), httpx.post(url, content=BODY, trust_env=False)):
        assert (answer.status_code, answer.json()) == (403, HTTPS_ONLY)


def test_a_client_that_trusts_another_authority_does_not_talk(server: ServerProcess) -> None:
    with (
        _client(server.inference_url, Authority("another")) as stranger,
        pytest.raises(httpx.ConnectError, match="verify failed"),
    ):
        stranger.get("/ping")


def test_management_is_asked_over_tls_and_the_commands_privately(server: ServerProcess, authority: Authority) -> None:
    with _client(server.management_url, authority) as management:
        assert {each["modelName"] for each in management.get("/models").json()["models"]} == {"echo", "stream"}
        assert management.post("/models?url=nowhere.mar").status_code == 404
    assert "echo" in server.run("status").stdout


def test_metrics_have_a_path(server: ServerProcess, folder: Path) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=f"{folder}/metrics.sock"), timeout=WAIT_S_MAX) as metrics:
        assert metrics.get("http://here/metrics").status_code == 200


def test_a_renewed_certificate_is_served_to_who_connects_then(
    server: ServerProcess, client: httpx.Client, authority: Authority, folder: Path
) -> None:
    def serials() -> set[int]:
        """Of several connections: both front ends have some."""
        found = set()
        socks = [_connected(server, authority) for _ in range(8)]
        for sock in socks:
            shown: Any = sock.getpeercert()
            found.add(int(shown["serialNumber"], 16))
            sock.close()
        return found

    (folder / "own" / "key.pem").write_text("torn")
    wait_until(lambda: "the TLS certificate stays as it is: private_key_file" in server.log, WAIT_S_MAX, "a complaint")
    renewed = authority.issue()
    renewed.write(folder / "own")
    wait_until(lambda: serials() == {renewed.certificate.serial_number}, WAIT_S_MAX, f"a new certificate\n{server.log}")
    assert client.post("/predictions/echo", content=BODY).content == BODY


def test_inference_has_a_path_and_a_keystore_opens_for_management(
    folder: Path, issued: Issued, authority: Authority, start_server: Callable[..., ServerProcess]
) -> None:
    path = folder / "inference.sock"
    config = {
        "inference_address": f"unix:{path}",
        "management_address": f"https://127.0.0.1:{free_port()}",
        "keystore": issued.write_keystore(folder / "k.p12", "a-5ecret"),
        "keystore_pass": "a-5ecret",
    }
    server = start_server(folder / "store", models=("echo.mar",), config=config)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=WAIT_S_MAX) as client:
        wait_until(lambda: client.get("http://here/ping").status_code == 200, WAIT_S_MAX, "healthy models")
        for body in (b"", b"short", BODY):
            assert client.post("http://here/predictions/echo", content=body).content == body
        assert client.post("http://here/predictions/echo", content=iter([BODY, BODY])).content == 2 * BODY
    with _client(server.management_url, authority) as management:
        assert management.get("/models/echo").json()[0]["modelName"] == "echo"
    assert path.stat().st_mode & 0o777 == 0o600
    assert server.stop() == 0
    assert not path.exists()
    assert "a-5ecret" not in server.log


def test_a_mistake_ends_the_start_with_its_key(tmp_path: Path, folder: Path, issued: Issued) -> None:
    config = {
        "inference_address": f"https://127.0.0.1:{free_port()}",
        "keystore": issued.write_keystore(tmp_path / "k.p12", "right"),
        "keystore_pass": "wr0ng",
    }
    server = ServerProcess(folder / "store", config=config, folder=tmp_path / "server")
    with pytest.raises(RuntimeError, match="keystore: expected a PKCS12 file that keystore_pass opens"):
        server.start()
    assert "wr0ng" not in server.log
    assert server.remains() == []
