"""One wanted worker of a version, over all the processes that fill it."""

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ringserve.protocol.errors import RingServeError
from ringserve.server.budget import worker_threads
from ringserve.server.lifecycle import FAILURES_TOLERATED, State
from ringserve.server.placement import Place
from ringserve.server.process import ALLOCATOR, Child

MakeEnvironment = Callable[[Place, int], dict[str, str]]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# onnxruntime reports to its maker from release 1.29 on, and keeps a file of it among the temporary ones. A server reports to
# nobody, unless its environment says so.
QUIET = {"ORT_DISABLE_TELEMETRY": "1"}


class WorkerSlot:
    """The same id, device and start time over all its processes. `replaces` is the worker whose place it is to take."""

    def __init__(self, worker_id: str, label: str, replaces: "WorkerSlot | None" = None) -> None:
        self.worker_id = worker_id
        self.label = label
        self.replaces = replaces
        self.place: Place | None = None  # decided before its first process starts, and kept
        self.started_s = time.time()
        self.wanted = True
        self.given_up = False  # it ended, and may not be restarted
        self.failures = 0  # since it last loaded: starts that came to nothing, or found no place
        self.child: Child | None = None
        self.began_s = self.ready_s = 0.0  # the present process; seconds of the monotonic clock
        self.loaded = False  # whether the present process came as far as serving
        self.at_work = False  # and took a batch
        self.answered = False  # and answered one
        self.rss_ready_bytes = 0  # what it took then
        self.worn = ""  # why it should be replaced by a fresh one, if it should
        self.load_error: RingServeError | None = None  # why it did not load, when it said so
        self.has_loaded = False  # whether any process of this worker came as far as serving
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.clock: asyncio.TimerHandle | None = None  # the next start, or how long this process has to prove itself

    @property
    def ready(self) -> bool:
        return self.child is not None and self.child.state is State.READY

    @property
    def under_way(self) -> bool:
        """Whether a process of it is loading."""
        return self.child is not None and self.child.state is State.STARTING

    @property
    def waits(self) -> bool:
        """Whether it has no process, and should have one as soon as that is allowed."""
        idle = self.child is None or self.child.state is State.GONE
        return idle and self.wanted and not self.given_up and self.place is not None and self.clock is None

    @property
    def hopeful(self) -> bool:
        """Whether requests may wait for it, for all that is known of this worker alone."""
        placed = self.place is not None or self.failures < FAILURES_TOLERATED
        return placed and self.wanted and not self.given_up

    def forget_process(self) -> None:
        """A new one is about to begin."""
        self.cancel_clock()
        self.began_s, self.ready_s = time.monotonic(), 0.0
        self.loaded = self.at_work = self.answered = False
        self.worn, self.load_error = "", None

    def revive(self) -> None:
        """It may be started once more."""
        self.given_up = False
        self.settled = asyncio.get_running_loop().create_future()

    def settle(self, error: RingServeError | None) -> None:
        """Tell who waits for the first outcome of this worker. Success is the last word."""
        if self.settled.done():
            if error is not None or self.settled.exception() is None:
                return
            self.settled = asyncio.get_running_loop().create_future()
        if error is None:
            self.settled.set_result(None)
        else:
            self.settled.set_exception(error)
            self.settled.exception()  # an asynchronous caller never asks; that is not an unhandled error

    def cancel_clock(self) -> None:
        if self.clock is not None:
            self.clock.cancel()
            self.clock = None


def environment(
    place: Place, workers: int, hidden: re.Pattern[str] | None = None, more: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """The server's own without the names that are `hidden` from models, with the part of one of so many workers in the processors,
    for the libraries that ask when imported, and what `more` says, whatever the server's own does."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(worker_threads(workers))
    visible = {} if place.visible is None else {"CUDA_VISIBLE_DEVICES": place.visible}
    return {
        **dict.fromkeys(THREAD_VARIABLES, threads),
        **ALLOCATOR,
        **QUIET,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the numbers of the driver's tools, and of our placement
        **{name: value for name, value in os.environ.items() if hidden is None or not hidden.fullmatch(name)},
        **visible,
        **more,
        "PYTHONUNBUFFERED": "1",
    }
