"""Time and queues: who waited too long is told so and never computed, and a queue holds as many as it says."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.raw_http import (
    ANSWER_S_MAX,
    Answer,
    Connection,
    act,
    pending,
    post,
    settle,
    wait_until_free,
)

TIMEOUT_MS = 300
QUEUE_SIZE = 3
HEADER = "x-request-timeout-ms"
# Each with one worker that takes one request at a time: the second lies in its ring, the third waits.
MODELS = {
    "act": f"jobQueueSize: {QUEUE_SIZE}\n",
    "typed": """
backend: python
inputs: [{name: x, dtype: uint8, shape: [4]}]
outputs: [{name: y, dtype: uint8, shape: [4]}]
""",
    "queued": "queueTimeout: 1\n",
    "impatient": "clientTimeoutInMills: 500\n",
    "stuck": "responseTimeout: 1\n",
}
TYPED = """
import time
from pathlib import Path

class Model:
    def predict(self, inputs, outputs):
        if inputs["x"][0, 0]:
            time.sleep(1.5)
        outputs["y"][:] = inputs["x"]
"""


@pytest.fixture(scope="module")
def store(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("deadlines") / "store"
    for name, config in MODELS.items():
        if name == "typed":
            archive(store, name, "typed.py", source=TYPED, config=config)
        else:
            archive(store, name, "act.py:handle", config=config)
    return store


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = {"default_workers_per_model": 1, "frontends": 1}
    with ServerProcess(store, config=config, folder=tmp_path_factory.mktemp("server")) as server:
        yield server
        wait_until_free(server, len(MODELS))
        assert "Traceback" not in server.log, server.log
    assert server.remains() == []


class Scene:
    """One model whose only worker is kept busy until `open`; every request that is computed leaves its name in a file."""

    def __init__(self, server: ServerProcess, folder: Path, stack: contextlib.ExitStack) -> None:
        self._server = server
        self._folder = folder
        self._stack = stack
        stack.callback(self.open)

    def ask(self, model: str, name: str, *headers: str, hold: bool = False, pad: int = 0) -> Connection:
        """A request that the server has read."""
        connection = self._stack.enter_context(Connection(self._server))
        more = {"hold": str(self._folder)} if hold else {}
        wanted = {"name": name, "count": str(self._folder / "computed"), "pad": "x" * pad, **more}
        connection.send(act(model, *headers, **wanted))
        settle(self._server)
        return connection

    def hold(self, model: str, name: str = "held", *headers: str) -> Connection:
        """A request that keeps the worker busy from now on."""
        connection = self.ask(model, name, *headers, hold=True)
        wait_until(lambda: name in self.computed, ANSWER_S_MAX, "a busy worker")
        return connection

    def open(self) -> None:
        (self._folder / "open").touch()

    @property
    def computed(self) -> list[str]:
        file = self._folder / "computed"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def scene(server: ServerProcess, tmp_path: Path) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        yield Scene(server, tmp_path, stack)


def header(timeout_ms: int) -> str:
    return f"{HEADER}: {timeout_ms}"


def is_late(answer: Answer) -> bool:
    assert answer.json.keys() == {"code", "type", "message"}, answer
    assert answer.headers["connection"] == "close"
    return (answer.status, answer.json["code"], answer.json["type"]) == (504, 504, "DeadlineExceededException")


# ---- the deadline of a request


@pytest.mark.parametrize("body_bytes", [10, 100_000])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "abc", "", "1e3", "1_000", "2147483648", "9" * 30, "5 s"])
def test_a_deadline_that_is_no_number_of_milliseconds_is_refused(
    server: ServerProcess, value: str, body_bytes: int
) -> None:
    with Connection(server) as connection:
        connection.send(post(bytes(body_bytes), "/predictions/act", f"{HEADER}: {value}"))
        answer = connection.answer()
    assert (answer.status, answer.json["type"]) == (400, "BadRequestException")
    assert HEADER in answer.json["message"]
    assert "2147483647" in answer.json["message"]
    assert value[:20] in answer.json["message"]


@pytest.mark.parametrize("value", [1000, 2**31 - 1])
def test_a_request_that_is_answered_in_time_does_not_notice_its_deadline(scene: Scene, value: int) -> None:
    assert scene.ask("act", "quick", header(value)).answer().json == {"name": "quick", "rows": 1}


@pytest.mark.parametrize("pad", [0, 200_000])
def test_a_request_whose_time_is_over_in_the_queue_is_answered_while_the_worker_is_busy_and_never_computed(
    scene: Scene, pad: int
) -> None:
    """The first of the three lies in the worker's ring already."""
    held = scene.hold("act")
    begun = time.monotonic()
    late = [scene.ask("act", f"late{number}", header(TIMEOUT_MS), pad=pad) for number in range(3)]
    assert all(is_late(connection.answer()) for connection in late)
    assert time.monotonic() - begun >= TIMEOUT_MS / 1000
    scene.open()
    assert held.answer().status == 200
    assert scene.ask("act", "next").answer().status == 200
    assert scene.computed == ["held", "next"]


