"""From stamps to counters: folding adds up to what counting one by one would have, whenever it happens."""

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.metrics.counts import (
    BATCH_SIZE_BOUNDS,
    DEFAULT,
    NAMED,
    OTHER,
    PHASE_BOUNDS_S,
    PHASES,
    REASON_AT,
    TOTAL,
    VERSION_COUNTS,
    Counts,
    no_counts,
)
from ringserve.server.metrics.meter import (
    HEADS,
    LOOK_BATCHES,
    RECORDS_MAX,
    BatchTimes,
    Meter,
    Responses,
    usual_record,
)
from ringserve.shm.ring import Completion

MS = 1_000_000


def done(began_ns: int, ended_ns: int, items: int, taken_ns: int = 0, executions: int = 1) -> Completion:
    """What a worker says of a batch that it has executed."""
    return Completion(0, 0, items, 0, 0, 0, executions, items, taken_ns, began_ns, ended_ns)


class Bench:
    """A meter over counters of this process, told of times in nanoseconds."""

    def __init__(self) -> None:
        self.part: Counts = no_counts(VERSION_COUNTS)
        self.responses = Responses()
        self.news = 0
        self.meter = Meter(self.part, self.responses, self._on_news)

    def _on_news(self, meter: Meter) -> None:
        self.news += 1

    def batch(self, rows: int) -> BatchTimes:
        """One of which only the size matters."""
        return self.meter.batch(1.0, done(1_000_000_000, 1_000_000_000, rows), 1_000_000_000, rows)


def record(times: BatchTimes, arrived_s: float, written_s: float) -> None:
    """As the short way of a front end does for the usual request."""
    records, number, *_ = times
    records += usual_record(number, arrived_s, written_s)


