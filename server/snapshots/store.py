"""The folder of snapshots, `{log_location}/config`: written so that a kill or a power cut at any moment leaves the one before valid.

A file is written under a hidden name, flushed to the disk, and then linked to its own name, which is never one that is taken. Names
begin with the local time, as TorchServe's do; "newest" means by name. The clock may go back (local time does every autumn), so a new
name is always later than all others of the folder.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import psutil

from ringserve.server.settings import Settings
from ringserve.server.snapshots.document import Snapshot, SnapshotError, State, read_snapshot, write_snapshot
from ringserve.shm.faults import reach

logger = logging.getLogger("ringserve.snapshots")

KINDS = ("startup", "snapshot", "shutdown")
NAME = re.compile(rf"([0-9]{{17}})-({'|'.join(KINDS)})\.cfg")
TRIES_MAX = 1000
_PART = re.compile(r"\.\d{17}-[a-z]+\.cfg\.(\d+)\.part")
_YEAR_MAX = 9000  # a name beyond was not given by a clock, and the next millisecond must exist
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Entry:
    """A name of the folder that is a snapshot's."""

    path: Path
    at: datetime
    kind: str


def folder_of(log_location: Path) -> Path:
    return log_location / "config"


def entries(folder: Path) -> list[Entry]:
    """Newest first; none where there is no such folder, or it cannot be read."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            entry = entry_of(folder / name)
            if entry is not None:
                found.append(entry)
    return sorted(found, key=lambda entry: (entry.at, entry.path.name), reverse=True)


def entry_of(path: Path) -> Entry | None:
    """None for a name that is not a snapshot's."""
    match = NAME.fullmatch(path.name)
    if match is None:
        return None
    try:
        at = datetime.strptime(match[1][:14], "%Y%m%d%H%M%S") + timedelta(milliseconds=int(match[1][14:]))
    except ValueError:
        return None
    return Entry(path, at, match[2]) if at.year <= _YEAR_MAX else None


def readable(log_location: Path) -> Iterator[tuple[Path, Snapshot]]:
    """Newest first. What is torn or cannot be read is left out, and the log names it."""
    for entry in entries(folder_of(log_location)):
        try:
            yield entry.path, read_snapshot(entry.path)
        except SnapshotError as error:
            logger.error("A snapshot is left out: %s", error)


def newest(log_location: Path) -> Path | None:
    """The newest one that can be read."""
    return next((path for path, _ in readable(log_location)), None)


def store_for(settings: Settings) -> "SnapshotStore | None":
    """None: no snapshots are wanted."""
    return SnapshotStore(folder_of(settings.log_location), settings.snapshots_kept) if settings.snapshots else None


class SnapshotStore:
    """Writes, and keeps as many as are wanted. Everything here may take as long as the disk does: for threads, one at a time."""

    def __init__(self, folder: Path, kept: int, clock: Callable[[], datetime] = datetime.now) -> None:
        self.folder = folder
        self._kept = kept
        self._clock = clock

    def write(self, kind: str, state: State, properties: Sequence[tuple[str, str]]) -> Path:
        """Returns when it is on the disk. Raises `OSError`; then nothing is left of it."""
        assert kind in KINDS
        self.folder.mkdir(parents=True, exist_ok=True)
        now = self._clock()
        others = entries(self.folder)
        at = max(now, others[0].at + _MILLISECOND) if others else now
        for _ in range(TRIES_MAX):
            name = f"{at:%Y%m%d%H%M%S}{at.microsecond // 1000:03d}-{kind}.cfg"
            created_ms = int(now.timestamp() * 1000)
            text = write_snapshot(
                replace(state, name=name, created_ms=created_ms),
                properties,
                now.astimezone().strftime("%a %b %d %H:%M:%S %Z %Y"),
            )
            with contextlib.suppress(FileExistsError):
                path = self._write_once(self.folder / name, text)
                self._prune()
                return path
            at += _MILLISECOND
        raise FileExistsError(f"no free name after {TRIES_MAX} tries in {self.folder}")

    def _write_once(self, path: Path, text: str) -> Path:
        """Raises `FileExistsError` for a name that is taken."""
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(fd, "wb") as file:
                data = text.encode()
                file.write(data[: len(data) // 2])
                file.flush()
                reach("snapshot-half-written")
                file.write(data[len(data) // 2 :])
                file.flush()
                os.fsync(fd)
            reach("snapshot-synced")
            _give_name(part, path)
            reach("snapshot-named")
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(path.parent)
        return path

    def _prune(self) -> None:
        """What cannot be removed now is tried again with the next one."""
        found = entries(self.folder)
        last = {kind: next((each for each in found if each.kind == kind), None) for kind in ("startup", "shutdown")}
        for entry in found[self._kept :]:
            if entry not in last.values():
                with contextlib.suppress(OSError):
                    entry.path.unlink()
        with contextlib.suppress(OSError):
            for name in os.listdir(self.folder):
                match = _PART.fullmatch(name)
                if match and (int(match[1]) == os.getpid() or not psutil.pid_exists(int(match[1]))):
                    with contextlib.suppress(OSError):
                        (self.folder / name).unlink()


def _give_name(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(str(path)) from None
        os.rename(part, path)


def _sync_folder(folder: Path) -> None:
    """So that the name, too, is there after a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems know no such thing
            os.fsync(fd)
    finally:
        os.close(fd)
