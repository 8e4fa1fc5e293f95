"""Ranges of rows: what leaves while a body is still arriving, what holes become, and who may keep a slab."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ringserve.protocol.errors import NoWorker, QueueFull, WorkerLost
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.inflight import PARCELS_MAX
from ringserve.server.landing import GrowingLanding, Landing, SlabLanding
from ringserve.shm.layout import ROW_ID

if TYPE_CHECKING:
    from tests.server.conftest import DirectedWorker, Stage

Play = Callable[..., None]
OutcomeOf = Callable[..., Any]
TYPED = Signature((TensorSpec("x", "uint8", (4,)),), (TensorSpec("y", "uint8", (4,)),))


@pytest.fixture(autouse=True)
def every_body_lands(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short it is."""
    monkeypatch.setattr("ringserve.server.intake.LANDED_BYTES_MIN", 1)


def landing(stage: "Stage", body_bytes: int = 4) -> Landing:
    made = stage.land(body_bytes)
    assert isinstance(made, SlabLanding)
    return made


def test_rows_leave_before_and_after_one_whose_body_is_still_arriving(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        first = stage.submit(b"one ")
        late = landing(stage)
        others = [stage.submit(b"two "), stage.submit(b"three")]
        workers = [stage.attach(), stage.attach()]
        await stage.work()
        assert [outcome_of(each) for each in (first, *others)] == [
            b"answer to " + x for x in (b"one ", b"two ", b"three")
        ]
        assert sorted(each for worker in workers for each in worker.ranges) == [(0, 1), (2, 2)]
        pending = stage.commit(late, b"late")
        await stage.work()
        assert outcome_of(pending) == b"answer to late"
        assert sorted(each for worker in workers for each in worker.ranges) == [(0, 1), (1, 1), (2, 2)]
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario)


