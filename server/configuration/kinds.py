"""How the text of a setting is read, by kind. Readers raise `ConfigError`, saying where, what was expected and what came."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ringserve.server.repository.allowed_urls import AllowedUrls
from ringserve.server.settings import INT_MAX, Address, ConfigError, parse_address

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
SHOWN_CHARACTERS_MAX = 200
MODEL_DEFAULTS = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout")
RECORDED_DEFAULTS = ("runtimeType", "defaultVersion", "marName")  # TorchServe reads them elsewhere, or not at all

Reader = Callable[[str, str], Any]  # the text, and where it stands


def refused(where: str, expected: str, text: str) -> ConfigError:
    shown = text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "..."
    return ConfigError(f"{where}: expected {expected}, got {shown!r}")


def words(text: str, where: str) -> str:
    return text


def module_name(text: str, where: str) -> str:
    """A name that Python could import, or nothing."""
    if text and not all(part.isidentifier() for part in text.split(".")):
        raise refused(where, "the name of a module", text)
    return text


def path(text: str, where: str) -> Path:
    if not text or "\0" in text:
        raise refused(where, "a path", text)
    return Path(text)


def truth(text: str, where: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise refused(where, "true or false", text)
    return text.lower() == "true"


def listed(text: str, where: str = "") -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


def whole(low: int, high: int = INT_MAX) -> Reader:
    def read(text: str, where: str) -> int:
        if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise refused(where, f"a whole number from {low} to {high}", text)
        return int(text)

    return read


def number(above: float, high: float) -> Reader:
    def read(text: str, where: str) -> float:
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not above < value <= high:  # nothing compares with a NaN
            raise refused(where, f"a number above {above:g}, {high:g} at most", text)
        return value

    return read


def choice(*accepted: str, any_case: bool = False) -> Reader:
    def read(text: str, where: str) -> str:
        said = text.lower() if any_case else text
        if said not in accepted:
            raise refused(where, f"one of {', '.join(accepted)}", text)
        return said

    return read


def pattern(text: str, where: str) -> str:
    """A regular expression, kept as it was said."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{refused(where, 'a regular expression', text)} ({error})") from None
    return text


def url_patterns(text: str, where: str) -> tuple[str, ...]:
    patterns = listed(text)
    try:
        AllowedUrls(patterns)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return patterns


def model_defaults(text: str, where: str) -> dict[str, Any]:
    """`{"model": {"version": {"batchSize": 4, ...}}}`."""
    try:
        models = msgspec.json.decode(text, type=dict[str, dict[str, dict[str, Any]]])
    except (msgspec.MsgspecError, RecursionError) as error:
        expected = "a JSON object of models, each an object of versions, each an object of settings"
        raise ConfigError(f"{where}: expected {expected}: {error}") from None
    return models


def without_effect(models: Mapping[str, Mapping[str, Mapping[str, Any]]], where: str) -> list[str]:
    """Of these defaults, what is passed over: as by TorchServe, that keeps nobody from starting."""
    said = []
    for model, versions in models.items():
        for version, settings in versions.items():
            for name, value in settings.items():
                inside = f"{where}: {model!r} {version!r} {name}"
                if name in MODEL_DEFAULTS and not (type(value) is int and value > 0):
                    said.append(f"{inside}: expected a whole number above 0, got {value!r:.100}: it is passed over.")
                elif name not in MODEL_DEFAULTS and name not in RECORDED_DEFAULTS:
                    near = difflib.get_close_matches(name, MODEL_DEFAULTS, 1)
                    said.append(
                        f"{inside} is not a setting and is ignored." + (f" Did you mean {near[0]}?" if near else "")
                    )
    return said


def header_value(text: str, where: str) -> str:
    if not re.fullmatch(r"[\t\x20-\x7e]*", text):
        raise refused(where, "printable ASCII characters", text)
    return text


def header_name(text: str, where: str) -> str:
    if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,200}", text):
        raise refused(where, "the name of an HTTP header", text)
    return text


def host(text: str, where: str) -> str:
    """The name or the number of a host; an IPv6 address may stand in brackets, as in a URL."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not re.fullmatch(r"[0-9A-Za-z._%-]{1,253}|[0-9A-Fa-f:.%]{2,100}", bare):
        raise refused(where, "a host without scheme and port", text)
    return bare


def address(default_port: int) -> Reader:
    def read(text: str, where: str) -> Address:
        return parse_address(text, where, default_port)

    return read


def written(value: object) -> str:
    """A value as one would write it into the file; nothing where nothing is set."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, Mapping):
        return msgspec.json.encode(value).decode() if value else ""
    return str(value)
