"""Workers follow what there is to do, up quickly and down slowly, never beyond their bounds and never to and fro."""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.server.autoscale import (
    PERIOD_S,
    Meter,
    Observation,
    Rules,
    State,
    decide,
    initial,
    total_load,
)
from ringserve.server.control import Load

RULES = Rules(low=1, high=4, up_wait_s=0.1, up_after_s=1.0, down_after_s=60.0)
MINUTE_S, TEN_MINUTES_S = 60.0, 600.0


class Rig:
    """`decide` on a clock of its own, obeyed at once."""

    def __init__(self, rules: Rules = RULES, wanted: int = 1) -> None:
        self.rules = rules
        self.wanted = self.ready = wanted
        self.now_s = 1000.0
        self.state: State = initial(self.now_s)

    def see(self, wait_s: float, busy: float, *, looks: int = 1, obey: bool = True) -> int:
        for _ in range(looks):
            self.now_s += PERIOD_S
            seen = Observation(self.wanted, self.ready, wait_s, busy)
            self.wanted, self.state = decide(seen, self.state, self.rules, self.now_s)
            if obey:
                self.ready = self.wanted
        return self.wanted


def test_one_worker_more_when_requests_have_waited_for_long_enough() -> None:
    rig = Rig()
    assert rig.see(0.2, 1.0, looks=2) == 1
    assert rig.see(0.2, 1.0) == 2


def test_a_single_long_wait_is_no_reason() -> None:
    rig = Rig()
    for _ in range(100):
        rig.see(0.5, 1.0, looks=2)
        assert rig.see(0.0, 1.0) == 1


def test_very_long_waits_double_the_workers() -> None:
    rig = Rig(wanted=2)
    assert rig.see(5.0, 2.0, looks=3) == 4


def test_no_more_workers_are_started_while_one_starts_or_fails_to() -> None:
    rig = Rig()
    rig.see(0.2, 1.0, looks=3, obey=False)
    assert rig.wanted == 2
    assert rig.see(0.2, 1.0, looks=1000, obey=False) == 2


def test_a_queue_that_becomes_shorter_by_itself_needs_no_more_workers() -> None:
    rig = Rig(wanted=2)
    wait_s = 0.7
    while wait_s > 0.05:
        assert rig.see(wait_s, 2.0) == 2
        wait_s *= 0.85


def test_never_more_than_the_maximum_and_never_fewer_than_the_minimum() -> None:
    rig = Rig()
    assert rig.see(100.0, 4.0, looks=200) == 4
    assert rig.see(0.0, 0.0, looks=1000) == 1


def test_one_worker_less_after_one_could_have_been_spared_all_the_time() -> None:
    rig = Rig(wanted=3)
    assert rig.see(0.0, 0.2, looks=int(MINUTE_S / PERIOD_S)) == 3
    assert rig.see(0.0, 0.2) == 2
    assert rig.see(0.0, 0.2, looks=int(MINUTE_S / PERIOD_S)) == 2
    assert rig.see(0.0, 0.2) == 1


def test_a_worker_that_the_others_cannot_do_without_stays() -> None:
    rig = Rig(wanted=3)
    assert rig.see(0.0, 1.5, looks=1000) == 3
    assert rig.see(0.0, 1.3, looks=1000) == 2
    assert rig.see(0.0, 0.8, looks=1000) == 2


def test_a_long_wait_in_between_starts_the_time_of_sparing_anew() -> None:
    rig = Rig(wanted=3)
    for _ in range(20):
        rig.see(0.0, 0.2, looks=100)
        assert rig.see(0.2, 0.2) == 3


def test_a_number_that_was_too_few_is_not_tried_again_until_there_is_less_to_do() -> None:
    rig = Rig()
    rig.see(0.2, 1.0, looks=3)
    assert rig.see(0.0, 0.6, looks=5000) == 2, "one worker could do it, but requests waited too long then"
    assert rig.see(0.0, 0.3, looks=200) == 1


def test_bounds_that_were_changed_count_at_once() -> None:
    rig = Rig(wanted=3)
    rig.rules = Rules(1, 2, 0.1, 1.0, 60.0)
    assert rig.see(0.0, 3.0) == 2
    rig.rules = Rules(4, 8, 0.1, 1.0, 60.0)
    assert rig.see(0.0, 0.0) == 4


def test_a_version_without_a_minimum_keeps_its_last_worker() -> None:
    rig = Rig(Rules(0, 3, 0.1, 1.0, 1.0), wanted=2)
    assert rig.see(0.0, 0.0, looks=1000) == 1


