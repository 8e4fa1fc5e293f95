"""When something in the repository can be taken, or counts as gone: decided from looks at it and their times, which are given.

A file that is being copied looks like one that is there. It is taken when two looks some time apart find it unchanged, or its own
time says that nobody wrote to it lately (so a rename is taken at the first look), and the end of the archive, written last, is there.
What disappears is gone when it is still not there a moment later: many tools replace a file by removing it first.
"""

import os
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from ringserve.server.repository.archive import LIMITS, ZIP_SUFFIX
from ringserve.server.repository.archive_tar import GZIP_MAGIC, why_gzip_is_cut
from ringserve.server.repository.files import open_regular
from ringserve.server.repository.scan import Entry, Snapshot

SETTLE_S = 0.5
FOLDER_SETTLE_S = 2.0  # many files are copied one after another
GONE_S = 1.0
PROBLEM_S = 1.0  # a folder without its archive is one that is being filled
# An incomplete file is looked at often while it is young, and its operator hears of it when it is not.
LOOK_S = 0.25
LATE_S = 10.0
LATE_LOOK_S = 2.0
_MEMBER = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Something that is still changing, or whose end is missing; `reason` says which. `late`: for longer than copying takes."""

    entry: Entry
    reason: str
    late: bool


@dataclass(frozen=True, slots=True)
class Look:
    """`there` can be served, `unfinished` not yet; `leaving` may be gone, and counts as before until it surely is. `problems` are those beside
    the entries that have lasted. `again_s`: when time alone may tell more. `unreadable`: nobody could look, and nothing is known."""

    there: Mapping[str, Entry] = field(default_factory=dict)
    unfinished: Mapping[str, Unfinished] = field(default_factory=dict)
    leaving: frozenset[str] = frozenset()
    problems: Mapping[str, str] = field(default_factory=dict)
    snapshot: Snapshot = field(default_factory=Snapshot)
    again_s: float | None = None
    unreadable: str | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What earlier looks found at one place."""

    fingerprint: str
    since_s: float
    begun_s: float  # when it began to change
    taken: bool = False
    gone_s: float | None = None


def why_not_whole(path: Path) -> str | None:
    """Why an archive cannot be complete. None: it is, or it is no archive at all, which unpacking will say better."""
    try:
        with open_regular(path) as file:
            start = file.read(len(_MEMBER))
            status = os.fstat(file.fileno())
            size = status.st_size
            if start.startswith(GZIP_MAGIC) and not path.name.lower().endswith(ZIP_SUFFIX):
                lacking = _lacking(path, (size, status.st_mtime_ns, status.st_ctime_ns))
            elif (size and not _MEMBER.startswith(start)) or zipfile.is_zipfile(file):
                lacking = None
            else:
                lacking = "without the end of one"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if lacking is None:
        return None
    return f"expected a whole archive, got {size} bytes {lacking}: still being copied, or cut off"


@lru_cache(maxsize=1024)
def _lacking(path: Path, mark: tuple[int, int, int]) -> str | None:
    """A gzip says nowhere how long it is: its data is read to the end, once for every content. Raises `OSError`."""
    return why_gzip_is_cut(path, LIMITS)


class Settling:
    """Remembers looks. One thread at a time."""

    def __init__(self, why_not_whole: Callable[[Path], str | None] = why_not_whole) -> None:
        self._why_not_whole = why_not_whole
        self._seen: dict[str, _Seen] = {}
        self._identity: tuple[int, int] | None = None
        self._problems: dict[str, tuple[str, float]] = {}

    def judge(self, snapshot: Snapshot, now_s: float, wall_s: float | None = None) -> Look:
        """`now_s` of a clock that only goes forward, `wall_s` of the one that files are stamped by."""
        unreadable = snapshot.unreadable or self._why_not_ours(snapshot)
        if unreadable is not None:
            return Look(snapshot=snapshot, unreadable=unreadable)
        wall_s = time.time() if wall_s is None else wall_s
        there: dict[str, Entry] = {}
        unfinished: dict[str, Unfinished] = {}
        pauses: list[float] = []
        for slot, entry in snapshot.entries.items():
            reason = self._reason_to_wait(entry, now_s, wall_s)
            if reason is None:
                there[slot] = entry
                continue
            late = now_s - self._seen[slot].begun_s >= LATE_S
            unfinished[slot] = Unfinished(entry, reason, late)
            pauses.append(LATE_LOOK_S if late else LOOK_S)
        leaving = self._leaving(snapshot, now_s)
        if any(slot.partition("/")[0] not in snapshot.uncertain for slot in leaving):
            pauses.append(LOOK_S)
        problems = self._lasting_problems(snapshot, now_s)
        if len(problems) < len(snapshot.problems):
            pauses.append(PROBLEM_S)
        return Look(there, unfinished, leaving, problems, snapshot, min(pauses, default=None))

    def _lasting_problems(self, snapshot: Snapshot, now_s: float) -> dict[str, str]:
        seen = {}
        for file, reason in snapshot.problems.items():
            before = self._problems.get(file)
            seen[file] = before if before is not None and before[0] == reason else (reason, now_s)
        self._problems = seen
        return {file: reason for file, (reason, since_s) in seen.items() if now_s - since_s >= PROBLEM_S}

    def _why_not_ours(self, snapshot: Snapshot) -> str | None:
        """A file system that is unmounted leaves an empty folder behind: nobody has removed the models."""
        before, self._identity = self._identity, self._identity or snapshot.identity
        if before is None or before == snapshot.identity:
            return None
        if self._seen and not snapshot.entries:
            return "the folder has been replaced by an empty one, as when it is unmounted"
        self._identity = snapshot.identity
        return None

    def _reason_to_wait(self, entry: Entry, now_s: float, wall_s: float) -> str | None:
        seen = self._seen.get(entry.slot)
        if seen is None or seen.fingerprint != entry.fingerprint:
            begun_s = now_s if seen is None or seen.taken else seen.begun_s
            seen = _Seen(entry.fingerprint, now_s, begun_s)
        reason = None
        if not seen.taken:
            written_s = wall_s - entry.changed_ns / 1e9 if entry.problem is None else 0.0
            settle_s = FOLDER_SETTLE_S if entry.is_folder else SETTLE_S
            if max(now_s - seen.since_s, written_s) < settle_s:
                reason = "it is still changing"
            elif entry.problem is None and not entry.is_folder:
                reason = self._why_not_whole(entry.path)
        self._seen[entry.slot] = replace(seen, taken=reason is None, gone_s=None)
        return reason

    def _leaving(self, snapshot: Snapshot, now_s: float) -> frozenset[str]:
        leaving = set()
        for slot, seen in list(self._seen.items()):
            if slot in snapshot.entries:
                continue
            if slot.partition("/")[0] in snapshot.uncertain:
                leaving.add(slot)
                continue
            gone_s = now_s if seen.gone_s is None else seen.gone_s
            if now_s - gone_s >= GONE_S:
                del self._seen[slot]
            else:
                self._seen[slot] = replace(seen, gone_s=gone_s)
                leaving.add(slot)
        return frozenset(leaving)
