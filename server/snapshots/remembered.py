"""Between what a snapshot says of a version and the version itself."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from ringserve.server.registration import Registration
from ringserve.server.registry import ModelVersion, Registry
from ringserve.server.snapshots.document import PLACEMENT_KEYS, VersionRecord


@dataclass(eq=False, slots=True)
class Numbers:
    """How many workers were acknowledged while a change of that is under way. `firm`: the change itself is acknowledged."""

    low: int
    high: int
    scaled: bool
    firm: bool


@dataclass(slots=True)
class Promises:
    """What sets the registry apart from what was acknowledged. `unanswered`: there, but nobody has been told so yet; `coming`:
    acknowledged, and still loading beside what it replaces; `scaling`: by model and version."""

    unanswered: set[ModelVersion] = field(default_factory=set)
    coming: set[ModelVersion] = field(default_factory=set)
    scaling: dict[tuple[str, str], Numbers] = field(default_factory=dict)

    def scale(self, version: ModelVersion, low: int, high: int, *, firm: bool) -> Numbers:
        """A change begins: to be acknowledged at once, or when it is `scaled`."""
        name = version.name, version.version
        before = self.scaling.get(name) or Numbers(version.min_workers, version.max_workers, version.scaled, False)
        numbers = Numbers(low, high, True, True) if firm else replace(before, firm=False)
        self.scaling[name] = numbers
        return numbers

    def scaled(self, version: ModelVersion, numbers: Numbers, low: int, high: int) -> None:
        """It has ended. Where a later one that is not acknowledged goes on, this is what counts until then."""
        name = version.name, version.version
        now = self.scaling.get(name)
        if now is numbers:
            del self.scaling[name]
        elif now is not None and not now.firm:
            now.low, now.high, now.scaled = low, high, True


def records(
    registry: Registry,
    promises: Promises,
    lost: Collection[VersionRecord],
    devices: Mapping[int, Iterable[str]],
) -> list[VersionRecord]:
    """What a restart is to bring back; `devices` by the versions' keys."""
    found: dict[tuple[str, str], VersionRecord] = {}
    for each in lost:
        model = registry.models.get(each.model)
        pinned = each.pinned and not (model is not None and model.pinned)
        found[each.model, each.version] = replace(each, lost=True, pinned=pinned)
    for version in (*registry, *promises.coming):
        if version not in promises.unanswered:
            record = _record(registry, version, promises.scaling.get((version.name, version.version)))
            found[version.name, version.version] = replace(record, devices=tuple(sorted(devices.get(version.key, ()))))
    return list(found.values())


def _record(registry: Registry, version: ModelVersion, numbers: Numbers | None) -> VersionRecord:
    model = registry.models.get(version.name)
    default = model is not None and model.default_version == version.version
    options, config = version.options, version.unpacked.config
    low, high, scaled = version.min_workers, version.max_workers, version.scaled
    if numbers is not None:
        low, high, scaled = numbers.low, numbers.high, numbers.scaled
    fetched = version.fetched
    return VersionRecord(
        model=version.name,
        version=version.version,
        mar_name=fetched.path.name if fetched is not None else version.url,
        default=default,
        min_workers=low,
        max_workers=high,
        batch_size=options.batch_size,
        batch_wait_ms=options.batch_wait_ms,
        response_timeout_s=options.response_timeout_s,
        startup_timeout_s=options.startup_timeout_s,
        runtime=version.unpacked.manifest.runtime,
        ours=True,
        url=version.url,
        handler=version.handler_given or "",
        queue_timeout_s=options.queue_timeout_s,
        remote=fetched is not None and fetched.remote,
        dropped=version.dropped,
        by_name=version.by_name,
        scaled=scaled,
        kept=version.kept,
        named=options.loaded_at_startup and not version.dropped,
        pinned=default and model is not None and model.pinned,
        placement={key: config.raw[key] for key in PLACEMENT_KEYS if key in config.raw},
    )


def registration_of(record: VersionRecord) -> Registration:
    """As it would be asked for by the API."""
    return Registration(
        url=record.url or record.mar_name,
        model_name=record.model,
        handler=record.handler or None,
        runtime=record.runtime,
        batch_size=record.batch_size,
        max_batch_delay_ms=record.batch_wait_ms,
        response_timeout_s=record.response_timeout_s,
        startup_timeout_s=record.startup_timeout_s,
        queue_timeout_s=record.queue_timeout_s,
        at_startup=True,
    )


def restore_settings(version: ModelVersion, record: VersionRecord) -> None:
    """What a snapshot says of a version wins over its model-config.yaml: the API has had the last word."""
    options = version.options
    version.options = replace(
        options,
        batch_size=_said(record.batch_size, options.batch_size),
        batch_wait_ms=_said(record.batch_wait_ms, options.batch_wait_ms),
        response_timeout_s=_said(record.response_timeout_s, options.response_timeout_s),
        startup_timeout_s=_said(record.startup_timeout_s, options.startup_timeout_s),
        queue_timeout_s=_said(record.queue_timeout_s, options.queue_timeout_s),
    )
    restore_numbers(version, record)


def restore_numbers(version: ModelVersion, record: VersionRecord) -> None:
    """How many workers; where only one of the two numbers is said, the other follows it."""
    low, high = record.min_workers, record.max_workers
    if low is None and high is None:
        return
    low = min(version.min_workers, high) if low is None and high is not None else low
    assert low is not None
    version.min_workers, version.max_workers = low, max(low, high if high is not None else version.max_workers)
    version.scaled = record.scaled


def restore_dropped(version: ModelVersion, record: VersionRecord) -> None:
    """The file says how it is served, and the snapshot what was said about it since."""
    if record.kept or not record.dropped:
        before = version.min_workers, version.max_workers
        restore_settings(version, record)
        version.kept = True
        version.scaled = record.scaled or before != (version.min_workers, version.max_workers)
    elif record.scaled:
        restore_numbers(version, record)


def _said(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
