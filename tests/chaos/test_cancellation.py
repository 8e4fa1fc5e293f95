"""Clients that leave: what only waited is never computed, what runs is told, and all that they held is free."""

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ringserve.server.testing import ServerProcess, wait_until
from ringserve.tools.archiver import ArchiveRequest, write_archive
from tests.e2e.raw_http import ANSWER_S_MAX, Connection, act, head, pending, post, settle, taken_slabs, wait_until_free

if TYPE_CHECKING:
    from tests.chaos.conftest import Site

pytestmark = pytest.mark.e2e

ACT = (Path(__file__).parents[1] / "e2e" / "handlers" / "act.py").read_text()
# Works until nobody waits for the answer any more, and leaves word of that.
WATCHFUL = """
import time
from pathlib import Path

def handle(data, context):
    if data is None:
        return None
    folder = Path(bytes(data[0]["body"]).decode())
    (folder / "running").touch()
    end = time.monotonic() + 30
    while not context.cancelled and time.monotonic() < end:
        time.sleep(0.005)
    if context.cancelled:
        (folder / "cancelled").touch()
    return ["done"] * len(data)
"""
MODELS = {
    "single": (ACT, "batchSize: 1\n"),
    "batched": (ACT, "batchSize: 4\n"),
    "cramped": (ACT, "batchSize: 4\njobQueueSize: 8\n"),
    "watchful": (WATCHFUL, "batchSize: 1\n"),
}
OPEN_MAX = 24
CLIENTS = 8
ANSWER_BYTES = 3_000_000
LARGE_BYTES = (100_000, 1_200_000)
TYPED_ROW_BYTES = 8

Leave = Callable[[Connection], None]


def leave_sending(connection: Connection) -> None:
    """A goodbye first, as many clients say it."""
    with contextlib.suppress(OSError):  # the server may have ended the connection
        connection.end_sending()
    connection.close()


LEAVING = pytest.mark.parametrize("leave", [Connection.close, Connection.reset, leave_sending])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("cancellation")
    write_models(folder)
    config = {"default_workers_per_model": 1, "frontends": 1}
    with ServerProcess(folder / "store", config=config, folder=folder / "server") as server:
        yield server
        wait_until_free(server, len(MODELS))
        assert "Traceback" not in server.log, server.log
    assert server.remains() == []


def write_models(folder: Path) -> None:
    for name, (source, config) in MODELS.items():
        workshop = folder / "workshop" / name
        workshop.mkdir(parents=True)
        (workshop / "model.py").write_text(source)
        (workshop / "model-config.yaml").write_text(config)
        write_archive(
            ArchiveRequest(
                model_name=name,
                version="1.0",
                handler=f"{workshop / 'model.py'}:handle",
                config_file=workshop / "model-config.yaml",
                export_path=folder / "store",
            )
        )


