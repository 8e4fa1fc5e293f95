"""`ts_metrics.log` and `model_metrics.log`, in TorchServe's format (contract section 3.2).

TorchServe writes a line for every request. Here counters are looked at once a second, and what they have gained is one line: the
sum that a reader makes of the lines is the same. An idle server writes what the machine is doing, and nothing else.
"""

import time
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path

from ringserve.server.logs.rotating import LogFile
from ringserve.server.logs.writer import Outlet, Writer
from ringserve.server.metrics.catalogue import Catalogue
from ringserve.server.metrics.custom import LogSeries
from ringserve.server.metrics.family import Family, Kind, Labels, format_value
from ringserve.server.metrics.listing import Emission

SERVER_FILE, MODEL_FILE = "ts_metrics.log", "model_metrics.log"
# A name, a unit or a value of a handler's may hold anything; a line holds one line, and its fields.
_OWNED = str.maketrans(dict.fromkeys(":,|#\r\n", "_"))


class MetricLog:
    """Both files. `writes`: whether anything goes into them; they are made in any case, as TorchServe makes them."""

    def __init__(self, folder: Path, catalogue: Catalogue, *, writes: bool) -> None:
        self.writes = writes
        self._catalogue = catalogue
        self._writer = Writer("metric-log")
        self._server = self._outlet(folder / SERVER_FILE)
        self._models = self._outlet(folder / MODEL_FILE)
        self._known: dict[tuple[str, Labels], float] = {}

    def _outlet(self, path: Path) -> Outlet:
        outlet = self._writer.outlet(str(path), LogFile(path))
        outlet.put(b"", 0)
        return outlet

    def changes(self, families: Iterable[Family], *, gauges_always: bool = False) -> None:
        """What has changed in TorchServe's metrics since the last look: of a counter what it has gained, of a gauge its value."""
        if not self.writes:
            return
        lines = [line for each in families if each.torchserve for line in self._changed(each, gauges_always)]
        if lines:
            self._put(self._server, lines)

    def _changed(self, family: Family, gauges_always: bool) -> Iterable[str]:
        listed = self._catalogue.torchserve.get(family.name)
        unit = "" if listed is None else listed.unit
        for name, labels, value in family.samples:
            known = self._known.get((name, labels))
            if family.kind is Kind.COUNTER:
                change = value - (known or 0.0)
                told = change != 0
            else:
                change = value
                told = gauges_always or known != value
            if told and family.kind is not Kind.HISTOGRAM:
                self._known[name, labels] = value
                hostname = labels[-1][1] if labels else ""
                head = _fields(name, unit, change, labels[:-1])
                yield f"{head}|#hostname:{hostname},timestamp:{int(time.time())}"

    def emissions(self, series: Sequence[LogSeries | None], lines: Sequence[Emission]) -> None:
        """What handlers have emitted, one by one; not those whose series was not taken. There may be thousands a second."""
        if not self.writes:
            return
        around = [None if each is None else _around(each) for each in series]
        texts = []
        for at, value, at_s, request_ids in map(_fields_of, lines):
            if (found := around[at] if at < len(around) else None) is not None:
                head, tail = found
                texts.append(f"{head}{format_value(value)}{tail}{request_ids or 'null'},timestamp:{at_s}")
        if texts:
            self._put(self._models, texts)

    @staticmethod
    def _put(outlet: Outlet, lines: list[str]) -> None:
        now_s = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(now_s))},{int(now_s * 1000) % 1000:03d}"
        text = "".join(f"{stamp} - {line}\n" for line in lines)
        outlet.put(text.encode("utf-8", "replace"), len(lines))

    def close(self) -> None:
        """Write what is left. Takes as long as the disk does, up to seconds."""
        self._writer.close()


def _around(each: LogSeries) -> tuple[str, str]:
    """What stands before and behind the value of every line of a series."""
    head = f"{each.name.translate(_OWNED)}.{each.unit.translate(_OWNED)}:"
    return head, f"|#{_dimensions(each.labels)}|#hostname:{each.hostname.translate(_OWNED)},requestID:"


_fields_of = attrgetter("series", "value", "at_s", "request_ids")


def _fields(name: str, unit: str, value: float, labels: Labels) -> str:
    return f"{name.translate(_OWNED)}.{unit.translate(_OWNED)}:{format_value(value)}|#{_dimensions(labels)}"


def _dimensions(labels: Labels) -> str:
    return ",".join(f"{key.translate(_OWNED)}:{text.translate(_OWNED)}" for key, text in labels)
