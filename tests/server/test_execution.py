"""One batch in a worker: which rows are computed, and what each is answered."""

import time
from collections.abc import Iterator

import pytest

from ringserve.backends.contract import Batch, Reply
from ringserve.protocol.errors import OutOfResources
from ringserve.protocol.payload import decode_error
from ringserve.protocol.tensor import Signature
from ringserve.server.replies import FLAG_ERROR, FLAG_NOT_COMPUTED
from ringserve.shm.layout import (
    ROW_CANCELLED,
    ROW_DEADLINE_NS,
    ROW_ID,
)
from tests.server.worker_bench import (
    BYTES,
    REGION,
    ROWS,
    TYPED,
    MakeBench,
    Outcome,
    Run,
    benches,
    double,
    echo,
    refuse,
    succeeded,
)


@pytest.fixture
def bench() -> Iterator[MakeBench]:
    with benches() as make:
        yield make


@pytest.mark.parametrize(("signature", "run"), [(BYTES, echo), (TYPED, double)], ids=["bytes", "typed"])
class TestDeadRows:
    def test_a_batch_computes_its_own_rows_only(self, bench: MakeBench, signature: Signature, run: Run) -> None:
        one = bench(signature, run)
        assert all(map(succeeded, one.run(3, 4)))
        assert one.model.batches == [4]

    def test_cancelled_and_expired_rows_are_not_computed(
        self, bench: MakeBench, signature: Signature, run: Run
    ) -> None:
        one = bench(signature, run)
        one.cancel(1, 4)
        one.slab.table[5, ROW_DEADLINE_NS] = time.monotonic_ns() - 1
        one.slab.table[6, ROW_DEADLINE_NS] = time.monotonic_ns() + 10**12
        outcomes = one.run()
        assert one.model.batches == [5]
        for row, outcome in enumerate(outcomes):
            if row in (1, 4, 5):
                assert outcome == Outcome(504, FLAG_NOT_COMPUTED, b"")
            else:
                assert succeeded(outcome)
                answer = one.slab.outputs[0][row].tolist() if signature.typed else outcome.body
                assert answer == ([2 * row, 2 * row] if signature.typed else str(row).encode())
        if signature.typed:
            assert one.slab.outputs[0][4].tolist() == [-1, -1]

    def test_a_batch_that_nobody_wants_is_not_run(self, bench: MakeBench, signature: Signature, run: Run) -> None:
        one = bench(signature, run)
        one.cancel(*range(ROWS))
        assert one.run() == [Outcome(504, FLAG_NOT_COMPUTED, b"")] * ROWS
        assert one.model.batches == []

    def test_one_offender_fails_alone(self, bench: MakeBench, signature: Signature, run: Run) -> None:
        one = bench(signature, refuse(5, run))
        one.cancel(2)
        outcomes = one.run(1, 7)
        for row, outcome in enumerate(outcomes, 1):
            if row == 5:
                assert (outcome.status, outcome.flags) == (503, FLAG_ERROR)
                assert decode_error(outcome.body).message == "Prediction failed"
            elif row == 2:
                assert outcome.flags == FLAG_NOT_COMPUTED
            elif signature.typed:
                assert one.slab.outputs[0][row].tolist() == [2 * row, 2 * row]
            else:
                assert outcome.body == str(row).encode()

    def test_what_failed_is_logged_once(
        self, bench: MakeBench, signature: Signature, run: Run, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench(signature, refuse(5, run)).run()
        assert caplog.text.count("Traceback") == 1
        assert "1 of 8 rows failed, after 6 more calls" in caplog.text

    def test_without_time_for_it_nobody_is_tried_apart(self, bench: MakeBench, signature: Signature, run: Run) -> None:
        one = bench(signature, refuse(5, run), retry_s_max=0.0)
        assert {outcome.status for outcome in one.run()} == {503}
        assert one.model.batches == [8]


def test_a_hole_in_a_batch_may_hold_anything(bench: MakeBench) -> None:
    one = bench(BYTES, echo)
    one.slab.table[3, :8] = (5, 0, ROW_CANCELLED, 2**40, 17, 2**50, 3, 0)
    one.slab.table[3, ROW_ID] = 103
    outcomes = one.run()
    assert outcomes[3].flags == FLAG_NOT_COMPUTED
    assert outcomes[4].body == b"4"


def test_a_row_that_is_cancelled_while_it_runs_is_flagged(bench: MakeBench) -> None:
    seen: list[bool] = []

    def run(batch: Batch) -> None:
        seen.extend(batch.control.cancelled(row) for row in range(batch.rows))
        one.cancel(6)
        seen.extend(batch.control.cancelled(row) for row in range(batch.rows))
        echo(batch)

    one = bench(BYTES, run)
    one.cancel(1)
    one.run(first=1, rows=6)
    assert seen == [False] * 5 + [False, False, False, False, True], "row 1 is not among the five that run"


def test_a_count_that_is_wrong_names_both_numbers_and_is_not_tried_again(bench: MakeBench) -> None:
    one = bench(BYTES, lambda batch: batch.replies.append(Reply(b"one")))
    outcomes = one.run()
    assert {decode_error(each.body).message for each in outcomes} == {
        "number of batch response mismatched, expect: 8, got: 1."
    }
    assert one.model.batches == [8]


@pytest.mark.parametrize(
    "raised", [MemoryError(), SystemExit(3), KeyboardInterrupt(), OutOfResources("Out of resources")]
)
def test_whatever_a_model_raises_the_rows_are_answered(bench: MakeBench, raised: BaseException) -> None:
    def run(batch: Batch) -> None:
        raise raised

    assert {outcome.flags for outcome in bench(BYTES, run).run()} == {FLAG_ERROR}


def test_answers_without_memory_for_them_are_errors(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    from ringserve.shm.segment import Segment
    from ringserve.shm.shm_errors import OutOfSharedMemory

    def nothing_left(size_bytes: int) -> Segment:
        raise OutOfSharedMemory(f"{size_bytes} bytes")

    def run(batch: Batch) -> None:
        batch.replies[:] = [Reply(b"x" * REGION)] * batch.rows

    monkeypatch.setattr(Segment, "create_parcel", nothing_left)
    assert {outcome.status for outcome in bench(BYTES, run).run()} == {507}
