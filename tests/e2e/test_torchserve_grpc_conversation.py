"""A conversation with TorchServe 0.12 over its gRPC services, recorded, and held with our server: predictions, streams, sequences,
management, and the Open Inference Protocol under TorchServe's name. Step for step the same, but for what is listed with its reason."""

import json
from pathlib import Path

import pytest

from ringserve.server.testing import ServerProcess
from tests.e2e.inference.scenes import Scene, file_of, settings_of, write_store
from tests.e2e.inference.talk import Peer
from tests.e2e.torchserve_grpc.accepted import ACCEPTED, MENDED
from tests.e2e.torchserve_grpc.steps import CHAPTERS, SCENES
from tests.e2e.torchserve_grpc.talk import Talk
from tests.e2e.torchserve_grpc.verdicts import difference

RECORDED = Path(__file__).parent / "recorded" / "torchserve-0.12-grpc.jsonl"
STEPS_MIN = 100
SAME_SHARE_MIN = 0.90  # with what was wrong there and is mended here


@pytest.fixture(scope="module")
def differing(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """(step, what differs), "" for nothing."""
    lines = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    return [each for scene in SCENES for each in _held(scene, lines, tmp_path_factory.mktemp(scene.name))]


def _held(scene: Scene, lines: list[dict[str, object]], folder: Path) -> list[tuple[str, str]]:
    write_store(scene, folder / "store")
    models = [file_of(archive) for archive in scene.archives]
    server = ServerProcess(
        folder / "store", models=models, config=settings_of(scene), folder=folder / "server", grpc=True
    )
    found = []
    with server:
        Peer(server.inference_url, server.management_url).wait_for(*{archive.name for archive in scene.archives})
        talk = Talk(server.grpc_address, server.grpc_management_address)
        for line in lines:
            if line["chapter"] in CHAPTERS[scene.name]:
                step, said = line["step"], line["said"]
                assert isinstance(step, dict)
                assert isinstance(said, dict)
                label = f"{line['chapter']}: {step['rpc']} {json.dumps(step.get('request', step.get('stream')))}"
                found.append((label, difference(said, talk.take(step))))
        talk.close()
    assert server.remains() == []
    return found


def test_every_answer_is_torchserves_or_differs_for_a_listed_reason(differing: list[tuple[str, str]]) -> None:
    other = [
        f"{step}\n    {why}" for step, why in differing if why and not any(each.covers(step, why) for each in ACCEPTED)
    ]
    assert other == [], "\n".join(other)


def test_every_listed_difference_is_still_one(differing: list[tuple[str, str]]) -> None:
    unused = [
        each.looks.pattern for each in ACCEPTED if not any(why and each.covers(step, why) for step, why in differing)
    ]
    assert unused == []


def test_nearly_all_of_it_is_the_same_or_was_wrong_there(differing: list[tuple[str, str]]) -> None:
    assert len(differing) >= STEPS_MIN
    mended = [each for each in ACCEPTED if each.reason.startswith(MENDED)]
    wrong = [f"{step}: {why}" for step, why in differing if why and not any(each.covers(step, why) for each in mended)]
    assert len(wrong) <= (1 - SAME_SHARE_MIN) * len(differing), "\n".join(wrong)
