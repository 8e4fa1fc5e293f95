"""What a snapshot says: Java properties, and among them `model_snapshot`, the desired state as JSON (contract section 8).

    {"name": "...-snapshot.cfg", "modelCount": 1, "created": 1795158835460,
     "models": {"digits": {"1.0": {"defaultVersion": true, "marName": "digits.mar", ..., "ringserve": {...}}}},
     "ringserve": {"repository": {...}, "notRestored": {...}, "unregistered": {...}}}

TorchServe reads `models` and nothing that is named after us. So what only we can restore stands below `ringserve`: models in folders
of the repository, those that are remembered although they could not be restored, and files that are there and not wanted.

A file is read whole or not at all; in it, one version that makes no sense leaves the others alone.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from ringserve.protocol.errors import InvalidModel
from ringserve.server.configuration.properties import parse_properties, write_properties
from ringserve.server.repository.files import check_carried, open_regular
from ringserve.server.settings import BATCH_SIZE_MAX, INT_MAX, WORKERS_MAX

logger = logging.getLogger("ringserve.snapshots")

KEY = "model_snapshot"
OURS = "ringserve"
REPOSITORY, NOT_RESTORED, UNREGISTERED = "repository", "notRestored", "unregistered"
BYTES_MAX = 64 << 20
EVERY_VERSION = "all"  # of a model of which none can be told
COMMENT = "Saving snapshot"  # TorchServe's
PLACEMENT_KEYS = ("devices", "placement", "deviceType", "deviceIds")


class SnapshotError(Exception):
    """A snapshot that cannot be read or written; the message says which and why."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of one model; None where nothing was said, so that the archive and the defaults decide.

    From `ours` on it is what TorchServe does not write. `dropped`: the repository brought it, and only what is `kept` (settings a
    snapshot brought) or `scaled` adds to what its file says. `by_name`: it was loaded by its name, and is again. `named`: load_models did. `lost`: it could not be restored the last
    time."""

    model: str
    version: str
    mar_name: str
    default: bool = False
    min_workers: int | None = None
    max_workers: int | None = None
    batch_size: int | None = None
    batch_wait_ms: int | None = None
    response_timeout_s: int | None = None
    startup_timeout_s: int | None = None
    runtime: str = "python"
    ours: bool = False
    url: str = ""
    handler: str = ""
    queue_timeout_s: int | None = None
    remote: bool = False
    dropped: bool = False
    by_name: bool = False
    scaled: bool = False
    kept: bool = False
    named: bool = False
    pinned: bool = False
    lost: bool = False
    placement: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ()  # where its workers ran: for people

    @property
    def name(self) -> str:
        return f"model {self.model} version {self.version}"

    @property
    def nested(self) -> bool:
        """In a folder of the repository, where TorchServe would not find it."""
        return "/" in self.mar_name


@dataclass(frozen=True, slots=True)
class Problem:
    """A version that a snapshot names and that cannot be restored."""

    model: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class State:
    """The desired state of all models. `problems`: what stood there and makes no sense. `unregistered`: files that the API has sent
    away, each with a digest of what it held then, empty where nobody looked."""

    records: tuple[VersionRecord, ...] = ()
    problems: tuple[Problem, ...] = ()
    name: str = ""
    created_ms: int = 0
    unregistered: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole file. `properties` are those beside the state."""

    state: State
    properties: Mapping[str, str] = field(default_factory=dict)


# ---- reading


def read_snapshot(path: Path) -> Snapshot:
    """Raises `SnapshotError` naming the file."""
    try:
        with open_regular(path) as file:
            data = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) > BYTES_MAX:
        raise SnapshotError(f"{path}: expected at most {BYTES_MAX} bytes")
    try:
        return parse_snapshot(data.decode("utf-8"))
    except (SnapshotError, UnicodeDecodeError) as error:
        raise SnapshotError(f"{path}: {error}") from None


def parse_snapshot(text: str) -> Snapshot:
    """A file's text. Raises `SnapshotError`."""
    properties = {entry.key: entry.value for entry in parse_properties(text)}
    state = properties.pop(KEY, None)
    if state is None:
        raise SnapshotError(f"{KEY}: expected a JSON object, got a file without this key")
    return Snapshot(parse_state(state), properties)


def parse_state(text: str) -> State:
    """The value of `model_snapshot`, ours, TorchServe's or written by hand. Raises `SnapshotError`."""
    try:
        document = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise SnapshotError(f"{KEY}: expected a JSON object, got text that does not parse: {error}") from None
    top = _object(document, KEY)
    ours = _ours(top)
    records: list[VersionRecord] = []
    problems: list[Problem] = []
    sections = (
        ({} if _counts_none(top) else top.get("models"), "models"),
        (ours.get(REPOSITORY), REPOSITORY),
        (ours.get(NOT_RESTORED), NOT_RESTORED),
    )
    for section, where in sections:
        for model, version, raw in _versions(section, where):
            try:
                records.append(replace(_record(model, version, raw), lost=where == NOT_RESTORED))
            except (SnapshotError, InvalidModel) as error:
                problems.append(Problem(model, version, str(error)))
    created = top.get("created")
    created_ms = created if isinstance(created, int) and created > 0 else 0
    away = {file: digest for file, digest in ours.get(UNREGISTERED, {}).items() if isinstance(digest, str)}
    return State(tuple(records), tuple(problems), _text(top, "name"), created_ms, away)


def _counts_none(top: dict[str, Any]) -> bool:
    """As TorchServe reads it: with no version counted, none is restored. What is not there, or is no number, counts nothing out."""
    count = top.get("modelCount")
    none = isinstance(count, int) and not isinstance(count, bool) and count <= 0
    if none and top.get("models"):
        logger.warning("%s: modelCount says %d, so none of its models is restored.", KEY, count)
    return none


