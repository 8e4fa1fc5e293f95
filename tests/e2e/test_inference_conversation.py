"""A conversation with TorchServe 0.12 about inference, recorded, and held with our server: requests, handlers, explanations,
envelopes, parts, errors. Step for step the same, but for what is listed with its reason."""

import json
from pathlib import Path

import pytest

from ringserve.server.testing import ServerProcess
from tests.e2e.inference.accepted import LISTED, OURS
from tests.e2e.inference.differences import Recorded
from tests.e2e.inference.scenes import SCENES, Scene, file_of, held, settings_of, write_store
from tests.e2e.inference.talk import Peer

RECORDED = Path(__file__).parent / "recorded" / "torchserve-0.12-inference.jsonl"
STEPS_MIN = 460
LISTED_SHARE_MAX = 0.07
DECIDED_SHARE_MAX = 0.02


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded(json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_inference_is_torchserves_but_for_what_is_listed(scene: Scene, recorded: Recorded, tmp_path: Path) -> None:
    write_store(scene, tmp_path / "store")
    models = [file_of(archive) for archive in scene.archives]
    server = ServerProcess(tmp_path / "store", models=models, config=settings_of(scene), folder=tmp_path / "server")
    with server:
        peer = Peer(server.inference_url, server.management_url)
        peer.wait_for(*{archive.name for archive in scene.archives})
        found = [
            line for name, chapter in scene.chapters.items() for line in recorded.compare(name, held(chapter, peer))
        ]
    assert server.remains() == []
    assert found == [], "\n".join(found)


def test_nearly_all_of_the_conversation_is_the_same(recorded: Recorded) -> None:
    """What is listed is checked above to differ; most of it is where TorchServe itself fails."""
    assert recorded.steps >= STEPS_MIN
    assert len(LISTED) <= LISTED_SHARE_MAX * recorded.steps
    decided = [step for step, (reason, _) in LISTED.items() if reason.startswith(OURS)]
    assert len(decided) <= DECIDED_SHARE_MAX * recorded.steps
