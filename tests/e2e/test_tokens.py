"""Who is let in: the table of contract section 4 on two listeners, renewal, what is refused early, and that no key gets out."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, free_port, wait_until
from tests.e2e.raw_http import Connection, head, post

REFUSED = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
NOT_RENEWED = "Token Authentication failed. Token either incorrect, expired, or not provided correctly"
ORIGIN = "https://a.example"
ASKING = {"origin": ORIGIN, "access-control-request-method": "POST"}
API_KEY = "an-api-key-of-our-own"
MANAGEMENT_KEY = "a-management-key-of-our-own"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask(method: str, url: str, key: str = "", **headers: str) -> httpx.Response:
    """On a connection of its own, so that any front end may answer."""
    return httpx.request(method, url, headers={**(bearer(key) if key else {}), **headers}, timeout=60, trust_env=False)


class Guarded:
    """A server that asks for tokens."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.shown: set[str] = set()  # every key it ever had

    def key(self, plane: str) -> str:
        key: str = json.loads((self.server.folder / "key_file.json").read_text())[plane]["key"]
        self.shown.add(key)
        return key

    def url(self, listener: str, path: str) -> str:
        return {"inference": self.server.inference_url, "management": self.server.management_url}[listener] + path

    def renew(self, plane: str, key: str = "") -> httpx.Response:
        return ask("GET", self.url("management", f"/token?type={plane}"), key or self.key("API"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("tokens")
    archive(folder / "store", "probe", "probe.py:handle")
    archive(folder / "store", "answers", "answers.py:handle")
    config = {
        "disable_token_authorization": "false",
        "frontends": 2,
        "default_workers_per_model": 1,
        "cors_allowed_origin": ORIGIN,
        "cors_allowed_methods": "GET, POST",
    }
    server = ServerProcess(folder / "store", config=config, folder=folder / "server").start()
    try:
        wait_until(lambda: "answers_1.0 is ready" in server.log and "probe_1.0 is ready" in server.log, 60, "workers")
        yield Guarded(server)
    finally:
        server.stop()
    assert server.remains() == []


def assert_refused(answer: httpx.Response, message: str = REFUSED) -> None:
    assert answer.status_code == 400
    assert answer.json() == {"code": 400, "type": "InvalidKeyException", "message": message}
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["connection"] == "close"
    assert answer.headers["access-control-allow-origin"] == ORIGIN


def test_the_key_file_is_its_owners(guarded: Guarded) -> None:
    status = (guarded.server.folder / "key_file.json").stat()
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, os.geteuid())
    assert not list(guarded.server.folder.glob(".key_file*"))


@pytest.mark.parametrize(
    ("listener", "method", "path", "status"),
    [
        ("inference", "POST", "/predictions/probe", 200),
        ("inference", "GET", "/predictions/probe/1.0", 200),
        ("inference", "POST", "/predictions/nothing", 404),
        ("inference", "GET", "/ping", 200),
        ("inference", "OPTIONS", "/predictions/probe", 200),
        ("inference", "POST", "/explanations/probe/1.0", 200),
        ("inference", "POST", "/invocations?model_name=probe", 200),
        ("inference", "POST", "/invocations", 400),
        ("inference", "POST", "/models/probe/invoke", 200),
        ("inference", "POST", "/probe/predict", 200),
        ("inference", "POST", "/v1/models/probe:predict", 200),
        ("inference", "POST", "/v2/models/probe/infer", 200),
        ("inference", "GET", "/v1/models/probe", 200),
        ("inference", "GET", "/nothing", 404),
        ("inference", "GET", "/token?type=inference", 404),
        ("management", "GET", "/models", 200),
        ("management", "GET", "/models/probe", 200),
        ("management", "GET", "/models/nothing", 404),
        ("management", "PATCH", "/models", 405),
        ("management", "GET", "/nothing", 404),
        ("management", "GET", "/token/x?type=inference", 404),
        ("management", "GET", "/models?limit=/token", 200),
    ],
)
def test_each_listener_wants_its_own_key_before_anything_else(
    guarded: Guarded, listener: str, method: str, path: str, status: int
) -> None:
    url = guarded.url(listener, path)
    other = {"inference": "management", "management": "inference"}[listener]
    for key in ("", guarded.key(other), guarded.key("API"), "x" * 8):
        assert_refused(ask(method, url, key))
    assert ask(method, url, guarded.key(listener)).status_code == status


@pytest.mark.parametrize("listener", ["inference", "management"])
def test_the_description_and_probes_are_for_everybody(guarded: Guarded, listener: str) -> None:
    for method, path, status in (
        ("OPTIONS", "/", 200),
        ("GET", "/", 405),
        ("GET", "/api-description", 200),
        ("GET", "/health/live", 200),
        ("GET", "/health/ready/probe", 200),
    ):
        assert ask(method, guarded.url(listener, path)).status_code == status, path


def test_handlers_do_not_see_the_key_on_either_way(guarded: Guarded) -> None:
    url = guarded.url("inference", "/predictions/probe")
    for method in ("POST", "PUT"):
        seen = ask(method, url, guarded.key("inference"), **{"x-mine": "1"}).json()["headers"]
        assert seen["x-mine"] == "1"
        assert "authorization" not in {name.lower() for name in seen}


def test_a_renewed_key_opens_at_every_front_end_when_the_answer_is_there(guarded: Guarded) -> None:
    url = guarded.url("inference", "/ping")
    for method in ("GET", "POST", "DELETE"):
        old, kept = guarded.key("inference"), guarded.key("management")
        answer = ask(method, guarded.url("management", "/token?type=inference"), guarded.key("API"))
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"\n", "application/json")
        new = guarded.key("inference")
        assert new != old
        assert guarded.key("management") == kept
        assert {ask("GET", url, old).status_code for _ in range(6)} == {400}
        assert {ask("GET", url, new).status_code for _ in range(6)} == {200}


