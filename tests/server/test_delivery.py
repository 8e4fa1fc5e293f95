"""From a finished batch to its clients: held while they read, let go when they have, streamed as fast as they take it."""

import asyncio
import gc
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ringserve.backends.contract import Reply
from ringserve.protocol.errors import Internal, PredictionFailed, RingServeError, WorkerLost
from ringserve.protocol.request import Answer, Source
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.replies import STATUS_CHUNK
from ringserve.server.sources import Held, Windowed
from ringserve.shm.layout import ROW_CANCELLED, ROW_FLAGS
from ringserve.shm.link import CHUNK_CREDITS
from ringserve.shm.ring import Completion

if TYPE_CHECKING:
    from tests.server.conftest import DirectedWorker, Stage

Play = Callable[..., None]
OutcomeOf = Callable[..., Any]
TYPED = Signature((TensorSpec("x", "uint8", (4,)),), (TensorSpec("y", "uint8", (4,)),))


@pytest.fixture
def every_answer_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short it is."""
    monkeypatch.setattr("ringserve.server.replies.DIRECT_BYTES_MIN", 1)
    monkeypatch.setattr("ringserve.server.delivery.DIRECT_BYTES_MIN", 1)


def source_of(future: "asyncio.Future[Answer]") -> Source:
    source = future.result().source
    assert source is not None
    return source


async def answered(stage: "Stage", *bodies: bytes, **fields: Any) -> list["asyncio.Future[Answer]"]:
    pendings: list[asyncio.Future[Answer]] = [stage.submit(body, **fields) for body in bodies]
    await stage.work()
    return pendings


# ---- held


@pytest.mark.usefixtures("every_answer_is_held")
def test_an_answer_is_sent_from_its_slab_which_is_free_when_all_of_its_answers_have_left(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()
        first, second = map(source_of, await answered(stage, b"1", b"2"))
        assert isinstance(first, Held)
        assert stage.free() == 3
        assert [bytes(part) for part in (first.next(), second.next()) if part] == [b"answer to 1", b"answer to 2"]
        first.close()
        assert stage.free() == 3
        second.close()
        assert stage.free() == 4
        assert stage.slabs() == [0, 1, 2, 3]

    play(scenario)


@pytest.mark.usefixtures("every_answer_is_held")
def test_an_answer_that_is_forgotten_frees_its_slab_at_once(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()
        await answered(stage, b"1")
        gc.disable()  # on a busy front end, the collector of cycles comes late
        try:
            stage.pendings.clear()
            assert stage.free() == 4
        finally:
            gc.enable()

    play(scenario)


@pytest.mark.usefixtures("every_answer_is_held")
def test_a_held_slab_is_not_written_to(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()
        (held,) = map(source_of, await answered(stage, b"kept"))
        for number in range(20):
            for future in await answered(stage, b"%d" % number, b"more"):
                source = future.result().source
                if source is not None:
                    source.close()
        part = held.next()
        assert part is not None
        assert bytes(part) == b"answer to kept"
        held.close()
        del part
        assert stage.free() == 4

    play(scenario)


@pytest.mark.usefixtures("every_answer_is_held")
def test_slow_readers_keep_all_slabs_but_two_and_the_rest_is_copied(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()
        kinds = []
        futures = []
        for number in range(6):
            futures += await answered(stage, b"%d" % number)
            kinds.append(type(futures[-1].result().source))
        assert kinds == [Held] * 3 + [type(None)] * 3
        assert stage.free() == 2
        assert [outcome_of(each) for each in futures] == [b"answer to %d" % number for number in range(6)]
        assert stage.free() == 5

    play(scenario, slabs=5)


@pytest.mark.usefixtures("every_answer_is_held")
def test_long_answers_beside_the_slab_share_a_parcel_that_is_closed_with_the_last(
    play: Play, outcome_of: OutcomeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need no slab, which is free at once."""
    monkeypatch.setattr("ringserve.server.replies.WINDOWED_BYTES_MIN", 2000)

    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        worker.reply = lambda body: Reply(body * int(body))
        futures = await answered(stage, b"1000", b"1200", b"0003")
        sources = [future.result().source for future in futures]
        assert list(map(type, sources)) == [Windowed, Windowed, Held]
        assert stage.free() == 3, "the last one fits into it"
        assert outcome_of(futures[2]) == b"0003" * 3
        assert stage.free() == 4
        windowed = sources[0]
        assert isinstance(windowed, Windowed)
        fd = windowed._windows._fd
        assert outcome_of(futures[0]) == b"1000" * 1000
        assert outcome_of(futures[1]) == b"1200" * 1200
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    play(scenario, region=1024)