def test_a_deadline_counts_for_requests_of_any_shape(server: ServerProcess, scene: Scene) -> None:
    scene.hold("act")
    usual = act("act", header(TIMEOUT_MS), name="late")
    framed, body = usual.split(b"\r\n\r\n")
    length = b"content-length: %d" % len(body)
    shapes = (
        usual.replace(b"POST", b"PUT"),
        usual.replace(b"HTTP/1.1", b"HTTP/1.0"),
        usual.replace(b"/predictions/act", b"/predictions/act/1.0/rest"),
        framed.replace(length, b"transfer-encoding: chunked") + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
    )
    for shape in shapes:
        with Connection(server) as connection:
            connection.send(shape)
            assert is_late(connection.answer()), shape
    with Connection(server) as connection:
        connection.send(usual.replace(b"POST", b"PUT").replace(b"ms: 300", b"ms: soon"))
        assert connection.answer().status == 400


def test_each_request_of_a_queue_has_its_own_deadline(scene: Scene) -> None:
    scene.hold("act")
    patient = [scene.ask("act", "patient0", header(60_000)), scene.ask("act", "patient1")]
    late = [scene.ask("act", "late0", header(TIMEOUT_MS * 2)), scene.ask("act", "late1", header(TIMEOUT_MS))]
    assert all(is_late(connection.answer()) for connection in late)
    scene.open()
    assert [connection.answer().json["name"] for connection in patient] == ["patient0", "patient1"]
    assert scene.computed == ["held", "patient0", "patient1"]


@pytest.mark.parametrize("followed", [False, True])
def test_a_request_whose_time_is_over_while_it_is_computed_is_told_and_its_answer_is_dropped(
    scene: Scene, followed: bool
) -> None:
    late = scene.hold("act", "late", header(TIMEOUT_MS))
    follower = scene.ask("act", "follower") if followed else None
    assert is_late(late.answer())
    assert late.rest() == b""
    scene.open()
    if follower is not None:
        assert follower.answer().json["name"] == "follower"
    assert scene.ask("act", "next").answer().json["name"] == "next"


def test_rows_of_a_typed_model_are_late_alone(server: ServerProcess, scene: Scene) -> None:
    """The worker sleeps over the first; the deadline of the others passes in its ring and in the queue."""
    rows = [bytes([1, 0, 0, 0]), bytes([0, 1, 2, 3]), bytes([0, 4, 5, 6]), bytes([0, 7, 8, 9])]
    headers = [(), (header(TIMEOUT_MS),), (header(TIMEOUT_MS),), (header(60_000),)]
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server)) for _ in rows]
        for connection, row, more in zip(connections, rows, headers, strict=True):
            connection.send(post(row, "/predictions/typed", *more))
            settle(server)
        answers = [connection.answer() for connection in connections]
    assert [answer.status for answer in answers] == [200, 504, 504, 200]
    assert [answer.json for answer in answers if answer.status == 200] == [[1, 0, 0, 0], [0, 7, 8, 9]]


def test_a_request_with_a_deadline_does_not_shorten_the_next_one_on_its_connection(scene: Scene) -> None:
    connection = scene.ask("act", "first", header(TIMEOUT_MS))
    assert connection.answer().status == 200
    held = scene.hold("act")
    connection.send(act("act", name="second"))
    late = scene.ask("act", "late", header(2 * TIMEOUT_MS))
    assert is_late(late.answer())  # by now the first deadline is over as well
    scene.open()
    assert (held.answer().status, connection.answer().json["name"]) == (200, "second")


# ---- the deadlines of a model and of a server


def test_a_request_that_waited_longer_than_the_models_queue_timeout_is_never_computed(scene: Scene) -> None:
    """The one that a worker took in time may take as long as it likes."""
    held = scene.hold("queued")
    late = [scene.ask("queued", "late0"), scene.ask("queued", "late1")]
    assert all(is_late(connection.answer()) for connection in late)
    scene.open()
    assert held.answer().status == 200
    assert scene.ask("queued", "next").answer().status == 200
    assert scene.computed == ["held", "next"]


