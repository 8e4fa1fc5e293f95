"""Which versions of a model in the repository are served, and which of them is the default: pure.

name/config.yaml:
    version_policy: all            # or {latest: 2}, or {specific: ["1.0", "2.0"]}, or as Triton has it; without it {latest: 1}
    default_version: "1.0"         # without it the highest that is served
    batchSize: 8                   # any other key replaces that of the archives' model-config.yaml
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ringserve.protocol.errors import InvalidModel

LATEST_MAX = 1000
SPECIFIC_MAX = 1000
POLICY_KEYS = ("version_policy", "default_version")
_PART = re.compile(r"[0-9]+|[A-Za-z]+")
_WORD, _END, _NUMBER = 0, 1, 2

VersionKey = tuple[tuple[tuple[int, int, str], ...], str]


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """The `latest` so many, or the `specific` ones, or all when both are None."""

    latest: int | None = 1
    specific: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class FolderConfig:
    """`name/config.yaml`, checked. `overrides` are the keys that are not about versions."""

    policy: VersionPolicy = VersionPolicy()
    default_version: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def version_key(label: str) -> VersionKey:
    """Sorts labels as people count: 1.10 after 1.9, v2 like 2, 2.0-rc1 before 2.0 before 2.0.1. No two labels are equal."""
    text = label[1:] if re.match(r"[vV][0-9]", label) else label
    parts = [
        (_NUMBER, int(part), "") if part[0].isdigit() else (_WORD, 0, part.lower()) for part in _PART.findall(text)
    ]
    return (*parts, (_END, 0, "")), label


def wanted_versions(labels: Iterable[str], policy: VersionPolicy) -> list[str]:
    """Those that the policy serves, lowest first."""
    ordered = sorted(labels, key=version_key)
    if policy.specific is not None:
        return [label for label in ordered if label in policy.specific]
    return ordered if policy.latest is None else ordered[-policy.latest :]


def choose_default(current: str, dropped: Sequence[str], configured: str | None) -> str:
    """The version that answers who names none, among the `current` one and those in the repository."""
    if configured is not None and configured in dropped:
        return configured
    return max((current, *dropped), key=version_key)


def parse_folder_config(raw: Mapping[str, Any], where: str) -> FolderConfig:
    """Raises `InvalidModel` naming the key, what was expected and what came."""
    overrides = {key: value for key, value in raw.items() if key not in POLICY_KEYS}
    default = raw.get("default_version")
    label = None if default is None else _label(default, f"{where}: default_version")
    return FolderConfig(_policy(raw.get("version_policy"), f"{where}: version_policy"), label, overrides)


def parse_version_config(raw: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """`name/<version>/config.yaml`. Raises `InvalidModel`."""
    for key in POLICY_KEYS:
        if key in raw:
            raise InvalidModel(
                f"{where}: {key}: expected in the config.yaml of the model's folder, which all versions share"
            )
    return raw


def _policy(value: object, where: str) -> VersionPolicy:
    if value is None:
        return VersionPolicy()
    if value == "all":
        return VersionPolicy(latest=None)
    if isinstance(value, dict) and len(value) == 1:
        latest, specific = value.get("latest"), value.get("specific")
        if value.get("all") == {}:
            return VersionPolicy(latest=None)
        # As Triton has them: one level deeper.
        latest = latest.get("num_versions") if isinstance(latest, dict) and len(latest) == 1 else latest
        specific = specific.get("versions") if isinstance(specific, dict) and len(specific) == 1 else specific
        if isinstance(latest, int) and not isinstance(latest, bool) and 1 <= latest <= LATEST_MAX:
            return VersionPolicy(latest)
        if isinstance(specific, list) and 1 <= len(specific) <= SPECIFIC_MAX:
            labels = tuple(_label(each, f"{where}.specific[{index}]") for index, each in enumerate(specific))
            return VersionPolicy(None, labels)
    expected = f"all, {{latest: 1 to {LATEST_MAX}}} or {{specific: [versions]}}"
    raise InvalidModel(f"{where}: expected {expected}, got {value!r:.200}")


def _label(value: object, where: str) -> str:
    """YAML takes 1.10 for the number 1.1: only what cannot be mistaken is accepted without quotes."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidModel(f'{where}: expected a version in quotes, like "1.0", got {value!r:.200}')
