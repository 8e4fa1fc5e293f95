"""Places where a test can make a process die, fail or dawdle: every transition of a slab and a ring.

    RINGSERVE_FAULTS="command-pushed=kill@20,batch-executed=delay"

    kill     the process ends as by `kill -9`        raise    `FaultInjected`, which nobody expects
    delay    50 ms pass                              stop     the process is stopped as by SIGSTOP, and continued by nobody

`@n` strikes at the n-th time in each process, otherwise every time. Without the variable, `reach` does nothing: 30 ns a batch and
place.
"""

import os
import signal
import time
from collections.abc import Callable

VARIABLE = "RINGSERVE_FAULTS"
DELAY_S = 0.05

# In the front end, in the order of a request's life, in the worker, and in the supervisor.
FRONT_END_POINTS = (
    "slab-taken",
    "row-written",
    "body-landed",
    "batch-sealed",
    "command-pushed",
    "command-rung",
    "completion-taken",
    "chunk-taken",
    "batch-delivered",
    "slab-released",
)
WORKER_POINTS = (
    "command-taken",
    "requests-read",
    "batch-executed",
    "replies-written",
    "chunk-pushed",
    "completion-pushed",
    "completion-rung",
)
SUPERVISOR_POINTS = ("snapshot-half-written", "snapshot-synced", "snapshot-named")


class FaultInjected(Exception):
    """Somebody asked for it."""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise() -> None:
    raise FaultInjected(f"asked for by {VARIABLE}")


def _delay() -> None:
    time.sleep(DELAY_S)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


_ACTIONS: dict[str, Callable[[], None]] = {"kill": _kill, "raise": _raise, "delay": _delay, "stop": _stop}


class Faults:
    """What is to happen where. `reach(point)` is called by a process whenever it comes by."""

    def __init__(self, spec: str) -> None:
        """Raises `ValueError` for a place or an action that does not exist."""
        self._planned: dict[str, tuple[Callable[[], None], int]] = {}
        self._seen: dict[str, int] = {}
        for entry in filter(None, spec.split(",")):
            point, _, action = entry.strip().partition("=")
            name, _, number = action.partition("@")
            if point not in FRONT_END_POINTS + WORKER_POINTS + SUPERVISOR_POINTS or name not in _ACTIONS:
                raise ValueError(f"{VARIABLE}: expected point=action[@n], got {entry!r}")
            self._planned[point] = _ACTIONS[name], int(number or 0)

    def reach(self, point: str) -> None:
        planned = self._planned.get(point)
        if planned is None:
            return
        act, at = planned
        seen = self._seen[point] = self._seen.get(point, 0) + 1
        if at in (0, seen):
            act()


def _nothing(point: str) -> None:
    """No faults are asked for."""


reach: Callable[[str], None] = Faults(os.environ[VARIABLE]).reach if os.environ.get(VARIABLE) else _nothing
