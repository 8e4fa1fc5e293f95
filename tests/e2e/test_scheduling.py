"""Priorities, queue policies, preferred sizes and sequences as Triton's configuration says them, asked by Triton's clients."""

import contextlib
import json
import os
import queue
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from ringserve.server.testing import ServerProcess, wait_until

MODEL = Path(__file__).parent / "handlers" / "scheduled_model.py"
ANSWER_S_MAX = 30.0
LONG_US = 600_000_000
CONTROLS = """
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  control_input { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } }
  control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } }
  control_input { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
"""
POLICIES = {
    "prior": "dynamic_batching { preferred_batch_size: [ 1 ] priority_levels: 2 default_priority_level: 2"
    " default_queue_policy { max_queue_size: 2 } }",
    "timely": "dynamic_batching { default_queue_policy { allow_timeout_override: true } }",
    "late": "dynamic_batching { default_queue_policy { default_timeout_microseconds: 50000 } }",
    "paired": f"dynamic_batching {{ preferred_batch_size: [ 2 ] max_queue_delay_microseconds: {LONG_US} }}",
    "alone": "",
}
SEQUENCES = {
    "direct": f"sequence_batching {{ max_sequence_idle_microseconds: {LONG_US} direct {{ }} {CONTROLS} }}",
    "oldest": f"sequence_batching {{ max_sequence_idle_microseconds: {LONG_US} oldest {{ max_candidate_sequences: 4 }} }}",
    "mortal": f"sequence_batching {{ max_sequence_idle_microseconds: {LONG_US} oldest {{ max_candidate_sequences: 4 }} }}",
}
WORKERS = {"oldest": 2}
BATCH = {"direct": 2}
MUST_START = (
    "inference request for sequence {} to model '{}' must specify the START flag on the first request of the sequence"
)

Answer = dict[str, Any]


def write_repository(folder: Path, models: dict[str, str]) -> Path:
    for name, batching in models.items():
        (folder / name / "1").mkdir(parents=True)
        shutil.copy(MODEL, folder / name / "1" / "model.py")
        (folder / name / "config.pbtxt").write_text(
            f'name: "{name}" backend: "python" max_batch_size: {BATCH.get(name, 8)}\n'
            'input { name: "IN" data_type: TYPE_STRING dims: [ 1 ] }\n'
            'output { name: "OUT" data_type: TYPE_STRING dims: [ 1 ] }\n'
            f"instance_group {{ kind: KIND_CPU count: {WORKERS.get(name, 1)} }}\n{batching}\n"
        )
    return folder


@contextlib.contextmanager
def serving(folder: Path, models: dict[str, str], **options: Any) -> Iterator[ServerProcess]:
    store = write_repository(folder / "repository", models)
    config = {"model_control_mode": "poll", **options.pop("config", {})}
    server = ServerProcess(store, models=(), config=config, folder=folder / "server", **options)
    with server:
        ready = [f"{server.inference_url}/v2/models/{name}/ready" for name in models]
        is_ready = lambda: all(httpx.get(url, trust_env=False).status_code == 200 for url in ready)
        wait_until(is_ready, 60, f"ready models\n{server.log}")
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []
    for words in (
        "Exception in callback",
        "AssertionError",
        "could not be delivered",
        "never retrieved",
        "ResourceWarning",
    ):
        assert words not in server.log


class Client:
    """Asks a server, each time on a new connection."""

    def __init__(self, server: ServerProcess, crowd: ThreadPoolExecutor, folder: Path) -> None:
        self.server = server
        self._crowd = crowd
        self._folder = folder

    def ask(self, model: str, word: str = "x", items: int = 1, **parameters: Any) -> tuple[int, Answer]:
        body = {
            "parameters": parameters,
            "inputs": [{"name": "IN", "datatype": "BYTES", "shape": [items, 1], "data": [word] * items}],
        }
        url = f"{self.server.inference_url}/v2/models/{model}/infer"
        response = httpx.post(url, json=body, trust_env=False, timeout=ANSWER_S_MAX)
        said = response.json()
        return response.status_code, json.loads(said["outputs"][0]["data"][0]) if "outputs" in said else said

    def told(self, model: str, word: str = "x", **parameters: Any) -> Answer:
        status, answer = self.ask(model, word, **parameters)
        assert status == 200, answer
        return answer

    def refusal(self, model: str, word: str = "x", **parameters: Any) -> tuple[int, str]:
        status, answer = self.ask(model, word, **parameters)
        return status, answer["error"]

    def send(self, model: str, word: str = "x", **parameters: Any) -> "Future[tuple[int, Answer]]":
        return self._crowd.submit(self.ask, model, word, **parameters)

    def waiting(self, model: str) -> int:
        """How many requests no worker has been given."""
        (described,) = httpx.get(f"{self.server.management_url}/models/{model}", trust_env=False).json()
        return int(described["jobQueueStatus"]["pendingRequests"])

    def line_up(self, model: str, word: str = "x", **parameters: Any) -> "Future[tuple[int, Answer]]":
        """Send one and wait until it waits."""
        before = self.waiting(model)
        sent = self.send(model, word, **parameters)
        wait_until(lambda: self.waiting(model) > before, 10, "one more request that waits")
        return sent

    @contextlib.contextmanager
    def busy(self, model: str, **parameters: Any) -> Iterator["Future[tuple[int, Answer]]"]:
        """A worker computes a request until the end of the block."""
        gate = self._folder / f"{model}-{os.urandom(4).hex()}"
        inside = self.send(model, str(gate), **parameters)
        wait_until(Path(f"{gate}.begun").exists, 10, "a busy worker")
        try:
            yield inside
        finally:
            gate.touch()


