"""A version that cannot be restored is told by name, and stays remembered; the others serve."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from ringserve.protocol.errors import ModelNotFound
from ringserve.server.device_watch import DeviceWatch
from ringserve.server.devices import no_devices
from ringserve.server.management import Management
from ringserve.server.registry import ModelVersion, Registry, ServingOptions
from ringserve.server.repository.environments import Environments
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import ModelConfig, parse_model_config
from ringserve.server.repository.remote import Fetched
from ringserve.server.repository.store import ModelStore, UnpackedModel
from ringserve.server.settings import Settings
from ringserve.server.snapshots.document import Problem, State, VersionRecord
from ringserve.server.snapshots.remembered import Promises, records, restore_dropped, restore_settings
from ringserve.server.snapshots.restoring import Lost, Restoring, named_models, stays_away, wanted_state
from tests.server.versions_rig import Store

OPTIONS = ServingOptions(1, 100, 100, 120, 120, "handler", False)
V1 = VersionRecord("m", "1.0", "m.mar", ours=True, default=True)
V2 = replace(V1, version="2.0", mar_name="m-2.mar", default=False)


def made(registry: Registry, name: str, label: str, config: ModelConfig | None = None) -> ModelVersion:
    unpacked = UnpackedModel(Manifest(name, label, "handler"), config or ModelConfig(), Path("."), temporary=False)
    return ModelVersion(registry.next_key(), name, label, f"{name}.mar", unpacked, OPTIONS)


class Target:
    """Takes back every record whose file is there."""

    def __init__(self, *missing: str) -> None:
        self.registry = Registry()
        self.remembered: dict[tuple[str, str], VersionRecord] = {}
        self.lost = Lost(self.registry)
        self.missing = set(missing)
        self.reinstated: list[str] = []

    async def reinstate(self, record: VersionRecord) -> ModelVersion:
        if record.mar_name in self.missing:
            raise ModelNotFound(f"Model not found at: {record.mar_name}")
        if record.mar_name == "bug.mar":
            raise KeyError("bug")
        version = made(self.registry, record.model, record.version)
        self.registry.add(version)
        self.reinstated.append(record.name)
        return version

    def drop(self, name: str, label: str) -> None:
        version = made(self.registry, name, label)
        version.dropped = True
        self.registry.add(version)

    def default(self, name: str = "m") -> str:
        return self.registry.models[name].default_version


def restore(target: Target, state: State, *, watched: bool = False, drops: Mapping[str, str] | None = None) -> None:
    restoring = Restoring(target, state, watched=watched)

    async def whole() -> None:
        await restoring.before()
        for name, label in (drops or {}).items():
            target.drop(name.partition("#")[0], label)
        await restoring.after()

    asyncio.run(whole())


def test_what_is_there_is_restored_and_what_is_not_is_named(caplog: pytest.LogCaptureFixture) -> None:
    target = Target("m-2.mar")
    broken = (Problem("other", "1.0", "marName: expected text"),)
    restore(target, State((V1, V2, replace(V1, model="n", mar_name="bug.mar")), broken))
    assert target.reinstated == ["model m version 1.0"]
    assert {(each["model"], each["version"]): each["reason"] for each in target.lost.report()} == {
        ("other", "1.0"): "marName: expected text",
        ("m", "2.0"): "Model not found at: m-2.mar",
        ("n", "1.0"): "The server failed to restore it: KeyError('bug')",
    }
    assert "Not restored: model m version 2.0: Model not found at: m-2.mar" in caplog.text


def test_a_name_that_a_snapshot_says_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    restore(Target(), State(problems=(Problem("m\nINFO all is well", "\x1b[2J", "no\nreason"),)))
    assert r"Not restored: model m\nINFO all is well version \x1b[2J: no\nreason" in caplog.text


def test_what_was_not_restored_is_remembered_until_somebody_registers_or_unregisters_it() -> None:
    target = Target("m.mar", "m-2.mar")
    restore(target, State((V1, V2)))
    assert {each.version for each in target.lost.records()} == {"1.0", "2.0"}
    [first, second] = records(target.registry, Promises(), target.lost.records(), {})
    assert (first.lost, second.lost) == (True, True)
    target.registry.add(made(target.registry, "m", "1.0"))
    assert [each["version"] for each in target.lost.report("m")] == ["2.0"]
    assert target.lost.forget("m", "1.0") is False
    assert target.lost.forget("m", None) is True
    assert target.lost.records() == []
    assert target.lost.report("other") == []


def test_the_default_version_comes_back_also_when_it_is_not_the_first() -> None:
    target = Target()
    restore(target, State((replace(V1, default=False), replace(V2, default=True))))
    assert target.default() == "2.0"
    assert target.registry.models["m"].pinned is False


def test_a_chosen_default_stays_chosen() -> None:
    target = Target()
    restore(target, State((replace(V1, pinned=True), V2)))
    assert (target.default(), target.registry.models["m"].pinned) == ("1.0", True)


def test_a_default_that_is_not_there_gives_way_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    target = Target("m-2.mar")
    restore(target, State((replace(V1, default=False), replace(V2, default=True))))
    assert target.default() == "1.0"
    assert "its default version was 2.0, which is not there; it is 1.0 now" in caplog.text
    target_again = Target()
    restore(target_again, State(tuple(records(target.registry, Promises(), target.lost.records(), {}))))
    assert target_again.default() == "2.0"


def test_a_default_chosen_since_wins_over_the_one_that_was_lost() -> None:
    target = Target("m-2.mar")
    restore(target, State((replace(V1, default=False), replace(V2, default=True, pinned=True))))
    target.registry.set_default("m", "1.0")
    target_again = Target()
    restore(target_again, State(tuple(records(target.registry, Promises(), target.lost.records(), {}))))
    assert target_again.default() == "1.0"


# ---- a folder that is watched


def test_of_what_was_dropped_the_folder_decides() -> None:
    target = Target()
    dropped = (replace(V1, dropped=True), replace(V2, dropped=True, scaled=True))
    restore(target, State(dropped), watched=True, drops={"m": "2.0"})
    assert target.reinstated == []
    assert target.lost.report() == []
    assert target.default() == "2.0"
    assert target.remembered == {}


def test_what_was_loaded_by_its_name_is_to_be_loaded_again_unless_the_folder_is_watched() -> None:
    named = (replace(V1, dropped=True, by_name=True), replace(V2, dropped=True, by_name=True))
    target = Target()
    restoring = Restoring(target, State(named), watched=False)
    asyncio.run(restoring.before())
    asyncio.run(restoring.after())
    assert restoring.by_name == {"m"}
    assert (target.reinstated, target.lost.report()) == ([], [])
    watching = Restoring(Target(), State(named), watched=True)
    asyncio.run(watching.before())
    assert watching.by_name == set()


def test_what_the_api_registered_comes_back_beside_what_the_folder_holds() -> None:
    target = Target()
    restore(
        target, State((V1, replace(V1, model="n", mar_name="n.mar", dropped=True))), watched=True, drops={"n": "1.0"}
    )
    assert target.reinstated == ["model m version 1.0"]
    assert set(target.registry.models) == {"m", "n"}


def test_a_file_that_the_folder_had_first_is_left_to_it_when_the_api_registered_it_as_well() -> None:
    target = Target()
    dropped, renamed = replace(V1, dropped=True), replace(V1, model="renamed")
    restoring = Restoring(target, State((dropped, renamed)), watched=True)
    asyncio.run(restoring.before())
    assert target.reinstated == [], "the file would look like a registration's"
    asyncio.run(restoring.after())
    assert target.reinstated == ["model renamed version 1.0"]


def test_of_torchserves_records_the_folder_serves_what_it_has_and_the_others_are_registered() -> None:
    target = Target()
    theirs = tuple(replace(each, ours=False) for each in (V1, V2, replace(V1, model="renamed")))
    restore(target, State(theirs), watched=True, drops={"m": "1.0", "m#": "2.0"})
    assert target.reinstated == ["model renamed version 1.0"]
    assert (target.default(), target.registry.models["m"].pinned) == ("1.0", True), "it is not to change by itself"


def test_what_lies_deeper_in_a_repository_is_not_restored_without_watching_it() -> None:
    target = Target()
    restore(target, State((replace(V1, mar_name="m/1.0/any.mar", dropped=True),)))
    [lost] = target.lost.report()
    assert "served by watching the folder" in lost["reason"]


# ---- one version


def test_the_snapshot_wins_over_the_archive_where_it_says_something() -> None:
    version = made(Registry(), "m", "1.0")
    version.min_workers = version.max_workers = 1
    restore_settings(version, replace(V1, min_workers=2, max_workers=4, batch_size=8, batch_wait_ms=0))
    assert (version.min_workers, version.max_workers) == (2, 4)
    assert (version.options.batch_size, version.options.batch_wait_ms) == (8, 0)
    assert version.options.response_timeout_s == 120


@pytest.mark.parametrize(("low", "high", "numbers"), [(None, None, (2, 3)), (None, 1, (1, 1)), (5, None, (5, 5))])
def test_of_two_numbers_of_workers_the_other_follows(
    low: int | None, high: int | None, numbers: tuple[int, int]
) -> None:
    version = made(Registry(), "m", "1.0")
    version.min_workers, version.max_workers = 2, 3
    restore_settings(version, replace(V1, min_workers=low, max_workers=high))
    assert (version.min_workers, version.max_workers) == numbers


def test_a_dropped_version_takes_back_its_workers_and_leaves_the_rest_to_its_file() -> None:
    version = made(Registry(), "m", "1.0")
    restore_dropped(version, replace(V1, dropped=True, scaled=True, min_workers=3, max_workers=3, batch_size=8))
    assert (version.min_workers, version.scaled, version.options.batch_size) == (3, True, 1)
    version = made(Registry(), "m", "1.0")
    restore_dropped(version, replace(V1, dropped=True, min_workers=3, max_workers=3))
    assert version.min_workers == 0


def test_what_was_named_is_left_to_a_folder_that_is_watched_now() -> None:
    target = Target()
    named = (replace(V1, named=True), replace(V1, model="n", named=True))
    restore(target, State(named), watched=True, drops={"m": "1.0"})
    assert target.reinstated == ["model n version 1.0"]


def test_a_dropped_version_keeps_what_torchserve_said_of_it() -> None:
    registry = Registry()
    version = made(registry, "m", "1.0")
    version.dropped = True
    restore_dropped(version, replace(V1, ours=False, min_workers=3, max_workers=3, batch_size=8))
    registry.add(version)
    [record] = records(registry, Promises(), [], {})
    assert (record.kept, record.scaled, record.batch_size, record.min_workers) == (True, True, 8, 3)


def test_what_was_promised_is_recorded_and_what_nobody_was_told_is_not() -> None:
    registry, promises = Registry(), Promises()
    told, untold, coming = (made(registry, "m", label) for label in ("1.0", "2.0", "3.0"))
    for version in (told, untold):
        registry.add(version)
    promises.unanswered.add(untold)
    promises.coming.add(coming)
    promises.scale(told, 4, 5, firm=True)
    found = {each.version: each for each in records(registry, promises, [], {told.key: {"cuda:1", "cuda:0"}})}
    assert set(found) == {"1.0", "3.0"}
    assert (found["1.0"].min_workers, found["1.0"].max_workers, found["1.0"].scaled) == (4, 5, True)
    assert found["1.0"].devices == ("cuda:0", "cuda:1")


def test_numbers_of_workers_count_from_their_acknowledgement_on() -> None:
    registry, promises = Registry(), Promises()
    version = made(registry, "m", "1.0")
    registry.add(version)

    def recorded() -> tuple[int | None, bool]:
        [record] = records(registry, promises, [], {})
        return record.min_workers, record.scaled

    first = promises.scale(version, 3, 3, firm=False)
    version.min_workers, version.scaled = 3, True  # as the workers begin to load
    assert recorded() == (0, False)
    second = promises.scale(version, 5, 5, firm=False)
    version.min_workers = 5
    promises.scaled(version, first, 3, 3)
    assert recorded() == (3, True)
    third = promises.scale(version, 7, 7, firm=True)
    promises.scaled(version, second, 5, 5)
    assert recorded() == (7, True)
    version.min_workers = 7
    promises.scaled(version, third, 7, 7)
    assert promises.scaling == {}
    assert recorded() == (7, True)


def test_where_an_archive_came_from_and_what_was_said_of_it_is_recorded() -> None:
    registry = Registry()
    version = made(registry, "m", "1.0", parse_model_config({"devices": ["cuda:0"], "batchSize": 2}))
    version.url, version.handler_given = "https://host/m.mar", "other:handle"
    version.fetched = Fetched(Path("/store/m.mar"), version.url, remote=True, downloaded=True)
    registry.add(version)
    [record] = records(registry, Promises(), [], {})
    assert (record.mar_name, record.url, record.remote) == ("m.mar", "https://host/m.mar", True)
    assert (record.handler, record.placement) == ("other:handle", {"devices": ["cuda:0"]})


# ---- what is asked for


def test_a_state_that_does_not_parse_restores_nothing_and_says_whose_it_was(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(model_snapshot="{", origins={"model_snapshot": "my.properties:3"})
    assert wanted_state(settings) == State()
    assert "Nothing is restored: my.properties:3: model_snapshot: expected a JSON object" in caplog.text


def test_a_state_in_the_configuration_is_restored_even_where_no_snapshots_are_kept() -> None:
    text = '{"models": {"m": {"1.0": {"marName": "m.mar"}}}}'
    assert len(wanted_state(Settings(model_snapshot=text)).records) == 1
    assert len(wanted_state(Settings(model_snapshot=text, snapshots=False)).records) == 1


def test_names_that_only_the_snapshot_remembers_are_not_loaded_again() -> None:
    said = Settings(models=("m",), model_snapshot="{}", origins={"models": "--models"})
    assert named_models(said) == ("m",)
    assert named_models(replace(said, origins={"models": "snapshot x.cfg"})) == ()
    assert named_models(replace(said, origins={"models": "x.cfg:7", "model_snapshot": "x.cfg:9"})) == ()
    assert named_models(replace(said, origins={"models": "x.cfg:7", "model_snapshot": "snapshot y.cfg"})) == ("m",)
    assert named_models(replace(said, origins={"models": "snapshot x.cfg"}, model_snapshot="")) == ("m",)


# ---- what the API says of it


def managed() -> Management:
    settings = Settings(snapshots=False, enable_model_api=True)
    store, environments = cast(ModelStore, Store()), cast(Environments, None)
    return Management(settings, store, DeviceWatch(no_devices("for this test")), environments)


def test_what_was_lost_and_registered_again_does_not_come_back_once_it_is_unregistered() -> None:
    management = managed()
    for record in (V1, V2):
        management.lost.add("m", record.version, "its file is gone", record)

    async def whole() -> None:
        management.versions.add(made(management.registry, "m", "1.0"))
        await management.unregister("m", "2.0")  # which is not there, beside one that is
        assert [each.version for each in management.lost.records()] == []
        await management.unregister("m", "1.0")

    asyncio.run(whole())
    assert management.lost.records() == []


def test_what_a_file_names_and_the_api_has_unregistered_stays_away_until_it_is_named_by_a_flag() -> None:
    state = State(unregistered={"m.mar": ""})
    assert stays_away(Settings(origins={"models": "config.properties:3"}), state) == {"m.mar": ""}
    assert stays_away(Settings(origins={"models": "--models"}), state) == {}
    management = managed()

    async def whole() -> None:
        version = made(management.registry, "m", "1.0")
        version.fetched = Fetched(Path("/store/m.mar"), "m.mar", remote=False, downloaded=False)
        version.options = replace(OPTIONS, loaded_at_startup=True)
        management.versions.add(version)
        await management.unregister("m", None)
        assert management.away == {"m.mar": ""}
        await management.load_at_startup(["m.mar", "n=m.mar"])  # the store would fail

    asyncio.run(whole())
