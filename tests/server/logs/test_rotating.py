"""A log file begins anew when it is full or of yesterday, and comes back when somebody takes it away."""

import os
import time
from pathlib import Path

import pytest

from ringserve.server.logs.rotating import LogFile, Rotation

DAY_S = 86_400.0


def texts(path: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in sorted(path.parent.iterdir())}


def test_a_full_file_is_renamed_and_only_so_many_are_kept(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", Rotation(bytes_max=10, kept=2))
    for number in range(5):
        log.write(b"line %d\n" % number)
    log.close()
    assert texts(log.path) == {"a.log": "line 4\n", "a.log.1": "line 3\n", "a.log.2": "line 2\n"}


def test_a_line_longer_than_a_file_may_be_gets_one_of_its_own(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", Rotation(bytes_max=10, kept=2))
    for line in (b"x\n", b"y" * 20 + b"\n", b"z\n"):
        log.write(line)
    log.close()
    assert texts(log.path) == {"a.log": "z\n", "a.log.1": "y" * 20 + "\n", "a.log.2": "x\n"}


def test_a_new_day_begins_a_new_file_whether_or_not_the_server_was_running(tmp_path: Path) -> None:
    now_s = [time.time()]
    log = LogFile(tmp_path / "a.log", now_s=lambda: now_s[0])
    log.write(b"today\n")
    now_s[0] += DAY_S
    log.write(b"tomorrow\n")
    log.close()
    assert texts(log.path) == {"a.log": "tomorrow\n", "a.log.1": "today\n"}
    os.utime(log.path, (now_s[0] - 3 * DAY_S,) * 2)
    restarted = LogFile(log.path)
    restarted.write(b"much later\n")
    restarted.close()
    assert texts(log.path) == {"a.log": "much later\n", "a.log.1": "tomorrow\n", "a.log.2": "today\n"}


def test_of_several_processes_one_rotates_and_the_others_follow(tmp_path: Path) -> None:
    one, other = (LogFile(tmp_path / "a.log", Rotation(bytes_max=20, kept=5)) for _ in range(2))
    for number in range(4):
        one.write(b"one %d\n" % number)
        other.write(b"other %d\n" % number)
    one.close()
    other.close()
    lines = "".join(texts(one.path).values()).splitlines()
    assert sorted(lines) == sorted(f"{who} {number}" for who in ("one", "other") for number in range(4))
    assert all(len(text) <= 20 for text in texts(one.path).values())


def test_a_file_that_is_moved_deleted_or_emptied_under_us_goes_on_under_its_name(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "a.log")
    log.write(b"first\n")
    log.path.rename(tmp_path / "moved.log")
    log.write(b"second\n")
    log.path.unlink()
    log.write(b"third\n")
    os.truncate(log.path, 0)  # logrotate's copytruncate
    log.write(b"fourth\n")
    assert log.path.read_text() == "fourth\n", "no hole where the old text was"
    log.path.unlink()
    log.path.parent.rmdir()
    log.write(b"fifth\n")
    assert log.path.read_text() == "fifth\n"
    assert (tmp_path / "moved.log").read_text() == "first\n"
    log.close()


def test_what_is_no_plain_file_is_written_and_never_rotated(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    os.mkfifo(path)
    log = LogFile(path, Rotation(bytes_max=1, kept=5))
    with pytest.raises(OSError, match="No such device"):  # nobody reads it
        log.write(b"lost\n")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log.write(b"one\n")
    log.write(b"two\n")
    assert os.read(reader, 100) == b"one\ntwo\n"
    os.close(reader)
    log.close()
    assert [each.name for each in tmp_path.iterdir()] == ["a.log"]


def test_a_disk_without_room_raises_and_a_torn_line_gets_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full.log"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        LogFile(full).write(b"lost\n")

    log, really = LogFile(tmp_path / "a.log"), os.write
    room = [4]

    def write(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken = really(fd, bytes(data)[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        log.write(b"a torn line\n")
    room[0] = 1000
    log.write(b"a whole one\n")
    monkeypatch.undo()
    log.close()
    assert log.path.read_text() == "a to\na whole one\n"
