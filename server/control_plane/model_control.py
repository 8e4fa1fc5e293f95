"""Loading and unloading by name, over the Open Inference Protocol (contract sections 3.6 and 3.12), and what its index shows. It acts on
the registry that the management API acts on.

A load finds the model in the folder of models, loads all of its wanted versions beside what is served of it, and puts them into its
place together when every one of them is ready; one that fails takes the others with it, and what was served before goes on. Files that
come with a load are the whole model: they are written to a folder of their own, which is looked at like the folder of models.
"""

import asyncio
import contextlib
import logging
import shutil
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ringserve.protocol.errors import BadRequest, Internal, RingServeError, ShuttingDown
from ringserve.server.control_plane.index import UNLOADED, Indexed, State, repository_index, shortened, state_of_workers
from ringserve.server.control_plane.load_request import NOT_POLLED, LoadRequest, write_files
from ringserve.server.management import ChangeModel, Management
from ringserve.server.registration import Dropped
from ringserve.server.registry import ModelVersion
from ringserve.server.repository.archive import stem
from ringserve.server.repository.deployments import State as FileState
from ringserve.server.repository.scan import Entry, scan
from ringserve.server.repository.store import UnpackedModel, fallback_name
from ringserve.server.repository.version_policy import FolderConfig, choose_default, wanted_versions

logger = logging.getLogger("ringserve.repository")

NOT_ALLOWED = "explicit model load / unload is not allowed if polling is enabled"
LOADS_MAX = 4  # at the same time, at the start
GONE_MAX = 10_000  # versions that are not there any more, and are remembered for the index
_FILE_STATES = {FileState.LOADING: State.LOADING, FileState.UNLOADING: State.UNLOADING}


class ConfigRefused(BadRequest):
    """The configuration that came with a load is none."""


class Found(NamedTuple):
    """What lies there of one model: the versions that are wanted, lowest first."""

    entries: tuple[Entry, ...]
    config: FolderConfig


# A new version, and the one in whose place it will be.
Staged = list[tuple[ModelVersion, ModelVersion | None]]


def not_polled(model: str) -> Internal:
    """There is no such model."""
    return Internal(NOT_POLLED.format(model=model))


def find_model(root: Path, model: str, config_name: str = "") -> Found | None:
    """What of the folder is that model: an archive or a folder of its name. None: nothing. Raises `RingServeError` when it lies there
    twice or cannot be looked at. Takes as long as the file system does."""
    snapshot = scan(root, config_name)
    if snapshot.unreadable is not None:
        raise Internal(f"failed to load '{model}', {snapshot.unreadable}")
    entries = {slot: each for slot, each in snapshot.entries.items() if model_of(each) == model}
    if not entries:
        return None
    if len({each.group for each in entries.values()}) > 1:
        raise Internal(f"failed to load '{model}', model appears in two or more repositories")
    config = snapshot.folders.get(model, FolderConfig())
    labels = {each.version or "": each for each in entries.values()}
    wanted = [labels[label] for label in wanted_versions(labels, config.policy)]
    return Found(tuple(wanted), config) if wanted else None


def model_of(entry: Entry) -> str:
    """The name by which a model is loaded: that of its folder, or of its archive without what it ends in."""
    return entry.model or stem(entry.group) or fallback_name(entry.path)