def test_a_server_may_have_a_queue_timeout_for_all_its_models(
    archive: Callable[..., Path], start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    archive(store, "act", "act.py:handle")
    archive(store, "patient", "act.py:handle", config="queueTimeout: 600\n")
    server = start_server(store, config={"default_queue_timeout": 1})
    with contextlib.ExitStack() as stack:
        scene = Scene(server, tmp_path, stack)
        held = [scene.hold(model, f"held-{model}") for model in ("act", "patient")]
        waiting = scene.ask("patient", "waiting")
        assert is_late(scene.ask("act", "late").answer())
        scene.open()
        assert [connection.answer().status for connection in (*held, waiting)] == [200] * 3
        assert "late" not in scene.computed


def test_a_model_may_have_a_deadline_for_all_its_requests(scene: Scene) -> None:
    late = scene.hold("impatient", "running"), scene.ask("impatient", "queued")
    assert all(is_late(connection.answer()) for connection in late)
    scene.open()
    assert scene.ask("impatient", "next").answer().status == 200
    assert scene.computed == ["running", "next"]


def test_a_requests_own_deadline_counts_instead_of_its_models(scene: Scene) -> None:
    patient = scene.hold("impatient", "patient", header(60_000))
    assert is_late(scene.ask("impatient", "late").answer())
    scene.open()
    assert patient.answer().json["name"] == "patient"


@pytest.mark.parametrize("pad", [0, 200_000])
def test_what_only_waited_for_a_worker_that_hangs_is_served_by_the_next_one(scene: Scene, pad: int) -> None:
    hung = scene.hold("stuck")
    waiting = [scene.ask("stuck", f"waiting{number}", pad=pad) for number in range(3)]
    answer = hung.answer()
    assert (answer.status, answer.json["message"].startswith("Worker died.")) == (500, True)
    assert [connection.answer().json["name"] for connection in waiting] == ["waiting0", "waiting1", "waiting2"]


# ---- a queue's size


def fill(scene: Scene, *headers: str) -> list[Connection]:
    """One is computed, one lies in the worker's ring, and as many wait as there is room for."""
    held = scene.hold("act"), scene.ask("act", "next")
    return [*held, *(scene.ask("act", f"waiting{number}", *headers) for number in range(QUEUE_SIZE))]


def is_full(scene: Scene) -> bool:
    answer = scene.ask("act", "refused").answer()
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    return bool(answer.json["type"] == "ServiceUnavailableException")


def test_a_queue_holds_exactly_as_many_as_it_says(server: ServerProcess, scene: Scene) -> None:
    connections = fill(scene)
    assert pending(server, "act") == QUEUE_SIZE
    assert is_full(scene)
    assert is_full(scene)
    assert pending(server, "act") == QUEUE_SIZE
    scene.open()
    assert [connection.answer().status for connection in connections] == [200] * len(connections)
    assert "refused" not in scene.computed


def test_a_crowd_that_comes_at_once_fills_the_worker_before_the_queue(server: ServerProcess, scene: Scene) -> None:
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(Connection(server)) for _ in range(QUEUE_SIZE + 2)]
        for connection in crowd:
            connection.send(act("act", name="one of many"))
        assert [connection.answer().status for connection in crowd] == [200] * len(crowd)


def test_late_requests_free_their_places_at_once(server: ServerProcess, scene: Scene) -> None:
    connections = fill(scene, header(TIMEOUT_MS))
    assert is_full(scene)
    assert all(is_late(connection.answer()) for connection in connections[2:])
    assert pending(server, "act") == 0
    again = [scene.ask("act", f"again{number}") for number in range(QUEUE_SIZE)]
    assert is_full(scene)
    scene.open()
    assert [connection.answer().status for connection in (*connections[:2], *again)] == [200] * (QUEUE_SIZE + 2)
    assert scene.computed == ["held", "next", "again0", "again1", "again2"]


@pytest.mark.parametrize("leave", [Connection.close, Connection.reset])
def test_clients_that_leave_free_their_places_at_once(
    server: ServerProcess, scene: Scene, leave: Callable[[Connection], None]
) -> None:
    connections = fill(scene)
    assert is_full(scene)
    for connection in connections[2:4]:
        leave(connection)
    wait_until(lambda: pending(server, "act") == QUEUE_SIZE - 2, ANSWER_S_MAX, "two places in the queue")
    again = [scene.ask("act", "again0"), scene.ask("act", "again1")]
    assert is_full(scene)
    scene.open()
    assert [connection.answer().status for connection in (*connections[:2], connections[4], *again)] == [200] * 5
    assert sorted(scene.computed) == ["again0", "again1", "held", "next", "waiting2"]
