"""Answers through a slab: written by a worker, read by the front end, each as it was meant."""

import json
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ringserve.backends.contract import Reply
from ringserve.protocol.errors import Internal, OutOfResources, PredictionFailed, RingServeError
from ringserve.protocol.request import Answer
from ringserve.protocol.tensor import ITEM_BYTES, Signature, TensorSpec
from ringserve.server.replies import (
    CONTENT_TYPES,
    DIRECT_BYTES_MIN,
    FLAG_ERROR,
    FLAG_NOT_COMPUTED,
    FLAG_OVERFLOW,
    MESSAGE_CHARS_MAX,
    WINDOWED_BYTES_MIN,
    Overflow,
    RowMark,
    RowReply,
    read_reply,
    typed_renderer,
    write_replies,
    write_typed_success,
)
from ringserve.server.sources import Held, Windowed
from ringserve.shm.lane import Lane, Slab, create_lane
from ringserve.shm.layout import REPLY_FLAGS, REPLY_ID, REPLY_STATUS, ROW_ID, LaneShape, Tensor
from ringserve.shm.ring import Command
from ringserve.shm.segment import Segment

LIMIT = 1 << 20
ROWS = 6


def lane_of(region: int = 1024, outputs: Sequence[TensorSpec] = ()) -> Lane:
    tensors = tuple(Tensor(spec.name, spec.dtype, spec.shape, spec.row_bytes) for spec in outputs)
    shape = LaneShape(1, ROWS, (), tensors, 0, region)
    segment = create_lane(shape)
    lane = Lane.attach(os.dup(segment.fd), shape)
    segment.close()
    lane.slabs[0].table[:, ROW_ID] = range(100, 100 + ROWS)
    return lane


@pytest.fixture
def slab() -> Iterator[Slab]:
    lane = lane_of()
    yield lane.slabs[0]
    lane.close()


def written(slab: Slab, replies: Sequence[RowReply], limit: int = LIMIT) -> Segment | None:
    """As a batch of the first rows, with the whole region for its answers."""
    return write_replies(slab, Command(0, 0, 0, len(replies), 0, len(slab.bytes_out)), replies, limit)


def read(slab: Slab, line: Sequence[int], overflow: Segment | None) -> Answer | RingServeError:
    """Copied out of the memory it lies in."""
    return read_reply(slab, line, None if overflow is None else Overflow(overflow), None)


def through(slab: Slab, replies: Sequence[Reply | RingServeError]) -> list[Answer | RingServeError]:
    overflow = written(slab, replies)
    lines = slab.table[: len(replies), REPLY_ID:].tolist()
    assert [line[0] for line in lines] == list(range(100, 100 + len(replies)))
    answers = [read(slab, line, overflow) for line in lines]
    if overflow is not None:
        overflow.close()
    return answers


texts = st.text(max_size=8)
replies = st.builds(
    Reply,
    body=st.binary(max_size=400),
    content_type=st.sampled_from(CONTENT_TYPES) | texts,
    status=st.integers(200, 999),
    phrase=texts,
    headers=st.dictionaries(texts, texts, max_size=3),
)
errors = st.builds(PredictionFailed, texts) | st.builds(OutOfResources, texts)


@given(st.lists(replies | errors, min_size=1, max_size=ROWS), st.sampled_from([0, 64, 700, 8192]))
def test_any_replies_come_out_as_they_went_in(sent: list[Reply | RingServeError], region: int) -> None:
    """In a slab with room for all of them, for some, or for none."""
    lane = lane_of(region)
    for reply, answer in zip(sent, through(lane.slabs[0], sent), strict=True):
        if isinstance(reply, RingServeError):
            assert type(answer) is type(reply)
            assert (answer.message, answer.http_status) == (reply.message, reply.http_status)
            continue
        assert isinstance(answer, Answer)
        said = {name.lower(): value for name, value in (answer.headers or {}).items()}
        assert (bytes(answer.body), answer.status, answer.phrase) == (reply.body, reply.status, reply.phrase)
        assert (answer.content_type or said.get("content-type")) == said.get("content-type", reply.content_type)
        assert reply.headers.items() <= (answer.headers or {}).items()
    lane.close()


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_a_plain_answer_needs_no_head(slab: Slab, content_type: str | None) -> None:
    assert through(slab, [Reply(b"body", content_type)]) == [Answer(b"body", content_type)]


