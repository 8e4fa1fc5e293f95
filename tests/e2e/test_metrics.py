"""The metrics of a server of two front ends and three workers: what clients counted themselves is what it says, whatever dies."""

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from ringserve.server.testing import ServerProcess, free_port, wait_until
from tests.e2e.raw_http import Connection
from tests.server.metrics.prometheus import Read, read, value, values

PHASES = ("receive", "queue", "batch_form", "execute", "respond")
CLIENTS, ROUNDS = 4, 12
LONG = b"x" * 200_000

# Answers as the first letters of the body say.
HANDLER = """
import os

def handle(data, context):
    if data is None:
        return None
    body = bytes(data[0].get("body") or data[0].get("data"))
    if body == b"raise":
        raise RuntimeError("as ordered")
    if body == b"die":
        os._exit(7)
    if body == b"404":
        context.set_response_status(404, "", 0)
    if body == b"stream":
        return (["part"] * len(data) for _ in range(3))
    return ["fine" * 50_000 if body == b"long" else "fine"] * len(data)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("metrics")
    archive(folder / "store", "m", "m.py:handle", source=HANDLER, config="batchSize: 1\n")
    archive(folder / "store", "gate", "gate.py:handle", config="minWorkers: 1\nmaxWorkers: 1\njobQueueSize: 1\n")
    config = {"frontends": 2, "default_workers_per_model": 3}
    with ServerProcess(folder / "store", config=config, folder=folder / "server") as server:
        wait_until(
            lambda: get(f"{server.inference_url}/ping").status_code == 200, 60, f"a healthy server\n{server.log}"
        )
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=30, trust_env=False)


def scrape(server: ServerProcess) -> dict[str, Read]:
    answer = get(f"{server.metrics_url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return read(answer.text)


class Change:
    """What has been counted since it was made."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._before = scrape(server)
        self.now = self._before

    def look(self) -> None:
        self.now = scrape(self._server)

    def of(self, name: str, /, **labels: str) -> float:
        before, now = (sum(values(each, name, **labels)) for each in (self._before, self.now))
        return now - before

    def phase(self, phase: str, part: str = "count", **labels: str) -> float:
        return self.of(f"ringserve_request_phase_seconds_{part}", model_name="m", phase=phase, **labels)


def test_every_name_is_there_before_the_first_request(server: ServerProcess) -> None:
    families = scrape(server)
    for name in ("ts_inference_requests_total", "ts_inference_latency_microseconds", "ts_queue_latency_microseconds"):
        assert families[name].help.startswith("Torchserve prometheus counter metric with unit: ")
        assert families[name].samples == {}  # as there: from the first request on
    for phase in (*PHASES, "total"):
        assert value(families, "ringserve_request_phase_seconds_count", model_name="m", phase=phase) == 0
    assert value(families, "Requests4XX", Level="Host") == 0
    assert value(families, "ringserve_batch_size_count", model_name="m") == 0
    assert value(families, "ringserve_requests_shed_total", model_name="m", reason="queue_full") == 0
    assert value(families, "ringserve_requests_failed_total", model_name="m", reason="worker_lost") == 0
    assert value(families, "ringserve_queue_depth", model_name="m") == 0
    assert value(families, "ringserve_workers", model_name="m", state="ready") == 3
    assert value(families, "ringserve_worker_restarts_total", model_name="m") == 0
    assert sum(values(families, "ringserve_slabs", model_name="m", state="free")) > 0
    assert len(values(families, "WorkerLoadTime")) == 4
    assert value(families, "ringserve_model_load_seconds", model_name="m") > 0
    assert value(families, "ringserve_repository_files_accepted_total") == 0
    assert value(families, "ringserve_info") == 1
    assert {"QueueTime", "WorkerThreadTime", "ringserve_connections"} <= families.keys()
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert [name for name in families if f"`{name}`" not in documented] == []


def ask(client: httpx.Client) -> Iterator[httpx.Response]:
    """A request of each kind, by whichever way it goes through a front end."""
    yield client.post("/predictions/m", content=b"short")
    yield client.post("/predictions/m/1.0", content=b"named")
    yield client.post("/predictions/m", content=LONG)
    yield client.post("/predictions/m", content=LONG[:20_000])
    yield client.post("/predictions/m", files={"data": b"form"})
    yield client.post("/predictions/m/1.0", content=iter([b"chu", b"nked"]))
    yield client.put("/predictions/m", content=b"another method")
    yield client.post("/predictions/m", content=b"long")
    yield client.post("/predictions/m", content=b"stream")
    yield client.post("/predictions/m/", content=b"stream")
    yield client.post("/predictions/m", content=b"raise")
    yield client.post("/predictions/m/1.0", files={"data": b"raise"})
    yield client.post("/predictions/m", content=b"404")
    yield client.post("/predictions/m/9.9", content=b"no such version")
    yield client.post("/predictions/m", content=b"x", headers={"x-request-timeout-ms": "soon"})
    yield client.get("/ping")
    yield client.get("/nowhere")


