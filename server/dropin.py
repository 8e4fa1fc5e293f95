"""Keeps what is served as the model repository says: what is dropped is loaded, replaced beside what it replaces, and unloaded when
it is removed.

One look at the folder after another says what lies there (repository/scan.py, settling.py); for every name at its top one task at a
time takes the steps that repository/deployments.py decides, so a slow load holds up nobody else's. Nothing here ends the watching,
and nothing that fails changes what is served.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ringserve.protocol.errors import Internal, RingServeError
from ringserve.server.registration import Dropped
from ringserve.server.registry import ModelVersion, Registry
from ringserve.server.repository.deployments import Deployment, State, Verb, next_step
from ringserve.server.repository.scan import Entry, scan, shown
from ringserve.server.repository.settling import SETTLE_S, Look, Settling, Unfinished
from ringserve.server.repository.store import fallback_name
from ringserve.server.repository.version_policy import FolderConfig, choose_default
from ringserve.server.repository.watch import Watcher

logger = logging.getLogger("ringserve.repository")

REPAIR_S = 5.0
ABANDON_S = 0.2
REFRESH_S = 0.5
GOES_ON = "What was served before goes on."
LEFT_TO_API = "It was registered by the management API, and is left to it."
SENT_AWAY = "It was unregistered by the management API, and is served again when the file changes."


class Deployer(Protocol):
    """What can be done with a version; `Management` does it."""

    registry: Registry

    async def deploy(
        self, dropped: Dropped, replaces: ModelVersion | None, *, beside: bool = True, make_default: bool = True
    ) -> ModelVersion:
        """Raises `RingServeError`; then nothing has changed."""

    async def abandon(self, url: str) -> None:
        """Make a `deploy` that still loads end with an error."""

    async def retire(self, version: ModelVersion) -> None:
        """Answer what it has, and unload it."""

    async def make_default(self, name: str, version: str) -> None:
        """Without pinning it."""


class DropIn:
    """`start` deploys what lies there, and watches until `stop`. Files that `came_by_url` belong to their registration.
    `why_not_ready` tells of a registered version: None when it is ready, an empty reason while it loads. `away`: places that the API
    has sent away before this start, with the content of then. `config_name`: --model-config-name."""

    def __init__(
        self,
        root: Path,
        deployer: Deployer,
        watcher: Watcher,
        *,
        came_by_url: Callable[[str], bool],
        why_not_ready: Callable[[ModelVersion], str | None],
        away: Mapping[str, str] | None = None,
        config_name: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.accepted = 0
        self.refused: Counter[str] = Counter()  # by cause
        self._root = root
        self._deployer = deployer
        self._watcher = watcher
        self._clock = clock
        self._config_name = config_name
        self._came_by_url = came_by_url
        self._why_not_ready = why_not_ready
        self._away = dict(away or {})
        self._settling = Settling()
        self._places: dict[str, Deployment] = {}
        self._by_group: defaultdict[str, list[Deployment]] = defaultdict(list)
        self._folders: Mapping[str, FolderConfig] = {}
        self._unfinished: Mapping[str, Unfinished] = {}
        self._problems: Mapping[str, str] = {}
        self._unreadable: str | None = None
        self._told: dict[str, str] = {}  # file -> the reason that the log has
        self._rows: dict[str, dict[str, Any]] = {}
        self._refreshing: asyncio.TimerHandle | None = None
        self._work: dict[str, asyncio.Task[None]] = {}
        self._aside: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._starting = False

    # ---- the life of it

    async def start(self) -> None:
        """Returns when everything that lies there has been unpacked or refused; loading goes on, and requests may wait."""
        self._watcher.start()
        self._starting = True
        await self.look()
        if self._unfinished and not self._unreadable:  # written a moment ago, most of all
            await asyncio.sleep(SETTLE_S)
            await self.look()
        await self.done()
        self._starting = False
        self._watching = asyncio.ensure_future(self._watch())

    async def done(self) -> None:
        """Until nothing is under way any more."""
        while self._work:
            await asyncio.wait(self._work.values())
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """No more changes. One that is under way ends where it is; the server unloads everything next."""
        tasks = [*self._work.values(), *self._aside]
        if self._watching is not None:
            tasks.append(self._watching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._watcher.stop()

    async def _watch(self) -> None:
        pause_s: float | None = 0.0
        while True:
            await self._watcher.changed(pause_s)
            try:
                pause_s = await self.look()
            except Exception:
                logger.exception("a look at the model repository failed, trying again")
                pause_s = REPAIR_S

    async def look(self) -> float | None:
        """See what lies there, start what is to be done; in how many seconds another look is due, None when nothing waits."""
        look = await asyncio.to_thread(lambda: self._settling.judge(scan(self._root, self._config_name), self._clock()))
        now_s = self._clock()
        self._take_in(look)
        for group in self._by_group:
            self._start_work(group)
        self._refresh()
        waits = [wait_s for each in self._places.values() if (wait_s := each.due_s() - now_s) > 0]
        if look.again_s is not None:
            waits.append(look.again_s)
        return min(waits, default=None)

    # ---- what a look tells

    def _take_in(self, look: Look) -> None:
        self._unreadable = look.unreadable
        if look.unreadable is not None:
            self._tell(".", "unreadable", _goes_on(look.unreadable))
            return
        here = {each.group for each in look.snapshot.entries.values()} | look.snapshot.uncertain
        # The last one that could be read goes on where there is none: a broken one changes nothing.
        kept = {group: config for group, config in self._folders.items() if group in here}
        self._folders = {**kept, **look.snapshot.folders}
        self._unfinished, self._problems = look.unfinished, look.problems
        for slot, entry in look.there.items():
            place = self._places.get(slot)
            if place is None and self._came_by_url(entry.group):
                continue
            if place is None:
                place = self._places[slot] = Deployment(slot, entry.group, dismissed=self._away.get(slot))
            place.entry = entry
            if entry.problem is not None and not place.troubled:
                place.tried, place.error, place.final = entry.fingerprint, entry.problem, True
                self._tell(entry.file, "problem", entry.problem)
        for slot, place in self._places.items():
            if slot not in look.there and slot not in look.unfinished and slot not in look.leaving:
                place.entry = None
        by_api = self._registered_by_api()
        for place in self._places.values():
            self._catch_up(place, by_api)
        self._places = {
            slot: place
            for slot, place in self._places.items()
            if place.entry is not None or place.version is not None or place.busy is not None
        }
        self._by_group = defaultdict(list)
        for place in self._places.values():
            self._by_group[place.group].append(place)
        for file, reason in look.problems.items():
            self._tell(file, "problem", reason)
        late = {each.entry.file: each.reason for each in look.unfinished.values() if each.late}
        for file, reason in late.items():
            self._tell(file, "incomplete", reason)
        troubled = {each.entry.file for each in self._places.values() if each.entry is not None and each.troubled}
        self._told = {file: said for file, said in self._told.items() if file in {*look.problems, *late, *troubled}}

    def _registered_by_api(self) -> set[str]:
        """The files at the top of the folder that are served because somebody registered them."""
        ours = {id(place.version) for place in self._places.values()}
        coming = {place.loading.file for place in self._places.values() if place.loading is not None}
        others = [each for each in self._deployer.registry if id(each) not in ours and each.url not in coming]
        return {version.url.rstrip("/").rpartition("/")[2] for version in others}

    def _catch_up(self, place: Deployment, by_api: set[str]) -> None:
        """With what others have done meanwhile: the API, and who dropped a newer file."""
        loading = place.loading
        if place.busy is None:
            if place.version is not None and not self._deployer.registry.holds(place.version):
                place.gone_from_registry()
            if place.version is None and place.slot in by_api and place.entry is not None:
                place.dismissed = place.entry.fingerprint
        elif loading is not None and not place.abandoned and not place.still_is(loading):
            place.abandoned = True
            self._aside_of_all(self._abandon(place, loading))

    async def _abandon(self, place: Deployment, loading: Entry) -> None:
        """Time and again, since it may be unpacked only now, or wait for its packages."""
        while place.loading is loading:
            await self._deployer.abandon(loading.file)
            await asyncio.sleep(ABANDON_S)

    def _aside_of_all(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    def _tell(self, file: str, cause: str, reason: str) -> None:
        """In the log and in the counts, once for every reason."""
        if self._told.get(file) != reason:
            self._told[file] = reason
            self.refused[cause] += 1
            logger.error("Failed to load model: %s: %s", file, reason)

    # ---- what is to be done

    def _of(self, group: str) -> list[Deployment]:
        return self._by_group.get(group, [])

    def _next(self, group: str) -> tuple[Verb, Deployment] | None:
        return next_step(self._of(group), self._folders.get(group), self._clock())

    def _start_work(self, group: str) -> None:
        if group in self._work or (self._next(group) is None and not self._defaults_off(group)):
            return
        task = self._work[group] = asyncio.ensure_future(self._do_all(group))

        def done(ended: "asyncio.Task[None]") -> None:
            del self._work[group]
            if not ended.cancelled() and (error := ended.exception()) is not None:
                logger.error("what is to be done for %s could not be done", group, exc_info=error)
            else:
                self._watcher.poke()  # there may be more to do by now

        task.add_done_callback(done)

    async def _do_all(self, group: str) -> None:
        while (step := self._next(group)) is not None:
            verb, place = step
            try:
                await (self._deploy(place) if verb is Verb.DEPLOY else self._retire(place))
            finally:
                place.busy, place.loading, place.abandoned = None, None, False
                self._refresh_soon()
        for name in self._defaults_off(group):
            await self._settle_default(name)

    async def _deploy(self, place: Deployment) -> None:
        entry = place.entry
        assert entry is not None
        registry = self._deployer.registry
        old = place.version if place.version is not None and registry.holds(place.version) else None
        place.busy, place.loading = State.LOADING, entry
        self._refresh_soon()
        name = entry.model or fallback_name(entry.path)
        dropped = Dropped(
            entry.path, entry.file, name, entry.model, entry.version, entry.overrides, self._starting, entry.said
        )
        lead = self._will_lead(entry.model, entry.version)
        try:
            beside = old is not None or not self._starting
            version = await self._deployer.deploy(dropped, old, beside=beside, make_default=lead)
        except RingServeError as error:
            if old is not None and not registry.holds(old):  # by the API, while this was loaded: it is meant as well
                place.gone_from_registry(entry.fingerprint)
            else:
                self._failed(place, error)
            return
        except Exception as error:
            logger.exception("%s could not be deployed", entry.file)
            self._failed(place, Internal(f"The server failed to deploy it: {error!r}"))
            return
        place.succeeded(version, entry, self._clock())
        self.accepted += 1
        self._told.pop(entry.file, None)
        logger.info("%s is model %s version %s", entry.file, version.name, version.version)
        if place.hold_s > self._clock():
            logger.warning(
                "%s changes whenever it is loaded; no reload for %.0f s", entry.file, place.hold_s - self._clock()
            )
        await self._settle_default(version.name)

    def _failed(self, place: Deployment, error: RingServeError) -> None:
        entry = place.loading
        assert entry is not None
        if place.abandoned:
            return
        place.failed(entry, error, self._clock())
        self._tell(entry.file, error.code, error.message)

    async def _retire(self, place: Deployment) -> None:
        version = place.version
        assert version is not None
        place.busy = State.UNLOADING
        self._refresh_soon()
        model = self._deployer.registry.models.get(version.name)
        rest = [each for each in self._served_as(version.name) if each != version.version]
        held = self._deployer.registry.holds(version)
        if held and model is not None and model.default_version == version.version and rest:
            heir = choose_default(rest[0], rest, self._configured(version.name))
            await self._make_default(version.name, heir)
        try:
            await self._deployer.retire(version)
        except Exception:
            logger.exception("%s could not be unloaded in order", place.slot)
        finally:
            place.unloaded()  # also when the server stops meanwhile: nobody else has sent it away
        for each in self._places.values():
            if each.conflict:  # what it met may have been this
                each.retry_s = 0.0
        logger.info("%s is not served any more: model %s version %s", place.slot, version.name, version.version)

    # ---- default versions

    def _served_as(self, name: str) -> list[str]:
        """The versions of a model that come from the repository."""
        held = [each.version for each in self._places.values() if each.version is not None]
        return [each.version for each in held if each.name == name and self._deployer.registry.holds(each)]

    def _configured(self, name: str) -> str | None:
        config = self._folders.get(name)
        return None if config is None else config.default_version

    def _best(self, name: str, more: Iterable[str] = ()) -> str | None:
        """The version that should be the default one; None where that is not ours to say."""
        model = self._deployer.registry.models.get(name)
        dropped = [*self._served_as(name), *more]
        if model is None or model.pinned or not dropped:
            return None
        return choose_default(model.default_version, dropped, self._configured(name))

    def _will_lead(self, name: str | None, version: str | None) -> bool:
        """Whether a version becomes the default one as it appears. The name of a flat file's model is known afterwards only."""
        return name is not None and version is not None and self._best(name, [version]) == version

    def _defaults_off(self, group: str) -> list[str]:
        names = {each.version.name for each in self._of(group) if each.version is not None}
        models = self._deployer.registry.models
        several = [name for name in names if name in models and len(models[name].versions) > 1]
        return [
            name for name in several if (best := self._best(name)) is not None and best != models[name].default_version
        ]

    async def _settle_default(self, name: str) -> None:
        best = self._best(name)
        if best is not None and best != self._deployer.registry.models[name].default_version:
            await self._make_default(name, best)

    async def _make_default(self, name: str, version: str) -> None:
        with contextlib.suppress(RingServeError):  # unregistered by the API in this very moment
            await self._deployer.make_default(name, version)
            logger.info("%s: the default version is %s now", name, version)

    # ---- what is told

    def unregistered(self) -> dict[str, str]:
        """Where the API has sent away what lies there, with the content that it did so to."""
        away = {}
        for slot, place in self._places.items():
            content = place.dismissed
            if place.version is not None:  # what the folder itself has just replaced is nobody's wish
                same = place.busy is None and place.entry is not None and place.entry.fingerprint == place.deployed
                content = place.deployed if same and not self._deployer.registry.holds(place.version) else None
            if content is not None:
                away[slot] = content
        return away

    def report(self) -> list[dict[str, Any]]:
        """Of every file: `file`, `model`, `version`, `state`, `reason` and `since`."""
        self._refresh()
        return [dict(row) for _, row in sorted(self._rows.items())]

    def _refresh_soon(self) -> None:
        """Once for all that happens in this moment: with thousands of files a refresh for each would take minutes."""
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().call_later(REFRESH_S, self._refresh)

    def _refresh(self) -> None:
        """Rows that say the same as before keep their time."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            self._refreshing = None
        rows = {}
        for row in self._present():
            before = self._rows.get(row["file"])
            same = before is not None and {**before, "since": None} == row
            since = (
                before["since"] if same and before is not None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            )
            rows[row["file"]] = {**row, "since": since}
        self._rows = rows

    def _present(self) -> Iterable[dict[str, Any]]:
        if self._unreadable is not None:
            yield _row(".", None, None, State.REFUSED, _goes_on(self._unreadable))
        for file, reason in self._problems.items():
            yield _row(file, file.partition("/")[0].partition(".")[0], None, State.REFUSED, reason)
        for slot, unfinished in self._unfinished.items():
            entry, place = unfinished.entry, self._places.get(slot)
            served = place.version if place is not None else None
            name = served.name if served is not None else entry.model or fallback_name(entry.path)
            label = served.version if served is not None else entry.version
            reason = unfinished.reason if served is None else _goes_on(unfinished.reason)
            yield _row(entry.file, name, label, State.INCOMPLETE, reason)
        for slot, place in self._places.items():
            told = self._state_of(place)
            if told is None or (slot in self._unfinished and place.busy is None):
                continue
            now, version = place.entry or place.loading, place.version
            name = fallback_name(now.path) if now is not None and now.model is None else slot.partition("/")[0]
            label = now.version if now is not None else None
            if version is not None:
                name, label = version.name, version.version
            yield _row(now.file if now is not None else shown(slot), name, label, *told)

    def _state_of(self, place: Deployment) -> tuple[State, str] | None:
        """None: it is not to be served, and nothing is wrong with it."""
        if place.busy is not None:
            return place.busy, ""
        if place.troubled:
            reason = place.error if place.version is None else _goes_on(place.error)
            return (State.REFUSED if place.final or place.conflict else State.RETRYING), reason
        if place.version is not None:
            if not self._deployer.registry.holds(place.version):
                return State.REFUSED, SENT_AWAY
            why = self._why_not_ready(place.version)
            if why is None:
                return State.SERVED, ""
            return (State.RETRYING if why else State.LOADING), why
        if place.sent_away:
            return (
                (State.SERVED, LEFT_TO_API) if place.slot in self._registered_by_api() else (State.REFUSED, SENT_AWAY)
            )
        return None


def _goes_on(reason: str) -> str:
    return f"{reason.rstrip().rstrip('.')}. {GOES_ON}"


def _row(file: str, model: str | None, version: str | None, state: State, reason: str) -> dict[str, Any]:
    return {"file": file, "model": model, "version": version, "state": state.value, "reason": reason, "since": None}
