"""The life of a child process, of any kind: one table."""

from enum import Enum


class State(Enum):
    STARTING = "starting"  # the process runs; its model is loading, its listener opening
    READY = "ready"
    DRAINING = "draining"  # told to stop, or being killed
    GONE = "gone"  # exited and reaped


class Event(Enum):
    LOADED = "loaded"
    STOP_ASKED = "stop asked"
    EXITED = "exited"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.STARTING: {Event.LOADED: State.READY, Event.STOP_ASKED: State.DRAINING, Event.EXITED: State.GONE},
    State.READY: {Event.STOP_ASKED: State.DRAINING, Event.EXITED: State.GONE},
    # A worker may finish loading after it was told to stop, and may be told twice.
    State.DRAINING: {Event.LOADED: State.DRAINING, Event.STOP_ASKED: State.DRAINING, Event.EXITED: State.GONE},
    State.GONE: {},
}
assert TRANSITIONS.keys() == set(State)


def after(state: State, event: Event) -> State:
    """The next state; an event that the state cannot see is a bug and says so."""
    row = TRANSITIONS[state]
    assert event in row, f"{event} in {state}"
    return row[event]


# A worker that loads once and dies is restarted at once; one that cannot load is retried at growing distances, for ever.
RETRY_S_FIRST = 1.0
RETRY_S_MAX = 60.0
# So many failures in a row make a version fail fast instead of letting requests wait for it.
FAILURES_TOLERATED = 3


def retry_delay_s(failures: int, jitter: float) -> float:
    """How long to wait after `failures` failed starts in a row; `jitter` in 0..1 spreads herds apart."""
    assert failures >= 0
    assert 0 <= jitter <= 1
    if failures == 0:
        return 0.0
    delay_s = min(RETRY_S_FIRST * 2.0 ** min(failures - 1, 16), RETRY_S_MAX)
    return delay_s * (0.75 + 0.5 * jitter)
