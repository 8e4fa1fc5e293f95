"""MAR-INF/MANIFEST.json: what is read, what is defaulted, what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.manifest import DEFAULT_HANDLER, Manifest, check_handled, read_manifest


def model_dir(tmp_path: Path, manifest: object, *files: str) -> Path:
    (tmp_path / "MAR-INF").mkdir()
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    (tmp_path / "MAR-INF/MANIFEST.json").write_bytes(text)
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def of_model(**model: Any) -> dict[str, Any]:
    return {"model": {"modelName": "m", **model}}


def refused(folder: Path) -> str:
    with pytest.raises(InvalidModel) as caught:
        read_manifest(folder)
    return str(caught.value)


def test_every_key_is_read(tmp_path: Path) -> None:
    raw = {
        "createdOn": "20/11/2026 07:12:03",
        "runtime": "python3",
        "archiverVersion": "0.12.0",
        "model": {
            "modelName": "probe",
            "modelVersion": "2.5",
            "handler": "probe.py:run",
            "serializedFile": "w.pt",
            "modelFile": "model.py",
            "requirementsFile": "requirements.txt",
            "configFile": "model-config.yaml",
            "sourceVocab": "legacy",
        },
    }
    files = ("probe.py", "w.pt", "model.py", "requirements.txt", "model-config.yaml")
    assert read_manifest(model_dir(tmp_path, raw, *files)) == Manifest(
        model_name="probe",
        model_version="2.5",
        handler="probe.py:run",
        serialized_file="w.pt",
        model_file="model.py",
        requirements_file="requirements.txt",
        config_file="model-config.yaml",
        runtime="python3",
        raw=raw,
    )


def test_a_manifest_with_only_a_name_gets_the_defaults(tmp_path: Path) -> None:
    manifest = read_manifest(model_dir(tmp_path, of_model(serializedFile=None, modelFile="")))
    assert manifest == Manifest("m", "1.0", DEFAULT_HANDLER, runtime="python", raw=manifest.raw)


@pytest.mark.parametrize(("version", "text"), [("1.0", "1.0"), (1.0, "1.0"), (2, "2")])
def test_a_version_may_be_a_number(tmp_path: Path, version: object, text: str) -> None:
    assert read_manifest(model_dir(tmp_path, of_model(modelVersion=version))).model_version == text


def test_a_name_from_outside_stands_in_only_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert read_manifest(model_dir(tmp_path / "a", {"model": {}}), "given").model_name == "given"
    assert read_manifest(model_dir(tmp_path / "b", of_model()), "given").model_name == "m"


def test_a_missing_manifest_leaves_everything_to_who_registers(tmp_path: Path) -> None:
    sentence = "Model name is not defined. MAR-INF/MANIFEST.json is missing: expected it in the archive"
    assert refused(tmp_path).startswith(sentence)
    assert read_manifest(tmp_path, "m") == Manifest("m", missing=True)
    (tmp_path / "MAR-INF").write_text("a file where the folder belongs")
    assert refused(tmp_path).startswith(sentence)
    assert read_manifest(tmp_path, "m").handler == DEFAULT_HANDLER


def test_without_a_manifest_somebody_names_the_handler() -> None:
    check_handled(Manifest("m", missing=True), "h.py")
    check_handled(Manifest("m"), None)
    with pytest.raises(InvalidModel, match=r"MANIFEST.json is missing, and nothing else names a handler"):
        check_handled(Manifest("m", missing=True), None)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": "\xff"}', b"[" * 100_000])
def test_broken_json_is_told_with_its_cause(tmp_path: Path, text: bytes) -> None:
    message = refused(model_dir(tmp_path, text))
    assert message.startswith("Failed to parse signature.json. MAR-INF/MANIFEST.json: ")
    assert not message.endswith(": ")


def test_an_enormous_manifest_is_refused_unparsed(tmp_path: Path) -> None:
    assert refused(model_dir(tmp_path, b" " * (1 << 20) + b"{}")).endswith("expected at most 1048576 bytes, got more")


def test_a_pipe_in_its_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    folder = model_dir(tmp_path, b"")
    (folder / "MAR-INF/MANIFEST.json").unlink()
    os.mkfifo(folder / "MAR-INF/MANIFEST.json")
    assert refused(folder) == "MAR-INF/MANIFEST.json cannot be read: expected a regular file, got a named pipe"


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({**of_model(), "extra": [10**30]}, "MAR-INF/MANIFEST.json: expected keys of text, and values that workers"),
        ({}, "Missing Model entry in manifest file."),
        ({"model": []}, "Missing Model entry in manifest file."),
        ({"model": {}}, "Model name is not defined."),
        ({"model": {"modelName": ""}}, "Model name is not defined."),
        (of_model(modelVersion=""), "Model version is not defined."),
        (of_model(modelVersion=None), "Model version is not defined."),
        ({**of_model(), "runtime": "PYTHON"}, "Runtime is not defined or invalid."),
        ({**of_model(), "runtime": ["python"]}, "Runtime is not defined or invalid."),
        (of_model(modelVersion=True), "MAR-INF/MANIFEST.json: model.modelVersion: expected a string, got True"),
        (of_model(handler=1), "MAR-INF/MANIFEST.json: model.handler: expected a string, got 1"),
        (of_model(modelFile=["x"]), "MAR-INF/MANIFEST.json: model.modelFile: expected a string, got ['x']"),
        (of_model(modelName="a/b"), "MAR-INF/MANIFEST.json: model.modelName: expected at most 256 characters without"),
        (of_model(modelVersion="1\n2"), "MAR-INF/MANIFEST.json: model.modelVersion: expected at most 256 characters"),
        (of_model(modelName="n" * 257), "MAR-INF/MANIFEST.json: model.modelName: expected at most 256 characters"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_sentence(tmp_path: Path, raw: dict[str, Any], sentence: str) -> None:
    assert refused(model_dir(tmp_path, raw)).startswith(sentence)


@pytest.mark.parametrize("key", ["serializedFile", "modelFile", "requirementsFile", "configFile", "handler"])
@pytest.mark.parametrize("name", ["/etc/passwd", "../w.pt", "a/../../w.pt", "a\\w.pt", "w\0.pt", "."])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, key: str, name: str) -> None:
    message = refused(model_dir(tmp_path, of_model(**{key: name})))
    assert message == f"MAR-INF/MANIFEST.json: model.{key}: expected a path inside the model's folder, got {name!r}"


@pytest.mark.parametrize("key", ["serializedFile", "modelFile", "requirementsFile", "configFile"])
def test_a_named_file_must_be_in_the_archive(tmp_path: Path, key: str) -> None:
    message = refused(model_dir(tmp_path, of_model(**{key: "gone.bin"})))
    assert message == f"MAR-INF/MANIFEST.json names {key} 'gone.bin', but the archive holds no such file"


@pytest.mark.parametrize("handler", ["gone.py", "gone.py:handle"])
def test_a_handler_file_must_be_in_the_archive(tmp_path: Path, handler: str) -> None:
    message = refused(model_dir(tmp_path, of_model(handler=handler)))
    assert message == f"MAR-INF/MANIFEST.json names handler {handler!r}, but the archive holds no file 'gone.py'"


@pytest.mark.parametrize("handler", ["image_classifier", "module:function", "h.py", "h.py:f", "src/h.py", "sub/k.py"])
def test_a_handler_that_is_there_or_may_be_a_default_one_passes(tmp_path: Path, handler: str) -> None:
    assert read_manifest(model_dir(tmp_path, of_model(handler=handler), "h.py", "sub/k.py")).handler == handler
