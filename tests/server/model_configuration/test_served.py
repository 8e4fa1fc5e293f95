"""What workers and front ends are told, before and after a model has said itself what it takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import Internal, InvalidModel
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.control import Loaded
from ringserve.server.model_configuration.fields import NESTED
from ringserve.server.model_configuration.labels import FILE_BYTES_MAX, read_labels
from ringserve.server.model_configuration.served import config_for_worker, served_model, take_loaded
from ringserve.server.registration import Registration, make_version
from ringserve.server.registry import ModelVersion
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import parse_model_config
from ringserve.server.repository.store import UnpackedModel
from ringserve.server.settings import Settings

X = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
TYPED = {
    "backend": "python",
    "batchSize": 4,
    "inputs": [{"name": "x", "dtype": "float32", "shape": [2]}],
    "outputs": [{"name": "y", "dtype": "bytes", "shape": [-1]}],
}
COMPLETED = {"input": [X], "output": [X], "max_batch_size": 6, "dynamic_batching": {}}


def made(raw: dict[str, Any], settings: Settings | None = None, **wanted: Any) -> ModelVersion:
    unpacked = UnpackedModel(
        Manifest("m", "1", "model.py"), parse_model_config(raw), Path("."), temporary=False, labels={"y": ["cat"]}
    )
    return make_version(1, Registration("m.mar", **wanted), unpacked, settings or Settings(), None)


def take(version: ModelVersion, completed: dict[str, Any] | None = None, **more: Any) -> None:
    signature = Signature((TensorSpec("x", "float32", (4,)),), (TensorSpec("x", "float32", (4,)),), **more)
    take_loaded(version, Loaded(signature, completed), "W-1", on_gpus=False)


def test_a_worker_sees_the_whole_configuration_where_it_is_in_tritons_words() -> None:
    seen = config_for_worker(made({NESTED: {"backend": "python", "max_batch_size": 2}}), on_gpus=True)
    assert (seen[NESTED]["name"], seen[NESTED]["max_batch_size"]) == ("m", 2)
    assert seen[NESTED]["instance_group"][0]["kind"] == "KIND_GPU"
    assert config_for_worker(made(TYPED), on_gpus=False) == TYPED


def test_a_model_may_be_kept_from_adding_to_its_configuration() -> None:
    version = made({NESTED: {"backend": "python"}})
    assert config_for_worker(version, on_gpus=False, strict=True)["triton_strict"] is True
    assert "triton_strict" not in config_for_worker(version, on_gpus=False)


def test_a_model_that_nobody_has_configured_so_has_a_configuration_all_the_same() -> None:
    version = made(TYPED)
    version.signature = version.unpacked.config.signature
    served = served_model(version, on_gpus=False)
    shown = json.loads(served.config_json)
    assert (served.platform, served.max_batch_size, served.labels) == ("python", 4, {"y": ["cat"]})
    assert (shown["name"], shown["backend"], shown["output"][0]["data_type"]) == ("m", "python", "TYPE_STRING")


def test_what_a_model_says_of_itself_completes_its_configuration() -> None:
    version = made({NESTED: {"backend": "python"}})
    assert version.options.batch_size == 1
    take(version, COMPLETED, ragged=True)
    assert version.options.batch_size == 6
    assert version.signature is not None
    assert (version.signature.inputs[0].name, version.signature.ragged) == ("x", True)
    assert version.unpacked.config.scheduling is not None
    assert version.unpacked.config.scheduling.batches
    assert json.loads(version.served.config_json)["dynamic_batching"]["preferred_batch_size"] == [6]
    take(version, COMPLETED, ragged=True)  # the next worker says the same


def test_a_worker_that_says_something_else_than_the_first_is_refused() -> None:
    version = made({NESTED: {"backend": "python"}})
    take(version, COMPLETED)
    with pytest.raises(Internal, match="declares other inputs and outputs than the workers before it"):
        take(version, {**COMPLETED, "input": [{**X, "dims": [5]}]})
    with pytest.raises(InvalidModel, match="max_batch_size: expected 6, as before, got 7"):
        take(version, {**COMPLETED, "max_batch_size": 7})


def test_what_a_model_says_must_make_sense() -> None:
    with pytest.raises(InvalidModel, match=r"auto_complete_config: input\[0\]\.dims: expected"):
        take(made({NESTED: {"backend": "python"}}), {"input": [{**X, "dims": []}]})


def test_a_model_cannot_change_how_its_sequences_are_batched() -> None:
    version = made({NESTED: {"backend": "python", "input": [X], "sequence_batching": {}}})
    take(version, {"dynamic_batching": {}, "max_batch_size": 2})
    assert version.unpacked.config.scheduling is not None
    assert version.unpacked.config.scheduling.sequences is not None


def test_the_configuration_wins_over_the_size_that_a_registration_asks_for() -> None:
    assert made({"max_batch_size": 4}, batch_size=9).options.batch_size == 4


def test_a_queue_holds_what_its_configuration_lets_wait() -> None:
    policy = {"default_queue_policy": {"max_queue_size": 400}, "priority_levels": 2, "default_priority_level": 1}
    version = made({"backend": "python", "max_batch_size": 4, "dynamic_batching": policy, "input": [X], "output": [X]})
    assert version.options.queue_size == 800
    assert made({"backend": "python", "max_batch_size": 300, "input": [X]}).options.queue_size == 300


@pytest.mark.parametrize(("gpus", "workers"), [(0, 2), (3, 6)])
def test_instances_that_name_no_gpu_are_on_each(gpus: int, workers: int) -> None:
    version = made({"instance_group": [{"count": 2, "kind": "KIND_GPU"}]}, Settings(number_of_gpu=gpus))
    assert (version.min_workers, version.max_workers) == (workers, workers)


def test_the_name_in_the_configuration_is_that_of_the_model() -> None:
    with pytest.raises(InvalidModel, match="name: expected 'm', as the model is called, or none, got 'other'"):
        made({NESTED: {"name": "other"}})


class TestLabels:
    def test_each_line_is_a_class(self, tmp_path: Path) -> None:
        (tmp_path / "l.txt").write_bytes(b"cat\r\ndog\n\nfox\n")
        assert read_labels(tmp_path, {"y": "l.txt"}) == {"y": ["cat", "dog", "", "fox"]}
        assert read_labels(tmp_path, {}) == {}

    @pytest.mark.parametrize("name", ["../l.txt", "/etc/passwd", "none.txt", ".", "long", "latin"])
    def test_a_file_that_cannot_be_read_is_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path.parent / "l.txt").write_text("secret")
        (tmp_path / "long").write_bytes(b"a" * (FILE_BYTES_MAX + 1))
        (tmp_path / "latin").write_bytes(b"caf\xe9")
        with pytest.raises(InvalidModel, match=r"^output y: label_filename: "):
            read_labels(tmp_path, {"y": name})
