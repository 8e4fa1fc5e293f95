"""The metrics of handlers, over all workers and all their lives.

Counters and histograms add up what every worker has emitted, gauges are what was emitted last. They are the supervisor's: a worker
that dies takes with it what it has emitted in its last fifth of a second. What handlers do cannot spoil the rest: names are made
valid, those of the server's own metrics are refused, and how much there may be is bounded.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ringserve.server.metrics.family import Family, Kind, Labels, Sample, family, histogram_samples, torchserve_help
from ringserve.server.metrics.listing import HISTOGRAM_BOUNDS, Emission, Emitted, ListedMetric, MetricPlan, Series
from ringserve.server.metrics.printed import parse

logger = logging.getLogger("ringserve.metrics")

METRICS_MAX = 500  # of one model
SERIES_MAX = 1000  # of one metric
COMPLAINTS_MAX = 1000  # remembered, each of which is made once
OWN_PREFIX = "ringserve_"
DROPPED = "ringserve_metrics_dropped_total"

_NO_METRIC_NAME = re.compile(r"[^a-zA-Z0-9_:]")
_NO_LABEL_NAME = re.compile(r"[^a-zA-Z0-9_]")
_SUFFIXES = ("", "_bucket", "_sum", "_count")


class LogSeries(NamedTuple):
    """What the lines of one series in the log of metrics have in common; `labels` are without the host's name."""

    name: str
    unit: str
    labels: Labels
    hostname: str


OnLines = Callable[[Sequence[LogSeries | None], Sequence[Emission]], None]


@dataclass(slots=True)
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(HISTOGRAM_BOUNDS) + 1))
    total: float = 0.0


@dataclass(slots=True)
class _Metric:
    """`label_names` end with the host's; `picked` says which of the emitted dimensions they are."""

    name: str  # a valid one
    listed: ListedMetric
    label_names: tuple[str, ...]
    picked: tuple[int, ...]
    values: dict[tuple[str, ...], float | _Histogram] = field(default_factory=dict)


class CustomMetrics:
    """The handlers' part of a scrape. `listed` are those of metrics.yaml by name; with `every`, others are reported as well. The names
    in `reserved` are the server's. Single values go to `on_lines`, by the places of their series; without
    it, workers need not tell of them."""

    def __init__(
        self,
        listed: Mapping[str, ListedMetric],
        hostname: str,
        *,
        every: bool = False,
        reserved: Collection[str] = (),
        on_lines: OnLines | None = None,
    ) -> None:
        self.plan = MetricPlan(tuple(listed.values()), every, on_lines is not None)  # of every worker
        self._listed = listed
        self._hostname = hostname
        self._every = every
        self._reserved = frozenset(reserved)
        self._on_lines = on_lines
        self._metrics: dict[str, _Metric] = {}  # by the name that was emitted
        self._sample_names: dict[str, str] = {}  # whose they are
        self._by_model: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()  # values, by model
        self._complaints: set[str] = set()

    # ---- what comes in

    def emitted(self, model: str, said: Emitted) -> None:
        """A worker of that model tells of what its handler has emitted."""
        for name in said.unlisted:
            self._say_unlisted(model, name)
        metrics = [self._take(model, series, self._hostname) for series in said.series]
        if self._on_lines is not None and said.lines:
            pairs = zip(metrics, said.series, strict=True)
            self._on_lines([_logged(metric, series, self._hostname) for metric, series in pairs], said.lines)
        self._dropped[model] += said.dropped_values
        if said.dropped_values:
            self._complain(f"model {model} emits more series of metrics than are taken; the rest is dropped")
        if said.dropped_lines:
            self._complain(f"model {model} emits more metrics than the log of metrics takes; it has only some of them")

    def printed(self, model: str, line: str) -> bool:
        """Whether this line, which a worker of that model has printed, was a metric."""
        found = parse(line)
        if found is None:
            return False
        if found.name not in self._listed and not self._every:
            self._say_unlisted(model, found.name)
            return True
        listed = self._listed.get(found.name)
        series = Series(found.name, found.kind if listed is None else listed.kind, found.unit, found.dimensions)
        if not series.add(found.value):
            self._drop(model, f"the counter {found.name} of model {model} cannot go down by {found.value:g}")
            return True
        metric = self._take(model, series, found.hostname)
        if self._on_lines is not None:
            emission = Emission(0, found.value, found.at_s, found.request_ids)
            self._on_lines([_logged(metric, series, found.hostname)], [emission])
        return True

    def _take(self, model: str, series: Series, hostname: str) -> _Metric | None:
        """Add a series to its metric; None, having said why, where it has none."""
        metric = self._metrics.get(series.name) or self._begin(model, series)
        if metric is None:
            self._dropped[model] += 1
            return None
        names = metric.listed.dimensions
        if len(series.dimensions) != len(names):
            given = [name for name, _ in series.dimensions]
            self._drop(
                model, f"metric {series.name} of model {model}: expected the dimensions {list(names)}, got {given}"
            )
            return None
        if metric.listed.kind != series.kind:
            wanted = f"expected a {metric.listed.kind}, got a {series.kind}"
            self._drop(model, f"metric {series.name} of model {model}: {wanted}")
            return None
        key = (*(series.dimensions[at][1] for at in metric.picked), hostname)
        if key not in metric.values and len(metric.values) >= SERIES_MAX:
            limit = f"expected at most {SERIES_MAX} different sets of dimension values, got more; these are dropped"
            self._drop(model, f"metric {series.name} of model {model}: {limit}")
            return None
        _add(metric.values, key, series)
        return metric

    def _begin(self, model: str, series: Series) -> _Metric | None:
        """A name that comes for the first time."""
        listed = self._listed.get(series.name)
        if listed is None:
            names = tuple(name for name, _ in series.dimensions)
            listed = ListedMetric(series.name, series.kind, series.unit, names)
        name = valid_metric_name(series.name)
        own = [name + suffix for suffix in (_SUFFIXES if listed.kind == "histogram" else ("",))]
        taken = [
            each for each in own if each in self._reserved or each.startswith(OWN_PREFIX) or each in self._sample_names
        ]
        if taken:
            whose = f"metric {self._sample_names[taken[0]]}" if taken[0] in self._sample_names else "the server"
            self._complain(f"metric {series.name} of model {model} is dropped: {taken[0]} is the name of {whose}")
            return None
        if self._by_model[model] >= METRICS_MAX:
            self._complain(
                f"model {model}: expected at most {METRICS_MAX} different metrics, got more; these are dropped"
            )
            return None
        self._by_model[model] += 1
        self._sample_names.update(dict.fromkeys(own, series.name))
        labels, picked = valid_label_names(listed.dimensions)
        metric = self._metrics[series.name] = _Metric(name, listed, (*labels, "Hostname"), picked)
        return metric

    # ---- what is not taken

    def _say_unlisted(self, model: str, name: str) -> None:
        if self._remember(f"unlisted {name}"):
            logger.info(
                "metric %s of model %s is not listed in the metrics configuration and is not reported", name, model
            )

    def _drop(self, model: str, why: str) -> None:
        self._dropped[model] += 1
        self._complain(why)

    def _complain(self, why: str) -> None:
        if self._remember(why):
            logger.warning("%s", why)

    def _remember(self, what: str) -> bool:
        """Whether it is new."""
        if what in self._complaints or len(self._complaints) >= COMPLAINTS_MAX:
            return False
        self._complaints.add(what)
        return True

    # ---- what a scrape sees

    def families(self) -> Iterable[Family]:
        for metric in self._metrics.values():
            kind = Kind(metric.listed.kind)
            samples = [sample for key, value in metric.values.items() for sample in _samples(metric, key, value)]
            yield Family(metric.name, kind, torchserve_help(kind, metric.listed.unit), samples, torchserve=True)
        dropped = [((("model_name", model),), count) for model, count in sorted(self._dropped.items())]
        said = "Values of handlers' metrics that were not taken: too many, or not what their metric is."
        yield family(DROPPED, Kind.COUNTER, said, dropped)


