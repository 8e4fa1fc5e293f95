"""Sequences and job tickets with two front ends and two workers. Every request comes on a connection of its own, so that its front end
may be another than that of the request before it."""

import contextlib
import http.client
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until

ID, START, END = "ts_request_sequence_id", "ts_request_sequence_start", "x-sequence-end"
ANSWER_S_MAX = 30.0
SEQUENCES_MAX, WAITING_MAX = 8, 3
STATEFUL = "minWorkers: 2\nmaxWorkers: 2\nbatchSize: 4\nsequenceBatching: true\n"
COUNTING = (
    f"{STATEFUL}maxNumSequence: {SEQUENCES_MAX}\nmaxSequenceJobQueueSize: {WAITING_MAX}\nsequenceMaxIdleMSec: 60000\n"
)
ONE = "minWorkers: 1\nmaxWorkers: 1\nsequenceBatching: true\nmaxNumSequence: 1\n"
MODELS = {
    "counting": COUNTING,
    "mortal": COUNTING,
    "moving": COUNTING,
    "shrinking": COUNTING,
    "brief": f"{ONE}sequenceMaxIdleMSec: 150\n",
    "bounded": f"{ONE}sequenceMaxIdleMSec: 60000\nsequenceTimeoutMSec: 400\n",
    "ticketed": "minWorkers: 2\nmaxWorkers: 2\nuseJobTicket: true\n",
}
NO_WORKER = (
    'Model "{}" has no worker to serve inference request. Please use scale workers API to add workers. If this is a sequence'
    " inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Path:
    store = tmp_path_factory.mktemp("sequences") / "store"
    for name, config in MODELS.items():
        archive(store, name, "counting.py:handle", config=config)
    return store


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two front ends; the request header that ends a sequence has another name, for handlers too."""
    config = {"frontends": 2, "ts_header_key_sequence_end": "X-Sequence-End", "model_control_mode": "watch"}
    server = ServerProcess(store, config=config, folder=tmp_path_factory.mktemp("server"))
    with server:
        healthy = f"{server.inference_url}/ping"
        wait_until(lambda: httpx.get(healthy, trust_env=False).status_code == 200, 60, f"healthy models\n{server.log}")
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []
    for words in ("Exception in callback", "AssertionError", "could not be delivered", "cannot be obeyed"):
        assert words not in server.log


class Answer:
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.said: dict[str, Any] = json.loads(body)

    @property
    def count(self) -> int:
        assert self.status == 200, self.said
        return int(self.said["count"])


@pytest.fixture
def ask(server: ServerProcess) -> Callable[..., Answer]:
    """Ask a model on a new connection; `headers` besides the sequence's id."""

    def asked(model: str, sequence_id: str = "", body: str = "x", **headers: str) -> Answer:
        named = {ID: sequence_id} if sequence_id else {}
        connection = http.client.HTTPConnection(server.inference_url.removeprefix("http://"), timeout=ANSWER_S_MAX)
        with contextlib.closing(connection):
            connection.request("POST", f"/predictions/{model}", body.encode(), {**named, **headers})
            response = connection.getresponse()
            return Answer(response.status, response.read())

    return asked


@pytest.fixture
def crowd() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def describe(server: ServerProcess, model: str) -> dict[str, Any]:
    (described,) = httpx.get(f"{server.management_url}/models/{model}", trust_env=False).json()
    return dict(described)


def pids(server: ServerProcess, model: str) -> list[int]:
    return [each["pid"] for each in describe(server, model)["workers"] if each["status"] == "READY"]


def finish(ask: Callable[..., Answer], model: str, *sequence_ids: str) -> None:
    """End sequences, so that other tests find room."""
    for sequence_id in sequence_ids:
        assert ask(model, sequence_id, **{END: "true"}).status == 200


Ask = Callable[..., Answer]


def test_every_sequence_is_counted_by_one_worker_and_may_begin_anew(ask: Ask, crowd: ThreadPoolExecutor) -> None:
    """Also at once after its end, with whichever front end."""

    def client(number: int) -> list[tuple[int, int]]:
        found = []
        for _ in range(3):
            for nth in range(1, 9):
                last = {END: "TRUE" if number % 2 else "true"} if nth == 8 else {}
                answer = ask("counting", f"s{number}", "finish" if last and number % 2 else "x", **last)
                found.append((answer.count, answer.said["pid"]))
        return found

    for found in crowd.map(client, range(SEQUENCES_MAX)):
        assert [count for count, _ in found] == [*range(1, 9)] * 3
        assert all(len({pid for _, pid in found[at : at + 8]}) == 1 for at in (0, 8, 16))


def test_both_workers_have_sequences(ask: Ask, server: ServerProcess) -> None:
    names = [f"even-{number}" for number in range(4)]
    found = [ask("counting", name).said["pid"] for name in names]
    assert sorted(found) == sorted(pids(server, "counting") * 2)
    finish(ask, "counting", *names)


def test_a_request_without_a_sequence_begins_one(ask: Ask) -> None:
    first = ask("counting")
    assert first.said["id"].startswith("ts-seq-")
    assert (first.count, first.said["started"]) == (1, "true")
    second = ask("counting", first.said["id"])
    assert (second.count, second.said["started"]) == (2, "")
    finish(ask, "counting", first.said["id"])


def test_the_model_may_end_a_sequence_by_a_response_header(ask: Ask) -> None:
    assert [ask("counting", "said", body).count for body in ("x", "finish", "x", "finish")] == [1, 2, 1, 2]


def test_an_id_that_no_message_could_carry_is_refused(ask: Ask) -> None:
    answer = ask("counting", "i" * 600)
    assert (answer.status, answer.said["type"]) == (400, "BadRequestException")
    assert answer.said["message"].startswith(f"Header {ID}: expected at most 512 printable characters")


def test_there_are_no_more_sequences_than_may_be(ask: Ask) -> None:
    names = [f"limit-{number}" for number in range(SEQUENCES_MAX)]
    assert [ask("counting", name).status for name in names] == [200] * SEQUENCES_MAX
    refused = ask("counting", "one-more")
    assert (refused.status, refused.said["type"]) == (503, "ServiceUnavailableException")
    assert refused.said["message"] == NO_WORKER.format("counting")
    finish(ask, "counting", names[0])
    assert ask("counting", "one-more").count == 1
    finish(ask, "counting", "one-more", *names[1:])


def test_no_more_requests_of_a_sequence_wait_than_may(ask: Ask, crowd: ThreadPoolExecutor, tmp_path: Path) -> None:
    """In each front end, beside the one that its worker has."""
    gate = tmp_path / "open"
    most = 2 * (WAITING_MAX + 1)
    asked = [crowd.submit(ask, "counting", "crowded", f"wait {gate}") for _ in range(most + 4)]
    wait_until(lambda: sum(each.done() for each in asked) >= 4, ANSWER_S_MAX, "refusals")
    refused = [each.result() for each in asked if each.done()]
    assert {(each.status, each.said["message"]) for each in refused} == {(503, NO_WORKER.format("counting"))}
    gate.touch()
    served = sorted(each.result().count for each in asked if each.result().status == 200)
    assert served == list(range(1, len(asked) - len(refused) + 1))
    finish(ask, "counting", "crowded")


def test_a_batch_that_fails_has_counted_its_requests_once(ask: Ask, crowd: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Nobody is tried apart: a model that keeps state would see its requests twice."""
    gate = tmp_path / "open"
    names = [f"r{number}" for number in range(SEQUENCES_MAX)]
    assert [ask("counting", name).count for name in names] == [1] * SEQUENCES_MAX
    held = [crowd.submit(ask, "counting", name, f"wait {gate}") for name in names]  # all have their places
    failing = [crowd.submit(ask, "counting", name, "fail" if name in names[:2] else "x") for name in names]
    gate.touch()
    assert [each.result().count for each in held if each.result().status == 200]
    assert any(each.result().status == 503 for each in failing)
    assert [ask("counting", name).count for name in names] == [4] * SEQUENCES_MAX
    finish(ask, "counting", *names)


@pytest.mark.parametrize("model", ["brief", "bounded"])
def test_a_sequence_ends_by_silence_or_when_its_time_is_over(ask: Ask, model: str) -> None:
    """There is room for one, and the next one gets in when it has ended, though nobody said so."""
    assert ask(model, "first").status == 200
    wait_until(lambda: ask(model, "second").status == 200, ANSWER_S_MAX, "room for the second")
    wait_until(lambda: ask(model, "third").status == 200, ANSWER_S_MAX, "room for the third")


def test_a_worker_that_is_killed_takes_its_sequences_with_it_and_no_others(
    ask: Ask, server: ServerProcess, crowd: ThreadPoolExecutor
) -> None:
    """A client finds its sequence as it was, or hears of the loss, or finds that it begins anew with a new worker."""
    stop, began = threading.Event(), threading.Semaphore(0)

    def client(number: int) -> list[Answer]:
        found = []
        while not stop.is_set():
            found.append(ask("mortal", f"k{number}"))
            began.release()
        return [*found, ask("mortal", f"k{number}")]

    asking = [crowd.submit(client, number) for number in range(6)]
    for _ in range(60):
        assert began.acquire(timeout=ANSWER_S_MAX)
    victim = pids(server, "mortal")[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(set(pids(server, "mortal")) - {victim}) == 2, ANSWER_S_MAX, "a new worker")
    for _ in range(60):
        assert began.acquire(timeout=ANSWER_S_MAX)
    stop.set()
    begun = []
    for each in asking:
        answers = each.result(ANSWER_S_MAX)
        before: tuple[int, int] | None = None
        for answer in answers:
            if answer.status != 200:
                assert (answer.status, answer.said["message"][:12]) == (500, "Worker died.")
                continue
            count, pid = answer.count, answer.said["pid"]
            assert (count == 1) or before == (count - 1, pid)
            before = (count, pid)
        begun.append(sum(answer.status == 200 and answer.count == 1 for answer in answers))
        assert answers[-1].status == 200
    assert sorted(begun) == [1, 1, 1, 2, 2, 2]  # half of them had the worker that died
    finish(ask, "mortal", *(f"k{number}" for number in range(6)))


def test_sequences_outlive_their_front_end(ask: Ask, server: ServerProcess) -> None:
    names = [f"f{number}" for number in range(6)]
    before = {name: ask("counting", name).said["pid"] for name in names}
    victim = server.front_ends()[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in server.front_ends() and len(server.front_ends()) == 2, 30, "another front end")
    answers: dict[str, Answer] = {}
    for name in names:
        while name not in answers:
            with contextlib.suppress(OSError, http.client.HTTPException):  # what had been accepted by the victim
                answers[name] = ask("counting", name)
    assert {name: answer.said["pid"] for name, answer in answers.items()} == before
    assert [answer.count for answer in answers.values()] == [2] * 6
    finish(ask, "counting", *names)


def test_a_worker_that_is_to_go_keeps_its_sequences_until_they_end(ask: Ask, server: ServerProcess) -> None:
    names = [f"d{number}" for number in range(4)]
    before = {name: ask("shrinking", name).said["pid"] for name in names}
    scale = f"{server.management_url}/models/shrinking?min_worker=1&max_worker=1"
    httpx.put(scale, trust_env=False)
    wait_until(lambda: len(pids(server, "shrinking")) == 1, ANSWER_S_MAX, "one wanted worker")
    (left,) = pids(server, "shrinking")
    (leaving,) = set(before.values()) - {left}
    assert {name: ask("shrinking", name).said["pid"] for name in names} == before
    assert [ask("shrinking", f"new{number}").said["pid"] for number in range(3)] == [left] * 3
    assert leaving in server.workers()
    finish(ask, "shrinking", *names)
    wait_until(lambda: leaving not in server.workers(), ANSWER_S_MAX, "the end of the worker without sequences")
    finish(ask, "shrinking", *(f"new{number}" for number in range(3)))


def test_a_version_that_is_replaced_keeps_its_sequences_until_they_end(
    ask: Ask, server: ServerProcess, store: Path, archive: Callable[..., Path], tmp_path: Path
) -> None:
    names = [f"v{number}" for number in range(4)]
    before = {name: ask("moving", name).said["pid"] for name in names}
    made = archive(tmp_path / "next", "moving", "counting.py:handle", config=f"{COUNTING}release: 2\n")
    made.rename(store / "moving.mar")

    def of_the_new_one() -> bool:
        answer = ask("moving")
        finish(ask, "moving", answer.said["id"])
        return bool(answer.said["release"] == 2)

    wait_until(of_the_new_one, ANSWER_S_MAX, "the new version")
    for nth in (2, 3):
        answers = {name: ask("moving", name) for name in names}
        assert {name: (answer.said["pid"], answer.count) for name, answer in answers.items()} == {
            name: (pid, nth) for name, pid in before.items()
        }
    old = set(before.values())
    finish(ask, "moving", *names)
    again = ask("moving", names[0])
    assert (again.count, again.said["release"]) == (1, 2)
    finish(ask, "moving", names[0])
    wait_until(lambda: not old & set(server.workers()), ANSWER_S_MAX, "the end of the old version's workers")


def test_only_as_many_requests_as_workers_have_a_ticket(ask: Ask, crowd: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Over both front ends; who has none is told at once, while the others are still at it."""
    gate = tmp_path / "open"
    held = [crowd.submit(ask, "ticketed", "", f"wait {gate}") for _ in range(2)]
    rush: list[Future[Answer]] = []

    def refusals() -> bool:
        """The first ones of the rush may have come before the two."""
        rush.append(crowd.submit(ask, "ticketed", "", f"wait {gate}"))
        return sum(each.done() for each in [*held, *rush]) >= 20

    wait_until(refusals, ANSWER_S_MAX, "refusals")
    refused = [each.result() for each in [*held, *rush] if each.done()]
    assert {(each.status, each.said["message"]) for each in refused} == {(503, NO_WORKER.format("ticketed"))}
    gate.touch()
    answers = [each.result() for each in [*held, *rush]]
    assert sum(answer.status == 200 for answer in answers) >= 2
    assert ask("ticketed").status == 200


def test_what_describe_tells_of_sequences_and_tickets_is_what_torchserve_does(server: ServerProcess) -> None:
    fields = ("stateful", "sequenceMaxIdleMSec", "sequenceTimeoutMSec", "maxNumSequence", "maxSequenceJobQueueSize")
    assert [describe(server, "counting")[each] for each in fields] == [True, 60000, 0, SEQUENCES_MAX, WAITING_MAX]
    assert [describe(server, "bounded")[each] for each in fields] == [True, 60000, 400, 1, 1]
    assert [describe(server, "ticketed")[each] for each in fields] == [False, 0, 0, 0, 0]
    assert [describe(server, each)["useJobTicket"] for each in ("counting", "ticketed")] == [False, True]