def test_only_what_does_not_fit_goes_into_the_parcel(slab: Slab) -> None:
    sent = [Reply(b"a" * 600), Reply(b"b" * 600), Reply(b"c" * 64)]
    overflow = written(slab, sent)
    assert overflow is not None
    assert [bool(flags & FLAG_OVERFLOW) for flags in slab.table[:3, REPLY_FLAGS].tolist()] == [False, True, False]
    assert overflow.size_bytes == 640
    overflow.close()


def test_an_announced_parcel_that_did_not_come_is_our_mistake(slab: Slab) -> None:
    overflow = written(slab, [Reply(b"a" * 5000)])
    assert overflow is not None
    overflow.close()
    answer = read(slab, slab.table[0, REPLY_ID:].tolist(), None)
    assert isinstance(answer, Internal)


def test_an_answer_over_the_limit_is_replaced_by_an_error(slab: Slab) -> None:
    assert written(slab, [Reply(b"x" * 101), Reply(b"y" * 100)], 100) is None
    first, second = (read(slab, line, None) for line in slab.table[:2, REPLY_ID:].tolist())
    assert isinstance(first, RingServeError)
    assert first.http_status == 507
    assert first.message == "The answer has 101 bytes; the limit max_response_size is 100 bytes."
    assert second == Answer(b"y" * 100)


@pytest.mark.parametrize("length", [MESSAGE_CHARS_MAX, MESSAGE_CHARS_MAX + 1, 10**6])
def test_a_message_is_cut_where_it_says_no_more(slab: Slab, length: int) -> None:
    (answer,) = through(slab, [PredictionFailed("é" * length)])
    assert isinstance(answer, PredictionFailed)
    assert answer.message == "é" * MESSAGE_CHARS_MAX


def test_text_that_is_no_unicode_does_not_end_the_worker(slab: Slab) -> None:
    first, second = through(slab, [PredictionFailed("a\ud800"), Reply(b"x", None, 200, "", {"h": "\ud800"})])
    assert isinstance(first, PredictionFailed)
    assert first.message == "a?"
    assert second == Answer(b"x", None, 200, "", {"h": "?"})


@pytest.mark.parametrize(
    ("body_bytes", "region", "kind"),
    [
        (DIRECT_BYTES_MIN - 1, 1 << 20, None),
        (DIRECT_BYTES_MIN, 1 << 20, Held),
        (DIRECT_BYTES_MIN, 64, Held),
        (WINDOWED_BYTES_MIN + 1, 64, Windowed),
    ],
)
def test_a_long_answer_stays_where_it_is_until_it_is_sent(body_bytes: int, region: int, kind: type | None) -> None:
    """In the slab, whose row is held for it, or in the parcel, which is."""
    lane, body, held = lane_of(region), os.urandom(body_bytes), 0
    segment = written(lane.slabs[0], [Reply(body), Reply(b"short")], 1 << 30)
    overflow = None if segment is None else Overflow(segment)

    def hold() -> Callable[[], None]:
        nonlocal held
        held += 1
        return let_go

    def let_go() -> None:
        nonlocal held
        held -= 1

    answers = [read_reply(lane.slabs[0], line, overflow, hold) for line in lane.slabs[0].table[:2, REPLY_ID:].tolist()]
    answer, short = answers
    assert short == Answer(b"short")
    assert isinstance(answer, Answer)
    assert held == (kind is Held and region > body_bytes)
    if overflow is not None:
        overflow.drop()
    if kind is None:
        assert answer == Answer(body)
    else:
        source = answer.source
        assert source is not None
        assert isinstance(source, kind)
        found = b"".join(bytes(part) for part in iter(source.next, None))
        assert (found == body, len(answer.body)) == (True, 0)
        assert segment is None or segment.fd >= 0
        source.close()
    assert held == 0
    assert segment is None or segment.fd == -1, "the last one closes the parcel"
    lane.close()


def test_without_a_hold_a_long_answer_is_copied_out() -> None:
    lane, body = lane_of(1 << 20), os.urandom(DIRECT_BYTES_MIN)
    written(lane.slabs[0], [Reply(body)])
    answer = read(lane.slabs[0], lane.slabs[0].table[0, REPLY_ID:].tolist(), None)
    assert answer == Answer(body)
    lane.close()