@pytest.mark.usefixtures("every_answer_is_held")
def test_an_answer_that_is_being_sent_survives_its_worker_and_its_version(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        closed: list[bool] = []
        worker = stage.attach()
        (held,) = map(source_of, await answered(stage, b"1"))
        stage.kill(worker)
        stage.dispatcher.close(lambda: closed.append(True))
        assert closed == [True]
        part = held.next()
        assert part is not None
        assert bytes(part) == b"answer to 1"
        held.close()

    play(scenario)


@pytest.mark.usefixtures("every_answer_is_held")
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_typed_answer_as_bytes_is_sent_from_its_array(play: Play, outcome_of: OutcomeOf, outputs: int) -> None:
    """Several arrays are put together first."""
    specs = [TensorSpec(f"y{number}", "uint8", (4,)) for number in range(outputs)]
    inputs = [TensorSpec(f"x{number}", "uint8", (4,)) for number in range(outputs)]

    async def scenario(stage: "Stage") -> None:
        stage.attach()
        body = bytes(range(4 * outputs))
        (future,) = await answered(stage, body, binary=True)
        assert (future.result().source is not None) == (outputs == 1)
        assert outcome_of(future) == bytes(255 - byte for byte in body)
        assert stage.free() == 4

    play(scenario, signature=Signature(tuple(inputs), tuple(specs)))


def test_what_is_short_is_copied_and_its_slab_free(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()
        (future,) = await answered(stage, b"1")
        assert future.result() == Answer(b"answer to 1")
        assert stage.free() == 4

    play(scenario)


# ---- one by one


def test_a_mismatched_row_fails_and_the_others_of_its_batch_are_answered(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        pendings = [stage.submit(b"%d" % number) for number in range(3)]
        await stage.settle()
        assert worker.start()
        worker.slab.table[1, 0] += 7
        worker.finish()
        await stage.settle()
        assert [type(outcome_of(each)) for each in pendings] == [bytes, Internal, bytes]
        assert stage.dispatcher.mismatched_replies == 1
        assert stage.free() == 4

    play(scenario)


def test_a_typed_row_that_fails_fails_alone(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        worker.reply = lambda body: PredictionFailed("no") if body[0] == 1 else Reply(b"")
        pendings = [stage.submit(bytes([number] * 4)) for number in range(3)]
        await stage.work()
        assert [outcome_of(pendings[number]) for number in (0, 2)] == [b"[255,255,255,255]", b"[253,253,253,253]"]
        assert isinstance(outcome_of(pendings[1]), PredictionFailed)

    play(scenario, signature=TYPED)


# ---- streamed


async def begun(stage: "Stage", *bodies: bytes) -> tuple["DirectedWorker", list["asyncio.Future[Answer]"]]:
    """A worker that has begun with these."""
    worker = stage.attach()
    futures: list[asyncio.Future[Answer]] = [stage.submit(body) for body in bodies]
    await stage.settle()
    assert worker.start()
    return worker, futures


def read(source: Source) -> bytes:
    return b"".join(bytes(part) for part in iter(source.next, None))


def test_a_row_streams_while_others_of_its_batch_are_answered_at_the_end(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker, futures = await begun(stage, b"0", b"1", b"2")
        assert worker.stream({0: b"a", 2: b"b"})
        await stage.settle()
        assert [future.done() for future in futures] == [True, False, True]
        assert futures[0].result().headers == {"content-type": "text/plain"}
        assert worker.stream({2: b"c"})
        await stage.settle()
        worker.finish()
        await stage.settle()
        first, third = source_of(futures[0]), source_of(futures[2])
        assert [read(first), read(third)] == [b"aanswer to 0", b"bcanswer to 2"]
        assert (first.length, first.ended, first.broken) == (None, True, False)
        assert outcome_of(futures[1]) == b"answer to 1"
        assert stage.free() == 4

    play(scenario)


def test_credit_comes_back_in_order_when_all_clients_of_a_chunk_have_taken_their_pieces(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker, futures = await begun(stage, b"0", b"1")
        for _ in range(CHUNK_CREDITS):
            assert worker.stream({0: b"x", 1: b"y"})
            await stage.settle()
        assert not worker.stream({0: b"x"}), "nobody has taken anything"
        quick, slow = map(source_of, futures)
        read(quick)
        assert worker.collect_credits() == 0
        slow.next()
        assert worker.collect_credits() == 1
        read(slow)
        assert worker.collect_credits() == CHUNK_CREDITS
        assert worker.stream({0: b"x"})
        await stage.settle()
        assert worker.stream({1: b"y"})
        await stage.settle()
        read(slow)
        assert worker.collect_credits() == CHUNK_CREDITS - 2, "the one before it is still on its way"
        read(quick)
        assert worker.collect_credits() == CHUNK_CREDITS

    play(scenario)


def test_a_stream_whose_client_leaves_is_flagged_and_its_chunks_are_paid(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker, futures = await begun(stage, b"0", b"1")
        assert worker.stream({0: b"x", 1: b"y"})
        await stage.settle()
        leaves, stays = map(source_of, futures)
        leaves.close()
        assert worker.slab.table[:2, ROW_FLAGS].tolist() == [ROW_CANCELLED, 0]
        assert worker.stream({0: b"too late", 1: b"z"})
        await stage.settle()
        read(stays)
        assert worker.collect_credits() == CHUNK_CREDITS
        worker.finish()
        await stage.settle()
        assert read(stays) == b"answer to 1"
        assert read(leaves) == b""
        assert stage.free() == 4

    play(scenario)


def test_a_chunk_for_a_client_that_left_before_is_paid_at_once(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker, futures = await begun(stage, b"0")
        futures[0].cancel()
        assert worker.stream({0: b"x"})
        await stage.settle()
        assert worker.collect_credits() == CHUNK_CREDITS
        worker.finish()
        await stage.settle()
        assert stage.free() == 4

    play(scenario)


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_a_stream_breaks_off_when_its_worker_dies_or_its_model_raises(play: Play, how: str) -> None:
    async def scenario(stage: "Stage") -> None:
        worker, futures = await begun(stage, b"0")
        assert worker.stream({0: b"some"})
        await stage.settle()
        source = source_of(futures[0])
        if how == "dies":
            stage.kill(worker)
        else:
            worker.reply = lambda body: PredictionFailed("no")
            worker.finish()
            await stage.settle()
        assert (source.ended, source.broken) == (True, True)
        assert read(source) == b"some"
        source.close()
        assert stage.free() == 4

    play(scenario)


def test_what_a_dead_worker_streamed_is_read_and_pays_nobody(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker, futures = await begun(stage, b"0", b"1")
        assert worker.stream({0: b"some"})
        stage.kill(worker)
        assert read(source_of(futures[0])) == b"some"
        assert isinstance(futures[1].exception(), WorkerLost)

    play(scenario)


@pytest.mark.parametrize("garbage", ["a row that is not", "a head that is none", "not a frame"])
def test_a_worker_that_writes_a_chunk_of_garbage_is_believed_no_more(play: Play, garbage: str) -> None:
    async def scenario(stage: "Stage") -> None:
        reported: list[str] = []
        stage.dispatcher.on_stuck = reported.append
        worker, futures = await begun(stage, b"0")
        slab, command = worker.slab, worker.given()[0]
        frame = {
            "a row that is not": bytes([9, 0, 0, 0]) + bytes(8),
            "a head that is none": bytes([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 255]),
            "not a frame": b"short",
        }[garbage]
        slab.bytes_out[: len(frame)] = frame
        assert worker.link.completions.try_push(
            Completion(command.sequence, command.slab, 1, STATUS_CHUNK, 0, len(frame))
        )
        worker.link.bell.ring()
        await stage.settle()
        assert reported == [worker.worker_id]
        stage.kill(worker)
        error: BaseException | None = futures[0].exception()
        assert isinstance(error, RingServeError)
        assert stage.free() == 4

    play(scenario)


def test_abandoning_breaks_off_what_streams(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker, futures = await begun(stage, b"0")
        assert worker.stream({0: b"some"})
        await stage.settle()
        stage.dispatcher.abandon(PredictionFailed("bye"))
        source = source_of(futures[0])
        assert (source.ended, source.broken) == (True, True)
        worker.finish()
        await stage.settle()
        assert source.broken, "it says so to the end"
        assert stage.free() == 4

    play(scenario)
