"""Experiment: 3 KB rows through a small model, beside what HTTP alone and what the arithmetic alone cost."""

import importlib
import statistics
from contextlib import ExitStack
from pathlib import Path

import msgspec

from benchmarks import contestants, mlp
from benchmarks.contestants import Memory
from benchmarks.loader import Load
from benchmarks.measuring import Conditions, job_for, measure, warm_up
from benchmarks.report import Ratio, load_columns, rates, ratio

BATCH_MAX = 32
MEBIBYTE = 1 << 20
MODEL_SECONDS_SHARE = 1 / 3  # the model alone is steady: it needs less time than a load


class Point(msgspec.Struct, frozen=True):
    """All rounds at one number of connections. `model_rows_per_s` is the model alone, in batches of `model_batch`."""

    connections: int
    ours: list[Load]
    sanic: list[Load]
    model_batch: int
    model_rows_per_s: list[float]


class Results(msgspec.Struct, frozen=True):
    """`ring_us` is the p50 and p99 of an empty batch's round trip."""

    points: list[Point]
    memory: Memory
    ring_us: tuple[float, float]


def to_sanic(point: Point) -> Ratio:
    return ratio(rates(point.ours), rates(point.sanic))


def to_model(point: Point) -> Ratio:
    return ratio(rates(point.ours), point.model_rows_per_s)


def point_row(point: Point) -> str:
    """Our line of the table."""
    return f"{point.connections:>4}{load_columns(point.ours)}   {to_sanic(point)!s:<24} {to_model(point)}"


def ceiling_row(point: Point) -> str:
    """What ours is compared with, in absolute figures."""
    errors = sum(load.errors for load in point.sanic)
    sanic_rps, model_rps = statistics.median(rates(point.sanic)), statistics.median(point.model_rows_per_s)
    return f"{point.connections:>4}{sanic_rps:>16,.0f}{errors:>8}{model_rps:>16,.0f} (batches of {point.model_batch})"


def memory_row(memory: Memory) -> str:
    """What our processes hold after the load."""
    front_ends, workers, supervisor = (
        f"{size / MEBIBYTE:.0f} MiB" for size in (memory.front_ends, memory.workers, memory.supervisor)
    )
    return f"resident after the load: front end {front_ends}, worker {workers}, supervisor {supervisor}"


def render(results: Results) -> str:
    """The report as text."""
    p50_us, p99_us = results.ring_us
    lines = [
        "MLP 784-512-512-10, 3 KB in, JSON out",
        "   c       rps   p50 ms   p99 ms  errors   to Sanic without a model to the model alone",
        *map(point_row, results.points),
        "   c  Sanic alone, rps  errors  model alone, rows/s",
        *map(ceiling_row, results.points),
        memory_row(results.memory),
        f"empty batch through the rings and back: p50 {p50_us:.1f} µs, p99 {p99_us:.1f} µs",
    ]
    return "\n".join(lines)


class SmallRows:
    """Ceiling 1 is Sanic answering without a model, ceiling 2 the model in this process."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._points = [Point(c, [], [], min(c, BATCH_MAX), []) for c in conditions.connections]
        self._memory = Memory(0, 0, 0)
        self._ring_us = (0.0, 0.0)

    def start(self, stack: ExitStack, directory: Path) -> None:
        self._case = case = mlp.make(directory)
        self._constant = [case.answers[0]] * len(case.answers)
        answer = msgspec.json.encode(case.answers[0])
        self._sanic = stack.enter_context(contestants.sanic_without_a_model(case.bodies[0], answer, directory))
        self._ours = stack.enter_context(contestants.ringserve(mlp.archive(case), directory))
        warm_up(self._sanic, case.bodies, self._constant)
        warm_up(self._ours, case.bodies, case.answers)

    def measure_round(self) -> None:
        case, loader, seconds = self._case, self._conditions.loader, self._conditions.seconds
        for point in self._points:
            ours = job_for(self._ours, case.bodies, case.answers, point.connections, seconds)
            point.ours.append(measure(loader, ours))
            sanic = job_for(self._sanic, case.bodies, self._constant, point.connections, seconds)
            point.sanic.append(measure(loader, sanic))
            alone = mlp.rows_per_s(case.weights, point.model_batch, seconds * MODEL_SECONDS_SHARE)
            point.model_rows_per_s.append(alone)

    def finish(self) -> None:
        self._memory = contestants.memory(self._ours)
        self._ring_us = importlib.import_module("benchmarks.rings").round_trip_us()

    def results(self) -> Results:
        return Results(self._points, self._memory, self._ring_us)

    def render(self) -> str:
        return render(self.results())

    def figures(self) -> object:
        ratios = [
            {"connections": point.connections, "to_sanic": to_sanic(point), "to_model": to_model(point)}
            for point in self._points
        ]
        return {"results": self.results(), "ratios": ratios}

    @property
    def errors(self) -> int:
        return sum(load.errors for point in self._points for load in (*point.ours, *point.sanic))
