"""`GET /models/{m}?customized=true`: what the model says of itself, asked of one of its workers."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until

# It describes itself as the body of its last request says, and holds up a describe job while its gate file is there.
TELLING = """
import json, os, time
from pathlib import Path

last = {}

def handle(data, context):
    if data is None:
        return None
    if context.get_request_header(0, "describe") == "True":
        assert data == [{}], data
        if last.get("gate"):
            Path(last["gate"] + ".asked").touch()
        while last.get("gate") and os.path.exists(last["gate"]):
            time.sleep(0.01)
        if last.get("exit"):
            raise SystemExit(1)
        return [last.get("say")]
    last.clear()
    last.update(data[0]["body"])
    return [os.getpid()] * len(data)
"""
STORY = "telling"
CONFIG = "responseTimeout: 2\nminWorkers: 1\nmaxWorkers: 1\n"


@pytest.fixture(scope="module")
def telling(management: httpx.Client, store: Path, archive: Callable[..., Path]) -> Iterator[None]:
    path = archive(store, STORY, "telling.py:handle", source=TELLING, config=CONFIG)
    management.post("/models", params={"url": path.name, "synchronous": "true"}).raise_for_status()
    yield
    management.delete(f"/models/{STORY}").raise_for_status()
    path.unlink()


def tell(client: httpx.Client, **body: Any) -> int:
    """Set what the model will say; the pid of its worker."""
    answer = client.post(f"/predictions/{STORY}", json=body)
    assert answer.status_code == 200, answer.text
    return int(answer.text)


def ask(management: httpx.Client, model: str = STORY) -> httpx.Response:
    return management.get(f"/models/{model}", params={"customized": "true"})


def metadata(answer: httpx.Response) -> Any:
    (described,) = answer.raise_for_status().json()
    return described.get("customizedMetadata", "absent")


@pytest.mark.usefixtures("telling")
class TestHandlers:
    @pytest.mark.parametrize(
        ("said", "embedded"),
        [
            ({"labels": ["a", "b"]}, {"labels": ["a", "b"]}),
            ('{"a": 1}', {"a": 1}),
            ([1], {}),
            ("x", {}),
            (None, "absent"),
        ],
    )
    def test_an_object_is_embedded_as_one(
        self, client: httpx.Client, management: httpx.Client, said: object, embedded: object
    ) -> None:
        tell(client, say=said)
        assert metadata(ask(management)) == embedded

    def test_it_is_only_asked_when_somebody_wants_to_know(self, client: httpx.Client, management: httpx.Client) -> None:
        tell(client, exit=True)
        for query in ({}, {"customized": "false"}):
            (described,) = management.get(f"/models/{STORY}", params=query).raise_for_status().json()
            assert "customizedMetadata" not in described
        for described in management.get(f"/models/{STORY}/all", params={"customized": "true"}).json():
            assert "customizedMetadata" not in described

    def test_a_handler_that_exits_fails_its_describe_job_and_goes_on_serving(
        self, client: httpx.Client, management: httpx.Client
    ) -> None:
        pid = tell(client, exit=True)
        answer = ask(management)
        assert (answer.status_code, answer.json()["message"]) == (503, "Prediction failed")
        assert tell(client, say={}) == pid

    def test_requests_that_wait_behind_a_slow_description_are_answered_by_the_same_worker(
        self, client: httpx.Client, management: httpx.Client, tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        gate.touch()
        pid = tell(client, gate=str(gate), say={"after": "the gate"})
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, management) for _ in range(2)]
            wait_until((tmp_path / "gate.asked").exists, 30, "the question")
            waiting = pool.submit(tell, client, say={})
            gate.unlink()
            assert [metadata(each.result()) for each in asked] == [{"after": "the gate"}] * 2
            assert waiting.result() == pid

    def test_a_handler_that_never_ends_describing_is_replaced_and_loses_no_request(
        self, client: httpx.Client, management: httpx.Client, server: ServerProcess, tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        gate.touch()
        pid = tell(client, gate=str(gate))
        with ThreadPoolExecutor(4) as pool:
            asked = pool.submit(ask, management)
            wait_until((tmp_path / "gate.asked").exists, 30, "the question")
            waiting = pool.submit(tell, client, say={})
            assert waiting.result() != pid, "the worker that replaces it"
            assert asked.result().status_code == 500
        assert metadata(ask(management)) == {}


def test_a_typed_model_says_what_it_takes_and_gives(management: httpx.Client) -> None:
    described = metadata(ask(management, "sums"))
    assert described["backend"] == "python"
    assert [spec["name"] for spec in described["inputs"]] == ["left", "right"]
    assert described["outputs"][0] == {"name": "sum", "dtype": "float32", "shape": [3]}


def test_a_model_without_workers_cannot_be_asked(
    management: httpx.Client, store: Path, archive: Callable[..., Path]
) -> None:
    path = archive(store, "idle", "idle.py:handle", source=TELLING)
    management.post("/models", params={"url": path.name, "initial_workers": 0}).raise_for_status()
    answer = ask(management, "idle")
    management.delete("/models/idle").raise_for_status()
    path.unlink()
    assert answer.status_code == 503
    assert answer.json()["type"] == "ServiceUnavailableException"
    assert answer.json()["message"].startswith('Model "idle" has no worker to serve describe request.')
