"""Trace settings, with the protocol's rules and Triton's sentences (contract section 3.9). Pure.

A model has what was set for it, else what was set for all, else what the server was started with. `null` takes a setting back.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ringserve.protocol.errors import BadRequest, Unsupported

OFF, TIMESTAMPS, TENSORS = "OFF", "TIMESTAMPS", "TENSORS"
UINT32_MAX, INT32_MAX = 2**32 - 1, 2**31 - 1
FILE_IS_FIXED = "trace file location can not be updated through network protocol"
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_REQUEST_CHARS = 200


@dataclass(frozen=True, slots=True)
class Start:
    """What the server was started with."""

    level: str = OFF
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0
    file: str = ""


@dataclass(slots=True)
class Scope:
    """What was set, by setting; what is missing is somebody else's to say. `left` are the traces left of a count that was set."""

    level: str | None = None
    rate: int | None = None
    count: int | None = None
    log_frequency: int | None = None


@dataclass(frozen=True, slots=True)
class Effective:
    """What holds for one model, or for all that have nothing of their own."""

    level: str
    rate: int
    count: int
    log_frequency: int
    file: str

    def described(self) -> dict[str, Any]:
        """As clients read it: numbers are texts."""
        return {
            "trace_level": [self.level],
            "trace_rate": str(self.rate),
            "trace_count": str(self.count),
            "log_frequency": str(self.log_frequency),
            "trace_file": self.file,
            "trace_mode": "triton",
        }

    @property
    def every(self) -> int:
        """One of so many requests is traced, 0: none is. Without a file there is nowhere to put them."""
        return self.rate if self.level == TIMESTAMPS and self.count != 0 and self.file else 0


@dataclass(slots=True)
class TraceSettings:
    """Of the whole server. `update` changes all of what it is told, or nothing."""

    start: Start
    shared: Scope = field(default_factory=Scope)
    models: dict[str, Scope] = field(default_factory=dict)

    def of(self, model: str = "") -> Effective:
        """What holds for the model, or with "" for all."""
        scopes = [self.models[model]] if model in self.models else []
        found = {}
        for name in ("level", "rate", "count", "log_frequency"):
            values = [getattr(each, name) for each in (*scopes, self.shared)]
            found[name] = next((value for value in values if value is not None), getattr(self.start, name))
        return Effective(**found, file=self.start.file)

    def update(self, model: str, wanted: Mapping[str, Any]) -> Effective:
        """Set what is `wanted` for the model, or with "" for all. What is no setting is passed over. Raises `BadRequest`, and
        `Unsupported` for what can be said at the start only, or is not built."""
        if "trace_file" in wanted:
            raise Unsupported(FILE_IS_FIXED)
        new = {name: read(wanted[key]) for key, (name, read) in _READERS.items() if key in wanted}
        new = {name: value for name, value in new.items() if value is not _UNCHANGED}
        if new.get("level") == TIMESTAMPS and not self.start.file:
            raise BadRequest("Attempting to set invalid trace setting :trace file name is not given")
        scope = self.shared if not model else self.models.setdefault(model, Scope())
        for name, value in new.items():
            setattr(scope, name, value)
        if model and scope == Scope():
            del self.models[model]
        return self.of(model)

    def traced(self, model: str) -> bool:
        """A request of that model has been traced: one less is left. False where none was."""
        for scope in (self.models.get(model), self.shared):
            if scope is not None and scope.count is not None:
                return _count_down(scope, scope.count)
        return _count_down(self.shared, self.start.count)

    def rates(self) -> tuple[int, dict[str, int]]:
        """What front ends need to know: for models in general, and for those that have something of their own."""
        return self.of().every, {model: self.of(model).every for model in self.models}


def _count_down(scope: Scope, left: int) -> bool:
    if left > 0:
        scope.count = left - 1
    return left != 0


_UNCHANGED = object()


def _level(value: Any) -> object:
    if value is None:
        return None
    if not isinstance(value, list):
        raise BadRequest("attempt to access JSON non-array as array: trace_level")
    if not all(isinstance(each, str) for each in value):
        raise BadRequest("attempt to access JSON non-string as string: trace_level")
    if not value:
        return _UNCHANGED
    if OFF in value and len(value) > 1:
        raise BadRequest("Expect only one trace level 'OFF' is specified")
    for each in value:
        if each not in (OFF, TIMESTAMPS, TENSORS):
            raise BadRequest(f"trace_level: expected OFF or TIMESTAMPS, got {each!r:.{_REQUEST_CHARS}}")
    if TENSORS in value:
        raise Unsupported("trace_level: expected OFF or TIMESTAMPS, got TENSORS: contents of tensors are not traced")
    return str(value[0])


def _number(key: str, text: Any, low: int, high: int) -> int:
    """As Triton reads numbers: out of texts."""
    if not isinstance(text, str):
        raise BadRequest(f"attempt to access JSON non-string as string: {key}")
    if not _WHOLE.fullmatch(text):
        raise BadRequest(f"Unable to parse '{key}', got: {text[:_REQUEST_CHARS]}")
    if not low <= int(text) <= high:
        raise BadRequest(f"Unable to parse '{key}', value is out of range [ {low}, {high} ], got: {text}")
    return int(text)


def _rate(value: Any) -> object:
    if value is None:
        return None
    rate = _number("trace_rate", value, 0, UINT32_MAX)
    if rate == 0:
        raise BadRequest("Attempting to set invalid trace setting :sample rate must be non-zero")
    return rate


def _count(value: Any) -> object:
    if value is None:
        return None
    count = _number("trace_count", value, -INT32_MAX - 1, INT32_MAX)
    if count < -1:
        raise BadRequest(f"Unable to parse 'trace_count'. Expecting value >= -1, got:{count}")
    return count


def _log_frequency(value: Any) -> object:
    return None if value is None else _number("log_frequency", value, 0, UINT32_MAX)


_READERS = {
    "trace_level": ("level", _level),
    "trace_rate": ("rate", _rate),
    "trace_count": ("count", _count),
    "log_frequency": ("log_frequency", _log_frequency),
}