def test_a_connection_that_was_let_in_is_asked_again(guarded: Guarded) -> None:
    with httpx.Client(
        base_url=guarded.server.inference_url, trust_env=False, headers=bearer(guarded.key("inference"))
    ) as client:
        assert client.post("/predictions/probe").status_code == 200
        assert guarded.renew("inference").status_code == 200
        assert_refused(client.post("/predictions/probe"))


def test_only_the_api_key_renews(guarded: Guarded) -> None:
    before = (guarded.server.folder / "key_file.json").read_text()
    for key in (guarded.key("management"), guarded.key("inference"), "x" * 8):
        assert_refused(guarded.renew("management", key), NOT_RENEWED)
    for kind in ("", "API", "Management", "x"):
        assert_refused(guarded.renew(kind), NOT_RENEWED)
    assert (guarded.server.folder / "key_file.json").read_text() == before


def test_a_front_end_that_is_started_again_knows_the_keys_of_now(guarded: Guarded) -> None:
    old = guarded.key("inference")
    assert guarded.renew("inference").status_code == 200
    told = len(guarded.server.log)
    os.kill(guarded.server.front_ends()[0], signal.SIGKILL)
    wait_until(lambda: " is ready, pid" in guarded.server.log[told:], 30, "a new front end")
    wait_until(
        lambda: ask("GET", guarded.url("inference", "/ping"), guarded.key("inference")).status_code == 200, 30, "it"
    )
    assert {ask("GET", guarded.url("inference", "/ping"), old).status_code for _ in range(8)} == {400}
    assert {ask("GET", guarded.url("inference", "/ping"), guarded.key("inference")).status_code for _ in range(8)} == {
        200
    }


def test_a_body_that_nobody_asked_for_is_never_taken_for_a_request(guarded: Guarded) -> None:
    inside = post(b"x", "/predictions/probe", f"authorization: Bearer {guarded.key('inference')}")
    for target in ("/predictions/probe", "/nothing", "/ping"):
        with Connection(guarded.server) as client:
            client.send(post(inside, target))
            assert client.answer().json["message"] == REFUSED
            assert client.rest() == b""


