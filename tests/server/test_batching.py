"""When a batch leaves: both rules, by table and for any numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.batching import (
    HOLD,
    OUTSTANDING_MAX,
    SECOND_BATCH_PART,
    BatchPolicy,
    Decision,
    Dispatch,
    WaitUntil,
)

ADAPTIVE = BatchPolicy(rows_max=8)
FILL = BatchPolicy(rows_max=8, wait_ns_max=2_000, fill=True)

policies = st.builds(BatchPolicy, st.integers(1, 64), st.integers(0, 10**9), st.booleans())
waitings = st.integers(1, 200)
times = st.integers(0, 2**62)


@pytest.mark.parametrize(
    ("policy", "waiting", "outstanding", "now_ns", "decision"),
    [
        (ADAPTIVE, 1, 0, 100, Dispatch(1)),
        (ADAPTIVE, 1, 1, 100, HOLD),
        (ADAPTIVE, 2, 1, 100, Dispatch(2)),
        (ADAPTIVE, 1, 2, 100, HOLD),
        (ADAPTIVE, 7, 1, 100, Dispatch(7)),
        (ADAPTIVE, 9, 1, 100, Dispatch(8)),
        (ADAPTIVE, 9, 2, 10**12, HOLD),
        (FILL, 1, 0, 100, WaitUntil(2_100)),
        (FILL, 1, 0, 2_099, WaitUntil(2_100)),
        (FILL, 1, 0, 2_100, Dispatch(1)),
        (FILL, 7, 1, 2_099, WaitUntil(2_100)),
        (FILL, 1, 1, 2_100, HOLD),
        (FILL, 8, 0, 100, Dispatch(8)),
        (FILL, 8, 1, 100, Dispatch(8)),
        (FILL, 8, 2, 2_100, HOLD),
        (FILL, 20, 0, 100, Dispatch(8)),
        (BatchPolicy(1, 2_000, fill=True), 1, 0, 100, Dispatch(1)),
        (BatchPolicy(8, 0, fill=True), 1, 0, 100, Dispatch(1)),
    ],
)
def test_the_table(policy: BatchPolicy, waiting: int, outstanding: int, now_ns: int, decision: Decision) -> None:
    """The oldest row arrived at 100."""
    assert policy.decide(waiting, 100, outstanding, now_ns) == decision


@given(policies, waitings, times, st.integers(0, 5), st.integers(0, 10**10))
def test_never_more_rows_than_wait_or_fit_and_never_a_third_batch(
    policy: BatchPolicy, waiting: int, oldest_ns: int, outstanding: int, age_ns: int
) -> None:
    decision = policy.decide(waiting, oldest_ns, outstanding, oldest_ns + age_ns)
    worth_queueing = waiting * SECOND_BATCH_PART >= policy.rows_max
    assert (decision == HOLD) is (outstanding >= OUTSTANDING_MAX or (outstanding > 0 and not worth_queueing))
    if isinstance(decision, Dispatch):
        assert decision.rows == min(waiting, policy.rows_max)


@given(st.integers(1, 64), st.integers(0, 10**9), waitings, times)
def test_adaptive_never_waits_while_a_worker_is_idle(
    rows_max: int, wait_ns_max: int, waiting: int, oldest_ns: int
) -> None:
    decision = BatchPolicy(rows_max, wait_ns_max).decide(waiting, oldest_ns, 0, oldest_ns)
    assert isinstance(decision, Dispatch)


@given(st.integers(1, 64), waitings, times)
def test_behind_a_running_batch_a_full_one_leaves_at_once(rows_max: int, more: int, oldest_ns: int) -> None:
    assert BatchPolicy(rows_max).decide(rows_max + more, oldest_ns, 1, oldest_ns) == Dispatch(rows_max)


@given(st.integers(2, 64), st.integers(1, 10**9), times, st.integers(0, 10**10), st.data())
def test_fill_waits_from_the_first_arrival_and_no_longer(
    rows_max: int, wait_ns_max: int, oldest_ns: int, age_ns: int, data: st.DataObject
) -> None:
    waiting = data.draw(st.integers(1, rows_max - 1))
    policy = BatchPolicy(rows_max, wait_ns_max, fill=True)
    decision = policy.decide(waiting, oldest_ns, 0, oldest_ns + age_ns)
    assert decision == (WaitUntil(oldest_ns + wait_ns_max) if age_ns < wait_ns_max else Dispatch(waiting))
    assert policy.decide(waiting, oldest_ns, 0, oldest_ns + wait_ns_max) == Dispatch(waiting)
