"""What a front end measures of every request, at the price of 24 bytes, and how that gets into the counters.

A request of the usual kind costs two clock readings that are there anyway (when it came, when its answer was written) and one
record: those two, and the number of its batch. Some thousand records are then taken apart by NumPy, for 0.06 µs each, where adding to
counters one by one would take several. Bytes, not lists: a list keeps every number as an object, and making, keeping and dropping
those costs more than all the rest.

    stamps:   arrived    complete     sent     began     ended     written       of CLOCK_MONOTONIC; seconds until they are folded
    phases:       receive      queue  batch_form  execute    respond

In the phases are the requests that a worker has executed and whose answer was written to its end, whatever its status was. All
others are counted by the reason why they are not.
"""

import itertools
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

import numpy as np

from ringserve.server.metrics.counts import (
    BATCH_SIZE_BOUNDS,
    DEFAULT,
    NAMED,
    OTHER,
    PHASE_BOUNDS_S,
    PHASES,
    QUEUE,
    REASON_AT,
    REASONS,
    RECEIVE,
    TOTAL,
    Counts,
    no_counts,
    status_class,
)

# What a request keeps of its batch: where the records of usual requests go; its number; when it left (in seconds), when its execution
# began and ended (in nanoseconds).
BatchTimes = tuple[bytearray, int, float, int, int]
# A record: the number of the batch, when the request came, when its answer was written.
_RECORD = np.dtype([("number", np.int64), ("arrived_s", np.float64), ("written_s", np.float64)])
usual_record = Struct("<qdd").pack
# A batch: when it left, when its execution began and ended, how many requests it had.
_HEAD = np.dtype([("sent_s", np.float64), ("began_ns", np.int64), ("ended_ns", np.int64), ("rows", np.int64)])
_pack_head = Struct("<dqqq").pack_into
_HEAD_BYTES = _HEAD.itemsize

# After every so many batches: are there enough records to make a fold worth its while? What it costs apart from them, mostly because
# nothing of it is in the cache, is then a tenth; and it takes less than half a millisecond.
LOOK_BATCHES, RECORDS_MAX, SINGLES_MAX = 32, 4000, 1024
# So many batches are remembered: a usual request is written in the turn of the loop that follows the one in which its batch came
# back, and not so many come back in one.
HEADS = 4096
BATCHES_MAX = HEADS // 2

_PHASE_BOUNDS_NS = np.array([round(bound * 1e9) for bound in PHASE_BOUNDS_S])
_BUCKETS = len(PHASE_BOUNDS_S) + 1
_PHASE_OFFSETS = (np.arange(len(PHASES)) * _BUCKETS)[:, np.newaxis]
_SIZE_BOUNDS = np.array(BATCH_SIZE_BOUNDS)

Ns = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Seconds = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Records = np.ndarray[tuple[int, ...], np.dtype[np.void]]


class Single(NamedTuple):
    """A request with stamps of its own: its body came in pieces, or its version was named, or its answer is long."""

    arrived_s: float
    complete_s: float
    sent_s: float
    began_ns: int
    ended_ns: int
    written_s: float
    named: bool


class Responses:
    """Answered HTTP requests of one process by the class of their status, until they are folded."""

    __slots__ = ("counts", "on_news")

    def __init__(self) -> None:
        self.counts = [0, 0, 0]
        self.on_news: Callable[[], None] | None = None

    def count(self, status: int) -> None:
        self.counts[status_class(status)] += 1
        if self.on_news is not None:
            self.on_news()

    def fold(self, part: Counts) -> None:
        counts, self.counts = self.counts, [0, 0, 0]
        part["changing"] += 1
        part["status"] += np.array(counts)
        part["changing"] += 1


