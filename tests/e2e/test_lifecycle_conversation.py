"""A conversation with TorchServe 0.12 about keys, settings, snapshots and metrics, recorded, and held with our server: step for step the
same, but for what is listed with its reason."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e import lifecycle_chapters as chapters
from tests.e2e.conversation import difference
from tests.e2e.lifecycle_chapters import Place, Step

RECORDED = Path(__file__).parent / "recorded" / "torchserve-0.12.jsonl"
SAME_SHARE_MIN = 0.95
SUBSTRING = "defect 18: whatever begins with /token is the renewal of keys there"
FORGOTTEN = "defect 13: TorchServe forgets what was said of the runtime when it restores"
# What differs, and which of TorchServe's defects (contract section 15) that is.
DEFECTS = {
    "keys: management GET /tokens?type=inference with the API key": SUBSTRING,
    "keys: keys that are others after GET /tokens?type=inference": SUBSTRING,
    "restored: management GET /models/m/all": FORGOTTEN,
}
TYPED = "defect 14: predictions have no content type there"


@dataclass(slots=True)
class Held:
    """How the conversation went: labels with what differed."""

    steps: int = 0
    differing: dict[str, str] = field(default_factory=dict)
    typed: int = 0

    def beyond(self, listed: Mapping[str, str]) -> str:
        """What differs and is not listed, a line each."""
        return "\n".join(f"{label}: {found}" for label, found in self.differing.items() if label not in listed)


def recorded(chapter: str) -> dict[str, Any]:
    steps = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    return {label: seen for name, label, seen in steps if name == chapter}


def hold(held: Held, chapter: str, steps: Iterator[Step]) -> None:
    expected, times = recorded(chapter), Counter[str]()
    for label, seen in steps:
        times[label] += 1
        numbered = label if times[label] == 1 else f"{label} #{times[label]}"
        got, wanted = json.loads(json.dumps(seen)), expected.pop(numbered)
        if isinstance(wanted, dict) and "status" in wanted and "content-type" not in wanted:
            held.typed += got.pop("content-type", None) is not None
        held.steps += 1
        found = difference(_sorted(wanted), _sorted(got))
        if found is not None:
            held.differing[f"{chapter}: {numbered}"] = found
    assert expected == {}, "every step of the recording is repeated"


def _sorted(value: Any) -> Any:
    """TorchServe writes models and versions in the order of a hash table."""
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


class Scene:
    """Servers one after the other, in one folder, on one store."""

    def __init__(self, folder: Path, archive: Callable[..., Path]) -> None:
        self.folder = folder
        self.store = folder / "store"
        archive(self.store, "m", "plain.py")
        archive(self.store, "m", "plain.py", version="2.0", file="m-2")
        archive(self.store, "counts", "measuring.py:handle", source=chapters.MEASURING)
        self.servers: list[ServerProcess] = []

    def server(self, config: Mapping[str, object], *models: str, flags: Sequence[str] = ("--ncs",)) -> ServerProcess:
        server = ServerProcess(self.store, models=models, flags=flags, config=config, folder=self.folder / "server")
        self.servers.append(server)
        return server

    def place(self) -> Place:
        server = self.servers[-1]
        urls = {"inference": server.inference_url, "management": server.management_url, "metrics": server.metrics_url}
        return Place(server.folder, self.store, urls, settle=lambda: None)


@pytest.fixture
def scene(tmp_path: Path, archive: Callable[..., Path]) -> Iterator[Scene]:
    scene = Scene(tmp_path, archive)
    yield scene
    assert [remain for server in scene.servers for remain in server.remains()] == []


def test_keys_settings_and_snapshots_are_torchserves_but_for_its_listed_defects(scene: Scene) -> None:
    held = Held()
    with scene.server(chapters.KEYS_SETTINGS):
        hold(held, "keys", chapters.keys(scene.place()))
    with scene.server(chapters.SETTINGS, flags=()):
        hold(held, "settings", chapters.settings(scene.place()))
        for path in scene.place().snapshots()[1:]:
            path.unlink()
        hold(held, "snapshots", chapters.snapshots(scene.place()))
    hold(held, "stopped", chapters.stopped(scene.place()))
    with scene.server(chapters.RESTORED_SETTINGS):
        hold(held, "restored", chapters.restored(scene.place()))
    assert held.beyond(DEFECTS) == "", held.beyond(DEFECTS)
    assert held.differing.keys() == DEFECTS.keys()
    assert len(held.differing) + held.typed <= (1 - SAME_SHARE_MIN) * held.steps


def test_metrics_are_torchserves(scene: Scene) -> None:
    held = Held()
    with scene.server(chapters.METRICS_SETTINGS, "counts.mar") as server:
        model = f"{server.management_url}/v1/models/counts"
        wait_until(lambda: httpx.get(model, trust_env=False).json()["ready"], 30, "a worker")
        hold(held, "metrics", chapters.metrics(scene.place()))
    assert held.beyond({}) == "", held.beyond({})
