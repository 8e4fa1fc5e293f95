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
import time
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

import numpy as np

from ringserve.server.metrics.counts import (
    BATCH_SIZE_BOUNDS,
    DEFAULT,
    NAMED,
    NO_REQUEST,
    OTHER,
    OUTCOME_AT,
    PHASE_BOUNDS_S,
    PHASES,
    QUEUE,
    REASON_AT,
    REASONS,
    RECEIVE,
    RESPONSES_MAX,
    TOTAL,
    Counts,
    add_size,
    no_counts,
    status_class,
)
from ringserve.shm.ring import Completion

# What a request keeps of its batch: where the records of usual requests go; its number; when it left (in seconds); when a worker took it
# up, when its execution began and ended, and when that was heard (in nanoseconds).
BatchTimes = tuple[bytearray, int, float, int, int, int, int]
# A record: the number of the batch, when the request came, when its answer was written.
_RECORD = np.dtype([("number", np.int64), ("arrived_s", np.float64), ("written_s", np.float64)])
usual_record = Struct("<qdd").pack
# A batch: when it left, was taken up, when its execution began and ended, when that was heard; how many requests it had, and in how
# many executions of how many items together.
_HEAD = np.dtype(
    [
        ("sent_s", np.float64),
        *((name, np.int64) for name in ("taken_ns", "began_ns", "ended_ns", "heard_ns", "rows", "executions", "items")),
    ]
)
_pack_head = Struct("<dqqqqqqq").pack_into
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
Truths = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Single(NamedTuple):
    """A request with stamps of its own: its body came in pieces, or its version was named, or its answer is long."""

    arrived_s: float
    complete_s: float
    sent_s: float
    taken_ns: int
    began_ns: int
    ended_ns: int
    heard_ns: int
    written_s: float
    named: bool
    failed: bool


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
        "_answers",
        "_asked",
        "_fail_s",
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
        self._answers: list[
            tuple[int, int, int]
        ] = []  # of decoupled models: which one, how it came out, how long it took
        self._reasons = [0] * len(REASONS)
        self._asked = [0, 0]  # of those that were not executed
        self._fail_s = 0.0  # how long these took together
        self.mismatched = 0  # answers that belonged to nobody

    # ---- while requests pass

    def batch(self, sent_s: float, done: Completion, heard_ns: int, rows: int) -> BatchTimes:
        """A worker has executed a batch of so many requests. What it says of its clock is believed as far as it can be."""
        _, _, _, _, _, _, executions, items, taken_ns, began_ns, ended_ns = done
        if ended_ns > heard_ns or began_ns > heard_ns:
            began_ns = ended_ns = heard_ns
        number = self._number
        if not number % LOOK_BATCHES:
            self._look()
        if number == self._folded:
            self._on_news(self)
        self._number = number = number + 1
        self._heard_ns = heard_ns
        head_at = number % HEADS * _HEAD_BYTES
        _pack_head(self._heads, head_at, sent_s, taken_ns, began_ns, ended_ns, heard_ns, rows, executions, items)
        return self._records, number, sent_s, taken_ns, began_ns, ended_ns, heard_ns

    def _look(self) -> None:
        if len(self._records) >= RECORDS_MAX * _RECORD.itemsize or self._number - self._folded >= BATCHES_MAX:
            self.fold()

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
        """The answer of a request by the long way is written, whose response the caller counts: a refusal has a reason, and what no
        worker has executed no times."""
        if times is None:
            self.failed(reason, named=named, took_s=written_s - arrived_s)
            return
        self._news()
        _, _, sent_s, taken_ns, began_ns, ended_ns, heard_ns = times
        failed = bool(reason)
        self._singles.append(
            Single(arrived_s, complete_s, sent_s, taken_ns, began_ns, ended_ns, heard_ns, written_s, named, failed)
        )
        if reason:
            self.because(reason)

    def failed(self, reason: str, *, named: bool, took_s: float = 0.0) -> None:
        """A request ended without having been executed, or without an answer."""
        self.because(reason)
        self._asked[named] += 1
        if reason not in NO_REQUEST:
            self._fail_s += took_s

    def responded(self, number: int, outcome: str, took_ns: int) -> None:
        """A decoupled model has answered: the response with this number, from 0 on, of its request came so long after the one before."""
        if len(self._answers) >= SINGLES_MAX:
            self.fold()
        self._on_news(self)
        self._answers.append((min(number, RESPONSES_MAX - 1), OUTCOME_AT[outcome], took_ns))

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
            if self._answers:
                _fold_answers(part, self._answers)
                self._answers = []
            part["reason"] += np.array(self._reasons)
            part["asked"] += np.array(self._asked)
            part["mismatched"] += self.mismatched
            part["fail_ns"] += round(self._fail_s * 1e9)
            self._reasons, self._asked, self.mismatched, self._fail_s = [0] * len(REASONS), [0, 0], 0, 0.0
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
        stamps, between, good = self._stamps(records, singles)
        phases = _phases(stamps)
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
        _fold_stages(part, stamps, between, good)

    def _stamps(self, records: Records, singles: list[Single]) -> tuple[Ns, Ns, Truths]:
        """A column for every request, in nanoseconds: what the phases lie between; when a worker took it up, and when it was heard that
        it was executed; whether it succeeded."""
        usual = len(records)
        stamps = np.empty((len(PHASES), usual + len(singles)), np.int64)
        between = np.empty((2, usual + len(singles)), np.int64)
        good = np.ones(usual + len(singles), np.bool_)
        heads = self._head_view[records["number"] % HEADS]
        stamps[0, :usual] = stamps[1, :usual] = _in_ns(records["arrived_s"])  # their bodies came with their heads
        stamps[2, :usual] = _in_ns(heads["sent_s"])
        stamps[3, :usual], stamps[4, :usual] = heads["began_ns"], heads["ended_ns"]
        stamps[5, :usual] = _in_ns(records["written_s"])
        between[0, :usual], between[1, :usual] = heads["taken_ns"], heads["heard_ns"]
        if singles:
            arrived, complete, sent, taken, began, ended, heard, written, _, failed = zip(*singles, strict=True)
            for at, seconds in ((0, arrived), (1, complete), (2, sent), (5, written)):
                stamps[at, usual:] = _in_ns(np.array(seconds))
            stamps[3, usual:], stamps[4, usual:] = began, ended
            between[0, usual:], between[1, usual:] = taken, heard
            good[usual:] = ~np.array(failed)
        return stamps, between, good

    def _fold_batches(self, part: Counts) -> None:
        """Those since the last fold, by their sizes."""
        numbers = np.arange(self._folded + 1, self._number + 1) % HEADS
        rows = self._head_view["rows"][numbers]
        self._folded = self._number
        part["batch_size"] += np.bincount(np.searchsorted(_SIZE_BOUNDS, rows), minlength=len(_SIZE_BOUNDS) + 1)
        part["batch_rows"] += rows.sum()
        _fold_executions(part, self._head_view[numbers])
        last = self._head_view[numbers[-1]]
        part["last_ns"] = self._heard_ns
        part["last_ms"] = (self._heard_ns + time.time_ns() - time.monotonic_ns()) // 1_000_000
        away_ns = self._heard_ns - round(float(last["sent_s"]) * 1e9)
        part["last_overhead_ns"] = away_ns - (last["ended_ns"] - last["began_ns"])


