"""The worker process alone, at the other end of its control socket and its link."""

import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.request import InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.channel import Channel, ControlClosed, channel_pair
from ringserve.server.control import (
    Answered,
    AskDescription,
    AtWork,
    Description,
    LinkLane,
    Loaded,
    LoadFailed,
    LoadModel,
    WorkerMessage,
    Worn,
)
from ringserve.server.metrics.listing import Emitted
from ringserve.server.payloads import BytesEncoder
from ringserve.server.replies import read_reply
from ringserve.server.repository.sections import Sample
from ringserve.shm.lane import Lane, create_lane
from ringserve.shm.layout import REPLY_ID, LaneShape
from ringserve.shm.link import FrontLink, create_link
from ringserve.shm.ring import Command

pytestmark = pytest.mark.process

WAIT_S_MAX = 30.0
SHAPE = LaneShape(2, 4, (), (), 4096, 4096)

# It keeps a thread that would keep any process alive.
HANDLER = """
import threading

class Handler:
    calls = 0

    def initialize(self, context):
        threading.Thread(target=threading.Event().wait).start()

    def handle(self, data, context):
        if context.get_request_header(0, "describe") == "True":
            return [self.describe()]
        if data[0]["body"] == {"fail": True}:
            raise ValueError("as asked")
        self.calls += 1
        return ["fine"] * len(data)

    def describe(self):
        return {"calls": self.calls}
"""
STUCK = "\n    def describe(self):\n        threading.Event().wait()\n"
FAILING = "\n    def describe(self):\n        exit(1)\n"