looks = st.tuples(
    st.one_of(st.just(0.0), st.floats(0, 0.3), st.floats(0, 1e6)),  # wait
    st.floats(0, 1),  # part of the workers that is busy
    st.booleans(),  # whether the workers that were asked for are there
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(looks, max_size=300),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(0, 12),
    st.sampled_from([0.0, 1.0, 5.0]),
    st.sampled_from([0.0, 2.0, 20.0]),
    st.sampled_from([0.0, 0.1]),
)
def test_whatever_is_seen_the_bounds_and_the_cool_down_hold(
    seen: list[tuple[float, float, bool]],
    low: int,
    more: int,
    wanted: int,
    up_after_s: float,
    down_after_s: float,
    up_wait_s: float,
) -> None:
    rig = Rig(Rules(low, low + more, up_wait_s, up_after_s, down_after_s), wanted)
    last_change_s = -math.inf
    for number, (wait_s, part, arrived) in enumerate(seen):
        before, rig.ready = rig.wanted, rig.wanted if arrived else min(rig.ready, rig.wanted)
        after = rig.see(wait_s, part * rig.ready, obey=False)
        assert low <= after <= low + more
        if number and after < before:
            assert after == before - 1
            assert rig.now_s - last_change_s >= down_after_s
        if after > before:
            assert rig.ready >= before or not number
        if after != before:
            last_change_s = rig.now_s


# ---- the meter


def test_the_wait_is_what_waits_by_what_a_worker_takes_for_one() -> None:
    meter = Meter()
    meter.observe(Load(0, 0, 1000, 10**9), 2, 2, 0.0)
    seen = meter.observe(Load(30, 0, 1010, 2 * 10**9), 2, 2, 1.0)
    assert seen.busy == pytest.approx(1.0)
    assert seen.wait_s == pytest.approx(30 * 0.1 / 2)


def test_before_anything_was_answered_the_wait_is_that_of_the_oldest() -> None:
    assert Meter().observe(Load(3, 5 * 10**9, 0, 0), 1, 1, 12.0).wait_s == 7.0
    assert Meter().observe(Load(0, 0, 0, 0), 1, 1, 12.0).wait_s == 0.0


def test_a_front_end_that_counts_from_0_again_and_time_counted_twice_do_no_harm() -> None:
    meter = Meter()
    meter.observe(Load(0, 0, 1000, 10**9), 1, 1, 0.0)
    assert meter.observe(Load(5, 0, 3, 10**6), 1, 1, 1.0).busy == 0.0
    assert meter.observe(Load(5, 0, 10, 10**12), 1, 1, 2.0).busy == 1.0


def test_the_load_of_all_front_ends_is_added_up() -> None:
    assert total_load([Load(1, 9, 10, 5), Load(2, 7, 20, 6), Load(0, 0, 1, 0)]) == Load(3, 7, 31, 11)
    assert total_load([]) == Load(0, 0, 0, 0)


# ---- ten minutes on a simulated clock


