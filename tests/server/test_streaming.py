"""Streams from a worker: what reaches the clients of a batch, and how they hold and end it."""

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from ringserve.backends.contract import Batch, BatchControl, Reply
from ringserve.protocol.errors import PredictionFailed, RingServeError
from ringserve.protocol.payload import decode_error
from ringserve.server.replies import FLAG_ERROR, FLAG_OVERFLOW
from ringserve.server.streaming import SLOT_BYTES_MIN
from ringserve.shm.link import CHUNK_CREDITS
from tests.server.worker_bench import (
    BYTES,
    LIMIT,
    REGION,
    ROWS,
    TYPED,
    WAIT_S_MAX,
    Client,
    MakeBench,
    Outcome,
    Run,
    benches,
    echo,
    succeeded,
)


@pytest.fixture
def bench() -> Iterator[MakeBench]:
    with benches() as make:
        yield make


def streaming_model(*parts: Sequence[Reply | RingServeError | None], last: bytes = b"") -> Run:
    def run(batch: Batch) -> None:
        for part in parts:
            batch.control.stream(part)
        batch.replies[:] = [Reply(last)] * batch.rows

    return run


def test_parts_reach_their_rows_in_order_under_the_head_of_the_first(bench: MakeBench) -> None:
    first = [Reply(b"a0", "text/plain", 201, "Made", {"x-a": "1"}), None, Reply(b"")]
    second = [Reply(b"a1", "image/png", 500), Reply(b"b0"), Reply(b"c0")]
    one = bench(BYTES, streaming_model(first, second, [None, Reply(b""), Reply(b"c1")], last=b"end"))
    client = Client(one)
    outcomes = one.run(2, 3)
    client.finish()
    assert [client.read_by(row) for row in range(3)] == [b"a0a1", b"b0", b"c0c1"]
    assert client.head_of(0) == (201, "Made", {"x-a": "1", "content-type": "text/plain"})
    assert client.head_of(1) == client.head_of(2) == (200, "", {})
    assert [outcome.body for outcome in outcomes] == [b"end"] * 3


