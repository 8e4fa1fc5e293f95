"""Which versions are served and which is the default, as a table."""

import random
from typing import Any

import pytest

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.version_policy import (
    FolderConfig,
    VersionPolicy,
    choose_default,
    parse_folder_config,
    parse_version_config,
    version_key,
    wanted_versions,
)


@pytest.mark.parametrize(
    "ordered",
    [
        ["1", "2", "9", "10", "11"],
        ["1.0", "1.2", "1.9", "1.10", "2.0"],
        ["v1", "v2", "v10"],
        ["v1", "2", "v3"],
        ["1.0-alpha", "1.0-beta", "1.0-rc1", "1.0-rc2", "1.0-rc10", "1.0", "1.0.1"],
        ["2024-01-31", "2024-02-01", "2024-10-01"],
        ["dev", "stable", "0.1", "1"],
        ["1", "1.0", "1.0.0"],
        ["1" + "0" * 200, "2" + "0" * 200],
    ],
    ids=str,
)
def test_versions_are_sorted_as_people_count(ordered: list[str]) -> None:
    mixed = list(ordered)
    random.Random(1).shuffle(mixed)
    assert sorted(mixed, key=version_key) == ordered


def test_two_labels_of_one_number_keep_one_order() -> None:
    assert sorted(["v1", "1", "01"], key=version_key) == sorted(["1", "01", "v1"], key=version_key)


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        (VersionPolicy(), ["10.0"]),
        (VersionPolicy(2), ["9.0", "10.0"]),
        (VersionPolicy(99), ["1.0", "9.0", "10.0"]),
        (VersionPolicy(None), ["1.0", "9.0", "10.0"]),
        (VersionPolicy(None, ("1.0", "7.0")), ["1.0"]),
        (VersionPolicy(None, ("7.0",)), []),
    ],
)
def test_a_policy_serves(policy: VersionPolicy, served: list[str]) -> None:
    assert wanted_versions(["10.0", "1.0", "9.0"], policy) == served


@pytest.mark.parametrize(
    ("current", "dropped", "configured", "default"),
    [
        ("1.0", ["1.0", "2.0"], None, "2.0"),
        ("1.0", ["1.0", "2.0"], "1.0", "1.0"),
        ("3.0", ["1.0", "2.0"], None, "3.0"),
        ("3.0", ["1.0", "2.0"], "2.0", "2.0"),
        ("1.0", ["1.0", "2.0"], "9.0", "2.0"),
        ("9.0", ["10.0"], None, "10.0"),
    ],
)
def test_the_default_is_the_configured_version_or_the_highest(
    current: str, dropped: list[str], configured: str | None, default: str
) -> None:
    assert choose_default(current, dropped, configured) == default


@pytest.mark.parametrize(
    ("raw", "config"),
    [
        ({}, FolderConfig()),
        ({"version_policy": "all"}, FolderConfig(VersionPolicy(None))),
        ({"version_policy": {"latest": 3}}, FolderConfig(VersionPolicy(3))),
        ({"version_policy": {"all": {}}}, FolderConfig(VersionPolicy(None))),
        ({"version_policy": {"latest": {"num_versions": 3}}}, FolderConfig(VersionPolicy(3))),
        ({"version_policy": {"specific": {"versions": [1, 3]}}}, FolderConfig(VersionPolicy(None, ("1", "3")))),
        ({"version_policy": {"specific": ["1.0", 2]}}, FolderConfig(VersionPolicy(None, ("1.0", "2")))),
        ({"default_version": "1.0", "batchSize": 8}, FolderConfig(default_version="1.0", overrides={"batchSize": 8})),
    ],
)
def test_a_folders_configuration_is_read(raw: dict[str, Any], config: FolderConfig) -> None:
    assert parse_folder_config(raw, "m/config.yaml") == config


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"version_policy": "newest"}, "version_policy: expected all, {latest: 1 to 1000} or"),
        ({"version_policy": {"latest": 0}}, "got {'latest': 0}"),
        ({"version_policy": {"latest": True}}, "got {'latest': True}"),
        ({"version_policy": {"latest": {"num_versions": 0}}}, "expected all"),
        ({"version_policy": {"latest": {"versions": 1}}}, "expected all"),
        ({"version_policy": {"specific": []}}, "got {'specific': []}"),
        ({"version_policy": {"latest": 1, "specific": ["1"]}}, "expected all"),
        ({"version_policy": {"specific": [1.10]}}, 'specific[0]: expected a version in quotes, like "1.0", got 1.1'),
        ({"default_version": 1.0}, 'default_version: expected a version in quotes, like "1.0", got 1.0'),
        ({"default_version": ""}, "default_version: expected a version in quotes"),
    ],
)
def test_a_wrong_policy_names_what_was_expected_and_what_came(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidModel) as raised:
        parse_folder_config(raw, "m/config.yaml")
    assert sentence in raised.value.message
    assert raised.value.message.startswith("m/config.yaml: ")


def test_one_versions_configuration_cannot_say_which_versions_there_are() -> None:
    assert parse_version_config({"batchSize": 2}, "m/1.0/config.yaml") == {"batchSize": 2}
    with pytest.raises(
        InvalidModel, match=r"m/1.0/config.yaml: version_policy: expected in the config.yaml of the model"
    ):
        parse_version_config({"version_policy": "all"}, "m/1.0/config.yaml")
