"""What a server writes down: every request once, what models print with its level, and nothing that is secret."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ringserve.server.testing import ServerProcess, free_port, wait_until

ACCESS_LINE = re.compile(
    r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3} - /127\.0\.0\.1:\d+ "(\S+) (\S+) HTTP/1\.1" (\d{3}) \d+'
)
CHATTY = """
import logging, sys
def handle(data, context):
    if data is None:
        return None
    word = bytes(data[0]["body"]).decode()
    print("printed " + word)
    print("complained " + word, file=sys.stderr, flush=True)
    logging.getLogger("mine").info("logged %s", word)
    if word == "flood":
        for number in range(5000):
            print("x" * 100)
    return ["said"]
"""
WAIT_S_MAX = 30


class Logged:
    """A server and its log folder."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.logs = server.folder / "logs"
        self.asked: list[tuple[str, str, int]] = []
        self.client = httpx.Client(trust_env=False, timeout=30)

    def connected(self) -> httpx.Client:
        self.client = httpx.Client(trust_env=False, timeout=30)
        return self.client

    def ask(self, method: str, url: str, *, shown: str = "", **more: object) -> httpx.Response:
        """And remember what the access log is to say of it."""
        answer = self.client.request(method, url, **more)  # type: ignore[arg-type]
        self.asked.append((method, shown or answer.request.url.raw_path.decode(), answer.status_code))
        return answer

    def read(self, name: str) -> str:
        path = self.logs / name
        return path.read_text() if path.exists() else ""

    def wait_for(self, name: str, text: str) -> None:
        wait_until(lambda: text in self.read(name), WAIT_S_MAX, f"{text!r} in {name}")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[Logged]:
    store = tmp_path_factory.mktemp("logs") / "store"
    archive(store, "chatty", "chatty.py:handle", source=CHATTY)
    with ServerProcess(store, config={"frontends": 2, "default_workers_per_model": 1}) as server:
        wait_until(lambda: "chatty_1.0 is ready" in server.log, WAIT_S_MAX, "a worker")
        yield Logged(server)
    assert server.remains() == []


def test_every_request_is_one_line_whichever_way_it_is_answered(logged: Logged) -> None:
    server = logged.server
    for _ in range(20):
        with logged.connected():  # another connection, maybe to the other front end
            assert logged.ask("POST", f"{server.inference_url}/predictions/chatty", content="5ecret-payload").is_success
            logged.ask("PUT", f"{server.inference_url}/predictions/chatty?token=5ecret", content="5ecret-payload")
            logged.ask("GET", f"{server.inference_url}/ping", headers={"authorization": "Bearer 5ecret-key"})
            logged.ask("POST", f"{server.inference_url}/predictions/nobody")
            logged.ask("GET", f"{server.inference_url}/a%0Ab%22?x=5ecret")
            logged.ask("OPTIONS", server.inference_url)
            logged.ask("GET", f"{server.management_url}/models?limit=5&x=5ecret")
            logged.ask("DELETE", f"{server.management_url}/models/nobody")
            logged.ask("GET", f"{server.metrics_url}/metrics")
    wanted = sorted(
        (method, re.sub("(token|x)=5ecret", r"\1=***", target), status) for method, target, status in logged.asked
    )

    def lines() -> list[str]:
        return logged.read("access_log.log").splitlines()

    wait_until(lambda: len(lines()) >= len(wanted), WAIT_S_MAX, "all the lines")
    matches = [ACCESS_LINE.fullmatch(line) for line in lines()]
    assert None not in matches, lines()
    assert sorted((match[1], match[2], int(match[3])) for match in matches if match) == wanted


def test_what_models_print_has_the_worker_and_the_level_of_the_stream(logged: Logged) -> None:
    word = "a-word"
    with logged.connected():
        logged.ask("POST", f"{logged.server.inference_url}/predictions/chatty", content=word)
    for level, stream, said in (
        ("INFO ", "stdout", f"printed {word}"),
        ("WARN ", "stderr", f"complained {word}"),
        ("INFO ", "stdout", f"INFO mine logged {word}"),
    ):
        line = rf"^\S+ \[{level}\] W-\d+-chatty_1.0-{stream} MODEL_LOG - {said}$"
        for name in ("model_log.log", "ts_log.log"):
            wait_until(
                lambda line=line, name=name: re.search(line, logged.read(name), re.MULTILINE),  # type: ignore[misc]
                WAIT_S_MAX,
                f"{line} in {name}",
            )
    assert "Inference API bind to" not in logged.read("model_log.log")
    assert "[INFO ] main ringserve.supervisor - Inference API bind to" in logged.read("ts_log.log")
    assert f"printed {word}" in logged.server.log, "the console has it too"


