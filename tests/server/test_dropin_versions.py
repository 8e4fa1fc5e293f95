"""Models with versions in folders of their own, and unpacked ones."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import InvalidModel, WorkerStartFailed
from ringserve.server.registry import ModelVersion
from ringserve.server.repository.deployments import Deployment
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import ModelConfig
from ringserve.server.repository.scan import Entry
from ringserve.server.repository.store import UnpackedModel
from tests.server.dropin_place import OPTIONS, Place, Play, run


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return lambda scene: run(tmp_path / "repository", scene)


def test_the_latest_version_is_served_and_the_one_before_goes_when_it_is_there(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("m/9.0/m.mar", "ignored 7")
        await place.look()
        assert place.deployer.served() == {"m": ["9.0"]}
        place.mar("m/10.0/m.mar", "ignored 7")
        await place.look()
        assert place.deployer.served() == {"m": ["10.0"]}
        assert place.deployer.did[1:] == ["load m/10.0/m.mar: ignored 7", "unload m 9.0"]
        shutil.rmtree(place.root / "m/10.0")
        await place.look()
        assert place.deployer.served() == {"m": ["9.0"]}
        assert place.deployer.did[3:] == ["load m/9.0/m.mar: ignored 7", "unload m 10.0"]

    play(scene)


def test_a_new_version_that_fails_leaves_the_one_before(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("m/1.0/m.mar", "m")
        await place.look()
        for error in (InvalidModel("broken"), WorkerStartFailed("no memory")):
            place.deployer.fails["m/2.0/m.mar"] = error
            place.mar("m/2.0/m.mar", "m")
            await place.look()
            assert place.deployer.served() == {"m": ["1.0"]}
        assert place.rows()[1] == ("m/2.0/m.mar", "m", "2.0", "retrying", "no memory")

    play(scene)


def test_without_the_newest_which_is_broken_the_one_before_is_served(play: Play) -> None:
    """A restart must not lose what was served before it."""

    async def scene(place: Place) -> None:
        place.mar("m/1.0/m.mar", "m")
        place.mar("m/2.0/m.mar", "m")
        place.deployer.fails["m/2.0/m.mar"] = InvalidModel("broken")
        await place.look()
        assert place.deployer.served() == {"m": ["1.0"]}

    play(scene)


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("version_policy: all", ["3.0", "1.0", "2.0"]),
        ("version_policy: {latest: 2}", ["3.0", "2.0"]),
        ('version_policy: {specific: ["1.0", "2.0"]}', ["2.0", "1.0"]),
        ('version_policy: all\ndefault_version: "2.0"', ["2.0", "1.0", "3.0"]),
        ('version_policy: all\ndefault_version: "9.0"', ["3.0", "1.0", "2.0"]),
    ],
)
def test_a_policy_says_which_versions_are_served_and_can_be_changed(play: Play, policy: str, served: list[str]) -> None:
    async def scene(place: Place) -> None:
        for version in ("1.0", "2.0", "3.0"):
            place.mar(f"m/{version}/m.mar", "m")
        place.text("m/config.yaml", policy)
        await place.look()
        assert place.deployer.served() == {"m": served}
        place.text("m/config.yaml", "version_policy: {latest: 1}")
        await place.look()
        assert place.deployer.served() == {"m": ["3.0"]}
        place.text("m/config.yaml", policy)
        await place.look()
        assert place.deployer.served() == {"m": served}

    play(scene)


def test_another_setting_reloads_and_a_broken_file_of_settings_changes_nothing(play: Play) -> None:
    async def scene(place: Place) -> None:
        for version in ("1.0", "2.0"):
            place.mar(f"m/{version}/m.mar", "m")
        place.text("m/config.yaml", 'version_policy: all\ndefault_version: "1.0"\nbatchSize: 2')
        await place.look()
        assert place.deployer.served() == {"m": ["1.0", "2.0"]}
        assert [each.overrides for each in place.deployer.asked] == [{"batchSize": 2}] * 2
        place.text("m/2.0/config.yaml", "batchSize: 4")
        await place.look()
        assert [dict(each.overrides) for each in place.deployer.asked[2:]] == [{"batchSize": 4}]
        before = list(place.deployer.registry)
        place.text("m/config.yaml", "version_policy: newest")
        place.mar("m/3.0/m.mar", "m")
        await place.look()
        assert list(place.deployer.registry) == before
        assert place.deployer.served() == {"m": ["1.0", "2.0"]}
        assert {row[3] for row in place.rows()} == {"refused"}
        shutil.rmtree(place.root / "m/1.0")
        await place.look()
        assert place.deployer.served() == {"m": ["2.0"]}, "what is removed is gone all the same"

    play(scene)


def test_a_version_whose_archive_changes_its_name_is_replaced(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("m/1.0/old.mar", "m")
        await place.look()
        (place.root / "m/1.0/old.mar").rename(place.root / "m/1.0/new.mar")
        await place.look()
        assert place.deployer.did == ["load m/1.0/old.mar: m", "load m/1.0/new.mar: m"]
        assert place.rows() == [("m/1.0/new.mar", "m", "1.0", "served", "")]

    play(scene)


def test_an_unpacked_model_that_changes_at_every_load_is_loaded_less_and_less_often(play: Play) -> None:
    now_s, loads = 0.0, []
    deployment = Deployment("m", "m")
    options: Mapping[str, Any] = {"is_folder": True}
    for number in range(10_000):
        entry = Entry("m", "m", Path("m"), "m", fingerprint=str(number), **options)
        deployment.entry = entry
        if deployment.wants_loading(now_s):
            loads.append(now_s)
            unpacked = UnpackedModel(Manifest(model_name="m"), ModelConfig(), Path("m"), temporary=False)
            deployment.succeeded(ModelVersion(1, "m", "1.0", "m", unpacked, OPTIONS), entry, now_s)
        now_s += 0.5
    assert len(loads) < 200
    assert len([each for each in loads if each < 10]) >= 3, "a few edits in a row are taken at once"
