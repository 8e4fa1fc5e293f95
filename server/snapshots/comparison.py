"""How two states differ, in sentences."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ringserve.server.snapshots.document import Snapshot, State, VersionRecord

# A field and what people call it. Where workers happened to be is no difference.
FIELDS = {
    "mar_name": "the file",
    "min_workers": "minWorkers",
    "max_workers": "maxWorkers",
    "batch_size": "batchSize",
    "batch_wait_ms": "maxBatchDelay",
    "response_timeout_s": "responseTimeout",
    "startup_timeout_s": "startupTimeout",
    "queue_timeout_s": "queueTimeout",
    "runtime": "runtimeType",
    "url": "the URL",
    "handler": "the handler",
    "placement": "the placement",
}
_OF_ITSELF = {"python", "version", "tsConfigFile"}  # who wrote it, not what it says


def compare(before: Snapshot, after: Snapshot) -> list[str]:
    """Models, then settings; none where they agree."""
    return [*_models(before.state, after.state), *_settings(before.properties, after.properties)]


def compare_running(before: State, status: Mapping[str, Any]) -> list[str]:
    """With what a server says of itself: less than a snapshot does."""
    old = {(each.model, each.version): each for each in before.records if not each.lost}
    now = {(each["model"], each["version"]): each for each in status["models"]}
    sentences = _come_and_gone(old, now)
    for key in sorted(old.keys() & now.keys()):
        record, each = old[key], now[key]
        for name, was, value in (
            ("minWorkers", record.min_workers, each["minWorkers"]),
            ("maxWorkers", record.max_workers, each["maxWorkers"]),
        ):
            if was != value:
                sentences.append(_changed(key, name, was, value))
        if each["default"] and not record.default:
            sentences.append(_now_default(key))
    return sentences


def _models(before: State, after: State) -> Iterator[str]:
    old = {(each.model, each.version): each for each in before.records}
    new = {(each.model, each.version): each for each in after.records}
    yield from _come_and_gone(old, new)
    for key in sorted(old.keys() & new.keys()):
        yield from _differences(key, old[key], new[key])


def _come_and_gone(old: Iterable[tuple[str, str]], new: Iterable[tuple[str, str]]) -> list[str]:
    before, after = set(old), set(new)
    gone = [f"{_name(key)} is not there any more." for key in sorted(before - after)]
    return [*gone, *(f"{_name(key)} is new." for key in sorted(after - before))]


def _differences(key: tuple[str, str], old: VersionRecord, new: VersionRecord) -> Iterator[str]:
    for field, name in FIELDS.items():
        was, now = (_meant(each, field) for each in (old, new))
        if was != now:
            yield _changed(key, name, was, now)
    if new.default and not old.default:
        yield _now_default(key)
    if new.lost != old.lost:
        yield f"{_name(key)} {'could not be restored' if new.lost else 'is there again'}."


def _meant(record: VersionRecord, field: str) -> object:
    """TorchServe does not write what is as good as not said."""
    value = getattr(record, field)
    if field == "url":
        return value or record.mar_name
    return value or None if field == "queue_timeout_s" else value


def _settings(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for key in sorted((before.keys() | after.keys()) - _OF_ITSELF):
        was, now = before.get(key), after.get(key)
        if was != now:
            yield f"{key} was {_shown(was)} and is {_shown(now)}."


def _name(key: tuple[str, str]) -> str:
    return f"model {key[0]} version {key[1]}"


def _now_default(key: tuple[str, str]) -> str:
    return f"{_name(key)} is the default version now."


def _changed(key: tuple[str, str], name: str, was: object, now: object) -> str:
    return f"{_name(key)}: {name} was {_shown(was)} and is {_shown(now)}."


def _shown(value: object) -> str:
    return "not said" if value in (None, "") else f"{value}"
