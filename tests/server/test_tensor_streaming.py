"""Decoupled models: any number of answers to a request, in order, each for the one who asked, and an end."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import orjson
import pytest

from ringserve.backends.contract import Batch, ContractBroken, Reply, TensorCall
from ringserve.protocol.errors import BadRequest, ClientError, Internal, PredictionFailed, WorkerLost
from ringserve.protocol.request import Answer, TensorReply
from ringserve.protocol.tensor import ANY, Signature, TensorSpec
from ringserve.server.chunks import Piece, write_frame
from ringserve.server.inflight import Pending
from ringserve.server.replies import STATUS_CHUNK, encode_reply_head
from ringserve.server.sources import ReplyStream
from ringserve.server.tensor_replies import FrameReplies
from ringserve.shm.ring import Completion
from tests.server.tensor_rig import Served, served, tensor, value

WAIT_S_MAX = 20.0
SIGNATURE = Signature(
    (TensorSpec("n", "int32", (1,)),), (TensorSpec("y", "float32", (ANY,)),), batches=False, decoupled=True
)
GONE = WorkerLost("it died")


def count_up(batch: Batch) -> None:
    """As many answers as asked for, then the end."""
    for row, call in enumerate(batch.calls):
        for number in range(int(call.inputs["n"][0])):
            batch.control.send(row, {"y": np.full(3, number, "float32")}, {"number": number})
        batch.control.send(row, None, final=True)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), WAIT_S_MAX)

    asyncio.run(bounded())


def ask(version: Served, count: int, **fields: Any) -> Pending:
    return version.send(tensor("n", np.array([count], "int32")), **fields)


async def collect(pending: Pending) -> list[TensorReply]:
    answer = await pending
    assert answer.replies is not None
    found = []
    while (reply := await answer.replies.next()) is not None:
        found.append(reply)
    assert await answer.replies.next() is None
    return found


def told(replies: list[TensorReply]) -> list[Any]:
    return [value(reply.outputs[0])[0] for reply in replies]


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_every_answer_comes_in_order_and_then_the_end(count: int) -> None:
    async def scenario() -> None:
        async with served(SIGNATURE, count_up) as version:
            pending = ask(version, count)
            await version.settle()
            work = version.in_thread()
            replies = await collect(pending)
            await work
            assert told(replies) == list(range(count))
            assert [reply.parameters for reply in replies] == [{"number": number} for number in range(count)]
            assert not any(reply.final for reply in replies)

    play(scenario)


def test_the_last_answer_may_say_that_it_is() -> None:
    def run(batch: Batch) -> None:
        batch.control.send(0, {"y": np.zeros(1, "float32")})
        batch.control.send(0, {"y": np.ones(1, "float32")}, final=True)
        with pytest.raises(ContractBroken, match="sent before"):
            batch.control.send(0, None, final=True)

    async def scenario() -> None:
        async with served(SIGNATURE, run) as version:
            pending = ask(version, 1)
            await version.settle()
            work = version.in_thread()
            assert [reply.final for reply in await collect(pending)] == [False, True]
            await work

    play(scenario)


def test_an_answer_longer_than_a_chunk_is_one_answer() -> None:
    def run(batch: Batch) -> None:
        for _ in range(3):
            batch.control.send(0, {"y": np.arange(50_000, dtype="float32")})
        batch.control.send(0, None, final=True)

    async def scenario() -> None:
        async with served(SIGNATURE, run) as version:
            pending = ask(version, 1)
            await version.settle()
            work = version.in_thread()
            replies = await collect(pending)
            await work
            assert [len(value(reply.outputs[0])) for reply in replies] == [50_000] * 3

    play(scenario)


@pytest.mark.parametrize("ragged", [False, True])
def test_requests_of_one_batch_are_answered_each_by_itself(ragged: bool) -> None:
    """Also from threads of the model's that go on after it was called."""
    signature = Signature(SIGNATURE.inputs, SIGNATURE.outputs, batches=False, decoupled=True, ragged=ragged)

    def run(batch: Batch) -> None:
        def answer(row: int, call: TensorCall) -> None:
            count = int(call.inputs["n"][0])
            for number in range(count):
                batch.control.send(row, {"y": np.array([100 * count + number], "float32")})
            batch.control.send(row, None, final=True)

        for row, call in enumerate(batch.calls):
            threading.Thread(target=answer, args=(row, call)).start()

    async def scenario() -> None:
        async with served(signature, run, attached=False) as version:
            pendings = [ask(version, count) for count in (3, 0, 5, 1)]
            version.attach()
            await version.settle()
            work = version.in_thread()
            found = await asyncio.gather(*map(collect, pendings))
            await work
            assert [told(replies) for replies in found] == [[300, 301, 302], [], [500, 501, 502, 503, 504], [100]]
            assert [batch.rows for batch in version.model.batches] == ([4] if ragged else [1] * 4)

    play(scenario)


@pytest.mark.parametrize("after", [0, 2])
def test_an_error_ends_the_answers(after: int) -> None:
    def run(batch: Batch) -> None:
        for _ in range(after):
            batch.control.send(0, {"y": np.zeros(1, "float32")})
        batch.control.send(0, BadRequest("no more"))

    async def scenario() -> None:
        async with served(SIGNATURE, run) as version:
            pending = ask(version, 1)
            await version.settle()
            work = version.in_thread()
            with pytest.raises(ClientError, match="no more"):
                await collect(pending)
            await work

    play(scenario)


