"""What a front end measures of every request, at the price of a few list entries, and how that gets into the counters.

A request of the usual kind costs two clock readings that are there anyway (when it came, when its answer was written) and two
entries in the list of its batch. Some hundreds at a time are then taken apart by NumPy: that costs a tenth of a microsecond each,
where adding to counters one by one would cost several.

    stamps:   arrived    complete     sent     began     ended     written       of CLOCK_MONOTONIC; seconds until they are folded
    phases:       receive      queue  batch_form  execute    respond

In the phases are the requests that a worker has executed and whose answer was written to its end, whatever its status was. All
others are counted by the reason why they are not.
"""

import itertools
from collections.abc import Callable
from time import monotonic
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
    status_class,
)

# A batch's list begins with when it left, when its execution began and ended, when that was heard of, and how many of its requests
# are still to be written. Behind that two entries for each: when it came, and when its answer was written.
SENT, BEGAN, ENDED, HEARD, TO_COME, HEAD = range(6)
BatchTimes = list[float]

# As many make a fold worth its while, and no longer than a third of a millisecond.
BATCHES_MAX, SINGLES_MAX = 128, 1024
# A batch that waits for its last requests longer than this waits for ever.
FORGOTTEN_S = 60.0

_PHASE_BOUNDS_NS = np.array([round(bound * 1e9) for bound in PHASE_BOUNDS_S])
_BUCKETS = len(PHASE_BOUNDS_S) + 1
_PHASE_OFFSETS = (np.arange(len(PHASES)) * _BUCKETS)[:, np.newaxis]
_SIZE_BOUNDS = np.array(BATCH_SIZE_BOUNDS)