def naive(stamps: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """One by one: how many of each phase fall into each bucket, and how long each phase took in all."""
    buckets = [[0] * (len(PHASE_BOUNDS_S) + 1) for _ in PHASES]
    totals_ns = [0] * len(PHASES)
    for one in stamps:
        spans = [after - before for before, after in itertools.pairwise(one)] + [one[-1] - one[0]]
        for phase, span_ns in enumerate(spans):
            at = next(
                (i for i, bound in enumerate(PHASE_BOUNDS_S) if span_ns <= round(bound * 1e9)), len(PHASE_BOUNDS_S)
            )
            buckets[phase][at] += 1
            totals_ns[phase] += span_ns
    return buckets, totals_ns


spans = st.integers(0, 70_000_000_000)
requests = st.tuples(spans, spans, spans, st.sampled_from(["usual", "single", "named", "cancelled", "late"]))
batches = st.lists(st.tuples(spans, spans, st.lists(requests, min_size=1, max_size=5), st.booleans()), max_size=6)


def check(bench: Bench, stamps: list[list[int]], usual: int, named: int) -> None:
    part = bench.part
    buckets, totals_ns = naive(stamps)
    assert part["phase"].tolist() == buckets
    assert part["phase_ns"].tolist() == totals_ns
    assert part["phase_ns"][:TOTAL].sum() == part["phase_ns"][TOTAL]
    assert bench.responses.counts == [usual, 0, 0]
    assert part["latency_ns"].sum() == totals_ns[TOTAL]
    assert part["queue_ns"].sum() == totals_ns[0] + totals_ns[1]
    assert part["asked"][NAMED] == named
    assert part["changing"] % 2 == 0


@given(batches)
def test_folding_at_any_time_is_counting_one_by_one(given_batches: list) -> None:  # type: ignore[type-arg]
    bench = Bench()
    stamps: list[list[int]] = []
    later: list[Callable[[], None]] = []
    usual = named = missed = 0
    sent_ns = 400_000_000_000  # every request may have come before, and seconds hold nanoseconds
    for form_ns, execute_ns, rows, fold_now in given_batches:
        began_ns, ended_ns = sent_ns + form_ns, sent_ns + form_ns + execute_ns
        times = bench.meter.batch(sent_ns / 1e9, done(began_ns, ended_ns, len(rows)), ended_ns, len(rows))
        for receive_ns, queue_ns, respond_ns, how in rows:
            complete_ns, written_ns = sent_ns - queue_ns, ended_ns + respond_ns
            arrived_ns = complete_ns - (receive_ns if how in ("single", "named") else 0)
            if how == "cancelled":
                missed += 1
                bench.meter.failed("cancelled", named=False)
                continue
            one = [arrived_ns, complete_ns, sent_ns, began_ns, ended_ns, written_ns]
            stamps.append([round(stamp_ns / 1e9 * 1e9) for stamp_ns in one])  # as exact as seconds are
            if how in ("usual", "late"):
                usual += 1
                stamps_s = arrived_ns / 1e9, written_ns / 1e9
                if how == "late":
                    later.append(partial(record, times, *stamps_s))
                else:
                    record(times, *stamps_s)
            else:
                named += how == "named"
                bench.meter.ended(times, arrived_ns / 1e9, complete_ns / 1e9, written_ns / 1e9, named=how == "named")
        if fold_now:
            bench.meter.fold()
        sent_ns += MS
    bench.meter.fold()
    for write in later:
        write()
        bench.meter.fold()
    bench.meter.fold()
    check(bench, stamps, usual, named)
    assert bench.part["reason"][REASON_AT["cancelled"]] == missed
    assert bench.part["asked"].sum() == len(stamps) + missed
    assert bench.part["batch_rows"] == sum(len(rows) for _, _, rows, _ in given_batches)
    assert bench.part["batch_size"].sum() == len(given_batches)


def test_a_batch_is_counted_by_its_size_once_however_often_it_is_folded() -> None:
    bench = Bench()
    for rows in (1, 2, 3, 5000):
        bench.batch(rows)
        bench.meter.fold()
    bench.meter.fold()
    assert bench.part["batch_size"].tolist() == [1, 1, 1, *[0] * (len(BATCH_SIZE_BOUNDS) - 3), 1]


def test_batches_whose_requests_all_go_another_way_are_counted_too() -> None:
    bench = Bench()
    for _ in range(3 * HEADS):
        bench.batch(2)
    bench.meter.fold()
    assert bench.part["batch_size"].sum() == 3 * HEADS
    assert bench.part["batch_rows"] == 6 * HEADS
    assert bench.part["phase"].sum() == 0


def test_what_a_worker_says_of_its_clock_cannot_spoil_the_sums() -> None:
    for began_ns, ended_ns in ((0, 1), (2**63, 2**63), (3_000_000_000, 2_000_000_000), (1, 2**64 - 1)):
        bench = Bench()
        record(bench.meter.batch(2.0, done(began_ns, ended_ns, 1), 4_000_000_000, 1), 1.0, 5.0)
        bench.meter.fold()
        assert bench.part["phase_ns"][TOTAL] == 4_000_000_000
        assert bench.part["phase_ns"][:TOTAL].sum() == 4_000_000_000
        assert bench.part["phase_ns"].min() >= 0


def test_what_failed_is_counted_by_reason_and_asked_for() -> None:
    bench = Bench()
    bench.meter.failed("queue_full", named=False)
    bench.meter.failed("queue_full", named=True)
    bench.meter.failed("never heard of", named=False)
    bench.meter.because("prediction_failed")
    bench.meter.fold()
    bench.meter.fold()
    assert bench.part["reason"][REASON_AT["queue_full"]] == 2
    assert bench.part["reason"][OTHER] == 1
    assert bench.part["reason"][REASON_AT["prediction_failed"]] == 1
    assert bench.part["asked"][[DEFAULT, NAMED]].tolist() == [2, 1]
    assert bench.part["phase"].sum() == 0


def test_who_folds_hears_of_the_first_news_and_much_of_it_folds_itself() -> None:
    bench = Bench()
    batches = RECORDS_MAX // 4 + 2 * LOOK_BATCHES
    asked = 4 * batches
    for _ in range(batches):
        times = bench.batch(4)
        for _ in range(4):
            record(times, 1.0, 1.0)
    assert bench.news == 2
    assert RECORDS_MAX <= bench.part["asked"][DEFAULT] < asked
    bench.meter.fold()
    assert bench.part["asked"][DEFAULT] == asked
    bench.batch(1)
    assert bench.news == 3


def test_the_last_queue_time_is_that_of_the_last_request() -> None:
    bench = Bench()
    for queue_s in (0.5, 0.25):
        record(bench.meter.batch(2.0, done(3_000_000_000, 4_000_000_000, 1), 5_000_000_000, 1), 2.0 - queue_s, 6.0)
    bench.meter.fold()
    assert bench.part["last_queue_ns"] == 250 * MS
    assert bench.part["last_overhead_ns"] == 2000 * MS  # three seconds away from the front end, one of them executed
    assert bench.part["last_ns"] == 5_000_000_000


def test_responses_are_counted_by_class() -> None:
    responses = Responses()
    part = np.zeros((), [("changing", np.int64), ("status", np.int64, (3,))])
    for status in (200, 404, 500, 204):
        responses.count(status)
    responses.fold(part)
    responses.fold(part)
    assert part["status"].tolist() == [2, 1, 1]


def test_a_meter_of_a_version_that_is_gone_changes_its_counters_no_more_and_still_counts_answers() -> None:
    bench = Bench()
    bench.meter.failed("queue_full", named=False)
    bench.meter.fold()
    before = bench.part.copy()
    bench.meter.let_go()
    bench.meter.failed("queue_full", named=False)
    bench.meter.responses.count(503)
    bench.meter.fold()
    assert bench.part == before
    assert bench.meter.responses.counts == [0, 0, 1]
