"""How many workers a version should have between minWorkers and maxWorkers: more when requests wait, fewer when one can be spared.

The decision is pure: `Meter` makes an observation out of what the front ends have counted, `decide` makes a number out of that.
`Autoscaler` asks and obeys, for versions whose two numbers differ; of the others nothing is asked.

Up is quick and down is slow. After any change there is nothing taken away for `down_after_s`, and a number of workers that has
been too few is not tried again until there is clearly less to do than when it was.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from ringserve.protocol.errors import RingServeError
from ringserve.server.control import Load
from ringserve.server.pool import WorkerPool
from ringserve.server.registry import ModelVersion

logger = logging.getLogger("ringserve.autoscale")

PERIOD_S = 0.5
# For how long what was answered, and in what time, says how fast a worker is.
MEMORY_S = 5.0
# One worker is spared when this part of the others' time is enough for what there is to do.
USE_MAX = 0.7
# A number that was too few is tried again with this part of the work it was too few for.
RELIEF = 0.75
# Requests that wait so many times longer than they should want twice as many workers, not one more.
MANY_TIMES = 8
# The wait shrinks by itself when it is this much shorter than when it was first too long.
SHRINKING = 0.8
# After there was no place for a worker, none is looked for this long.
REFUSED_S = 60.0


@dataclass(frozen=True, slots=True)
class Rules:
    """`low` to `high` workers; one more after requests have waited `up_wait_s` for `up_after_s`, one less after `down_after_s`."""

    low: int
    high: int
    up_wait_s: float
    up_after_s: float
    down_after_s: float


def rules_of(version: ModelVersion) -> Rules:
    wish = version.unpacked.config.sections.autoscaling
    return Rules(version.min_workers, version.max_workers, wish.up_wait_ms / 1000, wish.up_after_s, wish.down_after_s)


@dataclass(frozen=True, slots=True)
class Observation:
    """`wanted` workers should run and `ready` do; a request would wait `wait_s`, and so many workers are busy on average."""

    wanted: int
    ready: int
    wait_s: float
    busy: float


@dataclass(frozen=True, slots=True)
class State:
    """What was seen so far. `tight` workers were too few for `tight_work` / `tight_s` workers' worth of work."""

    at_s: float
    changed_s: float
    busy: float = 0.0  # of late
    over_since_s: float | None = None  # requests have waited too long
    over_wait_s: float = 0.0  # this long, then
    spare_since_s: float | None = None  # one worker less would have been enough
    tight: int = 0
    tight_work: float = 0.0
    tight_s: float = 0.0


def initial(now_s: float) -> State:
    return State(at_s=now_s, changed_s=now_s)


def decide(seen: Observation, state: State, rules: Rules, now_s: float) -> tuple[int, State]:
    """How many workers there should be, and what to remember until the next time."""
    wanted = seen.wanted
    within = min(max(wanted, rules.low), rules.high)
    if within != wanted:
        return within, initial(now_s)
    state = _looked(seen, state, rules, now_s)
    if _too_few(state, rules, now_s) and seen.ready >= wanted < rules.high:
        more = max(1, wanted) if seen.wait_s >= MANY_TIMES * rules.up_wait_s else 1
        changed = replace(initial(now_s), busy=state.busy, tight=wanted)
        return min(wanted + more, rules.high), changed
    settled_s = now_s - max(state.changed_s, state.spare_since_s or now_s)
    if state.spare_since_s is not None and settled_s >= rules.down_after_s:
        tight = state.tight if wanted - 1 > state.tight else 0
        kept = replace(state, tight=tight, changed_s=now_s, spare_since_s=None, over_since_s=None)
        return wanted - 1, kept
    return wanted, state


def _looked(seen: Observation, state: State, rules: Rules, now_s: float) -> State:
    passed_s = max(0.0, now_s - state.at_s)
    keep = math.exp(-passed_s / max(rules.down_after_s / 6, PERIOD_S / 4))
    state = replace(state, at_s=now_s, busy=state.busy * keep + seen.busy * (1 - keep))
    starting = seen.ready < seen.wanted
    if state.tight and not starting and state.tight_s < rules.down_after_s:
        state = replace(state, tight_work=state.tight_work + seen.busy * passed_s, tight_s=state.tight_s + passed_s)
    over = seen.wait_s > rules.up_wait_s
    if not over:
        state = replace(state, over_since_s=None)
    elif state.over_since_s is None or starting or seen.wait_s < SHRINKING * state.over_wait_s:
        state = replace(state, over_since_s=now_s, over_wait_s=seen.wait_s)
    spare_since_s = state.spare_since_s if state.spare_since_s is not None else now_s
    return replace(state, spare_since_s=spare_since_s if not over and _can_spare(seen, state, rules) else None)


def _too_few(state: State, rules: Rules, now_s: float) -> bool:
    return state.over_since_s is not None and now_s - state.over_since_s >= rules.up_after_s


def _can_spare(seen: Observation, state: State, rules: Rules) -> bool:
    rest = min(seen.ready, seen.wanted - 1)  # one that does not run is spared first
    if rest < 1 or seen.wanted <= max(rules.low, 1) or state.busy > USE_MAX * rest:
        return False
    if seen.wanted - 1 > state.tight:
        return True
    # When those that were to help never came, so many were busy all the time.
    too_much = state.tight_work / state.tight_s if state.tight_s else state.tight
    return state.busy < RELIEF * too_much