class Simulation:
    """Requests that come one by one and workers that take them one by one, watched and scaled as the server does it."""

    def __init__(self, rules: Rules, service_s: float, start_s: float = 2.0, seed: int = 1) -> None:
        self.rules, self.start_s = rules, start_s
        self.random = random.Random(seed)
        self.service_s = service_s
        self.now_s = 0.0
        self.ready_at_s = [0.0] * max(1, rules.low)  # of every worker that is wanted
        self.ends_s: list[tuple[float, float]] = []  # of what is being computed, and when it began
        self.queue: deque[float] = deque()
        self.answered, self.busy_s = 0, 0.0
        self.waits: list[float] = []
        self.meter, self.state = Meter(), initial(0.0)
        self.changes: list[tuple[float, int]] = []

    @property
    def wanted(self) -> int:
        return len(self.ready_at_s)

    def run(self, until_s: float, per_s: Callable[[float], float]) -> None:
        next_look_s = self.now_s + PERIOD_S
        next_arrival_s = self.now_s
        while self.now_s < until_s:
            rate = max(per_s(self.now_s), 1e-9)
            if next_arrival_s <= self.now_s:
                next_arrival_s = self.now_s + self.random.expovariate(rate)
            end_s = self.ends_s[0][0] if self.ends_s else math.inf
            self.now_s = min(end_s, next_look_s, next_arrival_s)
            if self.now_s == end_s:
                end_s, began_s = heapq.heappop(self.ends_s)
                self.answered += 1
                self.busy_s += end_s - began_s
            elif self.now_s == next_look_s:
                self._look()
                next_look_s += PERIOD_S
            else:
                self.queue.append(self.now_s)
            self._serve()

    def _serve(self) -> None:
        ready = sum(at_s <= self.now_s for at_s in self.ready_at_s)
        while self.queue and len(self.ends_s) < ready:
            self.waits.append(self.now_s - self.queue.popleft())
            heapq.heappush(self.ends_s, (self.now_s + self.random.expovariate(1 / self.service_s), self.now_s))

    def _look(self) -> None:
        ready = sum(at_s <= self.now_s for at_s in self.ready_at_s)
        at_it_s = sum(self.now_s - began_s for _, began_s in self.ends_s)
        oldest_ns = int(self.queue[0] * 1e9) if self.queue else 0
        load = Load(len(self.queue), oldest_ns, self.answered, int((self.busy_s + at_it_s) * 1e9))
        seen = self.meter.observe(load, self.wanted, ready, self.now_s)
        target, self.state = decide(seen, self.state, self.rules, self.now_s)
        if target != self.wanted:
            self.changes.append((self.now_s, target))
        del self.ready_at_s[target:]
        self.ready_at_s += [self.now_s + self.start_s] * (target - self.wanted)

    def turns(self) -> int:
        """How often it went the other way."""
        levels = [max(1, self.rules.low), *(level for _, level in self.changes)]
        signs = [later > earlier for earlier, later in itertools.pairwise(levels)]
        return sum(earlier != later for earlier, later in itertools.pairwise(signs))


def test_a_step_up_brings_all_workers_and_a_step_down_takes_them_away_once() -> None:
    simulation = Simulation(RULES, service_s=0.05)
    simulation.run(60, lambda _: 5)
    assert simulation.wanted == 1
    simulation.run(300, lambda _: 65)
    assert simulation.wanted == 4
    simulation.waits.clear()
    simulation.run(360, lambda _: 65)
    assert sum(simulation.waits) / len(simulation.waits) < 0.2
    simulation.run(360 + TEN_MINUTES_S, lambda _: 5)
    assert simulation.wanted == 1
    assert simulation.turns() == 1


@pytest.mark.parametrize("service_s", [0.05, 0.5])
@pytest.mark.parametrize("use", [0.3, 0.6, 0.8, 1.2, 1.5, 1.9, 2.4, 3.0])
def test_a_steady_load_makes_no_to_and_fro_over_ten_minutes(use: float, service_s: float) -> None:
    """Random arrivals that keep `use` workers busy, also where a number of workers is only just too few."""
    simulation = Simulation(RULES, service_s)
    simulation.run(2 * TEN_MINUTES_S, lambda _: use / service_s)
    assert simulation.turns() <= 2
    assert len([at_s for at_s, _ in simulation.changes if at_s > TEN_MINUTES_S]) <= 2


@pytest.mark.parametrize("period_s", [4.0, 20.0, 60.0])
@pytest.mark.parametrize("service_s", [0.05, 0.2])
def test_a_sawtooth_within_the_cool_down_is_met_by_one_number_of_workers(period_s: float, service_s: float) -> None:
    simulation = Simulation(RULES, service_s)

    def teeth(now_s: float) -> float:
        return (0.2 + 2.6 * (now_s % period_s) / period_s) / service_s

    simulation.run(2 * TEN_MINUTES_S, teeth)
    assert simulation.turns() <= 2


@pytest.mark.parametrize("service_s", [0.05, 0.2])
def test_slow_waves_are_followed_without_ripples(service_s: float) -> None:
    """Half an hour up and down twice: as many turns as the load makes, give or take noise at the edges."""
    simulation = Simulation(RULES, service_s)
    simulation.run(3600, lambda now_s: (1.5 + 1.3 * math.sin(now_s * 2 * math.pi / 1800)) / service_s)
    assert 2 <= simulation.turns() <= 8
    assert sum(simulation.waits) / len(simulation.waits) < 0.3 + service_s


def test_a_worker_that_never_loads_is_asked_for_once() -> None:
    simulation = Simulation(RULES, 0.05, start_s=math.inf)
    simulation.ready_at_s = [0.0]
    simulation.run(120, lambda _: 30)
    assert [level for _, level in simulation.changes] == [2]
