"""What a version is made of: what was asked for, what the archive says, the server's defaults, in TorchServe's order."""

from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import BadRequest, InvalidModel
from ringserve.server.budget import cpu_count
from ringserve.server.registration import Registration, make_version, overridden
from ringserve.server.registry import ModelVersion
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import parse_model_config
from ringserve.server.repository.store import UnpackedModel
from ringserve.server.settings import Settings

WORKERS = {"minWorkers": 2, "maxWorkers": 3}


def made(
    config: dict[str, Any] | None = None,
    *,
    models: dict[str, Any] | None = None,
    settings: Settings | None = None,
    version: str | None = None,
    **wanted: Any,
) -> ModelVersion:
    unpacked = UnpackedModel(
        Manifest("m", "1.0", "handler"), parse_model_config(config or {}), Path("."), temporary=False
    )
    settings = settings or Settings(model_defaults={"m": {"1.0": models or {}}})
    return make_version(1, Registration("m.mar", **wanted), unpacked, settings, version)


@pytest.mark.parametrize(
    ("config", "models", "wanted", "expected"),
    [
        ({}, {}, {}, (1, 100)),
        ({}, {"batchSize": 2, "maxBatchDelay": 3}, {}, (2, 3)),
        ({"batchSize": 4, "maxBatchDelay": 5}, {"batchSize": 2, "maxBatchDelay": 3}, {}, (4, 5)),
        ({"batchSize": 4, "maxBatchDelay": 5}, {}, {"batch_size": 6, "max_batch_delay_ms": 7}, (6, 7)),
        ({}, {"batchSize": -2, "maxBatchDelay": "3"}, {}, (1, 100)),
    ],
)
def test_batches_are_as_the_request_says_then_the_archive_then_the_servers_defaults_for_the_model(
    config: dict[str, Any], models: dict[str, Any], wanted: dict[str, Any], expected: tuple[int, int]
) -> None:
    options = made(config, models=models, **wanted).options
    assert (options.batch_size, options.batch_wait_ms) == expected


@pytest.mark.parametrize(
    ("config", "models", "wanted", "expected"),
    [
        ({}, {}, {}, 120),
        ({}, {}, {"response_timeout_s": 5}, 5),
        ({}, {"responseTimeout": 6}, {"response_timeout_s": 5}, 6),
        ({"responseTimeout": 7}, {"responseTimeout": 6}, {"response_timeout_s": 5}, 7),
        (
            {"minWorkers": 1},
            {},
            {"response_timeout_s": 5},
            5,
        ),  # a file that says nothing of it: TorchServe ignored the 5
    ],
)
def test_a_timeout_of_the_archive_wins_where_it_names_one(
    config: dict[str, Any], models: dict[str, Any], wanted: dict[str, Any], expected: int
) -> None:
    assert made(config, models=models, **wanted).options.response_timeout_s == expected


@pytest.mark.parametrize(
    ("config", "models", "wanted", "expected"),
    [
        ({}, {}, {}, (0, 0)),
        ({}, {}, {"initial_workers": 4}, (4, 4)),
        ({}, {}, {"initial_workers": -1}, (0, 0)),
        (WORKERS, {}, {"initial_workers": 4}, (2, 3)),
        ({"minWorkers": 4, "maxWorkers": 3}, {}, {"initial_workers": 1}, (1, 1)),
        ({}, WORKERS, {}, (0, 0)),  # only at start-up
        ({}, WORKERS, {"at_startup": True}, (2, 3)),
        ({}, {}, {"at_startup": True}, (cpu_count(), cpu_count())),
    ],
)
def test_workers_are_as_the_archive_says_then_the_request(
    config: dict[str, Any], models: dict[str, Any], wanted: dict[str, Any], expected: tuple[int, int]
) -> None:
    version = made(config, models=models, **wanted)
    assert (version.min_workers, version.max_workers) == expected


