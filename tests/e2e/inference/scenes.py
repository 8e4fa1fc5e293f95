"""Which servers the conversation is held with, one after the other: their settings, their models, and what is said."""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.inference import answers, data, entry_points, envelopes, failures, routes
from tests.e2e.inference.entry_points import MODULE, Archive
from tests.e2e.inference.talk import Peer, Step

HANDLERS = Path(__file__).parent / "handlers"
Chapter = Callable[[Peer], Iterator[Step]]
FOUR = "batchSize: 4\nmaxBatchDelay: 5000\nbatching: fill\n"  # TorchServe knows no `batching`, and no other way
HASTY = "responseTimeout: 2\n"


@dataclass(frozen=True, slots=True)
class Scene:
    """One server. The models of `archives` have a worker each when the chapters begin; the `spare` archives only lie in the
    store."""

    name: str
    chapters: Mapping[str, Chapter]
    archives: Sequence[Archive]
    spare: Sequence[Archive] = ()
    config: Mapping[str, str] = field(default_factory=dict)


def from_file(name: str, file: str, version: str = "1.0", config: str = "") -> Archive:
    return Archive(name, {MODULE: (HANDLERS / file).read_text()}, version=version, config=config)


INSIDE = (from_file("inside", "enveloped.py"),)
SCENES = (
    Scene(
        "requests",
        {"routes": routes.routes, "requests": data.requests},
        (from_file("echo", "echo.py"), from_file("echo", "echo.py", "2.0")),
    ),
    Scene(
        "answers",
        {
            "answers": answers.answers,
            "context": answers.context,
            "raised": failures.raised,
            "streams": failures.streams,
            "batches": failures.batches,
            "workers": failures.workers,
        },
        (
            *(from_file(name, "does.py") for name in ("does", "tensors", "streamer", "spare")),
            from_file("four", "does.py", config=FOUR),
        ),
    ),
    Scene(
        "loading",
        {
            "loads": entry_points.loads,
            "fails": entry_points.fails,
            "describes": entry_points.describes,
            "hooks": entry_points.hooks,
            "deaths": failures.deaths,
        },
        (
            from_file("mortal", "does.py"),
            from_file("hasty", "does.py", config=HASTY),
            from_file("hooks", "hooks.py"),
        ),
        entry_points.ARCHIVES,
    ),
    Scene("json", {"json": envelopes.json_envelope}, INSIDE, config={"service_envelope": "json"}),
    Scene("body", {"body": envelopes.body_envelope}, INSIDE, config={"service_envelope": "body"}),
    Scene("kserve", {"kserve": envelopes.kserve}, INSIDE, config={"service_envelope": "kserve"}),
    Scene("kservev2", {"kservev2": envelopes.kservev2}, INSIDE, config={"service_envelope": "kservev2"}),
)


def write_store(scene: Scene, store: Path) -> None:
    """The archives of a scene, as a zip with the least a manifest needs: what archivers write is the matter of other tests."""
    store.mkdir(parents=True, exist_ok=True)
    for archive in (*scene.archives, *scene.spare):
        told = {"modelName": archive.name, "modelVersion": archive.version, "handler": archive.handler}
        files = dict(archive.files)
        if archive.config:
            files["model-config.yaml"] = archive.config
            told["configFile"] = "model-config.yaml"
        manifest = {"createdOn": "01/01/2024 00:00:00", "runtime": "python", "archiverVersion": "0.12.0"}
        manifest_text = json.dumps({**manifest, "model": {**told, **archive.manifest}})
        with zipfile.ZipFile(store / file_of(archive), "w") as packed:
            packed.writestr("MAR-INF/MANIFEST.json", manifest_text)
            for name, text in files.items():
                packed.writestr(name, text)


def file_of(archive: Archive) -> str:
    return f"{archive.name}.mar" if archive.version == "1.0" else f"{archive.name}-{archive.version}.mar"


def settings_of(scene: Scene) -> dict[str, str]:
    """Of both servers' config.properties."""
    return {
        "default_workers_per_model": "1",
        "disable_token_authorization": "true",
        "enable_model_api": "true",
        **scene.config,
    }


def held(chapter: Chapter, peer: Peer) -> Iterator[Step]:
    """A chapter's steps; labels that are said again are numbered."""
    times: dict[str, int] = {}
    for label, seen in chapter(peer):
        times[label] = times.get(label, 0) + 1
        yield label if times[label] == 1 else f"{label} #{times[label]}", seen
