"""The worker process alone, at the other end of its control socket and its link."""

import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringserve.protocol.request import InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.control import Channel, LinkLane, Loaded, LoadModel, WorkerMessage, channel_pair
from ringserve.server.payloads import BytesEncoder
from ringserve.server.replies import read_reply
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

def handle(data, context):
    if data is None:
        threading.Thread(target=threading.Event().wait).start()
        return None
    return ["fine"] * len(data)
"""


class Stage:
    """A worker that has loaded its model, and a front end's ends of its lane and link."""

    def __init__(self, folder: Path) -> None:
        (folder / "handler.py").write_text(HANDLER)
        ours, theirs = channel_pair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ringserve.server.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        self.channel = Channel(ours, WorkerMessage)
        manifest: dict[str, object] = {"model": {"modelName": "m", "handler": "handler.py"}}
        self.channel.send(
            LoadModel(
                "m", "1.0", str(folder), "handler", "handler.py", manifest, {}, Signature(), 4, 1 << 20, True, True, "0"
            )
        )
        received = self.channel.receive(wait=True)
        assert received is not None
        assert isinstance(received[0], Loaded)
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
        self.process.kill()
        self.process.communicate()
        self.link.close()
        self.lane.close()
        self.channel.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


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
    assert stage.process.stderr is not None
    assert "lies outside of" in stage.process.stderr.read()


def test_a_request_that_cannot_be_read_ends_the_worker_and_nobody_waits_for_it(stage: Stage) -> None:
    BytesEncoder().encode(InferRequest("id", "", {}, b"x")).write(stage.lane.slabs[0], 0, 0, 1, 0)
    stage.lane.slabs[0].bytes_in[:8] = b"\xc1" * 8
    stage.push(Command(0, 0, 0, 1, 0, 4096))
    assert stage.process.wait(WAIT_S_MAX) == 1