@pytest.fixture(scope="module")
def crowd() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory, crowd: ThreadPoolExecutor) -> Iterator[Client]:
    """With one front end: its queues are all there are."""
    folder = tmp_path_factory.mktemp("policies")
    with serving(folder, POLICIES) as server:
        yield Client(server, crowd, folder)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory, crowd: ThreadPoolExecutor) -> Iterator[Client]:
    """With two front ends for HTTP and one for gRPC: sequences go on through all of them."""
    folder = tmp_path_factory.mktemp("sequences")
    with serving(folder, SEQUENCES, config={"frontends": 2}, grpc=True) as server:
        yield Client(server, crowd, folder)


# ---- policies


def answers(*sent: "Future[tuple[int, Answer]]") -> list[Answer]:
    found = [each.result(ANSWER_S_MAX) for each in sent]
    assert [status for status, _ in found] == [200] * len(found), found
    return [answer for _, answer in found]


def test_a_higher_priority_is_served_first(policies: Client) -> None:
    with policies.busy("prior"):
        low = [policies.line_up("prior") for _ in range(2)]
        high = [policies.line_up("prior", priority=1) for _ in range(2)]
        assert policies.refusal("prior") == (503, "[request id: <id_unknown>] Exceeds maximum queue size")
        assert policies.refusal("prior", priority=1)[0] == 503
    turns = [answer["turn"] for answer in answers(*high, *low)]
    assert turns == sorted(turns)


def test_a_timeout_of_the_request_is_kept_while_the_worker_is_busy(policies: Client) -> None:
    with policies.busy("timely"):
        assert policies.refusal("timely", timeout=20_000) == (503, "Request timeout expired")
        patient = policies.line_up("timely")
    assert answers(patient)


def test_the_timeout_of_the_policy_is_kept_while_the_worker_is_busy(policies: Client) -> None:
    with policies.busy("late"):
        assert policies.refusal("late") == (503, "Request timeout expired")
        client = tritonclient.http.InferenceServerClient(policies.server.inference_url.removeprefix("http://"))
        with contextlib.closing(client), pytest.raises(tritonclient.http.InferenceServerException) as caught:
            client.infer("late", inputs_of("x"), timeout=10**6)
        assert (caught.value.status(), caught.value.message()) == ("503", "Request timeout expired")


def test_a_preferred_size_is_waited_for(policies: Client) -> None:
    first = policies.line_up("paired")
    pair = answers(first, policies.send("paired"))
    assert {(each["turn"], each["together"]) for each in pair} == {(pair[0]["turn"], 2)}


def test_without_dynamic_batching_each_request_is_executed_alone(policies: Client) -> None:
    with policies.busy("alone"):
        sent = [policies.send("alone", items=items) for items in (1, 2, 3)]
        wait_until(lambda: policies.waiting("alone") >= 2, 10, "requests that wait")
    assert [each["together"] for each in answers(*sent)] == [1, 1, 1]


# ---- sequences


def inputs_of(word: str) -> list[Any]:
    given = tritonclient.http.InferInput("IN", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[word.encode()]], dtype=object))
    return [given]


@pytest.mark.parametrize(("model", "sequence_id"), [("oldest", 5), ("oldest", "5"), ("direct", 5)])
def test_all_requests_of_a_sequence_go_to_one_worker(sequences: Client, model: str, sequence_id: int | str) -> None:
    other = sequences.told(model, "o", sequence_id=6, sequence_start=True)
    told = [sequences.told(model, "a", sequence_id=sequence_id, sequence_start=True)]
    told += [sequences.told(model, word, sequence_id=sequence_id) for word in "bcdefg"]
    last = sequences.told(model, "z", sequence_id=sequence_id, sequence_end=True)
    assert {each["pid"] for each in told} == {last["pid"]}
    assert last["said"] == [*"abcdefg", "z"]
    assert sequences.told(model, "p", sequence_id=6, sequence_end=True)["said"] == ["o", "p"]
    assert (other["pid"] == last["pid"]) == (model == "direct")  # the second one goes where the fewest are
    assert sequences.refusal(model, sequence_id=sequence_id) == (400, MUST_START.format(sequence_id, model))


