"""Rows of one slab: who may have them, what leaves together, and which part of the answers' region is whose."""

import asyncio
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.errors import Internal
from ringserve.protocol.request import Answer, InferRequest
from ringserve.server.inflight import Batch, Fill, Pending, State
from ringserve.server.payloads import BytesEncoder
from ringserve.server.sources import Held
from ringserve.shm.lane import Lane, create_lane
from ringserve.shm.layout import ROW_CANCELLED, ROW_FLAGS, ROW_ID, ROW_PARCEL_BYTES, LaneShape
from ringserve.shm.shm_errors import OutOfSharedMemory

if TYPE_CHECKING:
    from tests.server.conftest import Stage

Play = Callable[..., None]
ROWS, REGION = 6, 1024
ENCODER = BytesEncoder()


class Bench:
    """One slab, filled by hand."""

    def __init__(self, rows: int = ROWS, region: int = REGION) -> None:
        shape = LaneShape(1, rows, (), (), region, region)
        segment = create_lane(shape)
        self.lane = Lane.attach(os.dup(segment.fd), shape)
        segment.close()
        self.loop = asyncio.new_event_loop()
        self.fill = Fill(self.lane.slabs[0])
        self.number = 0

    def pending(self) -> Pending:
        return Pending.begin(self.loop, lambda pending: None)

    def add(self, body: bytes = b"x") -> Pending | None:
        """A request whose body is there; None when there is no room."""
        pending = self.pending()
        self.number += 1
        pending.payload = ENCODER.encode(InferRequest("", "", {}, body))
        return pending if self.fill.try_add(pending, self.number) else None

    def receive(self, body_bytes: int = 1) -> Pending | None:
        """A request whose body is still to come."""
        payload = ENCODER.expect(InferRequest("", "", {}, b""), body_bytes)
        place = self.fill.place(payload.slab_bytes())
        if place is None:
            return None
        pending = self.pending()
        self.number += 1
        payload.open(self.fill.slab, *place, self.number, 0)
        self.fill.enter(pending, place[0], self.number)
        pending.state = State.RECEIVING
        return pending

    def land(self, pending: Pending) -> None:
        pending.state = State.WAITING
        self.fill.ready += 1

    def close(self) -> None:
        self.lane.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def ranges(batches: list[Batch]) -> list[tuple[int, int]]:
    return [(batch.first, len(batch.rows)) for batch in batches]


def all_taken(fill: Fill) -> list[Batch]:
    batches = []
    while fill.ready:
        batches.append(fill.take())
    return batches


def test_a_slab_is_full_when_it_has_no_row_or_no_bytes_left(bench: Bench) -> None:
    for number in range(ROWS):
        assert not bench.fill.is_full
        added = bench.add()
        assert added is not None
        assert added.row == number
    assert bench.fill.is_full
    assert bench.add() is None
    other = Bench()
    first = other.add(bytes(700))
    assert first is not None
    assert first.parcel is None
    assert other.add(bytes(700)) is None, "it fits into a slab, and so waits for the next one"
    other.close()


def test_holes_are_filled_last_one_first_and_then_new_rows(bench: Bench) -> None:
    pendings = [bench.add() for _ in range(4)]
    for number in (1, 2):
        pending = pendings[number]
        assert pending is not None
        bench.fill.punch(pending)
        assert bench.fill.slab.table[number, ROW_FLAGS] == ROW_CANCELLED
    rows = [added.row for added in (bench.add(), bench.receive(), bench.add()) if added is not None]
    assert rows == [2, 1, 4]
    assert bench.fill.slab.table[:5, ROW_FLAGS].tolist() == [0] * 5
    assert len(set(bench.fill.slab.table[:5, ROW_ID].tolist())) == 5


def test_a_slab_that_everybody_left_is_as_good_as_new(bench: Bench) -> None:
    pendings = [bench.add(bytes(200)) for _ in range(3)]
    for pending in pendings:
        assert pending is not None
        bench.fill.punch(pending)
    assert (bench.fill.rows, bench.fill.holes, bench.fill.used_bytes, bench.fill.live) == ([], [], 0, 0)
    again = bench.add(bytes(700))
    assert again is not None
    assert again.row == 0


def test_a_request_that_gets_no_memory_leaves_the_slab_as_it_was(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.add()
    before = (bench.fill.live, bench.fill.ready, bench.fill.used_bytes)

    def none_left(size_bytes: int) -> None:
        raise OutOfSharedMemory("none left")

    with monkeypatch.context() as patched:
        patched.setattr("ringserve.server.payloads.Segment.create_parcel", none_left)
        with pytest.raises(OutOfSharedMemory):
            bench.add(bytes(2000))
    assert (bench.fill.live, bench.fill.ready, bench.fill.used_bytes) == before
    following = bench.add()
    assert following is not None
    assert following.row == 1
    assert ranges(all_taken(bench.fill)) == [(0, 2)]


def test_a_hole_owes_no_parcel(bench: Bench) -> None:
    pendings = [bench.add(), bench.add(bytes(2000)), bench.add()]
    assert bench.fill.slab.table[:3, ROW_PARCEL_BYTES].tolist()[1] > 0
    assert pendings[1] is not None
    bench.fill.punch(pendings[1])
    assert bench.fill.slab.table[:3, ROW_PARCEL_BYTES].tolist() == [0, 0, 0]
    assert pendings[1].parcel is None


steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "receive", "land", "punch", "take", "put back", "end"]), st.integers(0, 99)
    ),
    max_size=40,
)


