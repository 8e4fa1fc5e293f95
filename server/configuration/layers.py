"""What one source of settings says: a file, the environment, flags. Each is read on its own; `sources.py` stacks them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringserve.server.configuration import kinds
from ringserve.server.configuration.keys import (
    ALWAYS_READ,
    ALWAYS_SO,
    BY_FIELD,
    FLAGS,
    HONOURED,
    NOT_HONOURED,
    OTHER_VARIABLES,
    RECORDED,
    SNAPSHOTS_OFF,
    VARIABLES,
    Key,
    nearest,
    why_without_effect,
)
from ringserve.server.configuration.properties import Property, parse_properties
from ringserve.server.repository.files import open_regular
from ringserve.server.settings import ConfigError, Settings

_VARIABLE = re.compile(r"\$\$([A-Za-z_][A-Za-z0-9_]*)\$\$")
FILE_BYTES_MAX = 64 << 20  # a snapshot may be given as one
_SIMILAR_VARIABLE = 0.85  # many variables begin with TS_: only what is nearly one of ours is taken for a slip


@dataclass(slots=True)
class Report:
    """What came up on the way: what ends the start, what is logged as a warning, and what is worth a line."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Layer:
    """Fields with their values, and where each was said. `carried` are keys of TorchServe's that have no field."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    carried: dict[str, str] = field(default_factory=dict)

    def say(self, field_name: str, value: object, origin: str) -> None:
        self.values[field_name] = value
        self.origins[field_name] = origin


def read_properties_file(path: Path, shown: str) -> list[Property]:
    """Raises `ConfigError`, also for what is no file: a pipe may never end."""
    try:
        with open_regular(path) as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"--ts-config file {shown}: expected at most {FILE_BYTES_MAX} bytes, got more")
        return parse_properties(data.decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ConfigError(f"--ts-config file not found: {shown}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ts-config file {shown} cannot be read: {error}") from None


def from_file(entries: Sequence[Property], shown: str, environ: Mapping[str, str], report: Report) -> Layer:
    """Values that cannot be used are errors; keys that are none, or are said twice, are warned about."""
    layer = Layer()
    lines: dict[str, int] = {}
    last = {entry.key: entry for entry in entries}
    for entry in entries:
        origin = f"{shown}:{entry.line}"
        where = f"{origin}: {_printable(entry.key)}"
        if entry.key in lines:
            report.warnings.append(f"{where} is said in line {lines[entry.key]} as well: line {entry.line} counts.")
        lines[entry.key] = entry.line
        if entry is not last[entry.key]:
            continue
        key = HONOURED.get(entry.key)
        if key is None:
            _without_field(entry, where, layer, report)
            continue
        try:
            text = _expanded(entry.value, environ, where)
        except ConfigError as error:
            report.errors.append(str(error))
        else:
            _take(layer, key, text, where, origin, report)
    return layer


def from_snapshot(entries: Iterable[Property], name: str, report: Report) -> Layer:
    """What was remembered and cannot be used any more does not keep a server from starting."""
    layer = Layer()
    for entry in entries:
        if entry.key == "number_of_gpu":  # how many there were; there may be others now
            continue
        key = HONOURED.get(entry.key)
        if key is None:
            _carry(layer, entry)
            continue
        try:
            value = key.read(_trimmed(key, entry.value), f"snapshot {name}: {entry.key}")
        except ConfigError as error:
            report.warnings.append(f"{error}: not restored.")
        else:
            layer.say(key.field, value, f"snapshot {name}")
    return layer


def always_from_environment(environ: Mapping[str, str], report: Report) -> Layer:
    """What the environment may say without being let by the file."""
    layer = Layer()
    for variable, field_name in ALWAYS_READ.items():
        text = environ.get(variable)
        if not text:
            continue
        if variable == "TEMP" and not Path(text).is_dir():
            report.errors.append(f"Invalid temp directory: {text}, please check TEMP environment variable.")
            continue
        layer.say(field_name, Path(text), variable)
    return layer


def from_environment(environ: Mapping[str, str], said: Mapping[str, Any], report: Report) -> Layer:
    """`said` by the file: whether the environment counts, and whether its allowed URLs do."""
    layer = Layer()
    let = bool(said.get("enable_envvars_config"))
    for variable in sorted(name for name in environ if name.startswith("TS_")):
        name, text = VARIABLES.get(variable), environ[variable]
        if name == "allowed_urls":
            if said.get("use_env_allowed_urls"):
                _take(layer, HONOURED[name], text, variable, variable, report)
            else:
                report.notes.append(f"{variable} has no effect: no file says use_env_allowed_urls=true.")
        elif name == "ts_open_inference_protocol":
            if text == "oip" or (let and text.lower() == "true"):
                report.warnings.append(f"{variable} {why_without_effect(name, 'true')}")
        elif name is None:
            near = nearest(variable, set(VARIABLES), _SIMILAR_VARIABLE)
            if let and near is not None and variable not in OTHER_VARIABLES:
                report.warnings.append(f"{variable} is not a setting and is ignored. Did you mean {near}?")
        elif not let:
            report.notes.append(f"{variable} has no effect: no file says enable_envvars_config=true.")
        elif name in HONOURED:
            _take(layer, HONOURED[name], text, variable, variable, report)
        else:
            _without_effect(name, text, variable, report)
    return layer


def from_flags(told: Mapping[str, object], report: Report) -> Layer:
    """`told` maps a flag to its value. A text or a number is read as in the file, so that the same bounds hold."""
    layer = Layer()
    for flag, value in told.items():
        if flag == SNAPSHOTS_OFF:
            layer.say("snapshots", False, flag)
        field_name = FLAGS.get(flag)
        if field_name is None:
            continue
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            _take(layer, BY_FIELD[field_name], str(value), flag, flag, report)
        else:
            layer.say(field_name, value, flag)
    return layer


def _take(layer: Layer, key: Key, text: str, where: str, origin: str, report: Report) -> None:
    try:
        value = key.read(_trimmed(key, text), where)
    except ConfigError as error:
        if not key.falls_back:
            report.errors.append(str(error))
            return
        value = getattr(Settings(), key.field)
        report.warnings.append(f"{error}. As in TorchServe, {kinds.written(value)} is taken instead.")
    if key.field == "model_defaults":
        report.warnings += kinds.without_effect(value, where)
    layer.say(key.field, value, origin)


def _without_field(entry: Property, where: str, layer: Layer, report: Report) -> None:
    if entry.key in NOT_HONOURED:
        _carry(layer, entry)
        _without_effect(entry.key, entry.value.strip(), where, report)
    elif entry.key not in RECORDED:
        near = nearest(entry.key, {*HONOURED, *NOT_HONOURED})
        hint = f" Did you mean {near}?" if near else ""
        report.warnings.append(f"{where} is not a setting and is ignored.{hint}")


def _carry(layer: Layer, entry: Property) -> None:
    if entry.key in NOT_HONOURED and entry.key != "vmargs":  # which may hold passwords
        layer.carried[entry.key] = entry.value


def _without_effect(name: str, text: str, where: str, report: Report) -> None:
    if name in ALWAYS_SO:
        report.notes.append(f"{where} {ALWAYS_SO[name]}")
        return
    reason = why_without_effect(name, text)
    if reason is not None:
        report.warnings.append(f"{where} {reason}")


def _trimmed(key: Key, text: str) -> str:
    return text if key.secret else text.strip()  # a blank may belong to a password


def _expanded(value: str, environ: Mapping[str, str], where: str) -> str:
    def lookup(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise ConfigError(f"{where}: Invalid Environment Variable {match[1]}")
        return environ[match[1]]

    return _VARIABLE.sub(lookup, value)


def _printable(key: str) -> str:
    return key if key.isprintable() else repr(key)