@given(st.binary(max_size=40), st.integers(0, 3), st.integers(0, 40))
@example(b"\x92\xa1\xff\xa0", 1, 0)
@example(b"\x93\xcc\xc8\xa1\xff\x80", 0, 6)
def test_a_broken_reply_is_an_error_never_a_crash(garbage: bytes, flag: int, head_bytes: int) -> None:
    lane = lane_of(64)
    slab = lane.slabs[0]
    slab.bytes_out[: len(garbage)] = garbage
    line = [100, 200, (0, FLAG_ERROR, 77, FLAG_ERROR | 3)[flag], 0, head_bytes, 0, len(garbage), 0]
    answer = read(slab, line, None)
    assert isinstance(answer, Answer | RingServeError)
    lane.close()


def test_a_typed_batch_succeeds_with_its_own_ids(slab: Slab) -> None:
    slab.table[:, REPLY_ID:] = 9
    write_typed_success(slab, 1, 4)
    assert slab.table[1:5, REPLY_ID].tolist() == [101, 102, 103, 104]
    assert slab.table[1:5, REPLY_STATUS].tolist() == [200] * 4
    assert slab.table[1:5, REPLY_FLAGS].tolist() == [0] * 4
    assert slab.table[(0, 5), REPLY_ID].tolist() == [9, 9], "rows of other batches"


@given(st.integers(0, ROWS - 1), st.integers(0, 5), st.sampled_from([0, 64, 192, 640]), st.data())
def test_a_batch_writes_into_its_own_rows_and_its_own_bytes_only(
    first: int, out_lines: int, out_bytes: int, data: st.DataObject
) -> None:
    lane = lane_of(1024)
    slab = lane.slabs[0]
    count, out_at = data.draw(st.integers(0, ROWS - first)), out_lines * 64
    sent = data.draw(st.lists(replies | errors, min_size=count, max_size=count))
    slab.table[:, REPLY_ID:] = 9
    slab.bytes_out[:] = b"\xaa" * 1024
    overflow = write_replies(slab, Command(0, 0, first, count, out_at, out_bytes), sent, LIMIT)
    assert bytes(slab.bytes_out[:out_at]) == b"\xaa" * out_at
    assert bytes(slab.bytes_out[out_at + out_bytes :]) == b"\xaa" * (1024 - out_at - out_bytes)
    ids = [100 + row if first <= row < first + count else 9 for row in range(ROWS)]
    assert slab.table[:, REPLY_ID].tolist() == ids
    for row, reply in enumerate(sent, first):
        answer = read(slab, slab.table[row, REPLY_ID:].tolist(), overflow)
        if isinstance(reply, Reply):
            assert isinstance(answer, Answer)
            assert bytes(answer.body) == reply.body
        else:
            assert type(answer) is type(reply)
    if overflow is not None:
        overflow.close()
    lane.close()


def test_rows_without_bytes_say_what_they_are_in_their_lines(slab: Slab) -> None:
    assert written(slab, [RowMark.IN_ARRAYS, RowMark.NOT_COMPUTED, PredictionFailed("no")]) is None
    assert slab.table[:2, REPLY_STATUS].tolist() == [200, 504]
    assert slab.table[:3, REPLY_FLAGS].tolist() == [0, FLAG_NOT_COMPUTED, FLAG_ERROR]


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES.keys() - {"bfloat16"}))
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_a_typed_row_reads_as_its_json_value(dtype: str, shape: tuple[int, ...]) -> None:
    spec = TensorSpec("y", dtype, shape)
    lane = lane_of(64, [spec])
    slab = lane.slabs[0]
    slab.outputs[0][2] = np.ones(shape, dtype)
    assert json.loads(typed_renderer(Signature((), (spec,)))(slab, 2)) == np.ones(shape, dtype).tolist()
    lane.close()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_json_has_no_number_for_is_null(dtype: str) -> None:
    spec = TensorSpec("y", dtype, (4,))
    lane = lane_of(64, [spec])
    slab = lane.slabs[0]
    slab.outputs[0][0] = [np.nan, np.inf, -np.inf, 0.5]
    assert typed_renderer(Signature((), (spec,)))(slab, 0) == b"[null,null,null,0.5]"
    lane.close()


def test_several_outputs_are_an_object_by_name() -> None:
    specs = (TensorSpec("label", "int64", ()), TensorSpec("scores", "float16", (2,)))
    lane = lane_of(64, specs)
    slab = lane.slabs[0]
    slab.outputs[0][1], slab.outputs[1][1] = 7, [0.5, np.nan]
    assert typed_renderer(Signature((), specs))(slab, 1) == b'{"label":7,"scores":[0.5,null]}'
    lane.close()
