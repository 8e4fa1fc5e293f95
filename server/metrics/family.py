"""Metrics as values: families of samples, made anew for every scrape by whoever knows them.

A `Collector` says what there is now; `exposition.py` writes it down. Nothing here counts anything.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

Labels = tuple[tuple[str, str], ...]


class Kind(StrEnum):
    """What the numbers of a family are."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Sample(NamedTuple):
    """One line. Its name is that of the family, in a histogram with `_bucket`, `_sum` or `_count` behind it."""

    name: str
    labels: Labels
    value: float


class Family(NamedTuple):
    """Samples that belong together. `torchserve`: one of TorchServe's, written as TorchServe writes it. `whole`: one of Triton's, whose
    whole numbers have no decimals."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[Sample]
    torchserve: bool = False
    whole: bool = False


class Collector(Protocol):
    """Whoever has something to say at a scrape. Called on the supervisor's event loop, so it may not take long; what has to be
    fetched is fetched before."""

    def families(self) -> Iterable[Family]: ...


def family(name: str, kind: Kind, help: str, samples: Iterable[tuple[Labels, float]]) -> Family:
    """One of this server's own; all its samples have its name."""
    return Family(name, kind, help, [Sample(name, labels, value) for labels, value in samples])


def torchserve_family(name: str, kind: Kind, unit: str, samples: Iterable[tuple[Labels, float]]) -> Family:
    """One of TorchServe's, or of a handler (contract section 3.1)."""
    found = [Sample(name, labels, value) for labels, value in samples]
    return Family(name, kind, torchserve_help(kind, unit), found, torchserve=True)


def torchserve_help(kind: Kind, unit: str) -> str:
    return f"Torchserve prometheus {kind} metric with unit: {unit}"


def histogram_samples(
    name: str, labels: Labels, bounds: Sequence[float], counts: Sequence[int], total: float
) -> list[Sample]:
    """The samples of one histogram. `counts[i]` values were at most `bounds[i]` and more than the bound before; the last count,
    one more than there are bounds, is of those above all bounds. `total` is the sum of the values."""
    assert len(counts) == len(bounds) + 1
    upto = list(itertools.accumulate(counts))
    samples = [
        Sample(f"{name}_bucket", (*labels, ("le", format_value(bound))), count)
        for bound, count in zip((*bounds, math.inf), upto, strict=True)
    ]
    return [*samples, Sample(f"{name}_count", labels, upto[-1]), Sample(f"{name}_sum", labels, total)]


def format_value(value: float) -> str:
    """As Prometheus reads numbers, and never as an integer: TorchServe's are all doubles."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))


def format_whole(value: float) -> str:
    """The same, and whole numbers as such: Triton's counters are integers."""
    return str(int(value)) if float(value).is_integer() else format_value(value)