def test_a_start_begins_a_live_sequence_anew(sequences: Client) -> None:
    sequences.told("oldest", "a", sequence_id=9, sequence_start=True)
    sequences.told("oldest", "b", sequence_id=9, sequence_start=True)
    assert sequences.told("oldest", "c", sequence_id=9, sequence_end=True)["said"] == ["b", "c"]


def test_direct_tells_the_model_by_control_tensors_and_slots(sequences: Client) -> None:
    first = sequences.told("direct", sequence_id=11, sequence_start=True)
    second = sequences.told("direct", sequence_id=12, sequence_start=True)
    assert [first[name] for name in ("START", "END", "READY", "CORRID", "slot")] == [1, 0, True, 11, 0]
    assert [second[name] for name in ("slot", "together", "CORRID")] == [1, 2, 12]
    assert sequences.told("direct", sequence_id=11, sequence_end=True)["END"] == 1
    sequences.told("direct", sequence_id=12, sequence_end=True)


def test_a_sequence_waits_until_there_is_a_slot(sequences: Client) -> None:
    for sequence_id in (21, 22):
        sequences.told("direct", sequence_id=sequence_id, sequence_start=True)
    waits = sequences.line_up("direct", "a", sequence_id=23, sequence_start=True)
    refused = (503, "timeout of the corresponding sequence has been expired")
    assert sequences.refusal("direct", sequence_id=24, sequence_start=True, timeout=20_000) == refused
    assert not waits.done()
    sequences.told("direct", sequence_id=21, sequence_end=True)
    assert answers(waits)[0]["said"] == ["a"]
    for sequence_id in (22, 23):
        sequences.told("direct", sequence_id=sequence_id, sequence_end=True)


@pytest.mark.parametrize(
    ("model", "parameters", "sentence"),
    [
        ("oldest", {}, "inference request to model 'oldest' must specify a non-zero or non-empty correlation ID"),
        (
            "oldest",
            {"sequence_id": 0},
            "inference request to model 'oldest' must specify a non-zero or non-empty correlation ID",
        ),
        ("oldest", {"sequence_id": 77}, MUST_START.format(77, "oldest")),
        (
            "direct",
            {"sequence_id": "abc", "sequence_start": True},
            "sequence batching control 'CORRID' data-type is 'BYTES', but model 'direct' expects 'UINT64'",
        ),
        (
            "oldest",
            {"sequence_id": 78, "sequence_start": True, "items": 2},
            "inference request to model 'oldest' must specify batch-size 1 due to requirements of sequence batcher",
        ),
    ],
)
def test_what_is_no_request_of_a_sequence_is_refused(
    sequences: Client, model: str, parameters: dict[str, Any], sentence: str
) -> None:
    assert sequences.refusal(model, **parameters) == (400, sentence)


def test_the_sequences_of_a_worker_that_dies_are_answered_and_forgotten(sequences: Client) -> None:
    pid = sequences.told("mortal", sequence_id=31, sequence_start=True)["pid"]
    with sequences.busy("mortal", sequence_id=31) as running:
        os.kill(pid, signal.SIGKILL)
        assert running.result(ANSWER_S_MAX)[0] == 503
    assert sequences.refusal("mortal", sequence_id=31) == (400, MUST_START.format(31, "mortal"))
    again = sequences.told("mortal", "a", sequence_id=31, sequence_start=True)
    assert (again["pid"] != pid, again["said"]) == (True, ["a"])


def test_tritons_clients_share_a_sequence_over_both_protocols(sequences: Client) -> None:
    over_http = tritonclient.http.InferenceServerClient(sequences.server.inference_url.removeprefix("http://"))
    over_grpc = tritonclient.grpc.InferenceServerClient(sequences.server.grpc_address)
    given = tritonclient.grpc.InferInput("IN", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[b"b"]], dtype=object))
    heard: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with contextlib.closing(over_http), contextlib.closing(over_grpc):
        over_http.infer("oldest", inputs_of("a"), sequence_id=41, sequence_start=True)
        over_grpc.start_stream(lambda result, error: heard.put((result, error)))
        for last in (False, False, True):
            over_grpc.async_stream_infer("oldest", [given], sequence_id=41, sequence_end=last)
        found = [heard.get(timeout=ANSWER_S_MAX) for _ in range(3)]
        over_grpc.stop_stream()
    assert [error for _, error in found] == [None] * 3
    assert [json.loads(result.as_numpy("OUT").item())["said"] for result, _ in found] == [
        ["a", "b"],
        ["a", "b", "b"],
        ["a", "b", "b", "b"],
    ]
