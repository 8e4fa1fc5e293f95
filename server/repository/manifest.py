"""What an archive says about itself: `MAR-INF/MANIFEST.json`, checked against the files that came with it.

Keys, defaults and sentences are TorchServe 0.12's; that it says `signature.json` for a broken manifest is part of them.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.contents import Contents, FolderContents
from ringserve.server.repository.files import check_carried

MANIFEST_PATH = PurePosixPath("MAR-INF/MANIFEST.json")
MANIFEST_BYTES_MAX = 1 << 20
RUNTIMES = ("python", "python3", "LSP")
DEFAULT_RUNTIME = "python"
DEFAULT_VERSION = "1.0"
DEFAULT_HANDLER = "default_service_handler"
NAME_CHARS_MAX = 256
_EXPECTED_INSTEAD = "expected it in the archive or folder, or a registration that says model_name and handler (default_service_handler is for all)"
# Names and versions become path segments of the API, labels of metrics and words of log lines.
UNUSABLE_IN_NAMES = re.compile(r"[\x00-\x1f\x7f/\\\ud800-\udfff]")


class Manifest(msgspec.Struct, frozen=True):
    """The parsed manifest. File names are relative to the model's folder and exist there; absent ones are None.

    `handler` is `file.py`, `module` or the name of a default handler, each with an optional `:function`. `raw` is the
    whole JSON object as handlers see it. `missing`: there is none, and everything has its default.
    """

    model_name: str
    model_version: str = DEFAULT_VERSION
    handler: str = DEFAULT_HANDLER
    serialized_file: str | None = None
    model_file: str | None = None
    requirements_file: str | None = None
    config_file: str | None = None
    runtime: str = DEFAULT_RUNTIME
    raw: dict[str, Any] = {}
    missing: bool = False


def read_manifest(model: Path | Contents, name_if_absent: str | None = None) -> Manifest:
    """The manifest of a model, given its folder or what is in its archive.

    `name_if_absent` stands in for a manifest that names no model, and for one that is missing: then somebody else has to say what
    the handler is (`check_handled`). Raises `InvalidModel` with the first thing wrong.
    """
    contents = FolderContents(model) if isinstance(model, Path) else model
    raw = _read_json(contents)
    if raw is None:
        if not name_if_absent:
            raise InvalidModel(f"Model name is not defined. {MANIFEST_PATH} is missing: {_EXPECTED_INSTEAD}")
        return Manifest(model_name=_name({}, name_if_absent), missing=True)
    return _parse(raw, contents, name_if_absent)


def check_handled(manifest: Manifest, handler_given: str | None) -> None:
    """Raises `InvalidModel` where neither a manifest nor anybody else says what runs the model."""
    if manifest.missing and not handler_given:
        raise InvalidModel(f"{MANIFEST_PATH} is missing, and nothing else names a handler: {_EXPECTED_INSTEAD}")


def _parse(raw: dict[str, Any], contents: Contents, name_if_absent: str | None) -> Manifest:
    runtime = raw.get("runtime")
    if runtime is None:
        runtime = DEFAULT_RUNTIME
    if runtime not in RUNTIMES:
        expected = f"expected one of {', '.join(RUNTIMES)}, got {runtime!r}"
        raise InvalidModel(f"Runtime is not defined or invalid. {MANIFEST_PATH}: {expected}")
    model = raw.get("model")
    if model is None:
        raise InvalidModel("Missing Model entry in manifest file.")
    if not isinstance(model, dict):
        raise InvalidModel(f"Missing Model entry in manifest file. Expected an object, got {model!r}")
    return Manifest(
        model_name=_name(model, name_if_absent),
        model_version=_version(model),
        handler=_handler(contents, model),
        serialized_file=_file(contents, model, "serializedFile"),
        model_file=_file(contents, model, "modelFile"),
        requirements_file=_file(contents, model, "requirementsFile"),
        config_file=_file(contents, model, "configFile"),
        runtime=runtime,
        raw=raw,
    )


def _read_json(contents: Contents) -> dict[str, Any] | None:
    try:
        text = contents.read(str(MANIFEST_PATH), MANIFEST_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidModel(f"{MANIFEST_PATH} cannot be read: {error.strerror}") from error
    if len(text) > MANIFEST_BYTES_MAX:
        raise InvalidModel(f"{MANIFEST_PATH}: expected at most {MANIFEST_BYTES_MAX} bytes, got more")
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidModel(f"Failed to parse signature.json. {MANIFEST_PATH}: {error}") from error
    if not isinstance(raw, dict):
        got = type(raw).__name__
        raise InvalidModel(f"Failed to parse signature.json. {MANIFEST_PATH}: expected a JSON object, got {got}")
    check_carried(raw, str(MANIFEST_PATH))
    return raw


def _text(model: Mapping[str, Any], key: str) -> str | None:
    value = model.get(key)
    if value is None or isinstance(value, str):
        return value
    raise InvalidModel(f"{MANIFEST_PATH}: model.{key}: expected a string, got {value!r}")


def _name(model: Mapping[str, Any], name_if_absent: str | None) -> str:
    name = _text(model, "modelName") or name_if_absent
    if not name:
        raise InvalidModel("Model name is not defined.")
    return usable_name(f"{MANIFEST_PATH}: model.modelName", name)


def _version(model: Mapping[str, Any]) -> str:
    version = model.get("modelVersion", DEFAULT_VERSION)
    # Hand-written manifests say `"modelVersion": 1.0`; TorchServe takes the number's text.
    if isinstance(version, int | float) and not isinstance(version, bool):
        version = str(version)
    if version is None or version == "":
        raise InvalidModel("Model version is not defined.")
    if not isinstance(version, str):
        raise InvalidModel(f"{MANIFEST_PATH}: model.modelVersion: expected a string, got {version!r}")
    return usable_name(f"{MANIFEST_PATH}: model.modelVersion", version)


def usable_name(where: str, value: str) -> str:
    """The name or version itself. Raises `InvalidModel`, saying `where` it came from, when no URL could hold it."""
    if len(value) > NAME_CHARS_MAX or UNUSABLE_IN_NAMES.search(value):
        expected = f"at most {NAME_CHARS_MAX} characters without slashes and control characters"
        raise InvalidModel(f"{where}: expected {expected}, got {value[:NAME_CHARS_MAX]!r}")
    return value


def _file(contents: Contents, model: Mapping[str, Any], key: str) -> str | None:
    name = _text(model, key)
    if not name:
        return None
    check_inside(f"{MANIFEST_PATH}: model.{key}", name)
    if not contents.has(name):
        raise InvalidModel(f"{MANIFEST_PATH} names {key} {name!r}, but the archive holds no such file")
    return name


def _handler(contents: Contents, model: Mapping[str, Any]) -> str:
    """A handler named without `.py` may be one of the default handlers, so only a named file must be there."""
    handler = _text(model, "handler")
    if not handler:
        return DEFAULT_HANDLER
    path = handler.partition(":")[0]
    check_inside(f"{MANIFEST_PATH}: model.handler", path)
    # Workers import the last component of the path from the model's folder, as archives made from `src/handler.py` need.
    candidates = (path, PurePosixPath(path).name)
    if path.endswith(".py") and not any(contents.has_file(candidate) for candidate in candidates):
        raise InvalidModel(f"{MANIFEST_PATH} names handler {handler!r}, but the archive holds no file {path!r}")
    return handler


def check_inside(where: str, name: str) -> None:
    """Raises `InvalidModel`, saying `where` it came from, for a path that leads out of the model's folder.

    Judged by spelling: an archive cannot hold links, and links in a no-archive folder are its owner's choice.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.name:
        raise InvalidModel(f"{where}: expected a path inside the model's folder, got {name!r}")
