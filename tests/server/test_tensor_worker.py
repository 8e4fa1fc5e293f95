"""A worker process and a dispatcher, with models of declared tensors in it: what goes in comes out, also when it dies."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.protocol.errors import WorkerLost
from ringserve.protocol.request import Answer, InferRequest, TensorReply, TensorRequest
from ringserve.protocol.tensor import ANY, Signature, TensorSpec
from ringserve.server.batching import BatchPolicy
from ringserve.server.budget import lane_shape
from ringserve.server.channel import Channel, channel_pair
from ringserve.server.control import LinkLane, Loaded, LoadModel, StopWorker, WorkerMessage
from ringserve.server.dispatch import Dispatcher
from ringserve.server.limits import Limits
from ringserve.shm.lane import Lane, create_lane
from ringserve.shm.link import FrontLink, create_link
from tests.server.tensor_rig import tensor, values

pytestmark = pytest.mark.process

WAIT_S_MAX = 60.0
GONE = WorkerLost("it died")
TWICE = """
class Twice:
    def predict(self, inputs):
        return {"y": inputs["x"] * 2, "texts": inputs["texts"]}
"""
REPEAT = """
import numpy as np


class Repeat:
    def predict(self, inputs):
        for number in range(int(inputs["n"][0])):
            yield {"y": np.full(number + 1, number, "float32")}
"""


class Running:
    """One version, one worker."""

    def __init__(self, folder: Path, source: str, signature: Signature, batch_size: int) -> None:
        (folder / "model.py").write_text(source)
        ours, theirs = channel_pair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ringserve.server.worker", str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self.channel = Channel(ours, WorkerMessage)
        self.channel.send(
            LoadModel(
                model="m",
                version="1.0",
                model_dir=str(folder),
                backend="python",
                handler="model.py",
                manifest={},
                config={},
                signature=signature,
                batch_size=batch_size,
                response_bytes_max=1 << 26,
                decode_input_request=True,
                limit_max_image_pixels=True,
                server_version="0.0.0",
            )
        )
        received = self.channel.receive(wait=True)
        assert received is not None
        loaded = received[0]
        assert isinstance(loaded, Loaded)
        shape = lane_shape(loaded.signature, batch_size, 1)
        segment = create_lane(shape)
        fds = create_link()
        self.channel.send(LinkLane(shape=shape, signature=loaded.signature), [segment.fd, *fds.worker])
        for fd in fds.worker:
            os.close(fd)
        self.dispatcher = Dispatcher("m", BatchPolicy(batch_size), Limits(100))
        self.dispatcher.set_serviceable(True)
        self.dispatcher.open_lane(Lane.attach(os.dup(segment.fd), shape), loaded.signature)
        segment.close()
        self.dispatcher.attach("1", FrontLink(fds.front))

    def send(self, **inputs: Any) -> "asyncio.Future[Answer]":
        tensors = TensorRequest(tuple(tensor(name, array) for name, array in inputs.items()))
        return self.dispatcher.submit(InferRequest("id", "", {}, b"", tensors=tensors))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT_S_MAX)
        self.dispatcher.worker_gone("1", GONE)

    async def stop(self) -> None:
        closed = asyncio.Event()
        self.dispatcher.close(closed.set)
        await closed.wait()
        if self.process.poll() is None:
            self.channel.send(StopWorker())
        self.process.wait(WAIT_S_MAX)
        self.channel.close()


@asynccontextmanager
async def running(folder: Path, source: str, signature: Signature, batch_size: int = 4) -> AsyncIterator[Running]:
    made = Running(folder, source, signature, batch_size)
    try:
        yield made
    finally:
        await made.stop()


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), WAIT_S_MAX)

    asyncio.run(bounded())


async def collect(replies: Any) -> list[TensorReply]:
    found = []
    while (reply := await replies.next()) is not None:
        found.append(reply)
    return found


def test_tensors_of_any_size_go_through_a_worker(tmp_path: Path) -> None:
    """Small ones, ones in parcels both ways, and strings."""
    texts = TensorSpec("texts", "bytes", (ANY,))
    signature = Signature((TensorSpec("x", "float32", (ANY,)), texts), (TensorSpec("y", "float32", (ANY,)), texts))

    async def scenario() -> None:
        async with running(tmp_path, TWICE, signature) as version:
            sizes = [1, 5, 5, 1 << 16, 3 << 20]
            sent = [np.arange(size, dtype="float32")[None] for size in sizes]
            words = np.array([[b"\xff", b"", b"x" * 1000]], dtype=object)
            answers = await asyncio.gather(*(version.send(x=x, texts=words) for x in sent))
            for x, answer in zip(sent, answers, strict=True):
                assert answer.tensors is not None
                y, texts = answer.tensors.outputs
                assert (y.datatype, y.shape) == ("FP32", x.shape)
                assert (np.frombuffer(y.data, "float32") == x[0] * 2).all()  # type: ignore[arg-type]
                assert values(Answer(b"", tensors=TensorReply((texts,)))) == {"texts": words.tolist()}
                del y, texts
                if answer.source is not None:
                    answer.source.close()
            del answers, answer

    play(scenario)


def test_a_decoupled_model_answers_until_it_ends_or_dies(tmp_path: Path) -> None:
    signature = Signature(
        (TensorSpec("n", "int32", (1,)),), (TensorSpec("y", "float32", (ANY,)),), batches=False, decoupled=True
    )

    async def scenario() -> None:
        async with running(tmp_path, REPEAT, signature, 1) as version:
            for count in (0, 1, 50):
                answer = await version.send(n=np.array([count], "int32"))
                replies = await collect(answer.replies)
                assert [values(Answer(b"", tensors=each))["y"] for each in replies] == [
                    [float(number)] * (number + 1) for number in range(count)
                ]
            endless = await version.send(n=np.array([10**9], "int32"))
            assert endless.replies is not None
            assert await endless.replies.next() is not None
            endless.replies.close()
            after = await version.send(n=np.array([2], "int32"))
            assert len(await collect(after.replies)) == 2, "who closed is not answered to the end"
            broken = await version.send(n=np.array([10**9], "int32"))
            assert broken.replies is not None
            assert await broken.replies.next() is not None
            version.kill()
            with pytest.raises(WorkerLost, match="it died"):
                await collect(broken.replies)

    play(scenario)