class Meter:
    """Of one version. `on_news(meter)` is called by what is first since the last fold; what `responses` counts of the usual requests, which
    are all answered by 200, is told it here."""

    __slots__ = (
        "_asked",
        "_folded",
        "_head_view",
        "_heads",
        "_heard_ns",
        "_number",
        "_on_news",
        "_part",
        "_reasons",
        "_records",
        "_singles",
        "mismatched",
        "responses",
    )

    def __init__(self, part: Counts, responses: Responses, on_news: "Callable[[Meter], None]") -> None:
        self.responses = responses
        self._part = part
        self._on_news = on_news
        self._records = bytearray()
        self._heads = bytearray(HEADS * _HEAD_BYTES)
        self._head_view: Records = np.frombuffer(self._heads, _HEAD)
        self._number = self._folded = 0  # of the last batch, and of the last whose size is counted
        self._heard_ns = 0
        self._singles: list[Single] = []
        self._reasons = [0] * len(REASONS)
        self._asked = [0, 0]  # of those that were not executed
        self.mismatched = 0  # answers that belonged to nobody

    # ---- while requests pass

    def batch(self, sent_s: float, began_ns: int, ended_ns: int, heard_ns: int, rows: int) -> BatchTimes:
        """A worker has executed a batch of so many requests. What it says of its clock is believed as far as it can be."""
        if ended_ns > heard_ns or began_ns > heard_ns:
            began_ns = ended_ns = heard_ns
        number = self._number
        if not number % LOOK_BATCHES:
            self._look()
        if number == self._folded:
            self._on_news(self)
        self._number = number = number + 1
        self._heard_ns = heard_ns
        _pack_head(self._heads, number % HEADS * _HEAD_BYTES, sent_s, began_ns, ended_ns, rows)
        return self._records, number, sent_s, began_ns, ended_ns

    def _look(self) -> None:
        if len(self._records) >= RECORDS_MAX * _RECORD.itemsize or self._number - self._folded >= BATCHES_MAX:
            self.fold()

    def single(self, times: BatchTimes, arrived_s: float, complete_s: float, written_s: float, *, named: bool) -> None:
        """A request of that batch was answered by the long way; the caller counts its response."""
        self._news()
        _, _, sent_s, began_ns, ended_ns = times
        self._singles.append(Single(arrived_s, complete_s, sent_s, began_ns, ended_ns, written_s, named))

    def ended(
        self,
        times: BatchTimes | None,
        arrived_s: float,
        complete_s: float,
        written_s: float,
        *,
        named: bool,
        reason: str = "",
    ) -> None:
        """The answer of a request by the long way is written: a refusal has a reason, and what no worker has executed no times."""
        if times is None:
            self.failed(reason, named=named)
            return
        self.single(times, arrived_s, complete_s, written_s, named=named)
        if reason:
            self.because(reason)

    def failed(self, reason: str, *, named: bool) -> None:
        """A request ended without having been executed, or without an answer."""
        self.because(reason)
        self._asked[named] += 1

    def because(self, reason: str) -> None:
        """Count the reason of a request that is counted elsewhere."""
        self._news()
        self._reasons[REASON_AT.get(reason, OTHER)] += 1

    def _news(self) -> None:
        if len(self._singles) >= SINGLES_MAX:
            self.fold()
        self._on_news(self)

    # ---- from time to time

    def moment(self, waiting: int, slabs: tuple[int, ...]) -> None:
        """What is so now."""
        self._part["waiting"], self._part["slabs"] = waiting, slabs

    def let_go(self) -> None:
        """The version is gone, and its page with it. Of answers that are taken later, the statuses still count."""
        self._part = no_counts(self._part.dtype)

    def fold(self) -> None:
        """Put everything measured so far into the counters."""
        part = self._part
        part["changing"] += 1
        try:
            self._fold_requests(part)
            if self._number != self._folded:
                self._fold_batches(part)
            part["reason"] += np.array(self._reasons)
            part["asked"] += np.array(self._asked)
            part["mismatched"] += self.mismatched
            self._reasons, self._asked, self.mismatched = [0] * len(REASONS), [0, 0], 0
        finally:
            part["changing"] += 1

    def _fold_requests(self, part: Counts) -> None:
        records = np.frombuffer(bytes(self._records), _RECORD)
        self._records.clear()
        singles, self._singles = self._singles, []
        usual = len(records)
        if not usual and not singles:
            return
        self.responses.counts[0] += usual
        phases = _phases(self._stamps(records, singles))
        buckets = np.searchsorted(_PHASE_BOUNDS_NS, phases) + _PHASE_OFFSETS
        counts = np.bincount(buckets.ravel(), minlength=len(PHASES) * _BUCKETS)
        part["phase"] += counts.reshape(len(PHASES), _BUCKETS)
        part["phase_ns"] += phases.sum(axis=1)
        until_sent = phases[RECEIVE] + phases[QUEUE]
        part["asked"][DEFAULT] += usual
        part["latency_ns"][DEFAULT] += phases[TOTAL, :usual].sum()
        part["queue_ns"][DEFAULT] += until_sent[:usual].sum()
        if singles:
            named = np.array([single.named for single in singles])
            for which, chosen in ((DEFAULT, ~named), (NAMED, named)):
                part["asked"][which] += int(chosen.sum())
                part["latency_ns"][which] += phases[TOTAL, usual:][chosen].sum()
                part["queue_ns"][which] += until_sent[usual:][chosen].sum()
        part["last_queue_ns"] = phases[QUEUE, -1]

    def _stamps(self, records: Records, singles: list[Single]) -> Ns:
        """A column for every request, in nanoseconds."""
        usual = len(records)
        stamps = np.empty((len(PHASES), usual + len(singles)), np.int64)
        heads = self._head_view[records["number"] % HEADS]
        stamps[0, :usual] = stamps[1, :usual] = _in_ns(records["arrived_s"])  # their bodies came with their heads
        stamps[2, :usual] = _in_ns(heads["sent_s"])
        stamps[3, :usual], stamps[4, :usual] = heads["began_ns"], heads["ended_ns"]
        stamps[5, :usual] = _in_ns(records["written_s"])
        if singles:
            arrived, complete, sent, began, ended, written, _ = zip(*singles, strict=True)
            for at, seconds in ((0, arrived), (1, complete), (2, sent), (5, written)):
                stamps[at, usual:] = _in_ns(np.array(seconds))
            stamps[3, usual:], stamps[4, usual:] = began, ended
        return stamps

    def _fold_batches(self, part: Counts) -> None:
        """Those since the last fold, by their sizes."""
        numbers = np.arange(self._folded + 1, self._number + 1) % HEADS
        rows = self._head_view["rows"][numbers]
        self._folded = self._number
        part["batch_size"] += np.bincount(np.searchsorted(_SIZE_BOUNDS, rows), minlength=len(_SIZE_BOUNDS) + 1)
        part["batch_rows"] += rows.sum()
        last = self._head_view[numbers[-1]]
        part["last_ns"] = self._heard_ns
        away_ns = self._heard_ns - round(float(last["sent_s"]) * 1e9)
        part["last_overhead_ns"] = away_ns - (last["ended_ns"] - last["began_ns"])


def _in_ns(seconds: Seconds) -> Seconds:
    return np.rint(seconds * 1e9)


def _phases(stamps: Ns) -> Ns:
    """One row for every phase. No stamp is before the one that precedes it, so that the first five rows add up to the last."""
    for before, after in itertools.pairwise(stamps):
        np.maximum(before, after, out=after)
    phases = np.empty_like(stamps)
    np.subtract(stamps[1:], stamps[:-1], out=phases[:-1])
    np.subtract(stamps[-1], stamps[0], out=phases[TOTAL])
    return phases
