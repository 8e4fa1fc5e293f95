"""From measured rounds to figures: medians, and ratios with the range that they had over the rounds."""

import statistics
from collections.abc import Sequence

import msgspec

from benchmarks.loader import Load


class Ratio(msgspec.Struct, frozen=True):
    """Ours to theirs, in the same round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Round by round, since what slows the machine down in a round slows all of them."""
    rounds = [mine / other if other else 0.0 for mine, other in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(rounds), min(rounds), max(rounds))


def rates(loads: Sequence[Load]) -> list[float]:
    return [load.rps for load in loads]


def load_columns(loads: Sequence[Load]) -> str:
    """Requests a second, p50, p99 (medians of the rounds) and all errors, as four columns."""
    p50_ms = statistics.median(load.p50_ms for load in loads)
    p99_ms = statistics.median(load.p99_ms for load in loads)
    errors = sum(load.errors for load in loads)
    return f"{statistics.median(rates(loads)):>10,.0f}{p50_ms:>9.2f}{p99_ms:>9.2f}{errors:>8}"
