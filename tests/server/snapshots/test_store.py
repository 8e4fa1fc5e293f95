"""The folder of snapshots: whole files under names of their own, newest last, as many as are wanted."""

import errno
import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ringserve.server.snapshots.document import State, VersionRecord, read_snapshot
from ringserve.server.snapshots.store import SnapshotStore, entries, entry_of, folder_of, newest

NOON = datetime(2026, 11, 20, 12, 0, 0, 123_999)
STATE = State((VersionRecord("digits", "1.0", "digits.mar"),))


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> SnapshotStore:
    return SnapshotStore(folder_of(tmp_path), 3, clock)


def names(store: SnapshotStore) -> list[str]:
    return sorted(os.listdir(store.folder))


def test_a_name_is_the_local_time_and_the_kind_and_the_file_says_its_name(store: SnapshotStore) -> None:
    path = store.write("startup", STATE, [("a", "b")])
    assert path == store.folder / "20261120120000123-startup.cfg"
    snapshot = read_snapshot(path)
    assert snapshot.state.name == path.name
    assert snapshot.state.records == STATE.records
    assert snapshot.properties == {"a": "b"}
    assert path.read_text().startswith("#Saving snapshot\n#Fri Nov 20 12:00:00 ")
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(store) == [path.name], "nothing else is left in the folder"


def test_a_name_is_never_given_twice(store: SnapshotStore) -> None:
    written = [store.write("snapshot", STATE, []).name for _ in range(3)]
    assert written == [f"202611201200001{last}-snapshot.cfg" for last in (23, 24, 25)]


def test_what_is_written_later_is_newer_also_when_the_clock_goes_back(store: SnapshotStore, clock: Clock) -> None:
    store.write("shutdown", STATE, [])
    clock.now = NOON - timedelta(hours=1)
    later = store.write("startup", STATE, [])
    assert later.name == "20261120120000124-startup.cfg"
    assert entries(store.folder)[0].path == later


def test_as_many_are_kept_as_wanted_and_the_last_start_and_stop(store: SnapshotStore, clock: Clock) -> None:
    for kind in ("shutdown", "startup", "snapshot", "snapshot", "startup", "shutdown", *["snapshot"] * 5):
        clock.now += timedelta(seconds=1)
        store.write(kind, STATE, [])
    assert [entry.kind for entry in entries(store.folder)] == ["snapshot"] * 3 + ["shutdown", "startup"]


def test_parts_that_a_killed_server_left_go_and_those_of_others_stay(store: SnapshotStore) -> None:
    store.folder.mkdir()
    killed = store.folder / f".20261120120000000-snapshot.cfg.{2**22 + 1}.part"
    living = store.folder / f".20261120120000000-snapshot.cfg.{os.getppid()}.part"
    for part in (killed, living):
        part.touch()
    store.write("snapshot", STATE, [])
    assert not killed.exists()
    assert living.exists()


def test_the_newest_that_can_be_read_is_found_and_torn_ones_are_named(
    store: SnapshotStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = store.write("snapshot", STATE, [])
    torn = store.write("snapshot", STATE, [])
    torn.write_bytes(torn.read_bytes()[:-9])
    (store.folder / "20990101000000000-shutdown.cfg").mkdir()
    (store.folder / "notes.cfg").write_text("not a snapshot's name")
    assert newest(tmp_path) == good
    assert torn.name in caplog.text
    assert "20990101000000000-shutdown.cfg" in caplog.text


def test_without_a_folder_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "name",
    [
        "20261120120000123-other.cfg",
        "20261320120000123-startup.cfg",
        "99991231235959999-startup.cfg",
        "20261120120000123-startup.cfg.part",
        "2026112012000012\u0969-startup.cfg",
        "",
    ],
)
def test_other_names_are_no_snapshots(name: str) -> None:
    assert entry_of(Path("folder") / name) is None


def test_a_disk_that_refuses_leaves_nothing_behind(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    good = store.write("snapshot", STATE, [])

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write("snapshot", STATE, [])
    assert names(store) == [good.name]


def test_a_file_system_without_links_is_written_to_as_well(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    assert [store.write("snapshot", STATE, []).name[14:17] for _ in range(2)] == ["123", "124"]