@dataclass(slots=True)
class _Turn:
    """Who wants to change a model, one after another."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class ModelControl:
    """`root` is the folder of models, `uploads` where those lie that came with a load, `configured` makes another model of one by a
    configuration in JSON (which may take protobuf, so that it is imported when the first comes)."""

    def __init__(self, management: Management, root: Path, uploads: Path) -> None:
        self._management = management
        self._versions = management.versions
        self._root = root
        self._uploads = uploads
        self._uploaded: dict[str, Path] = {}
        self._loaded: dict[str, tuple[str, ...]] = {}  # by model: the contents that a plain load has loaded
        self._busy: dict[str, _Turn] = {}  # models that somebody loads or unloads
        self._gone: dict[tuple[str, str], Indexed] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._versions.leaving = self._leaves

    # ---- load

    @property
    def allowed(self) -> bool:
        """Whether models may be loaded and unloaded by name: not where the folder says what is served."""
        settings = self._management.settings
        return settings.enable_model_api and settings.model_control_mode in ("none", "explicit")

    async def load(self, model: str, wanted: LoadRequest) -> None:
        """Returns when it is ready. Raises `RingServeError` with Triton's sentences; what was served before is then served still."""
        self._check_allowed()
        if wanted.files and not self._management.settings.allow_load_files:
            raise BadRequest(
                f"failed to load '{model}', files are not accepted: allow_load_files=true lets clients bring code"
            )
        if wanted.files and wanted.config is None:
            raise not_polled(model)
        async with self._alone(model):
            await self._load(model, wanted)

    async def load_all(self, names: tuple[str, ...]) -> list[str]:
        """At the start: those models, or all that lie there. Returns why some could not be loaded."""
        if names == ("*",):
            snapshot = await asyncio.to_thread(scan, self._root)
            names = tuple(sorted({model_of(each) for each in snapshot.entries.values()}))
        failures = []
        room = asyncio.Semaphore(LOADS_MAX)

        async def load(name: str) -> None:
            async with room:
                try:
                    await self.load(name, LoadRequest())
                except RingServeError as error:
                    self._versions.not_loaded.add(name)
                    failures.append(f"{name}: {error.message}")
                    logger.error("Failed to load model: %s", error.message)

        await asyncio.gather(*map(load, names))
        return sorted(failures)

    @contextlib.asynccontextmanager
    async def _alone(self, model: str) -> AsyncIterator[None]:
        """Nobody else loads or unloads the model meanwhile."""
        turn = self._busy.setdefault(model, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._busy[model]

    def _check_allowed(self) -> None:
        if not self.allowed:
            raise RingServeError(NOT_ALLOWED, status=503)

    async def _load(self, model: str, wanted: LoadRequest) -> None:
        root, upload = self._root, None
        if wanted.files:
            root = upload = self._uploads / uuid.uuid4().hex
        try:
            if upload is not None:
                await asyncio.to_thread(write_files, upload / model, model, wanted.files)
            found = await asyncio.to_thread(find_model, root, model, self._management.settings.model_config_name)
            if found is None:
                raise not_polled(model)
            contents = () if wanted.config is not None else tuple(each.fingerprint for each in found.entries)
            if contents and contents == self._loaded.get(model) and self._serves(model, len(contents)):
                return
            await self._deploy(model, found, wanted.config)
        except BaseException:
            if upload is not None:
                self._versions.not_loaded.discard(model)  # it is not among the models that there are
                await asyncio.to_thread(shutil.rmtree, upload, ignore_errors=True)
            raise
        self._loaded[model] = contents
        await self._replace_upload(model, upload)
        await self._management.recorder.record()

    def _serves(self, model: str, count: int) -> bool:
        known = self._management.registry.models.get(model)
        if known is None or len(known.versions) != count:
            return False
        return all(self._versions.ready_count(each) for each in known.versions.values())

    async def _deploy(self, model: str, found: Found, config: str | None) -> None:
        """Load all of it beside what is there, then switch."""
        change = None if config is None else _override(config, model)
        staged = await self._staged(model, found.entries, change)
        try:
            await self._load_beside(staged)
        except ShuttingDown:
            raise
        except RingServeError as error:
            for version, _ in staged:
                await self._versions.take_out(version)
            raise self._failed(model, self._label_of_failure(staged), error) from None
        except BaseException:
            for version, _ in staged:
                await asyncio.shield(self._versions.take_out(version))
            raise
        await self._switch(model, staged, found.config)

    async def _staged(self, model: str, entries: Sequence[Entry], change: ChangeModel | None) -> Staged:
        """All of the versions, unpacked and prepared; or, when that fails, none."""
        staged: Staged = []
        label = ""
        try:
            for entry in entries:
                label = entry.version or ""
                staged.append(await self._stage(model, entry, change))
        except BaseException as error:
            for version, _ in staged:
                await self._management.unstage(version)
            if isinstance(error, RingServeError) and not isinstance(error, ConfigRefused | ShuttingDown):
                raise self._failed(model, label, error) from None
            raise
        return staged

    def _failed(self, model: str, label: str, error: RingServeError) -> BadRequest:
        """The sentence for whoever asked, after the index has been told."""
        self._versions.not_loaded.add(model)
        self._versions.announce()
        why = shortened(error.message)
        self._remember(Indexed(model, label, State.UNAVAILABLE, why))
        said = f"version {label} is at UNAVAILABLE state: {why};" if label else f"{why};"
        return BadRequest(f"load failed for model '{model}': {said}")

    async def _stage(
        self, model: str, entry: Entry, change: ChangeModel | None
    ) -> tuple[ModelVersion, ModelVersion | None]:
        """One version, and the one in whose place it will be."""
        if entry.problem is not None:
            raise BadRequest(entry.problem)
        registry = self._management.registry
        known = registry.models.get(model)
        replaces = None if known is None or entry.version is None else known.versions.get(entry.version)
        dropped = Dropped(entry.path, entry.file, model, model, entry.version, entry.overrides, said=entry.said)
        if entry.version is None and known is not None:  # which one it is, its manifest says
            replaces = next((each for each in known.versions.values() if each.url == entry.file), None)
        version = await self._management.stage(dropped, replaces, change)
        version.by_name = True
        return version, replaces

    async def _load_beside(self, staged: Staged) -> None:
        """All at the same time. Raises the first failure, after all have come to their end."""
        ends = await asyncio.gather(
            *(self._versions.load_beside(version, replaces) for version, replaces in staged), return_exceptions=True
        )
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    def _label_of_failure(self, staged: Staged) -> str:
        """Which of the versions failed: the one of which the index has a reason, which it was told as that was taken out."""
        for version, _ in staged:
            known = self._gone.get((version.name, version.version))
            if known is not None and known.state is State.UNAVAILABLE and known.reason != UNLOADED:
                return version.version
        return staged[0][0].version

    async def _switch(self, model: str, staged: Staged, config: FolderConfig) -> None:
        """Every new version is ready: they take over, and what was there before and is not wanted any more goes."""
        registry = self._management.registry
        self._versions.not_loaded.discard(model)
        known = registry.models.get(model)
        before = set() if known is None else set(known.versions.values())
        for version, replaces in staged:
            with contextlib.suppress(KeyError):
                del self._gone[model, version.version]
            await self._versions.switch(version, replaces, make_default=False)
        labels = [version.version for version, _ in staged]
        best = choose_default(labels[-1], labels, config.default_version)
        if not registry.models[model].pinned or registry.models[model].default_version not in labels:
            await self._management.make_default(model, best)
        for version in before:
            self._in_background(version)

    # ---- unload

    async def unload(self, model: str) -> None:
        """Its versions cannot be asked for any more when this returns; what they have is answered, then they are gone. A model that
        nobody knows is unloaded already."""
        self._check_allowed()
        async with self._alone(model):
            self._loaded.pop(model, None)
            self._versions.not_loaded.discard(model)
            known = self._management.registry.models.get(model)
            leaving = list(known.versions.values()) if known else []
            ends = [self._in_background(version) for version in leaving]
            while any(map(self._management.registry.holds, leaving)):  # which ends with their first steps
                await asyncio.sleep(0)
            await self._versions.publish()
            upload = self._uploaded.pop(model, None)
            if upload is not None:
                self._after(ends, upload)
            await self._management.recorder.record()

    def _in_background(self, version: ModelVersion) -> "asyncio.Task[None]":
        """Take a version out, or wait until somebody else has."""

        async def taken_out() -> None:
            place = version.name, version.version
            try:
                await self._versions.take_out(version)
            except RingServeError as error:
                logger.error("%s %s could not be unloaded in order: %s", *place, error.message)
            finally:
                known = self._gone.get(place)
                if known is not None and known.state is State.UNLOADING:
                    self._gone[place] = known._replace(state=State.UNAVAILABLE, reason=UNLOADED)
                self._management.recorder.note()

        return self._beside(taken_out())

    def _beside(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        """Nobody waits for it."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _after(self, ends: "list[asyncio.Task[None]]", upload: Path) -> None:
        """Remove files when nothing reads them any more."""

        async def removed() -> None:
            if ends:
                await asyncio.wait(ends)
            await asyncio.to_thread(shutil.rmtree, upload, ignore_errors=True)

        self._beside(removed())

    async def _replace_upload(self, model: str, upload: Path | None) -> None:
        before = self._uploaded.pop(model, None)
        if upload is not None:
            self._uploaded[model] = upload
        if before is not None:
            self._after(list(self._background), before)

    # ---- index

    async def index(self, *, ready_only: bool = False) -> list[dict[str, str]]:
        """As JSON."""
        names: set[str] = set()
        if not ready_only and self._management.repository is None:
            snapshot = await asyncio.to_thread(scan, self._root)
            names = {model_of(each) for each in snapshot.entries.values()}
        return repository_index([*self._served(), *self._gone.values(), *self._files()], names, ready_only=ready_only)

    def _served(self) -> Iterator[Indexed]:
        for version in self._management.registry:
            ready = self._versions.ready_count(version)
            state, reason = state_of_workers(ready, version.min_workers, self._versions.why_not_ready(version))
            yield Indexed(version.name, version.version, state, reason)
        for version in self._versions.beside:
            yield Indexed(version.name, version.version, State.LOADING)

    def _files(self) -> Iterator[Indexed]:
        """What the watched folder says beside that: files that are refused, and those on their way."""
        repository = self._management.repository
        for each in () if repository is None else repository.report():
            if each["state"] != FileState.SERVED and each["model"]:
                state = _FILE_STATES.get(FileState(each["state"]), State.UNAVAILABLE)
                yield Indexed(each["model"], each["version"] or "", state, each["reason"])

    def _leaves(self, version: ModelVersion, why: str) -> None:
        """A version is being taken out, whoever wants that."""
        place = version.name, version.version
        if why:
            self._remember(Indexed(*place, State.UNAVAILABLE, shortened(why)))
        elif self._management.registry.holds(version):
            self._remember(Indexed(*place, State.UNLOADING))
            self._in_background(version)

    def _remember(self, what: Indexed) -> None:
        self._gone.pop((what.name, what.version), None)
        self._gone[what.name, what.version] = what
        if len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]


def _override(text: str, model: str) -> ChangeModel:
    """A configuration in place of the model's own."""

    def change(unpacked: UnpackedModel) -> UnpackedModel:
        # Here and not above: who reads these needs protobuf, and most servers never see one.
        from ringserve.server.model_configuration.override import overridden_by_json

        try:
            return overridden_by_json(unpacked, text, model)
        except RingServeError as error:
            raise ConfigRefused(f"{NOT_POLLED.format(model=model)}: {error.message}") from None

    return change
