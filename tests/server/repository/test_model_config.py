"""model-config.yaml: TorchServe's keys leniently, our own strictly, hostile YAML not at all."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.repository.config_yaml import VALUES_MAX
from ringserve.server.repository.model_config import (
    ModelConfig,
    parse_model_config,
    read_model_config,
)
from ringserve.server.repository.signature import DTYPE_ALIASES


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "model-config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(InvalidModel) as caught:
        read_model_config(written(tmp_path, text))
    return str(caught.value)


def test_no_file_and_an_empty_file_mean_the_defaults(tmp_path: Path) -> None:
    assert read_model_config(None) == ModelConfig()
    assert read_model_config(tmp_path / "absent.yaml") == ModelConfig()
    assert read_model_config(written(tmp_path, "# nothing\n")) == ModelConfig()
    assert ModelConfig().backend == "handler"
    assert ModelConfig().batching == "adaptive"
    assert ModelConfig().max_retry_timeout_s == 300


def test_every_key_is_read_and_the_rest_kept_for_the_handler(tmp_path: Path) -> None:
    text = """
minWorkers: 1
maxWorkers: 4
batchSize: 8
maxBatchDelay: 50
responseTimeout: 30
startupTimeout: 60
queueTimeout: 2
deviceType: GPU
deviceIds: [0, 2]
jobQueueSize: 10
maxRetryTimeoutInSec: 0
clientTimeoutInMills: 1500
backend: torchscript
batching: fill
inputs:
  - {name: x, dtype: FP32, shape: [3, 4]}
outputs:
  - {name: y, dtype: int64, shape: []}
