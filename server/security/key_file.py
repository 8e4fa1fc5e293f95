"""`key_file.json` in the server's working directory: where those who may read it find the keys that the server made.

The file appears with its content and readable by its owner alone; there is no moment at which it is anything else.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from ringserve.server.control import Credential
from ringserve.server.security.tokens import Plane

KEY_FILE_NAME = "key_file.json"  # TorchServe's
_ORDER = (Plane.MANAGEMENT, Plane.INFERENCE, Plane.API)
_LAST_S = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


class KeyFileError(Exception):
    """The file cannot be written; the message says why."""


def key_file_text(made: Mapping[Plane, Credential]) -> str:
    """As TorchServe writes it. A key that never ends has no time."""
    entries: dict[str, dict[str, str]] = {}
    for plane in _ORDER:
        if plane in made:
            entry = entries[plane.value] = {"key": made[plane].key}
            if made[plane].until_s != float("inf"):
                entry["expiration time"] = _time_text(made[plane].until_s)
    return json.dumps(entries, indent=2)


def _time_text(seconds: float) -> str:
    return datetime.fromtimestamp(min(max(seconds, 0), _LAST_S), UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def write_key_file(path: Path, made: Mapping[Plane, Credential]) -> None:
    """Raises `KeyFileError`. Nothing is written through a link, and a link is not replaced: whoever reads what it points at would go on
    reading old keys."""
    if path.is_symlink():
        raise KeyFileError(f"{path}: expected a file or none, got a symbolic link")
    written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            written.unlink()
        fd = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w", encoding="ascii") as file:
                file.write(key_file_text(made))
                file.flush()
                os.fsync(fd)
            os.replace(written, path)
        except OSError:
            with contextlib.suppress(OSError):
                written.unlink()
            raise
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror or error}") from None


def remove_key_file(folder: Path) -> None:
    """The keys in it open nothing any more. One that is not there, or cannot be removed, is left."""
    with contextlib.suppress(OSError):
        (folder / KEY_FILE_NAME).unlink()