def test_a_refused_client_is_not_asked_for_its_body(guarded: Guarded) -> None:
    with Connection(guarded.server) as client:
        client.send(head("/predictions/probe", "content-length: 5000000", "expect: 100-continue"))
        assert client.response().status == 400
    with Connection(guarded.server) as client:
        client.send(head("/predictions/probe", "content-length: 5000000"), b"x" * 100)
        assert client.answer().status == 400


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        ("authorization: Bearer {key}", 200),
        ("AUTHORIZATION:Bearer   {key} ", 200),
        ("authorization: Bearer\t{key}", 200),
        ("authorization: bearer {key}", 400),
        ("authorization: Basic {key}", 400),
        ("authorization: Bearer {key}\r\nauthorization: Bearer wrong", 200),
        ("authorization: Bearer wrong\r\nauthorization: Bearer {key}", 400),
        ("authorization: Bearer {key}\u00e9", 400),
        ("authorization:", 400),
        ("proxy-authorization: Bearer {key}", 400),
    ],
)
def test_the_header_is_read_as_torchserve_reads_it(guarded: Guarded, shown: str, status: int) -> None:
    with Connection(guarded.server) as client:
        line = shown.format(key=guarded.key("inference")).encode()
        client.send(b"POST /predictions/answers HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n" + line + b"\r\n\r\n")
        assert (client.answer().status == 400) is (status == 400)


@pytest.mark.parametrize(
    "target",
    [
        "//ping",
        "/ping/",
        "/./ping",
        "/health/../ping",
        "/health/live/../../ping",
        "/health/%2e%2e/ping",
        "/health/%2fping",
        "/%70ing",
        "/ping?/health/live",
        "/ping#/health/live",
        "/ping;/health/live",
        "http://x/ping",
        "http://x/health/../ping",
        "/health/live\\..\\ping",
        "?x",
        "*",
        "/api-description/../ping",
        "/token/../ping",
        "/api-description%00",
    ],
)
def test_no_way_of_writing_a_path_gets_past_the_guard(guarded: Guarded, target: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        with Connection(guarded.server) as client:
            client.send(head(target, "content-length: 0", method=method))
            answer = client.answer()
            assert answer.status >= 400, answer
            assert b"ealthy" not in answer.body


@pytest.mark.parametrize("listener", ["inference", "management"])
def test_browsers_may_ask_first_without_a_key(guarded: Guarded, listener: str) -> None:
    for path in ("/predictions/probe", "/models", "/nothing"):
        answer = ask("OPTIONS", guarded.url(listener, path), **ASKING)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-methods"] == "GET, POST"
        assert "access-control-allow-headers" not in answer.headers
    assert_refused(ask("OPTIONS", guarded.url(listener, "/predictions/probe"), origin=ORIGIN))


def test_every_answer_says_which_pages_may_read_it(guarded: Guarded) -> None:
    for listener, method, path in (
        ("inference", "POST", "/predictions/probe"),
        ("inference", "PUT", "/predictions/probe"),
        ("inference", "POST", "/predictions/nothing"),
        ("inference", "GET", "/ping"),
        ("management", "GET", "/models"),
        ("management", "GET", "/nothing"),
    ):
        answer = ask(method, guarded.url(listener, path), guarded.key(listener))
        assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN], path


def test_no_key_gets_out(guarded: Guarded) -> None:
    """Last: also those that have been renewed."""
    server = guarded.server
    shown = [
        ask("GET", guarded.url("management", path), guarded.key("management")).text
        for path in ("/models/probe", "/status")
    ]
    shown += [ask("GET", guarded.url("management", "/models/probe?customized=true"), guarded.key("management")).text]
    shown += [ask("OPTIONS", guarded.url(listener, "/")).text for listener in ("inference", "management")]
    shown += [ask("GET", guarded.url("inference", "/ping"), "wrong-" + guarded.key("inference")).text]
    metrics = ask("GET", f"{server.metrics_url}/metrics").text
    assert "ringserve_requests" in metrics
    shown.append(metrics)
    written = [path for path in server.folder.rglob("*") if path.is_file() and path.name != "key_file.json"]
    shown += [path.read_bytes().decode("latin-1") for path in written]
    assert server.log_file in written
    assert len(guarded.shown) > 5
    assert [key for key in guarded.shown | {API_KEY} for text in shown if key in text] == []


