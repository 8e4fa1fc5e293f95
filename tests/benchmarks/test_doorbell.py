"""Every candidate for a doorbell does what the measurement takes for granted."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
with pytest.MonkeyPatch.context() as path_patch:  # benchmarks are run from the root; nothing else may import from there
    path_patch.syspath_prepend(ROOT)
    from benchmarks.doorbell import BELLS, BURST, Placement, ping_pong, ringing_us, summarize

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="eventfd and CPU affinity are Linux's")


@pytest.mark.parametrize("name", BELLS)
def test_every_ring_is_heard_once_however_late(name: str) -> None:
    with BELLS[name]() as bell:
        for _ in range(BURST):
            bell.ring()
        for _ in range(BURST):
            bell.wait()
        bell.ring()
        bell.wait()


def test_ringing_alone_takes_time() -> None:
    with BELLS["pipe"]() as bell:
        assert ringing_us(bell) > 0


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # the child only rings, then is gone
@pytest.mark.parametrize("name", BELLS)
def test_a_round_trip_between_two_processes_comes_back(name: str) -> None:
    with BELLS[name]() as there, BELLS[name]() as back:
        trip = ping_pong(there, back, 50, Placement("as placed", None, None))
    assert 0 < trip.p50_us <= trip.p99_us


def test_round_trips_are_summarized_in_microseconds() -> None:
    trip = summarize([value * 1000 for value in range(1, 200)])
    assert (trip.p50_us, trip.p99_us) == (100.0, 198.0)