class Meter:
    """What one version's front ends have counted, as an observation. Times are seconds of a monotonic clock."""

    __slots__ = ("_answered", "_at_s", "_before", "_busy_s")

    def __init__(self) -> None:
        self._before: Load | None = None
        self._at_s = 0.0
        self._answered = self._busy_s = 0.0  # of late

    def observe(self, load: Load, wanted: int, ready: int, now_s: float) -> Observation:
        """How long a request waits: what waits, by how long a worker takes for one, by the workers; or, before one was answered, for
        as long as the oldest has."""
        busy = 0.0
        if self._before is not None and now_s > self._at_s:
            passed_s = now_s - self._at_s
            keep = math.exp(-passed_s / MEMORY_S)
            # A front end that was restarted counts from 0. Several count the time a worker spends on another's batches as well.
            answered = max(0, load.answered - self._before.answered)
            busy_s = min(max(0, load.busy_ns - self._before.busy_ns) / 1e9, ready * passed_s)
            self._answered = self._answered * keep + answered
            self._busy_s = self._busy_s * keep + busy_s
            busy = busy_s / passed_s
        self._before, self._at_s = load, now_s
        return Observation(wanted, ready, self._wait_s(load, ready, now_s), busy)

    def _wait_s(self, load: Load, ready: int, now_s: float) -> float:
        if not load.waiting:
            return 0.0
        if self._answered >= 0.5:
            return load.waiting * self._busy_s / self._answered / max(1, ready)
        return max(0.0, now_s - load.oldest_ns / 1e9) if load.oldest_ns else 0.0


def total_load(loads: Iterable[Load]) -> Load:
    """Of all front ends."""
    several = list(loads)
    return Load(
        sum(each.waiting for each in several),
        min((each.oldest_ns for each in several if each.oldest_ns), default=0),
        sum(each.answered for each in several),
        sum(each.busy_ns for each in several),
    )


@dataclass(slots=True)
class _Watched:
    rules: Rules
    meter: Meter
    state: State
    refused: bool = False  # there was no place for another worker, and that has been said
    no_growth_before_s: float = 0.0


class Autoscaler:
    """`pools` are those that serve, `ask(keys)` what they have to do in each front end, None when one does not say; `before_growth`
    is awaited before a worker is placed."""

    def __init__(
        self,
        pools: Callable[[], Iterable[WorkerPool]],
        ask: Callable[[tuple[int, ...]], Awaitable[list[dict[int, Load]] | None]],
        before_growth: Callable[[ModelVersion], Awaitable[None]],
    ) -> None:
        self._pools = pools
        self._ask = ask
        self._before_growth = before_growth
        self._watched: dict[int, _Watched] = {}
        self._shrinking: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """Once over all versions that may grow and shrink."""
        pools = {
            pool.version.key: pool for pool in self._pools() if pool.version.min_workers < pool.version.max_workers
        }
        self._watched = {key: watched for key, watched in self._watched.items() if key in pools}
        told = await self._ask(tuple(pools)) if pools else None
        if told is None:
            return
        for key, pool in pools.items():
            if pool.slots:
                load = total_load(loads[key] for loads in told if key in loads)
                await self._adjust(pool, load, time.monotonic())

    async def _adjust(self, pool: WorkerPool, load: Load, now_s: float) -> None:
        version, wanted = pool.version, len(pool.slots)
        rules = rules_of(version)
        watched = self._watched.get(version.key)
        if watched is None or watched.rules != rules:
            watched = self._watched[version.key] = _Watched(rules, Meter(), initial(now_s))
        seen = watched.meter.observe(load, wanted, pool.ready_count, now_s)
        if not rules.low <= wanted <= rules.high:  # somebody is about to change that
            return
        if now_s < watched.no_growth_before_s:
            rules = replace(rules, high=wanted)
        if pool.draining:  # one that leaves is followed by the next when it has left
            rules = replace(rules, low=wanted)
        target, watched.state = decide(seen, watched.state, rules, now_s)
        if target > wanted:
            await self._grow(pool, watched, wanted, target, seen)
        elif target < wanted:
            logger.info(
                "%s %s: %d workers instead of %d: %.2f are busy",
                version.name,
                version.version,
                target,
                wanted,
                seen.busy,
            )
            task = asyncio.ensure_future(pool.shrink(target))
            self._shrinking.add(task)
            task.add_done_callback(self._shrinking.discard)

    async def _grow(self, pool: WorkerPool, watched: _Watched, wanted: int, target: int, seen: Observation) -> None:
        version = pool.version
        await self._before_growth(version)
        if len(pool.slots) != wanted or version.max_workers < target:
            return  # it has been scaled or unregistered meanwhile
        try:
            pool.try_grow(target)
            watched.refused = False
        except RingServeError as error:
            if not pool.draining:  # otherwise there is a place soon
                watched.no_growth_before_s = time.monotonic() + REFUSED_S
            if not watched.refused:
                logger.warning("%s %s: there is no place for more workers: %s", version.name, version.version, error)
            watched.refused = True
        if len(pool.slots) > wanted:
            waits_ms = seen.wait_s * 1000
            logger.info(
                "%s %s: %d workers instead of %d: requests wait %.0f ms",
                version.name,
                version.version,
                len(pool.slots),
                wanted,
                waits_ms,
            )
