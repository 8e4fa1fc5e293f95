"""The repository beside the management API: what one of them has taken, the other leaves alone."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import Conflict
from ringserve.server.dropin import LEFT_TO_API, SENT_AWAY
from ringserve.server.registry import ModelVersion
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import ModelConfig
from ringserve.server.repository.store import UnpackedModel
from tests.server.dropin_place import OPTIONS, Place, Play, run


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return lambda scene: run(tmp_path / "repository", scene)


def test_what_the_api_unregisters_stays_away_until_its_file_changes(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m")
        await place.look()
        [version] = place.deployer.registry
        place.deployer.registry.remove(version)
        assert place.rows() == [("a.mar", "m", "1.0", "refused", SENT_AWAY)]
        await place.look()
        assert place.deployer.served() == {}
        assert place.rows() == [("a.mar", "a", None, "refused", SENT_AWAY)]
        place.mar("a.mar", "m")
        await place.look()
        assert place.deployer.served() == {"m": ["1.0"]}

    play(scene)


def test_what_the_api_has_unregistered_stays_away_in_the_next_server_too(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m")
        place.mar("b.mar", "n")
        await place.look()
        assert place.dropin.unregistered() == {}
        place.deployer.registry.remove(next(each for each in place.deployer.registry if each.name == "m"))
        away = place.dropin.unregistered()
        assert list(away) == ["a.mar"]
        await place.look()
        assert place.dropin.unregistered() == away
        following = Place(place.root, away)
        await following.look()
        assert following.deployer.served() == {"n": ["1.0"]}
        assert following.dropin.unregistered() == away
        place.mar("a.mar", "m")
        await following.look()
        assert following.deployer.served() == {"m": ["1.0"], "n": ["1.0"]}
        assert following.dropin.unregistered() == {}

    play(scene)


def test_what_the_api_unregisters_while_its_replacement_is_loaded_stays_away_too(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m")
        await place.look()
        place.deployer.holds["a.mar"] = asyncio.Event()
        place.mar("a.mar", "m again")
        await place.dropin.look()
        while place.deployer.did[-1] != "load a.mar: m again":
            await asyncio.sleep(0)
        [version] = place.deployer.registry
        place.deployer.registry.remove(version)
        place.deployer.holds["a.mar"].set()
        await place.look(1000)
        await place.look(1000)
        assert place.deployer.served() == {}
        assert place.rows() == [("a.mar", "a", None, "refused", SENT_AWAY)]
        assert place.dropin.refused.total() == 0
        place.mar("a.mar", "m once more")
        await place.look()
        assert place.deployer.served() == {"m": ["once more"]}

    play(scene)


def test_a_version_that_is_just_being_switched_is_not_taken_for_one_of_the_apis(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("m/1.0/a.mar", "m")
        await place.look()
        draining = asyncio.Event()
        deploy = place.deployer.deploy

        async def drained(*arguments: Any, **options: Any) -> ModelVersion:
            version = await deploy(*arguments, **options)
            await draining.wait()
            return version

        place.deployer.deploy = drained  # type: ignore[method-assign]
        place.mar("m/1.0/a.mar", "m again")
        await place.dropin.look()
        while place.deployer.did[-1] != "load m/1.0/a.mar: m again":
            await asyncio.sleep(0)
        place.mar("a.mar", "other")
        await place.dropin.look()
        draining.set()
        await place.look()
        assert place.deployer.served() == {"m": ["1.0"], "other": ["1.0"]}

    play(scene)


def test_what_the_api_registered_is_never_touched(play: Play) -> None:
    async def scene(place: Place) -> None:
        unpacked = UnpackedModel(Manifest(model_name="m"), ModelConfig(), place.root, temporary=False)
        registered = ModelVersion(place.deployer.registry.next_key(), "m", "5.0", "x", unpacked, OPTIONS)
        place.deployer.registry.add(registered)
        place.deployer.fails["a.mar"] = Conflict("Model version 5.0 is already registered for model m")
        place.mar("a.mar", "m 5.0")
        place.mar("b.mar", "m 4.0")
        await place.look()
        assert place.state("a.mar") == "refused"
        assert place.deployer.served() == {"m": ["5.0", "4.0"]}
        for name in ("a.mar", "b.mar"):
            (place.root / name).unlink()
        await place.look()
        assert place.deployer.registry.find("m") is registered

    play(scene)


def test_a_file_that_somebody_registered_is_left_to_them_and_stays_away_with_its_registration(play: Play) -> None:
    async def scene(place: Place) -> None:
        unpacked = UnpackedModel(Manifest(model_name="m"), ModelConfig(), place.root, temporary=False)
        registered = ModelVersion(place.deployer.registry.next_key(), "m", "1.0", "/any/a.mar", unpacked, OPTIONS)
        place.deployer.registry.add(registered)
        place.mar("a.mar", "m")
        await place.look()
        assert place.rows() == [("a.mar", "a", None, "served", LEFT_TO_API)]
        place.deployer.registry.remove(registered)
        await place.look()
        assert place.rows() == [("a.mar", "a", None, "refused", SENT_AWAY)]
        assert place.deployer.did == []
        place.mar("a.mar", "m")
        await place.look()
        assert place.deployer.served() == {"m": ["1.0"]}

    play(scene)


def test_a_default_chosen_by_the_api_is_kept_while_its_version_is_there(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.text("m/config.yaml", "version_policy: all")
        for version in ("1.0", "2.0"):
            place.mar(f"m/{version}/m.mar", "m")
        await place.look()
        place.deployer.registry.set_default("m", "1.0")
        place.mar("m/3.0/m.mar", "m")
        place.mar("m/1.0/m.mar", "m again")
        await place.look()
        assert place.deployer.served()["m"][0] == "1.0"
        shutil.rmtree(place.root / "m/1.0")
        await place.look()
        assert place.deployer.served() == {"m": ["3.0", "2.0"]}

    play(scene)


def test_a_file_that_a_registration_downloaded_is_none_of_ours(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.by_url.add("a.mar")
        place.mar("a.mar", "m")
        await place.look()
        assert (place.rows(), place.deployer.did) == ([], [])

    play(scene)