handler: {threshold: 0.5}
"""
    config = read_model_config(written(tmp_path, text))
    assert config == ModelConfig(
        min_workers=1,
        max_workers=4,
        batch_size=8,
        max_batch_delay_ms=50,
        response_timeout_s=30,
        startup_timeout_s=60,
        queue_timeout_s=2,
        device_type="gpu",
        device_ids=(0, 2),
        job_queue_size=10,
        max_retry_timeout_s=0,
        client_timeout_ms=1500,
        backend="torchscript",
        batching="fill",
        signature=Signature((TensorSpec("x", "float32", (3, 4)),), (TensorSpec("y", "int64", ()),)),
        raw=config.raw,
    )
    assert config.raw["handler"] == {"threshold": 0.5}


@pytest.mark.parametrize(
    "raw",
    [
        {"minWorkers": "2"},
        {"maxWorkers": 1.5},
        {"batchSize": True},
        {"maxBatchDelay": [1]},
        {"responseTimeout": {}},
        {"startupTimeout": 2**31},
        {"queueTimeout": "2"},
        {"jobQueueSize": "many"},
        {"maxRetryTimeoutInSec": "1"},
        {"clientTimeoutInMills": "1"},
        {"deviceType": "neuron"},
        {"deviceType": 1},
        {"deviceIds": 0},
        {"deviceIds": [0, -1]},
        {"deviceIds": [0, "1"]},
    ],
)
def test_a_torchserve_key_of_the_wrong_type_is_logged_and_unset(
    raw: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert parse_model_config(raw) == ModelConfig(raw=raw)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    (key,) = raw
    assert f"model-config.yaml: {key}: expected " in caplog.text


@pytest.mark.parametrize(
    ("raw", "field", "value"),
    [
        ({"minWorkers": 0}, "min_workers", 1),
        ({"maxWorkers": -1}, "max_workers", 0),
        ({"batchSize": 0}, "batch_size", 1),
        ({"maxBatchDelay": 0}, "max_batch_delay_ms", None),
        ({"maxBatchDelay": -5}, "max_batch_delay_ms", None),
        ({"responseTimeout": 0}, "response_timeout_s", None),
        ({"queueTimeout": 0}, "queue_timeout_s", None),
        ({"jobQueueSize": 0}, "job_queue_size", None),
        ({"maxRetryTimeoutInSec": -1}, "max_retry_timeout_s", 300),
        ({"clientTimeoutInMills": -1}, "client_timeout_ms", 0),
        ({"deviceType": None}, "device_type", None),
    ],
)
def test_numbers_out_of_range_follow_torchserve(raw: dict[str, Any], field: str, value: object) -> None:
    assert getattr(parse_model_config(raw), field) == value


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"minWorkers": 2, "maxWorkers": 2}, (2, 2)),
        ({"minWorkers": 1, "maxWorkers": 3}, (1, 3)),
        ({"minWorkers": 3, "maxWorkers": 1}, None),
        ({"minWorkers": 1}, None),
        ({"maxWorkers": 3}, None),
        ({"minWorkers": 0, "maxWorkers": 0}, None),
    ],
)
def test_workers_take_effect_only_as_a_sensible_pair(raw: dict[str, Any], expected: tuple[int, int] | None) -> None:
    assert parse_model_config(raw).worker_range == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backend: onnx", "backend: expected one of handler, torchscript, python, triton, got 'onnx'"),
        (
            "warmup: [{file: /etc/passwd}]",
            "warmup[0].file: expected a path inside the model's folder, got '/etc/passwd'",
        ),
        ("warmup: [{file: a/../../b}]", "warmup[0].file: expected a path inside the model's folder, got 'a/../../b'"),
        ("backend:", "backend: expected one of handler, torchscript, python, triton, got None"),
        ("batching: [fill]", "batching: expected one of adaptive, fill, got ['fill']"),
        ("inputs: x", "inputs: expected a list of 1 to 64 tensors, got 'x'"),
        ("inputs: []", "inputs: expected a list of 1 to 64 tensors, got []"),
        ("inputs: [x]", "inputs[0]: expected the keys name, dtype, shape, got 'x'"),
        ("inputs: [{name: x, dtype: int8}]", "inputs[0]: expected the keys name, dtype, shape, got"),
        ("inputs: [{name: x, dtype: int8, shape: [], dim: 1}]", "inputs[0]: expected the keys name, dtype, shape, got"),
        ("inputs: [{name: '', dtype: int8, shape: [1]}]", "inputs[0].name: expected a name of 1 to 256 printable"),
        ("inputs: [{name: 7, dtype: int8, shape: [1]}]", "inputs[0].name: expected a name of 1 to 256 printable"),
        ('inputs: [{name: "a\\nb", dtype: int8, shape: [1]}]', "inputs[0].name: expected a name of 1 to 256 printable"),
        ("inputs: [{name: x, dtype: complex64, shape: [1]}]", "inputs[0].dtype: expected one of bool, int8,"),
        ("inputs: [{name: x, dtype: 3, shape: [1]}]", "inputs[0].dtype: expected one of bool, int8,"),
        ("inputs: [{name: x, dtype: int8, shape: 3}]", "inputs[0].shape: expected a list of at most 32 positive"),
        ("inputs: [{name: x, dtype: int8, shape: [-2]}]", "inputs[0].shape: expected a list of at most 32 positive"),
        ("inputs: [{name: x, dtype: int8, shape: [1], optional: 1}]", "inputs[0].optional: expected true or false"),
        (
            "inputs: [{name: x, dtype: int8, shape: [1]}]\noutputs: [{name: y, dtype: int8, shape: [1], optional: true}]",
            "outputs[0].optional: expected none",
        ),
        ("inputs: [{name: x, dtype: int8, shape: [0]}]", "inputs[0].shape: expected a list of at most 32 positive"),
        ("inputs: [{name: x, dtype: int8, shape: [true]}]", "inputs[0].shape: expected a list of at most 32 positive"),
        ("inputs: [{name: x, dtype: int8, shape: [1.0]}]", "inputs[0].shape: expected a list of at most 32 positive"),
        (f"inputs: [{{name: x, dtype: int8, shape: {[1] * 33}}}]", "inputs[0].shape: expected a list of at most 32"),
        (
            "inputs: [{name: x, dtype: int8, shape: [1]}, {name: x, dtype: int8, shape: [1]}]",
            "inputs: expected every name once, got x, x",
        ),
        (
            "inputs: [{name: x, dtype: float64, shape: [65536, 65536]}]",
            "inputs: expected at most 1073741824 bytes a row, got 34,359,738,368",
        ),
        ("outputs: [{name: y, dtype: int8, shape: [1]}]", "inputs: expected a list beside outputs, got none"),
        (
            "inputs: [{name: x, dtype: int8, shape: [1]}]\noutputs: [{name: y, dtype: x, shape: [1]}]",
            "outputs[0].dtype: expected one of bool, int8,",
        ),
    ],
)
def test_our_own_keys_are_refused_when_wrong(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text).startswith(f"model-config.yaml: {message}")


@pytest.mark.parametrize(
    ("word", "dtype"),
    [
        ("float32", "float32"),
        ("BOOL", "bool"),
        ("FP16", "float16"),
        ("UINT8", "uint8"),
        ("INT64", "int64"),
        ("float", "float32"),
        ("double", "float64"),
        ("long", "int64"),
        ("torch.half", "float16"),
        ("BF16", "bfloat16"),
        ("BYTES", "bytes"),
        ("torch.float32", "float32"),
    ],
)
def test_triton_and_torch_type_names_become_numpy_ones(word: str, dtype: str) -> None:
    raw = {"inputs": [{"name": "x", "dtype": word, "shape": [2]}]}
    assert parse_model_config(raw).signature.inputs == (TensorSpec("x", dtype, (2,)),)


def test_all_eight_integer_names_of_triton_are_known() -> None:
    assert {name for name in DTYPE_ALIASES if "INT" in name} == {
        *("INT8", "INT16", "INT32", "INT64"),
        *("UINT8", "UINT16", "UINT32", "UINT64"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# head\n- a\n", ", line 2: expected a mapping of keys to values, got a list"),
        ("just words", ", line 1: expected a mapping of keys to values, got 'just words'"),
        ("a: 1\nb: [1\n", ", line 3: expected YAML, got an error: "),
        ("a: 1\n\tb: 2\n", ", line 2: expected YAML, got an error: "),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", ", line 2: expected YAML, got an error: could not determine"),
        (b"a: 1\nb: \x00\n", ", line 2: expected YAML text, got "),
        (b"a: \xff\n", ", line 1: expected YAML text, got "),
        ("a: 1\n---\nb: 2\n", ", line 2: expected YAML, got an error: "),
        ("a: 2026-13-45\n", ": expected YAML, got an error: month must be in 1..12"),
        ("a: " + "[" * 5000, ": expected YAML of moderate depth"),
        ("a: &x [*x]\n", ", line 1: expected a value that ends, got one that holds itself"),
        ("a: 0x" + "f" * 5000, ", line 1: expected YAML, got an error: expected whole numbers of 64 bits, got '0xfff"),
        ("a: 1" + ":1" * 100_000, ", line 1: expected YAML, got an error: expected whole numbers of 64 bits, got '1:1"),
        (
            "a: 18446744073709551616",
            ", line 1: expected YAML, got an error: expected whole numbers of 64 bits, got '184",
        ),
        ('a: "\\ud83d"', ", line 1: expected YAML, got an error: expected text in UTF-8, got "),
        ("1: a", ": expected keys of text, and values that workers can be given: Expected `str`, got `int`"),
        ("#" * (256 << 10) + "\n", ": expected at most 262144 bytes, got more"),
    ],
)
def test_what_is_not_a_yaml_mapping_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert refused(tmp_path, text).startswith(f"model-config.yaml{message}")


@pytest.mark.parametrize("level", ["l{n}: &a{n} [{uses}]", "l{n}: &a{n} {{<<: [{uses}]}}"])
def test_aliases_that_grow_without_end_are_refused_before_they_grow(tmp_path: Path, level: str) -> None:
    lines = ["l0: &a0 {x: 1}"]
    for number in range(1, 12):
        lines.append(level.format(n=number, uses=", ".join([f"*a{number - 1}"] * 9)))
    assert refused(tmp_path, "\n".join(lines)).endswith(f"expected at most {VALUES_MAX} values, got more")


def test_what_json_can_say_means_the_same(tmp_path: Path) -> None:
    text = '{"a": "\\ud83d\\ude00", "b": -9223372036854775808, "c": 18446744073709551615, "d": 0x_ff}'
    config = read_model_config(written(tmp_path, text))
    assert config.raw == {"a": "\U0001f600", "b": -(2**63), "c": 2**64 - 1, "d": 255}


def test_a_pipe_in_its_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model-config.yaml")
    with pytest.raises(InvalidModel, match="cannot be read: expected a regular file, got a named pipe"):
        read_model_config(tmp_path / "model-config.yaml")


def test_ordinary_aliases_and_merges_work(tmp_path: Path) -> None:
    config = read_model_config(written(tmp_path, "base: &b {x: 1}\nhandler:\n  <<: *b\n  y: *b\n"))
    assert config.raw["handler"] == {"x": 1, "y": {"x": 1}}


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"envelope": 5}, "envelope: expected the name of an envelope or none, got 5"),
        ({"envelope": ""}, "envelope: expected the name of an envelope or none, got ''"),
        ({"envelope": "../x"}, "envelope: expected the name of an envelope or none, got '../x'"),
        ({"envelope": ["kserve"]}, "envelope: expected the name of an envelope or none, got ['kserve']"),
        ({"envelope": "kserve", "backend": "python"}, "envelope: only handlers have one, got 'kserve' for the backend"),
    ],
)
def test_an_envelope_that_cannot_be_is_refused(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidModel, match=re.escape(f"model-config.yaml: {sentence}")):
        parse_model_config(raw)
