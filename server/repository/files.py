"""Reads what anybody may have put into a model's folder: never hangs, and takes nothing that workers could not be given."""

import errno
import os
import stat
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

import msgspec

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.archive_plan import KIND_NAMES


def open_regular(path: Path) -> BufferedReader:
    """For reading. Raises `OSError`, also for anything but a regular file: to open a pipe may take for ever, and a thread that
    hangs keeps the server from ending."""
    _check_regular(os.stat(path), path)
    file: BufferedReader = BufferedReader(FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)))
    try:
        _check_regular(os.fstat(file.fileno()), path)  # it may be another one by now
    except OSError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result, path: Path) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"expected a regular file, got {KIND_NAMES.get(kind, 'something else')}", str(path))


def check_carried(raw: dict[str, Any], where: str) -> None:
    """Raises `InvalidModel` for what a message to a worker cannot carry: numbers beyond 64 bits, keys that are no text."""
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(raw), type=dict[str, Any])
    except (msgspec.MsgspecError, OverflowError, TypeError, ValueError, RecursionError) as error:
        raise InvalidModel(f"{where}: expected keys of text, and values that workers can be given: {error}") from None
