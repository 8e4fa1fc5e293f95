"""The names of an output's classes: a text file beside the model, one name a line, the class' number being the line's, from 0."""

from collections.abc import Mapping
from pathlib import Path

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.files import open_regular
from ringserve.server.repository.manifest import check_inside

FILE_BYTES_MAX = 8 << 20


def read_labels(folder: Path, files: Mapping[str, str]) -> dict[str, list[str]]:
    """The labels by output; `files` are relative to the model's `folder`. Raises `InvalidModel`."""
    return {output: _read(folder, file, f"output {output}: label_filename") for output, file in files.items()}


def _read(folder: Path, name: str, where: str) -> list[str]:
    check_inside(where, name)
    try:
        with open_regular(folder / name) as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidModel(f"{where}: {name} cannot be read: {error.strerror}") from error
    if len(text) > FILE_BYTES_MAX:
        raise InvalidModel(f"{where}: expected a file of at most {FILE_BYTES_MAX} bytes, got more in {name}")
    try:
        return text.decode("utf-8").removesuffix("\n").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidModel(f"{where}: expected text in UTF-8 in {name}, got byte {error.start}") from None
