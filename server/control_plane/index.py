"""The repository index (contract section 3.6): every version that is served, was served or could not be, with its state, and by their
names alone the models that nobody has loaded yet. Pure: facts come in, JSON goes out."""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from ringserve.server.repository.version_policy import version_key

UNLOADED = "unloaded"
REASON_CHARACTERS_MAX = 8192  # of what a model says why it cannot be loaded: the index is remembered and read whole
NO_WORKERS = "it has no workers: scale it over the management API"


class State(StrEnum):
    """The protocol's words."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class Indexed(NamedTuple):
    """One line. `version` is empty where a model could not even be read."""

    name: str
    version: str
    state: State
    reason: str = ""


# What is known of one version in several places: the first of these counts.
_ORDER = (State.READY, State.LOADING, State.UNLOADING, State.UNAVAILABLE)


def shortened(reason: str) -> str:
    """As much of it as is kept: its beginning."""
    return reason if len(reason) <= REASON_CHARACTERS_MAX else f"{reason[:REASON_CHARACTERS_MAX]} ..."


def state_of_workers(ready: int, wanted: int, reason: str | None) -> tuple[State, str]:
    """Of a version that can be asked for: `reason` is why its workers could not load, None or empty while they may yet."""
    if ready:
        return State.READY, ""
    if not wanted:
        return State.UNAVAILABLE, NO_WORKERS
    return (State.UNAVAILABLE, shortened(reason)) if reason else (State.LOADING, "")


def repository_index(
    known: Iterable[Indexed], never_loaded: Iterable[str], *, ready_only: bool = False
) -> list[dict[str, str]]:
    """The lines, sorted by name, the versions as people count. A version that is said to be several things is the one nearest to serving; a model that
    anything else is known of is not one that was never loaded."""
    best: dict[tuple[str, str], Indexed] = {}
    for each in known:
        place = each.name, each.version
        if place not in best or _ORDER.index(each.state) < _ORDER.index(best[place].state):
            best[place] = each
    names = {name for name, _ in best}
    with_versions = {name for name, version in best if version}
    lines: list[dict[str, str]] = []
    for (name, version), each in sorted(best.items(), key=lambda item: (item[0][0], version_key(item[0][1]))):
        if ready_only and each.state is not State.READY:
            continue
        if version or name not in with_versions or each.reason:
            lines.append({"name": name, "version": version, "state": each.state.value, "reason": each.reason})
    if not ready_only:
        lines += [{"name": name} for name in sorted(set(never_loaded) - names)]
    return sorted(lines, key=lambda line: line["name"])
