"""A log file that several processes append to, that begins anew every day and at a size, and that others may move or delete.

Every write is whole lines in one `write` on a descriptor that appends, which the kernel does not mix with another process'. Before
each, the file is looked at: one that somebody moved or deleted is opened again by its name, one that is full or of yesterday is
renamed. Any of the processes may do that: a lock on the file itself lets one of them, and the others find another file in its place.
"""

import fcntl
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

MODE = 0o640  # what models print is not for everybody


class Rotation(NamedTuple):
    """TorchServe's: every day, at 100 MB, and five old files."""

    bytes_max: int = 100 << 20
    kept: int = 5


class LogFile:
    """`write` raises `OSError` for whatever keeps the lines from being written, and may be called again."""

    def __init__(self, path: Path, rotation: Rotation | None = None, now_s: Callable[[], float] = time.time) -> None:
        self.path = path
        self._rotation = rotation or Rotation()
        self._now_s = now_s
        self._fd = -1
        self._day = 0
        self._torn = False  # the last line lacks its end: there was no room for it

    def write(self, lines: bytes) -> None:
        """Append lines that end in a newline."""
        if self._fd < 0 or not self._is_current():
            self._open()
        if self._is_due(len(lines)):
            self._rotate()
        if self._torn:
            lines = b"\n" + lines
        view = memoryview(lines)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            self._torn = self._torn or len(view) < len(lines)
            raise
        self._torn = False

    def close(self) -> None:
        """A later write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Not blocking: a FIFO under this name, which nobody reads, must not stop the server.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        self._fd = os.open(self.path, flags, MODE)
        self._torn = False
        found = os.fstat(self._fd)
        self._day = _day(found.st_mtime if found.st_size else self._now_s())

    def _is_current(self) -> bool:
        """Whether our descriptor still is the file of that name."""
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return False
        ours = os.fstat(self._fd)
        return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)

    def _is_due(self, more_bytes: int) -> bool:
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return False  # a device, a pipe, or nothing to keep
        today = _day(self._now_s())
        return found.st_size + more_bytes > self._rotation.bytes_max or min(self._day, _day(found.st_mtime)) < today

    def _rotate(self) -> None:
        """The file becomes `.1`, `.1` becomes `.2`, and so on; the oldest goes. Whoever else is at it, or has locked the file for
        reasons of its own, is not waited for: better a file that is somewhat too long than lines that are lost."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the file's, which `_open` closes
        except BlockingIOError:
            return
        if self._is_current():
            numbers = range(self._rotation.kept, 0, -1)
            for number in numbers:
                older = self._numbered(number)
                newer = self._numbered(number - 1) if number > 1 else self.path
                if newer.exists():
                    newer.replace(older)
            if not numbers:
                self.path.unlink()
        self._open()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _day(when_s: float) -> int:
    """The local day, as a number that grows."""
    moment = time.localtime(when_s)
    return moment.tm_year * 1000 + moment.tm_yday