@pytest.mark.parametrize("after", [0, 2])
def test_a_model_that_raises_ends_what_has_not_ended(after: int) -> None:
    def run(batch: Batch) -> None:
        for _ in range(after):
            batch.control.send(0, {"y": np.zeros(1, "float32")})
        raise ValueError("no more")

    async def scenario() -> None:
        async with served(SIGNATURE, run) as version:
            pending = ask(version, 1)
            await version.settle()
            work = version.in_thread()
            with pytest.raises(PredictionFailed):
                await collect(pending)
            await work
            assert len(version.model.batches) == 1, "a client would read some answers twice"

    play(scenario)


@pytest.mark.parametrize(
    "answer", [{"z": np.zeros(1)}, {"y": np.zeros(1, "complex64")}, {"y": np.zeros(2_000_000, "float32")}], ids=str
)
def test_what_is_no_answer_ends_the_answers(answer: dict[str, np.ndarray]) -> None:
    def run(batch: Batch) -> None:
        batch.control.send(0, {"y": np.zeros(1, "float32")})
        with pytest.raises(PredictionFailed):
            batch.control.send(0, answer)

    async def scenario() -> None:
        async with served(SIGNATURE, run) as version:
            pending = ask(version, 1)
            await version.settle()
            work = version.in_thread()
            with pytest.raises(PredictionFailed):
                await collect(pending)
            await work

    play(scenario)


def test_who_closes_is_waited_for_no_longer() -> None:
    stopped = threading.Event()

    def run(batch: Batch) -> None:
        while batch.control.send(0, {"y": np.zeros(1, "float32")}):
            pass
        stopped.set()

    async def scenario() -> None:
        async with served(SIGNATURE, run) as version:
            pending = ask(version, 1)
            await version.settle()
            work = version.in_thread()
            answer = await pending
            assert answer.replies is not None
            assert await answer.replies.next() is not None
            answer.replies.close()
            assert await answer.replies.next() is None
            await work
            assert stopped.is_set()

    play(scenario)


def test_an_answer_that_nobody_takes_up_is_closed() -> None:
    def run(batch: Batch) -> None:
        while batch.control.send(0, {"y": np.zeros(1, "float32")}):
            pass

    async def scenario() -> None:
        async with served(SIGNATURE, run) as version:
            pending = ask(version, 1)
            await version.settle()
            work = version.in_thread()
            while not pending.done():
                await asyncio.sleep(0)
            assert not pending.cancel(), "it was answered a moment ago"
            await work

    play(scenario)


def test_a_plain_request_is_answered_by_lines_of_json() -> None:
    def run(batch: Batch) -> None:
        count_up(batch)

    async def scenario() -> None:
        async with served(SIGNATURE, run) as version:
            pending = version.post(b"[3]", "application/json")
            await version.settle()
            work = version.in_thread()
            answer = await pending
            await work
            await version.settle()
            source = answer.source
            assert source is not None
            assert answer.content_type == "application/json"
            lines = b"".join(bytes(part) for part in iter(source.next, None))
            assert source.ended
            assert not source.broken
            source.close()
            assert [orjson.loads(line) for line in lines.splitlines()] == [[float(n)] * 3 for n in range(3)]

    play(scenario)


def test_a_worker_that_dies_breaks_the_answers() -> None:
    async def scenario() -> None:
        async with served(SIGNATURE, count_up) as version:
            pending = ask(version, 1)
            await version.settle()
            assert version.link.listener.collect() == 1
            command = version.link.commands.take()
            slab = version.lane.slabs[command.slab]
            frame = b"12345"
            at = command.out_at
            size = write_frame(slab.bytes_out[at:], [Piece(0, encode_reply_head(Reply(b"")), frame)])
            assert version.link.completions.try_push(
                Completion(command.sequence, slab.index, command.rows, STATUS_CHUNK, at, size)
            )
            version.link.bell.ring()
            answer = await pending
            assert isinstance(answer, Answer)
            assert answer.replies is not None
            version.dispatcher.worker_gone("1", GONE)
            with pytest.raises(WorkerLost, match="it died"):
                await answer.replies.next()

    play(scenario)


@pytest.mark.parametrize("data", [b"\xff" * 16, b"\0" * 16 + b"x" * 48, b"\1" + b"\0" * 15 + b"\xc1" + b"\0" * 47])
def test_a_worker_that_writes_no_frames_is_not_believed(data: bytes) -> None:
    async def scenario() -> None:
        stream = ReplyStream(lambda: None)
        replies = FrameReplies(stream)
        stream.finish(data)
        with pytest.raises(Internal):
            await replies.next()
        assert await replies.next() is None

    play(scenario)


def test_a_stream_that_ends_within_a_frame_is_broken() -> None:
    async def scenario() -> None:
        stream = ReplyStream(lambda: None)
        replies = FrameReplies(stream)
        stream.finish(b"\x40" + b"\0" * 20)
        with pytest.raises(Internal, match="too early"):
            await replies.next()

    play(scenario)