def _ours(top: dict[str, Any]) -> dict[str, Any]:
    """What stands there as it should; the rest must not keep the models from being restored."""
    sound: dict[str, Any] = {}
    try:
        for name, section in _object(top.get(OURS, {}), OURS).items():
            sound[name] = _object(section, f"{OURS}.{name}")
    except SnapshotError as error:
        logger.error("%s: %s: not restored.", KEY, error)
    return sound


def _versions(section: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    for model, versions in _object({} if section is None else section, where).items():
        if isinstance(versions, dict):
            yield from ((model, version, raw) for version, raw in versions.items())
        else:
            yield model, EVERY_VERSION, versions


def _record(model: str, version: str, raw: Any) -> VersionRecord:
    values = _object(raw, "")
    ours = _object(values.get(OURS, {}), OURS)
    if not _text(values, "marName"):
        raise SnapshotError("marName: expected the name of an archive in the model store, got none")
    low, high = _number(values, "minWorkers", 0, WORKERS_MAX), _number(values, "maxWorkers", 0, WORKERS_MAX)
    if low is not None and high is not None and high < low:
        raise SnapshotError(f"maxWorkers: expected {low} (minWorkers) or more, got {high}")
    placement = _object(ours.get("placement", {}), "placement")
    check_carried(placement, "placement")
    devices = ours.get("devices", [])
    return VersionRecord(
        model,
        version,
        _text(values, "marName"),
        _flag(values, "defaultVersion"),
        low,
        high,
        _number(values, "batchSize", 1, BATCH_SIZE_MAX),
        _number(values, "maxBatchDelay", 0, INT_MAX),
        _number(values, "responseTimeout", 0, INT_MAX),
        _number(values, "startupTimeout", 0, INT_MAX),
        _text(values, "runtimeType") or "python",
        ours=OURS in values,
        url=_text(ours, "url"),
        handler=_text(ours, "handler"),
        queue_timeout_s=_number(ours, "queueTimeout", 0, INT_MAX),
        remote=_flag(ours, "remote"),
        dropped=_flag(ours, "dropped"),
        by_name=_flag(ours, "byName"),
        scaled=_flag(ours, "scaled"),
        kept=_flag(ours, "kept"),
        named=_flag(ours, "named"),
        pinned=_flag(ours, "pinned"),
        placement={key: value for key, value in placement.items() if key in PLACEMENT_KEYS},
        devices=tuple(map(str, devices)) if isinstance(devices, list) else (),
    )


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SnapshotError(f"{where + ': ' if where else ''}expected a JSON object, got {_shown(value)}")
    return value


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise SnapshotError(f"{key}: expected text, got {_shown(value)}")
    return value or ""


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise SnapshotError(f"{key}: expected true or false, got {_shown(value)}")
    return value is True


def _number(values: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    """TorchServe's parser also takes "4" and 4.0."""
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SnapshotError(f"{key}: expected a whole number from {least} to {most}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return f"{value!r:.100}"


# ---- writing


def write_snapshot(state: State, properties: Sequence[tuple[str, str]], date: str) -> str:
    """A file's text; `model_snapshot` is the last of its properties, so that a torn file has none that parses."""
    return write_properties([*properties, (KEY, render_state(state))], [COMMENT, date])


def render_state(state: State) -> str:
    served = [each for each in state.records if not each.lost]
    models = [each for each in served if not each.nested]
    only_ours = {
        REPOSITORY: _grouped(each for each in served if each.nested),
        NOT_RESTORED: _grouped(each for each in state.records if each.lost),
        UNREGISTERED: {_clean(file): digest for file, digest in state.unregistered.items()},
    }
    document = {
        "name": state.name,
        "modelCount": len(models),
        "created": state.created_ms,
        "models": _grouped(models),
        **({OURS: {key: value for key, value in only_ours.items() if value}} if any(only_ours.values()) else {}),
    }
    # Placement is as somebody's YAML has it, which says more than JSON can.
    return orjson.dumps(document, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()


def _grouped(records: Iterable[VersionRecord]) -> dict[str, dict[str, Any]]:
    grouped: dict[str, dict[str, Any]] = {}
    for each in records:
        grouped.setdefault(_clean(each.model), {})[_clean(each.version)] = _rendered(each)
    return grouped


def _rendered(record: VersionRecord) -> dict[str, Any]:
    """TorchServe's keys in its order, then ours. What nobody has said is left out."""
    theirs: dict[str, Any] = {
        "defaultVersion": record.default,
        "marName": _clean(record.mar_name),
        "minWorkers": record.min_workers,
        "maxWorkers": record.max_workers,
        "batchSize": record.batch_size,
        "maxBatchDelay": record.batch_wait_ms,
        "responseTimeout": record.response_timeout_s,
        "startupTimeout": record.startup_timeout_s,
        "runtimeType": record.runtime,
    }
    ours: dict[str, Any] = {
        "url": _clean(record.url),
        "handler": _clean(record.handler),
        "queueTimeout": record.queue_timeout_s,
        "remote": record.remote,
        "dropped": record.dropped,
        "byName": record.by_name,
        "scaled": record.scaled,
        "kept": record.kept,
        "named": record.named,
        "pinned": record.pinned,
        "placement": dict(record.placement),
        "devices": list(record.devices),
    }
    said = {key: value for key, value in theirs.items() if value is not None}
    if record.ours:
        said[OURS] = {key: value for key, value in ours.items() if value or (value == 0 and value is not False)}
    return said


def _clean(text: str) -> str:
    """Names of files need not be text; one that is not does not keep the others from being written."""
    return text.encode("utf-8", "replace").decode()
