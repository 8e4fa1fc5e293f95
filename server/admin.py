"""What `ringserve status` shows, and `GET /status` answers: every version with the state of its workers, every file of the
repository that is not served, and what of a snapshot could not be restored."""

from typing import Any

from ringserve.server.management import Management
from ringserve.server.registry import ModelVersion
from ringserve.server.worker_slot import WorkerSlot

SERVED = "served"  # the state of a file of which nothing needs to be said


def describe_server(management: Management) -> dict[str, Any]:
    """As JSON: `models`, one entry a version, sorted; `repository`, the files that are not served and why; where there is something to
    say, `notRestored` and, when none can be written, `snapshots`."""
    models = [
        _described(management, each) for each in sorted(management.registry, key=lambda each: (each.name, each.version))
    ]
    files = [] if management.repository is None else management.repository.report()
    described = {"models": models, "repository": [each for each in files if each.get("state") != SERVED]}
    lost, trouble = management.lost.report(), management.recorder.trouble
    if lost:
        described["notRestored"] = lost
    return {**described, "snapshots": trouble} if trouble else described


def _described(management: Management, version: ModelVersion) -> dict[str, Any]:
    slots = management.versions.slots(version)
    ready = sum(slot.ready for slot in slots)
    reason = next(filter(None, map(_failure, slots)), None)
    hopeless = reason is not None or not management.versions.pool(version).serviceable
    state = state_of(ready, version.min_workers, hopeless=hopeless)
    described: dict[str, Any] = {
        "model": version.name,
        "version": version.version,
        "default": version.version == management.registry.models[version.name].default_version,
        "state": state,
        "workersReady": ready,
        "minWorkers": version.min_workers,
        "maxWorkers": version.max_workers,
        "devices": sorted({slot.place.device for slot in slots if slot.place is not None}),
        "source": version.url,
    }
    return described if state == "ready" or reason is None else {**described, "reason": reason}


def _failure(slot: WorkerSlot) -> str | None:
    """Why a worker that has never loaded has not."""
    if not slot.settled.done() or slot.settled.cancelled():
        return None
    error = slot.settled.exception()
    return None if error is None else str(error)


def state_of(ready: int, wanted: int, *, hopeless: bool) -> str:
    """One word for a version: whether it has its workers, some of them, or none."""
    if ready >= wanted:
        return "ready" if ready else "idle"
    if ready:
        return "degraded"
    return "failed" if hopeless else "loading"