def test_a_full_slab_of_bodies_that_arrive_leaves_row_by_row(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        arriving = [landing(stage) for _ in range(4)]
        answered = []
        for number in (2, 0, 3, 1):
            answered.append(stage.commit(arriving[number], b"no %d" % number))
            await stage.work()
        assert worker.ranges == [(2, 1), (0, 1), (3, 1), (1, 1)]
        assert [outcome_of(each) for each in answered] == [b"answer to no %d" % n for n in (2, 0, 3, 1)]
        assert stage.free() == 4

    play(scenario)


def test_bodies_that_arrived_in_the_meantime_leave_together(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        arriving = [landing(stage) for _ in range(4)]
        pendings = [stage.commit(each, b"%d---" % number) for number, each in enumerate(arriving)]
        worker = stage.attach()
        await stage.work()
        assert worker.ranges == [(0, 4)]
        assert [outcome_of(each) for each in pendings] == [b"answer to %d---" % n for n in range(4)]

    play(scenario)


def test_a_hole_is_filled_by_the_next_arrival(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        pendings = [stage.submit(body) for body in (b"0", b"1", b"2")]
        pendings[1].cancel()
        assert stage.dispatcher.waiting == 2
        filled = stage.submit(b"again")
        assert (filled.row, filled.fill) == (1, pendings[0].fill)
        worker = stage.attach()
        await stage.work()
        assert worker.batches == [[b"0", b"again", b"2"]]
        assert outcome_of(filled) == b"answer to again"

    play(scenario)


def test_the_row_of_a_body_that_will_not_come_is_the_next_arrivals(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        first = stage.submit(b"0")
        landing(stage).abandon()
        assert stage.submit(b"1").row == 1
        first.cancel()
        assert landing(stage)._pending.row == 0  # type: ignore[attr-defined]

    play(scenario)


def test_a_hole_within_a_batch_is_passed_over_by_the_worker(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        pendings = [stage.submit(b"%d" % n) for n in range(4)]
        pendings[2].cancel()
        pendings[0].cancel()
        worker = stage.attach()
        await stage.work()
        assert worker.batches == [[b"1", b"3"]]
        assert worker.ranges == [(1, 3)]
        assert [outcome_of(pendings[n]) for n in (1, 3)] == [b"answer to 1", b"answer to 3"]
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario)


def test_a_hole_that_had_a_parcel_owes_the_worker_none(play: Play, outcome_of: OutcomeOf) -> None:
    """What the dead row's line says of a parcel is true no more."""

    async def scenario(stage: "Stage") -> None:
        pendings = [stage.submit(body) for body in (b"0", b"1" * 5000, b"2" * 5000, b"3")]
        pendings[1].cancel()
        stage.attach()
        await stage.work()
        assert [outcome_of(pendings[n]) for n in (0, 2, 3)] == [b"answer to " + b for b in (b"0", b"2" * 5000, b"3")]

    play(scenario)


def test_a_batch_that_is_put_back_may_have_lost_a_parcel_too(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        pendings = [stage.submit(body) for body in (b"0", b"1" * 5000, b"2" * 5000, b"3")]
        worker = stage.attach()
        await stage.settle()
        pendings[1].cancel()
        stage.kill(worker)
        assert stage.dispatcher.waiting == 3
        stage.attach()
        await stage.work()
        assert [outcome_of(pendings[n]) for n in (0, 2, 3)] == [b"answer to " + b for b in (b"0", b"2" * 5000, b"3")]
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario)


def test_a_slab_carries_only_as_many_parcels_as_a_link_holds(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        for _ in range(PARCELS_MAX + 1):
            stage.submit(bytes(600))
        worker = stage.attach()
        await stage.work()
        assert sorted(map(len, worker.batches)) == [1, PARCELS_MAX]

    play(scenario, rows=PARCELS_MAX + 4, region=512)


def test_two_batches_of_one_slab_answer_into_parts_of_their_own(play: Play, outcome_of: OutcomeOf) -> None:
    """At the same time, in two workers."""

    async def scenario(stage: "Stage") -> None:
        workers = [stage.attach(), stage.attach()]
        pendings = [stage.submit(b"0")]
        landing(stage)
        pendings.append(stage.submit(b"2"))
        await stage.settle()
        commands = [worker.given()[0] for worker in workers]
        assert len({command.slab for command in commands}) == 1
        (one, two) = sorted(commands, key=lambda command: command.out_at)
        assert 0 <= one.out_at <= one.out_at + one.out_bytes <= two.out_at
        assert two.out_at + two.out_bytes <= 4096
        assert min(one.out_bytes, two.out_bytes) >= 1024, "each gets its share"
        for worker in workers:
            assert worker.start()
        for worker in workers[::-1]:
            worker.finish()
        await stage.settle()
        assert [outcome_of(each) for each in pendings] == [b"answer to 0", b"answer to 2"]

    play(scenario)


def test_a_batch_that_comes_back_has_the_room_for_answers_that_it_had(play: Play) -> None:
    """A streamed answer needs some."""

    async def scenario(stage: "Stage") -> None:
        for number in range(4):
            stage.submit(b"%d" % number)
        for _ in range(3):
            worker = stage.attach()
            await stage.settle()
            assert [(command.out_at, command.out_bytes) for command in worker.given()] == [(0, 4096)]
            stage.kill(worker)

    play(scenario)


def test_parts_of_one_slab_that_come_back_have_their_room_each(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.submit(b"0")
        landing(stage)
        stage.submit(b"2")
        for _ in range(3):
            worker = stage.attach()
            await stage.settle()
            one, two = sorted(worker.given(), key=lambda command: command.out_at)
            assert one.out_at + one.out_bytes <= two.out_at
            assert min(one.out_bytes, two.out_bytes) >= 1024
            stage.kill(worker)

    play(scenario)


def test_one_part_of_a_slab_comes_back_and_the_other_is_answered(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        dying, living = stage.attach(), stage.attach()
        pendings = [stage.submit(b"0")]
        landing(stage)
        pendings.append(stage.submit(b"2"))
        await stage.settle()
        assert living.start()
        stage.kill(dying)
        await stage.work()
        assert [outcome_of(each) for each in pendings] == [b"answer to 0", b"answer to 2"]

    play(scenario)


def test_what_comes_back_leaves_first(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        dying = stage.attach()
        for number in range(8):
            stage.submit(b"%d" % number)
        await stage.settle()
        assert len(dying.given()) == 2
        stage.kill(dying)
        worker = stage.attach()
        await stage.work()
        assert worker.batches == [[b"0", b"1", b"2", b"3"], [b"4", b"5", b"6", b"7"]]

    play(scenario)


def test_who_comes_while_others_wait_for_a_slab_waits_behind_them(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        for number in range(5):
            stage.submit(b"%d" % number)
        assert isinstance(stage.land(4), GrowingLanding)
        worker = stage.attach()
        await stage.work()
        assert worker.batches == [[b"%d" % number] for number in range(5)]

    play(scenario, rows=1, slabs=3)


def test_who_waits_for_a_slab_gets_it_when_those_before_have_left_without_an_answer(
    play: Play, outcome_of: OutcomeOf
) -> None:
    async def scenario(stage: "Stage") -> None:
        pendings = [stage.submit(b"%d" % number) for number in range(5)]
        for each in pendings[:3]:
            each.cancel()
        await stage.settle()
        stage.attach()
        await stage.work()
        assert [outcome_of(each) for each in pendings[3:]] == [b"answer to 3", b"answer to 4"]

    play(scenario, rows=1, slabs=3)


def test_who_waits_for_a_slab_gets_one_that_a_slow_client_gave_up(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        slow = [landing(stage) for _ in range(2)]
        pendings = [stage.submit(b"%d" % number) for number in range(3)]
        await stage.settle()
        assert len(worker.given()) == 1, "there is no slab for the others"
        slow[0].abandon()
        await stage.settle()
        assert len(worker.given()) == 2
        slow[1].abandon()
        await stage.work()
        assert [outcome_of(each) for each in pendings] == [b"answer to %d" % n for n in range(3)]
        assert stage.free() == 3

    play(scenario, rows=1, slabs=3)


def test_slow_clients_leave_a_slab_for_the_others(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()
        landings = [stage.land(4) for _ in range(10)]
        kinds = [type(each) for each in landings]
        assert kinds == [SlabLanding] * 3 + [GrowingLanding] * 7
        pending = stage.submit(b"fast")
        await stage.work()
        assert outcome_of(pending) == b"answer to fast"
        for each in landings:
            each.abandon()
        assert stage.free() == 4

    play(scenario, rows=1, slabs=4)


def test_a_slab_with_bodies_that_are_still_arriving_stays_theirs(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()
        slow = landing(stage)
        first = stage.submit(b"first")
        shared = first.fill
        await stage.work()
        assert outcome_of(first) == b"answer to first"
        for number in range(20):
            other = stage.submit(b"%d" % number)
            assert other.fill is not shared
            await stage.work()
            assert stage.slabs() == [0, 1, 2, 3]
        assert stage.free() == 3
        last = stage.commit(slow, b"slow")
        await stage.work()
        assert outcome_of(last) == b"answer to slow"
        assert stage.free() == 4

    play(scenario)


def test_the_queue_counts_a_body_when_it_is_there(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        arriving = [stage.land(4) for _ in range(3)]
        assert stage.dispatcher.waiting == 0
        stage.commit(arriving[0], b"full")
        stage.commit(arriving[1], b"full")
        assert stage.dispatcher.waiting == 2
        with pytest.raises(QueueFull) as refused:
            stage.commit(arriving[2], b"full")
        assert refused.value.retry_after_s == 1
        assert stage.dispatcher.waiting == 2
        with pytest.raises(QueueFull) as refused:
            stage.land(4)
        assert refused.value.retry_after_s == 1
        stage.attach()
        await stage.work()
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario, capacity=2)


def test_a_body_that_arrives_when_no_worker_is_left_is_refused(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        arriving = landing(stage)
        stage.dispatcher.set_serviceable(False)
        with pytest.raises(NoWorker):
            stage.commit(arriving, b"late")
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    play(scenario)


@pytest.mark.parametrize("complete", [True, False])
def test_a_version_may_leave_while_a_body_arrives(play: Play, complete: bool) -> None:
    """Its client is refused, or gone; nothing else happens."""

    async def scenario(stage: "Stage") -> None:
        closed: list[bool] = []
        stage.attach()
        arriving = landing(stage)
        stage.dispatcher.close(lambda: closed.append(True))
        assert closed == [True]
        if complete:
            with pytest.raises(NoWorker):
                stage.commit(arriving, b"late")
        else:
            arriving.memory()[:2] = b"la"
            arriving.advance(2)
            arriving.abandon()

    play(scenario)


def test_row_ids_of_a_slab_are_all_different_whoever_had_its_rows_before(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        seen: set[int] = set()
        for _ in range(3):
            for number in range(4):
                stage.submit(b"%d" % number).cancel() if number == 1 else stage.submit(b"%d" % number)
            landing(stage).abandon()
            await stage.settle()
            assert worker.start()
            command = worker.given()[0]
            ids = worker.slab.table[command.first : command.first + command.rows, ROW_ID].tolist()
            assert len(set(ids)) == len(ids)
            assert not seen & set(ids)
            seen |= set(ids)
            await stage.work()

    play(scenario)


def test_a_dead_workers_rows_are_lost_only_if_it_began_them(play: Play, outcome_of: OutcomeOf) -> None:
    """Of two parts of one slab, in one worker."""

    async def scenario(stage: "Stage") -> None:
        worker: DirectedWorker = stage.attach()
        pendings = [stage.submit(b"0")]
        late = landing(stage)
        pendings.append(stage.submit(b"2"))
        await stage.settle()
        assert [(command.first, command.rows) for command in worker.given()] == [(0, 1), (2, 1)]
        assert worker.start()
        stage.kill(worker)
        stage.attach()
        await stage.work()
        assert isinstance(outcome_of(pendings[0]), WorkerLost)
        assert outcome_of(pendings[1]) == b"answer to 2"
        late.abandon()
        assert stage.free() == 4

    play(scenario)


def test_typed_rows_leave_around_one_that_is_still_arriving(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        before = stage.submit(b"\x01\x02\x03\x04", binary=True)
        arriving = landing(stage)
        after = stage.submit(b"\x05\x06\x07\x08", binary=True)
        await stage.work()
        assert outcome_of(before) == b"\xfe\xfd\xfc\xfb"
        assert outcome_of(after) == b"\xfa\xf9\xf8\xf7"
        late = stage.commit(arriving, b"\xff\xff\xff\x00")
        await stage.work()
        assert outcome_of(late) == b"[0,0,0,255]"
        assert worker.ranges == [(0, 1), (2, 1), (1, 1)]

    play(scenario, signature=TYPED)
