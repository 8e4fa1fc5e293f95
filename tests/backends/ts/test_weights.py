"""Weights files: what is read, what is refused, and what the refusal says."""

import datetime
import pathlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ringserve.backends.ts.utils.weights import read_weights, weights_only

CPU = torch.device("cpu")
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("config", "only"),
    [
        ({}, True),
        ({"handler": None}, True),
        ({"handler": "handler.py"}, True),
        ({"handler": {"profile": True}}, True),
        ({"handler": {"weights_only": True}}, True),
        ({"handler": {"weights_only": False}}, False),
    ],
)
def test_only_weights_are_read_unless_the_configuration_says_otherwise(config: dict[str, Any], only: bool) -> None:
    assert weights_only(config) is only


@pytest.mark.parametrize("value", ["false", 0, None])
def test_anything_but_true_and_false_is_refused_by_name(value: object) -> None:
    """Guessing would decide whether code runs."""
    with pytest.raises(TypeError, match=r"handler\.weights_only .* true or false, got"):
        weights_only({"handler": {"weights_only": value}})


@pytest.mark.parametrize("only", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_read(tmp_path: Path, only: bool, zipped: bool) -> None:
    """Of today's format and of the one before."""
    path = str(tmp_path / "net.pt")
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    torch.testing.assert_close(read_weights(path, CPU, only=only), STATE)


def test_a_file_of_safetensors_is_read(tmp_path: Path) -> None:
    """It cannot hold anything else, so nothing needs to be allowed."""
    path = str(tmp_path / "net.safetensors")
    save_file(STATE, path)
    torch.testing.assert_close(read_weights(path, CPU, only=True), STATE)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_file_holds_beside_weights_is_named(tmp_path: Path, zipped: bool) -> None:
    """With the file, the classes and the way to allow it."""
    path = str(tmp_path / "net.pt")
    torch.save({**STATE, "made": pathlib.PurePosixPath("x")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(RuntimeError) as refusal:
        read_weights(path, CPU, only=True)
    message = str(refusal.value)
    assert message.startswith("net.pt holds more than weights: pathlib.PurePosixPath. ")
    assert "handler: {weights_only: false}" in message
    assert read_weights(path, CPU, only=False)["made"] == pathlib.PurePosixPath("x")


def test_of_many_classes_the_first_few_are_named(tmp_path: Path) -> None:
    """A whole pickled network has as many as it has kinds of layers."""
    path = str(tmp_path / "net.pt")
    layers = [torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.GELU(), torch.nn.Tanh(), torch.nn.Sigmoid()]
    torch.save(OrderedDict(net=torch.nn.Sequential(*layers), made=datetime.date(2024, 1, 1)), path)
    with pytest.raises(RuntimeError, match=r"net\.pt holds more than weights: datetime\.date, (\S+, ){4}\.\.\.\. "):
        read_weights(path, CPU, only=True)


@pytest.mark.parametrize("content", [b"rubbish", b"\x80\x02rubbish", b"PK\x03\x04rubbish", b"", b"\xff" * 9])
@pytest.mark.parametrize("only", [True, False])
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_a_damaged_file_is_named_and_nothing_is_advised(tmp_path: Path, name: str, content: bytes, only: bool) -> None:
    """Allowing more would not make it readable."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=name) as failure:
        read_weights(str(path), CPU, only=only)
    assert "weights_only" not in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_weights(str(tmp_path / "none.pt"), CPU, only=True)
