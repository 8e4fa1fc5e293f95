"""The sequences of all versions: what front ends ask, what becomes of workers, and time, told to the tables (table.py) of the versions.

A worker or a version that is on its way out keeps its sequences until they have ended, or until it has had long enough; a version that
took over from another has its front ends send the requests of those sequences there.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from ringserve.server.control import (
    AskSequence,
    EndSequence,
    ReleaseSequence,
    SequenceLeft,
    SequenceRules,
    SequenceSaid,
    SequencesTold,
    SequenceTold,
)
from ringserve.server.registry import ModelVersion
from ringserve.server.scheduling.rules import SequenceScheduling
from ringserve.server.sequences.table import NS_OF_MS, Asking, Limits, SequenceTable
from ringserve.server.settings import Settings

# Of sequences in Triton's sense: what waits is limited by `jobQueueSize` alone, and each has a request that waits, or a worker.
WAITING_MAX = SEQUENCES_MAX = 1 << 30
# What front ends have to leave the sequences of a worker that has to go.
LEAVE_S_MAX = 2.0


def sequence_rules(version: ModelVersion, settings: Settings) -> SequenceRules | None:
    """What front ends go by; None for a version whose requests do not belong together."""
    wanted, scheduling = version.unpacked.config.sequences, version.unpacked.config.scheduling
    if scheduling is not None and scheduling.sequences is not None:
        return SequenceRules(_idle_ms(scheduling.sequences), WAITING_MAX)
    if wanted is None:
        return None
    names = (
        settings.ts_header_key_sequence_id,
        settings.ts_header_key_sequence_start,
        settings.ts_header_key_sequence_end,
    )
    return SequenceRules(wanted.idle_ms_max, wanted.waiting_max, *(each.lower() for each in names))


def _limits_of(version: ModelVersion) -> Limits | None:
    """What the supervisor goes by; None likewise."""
    config = version.unpacked.config
    if config.scheduling is not None and (wanted := config.scheduling.sequences) is not None:
        idle_ns = _idle_ms(wanted) * NS_OF_MS
        return Limits(SEQUENCES_MAX, idle_ns, places=wanted.places, slotted=not wanted.oldest)
    rules = config.sequences
    if rules is None:
        return None
    return Limits(rules.sequences_max, rules.idle_ms_max * NS_OF_MS, rules.life_ms_max * NS_OF_MS)


def _idle_ms(rules: SequenceScheduling) -> int:
    """Up to the next whole one, and at least one."""
    return max(1, -(-rules.idle_us_max // 1000))


def context_variables(settings: Settings) -> dict[str, str]:
    """The same names for the `Context` of handlers, which TorchServe leaves to the operator to repeat in the environment."""
    return {
        "TS_REQUEST_SEQUENCE_ID": settings.ts_header_key_sequence_id,
        "TS_REQUEST_SEQUENCE_START": settings.ts_header_key_sequence_start,
        "TS_REQUEST_SEQUENCE_END": settings.ts_header_key_sequence_end,
    }


class FrontEnds(Protocol):
    """What the sequences need of the fleet."""

    def tell(self, front_end: int, message: SequencesTold) -> None:
        """Front end number `front_end`."""

    def reachable(self, front_end: int, key: int) -> Collection[str]:
        """The workers of version `key` that it is linked with."""


class Sequences:
    """`front_ends` is asked at every word: None while there are none."""

    def __init__(self, front_ends: Callable[[], FrontEnds | None]) -> None:
        self._front_ends = front_ends
        self._tables: dict[int, SequenceTable] = {}
        self._versions: dict[int, ModelVersion] = {}
        self._before: dict[int, int] = {}  # a version -> the one whose place it took
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._clock: asyncio.TimerHandle | None = None
        self._clock_ns = 0
        self._stopped = False

    # ---- versions

    def add(self, version: ModelVersion) -> None:
        """A version of which requests may come. Nothing happens where they do not belong together."""
        limits = _limits_of(version)
        if limits is not None:
            self._tables[version.key] = SequenceTable(version.key, limits)
            self._versions[version.key] = version

    def follows(self, version: ModelVersion, before: ModelVersion) -> None:
        """`version` has taken the place of `before`, whose sequences go on there."""
        if version.key in self._tables and before.key in self._tables:
            self._before[version.key] = before.key

    async def run_out(self, version: ModelVersion, timeout_s: float) -> None:
        """Wait until the sequences have ended of a version that another one follows."""
        table = self._tables.get(version.key)
        if table is not None and version.key in self._before.values():
            await self._until(lambda: not len(table), timeout_s)

    def remove(self, version: ModelVersion) -> None:
        """It has left."""
        self._tables.pop(version.key, None)
        self._versions.pop(version.key, None)
        self._before = {after: before for after, before in self._before.items() if version.key not in (after, before)}
        self._deliver()

    # ---- workers

    def worker_ready(self, version: ModelVersion, worker_id: str) -> None:
        """Front ends have been linked with it."""
        table = self._tables.get(version.key)
        if table is not None:
            table.workers_min = version.min_workers
            table.worker_ready(worker_id)
            self._deliver()

    def worker_gone(self, version: ModelVersion, worker_id: str) -> None:
        """Front ends have been told."""
        table = self._tables.get(version.key)
        if table is not None:
            table.worker_gone(worker_id)
            self._deliver()

    async def vacated(self, version: ModelVersion, worker_id: str, timeout_s: float) -> None:
        """Wait until a worker that is to go has no sequences; it gets no new ones, and after that time it loses those it has."""
        table = self._tables.get(version.key)
        if table is None:
            return
        table.worker_leaving(worker_id)
        empty = lambda: not table.count_on(worker_id)
        if not await self._until(empty, timeout_s):
            table.evict(worker_id)
            self._deliver()
            await self._until(empty, LEAVE_S_MAX)

    def stop(self) -> None:
        """The server ends: nobody waits for clients any longer."""
        self._stopped = True
        self._tables.clear()
        self._deliver()

    # ---- front ends

    def heard(self, front_end: int, words: Collection[SequenceSaid]) -> None:
        """What a front end has to say."""
        for word in words:
            table = self._tables.get(word.key)
            match word:
                case AskSequence():
                    self._ask(Asking(front_end, word.key, word.sequence_id, word.token, word.begins))
                case ReleaseSequence() if table is not None:
                    table.release(front_end, word.number, word.token)
                case SequenceLeft() if table is not None:
                    table.left(front_end, word.number)
                case EndSequence() if table is not None:
                    end = word
                    table.end(front_end, end.key, end.token, end.number, end.sequence_id, end.worker_id)
        self._deliver()

    def front_end_gone(self, front_end: int) -> None:
        """It knows nothing any more."""
        for table in self._tables.values():
            table.front_end_gone(front_end, time.monotonic_ns())
        self._deliver()

    def _ask(self, asking: Asking) -> None:
        """In the version that has such a sequence, or else in the one that was asked for."""
        front_ends = self._front_ends()
        if front_ends is None or asking.key not in self._tables:
            return  # the version has left, and whoever asked is told so
        has_it = (each for each in self._line(asking.key) if asking.sequence_id in self._tables[each])
        table = self._tables[next(has_it, asking.key)]
        table.workers_min = self._versions[table.key].min_workers
        reachable = front_ends.reachable(asking.front_end, table.key)
        table.ask(asking, reachable, time.monotonic_ns())

    def _line(self, key: int) -> Iterator[int]:
        """The version, and those that it has followed and that are still there."""
        while True:
            yield key
            if key not in self._before:
                return
            key = self._before[key]

    # ---- what comes of it

    def _deliver(self) -> None:
        """All that the tables have to say; then look who has waited for it, and when there is something to do."""
        said: dict[int, list[SequenceTold]] = {}
        while again := self._said(said):
            for asking in again:
                self._ask(asking)
        front_ends = self._front_ends()
        if front_ends is not None:
            for front_end, words in said.items():
                front_ends.tell(front_end, SequencesTold(tuple(words)))
        for over, waiter in self._waiting:
            if not waiter.done() and (self._stopped or over()):
                waiter.set_result(None)
        self._set_clock()

    def _said(self, said: dict[int, list[SequenceTold]]) -> list[Asking]:
        again: list[Asking] = []
        for table in self._tables.values():
            for front_end, word in table.outbox:
                said.setdefault(front_end, []).append(word)
            again += table.again
            table.outbox, table.again = [], []
        return again

    async def _until(self, over: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it was so in time."""
        if self._stopped or over():
            return True
        entry = over, asyncio.get_running_loop().create_future()
        self._waiting.append(entry)
        try:
            await asyncio.wait_for(entry[1], timeout_s)
        except TimeoutError:
            return False
        finally:
            self._waiting.remove(entry)
        return True

    # ---- time

    def _set_clock(self) -> None:
        due_ns = min((each.due_ns for each in self._tables.values() if each.due_ns), default=0)
        if due_ns == self._clock_ns:
            return
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        self._clock_ns = due_ns
        if due_ns:
            # Whole milliseconds are what uvloop's timers count: one too few would come before the time.
            delay_s = max(0, due_ns - time.monotonic_ns()) / 1e9 + 0.001
            self._clock = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._clock, self._clock_ns = None, 0
        for table in self._tables.values():
            table.look(time.monotonic_ns())
        self._deliver()
