"""Desired state: which versions of which models are wanted, with how many workers, and which version is the default.

Pure bookkeeping, in the supervisor alone. Sentences are TorchServe's (contract sections 1.8, 2.2-2.8).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from ringserve.protocol.errors import Conflict, InvalidVersionUse, ModelNotFound, VersionNotFound
from ringserve.protocol.tensor import Signature
from ringserve.server.repository.remote import Fetched
from ringserve.server.repository.store import UnpackedModel
from ringserve.server.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """What was asked for at registration, after all defaults."""

    batch_size: int
    batch_wait_ms: int
    queue_size: int
    response_timeout_s: int
    startup_timeout_s: int
    handler: str
    loaded_at_startup: bool
    queue_timeout_s: int = 0
    envelope: str = ""  # around the handler


@dataclass(eq=False, slots=True)
class ModelVersion:
    """One version of one model. `key` numbers it for the children and is never reused; `signature` and `served`, which is what front
    ends tell of it, are known from the first worker that loaded it."""

    key: int
    name: str
    version: str
    url: str
    unpacked: UnpackedModel
    options: ServingOptions
    min_workers: int = 0
    max_workers: int = 0
    signature: Signature | None = None
    served: ServedModel = field(default_factory=ServedModel)
    dropped: bool = False  # into the model repository
    by_name: bool = False  # loaded by its name, over the Open Inference Protocol
    scaled: bool = False  # its numbers of workers were changed by the API: a replacement takes them over
    python: str = sys.executable  # of its workers: one with the packages it requires
    fetched: Fetched | None = None  # where its archive came from, when a registration brought it
    handler_given: str | None = None  # by the registration, instead of the manifest's
    kept: bool = False  # dropped, and its settings are a snapshot's as long as its file does not change


@dataclass(slots=True)
class RegisteredModel:
    """`pinned`: somebody chose the default version, so that a newer one does not become it by itself."""

    default_version: str
    versions: dict[str, ModelVersion] = field(default_factory=dict)
    pinned: bool = False


class Registry:
    """The table of models."""

    def __init__(self) -> None:
        self.models: dict[str, RegisteredModel] = {}
        self._last_key = 0

    def next_key(self) -> int:
        self._last_key += 1
        return self._last_key

    def add(self, version: ModelVersion) -> None:
        """The first version of a model becomes its default. Raises `Conflict`."""
        model = self.models.get(version.name)
        if model is None:
            model = self.models[version.name] = RegisteredModel(version.version)
        elif version.version in model.versions:
            raise Conflict(f"Model version {version.version} is already registered for model {version.name}")
        model.versions[version.version] = version

    def replace(self, old: ModelVersion | None, new: ModelVersion) -> None:
        """Put `new` where `old` was, or where nothing is. The default moves along. Raises `Conflict` when something else has the
        place."""
        if old is None or not self.holds(old) or old.name != new.name:
            self.add(new)
            if old is not None:
                self.remove(old)
            return
        model = self.models[old.name]
        if old.version != new.version and new.version in model.versions:
            raise Conflict(f"Model version {new.version} is already registered for model {new.name}")
        was_default = model.default_version == old.version
        model.versions = dict(
            (new.version, new) if each is old else (label, each) for label, each in model.versions.items()
        )
        if was_default:
            model.default_version = new.version
            model.pinned = model.pinned and old.version == new.version

    def find(self, name: str, version: str | None = None) -> ModelVersion:
        """The named version, or the default one. Raises `ModelNotFound`, `VersionNotFound`."""
        model = self._model(name)
        wanted = model.default_version if version is None else version
        found = model.versions.get(wanted)
        if found is None:
            raise VersionNotFound(f"Model version: {wanted} does not exist for model: {name}")
        return found

    def namesake(self, version: ModelVersion) -> ModelVersion | None:
        """What is registered by the name and version of this one: itself, another, or nothing."""
        model = self.models.get(version.name)
        return None if model is None else model.versions.get(version.version)

    def holds(self, version: ModelVersion) -> bool:
        """Whether this very version is registered, not another one by its name."""
        return self.namesake(version) is version

    def all_of(self, name: str) -> list[ModelVersion]:
        return list(self._model(name).versions.values())

    def check_removable(self, version: ModelVersion) -> None:
        """Raises `InvalidVersionUse` for a default version that has siblings."""
        model = self._model(version.name)
        if version.version == model.default_version and len(model.versions) > 1:
            raise InvalidVersionUse(f"Cannot remove default version for model {version.name}")

    def remove(self, version: ModelVersion) -> None:
        """Take a version out; the model goes with its last one. Nothing happens when it is not there any more. A default
        version that leaves siblings behind (a registration taken back) makes the oldest of them the default."""
        if not self.holds(version):
            return
        model = self.models[version.name]
        del model.versions[version.version]
        if not model.versions:
            del self.models[version.name]
        elif model.default_version == version.version:
            model.default_version, model.pinned = next(iter(model.versions)), False

    def set_default(self, name: str, version: str, *, pin: bool = True) -> None:
        """Raises `ModelNotFound`, `VersionNotFound`."""
        model = self._model(name)
        if version not in model.versions:
            raise VersionNotFound(f"Model version {version} does not exist for model {name}")
        model.default_version, model.pinned = version, pin

    def defaults(self) -> list[ModelVersion]:
        """The default versions, sorted by model name."""
        return [model.versions[model.default_version] for _, model in sorted(self.models.items())]

    def __iter__(self) -> Iterator[ModelVersion]:
        for model in self.models.values():
            yield from model.versions.values()

    def _model(self, name: str) -> RegisteredModel:
        model = self.models.get(name)
        if model is None:
            raise ModelNotFound(f"Model not found: {name}")
        return model
