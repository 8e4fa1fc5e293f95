"""What comes with a load (contract section 3.6): a configuration in place of the model's own, and files that are the whole model.

Pure, but for writing the files: names are checked before anything is written, none leads out of the model's folder.
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ringserve.protocol.errors import BadRequest, Internal

FILES_MAX = 1000
NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 1024
DEPTH_MAX = 32
CONFIG_CHARS_MAX = 1 << 20
# Triton's sentence about a model that is not there, or that cannot be looked at.
NOT_POLLED = "failed to load '{model}', failed to poll from model repository"
_FILE = "file:"


class LoadRequest(NamedTuple):
    """`config` is JSON text; `files` are contents by path."""

    config: str | None = None
    files: Mapping[str, bytes] = {}


def check_model_name(model: str) -> None:
    """Raises `BadRequest` for what names no folder."""
    bad = not model.strip() or any(each in model for each in ("/", "\\", "..", "\0"))
    if bad or len(model.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
        raise BadRequest(NOT_POLLED.format(model=model[:NAME_BYTES_MAX]))


def read_load_request(body: Any) -> LoadRequest:
    """From the parsed body of a load, None where there is none. Raises `BadRequest`."""
    parameters = _parameters(body)
    config: str | None = None
    files: dict[str, bytes] = {}
    for name, value in parameters.items():
        if name == "config":
            config = _text(name, value)
            if len(config) > CONFIG_CHARS_MAX:
                raise BadRequest(f"config: expected at most {CONFIG_CHARS_MAX} characters, got {len(config)}")
        elif name.startswith(_FILE):
            if len(files) == FILES_MAX:
                raise BadRequest(f"parameters: expected at most {FILES_MAX} files, got more")
            files[name.removeprefix(_FILE)] = _content(name, _text(name, value))
        else:
            _text(name, value)
            raise BadRequest(f"unrecognized load parameter '{name:.200}'")
    return LoadRequest(config, files)


def check_unload_request(body: Any) -> None:
    """There are no dependents here, so that nothing in it changes anything. Raises `BadRequest` for what it cannot be."""
    value = _parameters(body).get("unload_dependents", False)
    if not isinstance(value, bool):
        raise BadRequest("attempt to access JSON non-boolean as boolean: unload_dependents")


def _parameters(body: Any) -> Mapping[str, Any]:
    parameters = body.get("parameters", {}) if isinstance(body, dict) else {}
    if not isinstance(parameters, dict):
        raise BadRequest("attempt to get members for non-object: parameters")
    return parameters


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"attempt to access JSON non-string as string: {name:.200}")
    return value


def _content(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{name:.200}: expected base64, got something else") from None


def write_files(folder: Path, model: str, files: Mapping[str, bytes]) -> None:
    """Write them below a folder that is not there yet. Raises `BadRequest` with Triton's sentence for names that lead elsewhere, or
    cannot all be, and `Internal` when the disk refuses."""
    paths: dict[tuple[str, ...], str] = {}
    for name in files:
        parts = _parts(name)
        if parts is None or parts in paths:
            raise BadRequest(f"{NOT_POLLED.format(model=model)}: Invalid file path '{name[:NAME_BYTES_MAX]}'")
        paths[parts] = name
    folder.mkdir(parents=True, mode=0o700)
    try:
        for parts, name in paths.items():
            path = folder.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with path.open("xb") as file:
                file.write(files[name])
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        said = f"{NOT_POLLED.format(model=model)}: Invalid file path: one of them is the folder of another"
        raise BadRequest(said) from None
    except OSError as error:
        raise Internal(f"failed to load '{model}', its files cannot be written: {error.strerror}") from None


def _parts(name: str) -> tuple[str, ...] | None:
    """The names on the way to a file; None where that leads out of the folder, or nowhere."""
    parts = tuple(name.split("/"))
    if not name.isprintable() or "\\" in name or len(name.encode()) > PATH_BYTES_MAX or len(parts) > DEPTH_MAX:
        return None
    if any(part in ("", ".", "..") or len(part.encode()) > NAME_BYTES_MAX for part in parts):
        return None
    return parts
