"""From the measured rounds to figures: medians, and ratios with the range that they had over the rounds."""

import statistics
from collections.abc import Sequence

import msgspec

from benchmarks.contestants import Memory
from benchmarks.loader import Load

MEBIBYTE = 1 << 20


class Ratio(msgspec.Struct, frozen=True):
    """Ours to theirs, in the same round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


class Point(msgspec.Struct, frozen=True):
    """All rounds at one number of connections. `model_rows_per_s` is the model alone, in batches of `model_batch`."""

    connections: int
    ours: list[Load]
    sanic: list[Load]
    model_batch: int
    model_rows_per_s: list[float]


class Results(msgspec.Struct, frozen=True):
    """One run of the benchmark. `ring_us` is the p50 and p99 of an empty batch's round trip."""

    loader: str
    seconds: int
    points: list[Point]
    memory: Memory
    ring_us: tuple[float, float] | None

    @property
    def errors(self) -> int:
        """Of all contestants: a figure that includes errors compares nothing."""
        return sum(load.errors for point in self.points for load in (*point.ours, *point.sanic))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Round by round, since what slows the machine down in a round slows all of them."""
    rounds = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(rounds), min(rounds), max(rounds))


def rates(loads: Sequence[Load]) -> list[float]:
    return [load.rps for load in loads]


def to_sanic(point: Point) -> Ratio:
    return ratio(rates(point.ours), rates(point.sanic))


def to_model(point: Point) -> Ratio:
    return ratio(rates(point.ours), point.model_rows_per_s)


def point_row(point: Point) -> str:
    """Our line of the table."""
    p50_ms = statistics.median(load.p50_ms for load in point.ours)
    p99_ms = statistics.median(load.p99_ms for load in point.ours)
    errors = sum(load.errors for load in point.ours)
    figures = (
        f"{point.connections:>4}{statistics.median(rates(point.ours)):>10,.0f}{p50_ms:>9.2f}{p99_ms:>9.2f}{errors:>8}"
    )
    return f"{figures}   {to_sanic(point)!s:<24} {to_model(point)}"


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
    rounds = len(results.points[0].ours)
    lines = [
        f"MLP 784-512-512-10, 3 KB in, JSON out; {rounds} rounds of {results.seconds} s, load from {results.loader}",
        "",
        "   c       rps   p50 ms   p99 ms  errors   to Sanic without a model to the model alone",
        *map(point_row, results.points),
        "",
        "   c  Sanic alone, rps  errors  model alone, rows/s",
        *map(ceiling_row, results.points),
        "",
        memory_row(results.memory),
    ]
    if results.ring_us is not None:
        p50_us, p99_us = results.ring_us
        lines.append(f"empty batch through the rings and back: p50 {p50_us:.1f} µs, p99 {p99_us:.1f} µs")
    return "\n".join(lines)


def to_json(results: Results) -> bytes:
    """Every round, and the ratios drawn from them."""
    ratios = [
        {"connections": point.connections, "to_sanic": to_sanic(point), "to_model": to_model(point)}
        for point in results.points
    ]
    return msgspec.json.format(msgspec.json.encode({"results": results, "ratios": ratios, "errors": results.errors}))
