"""Prometheus text 0.0.4, with the habits of TorchServe's where a family is one of its own (contract section 3.1).

TorchServe ends every list of labels with a comma. Prometheus reads that; other readers may not, so that this server's own
families go without.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterable

from ringserve.server.metrics.family import Collector, Family, Sample, format_value, format_whole

logger = logging.getLogger("ringserve.metrics")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def render(families: Iterable[Family], wanted: Collection[str] = ()) -> bytes:
    """The families as text; with names that are `wanted`, only the samples of these names. A family that has no samples yet is
    there all the same, unless others are wanted."""
    lines: list[str] = []
    for each in families:
        samples = [sample for sample in each.samples if not wanted or sample.name in wanted]
        if wanted and not samples:
            continue
        lines.append(f"# HELP {each.name} {_escaped(each.help)}")
        lines.append(f"# TYPE {each.name} {each.kind}")
        comma = "," if each.torchserve else ""
        written = format_whole if each.whole else format_value
        lines += [_line(sample, comma, written) for sample in samples]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")


def collect(collectors: Iterable[Collector]) -> list[Family]:
    """What all of them say, every family once: a text that has one twice is none. Of a family that two understand differently, and
    of a collector that fails, the rest is left out, for a scrape must not lose everything over one number."""
    merged: dict[str, Family] = {}
    for collector in collectors:
        try:
            families = list(collector.families())
        except Exception:  # whatever it was, the others are all right
            logger.exception("%s has no metrics to offer", type(collector).__name__)
            continue
        for each in families:
            known = merged.get(each.name)
            if not _is_valid(each) or (known is not None and known.kind is not each.kind):
                logger.warning("metric %s of %s is left out", each.name, type(collector).__name__)
            elif known is None:
                merged[each.name] = each
            else:
                merged[each.name] = known._replace(samples=_united(known.samples, each.samples))
    return list(merged.values())


def _is_valid(each: Family) -> bool:
    """Whether Prometheus could read it: one bad name makes it throw away the whole scrape."""
    names = {name for sample in each.samples for name, _ in sample.labels}
    return bool(METRIC_NAME.fullmatch(each.name)) and all(map(_LABEL_NAME.fullmatch, names))


def _united(known: Iterable[Sample], more: Iterable[Sample]) -> list[Sample]:
    """Whose sample came first keeps it."""
    by_place = {(sample.name, sample.labels): sample for sample in known}
    for sample in more:
        by_place.setdefault((sample.name, sample.labels), sample)
    return list(by_place.values())


def _line(sample: Sample, comma: str, written: Callable[[float], str]) -> str:
    if not sample.labels:
        return f"{sample.name} {written(sample.value)}"
    labels = ",".join(f'{name}="{_escaped_value(value)}"' for name, value in sample.labels)
    return f"{sample.name}{{{labels}{comma}}} {written(sample.value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escaped_value(text: str) -> str:
    return _escaped(text).replace('"', r"\"")
