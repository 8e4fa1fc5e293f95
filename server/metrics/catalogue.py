"""metrics.yaml: which of TorchServe's metrics and of the handlers' are reported, by which unit and with which dimensions.

A file that cannot be used is said to be, and the metrics are those of the default file: TorchServe runs with none at all then.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ringserve.protocol.errors import InvalidModel
from ringserve.server.metrics.exposition import METRIC_NAME
from ringserve.server.metrics.family import Collector, Family, Kind, torchserve_help
from ringserve.server.metrics.listing import KINDS, ListedMetric
from ringserve.server.repository.config_yaml import read_mapping

logger = logging.getLogger("ringserve.metrics")

DEFAULT_FILE = Path(__file__).with_name("metrics.yaml")
SECTIONS = ("ts_metrics", "model_metrics")
METRICS_MAX = 1000
DIMENSIONS_MAX = 32
TEXT_CHARS_MAX = 512


class ListError(Exception):
    """The file is no list of metrics; the sentence names the file, the key, what was expected and what came."""


class Catalogue(NamedTuple):
    """The two sections, by name."""

    torchserve: Mapping[str, ListedMetric]
    handlers: Mapping[str, ListedMetric]


def read_catalogue(path: Path) -> Catalogue:
    """Raises `ListError`."""
    try:
        document = read_mapping(path)
    except InvalidModel as error:
        raise ListError(f"metrics_config: {path}: {error.message}") from None
    for key in document:
        if key not in (*SECTIONS, "dimensions"):
            logger.warning("metrics_config: %s: %s is no key of such a file and is ignored", path, key)
    server, handlers = (_section(path, document, name) for name in SECTIONS)
    return Catalogue(server, handlers)


def open_catalogue(path: Path | None) -> Catalogue:
    """Of the file, or of the default one."""
    if path is not None:
        try:
            return read_catalogue(path)
        except ListError as error:
            logger.error("%s. The metrics are those of the default file.", error)
    return read_catalogue(DEFAULT_FILE)


def _section(path: Path, document: Mapping[str, Any], section: str) -> dict[str, ListedMetric]:
    where = f"metrics_config: {path}: {section}"
    lists = document.get(section)
    if lists is None:
        return {}
    if not isinstance(lists, dict):
        raise ListError(f"{where}: expected the keys {', '.join(KINDS)}, got {lists!r:.100}")
    found: dict[str, ListedMetric] = {}
    for kind, entries in lists.items():
        if kind not in KINDS:
            raise ListError(f"{where}.{kind!s:.100}: expected one of {', '.join(KINDS)}")
        if entries is not None and not isinstance(entries, list):
            raise ListError(f"{where}.{kind}: expected a list of metrics, got {entries!r:.100}")
        for number, entry in enumerate(entries or ()):
            listed = _listed(f"{where}.{kind}[{number}]", kind, entry, section == "model_metrics")
            if listed.name in found:
                raise ListError(f"{where}.{kind}[{number}].name: expected every name once, got {listed.name} again")
            found[listed.name] = listed
    if len(found) > METRICS_MAX:
        raise ListError(f"{where}: expected at most {METRICS_MAX} metrics, got {len(found)}")
    return found


def _listed(where: str, kind: str, entry: Any, of_handler: bool) -> ListedMetric:
    if not isinstance(entry, dict):
        raise ListError(f"{where}: expected a mapping with name, unit and dimensions, got {entry!r:.100}")
    name, unit = (_text(f"{where}.{key}", entry.get(key)) for key in ("name", "unit"))
    dimensions = entry.get("dimensions")
    if dimensions is None and not of_handler:
        dimensions = []
    if not isinstance(dimensions, list) or len(dimensions) > DIMENSIONS_MAX:
        raise ListError(
            f"{where}.dimensions: expected a list of at most {DIMENSIONS_MAX} names, got {dimensions!r:.100}"
        )
    names = tuple(_text(f"{where}.dimensions[{number}]", each) for number, each in enumerate(dimensions))
    return ListedMetric(name, kind, unit, names)


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_CHARS_MAX:
        raise ListError(f"{where}: expected text of at most {TEXT_CHARS_MAX} characters, got {value!r:.100}")
    return value


class Listed:
    """What is listed, without a value: TorchServe names it before there is one."""

    def __init__(self, catalogue: Catalogue) -> None:
        listed = {**catalogue.handlers, **catalogue.torchserve}
        self._families = [
            Family(each.name, Kind(each.kind), torchserve_help(Kind(each.kind), each.unit), [], torchserve=True)
            for each in listed.values()
            if METRIC_NAME.fullmatch(each.name)
        ]

    def families(self) -> Iterable[Family]:
        return self._families


class AsListed:
    """Another collector's families; of TorchServe's those that are listed, by the unit and the dimensions that are listed."""

    def __init__(self, collector: Collector, catalogue: Catalogue) -> None:
        self._collector = collector
        self._listed = catalogue.torchserve

    def families(self) -> Iterable[Family]:
        for each in self._collector.families():
            if not each.torchserve:
                yield each
            elif (listed := self._listed.get(each.name)) is not None and listed.kind == each.kind:
                yield _renamed(each, listed)


def _renamed(family: Family, listed: ListedMetric) -> Family:
    """Dimensions are matched by their position. What has no name there keeps its own."""
    samples = [
        sample._replace(
            labels=tuple(
                (listed.dimensions[at] if at < len(listed.dimensions) else name, value)
                for at, (name, value) in enumerate(sample.labels)
            )
        )
        for sample in family.samples
    ]
    return family._replace(help=torchserve_help(Kind(listed.kind), listed.unit), samples=samples)