class Worker:
    """A worker process at the other end of its control socket, told to load a handler."""

    def __init__(
        self,
        folder: Path,
        source: str = HANDLER,
        *,
        batch_size: int = 4,
        warmup: tuple[Sample, ...] = (),
        max_requests: int = 0,
    ) -> None:
        (folder / "handler.py").write_text(source)
        ours, theirs = channel_pair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ringserve.server.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        theirs.close()
        self.channel = Channel(ours, WorkerMessage)
        manifest: dict[str, object] = {"model": {"modelName": "m", "handler": "handler.py"}}
        self.channel.send(
            LoadModel(
                model="m",
                version="1.0",
                model_dir=str(folder),
                backend="handler",
                handler="handler.py",
                manifest=manifest,
                config={},
                signature=Signature(),
                batch_size=batch_size,
                response_bytes_max=1 << 20,
                decode_input_request=True,
                limit_max_image_pixels=True,
                server_version="0",
                warmup=warmup,
                max_requests=max_requests,
            )
        )

    def said(self) -> object:
        """The next message of the worker, metrics aside."""
        while True:
            received = self.channel.receive(wait=True)
            assert received is not None
            if not isinstance(received[0], Emitted):
                return received[0]

    def described(self, timeout_s: float = 0.0) -> Description:
        self.channel.send(AskDescription(5, timeout_s))
        while not isinstance(said := self.said(), Description):
            assert isinstance(said, AtWork | Answered)
        assert said.token == 5
        return said

    def errors(self) -> str:
        """What it has printed, once it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.channel.close()


class Stage(Worker):
    """A worker that has loaded its model, and a front end's ends of its lane and link."""

    def __init__(self, folder: Path, source: str = HANDLER, **options: Any) -> None:
        super().__init__(folder, source, **options)
        assert isinstance(self.said(), Loaded)
        segment, fds = create_lane(SHAPE), create_link()
        self.channel.send(LinkLane(SHAPE, Signature()), [segment.fd, *fds.worker])
        self.lane = Lane(segment, SHAPE)
        self.link = FrontLink(fds.front)

    def push(self, command: Command) -> None:
        assert self.link.commands.try_push(command)
        self.link.bell.ring()

    def heard(self) -> int:
        """How many completions come; waits for the first, or for the worker's end."""
        poller = select.poll()
        poller.register(self.link.listener.fd, select.POLLIN)
        assert poller.poll(WAIT_S_MAX * 1000)
        return self.link.listener.collect()

    def close(self) -> None:
        super().close()
        self.link.close()
        self.lane.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Starts one worker, or one on its stage, that a test wants differently."""
    started: list[Worker] = []

    def make(kind: type[Worker] = Worker, source: str = HANDLER, **options: Any) -> Worker:
        started.append(kind(tmp_path, source, **options))
        return started[-1]

    yield make
    for worker in started:
        worker.close()


def test_a_batch_in_the_middle_of_a_slab_is_answered_there(stage: Stage) -> None:
    slab = stage.lane.slabs[1]
    for row in (1, 2):
        BytesEncoder().encode(InferRequest("id", "", {}, b"x")).write(slab, row, row * 512, 100 + row, 0)
    stage.push(Command(0, 1, 1, 2, 1024, 1024))
    assert stage.heard() == 1
    completion = stage.link.completions.take()
    assert (completion.sequence, completion.slab, completion.rows, completion.status) == (0, 1, 2, 0)
    for row in (1, 2):
        line = slab.table[row, REPLY_ID:].tolist()
        assert line[0] == 100 + row
        answer = read_reply(slab, line, None, None)
        assert getattr(answer, "body", None) == b"fine"


@pytest.mark.parametrize(
    "command",
    [
        Command(0, 2, 0, 1, 0, 4096),
        Command(0, 0, 3, 2, 0, 4096),
        Command(0, 0, 0, 1, 4096, 1),
        Command(0, 0, 2**32 - 1, 2**32 - 1, 0, 0),
    ],
)
def test_a_batch_outside_of_its_lane_ends_the_worker_at_once(stage: Stage, command: Command) -> None:
    stage.push(command)
    assert stage.process.wait(WAIT_S_MAX) == 1
    assert "lies outside of" in stage.errors()


def test_a_request_that_cannot_be_read_ends_the_worker_and_nobody_waits_for_it(stage: Stage) -> None:
    BytesEncoder().encode(InferRequest("id", "", {}, b"x")).write(stage.lane.slabs[0], 0, 0, 1, 0)
    stage.lane.slabs[0].bytes_in[:8] = b"\xc1" * 8
    stage.push(Command(0, 0, 0, 1, 0, 4096))
    assert stage.process.wait(WAIT_S_MAX) == 1


def test_a_worker_says_once_that_it_works_and_once_that_it_has_done_enough(start: Callable[..., Stage]) -> None:
    stage = start(Stage, max_requests=5)
    for number in range(4):
        for row in (0, 1):
            BytesEncoder().encode(InferRequest("id", "", {}, b"x")).write(stage.lane.slabs[0], row, row * 512, 1, 0)
        stage.push(Command(number, 0, 0, 2, 0, 4096))
        assert stage.heard() == 1
        stage.link.completions.take()
    stage.channel.send(AskDescription(7))
    said = [stage.said() for _ in range(4)]
    assert said == [AtWork(), Answered(), Worn(), Description(7, b'{"calls":4}')]


def test_a_worker_describes_its_model_between_two_batches(stage: Stage) -> None:
    """The question comes before the batch here, and after it."""
    assert stage.described().text == b'{"calls":0}'
    BytesEncoder().encode(InferRequest("id", "", {}, b"x")).write(stage.lane.slabs[0], 0, 0, 1, 0)
    stage.push(Command(0, 0, 0, 1, 0, 4096))
    assert stage.heard() == 1
    assert stage.described().text == b'{"calls":1}'


def test_a_model_that_exits_while_it_describes_itself_goes_on_serving(start: Callable[..., Stage]) -> None:
    stage = start(Stage, HANDLER + FAILING)
    said = stage.described()
    assert (said.text, said.status) == (None, 503)
    assert said.error is not None
    assert said.error.message == "Prediction failed"
    BytesEncoder().encode(InferRequest("id", "", {}, b"x")).write(stage.lane.slabs[0], 0, 0, 1, 0)
    stage.push(Command(0, 0, 0, 1, 0, 4096))
    assert stage.heard() == 1


def test_a_model_that_never_ends_describing_itself_ends_its_worker(start: Callable[..., Worker]) -> None:
    worker = start(source=HANDLER + STUCK)
    assert isinstance(worker.said(), Loaded)
    worker.channel.send(AskDescription(5, 0.1))
    assert worker.process.wait(WAIT_S_MAX) == 1
    with pytest.raises(ControlClosed):
        worker.said()
    assert "has not described itself within 0.1 s" in worker.errors()


def test_a_worker_has_answered_its_samples_when_it_says_that_it_is_loaded(
    start: Callable[..., Worker], tmp_path: Path
) -> None:
    (tmp_path / "MAR-INF" / "warmup").mkdir(parents=True)
    (tmp_path / "MAR-INF" / "warmup" / "a.json").write_text("{}")
    worker = start(warmup=(Sample(None, b"[1]", "application/json", 3),))
    assert isinstance(worker.said(), Loaded)
    assert worker.described().text == b'{"calls":8}', "four times alone and four times as a full batch"


def test_a_worker_whose_model_fails_a_sample_never_says_that_it_is_loaded(start: Callable[..., Worker]) -> None:
    worker = start(warmup=(Sample(None, b'{"fail": true}', "application/json"),))
    assert worker.said() == LoadFailed("Warm-up with warmup[0] failed: Prediction failed", out_of_memory=False)
    assert worker.process.wait(WAIT_S_MAX) == 1
    assert "ValueError: as asked" in worker.errors()


def test_why_a_model_does_not_load_is_told_within_bounds_and_whatever_its_text(start: Callable[..., Worker]) -> None:
    worker = start(
        source=HANDLER.replace("threading.Thread(", "raise ValueError('\\udcff' + 'x' * 10_000); threading.Thread(")
    )
    said = worker.said()
    assert isinstance(said, LoadFailed)
    assert "ValueError: ?xxx" in said.cause
    assert len(said.cause) <= 8192
