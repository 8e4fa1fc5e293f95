"""Brings back what a snapshot remembers, version by version: one that cannot be is reported by name, and the others serve.

In a folder that is watched, the folder decides what is served: of a dropped file only what was said about it besides comes back
(numbers of workers, a chosen default version). What the API registered is registered again before the folder is looked at, so that its
files are left to it. TorchServe's records, and what load_models named, are taken for what was dropped as far as the files are there,
and otherwise for registrations.

What was not restored stays remembered, so that a volume that is mounted late costs nothing: the next start tries it again, until
somebody registers or unregisters it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from ringserve.protocol.errors import InvalidModel, RingServeError
from ringserve.server.registry import ModelVersion, Registry
from ringserve.server.repository.allowed_urls import shortened
from ringserve.server.settings import Settings
from ringserve.server.snapshots.document import SnapshotError, State, VersionRecord, parse_state

logger = logging.getLogger("ringserve.snapshots")


class Lost:
    """Versions that a snapshot names and that are not there, with the reasons."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._reasons: dict[tuple[str, str], str] = {}
        self._records: dict[tuple[str, str], VersionRecord] = {}

    def add(self, model: str, version: str, reason: str, record: VersionRecord | None = None) -> None:
        self._reasons[model, version] = reason
        if record is not None:
            self._records[model, version] = record
        logger.error("Not restored: model %s version %s: %s", *map(shortened, (model, version, reason)))

    def forget(self, model: str, version: str | None) -> bool:
        """Somebody unregisters it, or all of a model that has no version left; whether there was anything."""
        keys = [key for key in self._still() if key[0] == model and version in (None, key[1])]
        for key in keys:
            del self._reasons[key]
            self._records.pop(key, None)
        return bool(keys)

    def records(self) -> list[VersionRecord]:
        return [self._records[key] for key in self._still() if key in self._records]

    def report(self, model: str | None = None) -> list[dict[str, str]]:
        """For describe and status; those of one model, or all."""
        return [
            {"model": name, "version": version, "reason": self._reasons[name, version]}
            for name, version in self._still()
            if model in (None, name)
        ]

    def _still(self) -> list[tuple[str, str]]:
        """Those that nobody has registered since."""
        models = self._registry.models
        return [
            (name, version)
            for name, version in self._reasons
            if name not in models or version not in models[name].versions
        ]


class Restorable(Protocol):
    """Who can bring a version back; `Management` does it."""

    registry: Registry
    remembered: dict[tuple[str, str], VersionRecord]
    lost: Lost

    async def reinstate(self, record: VersionRecord) -> ModelVersion:
        """Raises `RingServeError`; then nothing has changed."""


def wanted_state(settings: Settings) -> State:
    """What the settings ask to be restored; nothing where they ask for nothing, or for what makes no sense. Without snapshots (--ncs)
    none is looked for, but what the configuration itself says is restored, as by TorchServe 0.12."""
    if not settings.model_snapshot:
        return State()
    try:
        return parse_state(settings.model_snapshot)
    except SnapshotError as error:
        origin = settings.origins.get("model_snapshot", "")
        logger.error("Nothing is restored: %s%s", f"{origin}: " if origin else "", error)
        return State()


def named_models(settings: Settings) -> Sequence[str]:
    """What is to be loaded besides what is restored. Names that stand in the snapshot itself are no wish: some of them may have been
    unregistered since, and those that were not are restored anyway."""
    names, state = (settings.origins.get(field, "").rpartition(":") for field in ("models", "model_snapshot"))
    itself = names[2].startswith("snapshot ") or (names[0] != "" and names[0] == state[0])
    return () if itself and settings.model_snapshot else settings.models


def stays_away(settings: Settings, state: State) -> dict[str, str]:
    """What the API has unregistered and a file names: it does so as it did then. Who names models by a flag means it now."""
    return {} if settings.origins.get("models", "").startswith("--") else dict(state.unregistered)


class Restoring:
    """`before` the models are loaded that are `named` now, if there are any, and the folder is looked at; `after` that."""

    def __init__(self, target: Restorable, state: State, *, watched: bool, named: bool = False) -> None:
        self._target = target
        self._named = named
        self._state = state
        self._watched = watched
        self._count = 0
        self._later: list[VersionRecord] = []
        self.by_name: set[str] = set()  # models that were loaded by their names

    async def before(self) -> None:
        for problem in self._state.problems:
            self._target.lost.add(problem.model, problem.version, problem.reason)
        shared = {each.mar_name for each in self._state.records if each.dropped}
        for record in self._state.records:
            if self._left_to_folder(record):
                self._target.remembered[record.model, record.version] = record
            elif record.by_name:
                self.by_name.add(record.model)
            elif self._watched and record.mar_name in shared:
                self._later.append(record)  # the folder had the file first, under another name
            else:
                await self._reinstate(record)

    async def after(self) -> None:
        registry = self._target.registry
        for (model, version), record in self._target.remembered.items():
            found = registry.models.get(model)
            if found is not None and version in found.versions:
                continue
            if record.dropped:
                logger.info("%s is not restored: the repository does not have it any more.", record.name)
            else:
                await self._reinstate(record)
        self._target.remembered.clear()
        for record in self._later:
            await self._reinstate(record)
        for model, record in self._defaults().items():
            self._restore_default(model, record)
        if self._state.records or self._state.problems:
            logger.info("restored by snapshot %s: %d", self._state.name or "without a name", self._count)

    def _left_to_folder(self, record: VersionRecord) -> bool:
        return self._watched and (record.dropped or not record.ours or (record.named and not self._named))

    async def _reinstate(self, record: VersionRecord) -> None:
        try:
            if record.nested:
                raise InvalidModel(f"{record.mar_name} is served by watching the folder, which is not asked for now.")
            await self._target.reinstate(record)
            self._count += 1
        except RingServeError as error:
            self._target.lost.add(record.model, record.version, error.message, record)
        except Exception as error:  # of one model: the others are not to suffer
            logger.exception("%s could not be restored", record.name)
            self._target.lost.add(record.model, record.version, f"The server failed to restore it: {error!r}", record)

    # ---- default versions

    def _defaults(self) -> Mapping[str, VersionRecord]:
        """Of each model the one that is marked; where several are, because one of them was lost the last time, the one somebody chose."""
        found: dict[str, VersionRecord] = {}
        for record in self._state.records:
            if record.default:
                other = found.get(record.model)
                if other is None or (record.pinned, record.lost) >= (other.pinned, other.lost):
                    found[record.model] = record
        return found

    def _restore_default(self, name: str, record: VersionRecord) -> None:
        model = self._target.registry.models.get(name)
        if model is None:
            return
        if record.version not in model.versions:
            logger.warning(
                "model %s: its default version was %s, which is not there; it is %s now",
                name,
                record.version,
                model.default_version,
            )
            return
        several = sum(each.model == name for each in self._state.records) > 1
        # Who wrote no mark of ours cannot say whether somebody chose it; among several versions it is not to change by itself.
        pinned = record.pinned if record.ours else several
        dropped = any(each.dropped for each in model.versions.values())
        if pinned or not (self._watched and dropped):
            self._target.registry.set_default(name, record.version, pin=pinned)