def test_a_folders_version_wins_over_the_manifests() -> None:
    assert made().version == "1.0"
    assert made(version="7").version == "7"
    with pytest.raises(InvalidModel, match="version: expected at most 256 characters"):
        made(version="a/b")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"batch_size": -1}, "batch_size: expected 1 to 65536, got -1"),
        ({"batch_size": 70_000}, "batch_size: expected 1 to 65536, got 70000"),
        ({"max_batch_delay_ms": -5}, "max_batch_delay: expected 0 or more, got -5"),
        ({"startup_timeout_s": -1}, "startup_timeout: expected 0 or more, got -1"),
        ({"initial_workers": 5000}, "initial_workers: expected at most 1024, got 5000"),
        ({"runtime": "LSP"}, "runtime: expected python or python3, got LSP"),
        ({"handler": "../h.py"}, "handler: expected a path inside the model's folder"),
        ({"model_name": "a/b"}, "model_name: expected at most 256 characters without slashes"),
    ],
)
def test_what_cannot_be_is_named(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises((BadRequest, InvalidModel), match=message):
        made(**wanted)


def test_a_registration_may_say_the_runtime() -> None:
    assert made().unpacked.manifest.runtime == "python"
    assert made(runtime="python3").unpacked.manifest.runtime == "python3"


def test_a_configuration_beside_the_archive_replaces_keys_of_its_own() -> None:
    config = parse_model_config({"batchSize": 4, "handler": {"top": 3}})
    unpacked = UnpackedModel(Manifest("m"), config, Path("."), temporary=False)
    changed = overridden(unpacked, {"batchSize": 8, "minWorkers": 1, "maxWorkers": 2})
    assert changed.config.batch_size == 8
    assert changed.config.worker_range == (1, 2)
    assert changed.config.raw["handler"] == {"top": 3}
    assert overridden(unpacked, {}) is unpacked
    with pytest.raises(InvalidModel, match=r"config\.yaml: backend: expected one of"):
        overridden(unpacked, {"backend": "onn"})


@pytest.mark.parametrize(
    ("by_manifest", "by_request", "by_server", "handler"),
    [
        ("", None, "", "default_service_handler"),
        ("", None, "image_classifier", "image_classifier"),
        ("own.py", None, "image_classifier", "own.py"),
        ("", "asked.py", "image_classifier", "asked.py"),
    ],
)
def test_the_servers_handler_is_for_archives_that_name_none(
    by_manifest: str, by_request: str | None, by_server: str, handler: str
) -> None:
    manifest = Manifest("m", "1.0", by_manifest) if by_manifest else Manifest("m", "1.0")
    unpacked = UnpackedModel(manifest, parse_model_config({}), Path("."), temporary=False)
    settings = Settings(default_service_handler=by_server)
    version = make_version(1, Registration("m.mar", handler=by_request), unpacked, settings)
    assert version.options.handler == handler


@pytest.mark.parametrize(
    ("by_model", "by_server", "backend", "envelope"),
    [
        (None, "", "handler", ""),
        (None, "kserve", "handler", "kserve"),
        (None, "none", "handler", ""),
        ("kservev2", "kserve", "handler", "kservev2"),
        ("none", "kserve", "handler", ""),
        ("own.envelope", "", "handler", "own.envelope"),
        (None, "kserve", "torchscript", ""),
        ("none", "", "torchscript", ""),
    ],
)
def test_a_models_envelope_comes_before_the_servers(
    by_model: str | None, by_server: str, backend: str, envelope: str
) -> None:
    """What a manifest says of it has no effect in TorchServe either."""
    config = {"backend": backend} | ({} if by_model is None else {"envelope": by_model})
    manifest = Manifest("m", raw={"model": {"envelope": "json"}})
    unpacked = UnpackedModel(manifest, parse_model_config(config), Path("."), temporary=False)
    version = make_version(1, Registration("m.mar"), unpacked, Settings(service_envelope=by_server))
    assert version.options.envelope == envelope
