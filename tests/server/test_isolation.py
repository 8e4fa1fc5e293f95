"""Finding the rows that make a batch fail."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.backends.contract import ContractBroken
from ringserve.protocol.errors import PredictionFailed, RingServeError
from ringserve.server.isolation import CALLS_PER_HALVING_MAX, isolate

WHOLE = PredictionFailed("of the whole batch")


class Model:
    """Raises when an offender is among the rows, naming the first one."""

    def __init__(self, offenders: set[int]) -> None:
        self.offenders = offenders
        self.groups: list[list[int]] = []

    def __call__(self, rows: Sequence[int]) -> RingServeError | None:
        self.groups.append(list(rows))
        found = sorted(self.offenders & set(rows))
        return PredictionFailed(str(found[0])) if found else None


@given(st.integers(1, 64), st.data())
def test_one_offender_fails_alone_with_its_own_error(rows: int, data: st.DataObject) -> None:
    offender = data.draw(st.integers(0, rows - 1))
    model = Model({offender})
    failed, calls = isolate(range(rows), PredictionFailed(str(offender)), model, lambda: True)
    assert {row: error.message for row, error in failed.items()} == {offender: str(offender)}
    assert calls <= 2 * math.ceil(math.log2(rows))


@given(st.sets(st.integers(0, 31), min_size=1))
def test_every_offender_fails_and_the_calls_are_bounded(offenders: set[int]) -> None:
    model = Model(offenders)
    failed, calls = isolate(range(32), WHOLE, model, lambda: True)
    assert set(failed) >= offenders
    assert calls == len(model.groups) <= CALLS_PER_HALVING_MAX * 5


def test_no_group_runs_twice_and_the_larger_ones_run_first() -> None:
    model = Model({5})
    isolate(range(8), WHOLE, model, lambda: True)
    assert model.groups == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [6, 7], [4], [5]]


def test_rows_need_not_be_neighbours() -> None:
    model = Model({40})
    failed, _ = isolate([2, 3, 7, 40, 41], WHOLE, model, lambda: True)
    assert list(failed) == [40]


def test_when_the_calls_are_used_up_the_rest_fails_with_the_error_of_its_group() -> None:
    model = Model(set(range(16)))
    failed, calls = isolate(range(16), WHOLE, model, lambda: True)
    assert calls == CALLS_PER_HALVING_MAX * 4
    assert set(failed) == set(range(16))
    assert failed[15].message == "14", "row 15 was not tried without row 14"


def test_when_time_is_over_nothing_is_tried_any_more() -> None:
    answers = iter([True, False, False, False])
    model = Model({0})
    failed, calls = isolate(range(8), WHOLE, model, lambda: next(answers))
    assert calls == 1
    assert {row: error.message for row, error in failed.items()} == {
        **dict.fromkeys(range(4, 8), WHOLE.message),
        **dict.fromkeys(range(4), "0"),
    }


@pytest.mark.parametrize("broken_at", [8, 4, 2])
def test_an_answer_that_is_not_one_per_row_is_not_tried_again(broken_at: int) -> None:
    def attempt(rows: Sequence[int]) -> RingServeError | None:
        assert broken_at < 8
        return ContractBroken("both numbers") if len(rows) == broken_at else WHOLE

    failure = ContractBroken("both numbers") if broken_at == 8 else WHOLE
    failed, calls = isolate(range(8), failure, attempt, lambda: True)
    assert set(failed) == set(range(8))
    assert {error.message for error in failed.values()} == {"both numbers"}
    assert calls == {8: 0, 4: 2, 2: 6}[broken_at]


def test_a_single_row_is_not_tried_again() -> None:
    assert isolate([3], WHOLE, Model(set()), lambda: True) == ({3: WHOLE}, 0)