def test_a_log_that_is_moved_or_deleted_goes_on_under_its_name(logged: Logged) -> None:
    moved = logged.logs / "moved.log"
    (logged.logs / "access_log.log").rename(moved)
    (logged.logs / "model_log.log").unlink()
    with httpx.Client(trust_env=False, timeout=30) as client:
        client.post(f"{logged.server.inference_url}/predictions/chatty", content="again")
    logged.wait_for("access_log.log", "/predictions/chatty")
    logged.wait_for("model_log.log", "printed again")
    assert logged.server.log.count("cannot be written") == 0


def test_a_model_that_prints_without_end_holds_up_nobody(logged: Logged) -> None:
    with httpx.Client(trust_env=False, timeout=30) as client:
        assert client.post(f"{logged.server.inference_url}/predictions/chatty", content="flood").text == "said"
        assert client.get(f"{logged.server.inference_url}/ping").is_success
        assert client.get(f"{logged.server.management_url}/models").is_success
    wait_until(lambda: logged.read("model_log.log").count("x" * 100) == 5000, WAIT_S_MAX, "all that was printed")


def test_no_payload_key_nor_value_of_a_query_is_written_by_the_server(logged: Logged) -> None:
    for path in logged.logs.iterdir():
        if path.is_file():
            # What the model prints itself is the model's.
            lines = [line for line in path.read_text().splitlines() if "MODEL_LOG" not in line]
            assert [line for line in lines if "5ecret" in line] == []


def test_a_folder_that_cannot_be_written_stops_nothing_and_is_used_when_it_can_be(
    tmp_path: Path, archive: Callable[..., Path]
) -> None:
    archive(tmp_path / "store", "chatty", "chatty.py:handle", source=CHATTY)
    logs = tmp_path / "logs"
    logs.write_text("no folder")
    shared = f"http://127.0.0.1:{free_port()}"
    config = {"default_workers_per_model": 1, "log_format": "json"}
    config |= {"inference_address": shared, "management_address": shared}
    with ServerProcess(tmp_path / "store", config=config, folder=tmp_path) as server:
        wait_until(lambda: '"chatty_1.0' in server.log or "chatty_1.0 is ready" in server.log, WAIT_S_MAX, "a worker")
        asked = httpx.get(f"{server.inference_url}/ping?x=1", headers={"x-request-id": "one"}, trust_env=False)
        assert asked.is_success
        wait_until(lambda: f"{logs / 'ts_log.log'} cannot be written: " in server.log, WAIT_S_MAX, "a complaint")
        access = logs / "access_log.log"
        wait_until(lambda: f"{access} cannot be written: " in server.log, WAIT_S_MAX, "a complaint")
        logs.unlink()

        def written() -> bool:
            httpx.post(f"{server.inference_url}/predictions/chatty", headers={"x-request-id": "two"}, trust_env=False)
            return access.exists() and (logs / "model_log.log").exists()

        wait_until(written, WAIT_S_MAX, "logs")
        assert server.log.count(f"{access} cannot be written") == 1
        assert httpx.get(f"{shared}/models", headers={"x-request-id": "three"}, trust_env=False).is_success
    assert server.remains() == []
    assert "lines are missing in it." in server.log
    lines = [
        json.loads(line) for name in ("ts_log.log", "model_log.log") for line in (logs / name).read_text().splitlines()
    ]
    assert {"time", "level", "logger", "thread", "message"} == set().union(*lines)
    entries = [json.loads(line) for line in access.read_text().splitlines()]
    kept = [tuple(each[name] for name in ("method", "path", "status", "request_id")) for each in entries]
    assert ("POST", "/predictions/chatty", 200, "two") in kept
    assert [each for each in kept if each[3] == "three"] == [("GET", "/models", 200, "three")], "once, though passed on"
    console = [line for line in server.log.splitlines() if line.startswith("{")]
    assert any(json.loads(line)["logger"] == "ringserve.supervisor" for line in console)
