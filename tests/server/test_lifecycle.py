"""The life of a child is a table without gaps, and retries slow down but never stop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.lifecycle import RETRY_S_FIRST, RETRY_S_MAX, TRANSITIONS, Event, State, after, retry_delay_s

EXPECTED = {
    (State.STARTING, Event.LOADED): State.READY,
    (State.STARTING, Event.STOP_ASKED): State.DRAINING,
    (State.STARTING, Event.EXITED): State.GONE,
    (State.READY, Event.STOP_ASKED): State.DRAINING,
    (State.READY, Event.EXITED): State.GONE,
    (State.DRAINING, Event.LOADED): State.DRAINING,
    (State.DRAINING, Event.STOP_ASKED): State.DRAINING,
    (State.DRAINING, Event.EXITED): State.GONE,
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_event_in_every_state_is_answered(state: State, event: Event) -> None:
    """By the next state, or by an assertion that names both: such an event is our own mistake."""
    if (state, event) in EXPECTED:
        assert after(state, event) is EXPECTED[state, event]
    else:
        with pytest.raises(AssertionError, match=f"{event} in {state}"):
            after(state, event)


def test_every_state_that_is_not_the_end_can_end() -> None:
    assert set(TRANSITIONS) == set(State)
    assert all(row.get(Event.EXITED) is State.GONE for state, row in TRANSITIONS.items() if state is not State.GONE)
    assert not TRANSITIONS[State.GONE]


def test_a_worker_that_never_failed_starts_at_once() -> None:
    assert retry_delay_s(0, 0.0) == retry_delay_s(0, 1.0) == 0.0


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_a_delay_is_bounded_on_both_sides(failures: int, jitter: float) -> None:
    assert RETRY_S_FIRST * 0.75 <= retry_delay_s(failures, jitter) <= RETRY_S_MAX * 1.25


@given(st.integers(0, 100), st.floats(0, 1))
def test_delays_only_grow_with_the_failures(failures: int, jitter: float) -> None:
    assert retry_delay_s(failures, jitter) <= retry_delay_s(failures + 1, jitter)


def test_delays_double_up_to_a_minute_and_stay_there() -> None:
    assert [retry_delay_s(n, 0.5) for n in range(1, 9)] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


@given(st.integers(1, 30))
def test_jitter_spreads_a_herd_over_half_a_delay(failures: int) -> None:
    assert retry_delay_s(failures, 1.0) - retry_delay_s(failures, 0.0) == pytest.approx(
        retry_delay_s(failures, 0.5) / 2
    )
