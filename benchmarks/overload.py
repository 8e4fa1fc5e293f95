"""Experiment: three times as many requests as the model can answer. What is taken must be answered in time and as fast as ever,
and what is not taken must hear of it at once."""

import statistics
import threading
from contextlib import ExitStack
from pathlib import Path

import msgspec

from benchmarks import contestants
from benchmarks.contestants import HOST, ROOT, Archive
from benchmarks.handlers.fixed_time import ANSWER, BATCH_MAX, SERVICE_S
from benchmarks.loader import Load
from benchmarks.measuring import Conditions, job_for, run_loader, run_open_loop, warm_up
from benchmarks.open_loop import OpenJob, OpenLoad
from benchmarks.report import Ratio, ratio

NAME = "fixed_time"
OVERLOAD = 3.0
DEADLINE_MS = 1000
QUEUE_MAX = 100
BODY = b"x" * 1024
CAPACITY_CONNECTIONS = (
    6 * BATCH_MAX
)  # enough for a full batch to wait whenever one is finished, and below the queue's size
CAPACITY_SECONDS_SHARE = 0.5
WATCH_S = 0.1
GOODPUT_GOAL, REFUSED_MS_GOAL = 0.9, 10.0
CONFIG = f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {BATCH_MAX}\n"
ARCHIVE = Archive(NAME, CONFIG, handler=str(ROOT / "benchmarks" / "handlers" / "fixed_time.py"))

assert CAPACITY_CONNECTIONS < QUEUE_MAX


class Round(msgspec.Struct, frozen=True):
    """`capacity` is what a closed loop gets out of the model in the same round."""

    capacity: Load
    load: OpenLoad
    queue_depth: int


def goodput(rounds: list[Round]) -> Ratio:
    return ratio([each.load.goodput for each in rounds], [each.capacity.rps for each in rounds])


def render(rounds: list[Round]) -> str:
    def median(values: list[float]) -> float:
        return statistics.median(values)

    loads = [each.load for each in rounds]
    capacity = median([each.capacity.rps for each in rounds])
    admitted_ms = median([load.right_p99_ms for load in loads])
    refused_ms = median([load.refused_p99_ms for load in loads])
    offered, refused, expired = (
        sum(values) for values in zip(*((load.offered, load.refused, load.expired) for load in loads), strict=True)
    )
    ideal, depth = BATCH_MAX / SERVICE_S, max(each.queue_depth for each in rounds)
    refused_p50_ms = median([load.refused_p50_ms for load in loads])
    errors = sum(map(errors_of, rounds))
    lines = [
        f"overload: {OVERLOAD:.0f} times the capacity of {capacity:,.0f} requests a second, open loop",
        f"a batch of {BATCH_MAX} takes {SERVICE_S * 1e3:.0f} ms: the capacity is {capacity / ideal:.0%} of the model alone",
        f"goodput to capacity: {goodput(rounds)} (goal {GOODPUT_GOAL})",
        f"admitted: p99 {admitted_ms:.0f} ms (deadline {DEADLINE_MS} ms); largest queue seen {depth} (limit {QUEUE_MAX})",
        f"refused: {refused / offered:.0%} of {offered}, p50 {refused_p50_ms:.1f} ms, p99 {refused_ms:.1f} ms, goal {REFUSED_MS_GOAL:.0f} ms",
        f"expired {expired}; errors {errors}",
        f"the client itself was late by {median([load.late_p99_ms for load in loads]):.1f} ms (p99)",
    ]
    return "\n".join(lines)


def errors_of(measured: Round) -> int:
    over = max(0, measured.queue_depth - QUEUE_MAX)
    return measured.capacity.errors + measured.load.errors + over


class Overload:
    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._rounds: list[Round] = []

    def start(self, stack: ExitStack, directory: Path) -> None:
        settings = {"job_queue_size": QUEUE_MAX}
        self._target = stack.enter_context(contestants.ringserve(ARCHIVE, directory, settings))
        warm_up(self._target, [BODY], [ANSWER.encode()])

    def measure_round(self) -> None:
        target, seconds = self._target, self._conditions.seconds
        closed = job_for(target, [BODY], [ANSWER.encode()], CAPACITY_CONNECTIONS, seconds * CAPACITY_SECONDS_SHARE)
        capacity = run_loader(closed)
        headers = {"x-request-timeout-ms": str(DEADLINE_MS)}
        job = OpenJob(
            HOST, target.port, target.path, OVERLOAD * capacity.rps, seconds, BODY, ANSWER.encode(), headers,
            seed=len(self._rounds),
        )  # fmt: skip
        depths = [0]
        done = threading.Event()
        watching = threading.Thread(target=self._watch, args=(depths, done))
        watching.start()
        try:
            load = run_open_loop(job)
        finally:
            done.set()
            watching.join()
        self._rounds.append(Round(capacity, load, max(depths)))

    def _watch(self, depths: list[int], done: threading.Event) -> None:
        """How many requests wait, as the server says, again and again."""
        while not done.wait(WATCH_S):
            status = contestants.describe(self._target.management_port, NAME)["jobQueueStatus"]
            assert isinstance(status, dict)
            depths.append(status["pendingRequests"])

    def finish(self) -> None:
        pass

    def render(self) -> str:
        return render(self._rounds)

    def figures(self) -> object:
        return {"results": self._rounds, "ratios": {"goodput_to_capacity": goodput(self._rounds)}}

    @property
    def errors(self) -> int:
        return sum(map(errors_of, self._rounds))
