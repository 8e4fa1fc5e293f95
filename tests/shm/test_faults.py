"""Injected faults: only where asked for, only as asked for."""

import pytest

from ringserve.shm import faults
from ringserve.shm.faults import FRONT_END_POINTS, WORKER_POINTS, FaultInjected, Faults


def test_a_fault_strikes_where_it_is_planned_and_nowhere_else() -> None:
    planned = Faults("command-pushed=raise")
    planned.reach("command-taken")
    with pytest.raises(FaultInjected):
        planned.reach("command-pushed")


def test_a_numbered_fault_strikes_once() -> None:
    planned = Faults("batch-executed=raise@3")
    planned.reach("batch-executed")
    planned.reach("batch-executed")
    with pytest.raises(FaultInjected):
        planned.reach("batch-executed")
    planned.reach("batch-executed")


@pytest.mark.parametrize("spec", ["nowhere=kill", "command-pushed=explode", "command-pushed"])
def test_a_place_or_action_that_does_not_exist_is_refused_by_name(spec: str) -> None:
    with pytest.raises(ValueError, match=spec):
        Faults(spec)


def test_without_the_variable_nothing_is_planned() -> None:
    for point in FRONT_END_POINTS + WORKER_POINTS:
        faults.reach(point)
