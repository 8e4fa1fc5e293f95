"""All that the server was told, as one `Settings`: command line > environment > config.properties > what the newest snapshot
remembers > defaults. Each field knows who said it, and what lost against something stronger is said as well.

Two differences to TorchServe, both on purpose (contract section 7.4). There the environment beats the command line, and a
snapshot replaces ./config.properties. Here what is said now wins over what is remembered, key by key.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ringserve.server.configuration import kinds
from ringserve.server.configuration.keys import BY_FIELD, CONFIG_FILE, REPOSITORY, SNAPSHOTS_OFF
from ringserve.server.configuration.layers import (
    Layer,
    Report,
    always_from_environment,
    from_environment,
    from_file,
    from_flags,
    from_snapshot,
    read_properties_file,
)
from ringserve.server.configuration.properties import Property, parse_properties
from ringserve.server.settings import DEFAULT_REPOSITORY, ConfigError, Settings, with_repository

CONFIG_NAME = "config.properties"
HIDDEN = "***"
DEFAULT = "default"
FOLLOWS = "by"  # one setting that comes of another
SHOWN_CHARACTERS_MAX = 100
_CREDENTIALS = re.compile(r"(\w+://)[^/?#\s,]*@")
_SIGNATURE = re.compile(r"(\w+://[^?#\s,]*\?)[^\s,]+")


def configure(
    told: Mapping[str, object],
    environ: Mapping[str, str],
    cwd: Path,
    newest: Callable[[Path], Path | None] | None = None,
) -> Settings:
    """`told` maps flags to values, without those that were not given. `newest` finds the newest snapshot below a log folder.
    Raises `ConfigError` with a line for each value that cannot be used."""
    report = Report()
    flags = from_flags(told, report)
    always = always_from_environment(environ, report)
    path, path_origin = _config_path(told, environ, cwd)
    file = Layer()
    if path is not None:
        file = from_file(read_properties_file(cwd / path, str(path)), str(path), environ, report)
    log_location = always.values.get("log_location", Settings().log_location)
    memory = _NOTHING
    if SNAPSHOTS_OFF not in told and newest is not None:
        memory = _remembered(newest(cwd / log_location), cwd / path if path else None, bool(path_origin), file, report)
    environment = from_environment(environ, {**memory.layer.values, **file.values}, report)
    if report.errors:
        raise ConfigError("\n".join(report.errors))
    above = [file, environment, always, flags]
    _forget_the_mode_of_another_folder(memory.layer, above, REPOSITORY in told)
    merged = _stacked([memory.layer, *above])
    if path is not None:
        merged.say("config_file", cwd / path, path_origin or "found")
    settings = _with_folder(Settings(**merged.values), merged.origins, told, cwd)
    _contradictions([file, environment], merged, report)
    if memory.name:
        _differences(memory, settings, report)
    origins = {name: settings.origins.get(name, DEFAULT) for name in SHOWN_FIELDS}
    return replace(
        settings,
        origins=origins,
        carried={**memory.layer.carried, **file.carried},
        warnings=tuple(report.warnings),
        notes=tuple(report.notes),
    )


_NOT_SETTINGS = {"origins", "carried", "warnings", "notes"}
SHOWN_FIELDS: tuple[str, ...] = tuple(name for name in Settings.__dataclass_fields__ if name not in _NOT_SETTINGS)


class _Memory:
    """What the newest snapshot says: `layer` is what may count, `everything` what it said besides."""

    def __init__(self, layer: Layer, name: str, everything: Layer) -> None:
        self.layer = layer
        self.name = name
        self.everything = everything


_NOTHING = _Memory(Layer(), "", Layer())


def _config_path(told: Mapping[str, object], environ: Mapping[str, str], cwd: Path) -> tuple[Path | None, str]:
    """The file, and who named it: nobody where it merely lies in the folder."""
    if environ.get("TS_CONFIG_FILE"):
        return Path(environ["TS_CONFIG_FILE"]), "TS_CONFIG_FILE"
    said = told.get(CONFIG_FILE)
    if said is not None:
        return Path(str(said)), CONFIG_FILE
    return (Path(CONFIG_NAME), "") if (cwd / CONFIG_NAME).is_file() else (None, "")


def _remembered(snapshot: Path | None, path: Path | None, explicit: bool, file: Layer, report: Report) -> _Memory:
    """With a file that was named, a snapshot made under that file restores its models and nothing else: a line taken out of
    the file is taken back. With none, or one that merely lies there, it fills in whatever is not said, but opens no door that
    was opened by hand: who starts without `--disable-token-auth` gets tokens."""
    if snapshot is None:
        return _NOTHING
    try:
        entries = parse_properties(snapshot.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        report.warnings.append(f"snapshot {snapshot} cannot be read and is not restored: {error}")
        return _NOTHING
    name = snapshot.name
    if explicit and path is not None:
        if "model_snapshot" in file.values:
            return _NOTHING
        if not _made_under(entries, path):
            report.notes.append(f"snapshot {name} is not restored: it was not made under {path}.")
            return _NOTHING
    layer = from_snapshot(entries, name, report)
    counts = Layer(carried={} if explicit else layer.carried)
    for field, value in layer.values.items():
        if field == "model_snapshot" or not (explicit or BY_FIELD[field].opens):
            counts.say(field, value, layer.origins[field])
    return _Memory(counts, name, layer)


def _made_under(entries: list[Property], path: Path) -> bool:
    said = [entry.value for entry in entries if entry.key == "tsConfigFile"]
    try:
        return bool(said) and Path(said[-1]).resolve() == path.resolve()
    except (OSError, ValueError):
        return False


def _forget_the_mode_of_another_folder(memory: Layer, above: list[Layer], repository: bool) -> None:
    """Whether a folder is watched was decided for that folder and what was to be served of it."""
    said = {name for layer in above for name in layer.values}
    if repository or said & {"model_store", "models"}:
        memory.values.pop("model_control_mode", None)
        memory.origins.pop("model_control_mode", None)


def _stacked(layers: list[Layer]) -> Layer:
    """The later ones win."""
    merged = Layer()
    for layer in layers:
        merged.values.update(layer.values)
        merged.origins.update(layer.origins)
    return merged


def _with_folder(settings: Settings, origins: dict[str, str], told: Mapping[str, object], cwd: Path) -> Settings:
    """With the folder of models decided, and who decided it."""
    named = told.get(REPOSITORY)
    whole = with_repository(settings, Path(str(named)) if named is not None else None, cwd / DEFAULT_REPOSITORY)
    by = REPOSITORY if named is not None else f"./{DEFAULT_REPOSITORY}"
    origins = dict(origins)
    if whole.model_store != settings.model_store or named is not None:
        origins["model_store"] = by
        if settings.model_control_mode == "auto":
            origins["model_control_mode"] = by
    elif settings.model_control_mode == "auto" and whole.model_control_mode != "none":
        origins["model_control_mode"] = f"{FOLLOWS} load_models"
    if whole.enable_model_api != settings.enable_model_api:
        origins["enable_model_api"] = f"{FOLLOWS} model_control_mode"
    return replace(whole, origins=origins)


def _contradictions(layers: list[Layer], merged: Layer, report: Report) -> None:
    """What a file or the environment says and somebody stronger says otherwise; and models that a snapshot names already."""
    for layer in layers:
        for name, origin in layer.origins.items():
            if merged.origins[name] != origin and merged.values[name] != layer.values[name]:
                report.notes.append(f"{_where(name, origin)} is overridden by {merged.origins[name]}.")
    restored, models = merged.origins.get("model_snapshot"), merged.origins.get("models", "")
    if merged.values.get("model_snapshot") and models and not models.startswith(("--", "snapshot ")):
        same_file = models.rpartition(":")[0] == str(restored).rpartition(":")[0] != ""
        effect = "has no effect: the same file says model_snapshot." if same_file else f"is loaded besides {restored}."
        report.notes.append(f"{_where('models', models)} {effect}")


def _where(name: str, origin: str) -> str:
    key = BY_FIELD[name].name if name in BY_FIELD else name
    return origin if ":" not in origin else f"{origin}: {key}"


def _differences(memory: _Memory, settings: Settings, report: Report) -> None:
    """A line for each setting that was otherwise when the snapshot was made."""
    for name, value in memory.everything.values.items():
        now, origin = getattr(settings, name), settings.origins.get(name, DEFAULT)
        if _absolute(now) == _absolute(value) or (name == "models" and shown(name, now) == shown(name, value)):
            continue
        key = BY_FIELD[name].name
        if name == "model_snapshot":
            report.notes.append(f"snapshot {memory.name} is not restored: {origin} says model_snapshot.")
            continue
        said = f"the default, {shown(name, now)}" if origin == DEFAULT else f"{shown(name, now)} ({origin})"
        report.notes.append(f"snapshot {memory.name} remembers {key}={shown(name, value)}; what counts is {said}.")


def _absolute(value: Any) -> Any:
    """A server that is restored may run in another folder."""
    return value.absolute() if isinstance(value, Path) else value


def without_credentials(text: str) -> str:
    """URLs may hold a name and a password, and a query that is a signature."""
    return _SIGNATURE.sub(rf"\1{HIDDEN}", _CREDENTIALS.sub(rf"\1{HIDDEN}@", text))


def shown(name: str, value: Any) -> str:
    """For people: short, on one line, and without what nobody is to read."""
    text = kinds.written(value)
    if name in BY_FIELD and BY_FIELD[name].secret:
        return HIDDEN if text else ""
    text = without_credentials(text)
    if not text.isprintable():
        text = text.encode("unicode_escape").decode()
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "..."


def remembered_properties(settings: Settings) -> list[tuple[str, str]]:
    """For a snapshot: what somebody said, as pairs for `write_properties`, without passwords and without `model_snapshot`. The
    defaults are not written, so that a later version may have better ones; TorchServe's keys without effect here are, so that
    it can read what we write."""
    pairs = {
        name: text
        for name, key in BY_FIELD.items()
        if not (
            key.secret or name == "model_snapshot" or settings.origins.get(name, DEFAULT).startswith((DEFAULT, FOLLOWS))
        )
        if (text := kinds.written(_absolute(getattr(settings, name))))
    }
    if "models" in pairs:  # what is restored comes out of the model store, not from there
        pairs["models"] = without_credentials(pairs["models"])
    said = [(BY_FIELD[name].name, text) for name, text in pairs.items()]
    return sorted([*said, *settings.carried.items()])
