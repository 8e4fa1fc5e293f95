"""Starts that fail are tried again later and later, one at a time, never more than eight a minute, and never for the last time."""

import heapq
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.breaker import (
    ATTEMPTS_MAX,
    ATTEMPTS_WINDOW_S,
    UNDER_WAY_MAX,
    Breaker,
)
from ringserve.server.lifecycle import FAILURES_TOLERATED, RETRY_S_MAX

LONGEST_S = RETRY_S_MAX * 1.25 + ATTEMPTS_WINDOW_S


def opened(now_s: float = 0.0) -> Breaker:
    """After one worker has failed as often as is tolerated."""
    breaker = Breaker()
    for _ in range(FAILURES_TOLERATED):
        now_s = max(now_s, breaker.next_start_s())
        breaker.start_failed(now_s, now_s, 0.5)
    return breaker


def test_a_fresh_version_tries_a_few_workers_at_once_and_the_others_after_the_first_success() -> None:
    breaker = Breaker()
    assert [breaker.starts_allowed(0, under_way) for under_way in range(UNDER_WAY_MAX + 2)] == [4, 3, 2, 1, 0, 0]
    breaker.loaded(1)
    assert breaker.starts_allowed(1, UNDER_WAY_MAX) > 1000


def test_long_after_the_last_success_a_few_are_tried_first_again() -> None:
    breaker = Breaker()
    breaker.loaded(0)
    assert breaker.starts_allowed(ATTEMPTS_WINDOW_S, 0) == UNDER_WAY_MAX


def test_a_failed_start_is_tried_again_after_a_pause_that_doubles() -> None:
    breaker, now_s, pauses = Breaker(), 100.0, []
    for _ in range(7):
        breaker.start_failed(now_s, now_s, 0.5)
        pauses.append(breaker.next_start_s() - now_s)
        assert breaker.starts_allowed(breaker.next_start_s() - 0.001, 0) == 0
        now_s = breaker.next_start_s()
        assert breaker.starts_allowed(now_s, 0) >= 1
    assert pauses == [1, 2, 4, 8, 16, 32, 60]


def test_it_opens_after_three_failures_in_a_row_and_then_lets_one_probe_at_a_time() -> None:
    breaker = Breaker()
    for number in range(1, FAILURES_TOLERATED + 1):
        assert not breaker.is_open
        assert breaker.failures == number - 1
        breaker.start_failed(number * 10, number * 10, 0.5)
    assert breaker.is_open
    assert breaker.starts_allowed(1000, 0) == 1
    assert breaker.starts_allowed(1000, 1) == 0
    assert breaker.starts_allowed(1000, 2) == 0


def test_workers_that_fail_together_lengthen_the_pause_once() -> None:
    breaker = Breaker()
    for _ in range(UNDER_WAY_MAX):
        breaker.start_failed(0.3, 0.0, 0.5)
    assert breaker.is_open
    assert breaker.next_start_s() == pytest.approx(1.3)


def test_a_probe_that_loads_closes_it_and_the_others_start() -> None:
    breaker = opened()
    breaker.loaded(100)
    assert not breaker.is_open
    assert breaker.failures == 0
    assert breaker.starts_allowed(100, 7) > 1000


def test_where_loaded_workers_die_of_their_first_batch_only_an_answer_closes_it() -> None:
    breaker = Breaker()
    for number in range(FAILURES_TOLERATED):
        breaker.loaded(number)
        breaker.died_young(number, number, 0.5)
        assert not breaker.is_open
        assert breaker.starts_allowed(number, 0) >= 1, "the first three are replaced at once"
    breaker.loaded(5)
    breaker.died_young(5, 5, 0.5)
    assert breaker.is_open
    assert breaker.starts_allowed(5, 0) == 0
    breaker.loaded(1000)
    assert breaker.is_open
    assert breaker.starts_allowed(1000, 0) == 1
    breaker.proved()
    assert not breaker.is_open
    assert breaker.failures == 0


def test_a_worker_that_dies_before_it_had_anything_to_do_counts_as_a_failed_start() -> None:
    breaker, pauses = Breaker(), []
    now_s = 0.0
    for _ in range(FAILURES_TOLERATED):
        breaker.loaded(now_s)
        breaker.died_idle(now_s, now_s, 0.5)
        pauses.append(breaker.next_start_s() - now_s)
        now_s = breaker.next_start_s()
    assert pauses == [1, 2, 4]
    assert breaker.is_open


def test_the_answer_of_an_old_worker_is_no_reason_to_hurry_where_new_ones_cannot_load() -> None:
    breaker = opened()
    before_s = breaker.next_start_s()
    breaker.proved()
    assert breaker.is_open
    assert breaker.next_start_s() == before_s


def run(loads: list[bool], workers: int, jitters: list[float], *, load_s: float, until_s: float) -> list[float]:
    """Workers that are started whenever the breaker lets them, on a clock of their own. When those began that failed."""
    breaker, jitter = Breaker(), itertools.cycle(jitters)
    outcomes = itertools.chain(loads, itertools.repeat(False))
    now_s, waiting = 0.0, workers
    under_way: list[tuple[float, float, bool]] = []  # (when it comes out, when it began, whether it loads)
    failed: list[float] = []
    while now_s < until_s:
        while waiting and breaker.starts_allowed(now_s, len(under_way)):
            heapq.heappush(under_way, (now_s + load_s, now_s, next(outcomes)))
            waiting -= 1
        later_s = [breaker.next_start_s()] if waiting and breaker.next_start_s() > now_s else []
        if not under_way and not later_s:
            assert not waiting, "somebody waits and nothing will happen"
            return failed
        if later_s and (not under_way or later_s[0] < under_way[0][0]):
            now_s = later_s[0]
            continue
        now_s, began_s, loads_now = heapq.heappop(under_way)
        if loads_now:
            breaker.loaded(now_s)
        else:
            breaker.start_failed(now_s, began_s, next(jitter))
            failed.append(began_s)
            waiting += 1
    return failed


def most_in_a_minute(times_s: list[float]) -> int:
    return max(sum(start <= each < start + ATTEMPTS_WINDOW_S for each in times_s) for start in times_s)


@given(
    st.sampled_from([1, 2, 3, 4, 5, 16, 200]),
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.05, 0.3, 2.0, 20.0, 90.0]),
)
def test_a_model_that_cannot_load_makes_at_most_eight_attempts_a_minute_and_never_stops(
    workers: int, jitters: list[float], load_s: float
) -> None:
    failed = run([], workers, jitters, load_s=load_s, until_s=1000)
    assert most_in_a_minute(failed) <= ATTEMPTS_MAX
    pauses = [later - earlier for earlier, later in itertools.pairwise(sorted(failed))]
    assert max(pauses, default=0) <= LONGEST_S + load_s
    assert failed[-1] > 1000 - LONGEST_S - 2 * load_s


@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.sampled_from([1, 3, 5, 30]),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_whatever_loads_and_fails_every_worker_that_waits_is_started_some_day(
    loads: list[bool], workers: int, jitters: list[float]
) -> None:
    run([*loads, *[True] * workers], workers, jitters, load_s=0.3, until_s=100_000)