EXECUTED, NAMED = 13, 3


def test_the_counters_are_what_the_clients_counted(server: ServerProcess) -> None:
    change = Change(server)
    statuses: Counter[str] = Counter()
    lock = threading.Lock()

    def be_a_client() -> None:
        for _ in range(ROUNDS):
            with httpx.Client(base_url=server.inference_url, timeout=30, trust_env=False) as client:
                mine = Counter(f"Requests{answer.status_code // 100}XX" for answer in ask(client))
            with lock:
                statuses.update(mine)

    threads = [threading.Thread(target=be_a_client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    change.look()
    sets = CLIENTS * ROUNDS
    assert statuses["Requests2XX"] == 11 * sets  # otherwise the clients have not seen what they should
    statuses["Requests2XX"] += 1  # the first look
    for name in ("Requests2XX", "Requests4XX", "Requests5XX"):
        assert change.of(name) == statuses[name]
    for phase in (*PHASES, "total"):
        assert change.phase(phase) == EXECUTED * sets
    # The one with a header that is no number was refused before it was executed.
    assert (
        change.of("ts_inference_requests_total", model_name="m", model_version="default")
        == (EXECUTED - NAMED + 1) * sets
    )
    assert change.of("ts_inference_requests_total", model_name="m", model_version="1.0") == NAMED * sets
    assert change.of("ringserve_requests_failed_total", model_name="m", reason="prediction_failed") == 2 * sets
    assert change.of("ringserve_requests_failed_total", model_name="m", reason="bad_request") == sets
    assert change.of("ringserve_requests_failed_total", model_name="m") == 3 * sets
    assert change.of("ringserve_requests_shed_total", model_name="m") == 0
    assert change.of("ringserve_batch_size_sum", model_name="m") == EXECUTED * sets
    check_times(change)


def check_times(change: Change) -> None:
    total_s = change.phase("total", "sum")
    assert sum(change.phase(phase, "sum") for phase in PHASES) == pytest.approx(total_s, rel=1e-9)
    latency_us = change.of("ts_inference_latency_microseconds", model_name="m")
    queue_us = change.of("ts_queue_latency_microseconds", model_name="m")
    assert latency_us == pytest.approx(total_s * 1e6, rel=1e-9)
    waited_s = change.phase("receive", "sum") + change.phase("queue", "sum")
    assert queue_us == pytest.approx(waited_s * 1e6, rel=1e-9)
    assert 0 < change.phase("receive", "sum") < waited_s < total_s


def test_a_worker_that_dies_is_counted_and_so_is_what_it_was_asked(server: ServerProcess) -> None:
    change = Change(server)
    with httpx.Client(base_url=server.inference_url, timeout=30, trust_env=False) as client:
        answers = [client.post("/predictions/m", content=body).status_code for body in (b"short", b"die", b"short")]
    change.look()
    assert answers == [200, 500, 200]
    assert change.phase("total") == 2
    assert change.of("ringserve_requests_failed_total", model_name="m", reason="worker_lost") == 1
    assert change.of("ts_inference_requests_total", model_name="m") == 3
    assert change.of("ringserve_worker_restarts_total", model_name="m") == 1


def test_the_successor_of_a_front_end_goes_on_counting(server: ServerProcess) -> None:
    change = Change(server)

    def ask_each(count: int) -> int:
        answered = 0
        for _ in range(count):
            with contextlib.suppress(httpx.HTTPError):  # it had just been accepted by the one that is killed
                asked = httpx.post(f"{server.inference_url}/predictions/m", content=b"x", timeout=30, trust_env=False)
                answered += asked.status_code == 200
        return answered

    answered = ask_each(20)
    change.look()
    assert change.phase("total") == answered == 20
    dead = server.front_ends()[0]
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: len(server.front_ends()) == 2 and dead not in server.front_ends(), 30, "another front end")
    change.look()
    assert change.phase("total") == 20
    answered += ask_each(20)
    change.look()
    assert change.phase("total") == change.of("ts_inference_requests_total", model_name="m") == answered


def test_who_is_shed_and_who_leaves_are_counted(server: ServerProcess, tmp_path: Path) -> None:
    change = Change(server)
    head = f"POST /predictions/gate HTTP/1.1\r\nhost: h\r\ncontent-length: {len(str(tmp_path))}\r\n\r\n{tmp_path}"

    def counted(reason: str) -> float:
        change.look()
        return change.of("ringserve_requests_shed_total", model_name="gate", reason=reason) + change.of(
            "ringserve_requests_failed_total", model_name="gate", reason=reason
        )

    def has_seen(requests: int) -> bool:
        shed = counted("queue_full")
        return requests == shed + value(change.now, "ringserve_queue_depth", model_name="gate") + executing(change.now)

    with contextlib.ExitStack() as stack:
        # Each front end may have given the worker two; of the others one may wait.
        for number in range(1, 11):
            stack.enter_context(Connection(server)).send(head.encode())
            wait_until(partial(has_seen, number), 20, f"request {number}")
        shed = int(counted("queue_full"))
        assert shed >= 5
        assert value(change.now, "ringserve_queue_depth", model_name="gate") == 1
    wait_until(lambda: counted("cancelled") == 10 - shed, 20, "those who left")
    (tmp_path / "open").touch()
    assert change.of("ts_inference_requests_total", model_name="gate") == 10
    wait_until(lambda: not executing(scrape(server)), 20, "the worker to be through")
    assert change.of("ringserve_request_phase_seconds_count", model_name="gate") == 0


def executing(families: dict[str, Read]) -> float:
    return value(families, "ringserve_slabs", model_name="gate", state="executing")


def test_counters_outlive_their_version(server: ServerProcess) -> None:
    change = Change(server)
    with httpx.Client(timeout=60, trust_env=False) as client:
        assert client.post(f"{server.inference_url}/predictions/m", content=b"x").status_code == 200
        assert client.delete(f"{server.management_url}/models/m").status_code == 200
        change.look()
        assert change.phase("total") == 1
        assert values(change.now, "ringserve_queue_depth", model_name="m") == []
        registered = client.post(f"{server.management_url}/models", params={"url": "m.mar", "initial_workers": 1})
        assert registered.status_code == 200, registered.text
        assert client.post(f"{server.inference_url}/predictions/m", content=b"x").status_code == 200
        change.look()
    assert change.phase("total") == 2
    assert value(change.now, "ringserve_queue_depth", model_name="m") == 0


def test_the_listener_answers_as_torchserves_does(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.metrics_url, timeout=30, trust_env=False) as client:
        only = client.delete("/metrics/deep", params={"name[]": ["Requests2XX", "ringserve_info"]})
        assert only.status_code == 200
        assert read(only.text).keys() == {"Requests2XX", "ringserve_info"}
        assert client.get("/metrics", params={"name[]": "nothing"}).text == ""
        assert client.head("/metrics").content == b""
        for path, status in (("/", 405), ("/metricsx", 404), ("/ping", 404), ("/health/ready", 200)):
            assert client.get(path).status_code == status, path
        document = client.options("/").json()
        assert {"/metrics", "/health/live"} <= document["paths"].keys()


@pytest.mark.parametrize("beside", ["inference", "management"])
def test_metrics_may_have_the_address_of_another_and_never_ask_for_a_token(
    start_server: Callable[..., ServerProcess], tmp_path: Path, beside: str
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    config = {f"{beside}_address": address, "metrics_address": address, "disable_token_authorization": "false"}
    server = start_server(tmp_path / "store", config=config)
    assert value(read(get(f"{address}/metrics/below?name[]=ringserve_info").text), "ringserve_info") == 1
    assert get(f"{server.management_url}/models").status_code == 400
    keys = json.loads((server.folder / "key_file.json").read_text())
    header = {"Authorization": f"Bearer {keys['management']['key']}"}
    assert httpx.get(f"{server.management_url}/models", headers=header, trust_env=False).status_code == 200


def test_without_the_metrics_api_nobody_listens_and_nothing_is_measured(
    start_server: Callable[..., ServerProcess], tmp_path: Path, archive: Callable[..., Path]
) -> None:
    archive(tmp_path / "store", "m", "m.py:handle", source=HANDLER)
    server = start_server(tmp_path / "store", config={"enable_metrics_api": "false"})
    wait_until(lambda: get(f"{server.inference_url}/ping").status_code == 200, 60, "a healthy server")
    for body in (b"x", b"stream", b"long", b"raise"):
        httpx.post(f"{server.inference_url}/predictions/m", content=body, timeout=30, trust_env=False)
    with pytest.raises(httpx.ConnectError):
        get(f"{server.metrics_url}/metrics")
    assert get(f"{server.management_url}/metrics").status_code == 404