def _add(values: dict[tuple[str, ...], float | _Histogram], key: tuple[str, ...], series: Series) -> None:
    if series.kind == "gauge":
        values[key] = series.value
    elif series.kind == "counter":
        known = values.get(key, 0.0)
        assert not isinstance(known, _Histogram)
        values[key] = known + series.value
    else:
        histogram = values.setdefault(key, _Histogram())
        assert isinstance(histogram, _Histogram)
        for at, count in enumerate(series.buckets[: len(histogram.counts)]):
            histogram.counts[at] += count
        histogram.total += series.value


def _logged(metric: _Metric | None, series: Series, hostname: str) -> LogSeries | None:
    """None for what was not taken."""
    if metric is None:
        return None
    labels = tuple((name, series.dimensions[at][1]) for at, name in enumerate(metric.listed.dimensions))
    return LogSeries(series.name, metric.listed.unit, labels, hostname)


def _samples(metric: _Metric, key: tuple[str, ...], value: float | _Histogram) -> Sequence[Sample]:
    labels = tuple(zip(metric.label_names, key, strict=True))
    if isinstance(value, _Histogram):
        return histogram_samples(metric.name, labels, HISTOGRAM_BOUNDS, value.counts, value.total)
    return [Sample(metric.name, labels, value)]


def valid_metric_name(name: str) -> str:
    """What Prometheus can read, as near to `name` as can be."""
    valid = _NO_METRIC_NAME.sub("_", name)
    return valid if valid and not valid[0].isdigit() else f"_{valid}"


def valid_label_names(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names that Prometheus can read, and the places of those that they stand for: no name twice, and none that has a meaning of
    its own."""
    found: dict[str, int] = {}
    for at, name in enumerate(names):
        valid = _NO_LABEL_NAME.sub("_", name)
        if not valid or valid[0].isdigit() or valid == "le":
            valid = f"_{valid}"
        if valid.startswith("__"):
            valid = "_" + valid.lstrip("_")
        if valid != "Hostname":
            found.setdefault(valid, at)
    return tuple(found), tuple(found.values())