# ---- keys of one's own, on one address for both


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[Guarded]:
    """Keys that end after 1.2 s, where they are not given."""
    folder = tmp_path_factory.mktemp("shared-tokens")
    archive(folder / "store", "probe", "probe.py:handle")
    (folder / "management-key").write_text(MANAGEMENT_KEY + "\n")
    address = f"http://127.0.0.1:{free_port()}"
    config = {
        "inference_address": address,
        "management_address": address,
        "disable_token_authorization": "false",
        "token_expiration_min": "0.02",
        "management_key_file": folder / "management-key",
        "frontends": 2,
        "default_workers_per_model": 1,
    }
    env = {"RINGSERVE_API_KEY": API_KEY}
    server = ServerProcess(folder / "store", config=config, env=env, folder=folder / "server").start()
    try:
        yield Guarded(server)
    finally:
        server.stop()
    assert server.remains() == []


def test_on_one_address_each_path_wants_the_key_of_its_plane(shared: Guarded) -> None:
    assert json.loads((shared.server.folder / "key_file.json").read_text()).keys() == {"inference"}
    for method, path in (("GET", "/models"), ("GET", "/models/probe/1.0"), ("PUT", "/models/probe?min_worker=1")):
        assert ask(method, shared.url("management", path), MANAGEMENT_KEY).status_code in (200, 202)
        for key in ("", API_KEY, "x" * 8):
            refused = ask(method, shared.url("management", path), key)
            assert (refused.status_code, refused.json()["message"]) == (400, REFUSED)
    assert ask("POST", shared.url("inference", "/predictions/probe"), MANAGEMENT_KEY).json()["message"] == REFUSED
    assert ask("GET", shared.url("inference", "/token?type=inference"), MANAGEMENT_KEY).json()["message"] == NOT_RENEWED


def test_a_key_ends_by_itself_and_a_renewed_one_opens(shared: Guarded) -> None:
    url = shared.url("inference", "/predictions/probe")

    def opens_when_renewed() -> bool:
        return (
            shared.renew("inference", API_KEY).status_code == 200
            and ask("POST", url, shared.key("inference")).is_success
        )

    wait_until(opens_when_renewed, 30, "an answer within the time of a key")
    wait_until(lambda: ask("POST", url, shared.key("inference")).status_code == 400, 30, "the end of the key")
    wait_until(opens_when_renewed, 30, "an answer within the time of a key")


def test_a_given_key_is_changed_where_it_is_given(shared: Guarded) -> None:
    refused = shared.renew("management", API_KEY)
    assert refused.status_code == 400
    assert (
        refused.json()["message"]
        == f"{NOT_RENEWED}. The management key is given by management_key_file and changes there."
    )
    file = shared.server.folder.parent / "management-key"
    file.with_name("next").write_text("another-management-key")
    os.replace(file.with_name("next"), file)
    url = shared.url("management", "/models")
    wait_until(lambda: ask("GET", url, "another-management-key").status_code == 200, 30, "the new key")
    assert ask("GET", url, MANAGEMENT_KEY).status_code == 200  # for a while


def test_no_process_inherits_the_key_of_the_environment(shared: Guarded) -> None:
    children = shared.server.children()
    assert set(shared.server.workers() + shared.server.front_ends()) <= set(children)
    for pid in children:
        assert API_KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    seen: Any = ask("GET", shared.url("management", "/status"), "another-management-key").text
    texts = [seen, *(path.read_bytes().decode("latin-1") for path in shared.server.folder.rglob("*") if path.is_file())]
    assert [key for key in (API_KEY, MANAGEMENT_KEY) for text in texts if key in text] == []


# ---- the life of the key file


def test_a_server_that_cannot_write_its_keys_down_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    config = {"disable_token_authorization": "false"}
    server = ServerProcess(tmp_path / "store", models=(), config=config, folder=tmp_path / "server")
    elsewhere = tmp_path / "elsewhere"
    (server.folder / "key_file.json").symlink_to(elsewhere)
    server.launch()
    assert server.wait(30) == 1
    assert "Token Authorization setup unsuccessful: " in server.log
    assert "expected a file or none, got a symbolic link" in server.log
    assert not elsewhere.exists()
    assert server.remains() == []


def test_stopping_by_command_removes_the_keys_that_open_nothing_any_more(guarded: Guarded, tmp_path: Path) -> None:
    """The very last: wherever the command runs."""
    server = guarded.server
    assert (server.folder / "key_file.json").exists()
    assert server.run("stop", folder=tmp_path).returncode == 0
    assert not (server.folder / "key_file.json").exists()
    assert server.wait(30) == 0