class Queue:
    """A model whose one worker is busy until `open`; what is computed leaves its name."""

    def __init__(self, server: ServerProcess, model: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self.server = server
        self._model = model
        self._folder = folder
        self._stack = stack
        stack.callback(self.open)
        self.ask("held", hold=str(folder))
        wait_until(lambda: "held" in self.computed, ANSWER_S_MAX, "a busy worker")

    def ask(self, name: str, **more: object) -> Connection:
        connection = self._stack.enter_context(Connection(self.server))
        connection.send(act(self._model, name=name, count=str(self._folder / "computed"), **more))
        return connection

    def open(self) -> None:
        (self._folder / "open").touch()

    @property
    def waiting(self) -> int:
        return pending(self.server, self._model)

    @property
    def computed(self) -> list[str]:
        file = self._folder / "computed"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def queue(server: ServerProcess, tmp_path: Path) -> Iterator[Callable[[str], Queue]]:
    with contextlib.ExitStack() as stack:
        yield lambda model: Queue(server, model, tmp_path, stack)


@LEAVING
@pytest.mark.parametrize(("model", "pad"), [("single", 300_000), ("batched", 0), ("batched", 300_000)])
def test_a_request_whose_client_leaves_while_it_waits_is_never_computed(
    queue: Callable[[str], Queue], leave: Leave, model: str, pad: int
) -> None:
    """Wherever it waits: in the worker's ring, in a slab, or behind all slabs."""
    busy = queue(model)
    crowd = [busy.ask(f"gone{number}" if number % 2 else f"stays{number}", pad="x" * pad) for number in range(12)]
    # The first batch of them lies in the worker's ring, where nobody is counted as waiting.
    wait_until(lambda: busy.waiting >= 8, ANSWER_S_MAX, "a queue")
    settle(busy.server)
    waiting = busy.waiting
    for connection in crowd[1::2]:
        leave(connection)
    wait_until(lambda: busy.waiting <= waiting - 4, ANSWER_S_MAX, "free places")
    busy.open()
    assert [connection.answer().json["name"] for connection in crowd[::2]] == [f"stays{n}" for n in range(0, 12, 2)]
    assert busy.ask("last").answer().status == 200
    assert [name for name in busy.computed if name.startswith("gone")] == []
    wait_until_free(busy.server, len(MODELS))


def test_the_places_of_those_who_left_are_used_again(queue: Callable[[str], Queue]) -> None:
    """Far more come and go than there are slabs and places, while the worker takes none of them."""
    busy = queue("cramped")
    for _ in range(30):
        crowd = [busy.ask("gone") for _ in range(4)]
        settle(busy.server)
        for connection in crowd:
            connection.reset()
        wait_until(lambda: busy.waiting == 0, ANSWER_S_MAX, "an empty queue")
    last = [busy.ask(f"last{number}") for number in range(4)]
    settle(busy.server)
    busy.open()
    assert [connection.answer().status for connection in last] == [200] * 4
    assert "gone" not in busy.computed
    wait_until_free(busy.server, len(MODELS))


@LEAVING
def test_a_running_model_learns_that_nobody_waits_for_its_answer(
    server: ServerProcess, tmp_path: Path, leave: Leave
) -> None:
    connection = Connection(server)
    connection.send(post(str(tmp_path).encode(), "/predictions/watchful"))
    wait_until((tmp_path / "running").exists, ANSWER_S_MAX, "a running model")
    assert not (tmp_path / "cancelled").exists()
    leave(connection)
    wait_until((tmp_path / "cancelled").exists, ANSWER_S_MAX, "a cancelled model")
    wait_until_free(server, len(MODELS))


# ---- a thousand at random moments


def request(number: int, random_one: random.Random) -> bytes:
    """To any model, of any size, with an answer of any size, in any framing."""
    kind = random_one.randrange(6)
    if kind == 0:
        return post(bytes(TYPED_ROW_BYTES), "/predictions/typed")
    word = f"grow:{ANSWER_BYTES}" if kind == 1 else f"sleep:{random_one.choice((0, 0.002))}"
    body = f"{number} {word}".encode()
    if kind == 2:
        body = body.ljust(random_one.choice(LARGE_BYTES))
    if kind == 3:
        return head("/predictions/actor", "transfer-encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return post(body, "/predictions/actor")


def leave_somewhere(open_ones: list[Connection], random_one: random.Random) -> None:
    """While waiting, or with some of the answer read."""
    connection = open_ones.pop(random_one.randrange(len(open_ones)))
    if random_one.random() < 0.3:
        connection.socket.settimeout(0.01)
        with contextlib.suppress(OSError):
            connection.socket.recv(random_one.choice((10, 500, 100_000)))
    random_one.choice((Connection.close, Connection.reset, leave_sending))(connection)


def come_and_go(server: ServerProcess, times: int, random_one: random.Random) -> None:
    open_ones: list[Connection] = []
    for number in range(times):
        connection = Connection(server, read_buffer_bytes=random_one.choice((0, 4096)))
        data = request(number, random_one)
        match random_one.randrange(5):
            case 0:  # in the head
                data = data[: random_one.randrange(60)]
            case 1:  # in the body
                data = data[: random_one.randrange(60, len(data))]
        connection.send(data)
        open_ones.append(connection)
        while len(open_ones) > random_one.randrange(OPEN_MAX):
            leave_somewhere(open_ones, random_one)
    while open_ones:
        leave_somewhere(open_ones, random_one)


@pytest.mark.parametrize(("front_ends", "disconnects"), [(1, 1000), (2, 300)])
def test_a_thousand_clients_that_leave_at_random_moments_leave_every_slab_free(
    archive: Callable[..., Path], start: "Callable[..., Site]", front_ends: int, disconnects: int
) -> None:
    archive("typed", typed=True)
    site = start(archive("actor", config="batchSize: 4\n"), workers=2, job_queue_size=1000, frontends=front_ends)
    dispatchers = 2 * front_ends
    assert taken_slabs(site.server, dispatchers) == []
    with site.load("actor", CLIENTS) as bytes_load, site.load("typed", CLIENTS, typed=True) as typed_load:
        come_and_go(site.server, disconnects, random.Random(front_ends))
    for load in (bytes_load, typed_load):
        load.check()
        assert load.errors.total() == 0
    wait_until_free(site.server, dispatchers)
    with site.load("actor", 4 * OPEN_MAX) as load:
        wait_until(lambda: load.right > 400, ANSWER_S_MAX, "answers")
    load.check()
    assert load.errors.total() == 0
    wait_until_free(site.server, dispatchers)