@given(steps)
def test_batches_of_one_slab_never_share_rows_or_room_for_answers(steps: list[tuple[str, int]]) -> None:
    """And each carries exactly the rows that waited, in order, from one that did to one that did."""
    bench = Bench()
    fill, out, rows = bench.fill, [], []
    waiting: set[Pending] = set()
    arriving: set[Pending] = set()
    for step, number in steps:
        if step in ("add", "receive") and not fill.sealed:
            pending = bench.add() if step == "add" else bench.receive()
            if pending is not None:
                (waiting if step == "add" else arriving).add(pending)
        elif step == "land" and arriving:
            pending = sorted(arriving, key=lambda each: each.row_id)[number % len(arriving)]
            arriving.remove(pending)
            bench.land(pending)
            waiting.add(pending)
        elif step == "punch" and (waiting or arriving):
            pending = sorted(waiting | arriving, key=lambda each: each.row_id)[number % len(waiting | arriving)]
            waiting.discard(pending)
            arriving.discard(pending)
            fill.punch(pending)
        elif step == "take" and fill.ready:
            batch = fill.take()
            carried = [pending for pending in batch.rows if pending is not None]
            assert batch.count == len(carried) > 0
            assert set(carried) <= waiting
            assert batch.rows[0] is not None
            assert batch.rows[-1] is not None
            assert [pending.row for pending in carried] == sorted(pending.row for pending in carried)
            assert all(pending.row - batch.first == batch.rows.index(pending) for pending in carried)
            waiting -= set(carried)
            out.append(batch)
        elif step in ("put back", "end") and out:
            batch = out.pop(number % len(out))
            carried = [pending for pending in batch.rows if pending is not None]
            if step == "put back":
                gone = carried[number % len(carried)]
                gone.cancel()
                fill.put_back(batch)
                waiting |= set(carried) - {gone}
            else:
                fill.live -= batch.count
                for pending in carried:
                    fill.rows[pending.row] = None
                    pending.state = State.OVER
        rows = [range(batch.first, batch.first + len(batch.rows)) for batch in out]
        rooms = sorted((batch.out_at, batch.out_at + batch.out_bytes) for batch in out if batch.out_bytes)
        assert all(0 <= at <= end <= REGION for at, end in rooms)
        assert all(end <= at for (_, end), (at, _) in pairwise(rooms))
        assert len({row for each in rows for row in each}) == sum(map(len, rows))
        assert fill.ready == len(waiting)
        assert fill.live == len(waiting) + len(arriving) + sum(batch.count for batch in out)
        held = {pending for pending in fill.rows if pending is not None}
        assert held == waiting | arriving | {pending for batch in out for pending in batch.rows if pending is not None}
    bench.close()


def test_a_batch_that_is_alone_has_all_the_room_and_others_have_their_share(bench: Bench) -> None:
    bench.add()
    bench.add()
    late = bench.receive()
    bench.add()
    first, second = all_taken(bench.fill)
    assert ranges([first, second]) == [(0, 2), (3, 1)]
    assert first.out_bytes == 512, "two of four"
    assert second.out_bytes == 256, "one of two that will need the rest"
    assert late is not None
    bench.land(late)
    (third,) = all_taken(bench.fill)
    assert (third.out_at, third.out_bytes) == (768, 256)


# ---- who waits for an answer


def test_who_leaves_when_the_answer_is_already_there_lets_go_of_its_memory() -> None:
    """A task is cancelled between its answer and its next step: nobody else can do it."""
    loop, let_go = asyncio.new_event_loop(), []
    pending = Pending.begin(loop, lambda pending: None)
    pending.set_result(Answer(b"", source=Held(b"x", lambda: let_go.append(True))))
    assert not pending.cancel()
    assert let_go == [True]
    assert not pending.cancel()
    assert let_go == [True]
    for each in (Pending.begin(loop, lambda pending: None), Pending.begin(loop, lambda pending: None)):
        each.fail(Internal("mistake"))
        assert not each.cancel()
    loop.close()


def test_a_task_that_is_cancelled_with_its_answer_on_the_way_lets_go_of_the_slab(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringserve.server.replies.DIRECT_BYTES_MIN", 1)
    monkeypatch.setattr("ringserve.server.delivery.DIRECT_BYTES_MIN", 1)

    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()

        async def client() -> Any:
            return await stage.submit(b"x")

        task = asyncio.ensure_future(client())
        await stage.settle()
        worker.work()
        stage.dispatcher._on_bell(stage.dispatcher._links[worker.worker_id])
        assert stage.free() == 3, "the answer lies in the slab"
        task.cancel()
        await stage.settle()
        assert task.cancelled()
        assert stage.free() == 4

    play(scenario)


def test_a_stream_whose_client_is_cancelled_at_its_beginning_is_forsaken(play: Play) -> None:
    """Nobody would take its chunks, and its worker would wait for credit for ever."""

    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()

        async def client() -> Any:
            return await stage.submit(b"x")

        task = asyncio.ensure_future(client())
        await stage.settle()
        assert worker.start()
        assert worker.stream({0: b"part"})
        stage.dispatcher._on_bell(stage.dispatcher._links[worker.worker_id])
        assert worker.slab.table[0, ROW_FLAGS] == 0
        task.cancel()
        await stage.settle()
        assert worker.slab.table[0, ROW_FLAGS] == ROW_CANCELLED
        assert worker.collect_credits() == 4
        await stage.work()
        assert stage.free() == 4

    play(scenario)