def test_a_part_longer_than_a_chunk_arrives_whole(bench: MakeBench) -> None:
    body = os.urandom(REGION * 3)
    one = bench(BYTES, streaming_model([Reply(body), Reply(b"short")], last=b"x" * (REGION // 2)))
    client = Client(one)
    outcomes = one.run(0, 2)
    client.finish()
    assert client.read_by(0) == body
    assert client.read_by(1) == b"short"
    assert max(client.sizes) <= REGION // 2 // (CHUNK_CREDITS + 1)
    assert [len(outcome.body) for outcome in outcomes] == [REGION // 2] * 2
    assert all(outcome.flags & FLAG_OVERFLOW for outcome in outcomes), "the chunks' slots are not for the last parts"


def test_no_more_chunks_are_on_their_way_than_there_is_credit_for(bench: MakeBench) -> None:
    one = bench(BYTES, streaming_model(*([Reply(b"%d," % number)] for number in range(20))))
    client = Client(one)
    client.may_credit.clear()
    batch = threading.Thread(target=one.run, args=(0, 1))
    batch.start()
    assert client.arrived.acquire(timeout=WAIT_S_MAX)
    batch.join(0.1)
    assert batch.is_alive(), "the model waits for its client"
    assert one.link.completions.taken <= 1
    client.may_credit.set()
    batch.join(WAIT_S_MAX)
    client.finish()
    assert client.read_by(0) == b"".join(b"%d," % number for number in range(20))


def test_credit_that_a_batch_left_open_is_missing_in_the_next(bench: MakeBench) -> None:
    one = bench(BYTES, streaming_model(*([Reply(b"x")] for _ in range(CHUNK_CREDITS))))
    one.run(0, 1)
    batch = threading.Thread(target=one.run, args=(0, 1))
    batch.start()
    batch.join(0.1)
    assert batch.is_alive()
    client = Client(one)
    batch.join(WAIT_S_MAX)
    client.finish()
    assert client.read_by(0) == b"x" * 2 * CHUNK_CREDITS


def test_a_client_that_left_is_sent_nothing_and_others_go_on(bench: MakeBench) -> None:
    anybody: list[bool] = []

    def run(batch: Batch) -> None:
        for leaver in (None, 1, 0):
            if leaver is not None:
                one.cancel(leaver)
            anybody.append(batch.control.stream([Reply(b"a"), Reply(b"b")]))
        echo(batch)

    one = bench(BYTES, run)
    client = Client(one)
    one.run(0, 2)
    client.finish()
    assert (client.read_by(0), client.read_by(1)) == (b"aa", b"b")
    assert anybody == [True, True, False]


def test_a_front_end_that_died_ends_the_wait_for_its_clients(bench: MakeBench) -> None:
    anybody: list[bool] = []

    def run(batch: Batch) -> None:
        for _ in range(CHUNK_CREDITS + 2):
            anybody.append(batch.control.stream([Reply(b"a")]))
            if len(anybody) == CHUNK_CREDITS:
                one.close_front()
        assert batch.control.cancelled(0)
        echo(batch)

    one = bench(BYTES, run)
    one.run(0, 1)
    assert anybody == [True] * CHUNK_CREDITS + [False, False]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (PredictionFailed("cannot be said"), "cannot be said"),
        (Reply(b"x" * (LIMIT + 1)), "max_response_size"),
    ],
)
def test_a_part_that_is_an_error_ends_its_row_only(bench: MakeBench, part: Any, message: str) -> None:
    one = bench(BYTES, streaming_model([Reply(b"a"), Reply(b"b")], [part, Reply(b"c")], [Reply(b"d"), Reply(b"d")]))
    client = Client(one)
    outcomes = one.run(0, 2)
    client.finish()
    assert (client.read_by(0), client.read_by(1)) == (b"a", b"bcd")
    assert outcomes[0].flags == FLAG_ERROR
    assert message in decode_error(outcomes[0].body).message
    assert succeeded(Outcome(outcomes[1].status, outcomes[1].flags, b""))


def test_headers_longer_than_a_chunk_are_an_error_of_their_row(bench: MakeBench) -> None:
    one = bench(BYTES, streaming_model([Reply(b"a", None, 200, "", {"x": "y" * REGION}), Reply(b"b")]))
    client = Client(one)
    outcomes = one.run(0, 2)
    client.finish()
    assert "headers have" in decode_error(outcomes[0].body).message
    assert client.read_by(1) == b"b"


def test_a_batch_without_room_for_chunks_cannot_stream_and_says_so(bench: MakeBench) -> None:
    one = bench(BYTES, streaming_model([Reply(b"a")]), region=SLOT_BYTES_MIN * CHUNK_CREDITS)
    (outcome,) = one.run(0, 1)
    assert outcome.status == 507
    assert "cannot be streamed" in decode_error(outcome.body).message


def test_a_typed_model_cannot_stream(bench: MakeBench) -> None:
    outcomes = bench(TYPED, lambda batch: batch.control.stream([None] * batch.rows) and None).run()
    assert {decode_error(each.body).message for each in outcomes} == {
        "A typed model answers in arrays and does not stream."
    }


def test_a_part_with_a_wrong_count_names_both_numbers(bench: MakeBench) -> None:
    outcomes = bench(BYTES, streaming_model([Reply(b"a")] * 3)).run(0, 2)
    assert "expect: 2, got: 3" in decode_error(outcomes[0].body).message


def test_after_a_part_was_sent_nothing_is_tried_again(bench: MakeBench) -> None:
    def run(batch: Batch) -> None:
        batch.control.stream([Reply(b"a")] * batch.rows)
        raise ValueError

    one = bench(BYTES, run)
    client = Client(one)
    assert {outcome.flags for outcome in one.run()} == {FLAG_ERROR}
    client.finish()
    assert one.model.batches == [8]
    assert client.read_by(3) == b"a"


def test_a_thread_that_outlives_its_batch_cannot_stream_any_more(bench: MakeBench) -> None:
    kept: list[BatchControl] = []

    def run(batch: Batch) -> None:
        kept.append(batch.control)
        echo(batch)

    one = bench(BYTES, run)
    one.run()
    assert kept[0].stream([Reply(b"late")] * ROWS) is False
    assert kept[0].cancelled(0)
    assert one.front.listener.collect() == 0