Ns = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Single(NamedTuple):
    """A request with stamps of its own: its body came in pieces, or its version was named, or its answer is long."""

    arrived_s: float
    complete_s: float
    sent_s: float
    began_s: float
    ended_s: float
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
    """Of one version. `on_news` is called by what is first since the last fold; what `responses` counts of the usual requests, which
    are all answered by 200, is told it here."""

    __slots__ = (
        "_asked",
        "_batches",
        "_kept",
        "_on_news",
        "_part",
        "_reasons",
        "_singles",
        "_sizes",
        "mismatched",
        "responses",
    )

    def __init__(self, part: Counts, responses: Responses, on_news: Callable[[], None]) -> None:
        self._part = part
        self.responses = responses
        self._on_news = on_news
        self._batches: list[BatchTimes] = []
        self._kept: list[BatchTimes] = []  # folded, with requests to come
        self._sizes: list[int] = []
        self._singles: list[Single] = []
        self._reasons = [0] * len(REASONS)
        self._asked = [0, 0]  # of those that were not executed
        self.mismatched = 0  # answers that belonged to nobody

    # ---- while requests pass

    def batch(self, sent_s: float, began_ns: int, ended_ns: int, heard_ns: int, rows: int) -> BatchTimes:
        """A worker has executed a batch of so many requests. Whoever finds that some of them are not to be written takes those off
        `TO_COME`. What a worker says of its clock is believed as far as it can be."""
        if ended_ns > heard_ns or began_ns > heard_ns:
            began_ns = ended_ns = heard_ns
        times = [sent_s, began_ns / 1e9, ended_ns / 1e9, heard_ns / 1e9, float(rows)]
        if len(self._batches) >= BATCHES_MAX:
            self.fold()
        if not self._batches:
            self._on_news()
        self._batches.append(times)
        self._sizes.append(rows)
        return times

    def single(self, times: BatchTimes, arrived_s: float, complete_s: float, written_s: float, *, named: bool) -> None:
        """A request of that batch was answered by the long way; the caller counts its response."""
        times[TO_COME] -= 1
        self._news()
        sent_s, began_s, ended_s = times[SENT:HEARD]
        self._singles.append(Single(arrived_s, complete_s, sent_s, began_s, ended_s, written_s, named))

    def missed(self, times: BatchTimes, reason: str, *, named: bool) -> None:
        """A request of that batch was executed, and its answer reached nobody."""
        times[TO_COME] -= 1
        self.failed(reason, named=named)

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
        self._on_news()

    # ---- from time to time

    def moment(self, waiting: int, slabs: tuple[int, ...]) -> None:
        """What is so now."""
        self._part["waiting"], self._part["slabs"] = waiting, slabs

    def fold(self) -> None:
        """Put everything measured so far into the counters."""
        part = self._part
        part["changing"] += 1
        try:
            self._fold_requests(part)
            self._fold_sizes(part)
            part["reason"] += np.array(self._reasons)
            part["asked"] += np.array(self._asked)
            part["mismatched"] += self.mismatched
            self._reasons, self._asked, self.mismatched = [0] * len(REASONS), [0, 0], 0
        finally:
            part["changing"] += 1

    def _fold_requests(self, part: Counts) -> None:
        batches, self._batches = self._kept + self._batches, []
        singles, self._singles = self._singles, []
        stamps = [_of_batches(batches)] if batches else []
        usual = stamps[0].shape[1] if stamps else 0
        self.responses.counts[0] += usual
        self._keep(batches)
        if singles:
            columns = np.array(singles).T
            stamps.append(_in_ns(columns[:-1]))
            named = columns[-1] > 0
        if not usual and not singles:
            return
        phases = _phases(np.concatenate(stamps, axis=1))
        buckets = np.searchsorted(_PHASE_BOUNDS_NS, phases) + _PHASE_OFFSETS
        counts = np.bincount(buckets.ravel(), minlength=len(PHASES) * _BUCKETS)
        part["phase"] += counts.reshape(len(PHASES), _BUCKETS)
        part["phase_ns"] += phases.sum(axis=1)
        until_sent = phases[RECEIVE] + phases[QUEUE]
        part["asked"][DEFAULT] += usual
        part["latency_ns"][DEFAULT] += phases[TOTAL, :usual].sum()
        part["queue_ns"][DEFAULT] += until_sent[:usual].sum()
        if singles:
            for which, chosen in ((DEFAULT, ~named), (NAMED, named)):
                part["asked"][which] += int(chosen.sum())
                part["latency_ns"][which] += phases[TOTAL, usual:][chosen].sum()
                part["queue_ns"][which] += until_sent[usual:][chosen].sum()
        part["last_queue_ns"] = phases[QUEUE, -1]

    def _keep(self, batches: list[BatchTimes]) -> None:
        """Those of which requests are to come, without the ones that have."""
        self._kept, now_s = [], monotonic()
        for times in batches:
            times[TO_COME] -= (len(times) - HEAD) // 2
            del times[HEAD:]
            if times[TO_COME] > 0 and now_s - times[HEARD] < FORGOTTEN_S:
                self._kept.append(times)
        if batches:
            last = batches[-1]
            self._part["last_ns"] = round(last[HEARD] * 1e9)
            overhead_s = (last[HEARD] - last[SENT]) - (last[ENDED] - last[BEGAN])
            self._part["last_overhead_ns"] = round(overhead_s * 1e9)

    def _fold_sizes(self, part: Counts) -> None:
        sizes, self._sizes = self._sizes, []
        if sizes:
            rows = np.array(sizes)
            part["batch_size"] += np.bincount(np.searchsorted(_SIZE_BOUNDS, rows), minlength=len(_SIZE_BOUNDS) + 1)
            part["batch_rows"] += rows.sum()


def _in_ns(seconds: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> Ns:
    return np.rint(seconds * 1e9).astype(np.int64)


def _of_batches(batches: list[BatchTimes]) -> Ns:
    """The six stamps of every request in the lists, a column each. Their bodies came with their heads."""
    flat = _in_ns(np.fromiter(itertools.chain.from_iterable(batches), np.float64))
    lengths = np.array([len(times) for times in batches])
    starts = np.cumsum(lengths) - lengths
    requests = np.ones(len(flat), dtype=bool)
    for at in range(HEAD):
        requests[starts + at] = False
    arrived, written = flat[requests].reshape(-1, 2).T
    counts = (lengths - HEAD) // 2
    sent, began, ended = (np.repeat(flat[starts + at], counts) for at in (SENT, BEGAN, ENDED))
    return np.stack((arrived, arrived, sent, began, ended, written))


def _phases(stamps: Ns) -> Ns:
    """One row for every phase. No stamp is before the one that precedes it, so that the first five rows add up to the last."""
    for before, after in itertools.pairwise(stamps):
        np.maximum(before, after, out=after)
    return np.vstack((stamps[1:] - stamps[:-1], stamps[-1:] - stamps[:1]))
