"""Desired state: which versions there are and which one is the default, in TorchServe's sentences."""

from pathlib import Path

import pytest

from ringserve.protocol.errors import Conflict, InvalidVersionUse, ModelNotFound, VersionNotFound
from ringserve.server.registry import ModelVersion, Registry, ServingOptions
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import ModelConfig
from ringserve.server.repository.store import UnpackedModel

OPTIONS = ServingOptions(1, 100, 100, 120, 120, "handler", False)


@pytest.fixture
def registry() -> Registry:
    return Registry()


def unregistered(registry: Registry, name: str = "m", number: str = "1.0") -> ModelVersion:
    unpacked = UnpackedModel(Manifest(name, number, "handler"), ModelConfig(), Path("."), temporary=False)
    return ModelVersion(registry.next_key(), name, number, f"{name}.mar", unpacked, OPTIONS)


def version(registry: Registry, name: str = "m", number: str = "1.0") -> ModelVersion:
    made = unregistered(registry, name, number)
    registry.add(made)
    return made


def test_the_first_version_becomes_the_default(registry: Registry) -> None:
    first, second = version(registry, number="2.0"), version(registry, number="1.0")
    assert registry.find("m") is first
    assert registry.find("m", "1.0") is second
    assert registry.all_of("m") == [first, second]


def test_keys_are_never_used_twice(registry: Registry) -> None:
    first = version(registry)
    registry.remove(first)
    assert version(registry).key > first.key


def test_the_same_version_twice_is_a_conflict(registry: Registry) -> None:
    kept = version(registry)
    with pytest.raises(Conflict, match=r"^Model version 1.0 is already registered for model m$"):
        version(registry)
    assert registry.find("m") is kept


def test_what_is_not_there_is_named(registry: Registry) -> None:
    version(registry)
    with pytest.raises(ModelNotFound, match=r"^Model not found: x$"):
        registry.find("x")
    with pytest.raises(ModelNotFound, match=r"^Model not found: x$"):
        registry.all_of("x")
    with pytest.raises(VersionNotFound, match=r"^Model version: 3.0 does not exist for model: m$"):
        registry.find("m", "3.0")


def test_a_default_version_may_go_only_as_the_last_one(registry: Registry) -> None:
    first, second = version(registry), version(registry, number="2.0")
    with pytest.raises(InvalidVersionUse, match=r"^Cannot remove default version for model m$"):
        registry.check_removable(first)
    registry.check_removable(second)
    registry.remove(second)
    registry.check_removable(first)
    registry.remove(first)
    with pytest.raises(ModelNotFound):
        registry.find("m")


def test_setting_the_default_moves_it(registry: Registry) -> None:
    first, second = version(registry), version(registry, number="2.0")
    registry.set_default("m", "2.0")
    assert registry.find("m") is second
    registry.check_removable(first)
    with pytest.raises(VersionNotFound, match=r"^Model version 9 does not exist for model m$"):
        registry.set_default("m", "9")
    with pytest.raises(ModelNotFound, match=r"^Model not found: x$"):
        registry.set_default("x", "1.0")
    assert registry.find("m") is second


def test_a_registration_taken_back_leaves_a_default(registry: Registry) -> None:
    first, second, third = (version(registry, number=number) for number in ("3.0", "1.0", "2.0"))
    registry.remove(first)
    assert registry.find("m") is second
    registry.remove(third)
    assert registry.find("m") is second


def test_removing_what_was_replaced_removes_nothing(registry: Registry) -> None:
    old = version(registry)
    registry.remove(old)
    new = version(registry)
    registry.remove(old)
    registry.remove(old)
    assert registry.find("m") is new


def test_defaults_are_listed_by_name_and_everything_is_iterated(registry: Registry) -> None:
    made = [version(registry, *which) for which in (("b", "1"), ("a", "2"), ("b", "3"), ("c", "1"))]
    registry.set_default("b", "3")
    assert registry.defaults() == [made[1], made[2], made[3]]
    assert set(registry) == set(made)


def test_a_replacement_takes_the_place_of_the_other_and_its_being_the_default(registry: Registry) -> None:
    old, sibling = version(registry, number="1.0"), version(registry, number="1.1")
    again, newer = unregistered(registry, number="1.0"), unregistered(registry, number="2.0")
    registry.replace(old, again)
    assert registry.find("m") is again
    assert not registry.holds(old)
    registry.replace(again, newer)
    assert registry.find("m") is newer
    assert registry.all_of("m") == [newer, sibling], "in the place of the one before"


def test_a_replacement_cannot_take_anybody_elses_place(registry: Registry) -> None:
    old, sibling = version(registry, number="1.0"), version(registry, number="1.1")
    other = version(registry, name="n")
    for wrong in (unregistered(registry, number="1.1"), unregistered(registry, name="n")):
        with pytest.raises(Conflict):
            registry.replace(old, wrong)
    assert registry.all_of("m") == [old, sibling]
    assert registry.all_of("n") == [other]


def test_a_replacement_of_another_name_leaves_no_model_behind(registry: Registry) -> None:
    old, new = version(registry), unregistered(registry, name="n")
    registry.replace(old, new)
    assert registry.find("n") is new
    assert "m" not in registry.models


def test_a_replacement_of_what_is_gone_is_added(registry: Registry) -> None:
    old = version(registry)
    registry.remove(old)
    new = unregistered(registry)
    registry.replace(old, new)
    assert registry.find("m") is new


def test_a_default_that_somebody_chose_stays_chosen_until_it_leaves(registry: Registry) -> None:
    old, other = version(registry, number="1.0"), version(registry, number="2.0")
    registry.set_default("m", "1.0")
    assert registry.models["m"].pinned
    again = unregistered(registry, number="1.0")
    registry.replace(old, again)
    assert registry.models["m"].pinned
    registry.remove(again)
    assert registry.find("m") is other
    assert not registry.models["m"].pinned
