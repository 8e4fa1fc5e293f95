"""When a refused client should come back: as soon as those before it are answered, at the rate of late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.drain_rate import PERIOD_S, RETRY_S_MAX, RETRY_S_MIN, DrainRate


def test_without_a_rate_to_go_by_it_is_a_second() -> None:
    rate = DrainRate(100.0)
    assert rate.seconds_for(1000, 100.0) == RETRY_S_MIN
    assert rate.seconds_for(1000, 101.0) == RETRY_S_MIN


@pytest.mark.parametrize("passed_s", [0.5, 1.9])
def test_the_first_period_counts_as_far_as_it_has_come(passed_s: float) -> None:
    rate = DrainRate(0.0)
    rate.answered(10)
    assert rate.seconds_for(50, passed_s) == pytest.approx(50 / (10 / passed_s))


def test_the_rate_is_that_of_the_last_period() -> None:
    rate = DrainRate(0.0)
    rate.answered(20)
    assert rate.seconds_for(100, PERIOD_S) == pytest.approx(10)
    rate.answered(1000)
    assert rate.seconds_for(100, PERIOD_S + 1) == pytest.approx(10)
    assert rate.seconds_for(5000, 2 * PERIOD_S) == pytest.approx(10)


def test_after_a_period_without_answers_nothing_of_the_old_rate_is_left() -> None:
    rate = DrainRate(0.0)
    rate.answered(2)
    assert rate.seconds_for(30, 2.0) == pytest.approx(30)
    assert rate.seconds_for(30, 5.0) == RETRY_S_MIN


def test_a_rate_is_never_that_of_an_hour_in_which_hardly_anybody_came() -> None:
    """The clock is read only when a request is refused, and the first refusal may come after a long calm."""
    rate = DrainRate(0.0)
    rate.answered(10)
    assert rate.seconds_for(100, 3600.0) == RETRY_S_MIN
    rate.answered(50)
    assert rate.seconds_for(100, 3601.0) == pytest.approx(2)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 10_000)),
        max_size=20,
    )
)
def test_it_is_always_between_a_second_and_a_minute(steps: list[tuple[int, int, float]]) -> None:
    now_s = 5.0
    rate = DrainRate(now_s)
    for answered, waiting, passes_s in steps:
        rate.answered(answered)
        now_s += passes_s
        assert RETRY_S_MIN <= rate.seconds_for(waiting, now_s) <= RETRY_S_MAX