def _fold_executions(part: Counts, heads: Records) -> None:
    """Of one batch, the executions count as equally large: models that batch have one, those that do not one for every item."""
    executions, items = heads["executions"], heads["items"]
    part["executions"] += executions.sum()
    part["items"] += items.sum()
    taken = np.minimum(np.maximum(heads["taken_ns"], _in_ns(heads["sent_s"]).astype(np.int64)), heads["began_ns"])
    stages = np.stack(
        (heads["began_ns"] - taken, heads["ended_ns"] - heads["began_ns"], heads["heard_ns"] - heads["ended_ns"])
    )
    sizes, which = np.unique(-(-items // np.maximum(executions, 1)), return_inverse=True)
    counts = np.stack([np.bincount(which, each, len(sizes)) for each in (executions, *stages)], 1)
    for size, line in zip(sizes.tolist(), counts.astype(np.int64).tolist(), strict=True):
        if line[0]:
            add_size(part["size"], size, *line)


def _fold_answers(part: Counts, answers: list[tuple[int, int, int]]) -> None:
    """Every one but a cancelled one took its time of the model."""
    numbers, outcomes, took_ns = np.array(answers).T
    counts = np.stack((np.ones_like(took_ns), took_ns), 1)
    np.add.at(part["response"], (numbers, outcomes), counts)
    computed = outcomes != OUTCOME_AT["cancel"]
    np.add.at(part["response"], (numbers[computed], OUTCOME_AT["compute_infer"]), counts[computed])


def _fold_stages(part: Counts, stamps: Ns, between: Ns, good: Truths) -> None:
    """The protocol's stages of those that succeeded; `stamps` are in order by now."""
    _, complete, sent, began, ended, written = stamps
    taken = np.clip(between[0], sent, began)
    heard = np.clip(between[1], ended, written)
    part["success"] += np.count_nonzero(good)
    part["success_ns"] += (written - complete)[good].sum()
    part["fail_ns"] += (written - complete)[~good].sum()
    stages = np.stack((taken - complete, began - taken, ended - began, heard - ended))
    part["stage_ns"] += stages[:, good].sum(axis=1)


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
